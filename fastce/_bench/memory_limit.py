"""The measured roof: how fast the memory of a case can be read, and read and written, by as many threads.

The loops are part of the compiled core's binding (src_c/binding/memory_limit.c). They visit the arrays of the case
itself, in the rounds in which the systems are timed: a small case is held against the cache it fits in, and drift hits
both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter

import numpy as np

from fastce._bench.cases import Case, Inputs
from fastce._bench.family import Array

SMALLEST = 1 << 20
"""Bytes below which a call is a matter of latency, not of memory."""

PREFETCH = (0, 2048, 8192)
"""Bytes ahead: which is best depends on the processor, so all are tried."""


def limit_call(case: Case, arrays: Inputs) -> Callable[[], None] | None:
    """Return the fastest loop found that moves what the case must move; None for small cases or without the core."""
    try:
        from fastce import _core  # noqa: F401
    except ImportError:
        return None
    if case.bytes_moved < SMALLEST:
        return None
    # A buffer of its own: writing to `out` would take the answer away from who is checked next.
    out = np.empty(arrays.logits.nbytes + 64, np.uint8) if case.gradient else None
    if out is not None:
        out = out[-out.ctypes.data % 64 :]
        out.fill(1)  # no page faults in what is timed
    also = tuple(
        _bytes(array) for array in (arrays.target, arrays.sample_weight, arrays.probabilities) if array is not None
    )
    candidates = [
        functools.partial(_move, _bytes(arrays.logits), also, out, prefetch, streaming, case.threads)
        for prefetch in PREFETCH
        for streaming in ((False, True) if case.gradient else (False,))
    ]
    return min(candidates, key=_quickest)


def _bytes(array: Array) -> Array:
    return array.reshape(-1).view(np.uint8)


def _move(
    logits: Array, also: tuple[Array, ...], out: Array | None, prefetch: int, streaming: bool, threads: int
) -> None:
    from fastce import _core

    for array in also:
        _core.read_memory(array, prefetch, threads)
    if out is None:
        _core.read_memory(logits, prefetch, threads)
    else:
        _core.copy_memory(logits, out, prefetch, streaming, threads)


def _quickest(call: Callable[[], None]) -> float:
    seconds = []
    for _ in range(5):
        begin = perf_counter()
        call()
        seconds.append(perf_counter() - begin)
    return sorted(seconds)[1]
