"""The right answer: cross entropy of every row against its target measure, its gradient and what surrounds them.

Owns the mathematics the tests compare with and imports nothing from fastce. Rows are computed in longdouble from the
exact input values, with error-free differences and compensated sums (about 2^-62 relative where longdouble has 64
bits of mantissa); `exact_row` does one row in mpmath, and test_oracle.py holds the two together. Where longdouble is
no wider than double, mpmath computes every row. Nothing here knows about tolerances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Wide = np.longdouble
WIDE_ENOUGH = np.finfo(Wide).nmant >= 63
DIGITS = 60


@dataclass(frozen=True)
class Rows:
    """n rows of C classes, everything in longdouble, before any reduction or scale."""

    x: Array
    q: Array
    z: Array
    ignored: Array
    m: Array
    r: Array
    lse: Array
    mass: Array
    """Q, the sum of q."""
    loss: Array
    p: Array
    log_p: Array
    grad: Array
    """With respect to what stands for the logits."""
    raw: Array | None = None
    """The logits, where x is what stands for them: with a temperature T or a softcap c."""
    temperature: float = 1.0
    softcap: float = 0.0
    slope: Any = 1
    """The derivative of x by the logits."""

    @property
    def finite(self) -> Array:
        """Rows that have a softmax: no NaN, no +inf, something above -inf."""
        return np.isfinite(self.lse)


@dataclass(frozen=True)
class Answer:
    """One call: its rows in C order of the positions, and what the reduction makes of them."""

    rows: Rows
    scale: Array
    """(n,): what multiplies a row's loss in `value` ("none": 1/ln(base)) and, with grad_output, its gradient."""
    grad_output: Array
    value: Array
    """A longdouble scalar for "mean" and "sum", else an array of the positions' shape."""
    grad: Array
    """In the shape of the logits."""
    axis: int

    def rows_of(self, array: npt.ArrayLike) -> Array:
        """An array of the shape of the logits as (n, C)."""
        moved = np.moveaxis(np.asarray(array), self.axis, -1)
        return moved.reshape(self.rows.x.shape)


def widen(array: Any) -> Array:
    """Exact values as longdouble; the dtypes of ml_dtypes go through float64, which holds them."""
    array = np.asarray(array)
    return array.astype(Wide) if array.dtype.kind in "fiub" else array.astype(np.float64).astype(Wide)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def wide_sum(a: Array) -> Array:
    """Sum over the last axis of finite numbers, compensated, by halves."""
    high, low = a, np.zeros_like(a)
    while high.shape[-1] > 1:
        half = high.shape[-1] // 2
        rest, rest_low = high[..., 2 * half :], low[..., 2 * half :]
        s, e = two_sum(high[..., :half], high[..., half : 2 * half])
        e = e + low[..., :half] + low[..., half : 2 * half]
        high, low = np.concatenate([s, rest], -1), np.concatenate([e, rest_low], -1)
    return (high + low)[..., 0] if a.shape[-1] else np.zeros(a.shape[:-1], Wide)


def compute_rows(x: Array, q: Array, z: Array, ignored: Array) -> Rows:
    """Every row of logits x (n, C) against the measure q (n, C) with z-loss z (n,)."""
    x, q, z = widen(x), widen(q), widen(z)
    if not WIDE_ENOUGH:
        return _stack([exact_row(*row) for row in zip(x, q, z, ignored, strict=True)], x, q, z, ignored)
    n, n_classes = x.shape
    with np.errstate(all="ignore"):
        broken = np.isnan(x).any(-1) | (x == np.inf).any(-1) | (x == -np.inf).all(-1)
        quiet = broken[:, None]
        excluded = (x == -np.inf) & ~quiet
        y = np.where(quiet | excluded, Wide(0), x)
        m = np.where(excluded, -np.inf, y).max(-1, initial=-np.inf) if n_classes else np.zeros(n, Wide)
        top = np.where(excluded, -np.inf, y).argmax(-1) if n_classes else np.zeros(n, np.intp)
        at_top = np.arange(n_classes) == top[:, None]
        d, d_low = two_sum(y, np.broadcast_to(-m[:, None], y.shape))
        e = np.where(excluded, Wide(0), np.exp(d) * (1 + d_low))
        r = wide_sum(np.where(at_top, Wide(0), e))
        log1p_r = np.log1p(r)
        p = e / (1 + r)[:, None]
        not_p = np.where(at_top, (r / (1 + r))[:, None], 1 - p)
        lse = m + log1p_r
        log_p = np.where(excluded, Wide(-np.inf), d - log1p_r[:, None])
        mass = wide_sum(q)
        others = mass[:, None] - q
        term = np.where(q > 0, -q * (d + d_low), Wide(0))
        loss = mass * log1p_r + wide_sum(term) + z * lse * lse
        loss = np.where(((q > 0) & excluded).any(-1), Wide(np.inf), loss)
        grad = p * others - q * not_p + (2 * z * lse)[:, None] * p

        nan = Wide(np.nan)
        lse = np.where(broken, _special_lse(x), lse)
        loss, grad = np.where(broken, nan, loss), np.where(broken[:, None], nan, grad)
        p, log_p = np.where(broken[:, None], nan, p), np.where(broken[:, None], nan, log_p)
        loss, grad = np.where(ignored, Wide(0), loss), np.where(ignored[:, None], Wide(0), grad)
    return Rows(x, q, z, ignored, m, r, lse, mass, loss, p, log_p, grad)


def _special_lse(x: Array) -> Array:
    infinite = np.where((x == np.inf).any(-1), Wide(np.inf), Wide(-np.inf))
    return np.where(np.isnan(x).any(-1), Wide(np.nan), infinite)


def exact_row(x: Array, q: Array, z: Any, ignored: bool) -> dict[str, Any]:
    """One row of finite or -inf logits in mpmath, by the textbook's formulas; the fields are those of Rows."""
    with mpmath.workdps(DIGITS + 40):
        xs, qs = [_mpf(v) for v in x], [_mpf(v) for v in q]
        nan = mpmath.nan
        if any(mpmath.isnan(v) or v == mpmath.inf for v in xs) or all(v == -mpmath.inf for v in xs):
            zero = mpmath.mpf(0)
            one = zero if ignored else nan
            row = {"m": nan, "r": nan, "lse": nan, "mass": mpmath.fsum(qs), "loss": one}
            return row | {"p": [nan] * len(xs), "log_p": [nan] * len(xs), "grad": [one] * len(xs)}
        m = max(xs)
        # Enough digits that 1 + r keeps r, however small.
        with mpmath.workdps(DIGITS + 40 + int(max([0, *((m - v) / 2.3 for v in xs if m - v < 2000)]))):
            e = [mpmath.exp(v - m) for v in xs]
            total = mpmath.fsum(e)
            r = total - 1
            log_total = mpmath.log(total)
            lse = m + log_total
            mass = mpmath.fsum(qs)
            p = [v / total for v in e]
            pairs = [(v, w) for v, w in zip(xs, qs, strict=True) if w > 0]
            infinite = any(v == -mpmath.inf for v, _ in pairs)
            loss = mpmath.inf if infinite else mpmath.fsum(w * (lse - v) for v, w in pairs) + _mpf(z) * lse**2
            grad = [(mass + 2 * _mpf(z) * lse) * a - w for a, w in zip(p, qs, strict=True)]
            log_p = [v - lse for v in xs]
        if ignored:
            loss, grad = mpmath.mpf(0), [mpmath.mpf(0)] * len(xs)
    return {"m": m, "r": r, "lse": lse, "mass": mass, "loss": loss, "p": p, "log_p": log_p, "grad": grad}


def _mpf(value: Any) -> Any:
    value = Wide(value)
    if np.isnan(value):
        return mpmath.nan
    if np.isinf(value):
        return mpmath.inf if value > 0 else -mpmath.inf
    high = float(value)
    return mpmath.mpf(high) + mpmath.mpf(float(value - Wide(high)))


def narrow(value: Any) -> Any:
    """An mpmath number as longdouble, in two steps that lose nothing a longdouble can hold."""
    high = float(value)
    return Wide(high) if not math.isfinite(high) or high == 0 else Wide(high) + Wide(float(value - mpmath.mpf(high)))


def _stack(exact: list[dict[str, Any]], x: Array, q: Array, z: Array, ignored: Array) -> Rows:
    def field(name: str, shape: tuple[int, ...]) -> Array:
        cells = [narrow(v) for row in exact for v in (row[name] if len(shape) == 2 else [row[name]])]
        return np.array(cells, Wide).reshape(shape)

    fields = {name: field(name, x.shape[:1]) for name in ("m", "r", "lse", "mass", "loss")}
    fields |= {name: field(name, x.shape) for name in ("p", "log_p", "grad")}
    return Rows(x, q, z, ignored, **fields)


def transform(x: Array, temperature: float, softcap: float) -> tuple[Array, Array]:
    """What stands for logits, c tanh(x/(Tc)) or x/T without a softcap c, and its derivative."""
    with np.errstate(all="ignore"):
        y = x / Wide(temperature)
        if softcap == 0:
            return y, np.full(x.shape, 1 / Wide(temperature))
        u = y / Wide(softcap)
        return Wide(softcap) * np.tanh(u), 1 / np.cosh(u) ** 2 / Wide(temperature)


def densified(indices: Array, probabilities: Array, n_classes: int, *, spread_missing: bool) -> Array:
    """The dense target (n, C) that lists (n, k) stand for. What is missing to 1 is missing to their float64 sum."""
    t = np.zeros((len(indices), n_classes), Wide)
    for row, classes, masses in zip(t, indices, widen(probabilities), strict=True):
        entries = [(int(k), mass) for k, mass in zip(classes, masses, strict=True) if int(k) != -1]
        total = 0.0
        for k, mass in entries:
            row[k] += mass
            total += float(mass)
        others = [k for k in range(n_classes) if k not in dict(entries)]
        if spread_missing and others:
            row[others] = max(Wide(1 - total), Wide(0)) / len(others)
    return t


def measure(
    x: Array,
    target: Array,
    weight: Array | None,
    sample_weight: Array | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Array, Array, Array]:
    """The target measure q (n, C), the rows that are ignored and each row's share of a mean's denominator."""
    n, n_classes = x.shape
    w = np.ones(n_classes, Wide) if weight is None else widen(weight)
    s = np.ones(n, Wide) if sample_weight is None else widen(sample_weight).reshape(n)
    eps = Wide(label_smoothing)
    spread = eps / n_classes * w if n_classes else w
    if target.ndim == 1:
        labels = [int(v) for v in target]
        ignored = np.array([label == ignore_index for label in labels], bool) | (s == 0)
        index = np.array([0 if skip else label for label, skip in zip(labels, ignored, strict=True)], np.intp)
        hot = np.arange(n_classes) == index[:, None]
        q = (1 - eps) * np.where(hot, w, Wide(0)) + spread
        share = w[index] if n else np.zeros(0, Wide)
    else:
        ignored = s == 0
        q = (1 - eps) * w * widen(target) + spread
        share = np.ones(n, Wide)
    q = np.where(ignored[:, None], Wide(0), s[:, None] * q)
    return q, ignored, np.where(ignored, Wide(0), s * share)


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float | None = None,
    softcap: float | None = None,
    spread_missing: bool = False,
    reduction: str = "mean",
    denominator: float | None = None,
    base: float | None = None,
    grad_output: Any = None,
) -> Answer:
    """Value and gradient as the contract defines them; the arguments are those of fastce."""
    logits = np.asarray(logits)
    if isinstance(target, tuple):
        indices, probabilities = (np.moveaxis(np.asarray(part), axis, -1) for part in target)
        n_listed = indices.shape[-1]
        target = densified(
            indices.reshape(math.prod(indices.shape[:-1]), n_listed),
            probabilities.reshape(math.prod(indices.shape[:-1]), n_listed),
            logits.shape[axis],
            spread_missing=spread_missing,
        ).reshape(*indices.shape[:-1], logits.shape[axis])
        target = np.moveaxis(target, -1, axis)
    target = np.asarray(target)
    moved = np.moveaxis(logits, axis, -1)
    positions, n_classes = moved.shape[:-1], moved.shape[-1]
    n = math.prod(positions)
    x = widen(moved).reshape(n, n_classes)
    dense = target.ndim == logits.ndim
    flat = np.moveaxis(target, axis, -1).reshape(n, n_classes) if dense else target.reshape(n)
    s = None if sample_weight is None else np.asarray(sample_weight).reshape(n)
    q, ignored, share = measure(x, flat, weight, s, ignore_index, label_smoothing)
    # z = s * z_loss; s is 1 where there are no sample weights.
    z = np.where(ignored, Wide(0), Wide(z_loss) * (np.ones(n, Wide) if s is None else widen(s)))
    raw, slope = x, Wide(1)
    if temperature is not None or softcap is not None:
        x, slope = transform(raw, temperature or 1.0, softcap or 0.0)
    rows = compute_rows(x, q, z, ignored)
    rows = replace(rows, raw=raw, temperature=temperature or 1.0, softcap=softcap or 0.0, slope=slope)

    unit = Wide(1) if base is None else np.log(Wide(base))
    upstream = np.broadcast_to(widen(1.0 if grad_output is None else grad_output).reshape(-1), (n,))
    with np.errstate(all="ignore"):
        if reduction == "mean":
            divisor = wide_sum(share) if denominator is None else Wide(denominator)
            empty = divisor == 0
            value = Wide(np.nan) if empty else _total(rows.loss) / divisor / unit
            scale = np.full(n, Wide(0) if empty else 1 / divisor / unit)
        else:
            value = _total(rows.loss) / unit if reduction == "sum" else (rows.loss / unit).reshape(positions)
            scale = np.full(n, 1 / unit)
        # A scale of 0 here is a mean over nothing, whose gradient is exactly 0.
        grad = np.where(
            (scale == 0)[:, None] | ignored[:, None], Wide(0), rows.grad * slope * (scale * upstream)[:, None]
        )
    grad = np.moveaxis(grad.reshape(moved.shape), -1, axis)
    return Answer(rows, scale, upstream, value, grad, axis)


def focal(rows: Rows, label: Array, gamma: float) -> tuple[Array, Array, Array]:
    """Of rows of cross entropy c of these labels: u^gamma c, with u = 1 - p, its gradient, and its derivative by c."""
    p = rows.p[np.arange(len(label)), label]
    with np.errstate(all="ignore"):
        u = np.where(p < 0.5, 1 - p, -np.expm1(-rows.loss))
        slope = u**gamma + np.where(u > 0, gamma * u ** (gamma - 1) * p * rows.loss, 0)
        return u**gamma * rows.loss, slope[:, None] * rows.grad, slope


def _total(losses: Array) -> Any:
    return wide_sum(losses) if np.isfinite(losses).all() else losses.sum()


def distribution(logits: Any, axis: int = -1) -> Rows:
    """lse, p and log_p of every row, in C order of the positions: there is no target."""
    x = np.moveaxis(np.asarray(logits), axis, -1)
    x = widen(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    n = x.shape[0]
    return compute_rows(x, np.zeros_like(x), np.zeros(n, Wide), np.zeros(n, bool))
