"""The family beside other libraries: torch, scikit-learn and SciPy, where they are installed; and log_loss."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import cases
import family
import fastce
import oracle_family
from family import check_value
from matrix import Engine

F64 = np.dtype(np.float64)


def test_torch(rng: np.random.Generator) -> None:
    """Values and gradients of binary cross entropy, MSE, NLL and KL; runs where torch is installed."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, t, w = cases.normal(rng, (6, 5), np.float64), rng.random((6, 5)), rng.random((6, 5))
    p, y = family.distributions(rng, (6, 5), F64), cases.labels(rng, 6, 5)
    y[2] = -100
    tensor = torch.tensor
    weighted = {"weight": w, "pos_weight": w[0]}
    calls: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "binary_cross_entropy_with_logits": (x, t, weighted),
        "binary_cross_entropy": (p, t, {"weight": w}),
        "mse_loss": (x, t, {}),
        "nll_loss": (np.log(p), y, {"weight": w[0]}),
    }
    for reduction, (name, (values, target, options)) in itertools.product(("mean", "sum"), calls.items()):
        leaf = tensor(values, requires_grad=True)
        theirs = {key: tensor(value) for key, value in options.items()}
        want = getattr(functional, name)(leaf, tensor(target), reduction=reduction, **theirs)
        want.backward()
        loss, grad = getattr(fastce, f"{name}_with_grad")(values, target, reduction=reduction, **options)
        assert loss == pytest.approx(want.item(), rel=1e-13)
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-12, atol=1e-15)
    q = family.distributions(rng, (6, 5), F64)
    for reduction in ("sum", "batchmean"):
        want = functional.kl_div(tensor(np.log(q)), tensor(p), reduction=reduction).item()
        assert fastce.kl_divergence(p, q, reduction=reduction) == pytest.approx(want, rel=1e-13)


def test_scipy(rng: np.random.Generator) -> None:
    """Entropy, KL and the square of SciPy's Jensen-Shannon distance; runs where SciPy is installed."""
    stats, distance = pytest.importorskip("scipy.stats"), pytest.importorskip("scipy.spatial.distance")
    p, q = (rng.dirichlet(np.ones(7), 5) for _ in range(2))
    p[0, 2] = 0
    p[0] /= p[0].sum()  # SciPy normalises
    for base in (None, 2):
        np.testing.assert_allclose(fastce.entropy(p, base=base), stats.entropy(p, axis=1, base=base), rtol=1e-13)
        want = stats.entropy(p, q, axis=1, base=base)
        np.testing.assert_allclose(fastce.kl_divergence(p, q, base=base), want, rtol=1e-12)
        want = distance.jensenshannon(p, q, axis=1, base=base) ** 2
        np.testing.assert_allclose(fastce.js_divergence(p, q, base=base), want, rtol=1e-12)


LOG_LOSS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "two classes": ([1, 0, 0, 1], [[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]], {}),
    "strings": (["spam", "ham", "ham"], [[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]], {}),
    "one column": ([1, 0, 1], [0.9, 0.25, 0.5], {}),
    "a column": ([1, 0, 1], [[0.9], [0.25], [0.5]], {}),
    "clipped": ([0, 1, 2], [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], {}),
    "clipped, one column": ([1, 0, 1], [0.0, 1.0, 1.0], {}),
    "labels": ([2, 2], [[0.2, 0.7, 0.1], [0.6, 0.2, 0.2]], {"labels": [3, 1, 2]}),
    "labels of one": ([True, True], [0.25, 0.75], {"labels": [False, True]}),
    "weights": ([0, 1, 1], [0.1, 0.8, 0.4], {"sample_weight": [1, 0, 2.5]}),
    "sum": ([0, 2, 1], [[0.5, 0.25, 0.25], [0, 0.5, 0.5], [0.25, 0.5, 0.25]], {"normalize": False}),
    "weighted sum": ([0, 1], [[0.5, 0.5], [0.25, 0.75]], {"normalize": False, "sample_weight": [2, 3]}),
    "indicators": ([[1, 0], [0, 1]], [[0.75, 0.25], [0.5, 0.5]], {}),
}


@pytest.mark.parametrize("case", LOG_LOSS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_log_loss(engine: Engine, case: str, kind: Any) -> None:
    """scikit-learn's own numbers, clip included, where it is installed; always those of the oracle."""
    y_true, y_pred, options = LOG_LOSS[case]
    y_pred = np.array(y_pred, kind)
    got = engine.call("log_loss", y_true, y_pred, **options)
    assert type(got) is float
    labels = np.unique(options.get("labels", y_true if np.ndim(y_true) == 1 else [0, 1]))
    codes = np.searchsorted(labels, y_true) if np.ndim(y_true) == 1 else np.array(y_true)
    rest = {"reduction": "mean" if options.get("normalize", True) else "sum", "eps": float(np.finfo(kind).eps)}
    if "sample_weight" in options:
        rest["sample_weight"] = np.array(options["sample_weight"])
    single = y_pred.ndim == 1 or y_pred.shape[1] == 1
    name = "binary_cross_entropy" if single else "categorical_cross_entropy"
    want = getattr(oracle_family, name)(y_pred.reshape(-1) if single else y_pred, codes, **rest)
    check_value(got, want, np.dtype(kind), rest["reduction"])


@pytest.mark.parametrize("case", LOG_LOSS)
def test_log_loss_is_scikit_learns(case: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    y_true, y_pred, options = LOG_LOSS[case]
    options = {k: v for k, v in options.items() if k != "labels"} | (
        {"labels": sorted(options["labels"])} if "labels" in options else {}
    )
    for kind in (np.float32, np.float64):
        want = metrics.log_loss(y_true, np.array(y_pred, kind), **options)
        assert fastce.log_loss(y_true, np.array(y_pred, kind), **options) == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_log_loss_from_logits(engine: Engine, dtype: np.dtype[Any], rng: np.random.Generator) -> None:
    """Of softmax for several columns, of the logistic function for one; not clipped."""
    x, y = cases.normal(rng, (30, 4), dtype), cases.labels(rng, 30, 4)
    y[:4] = range(4)
    assert engine.call("log_loss", y, x, from_logits=True) == engine.cross_entropy(x, y)
    z, t = x[:, 0], (y > 1).astype(int)
    want = engine.call("binary_cross_entropy_with_logits", z, t)
    assert engine.call("log_loss", t, z, from_logits=True) == want
    assert engine.call("log_loss", np.where(t, "yes", "no"), z[:, None], from_logits=True) == want
    assert engine.call("log_loss", [0, 1], np.array([[800.0, 0], [0, 800.0]]), from_logits=True) < 1e-300
