"""Small calls without options take a shorter way to the same kernel: the same bits, the same errors.

The general path, which the contract suite runs over, is the oracle here: it is taken where a backend is named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastce
from fastce import _pipeline, _settings

LABELS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">i8"]
LOGITS = ["f2", "f4", "f8", ">f4", ">f8"]


@pytest.fixture(autouse=True)
def settled() -> None:
    """The first call of a process takes the general path and settles the environment for the others."""
    fastce.cross_entropy(np.zeros((1, 2), np.float32), [0])


def outcome(*args: Any, **options: Any) -> Any:
    """The bits of the result, or the error."""
    try:
        return np.float64(fastce.cross_entropy(*args, **options)).tobytes()
    except Exception as error:
        return type(error), str(error)


def is_quick(x: Any, y: Any) -> bool:
    """Whether the short way does this call by itself."""
    return _pipeline.quick(x, y, *fastce._functions._DEFAULTS) is not None


@st.composite
def batches(draw: st.DrawFn) -> tuple[Any, Any]:
    """Arrays of any dtype, stride and content, labels seldom out of range."""
    n, c = draw(st.integers(0, 70)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = (draw(st.sampled_from([0.1, 1, 30, 1000])) * rng.standard_normal((2 * n, 2 * c))).astype(
        draw(st.sampled_from(LOGITS))
    )
    special = draw(st.sampled_from([0, np.nan, np.inf, -np.inf]))
    x[rng.random(x.shape) < draw(st.sampled_from([0, 0.01]))] = special
    x = draw(st.sampled_from([x[:n, :c], x[::2, ::2], x[::-2, ::-2], np.asfortranarray(x[:n, :c])]))
    y = rng.integers(0, c, 2 * n).astype(draw(st.sampled_from(LABELS)))
    if draw(st.booleans()):
        y[rng.random(2 * n) < 0.3] = np.array(-100).astype(y.dtype)
    if n and draw(st.integers(0, 9)) == 0:
        y[rng.integers(2 * n)] = np.array(draw(st.sampled_from([-1, c, -100, -99]))).astype(y.dtype)
    return x, draw(st.sampled_from([y[:n], y[::2], y[n:][::-1]]))


@given(batches())
def test_the_short_way_is_the_general_one(batch: tuple[Any, Any]) -> None:
    assert outcome(*batch) == outcome(*batch, backend="cython")


def test_it_is_taken(rng: np.random.Generator) -> None:
    for dtype in (np.float32, np.float64):
        assert is_quick(rng.standard_normal((32, 10)).astype(dtype), rng.integers(0, 10, 32))


def test_what_is_not_plain_is_left_alone(rng: np.random.Generator) -> None:
    """Other types and shapes, large batches, bad labels, nothing to average."""
    x, y = rng.standard_normal((32, 10)), rng.integers(0, 10, 32)
    large = np.zeros((10_000, 100))
    for logits, target in [
        (x.tolist(), y),
        (x, y.tolist()),
        (x[None], y[None]),
        (x.astype(np.float16), y),
        (x, np.eye(10)[y]),
        (x, y.astype(bool)),
        (x, y.astype(float)),
        (x, y + 9),
        (x[:0], y[:0]),
        (x, np.full(32, -100)),
        (np.ma.array(x), y),
        (large, np.zeros(10_000, int)),
    ]:
        assert not is_quick(logits, target)


def test_any_option_and_any_context_means_the_general_way(rng: np.random.Generator) -> None:
    """An option counts as given unless it is the default object itself; use_backend and forced variants come first."""
    x, y = rng.standard_normal((32, 10)), rng.integers(0, 10, 32)
    defaults = fastce._functions._DEFAULTS
    for i in range(len(defaults)):
        assert _pipeline.quick(x, y, *defaults[:i], object(), *defaults[i + 1 :]) is None
    with fastce.use_backend("numpy"):
        assert not is_quick(x, y)
    with _settings.use_variant("portable"):
        assert not is_quick(x, y)
    assert is_quick(x, y)
