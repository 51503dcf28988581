"""The baseline: the formula of fastce written in plain NumPy, for readers and for comparison.

It is the shortest correct text, never optimised: it makes temporaries as large as the logits and runs on one
thread. Arithmetic over classes is done in float32 (float64 for float64 logits), that of one number per row in
float64. With x a row of logits, q the target measure and z the weight of the z-loss:

    m = max_k x_k          r = sum of exp(x_k - m) over all classes except one where the maximum is reached
    lse  = m + log1p(r)    Q = sum_k q_k
    loss = Q*log1p(r) + sum over q_k > 0 of q_k*(m - x_k) + z*lse^2
    d loss/dx_k = (Q + 2*z*lse)*p_k - q_k,    p_k = exp(x_k - m)/(1 + r)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastce._backends import Plan
from fastce._problem import Array, Output, Problem, Totals


def scan(problem: Problem, num_threads: int) -> Totals:
    """Check the target and total the weights."""
    with np.errstate(all="ignore"):
        return _scan(_as_rows(problem))


def _scan(p: Problem) -> Totals:
    s = _sample_weight(p)
    bad = ~np.isfinite(s) | (s < 0)
    if p.labels is not None:
        ignored = _ignored(p)
        bad |= ~ignored & ((p.labels < 0) | (p.labels >= p.n_classes))
        weight = np.where(ignored, 0, s)
        if p.class_weight is not None:
            weight = weight * p.class_weight[np.where(ignored | bad, 0, p.labels).astype(np.intp)]
    elif p.dense is not None:
        bad |= ~(np.isfinite(p.dense.astype(p.real)) & (p.dense >= 0)).all(axis=1)
        weight = s
    if bad.any():
        return Totals(int(bad.argmax()), 0.0, 0.0)
    return Totals(-1, 0.0, _sum(weight))


def run(problem: Problem, num_threads: int) -> Totals:
    """Do the problem."""
    p = _as_rows(problem)
    with np.errstate(all="ignore"):  # NaN, infinities and overflow of float16 are results here, not accidents
        x = p.logits.astype(p.real, order="C")  # along a strided axis sums would not be pairwise
        top = x.max(axis=1)
        first = x.argmax(axis=1)
        e = np.exp(x - top[:, None])
        np.put_along_axis(e, first[:, None], 0, axis=1)
        r = np.where(np.isfinite(top), e.sum(axis=1), np.nan)  # no maximum to speak of: the row is NaN
        np.put_along_axis(e, first[:, None], 1, axis=1)
        if p.output is Output.LSE:
            return _store(p, np.where(np.isinf(top), top, top + np.log1p(r)))
        if p.output is Output.SOFTMAX:
            return _store(p, out=e / (1 + r)[:, None])
        if p.output is Output.LOG_SOFTMAX:
            return _store(p, out=x - top[:, None] - np.log1p(r)[:, None])
        return _loss(p, x, e, top.astype(np.float64), first, r.astype(np.float64))


def _loss(p: Problem, x: Array, e: Array, top: Array, first: Array, r: Array) -> Totals:
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
    elif p.dense is not None:
        rest = s[:, None] * p.target_scale * p.dense.astype(np.float64)
        if p.class_weight is not None:
            rest *= p.class_weight
    if p.class_vector is not None:
        rest = s[:, None] * p.class_vector + (0 if rest is None else rest)

    q_sum = at.copy()
    loss = np.where(at > 0, at * (top - x[rows, y]), 0)
    if rest is not None:
        q_sum += rest.sum(axis=1)
        loss += np.where(rest > 0, rest * (top[:, None] - x), 0).sum(axis=1)
    lse = top + np.log1p(r)
    z = s * p.z_loss
    loss += q_sum * np.log1p(r)
    if p.z_loss:
        loss += z * lse * lse
    loss[ignored] = 0

    out = None
    if p.output is Output.GRAD:
        scale = np.full(p.n_rows, p.grad_scale)
        if p.grad_output is not None:
            scale *= p.grad_output.astype(np.float64)
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
        out[ignored] = 0
    return _store(p, loss, out)._replace(loss=_sum(loss), weight=checked.weight)


def variants() -> tuple[str, ...]:
    """Return the only one."""
    return ("reference",)


def describe(problem: Problem, num_threads: int) -> Plan:
    """Return the only plan."""
    return Plan("reference", "whole arrays", num_threads=1)


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
        sample_weight=flat(p.sample_weight),
        grad_output=flat(p.grad_output),
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
