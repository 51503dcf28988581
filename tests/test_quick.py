"""Calls with few options take a shorter way to the same kernel: the same bits, the same errors.

The general path, which the contract suite runs over, is the oracle here: it is taken where no way is quick.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastce
from fastce import _pipeline, _settings

LABELS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">i8"]
LOGITS = ["f2", "f4", "f8", ">f4", ">f8"]

QUICK = [name for name in ("auto", "cython", "numba") if name in ("auto", *fastce.available_backends())]
"""What names a way that is quick."""


@pytest.fixture(autouse=True)
def settled() -> None:
    """The first call of a process takes the general path and settles the environment for the others."""
    for name in QUICK:
        fastce.cross_entropy(np.zeros((1, 2), np.float32), [0], backend=name)


@contextmanager
def no_quick_way() -> Iterator[None]:
    """Have all calls take the general path."""
    ways = dict(_pipeline.quick)
    _pipeline.quick.update(dict.fromkeys(ways, _pipeline.NO_QUICK))
    try:
        yield
    finally:
        _pipeline.quick.update(ways)


def bits(value: Any) -> Any:
    return np.asarray(value).dtype.str, np.asarray(value).shape, np.asarray(value).tobytes()


def outcome(x: Any, y: Any, **options: Any) -> Any:
    """The bits of the result, or the error."""
    try:
        return bits(fastce.cross_entropy(x, y, **options))
    except Exception as error:
        return type(error), str(error)


def outcome_with_grad(x: Any, y: Any, **options: Any) -> Any:
    """The same with the gradient, and with what became of ``out``, which is a copy here."""
    out = options.get("out")
    if out is not None:
        options["out"] = out = x if out is x else out.copy()
    try:
        loss, grad = fastce.cross_entropy_with_grad(x, y, **options)
        return bits(loss), bits(grad), grad.strides, out is None or grad is out
    except Exception as error:
        return type(error), str(error), None if out is None else bits(out)


UNSEEN = {"backend", "temperature", "softcap", "spread_missing"}
"""Options with which the short way is not tried, or that choose it."""


def is_quick(x: Any, y: Any, backend: str = "auto", **options: Any) -> bool:
    """Whether the short way does this call by itself."""
    defaults = fastce.cross_entropy.__kwdefaults__ | options
    return _pipeline.quick[backend].loss(x, y, *(defaults[k] for k in defaults if k not in UNSEEN)) is not None


def grad_is_quick(x: Any, y: Any, backend: str = "auto", **options: Any) -> bool:
    defaults = fastce.cross_entropy_with_grad.__kwdefaults__ | options
    return _pipeline.quick[backend].loss_and_grad(x, y, *(defaults[k] for k in defaults if k not in UNSEEN)) is not None


@st.composite
def batches(draw: st.DrawFn) -> tuple[Any, Any]:
    """Arrays of any dtype, stride and content, labels seldom out of range."""
    n, c = draw(st.integers(0, 70)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = (draw(st.sampled_from([0.1, 1, 30, 1000])) * rng.standard_normal((2 * n, 2 * c))).astype(
        draw(st.sampled_from(LOGITS))
    )
    special = draw(st.sampled_from([0, np.nan, np.inf, -np.inf]))
    x[rng.random(x.shape) < draw(st.sampled_from([0, 0.01]))] = special
    x = draw(st.sampled_from([x[:n, :c], x[::2, ::2], x[::-2, ::-2], np.asfortranarray(x[:n, :c]), x[:n, :c].copy()]))
    y = rng.integers(0, c, 2 * n).astype(draw(st.sampled_from(LABELS)))
    if draw(st.booleans()):
        y[rng.random(2 * n) < 0.3] = np.array(-100).astype(y.dtype)
    if n and draw(st.integers(0, 9)) == 0:
        y[rng.integers(2 * n)] = np.array(draw(st.sampled_from([-1, c, -100, -99]))).astype(y.dtype)
    return x, draw(st.sampled_from([y[:n], y[::2], y[n:][::-1]]))


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "reduction": st.sampled_from(["mean", "sum", "none", "max", None]),
        "ignore_index": st.sampled_from([-100, 0, 3, -1, 156, 2**31, 2**63, -(2**63), -(2**70), True, None]),
        "axis": st.sampled_from([-1, 1, 0, 2]),
        "label_smoothing": st.sampled_from([0.0, 0, -0.0, 0.1, 2.0]),
        "z_loss": st.sampled_from([0.0, 1e-3]),
        "num_threads": st.sampled_from([1, 2, 0, True]),
    },
)


@given(batches(), OPTIONS)
def test_the_short_way_is_the_general_one(batch: tuple[Any, Any], options: Any) -> None:
    short = outcome(*batch, **options)
    assert short == outcome(*batch, **options, backend="cython")
    with no_quick_way():
        assert short == outcome(*batch, **options)


OUT = ["none", "fresh", "other", "swapped", "strided", "read-only", "labels", "shifted"]


@given(batches(), OPTIONS, st.sampled_from(OUT))
def test_the_short_way_to_the_gradient_is_the_general_one(batch: tuple[Any, Any], options: Any, out: str) -> None:
    x, y = batch
    if out != "none":
        options = options | {"out": receiver(out, x)}
    if out == "shifted" and x.size:
        memory = np.zeros((len(x) + 1, x.shape[1]), x.dtype.newbyteorder("="))
        memory[1:] = x
        x, options["out"] = memory[1:], memory[:-1]
    if out == "labels" and x.size and y.dtype.kind == "i":
        memory = np.zeros(x.shape, x.dtype.newbyteorder("="))
        raw = memory.reshape(-1).view(np.uint8)
        if len(y) * y.dtype.itemsize <= raw.size:
            inside = raw[: len(y) * y.dtype.itemsize].view(y.dtype)
            inside[...] = y
            y, options["out"] = inside, memory
    short = outcome_with_grad(x, y, **options)
    with no_quick_way():
        assert short == outcome_with_grad(x, y, **options)
    if out == "none":
        assert short == outcome_with_grad(x, y, **options, backend="cython")


def receiver(kind: str, x: Any) -> Any:
    """An array for the gradient, of the logits' shape or not."""
    fresh = np.full(x.shape, 7, x.dtype.newbyteorder("="))
    if kind == "other":
        return fresh.astype(np.float64 if x.dtype.itemsize == 4 else np.float32)
    if kind == "swapped":
        return fresh.astype(x.dtype.newbyteorder(">"))
    if kind == "strided":
        return np.full((x.shape[0], 2 * x.shape[1]), 7, fresh.dtype)[:, ::2]
    if kind == "read-only":
        fresh.flags.writeable = False
    return fresh


@pytest.mark.parametrize("backend", QUICK)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_taken_and_right(backend: str, dtype: Any, rng: np.random.Generator) -> None:
    """With default options, and with those that small calls use; in place, too."""
    x, y = rng.standard_normal((32, 10)).astype(dtype), rng.integers(0, 10, 32)
    y[3] = 7
    for options in ({}, {"reduction": "sum"}, {"ignore_index": 7}, {"num_threads": 1}, {"z_loss": -0.0}):
        assert is_quick(x, y, backend, **options)
        short = outcome(x, y, backend=backend, **options)
        with no_quick_way():
            assert short == outcome(x, y, backend=backend, **options)
    for options in ({}, {"ignore_index": 7}, {"out": np.empty_like(x)}):
        assert grad_is_quick(x, y, backend, **options)
        short = outcome_with_grad(x, y, backend=backend, **options)
        with no_quick_way():
            assert short == outcome_with_grad(x, y, backend=backend, **options)
    places = x.copy(), x.copy()
    short = outcome_with_grad(places[0], y, backend=backend, out=places[0])
    with no_quick_way():
        assert short == outcome_with_grad(places[1], y, backend=backend, out=places[1])


def test_what_is_not_plain_is_left_alone(rng: np.random.Generator) -> None:
    """Other types and shapes, bad labels, nothing to average."""
    x, y = rng.standard_normal((32, 10)), rng.integers(0, 10, 32)
    for logits, target in [
        (x.tolist(), y),
        (x, y.tolist()),
        (x[None], y[None]),
        (x.astype(np.float16), y),
        (x, np.eye(10)[y]),
        (x, y.astype(bool)),
        (x, y.astype(float)),
        (x, y + 9),
        (x[:0], y[:0]),
        (x, np.full(32, -100)),
        (np.ma.array(x), y),
    ]:
        assert not is_quick(logits, target)
        assert not grad_is_quick(logits, target)


def test_large_batches_are_quick_too(rng: np.random.Generator) -> None:
    """On several threads, as many as the call and its context allow; the bits are those of the general path."""
    x, y = rng.standard_normal((30_000, 7), np.float32), rng.integers(0, 7, 30_000)
    for num_threads in (None, 1, 3, 10**30):
        assert is_quick(x, y, "cython", num_threads=num_threads)
        short = outcome_with_grad(x, y, num_threads=num_threads)
        with no_quick_way():
            assert short == outcome_with_grad(x, y)
    y[29_999] = 7
    short = outcome(x, y)
    with no_quick_way():
        assert short == outcome(x, y)
    y[29_999] = 0
    with fastce.use_backend("cython", num_threads=1):
        assert not is_quick(x, y, "cython"), "who limits the threads is asked"
        assert is_quick(x[:9], y[:9], "cython")


@pytest.mark.parametrize("backend", QUICK)
def test_nothing_is_written_before_all_labels_are_checked(backend: str, rng: np.random.Generator) -> None:
    x, y, out = rng.standard_normal((32, 10)), rng.integers(0, 10, 32), np.full((32, 10), 7.0)
    assert grad_is_quick(x, y, backend, out=out.copy())
    y[31] = 10
    assert not grad_is_quick(x, y, backend, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("backend", QUICK)
def test_most_options_and_any_context_mean_the_general_way(backend: str, rng: np.random.Generator) -> None:
    """What is neither the default nor equal to it; use_backend and forced variants come first."""
    x, y = rng.standard_normal((32, 10)), rng.integers(0, 10, 32)
    for name in fastce.cross_entropy.__kwdefaults__:
        if name not in UNSEEN:
            assert not is_quick(x, y, backend, **{name: object()})
            assert not grad_is_quick(x, y, backend, **{name: object()})
            assert not is_quick(x, y, backend, **{name: np.ones((32, 10))})
    for options in ({"temperature": 2.0}, {"softcap": 1.0}):
        general = fastce.cross_entropy(x, y, backend="numpy", **options)
        assert math.isclose(fastce.cross_entropy(x, y, backend=backend, **options), general, rel_tol=1e-12)
        both = fastce.cross_entropy_with_grad(x, y, backend=backend, **options)
        assert math.isclose(both.loss, general, rel_tol=1e-12)
    with pytest.raises(ValueError, match="spread_missing"):
        fastce.cross_entropy(x, y, backend=backend, spread_missing=True)
    with fastce.use_backend("numpy"):
        assert is_quick(x, y, backend) == (backend != "auto")
    with _settings.use_variant("portable"):
        assert not is_quick(x, y, backend)
    assert is_quick(x, y, backend)


def test_who_names_no_backend_it_knows_is_told(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((32, 10)), rng.integers(0, 10, 32)
    for backend in ("tensorflow", ["auto"], None):
        with pytest.raises(ValueError, match="backend"):
            fastce.cross_entropy(x, y, backend=backend)  # type: ignore[call-overload]
