"""Clause 15 of the contract: right answers, no hang and no abort, from many threads, in forked children, under joblib.

What may kill a process happens in a child process with a time limit.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cases
import fastce
from checks import same_bits
from matrix import ENGINES, Engine

LAYERS = ["default", "omp", "workqueue"]


def run_child(script: str, layer: str, *arguments: str) -> None:
    """Run a script of this folder with one of Numba's threading layers."""
    env = os.environ | ({} if layer == "default" else {"NUMBA_THREADING_LAYER": layer})
    command = [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stdout == "done\n"


def test_16_threads(engine: Engine, rng: np.random.Generator) -> None:
    """16 Python threads inside one engine, each with its own problem and several threads of its own."""
    problems = [
        (cases.normal(rng, (40 * i + 1, 30 + i), np.float32), cases.labels(rng, 40 * i + 1, 30)) for i in range(48)
    ]

    def solve(problem: tuple[Any, Any]) -> Any:
        return engine.cross_entropy_with_grad(*problem, num_threads=2)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(solve, problems))
    for problem, (loss, grad) in zip(problems, together, strict=True):
        alone = solve(problem)
        assert alone.loss == loss
        assert same_bits(alone.grad, grad)


@pytest.mark.parametrize("layer", LAYERS)
def test_16_threads_in_every_backend_at_once(layer: str) -> None:
    """A worker thread calls while others are inside, the first calls of the process included."""
    run_child("child_threads.py", layer)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
@pytest.mark.parametrize("layer", LAYERS)
def test_forked_children(layer: str) -> None:
    """A forked child, its threads and its own child, after the parent used every backend, and while it does."""
    run_child("child_fork.py", layer)


def test_labels_that_change_during_the_call(engine: Engine) -> None:
    """Another thread writes labels that are far out of range: an IndexError or a number, and no access they lead to."""
    run_child("child_changing_labels.py", "default", engine.backend, engine.variant)


def test_a_pool_of_processes(engine: Engine, rng: np.random.Generator) -> None:
    """Workers of concurrent.futures, forked where that is the default, after this process used the engine."""
    x, y = cases.normal(rng, (3000, 50), np.float32), cases.labels(rng, 3000, 50)
    want = engine.cross_entropy(x, y, num_threads=2)
    with ProcessPoolExecutor(2) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
        jobs = [pool.submit(engine.cross_entropy, x, y, num_threads=2) for _ in range(4)]
        assert [job.result(timeout=120) for job in jobs] == [want] * 4


def test_asyncio_tasks(engine: Engine, rng: np.random.Generator) -> None:
    """Calls moved to threads by asyncio."""
    x, y = cases.normal(rng, (500, 40), np.float32), cases.labels(rng, 500, 40)
    want = engine.cross_entropy(x, y)

    async def main() -> list[float]:
        return await asyncio.gather(*(asyncio.to_thread(engine.cross_entropy, x, y) for _ in range(20)))

    assert asyncio.run(main()) == [want] * 20


@pytest.mark.parametrize("kind", ["loky", "threading", "multiprocessing"])
def test_joblib(kind: str) -> None:
    """Workers of joblib, of every kind, after this process used every backend."""
    script = f"""
import warnings
import joblib, numpy as np
import fastce
warnings.simplefilter("ignore", DeprecationWarning)
if __name__ == "__main__":
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3000, 50)).astype(np.float32), rng.integers(0, 50, 3000)
    names = fastce.available_backends()
    want = [fastce.cross_entropy(x, y, backend=name) for name in names]
    jobs = (joblib.delayed(fastce.cross_entropy)(x, y, backend=name) for name in names * 4)
    got = joblib.Parallel(2, backend={kind!r}, timeout=120)(jobs)
    assert got == want * 4, (got, want)
"""
    pytest.importorskip("joblib")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("scheduler", ["threads", "processes", "synchronous"])
def test_dask(scheduler: str) -> None:
    """Dask's local schedulers; runs where dask is installed."""
    pytest.importorskip("dask")
    script = f"""
import dask, numpy as np
import fastce
if __name__ == "__main__":
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((3000, 50)).astype(np.float32), rng.integers(0, 50, 3000)
    names = fastce.available_backends()
    want = [fastce.cross_entropy(x, y, backend=name) for name in names]
    jobs = [dask.delayed(fastce.cross_entropy)(x, y, backend=name) for name in names * 4]
    assert list(dask.compute(*jobs, scheduler={scheduler!r})) == want * 4
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_spawned_children(tmp_path: Path) -> None:
    """A spawned child imports fastce afresh and gives the same bits."""
    script = tmp_path / "spawn.py"
    script.write_text("""
import multiprocessing, sys
import fastce
X, Y = [[0.1, 2.0, 0.3]] * 5, [0, 1, 2, 0, 1]
def work(name):
    return fastce.cross_entropy(X, Y, backend=name)
if __name__ == "__main__":
    names = fastce.available_backends()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        sys.exit(pool.map_async(work, names).get(120) != [work(name) for name in names])
""")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_contexts_do_not_leak_between_threads() -> None:
    """What one thread chooses with use_backend holds in that thread alone."""
    names = [engine.backend for engine in ENGINES]
    with fastce.use_backend("numpy"), ThreadPoolExecutor(4) as pool:
        seen = pool.map(lambda _: fastce.explain([[0.0, 1.0]], [0]).backend, range(8))
        assert set(seen) == {fastce.available_backends()[0]} <= set(names)
        assert fastce.explain([[0.0, 1.0]], [0]).backend == "numpy"
