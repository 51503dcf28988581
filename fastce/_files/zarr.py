"""The reader of Zarr arrays, of both versions of the format, by the package ``zarr``.

Chunks that are stored as they are, each in a file, are read from there. Others are decoded in slabs of rows, ahead of
who reads them; what a codec needs beside a slab is the package's affair.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastce._files.parts import joined
from fastce._files.sources import ZARR_METADATA, Buffers, ByRows, FileError, Held, Slabs, Source
from fastce._problem import Array


def open_zarr(path: Path, tensor: str | None, bfloat16: bool) -> Source:
    """Open an array, or one of a group, or all of it whose names fit a pattern as parts of one."""
    try:
        import zarr
    except ImportError:
        raise ImportError(f'{path}: reading Zarr needs the package zarr: pip install "fastce[zarr]"') from None
    if not path.is_dir():
        path.stat()  # an error that says that it is missing, where it is
        raise FileError(f"{path}: expected a folder, which a Zarr array is")
    try:
        store: Any = zarr.open(path, mode="r")
    except Exception as error:  # metadata are JSON of any kind, and codecs may be missing
        raise _refused(path, error) from None
    if isinstance(store, zarr.Array):
        if tensor is not None:
            raise FileError(f"{path}: holds one array and no tensor {tensor!r}")
        return _array(path, "", store, bfloat16)

    def open_one(name: str) -> Source:
        return _array(path, f" (tensor {name!r})", store[name], bfloat16)

    try:
        if tensor and tensor in store and isinstance(store[tensor], zarr.Array):
            return open_one(tensor)
        names = [str(name) for name in store.array_keys()]
        return joined(path, tensor, names, open_one)
    except (FileError, OSError):
        raise
    except Exception as error:
        raise _refused(path, error) from None


def _array(path: Path, what: str, array: Any, bfloat16: bool) -> Source:
    dtype = np.dtype(array.dtype)
    if dtype.kind not in "biufc":
        raise FileError(f"{path}{what}: dtype {dtype} does not hold numbers")
    if bfloat16 and (dtype.kind not in "iu" or dtype.itemsize != 2):
        raise FileError(f"{path}{what}: dtype bfloat16 needs elements of two bytes (uint16 or int16), got {dtype}")
    if not array.shape:
        raise FileError(f"{path}{what}: is a single number")

    from zarr.buffer.cpu import buffer_prototype

    to_buffer = buffer_prototype.nd_buffer.from_numpy_array

    def load(start: int, rows: Array) -> None:
        """Fill rows, chunk after chunk of their classes: all of them at once would be decoded side by side."""
        stop = start + len(rows)
        try:
            for at in range(0, array.shape[-1], array.chunks[-1]) if len(array.shape) > 1 else (0,):
                columns = slice(at, at + array.chunks[-1])
                across: tuple[Any, ...] = (..., columns) if len(array.shape) > 1 else ()
                selection = (slice(start, stop), *across)
                array.get_basic_selection(selection, out=to_buffer(rows[across]))
        except OSError:
            raise
        except Exception as error:  # of any codec
            raise FileError(f"{path}{what}: rows {start} to {stop} cannot be decoded: {error}") from None

    folder = path / array.path
    files = tuple(folder / name for name in ZARR_METADATA if (folder / name).is_file())
    shape = tuple(int(n) for n in array.shape)
    held = Held(path, what, files, shape, dtype, bfloat16)
    chunks = tuple(int(n) for n in array.chunks)
    name_of = _raw_chunks(array)
    if name_of is None:
        return Slabs(held, load, chunks[0])
    return _Chunks(held, chunks, lambda at: folder / name_of(at), array.fill_value)


def _raw_chunks(array: Any) -> Callable[[tuple[int, ...]], str] | None:
    """Return what names the file of a chunk, where chunks are stored as they are in memory; else None."""
    try:
        encoded = array.filters or array.compressors or array.shards is not None
        if array.metadata.zarr_format == 2:
            encoded = encoded or array.metadata.order != "C"
        else:
            endian = getattr(array.serializer, "endian", None)
            encoded = encoded or type(array.serializer).__name__ != "BytesCodec"
            encoded = encoded or (array.dtype.itemsize > 1 and getattr(endian, "value", endian) != sys.byteorder)
        name: Callable[[tuple[int, ...]], str] = array.metadata.encode_chunk_key
    except AttributeError:  # another version of the package: it still decodes
        return None
    return None if encoded else name


class _Chunks(ByRows):
    """An array in chunks that are files of numbers: pieces are views of one where they lie in one, or put together."""

    in_order = False

    def __init__(
        self, held: Held, chunks: tuple[int, ...], file_of: Callable[[tuple[int, ...]], Path], fill_value: Any
    ) -> None:
        super().__init__(held)
        self._chunks = chunks
        self._file_of = file_of
        self._fill_value = np.asarray(0 if fill_value is None else fill_value, held.dtype)
        self._buffers = Buffers()

    def _rows(self, start: int, stop: int) -> Array:
        size, across = self._chunks[0], self._chunks[1:]
        numbers = range(start // size, (stop - 1) // size + 1)
        grid = [range(-(-n // step)) for n, step in zip(self.shape[1:], across, strict=True)]
        if len(numbers) == 1 and all(len(part) == 1 for part in grid):
            chunk = self._chunk((numbers[0], *(0 for _ in across)))
            inside = (slice(start - numbers[0] * size, stop - numbers[0] * size), *map(slice, self.shape[1:]))
            return chunk[inside]
        rows = self._buffers.take((stop - start, *self.shape[1:]), self._held.dtype)
        for at in itertools.product(numbers, *grid):
            first, last = max(start, at[0] * size), min(stop, (at[0] + 1) * size)
            places = (slice(i * n, (i + 1) * n) for i, n in zip(at[1:], across, strict=True))
            place = (slice(first - start, last - start), *places)
            self._copy(at, first - at[0] * size, rows[place])
        return rows

    def release(self) -> None:
        self._buffers.clear()

    def _chunk(self, at: tuple[int, ...]) -> Array:
        """Return a map of a chunk; one that has no file is all fill value."""
        with self._opened(at) as file:
            if file is None:
                return np.broadcast_to(self._fill_value, self._chunks)
            return np.memmap(file, self._held.dtype, "r", 0, self._chunks).view(np.ndarray)

    def _copy(self, at: tuple[int, ...], first: int, to: Array) -> None:
        """Fill an array with the elements of a chunk from one of its rows on."""
        whole_rows = to.shape[1:] == self._chunks[1:] and to.flags.c_contiguous
        if not whole_rows:
            part = (slice(first, first + len(to)), *map(slice, to.shape[1:]))
            to[...] = self._chunk(at)[part]
            return
        with self._opened(at) as file:
            if file is None:
                to[...] = self._fill_value
                return
            file.seek(first * (to.nbytes // len(to)))
            left = to.reshape(-1).view(np.uint8).data
            while left:  # a read may be of less, and is of 2 GiB at most
                count = file.readinto(left)
                if not count:
                    raise FileError(f"{self.name}: {file.name}: was changed while it was being read")
                left = left[count:]

    @contextmanager
    def _opened(self, at: tuple[int, ...]) -> Iterator[Any]:
        """Open the file of a chunk, which holds all of it, where there is one."""
        path = self._file_of(at)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            yield None
            return
        with file:
            expected, size = math.prod(self._chunks) * self.itemsize, os.fstat(file.fileno()).st_size
            if size != expected:
                raise FileError(
                    f"{self.name}: {path}: cannot be read: expected a chunk of {expected} bytes, got {size}"
                )
            yield file


def _refused(path: Path, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.filename is not None:
        return error
    return FileError(f"{path}: not a Zarr array or group that can be read: {error}")
