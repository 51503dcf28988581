"""One call, prepared: the record the front end hands to a backend and the one that comes back.

A Problem is complete and valid but for what only a visit of the rows can tell (labels, sample weights and
dense targets, which a backend reports as its first bad row). It holds views, never copies: the class axis is
last in every array of the shape of the logits, whatever the layout in memory.

The target measure q of a row with sample weight s is

    labels   q_k = s * (target_scale * w_y * [k = y] + v_k)
    dense    q_k = s * (target_scale * w_k * t_k     + v_k)
    sparse   the same, t_k being the sum of the probabilities of class k in the row's list, added in float64 in the
             order of the list, and with spread_missing, for each class not listed, an equal part of what the sum
             of all of them lacks to 1 (0 where it is more, or where every class is listed)

with w = class_weight (1 where None) and v = class_vector (0 where None). Label smoothing, class weights and
whatever else is expressible through q were folded into these three by the front end: no backend knows them.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastce import _dtypes

Array = npt.NDArray[Any]


class Output(enum.IntEnum):
    """What a backend computes for each row; the numbers are those of the C API."""

    LOSS = 0
    GRAD = 1
    LSE = 2
    SOFTMAX = 3
    LOG_SOFTMAX = 4
    STATISTICS = 5


class Statistics(NamedTuple):
    """What a problem of the output STATISTICS fills, one number a row, (rows,) each; None for what is not asked for.

    The dtype is that of a row's loss, int64 for argmax and rank, bool for correct. What depends on the label is, for a
    row that is ignored or has none, 0 for the loss, NaN, -1 for the rank, and False.
    """

    lse: Array | None = None
    loss: Array | None = None
    entropy: Array | None = None
    argmax: Array | None = None
    target_probability: Array | None = None
    rank: Array | None = None
    margin: Array | None = None
    correct: Array | None = None
    maximum: Array | None = None
    """m of the row; NaN where one of its logits is."""
    rest: Array | None = None
    """r of the row; NaN where m is not finite."""


NEED_LABELS = ("loss", "target_probability", "rank", "margin", "correct")
"""The statistics that depend on the label."""

OF_PARTIALS = ("maximum", "rest")
"""Those that partial results are made of, which `row_statistics` does not offer."""


class Kind(enum.IntEnum):
    """What the logits of a problem hold, and so what its loss is made of; the numbers are those of the C API.

    From BINARY_LOGITS on the kinds are element-wise: each element is a row of one class with a dense target.
    """

    LOGITS = 0
    """Softmax cross entropy: sum of q_k (lse - x_k)."""
    LOG_PROBABILITIES = 1
    """Sum of q_k (-x_k)."""
    PROBABILITIES = 2
    """Sum of q_k (-log x_k)."""
    KL = 3
    """Sum of t_k log(t_k / x_k)."""
    JS = 4
    """Half of the sum of t_k log(t_k / m_k) + x_k log(x_k / m_k), m their mean."""
    TEACHER = 5
    """T^2 times cross entropy of softmax(x / T) against softmax(t / T), t a teacher's logits, T the temperature."""
    BINARY_LOGITS = 6
    """a t sigmoid(-x)^gamma softplus(-x) + b (1 - t) sigmoid(x)^gamma softplus(x)."""
    BINARY_PROBABILITIES = 7
    """a t (-log x) + b (1 - t) (-log(1 - x))."""
    SQUARES = 8
    """(x - t)^2."""

    @property
    def element_wise(self) -> bool:
        return self >= Kind.BINARY_LOGITS


@dataclass(frozen=True, eq=False)
class Problem:
    """What to compute on which arrays.

    ``positions`` stands for the shape of the logits without the class axis; rows are numbered in its C order.
    """

    output: Output
    logits: Array
    """(\\*positions, classes): float16, bfloat16, float32 or float64, any strides, either byte order."""
    labels: Array | None = None
    """(\\*positions): any integer dtype."""
    ignore_index: int | None = None
    """The label of ignored rows; None where the dtype of the labels cannot hold it."""
    dense: Array | None = None
    """(\\*positions, classes): any boolean, integer or floating dtype."""
    listed: Array | None = None
    """(\\*positions, k): any integer dtype, the classes of a sparse target. -1 lists nothing, whatever its probability;
    a row is bad where another is no class, a probability is negative or above largest_target, or all of them above
    most_listed."""
    probabilities: Array | None = None
    """(\\*positions, k): any boolean, integer or floating dtype; those of the listed classes."""
    spread_missing: bool = False
    target_scale: float = 1.0
    class_weight: Array | None = None
    """(classes,): contiguous float64."""
    class_vector: Array | None = None
    """(classes,): contiguous float64."""
    sample_weight: Array | None = None
    """(\\*positions): any boolean, integer or floating dtype; a row of weight 0 is ignored."""
    z_loss: float = 0.0
    row_values: Array | None = None
    """(rows,): contiguous; receives each row's loss (lse for LSE). float64 for float64 logits, else float32."""
    out: Array | None = None
    """(\\*positions, classes): receives the gradient or the probabilities, in either byte order; may be the logits."""
    grad_scale: float = 1.0
    """Multiplies the gradient, or the probabilities, with grad_output."""
    grad_output: Array | None = None
    """(\\*positions): any floating dtype."""
    kind: Kind = Kind.LOGITS
    clip: float = 0.0
    """Probabilities are taken as at least this and at most 1 - clip."""
    temperature: float = 1.0
    """Of TEACHER; and of LOGITS, where x then stands for x / temperature, while the gradient is that of x."""
    softcap: float = 0.0
    """Of LOGITS, 0 for none: x stands for softcap * tanh(x / temperature / softcap)."""
    gamma: float = 0.0
    """The exponent of a focal loss: of binary logits; and of LOGITS with labels alone, where the loss of each row is
    (1 - exp(-c))^gamma * c / q_y, with c the cross entropy of all of q on the label and gamma = 0 that itself."""
    positive: float = 1.0
    """a of the binary kinds, where positive_weight multiplies it."""
    negative: float = 1.0
    """b of the binary kinds."""
    positive_weight: Array | None = None
    """(\\*positions): any dtype of sample_weight, finite, >= 0."""
    factor: Array | None = None
    """(\\*positions): multiplies the losses of element-wise kinds, and is not part of a mean's denominator."""
    statistics: Statistics | None = None

    @property
    def positions(self) -> tuple[int, ...]:
        return self.logits.shape[:-1]

    def at(self, where: tuple[slice | Array, ...]) -> Problem:
        """Return the problem of some positions, which has no arrays for results."""
        parts: dict[str, Any] = {name: array[where] for name, array in self.per_position()}
        return replace(self, **parts, row_values=None, out=None)

    def per_position(self) -> Iterator[tuple[str, Array]]:
        """Give the arrays that hold something for each position, by their names, but for results."""
        for name in PER_POSITION:
            array = getattr(self, name)
            if array is not None:
                yield name, array

    @property
    def n_classes(self) -> int:
        return int(self.logits.shape[-1])

    @property
    def n_rows(self) -> int:
        return math.prod(self.positions)

    @property
    def largest_target(self) -> float:
        """The largest dense target that is acceptable."""
        if self.kind in (Kind.BINARY_LOGITS, Kind.BINARY_PROBABILITIES):
            return 1.0
        return float(np.finfo(self.real).max)

    @property
    def most_listed(self) -> float:
        """The largest sum of a row's probabilities: 1 where the rest is spread, but for 16 roundings of 1."""
        if self.probabilities is None or not self.spread_missing:
            return self.largest_target
        return 1.0 + 16.0 * _dtypes.spacing(self.probabilities.dtype)

    @property
    def real(self) -> np.dtype[Any]:
        """The dtype of the arithmetic and of a row's loss."""
        return np.dtype(np.float64 if self.logits.dtype.newbyteorder("=") == np.float64 else np.float32)


PER_POSITION = ("logits", "labels", "dense", "listed", "probabilities", "sample_weight", "grad_output")
"""What a problem of logits holds for each position, but for results."""


class Totals(NamedTuple):
    """What a visit of all rows adds up to.

    ``bad_row`` is the first row, in C order of the positions, whose label, sample weight or dense target is not
    acceptable, or -1; the sums mean nothing when there is one.
    """

    bad_row: int
    loss: float
    """Sum of the losses of all rows (0.0 from a scan)."""
    weight: float
    """Denominator of a mean: sum of s * w_y over rows not ignored (labels), of s (dense)."""
