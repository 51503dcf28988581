"""Run as `python child_memory.py BACKEND VARIANT`: prints, for each kind of call, the MiB it takes beyond its arrays.

The peak of resident memory (VmHWM) is reset before a call whose code is already compiled and whose arrays are already
touched. Not a test file: see test_contract_scale.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import cases
from matrix import Engine

SHAPE = (1024, 16000)
"""62 MiB in float32; plain float32 has twice as many rows and classes."""


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise KeyError(name)


def extra_mib(call: Callable[[], Any]) -> float:
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    call()
    return (status("VmHWM") - before) / 1024


def fill(array: cases.Array) -> cases.Array:
    """Distinct values row by row, with no temporary of the array's size."""
    for i, row in enumerate(array):
        row[...] = np.arange(row.size).reshape(row.shape) % 31 / 8 + i % 5
    return array


def logits(shape: tuple[int, int]) -> Iterator[tuple[str, int, Callable[[], cases.Array]]]:
    """Each layout: name, class axis, maker."""
    n, c = shape
    yield "float32", 1, lambda: fill(np.empty((2 * n, 2 * c), np.float32))
    yield "float16", 1, lambda: fill(np.empty((n, c), np.float16))
    yield "float64", 1, lambda: fill(np.empty((n, c // 2), np.float64))
    yield "class axis first", 0, lambda: fill(np.empty((c, n), np.float32))
    yield "images", 1, lambda: fill(np.empty((4, c // 100, 25 * n), np.float32))
    yield "spaced", 1, lambda: fill(np.empty((n, c), np.float32))[:, ::2]
    yield "backwards", 1, lambda: fill(np.empty((n, c), np.float32))[::-1, ::-1]
    yield "byte-swapped", 1, lambda: fill(np.empty((n, c), np.dtype(np.float32).newbyteorder("S")))
    yield "broadcast", 1, lambda: np.broadcast_to(fill(np.empty((1, c), np.float32)), (n, c))
    yield "axes that do not collapse", 3, lambda: fill(np.empty((n // 8, 4, 4, c // 2), np.float32))[:, ::2, :3]


def calls(engine: Engine, x: cases.Array, axis: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    positions = tuple(n for i, n in enumerate(x.shape) if i != axis)
    y = np.zeros(positions, np.int64)
    options: dict[str, Any] = {"axis": axis, "num_threads": 2}
    yield "loss", lambda: engine.cross_entropy(x, y, **options)
    weight = np.ones(x.shape[axis])
    s = np.ones(positions)
    many = {"weight": weight, "sample_weight": s, "label_smoothing": 0.1, "z_loss": 0.1, **options}
    yield "loss with options", lambda: engine.cross_entropy(x, y, **many)
    out = fill(np.empty(x.shape, x.dtype.newbyteorder("=")))
    yield "gradient", lambda: engine.cross_entropy_with_grad(x, y, out=out, **options)
    yield "softmax", lambda: engine.softmax(x, out=out, **options)
    dense = np.broadcast_to(np.float32(0.5), x.shape)
    if axis == x.ndim - 1:
        binary = "binary_cross_entropy_with_logits"
        threads = {"num_threads": 2}
        yield "binary", lambda: engine.call(binary, x, dense, weight=weight, pos_weight=weight, **threads)
        yield "binary gradient", lambda: engine.call(f"{binary}_with_grad", x, dense, out=out, **threads)
        yield "NLL gradient", lambda: engine.call("nll_loss_with_grad", x, y, out=out, label_smoothing=0.1, **threads)
        if x.dtype.isnative:
            yield "KL", lambda: engine.call("kl_divergence", x, x, **threads)
    yield "dense", lambda: engine.cross_entropy_with_grad(x, dense, out=out, **options)
    if x.flags.writeable and x.dtype.isnative:
        yield "in place", lambda: engine.cross_entropy_with_grad(x, y, out=x, **options)


def main(backend: str, variant: str) -> None:
    engine = Engine(backend, variant)
    # For the code, which may be another one where arrays are so small that a backend copies them.
    small, large = logits((128, 800)), logits(SHAPE)
    for (_, axis, make_small), (name, _, make) in zip(small, large, strict=True):
        for _, call in calls(engine, make_small(), axis):
            call()
        x = make()
        for what, call in calls(engine, x, axis):
            print(f"{name}, {what}: {extra_mib(call):.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
