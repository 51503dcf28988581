"""linear_cross_entropy and its gradients, on every engine.

The products are exact, so that the oracle's logits are those of the call and the bounds those of cross entropy;
gradients are within these and the rounding of the products they come from.
"""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import cases
import fastce
import tolerances
from checks import answer, check_value, close, loss_dtype, same_bits
from fastce import _linear
from matrix import BLOCK, ENGINES, Engine
from oracle import Wide, widen

Array = cases.Array
DType = np.dtype[Any]


class Layer(NamedTuple):
    """Multiples of 1/8 whose products every arithmetic holds."""

    input: Array
    weight: Array
    bias: Array

    def logits(self, *, bias: bool) -> Array:
        with np.errstate(all="ignore"):
            exact = widen(self.input) @ widen(self.weight).T + (widen(self.bias) if bias else 0)
        return exact.astype(loss_dtype(self.input.dtype))


def layer(
    rng: np.random.Generator, positions: tuple[int, ...], n_classes: int, dtype: Any, n_features: int = 5
) -> Layer:
    return Layer(
        rng.integers(-3, 4, (*positions, n_features)).astype(dtype),
        cases.grid(rng, (n_classes, n_features), dtype, -8, 8),
        cases.grid(rng, (n_classes,), dtype),
    )


@pytest.fixture(params=[None, 1 << 12], ids=["one tile", "small tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a tile and of what is added at a time: those of the library, and few."""
    if request.param is not None:
        monkeypatch.setattr(_linear, "TILE_BYTES", request.param)
        monkeypatch.setattr(_linear, "CHUNK_BYTES", request.param >> 4)
        monkeypatch.setattr(_linear, "LEAST_ROWS", 7)


def agree(engine: Engine, made: Layer, target: Any, *, bias: bool = False, out: Any = None, **options: Any) -> Any:
    """Loss and gradients as the oracle has them; the same loss without the gradients; inputs untouched."""
    arguments = {"linear_bias": made.bias} if bias else {}
    before = [array.tobytes() for array in made]
    logits = made.logits(bias=bias)
    want = answer(logits, target, options)
    forward = {name: value for name, value in options.items() if name != "grad_output"}
    loss = engine.call("linear_cross_entropy", made.input, made.weight, target, **arguments, **forward)
    got = engine.call(
        "linear_cross_entropy_with_grad", made.input, made.weight, target, **arguments, **options, out=out
    )
    assert [array.tobytes() for array in made] == before
    check_value(loss, want, logits.dtype, options.get("reduction", "mean"))
    assert same_bits(loss, got.loss)
    assert (got.grad_linear_bias is None) == (not bias)

    scale = np.abs(want.scale * want.grad_output)[:, None]
    with np.errstate(all="ignore"):
        slope = want.rows_of(want.grad)
        bound = tolerances.stored(tolerances.gradients(want.rows, logits.dtype) * scale, slope, logits.dtype)
    ignored = want.rows.ignored[:, None]
    x = np.where(ignored, Wide(0), widen(made.input).reshape(len(slope), -1))
    w, ones = widen(made.weight), np.ones((len(slope), 1), Wide)
    for name, left, right in (
        ("grad_input", slope, w),
        ("grad_linear_weight", slope.T, x),
        ("grad_linear_bias", slope.T, ones),
    ):
        grad = getattr(got, name)
        if grad is None:
            continue
        doubt = bound if left is slope else bound.T
        with np.errstate(all="ignore"):
            exact = left @ right
            off = doubt @ np.abs(right)
            off += left.shape[1] * tolerances.arithmetic(logits.dtype).half_eps * (np.abs(left) @ np.abs(right))
        of = {"grad_input": made.input, "grad_linear_weight": made.weight, "grad_linear_bias": made.bias}[name]
        assert grad.shape == of.shape
        if out is None:
            assert grad.dtype == of.dtype.newbyteorder("=")
        close(grad.reshape(exact.shape), exact, tolerances.stored(off, exact, grad.dtype), name)
    return got


@pytest.mark.usefixtures("tiles")
def test_sizes(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    for positions, n_classes in (((), 5), ((1,), 1), ((40,), 2), ((5, 9), 33), ((3,), BLOCK + 1), ((70,), 70)):
        made = layer(rng, positions, n_classes, dtype)
        agree(engine, made, cases.labels(rng, positions, n_classes), reduction="none")
        agree(engine, made, cases.labels(rng, positions, n_classes), bias=True)


@pytest.mark.usefixtures("tiles")
def test_options(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Every option of cross_entropy; rows that are ignored, whatever they hold; dense and sparse targets."""
    n, n_classes = 45, 19
    made = layer(rng, (n,), n_classes, dtype)
    labels = cases.labels(rng, n, n_classes)
    s = rng.integers(0, 4, n) / 2
    labels[::6], s[1] = -100, 0.0
    made.input[0], made.input[1] = np.nan, np.inf
    weight = rng.random(n_classes)
    agree(engine, made, labels, sample_weight=s, bias=True, grad_output=-2.0)
    agree(engine, made, labels, sample_weight=s, weight=weight, label_smoothing=0.1, z_loss=0.01)
    agree(engine, made, labels, sample_weight=s, reduction="none", grad_output=rng.standard_normal(n), base=2)
    agree(engine, made, labels, sample_weight=s, reduction="sum", temperature=2.0, softcap=9.0)
    made.input[0], made.input[1] = 1, 2
    agree(engine, made, cases.dense(rng, (n, n_classes)), sample_weight=s, denominator=7.0, bias=True)
    agree(engine, made, cases.dense(rng, (n, n_classes)), label_smoothing=0.1)
    indices = rng.integers(-1, n_classes, (n, 3))
    agree(engine, made, (indices, rng.random((n, 3)) / 4), spread_missing=True, sample_weight=s)


@pytest.mark.usefixtures("tiles")
def test_special_values(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """A class that the bias excludes; a NaN that is its own row's, and that of what is summed over rows."""
    made = layer(rng, (30,), 6, dtype)
    labels = cases.labels(rng, 30, 5)
    made.bias[5] = -np.inf
    got = agree(engine, made, labels, bias=True, reduction="none")
    assert got.grad_linear_bias[5] == 0
    made.input[3] = np.nan
    losses = engine.call("linear_cross_entropy", made.input, made.weight, labels, reduction="none")
    assert np.flatnonzero(np.isnan(losses)).tolist() == [3]
    got = engine.call("linear_cross_entropy_with_grad", made.input, made.weight, labels)
    assert math.isnan(got.loss)
    assert np.flatnonzero(np.isnan(got.grad_input.astype(np.float32)).any(-1)).tolist() == [3]
    assert np.isnan(got.grad_linear_weight.astype(np.float32)).all()


def test_nothing_to_do(engine: Engine) -> None:
    """No rows, only ignored ones, no features."""
    w = np.ones((4, 3), np.float32)
    for x, labels in ((np.ones((0, 3), np.float32), np.zeros(0, int)), (np.full((2, 3), np.nan), np.full(2, -100))):
        got = engine.call("linear_cross_entropy_with_grad", x, w, labels, linear_bias=w[:, 0])
        assert math.isnan(got.loss)
        assert not got.grad_input.any()
        assert not got.grad_linear_weight.any()
        assert not got.grad_linear_bias.any()
        assert engine.call("linear_cross_entropy", x, w, labels, reduction="sum") == 0
    loss = engine.call("linear_cross_entropy", np.ones((2, 0)), np.ones((4, 0)), [0, 1])
    assert loss == pytest.approx(math.log(4))


@pytest.mark.usefixtures("tiles")
def test_layouts_and_dtypes(rng: np.random.Generator) -> None:
    """Any layout of the arrays and of what receives the gradients; each its own dtype."""
    engine = ENGINES[0]
    made = layer(rng, (6, 5), 40, np.float32)
    labels = cases.labels(rng, (6, 5), 40)
    want = agree(engine, made, labels, bias=True)
    for name, arrange in cases.LAYOUTS.items():
        parts = Layer(*map(arrange, made))
        out = tuple(np.asarray(arrange(np.full_like(array, 7))) for array in made)
        for array in out:
            array.flags.writeable = True
        got = agree(engine, parts, arrange(labels), bias=True, out=out)
        assert all(a is b for a, b in zip(got[1:], out, strict=True)), name
    for dtypes in (("f2", "f4", "f8"), ("f4", "f2", "f4"), ("f8", "f4", "f2")):
        parts = Layer(*(array.astype(kind) for array, kind in zip(made, dtypes, strict=True)))
        got = engine.call("linear_cross_entropy_with_grad", parts.input, parts.weight, labels, linear_bias=parts.bias)
        assert [grad.dtype for grad in got[1:]] == [np.dtype(kind) for kind in dtypes]
        assert got.loss == pytest.approx(want.loss, rel=1e-6)
        for grad, exact in zip(got[1:], want[1:], strict=True):
            np.testing.assert_allclose(grad.astype(float), exact, rtol=2e-3, atol=1e-4)


GOOD: dict[str, Any] = {
    "input": np.ones((3, 2), np.float32),
    "linear_weight": np.ones((4, 2), np.float32),
    "target": np.zeros(3, int),
}

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": np.float32(1)}, ValueError, "input: expected an array with a feature axis"),
    ({"input": np.ones((3, 2), int)}, TypeError, "input: expected float16"),
    ({"linear_weight": np.ones((4, 3), np.float32)}, ValueError, r"linear_weight: expected shape \(classes, 2\)"),
    ({"linear_weight": np.ones(2, np.float32)}, ValueError, r"linear_weight: expected shape \(classes, 2\)"),
    ({"linear_weight": np.ones((4, 2), complex)}, TypeError, "linear_weight: expected float16"),
    ({"linear_bias": np.ones(3, np.float32)}, ValueError, r"linear_bias: .* shape \(4,\), got shape \(3,\)"),
    ({"linear_bias": np.ones(4, int)}, TypeError, "linear_bias: expected float16"),
    ({"target": np.array([0, 4, 9])}, IndexError, r"label 4 at index \(1,\) is out of range for 4 classes"),
    ({"target": np.zeros((3, 5))}, ValueError, "target"),
    ({"target": np.zeros(2, int)}, ValueError, "target"),
    ({"weight": np.ones(3)}, ValueError, "weight"),
    ({"sample_weight": [1, -1, 1]}, ValueError, r"sample_weight: .* got -1.* at index \(1,\)"),
    ({"reduction": "max"}, ValueError, "reduction"),
    ({"softcap": 0.0}, ValueError, "softcap"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_bad_input(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    """The same error from both, and nothing is written."""
    out = tuple(np.full_like(GOOD[name], 7) for name in ("input", "linear_weight"))
    with pytest.raises(kind, match=message):
        fastce.linear_cross_entropy(**(GOOD | change))
    with pytest.raises(kind, match=message):
        fastce.linear_cross_entropy_with_grad(**(GOOD | change), out=out if "linear_bias" not in change else None)
    assert all((array == 7).all() for array in out)


@pytest.mark.parametrize(
    ("out", "kind", "message"),
    [
        (np.ones((3, 2)), TypeError, "out: expected a tuple of 2 arrays"),
        ((np.ones((3, 2)),), TypeError, "out: expected a tuple of 2 arrays"),
        ((np.ones((3, 2)), np.ones((4, 1))), ValueError, r"out\[1\]: expected shape \(4, 2\)"),
        (([[1.0] * 2] * 3, np.ones((4, 2))), TypeError, r"out\[0\]: expected a NumPy array"),
        ((cases.read_only(np.ones((3, 2))), np.ones((4, 2))), ValueError, r"out\[0\]: expected a writable array"),
        ((GOOD["input"], np.ones((4, 2))), ValueError, r"out\[0\]: overlaps input"),
        ((np.ones((3, 2)), GOOD["linear_weight"]), ValueError, r"out\[1\]: overlaps linear_weight"),
        ((np.ones((3, 2), int), np.ones((4, 2))), TypeError, r"out\[0\]: expected float16"),
    ],
)
def test_bad_out(out: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fastce.linear_cross_entropy_with_grad(**GOOD, out=out)


def test_gradients_that_overlap_one_another() -> None:
    both = np.ones(12, np.float32)
    with pytest.raises(ValueError, match=r"out\[1\]: overlaps out\[0\]"):
        fastce.linear_cross_entropy_with_grad(**GOOD, out=(both[:6].reshape(3, 2), both[4:].reshape(4, 2)))


def test_options_are_those_of_cross_entropy() -> None:
    for twin, name in ((False, "cross_entropy"), (True, "cross_entropy_with_grad")):
        linear = fastce.linear_cross_entropy_with_grad if twin else fastce.linear_cross_entropy
        options = {n: p.default for n, p in inspect.signature(linear).parameters.items() if n not in GOOD}
        want = {n: p.default for n, p in inspect.signature(getattr(fastce, name)).parameters.items()}
        assert set(options) - {"linear_bias"} == set(want) - {"logits", "target", "axis"}
        assert all(options[n] == want[n] for n in options if n != "linear_bias")


def test_as_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    function = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if function is None:
        pytest.skip("this torch has no linear_cross_entropy")
    made = [rng.standard_normal(shape).astype(np.float32) for shape in ((50, 16), (90, 16), (90,))]
    labels = cases.labels(rng, 50, 90)
    labels[3] = -100
    weight = rng.random(90).astype(np.float32)
    x, w, b = (torch.from_numpy(array).requires_grad_() for array in made)
    options = {"label_smoothing": 0.1}
    loss = function(x, w, torch.from_numpy(labels), linear_bias=b, weight=torch.from_numpy(weight), **options)
    loss.backward()
    got = fastce.linear_cross_entropy_with_grad(made[0], made[1], labels, linear_bias=made[2], weight=weight, **options)
    assert got.loss == pytest.approx(loss.item(), rel=1e-5)
    for grad, want in zip(got[1:], (x.grad, w.grad, b.grad), strict=True):
        np.testing.assert_allclose(grad, want.numpy(), rtol=1e-4, atol=1e-6)


def test_memory() -> None:
    """At most 64 MiB beyond inputs and gradients, where the logits would take 250."""
    child = Path(__file__).with_name("child_linear_memory.py")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of resident memory is read from /proc")
    done = subprocess.run([sys.executable, child], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=") for line in done.stdout.split())
    assert set(found) == {"float32-loss", "float32-grad", "float16-loss", "float16-grad"}
    assert all(float(mib) <= 64 for mib in found.values()), found
