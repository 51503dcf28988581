"""Files for the tests of the command line, good and bad, written byte by byte where no library would write them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def npy(header: str | bytes, data: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """A .npy file with any header; `length` is what it claims the header's length to be."""
    text = header.encode() if isinstance(header, str) else header
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + data


def npy_header(shape: str, descr: str = "'<f4'", fortran_order: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}\n"


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with any header; `length` is what it claims the header's length to be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def write_safetensors(path: Path, **tensors: tuple[str, Array]) -> None:
    """Write arrays under the format's dtype names; the arrays hold its bits."""
    header: dict[str, Any] = {"__metadata__": {"made": "by hand"}}
    data = b""
    for name, (dtype, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    path.write_bytes(safetensors(header, data))


def write_sparse(path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    """Write a .npy file of zeros that takes no space on the disk."""
    with path.open("wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)


TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
ROWS = bytes(24)

BAD_NPY = {
    "empty file": (b"", "not a .npy file"),
    "text": (b"1.0, 2.0\n3.0, 4.0\n", "not a .npy file"),
    "npz": (b"PK\x03\x04" + bytes(60), "not a .npy file"),
    "magic alone": (b"\x93NUMPY", "not a .npy file"),
    "no header length": (b"\x93NUMPY\x01\x00", "truncated"),
    "half of the header": (npy(npy_header("(2, 3)"))[:40], "truncated"),
    "version 9": (npy(npy_header("(2, 3)"), ROWS, (9, 0)), "version 9.0"),
    "version 1.7": (npy(npy_header("(2, 3)"), ROWS, (1, 7)), "version 1.7"),
    "header of 4 GiB claimed": (npy(npy_header("(2, 3)"), ROWS, (2, 0), length=2**32 - 1), "truncated"),
    "header of 64 KiB": (npy(npy_header("(2, 3)") + " " * 65000, ROWS), "a header of 650"),
    "header is not a literal": (npy("__import__('os').abort()", ROWS), "header cannot be read"),
    "header is nested deep": (npy("(" * 9000, ROWS), "header cannot be read"),
    "header is a list": (npy("[1, 2]", ROWS), "header cannot be read"),
    "header is empty": (npy("", ROWS), "header cannot be read"),
    "header lacks the shape": (npy("{'descr': '<f4', 'fortran_order': False}", ROWS), "header cannot be read"),
    "header is not text": (npy(b"\xff\x00\xfe" * 20, ROWS), "header cannot be read"),
    "shape is not a tuple": (npy(npy_header("6"), ROWS), "header cannot be read"),
    "shape of floats": (npy(npy_header("(2.0, 3.0)"), ROWS), "header cannot be read"),
    "unknown dtype": (npy(npy_header("(2, 3)", "'<q9'"), ROWS), "header cannot be read"),
    "negative shape": (npy(npy_header("(-2, 3)"), ROWS), r"shape \(-2, 3\)"),
    "two negative axes": (npy(npy_header("(-2, -3)"), ROWS), r"shape \(-2, -3\)"),
    "65 axes": (npy(npy_header(f"({'1, ' * 65})"), ROWS), "no array can have"),
    "one byte missing": (npy(npy_header("(2, 3)"), ROWS[1:]), r"truncated: shape \(2, 3\)"),
    "no data": (npy(npy_header("(2, 3)")), "truncated"),
    "claims 4 TB": (npy(npy_header("(1000000, 1000000)"), ROWS), "truncated"),
    "claims 2**64 bytes": (npy(npy_header("(4294967296, 1073741824)"), ROWS), "no array can have"),
    "claims 2**64 + 24 bytes": (npy(npy_header("(2, 3, 3074457345618258603)"), ROWS), "no array can have"),
    "claims nothing of something huge": (npy(npy_header("(0, 4611686018427387904, 4)"), ROWS), "no array can have"),
    "Python objects": (npy(npy_header("(2, 3)", "'|O'"), b"\x80\x04N." * 8), "Python objects"),
    "objects in a structure": (npy(npy_header("(1,)", "[('a', '|O')]"), ROWS), "Python objects"),
    "structured": (npy(npy_header("(3,)", "[('a', '<f4'), ('b', '<i4')]"), ROWS), "structured"),
    "subarray": (npy(npy_header("(3,)", "('<f4', (2,))"), ROWS), "structured"),
    "raw bytes": (npy(npy_header("(3,)", "'|V8'"), ROWS), "does not hold numbers"),
    "raw 2 bytes": (npy(npy_header("(2, 3)", "'|V2'"), ROWS), "say dtype bfloat16"),
    "strings of no length": (npy(npy_header("(2, 3)", "'<U0'"), ROWS), "does not hold numbers"),
    "strings": (npy(npy_header("(2, 3)", "'<U1'"), ROWS), "expected float16"),
    "dates": (npy(npy_header("(3,)", "'<M8[s]'"), ROWS), "expected float16"),
}
"""Contents of a .npy file of logits, and what the message says."""

BAD_SAFETENSORS = {
    "empty file": (b"", "truncated"),
    "length alone": (struct.pack("<Q", 100), "truncated"),
    "header of 2**63 bytes claimed": (safetensors({"x": TENSOR}, ROWS, length=2**63), "truncated"),
    "header of 2**64 - 1 bytes claimed": (safetensors({"x": TENSOR}, ROWS, length=2**64 - 1), "truncated"),
    "header longer than the file": (safetensors({"x": TENSOR}, ROWS, length=1000), "truncated"),
    "header ends early": (safetensors({"x": TENSOR}, ROWS, length=20), "not valid JSON"),
    "not JSON": (safetensors(b"hello there"), "not valid JSON"),
    "not UTF-8": (safetensors(b'{"\xff": 1}'), "not valid JSON"),
    "nested deep": (safetensors(b"[" * 100_000), "not valid JSON"),
    "an integer of 10,000 digits": (safetensors(b'{"x": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "a name twice": (safetensors(b'{"x": 1, "x": 2}'), "not valid JSON: a name occurs twice"),
    "a list": (safetensors([]), "not a JSON object"),
    "no tensors": (safetensors({"__metadata__": {}}), "it has none"),
    "two tensors": (safetensors({"x": TENSOR, "y": TENSOR}, ROWS), "say which tensor.*'x', 'y'"),
    "entry is a number": (safetensors({"x": 3}, ROWS), "expected dtype, shape and data_offsets"),
    "entry lacks the offsets": (safetensors({"x": {"dtype": "F32", "shape": [2, 3]}}, ROWS), "expected dtype"),
    "unknown dtype": (safetensors({"x": TENSOR | {"dtype": "F8_E4M3"}}, ROWS), "dtype 'F8_E4M3' is none of"),
    "dtype is a list": (safetensors({"x": TENSOR | {"dtype": ["F32"]}}, ROWS), "is none of"),
    "shape is a number": (safetensors({"x": TENSOR | {"shape": 6}}, ROWS), "lists of integers"),
    "shape of floats": (safetensors({"x": TENSOR | {"shape": [2.0, 3.0]}}, ROWS), "lists of integers"),
    "shape of bools": (safetensors({"x": TENSOR | {"shape": [True, 6]}}, ROWS), "lists of integers"),
    "negative shape": (safetensors({"x": TENSOR | {"shape": [-2, -3]}}, ROWS), "lists of integers"),
    "shape of 2**64 + 24 bytes": (
        safetensors({"x": TENSOR | {"shape": [2, 3, 2**62 + 1]}}, ROWS),
        "no array can have",
    ),
    "one offset": (safetensors({"x": TENSOR | {"data_offsets": [24]}}, ROWS), "lists of integers"),
    "negative offsets": (safetensors({"x": TENSOR | {"data_offsets": [-24, 0]}}, ROWS), "lists of integers"),
    "offsets beyond the file": (safetensors({"x": TENSOR | {"data_offsets": [8, 32]}}, ROWS), "do not hold"),
    "offsets far beyond the file": (
        safetensors({"x": TENSOR | {"data_offsets": [2**63, 2**63 + 24]}}, ROWS),
        "do not hold",
    ),
    "offsets backwards": (safetensors({"x": TENSOR | {"data_offsets": [24, 0]}}, ROWS), "do not hold"),
    "offsets hold less": (safetensors({"x": TENSOR | {"data_offsets": [0, 20]}}, ROWS), "do not hold"),
    "offsets hold more": (safetensors({"x": TENSOR | {"shape": [2, 2]}}, ROWS), "do not hold"),
    "data cut off": (safetensors({"x": TENSOR}, ROWS[1:]), "do not hold"),
}
"""The same of a .safetensors file."""
