"""Outputs that will not stay in cache leave on another way: the same bits as in small pieces, whatever the shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cases
from matrix import COMPILED, Engine

BYTES = 5 << 20
"""More than the C core keeps for the caches."""


@pytest.mark.parametrize("engine", [engine for engine in COMPILED if engine.backend == "cython"], ids=str)
@pytest.mark.parametrize("n_classes", [2, 10, 33, 100, 1000, 2049, 5000])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    "extra", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}], ids=["plain", "smoothing", "z_loss"]
)
def test_large_outputs_equal_their_pieces(
    engine: Engine, dtype: np.dtype[Any], rng: np.random.Generator, n_classes: int, offset: int, extra: dict[str, float]
) -> None:
    """Rows that begin anywhere in a line, an output that begins at any element, ignored rows; and in place."""
    n = BYTES // dtype.itemsize // n_classes + 7
    x, y = cases.normal(rng, (n, n_classes), dtype), cases.labels(rng, n, n_classes)
    y[: n // 4][rng.random(n // 4) < 0.1] = -100
    y[n // 4 : n // 3] = -100
    room = np.full(n * n_classes + 2 * offset, 7, dtype)
    out = room[offset : offset + n * n_classes].reshape(n, n_classes)
    options: dict[str, Any] = {"reduction": "sum", "num_threads": 2, **extra}
    engine.cross_entropy_with_grad(x, y, out=out, **options)
    assert (room[:offset] == 7).all()
    assert (room[offset + n * n_classes :] == 7).all()
    for begin in (0, n // 4 - 35, n // 2, n - 70):
        part = slice(begin, begin + 70)
        piece = engine.cross_entropy_with_grad(x[part], y[part], **options).grad
        assert piece.tobytes() == out[part].tobytes()
    engine.cross_entropy_with_grad(x, y, out=x, **options)
    assert x.tobytes() == out.tobytes()
