"""temperature and softcap of cross_entropy and its twin, on every engine: x stands for c tanh(x/(Tc))."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cases
from checks import agree, check_grad, same_bits
from matrix import BLOCK, Engine

DType = np.dtype[Any]

OPTIONS: list[dict[str, Any]] = [
    {"temperature": 3.0},
    {"temperature": 0.5},
    {"softcap": 5.0},
    {"softcap": 30.0, "temperature": 0.7},
]


def loss_and_grad(engine: Engine, x: cases.Array, y: cases.Array, **options: Any) -> tuple[Any, cases.Array]:
    both = engine.cross_entropy_with_grad(x, y, **options)
    return both.loss, both.grad


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sizes(engine: Engine, dtype: DType, rng: np.random.Generator, options: dict[str, Any]) -> None:
    """Around vectors and blocks, for labels that are the maximum and others, with ignored rows among them."""
    lanes = engine.lanes(dtype)
    for n_classes in (1, 2, lanes + 1, 32, 33, 4 * lanes + 3, BLOCK + 1):
        n = 150 if n_classes == 2 else 19 if n_classes < 100 else 3
        x = cases.grid(rng, (n, n_classes), dtype, -40, 40)
        y = cases.labels(rng, n, n_classes)
        y[::5] = -100
        x[::5] = np.nan
        y[1] = x[1].astype(np.float64).argmax()
        agree(engine, x, y, reduction="none", **options)


@pytest.mark.parametrize("options", OPTIONS[::3], ids=str)
def test_with_all_other_options(
    engine: Engine, dtype: DType, rng: np.random.Generator, options: dict[str, Any]
) -> None:
    """Class weights, sample weights, smoothing and z-loss of what stands for the logits; dense targets; reductions."""
    for n_classes in (7, 90):
        x = cases.normal(rng, (29, n_classes), dtype, 8.0)
        s = rng.random(29)
        s[::7] = 0
        x[7] = np.inf
        common: dict[str, Any] = {"sample_weight": s, "weight": rng.random(n_classes), "z_loss": 0.01, **options}
        y = cases.labels(rng, 29, n_classes)
        agree(engine, x, y, label_smoothing=0.1, grad_output=-2.5, **common)
        agree(engine, x, y, reduction="sum", base=2, **common)
        t = cases.dense(rng, x.shape)
        agree(engine, x, t, reduction="none", grad_output=rng.standard_normal(29), **common)
        agree(engine, x, t, denominator=7.0, label_smoothing=0.2, **common)


@pytest.mark.parametrize("n_classes", [3, 70, BLOCK + 5])
def test_special_values(engine: Engine, dtype: DType, n_classes: int) -> None:
    """A softcap makes infinities its own size, and leaves NaN; with a temperature they are what they are without."""
    inf = np.inf
    x = np.tile(np.arange(n_classes) % 5 - 2.0, (8, 1))
    x[0, 0] = np.nan
    x[1, -1] = inf
    x[2, 1] = -inf
    x[3] = -inf
    x[4] = inf
    x[5, :-1] = -inf
    x[6, 0], x[6, 1] = inf, -inf
    x = x.astype(dtype)
    y = np.zeros(8, np.int64)
    for options in ({"temperature": 3.0}, {"softcap": 4.0}):
        for z_loss in (0.0, 0.1):
            agree(engine, x, y, reduction="none", z_loss=z_loss, **options)
    capped, grad = loss_and_grad(engine, x, y, reduction="none", softcap=4.0)
    assert np.isnan(capped[0])
    assert np.isfinite(capped[1:]).all()
    grad = grad.astype(np.float64)
    assert (grad[[1, 2, 6], [-1, 1, 0]] == 0).all()
    assert (grad[3:5] == 0).all()
    assert math.isclose(capped[3], math.log(n_classes), rel_tol=1e-6)


def test_one_is_none(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """A temperature of 1 gives the bits of none at all."""
    for n_classes in (5, 300):
        x, y = cases.normal(rng, (40, n_classes), dtype), cases.labels(rng, 40, n_classes)
        plain, with_one = (loss_and_grad(engine, x, y, temperature=value) for value in (None, 1))
        assert same_bits(plain[0], with_one[0])
        assert same_bits(plain[1], with_one[1])
        assert same_bits(plain[0], engine.cross_entropy(x, y, temperature=1.0))


def test_an_offset_costs_nothing(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """With a temperature, what all logits of a row have in common does not touch a bit of loss and gradient."""
    offset = {"float16": 512.0, "bfloat16": 16.0, "float32": 1e6, "float64": 1e14}[dtype.name]
    for n_classes in (6, 77):
        x = rng.integers(-8, 8, (21, n_classes)).astype(dtype)
        y = cases.labels(rng, 21, n_classes)
        near = loss_and_grad(engine, x, y, reduction="none", temperature=3.0)
        far = loss_and_grad(engine, (x.astype(np.float64) + offset).astype(dtype), y, reduction="none", temperature=3.0)
        assert same_bits(near[0], far[0])
        assert same_bits(near[1], far[1])


def test_extremes(engine: Engine, rng: np.random.Generator) -> None:
    """Temperatures and softcaps beyond the arithmetic, and tiny logits, lose nothing that matters."""
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        for n_classes in (4, 80):
            x = cases.normal(rng, (9, n_classes), dtype)
            y = x.argmax(1)
            for temperature in (1e-300, 1e-30):
                assert np.allclose(engine.cross_entropy(x, y, temperature=temperature, reduction="none"), 0, atol=0)
            for temperature in (1e30, 1e300):
                agree(engine, x, y, temperature=temperature)
            for softcap in (1e-300, 1e-30):
                loss = engine.cross_entropy(x, y, softcap=softcap)
                assert math.isclose(loss, math.log(n_classes), rel_tol=1e-6)
            agree(engine, x, y, softcap=1e30)
            agree(engine, x * dtype.type(1e-30), y, softcap=2.0)
            huge = engine.cross_entropy_with_grad(x, y, softcap=1e300, temperature=1e300)
            assert math.isfinite(huge.loss)
            assert np.isfinite(huge.grad).all()


def test_layouts(engine: Engine, rng: np.random.Generator) -> None:
    """The class axis anywhere, any layout of logits and of what receives the gradient; in place."""
    dtype = np.dtype(np.float32)
    options: dict[str, Any] = {"softcap": 6.0, "temperature": 2.0, "z_loss": 0.01}
    for shape in ((4, 5, 6), (3, 45, 50)):
        for axis in (0, 1, 2):
            x = cases.normal(rng, shape, dtype)
            y = cases.labels(rng, shape[:axis] + shape[axis + 1 :], shape[axis])
            y.flat[3] = -100
            want = engine.cross_entropy_with_grad(x, y, axis=axis, **options)
            agree(engine, x, y, axis=axis, **options)
            for name, arrange in cases.LAYOUTS.items():
                out = arrange(np.zeros_like(x)) if name != "read-only" else None
                got = engine.cross_entropy_with_grad(arrange(x), y, axis=axis, out=out, **options)
                assert np.allclose(got.loss, want.loss, rtol=1e-6)
                assert np.allclose(got.grad, want.grad, rtol=1e-5, atol=1e-9)
            other = np.zeros(shape, np.float64)
            engine.cross_entropy_with_grad(x, y, axis=axis, out=other, **options)
            assert np.allclose(other, want.grad, rtol=1e-5, atol=1e-9)
            here = x.copy()
            assert engine.cross_entropy_with_grad(here, y, axis=axis, out=here, **options).grad is here
            assert same_bits(here, want.grad)


def test_determinism(compiled: Engine, rng: np.random.Generator) -> None:
    """The bits of a row do not depend on the batch, on its place there, or on threads; nor the loss on the gradient."""
    for options in OPTIONS[:1] + OPTIONS[3:]:
        for n_classes in (9, 130):
            x = cases.normal(rng, (1300, n_classes), np.float32)
            y = cases.labels(rng, 1300, n_classes)
            y[5::9] = -100
            kwargs: dict[str, Any] = {"reduction": "none", "z_loss": 0.01, **options}
            one, two = (loss_and_grad(compiled, x, y, num_threads=n, **kwargs) for n in (1, 2))
            assert same_bits(one[0], two[0])
            assert same_bits(one[1], two[1])
            for rows in (slice(700, 701), slice(3, 140), slice(None, None, -7)):
                part = loss_and_grad(compiled, x[rows], y[rows], **kwargs)
                assert same_bits(part[0], one[0][rows])
                assert same_bits(part[1], one[1][rows])
            sums = {compiled.cross_entropy(x, y, num_threads=n, reduction="sum", **options) for n in (1, 2)}
            assert len(sums) == 1


def test_the_gradient_is_the_derivative(engine: Engine, rng: np.random.Generator) -> None:
    """By central differences, of the value with everything that scales it."""
    x, y = cases.normal(rng, (4, 6), np.float64), cases.labels(rng, 4, 6)
    for options in OPTIONS:
        more: dict[str, Any] = {"z_loss": 0.05, "base": 2, "label_smoothing": 0.1, **options}
        grad = engine.cross_entropy_with_grad(x, y, **more).grad
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 1e-5
            up, down = (engine.cross_entropy(x + sign * step, y, **more) for sign in (1, -1))
            assert math.isclose(grad[at], (up - down) / 2e-5, rel_tol=1e-5, abs_tol=1e-8)


@pytest.mark.parametrize("options", [{"temperature": 2.0}, {"softcap": 3.0}], ids=str)
def test_whole_groups_of_positions(
    engine: Engine, dtype: DType, rng: np.random.Generator, options: dict[str, Any]
) -> None:
    """As many neighbouring positions as a visit has rows, and one more; into `out` of every dtype, and not beyond."""
    for n in (64, 65):
        x, y = cases.normal(rng, (2, 3, n), dtype), cases.labels(rng, (2, n), 3)
        want = agree(engine, x, y, axis=1, reduction="none", **options)
        for kind in (dtype, np.dtype(np.float32), np.dtype(np.float16)):
            room = np.full((4, 3, n), 7, kind)
            out = room[1:3]
            engine.cross_entropy_with_grad(x, y, axis=1, reduction="none", out=out, **options)
            check_grad(out, want, dtype)
            assert (room[[0, 3]] == 7).all()
