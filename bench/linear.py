"""linear_cross_entropy beside its three matrix products alone, and beside torch: `python -m bench.linear`.

One shape, that of a small language model's last layer, on all cores. The contenders take turns; the answers are
compared first, and the peak of memory is taken in a round of its own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastce
from fastce._bench.machine import cpu_name

N, D, C = 2048, 768, 32000
ROUNDS = 9

Call = Callable[[], tuple[float, Any, Any]]


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D), dtype=np.float32)
    w = rng.standard_normal((C, D), dtype=np.float32) / np.float32(D**0.5)
    labels = rng.integers(0, C, N)
    out = np.ones_like(x), np.ones_like(w)
    logits = np.ones((N, C), np.float32)

    def products() -> None:
        np.matmul(x, w.T, out=logits)
        np.matmul(logits, w, out=out[0])
        np.matmul(logits.T, x, out=out[1])

    def fused() -> tuple[float, Any, Any]:
        loss, *grads, _ = fastce.linear_cross_entropy_with_grad(x, w, labels, out=out)
        return loss, *grads

    def stored() -> tuple[float, Any, Any]:
        np.matmul(x, w.T, out=logits)
        loss, _ = fastce.cross_entropy_with_grad(logits, labels, out=logits)
        np.matmul(logits, w, out=out[0])
        np.matmul(logits.T, x, out=out[1])
        return loss, *out

    contenders: dict[str, Call] = {"fastce": fused, "fastce, logits stored": stored} | torch_calls(x, w, labels)
    want = stored()
    want = want[0], want[1].copy(), want[2].copy()
    for name, call in contenders.items():
        for got, right in zip(call(), want, strict=True):
            if not np.allclose(got, right, rtol=1e-3, atol=1e-6):
                raise SystemExit(f"{name}: a wrong answer")
    timed: dict[str, Callable[[], object]] = {"the products alone": products, **contenders}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS):
        for name, function in timed.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    print(cpu_name())
    print(f"{N} x {D}, {C} classes, float32, loss and gradients; medians of {ROUNDS} rounds, fastest and slowest\n")
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(taken, seconds["the products alone"], strict=True))
        spread = f"({min(taken):.2f} to {max(taken):.2f})"
        print(
            f"{name:24} {statistics.median(taken):.2f} s {spread:16} {ratio:.2f} x the products  {extra(timed[name])}"
        )


def torch_calls(x: Any, w: Any, labels: Any) -> dict[str, Call]:
    """The same in torch: logits stored, and chunked."""
    try:
        import torch

        options = torch.nn.LinearCrossEntropyOptions()
    except (ImportError, AttributeError):
        print("torch: not installed, or without linear_cross_entropy\n")
        return {}
    input, weight = torch.from_numpy(x).requires_grad_(), torch.from_numpy(w).requires_grad_()
    target = torch.from_numpy(labels)

    def call(options: Any) -> tuple[float, Any, Any]:
        input.grad = weight.grad = None
        loss = torch.nn.functional.linear_cross_entropy(input, weight, target, options=options)
        loss.backward()
        return loss.item(), input.grad.numpy(), weight.grad.numpy()

    return {"torch": lambda: call(None), "torch, chunked": lambda: call(options)}


def extra(call: Callable[[], object]) -> str:
    """Return what a call's peak of memory is above the memory it starts with, gradients that it makes included."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return ""

    def field(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    clear.write_text("5")
    before = field("VmRSS")
    call()
    return f"{(field('VmHWM') - before) / 1024:.0f} MiB"


if __name__ == "__main__":
    main()
