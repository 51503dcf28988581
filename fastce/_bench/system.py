"""What a measured system is: a name, what it needs, and how it prepares a case.

A system is given a case and its arrays and returns the call to be timed, with whatever it needs done beforehand
(conversion, compilation of a model, buffers), or None where it does not do such a case.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from fastce._bench.cases import Case, Inputs
from fastce._bench.reference import Answer


def short_name(system: str) -> str:
    """Return the name of a system without "fastce ", which all of ours have."""
    return system.removeprefix("fastce ")


class Call(NamedTuple):
    """What is timed, and how its result is read as an answer (not timed)."""

    run: Callable[[], Any]
    answer: Callable[[Any], Answer]


class System(NamedTuple):
    """One row of the table."""

    name: str
    needs: tuple[str, ...]
    """Modules without which it is skipped, by name."""
    prepare: Callable[[Case, Inputs], Call | None]
    streams: bool = False
    """Whether it reads the logits without making arrays of their size: only such systems do the huge cases."""

    def missing(self) -> list[str]:
        return [module for module in self.needs if find_spec(module) is None]
