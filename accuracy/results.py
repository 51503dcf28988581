"""Losses, gradients and the functions without a target: the largest error of every system, in ULP.

The truth is the oracle of the tests, in extended precision; of the worst of each system mpmath has the last word. What
rounding does to x_k - m, which no method avoids that subtracts first, is taken off as `tests/tolerances.py` allows it:
nothing where all differences are exact.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from accuracy.cases import DTYPES, Case, cases
from accuracy.systems import System, systems
from accuracy.table import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import oracle
import tolerances
from oracle import Rows, Wide

Array = npt.NDArray[Any]

MOST_EXACT_CLASSES = 5000
"""mpmath takes too long for longer rows, whose figures are the oracle's."""

NOTHING = dict.fromkeys(tolerances.ULPS, 0)
ONE = dict.fromkeys(tolerances.ULPS, 1)


class Seen(NamedTuple):
    """An error, and where: row and class (0 for what a row has one of)."""

    ulp: float
    case: Case
    row: int
    column: int
    got: Any


Worst = dict[tuple[str, str, str], Seen]
"""By row of the table, dtype of the arithmetic, system."""


class Truth(NamedTuple):
    """Exact values, (n, C) or (n, 1); what rounding of x_k - m may do to them, and a ULP."""

    exact: Array
    allowed: Array
    ulp: Array

    def errors(self, got: Array) -> Array:
        """Return how far each element is off, in ULP; infinite where a number is due and none came."""
        got = oracle.widen(got).reshape(self.exact.shape)
        with np.errstate(all="ignore"):
            off: Array = np.maximum(np.abs(got - self.exact) - self.allowed, 0) / self.ulp
            return np.where(np.isfinite(off), off, np.where(got == self.exact, 0, np.inf))


def measure() -> dict[str, dict[str, dict[str, Figure]]]:
    """Measure every system on every case: row of the table -> dtype of the arithmetic -> system -> figure."""
    worst: Worst = {}
    everybody = systems()
    for dtype in DTYPES:
        for case in cases(dtype):
            want = oracle.cross_entropy(case.logits, case.target, label_smoothing=case.label_smoothing).rows
            truth = _truth(want, case)
            for system in everybody:
                if system.halves or case.logits.dtype.itemsize > 2:
                    _measure_case(worst, system, case, truth)
    measured: dict[str, dict[str, dict[str, Figure]]] = {}
    for (row, dtype, name), seen in worst.items():
        place = f"{seen.case.dtype}, {seen.case.name}, row {seen.row}"
        if seen.case.logits.shape[1] > 1 and row not in ("loss", "lse"):
            place += f", class {seen.column}"
        measured.setdefault(row, {}).setdefault(dtype, {})[name] = Figure(_checked(row, seen), place)
    measured["mean"] = {"float64": {s.name: _mean(s) for s in everybody if s.mean}}
    return measured


def _measure_case(worst: Worst, system: System, case: Case, truth: dict[str, Truth]) -> None:
    loss, grad = system.loss_and_grad(case)
    got = {"loss": loss, "label gradient" if case.labelled else "gradient": grad}
    if case.labelled:
        got["lse"] = system.logsumexp(case.logits)
    if case.labelled and case.logits.dtype.itemsize > 2:  # else they are rounded to halves
        got |= {"probability": system.softmax(case.logits), "log probability": system.log_softmax(case.logits)}
    real = "float64" if case.dtype == "float64" else "float32"
    for row, values in got.items():
        ulps = truth[row].errors(values)
        i, k = (int(at) for at in np.unravel_index(ulps.argmax(), ulps.shape))
        key = (row, real, system.name)
        if key not in worst or ulps[i, k] > worst[key].ulp:
            worst[key] = Seen(float(ulps[i, k]), case, i, k, np.asarray(values).reshape(ulps.shape)[i, k])


def _truth(want: Rows, case: Case) -> dict[str, Truth]:
    """What each row of the table is to be."""
    dtype = case.logits.dtype
    found = {
        "loss": (want.loss, tolerances.losses),
        "label gradient" if case.labelled else "gradient": (want.grad, tolerances.gradients),
    }
    if case.labelled:
        found["lse"] = (want.lse, tolerances.lse)
        found["probability"] = (want.p, tolerances.probabilities)
        found["log probability"] = (want.log_p, tolerances.log_probabilities)
    truth = {}
    for row, (exact, bound) in found.items():
        allowed = bound(want, dtype, NOTHING)
        ulp = bound(want, dtype, ONE) - allowed
        if row == "label gradient":
            allowed = np.where(np.abs(exact) < tolerances.arithmetic(dtype).tiny, np.inf, allowed)
        shape = (len(case.logits), -1)
        truth[row] = Truth(exact.reshape(shape), allowed.reshape(shape), ulp.reshape(shape))
    return truth


def _checked(row: str, seen: Seen) -> float:
    """The same error, with mpmath's value in place of the oracle's."""
    case, i = seen.case, seen.row
    if case.logits.shape[1] > MOST_EXACT_CLASSES or not np.isfinite(seen.ulp):
        return seen.ulp
    one = case._replace(logits=case.logits[i : i + 1], target=case.target[i : i + 1])
    rows = oracle.cross_entropy(one.logits, one.target, label_smoothing=one.label_smoothing).rows
    exact = oracle.exact_row(rows.x[0], rows.q[0], Wide(0), ignored=False)
    field = {"label gradient": "grad", "gradient": "grad", "probability": "p", "log probability": "log_p"}.get(row, row)
    values = np.atleast_1d(np.array([exact[field]], object).squeeze())
    truth = _truth(rows, one)[row]
    truth = truth._replace(exact=np.array([[oracle.narrow(v) for v in values]], Wide))
    return float(truth.errors(np.full(truth.exact.shape, seen.got))[0, seen.column])


def _mean(system: System) -> Figure:
    """10⁸ rows of two classes: 10⁴ that are broadcast."""
    n = 10_000
    rng = np.random.default_rng(11)
    logits = np.broadcast_to(rng.standard_normal((n, 2)) * 3, (n, n, 2))
    labels = np.broadcast_to(rng.integers(0, 2, n), (n, n))
    assert system.mean is not None
    got, losses = system.mean(logits, labels)
    exact = oracle.wide_sum(oracle.widen(losses)) / n
    ulp = abs(Wide(got) - exact) / tolerances.FORMATS[np.dtype(np.float64)].ulp(exact)
    return Figure(float(ulp), "10,000 rows of two classes, 10,000 times")
