"""The baseline: the formula of fastce written in plain NumPy, for readers and for comparison.

It is the shortest correct text, never optimised: it makes temporaries as large as the logits and runs on one
thread. Arithmetic over classes is done in float32 (float64 for float64 logits), that of one number per row in
float64. With x a row of logits, q the target measure and z the weight of the z-loss:

    m = max_k x_k          r = sum of exp(x_k - m) over all classes except one where the maximum is reached
    lse  = m + log1p(r)    Q = sum_k q_k
    loss = Q*log1p(r) + sum over q_k > 0 of q_k*(m - x_k) + z*lse^2
    d loss/dx_k = (Q + 2*z*lse)*p_k - q_k,    p_k = exp(x_k - m)/(1 + r)

With a temperature T or a softcap c, x stands for c*tanh(x/T/c), or x/T, whose derivative multiplies the gradient. With
a gamma, each row's loss and gradient are multiplied by what `_focus` says.

What is made of probabilities, and the element-wise losses, are the formulas of `fastce._problem.Kind`.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np

from fastce._backends import Plan
from fastce._problem import Array, Kind, Output, Problem, Totals


def scan(problem: Problem, num_threads: int) -> Totals:
    """Check the target and total the weights."""
    with np.errstate(all="ignore"):
        return _scan(_as_rows(problem))


def _scan(p: Problem) -> Totals:
    s = _sample_weight(p)
    bad = ~np.isfinite(s) | (s < 0)
    for weights in (p.factor, p.positive_weight):
        if weights is not None:
            bad |= ~np.isfinite(weights.astype(np.float64)) | (weights < 0)
    if p.labels is not None:
        ignored = _ignored(p)
        bad |= ~ignored & ((p.labels < 0) | (p.labels >= p.n_classes))
        weight = np.where(ignored, 0, s)
        if p.class_weight is not None:
            weight = weight * p.class_weight[np.where(ignored | bad, 0, p.labels).astype(np.intp)]
    elif p.dense is not None:
        if p.kind not in (Kind.SQUARES, Kind.TEACHER):
            bad |= ~((p.dense >= 0) & (p.dense.astype(p.real) <= p.largest_target)).all(axis=1)
        weight = s
    elif p.listed is not None and p.probabilities is not None:
        t = np.where(p.listed == -1, 0, p.probabilities.astype(np.float64))
        outside = (p.listed != -1) & ((p.listed < 0) | (p.listed >= p.n_classes))
        bad |= (outside | ~((t >= 0) & (t <= p.largest_target))).any(axis=1) | (_total_listed(p) > p.most_listed)
        weight = s
    if bad.any():
        return Totals(int(bad.argmax()), 0.0, 0.0)
    return Totals(-1, 0.0, _sum(weight))


def run(problem: Problem, num_threads: int) -> Totals:
    """Do the problem."""
    p = _as_rows(problem)
    with np.errstate(all="ignore"):  # NaN, infinities and overflow of float16 are results here, not accidents
        x = p.logits.astype(p.real, order="C")  # along a strided axis sums would not be pairwise
        if p.kind.element_wise:
            return _elements(p, x[:, 0])
        if p.kind is Kind.TEACHER:
            return _distillation(p, x)
        if p.kind is not Kind.LOGITS:
            return _probabilities(p, x)
        x, offset, slope = _transformed(p, x)
        top = x.max(axis=1)
        first = x.argmax(axis=1)
        e = np.exp(x - top[:, None])
        np.put_along_axis(e, first[:, None], 0, axis=1)
        # In a wider type, as the rounding of a sum of many terms, all alike, is seen. A row without a maximum is NaN.
        wide = np.float64 if p.real == np.float32 else np.longdouble
        r = np.where(np.isfinite(top), e.sum(axis=1, dtype=wide), np.nan).astype(p.real)
        np.put_along_axis(e, first[:, None], 1, axis=1)
        if p.output is Output.STATISTICS:
            return _statistics(p, x, e, top, first, r)
        if p.output is Output.LSE:
            return _store(p, np.where(np.isinf(top), top, top + np.log1p(r)))
        if p.output is Output.SOFTMAX:
            return _store(p, out=(_row_scale(p) / (1 + r)).astype(p.real)[:, None] * e)
        if p.output is Output.LOG_SOFTMAX:
            return _store(p, out=x - top[:, None] - np.log1p(r)[:, None])
        return _loss(p, x, e, top.astype(np.float64), first, r.astype(np.float64), offset, slope)


def _transformed(p: Problem, x: Array) -> tuple[Array, Array | float, Array | float]:
    """Return what stands for the logits, less an offset of each row; that offset; and the derivative.

    A softcap bounds logits. Without it the maximum is the offset, so that a constant added to all costs no digits.
    """
    if p.softcap:
        u = x.astype(np.float64) / p.temperature / p.softcap
        return (p.softcap * np.tanh(u)).astype(p.real), 0.0, 1 / np.cosh(u) ** 2 / p.temperature
    if p.temperature == 1:
        return x, 0.0, 1.0
    top = x.max(axis=1)
    top = np.where(np.isfinite(top), top, 0)
    return ((x - top[:, None]) / np.float64(p.temperature)).astype(p.real), top / p.temperature, 1 / p.temperature


def _dense(p: Problem) -> Array | None:
    """Return the dense target, or that which a sparse one stands for."""
    if p.listed is None or p.probabilities is None:
        return p.dense
    t, there = np.zeros((p.n_rows, p.n_classes)), np.zeros((p.n_rows, p.n_classes), bool)
    row, j = np.nonzero(p.listed != -1)
    at = row, p.listed[row, j].astype(np.intp)
    np.add.at(t, at, p.probabilities[row, j].astype(np.float64))
    there[at] = True
    if p.spread_missing:
        others = np.maximum(p.n_classes - there.sum(axis=1), 1)
        t = np.where(there, t, (np.maximum(1 - _total_listed(p), 0) / others)[:, None])
    return t


def _total_listed(p: Problem) -> Array:
    """Return the sum of each row's probabilities, added in the order of the list."""
    if p.listed is None or p.probabilities is None:
        return np.zeros(p.n_rows)
    t = np.where(p.listed == -1, 0, p.probabilities.astype(np.float64))
    return t.cumsum(axis=1)[:, -1] if t.shape[1] else np.zeros(p.n_rows)


def _loss(
    p: Problem,
    x: Array,
    e: Array,
    top: Array,
    first: Array,
    r: Array,
    offset: Array | float,
    slope: Array | float,
) -> Totals:
    checked = _scan(p)
    if checked.bad_row >= 0:
        return checked
    rows = np.arange(p.n_rows)
    s = _sample_weight(p)
    ignored = s == 0

    # q is `at` on the label and `rest` on every class; each may be missing.
    y, at, rest = first, np.zeros(p.n_rows), None
    if p.labels is not None:
        ignored |= _ignored(p)
        y = np.where(ignored, 0, p.labels).astype(np.intp)
        at = s * p.target_scale * (1 if p.class_weight is None else p.class_weight[y])
    elif (dense := _dense(p)) is not None:
        rest = s[:, None] * p.target_scale * dense.astype(np.float64)
        if p.class_weight is not None:
            rest *= p.class_weight
    if p.class_vector is not None:
        rest = s[:, None] * p.class_vector + (0 if rest is None else rest)

    q_sum = at.copy()
    loss = np.where(at > 0, at * (top - x[rows, y]), 0)
    if rest is not None:
        q_sum += rest.sum(axis=1, dtype=np.longdouble)
        loss += np.where(rest > 0, rest * (top[:, None] - x), 0).sum(axis=1, dtype=np.longdouble)
    lse = offset + top + np.log1p(r)
    z = s * p.z_loss
    loss += q_sum * np.log1p(r)
    if p.z_loss:
        loss += z * lse * lse
    scale = _row_scale(p)
    if p.gamma:
        focus, focus_slope = _focus(p, np.log1p(r) + (top - x[rows, y]))
        loss, scale = loss * focus, scale * focus_slope
    loss[ignored] = 0

    out = None
    if p.output is Output.GRAD:
        pull = 2 * z * lse if p.z_loss else np.zeros(p.n_rows)
        on_top, others = np.where(y == first, at, 0), np.where(y == first, 0, at)
        out = (scale * (q_sum + pull) / (1 + r)).astype(p.real)[:, None] * e
        if rest is not None:
            out = out - scale[:, None] * rest
            on_top += rest[rows, first]
            rest[rows, first] = 0
            others += rest.sum(axis=1)
        out[rows, y] -= scale * at
        # Where the maximum is, q_k and Q*p_k may be nearly equal: others*p_k - q_k*(1 - p_k) is the same and exact.
        out[rows, first] = scale * (others + pull - on_top * r) / (1 + r)
        out = out * slope
        out[ignored] = 0
    return _store(p, loss, out)._replace(loss=_sum(loss), weight=checked.weight)


def _focus(p: Problem, c: Array) -> tuple[Array, Array]:
    """Return what a focal loss multiplies cross entropies c by, and their gradients.

    With u = 1 - exp(-c) they are u^gamma, and u^gamma + gamma*u^(gamma - 1)*(1 - u)*c.
    """
    u = -np.expm1(-c)
    power = u**p.gamma
    return power, power + np.where(np.isinf(c) | (u == 0), 0, p.gamma * power / u * np.exp(-c) * c)


def _statistics(p: Problem, x: Array, e: Array, top: Array, first: Array, r: Array) -> Totals:
    """Fill what is asked about the rows; a row without a label has no answer to what is asked of it."""
    checked = _scan(p) if p.labels is not None else Totals(-1, 0.0, 0.0)
    if checked.bad_row >= 0 or p.statistics is None:
        return checked
    rows = np.arange(p.n_rows)
    unlabelled = _ignored(p) if p.labels is not None else np.ones(p.n_rows, bool)
    y = np.where(unlabelled, 0, 0 if p.labels is None else p.labels).astype(np.intp)
    logit = x[rows, y]
    gap = np.where(e > 0, top[:, None] - x, 0)
    others = x.copy()
    others[rows, y] = -np.inf
    found = {
        "lse": np.where(np.isinf(top), top, top + np.log1p(r)),
        "loss": np.where(unlabelled, 0, np.log1p(r) + (top - logit)),
        "entropy": np.log1p(r) + (e * gap).sum(axis=1, dtype=np.longdouble) / (1 + r),
        "argmax": first,
        "target_probability": np.where(unlabelled, np.nan, e[rows, y] / (1 + r)),
        "rank": np.where(unlabelled, -1, (x > logit[:, None]).sum(axis=1)),
        "margin": np.where(unlabelled, np.nan, logit - np.fmax.reduce(others, axis=1)),
        "correct": ~unlabelled & (first == y),
        "maximum": top,
        "rest": r,
    }
    for name, array in p.statistics._asdict().items():
        if array is not None:
            array[...] = found[name]
    return checked


def _probabilities(p: Problem, x: Array) -> Totals:
    """Do a problem whose rows are probabilities, or their logarithms."""
    checked = _scan(p)
    if checked.bad_row >= 0:
        return checked
    rows = np.arange(p.n_rows)
    s = _sample_weight(p)
    ignored = (s == 0) | _ignored(p)
    if p.dense is not None:
        q = p.target_scale * p.dense.astype(np.float64) * (1 if p.class_weight is None else p.class_weight)
    else:
        q = np.zeros(x.shape)
        y = np.where(ignored, 0, 0 if p.labels is None else p.labels).astype(np.intp)
        q[rows, y] = p.target_scale * (1 if p.class_weight is None else p.class_weight[y])
    if p.class_vector is not None:
        q += p.class_vector
    q *= s[:, None]
    q[ignored] = 0

    kept = np.clip(x, p.clip, 1 - p.clip) if p.clip else x
    if p.kind is Kind.LOG_PROBABILITIES:
        terms = q * -x
        slope = np.where(np.isnan(x), x, -1)
    elif p.kind is Kind.PROBABILITIES:
        terms = q * -np.log(kept)
        slope = np.where(kept == x, np.where(x < 0, np.nan, -1 / abs(x)), kept - kept)
    elif p.kind is Kind.KL:
        terms = q * (_log_ratio(q, x) + (x - x))  # NaN for an infinite x
    else:
        terms = _jensen_shannon(q, np.where(x >= 0, x, np.nan).astype(np.float64))
    if p.kind is not Kind.JS:
        terms = np.where(q > 0, terms, 0)
    loss = terms.sum(axis=1)
    out = None
    if p.output is Output.GRAD:
        out = np.where(q > 0, _row_scale(p)[:, None] * q * slope, 0)
    return _store(p, loss, out)._replace(loss=_sum(loss), weight=checked.weight)


def _distillation(p: Problem, x: Array) -> Totals:
    """Do a problem whose dense target holds a teacher's logits."""
    checked = _scan(p)
    if checked.bad_row >= 0 or p.dense is None:
        return checked
    s = _sample_weight(p)
    teacher = p.dense.astype(p.real, order="C")
    top = x.max(axis=1)
    gap = (x - top[:, None]) / p.real.type(p.temperature)
    e = np.exp(gap)
    q = np.exp((teacher - teacher.max(axis=1, keepdims=True)) / p.real.type(p.temperature)).astype(np.float64)
    q /= 1 + _without_first(q, teacher)[:, None]
    r = _without_first(e, x)
    distance = np.where(q == 0, 0, q * -gap).sum(axis=1)
    loss = np.where(s == 0, 0, s * p.temperature**2 * (np.log1p(r) + distance))
    out = None
    if p.output is Output.GRAD:
        slope = e / (1 + r)[:, None] - q
        out = np.where(s[:, None] == 0, 0, (_row_scale(p) * s * p.temperature)[:, None] * slope)
    return _store(p, loss, out)._replace(loss=_sum(loss), weight=checked.weight)


def _without_first(e: Array, x: Array) -> Array:
    """Return the sums of rows of e without the class where x is greatest, NaN where that is not finite."""
    others = e.astype(np.float64)
    np.put_along_axis(others, x.argmax(axis=1)[:, None], 0, axis=1)
    return np.where(np.isfinite(x.max(axis=1)), others.sum(axis=1), np.nan)


def _log_ratio(a: Array, b: Array) -> Array:
    """Return log(a / b); nearly equal numbers keep the digits of their difference."""
    ratio = a / b
    exact = (ratio > 1e-30) & (ratio < 1e30)  # elsewhere a ratio may overflow, and two logarithms cancel little
    far = np.where(exact, np.log(ratio), np.log(a) - np.log(b))
    return np.where(abs(a - b) < b / 2, np.log1p((a - b) / b), far)


def _jensen_shannon(a: Array, b: Array) -> Array:
    """Return (a log(2a / (a + b)) + b log(2b / (a + b))) / 2; by a series in d where the two logarithms cancel."""
    total, apart = a + b, abs(a - b)
    d = np.where(total == 0, 0, apart / total)
    smaller, share = np.minimum(a, b), 2 * np.minimum(a, b) / total
    far = (np.maximum(a, b) * np.log1p(d) + np.where(share == 0, 0, smaller * np.log(share))) / 2
    z, series = np.minimum(d * d, 0.5625), np.zeros(d.shape)
    for k in range(60, 1, -1):
        series = z * (1 / (k * (2 * k - 1)) + series)
    return np.where(d > 0.75, far, apart * d / 4 * (1 + series))


def _elements(p: Problem, x: Array) -> Totals:
    """Do a problem of an element-wise kind, whose rows are elements."""
    checked = _scan(p)
    if checked.bad_row >= 0 or p.dense is None:
        return checked
    s = _sample_weight(p)
    weight = s * (1 if p.factor is None else p.factor.astype(np.float64))
    t = p.dense[:, 0].astype(p.real)
    if p.kind is Kind.SQUARES:
        loss, slope = (x - t) ** 2, 2 * (x - t)
    else:
        spread = 0 if p.class_vector is None else p.class_vector[0]
        on = p.positive * (p.target_scale * t.astype(np.float64) + spread)
        on *= 1 if p.positive_weight is None else p.positive_weight.astype(np.float64)
        off = p.negative * (p.target_scale * (1 - t.astype(np.float64)) + spread)
        loss, slope = (_binary_logits if p.kind is Kind.BINARY_LOGITS else _binary_probabilities)(p, x, on, off)
    loss = np.where(s == 0, 0, _weighed(weight, loss))
    out = None
    if p.output is Output.GRAD:
        out = np.where(s == 0, 0, _row_scale(p) * _weighed(weight, slope))
    return _store(p, loss, out)._replace(loss=_sum(loss), weight=checked.weight)


def _binary_logits(p: Problem, x: Array, on: Array, off: Array) -> tuple[Array, Array]:
    e = np.exp(-abs(x))
    up, down = np.log1p(e) + np.maximum(x, 0), np.log1p(e) + np.maximum(-x, 0)  # softplus(x), softplus(-x)
    larger, smaller = 1 / (1 + e), e / (1 + e)
    share, rest = np.where(x > 0, larger, smaller), np.where(x > 0, smaller, larger)  # sigmoid(x), sigmoid(-x)
    if p.gamma:
        on, off = on * np.exp(-p.gamma * up), off * np.exp(-p.gamma * down)
        share, rest = share + p.gamma * _weighed(rest, up), rest + p.gamma * _weighed(share, down)
    loss = _weighed(on, down) + _weighed(off, up)
    return np.where(np.isnan(x), x, loss), off * share - on * rest


def _binary_probabilities(p: Problem, x: Array, on: Array, off: Array) -> tuple[Array, Array]:
    kept = np.clip(x, p.clip, 1 - p.clip) if p.clip else x + 0  # -0 becomes 0
    sound = (kept >= 0) & (kept <= 1)
    loss = np.where(sound, _weighed(on, -np.log(kept)) + _weighed(off, -np.log1p(-kept)), np.nan)
    slope = _weighed(off, 1 / (1 - kept)) - _weighed(on, 1 / kept)
    return loss, np.where(sound, np.where(kept == x, slope, 0), np.nan)


def _weighed(coefficient: Array, cost: Array) -> Array:
    """Return the product, 0 where the coefficient is, whatever the cost."""
    return np.where(coefficient == 0, 0, coefficient * cost)


def _row_scale(p: Problem) -> Array:
    """Return what the derivative of each row's loss is multiplied by."""
    scale = np.full(p.n_rows, p.grad_scale)
    return scale if p.grad_output is None else scale * p.grad_output.astype(np.float64)


def variants() -> tuple[str, ...]:
    """Return the only one."""
    return ("reference",)


def describe(problem: Problem, num_threads: int) -> Plan:
    """Return the only plan."""
    return Plan("reference", "whole arrays", num_threads=1)


def quick(overrides: tuple[ContextVar[Any], ...]) -> None:
    """Return None: the baseline knows no short way."""


def config() -> dict[str, Any]:
    """Return the version of NumPy."""
    return {"numpy": np.__version__}


def _as_rows(p: Problem) -> Problem:
    """Return the same problem with one axis of positions (arrays are copied where that is what reshape takes)."""

    def flat(array: Array | None) -> Array | None:
        return None if array is None else array.reshape(p.n_rows)

    return replace(
        p,
        logits=p.logits.reshape(p.n_rows, p.n_classes),
        labels=flat(p.labels),
        dense=None if p.dense is None else p.dense.reshape(p.n_rows, p.n_classes),
        listed=None if p.listed is None else p.listed.reshape(p.n_rows, p.listed.shape[-1]),
        probabilities=None if p.probabilities is None else p.probabilities.reshape(p.n_rows, p.probabilities.shape[-1]),
        sample_weight=flat(p.sample_weight),
        grad_output=flat(p.grad_output),
        positive_weight=flat(p.positive_weight),
        factor=flat(p.factor),
    )


def _sample_weight(p: Problem) -> Array:
    return np.ones(p.n_rows) if p.sample_weight is None else p.sample_weight.astype(np.float64)


def _ignored(p: Problem) -> Array:
    if p.labels is None or p.ignore_index is None:
        return np.zeros(p.n_rows, dtype=bool)
    return np.equal(p.labels, p.ignore_index)


def _store(p: Problem, row_values: Array | None = None, out: Array | None = None) -> Totals:
    if p.row_values is not None:
        p.row_values[...] = row_values
    if p.out is not None and out is not None:
        p.out[...] = out.reshape(p.out.shape)
    return Totals(-1, 0.0, 0.0)


def _sum(values: Array) -> float:
    """Return the sum of the rows' values, exact to float64's rounding for any number of rows that fits in memory."""
    return float(values.sum(dtype=np.longdouble))
