"""How a test compares a call of the family with its oracle, and what such calls are made of.

Owns the list of functions, makers of their inputs and the comparison; truth is in oracle_family.py, tolerance in
tolerances.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import cases
import oracle_family
import tolerances
from cases import Array
from checks import close, fingerprint, loss_dtype, same_bits
from matrix import Engine
from oracle_family import Answer

DType = np.dtype[Any]


def logits(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> Array:
    return cases.normal(rng, shape, dtype)


def probabilities(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> Array:
    """In [0, 1]: a third each anywhere, next to 0 and next to 1, where halves round to 0 and 1 themselves."""
    p, kind = rng.random(shape), rng.integers(0, 3, shape)
    return np.where(kind == 0, p, np.where(kind == 1, p**8, 1 - p**8)).astype(dtype)


def distributions(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, axis: int = -1) -> Array:
    """Rows that add up to 1, nearly; some elements are far below the others."""
    e = np.exp(rng.standard_normal(shape) * 3)
    return (e / e.sum(axis, keepdims=True)).astype(dtype)


def log_probabilities(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, axis: int = -1) -> Array:
    return np.log(distributions(rng, shape, np.dtype(np.float64), axis)).astype(dtype)


def shares(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Targets in [0, 1], half of them 0 or 1; float32, so that every arithmetic reads them exactly."""
    t = rng.random(shape)
    return np.where(rng.random(shape) < 0.5, np.round(t), t).astype(np.float32)


def decisions(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(0, 2, shape)


def numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return (rng.standard_normal(shape) * 3).astype(np.float32)


@dataclass(frozen=True)
class Loss:
    """A public function with a gradient."""

    name: str
    values: Callable[..., Array]
    """Makes the first argument from a generator, a shape and a dtype."""
    targets: Callable[..., Array]
    """Makes targets of an element-wise loss, dense ones of a loss of rows."""
    options: dict[str, list[Any]] = field(default_factory=dict)
    """Its own options, beside weights, reduction, denominator and base; with values worth a test."""

    def __str__(self) -> str:
        return self.name


SMOOTHING = {"label_smoothing": [0.1, 1.0]}
ELEMENT_WISE = [
    Loss("binary_cross_entropy_with_logits", logits, shares, {"pos_weight": [0.0, 2.5], **SMOOTHING}),
    Loss("binary_focal_loss_with_logits", logits, decisions, {"gamma": [0.0, 0.5, 5.0], "alpha": [0.25, [2.0, 0.0]]}),
    Loss("binary_cross_entropy", probabilities, shares, {"eps": [1e-3], **SMOOTHING}),
    Loss("mse_loss", logits, numbers),
]
OF_ROWS = [
    Loss("nll_loss", log_probabilities, cases.dense, dict(SMOOTHING)),
    Loss("categorical_cross_entropy", distributions, cases.dense, {"eps": [1e-3], **SMOOTHING}),
]
LOSSES = [*ELEMENT_WISE, *OF_ROWS]
DIVERGENCES = ["entropy", "kl_divergence", "js_divergence"]
HALVES = {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}

_answers: OrderedDict[Any, Answer] = OrderedDict()
"""The last answers of the oracle: engines are given the same work one after the other."""


def answer(name: str, arrays: tuple[Any, ...], options: dict[str, Any]) -> Answer:
    given = [*enumerate(arrays), *sorted(options.items())]
    key = (name, tuple((key, fingerprint(value)) for key, value in given))
    if key not in _answers:
        _answers[key] = getattr(oracle_family, name)(*arrays, **options)
        while len(_answers) > 64:
            _answers.popitem(last=False)
    return _answers[key]


def check_value(got: Any, want: Answer, dtype: DType, reduction: str) -> None:
    if reduction == "none":
        assert isinstance(got, np.ndarray)
        assert got.dtype == loss_dtype(dtype)
        assert got.dtype.isnative
    else:
        assert type(got) is float
    assert np.shape(got) == want.value.shape
    close(got, want.value, tolerances.family_values(want, dtype, reduction), f"loss ({reduction})")


def check_grad(got: Array, want: Answer, dtype: DType) -> None:
    """The gradient; its own dtype may be that of `out`."""
    close(got, want.grad, tolerances.family_gradients(want, dtype, got.dtype), "gradient")


def agree(engine: Engine, name: str, x: Any, target: Any, *, num_threads: int | None = None, **options: Any) -> Answer:
    """Loss, and loss with gradient, as the oracle has them; bits equal; dtypes right; inputs untouched."""
    arrays = [a for a in [x, target, *options.values()] if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    dtype = x.dtype if isinstance(x, np.ndarray) else np.dtype(np.float64)
    want = answer(name, (x, target), options)
    reduction = options.get("reduction", "mean")
    forward = {key: value for key, value in options.items() if key != "grad_output"}
    loss = engine.call(name, x, target, num_threads=num_threads, **forward)
    both = engine.call(f"{name}_with_grad", x, target, num_threads=num_threads, **options)
    assert [a.tobytes() for a in arrays] == before, "an input was modified"
    check_value(loss, want, dtype, reduction)
    assert same_bits(loss, both.loss), "the loss differs with and without the gradient"
    assert both.grad.dtype == dtype.newbyteorder("=")
    assert both.grad.shape == np.shape(x)
    check_grad(both.grad, want, dtype)
    return want


def diverge(engine: Engine, name: str, *arrays: Any, **options: Any) -> Answer:
    """A divergence, or entropy, as the oracle has it; dtype and shape right; inputs untouched."""
    before = [a.tobytes() for a in arrays]
    want = answer(name, arrays, options)
    default = {"reduction": "none"} if name != "entropy" else {}
    got = engine.call(name, *arrays, **options)
    assert [a.tobytes() for a in arrays] == before, "an input was modified"
    check_value(got, want, arrays[-1].dtype, (default | options).get("reduction", "none"))
    return want
