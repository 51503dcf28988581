"""Arrays in files: from what a person typed to a Source, which is read in pieces.

FORMATS is the list of formats. A reader looks at what describes the array alone; elements are read when somebody asks
for them. What a package other than NumPy reads is imported when such a file is opened.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from fastce._files.parts import Parts, natural
from fastce._files.sources import ZARR_METADATA, FileError, Index, Source

__all__ = ["FORMATS", "FileError", "Index", "Source", "open_array", "stored_in"]


class Format(NamedTuple):
    """A kind of files: how their names end, and what opens one."""

    suffix: str
    module: str
    function: str
    """(path, tensor or None, whether two-byte elements are the bits of bfloat16) to a Source."""


FORMATS = (
    Format(".safetensors.index.json", "safetensors", "open_index"),
    Format(".safetensors", "safetensors", "open_safetensors"),
    Format(".npy", "npy", "open_npy"),
    Format(".zarr", "zarr", "open_zarr"),
    Format(".parquet", "arrow", "open_parquet"),
    Format(".arrow", "arrow", "open_ipc"),
    Format(".feather", "arrow", "open_ipc"),
)


def open_array(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], bfloat16: bool = False, tensor: str | None = None
) -> Source:
    """Open ``FILE``, ``FILE:TENSOR``, a pattern of such names, or a list of them, whose rows follow one another.

    `bfloat16` says that two-byte elements hold such bits, `tensor` what a name without ``:TENSOR`` is to be given.

    Raises
    ------
    FileError
        For a file that is not what it says it is, or not what fastce reads.
    OSError
        For one that cannot be opened.
    ImportError
        For one whose reader needs a package that is not installed.
    """
    if isinstance(files, (str, os.PathLike)):
        return _open_pattern(os.fspath(files), bfloat16, tensor)
    parts = [_open_pattern(os.fspath(file), bfloat16, tensor) for file in files]
    if not parts:
        raise FileError("expected a file at least, got an empty list")
    return parts[0] if len(parts) == 1 else Parts(parts)


def _open_pattern(spec: str, bfloat16: bool, tensor: str | None) -> Source:
    name, form, found = _split(spec)
    tensor = tensor if found is None else found
    if Path(name).exists() or not glob.has_magic(name):
        return _open_one(name, form, tensor, bfloat16)
    names = sorted(glob.glob(name), key=natural)  # noqa: PTH207 (Path has it for relative patterns only)
    if not names:
        raise FileError(f"{name}: no file has such a name")
    parts = [_open_one(name, form, tensor, bfloat16) for name in names]
    return parts[0] if len(parts) == 1 else Parts(parts)


def _split(spec: str) -> tuple[str, Format, str | None]:
    """Return the name of the file, its format, and the tensor if one is said."""
    for form in FORMATS:
        name, mark, tensor = spec.partition(form.suffix + ":")
        if mark:
            return name + form.suffix, form, tensor
    bare = spec.rstrip("/") or spec
    for form in FORMATS:
        if bare.endswith(form.suffix):
            return bare, form, None
    zarr = next(form for form in FORMATS if form.suffix == ".zarr")
    if _is_zarr(bare):
        return bare, zarr, None
    for at in (i for i, letter in enumerate(spec) if letter == ":"):
        if _is_zarr(spec[:at]):
            return spec[:at], zarr, spec[at + 1 :]
    raise FileError(f"{spec}: expected a file named {' or '.join('*' + form.suffix for form in FORMATS)}")


def stored_in(source: Source) -> Iterator[Path]:
    """Yield all files that hold elements of an array, or describe it: of a Zarr array every chunk."""
    for path in source.files:
        if path.name in ZARR_METADATA:
            yield from sorted(file for file in path.parent.rglob("*") if file.is_file())
        else:
            yield path


def _is_zarr(folder: str) -> bool:
    return any(Path(folder, name).is_file() for name in ZARR_METADATA)


def _open_one(name: str, form: Format, tensor: str | None, bfloat16: bool) -> Source:
    module = import_module(f"fastce._files.{form.module}")
    source: Source = getattr(module, form.function)(Path(name), tensor, bfloat16)
    return source
