"""The reader of .npy files: of a header it believes nothing that the size of the file does not bear out."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from fastce._files.sources import FileError, Mapped, bytes_of, size_of

MAX_NPY_HEADER = 10_000
"""NumPy's own limit on what it parses (numpy.lib.format)."""

_NPY_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
"""By version: the bytes that hold the length of the header."""


def open_npy(path: Path, tensor: str | None, bfloat16: bool) -> Mapped:
    """Open the array of a file; `bfloat16` says that its two-byte elements hold such bits."""
    if tensor is not None:
        raise FileError(f"{path}: a .npy file holds one array and no tensor {tensor!r}")
    size = size_of(path)
    with path.open("rb") as file:
        magic = file.read(8)
        if len(magic) < 8 or magic[:6] != b"\x93NUMPY":
            raise FileError(f"{path}: not a .npy file")
        width = _NPY_LENGTH_BYTES.get(magic[6])
        if width is None or magic[7] != 0:
            raise FileError(f"{path}: version {magic[6]}.{magic[7]} of the .npy format is not known")
        prefix = file.read(width)
        length = int.from_bytes(prefix, "little")
        offset = 8 + width + length
        if len(prefix) < width or offset > size:
            raise FileError(f"{path}: truncated: its header needs {offset} bytes and the file has {size}")
        if length > MAX_NPY_HEADER:
            raise FileError(f"{path}: a header of {length} bytes; at most {MAX_NPY_HEADER} are read")
        header = io.BytesIO(prefix + file.read(length))
    # Version 3 differs from 2 in the encoding alone, and that in the field names of dtypes which are refused.
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # files of Python 2 are as good as any
            shape, fortran_order, dtype = read(header)
    except Exception as error:  # the header is a Python literal, and parsing a bad one can fail in any way
        raise FileError(f"{path}: its header cannot be read: {error}") from None
    if dtype.hasobject:
        raise FileError(f"{path}: an array of Python objects, which are never loaded")
    if dtype.names is not None or dtype.subdtype is not None:
        raise FileError(f"{path}: structured dtype {dtype}; expected one number for each element")
    bits = (dtype.kind in "iu" and dtype.itemsize == 2) or dtype == np.dtype("V2")
    if dtype.itemsize == 0 or (dtype.kind == "V" and not (bits and bfloat16)):
        hint = "; if they are logits in bfloat16, say dtype bfloat16" if bits else ""
        raise FileError(f"{path}: dtype {dtype} does not hold numbers{hint}")
    if bfloat16 and not bits:
        raise FileError(f"{path}: dtype bfloat16 needs elements of two bytes (uint16, int16 or V2), got {dtype}")
    if dtype.kind == "V":
        dtype = np.dtype("<u2")
    shape = tuple(int(n) for n in shape)
    if offset + bytes_of(path, "", shape, dtype.itemsize) > size:
        raise FileError(f"{path}: truncated: shape {shape} of {dtype} does not fit in its {size} bytes")
    return Mapped(path, dtype, shape, offset, "F" if fortran_order else "C", bfloat16)
