"""Makers of logits, targets and layouts that several test files use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def grid(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, low: int = -64, high: int = 64) -> Array:
    """Multiples of 1/8 that every dtype holds, so that all differences are exact: no allowance, the bare ULPs."""
    step = 0.125 if max(abs(low), abs(high)) <= 64 else 1.0
    return (rng.integers(low, high, shape, endpoint=True) * step).astype(dtype)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, scale: float = 3.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(dtype)


def labels(rng: np.random.Generator, shape: tuple[int, ...] | int, n_classes: int, dtype: Any = np.int64) -> Array:
    return rng.integers(0, n_classes, shape).astype(dtype)


def dense(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """Rows that are not normalised and have zeros."""
    t = rng.random(shape) * (rng.random(shape) < 0.7)
    return t.astype(dtype)


def misaligned(array: Array) -> Array:
    """The same values one byte off any alignment."""
    buffer = np.empty(array.nbytes + 1, np.uint8)
    moved: Array = buffer[1:].view(np.dtype((np.void, array.itemsize))).view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def swapped(array: Array) -> Array:
    """The same values in the other byte order."""
    return array.astype(array.dtype.newbyteorder("S"))


def spaced(array: Array) -> Array:
    """The same values in every second place along every axis of a larger array, with NaN or 1 between them."""
    fill = 1 if array.dtype.kind in "iub" else np.nan
    wide = np.full([2 * n + 1 for n in array.shape], fill).astype(array.dtype)
    view: Array = wide[tuple(slice(1, 1 + 2 * n, 2) for n in array.shape)]
    view[...] = array
    return view


def backwards(array: Array) -> Array:
    """The same values with negative strides along every axis."""
    flip = (slice(None, None, -1),) * array.ndim
    return array[flip].copy()[flip]


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "misaligned": misaligned,
    "byte-swapped": swapped,
    "spaced": spaced,
    "backwards": backwards,
    "read-only": read_only,
    "misaligned byte-swapped": lambda a: misaligned(swapped(a)),
    "spaced byte-swapped": lambda a: spaced(swapped(a)),
    "transposed": lambda a: a.T.copy().T,
}


def layouts(array: Array) -> Iterator[tuple[str, Array]]:
    """One array in every layout; the values are the same."""
    for name, arrange in LAYOUTS.items():
        yield name, arrange(array)
