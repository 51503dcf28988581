"""Boxes of positions: what visits its logits more than once, or reads them from files, goes through them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastce import _blocks


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4), (4, 1, 6), (3, 0), (0, 3)])
@pytest.mark.parametrize("size", [1, 2, 5, 12, 100])
def test_boxes(shape: tuple[int, ...], size: int) -> None:
    """A partition of the rows in C order, none larger than asked for."""
    rows = np.arange(math.prod(shape)).reshape(shape)
    found = [rows[where].ravel() for where in _blocks.boxes(shape, size)]
    assert all(0 < len(part) <= size for part in found)
    assert np.concatenate([np.empty(0, int), *found]).tolist() == rows.ravel().tolist()
