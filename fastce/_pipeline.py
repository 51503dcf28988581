"""From a Request to a result: choose a backend, choose threads, check and run, reduce.

The only place that reads what a backend reports, and so the only one that raises for a bad row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastce import _backends, _inputs, _settings, _threads
from fastce._problem import Array, Problem, Statistics, Totals
from fastce.errors import BackendUnavailableError

if TYPE_CHECKING:
    from fastce._backends import Implementation, Quick
    from fastce._inputs import Request


@dataclass(frozen=True)
class Explanation:
    """What a call would get, and why; ``str()`` of it is for reading.

    Attributes
    ----------
    backend : str
        "cython", "numba" or "numpy".
    variant : str
        The ISA of the C core ("avx512", "avx2", "neon", "portable"), "parallel" or "serial" for Numba,
        "reference" for NumPy.
    num_threads : int
    kernel : str
        The kernel of that backend which the number of classes, the dtype and the class axis' stride lead to.
    reasons : tuple of str
        Why this backend, and why this many threads.

    Examples
    --------
    >>> import fastce
    >>> plan = fastce.explain([[1.0, 2.0]], [0], backend="numpy")
    >>> print(str(plan).splitlines()[0])
    numpy (reference), 1 thread, kernel: whole arrays
    """

    backend: str
    variant: str
    num_threads: int
    kernel: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        return "\n    ".join((f"{self.backend} ({self.variant}), {threads}, kernel: {self.kernel}", *self.reasons))


class Chosen(NamedTuple):
    """A backend for a call, how many threads it gets, and who said so."""

    name: str
    module: Implementation
    num_threads: int
    why_backend: str
    why_threads: str
    limit: int
    """Threads the call might have, before the amount of work was looked at."""


class _NoQuick:
    """What does no call at all."""

    def loss(self, *arguments: Any) -> None:
        return None

    def loss_and_grad(self, *arguments: Any) -> None:
        return None


NO_QUICK = _NoQuick()

quick: dict[str, Quick] = {}
"""What `cross_entropy` and its twin try first, by the backend that a call names, "auto" included: what does small plain
calls. Filled by the first call of each, which has read the environment and loaded the backend."""


def settle_quick(backend: str) -> None:
    """After a call with this ``backend`` has succeeded: let small plain ones like it go straight there."""
    if backend in quick:
        return
    name, overrides = backend, _settings.OF_VARIANT
    if backend == "auto":
        name, overrides = _settings.environment().backend or "auto", _settings.OVERRIDES
        if any(variable.get() is not None for variable in overrides):
            return  # another backend has done it
    module = _first_available()[1] if name == "auto" else _backends.load(name)
    quick[backend] = module.quick(overrides) or NO_QUICK


def loss(request: Request, backend: str, num_threads: int | None) -> float | Array:
    """Do a problem whose output is the loss."""
    chosen = choose(request.problem, backend, num_threads)
    totals = run(request, chosen)
    if request.reduction == "mean" and request.denominator is None and _has_own_denominator(request):
        totals = totals._replace(weight=check(request, chosen).weight)
    return reduce(request, totals)


def loss_and_weight(request: Request, backend: str, num_threads: int | None) -> tuple[float | Array, float]:
    """Do the same, and return beside it what a mean divides by."""
    totals = run(request, choose(request.problem, backend, num_threads))
    return reduce(request, totals), totals.weight


def loss_and_grad(request: Request, backend: str, num_threads: int | None) -> tuple[float | Array, Array]:
    """Do a problem whose output is the gradient; nothing is written before every row has been checked."""
    chosen = choose(request.problem, backend, num_threads)
    weight = check(request, chosen).weight
    problem = replace(request.problem, grad_scale=grad_scale(request, weight))
    request = request._replace(problem=problem)
    totals = run(request, chosen)
    return reduce(request, totals._replace(weight=weight)), request.result


def softmax(request: Request, backend: str, num_threads: int | None) -> Array:
    """Do a problem whose output is an array of the logits' shape."""
    run(request, choose(request.problem, backend, num_threads))
    result: Array = request.result
    return result


def logsumexp(request: Request, backend: str, num_threads: int | None) -> Array:
    """Do a problem whose output is one number per row."""
    problem, out = request.problem, request.result
    run(request, choose(problem, backend, num_threads))
    values = _positions(problem)
    if out is None:
        return values
    if not np.may_share_memory(out, values):
        with np.errstate(all="ignore"):  # float16 has no number for what float32 has
            out[...] = values
    result: Array = out
    return result


def row_statistics(request: Request, backend: str, num_threads: int | None) -> Statistics:
    """Do a problem whose output is what is asked about its rows."""
    problem = request.problem
    run(request, choose(problem, backend, num_threads))
    found = problem.statistics or Statistics()
    for values in (found.loss, found.entropy):
        if values is not None and request.unit != 1.0:
            with np.errstate(under="ignore"):
                values /= request.unit
    return Statistics(*(None if values is None else values.reshape(problem.positions) for values in found))


def explain(request: Request, backend: str, num_threads: int | None) -> Explanation:
    """Make the choices for a problem, and do nothing."""
    chosen = choose(request.problem, backend, num_threads)
    plan = chosen.module.describe(request.problem, chosen.num_threads)
    asked, _ = _settings.backend(backend)
    better = _backends.NAMES[: _backends.NAMES.index(chosen.name)] if asked == "auto" else ()
    passed_over = (str(error) for name in better if (error := _backends.why_not(name)) is not None)
    work = f"about {_threads.estimate(request.problem):.2g} s of work for one"
    grain = f"each must find {_threads.SECONDS_PER_THREAD:.2g} s of it"
    reasons = (
        f"backend: {chosen.why_backend}",
        *passed_over,
        f"threads: at most {chosen.limit} ({chosen.why_threads}); {work}, {grain}",
    )
    threads = chosen.num_threads if plan.num_threads is None else plan.num_threads
    return Explanation(chosen.name, plan.variant, threads, plan.kernel, reasons)


def choose(problem: Problem, backend: str, num_threads: int | None) -> Chosen:
    """Choose by argument, `use_backend`, environment and preference, in that order.

    Raises
    ------
    BackendUnavailableError
        For a backend that was named and cannot run.
    """
    name, why_backend = _settings.backend(backend)
    if name == "auto":
        name, module = _first_available()
    else:
        module = _backends.load(name)
    limit, why_threads = _settings.thread_limit(num_threads)
    return Chosen(name, module, _threads.threads_for(problem, limit), why_backend, why_threads, limit)


def _first_available() -> tuple[str, Implementation]:
    for name in _backends.NAMES[:-1]:
        try:
            return name, _backends.load(name)
        except BackendUnavailableError:
            continue
    name = _backends.NAMES[-1]
    return name, _backends.load(name)


def check(request: Request, chosen: Chosen) -> Totals:
    """Check every row of a request, but for its logits, and total what a mean divides by."""
    problem = request.problem
    if problem.logits.size == 0:
        return Totals(-1, 0.0, 0.0)
    if _has_own_denominator(request):
        problem = replace(problem, class_weight=None)
    totals = chosen.module.scan(problem, chosen.num_threads)
    _raise_if_bad(request, totals)
    return totals


def run(request: Request, chosen: Chosen) -> Totals:
    """Do a request as chosen."""
    if request.problem.logits.size == 0:
        return Totals(-1, 0.0, 0.0)
    totals = chosen.module.run(request.problem, chosen.num_threads)
    _raise_if_bad(request, totals)
    return totals


def _has_own_denominator(request: Request) -> bool:
    return request.problem.class_weight is not None and not request.mean_has_class_weight


def _raise_if_bad(request: Request, totals: Totals) -> None:
    if totals.bad_row >= 0:
        raise _inputs.bad_row(request, totals.bad_row)


def reduce(request: Request, totals: Totals) -> float | Array:
    """Return what a call returns as its loss."""
    if request.reduction == "none":
        values = _positions(request.problem)
        if request.unit != 1.0:
            with np.errstate(under="ignore"):
                values /= request.unit
        return values
    if request.reduction == "sum":
        return totals.loss / request.unit
    denominator = totals.weight if request.denominator is None else request.denominator
    return totals.loss / denominator / request.unit if denominator else math.nan


def grad_scale(request: Request, weight: float) -> float:
    """Return what makes the gradient that of the value `reduce` returns; 0 where there is nothing to average."""
    scale = request.grad_output / request.unit
    if request.reduction == "mean":
        denominator = weight if request.denominator is None else request.denominator
        return scale / denominator if denominator else 0.0
    return scale


def _positions(problem: Problem) -> Array:
    values = problem.row_values
    if values is None:
        raise RuntimeError("a problem without row_values has no result per row")
    return values.reshape(problem.positions)
