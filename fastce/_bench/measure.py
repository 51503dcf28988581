"""Measure a case: every system in interleaved rounds (A B C, A B C, ...), each answer checked before it is timed.

Interleaved, so that a machine that slows down slows all; medians and quartiles, so that no single run counts.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

from fastce._bench.cases import Case, inputs
from fastce._bench.memory_limit import limit_call
from fastce._bench.ours import OURS
from fastce._bench.peers import PEERS
from fastce._bench.reference import mistake
from fastce._bench.system import System

SYSTEMS = (*OURS, *PEERS)

LIMIT = "memory limit"

SHORTEST = 20e-3
"""Seconds a sample takes at least: quicker calls are repeated within it, after one that is not counted. After a pause
caches, threads and clock need some milliseconds until they are as in the middle of a loop."""

SETTLE = 10e-3
"""Seconds between two systems: the threads of the one before spin for some milliseconds, each in its own OpenMP."""


@dataclass
class Measurement:
    """What one system did on one case: seconds a call, one a round; or why there are none."""

    case: Case
    system: str
    seconds: list[float] = field(default_factory=list)
    first_call: float = 0.0
    """Seconds of the very first call: compilation and warm-up are in it."""
    why_not: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, over the median."""
        if len(self.seconds) < 3:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2.0 / self.median

    @property
    def bytes_per_second(self) -> float:
        return (self.case.bytes_held if self.system == LIMIT else self.case.bytes_moved) / self.median


def measure(
    case: Case, systems: Sequence[System], budget: float = 6.0, min_rounds: int = 5, max_rounds: int = 100
) -> list[Measurement]:
    """Measure one case for about `budget` seconds of rounds; the memory limit comes last in the list."""
    measurements, timed = [], []
    for system in systems:
        measurement = Measurement(case, system.name)
        measurements.append(measurement)
        if run := _checked(system, measurement):
            timed.append((measurement, run, _repetitions(run)))
    limit = Measurement(case, LIMIT)
    measurements.append(limit)
    if moved := limit_call(case, inputs(case)):
        timed.append((limit, moved, _repetitions(moved)))
    else:
        limit.why_not = "a small case, or no C core"
    end, rounds = perf_counter() + budget, 0
    while timed and rounds < max_rounds and (rounds < min_rounds or perf_counter() < end):
        rounds += 1
        for measurement, run, repetitions in timed:
            measurement.seconds.append(_sample(run, repetitions))
    return measurements


def _checked(system: System, measurement: Measurement) -> Callable[[], Any] | None:
    """Prepare a system and hold its first answer against the reference; None, and why, where it is not to be timed."""
    if missing := system.missing():
        measurement.why_not = f"{' and '.join(missing)} not installed"
        return None
    if measurement.case.huge and not system.streams:
        measurement.why_not = "would need several arrays of this size"
        return None
    try:
        call = system.prepare(measurement.case, inputs(measurement.case))
        if call is None:
            measurement.why_not = "does not do this case"
            return None
        begin = perf_counter()
        result = call.run()
        measurement.first_call = perf_counter() - begin
        if wrong := mistake(measurement.case, call.answer(result)):
            measurement.why_not = f"wrong: {wrong}"
            return None
    except Exception as error:  # another system's failure is a line of the report, not its end
        measurement.why_not = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        return None
    return call.run


def _repetitions(run: Callable[[], Any]) -> int:
    run()
    begin = perf_counter()
    run()
    return max(1, round(SHORTEST / (perf_counter() - begin)))


def _sample(run: Callable[[], Any], repetitions: int) -> float:
    sleep(SETTLE)
    if repetitions > 1:  # a long call warms itself
        run()
    gc.disable()
    try:
        begin = perf_counter()
        for _ in range(repetitions):
            run()
        return (perf_counter() - begin) / repetitions
    finally:
        gc.enable()
