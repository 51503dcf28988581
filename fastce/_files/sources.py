"""What every reader of files gives: a Source, an array that is read in pieces; and two ways to be one.

`Mapped` is for formats whose elements lie in one run of a file as they lie in an array: pieces are views of the file.
`Slabs` is for those that have to be decoded: some rows at a time, the next ones while the caller computes. None ever
holds the whole, whatever its size: of a map its page tables are bounded too.
"""

from __future__ import annotations

import bisect
import math
import operator
import stat
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol

import numpy as np

from fastce import _dtypes
from fastce._problem import Array

Index = tuple[slice | int | EllipsisType, ...]


class FileError(ValueError):
    """What is wrong with a file, in a line that names it."""


class Source(Protocol):
    """An array that is read in pieces, by any number of threads at once."""

    @property
    def name(self) -> str:
        """What messages call it: as a rule the path of its file."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that say whether it is still the same; of a Zarr store the one with the metadata."""

    @property
    def key(self) -> tuple[object, ...]:
        """Where it is in its files, as far as these do not tell."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of what `read` returns."""

    @property
    def stored(self) -> str:
        """The name of the dtype in the file."""

    @property
    def itemsize(self) -> int:
        """The bytes of an element in the file."""

    @property
    def by_rows(self) -> bool:
        """Tell whether only pieces along the first axis are cheap to read."""

    @property
    def in_order(self) -> bool:
        """Tell whether reading one row after the other is faster than any other order."""

    def read(self, index: Index) -> Array:
        """Return a piece of it: a view of the file where that is possible, and not to be written to."""

    def release(self) -> None:
        """Give back what is kept for the next read."""


MAP_BYTES = 1 << 30
"""What is read through a map before a new one takes its place. The system keeps 8 bytes for each page that was looked
at, for as long as it is mapped; and that is when to look whether the file is still the same."""


class Mapped:
    """An array of a file that is mapped into memory, read-only."""

    by_rows = False
    in_order = False

    def __init__(
        self,
        path: Path,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        offset: int,
        order: str = "C",
        bfloat16: bool = False,
    ) -> None:
        self.path = path
        self.shape = shape
        self._held = dtype
        self._offset = offset
        self._order = order
        self._bfloat16 = bfloat16
        self._lock = threading.Lock()
        self._map: Array | None = None
        self._left = 0
        self._was = fingerprint(path)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def key(self) -> tuple[object, ...]:
        return (self._offset, self._order, self._held.str, self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the bits of bfloat16 without ml_dtypes: float32, which holds them all."""
        return widened() if self._bfloat16 else self._held

    @property
    def stored(self) -> str:
        return "bfloat16" if self._bfloat16 else self._held.name

    @property
    def itemsize(self) -> int:
        return self._held.itemsize

    def read(self, index: Index) -> Array:
        piece = np.asarray(self._whole(index))
        return from_bits(piece) if self._bfloat16 else piece

    def release(self) -> None:
        with self._lock:
            self._map = None

    def _whole(self, index: Index) -> Any:
        if 0 in self.shape:  # nothing cannot be mapped
            return np.empty(self.shape, self._held)[index]
        with self._lock:
            if self._map is None or self._left <= 0:
                self._map = None
                if fingerprint(self.path) != self._was:
                    raise FileError(f"{self.path}: was changed while it was being read")
                order: Any = self._order
                mapped = np.memmap(self.path, self._held, "r", self._offset, self.shape, order)
                self._map = mapped.view(np.ndarray)
                self._left = MAP_BYTES
            piece = self._map[index]
            self._left -= piece.nbytes
        return piece


SLAB_BYTES = 4 << 20
"""Decoded at a time, where neither chunks nor who reads them suggest more."""

MOST_SLAB_BYTES = 8 << 20
"""Decoded at a time at most: chunks with more of a row's classes are decoded again for the next rows."""

SLABS_KEPT = 3
"""One that a slower thread may still ask for, the present one, and the next."""


MOST_BUFFER_BYTES = 16 << 20
"""What is kept for the next piece; larger ones are not read one after the other."""

BUFFERS_KEPT = 4


class Buffers:
    """Memory for pieces, used again as soon as nobody has a view of it: new pages cost as much as reading does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[Array] = []

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array whose elements are anything."""
        n_bytes = math.prod(shape) * dtype.itemsize
        if not 0 < n_bytes <= MOST_BUFFER_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            buffer = self._free(n_bytes)
            if buffer is None:
                buffer = np.empty(n_bytes, np.uint8)
                self._kept = [*self._kept[-BUFFERS_KEPT + 1 :], buffer]
            piece: Array = buffer[:n_bytes].view(dtype).reshape(shape)
            return piece

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def _free(self, n_bytes: int) -> Array | None:
        """Return the free buffer that was used last, which is most likely still in a cache."""
        references = _references(self._kept)
        for i in reversed(range(len(self._kept))):
            if references[i] == NO_MORE_REFERENCES and n_bytes <= self._kept[i].nbytes <= 2 * n_bytes:
                self._kept.append(self._kept.pop(i))
                return self._kept[-1]
        return None


def _references(items: Sequence[object]) -> list[int]:
    """Count references to each item; how many of them are the counter's own is the interpreter's affair."""
    return [sys.getrefcount(item) for item in items]


[NO_MORE_REFERENCES] = _references([object()])
"""What is counted for an item of a list that nobody else refers to."""


@dataclass(frozen=True)
class Held:
    """What an array that is read by rows says of itself."""

    path: Path
    what: str
    """The tensor or the column, as messages have it."""
    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    bfloat16: bool = False


class ByRows:
    """A source whose pieces are cut from runs of rows: all but how a run is read."""

    by_rows = True

    def __init__(self, held: Held) -> None:
        self._held = held
        self.name = f"{held.path}{held.what}"
        self.files, self.shape = held.files, held.shape
        self.dtype = widened() if held.bfloat16 else held.dtype
        self.stored = "bfloat16" if held.bfloat16 else held.dtype.name
        self.itemsize = held.dtype.itemsize
        self.key = (held.what, self.dtype.str, self.shape)

    def read(self, index: Index) -> Array:
        start, stop, rest = rows_of(index, self.shape)
        rows = self._rows(start, stop) if start < stop else np.empty((0, *self.shape[1:]), self._held.dtype)
        piece: Array = np.asarray(rows[rest])
        return from_bits(piece) if self._held.bfloat16 else piece

    def _rows(self, start: int, stop: int) -> Array:
        """Return the rows from one number to before a larger one, as they are stored."""
        raise NotImplementedError


class Slabs(ByRows):
    """An array that is decoded some rows at a time, ahead of a caller who reads one row after the other.

    `load` fills an array with the rows from one number on, and is called by one thread at a time; `chunk_rows` are
    decoded together anyway.
    """

    in_order = True

    def __init__(self, held: Held, load: Callable[[int, Array], None], chunk_rows: int = 1) -> None:
        super().__init__(held)
        self._load_rows = load
        self._chunk_rows = chunk_rows
        self._slab_rows = 0
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._slabs: OrderedDict[int, Future[Array]] = OrderedDict()
        self._buffers = Buffers()
        self._last = -1

    def _rows(self, start: int, stop: int) -> Array:
        with self._lock:
            if self._slab_rows == 0:
                row_bytes = math.prod(self.shape[1:]) * self.itemsize
                self._slab_rows = slab_rows(row_bytes, self._chunk_rows, stop - start)
        pieces = []
        for k in range(start // self._slab_rows, (stop - 1) // self._slab_rows + 1):
            first = k * self._slab_rows
            pieces.append(self._slab(k).result()[max(start - first, 0) : stop - first])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces, out=self._buffers.take((stop - start, *self.shape[1:]), self._held.dtype))

    def release(self) -> None:
        with self._lock:
            self._slabs.clear()
            self._buffers.clear()
            self._last = -1

    def _slab(self, k: int) -> Future[Array]:
        with self._lock:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastce-read")
            found = self._start(k)
            if k == self._last + 1 and (k + 1) * self._slab_rows < self.shape[0]:
                self._start(k + 1)
            self._last = max(k, self._last) if k >= self._last - 1 else k
            return found

    def _start(self, k: int) -> Future[Array]:
        future = self._slabs.get(k)
        if future is None or (future.done() and future.exception() is not None):
            future = self._thread.submit(self._load, k) if self._thread else Future()
            self._slabs[k] = future
            while len(self._slabs) > SLABS_KEPT:
                self._slabs.popitem(last=False)
        return future

    def _load(self, k: int) -> Array:
        first = k * self._slab_rows
        rows = min(self._slab_rows, self.shape[0] - first)
        slab = self._buffers.take((rows, *self.shape[1:]), self._held.dtype)
        self._load_rows(first, slab)
        slab.flags.writeable = False
        return slab


def slab_rows(row_bytes: int, chunk_rows: int, read_rows: int) -> int:
    """Return how many rows to decode at a time: whole chunks where that is not too much memory.

    Pieces as large as the first that is read are not put together from several, where chunks allow it.
    """
    row_bytes, chunk_rows = max(row_bytes, 1), max(chunk_rows, 1)
    if chunk_rows * row_bytes > MOST_SLAB_BYTES:
        return max(1, MOST_SLAB_BYTES // row_bytes)
    if read_rows % chunk_rows == 0 and SLAB_BYTES <= read_rows * row_bytes <= MOST_SLAB_BYTES:
        return read_rows
    return chunk_rows * max(1, SLAB_BYTES // (chunk_rows * row_bytes))


def rows_of(index: Index, shape: tuple[int, ...]) -> tuple[int, int, Index]:
    """Return the run of rows that holds a piece, and the piece's index in it."""
    first = index[0] if index else Ellipsis
    if first is Ellipsis:
        n = shape[0]
        return (0, n, index) if n else (0, 0, index)
    if isinstance(first, slice):
        chosen = range(*first.indices(shape[0]))
        if not chosen:
            return 0, 0, (slice(0, 0), *index[1:])
        low, high = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1
        within = slice(None) if chosen.step == 1 else slice(None, None, chosen.step)
        return low, high, (within, *index[1:])
    i = operator.index(first)
    if not -shape[0] <= i < shape[0]:
        raise IndexError(f"row {i} is out of range for {shape[0]} rows")
    i %= shape[0]
    return i, i + 1, (0, *index[1:])


def parts_of(ends: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Cut a run of rows where parts end: yield the number of each part that has some, and which of its own rows."""
    k = bisect.bisect_right(ends, start)
    while start < stop:
        begin, end = ends[k - 1] if k else 0, min(stop, ends[k])
        if start < end:
            yield k, start - begin, end - begin
        start = max(start, end)
        k += 1


# --- what readers share -----------------------------------------------------------------------------------------------

ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")
"""Of a folder that is a Zarr array or group, whatever its name."""

MAX_DIMENSIONS = 64
"""NumPy's limit."""


def size_of(path: Path) -> int:
    """Return the size of a regular file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path}: not a regular file")
    return status.st_size


def bytes_of(path: Path, what: str, shape: tuple[int, ...] | list[int], itemsize: int) -> int:
    """Return how many bytes a shape needs; refuse one that no array can have."""
    reach = math.prod(n for n in shape if n) * itemsize  # NumPy's strides, also where there are no elements
    if len(shape) > MAX_DIMENSIONS or any(n < 0 for n in shape) or reach > np.iinfo(np.intp).max:
        raise FileError(f"{path}{what}: no array can have the shape {tuple(shape)}")
    return 0 if 0 in shape else reach


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of a JSON text, in which every name occurs once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def shown(names: list[str]) -> str:
    """Return some of the names, for a message."""
    return ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")


def widened() -> np.dtype[Any]:
    """Return the dtype in which the bits of bfloat16 are read."""
    try:
        return _dtypes.named("bfloat16")
    except ImportError:
        return np.dtype(np.float32)


def from_bits(piece: Array) -> Array:
    """Return 16-bit integers as the bfloat16 numbers whose bits they are."""
    bits = piece.astype(np.uint16, copy=False)
    dtype = widened()
    return bits.view(dtype) if dtype.itemsize == 2 else (bits.astype(np.uint32) << 16).view(np.float32)


def fingerprint(path: Path) -> tuple[int, ...]:
    """Return what differs where a file is not what it was."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
