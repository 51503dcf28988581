"""The right answers of the losses beside cross entropy: element-wise ones, those of probabilities, and divergences.

Owns their mathematics and imports nothing from fastce. The functions have the names and the options of fastce's. One
text serves two kinds of numbers: arrays of longdouble, and arrays of mpmath's numbers where longdouble is no wider
than double; test_oracle_family.py holds the two together. Nothing here knows about tolerances, but an answer says how
far it moves where a target moves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import mpmath
import numpy as np

import oracle
from oracle import Array, Wide

DIGITS = 60


@dataclass(frozen=True)
class Part:
    """One of the two costs of an element: what it is multiplied by, its size and its derivative."""

    coefficient: Array
    rate: Array
    """How fast the coefficient moves with the target."""
    cost: Array
    slope: Array
    exponent: Array
    """A focal cost has the factor exp(-exponent); 0 elsewhere."""
    exponential: bool = False
    """Whether cost and slope are made of exp(-|x|), however small that is."""


@dataclass(frozen=True)
class Answer:
    """One call, in longdouble, before and after what the reduction makes of it."""

    x: Array
    """The first argument; in rows the class axis is last here, and in all arrays but `grad`."""
    t: Array
    """The dense target of an element; the target measure of a row; p of a divergence."""
    loss: Array
    """Of each element or row, before any scale."""
    slope: Array
    """The derivative by x, before any scale."""
    scale: Array
    """What multiplies the losses in `value` and, with grad_output, the slopes."""
    grad_output: Array
    value: Array
    grad: Array
    """In the shape of the first argument."""
    axis: int | None
    parts: tuple[Part, ...] = ()
    sizes: Array = field(default_factory=lambda: np.zeros(()))
    """The sum of the sizes of what adds up to the loss of a row."""
    moved: Callable[[Array], tuple[Array, Array]] = lambda dt: (np.zeros(()), np.zeros(()))
    """How far the losses and the slopes move where t moves by dt."""


# --- numbers ----------------------------------------------------------------------------------------------------------


def exact(value: Any) -> Array:
    """The very values, in numbers wide enough to compute with."""
    wide = np.asarray(oracle.widen(value))
    return wide if oracle.WIDE_ENOUGH else _each(oracle._mpf, wide)


def narrow(value: Any) -> Array:
    """Back to longdouble."""
    value = np.asarray(value)
    return value.astype(Wide) if value.dtype != object else _each(oracle.narrow, value).astype(Wide)


def _each(function: Callable[[Any], Any], x: Array) -> Array:
    cells = np.empty(x.shape, object)
    cells[...] = np.frompyfunc(function, 1, 1)(x)
    return cells


def _exact_log(x: Any) -> Any:
    return mpmath.log(x) if x > 0 else -mpmath.inf if x == 0 else mpmath.nan


def exp(x: Array) -> Array:
    return np.exp(x) if x.dtype != object else _each(mpmath.exp, x)


def log(x: Array) -> Array:
    return np.log(x) if x.dtype != object else _each(_exact_log, x)


def log1p(x: Array) -> Array:
    return np.log1p(x) if x.dtype != object else _each(lambda v: mpmath.log1p(v) if v > -1 else _exact_log(v + 1), x)


def reciprocal(x: Array) -> Array:
    """1 / x, +inf for either zero."""
    return np.where(x == 0, exact(np.inf), 1 / np.where(x == 0, exact(1.0), x))


def times(coefficient: Any, cost: Array) -> Array:
    """The product, in which a coefficient of 0 wins over whatever the cost is."""
    return np.where(coefficient == 0, exact(0.0), coefficient * cost)


def larger(x: Array, y: Any) -> Array:
    return np.where(x > y, x, y)


def total(values: Array) -> Array:
    """The sum over the last axis."""
    if values.dtype == object:
        return np.asarray(values.sum(axis=-1)) if values.shape[-1] else exact(np.zeros(values.shape[:-1]))
    finite = np.isfinite(values).all(-1)
    return np.where(finite, oracle.wide_sum(np.where(finite[..., None], values, Wide(0))), values.sum(-1))


def _clipped(x: Array, given: Any, eps: float) -> Array:
    """x, or the limit that it is beyond; the limits are numbers of the dtype of the arithmetic."""
    if eps == 0:
        return x
    real = np.float64 if np.asarray(given).dtype.newbyteorder("=") == np.float64 else np.float32
    low, high = exact(real(eps)), exact(real(1 - eps))
    return np.where(x < low, low, np.where(x > high, high, x))


def _oracle(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Digits for mpmath, silence for NumPy, and longdouble as the result."""

    def answered(*args: Any, **options: Any) -> Answer:
        with np.errstate(all="ignore"), mpmath.workdps(DIGITS):
            answer = function(*args, **options)
            return _narrowed(replace(answer, parts=tuple(_narrowed(part) for part in answer.parts)))

    return answered


def _narrowed(record: Any) -> Any:
    return replace(record, **{k: narrow(v) for k, v in vars(record).items() if isinstance(v, np.ndarray)})


def _reduced(
    x: Array,
    t: Array,
    loss: Array,
    slope: Array,
    shares: Array,
    *,
    axis: int | None,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
    **rest: Any,
) -> Answer:
    """Value and gradient; the shares add up to a mean's own denominator."""
    unit = exact(1.0) if base is None else log(exact(float(base)))
    upstream = np.broadcast_to(exact(1.0 if grad_output is None else grad_output), loss.shape)
    divisor = exact(1.0)
    if reduction == "mean":
        divisor = total(shares.reshape(-1)) if denominator is None else exact(float(denominator))
    empty = divisor == 0
    scale = np.where(empty, exact(0.0), reciprocal(divisor) / unit)
    whole = loss / unit if reduction == "none" else total(loss.reshape(-1)) * reciprocal(divisor) / unit
    value = np.where(empty, exact(np.nan), whole)
    factor = scale * upstream
    # A scale of 0 here is a mean over nothing, whose gradient is exactly 0.
    grad = np.where(empty, exact(0.0), slope * (factor if axis is None else factor[..., None]))
    grad = grad if axis is None else np.moveaxis(grad, -1, axis)
    return Answer(x, t, loss, slope, scale, upstream, value, grad, axis, **rest)


# --- element-wise losses ----------------------------------------------------------------------------------------------


def _of_parts(x: Array, t: Array, yes: Part, no: Part, weight: Array, shares: Array, **rest: Any) -> Answer:
    """What is not a number costs NaN, unless the element's weight is 0."""
    nan = (x != x) & (weight != 0)
    loss = times(yes.coefficient, yes.cost) + times(no.coefficient, no.cost)
    slope = times(yes.coefficient, yes.slope) + times(no.coefficient, no.slope)
    loss, slope = (np.where(nan, exact(np.nan), v) for v in (loss, slope))
    return _reduced(x, t, loss, slope, shares, axis=None, parts=(yes, no), **rest)


def _binary(
    x: Array,
    t: Array,
    costs: tuple[Array, Array],
    slopes: tuple[Array, Array],
    exponents: tuple[Array, Array],
    *,
    weight: Any = None,
    sample_weight: Any = None,
    a: Any = 1.0,
    b: Any = 1.0,
    smoothing: float = 0.0,
    exponential: bool = False,
    **scales: Any,
) -> Answer:
    """The two costs of yes and no, by what the target gives to each; a and b are their weights."""
    s = np.broadcast_to(exact(1.0 if sample_weight is None else sample_weight), x.shape)
    w = s * exact(1.0 if weight is None else weight)
    keep, spread = 1 - exact(smoothing), exact(smoothing) / 2
    shares = keep * t + spread, keep * (1 - t) + spread
    yes, no = (
        Part(w * exact(by) * shares[i], w * exact(by) * keep, costs[i], slopes[i], exponents[i], exponential)
        for i, by in enumerate((a, b))
    )

    def moved(dt: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            rates = [(narrow(part.rate) * dt, narrow(part.cost), np.abs(narrow(part.slope))) for part in (yes, no)]
            sums = [sum(np.where(rate == 0, Wide(0), rate * by[i]) for rate, *by in rates) for i in (0, 1)]
        return sums[0], sums[1]  # type: ignore[return-value]

    return _of_parts(x, t, yes, no, w, s, moved=moved, **scales)


def _binary_logits(x: Array, t: Array, gamma: float, **options: Any) -> Answer:
    # What belongs to infinite logits are limits, which formulas do not give: one cost is infinite, the other is 0.
    infinity, zero, one = exact(np.inf), exact(0.0), exact(1.0)
    infinite, up, g = abs(x) == np.inf, x > 0, exact(gamma)
    y = np.where(infinite, zero, x)
    e = exp(-abs(y))
    no = np.where(infinite, np.where(up, infinity, zero), log1p(e) + larger(y, zero))  # softplus(x)
    yes = np.where(infinite, np.where(up, zero, infinity), log1p(e) + larger(-y, zero))  # softplus(-x)
    big, small = 1 / (1 + e), e / (1 + e)
    share = np.where(infinite, np.where(up, one, zero), np.where(up, big, small))  # sigmoid(x)
    rest = np.where(infinite, np.where(up, zero, one), np.where(up, small, big))  # sigmoid(-x)
    share, rest = (np.where(x == x, v, x) for v in (share, rest))
    exponents = times(g, no), times(g, yes)
    powers = exp(-exponents[0]), exp(-exponents[1])
    costs = times(powers[0], yes), times(powers[1], no)
    slopes = (
        -times(powers[0], rest + times(g, times(share, yes))),
        times(powers[1], share + times(g, times(rest, no))),
    )
    return _binary(x, t, costs, slopes, exponents, exponential=True, **options)


@_oracle
def binary_cross_entropy_with_logits(
    logits: Any, target: Any, *, pos_weight: Any = None, label_smoothing: float = 0.0, **options: Any
) -> Answer:
    a = 1.0 if pos_weight is None else pos_weight
    return _binary_logits(exact(logits), exact(target), 0.0, a=a, smoothing=label_smoothing, **options)


@_oracle
def binary_focal_loss_with_logits(
    logits: Any, target: Any, *, gamma: float = 2.0, alpha: Any = None, **options: Any
) -> Answer:
    b, a = (1.0, 1.0) if alpha is None else (1 - float(alpha), alpha) if np.ndim(alpha) == 0 else alpha
    return _binary_logits(exact(logits), exact(target), gamma, a=a, b=b, **options)


@_oracle
def binary_cross_entropy(
    probs: Any, target: Any, *, label_smoothing: float = 0.0, eps: float = 0.0, **options: Any
) -> Answer:
    x, zero = exact(probs), exact(0.0)
    kept = _clipped(x, probs, eps)
    sound = (kept >= 0) & (kept <= 1)
    kept, given = np.where(sound, kept, exact(np.nan)), np.where(sound, x, exact(np.nan))
    inside = (kept == given) | ~sound
    costs = -log(kept), -log1p(-kept)
    slopes = np.where(inside, -reciprocal(kept), zero), np.where(inside, reciprocal(1 - kept), zero)
    nothing = exact(np.zeros(x.shape))
    return _binary(given, exact(target), costs, slopes, (nothing, nothing), smoothing=label_smoothing, **options)


@_oracle
def mse_loss(prediction: Any, target: Any, *, weight: Any = None, sample_weight: Any = None, **scales: Any) -> Answer:
    x, t = exact(prediction), exact(target)
    s = np.broadcast_to(exact(1.0 if sample_weight is None else sample_weight), x.shape)
    w = s * exact(1.0 if weight is None else weight)
    apart, nothing = x - t, exact(np.zeros(x.shape))

    def moved(dt: Array) -> tuple[Array, Array]:
        by = narrow(w)
        return by * dt * (2 * np.abs(narrow(apart)) + dt), 2 * by * dt

    square = Part(w, nothing, apart * apart, 2 * apart, nothing)
    none = Part(nothing, nothing, nothing, nothing, nothing)
    return _of_parts(np.where(apart == apart, x, apart), t, square, none, w, s, moved=moved, **scales)


# --- losses of rows ---------------------------------------------------------------------------------------------------


def _last(array: Any, axis: int) -> Array:
    return np.moveaxis(np.asarray(array), axis, -1)


def _measured(
    x: Array,
    target: Any,
    cost: Array,
    cost_slope: Array,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    **scales: Any,
) -> Answer:
    """What the target measure makes of the cost of each class: a class without mass costs nothing."""
    target, shape = np.asarray(target), x.shape
    n, n_classes = math.prod(shape[:-1]), shape[-1]
    flat = _last(target, axis).reshape(n, n_classes) if target.ndim == x.ndim else target.reshape(n)
    s = None if sample_weight is None else np.asarray(sample_weight).reshape(n)
    q, _, shares = oracle.measure(np.zeros((n, n_classes), Wide), flat, weight, s, ignore_index, label_smoothing)
    q = exact(q.reshape(shape))
    terms = times(q, cost)
    shares = exact(shares).reshape(shape[:-1])
    return _reduced(x, q, total(terms), times(q, cost_slope), shares, axis=axis, sizes=total(abs(terms)), **scales)


@_oracle
def nll_loss(log_probs: Any, target: Any, *, axis: int = -1, **options: Any) -> Answer:
    x = exact(_last(log_probs, axis))
    return _measured(x, target, -x, np.where(x == x, exact(-1.0), x), axis=axis, **options)


@_oracle
def categorical_cross_entropy(probs: Any, target: Any, *, axis: int = -1, eps: float = 0.0, **options: Any) -> Answer:
    x = exact(_last(probs, axis))
    kept = _clipped(x, probs, eps)
    kept = np.where(kept >= 0, kept, exact(np.nan))
    slope = np.where((kept == x) | (kept != kept), -reciprocal(kept), exact(0.0))
    return _measured(x, target, -log(kept), slope, axis=axis, **options)


# --- entropy and divergences ------------------------------------------------------------------------------------------


def _divergence(x: Array, t: Array, terms: Array, axis: int, reduction: str, base: float | None, **rest: Any) -> Answer:
    shares = exact(np.ones(x.shape[:-1]))
    denominator = None
    if reduction == "batchmean":
        reduction, denominator = "mean", x.shape[0] if x.ndim > 1 else 1
    options = {"axis": axis, "reduction": reduction, "denominator": denominator, "base": base}
    return _reduced(x, t, total(terms), terms * 0, shares, sizes=total(abs(terms)), **options, **rest)


@_oracle
def entropy(p: Any, *, axis: int = -1, base: float | None = None) -> Answer:
    x = exact(_last(p, axis))
    return _divergence(x, x, times(x, -log(x)), axis, "none", base)


@_oracle
def kl_divergence(p: Any, q: Any, *, axis: int = -1, base: float | None = None, reduction: str = "none") -> Answer:
    p, q = exact(_last(p, axis)), exact(_last(q, axis))
    sound = np.where((q >= 0) & (q < np.inf), q, exact(np.nan))
    ratio = np.where(abs(p - q) < q / 2, log1p((p - q) * reciprocal(sound)), log(p * reciprocal(sound)))
    ratio = np.where(sound == sound, ratio, sound)

    def moved(dt: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            size = np.where(dt == 0, Wide(0), dt * (np.abs(narrow(ratio)) + 1 + dt / narrow(p)))
        return size.sum(-1), dt * 0

    return _divergence(q, p, times(p, ratio), axis, reduction, base, moved=moved)


@_oracle
def js_divergence(p: Any, q: Any, *, axis: int = -1, base: float | None = None, reduction: str = "none") -> Answer:
    """By d = |p - q| / (p + q): (1 + d) log(1 + d) + (1 - d) log(1 - d), the sum of d^2k / (k (2k - 1))."""
    p, q = exact(_last(p, axis)), exact(_last(q, axis))
    sound = np.where((q >= 0) & (q < np.inf), q, exact(np.nan))
    d = np.where(p + sound == 0, exact(0.0), abs(p - sound) * reciprocal(p + sound))
    far = (1 + d) * log1p(d) + times(1 - d, log1p(-d))
    z = np.where(d < 0.25, d * d, exact(0.0))
    near = z * 0
    for k in range(60, 0, -1):
        near = z * (exact(1.0) / (k * (2 * k - 1)) + near)
    terms = (p + sound) / 4 * np.where(d < 0.25, near, far)

    def moved(dt: Array) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            ratio = np.abs(narrow(log(2 * p * reciprocal(p + sound))))
            size = np.where(dt == 0, Wide(0), dt * (ratio / 2 + dt / narrow(p)))
        return size.sum(-1), dt * 0

    return _divergence(q, p, terms, axis, reduction, base, moved=moved)
