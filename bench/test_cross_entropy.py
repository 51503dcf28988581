"""The cases under pytest-benchmark: `pytest bench`, or `pytest bench -k "2048x32000 and cython"`.

Timings are never asserted; answers are, before the first timing.
"""

from __future__ import annotations

from typing import Any

import pytest

from fastce._bench.cases import CASES, Case, inputs
from fastce._bench.measure import SYSTEMS, measure
from fastce._bench.ours import OURS
from fastce._bench.reference import mistake
from fastce._bench.system import System

# What other systems warn about is their own business.
pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [
    pytest.param(case, system, id=f"{case.name}-{system.name}")
    for case in CASES
    for system in (SYSTEMS if case.short else OURS)
    if system.streams or not case.huge
]


@pytest.mark.parametrize(("case", "system"), PAIRS)
def test_cross_entropy(benchmark: Any, case: Case, system: System) -> None:
    if missing := system.missing():
        pytest.skip(f"{system.name} is skipped: {' and '.join(missing)} not installed")
    call = system.prepare(case, inputs(case))
    if call is None:
        pytest.skip(f"{system.name} does not do this case")
    assert mistake(case, call.answer(call.run())) is None
    benchmark.group = f"{case.regime}: {case.name}"
    benchmark.extra_info.update(verified=True, regime=case.regime, bytes_moved=case.bytes_moved, threads=case.threads)
    benchmark(call.run)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update({"GB/s": case.bytes_moved / seconds / 1e9, "logits/s": case.n_logits / seconds})
    [limit] = measure(case, (), budget=0.2)
    if limit.seconds:
        benchmark.extra_info["share of limit"] = case.bytes_moved / seconds / limit.bytes_per_second
