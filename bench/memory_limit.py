"""The measured roof: how fast the memory of a case can be read, and read and written, by as many threads.

The loops are in memory_limit.c, compiled here for this very machine. They visit the arrays of the case itself, in the
rounds in which the systems are timed: a small case is held against the cache it fits in, and drift hits both.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.cases import Case, Inputs
from bench.family import Array

SMALLEST = 1 << 20
"""Bytes below which a call is a matter of latency, not of memory."""

PREFETCH = (0, 2048, 8192)
"""Bytes ahead: which is best depends on the processor, so all are tried."""


def limit_call(case: Case, arrays: Inputs) -> Callable[[], None] | None:
    """Return the fastest loop found that moves what the case must move; None for small cases or without a compiler."""
    library = _library()
    if library is None or case.bytes_moved < SMALLEST:
        return None
    # A buffer of its own: writing to `out` would take the answer away from who is checked next.
    out = np.empty(arrays.logits.nbytes + 64, np.uint8) if case.gradient else None
    if out is not None:
        out = out[-out.ctypes.data % 64 :]
        out.fill(1)  # no page faults in what is timed
    candidates = [
        functools.partial(_move, library, arrays, out, prefetch, streaming, case.threads)
        for prefetch in PREFETCH
        for streaming in ((False, True) if case.gradient else (False,))
    ]
    return min(candidates, key=_quickest)


def _move(library: Any, arrays: Inputs, out: Array | None, prefetch: int, streaming: bool, threads: int) -> None:
    for also in (arrays.target, arrays.sample_weight):
        if also is not None:
            library.limit_read(also.ctypes.data, also.nbytes, prefetch, threads)
    if out is None:
        library.limit_read(arrays.logits.ctypes.data, arrays.logits.nbytes, prefetch, threads)
    else:
        library.limit_read_write(
            arrays.logits.ctypes.data, out.ctypes.data, arrays.logits.nbytes, prefetch, streaming, threads
        )


def _quickest(call: Callable[[], None]) -> float:
    seconds = []
    for _ in range(5):
        begin = perf_counter()
        call()
        seconds.append(perf_counter() - begin)
    return sorted(seconds)[1]


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    """Compile and load memory_limit.c; None, with a line that says so, where there is no compiler."""
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "memory_limit.so")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [*compiler, "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(built)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"the memory limit is not measured: {getattr(error, 'stderr', None) or error}")
            return None
        library = ctypes.CDLL(str(built))
    pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.limit_read.argtypes = [pointer, size, size, integer]
    library.limit_read.restype = ctypes.c_uint64
    library.limit_read_write.argtypes = [pointer, pointer, size, size, integer, integer]
    library.limit_read_write.restype = None
    return library
