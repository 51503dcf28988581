"""The readers of Parquet and of Arrow's own files (IPC, also called Feather), by the package ``pyarrow``.

An array in a table is a column of lists, one for each row and all as long; or several columns of numbers, one for each
class; or, for labels, one column of numbers. Tables are read forwards in batches of rows, ahead of who wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from fastce._files.sources import MAP_BYTES, Decoded, FileError, Slabs, Source, shown, size_of
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

    return _open_table(pa, path, file.schema_arrow, sum(groups), 1, batches, tensor, bfloat16)


def open_ipc(path: Path, tensor: str | None, bfloat16: bool) -> Source:
    """Open a column, or one column for each class, of an Arrow file."""
    pa = _pyarrow(path)
    import pyarrow.ipc

    size_of(path)

    def open_file() -> Any:
        return pyarrow.ipc.open_file(pa.memory_map(str(path)))

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

    return _open_table(pa, path, file.schema, sum(sizes), max(sizes, default=1), batches, tensor, bfloat16)


def _open_table(
    pa: Any,
    path: Path,
    schema: Any,
    n_rows: int,
    batch_rows: int,
    batches: Callable[[list[str], int, int], Iterator[Any]],
    tensor: str | None,
    bfloat16: bool,
) -> Source:
    columns = _columns(pa, path, schema, tensor)
    what = f" (column {columns[0]!r})" if len(columns) == 1 else f" (columns {columns[0]!r} ... {columns[-1]!r})"
    kind = schema.field(columns[0]).type
    is_list = _is_list(pa, kind)
    number = kind.value_type if is_list else kind
    try:
        dtype = np.dtype(number.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        dtype = np.dtype(object)
    if dtype.kind not in "biuf":
        raise FileError(f"{path}{what}: {kind} does not hold numbers")
    if bfloat16 and (dtype.kind not in "iu" or dtype.itemsize != 2):
        raise FileError(f"{path}{what}: dtype bfloat16 needs elements of two bytes (uint16 or int16), got {kind}")
    row: tuple[int, ...] = ()
    if is_list:
        row = (kind.list_size,) if pa.types.is_fixed_size_list(kind) else (_first_length(path, batches, columns),)
    elif len(columns) > 1:
        row = (len(columns),)

    def convert(batch: Any, first: int) -> Array:
        arrays = [_numbers(pa, path, what, batch.column(name), first, row if is_list else ()) for name in columns]
        if len(arrays) == 1:
            return arrays[0].reshape(-1, *row)
        return np.stack(arrays, axis=1)

    rows = max(1, BATCH_BYTES // max(1, dtype.itemsize * (row[0] if row else 1)))
    forwards = _Forwards(path, n_rows, lambda start: batches(columns, start, rows), convert)
    return Slabs(Decoded(path, what, (path,), (n_rows, *row), dtype, forwards.load, batch_rows, bfloat16))


class _Forwards:
    """Batches, converted and cut to the rows that are asked for; a step back opens the file again."""

    def __init__(
        self, path: Path, n_rows: int, open_at: Callable[[int], Iterator[Any]], convert: Callable[[Any, int], Array]
    ) -> None:
        self._path, self._n_rows, self._open_at, self._convert = path, n_rows, open_at, convert
        self._batches: Iterator[Any] = iter(())
        self._at = -1
        self._rest: Any = None

    def load(self, start: int, stop: int) -> Array:
        if start != self._at:
            self._batches, self._rest = self._open_at(start), None
        pieces = []
        at, self._at = start, -1
        while at < stop:
            batch = self._rest if self._rest is not None else _tried(self._path, lambda: next(self._batches, None))
            if batch is None:
                raise FileError(f"{self._path}: ends after {at} of {self._n_rows} rows")
            self._rest = batch.slice(stop - at) if len(batch) > stop - at else None
            batch = batch.slice(0, stop - at)
            pieces.append(self._convert(batch, at))
            at += len(batch)
        self._at = stop
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


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
    if row:
        if not pa.types.is_fixed_size_list(column.type):
            lengths = np.asarray(column.value_lengths())
            if (lengths != row[0]).any():
                at = int(np.flatnonzero(lengths != row[0])[0])
                raise FileError(f"{path}{what}: row {first + at} has {lengths[at]} numbers, the first has {row[0]}")
        column = column.flatten()
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
