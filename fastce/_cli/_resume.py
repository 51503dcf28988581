"""The state of a run of `fastce score --resume STATE`, from which another run goes on where this one ended.

A state is a small JSON file: the sums up to a row, bit by bit, how much of the output is written, and what they were
computed from. It is replaced as a whole, after what it speaks of is on the disk, so that a run may end at any moment.
What does not fit, or was damaged, is refused and left as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fastce._cli._console import CommandError
from fastce._cli._output import replacing
from fastce._cli._work import Result
from fastce._files import Source, stored_in
from fastce._sums import Sum

SAVE_SECONDS = 2.0
"""Between two states; what is lost at most."""

MAX_STATE_BYTES = 1 << 20

KIND = "state of fastce score, 1"


class Saved(NamedTuple):
    """What a state holds."""

    result: Result = Result()
    seconds: float = 0.0
    partial: str | None = None
    """The name of the unfinished output, beside the finished one."""
    written: int = 0
    """Bytes of it that are valid."""


class State:
    """A file that holds what a run has found so far."""

    def __init__(self, path: Path, name: str, made_of: dict[str, Any]) -> None:
        """Take a file, what messages call it, and what results depend on: by name something that JSON holds."""
        self.path = path
        self._name = name
        self._made_of = {name: json.loads(json.dumps(value)) for name, value in made_of.items()}
        self._next = 0.0

    def load(self) -> Saved | None:
        """Return what another run has left, or None where there is nothing yet."""
        try:
            with self.path.open("rb") as file:
                text = file.read(MAX_STATE_BYTES + 1)
        except FileNotFoundError:
            return None
        saved, made_of = self._parsed(text)
        for name, ours in self._made_of.items():
            theirs = made_of.get(name)
            if theirs != ours:
                shown = f" ({theirs!r} then, {ours!r} now)" if isinstance(ours, (int, float, type(None))) else ""
                raise CommandError(
                    f"--resume {self._name}: is of another run, whose {name} differs{shown}; "
                    "delete it to begin again, or name another file"
                )
        return saved

    def _parsed(self, text: bytes) -> tuple[Saved, dict[str, Any]]:
        try:
            if len(text) > MAX_STATE_BYTES:
                raise ValueError("it is too large")
            found = json.loads(text.decode())
            if not isinstance(found, dict) or found.get("kind") != KIND:
                raise ValueError(f"it is no {KIND!r}")
            check = found.pop("check", None)
            if check != digest(found):
                raise ValueError("its checksum is wrong")
            made_of, result = found["made_of"], found["result"]
            partial = found["partial"]
            if partial is not None and not re.fullmatch(r"\.fastce-[0-9a-f]{12}\.partial", partial):
                raise ValueError("the name of its output is wrong")
            rows, right, ignored, written = (int(n) for n in (*result["counts"], found["written"]))
            if not (0 <= right <= rows and 0 <= ignored <= rows and written >= 0):
                raise ValueError("a number is negative")
            loss, weight, plain_loss = (
                Sum(*map(float.fromhex, result[name])) for name in ("loss", "weight", "plain_loss")
            )
            found_so_far = Result(rows, loss, weight, plain_loss, right, ignored)
            saved = Saved(found_so_far, float(found["seconds"]), partial, written)
            return saved, dict(made_of)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise CommandError(
                f"--resume {self._name}: damaged, or not the state of a run: {error}; it is left as it is"
            ) from None

    def due(self) -> bool:
        """Tell whether it is time to save."""
        return time.monotonic() >= self._next

    def save(self, saved: Saved, output: BinaryIO | None) -> None:
        """Replace the file, after the output is on the disk as far as it is written."""
        if output is not None:
            output.flush()
            os.fsync(output.fileno())
        result = saved.result
        sums = {name: [x.hex() for x in getattr(result, name)] for name in ("loss", "weight", "plain_loss")}
        found: dict[str, Any] = {
            "kind": KIND,
            "made_of": self._made_of,
            "result": {"counts": [result.rows, result.right, result.ignored], **sums},
            "seconds": saved.seconds,
            "partial": saved.partial,
            "written": saved.written,
        }
        found["check"] = digest(found)
        with replacing(self.path) as file:
            file.write(json.dumps(found, indent=1).encode() + b"\n")
        self._next = time.monotonic() + SAVE_SECONDS


def identity(source: Source | None) -> str | None:
    """Return a digest of what is read: files, sizes, times, shape and dtype."""
    if source is None:
        return None
    files = [(str(path.resolve()), (status := path.stat()).st_size, status.st_mtime_ns) for path in stored_in(source)]
    return digest([files, source.key, source.shape, source.stored, source.dtype.str])


def digest(value: Any) -> str:
    """Return a digest of what JSON holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def partial_name() -> str:
    """Return a new name for an unfinished output."""
    return f".fastce-{secrets.token_hex(6)}.partial"
