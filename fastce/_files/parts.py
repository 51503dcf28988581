"""Several arrays that are one, joined along the first axis: what lies in many files, or in many tensors of one."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fastce._files.sources import FileError, Index, Source, parts_of, rows_of, shown
from fastce._problem import Array

KEPT = 4
"""Parts that stay open for the next read."""


class Parts:
    """Sources joined along the first axis, which agree in all but its length."""

    def __init__(self, parts: Sequence[Source]) -> None:
        first = parts[0]
        for part in parts:
            for what, ours, theirs in (
                ("number of axes", len(first.shape), len(part.shape)),
                ("shape of a row", first.shape[1:], part.shape[1:]),
                ("dtype", first.stored, part.stored),
                ("byte order", first.dtype, part.dtype),
            ):
                if ours != theirs:
                    raise FileError(f"{first.name} and {part.name}: another {what}: {ours} and {theirs}")
            if not part.shape:
                raise FileError(f"{part.name}: is a single number, which has no rows to join")
        self._parts = parts
        self._ends = list(accumulate(part.shape[0] for part in parts))
        self._lock = threading.Lock()
        self._open: list[int] = []
        self.name = f"{first.name} ... {parts[-1].name}"
        self.shape = (self._ends[-1], *first.shape[1:])
        self.files = tuple(dict.fromkeys(file for part in parts for file in part.files))

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(part.key for part in self._parts)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._parts[0].dtype

    @property
    def stored(self) -> str:
        return self._parts[0].stored

    @property
    def itemsize(self) -> int:
        return self._parts[0].itemsize

    @property
    def by_rows(self) -> bool:
        return True

    @property
    def in_order(self) -> bool:
        return any(part.in_order for part in self._parts)

    def read(self, index: Index) -> Array:
        start, stop, rest = rows_of(index, self.shape)
        pieces = []
        for k, first, last in parts_of(self._ends, start, stop):
            self._use(k)
            pieces.append(self._parts[k].read((slice(first, last),)))
        if not pieces:
            pieces.append(np.empty((0, *self.shape[1:]), self.dtype))
        rows = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return np.asarray(rows[rest])

    def release(self) -> None:
        with self._lock:
            for k in self._open:
                self._parts[k].release()
            self._open.clear()

    def _use(self, k: int) -> None:
        """Keep the last few parts open, and no more: each may hold a file, a map or some rows."""
        with self._lock:
            if k in self._open:
                return
            self._open.append(k)
            if len(self._open) > KEPT:
                self._parts[self._open.pop(0)].release()


def joined(path: Path, wanted: str | None, names: list[str], open_one: Callable[[str], Source]) -> Source:
    """Open the one array that is wanted of those a file has, or all that fit a pattern as parts of one.

    Without `wanted` there must be one only.
    """
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted is not None and wanted in names:
        return open_one(wanted)
    found = [] if wanted is None else sorted((name for name in names if fnmatchcase(name, wanted)), key=natural)
    if not found:
        asked = f"say which tensor, as in {path.name}:NAME" if wanted is None else f"no tensor {wanted!r}"
        raise FileError(f"{path}: {asked}; it has {shown(names) or 'none'}")
    parts = [open_one(name) for name in found]
    return parts[0] if len(parts) == 1 else Parts(parts)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts names as people count: part-2 before part-10."""
    parts = re.split(r"([0-9]{1,18})", name)
    return [(1, int(part), "") if i % 2 else (0, 0, part) for i, part in enumerate(parts)]
