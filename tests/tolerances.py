"""The published accuracy: how far from the oracle each result may be. The only place where that is worked out.

The limits in ULP are those of `accuracy/table.json`; what is allowed on top of them is written here.

ULP is a unit in the last place of the exact value, in the dtype of the arithmetic (float32, or float64 for float64
logits). Where some x_k - m is not exact in that dtype, the rounding of x_k - m (half a ULP of it, relative, in
exp(x_k - m)) is allowed on top, weighted by what class k contributes: no algorithm that subtracts first can avoid it.
Gradients of labels, smoothed or not, may subtract the label's logit x_y in place of m, and are allowed its distance
from m likewise.
A float16 or bfloat16 gradient may be off by its own rounding too. Probabilities below the smallest normal number may
be lost, wholly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from oracle import Answer, Rows, Wide

Array = npt.NDArray[Any]

TABLE = Path(__file__).resolve().parent.parent / "accuracy" / "table.json"
ULPS: dict[str, float] = {
    name: row["limit"] for name, row in json.loads(TABLE.read_text(encoding="utf-8"))["results"].items()
}


class Format(NamedTuple):
    """A floating dtype: its mantissa bits and the exponent of its smallest normal number."""

    bits: int
    lowest: int

    def ulp(self, value: Any) -> Array:
        """The spacing of the format's numbers at value; that of subnormal numbers near zero, and 0 at infinity."""
        value = np.where(np.isfinite(value), value, Wide(0))
        exponent = np.where(value == 0, self.lowest, np.frexp(value)[1] - 1)
        return np.ldexp(Wide(1), np.maximum(exponent, self.lowest) - self.bits)

    @property
    def tiny(self) -> Any:
        return np.ldexp(Wide(1), self.lowest)

    @property
    def half_eps(self) -> Any:
        return np.ldexp(Wide(1), -self.bits - 1)


FORMATS = {
    np.dtype(np.float16): Format(10, -14),
    np.dtype(ml_dtypes.bfloat16): Format(7, -126),
    np.dtype(np.float32): Format(23, -126),
    np.dtype(np.float64): Format(52, -1022),
}


def arithmetic(dtype: np.dtype[Any]) -> Format:
    return FORMATS[np.dtype(np.float64 if dtype.newbyteorder("=") == np.float64 else np.float32)]


def _doubts(rows: Rows, real: Format) -> tuple[Array, Array]:
    """The relative error to allow in each exp(x_k - m), and what that does to the sum of them all: (n, C), (n,)."""
    with np.errstate(all="ignore"):
        p = np.where(rows.finite[:, None], rows.p, Wide(0))
        d = np.where(rows.finite[:, None] & np.isfinite(rows.x), rows.x - rows.m[:, None], Wide(0))
        # One difference that is not exact puts the whole row under the allowance: kernels subtract running maxima too,
        # and the label's logit.
        to_label = np.where(np.isfinite(rows.x), rows.x - _label_logit(rows)[:, None], Wide(0))
        exact = (_rounded(d, real) == d).all(-1) & (_rounded(to_label, real) == to_label).all(-1)
        each = np.where(exact[:, None], Wide(0), np.abs(d) * real.half_eps)
        lost = np.exp(d) < 2 * real.tiny
        each = np.where(lost, Wide(1), np.minimum(each, 1))
        return each, (p * each).sum(-1)


def _rounded(d: Array, real: Format) -> Array:
    return d.astype(np.float64 if real.bits == 52 else np.float32)


def _at_label(rows: Rows) -> Array:
    """The one class that has all of the target's mass, or the most where others, several, have the same: (n, C)."""
    least = rows.q.min(-1, keepdims=True, initial=np.inf)
    above = rows.q > least
    return above & ((above.sum(-1) == 1) & ((least[:, 0] == 0) | (rows.q.shape[-1] > 2)))[:, None]


def _label_logit(rows: Rows) -> Array:
    """The label's logit; m where there is none."""
    label = _at_label(rows)
    logit = np.where(label, rows.x, Wide(0)).sum(-1)
    return np.where(label.any(-1) & np.isfinite(logit), logit, np.where(rows.finite, rows.m, Wide(0)))


def lse(rows: Rows, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> Array:
    real = arithmetic(dtype)
    with np.errstate(all="ignore"):
        size = np.where(rows.finite, np.maximum(np.abs(rows.m), np.log1p(rows.r)), Wide(0))
    return ulps["lse"] * real.ulp(size) + _doubts(rows, real)[1]


def losses(rows: Rows, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> Array:
    """Bounds on the error of the losses of the rows, before any scale."""
    real = arithmetic(dtype)
    total = _doubts(rows, real)[1]
    off = lse(rows, dtype, ulps)
    with np.errstate(all="ignore"):
        size = np.where(rows.finite, np.abs(rows.lse), Wide(0))
    squares = rows.z * (2 * size * off + off * off)
    return ulps["loss"] * real.ulp(rows.loss) + rows.mass * total + squares


def gradients(rows: Rows, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> Array:
    """Bounds on the error of the gradient of each row, (n, C), before any scale."""
    real = arithmetic(dtype)
    each, total = _doubts(rows, real)
    with np.errstate(all="ignore"):
        p = np.where(rows.finite[:, None], rows.p, Wide(0))
        size = np.where(rows.finite, np.abs(rows.lse), Wide(0))
    one_class = ((rows.q > 0).sum(-1) <= 1) & (rows.z == 0)
    far = np.where(_at_label(rows) & (rows.z == 0)[:, None] & (each < 1), each, Wide(0)).sum(-1)
    rounding = each + (total + 2 * far)[:, None]
    softmax = rows.mass[:, None] * p
    label = ulps["label gradient"] * real.ulp(rows.grad)
    measure = ulps["gradient"] * real.ulp(np.maximum(softmax, rows.q))
    lse_term = 2 * rows.z[:, None] * p
    lse_bound = lse_term * (lse(rows, dtype, ulps)[:, None] + size[:, None] * rounding)
    lse_bound += ulps["gradient"] * real.ulp(lse_term * size[:, None]) * (rows.z[:, None] > 0)
    return np.where(one_class[:, None], label, measure) + softmax * rounding + lse_bound


def probabilities(rows: Rows, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> Array:
    real = arithmetic(dtype)
    each, total = _doubts(rows, real)
    with np.errstate(all="ignore"):
        p = np.where(rows.finite[:, None], rows.p, Wide(0))
    return ulps["probability"] * real.ulp(p) + p * (each + total[:, None])


def log_probabilities(rows: Rows, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> Array:
    """x_k - m - log1p(r): two terms of one sign."""
    real = arithmetic(dtype)
    with np.errstate(all="ignore"):
        log_p = np.where(np.isfinite(rows.log_p), rows.log_p, Wide(0))
    return ulps["log probability"] * real.ulp(log_p) + _doubts(rows, real)[1][:, None]


def stored(bound: Array, exact: Array, dtype: np.dtype[Any]) -> Array:
    """A bound on the error after rounding to dtype, from the bound before: half a ULP of what may be rounded."""
    kind = FORMATS[dtype.newbyteorder("=")]
    with np.errstate(all="ignore"):
        return bound + kind.ulp(np.abs(exact) + bound) / 2


def values(answer: Answer, dtype: np.dtype[Any], reduction: str) -> Any:
    """A bound on the error of what a call returns as its loss."""
    with np.errstate(all="ignore"):
        bounds = losses(answer.rows, dtype) * answer.scale
        if reduction == "none":
            return bounds.reshape(np.shape(answer.value)) + arithmetic(dtype).ulp(answer.value) / 2
        return bounds.sum() + 4 * FORMATS[np.dtype(np.float64)].ulp(answer.value)
