"""What a small call costs inside compiled code, beside one of the Python function: `python -m bench.njit`.

Both are called in a loop of their own language, in rounds that take turns; the answers are compared first.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numba
import numpy as np

import fastce

CALLS, ROUNDS = 20_000, 15


@numba.njit  # type: ignore[untyped-decorator]
def compiled(logits: Any, labels: Any, calls: int) -> float:
    total = 0.0
    for _ in range(calls):
        total += fastce.cross_entropy(logits, labels)
    return total


@numba.njit  # type: ignore[untyped-decorator]
def compiled_with_grad(logits: Any, labels: Any, calls: int, out: Any) -> float:
    total = 0.0
    for _ in range(calls):
        total += fastce.cross_entropy_with_grad(logits, labels, out=out).loss
    return total


def interpreted(logits: Any, labels: Any, calls: int) -> float:
    total = 0.0
    for _ in range(calls):
        total += fastce.cross_entropy(logits, labels)
    return total


def interpreted_with_grad(logits: Any, labels: Any, calls: int, out: Any) -> float:
    total = 0.0
    for _ in range(calls):
        total += fastce.cross_entropy_with_grad(logits, labels, out=out).loss
    return total


def main() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((32, 10), dtype=np.float32), rng.integers(0, 10, 32)
    out = np.empty_like(logits)
    contenders = {
        "cross_entropy in compiled code": (compiled, ()),
        "cross_entropy": (interpreted, ()),
        "cross_entropy_with_grad(out=) in compiled code": (compiled_with_grad, (out,)),
        "cross_entropy_with_grad(out=)": (interpreted_with_grad, (out,)),
    }
    answers = {name: function(logits, labels, 3, *more) for name, (function, more) in contenders.items()}
    if len(set(answers.values())) != 1:
        raise SystemExit(f"the answers differ: {answers}")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, (function, more) in contenders.items():
            start = time.perf_counter()
            function(logits, labels, CALLS, *more)
            seconds[name].append((time.perf_counter() - start) / CALLS)
    for name, taken in seconds.items():
        low, high = min(taken), max(taken)
        print(f"{name:48} {statistics.median(taken) * 1e9:6.0f} ns  ({low * 1e9:.0f} to {high * 1e9:.0f})")


if __name__ == "__main__":
    main()
