"""Clause 14 of the contract: inputs as they were, no warning, and the process as it was, after import and any call."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cases
from checks import same_bits
from matrix import Engine

DType = np.dtype[Any]


def every_call(engine: Engine, dtype: DType) -> list[Callable[[], Any]]:
    """Calls of each function that meet NaN, infinities, overflow, underflow, nothing to average and an error."""
    rng = np.random.default_rng(2)
    x, y = cases.normal(rng, (300, 50), dtype), cases.labels(rng, 300, 50)
    x[3], x[4, 1], x[5, 2], x[6] = np.nan, np.inf, -np.inf, -np.inf
    x[7], x[7, 0], x[8] = -6e4, 6e4, 6e-8
    y[::9] = -100
    dense = cases.dense(rng, x.shape)

    def refused() -> None:
        with pytest.raises(IndexError):
            engine.cross_entropy_with_grad(x, y + 50, num_threads=3)

    return [
        lambda: engine.cross_entropy(x, y, num_threads=3),
        lambda: engine.cross_entropy_with_grad(x, y, num_threads=3, z_loss=0.1, label_smoothing=0.1, grad_output=1e30),
        lambda: engine.cross_entropy_with_grad(x, dense, reduction="none", grad_output=np.full(300, 1e-30)),
        lambda: engine.cross_entropy_with_grad(x, np.full(300, -100)),
        lambda: engine.cross_entropy(x[:0], y[:0]),
        lambda: engine.cross_entropy_with_grad(x.T.copy(), y, axis=0),
        lambda: engine.softmax(x),
        lambda: engine.log_softmax(x),
        lambda: engine.logsumexp(x),
        refused,
    ]


def test_subnormals_are_not_flushed(engine: Engine, dtype: DType) -> None:
    """Neither as results nor as operands, in this thread and in a new one, after any call."""

    def flushed() -> bool:
        single, double = np.array([1e-40], np.float32), np.array([1e-310])
        halves = single * np.float32(0.5), double * 0.5
        return not (all(h.any() for h in halves) and (single + single).any() and (double + double).any())

    for call in every_call(engine, dtype):
        call()
        assert not flushed()
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(flushed()))
    thread.start()
    thread.join()
    assert seen == [False]


def test_numpys_error_state(engine: Engine, dtype: DType) -> None:
    """As before; and where NumPy would raise for every floating-point event, no call of fastce does, or differs."""
    before = np.geterr()
    calm = [call() for call in every_call(engine, dtype)]
    assert np.geterr() == before
    with np.errstate(all="raise"):
        inside = np.geterr()
        for call, value in zip(every_call(engine, dtype), calm, strict=True):
            again = call()
            assert np.geterr() == inside
            if value is not None:
                pairs = zip(value, again, strict=True) if isinstance(value, tuple) else [(value, again)]
                assert all(same_bits(a, b) for a, b in pairs)
    assert np.geterr() == before


def test_no_warnings(engine: Engine, dtype: DType) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in every_call(engine, dtype):
            call()
    assert [str(w.message) for w in caught] == []


def test_thread_counts_rounding_and_affinity(engine: Engine) -> None:
    """OpenMP's and Numba's thread counts, the rounding mode and the CPU affinity are as before, in any thread."""
    libc_math = ctypes.CDLL(ctypes.util.find_library("m"))
    watched: dict[str, Callable[[], Any]] = {"rounding": libc_math.fegetround}
    if hasattr(os, "sched_getaffinity"):
        watched["affinity"] = lambda: os.sched_getaffinity(0)
    if engine.backend == "numba":
        import numba

        watched["numba"] = numba.get_num_threads
    try:
        openmp = ctypes.CDLL("libgomp.so.1")
        watched["openmp"] = openmp.omp_get_max_threads
        watched["openmp dynamic"] = openmp.omp_get_dynamic
    except OSError:
        assert engine.backend != "cython" or sys.platform != "linux"
    before = {name: read() for name, read in watched.items()}
    for call in every_call(engine, np.dtype(np.float32)):
        call()
    assert {name: read() for name, read in watched.items()} == before


def test_a_users_thread_count_is_not_a_limit_to_restore(compiled: Engine, rng: np.random.Generator) -> None:
    """More threads than there are cores, or than Numba will start, is no error."""
    x, y = cases.normal(rng, (2000, 100), np.float32), cases.labels(rng, 2000, 100)
    assert compiled.cross_entropy(x, y, num_threads=1000) == compiled.cross_entropy(x, y, num_threads=1)


def test_importing_changes_nothing_and_imports_little() -> None:
    """Beyond NumPy and the standard library it brings in fastce alone: no Numba, SciPy, tqdm or ml_dtypes."""
    script = """
import sys, warnings
import numpy as np
before, state = set(sys.modules), np.geterr()
warnings.simplefilter("error")
import fastce
assert np.geterr() == state
assert (np.array([1e-40], np.float32) * np.float32(0.5)).any() and (np.array([1e-310]) * 0.5).any()
fastce.cross_entropy([[0.0, 1.0]], [1], backend="cython")
new = {name.partition(".")[0] for name in set(sys.modules) - before} - {"numpy"}
print(sorted(n for n in new if n not in sys.stdlib_module_names and not n.startswith(("_cython_", "cython_runtime"))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['fastce']\n"
