"""The backends agree: the same signatures, types of results and, within twice the tolerance, the same results."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import cases
import tolerances
from checks import answer, close
from fastce import _backends
from matrix import ENGINES, VARIANTS

DType = np.dtype[Any]


@pytest.mark.parametrize("shape", [(200, 10), (20, 1000), (7, 33)], ids=str)
def test_results_agree(dtype: DType, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    """Each within its tolerance of the oracle is within twice of any other; here without the oracle in between."""
    x, y = cases.normal(rng, shape, dtype), cases.labels(rng, shape[0], shape[1])
    y[::11] = -100
    options: dict[str, Any] = {"reduction": "none", "weight": rng.random(shape[1]), "label_smoothing": 0.05}
    want = answer(x, y, options)
    bound = 2 * tolerances.values(want, dtype, "none")
    first, *rest = [engine.cross_entropy(x, y, **options) for engine in ENGINES]
    for losses in rest:
        close(losses, first.astype(np.longdouble), bound, "loss of another backend")


def test_modules_have_the_functions_of_the_protocol() -> None:
    """The public functions of every backend's module, and their signatures, are those of Implementation."""
    wanted = {
        name: list(inspect.signature(function).parameters)[1:]
        for name, function in inspect.getmembers(_backends.Implementation, inspect.isfunction)
        if not name.startswith("_")
    }
    assert set(wanted) == {"scan", "run", "quick", "variants", "describe", "config"}
    for backend in VARIANTS:
        module = _backends.load(backend)
        for name, parameters in wanted.items():
            assert list(inspect.signature(getattr(module, name)).parameters) == parameters, f"{backend}.{name}"


def test_results_have_the_same_types(dtype: DType) -> None:
    """Types, dtypes, shapes, strides and flags of what comes back do not depend on the backend."""
    x, y = np.zeros((4, 3, 5), dtype), np.zeros((4, 5), int)
    seen = set()
    for engine in ENGINES:
        for reduction in ("mean", "none"):
            loss, grad = engine.cross_entropy_with_grad(np.asfortranarray(x), y, axis=1, reduction=reduction)
            kind = type(loss) if reduction == "mean" else (type(loss), loss.dtype, loss.shape, loss.strides)
            seen.add((reduction, kind, grad.dtype, grad.shape, grad.strides, grad.flags.owndata))
    assert len(seen) == 2
