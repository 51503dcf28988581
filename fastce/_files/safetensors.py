"""The reader of .safetensors files and of the index of a set of them.

It is our own: the format is eight bytes, a JSON header and the data, a base install has to read it, and the
``safetensors`` package gives NumPy no bfloat16 and no memory map of one tensor. Nothing is believed that the size of
the file does not bear out (in Python's integers, which do not overflow), and an index leads nowhere but to files beside
it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastce._files.parts import joined
from fastce._files.sources import FileError, Mapped, Source, bytes_of, size_of, unique

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


def open_safetensors(path: Path, tensor: str | None, bfloat16: bool) -> Source:
    """Open a tensor of a file, or all whose names fit a pattern as parts of one array."""
    header, offset, size = _header(path)
    names = [name for name in header if name != "__metadata__"]
    return joined(path, tensor, names, lambda name: _tensor(path, name, header[name], offset, size, bfloat16))


def open_index(path: Path, tensor: str | None, bfloat16: bool) -> Source:
    """Open a tensor, or several as parts of one array, of the files that an index names."""
    if size_of(path) > MAX_SAFETENSORS_HEADER:
        raise FileError(f"{path}: an index of more than {MAX_SAFETENSORS_HEADER} bytes")
    index = _object(path, path.read_bytes(), "it")
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise FileError(f"{path}: expected an object weight_map of tensors and the names of their files")
    headers: dict[Path, tuple[dict[str, Any], int, int]] = {}

    def open_part(name: str) -> Source:
        file = files[name]
        if file != Path(file).name or "\0" in file or file in ("", "..") or not file.endswith(".safetensors"):
            raise FileError(f"{path}: tensor {name!r}: {file!r} is not the name of a .safetensors file beside it")
        part = path.with_name(file)
        if part not in headers:
            headers[part] = _header(part)
        header, offset, size = headers[part]
        if name not in header or name == "__metadata__":
            raise FileError(f"{path}: tensor {name!r} is not in {part}, where the index has it")
        return _tensor(part, name, header[name], offset, size, bfloat16)

    return joined(path, tensor, list(files), open_part)


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header of a file, where its data begin, and how large it is."""
    size = size_of(path)
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        offset = 8 + length
        if len(prefix) < 8 or offset > size:
            raise FileError(f"{path}: no .safetensors file, or truncated: its header does not fit in {size} bytes")
        if length > MAX_SAFETENSORS_HEADER:
            raise FileError(f"{path}: a header of {length} bytes; the format allows {MAX_SAFETENSORS_HEADER}")
        return _object(path, file.read(length), "its header"), offset, size


def _object(path: Path, text: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: {what} is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise FileError(f"{path}: {what} is not a JSON object")
    return found


def _tensor(path: Path, tensor: str, entry: object, offset: int, size: int, bfloat16: bool) -> Mapped:
    what = f" (tensor {tensor!r})"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise FileError(f"{path}{what}: expected dtype, shape and data_offsets in the header")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _SAFETENSORS_DTYPES:
        raise FileError(f"{path}{what}: dtype {code!r} is none of {', '.join(_SAFETENSORS_DTYPES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise FileError(f"{path}{what}: shape and data_offsets must be lists of integers >= 0")
    dtype = np.dtype(_SAFETENSORS_DTYPES[code])
    begin, end = offsets
    claim = bytes_of(path, what, shape, dtype.itemsize)
    if offset + end > size or end - begin != claim:
        raise FileError(
            f"{path}{what}: data_offsets {offsets} do not hold shape {tuple(shape)} of {code} ({claim} bytes) "
            f"in the {size - offset} bytes of data that the file has"
        )
    if bfloat16 and dtype.itemsize != 2:
        raise FileError(f"{path}{what}: dtype bfloat16 needs elements of two bytes, got {code}")
    return Mapped(path, dtype, tuple(shape), offset + begin, "C", bfloat16 or code == "BF16")


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
