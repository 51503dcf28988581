"""The C core as a backend: which ISA it uses, and its config. The kernels are in src_c, the binding in _core.pyx."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

from fastce import _core, _settings, _threads
from fastce._backends import Plan, Quick
from fastce._problem import Output, Problem, Totals


def scan(problem: Problem, num_threads: int) -> Totals:
    """Check the target and total the weights."""
    return Totals(*_core.scan(problem, num_threads))


def run(problem: Problem, num_threads: int) -> Totals:
    """Do the problem on the ISA in use."""
    return Totals(*_core.run(problem, isa().encode(), num_threads))


def variants() -> tuple[str, ...]:
    """Return the ISAs that this processor runs, best first."""
    return tuple(name for name, runs in _core.isa_names().items() if runs)


def isa() -> str:
    """Return the ISA in use: forced by a test, by FASTCE_ISA, or the best.

    Raises
    ------
    ValueError
        For one that is unknown or that this processor does not run.
    """
    return _settings.current_variant() or default_isa()


@functools.lru_cache(maxsize=1)
def default_isa() -> str:
    """Return the ISA in use where no test forces one."""
    usable = variants()
    asked = _settings.environment().isa
    if asked is not None and asked not in usable:
        known = asked in _core.isa_names()
        why = "this processor does not run it" if known else "it is unknown"
        raise ValueError(f"FASTCE_ISA: expected one of {', '.join(usable)}, got {asked!r}: {why}")
    return asked or usable[0]


def describe(problem: Problem, num_threads: int) -> Plan:
    """Return the ISA and the kernel that a problem gets."""
    return Plan(isa(), _core.kernel_name(problem), None if _core.has_openmp() else 1)


def quick(overrides: tuple[ContextVar[Any], ...]) -> Quick:
    """Return what does plain calls, on the ISA that is in use where none is forced."""
    loss, grad = (_threads.logits_per_thread(output) for output in (Output.LOSS, Output.GRAD))
    limit, _ = _settings.default_thread_limit()
    isa = default_isa().encode()
    return _core.Quick(overrides, isa, _settings.OVERRIDES, limit, loss, grad, _threads.LOGITS_PER_ROW)


def config() -> dict[str, Any]:
    """Return what the core was compiled with and what it uses."""
    return {
        "isa": isa(),
        "isas": {name: "runs" if runs else "not on this processor" for name, runs in _core.isa_names().items()},
        "cpu_features": [name for name, has in _core.cpu_features().items() if has],
        "openmp": _core.has_openmp(),
        "abi_version": _core.abi_version(),
    }
