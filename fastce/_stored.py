"""`open_logits`: arrays in files, for Python. The readers are in fastce/_files, and imported when a file is opened."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fastce._blocks import BLOCK_BYTES
from fastce._problem import Array

if TYPE_CHECKING:
    from fastce._files import Index, Source


class StoredLogits:
    """An array in files, as `open_logits` returns it: read in pieces, never as a whole unless it is asked for.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        Of the arrays that are read. The bits of bfloat16 are ``ml_dtypes.bfloat16``, or float32 without that package.
    ndim, size, nbytes : int
        As of a NumPy array.
    files : tuple of str
        The files it is read from; of a Zarr array the one that describes it.

    Notes
    -----
    ``logits[index]`` and `read` take integers, slices and an ellipsis, and return a NumPy array: a read-only view of
    the file for ``.npy``, ``.safetensors`` and Arrow, and for Zarr within a chunk, where these are not compressed; else
    a copy. Parquet, and what is compressed, is decoded some rows at a time, the next ones while you compute. Any number
    of threads may read.

    NumPy cannot turn it into an array by itself (``numpy.asarray(logits)`` is a TypeError), since that would read all
    of it, unnoticed; ``logits[...]`` does that where it is meant.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = os.path.join(folder.name, "logits.npy")
    >>> np.save(path, np.arange(12, dtype=np.float32).reshape(4, 3))
    >>> logits = fastce.open_logits(path)
    >>> logits.shape, logits.dtype, len(logits)
    ((4, 3), dtype('float32'), 4)
    >>> logits[1:3, -1]
    array([5., 8.], dtype=float32)
    >>> [block.shape for rows, block in logits.blocks(36)]
    [(3, 3), (1, 3)]
    >>> folder.cleanup()
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def shape(self) -> tuple[int, ...]:
        return self._source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._source.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(map(str, self._source.files))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a single number")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<StoredLogits {self._source.name!r}: {self.shape}, {self._source.stored}>"

    def __getitem__(self, index: int | slice | EllipsisType | Index) -> Array:
        return self.read(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        raise TypeError(
            f"logits in files are not turned into an array unasked, which would read all {self.nbytes} bytes: "
            "read pieces with logits[...] or logits.blocks()"
        )

    def __iter__(self) -> NoReturn:
        raise TypeError("logits in files are read in pieces: logits[start:stop] or logits.blocks()")

    def read(self, index: int | slice | EllipsisType | Index) -> Array:
        """Return a piece.

        Parameters
        ----------
        index : int, slice, Ellipsis, or a tuple of these
            As of a NumPy array.

        Returns
        -------
        numpy.ndarray
            Not to be written to.

        Raises
        ------
        IndexError
            For a row that is not there.
        TypeError
            For another kind of index.
        ValueError
            For a file that cannot be decoded, or was changed since it was opened.
        """
        parts = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(part, (slice, EllipsisType)) for part in parts):
            parts = tuple(part if isinstance(part, (slice, EllipsisType)) else _integer(part) for part in parts)
        return self._source.read(parts)

    def blocks(self, n_bytes: int = BLOCK_BYTES) -> Iterator[tuple[slice, Array]]:
        """Read all of it, some rows of the first axis at a time.

        Parameters
        ----------
        n_bytes : int
            How much at a time, as a rule: one row at least.

        Yields
        ------
        rows : slice
            Where the block is along the first axis.
        block : numpy.ndarray
        """
        if not self.shape:
            raise TypeError("blocks of a single number")
        rows = max(1, n_bytes // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize))
        for start in range(0, self.shape[0], rows):
            part = slice(start, min(start + rows, self.shape[0]))
            yield part, self._source.read((part,))


def _integer(part: object) -> int:
    try:
        return operator.index(part)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"logits in files: expected integers, slices or ... as an index, got {type(part).__name__}"
        ) from None


def open_logits(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, dtype: Any = None, tensor: str | None = None
) -> StoredLogits:
    """Open logits, or any other array, in one file or many, to read them in pieces.

    Nothing but what describes the array is read here. The command ``fastce score`` opens its files by this function.

    Parameters
    ----------
    files : str, path, or sequence of these
        ``*.npy``, ``*.safetensors``, ``*.safetensors.index.json``, ``*.zarr`` (or another folder that holds a Zarr
        array or group), ``*.parquet``, ``*.arrow`` and ``*.feather``. What follows a colon, as in
        ``model.safetensors:logits``, names the tensor. A name with ``*``, ``?`` or ``[...]`` stands for all files that
        fit, in the order in which people count (``part-2`` before ``part-10``). The rows of several files follow one
        another.
    dtype : "bfloat16", optional
        Two-byte elements (uint16, int16) hold the bits of bfloat16 numbers. A .safetensors file says so itself.
    tensor : str, optional
        Which array of a file that holds several; of a table (Parquet, Arrow) the column, whose entries are lists of
        numbers. A pattern stands for several, in the order in which people count, whose rows follow one another; in a
        table for one column of numbers for each class, in the table's order. Needed only where a file leaves a
        choice.

    Returns
    -------
    StoredLogits
        Has ``shape``, ``dtype``, ``logits[index]`` and ``blocks()``.

    Raises
    ------
    ValueError
        For a file that is not what its name says, is truncated, or holds no numbers; for parts that differ in dtype or
        in the shape of a row, naming both.
    OSError
        For a file that cannot be opened.
    ImportError
        For Zarr without the package zarr, for tables without pyarrow.
    TypeError
        For a `dtype` that is not bfloat16.

    Notes
    -----
    Memory stays bounded whatever the size of the array, as long as it is read in pieces. What is
    mapped is in the system's page cache alone. What has to be decoded is, 4 to 8 MiB at a time: chunks of Zarr that
    hold few rows and all classes suit that best. A file must not be shortened while it is mapped: that ends the process
    (SIGBUS), as with any map.

    See ``docs/files.md``.

    Examples
    --------
    A mean over more than fits into memory, in parts:

    >>> import os, tempfile
    >>> import numpy as np
    >>> folder = tempfile.TemporaryDirectory()
    >>> for part in range(3):
    ...     np.save(os.path.join(folder.name, f"logits-{part}.npy"), np.zeros((2, 4), np.float32))
    >>> logits = fastce.open_logits(os.path.join(folder.name, "logits-*.npy"))
    >>> logits.shape
    (6, 4)
    >>> labels = np.array([0, 1, 2, 3, 0, 1])
    >>> total = 0.0
    >>> for rows, block in logits.blocks():
    ...     total += fastce.cross_entropy(block, labels[rows], reduction="sum")
    >>> round(total / len(labels), 6)
    1.386294
    >>> folder.cleanup()
    """
    from fastce._files import open_array

    return StoredLogits(open_array(files, _is_bfloat16(dtype), tensor))


def _is_bfloat16(dtype: Any) -> bool:
    name = dtype if dtype is None or isinstance(dtype, str) else getattr(np.dtype(dtype), "name", None)
    if name not in (None, "bfloat16"):
        raise TypeError(f'dtype: expected "bfloat16", or nothing where a file says what it holds, got {dtype!r}')
    return name is not None
