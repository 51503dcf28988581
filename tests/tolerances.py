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

import oracle
import oracle_family
from oracle import Answer, Rows, Wide

Array = npt.NDArray[Any]

TABLE = json.loads((Path(__file__).resolve().parent.parent / "accuracy" / "table.json").read_text(encoding="utf-8"))
ULPS: dict[str, float] = {name: row["limit"] for name, row in TABLE["results"].items()}
FOCAL_EXPONENT_ULPS: float = TABLE["allowed"]["focal exponent"]["limit"]
SOFTCAP_ULPS: float = TABLE["allowed"]["softcap"]["limit"]
SOFTCAP_SLOPE_ULPS: float = TABLE["allowed"]["softcap slope"]["limit"]


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
    def largest(self) -> Any:
        """The power of two above the largest number."""
        return np.ldexp(Wide(1), 2 - self.lowest)

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
        moved = _moved(rows, real)
        of_max = np.where(d == 0, moved, Wide(0)).max(-1, keepdims=True, initial=0)
        each = each + np.where(d == 0, Wide(0), moved + of_max)
        lost = np.exp(d) < 2 * real.tiny
        each = np.where(lost, Wide(1), np.minimum(each, 1))
        return each, (p * each).sum(-1)


def _moved(rows: Rows, real: Format) -> Array:
    """How far what stands for a logit may be off, beside the rounding of its distance to others: (n, C).

    A temperature that is no power of two is rounded, and so is the quotient; a softcap's tanh is as far off as the
    table says.
    """
    with np.errstate(all="ignore"):
        there = rows.finite[:, None] & np.isfinite(rows.x)
        if rows.softcap:
            return np.where(there, SOFTCAP_ULPS * real.ulp(rows.x), Wide(0))
        if np.frexp(rows.temperature)[0] == 0.5:
            return np.zeros(rows.x.shape, Wide)
        return np.where(there, 2 * real.half_eps * np.abs(rows.x - rows.m[:, None]), Wide(0))


def _sloped(rows: Rows, bound: Array, real: Format) -> Array:
    """Bounds on gradients by the logits, from those on gradients by what stands for them."""
    if not rows.softcap or rows.raw is None:
        return bound * rows.slope
    with np.errstate(all="ignore"):
        u = np.abs(rows.raw / Wide(rows.temperature) / Wide(rows.softcap))
        # T c, its inverse and the product with that are rounded, and exp(-2u) is off by what that does to 2u.
        off = SOFTCAP_SLOPE_ULPS * 2 * real.half_eps + np.where(np.isfinite(u), 6 * u * real.half_eps, Wide(0))
        off = np.where(rows.slope * Wide(rows.temperature) < 8 * real.tiny, Wide(1), np.minimum(off, 1))
        grad = np.where(np.isfinite(rows.grad), np.abs(rows.grad), Wide(0))
        slope = np.where(np.isfinite(rows.slope), rows.slope, Wide(0))
        return slope * (bound * (1 + off) + grad * off)


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
        moved = np.where(rows.x == rows.m[:, None], _moved(rows, real), Wide(0)).max(-1, initial=0)
    return ulps["lse"] * real.ulp(size) + _doubts(rows, real)[1] + moved


def losses(rows: Rows, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> Array:
    """Bounds on the error of the losses of the rows, before any scale."""
    real = arithmetic(dtype)
    total = _doubts(rows, real)[1]
    off = lse(rows, dtype, ulps)
    with np.errstate(all="ignore"):
        size = np.where(rows.finite, np.abs(rows.lse), Wide(0))
    squares = rows.z * (2 * size * off + off * off)
    pulled = np.where(rows.q > 0, rows.q * _moved(rows, real), Wide(0)).sum(-1)
    return ulps["loss"] * real.ulp(rows.loss) + rows.mass * total + pulled + squares


def gradients(rows: Rows, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> Array:
    """Bounds on the error of the gradient of each row by its logits, (n, C), before any scale."""
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
    bound = np.where(one_class[:, None], label, measure) + softmax * rounding + lse_bound
    return _sloped(rows, bound, real)


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


def statistics(rows: Rows, label: Array, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> dict[str, Array]:
    """Bounds on what row_statistics tells that is not exact, of rows with these labels."""
    own = {name: ulps[f"statistics {name}"] for name in ("lse", "loss", "entropy", "probability")}
    share = probabilities(rows, dtype, own)[np.arange(len(label)), label]
    return {
        "lse": lse(rows, dtype, own),
        "loss": losses(rows, dtype, own),
        "entropy": entropies(rows, dtype, own),
        "target_probability": np.where(rows.finite, share, Wide(0)),
    }


def entropies(rows: Rows, dtype: np.dtype[Any], ulps: Mapping[str, float]) -> Array:
    """Of the sum of p_k (-log p_k).

    An error of exp(x_k - m) moves it by p_k (log p_k + entropy), and p_k more if it is lost.
    """
    each, _ = _doubts(rows, arithmetic(dtype))
    with np.errstate(all="ignore"):
        parts = np.where(rows.p > 0, rows.p * rows.log_p, Wide(0))
        entropy = -parts.sum(-1)
        moved = (np.abs(parts + rows.p * entropy[:, None]) * each + rows.p * each * each).sum(-1)
    return ulps["entropy"] * arithmetic(dtype).ulp(entropy) + np.where(rows.finite, moved, Wide(0))


def focal(
    rows: Rows, label: Array, gamma: float, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS
) -> tuple[Array, Array]:
    """Bounds on a focal loss and its gradient, of rows of plain cross entropy against these labels.

    What u = 1 - p is off by, relative, its power is off by gamma times: the limits are multiplied by 1 + gamma, and so
    is what differences that are not exact do to cross entropy. Below the smallest normal number either may be lost.
    """
    real = arithmetic(dtype)
    loss, grad, slope = oracle.focal(rows, label, gamma)
    bare = dict.fromkeys(ulps, 0.0)
    with np.errstate(all="ignore"):
        moved = np.where(rows.loss > 0, losses(rows, dtype, bare) / rows.loss, 0)
        of_loss = (1 + gamma) * (ulps["focal loss"] * real.ulp(loss) + np.abs(loss) * moved)
        of_grad = (1 + gamma) * (ulps["focal gradient"] * real.ulp(grad) + np.abs(grad) * moved[:, None])
        of_grad = of_grad + np.abs(slope)[:, None] * gradients(rows, dtype, bare)
    return of_loss + real.tiny, of_grad + real.tiny


def distillation(
    rows: Rows, teacher: Rows, temperature: float, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS
) -> tuple[Array, Array]:
    """Bounds on the loss and the gradient by x/T of rows of x/T, whose measure is the softmax of the teacher's t/T.

    Where 1/T is not exact, its rounding and that of its product are allowed like that of a difference, of which nothing
    is known to be exact then.
    """
    real = arithmetic(dtype)
    roundings = 1 if np.frexp(temperature)[0] == 0.5 else 3

    def doubts(side: Rows) -> Array:
        each, _ = _doubts(side, real)
        if roundings == 1:
            return each
        d = np.where(side.finite[:, None] & np.isfinite(side.x), side.x - side.m[:, None], Wide(0))
        return np.minimum(np.maximum(each, roundings * np.abs(d) * real.half_eps), 1)

    with np.errstate(all="ignore"):
        finite = rows.finite & teacher.finite
        p, q = (np.where(finite[:, None], part, Wide(0)) for part in (rows.p, rows.q))
        each, of_teacher = doubts(rows), doubts(teacher)
        inexact = (each > 0).any(-1) | (of_teacher > 0).any(-1)
        gap = np.where((q > 0) & finite[:, None], rows.m[:, None] - rows.x, Wide(0))
        distance = (q * gap).sum(-1)
        pulled = (q * np.abs(gap - distance[:, None]) * of_teacher).sum(-1)
        of_p, of_q = (p * each).sum(-1), (q * of_teacher).sum(-1)
        loss = ulps["distillation loss"] * real.ulp(rows.loss) + of_p + pulled
        loss = loss + np.where(inexact, roundings * real.half_eps * distance, Wide(0))
        slope = ulps["distillation gradient"] * real.ulp(np.maximum(p, q))
        slope = slope + p * (each + of_p[:, None]) + q * (of_teacher + of_q[:, None])
        return np.where(np.isfinite(loss), loss, Wide(0)), slope


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


# --- the family -------------------------------------------------------------------------------------------------------


def family(answer: oracle_family.Answer, dtype: np.dtype[Any], ulps: Mapping[str, float] = ULPS) -> tuple[Array, Array]:
    """Bounds on the error of losses and slopes, before any scale, for all that oracle_family answers.

    A target is read in the dtype of the arithmetic: what its rounding moves is allowed on top. So is, of a focal loss,
    the rounding of the exponent E in (1 - p)^gamma = exp(-E). Costs of an element below the smallest normal number may
    be lost, wholly, and what overflows the arithmetic is infinite.
    """
    real = arithmetic(dtype)
    with np.errstate(all="ignore"):
        loss, slope = answer.moved(np.abs(_rounded(answer.t, real) - answer.t))
        if answer.parts:
            loss = loss + ulps["element"] * real.ulp(answer.loss)
            terms = []
            for part in answer.parts:
                rounding = np.minimum(1, FOCAL_EXPONENT_ULPS * 2 * real.half_eps * part.exponent)
                rounding = np.where(np.exp(-part.exponent) < 2 * real.tiny, Wide(1), rounding)
                of_loss, of_slope = (
                    np.where(part.exponential & (np.abs(v) < 2 * real.tiny), Wide(1), rounding) * _weighed(part, v)
                    for v in (part.cost, part.slope)
                )
                loss, slope = loss + of_loss, slope + of_slope
            terms = [_weighed(part, part.slope) for part in answer.parts]
            mixed = (terms[0] != 0) & (terms[1] != 0)
            slope = slope + ulps["slope"] * real.ulp(np.where(mixed, np.maximum(*terms), np.abs(answer.slope)))
            bare = np.maximum(*(np.where(part.coefficient == 0, Wide(0), np.abs(part.slope)) for part in answer.parts))
        else:
            loss = loss + ulps["terms"] * real.ulp(answer.sizes)
            slope = slope + ulps["slope"] * real.ulp(answer.slope)
            bare = np.abs(answer.slope) / np.where(answer.t == 0, Wide(1), answer.t)
        loss, slope = (np.where(np.isnan(bound), Wide(0), bound) for bound in (loss, slope))
        slope = np.where(np.isinf(_overflowing(Wide(0), bare, real)), Wide(np.inf), slope)
        return _overflowing(loss, answer.loss, real), _overflowing(slope, answer.slope, real)


def family_values(answer: oracle_family.Answer, dtype: np.dtype[Any], reduction: str) -> Any:
    """A bound on the error of what a call returns as its loss."""
    with np.errstate(all="ignore"):
        bounds = np.where(np.isfinite(answer.loss), family(answer, dtype)[0] * answer.scale, Wide(0))
        if reduction == "none":
            bounds = bounds + arithmetic(dtype).ulp(answer.value) / 2
            return _overflowing(bounds, answer.value, arithmetic(dtype))
        return bounds.sum() + 4 * FORMATS[np.dtype(np.float64)].ulp(answer.value)


def family_gradients(answer: oracle_family.Answer, dtype: np.dtype[Any], out: np.dtype[Any]) -> Array:
    """Bounds on the error of the gradient in the dtype of what receives it, in the shape of the first argument."""
    with np.errstate(all="ignore"):
        scale = np.abs(answer.scale * answer.grad_output)
        bound = family(answer, dtype)[1] * (scale if answer.axis is None else scale[..., None])
        bound = np.where(np.isnan(bound), Wide(0), bound)
        bound = bound if answer.axis is None else np.moveaxis(bound, -1, answer.axis)
        real = np.dtype(np.float64 if arithmetic(dtype).bits == 52 else np.float32)
        for kind in (real, out.newbyteorder("=")):
            bound = _overflowing(stored(bound, answer.grad, kind), answer.grad, FORMATS[kind])
        return bound


def _weighed(part: oracle_family.Part, size: Array) -> Array:
    return np.where(part.coefficient == 0, Wide(0), part.coefficient * np.abs(size))


def _overflowing(bound: Array, exact: Array, kind: Format) -> Array:
    """No bound where the kind of number may have none so large."""
    reach = np.abs(exact) + bound
    return np.where(reach >= kind.largest * (1 - kind.half_eps), Wide(np.inf), bound)
