"""From a Request to a result: choose a backend, choose threads, check and run, reduce.

The only place that reads what a backend reports, and so the only one that raises for a bad row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastce import _backends, _inputs, _settings, _threads
from fastce._problem import Array, Output, Problem, Totals
from fastce.errors import BackendUnavailableError

if TYPE_CHECKING:
    from fastce._backends import Implementation
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


def _no_quick(logits: Any, target: Any, *options: Any) -> float | None:
    return None


quick = _no_quick
"""What `cross_entropy` tries first: the loss of a small plain call, or None. Nothing until the first call has settled
the environment and loaded the C core, then its own function if it is what "auto" means."""


NUMBA = "numba"


class _NoQuick:
    """What `numba_quick` is before the first call that names the Numba backend."""

    def loss(self, logits: Any, target: Any, num_threads: Any, *options: Any) -> float | None:
        return None

    def loss_and_grad(self, logits: Any, target: Any, out: Any, num_threads: Any, *options: Any) -> float | None:
        return None


numba_quick: Any = _NoQuick()
"""The same for calls that name the Numba backend, and for their gradients: its `Quick`."""


def settle_quick(options: dict[str, Any], defaults: tuple[Any, ...], backend: str) -> None:
    """Let small calls with all options at their defaults go straight to the C core, if that is where they would go.

    Those that name the Numba backend go straight there.
    """
    global quick, numba_quick
    if backend is NUMBA and type(numba_quick) is _NoQuick:
        from fastce._backends import numba

        numba_quick = numba.Quick(options)
    name = _settings.environment().backend or "auto"
    if quick is not _no_quick or name not in ("auto", "cython") or _backends.why_not("cython"):
        return
    from fastce import _core
    from fastce._backends import cython

    isa = cython.default_isa().encode()
    most = _threads.most_logits_of_one_thread(Output.LOSS)
    _core.enable_quick(defaults, _settings.OVERRIDES, isa, most, _threads.LOGITS_PER_ROW)
    quick = _core.quick


def loss(request: Request, backend: str, num_threads: int | None) -> float | Array:
    """Do a problem whose output is the loss."""
    chosen = choose(request.problem, backend, num_threads)
    return _reduce(request, _run(chosen, request))


def loss_and_grad(request: Request, backend: str, num_threads: int | None) -> tuple[float | Array, Array]:
    """Do a problem whose output is the gradient; nothing is written before every row has been checked."""
    chosen = choose(request.problem, backend, num_threads)
    weight = 0.0
    if request.problem.logits.size:
        checked = chosen.module.scan(request.problem, chosen.num_threads)
        _raise_if_bad(request, checked)
        weight = checked.weight
    problem = replace(request.problem, grad_scale=_grad_scale(request, weight))
    request = request._replace(problem=problem)
    totals = _run(chosen, request)
    return _reduce(request, totals), request.result


def softmax(request: Request, backend: str, num_threads: int | None) -> Array:
    """Do a problem whose output is an array of the logits' shape."""
    _run(choose(request.problem, backend, num_threads), request)
    result: Array = request.result
    return result


def logsumexp(request: Request, backend: str, num_threads: int | None) -> Array:
    """Do a problem whose output is one number per row."""
    problem, out = request.problem, request.result
    _run(choose(problem, backend, num_threads), request)
    values = _positions(problem)
    if out is None:
        return values
    if not np.may_share_memory(out, values):
        with np.errstate(all="ignore"):  # float16 has no number for what float32 has
            out[...] = values
    result: Array = out
    return result


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


def _run(chosen: Chosen, request: Request) -> Totals:
    if request.problem.logits.size == 0:
        return Totals(-1, 0.0, 0.0)
    totals = chosen.module.run(request.problem, chosen.num_threads)
    _raise_if_bad(request, totals)
    return totals


def _raise_if_bad(request: Request, totals: Totals) -> None:
    if totals.bad_row >= 0:
        raise _inputs.bad_row(request, totals.bad_row)


def _reduce(request: Request, totals: Totals) -> float | Array:
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


def _grad_scale(request: Request, weight: float) -> float:
    """Return what makes the gradient that of the value `_reduce` returns; 0 where there is nothing to average."""
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
