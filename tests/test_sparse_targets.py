"""Sparse targets of cross_entropy and its twin, on every engine: lists of classes and their probabilities."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cases
from checks import agree, same_bits
from matrix import BLOCK, Engine

Array = cases.Array
DType = np.dtype[Any]


def lists(
    rng: np.random.Generator, shape: tuple[int, ...], n_classes: int, dtype: Any = np.float32, axis: int = -1
) -> tuple[Array, Array]:
    """Classes, some of them more than once and some padding; probabilities that sum to less than 1."""
    indices = rng.integers(-1, n_classes, shape)
    p = rng.random(shape) ** 3
    p /= 1.25 * np.maximum(p.sum(axis, keepdims=True), 1e-3)
    return indices, p.astype(dtype)


@pytest.mark.parametrize("spread_missing", [False, True])
def test_sizes(engine: Engine, dtype: DType, rng: np.random.Generator, spread_missing: bool) -> None:
    """Around vectors and blocks, with lists longer than there are classes, and with empty ones."""
    lanes = engine.lanes(dtype)
    for n_classes in (1, 2, lanes + 1, 32, 33, 4 * lanes + 3, BLOCK + 1):
        n = 150 if n_classes == 2 else 19 if n_classes < 100 else 3
        for k in (0, 1, 5, 70):
            x = cases.grid(rng, (n, n_classes), dtype, -40, 40)
            target = lists(rng, (n, k), n_classes)
            agree(engine, x, target, reduction="none", spread_missing=spread_missing)


def test_with_all_other_options(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Class weights, sample weights, smoothing, z-loss, a softcap and a temperature; the reductions."""
    for n_classes, spread_missing in itertools.product((7, 90), (False, True)):
        x = cases.normal(rng, (29, n_classes), dtype, 8.0)
        s = rng.random(29)
        s[::7] = 0
        x[7] = np.nan
        target = lists(rng, (29, 4), n_classes)
        common: dict[str, Any] = {"sample_weight": s, "weight": rng.random(n_classes), "spread_missing": spread_missing}
        agree(engine, x, target, label_smoothing=0.1, z_loss=0.01, grad_output=-2.5, **common)
        agree(engine, x, target, reduction="sum", base=2, temperature=3.0, **common)
        agree(engine, x, target, reduction="none", grad_output=rng.standard_normal(29), softcap=7.0, **common)
        agree(engine, x, target, denominator=7.0, z_loss=0.1, softcap=7.0, temperature=0.5, **common)


def test_special_values(engine: Engine, dtype: DType) -> None:
    """A class of -inf that has mass; one without; NaN and +inf in their row alone."""
    inf = np.inf
    for n_classes in (4, 60):
        x = np.tile(np.arange(n_classes) % 5 - 2.0, (7, 1))
        x[0, 0] = np.nan
        x[1, 3] = inf
        x[2, 1], x[3, 2], x[4] = -inf, -inf, -inf
        target = np.tile([[1, 3, -1]], (7, 1)), np.tile(np.array([[0.5, 0.25, np.nan]], np.float32), (7, 1))
        for spread_missing in (False, True):
            agree(engine, x.astype(dtype), target, reduction="none", spread_missing=spread_missing)


def test_like_dense(engine: Engine, rng: np.random.Generator) -> None:
    """A list of all classes, in any order, is a dense target; one of one class is its label."""
    for n_classes in (6, 50):
        x = cases.normal(rng, (11, n_classes), np.float32)
        t = cases.dense(rng, x.shape)
        order = rng.permuted(np.tile(np.arange(n_classes), (11, 1)), axis=1)
        dense = engine.cross_entropy_with_grad(x, t, reduction="none")
        sparse = engine.cross_entropy_with_grad(x, (order, np.take_along_axis(t, order, 1)), reduction="none")
        assert same_bits(dense.loss, sparse.loss)
        assert same_bits(dense.grad, sparse.grad)
        y = cases.labels(rng, 11, n_classes)
        labels = engine.cross_entropy_with_grad(x, y, label_smoothing=0.1)
        rest = np.full((11, 1), 0.9 + 0.1 / n_classes)
        spread = engine.cross_entropy_with_grad(x, (y[:, None], rest), spread_missing=True)
        assert math.isclose(labels.loss, spread.loss, rel_tol=1e-6)
        assert np.allclose(labels.grad, spread.grad, rtol=1e-5, atol=1e-8)


def test_sums(engine: Engine) -> None:
    """Masses of a class add up; a sum of 1 within its dtype's rounding leaves nothing to spread."""
    x = np.array([[1.0, -2.0, 0.5]])
    once = engine.cross_entropy(x, (np.array([[2, 0]]), np.array([[0.75, 0.25]])))
    twice = engine.cross_entropy(x, (np.array([[2, 0, 2, -1]]), np.array([[0.5, 0.25, 0.25, 9.0]])))
    assert once == twice
    tenths = np.full((1, 3), 1 / 3, np.float32) * np.float32(1 + 2e-7)
    assert tenths.astype(np.float64).sum() > 1
    for spread_missing in (False, True):
        agree(engine, x, (np.array([[0, 1, 0]]), tenths), spread_missing=spread_missing)
    agree(engine, x, (np.array([[0, 1, 2]]), np.full((1, 3), 0.25)), spread_missing=True)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layouts(engine: Engine, rng: np.random.Generator, axis: int) -> None:
    """The class axis anywhere; any layout, and any dtype of indices and probabilities."""
    for shape in ((4, 5, 6), (3, 45, 50)):
        listed = (*shape[:axis], 3, *shape[axis + 1 :])
        x = cases.normal(rng, shape, np.float32)
        indices, p = lists(rng, listed, shape[axis], axis=axis)
        kwargs: dict[str, Any] = {"axis": axis, "spread_missing": True}
        agree(engine, x, (indices, p), **kwargs)
        want = engine.cross_entropy_with_grad(x, (indices, p), **kwargs)
        for arrange in cases.LAYOUTS.values():
            got = engine.cross_entropy_with_grad(arrange(x), (arrange(indices), arrange(p)), **kwargs)
            assert math.isclose(got.loss, want.loss, rel_tol=1e-6)
            assert np.allclose(got.grad, want.grad, rtol=1e-5, atol=1e-8)


def test_dtypes(engine: Engine, rng: np.random.Generator) -> None:
    x = cases.normal(rng, (9, 40), np.float32)
    indices = rng.integers(0, 40, (9, 3))
    for kind in (np.int8, np.uint8, np.int32, np.uint64):
        agree(engine, x, (indices.astype(kind), rng.random((9, 3)).astype(np.float32)))
    for kind in (np.bool_, np.int8, np.float16, ml_dtypes.bfloat16, np.float64):
        agree(engine, x, (indices, (2 * rng.random((9, 3))).astype(kind)))
    nested = ([[1, 2]], [[0.25, 0.5]])
    assert engine.cross_entropy([[1.0, 2.0, 3.0]], nested) == engine.cross_entropy(
        np.array([[1.0, 2.0, 3.0]]), tuple(np.array(part) for part in nested)
    )


def test_pairs_that_are_no_lists(engine: Engine) -> None:
    """A tuple of two labels, or of two dense rows, is what it was."""
    x = np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]])
    assert engine.cross_entropy(x, (1, 2)) == engine.cross_entropy(x, np.array([1, 2]))
    rows = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]])
    assert engine.cross_entropy(x, tuple(rows)) == engine.cross_entropy(x, rows)


def test_bad_lists(engine: Engine) -> None:
    """The first bad entry is named, of the first bad row in C order; nothing has been written."""
    x = np.zeros((2, 3, 40), np.float32)
    indices, p = np.zeros((2, 3, 2), np.int64), np.full((2, 3, 2), 0.25, np.float32)

    def refused(error: type[Exception], text: str, **options: Any) -> None:
        out = np.full(x.shape, 7.0, np.float32)
        calls: list[tuple[str, dict[str, Any]]] = [
            ("cross_entropy", {}),
            ("cross_entropy_with_grad", {"out": out, "sample_weight": np.zeros((2, 3))}),
        ]
        for name, more in calls:
            with pytest.raises(error) as caught:
                engine.call(name, x, (indices, p), **more, **options)
            assert str(caught.value) == text
        assert (out == 7).all()

    for wrong in (40, -2, -100, 2**40):
        indices[1, 2, 0] = indices[1, 0, 1] = wrong
        refused(IndexError, f"target: class {wrong} at index (1, 0, 1) is out of range for 40 classes")
        indices[...] = 0
    for value in (-0.5, np.nan, np.inf):
        p[0, 2, 1] = value
        refused(ValueError, f"target: expected finite numbers >= 0, got {value!r} at index (0, 2, 1) of probabilities")
        p[...] = 0.25
    p[1, 1] = 0.75
    refused(
        ValueError, "target: expected probabilities that sum to at most 1, got 1.5 at index (1, 1)", spread_missing=True
    )
    p[...] = 3e38
    refused(
        ValueError, "target: expected probabilities whose sum is in the range of float32, got 6e+38 at index (0, 0)"
    )


def test_bits(compiled: Engine, rng: np.random.Generator) -> None:
    """The bits of a row do not depend on the batch, on its place there, or on threads."""
    for n_classes in (9, 130):
        x = cases.normal(rng, (1300, n_classes), np.float32)
        indices, p = lists(rng, (1300, 5), n_classes)
        s = rng.random(1300)
        s[4::9] = 0
        kwargs: dict[str, Any] = {"reduction": "none", "spread_missing": True}
        one, two = (
            compiled.cross_entropy_with_grad(x, (indices, p), sample_weight=s, num_threads=n, **kwargs) for n in (1, 2)
        )
        assert same_bits(one.loss, two.loss)
        assert same_bits(one.grad, two.grad)
        for rows in (slice(700, 701), slice(3, 140), slice(None, None, -7)):
            part = compiled.cross_entropy_with_grad(x[rows], (indices[rows], p[rows]), sample_weight=s[rows], **kwargs)
            assert same_bits(part.loss, one.loss[rows])
            assert same_bits(part.grad, one.grad[rows])
