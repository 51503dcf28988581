"""Clause 12 of the contract: the same bits for any threads, batch and alignment, with or without the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import cases
from checks import agree, same_bits
from matrix import BLOCK, Engine

DType = np.dtype[Any]
SHAPES = [(5000, 3), (700, 37), (300, 130), (37, BLOCK + 5), (9, 40000)]
"""Enough work for more than one thread in each."""


def variety(rng: np.random.Generator, x: cases.Array) -> list[tuple[Any, dict[str, Any]]]:
    n_rows, n_classes = x.shape
    y = cases.labels(rng, n_rows, n_classes)
    y[::7] = -100
    dense = cases.dense(rng, x.shape, np.float32)
    return [(y, {}), (y, {"label_smoothing": 0.1, "weight": rng.random(n_classes)}), (dense, {"z_loss": 0.01})]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_threads(engine: Engine, dtype: DType, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    """The same bits with 1, 2, 3 and 7 threads, for every reduction; the loss the same without the gradient."""
    x = cases.normal(rng, shape, dtype)
    s = rng.random(shape[0])
    for target, options in variety(rng, x)[: 3 if x.size < 10**5 else 1]:
        for reduction in ("sum", "none"):
            calls = [
                engine.cross_entropy_with_grad(
                    x, target, sample_weight=s, reduction=reduction, num_threads=n, **options
                )
                for n in (1, 2, 3, 7)
            ]
            for loss, grad in calls[1:]:
                assert same_bits(loss, calls[0].loss)
                assert same_bits(grad, calls[0].grad)
            for n in (1, 2, 5):
                loss = engine.cross_entropy(x, target, sample_weight=s, reduction=reduction, num_threads=n, **options)
                assert same_bits(loss, calls[0].loss)


def test_threads_along_a_strided_axis(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The same with the class axis strided and positions shared out."""
    x, y = cases.normal(rng, (3, 11, 50, 31), dtype), cases.labels(rng, (3, 50, 31), 11)
    calls = [engine.cross_entropy_with_grad(x, y, axis=1, num_threads=n) for n in (1, 2, 5)]
    for loss, grad in calls[1:]:
        assert same_bits(loss, calls[0].loss)
        assert same_bits(grad, calls[0].grad)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 9, 17, 40, 131, BLOCK + 3])
def test_a_row_alone(compiled: Engine, dtype: DType, rng: np.random.Generator, n_classes: int) -> None:
    """A row has the same bits alone and in a batch of any size, wherever in it; NumPy is exempt."""
    x = cases.normal(rng, (70 if n_classes < 100 else 19, n_classes), dtype)
    for target, options in variety(rng, x):
        loss, grad = compiled.cross_entropy_with_grad(x, target, reduction="none", **options)
        parts = [slice(i, i + 1) for i in (0, 1, 5, len(x) - 1)] + [slice(3, 7), slice(1, 18)]
        for rows in parts:
            alone = compiled.cross_entropy_with_grad(x[rows], target[rows], reduction="none", **options)
            assert same_bits(alone.loss, loss[rows])
            assert same_bits(alone.grad, grad[rows])
            copied = compiled.cross_entropy_with_grad(x[rows].copy(), target[rows].copy(), reduction="none", **options)
            assert same_bits(copied.loss, loss[rows])
            assert same_bits(copied.grad, grad[rows])


@pytest.mark.parametrize("n_classes", [2, 21])
def test_a_smoothed_row_alone(compiled: Engine, dtype: DType, rng: np.random.Generator, n_classes: int) -> None:
    """The same with label smoothing, beside rows whose label lies too far below the others to be the shift."""
    x, y = cases.normal(rng, (40, n_classes), dtype), cases.labels(rng, 40, n_classes)
    x[3::4] += np.asarray(900, dtype)
    x[np.arange(40), y] = np.asarray(0.25, dtype)
    x[1::5, :2] = np.asarray(0.25, dtype)  # others where the label is
    x[2::9, 0] = np.where(y[2::9] == 0, x[2::9, 0], -np.inf)
    agree(compiled, x, y, reduction="none", label_smoothing=0.1)
    loss, grad = compiled.cross_entropy_with_grad(x, y, reduction="none", label_smoothing=0.1)
    for rows in [slice(i, i + 1) for i in range(5)] + [slice(4, 7), slice(8, 11)]:
        alone = compiled.cross_entropy_with_grad(x[rows], y[rows], reduction="none", label_smoothing=0.1)
        assert same_bits(alone.loss, loss[rows])
        assert same_bits(alone.grad, grad[rows])


def test_a_position_alone(compiled: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The same with the class axis strided: a position's bits do not depend on its neighbours."""
    inner = 2 * compiled.lanes(dtype) + 5
    x, y = cases.normal(rng, (2, 21, inner), dtype), cases.labels(rng, (2, inner), 21)
    loss, grad = compiled.cross_entropy_with_grad(x, y, axis=1, reduction="none")
    for first, last in ((0, 2), (3, 8), (compiled.lanes(dtype) - 1, inner), (inner - 2, inner)):
        part = compiled.cross_entropy_with_grad(x[:, :, first:last], y[:, first:last], axis=1, reduction="none")
        assert same_bits(part.loss, loss[:, first:last])
        assert same_bits(part.grad, grad[:, :, first:last])


def test_alignment(compiled: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The same bits at every offset from a 64-byte boundary, in elements and in single bytes."""
    for n_classes in (3, 37, 70):
        x, y = cases.normal(rng, (6, n_classes), dtype), cases.labels(rng, 6, n_classes)
        want = compiled.cross_entropy_with_grad(x, y, reduction="none")
        buffer, result = (np.empty(x.nbytes + 192, np.uint8) for _ in range(2))
        start = -buffer.ctypes.data % 64
        for offset in [*range(0, 64, dtype.itemsize), 1, 3, 33]:
            moved, out = (at(b, start + offset, x) for b in (buffer, result))
            moved[...] = x
            got = compiled.cross_entropy_with_grad(moved, y, reduction="none", out=out)
            assert same_bits(got.loss, want.loss)
            assert same_bits(np.array(out), want.grad)


@pytest.mark.parametrize("n_classes", [33, 20001])
def test_outputs_too_large_for_the_caches(
    compiled: Engine, dtype: DType, rng: np.random.Generator, n_classes: int
) -> None:
    """More than 4 MiB of gradient, at any alignment, is what its rows give in parts; nothing is written around it."""
    n_rows = 9 * 2**19 // dtype.itemsize // n_classes + 1
    x, y = cases.normal(rng, (n_rows, n_classes), dtype), cases.labels(rng, n_rows, n_classes)
    y[::50] = -100
    step = max(1, n_rows // 7)
    parts = [slice(first, first + step) for first in range(0, n_rows, step)]
    want = np.concatenate([compiled.cross_entropy_with_grad(x[p], y[p], reduction="sum").grad for p in parts])
    buffer = np.empty(x.nbytes + 256, np.uint8)
    start = 64 - buffer.ctypes.data % 64
    for offset in (0, 64 - dtype.itemsize, 1):
        buffer[...] = 0xA5
        out = at(buffer, start + offset, x)
        compiled.cross_entropy_with_grad(x, y, reduction="sum", out=out, num_threads=2)
        assert same_bits(np.array(out), want)
        assert (buffer[: start + offset] == 0xA5).all()
        assert (buffer[start + offset + x.nbytes :] == 0xA5).all()
    z = x.copy()
    compiled.cross_entropy_with_grad(z, y, reduction="sum", out=z, num_threads=3)
    assert same_bits(z, want)


def test_large_outputs_along_a_strided_axis(compiled: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The same with the class axis first and in the middle."""
    inner = 2**19 // dtype.itemsize + 3
    x, y = cases.normal(rng, (2, 5, inner), dtype), cases.labels(rng, (2, inner), 5)
    grad = compiled.cross_entropy_with_grad(x, y, axis=1, reduction="sum").grad
    for first in range(0, inner, inner // 5):
        rows = slice(first, first + inner // 5)
        part = compiled.cross_entropy_with_grad(x[:, :, rows], y[:, rows], axis=1, reduction="sum").grad
        assert same_bits(part, grad[:, :, rows])


def at(buffer: cases.Array, offset: int, like: cases.Array) -> cases.Array:
    return np.ndarray(like.shape, like.dtype, buffer, offset)


def test_an_elements_value_does_not_depend_on_its_column(compiled: Engine, dtype: DType) -> None:
    """Tails use the arithmetic of whole vectors: equal logits have bit-equal gradients in every column."""
    for n_classes in range(2, 4 * compiled.lanes(dtype) + 4):
        x = np.full((1, n_classes), 0.7, dtype)
        x[0, 0] = 2
        p = compiled.softmax(x)[0, 1:]
        grad = compiled.cross_entropy_with_grad(x, [0]).grad[0, 1:]
        assert (p == p[0]).all()
        assert (grad == grad[0]).all()


def test_repeated_calls(engine: Engine, rng: np.random.Generator) -> None:
    """The same call gives the same bits every time."""
    x, y = cases.normal(rng, (3000, 40), np.float32), cases.labels(rng, 3000, 40)
    calls = [engine.cross_entropy_with_grad(x, y) for _ in range(5)]
    assert all(same_bits(c.loss, calls[0].loss) and same_bits(c.grad, calls[0].grad) for c in calls)
