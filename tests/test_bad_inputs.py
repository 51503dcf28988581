"""Clause 13 and every other error of the contract: the table of bad inputs on every engine, and what errors leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bad_inputs
import cases
from bad_inputs import BAD_INPUTS, GRADIENT, Bad
from matrix import BLOCK, ENGINES, Engine

DType = np.dtype[Any]


def test_names_are_unique() -> None:
    names = [bad.name for bad in BAD_INPUTS]
    assert len(names) == len(set(names))


def test_the_good_call_is_good(engine: Engine) -> None:
    arguments = bad_inputs.good()
    assert engine.cross_entropy_with_grad(**arguments).loss == engine.cross_entropy(**arguments)


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)
def test_bad_inputs(engine: Engine, bad: Bad) -> None:
    """The error and its message, from both functions; `out` and every argument as they were, byte for byte."""
    for function in (
        [engine.cross_entropy_with_grad]
        if bad.where == GRADIENT
        else [engine.cross_entropy, engine.cross_entropy_with_grad]
    ):
        arguments = bad_inputs.good() | bad.arguments()
        if function == engine.cross_entropy_with_grad:
            shape = np.shape(arguments["logits"]) if bad.name != "ragged logits" else (2, 2)
            arguments.setdefault("out", np.full(shape, 7, np.float32))
        arrays = [a for a in arguments.values() if isinstance(a, np.ndarray) and a.dtype != object]
        before = [a.tobytes() for a in arrays]
        with pytest.raises(bad.error, match=bad.message) as raised:
            function(**arguments)
        assert type(raised.value) is bad.error, "a subclass of what is promised"
        assert [a.tobytes() for a in arrays] == before


@pytest.mark.parametrize("bad", [*bad_inputs.LOGITS, *bad_inputs.AXIS], ids=lambda bad: bad.name)
def test_bad_logits_of_maps(engine: Engine, bad: Bad) -> None:
    """softmax, log_softmax and logsumexp refuse the same logits and axes with the same words."""
    arguments = bad_inputs.good() | bad.arguments()
    del arguments["target"]
    for function in (engine.softmax, engine.log_softmax, engine.logsumexp):
        with pytest.raises(bad.error, match=bad.message):
            function(**arguments)


def test_bad_out_of_maps(engine: Engine) -> None:
    """`out` of softmax, log_softmax and logsumexp: shape, dtype, read-only, overlap."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for function in (engine.softmax, engine.log_softmax):
        for bad in bad_inputs.GRADIENTS:
            arguments = bad_inputs.good() | bad.arguments()
            if "out" in arguments and not {"target", "sample_weight"} & set(bad.arguments()):
                with pytest.raises(bad.error, match=bad.message):
                    function(arguments["logits"], out=arguments["out"])
    with pytest.raises(ValueError, match=r"out: .*\(2,\).*\(3,\)"):
        engine.logsumexp(x, out=np.zeros(3, np.float32))
    with pytest.raises(TypeError, match=r"out: .*int64"):
        engine.logsumexp(x, out=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"out: .*overlaps logits"):
        engine.logsumexp(x, out=x[:, 0])


def test_the_first_bad_label_in_c_order(engine: Engine, dtype: DType) -> None:
    """Clause 13: its label, index tuple and the number of classes, in any layout and with any number of threads."""
    x = np.zeros((6, 7, 5), dtype)
    y = np.zeros((6, 7), np.int64)
    y[2, 5], y[2, 6], y[3, 0], y[5, 1] = 5, -7, 99, -1
    for labels in (y, np.asfortranarray(y), cases.backwards(y), cases.swapped(y)):
        for threads in (1, 4):
            for function in (engine.cross_entropy, engine.cross_entropy_with_grad):
                with pytest.raises(IndexError, match=r"label 5 at index \(2, 5\) .* 5 classes"):
                    function(x, labels, num_threads=threads)
    with pytest.raises(IndexError, match=r"label 5 at index \(2, 5\) .* 5 classes"):
        engine.cross_entropy(np.zeros((6, 5, 7), dtype), y, axis=1)
    with pytest.raises(IndexError, match=r"label 99 at index \(0, 3\) .* 5 classes"):
        engine.cross_entropy(np.zeros((7, 6, 5), dtype), y.T)


@pytest.mark.parametrize("function", ["cross_entropy", "cross_entropy_with_grad"])
def test_the_first_bad_label_among_many_rows(engine: Engine, function: str) -> None:
    """Clause 13: the first of several in different blocks, whichever thread meets its own first."""
    n_rows = 8 * BLOCK + 3
    x = np.zeros((n_rows, 40), np.float32)
    for bad in ([n_rows - 1], [BLOCK - 1, BLOCK], [0, n_rows - 1], [5 * BLOCK + 1, 5 * BLOCK + 2, 7 * BLOCK]):
        y = np.zeros(n_rows, np.int64)
        y[bad] = 40 + np.arange(len(bad))
        with pytest.raises(IndexError, match=rf"label 40 at index \({bad[0]},\) .* 40 classes"):
            getattr(engine, function)(x, y, num_threads=4)


def test_the_first_bad_dense_target(engine: Engine, dtype: DType) -> None:
    """Dense targets name the first bad row, and the index in the user's own axes."""
    x = np.zeros((3, 4, 5), dtype)
    t = np.ones((3, 4, 5))
    t[2, 0, 0], t[1, 3, 2], t[1, 2, 4] = -1, -2, -3
    with pytest.raises(ValueError, match=r"target: .*-3\.0 at index \(1, 2, 4\)"):
        engine.cross_entropy(x, t)
    with pytest.raises(ValueError, match=r"target: .*-2\.0 at index \(1, 3, 2\)"):
        engine.cross_entropy(x, t, axis=1)


def test_nothing_is_written_before_all_labels_are_checked(
    engine: Engine, dtype: DType, rng: np.random.Generator
) -> None:
    """Clause 13: a bad last label leaves `out`, and logits as `out`, as they were, however many rows precede it."""
    n_rows = 3 * BLOCK + 1
    x = cases.normal(rng, (n_rows, 20), dtype)
    y = cases.labels(rng, n_rows, 20)
    y[-1] = 20
    out = np.full(x.shape, 7, dtype)
    before = x.tobytes(), out.tobytes()
    for target in (out, x):
        with pytest.raises(IndexError, match=rf"label 20 at index \({n_rows - 1},\)"):
            engine.cross_entropy_with_grad(x, y, out=target, num_threads=2)
        assert (x.tobytes(), out.tobytes()) == before
    y[-1] = 0
    s = np.ones(n_rows)
    s[-1] = -1
    dense = np.full(x.shape, 0.5, np.float32)
    dense[-1, -1] = np.nan
    for arguments in ({"target": y, "sample_weight": s}, {"target": dense}):
        with pytest.raises(ValueError, match=r"sample_weight|target"):
            engine.cross_entropy_with_grad(x, **arguments, out=x, num_threads=2)
        assert (x.tobytes(), out.tobytes()) == before


def test_errors_are_the_same_from_every_backend() -> None:
    """Clause 13: the same words, whichever backend met the bad row."""
    for bad in BAD_INPUTS:
        if bad.where == GRADIENT or bad.name in {"unknown backend", "backend=None"}:
            continue
        texts = set()
        for engine in ENGINES:
            with pytest.raises(bad.error) as raised:
                engine.cross_entropy(**bad_inputs.good() | bad.arguments())
            texts.add(str(raised.value))
        assert len(texts) == 1, texts


def test_dense_targets_beyond_the_arithmetic(engine: Engine) -> None:
    """A float64 target that float32 arithmetic cannot hold is refused by name, not made infinite."""
    target = np.full((3, 40), 0.1)
    target[1, 2] = 1e300
    for function in (engine.cross_entropy, engine.cross_entropy_with_grad):
        with pytest.raises(ValueError, match=r"range of float32, got 1e\+300 at index \(1, 2\)"):
            function(np.zeros((3, 40), np.float32), target)
    assert engine.cross_entropy(np.zeros((3, 40)), target, reduction="none")[1] > 1e300
