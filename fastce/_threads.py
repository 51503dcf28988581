"""How many threads: the default and where it comes from, and how many a problem is worth.

Threads are started by the backends, never here. The model of cost knows the number of logits, what is computed
and the dtype; its constants are measured on one machine and only decide where a second thread begins to pay.
"""

from __future__ import annotations

import functools
import math
import os
from typing import TYPE_CHECKING

from fastce import _dtypes
from fastce._problem import Output, Problem

if TYPE_CHECKING:
    from pathlib import Path

SECONDS_PER_LOGIT = {
    Output.LOSS: 0.20e-9,
    Output.GRAD: 0.35e-9,
    Output.LSE: 0.35e-9,
    Output.SOFTMAX: 0.40e-9,
    Output.LOG_SOFTMAX: 0.40e-9,
    Output.STATISTICS: 0.40e-9,
}
"""Of one thread, for float32 in cache, by AVX-512 at 3.7 GHz; float64 takes twice as long."""

LOGITS_PER_ROW = 10
"""What a row costs beside its logits, in logits: from 2 to 1,000 classes the model is then right within a half."""

SECONDS_PER_THREAD = 8e-6
"""Work that one more thread must find to be worth its start: twice what a parallel region cost."""


@functools.lru_cache(maxsize=1)
def default() -> tuple[int, str]:
    """Return the number of threads when nobody gave one, and where it comes from; looked up once."""
    # A list holds one number for each level of nesting; a value that OpenMP ignores is ignored here too.
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isascii() and first.isdecimal() and int(first) > 0:
        return int(first), "OMP_NUM_THREADS"
    found = [(os.cpu_count() or 1, "number of cores")]
    if hasattr(os, "sched_getaffinity"):
        found.append((len(os.sched_getaffinity(0)), "CPU affinity"))
    quota = cgroup_quota()
    if quota is not None:
        found.append((max(1, math.ceil(quota)), "cgroup quota"))
    return min(found, key=lambda pair: pair[0])


def estimate(problem: Problem) -> float:
    """Return the seconds that one thread would take, roughly."""
    wide = 2 if _dtypes.name_of(problem.logits.dtype) == "float64" else 1
    rows = math.prod(problem.positions)
    return rows * (problem.n_classes + LOGITS_PER_ROW) * SECONDS_PER_LOGIT[problem.output] * wide


def threads_for(problem: Problem, limit: int) -> int:
    """Return how many threads, at most ``limit``, the problem is worth."""
    return max(1, min(limit, int(estimate(problem) / SECONDS_PER_THREAD)))


def logits_per_thread(output: Output) -> float:
    """Return for how many float32 logits, rows counted in, there is a thread."""
    return SECONDS_PER_THREAD / SECONDS_PER_LOGIT[output]


def cgroup_quota(root: str = "/") -> float | None:
    """Return how many CPUs' time the control groups of this process allow, or None where they do not limit it."""
    from pathlib import Path  # slow to import, needed once

    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount = Path(root, "sys/fs/cgroup")
        elif "cpu" in controllers.split(","):
            mount = Path(root, "sys/fs/cgroup/cpu")
        else:
            continue
        # Inside a container the path may be the host's: what does not exist is passed over on the way up.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            quotas.append(_quota_of(folder))
            if folder == mount:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if quota not in ("max", "-1"):
                return float(quota) / float(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return None
