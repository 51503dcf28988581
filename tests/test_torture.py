"""The torture set of the contract: inputs on which a well-known library was once wrong.

Two items live elsewhere: pages that may not be touched in test_guard_pages.py, 1e8 equal losses in
test_contract_reductions.py.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cases
from checks import agree
from matrix import BLOCK, Engine

DType = np.dtype[Any]


def lows(dtype: DType) -> list[float]:
    """Values far below zero that the dtype holds."""
    return [-1e4, -6e4] if dtype == np.float16 else [-1e4, -1e30]


@pytest.mark.parametrize("strided", [False, True], ids=["class axis last", "class axis first"])
def test_the_maximum_at_every_position(engine: Engine, dtype: DType, strided: bool) -> None:
    """The maximum at each position 0 ... 4 lanes + 3, all else far below and very negative.

    Losing it from the maximum or the sum (a SIMD group, a tail) makes the row NaN, infinite or wrong.
    """
    lanes = engine.lanes(dtype)
    widths = [*range(1, lanes + 2), 2 * lanes + 1, 4 * lanes - 1, 4 * lanes, 4 * lanes + 4]
    for n_classes in widths:
        for low in lows(dtype):
            x = np.full((n_classes, n_classes), low).astype(dtype)
            np.fill_diagonal(x, -20)
            if low == -1e4:
                np.fill_diagonal(x, np.array(low, dtype) + 16)
            at = np.arange(n_classes)
            for y in (at, np.roll(at, 1)):
                if strided:
                    agree(engine, np.ascontiguousarray(x.T), y, axis=0, reduction="none")
                else:
                    agree(engine, x, y, reduction="none")


def test_the_maximum_at_every_edge_of_blocks(engine: Engine, dtype: DType) -> None:
    """The same across blocks of classes: first, last, and on either side of each boundary."""
    n_classes = 3 * BLOCK + 5
    at = np.array(
        [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK, n_classes - 2, n_classes - 1]
    )
    x = np.full((len(at), n_classes), -1e4).astype(dtype)
    x[np.arange(len(at)), at] = -9984
    agree(engine, x, at, reduction="none")
    agree(engine, x, np.roll(at, 1), reduction="none")


def test_a_label_far_below_the_maximum(engine: Engine, dtype: DType) -> None:
    """Every gap: a kernel that subtracts the label's logit instead of the maximum must see its sum grow too large."""
    gaps = np.arange(0, 1600 if dtype == np.float64 else 200, 4 if dtype == np.float64 else 1).astype(dtype)
    for n_classes in (2, 10, 40, 300):
        x = np.zeros((len(gaps), n_classes), dtype)
        x[:, 1:] = gaps[:, None]
        agree(engine, x, np.zeros(len(gaps), int), reduction="none")
        x[:, 2:] = -3
        agree(engine, x, np.zeros(len(gaps), int), reduction="none")


def test_a_rising_and_a_falling_row(engine: Engine, dtype: DType) -> None:
    """A running maximum that moves at every step, and one that never does."""
    for n_classes in (engine.lanes(dtype) + 1, 100, BLOCK + 1):
        ramp = np.linspace(-60, 60, n_classes)
        x = np.stack([ramp, ramp[::-1], np.abs(ramp), -np.abs(ramp)]).astype(dtype)
        for y in (np.zeros(4, int), np.full(4, n_classes - 1), np.full(4, n_classes // 2)):
            agree(engine, x, y, reduction="none")


@pytest.mark.parametrize("strided", [False, True], ids=["class axis last", "class axis first"])
def test_the_maximum_at_several_positions(
    engine: Engine, dtype: DType, rng: np.random.Generator, strided: bool
) -> None:
    """Ties: exactly one of them is left out of r, wherever they are; the target among them or not."""
    lanes = engine.lanes(dtype)
    for n_classes in (2, 3, lanes, lanes + 1, 2 * lanes + 3, 4 * lanes + 3):
        x = cases.grid(rng, (24, n_classes), dtype, -64, -40)
        for i in range(24):
            x[i, rng.choice(n_classes, min(n_classes, 1 + i % 5), replace=False)] = -8
        x[0], x[1, 0], x[1, -1] = -8, -8, -8
        for y in (x.argmax(1), n_classes - 1 - x[:, ::-1].argmax(1), x.argmin(1)):
            agree(engine, x.T.copy() if strided else x, y, axis=0 if strided else -1, reduction="none")
        hot = np.eye(n_classes, dtype=np.float32)[x.argmax(1)]
        agree(engine, x, hot, reduction="none")


@pytest.mark.parametrize("n_classes", [1, 2, 5, 64, 67, 131])
def test_all_very_negative(engine: Engine, dtype: DType, rng: np.random.Generator, n_classes: int) -> None:
    """All logits about -1e4 or -1e30: a maximum that starts at the smallest positive float, or at 0, is wrong."""
    for low in lows(dtype):
        step = max(
            float(np.abs(np.spacing(np.float64(low).astype(dtype)))) if dtype.name != "bfloat16" else -low / 128, 1
        )
        x = (low + step * rng.integers(-4, 4, (9, n_classes))).astype(dtype)
        y = cases.labels(rng, 9, n_classes)
        agree(engine, x, y, reduction="none")
        agree(engine, x, cases.dense(rng, x.shape), reduction="none")


@pytest.mark.parametrize("n_classes", [2, 10, 67, BLOCK + 1])
def test_where_exp_of_x_overflows(engine: Engine, dtype: DType, rng: np.random.Generator, n_classes: int) -> None:
    """Values in [90, 100] ([710, 720] for float64): exp(x) overflows and exp(x - max) does not."""
    low = 710 if dtype == np.float64 else 90
    x = (low + 10 * rng.random((6, n_classes))).astype(dtype)
    y = cases.labels(rng, 6, n_classes)
    agree(engine, x, y, reduction="none")
    agree(engine, x, y, reduction="none", label_smoothing=0.1)
    agree(engine, -x, y, reduction="none")
    agree(engine, -x, cases.dense(rng, x.shape), reduction="none")


@pytest.mark.parametrize("mask", ["-1e9", "finfo.min", "-inf"])
def test_additive_masks(engine: Engine, dtype: DType, rng: np.random.Generator, mask: str) -> None:
    """Masked classes at -1e9 or finfo.min count for nothing; a target there costs that much."""
    low = {
        "-1e9": -6e4 if dtype == np.float16 else -1e9,
        "finfo.min": float(ml_dtypes.finfo(dtype).min),
        "-inf": -np.inf,
    }[mask]
    for n_classes in (3, 17, 67):
        x = cases.normal(rng, (12, n_classes), dtype)
        masked = rng.random(x.shape) < 0.5
        masked[:, 0] = False
        x[masked] = low
        x[5, 1:] = low
        y = np.where(masked.any(1), masked.argmax(1), 0)
        agree(engine, x, np.zeros(12, int), reduction="none")
        loss = engine.cross_entropy(x, y, reduction="none")
        inside = (masked[np.arange(12), y]) & np.isfinite(low)
        np.testing.assert_allclose(loss[inside], -low, rtol=1e-2)
        if mask == "-1e9":
            agree(engine, x, y, reduction="none")
    x = np.full((2, 5), low).astype(dtype)
    loss, grad = engine.cross_entropy_with_grad(x, [0, 4], reduction="none")
    if mask == "-inf":
        assert np.isnan(loss).all()
        assert np.isnan(grad).all()
    else:
        np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)
        np.testing.assert_allclose(grad.astype(float)[0], [-0.8, 0.2, 0.2, 0.2, 0.2], rtol=1e-2)


def test_the_whole_range_of_the_dtype(engine: Engine, dtype: DType) -> None:
    """Rows that hold the largest and the smallest number at once: x - m overflows, and is only ever below zero."""
    top = float(ml_dtypes.finfo(dtype).max)
    x = np.array([[top, -top, 0], [-top, 0, -top], [top, top, -top]]).astype(dtype)
    loss, grad = engine.cross_entropy_with_grad(x, [0, 1, 0], reduction="none")
    np.testing.assert_allclose(loss, [0, 0, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(grad.astype(float), [[0, 0, 0], [0, 0, 0], [-0.5, 0.5, 0]])
    loss, grad = engine.cross_entropy_with_grad(x, [1, 0, 2], reduction="none")
    assert (loss > 6e4).all()
    np.testing.assert_allclose(grad.astype(float), [[1, -1, 0], [-1, 1, 0], [0.5, 0.5, -1]])


def test_shape_3_1_1(engine: Engine, dtype: DType) -> None:
    """Shape (3, 1, 1), along each axis."""
    x = np.array([1.0, -2.0, 0.5]).reshape(3, 1, 1).astype(dtype)
    agree(engine, x, np.zeros((3, 1), int), reduction="none")
    agree(engine, x, np.zeros((3, 1), int), axis=1)
    agree(engine, x, np.array([[2]]), axis=0, reduction="none")
    agree(engine, x, np.ones((3, 1, 1), np.float32), axis=0)


def test_probabilities_of_exactly_0_and_1(engine: Engine, dtype: DType) -> None:
    """A dense target of exactly 0 and 1 on a softmax of exactly 0 and 1: 0 or the gap, never NaN."""
    gap = 1e4
    x = np.array([[gap, 0.0], [0.0, gap]]).astype(dtype)
    t = np.array([[1, 0], [1, 0]], np.float32)
    want = agree(engine, x, t, reduction="none")
    assert want.value.tolist() == [0, gap] or abs(float(want.value[1]) / gap - 1) < 0.01
    agree(engine, x, np.array([0, 0]), reduction="none")
    p = engine.softmax(x).astype(float)
    assert p.tolist() == [[1, 0], [0, 1]]
    agree(engine, np.log(np.array([[1.0, 1e-300], [0.5, 0.5]])).astype(dtype), t, reduction="none")


def test_subnormal_logits(engine: Engine, dtype: DType) -> None:
    """Subnormal logits are numbers like any other, and are not zeros."""
    tiny = {2: 6e-8 if dtype == np.float16 else 1e-40, 4: 1e-44, 8: 5e-324}[dtype.itemsize]
    x = np.array([[tiny, 0], [-tiny, tiny], [0, -tiny]]).astype(dtype)
    agree(engine, x, np.array([0, 1, 1]), reduction="none")


@pytest.mark.parametrize("n_rows", [0, 1, 63, 64, 65, 255, 257, BLOCK - 1, BLOCK, BLOCK + 1, 5000])
def test_numbers_of_rows(engine: Engine, n_rows: int, rng: np.random.Generator) -> None:
    """N in {0, 1, block ± 1} and several blocks, with few classes and with one."""
    for n_classes in (1, 2, 10):
        x, y = cases.normal(rng, (n_rows, n_classes), np.float32), cases.labels(rng, n_rows, n_classes)
        agree(engine, x, y, reduction="none", num_threads=3)
        agree(engine, x.T.copy(), y, axis=0, reduction="sum" if n_rows == 0 else "mean", num_threads=3)


def test_every_skipped_pattern(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Kernels that do several rows at once: every pattern of ignored, bad-valued and plain rows among eight."""
    x = cases.normal(rng, (8 * 256, 5), dtype)
    skip = (np.arange(256)[:, None] >> np.arange(8)) & 1
    y = np.where(skip.ravel() == 1, -100, cases.labels(rng, len(x), 5))
    x[skip.ravel() == 1] = np.nan
    agree(engine, x, y, reduction="none")
    agree(engine, x.T.copy(), y, axis=0, reduction="none")
