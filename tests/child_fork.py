"""Run as `python child_fork.py`: every engine works in this process, then in forked children of it and of its threads.

Not a test file: see test_concurrency.py.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from matrix import ENGINES

TIMEOUT = 60
RNG = np.random.default_rng(4)
X = RNG.standard_normal((4000, 60)).astype(np.float32)
Y = RNG.integers(0, 60, 4000)


def results() -> list[tuple[float, bytes]]:
    calls = [engine.cross_entropy_with_grad(X, Y, num_threads=4) for engine in ENGINES]
    return [(loss, grad.tobytes()) for loss, grad in calls]


def child(expected: list[tuple[float, bytes]], deeper: int) -> None:
    if results() != expected:
        sys.exit(3)
    with ThreadPoolExecutor(4) as pool:
        if any(r != expected for r in pool.map(lambda _: results(), range(8))):
            sys.exit(4)
    if deeper:
        fork(expected, deeper - 1)


def fork(expected: list[tuple[float, bytes]], deeper: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=child, args=(expected, deeper))
    process.start()
    process.join(TIMEOUT)
    if process.exitcode != 0:
        process.kill()
        sys.exit(f"a forked child ended with {process.exitcode}")


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # Python's own about forking with threads
    expected = results()
    fork(expected, 1)
    # The parent is as good as before, and may fork while its other threads are inside a call.
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            results()

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in range(3):
            fork(expected, 0)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    if results() != expected:
        sys.exit("the parent's results changed")
    print("done")


if __name__ == "__main__":
    main()
