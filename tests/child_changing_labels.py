"""Run as `python child_changing_labels.py BACKEND VARIANT`: labels that another thread changes during the call.

A label that is used without having been checked reads or writes one of the forbidden pages around the arrays, or far
beyond them, and kills the process. Not a test file: see test_concurrency.py.
"""

from __future__ import annotations

import sys
import threading

import numpy as np

import cases
from child_guard_pages import PAGE, Fence
from matrix import Engine

CALLS = 60
SHAPES = [(20000, 10), (4000, 40), (100, 2500)]


def main(backend: str, variant: str) -> None:
    engine = Engine(backend, variant)
    rng = np.random.default_rng(2)
    logits, out = (Fence(2**20 // PAGE) for _ in range(2))
    refused = 0
    for shape in SHAPES:
        x = logits.place(cases.normal(rng, shape, np.float32), at_end=True)
        grad = out.place(np.zeros(shape, np.float32), at_end=True)
        good = cases.labels(rng, shape[0], shape[1])
        wild = rng.choice([-(2**40), -(2**20), -1, shape[1], 2**20, 2**40, 2**62], shape[0])
        y = good.copy()
        over = threading.Event()
        other = threading.Thread(target=change, args=(y, good, wild, over))
        other.start()
        try:
            for _ in range(CALLS):
                refused += is_refused(engine, x, y, grad)
        finally:
            over.set()
            other.join()
        y[:] = good
        if engine.cross_entropy(x, y) != engine.cross_entropy(x, good):
            sys.exit("wrong after all")
    print("done" if refused else "no label was ever seen to change")


def is_refused(engine: Engine, x: cases.Array, y: cases.Array, grad: cases.Array) -> bool:
    """Call; tell whether a label was seen that is none, or one that was sound again when the error was to be told."""
    try:
        engine.cross_entropy(x, y, num_threads=2)
        engine.cross_entropy_with_grad(x, y, out=grad, num_threads=2)
    except IndexError:
        return True
    except ValueError as error:
        if "changed while it was being read" not in str(error):
            raise
        return True
    return False


def change(y: cases.Array, good: cases.Array, wild: cases.Array, over: threading.Event) -> None:
    while not over.is_set():
        y[:] = wild
        y[:] = good


if __name__ == "__main__":
    main(*sys.argv[1:])
