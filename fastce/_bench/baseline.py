"""Plain NumPy: what one writes without a library, and what everything is compared with.

The backend `numpy` of fastce does more: every option, and small losses to all their digits.
"""

from __future__ import annotations

import numpy as np

from fastce._bench.cases import Case, Inputs
from fastce._bench.family import Array
from fastce._bench.reference import Answer
from fastce._bench.system import Call, System


def plain_numpy(x: Array, y: Array) -> Array:
    """Return the loss of each row the way one writes it."""
    shifted = x - x.max(axis=1, keepdims=True)
    loss: Array = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(x)), y]
    return loss


def plain_numpy_with_grad(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the loss of each row and the gradient of their sum."""
    rows = np.arange(len(x))
    shifted = x - x.max(axis=1, keepdims=True)
    exps = np.exp(shifted)
    sums = exps.sum(axis=1, keepdims=True)
    grad = exps / sums
    grad[rows, y] -= 1
    return np.log(sums[:, 0]) - shifted[rows, y], grad


def _prepare(case: Case, arrays: Inputs) -> Call | None:
    if not case.plain:
        return None
    x, y = arrays.logits.reshape(-1, case.n_classes), arrays.target.reshape(-1)
    narrow = x.dtype.itemsize < 4  # NumPy would work in float16, which is wrong by percents

    def mean() -> Answer:
        return Answer(float(plain_numpy(x.astype(np.float32) if narrow else x, y).mean(dtype=float)))

    def mean_with_grad() -> Answer:
        losses, grad = plain_numpy_with_grad(x.astype(np.float32) if narrow else x, y)
        grad /= len(x)
        out = grad.astype(x.dtype) if narrow else grad
        return Answer(float(losses.mean(dtype=float)), out.reshape(case.shape))

    return Call(mean_with_grad if case.gradient else mean, lambda answer: answer)


BASELINE = System("plain NumPy", ("numpy",), _prepare)
