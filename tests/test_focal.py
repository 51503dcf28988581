"""Focal loss over softmax for every engine and dtype, against a small oracle of its own; identities and errors."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import cases
import fastce
import oracle
import tolerances
from checks import close, same_bits
from matrix import Engine

DType = np.dtype[Any]
Wide = np.longdouble


def exact(
    x: Any, y: Any, gamma: float, alpha: Any, s: Any, ignore_index: int = -100
) -> tuple[Any, Any, Any, tuple[Any, Any]]:
    """Losses (n,), gradients (n, C), each row's weight in a mean, and bounds on the first two."""
    weight = np.where((y == ignore_index) | (s == 0), 0, s).astype(Wide)
    label = np.where(y == ignore_index, 0, y)
    rows = oracle.cross_entropy(np.where(weight[:, None] == 0, 0, x), label, reduction="none").rows
    loss, grad, _ = oracle.focal(rows, label, gamma)
    scale = weight * np.broadcast_to(alpha, x.shape[1])[label]
    bounds = tolerances.focal(rows, label, gamma, x.dtype)
    return scale * loss, scale[:, None] * grad, weight, scale * bounds[0], scale[:, None] * bounds[1]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0, 2.0, 5.0, 40.0])
def test_values_and_gradients(engine: Engine, dtype: DType, rng: np.random.Generator, gamma: float) -> None:
    """Every reduction, with class and sample weights and ignored rows that hold NaN; confident and hopeless rows."""
    x = cases.grid(rng, (40, 13), dtype, -20, 20)
    y = cases.labels(rng, 40, 13)
    x[np.arange(5), y[:5]] = 30
    x[5:8] = np.nan
    y[5:7] = -100
    s, alpha = rng.random(40), rng.random(13)
    s[7] = 0
    loss, grad, weight, bound, slack = exact(x, y, gamma, alpha, s)
    bound = bound + 2 * tolerances.arithmetic(dtype).ulp(loss)  # weights are rounded, and their products
    slack = slack + 2 * tolerances.arithmetic(dtype).ulp(grad)
    options = {"gamma": gamma, "alpha": alpha, "sample_weight": s}
    for reduction in ("none", "sum", "mean"):
        total = weight.sum() if reduction == "mean" else Wide(1)
        value, slope = engine._call(fastce.focal_loss_with_grad, x, y, reduction=reduction, **options)
        assert same_bits(value, engine._call(fastce.focal_loss, x, y, reduction=reduction, **options))
        if reduction == "none":
            close(value, loss, bound, "losses")
        else:
            close(value, loss.sum() / total, bound.sum() / total, reduction)
        assert slope.dtype == dtype
        close(slope, grad / total, tolerances.stored(slack / total, grad / total, dtype), f"gradient ({reduction})")
        assert (slope[5:8] == 0).all()


def test_without_focus_it_is_cross_entropy(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Bit for bit; alpha is a weight of classes, but in a mean's denominator."""
    x, y, s = cases.normal(rng, (30, 40), dtype), cases.labels(rng, 30, 40), rng.random(30)
    alpha = rng.random(40)
    plain = engine.cross_entropy_with_grad(x, y, weight=alpha, sample_weight=s, reduction="none", base=2)
    focal = engine._call(
        fastce.focal_loss_with_grad, x, y, gamma=0, alpha=alpha, sample_weight=s, reduction="none", base=2
    )
    assert same_bits(focal.loss, plain.loss)
    assert same_bits(focal.grad, plain.grad)
    plain = engine.cross_entropy_with_grad(x, y, weight=alpha, sample_weight=s, denominator=s.sum())
    focal = engine._call(fastce.focal_loss_with_grad, x, y, gamma=0, alpha=alpha, sample_weight=s)
    np.testing.assert_allclose(focal.loss, plain.loss, rtol=1e-12)


@pytest.mark.parametrize("shape", [(300, 2), (300, 13), (90, 200), (5, 3000)])
def test_rows_alone_and_threads(engine: Engine, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    """A row has the same bits in any batch, on any number of threads, beside rows whose label has no probability."""
    x, y = cases.normal(rng, shape, np.float32), cases.labels(rng, *shape)
    x[1, y[1]] = -200
    x[2, y[2]] = 60
    options = {"gamma": 1.5, "reduction": "none"}
    one, two = (engine._call(fastce.focal_loss_with_grad, x, y, num_threads=n, **options) for n in (1, 2))
    assert same_bits(one.loss, two.loss)
    assert same_bits(one.grad, two.grad)
    if engine.backend == "numpy":
        return
    for i in (0, 1, 2, shape[0] - 1):
        loss, grad = engine._call(fastce.focal_loss_with_grad, x[i : i + 1], y[i : i + 1], **options)
        assert same_bits(loss[0], one.loss[i])
        assert same_bits(grad[0], one.grad[i])


def test_extremes(engine: Engine, rng: np.random.Generator) -> None:
    """A certain row costs 0, a label of probability 0 infinity, and NaN stays in its row; the gradient is finite."""
    x = np.array([[0, -np.inf], [-np.inf, 0], [np.nan, 0], [3, 1]], np.float32)
    loss, grad = engine._call(fastce.focal_loss_with_grad, x, [0, 0, 0, 0], gamma=1.5, reduction="none")
    assert loss[0] == 0
    assert loss[1] == np.inf
    assert np.isnan(loss[2])
    assert np.isfinite(loss[3])
    assert np.isfinite(grad[[0, 1, 3]]).all()
    assert np.isnan(grad[2]).all()


def test_in_place_axis_and_upstream_gradient(engine: Engine, rng: np.random.Generator) -> None:
    x, y = cases.normal(rng, (4, 9, 5), np.float32), cases.labels(rng, (4, 5), 9)
    flat = engine._call(fastce.focal_loss_with_grad, np.moveaxis(x, 1, -1).copy(), y, grad_output=3.0)
    got = engine._call(fastce.focal_loss_with_grad, x, y, axis=1, out=x, grad_output=3.0, num_threads=2)
    assert got.grad is x
    np.testing.assert_allclose(got.grad, np.moveaxis(flat.grad, -1, 1), rtol=2e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": [0, 3]}, IndexError, r"label 3 at index \(1,\) is out of range for 3 classes"),
        ({"target": np.eye(2, 3)}, ValueError, "target: expected integer labels"),
        ({"gamma": -1.0}, ValueError, "gamma: expected a finite number >= 0, got -1.0"),
        ({"alpha": -0.5}, ValueError, "alpha: expected a finite number >= 0"),
        ({"alpha": [1.0, 2.0]}, ValueError, r"alpha: expected one number for each class, shape \(3,\)"),
        ({"sample_weight": [1.0, -1.0]}, ValueError, r"sample_weight: .*got -1.0 at index \(1,\)"),
        ({"reduction": "max"}, ValueError, "reduction: expected 'mean', 'sum' or 'none', got 'max'"),
        ({"reduction": "sum", "denominator": 2.0}, ValueError, "denominator: only reduction='mean' divides"),
    ],
)
def test_bad_input(engine: Engine, options: dict[str, Any], error: type[Exception], message: str) -> None:
    """The value, the place and what is accepted; nothing is written."""
    arguments: dict[str, Any] = {"logits": np.zeros((2, 3), np.float32), "target": [0, 1]} | options
    with pytest.raises(error, match=message):
        engine._call(fastce.focal_loss, **arguments)
    out = np.full((2, 3), 7, np.float32)
    with pytest.raises(error, match=message):
        engine._call(fastce.focal_loss_with_grad, **arguments, out=out)
    assert (out == 7).all()


def test_signatures() -> None:
    loss = (
        "(logits, target, *, gamma=2.0, alpha=None, axis=-1, sample_weight=None, ignore_index=-100, reduction='mean', "
        "denominator=None, base=None, {}backend='auto', num_threads=None)"
    )
    for function, more in ((fastce.focal_loss, ""), (fastce.focal_loss_with_grad, "grad_output=None, out=None, ")):
        parameters = inspect.signature(function).parameters.values()
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        assert str(inspect.Signature(bare)) == loss.format(more)
