"""Run as `python child_guard_pages.py BACKEND VARIANT`: calls an engine on arrays between two forbidden pages.

Reading or writing one byte beyond either end of an array kills the process. Not a test file: see test_guard_pages.py.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np

import cases
from matrix import DTYPES, Engine

PAGE = mmap.PAGESIZE
PROT_NONE = 0


class Fence:
    """Some pages with a forbidden one on either side; places arrays flush against the first or the last byte."""

    def __init__(self, pages: int = 8) -> None:
        self.size = pages * PAGE
        self.map = mmap.mmap(-1, self.size + 2 * PAGE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for page in (self.base, self.base + PAGE + self.size):
            if protect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def place(self, array: cases.Array, *, at_end: bool) -> cases.Array:
        offset = PAGE + (self.size - array.nbytes if at_end else 0)
        if array.nbytes > self.size:
            raise ValueError("the fence is too small")
        placed: cases.Array = np.ndarray(array.shape, array.dtype, self.map, offset)
        placed[...] = array
        return placed


def main(backend: str, variant: str) -> None:
    engine = Engine(backend, variant)
    rng = np.random.default_rng(1)
    fences, large = [Fence() for _ in range(5)], [Fence(5 * 2**20 // PAGE) for _ in range(2)]
    for dtype in DTYPES:
        for n_classes in range(1, 4 * engine.lanes(dtype) + 4):
            print(f"{dtype}, {n_classes} classes")
            for at_end in (False, True):
                for n_rows in (1, 3):
                    call(engine, fences, rng, dtype, (n_rows, n_classes), at_end)
                call_family(engine, fences, rng, dtype, n_classes, at_end)
                call(engine, fences, rng, dtype, (2, 3, n_classes), at_end, axis=1)
        # Too large for the caches: written past them, in whole lines.
        for n_classes in (3, 33, 100, 2049, 20001):
            print(f"{dtype}, {n_classes} classes, large")
            n_rows = 5 * 2**20 // dtype.itemsize // n_classes
            x = large[0].place(cases.normal(rng, (n_rows, n_classes), dtype), at_end=n_classes % 2 == 1)
            for at_end in (False, True):
                out = large[1].place(np.zeros_like(x), at_end=at_end)
                engine.cross_entropy_with_grad(x, np.zeros(n_rows, np.int64), out=out, num_threads=2)
    print("done")


def call(
    engine: Engine,
    fences: list[Fence],
    rng: np.random.Generator,
    dtype: Any,
    shape: tuple[int, ...],
    at_end: bool,
    axis: int = -1,
) -> None:
    def place(i: int, array: cases.Array) -> cases.Array:
        return fences[i].place(array, at_end=at_end)

    positions = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
    x = place(0, cases.normal(rng, shape, dtype))
    y = place(1, cases.labels(rng, positions, shape[axis], np.int32))
    out = place(2, np.zeros(shape, dtype))
    engine.cross_entropy(x, y, axis=axis)
    engine.cross_entropy_with_grad(x, y, axis=axis, out=out)
    weight = rng.random(shape[axis])
    s = place(4, rng.random(positions).astype(np.float32))
    options = {"axis": axis, "weight": place(3, weight), "sample_weight": s, "label_smoothing": 0.1}
    engine.cross_entropy_with_grad(x, y, out=out, **options)
    engine.call("focal_loss_with_grad", x, y, axis=axis, gamma=1.5, out=out)
    engine.cross_entropy_with_grad(x, y, axis=axis, temperature=2.0, out=out)
    engine.cross_entropy_with_grad(x, y, axis=axis, softcap=5.0, out=out)
    of_list = tuple(3 if i == axis % len(shape) else n for i, n in enumerate(shape))
    lists = place(1, rng.integers(-1, shape[axis], of_list)), place(3, rng.random(of_list, np.float32) / 3)
    engine.cross_entropy_with_grad(x, lists, axis=axis, spread_missing=True, out=out)
    options["weight"] = place(3, weight)
    dense = place(1, cases.dense(rng, shape, np.float32))
    engine.cross_entropy_with_grad(x, dense, out=out, **options)
    engine.softmax(x, axis=axis, out=out)
    engine.call("log_softmax", x, axis=axis, out=out)
    engine.call("logsumexp", x, axis=axis)


def call_family(
    engine: Engine, fences: list[Fence], rng: np.random.Generator, dtype: Any, n: int, at_end: bool
) -> None:
    """Element-wise losses of n elements, and losses and divergences of two rows of n classes."""

    def place(i: int, array: cases.Array) -> cases.Array:
        return fences[i].place(array, at_end=at_end)

    x, w, s = place(0, cases.normal(rng, (n,), dtype)), place(3, rng.random(n)), place(4, rng.random(n, np.float32))
    out = place(2, np.zeros(n, dtype))
    for kind in (np.float32, np.float64, np.int64, np.uint8, dtype):
        t = place(1, rng.integers(0, 2, n).astype(kind))
        engine.call("binary_cross_entropy_with_logits", x, t, pos_weight=s)
        engine.call("binary_cross_entropy_with_logits_with_grad", x, t, weight=w, sample_weight=s, out=out)
        engine.call("mse_loss_with_grad", x, t, out=out, reduction="none", grad_output=s)
    p, q = (place(i, rng.random((2, n)).astype(dtype)) for i in (0, 1))
    out, y = place(2, np.zeros((2, n), dtype)), place(3, cases.labels(rng, 2, n))
    engine.call("nll_loss_with_grad", p, y, out=out)
    engine.call("categorical_cross_entropy_with_grad", p, y, label_smoothing=0.1, out=out)
    engine.call("categorical_cross_entropy_with_grad", p, q, out=out)
    engine.call("kl_divergence", p, q)
    engine.call("js_divergence", p, q)
    engine.call("entropy", p)
    engine.call("row_statistics", p, y)
    engine.call("row_statistics", p, fields=("entropy", "argmax"))
    engine.call("distillation_loss", p, q, temperature=2.0)
    engine.call("distillation_loss_with_grad", p, q, temperature=2.0, out=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
