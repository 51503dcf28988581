"""Prints the MiB that linear_cross_entropy takes beyond its arrays, where its logits would take 250.

The code has run before and every array has been touched, so what the peak (VmHWM) rises by is the call's. Not a test
file: see test_linear.py.
"""

from __future__ import annotations

import numpy as np

import fastce
from cases import Array
from child_memory import extra_mib

N, C = 2048, 32000


def main() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, C, N)
    for name, dtype, features in (("float32", np.float32, 96), ("float16", np.float16, 32)):
        x = rng.standard_normal((N, features), np.float32).astype(dtype)
        w = rng.standard_normal((C, features), np.float32).astype(dtype)
        out = (np.full_like(x, 1), np.full_like(w, 1))

        def loss(x: Array = x, w: Array = w) -> None:
            fastce.linear_cross_entropy(x, w, labels)

        def grad(x: Array = x, w: Array = w, out: tuple[Array, Array] = out) -> None:
            fastce.linear_cross_entropy_with_grad(x, w, labels, out=out)

        for call in (loss, grad):
            call()
            print(f"{name}-{call.__name__}={extra_mib(call):.1f}")


if __name__ == "__main__":
    main()
