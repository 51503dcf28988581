"""``fastce demo``: the main job on real data that the package carries, then the speed on a large random batch.

Every backend is asked, and one that cannot run is listed with its reason. Times are taken in interleaved rounds, so
that a busy machine slows all alike, and only of answers that were checked first.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from importlib import resources
from typing import NamedTuple

import numpy as np

import fastce
from fastce import _backends, _settings
from fastce._bench.baseline import plain_numpy, plain_numpy_with_grad
from fastce._bench.machine import memory_available
from fastce._cli._console import CommandError, one_line, table, threads
from fastce._problem import Array

ROUNDS = 5
SECONDS = 15.0
"""Rounds stop here, when three have been made."""

BATCH_COPIES = 8
"""What the batch and the temporaries of plain NumPy take, in sizes of the batch, with some to spare."""

TOLERANCE = 2e-5
"""Relative, for losses of order 10 and gradients against the plain formula, both in float32."""


def demo(options: argparse.Namespace) -> int:
    """Run the command."""
    if min(options.rows, options.classes) < 1:
        raise CommandError("--rows and --classes: expected integers >= 1")
    try:
        _settings.thread_limit(options.threads)
        names = list(fastce.available_backends())
        agree = _digits(names, options.threads)
        return 0 if _speed(names, options.rows, options.classes, options.threads) and agree else 1
    except ValueError as error:  # a number of threads or an environment variable that is not accepted
        raise CommandError(str(error)) from None


def _digits(names: list[str], num_threads: int | None) -> bool:
    """Score the digits on every backend; tell whether they agree."""
    logits, labels = (_data(f"digits_{name}.npy") for name in ("logits", "labels"))
    print(
        f"Handwritten digits: {len(logits):,} images, {logits.shape[1]} classes, {logits.dtype} logits of a\n"
        "classifier trained with fastce's own gradient; none of the images was in its training.\n"
    )
    rows = [("backend", "loss, nats", "perplexity", "accuracy")]
    losses = {}
    for name in names:
        with fastce.use_backend(name, num_threads):
            loss = fastce.cross_entropy(logits, labels)
            losses[name] = fastce.cross_entropy(logits, labels, reduction="none")
            accuracy = (fastce.softmax(logits).argmax(axis=1) == labels).mean()
        rows.append((name, f"{loss:.9f}", f"{np.exp(loss):.6f}", f"{accuracy:.2%}"))
    print(table(rows, "<>>>", "  "))
    missing = [error for error in map(_backends.why_not, _backends.NAMES) if error is not None]
    for error in missing:
        print(f"\n  {error.backend} cannot run: {one_line(error.reason)}\n  to install it: {error.install}")
    apart = max((_apart(losses[a], losses[b]) for a, b in itertools.combinations(names, 2)), default=0.0)
    if len(names) > 1:
        print(f"\n  largest disagreement between backends about the loss of an image: {apart:.1e} (relative)")
    print()
    return apart < TOLERANCE


class _Contender(NamedTuple):
    """Something to time; both return the losses and the gradient of their sum."""

    name: str
    engine: str
    forward: Callable[[], Array]
    with_grad: Callable[[], tuple[Array, Array]]


def _speed(names: list[str], n_rows: int, n_classes: int, num_threads: int | None) -> bool:
    """Compare the speed with plain NumPy's; tell whether the answers agree."""
    fit = max(1, memory_available() // (BATCH_COPIES * 4 * n_classes))
    smaller = "" if n_rows <= fit else f", fewer than {n_rows:,} as memory is short"
    n_rows = min(n_rows, fit)
    print(f"Speed: a random batch of {n_rows:,} × {n_classes:,} float32{smaller}.\n", flush=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_rows, n_classes), np.float32)
    y = rng.integers(0, n_classes, n_rows)
    out = np.empty_like(x)
    contenders = [_Contender("plain NumPy", "1 thread", lambda: plain_numpy(x, y), lambda: plain_numpy_with_grad(x, y))]
    contenders += [_contender(name, x, y, out, num_threads) for name in reversed(names)]

    expected = contenders[0].with_grad()
    wrong = [c.name for c in contenders if not _answers(c, *expected)]
    del expected
    if wrong:
        print(f"  these answers differ from plain NumPy's: {', '.join(wrong)}")
        return False
    forward: list[list[float]] = [[] for _ in contenders]
    with_grad: list[list[float]] = [[] for _ in contenders]
    start = time.perf_counter()
    for done in range(ROUNDS):
        if done >= 3 and time.perf_counter() - start > SECONDS:
            break
        for i, contender in enumerate(contenders):
            forward[i].append(_seconds(contender.forward))
            with_grad[i].append(_seconds(contender.with_grad))

    cells = [("", "", "forward", "spread", "faster", "with gradient", "spread", "faster")]
    for i, contender in enumerate(contenders):
        times = (_timing(forward[i], forward[0]), _timing(with_grad[i], with_grad[0]))
        cells.append((contender.name, contender.engine, *times[0], *times[1]))
    print(table(cells, "<<>>>>>>", "  "))
    print(
        f"\n  Medians of {len(forward[0])} interleaved rounds, their spread (fastest to slowest) in ms, and how many"
        "\n  times faster than plain NumPy that is. The answers were compared before anything was timed."
    )
    return True


def _contender(name: str, x: Array, y: Array, out: Array, num_threads: int | None) -> _Contender:
    def forward() -> Array:
        return fastce.cross_entropy(x, y, reduction="none", backend=name, num_threads=num_threads)

    def with_grad() -> tuple[Array, Array]:
        return fastce.cross_entropy_with_grad(x, y, reduction="none", out=out, backend=name, num_threads=num_threads)

    plan = fastce.explain(x, y, backend=name, num_threads=num_threads)
    return _Contender(f"fastce {name}", f"{threads(plan.num_threads)}, {plan.variant}", forward, with_grad)


def _answers(contender: _Contender, losses: Array, grad: Array) -> bool:
    """Tell whether a contender finds these."""
    if _apart(contender.forward(), losses) > TOLERANCE:
        return False
    found_losses, found = contender.with_grad()
    # Row by row, so that no third array of this size is made.
    return _apart(found_losses, losses) < TOLERANCE and all(
        np.abs(a - b).max() <= TOLERANCE for a, b in zip(found, grad, strict=True)
    )


def _apart(a: Array, b: Array) -> float:
    """Return the largest relative difference."""
    return float((np.abs(a - b) / np.maximum(np.abs(b), np.finfo(np.float32).tiny)).max(initial=0.0))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _timing(seconds: list[float], plain: list[float]) -> tuple[str, str, str]:
    median = statistics.median(seconds)
    spread = f"{_ms(min(seconds))}–{_ms(max(seconds))}"
    return f"{_ms(median)} ms", spread, f"{statistics.median(plain) / median:.1f} ×"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"


def _data(name: str) -> Array:
    with (resources.files("fastce") / "data" / name).open("rb") as file:
        array: Array = np.load(file, allow_pickle=False)
        return array
