"""The reader of Zarr arrays, of both versions of the format, by the package ``zarr``.

Chunks are decoded in slabs of rows, ahead of who reads them. What a codec needs beside a slab is the package's affair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastce._files.parts import joined
from fastce._files.sources import Decoded, FileError, Slabs, Source
from fastce._problem import Array

METADATA = ("zarr.json", ".zarray", ".zgroup")


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

    def load(start: int, stop: int) -> Array:
        """Rows, chunk after chunk of their classes: all of them at once would be decoded side by side."""
        rows = np.empty((stop - start, *array.shape[1:]), dtype)
        try:
            if len(array.shape) == 1:
                rows[...] = array[start:stop]
            else:
                for at in range(0, array.shape[-1], array.chunks[-1]):
                    columns = slice(at, at + array.chunks[-1])
                    rows[..., columns] = array[start:stop, ..., columns]
        except OSError:
            raise
        except Exception as error:  # of any codec
            raise FileError(f"{path}{what}: rows {start} to {stop} cannot be decoded: {error}") from None
        return rows

    folder = path / array.path
    files = tuple(folder / name for name in METADATA if (folder / name).is_file())
    shape = tuple(int(n) for n in array.shape)
    return Slabs(Decoded(path, what, files, shape, dtype, load, int(array.chunks[0]), bfloat16))


def _refused(path: Path, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.filename is not None:
        return error
    return FileError(f"{path}: not a Zarr array or group that can be read: {error}")
