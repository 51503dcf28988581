"""The family's losses and gradients against the oracle: all values, all options and pairs of options, all shapes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import cases
import family
import oracle_family
import tolerances
from checks import same_bits
from family import ELEMENT_WISE, LOSSES, OF_ROWS, Loss, agree, diverge
from matrix import BLOCK, Engine

DType = np.dtype[Any]
VISIT = 128
"""Elements that the C core does at once."""

of_elements = pytest.mark.parametrize("loss", ELEMENT_WISE, ids=str)
of_rows = pytest.mark.parametrize("loss", OF_ROWS, ids=str)
of_both = pytest.mark.parametrize("loss", LOSSES, ids=str)
BINARY = [loss for loss in ELEMENT_WISE if "logits" in loss.name]


# --- elements ---------------------------------------------------------------------------------------------------------


@of_elements
def test_elements_of_every_count(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """Sizes at which vectors, groups of them and visits begin to have a tail."""
    lanes = engine.lanes(dtype)
    for n in sorted({1, 2, 3, lanes - 1, lanes, lanes + 1, 4 * lanes - 1, 4 * lanes + 1, VISIT - 1, VISIT, VISIT + 1}):
        agree(engine, loss.name, loss.values(rng, (n,), dtype), loss.targets(rng, (n,)), reduction="none")
    for n in (2944, 3073, 6001):
        agree(engine, loss.name, loss.values(rng, (n,), dtype), loss.targets(rng, (n,)), num_threads=2)


@pytest.mark.parametrize("loss", BINARY, ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 40.0])
def test_random_logits(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss, scale: float) -> None:
    """From undecided to nearly certain."""
    agree(engine, loss.name, cases.normal(rng, (700,), dtype, scale), loss.targets(rng, (700,)), reduction="none")


def extremes(dtype: DType, loss: Loss) -> cases.Array:
    """Numbers at which formulas break: zeros, the smallest and the largest, next to 1, infinities and NaN."""
    kind = tolerances.FORMATS[dtype]
    tiny, eps = float(kind.tiny), 2.0**-kind.bits
    most = float(kind.largest * (1 - kind.half_eps))
    x = [
        0.0,
        -0.0,
        tiny,
        -tiny,
        tiny * eps,
        -tiny * eps,
        tiny * 3 * eps,
        eps,
        -eps,
        0.5,
        1.0,
        -1.0,
        1 - eps / 2,
        1 - eps,
    ]
    x += [1 + eps, 2.0, math.log(2), 1e-3, 1 - 1e-3, 60.0, -60.0, most, -most, math.inf, -math.inf, math.nan]
    if "logits" in loss.name:
        high = 700.0 if dtype == np.float64 else 80.0
        x += [high, -high, 1.2 * high, -1.2 * high, 16.5, -16.5, 17.25, 37.5, 87.0, -87.0, 88.0, 88.7, 104.0, -104.0]
        x += [708.0, -708.0, 709.5, 745.0, 746.0, -746.0]
    if loss.name == "mse_loss":
        x = [v for v in x if abs(v) != most] + [most / 4, -most / 4]
    with np.errstate(over="ignore"):
        return np.unique(np.array(x).astype(dtype).astype(np.float64)).astype(dtype)


@of_elements
def test_extremes(engine: Engine, dtype: DType, loss: Loss) -> None:
    """Every special number against every kind of target, plain and with each option."""
    x = np.concatenate([extremes(dtype, loss), np.array([-0.0], dtype)])
    choices: list[Any] = [0.0, 1.0, 0.5, 2.0**-30, 1 - 2.0**-24]
    if loss.targets is family.decisions:
        choices = [0, 1]
    t = np.repeat(np.array(choices, None if choices[0] == 0 and len(choices) == 2 else np.float32), len(x))
    x = np.tile(x, len(choices))
    odd = np.arange(len(x)) % 2
    variety: list[dict[str, Any]] = [{}, {"weight": odd}, {"sample_weight": odd}, {"weight": 0.5, "sample_weight": 3.0}]
    variety += [{key: value} for key, values in loss.options.items() for value in values]
    for options in variety:
        want = agree(engine, loss.name, x, t, reduction="none", **options)
        ignored = np.zeros(len(x), bool) if "sample_weight" not in options else options["sample_weight"] == 0
        got = engine.call(f"{loss.name}_with_grad", x, t, reduction="sum", **options)
        assert not got.grad[ignored].tobytes().strip(b"\0"), "an ignored element's gradient is not exactly +0"
        assert np.isnan(want.value[np.isnan(x) & (want.parts[0].coefficient + want.parts[1].coefficient > 0)]).all()


@pytest.mark.parametrize("loss", BINARY, ids=str)
def test_small_losses_keep_their_digits(engine: Engine, dtype: DType, loss: Loss) -> None:
    """Losses of e^-80, of e^-700 in float64, and their gradients, keep their relative accuracy."""
    x = np.arange(0, 700 if dtype == np.float64 else 80, 0.5)
    x = x[x.astype(dtype) == x].astype(dtype)
    yes, no = np.ones(len(x), np.int8), np.zeros(len(x), np.int8)
    for logits, labels in ((x, yes), (-x, no), (-x, yes), (x, no)):
        want = agree(engine, loss.name, logits, labels, reduction="none")
        assert (want.value > 0).all()
        agree(engine, loss.name, logits, labels, reduction="none", weight=1e3, sample_weight=0.25)
    losses = engine.call(BINARY[0].name, x, yes, reduction="none")
    assert (losses > 0).all()


@pytest.mark.parametrize("gamma", [0, 0.1, 0.5, 1, 1.5, 2, 3.7, 10, 50])
def test_gamma(engine: Engine, dtype: DType, rng: np.random.Generator, gamma: float) -> None:
    """The exponent's rounding alone is added, for gamma of any size."""
    x = np.concatenate([cases.normal(rng, (300,), dtype), cases.normal(rng, (100,), dtype, 30)])
    agree(engine, BINARY[1].name, x, family.decisions(rng, (400,)), gamma=gamma, reduction="none")
    agree(engine, BINARY[1].name, x, family.decisions(rng, (400,)) > 0, gamma=gamma, alpha=0.75, base=2)


def test_probabilities_next_to_0_and_1(engine: Engine, dtype: DType) -> None:
    """Both logarithms keep the digits of what is near 0; -log of what is near 1 too."""
    kind = tolerances.FORMATS[dtype]
    near_one = 1 - 2.0 ** -np.arange(1, kind.bits + 2.0)
    near_zero = 2.0 ** -np.arange(1, -kind.lowest + kind.bits, max(1, -kind.lowest // 60) + 0.0)
    p = np.concatenate([near_one, near_zero, near_zero * 1.37]).astype(dtype)
    for t in (np.ones(len(p), bool), np.zeros(len(p), bool), np.full(len(p), 0.25, np.float32)):
        agree(engine, "binary_cross_entropy", p, t, reduction="none")
    two = np.stack([p, np.ones_like(p)], 1)
    for t in (np.zeros(len(p), int), np.full(two.shape, 0.5, np.float32)):
        agree(engine, "categorical_cross_entropy", two, t, reduction="none")


@pytest.mark.parametrize("eps", [1e-7, 1e-3, 0.25, 0.5])
def test_eps(engine: Engine, dtype: DType, rng: np.random.Generator, eps: float) -> None:
    """Probabilities are taken as at least eps and at most 1 - eps; the gradient is 0 where they were not that."""
    p = np.concatenate([family.probabilities(rng, (60,), dtype), np.array([0, 1, -1, 2, 0.5, np.nan], dtype)])
    agree(engine, "binary_cross_entropy", p, family.shares(rng, p.shape), eps=eps, reduction="none")
    rows, t = p.reshape(-1, 6), cases.dense(rng, (11, 6))
    agree(engine, "categorical_cross_entropy", rows, t, eps=eps, reduction="none")
    agree(engine, "categorical_cross_entropy", rows, np.arange(11) % 6, eps=eps, reduction="none")


def test_infinite_without_eps(engine: Engine, dtype: DType) -> None:
    """p = 0 where there is mass is +inf, 0 log 0 is 0, and what is no probability is NaN."""
    p, t = np.array([0, 0, 1, 1, -0.25, 1.5, np.nan]).astype(dtype), np.array([1, 0, 1, 0, 0, 1, 0])
    inf, nan = np.inf, np.nan
    loss, grad = engine.call("binary_cross_entropy_with_grad", p, t, reduction="none")
    assert np.array_equal(loss, [inf, 0, 0, inf, nan, nan, nan], equal_nan=True)
    assert np.array_equal(grad.astype(float), [-inf, 1, -1, inf, nan, nan, nan], equal_nan=True)
    rows = np.array([[0, 1], [0, 1], [-0.0, 1], [-0.5, 1], [np.nan, 1], [np.nan, 1]]).astype(dtype)
    loss, grad = engine.call("categorical_cross_entropy_with_grad", rows, [0, 1, 0, 0, 0, 1], reduction="none")
    assert np.array_equal(loss, [inf, 0, inf, nan, nan, 0], equal_nan=True)
    assert np.array_equal(grad.astype(float)[:, 0], [-inf, 0, -inf, nan, nan, 0], equal_nan=True)


@of_both
def test_no_dimensions_and_no_elements(engine: Engine, dtype: DType, loss: Loss) -> None:
    """A single element, or row; none at all: NaN for the mean, 0 for the sum and with a denominator."""
    one, none = [(), (1,), (1, 1, 1)], [(0,), (0, 3), (3, 0, 2)]
    if loss in OF_ROWS:
        one, none = [(3,), (1, 3), (1, 1)], [(0, 3), (2, 0, 3), (0, 0)]
    rng = np.random.default_rng(1)
    for shape in one:
        x, t = np.asarray(loss.values(rng, shape, dtype), dtype), np.asarray(loss.targets(rng, shape))
        for reduction in ("mean", "sum", "none"):
            agree(engine, loss.name, x, t, reduction=reduction)
    for shape in none:
        x, t = np.empty(shape, dtype), np.empty(shape, np.int8)
        both = engine.call(f"{loss.name}_with_grad", x, t)
        assert math.isnan(both.loss)
        assert (both.grad.shape, both.grad.dtype) == (shape, dtype)
        assert math.isnan(engine.call(loss.name, x, t))
        assert engine.call(loss.name, x, t, reduction="sum") == 0
        assert engine.call(loss.name, x, t, denominator=2) == 0
        assert engine.call(loss.name, x, t, reduction="none").shape == shape[: None if loss in ELEMENT_WISE else -1]


# --- options ----------------------------------------------------------------------------------------------------------


def common_options(loss: Loss, rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, list[Any]]:
    """Each option with values worth a test; the shape is that of the first argument."""
    positions = shape if loss in ELEMENT_WISE else shape[:-1]
    options: dict[str, list[Any]] = {
        "weight": [rng.random(shape[-1])],
        "sample_weight": [(rng.random(positions) * 4).round() / 4],
        "reduction": ["sum", "none"],
        "denominator": [3.5],
        "base": [2],
        "grad_output": [-2.5],
        **loss.options,
    }
    if loss.name == "mse_loss":
        del options["base"]
    return options


@of_both
def test_pairs_of_options(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """Each option alone, and with each other."""
    shape = (9, 7)
    x, t = loss.values(rng, shape, dtype), loss.targets(rng, shape)
    y = cases.labels(rng, 9, 7)
    y[2] = -100
    options = common_options(loss, rng, shape)
    single = [{key: value} for key, values in options.items() for value in values]
    pairs = [a | b for a, b in itertools.combinations(single, 2) if set(a) != set(b)]
    for i, chosen in enumerate([*single, *pairs]):
        reduction = chosen.get("reduction", "mean")
        if "denominator" in chosen and reduction != "mean":
            continue
        if reduction == "none" and "grad_output" in chosen:
            chosen = chosen | {"grad_output": rng.standard_normal(shape if loss in ELEMENT_WISE else shape[:-1])}
        agree(engine, loss.name, x, y if loss in OF_ROWS and i % 2 else t, **chosen)


@of_both
def test_all_options_at_once(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """For every reduction."""
    shape = (130, 5)
    x, t, y = loss.values(rng, shape, dtype), loss.targets(rng, shape), cases.labels(rng, 130, 5)
    every = {key: values[0] for key, values in common_options(loss, rng, shape).items()}
    for target in (t, y) if loss in OF_ROWS else (t,):
        for reduction in ("mean", "sum", "none"):
            options = every | {"reduction": reduction}
            if reduction != "mean":
                del options["denominator"]
            if reduction == "none":
                options["grad_output"] = rng.standard_normal(shape if loss in ELEMENT_WISE else shape[:-1])
            agree(engine, loss.name, x, target, **options)


@of_elements
def test_weights_broadcast(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """weight, pos_weight, sample_weight and grad_output broadcast to the first argument's shape."""
    shape = (4, 3, 5)
    x, t = loss.values(rng, shape, dtype), loss.targets(rng, shape)
    names = ["weight", "sample_weight"] + ["pos_weight"] * ("pos_weight" in loss.options)
    for part in ((), (1,), (5,), (3, 1), (4, 1, 1), (1, 3, 5), shape):
        for name in names:
            agree(engine, loss.name, x, t, **{name: rng.random(part) + 0.5})
        agree(engine, loss.name, x, t, reduction="none", grad_output=rng.standard_normal(part))
    agree(engine, loss.name, x, t, weight=2, sample_weight=[1, 0, 3, 0, 0.5])


@of_elements
def test_a_mean_divides_by_sample_weights_alone(engine: Engine, loss: Loss) -> None:
    """Their sum over all elements, broadcast; the number of elements without them; whatever weight and alpha are."""
    x, t = np.full((4, 5), 0.25), np.ones((4, 5), int)
    one = engine.call(loss.name, x[:1, 0], t[:1, 0], reduction="sum")
    assert engine.call(loss.name, x, t) == pytest.approx(one, rel=1e-15)
    assert engine.call(loss.name, x, t, weight=3) == pytest.approx(3 * one, rel=1e-15)
    assert engine.call(loss.name, x, t, sample_weight=3) == pytest.approx(one, rel=1e-15)
    w, s = [1.0, 2, 3, 4, 5], [[1.0], [0], [0], [3]]
    assert engine.call(loss.name, x, t, weight=w, sample_weight=s) == pytest.approx(3 * one, rel=1e-15)
    grad = engine.call(f"{loss.name}_with_grad", x, t, sample_weight=s).grad
    alone = engine.call(f"{loss.name}_with_grad", x[:1, 0], t[:1, 0], reduction="sum").grad[0]
    np.testing.assert_allclose(grad, alone * np.broadcast_to(s, x.shape) / 20, rtol=1e-15)
    if "alpha" in loss.options:
        assert engine.call(loss.name, x, t, alpha=0.25) == pytest.approx(one / 4, rel=1e-15)


@of_both
def test_nothing_to_average(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """All ignored: the mean is NaN, 0 with a denominator; the sum is 0; gradients are exactly 0, of NaN too."""
    x, t = loss.values(rng, (6, 4), dtype), loss.targets(rng, (6, 4))
    x[2] = np.nan
    calls: list[tuple[Any, dict[str, Any]]] = [(t, {"sample_weight": np.zeros((6, 4) if loss in ELEMENT_WISE else 6)})]
    calls += [(np.full(6, -100), {})] if loss in OF_ROWS else []
    for target, options in calls:
        loss_value, grad = engine.call(f"{loss.name}_with_grad", x, target, **options)
        assert math.isnan(loss_value)
        assert not grad.astype(np.float64).any()
        assert engine.call(loss.name, x, target, reduction="sum", **options) == 0
        assert not engine.call(loss.name, x, target, reduction="none", **options).any()
        loss_value, grad = engine.call(f"{loss.name}_with_grad", x, target, denominator=2, **options)
        assert loss_value == 0
        assert not grad.astype(np.float64).any()


@of_both
def test_small_and_large_scales(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """A gradient that is a normal number keeps its digits, however small or large the factors it is made of."""
    shape = (20, 3)
    x, t = loss.values(rng, shape, dtype), loss.targets(rng, shape)
    s = np.ones(shape if loss in ELEMENT_WISE else shape[:1])
    for upstream in (1e-10, -1e-30, 1e20):
        agree(engine, loss.name, x, t, reduction="sum", grad_output=upstream)
        agree(engine, loss.name, x, t, reduction="none", grad_output=upstream * s, sample_weight=s / 3)
    agree(engine, loss.name, x, t, reduction="sum", grad_output=1e-30, sample_weight=1e15 * s)
    agree(engine, loss.name, x, t, reduction="sum", grad_output=1e30, sample_weight=1e-15 * s)
    agree(engine, loss.name, x, t, denominator=1e30, sample_weight=1e25 * s)


# --- rows -------------------------------------------------------------------------------------------------------------


@of_rows
def test_rows_of_every_width(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """Labels, dense targets and smoothing, at the edges of vectors, groups and blocks."""
    lanes = engine.lanes(dtype)
    widths = {1, 2, 3, 5, lanes - 1, lanes, lanes + 1, 4 * lanes - 1, 4 * lanes + 1, BLOCK - 1, BLOCK, BLOCK + 1}
    for n_classes in sorted(widths):
        n = 5 if n_classes < 100 else 2
        x, y = loss.values(rng, (n, n_classes), dtype), cases.labels(rng, n, n_classes)
        agree(engine, loss.name, x, y, reduction="none")
        agree(engine, loss.name, x, cases.dense(rng, x.shape), reduction="none")
        agree(engine, loss.name, x, y, label_smoothing=0.1, weight=rng.random(n_classes))


@of_rows
def test_many_rows_of_few_classes(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    for n in (VISIT - 1, VISIT + 1, 2600):
        x, y = loss.values(rng, (n, 3), dtype), cases.labels(rng, n, 3)
        y[::7] = -100
        agree(engine, loss.name, x, y, reduction="none", num_threads=2)
        agree(engine, loss.name, x, cases.dense(rng, x.shape))


@of_rows
@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_class_axis(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss, axis: int) -> None:
    """Anywhere, with labels, dense targets and weights shaped as what is left."""
    shape = (3, 5, 37)
    left = tuple(n for i, n in enumerate(shape) if i != axis % 3)
    x, y = loss.values(rng, shape, dtype, axis), cases.labels(rng, left, shape[axis])
    agree(engine, loss.name, x, y, axis=axis, reduction="none")
    agree(engine, loss.name, x, cases.dense(rng, shape), axis=axis, sample_weight=rng.random(left))
    agree(engine, loss.name, x, y, axis=axis, weight=rng.random(shape[axis]), label_smoothing=0.2, reduction="none")


@of_rows
def test_ignored_rows(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """Loss 0 and gradient exactly +0 even where they are NaN; no other row notices."""
    x = loss.values(rng, (6, 5), dtype)
    x[1], x[3, 2], x[4] = np.nan, np.inf, -np.inf
    y = np.array([4, -100, 1, -100, -100, 0])
    s = np.array([1, 0, 0.5, 0, 0, 2])
    for options in ({}, {"label_smoothing": 0.1}):
        for reduction in ("mean", "sum", "none"):
            agree(engine, loss.name, x, y, reduction=reduction, **options)
            agree(engine, loss.name, x, cases.dense(rng, x.shape), reduction=reduction, sample_weight=s, **options)
        grad = engine.call(f"{loss.name}_with_grad", x, y, **options).grad
        assert not grad[[1, 3, 4]].tobytes().strip(b"\0"), "an ignored row's gradient is not exactly +0"
    agree(engine, loss.name, x, np.where(y == -100, 3, y), ignore_index=3, reduction="none")


@of_rows
def test_special_numbers_in_rows(engine: Engine, dtype: DType, loss: Loss) -> None:
    """A class without mass costs nothing, whatever it holds; with mass, zeros, infinities, NaN say what they cost."""
    special = [0.0, -0.0, 1.0, -1.0, 0.25, 1e-5, math.inf, -math.inf, math.nan]
    special += [float(tolerances.FORMATS[dtype].tiny), float(tolerances.FORMATS[dtype].ulp(0.0)) * 3]
    x = np.array([[v, 0.5, w] for v in special for w in special]).astype(dtype)
    n = len(x)
    for y in (np.zeros(n, int), np.ones(n, int), np.arange(n) % 3):
        for options in ({}, {"weight": [1.0, 2.0, 0.0]}, {"label_smoothing": 0.5}):
            agree(engine, loss.name, x, y, reduction="none", **options)
    dense = np.array([[0.0, 1, 0], [0.5, 0.5, 0], [0, 0, 0], [1, 2, 3]], np.float32)[np.arange(n) % 4]
    agree(engine, loss.name, x, dense, reduction="none")
    one = np.array(special).astype(dtype)[:, None]
    agree(engine, loss.name, one, np.zeros(len(one), int), reduction="none")
    if "eps" in loss.options:
        agree(engine, loss.name, x, dense, reduction="none", eps=1e-3)


@of_rows
def test_class_weights_that_sum_to_nothing(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """The mean is NaN, and its gradient exactly 0."""
    x, y = loss.values(rng, (4, 3), dtype), np.array([0, 1, 0, 1])
    for options in ({}, {"label_smoothing": 0.2}):
        value, grad = engine.call(f"{loss.name}_with_grad", x, y, weight=[0, 0, 1.0], **options)
        assert math.isnan(value)
        assert not grad.astype(np.float64).any()
        agree(engine, loss.name, x, y, weight=[0, 0, 1.0], denominator=4, **options)


# --- divergences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", family.DIVERGENCES)
def test_divergences(engine: Engine, dtype: DType, rng: np.random.Generator, name: str) -> None:
    """At the edges of vectors, groups and blocks; rows that add up to 1 and rows that do not."""
    lanes = engine.lanes(dtype)
    count = 1 if name == "entropy" else 2
    for n_classes in (1, 2, 3, lanes - 1, lanes + 1, 4 * lanes - 1, 4 * lanes + 1, 100, BLOCK - 1, BLOCK + 1):
        n = 7 if n_classes < 200 else 2
        rows = [family.distributions(rng, (n, n_classes), dtype) for _ in range(count)]
        diverge(engine, name, *rows)
        diverge(engine, name, *(cases.dense(rng, (n, n_classes), dtype) for _ in range(count)), base=2)


@pytest.mark.parametrize("name", ["kl_divergence", "js_divergence"])
def test_reductions_of_divergences(engine: Engine, dtype: DType, rng: np.random.Generator, name: str) -> None:
    """One value a row, their sum, their mean, or their sum over the length of the first axis that is not the class'."""
    for shape, axis in (((6, 5), -1), ((6, 5), 0), ((4, 3, 5), 1), ((5,), 0), ((2, 3, 4), 0)):
        p, q = (family.distributions(rng, shape, dtype, axis) for _ in range(2))
        for reduction in ("none", "sum", "mean", "batchmean"):
            diverge(engine, name, p, q, axis=axis, reduction=reduction, base=2 if axis == 1 else None)
    diverge(engine, "entropy", family.distributions(rng, (4, 3, 5), dtype, 1), axis=1)
    for reduction, nothing in (("sum", 0.0), ("mean", math.nan), ("batchmean", math.nan)):
        got = engine.call(name, np.empty((0, 3), dtype), np.empty((0, 3), dtype), reduction=reduction)
        assert np.array_equal(got, nothing, equal_nan=True)
    assert engine.call(name, np.empty((0, 3), dtype), np.empty((0, 3), dtype)).shape == (0,)


@pytest.mark.parametrize("name", ["kl_divergence", "js_divergence"])
def test_nearly_equal_distributions(engine: Engine, dtype: DType, rng: np.random.Generator, name: str) -> None:
    """Neighbouring numbers, and all distances to twice and half as much, each alone in its row."""
    kind = tolerances.FORMATS[dtype]
    apart = np.concatenate([2.0 ** -np.arange(0, kind.bits + 1), [0.0, 0.3, 0.6, 0.9, 3.0, 1e3]])
    for q in (0.3, 1.0, 0.7, 2.0**-9):
        q = np.full(2 * len(apart), q, dtype)
        p = np.abs(q.astype(float) * (1 + np.concatenate([apart, -apart]))).astype(dtype)
        for a, b in ((p, q), (q, p)):
            diverge(engine, name, a[:, None].copy(), b[:, None].copy())
    p = family.distributions(rng, (20, 50), dtype)
    q = (p.astype(float) * (1 + rng.standard_normal(p.shape) * 2.0 ** -(kind.bits - 3))).astype(dtype)
    diverge(engine, name, p, q)
    assert not engine.call(name, p, p).any()


@pytest.mark.parametrize("name", family.DIVERGENCES)
def test_special_numbers_in_divergences(engine: Engine, dtype: DType, name: str) -> None:
    """0 log 0 is 0; p > 0 where q = 0 is +inf, at most log 2 for JS; negative q and NaN make NaN where p > 0."""
    kind = tolerances.FORMATS[dtype]
    p = [0.0, -0.0, 1.0, 0.25, float(kind.tiny), float(kind.ulp(0.0)) * 3, 1000.0]
    q = [*p, -0.5, math.inf, -math.inf, math.nan]
    if name == "entropy":
        diverge(engine, name, np.array([[v, 0.5] for v in p]).astype(dtype))
        return
    pairs = np.array([(v, w) for v in p for w in q])
    a, b = (np.stack([pairs[:, i], np.full(len(pairs), 0.5)], 1).astype(dtype) for i in (0, 1))
    diverge(engine, name, a, b)
    with np.errstate(all="ignore"):
        zero = np.zeros((1, 1), dtype)
    got = engine.call(name, zero + dtype.type(1), zero, base=2)
    assert got.tolist() == [math.inf if name == "kl_divergence" else 0.5]


@pytest.mark.parametrize("name", ["kl_divergence", "js_divergence"])
@pytest.mark.parametrize("kind", ["?", "i4", "f2", "f4", "f8", ">f4"])
def test_dtypes_of_p(engine: Engine, rng: np.random.Generator, name: str, kind: str) -> None:
    """p of another floating dtype than q; the arithmetic is q's. Integers and booleans are no probabilities."""
    p, q = rng.random((5, 9)), rng.random((5, 9))
    if np.dtype(kind).kind in "bi":
        with pytest.raises(TypeError, match="p: expected float16, bfloat16, float32 or float64, got dtype"):
            engine.call(name, p.astype(kind), q)
        return
    for real in (np.float16, np.float32, np.float64):
        diverge(engine, name, p.astype(kind), q.astype(real))


# --- identities -------------------------------------------------------------------------------------------------------


def near(got: Any, want: Any, dtype: DType, ulps: float, size: Any = None) -> None:
    """Two calls of fastce, each within its own tolerance."""
    real = tolerances.arithmetic(dtype)
    got, want = np.asarray(got, np.longdouble), np.asarray(want, np.longdouble)
    assert (np.abs(got - want) <= ulps * real.ulp(np.abs(want if size is None else size))).all()


def test_cross_entropy_is_entropy_and_divergence(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """CE(p, q) = H(p) + KL(p || q); JS is symmetric, and the mean of two KL."""
    p, q = (family.distributions(rng, (30, 17), dtype) for _ in range(2))
    parts = engine.call("entropy", p), engine.call("kl_divergence", p, q)
    whole = engine.call("categorical_cross_entropy", q, p, reduction="none")
    size = oracle_family.kl_divergence(p, q).sizes + np.abs(whole)
    near(parts[0] + parts[1], whole, dtype, 14, size)
    js = engine.call("js_divergence", p, q)
    assert same_bits(js, engine.call("js_divergence", q, p))
    if dtype in (np.float32, np.float64):
        m = (p + q) / 2
        halves = engine.call("kl_divergence", p, m) / 2 + engine.call("kl_divergence", q, m) / 2
        near(halves, js, dtype, 40, 1.0)


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_an_element_does_not_depend_on_others(engine: Engine, rng: np.random.Generator, odd: float) -> None:
    """Beside an infinity, or NaN, losses and gradients have the same bits."""
    x, t = rng.standard_normal(300).astype(np.float32), rng.random(300).astype(np.float32)
    alone = engine.call("binary_cross_entropy_with_logits_with_grad", x, t, reduction="none")
    beside, others = x.copy(), np.arange(300) % 50 != 7
    beside[~others] = odd
    got = engine.call("binary_cross_entropy_with_logits_with_grad", beside, t, reduction="none")
    assert same_bits(got.loss[others], alone.loss[others])
    assert same_bits(got.grad[others], alone.grad[others])


def test_binary_is_two_classes(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """BCE equals two-class CE on (x, 0), gradients too; focal with gamma = 0 is it, bit for bit."""
    x, t = family.logits(rng, (200,), dtype), family.shares(rng, (200,))
    loss, grad = engine.call("binary_cross_entropy_with_logits_with_grad", x, t, reduction="none")
    two, dense = np.stack([x, np.zeros_like(x)], 1), np.stack([t, 1 - t.astype(np.float64)], 1)
    want = engine.cross_entropy_with_grad(two, dense, reduction="none")
    near(loss, want.loss, dtype, 8)
    if dtype not in family.HALVES:
        near(grad, want.grad[:, 0], dtype, 16, 1.0)
    y = family.decisions(rng, (200,))
    for options in ({}, {"reduction": "none", "sample_weight": rng.random(200), "base": 2}):
        a = engine.call("binary_focal_loss_with_logits_with_grad", x, y, gamma=0, **options)
        b = engine.call("binary_cross_entropy_with_logits_with_grad", x, y, **options)
        assert same_bits(a.loss, b.loss)
        assert same_bits(a.grad, b.grad)


def test_probabilities_are_those_of_softmax(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """NLL of log_softmax, and categorical CE of softmax, equal CE; those of the logistic function BCE."""
    x, y = cases.normal(rng, (50, 9), np.float64 if dtype == np.float64 else np.float32, 2), cases.labels(rng, 50, 9)
    want = engine.cross_entropy(x, y, reduction="none")
    size = np.abs(x).max() * 2
    near(engine.call("nll_loss", engine.log_softmax(x), y, reduction="none"), want, x.dtype, 12, size)
    near(engine.call("categorical_cross_entropy", engine.softmax(x), y, reduction="none"), want, x.dtype, 24, size)
    sigmoid = (1 / (1 + np.exp(-x.astype(np.longdouble)))).astype(x.dtype)
    want = engine.call("binary_cross_entropy_with_logits", x, sigmoid > 0.4, reduction="none")
    got = engine.call("binary_cross_entropy", sigmoid, sigmoid > 0.4, reduction="none")
    near(got, want, x.dtype, 8, np.exp(size))


@of_rows
def test_one_hot_is_labels(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    x, y = loss.values(rng, (20, 6), dtype), cases.labels(rng, 20, 6)
    for options in ({}, {"label_smoothing": 0.1}):
        a = engine.call(f"{loss.name}_with_grad", x, y, reduction="sum", **options)
        b = engine.call(f"{loss.name}_with_grad", x, np.eye(6)[y], reduction="sum", **options)
        near(a.loss, b.loss, dtype, 8 * 20)
        left, right = (np.asarray(both.grad, np.longdouble) for both in (a, b))
        grain = tolerances.FORMATS[dtype].ulp(np.abs(right))
        same = left == right
        assert (np.abs(np.where(same, 0, left - np.where(same, 0, right))) <= 16 * grain).all()


@pytest.mark.parametrize("name", [loss.name for loss in LOSSES if loss.name != "mse_loss"] + family.DIVERGENCES)
def test_base_2_is_nats_over_log_2(engine: Engine, dtype: DType, rng: np.random.Generator, name: str) -> None:
    loss = next((loss for loss in LOSSES if loss.name == name), None)
    if loss is not None:
        arrays = [loss.values(rng, (30, 5), dtype), loss.targets(rng, (30, 5))]
        bits, nats = (engine.call(name, *arrays, base=base) for base in (2, None))
        assert bits == pytest.approx(nats / math.log(2), rel=1e-15)
    else:
        arrays = [family.distributions(rng, (30, 5), dtype) for _ in range(1 if name == "entropy" else 2)]
        bits, nats = (engine.call(name, *arrays, base=base) for base in (2, None))
        near(bits, nats / np.longdouble(math.log(2)), dtype, 1)
