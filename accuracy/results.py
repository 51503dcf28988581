"""Losses, gradients and the functions without a target: the largest error of every system, in ULP.

The truth is the oracle of the tests, in extended precision; of the worst of each system mpmath has the last word. What
rounding does to x_k - m, which no method avoids that subtracts first, is taken off as `tests/tolerances.py` allows it:
nothing where all differences are exact.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from accuracy.cases import DTYPES, Case, FamilyCase, cases, family, of_rows, staged
from accuracy.systems import System, systems
from accuracy.table import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import oracle
import oracle_family
import tolerances
from oracle import Wide

Array = npt.NDArray[Any]

MOST_EXACT_CLASSES = 5000
"""mpmath takes too long for longer rows, whose figures are the oracle's."""

OF_CLASSES = (
    *(
        "label gradient",
        "gradient",
        "probability",
        "log probability",
        "slope",
        "distillation gradient",
        "focal gradient",
    ),
    *("temperature gradient", "softcap gradient", "sparse gradient"),
)
"""Rows of the table whose results have a number for each class."""

NOTHING = dict.fromkeys(tolerances.ULPS, 0)
ONE = dict.fromkeys(tolerances.ULPS, 1)


AnyCase = Case | FamilyCase


class Seen(NamedTuple):
    """An error, and where: row and class (0 for what a row has one of)."""

    ulp: float
    case: AnyCase
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


def measure(rows: Sequence[str] | None = None) -> dict[str, dict[str, dict[str, Figure]]]:
    """Measure every system on every case: row of the table -> dtype of the arithmetic -> system -> figure."""
    worst: Worst = {}
    everybody = systems()
    for case in _everything():
        if rows is not None and not set(rows).intersection(_rows_of(case)):
            continue
        truth = _truth(case)
        for system in everybody:
            for row, values in _results(system, case).items():
                ulps = truth[row].errors(values)
                i, k = (int(at) for at in np.unravel_index(ulps.argmax(), ulps.shape))
                key = (row, "float64" if case.dtype == "float64" else "float32", system.name)
                if key not in worst or ulps[i, k] > worst[key].ulp:
                    worst[key] = Seen(float(ulps[i, k]), case, i, k, np.asarray(values).reshape(ulps.shape)[i, k])
    measured: dict[str, dict[str, dict[str, Figure]]] = {}
    for (row, dtype, name), seen in worst.items():
        place = f"{seen.case.dtype}, {seen.case.name}, {_place(row, seen)}"
        measured.setdefault(row, {}).setdefault(dtype, {})[name] = Figure(_checked(row, seen), place)
    if rows is None or "mean" in rows:
        measured["mean"] = {"float64": {s.name: _mean(s) for s in everybody if s.mean}}
    return measured


def _everything() -> Iterator[AnyCase]:
    for dtype in DTYPES:
        yield from cases(dtype)
        yield from staged(dtype)
    for dtype in ("float32", "float64"):
        yield from family(dtype)
        yield from of_rows(dtype)


def _rows_of(case: AnyCase) -> list[str]:
    """Return the rows of the table that a case may count for."""
    if isinstance(case, FamilyCase):
        names = (
            ("lse", "loss", "entropy", "target_probability") if case.function == "row_statistics" else ("loss", "grad")
        )
        return [_row_of(case, name) for name in names]
    if case.option:
        return [f"{case.option}loss", f"{case.option}gradient"]
    labelled = ["label gradient", "lse", "probability", "log probability"]
    return ["loss", *(labelled if case.labelled else ["gradient"])]


def _results(system: System, case: AnyCase) -> dict[str, Array]:
    """What a system computes, by row of the table."""
    if isinstance(case, FamilyCase):
        found = system.family(case) if system.family else {}
        return {_row_of(case, name): values for name, values in found.items()}
    half = case.logits.dtype.itemsize == 2
    if (half and not system.halves) or (case.option and not system.staged):
        return {}
    loss, grad = system.loss_and_grad(case)
    if case.option:
        return {f"{case.option}loss": loss, f"{case.option}gradient": grad}
    got = {"loss": loss, "label gradient" if case.labelled else "gradient": grad}
    if case.labelled:
        got["lse"] = system.logsumexp(case.logits)
    if case.labelled and not half:  # else they are rounded to halves
        got |= {"probability": system.softmax(case.logits), "log probability": system.log_softmax(case.logits)}
    return got


def _row_of(case: FamilyCase, name: str) -> str:
    """Return the row of the table that a result belongs to."""
    if case.function == "row_statistics":
        return "statistics probability" if name == "target_probability" else f"statistics {name}"
    if case.function in ("distillation_loss", "focal_loss"):
        return f"{case.function.removesuffix('_loss')} {'loss' if name == 'loss' else 'gradient'}"
    if case.function == "log_loss":
        return "log_loss"
    return "slope" if name == "grad" else "element" if case.element_wise else "terms"


def _truth_of_rows(case: FamilyCase) -> dict[str, tuple[Array, Array, Array]]:
    """What statistics, distillation and a focal loss are to be: exact, allowed, and that with a ULP."""
    x, other = case.arrays  # type: ignore[misc]
    nothing, one = NOTHING, ONE
    if case.function == "row_statistics":
        rows = oracle.cross_entropy(x, other).rows
        with np.errstate(all="ignore"):
            entropy = -np.where(rows.p > 0, rows.p * rows.log_p, Wide(0)).sum(-1)
        share = rows.p[np.arange(len(x)), other]
        exact = {"lse": rows.lse, "loss": rows.loss, "entropy": entropy, "target_probability": share}
        allowed, ulp = (tolerances.statistics(rows, other, x.dtype, ulps) for ulps in (nothing, one))
        return {_row_of(case, name): (exact[name], allowed[name], ulp[name]) for name in exact}
    if case.function == "focal_loss":
        rows = oracle.cross_entropy(x, other).rows
        loss, grad, _ = oracle.focal(rows, other, case.gamma)
        (of_loss, of_grad), (loss_ulp, grad_ulp) = (
            tolerances.focal(rows, other, case.gamma, x.dtype, ulps) for ulps in (nothing, one)
        )
        return {"focal loss": (loss, of_loss, loss_ulp), "focal gradient": (grad, of_grad, grad_ulp)}
    temperature = case.temperature
    none = np.zeros(len(x), Wide)
    teacher = oracle.compute_rows(oracle.widen(other) / temperature, np.zeros(x.shape, Wide), none, none > 0)
    rows = oracle.compute_rows(oracle.widen(x) / temperature, teacher.p, none, none > 0)
    (loss, slope), (loss_ulp, slope_ulp) = (
        tolerances.distillation(rows, teacher, temperature, x.dtype, ulps) for ulps in (nothing, one)
    )
    square = temperature * temperature
    return {
        "distillation loss": (rows.loss * square, loss * square, loss_ulp * square),
        "distillation gradient": ((rows.p - teacher.p) * temperature, slope * temperature, slope_ulp * temperature),
    }


def _truth(case: AnyCase) -> dict[str, Truth]:
    """What each row of the table is to be."""
    dtype = case.arrays[0].dtype if isinstance(case, FamilyCase) else case.logits.dtype
    found: dict[str, tuple[Array, Array, Array]] = {}
    if isinstance(case, FamilyCase) and case.function in ("row_statistics", "distillation_loss", "focal_loss"):
        found = _truth_of_rows(case)
    elif isinstance(case, FamilyCase):
        options = {} if case.function == "entropy" else {"reduction": "none"}
        function = "categorical_cross_entropy" if case.function == "log_loss" else case.function
        want = getattr(oracle_family, function)(*case.arrays, **options)
        allowed, one = (tolerances.family(want, dtype, ulps) for ulps in (NOTHING, ONE))
        found[_row_of(case, "loss")] = want.loss, allowed[0], one[0]
        if case.has_gradient:
            found["slope"] = want.slope, allowed[1], one[1]
    else:
        rows = oracle.cross_entropy(case.logits, **case.arguments).rows

        def add(row: str, exact: Array, bound: Any) -> None:
            found[row] = exact, bound(rows, dtype, NOTHING), bound(rows, dtype, ONE)

        label = "label " if case.labelled and not case.option else ""
        add(f"{case.option}loss", rows.loss, tolerances.losses)
        add(f"{case.option}{label}gradient", rows.grad * rows.slope, tolerances.gradients)
        if case.labelled and not case.option:
            add("lse", rows.lse, tolerances.lse)
            add("probability", rows.p, tolerances.probabilities)
            add("log probability", rows.log_p, tolerances.log_probabilities)
    truth = {}
    for row, (exact, nothing, one) in found.items():
        with np.errstate(all="ignore"):
            ulp = np.where(np.isfinite(one), one - nothing, 1)
        one_class = not isinstance(case, FamilyCase) and case.labelled and row.endswith("gradient")
        if one_class or row == "slope":  # promised of normal numbers
            nothing = np.where(np.abs(exact) < tolerances.arithmetic(dtype).tiny, np.inf, nothing)
        shape = (exact.shape[0], -1)
        truth[row] = Truth(exact.reshape(shape), nothing.reshape(shape), ulp.reshape(shape))
    return truth


def _place(row: str, seen: Seen) -> str:
    if isinstance(seen.case, FamilyCase) and seen.case.element_wise:
        return "of " + ", ".join(repr(float(array[seen.row])) for array in seen.case.arrays)
    return f"row {seen.row}" + (f", class {seen.column}" if row in OF_CLASSES else "")


def _checked(row: str, seen: Seen) -> float:
    """The same error, with mpmath's value in place of the oracle's."""
    arrays = seen.case.arrays if isinstance(seen.case, FamilyCase) else (seen.case.logits,)
    if (arrays[0].shape[-1] > MOST_EXACT_CLASSES and arrays[0].ndim > 1) or not np.isfinite(seen.ulp):
        return seen.ulp
    wide, oracle.WIDE_ENOUGH = oracle.WIDE_ENOUGH, False
    try:
        truth = _truth(seen.case.only(seen.row))[row]
    finally:
        oracle.WIDE_ENOUGH = wide
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
