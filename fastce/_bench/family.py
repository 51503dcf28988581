"""The relatives of cross entropy that are measured: on what, and the right answer, with nothing of fastce in it.

One row a function; cases.py makes cases of them, ours.py calls the function of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TEMPERATURE = 2.0
GAMMA = 2.0


class Member(NamedTuple):
    """A function of the library as something to measure."""

    make: Callable[[Array, np.random.Generator], tuple[Array, Array]]
    """From normal numbers, which it may overwrite, the first and the second array."""
    reference: Callable[[Array, Array], tuple[Array, Array | None]]
    """Of float64 rows of both: the losses, and their derivatives if the function has a gradient."""
    second: str = "elements"
    """Whether the second array has a number for each element, each row, or is the first again."""
    gradient: bool = True


def _probabilities(x: Array) -> Array:
    """Make numbers from 0 to 1 of normal ones."""
    np.abs(x, out=x)
    x /= x.dtype.type(10)
    return np.clip(x, x.dtype.type(1e-3), x.dtype.type(0.999), out=x)


def _with_labels(x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    return x, rng.integers(x.shape[-1], size=x.shape[:-1])


def _with_bits(x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    return x, np.greater(x, 0).astype(x.dtype)


def _with_decisions(x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    return x, np.greater(x, 0).view(np.uint8)


def _with_numbers(x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    other = np.empty_like(x)
    np.multiply(x[::-1], x.dtype.type(1.5), out=other)
    return x, other


def _two_probabilities(x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    other = _probabilities(x)[::-1].copy()
    return x, other


def _one_probability(x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    return _probabilities(x), x


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _sigmoid(x: Array) -> Array:
    return np.exp(-_softplus(-x))


def _binary_logits(x: Array, t: Array) -> tuple[Array, Array]:
    return t * _softplus(-x) + (1.0 - t) * _softplus(x), _sigmoid(x) - t


def _binary_focal(x: Array, t: Array) -> tuple[Array, Array]:
    z = np.where(t == 1, x, -x)
    p, rest, c = _sigmoid(z), _sigmoid(-z), _softplus(-z)
    slope = -(rest**GAMMA) * (rest + GAMMA * p * c)
    return rest**GAMMA * c, np.where(t == 1, slope, -slope)


def _binary(p: Array, t: Array) -> tuple[Array, Array]:
    return -t * np.log(p) - (1.0 - t) * np.log1p(-p), (1.0 - t) / (1.0 - p) - t / p


def _squares(x: Array, t: Array) -> tuple[Array, Array]:
    return (x - t) ** 2, 2.0 * (x - t)


def _hot(x: Array, y: Array) -> Array:
    hot = np.zeros_like(x)
    hot[np.arange(len(x)), y] = 1.0
    return hot


def _nll(x: Array, y: Array) -> tuple[Array, Array]:
    return -x[np.arange(len(x)), y], -_hot(x, y)


def _categorical(p: Array, q: Array) -> tuple[Array, Array]:
    return -(q * np.log(p)).sum(axis=1), -q / p


def _softmax(x: Array) -> tuple[Array, Array]:
    """Return probabilities and log-sum-exp."""
    m = x.max(axis=1, keepdims=True)
    e = np.exp(x - m)
    return e / e.sum(axis=1, keepdims=True), np.log(e.sum(axis=1)) + m[:, 0]


def _focal(x: Array, y: Array) -> tuple[Array, Array]:
    p, lse = _softmax(x)
    c = lse - x[np.arange(len(x)), y]
    u = -np.expm1(-c)
    slope = u**GAMMA + GAMMA * u ** (GAMMA - 1.0) * (1.0 - u) * c
    return u**GAMMA * c, slope[:, None] * (p - _hot(x, y))


def _distillation(x: Array, t: Array) -> tuple[Array, Array]:
    (p, lse), (q, _) = _softmax(x / TEMPERATURE), _softmax(t / TEMPERATURE)
    loss = TEMPERATURE**2 * (lse - (q * x).sum(axis=1) / TEMPERATURE)
    return loss, TEMPERATURE * (p - q)


def _entropy(p: Array, _: Array) -> tuple[Array, None]:
    return -(p * np.log(p)).sum(axis=1), None


def _kl(q: Array, p: Array) -> tuple[Array, None]:
    return (p * np.log(p / q)).sum(axis=1), None


def _js(q: Array, p: Array) -> tuple[Array, None]:
    m = (p + q) / 2.0
    return ((p * np.log(p / m)).sum(axis=1) + (q * np.log(q / m)).sum(axis=1)) / 2.0, None


def _statistics(x: Array, y: Array) -> tuple[Array, None]:
    return _softmax(x)[1] - x[np.arange(len(x)), y], None


FAMILY: dict[str, Member] = {
    "binary_cross_entropy_with_logits": Member(_with_bits, _binary_logits),
    "binary_focal_loss_with_logits": Member(_with_decisions, _binary_focal),
    "binary_cross_entropy": Member(_two_probabilities, _binary),
    "mse_loss": Member(_with_numbers, _squares),
    "nll_loss": Member(_with_labels, _nll, second="rows"),
    "categorical_cross_entropy": Member(_two_probabilities, _categorical),
    "focal_loss": Member(_with_labels, _focal, second="rows"),
    "distillation_loss": Member(_with_numbers, _distillation),
    "entropy": Member(_one_probability, _entropy, second="first", gradient=False),
    "kl_divergence": Member(_two_probabilities, _kl, gradient=False),
    "js_divergence": Member(_two_probabilities, _js, gradient=False),
    "row_statistics": Member(_with_labels, _statistics, second="rows", gradient=False),
}
"""By the name of the function. The first array of a divergence is its q, the second its p."""
