"""Arrays on disk: from what a person typed to something that is read block by block.

READERS is the list of formats. A reader looks at the header alone, believes nothing in it that the size of the file
does not bear out (in Python's integers, which do not overflow), and returns a Source; data are mapped into memory,
read-only, and never loaded as a whole.

The safetensors reader is our own: the format is eight bytes, a JSON header and the data, a base install has to read
it, and the ``safetensors`` package gives NumPy no bfloat16 and no memory map of one tensor.
"""

from __future__ import annotations

import io
import json
import math
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any, Protocol

import numpy as np

from fastce import _dtypes
from fastce._cli._console import CommandError
from fastce._problem import Array

Index = tuple[slice | int | EllipsisType, ...]


class Source(Protocol):
    """An array that is read in pieces."""

    @property
    def path(self) -> Path:
        """The file it is in."""

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

    def read(self, index: Index) -> Array:
        """Return a piece of it: a view of the file where that is possible."""


@dataclass(frozen=True, eq=False)
class Mapped:
    """An array of a file that is mapped into memory."""

    path: Path
    array: Array
    bfloat16: bool = False
    """The array holds the bits of bfloat16 numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, which holds them all, for bfloat16 without ml_dtypes."""
        return (_bfloat16() or np.dtype(np.float32)) if self.bfloat16 else self.array.dtype

    @property
    def stored(self) -> str:
        return "bfloat16" if self.bfloat16 else self.array.dtype.name

    @property
    def itemsize(self) -> int:
        return self.array.itemsize

    def read(self, index: Index) -> Array:
        piece = np.asarray(self.array[index])
        if not self.bfloat16:
            return piece
        bits = piece.astype(np.uint16, copy=False)
        dtype = _bfloat16()
        return (bits.astype(np.uint32) << 16).view(np.float32) if dtype is None else bits.view(dtype)


def open_array(spec: str, bfloat16: bool = False) -> Source:
    """Open ``FILE`` or ``FILE:TENSOR``; `bfloat16` says that two-byte elements hold such bits.

    Raises
    ------
    CommandError
        For a file that is not what it says it is, or not what fastce reads.
    OSError
        For one that cannot be opened.
    """
    for suffix, reader in READERS.items():
        name, mark, tensor = spec.partition(suffix + ":")
        if mark:
            return reader(Path(name + suffix), tensor, bfloat16)
    for suffix, reader in READERS.items():
        if spec.endswith(suffix):
            return reader(Path(spec), None, bfloat16)
    raise CommandError(f"{spec}: expected a file named {' or '.join('*' + suffix for suffix in READERS)}")


MAX_NPY_HEADER = 10_000
"""NumPy's own limit on what it parses (numpy.lib.format)."""

_NPY_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
"""By version: the bytes that hold the length of the header."""


def _open_npy(path: Path, tensor: str | None, bfloat16: bool) -> Source:
    if tensor is not None:
        raise CommandError(f"{path}: a .npy file holds one array and no tensor {tensor!r}")
    size = _size(path)
    with path.open("rb") as file:
        magic = file.read(8)
        if len(magic) < 8 or magic[:6] != b"\x93NUMPY":
            raise CommandError(f"{path}: not a .npy file")
        width = _NPY_LENGTH_BYTES.get(magic[6])
        if width is None or magic[7] != 0:
            raise CommandError(f"{path}: version {magic[6]}.{magic[7]} of the .npy format is not known")
        prefix = file.read(width)
        length = int.from_bytes(prefix, "little")
        offset = 8 + width + length
        if len(prefix) < width or offset > size:
            raise CommandError(f"{path}: truncated: its header needs {offset} bytes and the file has {size}")
        if length > MAX_NPY_HEADER:
            raise CommandError(f"{path}: a header of {length} bytes; at most {MAX_NPY_HEADER} are read")
        header = io.BytesIO(prefix + file.read(length))
    # Version 3 differs from 2 in the encoding alone, and that in the field names of dtypes which are refused.
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # files of Python 2 are as good as any
            shape, fortran_order, dtype = read(header)
    except Exception as error:  # the header is a Python literal, and parsing a bad one can fail in any way
        raise CommandError(f"{path}: its header cannot be read: {error}") from None
    if dtype.hasobject:
        raise CommandError(f"{path}: an array of Python objects, which are never loaded")
    if dtype.names is not None or dtype.subdtype is not None:
        raise CommandError(f"{path}: structured dtype {dtype}; expected one number for each element")
    bits = (dtype.kind in "iu" and dtype.itemsize == 2) or dtype == np.dtype("V2")
    if dtype.itemsize == 0 or (dtype.kind == "V" and not (bits and bfloat16)):
        hint = "; if they are logits in bfloat16, say --dtype bfloat16" if bits else ""
        raise CommandError(f"{path}: dtype {dtype} does not hold numbers{hint}")
    if bfloat16 and not bits:
        raise CommandError(f"{path}: --dtype bfloat16 needs elements of two bytes (uint16, int16 or V2), got {dtype}")
    if dtype.kind == "V":
        dtype = np.dtype("<u2")
    shape = tuple(int(n) for n in shape)
    if offset + _claim(path, "", shape, dtype.itemsize) > size:
        raise CommandError(f"{path}: truncated: shape {shape} of {dtype} does not fit in its {size} bytes")
    return Mapped(path, _map(path, dtype, shape, offset, "F" if fortran_order else "C"), bfloat16)


MAX_SAFETENSORS_HEADER = 100_000_000
"""The format's own limit."""

_SAFETENSORS_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}


def _open_safetensors(path: Path, tensor: str | None, bfloat16: bool) -> Source:
    size = _size(path)
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        offset = 8 + length
        if len(prefix) < 8 or offset > size:
            raise CommandError(f"{path}: no .safetensors file, or truncated: its header does not fit in {size} bytes")
        if length > MAX_SAFETENSORS_HEADER:
            raise CommandError(f"{path}: a header of {length} bytes; the format allows {MAX_SAFETENSORS_HEADER}")
        raw = file.read(length)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path}: its header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise CommandError(f"{path}: its header is not a JSON object")
    names = [name for name in header if name != "__metadata__"]
    if tensor is None and len(names) == 1:
        tensor = names[0]
    if tensor is None or tensor not in names:
        asked = f"say which tensor, as in {path.name}:NAME" if tensor is None else f"no tensor {tensor!r}"
        shown = ", ".join(repr(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")
        raise CommandError(f"{path}: {asked}; it has {shown or 'none'}")

    what = f" (tensor {tensor!r})"
    entry = header[tensor]
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CommandError(f"{path}{what}: expected dtype, shape and data_offsets in the header")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _SAFETENSORS_DTYPES:
        raise CommandError(f"{path}{what}: dtype {code!r} is none of {', '.join(_SAFETENSORS_DTYPES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CommandError(f"{path}{what}: shape and data_offsets must be lists of integers >= 0")
    dtype = np.dtype(_SAFETENSORS_DTYPES[code])
    begin, end = offsets
    claim = _claim(path, what, shape, dtype.itemsize)
    if offset + end > size or end - begin != claim:
        raise CommandError(
            f"{path}{what}: data_offsets {offsets} do not hold shape {tuple(shape)} of {code} ({claim} bytes) "
            f"in the {size - offset} bytes of data that the file has"
        )
    if bfloat16 and dtype.itemsize != 2:
        raise CommandError(f"{path}{what}: --dtype bfloat16 needs elements of two bytes, got {code}")
    return Mapped(path, _map(path, dtype, tuple(shape), offset + begin, "C"), bfloat16 or code == "BF16")


READERS: dict[str, Callable[[Path, str | None, bool], Source]] = {
    ".npy": _open_npy,
    ".safetensors": _open_safetensors,
}


MAX_DIMENSIONS = 64
"""NumPy's limit."""


def _size(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CommandError(f"{path}: not a regular file")
    return status.st_size


def _claim(path: Path, what: str, shape: tuple[int, ...] | list[int], itemsize: int) -> int:
    """Return how many bytes a shape needs; refuse one that no array can have."""
    reach = math.prod(n for n in shape if n) * itemsize  # NumPy's strides, also where there are no elements
    if len(shape) > MAX_DIMENSIONS or any(n < 0 for n in shape) or reach > np.iinfo(np.intp).max:
        raise CommandError(f"{path}{what}: no array can have the shape {tuple(shape)}")
    return 0 if 0 in shape else reach


def _map(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, order: str) -> Array:
    if 0 in shape:  # nothing cannot be mapped
        return np.empty(shape, dtype)
    mapped = np.memmap(path, dtype, "r", offset, shape, "F" if order == "F" else "C")
    return mapped.view(np.ndarray)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _bfloat16() -> np.dtype[Any] | None:
    try:
        return _dtypes.named("bfloat16")
    except ImportError:
        return None
