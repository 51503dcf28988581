"""The right answer to a case: the textbook formula in float64, block by block, with nothing of fastce in it.

A timing counts only after its answer has been compared with this one. How exact fastce is, the tests say; here it
is enough that an answer is the answer, in the precision of the system that gave it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from fastce._bench.cases import IGNORE_INDEX, LABEL_SMOOTHING, SCALED, SOFTCAP, Z_LOSS, Case, inputs
from fastce._bench.family import FAMILY, Array

BLOCK = 1 << 20
"""Logits a block: small beside what is measured."""


class Answer(NamedTuple):
    """The mean loss, and the gradient where the case asks for it, class axis where the logits have it."""

    loss: float
    grad: Array | None = None


@functools.lru_cache(maxsize=1)
def answer(case: Case) -> Answer:
    """Compute a case in float64; the gradient comes back as float32, which is room enough to compare with."""
    if case.function != "cross_entropy":
        return _answer_of_relative(case)
    arrays = inputs(case)
    logits, weight, sample_weight = np.moveaxis(arrays.logits, case.axis, -1), arrays.weight, arrays.sample_weight
    positions, n_classes = logits.shape[:-1], case.n_classes
    dense = np.moveaxis(arrays.target, case.axis, -1) if "dense" in case.options else None
    smoothing = LABEL_SMOOTHING if "label_smoothing" in case.options else 0.0
    z = Z_LOSS if "z_loss" in case.options else 0.0
    w = np.ones(n_classes) if weight is None else weight
    grad = np.empty(logits.shape, np.float32) if case.gradient else None
    total = denominator = 0.0
    step = max(1, BLOCK // n_classes)
    for begin in range(0, case.n_rows, step):
        where = np.unravel_index(np.arange(begin, min(begin + step, case.n_rows)), positions)
        x = logits[where].astype(np.float64)
        s = np.ones(len(x)) if sample_weight is None else sample_weight[where]
        if arrays.probabilities is not None:
            q = np.zeros_like(x)
            np.add.at(q, (np.arange(len(x))[:, None], arrays.target[where]), arrays.probabilities[where])
            denominator += float(s.sum())
        elif dense is None:
            y = arrays.target[where]
            s = np.where(y == IGNORE_INDEX, 0.0, s)
            y = np.where(y == IGNORE_INDEX, 0, y)
            q = np.zeros_like(x)
            q[np.arange(len(x)), y] = 1.0
            denominator += float((s * w[y]).sum())
        else:
            q = dense[where].astype(np.float64)
            denominator += float(s.sum())
        q = s[:, None] * w * ((1.0 - smoothing) * q + smoothing / n_classes)
        slope: Array | float = 1.0
        if "temperature" in case.options:
            x, slope = x / SCALED, 1.0 / SCALED
        if "softcap" in case.options:
            slope = slope / np.cosh(x / SOFTCAP) ** 2
            x = SOFTCAP * np.tanh(x / SOFTCAP)
        x -= x.max(axis=1, keepdims=True) if not z else 0.0
        p = np.exp(x)
        sums = p.sum(axis=1, keepdims=True)
        lse = np.log(sums)
        total += float((q * (lse - x)).sum() + z * (s[:, None] * lse**2).sum())
        if grad is not None:
            p /= sums
            grad[where] = slope * ((q.sum(axis=1, keepdims=True) + 2.0 * z * s[:, None] * lse) * p - q)
    if grad is not None:
        grad /= denominator
        grad = np.moveaxis(grad, -1, case.axis)
    return Answer(total / denominator, grad)


def _answer_of_relative(case: Case) -> Answer:
    """Compute a case of the family: the mean of what comes out, of elements or of rows."""
    arrays, member = inputs(case), FAMILY[case.function]
    grad = np.empty(case.shape, np.float32) if case.gradient else None
    total, count = 0.0, 0.0
    step = max(1, BLOCK // case.n_classes)
    for begin in range(0, case.n_rows, step):
        block = slice(begin, begin + step)
        second = arrays.target[block]
        losses, slopes = member.reference(
            arrays.logits[block].astype(np.float64), second if member.second == "rows" else second.astype(np.float64)
        )
        weights = np.ones(1) if arrays.sample_weight is None else arrays.sample_weight[block].astype(np.float64)
        total, count = (
            total + float((weights * losses).sum()),
            count + float(np.broadcast_to(weights, losses.shape).sum()),
        )
        if grad is not None and slopes is not None:
            grad[block] = weights * slopes
    if grad is not None:
        grad /= count
    return Answer(total / count, grad)


class Check(NamedTuple):
    """How an answer compares with the right one."""

    wrong: str | None
    """What is wrong with it, if anything."""
    loss_error: float = math.nan
    """Of the mean loss, relative."""
    grad_error: float | None = None
    """The largest of the gradient, over the largest of its numbers."""


def check(case: Case, given: Answer) -> Check:
    """Compare an answer with the right one.

    The limits are of the size of the rounding of a system that works in the dtype of the case: float32 sums of a
    million losses, log-probabilities kept as bfloat16. A skipped class or a wrong scale is far outside.
    """
    right = answer(case)
    rounding = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(case.dtype, 2.0**-14)
    loss_error = abs(given.loss - right.loss) / abs(right.loss) if right.loss else abs(given.loss)
    if not loss_error <= 4.0 * rounding:
        return Check(f"loss {given.loss!r}, not {right.loss!r}")
    if right.grad is None:
        return Check(None, loss_error)
    if given.grad is None or given.grad.shape != right.grad.shape:
        return Check(f"a gradient of shape {None if given.grad is None else given.grad.shape}, not {right.grad.shape}")
    largest, worst_error = float(np.abs(right.grad).max()), 0.0
    smallest = 1e-7 * largest + (2.0**-24 if case.dtype == "float16" else 0.0)
    step = max(1, len(right.grad) * BLOCK // right.grad.size)
    for begin in range(0, len(right.grad), step):
        expected = right.grad[begin : begin + step]
        error = np.abs(given.grad[begin : begin + step].astype(np.float32) - expected)
        worst_error = max(worst_error, float(error.max()))
        error -= 16.0 * rounding * np.abs(expected)
        if not float(error.max()) <= smallest:
            worst = np.unravel_index(int(error.argmax()), error.shape)
            return Check(f"a gradient that is off by {error[worst]:.3g} from {expected[worst]:.3g} near row {begin}")
    return Check(None, loss_error, worst_error / largest if largest else worst_error)
