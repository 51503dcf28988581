"""Two runs beside each other: the ratio of each time to the earlier one, and how sure it is.

The ratio is the Hodges-Lehmann estimate, the median over all pairs of a new run and an old run; its interval holds the
pairs that the Mann-Whitney test would not reject. Both are exact for any number of runs and assume nothing about how
times are distributed, which is not normal: a machine is disturbed in one direction only. What they cannot know is
that the machine itself was slower on another day: take both runs one after the other.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from fastce._bench.measure import LIMIT, Measurement
from fastce._bench.results import Results

CONFIDENCE = 0.99
"""So high because dozens of cases are compared at once, of which one in a hundred may seem to have changed."""

Verdict = Literal["slower", "faster", "noise", "too few runs"]


class Change(NamedTuple):
    """One case of one system in two runs."""

    old: Measurement
    new: Measurement
    ratio: float
    """New time over old time."""
    low: float
    high: float
    verdict: Verdict

    @property
    def name(self) -> str:
        return f"{self.new.system}: {self.new.case.name}"


def compare(old: Results, new: Results) -> list[Change]:
    """Compare what both have, the largest slow-down first."""
    earlier = {_key(m): m for m in old.measurements if m.seconds and m.system != LIMIT}
    changes = [
        _change(earlier[_key(m)], m) for m in new.measurements if m.seconds and m.system != LIMIT and _key(m) in earlier
    ]
    return sorted(changes, key=lambda change: -change.ratio)


def only_in_one(old: Results, new: Results) -> int:
    """Count what one of the two lacks."""
    keys = [{_key(m) for m in results.measurements if m.seconds and m.system != LIMIT} for results in (old, new)]
    return len(keys[0] ^ keys[1])


def above(changes: Sequence[Change], limit: float) -> list[Change]:
    """Return those that are slower by more than `limit` (0.1: ten percent) beyond doubt."""
    return [change for change in changes if change.verdict == "slower" and change.low > 1.0 + limit]


def sentence(changes: Sequence[Change], limit: float | None = None) -> str:
    """Say in a sentence or two what a comparison found."""
    if not changes:
        return "The two runs have no case in common."
    count = {verdict: sum(change.verdict == verdict for change in changes) for verdict in ("slower", "faster")}
    rest = len(changes) - sum(count.values())
    middle = statistics.median(change.ratio for change in changes)
    text = (
        f"Of {len(changes)} cases {count['slower']} became slower, {count['faster']} became faster, {rest} did not"
        f" change beyond noise; the median time is {middle:.2f} times the earlier one."
    )
    if limit is not None:
        text += f" Slower by more than {limit:.0%} beyond doubt: {len(above(changes, limit)) or 'none'}."
    return text


def interval(old: Sequence[float], new: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Return the ratio of new to old, and the ends of its interval: 0 and infinity where the runs are too few."""
    ratios = np.sort(np.divide.outer(np.asarray(new, float), np.asarray(old, float)), axis=None)
    outside = _rejected(len(old), len(new), confidence)
    if outside == 0:
        return float(np.median(ratios)), 0.0, math.inf
    return float(np.median(ratios)), float(ratios[outside - 1]), float(ratios[-outside])


@functools.lru_cache(maxsize=64)
def _rejected(m: int, n: int, confidence: float) -> int:
    """Return how many of the m·n pairs lie outside the interval on either side; 0 if none of them may be its end.

    P(U < k) <= (1 − confidence)/2 of the Mann-Whitney statistic U, by counting the arrangements with each U.
    """
    counts = np.zeros(m * n + 1)
    counts[0] = 1.0
    for i in range(1, n + 1):  # the Gaussian binomial coefficient of m + n over n: times (1 − q^(m+i)) / (1 − q^i)
        high, low = m + i, i
        if high <= m * n:
            counts[high:] -= counts[:-high].copy()
        for u in range(low, m * n + 1):
            counts[u] += counts[u - low]
    below = np.cumsum(counts) / math.comb(m + n, n)
    return int(np.searchsorted(below, (1.0 - confidence) / 2.0, side="right"))


def _change(old: Measurement, new: Measurement) -> Change:
    ratio, low, high = interval(old.seconds, new.seconds)
    verdict: Verdict = "noise"
    if high == math.inf:
        verdict = "too few runs"
    elif low > 1.0:
        verdict = "slower"
    elif high < 1.0:
        verdict = "faster"
    return Change(old, new, ratio, low, high, verdict)


def _key(m: Measurement) -> tuple[object, ...]:
    case = m.case
    return (m.system, case.function, case.shape, case.axis, case.output, case.dtype, case.options, case.threads)
