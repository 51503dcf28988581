"""Run as `python child_threads.py`: 16 threads of one process inside every engine at once, first calls included.

Not a test file: see test_concurrency.py.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from matrix import ENGINES

RNG = np.random.default_rng(4)
SHAPES = [(3, 5), (4000, 10), (300, 500)]
WORK = [(RNG.standard_normal(shape).astype(np.float32), RNG.integers(0, shape[1], shape[0])) for shape in SHAPES]


def one(i: int) -> bytes:
    x, y = WORK[i // len(ENGINES) % len(WORK)]
    loss, grad = ENGINES[i % len(ENGINES)].cross_entropy_with_grad(x, y, num_threads=1 + i % 3)
    return np.float64(loss).tobytes() + grad.tobytes()


def main() -> None:
    period = len(ENGINES) * len(WORK)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(one, range(8 * period)))
    alone = [one(i) for i in range(period)]
    if any(result != alone[i % period] for i, result in enumerate(together)):
        sys.exit("results differ")
    print("done")


if __name__ == "__main__":
    main()
