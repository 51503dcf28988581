"""The readers of Parquet and of Arrow's own files (IPC, also called Feather), by the package ``pyarrow``.

An array in a table is a column of lists, one for each row and all as long; or several columns of numbers, one for each
class; or, for labels, one column of numbers. Batches of an Arrow file that are not compressed are views of the file;
other tables are read forwards in batches of rows, ahead of who wants them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fastce._files.sources import (
    MAP_BYTES,
    ByRows,
    FileError,
    Held,
    Slabs,
    Source,
    fingerprint,
    parts_of,
    shown,
    size_of,
)
from fastce._problem import Array

BATCH_BYTES = 1 << 20
"""What Arrow is asked for at a time: it needs several times as much beside it, and keeps that."""


def open_parquet(path: Path, tensor: str | None, bfloat16: bool) -> Source:
    """Open a column, or one column for each class, of a Parquet file."""
    pa = _pyarrow(path)
    import pyarrow.parquet as pq

    size_of(path)

    def open_file() -> Any:
        # Through a buffer: else a column is read as a whole, for all the rows of a group.
        return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)

    file = _tried(path, open_file)
    metadata = file.metadata
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def batches(columns: list[str], start: int, rows: int) -> Iterator[Any]:
        """Record batches from a row on; their sizes are the reader's affair."""
        first = 0
        while first < len(groups) and start >= groups[first]:
            start -= groups[first]
            first += 1
        wanted = list(range(first, len(groups)))
        for batch in open_file().iter_batches(batch_size=rows, row_groups=wanted, columns=columns, use_threads=False):
            if start < len(batch):
                yield batch.slice(start) if start else batch
            start = max(0, start - len(batch))

    table = _table(pa, path, file.schema_arrow, batches, tensor, bfloat16)
    return _ahead(table, sum(groups), 1, batches)


def open_ipc(path: Path, tensor: str | None, bfloat16: bool) -> Source:
    """Open a column, or one column for each class, of an Arrow file."""
    pa = _pyarrow(path)
    import pyarrow.ipc

    size_of(path)

    def mapped() -> Any:
        return pa.memory_map(str(path)).read_buffer()

    def open_file() -> Any:
        return pyarrow.ipc.open_file(mapped())

    file = _tried(path, open_file)
    sizes = _tried(path, lambda: [file.get_batch(i).num_rows for i in range(file.num_record_batches)])

    def batches(columns: list[str], start: int, rows: int) -> Iterator[Any]:
        reader, left = open_file(), MAP_BYTES
        for i, size in enumerate(sizes):
            if start < size:
                if left <= 0:
                    reader, left = open_file(), MAP_BYTES
                batch = reader.get_batch(i).select(columns)
                left -= batch.nbytes
                yield batch.slice(start) if start else batch
            start = max(0, start - size)

    table = _table(pa, path, file.schema, batches, tensor, bfloat16)
    whole = _tried(path, mapped)
    filled = next((i for i, size in enumerate(sizes) if size), None)
    if filled is not None and _lies_in(whole, pyarrow.ipc.open_file(whole).get_batch(filled).column(table.columns[0])):
        return _Batches(table, sizes, open_file)
    return _ahead(table, sum(sizes), max(sizes, default=1), batches)


def _lies_in(whole: Any, column: Any) -> bool:
    """Tell whether the numbers of a column are a part of a file as they are, so that nothing has to be decoded."""
    parts = [part for part in column.buffers() if part is not None and part.size]
    return all(whole.address <= part.address < whole.address + whole.size for part in parts)


@dataclass(frozen=True)
class _Table:
    """Which columns of a table are the array, and what becomes of their numbers."""

    pa: Any
    path: Path
    columns: list[str]
    is_list: bool
    row: tuple[int, ...]
    dtype: np.dtype[Any]
    bfloat16: bool

    @property
    def what(self) -> str:
        first, last = self.columns[0], self.columns[-1]
        return f" (column {first!r})" if len(self.columns) == 1 else f" (columns {first!r} ... {last!r})"

    def held(self, n_rows: int) -> Held:
        """Describe the array that the rows of the table are."""
        return Held(self.path, self.what, (self.path,), (n_rows, *self.row), self.dtype, self.bfloat16)

    def convert(self, batch: Any, first: int) -> Array:
        """Return the array in a batch of rows, a view of it where that is possible; `first` is its first row."""
        row = self.row if self.is_list else ()
        columns = [_numbers(self.pa, self.path, self.what, batch.column(name), first, row) for name in self.columns]
        return columns[0].reshape(-1, *self.row) if len(columns) == 1 else np.stack(columns, axis=1)


def _table(
    pa: Any,
    path: Path,
    schema: Any,
    batches: Callable[[list[str], int, int], Iterator[Any]],
    tensor: str | None,
    bfloat16: bool,
) -> _Table:
    columns = _columns(pa, path, schema, tensor)
    kind = schema.field(columns[0]).type
    is_list = _is_list(pa, kind)
    number = kind.value_type if is_list else kind
    try:
        dtype = np.dtype(number.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        dtype = np.dtype(object)
    row: tuple[int, ...] = (len(columns),) if len(columns) > 1 else ()
    table = _Table(pa, path, columns, is_list, row, dtype, bfloat16)
    if dtype.kind not in "biuf":
        raise FileError(f"{path}{table.what}: {kind} does not hold numbers")
    if bfloat16 and (dtype.kind not in "iu" or dtype.itemsize != 2):
        raise FileError(f"{path}{table.what}: dtype bfloat16 needs elements of two bytes (uint16 or int16), got {kind}")
    if is_list:
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else _first_length(path, batches, columns)
        return replace(table, row=(length,))
    return table


def _ahead(
    table: _Table, n_rows: int, batch_rows: int, batches: Callable[[list[str], int, int], Iterator[Any]]
) -> Source:
    """Return an array that is decoded ahead of who reads it."""
    rows = max(1, BATCH_BYTES // max(1, table.dtype.itemsize * (table.row[0] if table.row else 1)))
    forwards = _Forwards(table.path, n_rows, lambda start: batches(table.columns, start, rows), table.convert)
    return Slabs(table.held(n_rows), forwards.load, batch_rows)


class _Batches(ByRows):
    """An array in the batches of an Arrow file as it is: pieces are views of the file where they lie in one batch."""

    in_order = False

    def __init__(self, table: _Table, sizes: list[int], open_file: Callable[[], Any]) -> None:
        super().__init__(table.held(sum(sizes)))
        self._table = table
        self._ends = list(accumulate(sizes))
        self._open_file = open_file
        self._was = fingerprint(table.path)
        self._lock = threading.Lock()
        self._reader: Any = None
        self._left = 0
        self._last: tuple[int, Any] = (-1, None)

    def _rows(self, start: int, stop: int) -> Array:
        pieces, at = [], start
        for k, first, last in parts_of(self._ends, start, stop):
            batch = self._batch(k).slice(first, last - first)
            pieces.append(_tried(self._table.path, partial(self._table.convert, batch, at)))
            at += last - first
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def release(self) -> None:
        with self._lock:
            self._reader, self._last = None, (-1, None)

    def _batch(self, k: int) -> Any:
        """Return a batch, of a new map of the file from time to time: page tables are kept as long as a map is."""
        path = self._table.path
        with self._lock:
            if self._last[0] == k:
                return self._last[1]
            if self._reader is None or self._left <= 0:
                self._reader, self._last = None, (-1, None)
                if fingerprint(path) != self._was:
                    raise FileError(f"{path}: was changed while it was being read")
                self._reader, self._left = _tried(path, self._open_file), MAP_BYTES
            batch = _tried(path, lambda: self._reader.get_batch(k).select(self._table.columns))
            self._left -= batch.nbytes
            self._last = (k, batch)
            return batch


class _Forwards:
    """Batches, converted and cut to the rows that are asked for; a step back opens the file again."""

    def __init__(
        self, path: Path, n_rows: int, open_at: Callable[[int], Iterator[Any]], convert: Callable[[Any, int], Array]
    ) -> None:
        self._path, self._n_rows, self._open_at, self._convert = path, n_rows, open_at, convert
        self._batches: Iterator[Any] = iter(())
        self._at = -1
        self._rest: Any = None

    def load(self, start: int, rows: Array) -> None:
        if start != self._at:
            self._batches, self._rest = self._open_at(start), None
        at, self._at, stop = start, -1, start + len(rows)
        while at < stop:
            batch = self._rest if self._rest is not None else _tried(self._path, lambda: next(self._batches, None))
            if batch is None:
                raise FileError(f"{self._path}: ends after {at} of {self._n_rows} rows")
            self._rest = batch.slice(stop - at) if len(batch) > stop - at else None
            piece = self._convert(batch.slice(0, stop - at), at)
            rows[at - start : at - start + len(piece)] = piece
            at += len(piece)
        self._at = stop


def _columns(pa: Any, path: Path, schema: Any, wanted: str | None) -> list[str]:
    """Return the columns that are the array: of that name, of such names, or what can only be meant."""
    names = list(schema.names)
    if len(set(names)) < len(names):
        raise FileError(f"{path}: two columns have the same name")
    if wanted is not None:
        found = [wanted] if wanted in names else [name for name in names if fnmatchcase(name, wanted)]
        if not found:
            raise FileError(f"{path}: no column {wanted!r}; it has {shown(names) or 'none'}")
    else:
        found = [name for name in names if _is_list(pa, schema.field(name).type)] or names
    kinds = {schema.field(name).type for name in found}
    if not found or len(kinds) > 1 or (len(found) > 1 and _is_list(pa, kinds.pop())):
        raise FileError(f"{path}: say which column, as in {path.name}:NAME; it has {shown(names) or 'none'}")
    return found


def _numbers(pa: Any, path: Path, what: str, column: Any, first: int, row: tuple[int, ...]) -> Array:
    """Return the numbers of a column, one list after the other; `first` is the row it begins with."""
    if column.null_count:
        at = first + int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise FileError(f"{path}{what}: row {at} is missing (null)")
    if row:  # by offsets: Arrow's own functions would import all there are of them first
        if pa.types.is_fixed_size_list(column.type):
            begin, end = column.offset * row[0], (column.offset + len(column)) * row[0]
        else:
            offsets = np.asarray(column.offsets)
            lengths = np.diff(offsets)
            if (lengths != row[0]).any():
                at = int(np.flatnonzero(lengths != row[0])[0])
                raise FileError(f"{path}{what}: row {first + at} has {lengths[at]} numbers, the first has {row[0]}")
            begin, end = int(offsets[0]), int(offsets[-1])
        column = column.values.slice(begin, end - begin)
        if column.null_count:
            at = int(np.flatnonzero(np.asarray(column.is_null()))[0])
            raise FileError(f"{path}{what}: a number of row {first + at // row[0]} is missing (null)")
    numbers: Array = column.to_numpy(zero_copy_only=False)
    return numbers


def _first_length(path: Path, batches: Callable[[list[str], int, int], Iterator[Any]], columns: list[str]) -> int:
    some = batches(columns, 0, 1)
    while (batch := _tried(path, lambda: next(some, None))) is not None:
        if len(batch):
            return len(batch.column(columns[0])[0] or ())
    return 0


def _is_list(pa: Any, kind: Any) -> bool:
    is_list: bool = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list


def _tried(path: Path, step: Callable[[], Any]) -> Any:
    """Do what may fail where the file is not what it says."""
    try:
        return step()
    except FileError:
        raise
    except OSError as error:
        if error.filename is not None or error.errno is not None:
            raise
        raise FileError(f"{path}: cannot be read: {error}") from None
    except Exception as error:  # Arrow's own are ValueError, KeyError and others
        raise FileError(f"{path}: cannot be read: {error}") from None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        message = f'{path}: reading {path.suffix} needs the package pyarrow: pip install "fastce[arrow]"'
        raise ImportError(message) from None
    return pa
