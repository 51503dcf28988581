"""Clauses 2, 10 and 11 of the contract: reductions, denominators, scales, and the dtypes of what comes back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cases
import oracle
import tolerances
from checks import agree, answer, check_grad, loss_dtype, same_bits, total
from matrix import Engine

DType = np.dtype[Any]
REDUCTIONS = ["mean", "sum", "none"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions(engine: Engine, dtype: DType, rng: np.random.Generator, reduction: str) -> None:
    """Clauses 2 and 10: with every kind of weight, the mean divides by what it should and the gradient with it."""
    x, y = cases.normal(rng, (30, 7), dtype), cases.labels(rng, 30, 7)
    y[::5] = -100
    weight, s = rng.random(7), rng.random(30) * (rng.random(30) < 0.8)
    dense = cases.dense(rng, x.shape)
    for options in ({}, {"weight": weight}, {"sample_weight": s}, {"weight": weight, "sample_weight": s}):
        for extra in ({}, {"label_smoothing": 0.1, "z_loss": 0.01, "base": 2}):
            agree(engine, x, y, reduction=reduction, **options, **extra)
            agree(engine, x, dense, reduction=reduction, **options, **extra)


def test_mean_by_hand(engine: Engine) -> None:
    """Clause 2: labels divide by the sum of s * w_y, dense targets by the sum of s whatever the class weights."""
    x = np.zeros((3, 2))
    unit = math.log(2)
    w, s = [1.0, 3.0], [1.0, 2.0, 4.0]
    y = [0, 1, -100]
    mean = engine.cross_entropy(x, y, weight=w, sample_weight=s)
    assert mean == pytest.approx(unit)
    assert engine.cross_entropy(x, y, weight=w, sample_weight=s, reduction="sum") == pytest.approx(7 * unit)
    grad = engine.cross_entropy_with_grad(x, y, weight=w, sample_weight=s).grad
    np.testing.assert_allclose(grad, np.array([[-0.5, 0.5], [3, -3], [0, 0]]) / 7, rtol=1e-15)
    one_hot = [[1, 0], [0, 1], [0, 0]]
    assert engine.cross_entropy(x, one_hot, weight=w, sample_weight=s) == pytest.approx(7 * unit / 7)
    assert engine.cross_entropy(x, one_hot, weight=w) == pytest.approx(4 * unit / 3)
    assert engine.cross_entropy(x, y, weight=w, label_smoothing=0.5) == pytest.approx(4 * unit / 4)


@pytest.mark.parametrize("target", ["labels", "dense"])
def test_nothing_to_average(engine: Engine, dtype: DType, rng: np.random.Generator, target: str) -> None:
    """Clause 2: NaN without a warning, the sum 0, "none" what it is, the gradient exactly 0; 0 with a denominator."""
    x = cases.normal(rng, (4, 3), dtype)
    x[1] = np.nan
    if target == "labels":
        y: Any = np.full(4, -100)
        nothing: list[dict[str, Any]] = [{}]
    else:
        y = cases.dense(rng, x.shape)
        nothing = [{"sample_weight": np.zeros(4)}]
    for options in nothing:
        for extra in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
            both = engine.cross_entropy_with_grad(x, y, **options, **extra)
            assert math.isnan(both.loss)
            assert math.isnan(engine.cross_entropy(x, y, **options, **extra))
            assert not both.grad.astype(np.float64).any()
            assert engine.cross_entropy(x, y, reduction="sum", **options, **extra) == 0
            assert engine.cross_entropy(x, y, reduction="none", **options, **extra).tolist() == [0] * 4
            loss, grad = engine.cross_entropy_with_grad(x, y, denominator=5, **options, **extra)
            assert loss == 0
            assert not grad.astype(np.float64).any()


def test_class_weights_that_sum_to_nothing(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 2: rows that are there but whose class weights are all 0: the mean is NaN, its gradient exactly 0."""
    x, y = cases.normal(rng, (4, 3), dtype), np.array([0, 1, 0, 1])
    w = np.array([0.0, 0.0, 1.0])
    for options in ({}, {"label_smoothing": 0.2}, {"z_loss": 0.1}):
        loss, grad = engine.cross_entropy_with_grad(x, y, weight=w, **options)
        assert math.isnan(loss)
        assert not grad.astype(np.float64).any()
        agree(engine, x, y, weight=w, reduction="sum", **options)
        agree(engine, x, y, weight=w, denominator=4, **options)


@pytest.mark.parametrize("denominator", [1, 3.5, 1e6, 1e-3, np.float32(2)])
def test_denominator(engine: Engine, dtype: DType, rng: np.random.Generator, denominator: Any) -> None:
    """Clauses 2 and 10: it replaces the mean's own, for the value and the gradient."""
    x, y = cases.normal(rng, (8, 5), dtype), cases.labels(rng, 8, 5)
    agree(engine, x, y, denominator=denominator, weight=rng.random(5))
    got = engine.cross_entropy(x, y, denominator=denominator)
    assert got == pytest.approx(engine.cross_entropy(x, y, reduction="sum") / float(denominator), rel=1e-15)


@pytest.mark.parametrize("base", [2, 10, 1.5, np.float64(2.0), 1e6])
def test_base(engine: Engine, dtype: DType, rng: np.random.Generator, base: Any) -> None:
    """Clauses 10 and 11: it divides the whole value, the z term included, and the gradient."""
    x, y = cases.normal(rng, (8, 5), dtype), cases.labels(rng, 8, 5)
    for reduction in REDUCTIONS:
        agree(engine, x, y, base=base, reduction=reduction, z_loss=0.3)
    nats = engine.cross_entropy(x, y, z_loss=0.3)
    assert engine.cross_entropy(x, y, z_loss=0.3, base=base) == pytest.approx(nats / math.log(base), rel=1e-15)


def test_e_is_a_base(engine: Engine, rng: np.random.Generator) -> None:
    """Clause 11: base e is nats."""
    x, y = cases.normal(rng, (8, 5), np.float32), cases.labels(rng, 8, 5)
    assert engine.cross_entropy(x, y, base=math.e) == engine.cross_entropy(x, y)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_grad_output(engine: Engine, dtype: DType, rng: np.random.Generator, reduction: str) -> None:
    """Clause 10: a scalar for mean and sum, one per loss for none, of any sign and dtype, 0 included."""
    x, y = cases.normal(rng, (6, 4, 5), dtype), cases.labels(rng, (6, 4), 5)
    y[0] = -100
    dense = cases.dense(rng, x.shape)
    each = rng.standard_normal((6, 4))
    each[1, 2] = 0
    for upstream in (
        [each, each.astype(np.float32).T.copy().T] if reduction == "none" else [2, -3.5, 0, np.float32(0.1)]
    ):
        agree(engine, x, y, reduction=reduction, grad_output=upstream)
        agree(engine, x, dense, reduction=reduction, grad_output=upstream, label_smoothing=0.1, z_loss=0.01, base=2)


def test_grad_output_as_loss_scaling(engine: Engine, rng: np.random.Generator) -> None:
    """Clause 10: a float16 gradient of a mean over many rows underflows, and grad_output brings it back."""
    x, y = cases.normal(rng, (2**15, 4), np.float16), cases.labels(rng, 2**15, 4)
    plain = engine.cross_entropy_with_grad(x, y).grad
    scaled = engine.cross_entropy_with_grad(x, y, grad_output=2.0**14).grad
    exact = oracle.cross_entropy(x, y)
    assert np.abs(plain.astype(np.float64)).max() < 2**-14
    check_grad(scaled, oracle.cross_entropy(x, y, grad_output=2.0**14), x.dtype)
    lost = np.abs(plain - exact.grad).sum()
    assert np.abs(scaled.astype(np.float64) / 2**14 - exact.grad).sum() < lost / 5


def test_small_grad_output_of_unlikely_labels(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 10: a gradient that is a normal number keeps its digits, however small the factors it is made of."""
    for n_classes in (2, 10, 40):
        x, y = cases.normal(rng, (9, n_classes), dtype), np.zeros(9, int)
        x[:, 1] = np.array([0, 20, 40, 50, 60, 65, 68, 70, 75]).astype(dtype)
        for upstream in (1e-3, -1e-10, 1e-20, 1e-30):
            agree(engine, x, y, reduction="sum", grad_output=upstream)
            agree(engine, x, y, reduction="none", grad_output=upstream * np.geomspace(1, 1e-6, 9))


def test_rows_of_the_gradient_sum_to_zero(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 10: within rounding, without z-loss, whatever the target."""
    stored, real = tolerances.FORMATS[dtype], tolerances.arithmetic(dtype)
    for n_classes in (2, 10, 131):
        x, y = cases.normal(rng, (20, n_classes), dtype), cases.labels(rng, 20, n_classes)
        for target in (y, cases.dense(rng, x.shape)):
            for options in ({}, {"weight": rng.random(n_classes)}, {"label_smoothing": 0.1}):
                want = answer(x, target, options | {"reduction": "sum"})
                grad = engine.cross_entropy_with_grad(x, target, reduction="sum", **options).grad.astype(np.longdouble)
                slack = stored.half_eps * np.abs(grad).sum(1) + 16 * real.half_eps * want.rows.mass
                assert (np.abs(grad.sum(1)) <= slack + stored.ulp(0.0) * n_classes).all()


def test_gradient_is_the_derivative_of_the_returned_value(engine: Engine, rng: np.random.Generator) -> None:
    """Clause 10, without the oracle: central differences of fastce's own value."""
    x, y = cases.normal(rng, (4, 5), np.float64, 1), cases.labels(rng, 4, 5)
    dense = cases.dense(rng, x.shape)
    common: dict[str, Any] = {"weight": rng.random(5), "sample_weight": rng.random(4)}
    common |= {"label_smoothing": 0.1, "z_loss": 0.1}
    step = 1e-5
    for target in (y, dense):
        for options in ({}, {"reduction": "sum", "base": 2}, {"denominator": 3.0, "base": 10}):
            grad = engine.cross_entropy_with_grad(x, target, **common, **options).grad
            for at in ((0, 0), (1, 3), (3, 4), (2, int(y[2]))):
                up, down = x.copy(), x.copy()
                up[at] += step
                down[at] -= step
                high, low = (engine.cross_entropy(v, target, **common, **options) for v in (up, down))
                assert grad[at] == pytest.approx((high - low) / (2 * step), rel=1e-6, abs=1e-9)


def test_dtypes_of_results(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 11: none in float64 for float64 logits, else float32; mean and sum Python floats; gradients as logits."""
    x, y = cases.normal(rng, (6, 5), dtype), cases.labels(rng, 6, 5)
    for layout in ("contiguous", "byte-swapped"):
        given = cases.LAYOUTS[layout](x)
        for reduction in REDUCTIONS:
            loss = engine.cross_entropy(given, y, reduction=reduction)
            both = engine.cross_entropy_with_grad(given, y, reduction=reduction)
            for value in (loss, both.loss, both[0]):
                assert value.dtype == loss_dtype(dtype) if reduction == "none" else type(value) is float
            assert both.grad is both[1]
            assert both.grad.dtype == dtype
            assert both.grad.flags.writeable


def test_sums_are_accumulated_in_float64(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 11: sum and mean are those of the losses of "none" to float64's rounding, not float32's."""
    x, y = cases.normal(rng, (5000, 4), dtype), cases.labels(rng, 5000, 4)
    losses = engine.cross_entropy(x, y, reduction="none")
    # A kernel may add a loss before it is rounded to float32: half a ULP a row, of either sign.
    slack = 0 if dtype == np.float64 else 2.0**-24 * float(np.abs(losses).max()) * math.sqrt(len(x)) * 5
    assert engine.cross_entropy(x, y, reduction="sum") == pytest.approx(total(losses), rel=1e-15, abs=slack)
    assert engine.cross_entropy(x, y) == pytest.approx(total(losses) / 5000, rel=1e-15, abs=slack / 5000)


def test_many_equal_losses(engine: Engine) -> None:
    """Torture: the mean of equal losses is that loss to float64's rounding; a plain running sum is off by 1e-10."""
    n_rows = 10**6 if engine.backend == "numpy" else 4 * 10**6
    for x in (np.array([[0.3, 0.0]], np.float32), np.array([[0.3, 0.0]])):
        one = engine.cross_entropy(x, [1])
        many = engine.cross_entropy(np.broadcast_to(x, (n_rows, 2)), np.broadcast_to(np.int8(1), n_rows))
        assert abs(many - one) <= 2 * np.spacing(one)


@pytest.mark.slow
def test_1e8_equal_losses(compiled: Engine) -> None:
    """Torture: 1e8 equal losses: the mean is exact to float64's rounding."""
    x = np.array([[0.3, 0.0]], np.float32)
    one = compiled.cross_entropy(x, [1])
    many = compiled.cross_entropy(np.broadcast_to(x, (10**8, 2)), np.broadcast_to(np.int8(1), 10**8))
    assert abs(many - one) <= 2 * np.spacing(one)


def test_large_and_small_losses_together(engine: Engine, rng: np.random.Generator) -> None:
    """Torture: the sum of losses of very different sizes is that of exact addition."""
    gaps = np.where(np.arange(20000) % 2 == 0, 1e13, 1e-3) * (1 + np.arange(20000) % 7)
    x = np.stack([gaps, np.zeros_like(gaps)], 1)
    y = np.ones(len(x), int)
    losses = engine.cross_entropy(x, y, reduction="none")
    assert engine.cross_entropy(x, y, reduction="sum") == pytest.approx(total(losses), rel=2.0**-52, abs=0)


def test_infinite_and_nan_losses_in_a_reduction(engine: Engine, dtype: DType) -> None:
    """Clause 6 through a reduction: one infinite loss makes the mean infinite, one NaN makes it NaN; in any order."""
    x = np.zeros((5000, 3), dtype)
    y = np.zeros(5000, int)
    x[17, 0] = -np.inf
    for reduction in ("mean", "sum"):
        assert engine.cross_entropy(x, y, reduction=reduction) == math.inf
    for row in (0, 4999):
        again = x.copy()
        again[row] = np.nan
        for reduction in ("mean", "sum"):
            assert math.isnan(engine.cross_entropy(again, y, reduction=reduction))


def test_same_bits_of_none_and_one_row_means(engine: Engine, rng: np.random.Generator) -> None:
    """Clause 11: the mean of one float64 row is its loss."""
    x = cases.normal(rng, (1, 9), np.float64)
    assert same_bits(engine.cross_entropy(x, [3]), float(engine.cross_entropy(x, [3], reduction="none")[0]))
