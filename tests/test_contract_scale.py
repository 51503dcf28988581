"""Clauses 16 and 17 of the contract: more than 2^31 elements, and no temporary of the logits' size."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import oracle
import tolerances
from checks import check_grad, close
from matrix import COMPILED, Engine

LIMIT = 2**31
BEST = [next(engine for engine in COMPILED if engine.backend == backend) for backend in ("cython", "numba")]
"""One variant of each: what takes long is the same arithmetic of indices for all."""


def sparse(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A file of zeros that takes no room on disk."""
    return np.memmap(path, dtype, "w+", shape=shape)


def check_rows(losses: Any, logits: Any, labels: Any, rows: list[int]) -> None:
    want = oracle.cross_entropy(logits[rows], labels[rows], reduction="none")
    close(losses[rows], want.value, tolerances.values(want, logits.dtype, "none"), "loss")
    assert np.count_nonzero(losses) == len(rows)


def test_broadcast_rows(compiled: Engine) -> None:
    """Clause 16: long rows of stride 0, the first, the last and one in between not ignored."""
    n_classes = 2**19 + 3
    n_rows = LIMIT // n_classes + 2
    row = np.random.default_rng(0).standard_normal(n_classes).astype(np.float32)
    x = np.broadcast_to(row, (n_rows, n_classes))
    assert x.size > LIMIT
    y = np.full(n_rows, -100)
    rows = [0, n_rows // 2, n_rows - 1]
    y[rows] = [0, 5, n_classes - 1]
    check_rows(compiled.cross_entropy(x, y, reduction="none"), x, y, rows)


def test_broadcast_positions(compiled: Engine) -> None:
    """Clause 16: the class axis strided, and more than 2^31 elements in all."""
    inner = 2**20 + 5
    n_classes = LIMIT // inner + 2
    column = np.random.default_rng(0).standard_normal((n_classes, 1)).astype(np.float32)
    x = np.broadcast_to(column, (n_classes, inner))
    assert x.size > LIMIT
    y = np.full(inner, -100)
    rows = [0, 77, inner - 1]
    y[rows] = [0, 5, n_classes - 1]
    losses = compiled.cross_entropy(x, y, axis=0, reduction="none")
    want = oracle.cross_entropy(column[:, [0, 0, 0]], y[rows], axis=0, reduction="none")
    close(losses[rows], want.value, tolerances.values(want, x.dtype, "none"), "loss")
    assert np.count_nonzero(losses) == 3


def test_sparse_memory_map(compiled: Engine, tmp_path: Path) -> None:
    """Clause 16: more than 2^31 elements and 2^32 bytes of one file, the last row not ignored."""
    n_classes = 1000
    n_rows = LIMIT // n_classes + 7
    x = sparse(tmp_path / "x", np.float16, (n_rows, n_classes))
    rows = [0, n_rows // 2, n_rows - 1]
    x[rows] = np.random.default_rng(0).standard_normal((3, n_classes))
    y = np.full(n_rows, -1, np.int16)
    y[rows] = [0, 5, n_classes - 1]
    check_rows(compiled.cross_entropy(x, y, ignore_index=-1, reduction="none"), x, y, rows)


def test_strides_beyond_2_to_the_31(compiled: Engine, tmp_path: Path) -> None:
    """Clause 16: few elements far apart, along positions and along classes, with the gradient in place."""
    big = sparse(tmp_path / "x", np.float32, (5, 2**29))
    rng = np.random.default_rng(0)
    for axis, view in ((-1, big[:, -40:]), (0, big[:, -40:])):
        view[...] = rng.standard_normal(view.shape)
        y = rng.integers(0, view.shape[axis], view.shape[1 + axis])
        want = oracle.cross_entropy(np.array(view), y, axis=axis)
        grad = compiled.cross_entropy_with_grad(view, y, axis=axis, out=view).grad
        check_grad(grad, want, np.dtype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("engine", BEST, ids=str)
def test_more_than_2_to_the_31_classes(engine: Engine, tmp_path: Path) -> None:
    """Clause 16: one row of more than 2^31 classes whose label is beyond 2^31."""
    n_classes = LIMIT + 7
    x = sparse(tmp_path / "x", np.float16, (1, n_classes))
    assert engine.logsumexp(x)[0] == pytest.approx(math.log(n_classes), rel=4 * 2.0**-24)
    x[0, -1] = 2
    exact = math.log(n_classes - 1 + math.exp(2))
    assert engine.cross_entropy(x, [LIMIT + 5]) == pytest.approx(exact, rel=4 * 2.0**-24)
    assert engine.cross_entropy(x, [LIMIT + 6]) == pytest.approx(exact - 2, rel=4 * 2.0**-24)


@pytest.mark.slow
@pytest.mark.parametrize("engine", BEST, ids=str)
def test_more_than_2_to_the_31_rows(engine: Engine) -> None:
    """Clause 16: more rows than an int32 counts."""
    n_rows = LIMIT + 9
    x = np.broadcast_to(np.array([0.0, 0.0], np.float32), (n_rows, 2))
    one = engine.cross_entropy(x[:1], [1])
    y = np.broadcast_to(np.int8(1), n_rows)
    assert engine.cross_entropy(x, y, reduction="sum") == pytest.approx(n_rows * one, rel=1e-15)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is reset through /proc")
@pytest.mark.parametrize("engine", [e for e in COMPILED if e.variant != "portable"], ids=str)
def test_memory_beyond_inputs_and_outputs(engine: Engine) -> None:
    """Clause 17: at most 8 MiB, for every layout, kind of target and output; a child process says how much."""
    child = Path(__file__).with_name("child_memory.py")
    command = [sys.executable, str(child), engine.backend, engine.variant]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    used = {name: float(mib) for name, mib in (line.rsplit(": ", 1) for line in done.stdout.splitlines())}
    assert len(used) > 20
    assert {name: mib for name, mib in used.items() if mib > 8} == {}
