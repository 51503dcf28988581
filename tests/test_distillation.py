"""distillation_loss and its gradient: a teacher's logits as the target, on every engine, against longdouble."""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple

import numpy as np
import pytest

import cases
import fastce
import oracle
import tolerances
from checks import close, loss_dtype, same_bits
from matrix import BLOCK, Engine
from oracle import Wide, widen

Array = cases.Array
DType = np.dtype[Any]


class Exact(NamedTuple):
    """Of rows (n, C): losses, gradients by the logits, and bounds on both before they are stored."""

    loss: Array
    grad: Array
    loss_bound: Array
    grad_bound: Array


def exact(x: Array, t: Array, temperature: float, s: Array | None, dtype: DType) -> Exact:
    weight = np.ones(len(x), Wide) if s is None else widen(s)
    none, no = np.zeros(len(x), Wide), weight == 0
    real = loss_dtype(dtype)
    with np.errstate(all="ignore"):
        read = widen(t.astype(real))  # a teacher of float64 beside float32 is read as float32
        teacher = oracle.compute_rows(read / temperature, np.zeros(x.shape, Wide), none, none > 0)
        q = np.where(teacher.finite[:, None], teacher.p, Wide(0))
        rows = oracle.compute_rows(widen(x) / temperature, q, none, no)
        loss_bound, grad_bound = tolerances.distillation(rows, teacher, temperature, dtype)
        scale = weight * temperature
        loss = np.where(teacher.finite | no, rows.loss * temperature * scale, Wide(np.nan))
        loss = np.where(no, Wide(0), loss)
        # Of the softmaxes, not of the loss, which may be infinite.
        grad = np.where(teacher.finite[:, None], (rows.p - q) * scale[:, None], Wide(np.nan))
        grad = np.where(no[:, None], Wide(0), grad)
        return Exact(loss, grad, loss_bound * temperature * scale, grad_bound * scale[:, None])


def check(
    engine: Engine,
    x: Array,
    t: Array,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    s: Array | None = None,
    **views: Any,
) -> Any:
    """Losses and gradients, with and without each other; views are logits and teacher as they are handed over."""
    dtype, real = x.dtype, loss_dtype(x.dtype)

    def rows(array: Array) -> Array:
        return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])

    want = exact(rows(x), rows(t), temperature, None if s is None else s.reshape(-1), dtype)
    options = {"axis": axis, "temperature": temperature, "sample_weight": s, "reduction": "none"}
    logits, teacher = views.get("logits", x), views.get("teacher", t)
    losses = engine.call("distillation_loss", logits, teacher, **options)
    both = engine.call("distillation_loss_with_grad", logits, teacher, out=views.get("out"), **options)
    assert same_bits(losses, both.loss)
    assert losses.dtype == real
    close(losses.reshape(-1), want.loss, tolerances.stored(want.loss_bound, want.loss, real), "loss")
    bound = tolerances.stored(want.grad_bound, want.grad, both.grad.dtype)
    close(rows(both.grad), want.grad, bound, "gradient")
    return both


def test_sizes(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Around vectors and blocks, in differences that are exact."""
    lanes = engine.lanes(dtype)
    sizes = {1, 2, lanes - 1 or 1, lanes, lanes + 1, 32, 33, 4 * lanes + 1, BLOCK - 1, BLOCK, BLOCK + 1, 5000}
    for n_classes in sorted(sizes):
        shape = (19 if n_classes < 100 else 3, n_classes)
        x, t = cases.grid(rng, shape, dtype, -24, 24), cases.grid(rng, shape, dtype, -24, 24)
        check(engine, x, t)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_temperatures(engine: Engine, dtype: DType, rng: np.random.Generator, temperature: float) -> None:
    """With weights, at any temperature, with logits of any size."""
    for scale in (0.1, 3.0, 30.0):
        for n_classes in (6, 90):
            x, t = cases.normal(rng, (23, n_classes), dtype, scale), cases.normal(rng, (23, n_classes), dtype, scale)
            s = rng.random(23)
            s[::6] = 0
            check(engine, x, t, temperature=temperature, s=s)


@pytest.mark.parametrize("n_classes", [2, 9, 70, BLOCK + 900])
def test_special_rows(engine: Engine, dtype: DType, n_classes: int) -> None:
    """NaN, infinities and excluded classes on either side: that row's result is what the documentation says."""
    inf = np.inf
    half = n_classes // 2
    x, t = (np.tile(np.arange(n_classes) % 5 * sign, (16, 1)).astype(np.float64) for sign in (1, -1))
    x[0, 0] = t[1, -1] = np.nan
    x[2, half] = t[3, half] = inf
    x[4] = -inf
    t[5] = -inf
    x[6, :half], t[6, :half] = -inf, -inf
    t[7, half:] = -inf
    x[8, -1] = -inf  # what the teacher may give something: the loss is infinite, the gradient is not
    x[9, :-1], t[9, :-1] = -inf, -inf
    x[10] = t[10] = 3.0
    x[11, half:], t[11, half:] = -inf, -1000.0 if dtype.itemsize == 2 else -1e30
    x[12, :half], t[12, :half] = -inf, -1000.0 if dtype.itemsize == 2 else -1e30
    x[13, 0] = t[14, 0] = 1000.0
    x[15, 0], x[15, 1] = np.nan, inf
    x, t = x.astype(dtype), t.astype(dtype)
    real = t.astype(Wide)
    # The oracle has no smallest number: what the teacher gives e^-1000 is excluded here as there.
    lost = np.where(real < -900, -inf, real).astype(dtype)
    lost[5] = t[5]
    both = compare(engine, x, t, lost)
    assert np.isinf(both.loss[8])
    assert np.isfinite(both.grad[8].astype(np.float64)).all()
    s = np.zeros(16)
    s[10] = 2
    check(engine, x, t, s=s)


def compare(engine: Engine, x: Array, t: Array, same_as: Array) -> Any:
    """Check a teacher that gives the same probabilities as another."""
    return check(engine, x, same_as, teacher=t)


def test_maximum_in_any_place(engine: Engine, dtype: DType) -> None:
    for n_classes in (7, 4 * engine.lanes(dtype) + 3):
        x = (8.0 * np.eye(n_classes) - 9.0).astype(dtype)
        check(engine, x, x[::-1].copy())
        check(engine, x, x)


def test_a_teacher_like_the_logits(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The gradient is 0 within rounding, and the loss T^2 times the entropy at T."""
    real = loss_dtype(dtype)
    for n_classes in (3, 40, 3000):
        x = cases.normal(rng, (11, n_classes), dtype)
        for temperature in (1.0, 2.0, 5.0):
            both = check(engine, x, x, temperature=temperature)
            p = engine.softmax(x.astype(np.float64) / temperature)
            assert (np.abs(both.grad.astype(np.float64)) <= 16 * np.finfo(real).eps * temperature * p).all()
            entropy = engine.call("row_statistics", x.astype(np.float64) / temperature, fields="entropy").entropy
            np.testing.assert_allclose(both.loss, temperature**2 * entropy, rtol=12 * np.finfo(real).eps)


def test_the_gradient_is_the_derivative(engine: Engine, rng: np.random.Generator) -> None:
    """By central differences, with everything that scales it."""
    x, t, s = cases.normal(rng, (5, 7), np.float64), cases.normal(rng, (5, 7), np.float64), rng.random(5)
    options: dict[str, Any] = {"temperature": 2.5, "sample_weight": s, "base": 2}
    for more in ({"reduction": "mean"}, {"reduction": "sum"}, {"reduction": "mean", "denominator": 3.0}):
        grad = engine.call("distillation_loss_with_grad", x, t, grad_output=-1.5, **options, **more).grad
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 1e-5
            up, down = (engine.call("distillation_loss", x + sign * step, t, **options, **more) for sign in (1, -1))
            assert math.isclose(grad[at], -1.5 * (up - down) / 2e-5, rel_tol=1e-6, abs_tol=1e-8)


def test_reductions(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Sum and mean of the losses, the mean by the weights' total; grad_output for each row."""
    x, t = cases.normal(rng, (31, 12), dtype), cases.normal(rng, (31, 12), dtype)
    s, g = rng.random(31), rng.standard_normal(31)
    s[4] = 0

    def loss(**options: Any) -> Any:
        return engine.call("distillation_loss", x, t, sample_weight=s, temperature=2.0, **options)

    rows = loss(reduction="none")
    eps = float(np.finfo(loss_dtype(dtype)).eps)
    assert math.isclose(loss(reduction="sum"), math.fsum(rows.tolist()), rel_tol=eps)
    assert math.isclose(loss(), math.fsum(rows.tolist()) / math.fsum(s), rel_tol=eps)
    assert math.isclose(loss(denominator=7.0), math.fsum(rows.tolist()) / 7, rel_tol=eps)
    np.testing.assert_allclose(loss(reduction="none", base=2), rows / np.log(2), rtol=4 * eps)
    options: dict[str, Any] = {"sample_weight": s, "temperature": 2.0, "reduction": "none"}
    plain = engine.call("distillation_loss_with_grad", x, t, **options).grad.astype(np.float64)
    scaled = engine.call("distillation_loss_with_grad", x, t, grad_output=g, **options).grad.astype(np.float64)
    tolerance = 8 * float(tolerances.FORMATS[dtype].half_eps)
    np.testing.assert_allclose(scaled, plain * g[:, None], rtol=tolerance, atol=64 * eps)
    assert (scaled[4] == 0).all()
    assert not scaled[4].tobytes().strip(b"\0")
    none = engine.call("distillation_loss_with_grad", x, t, sample_weight=np.zeros(31))
    assert math.isnan(none.loss)
    assert (none.grad == 0).all()


def test_layouts(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Logits, teacher, weights and out in any layout."""
    for n_classes in (5, 37):
        x, t = cases.normal(rng, (6, n_classes), dtype), cases.normal(rng, (6, n_classes), dtype)
        plain = check(engine, x, t)
        for name, arrange in cases.LAYOUTS.items():
            out = arrange(np.zeros_like(x)) if name != "read-only" else None
            both = check(engine, x, t, logits=arrange(x), teacher=arrange(t), out=out)
            assert out is None or both.grad is out
            if name in ("misaligned", "byte-swapped", "read-only"):
                assert same_bits(both.loss, plain.loss)
                assert same_bits(both.grad.astype(dtype), plain.grad)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes(engine: Engine, dtype: DType, rng: np.random.Generator, axis: int) -> None:
    for shape in ((6, 5, 7), (40, 50, 45)):
        x, t = cases.normal(rng, shape, dtype), cases.normal(rng, shape, dtype)
        s = rng.random(shape[:axis] + shape[axis + 1 :])
        s.flat[2] = 0
        check(engine, x, t, axis=axis, s=s)


def test_teacher_of_another_dtype(engine: Engine, rng: np.random.Generator) -> None:
    """A teacher may have any dtype; it is read in that of the arithmetic."""
    half, single, double = np.float16, np.float32, np.float64
    for kind, other in ((half, single), (single, half), (single, double), (double, half)):
        x, t = cases.normal(rng, (9, 40), kind), cases.normal(rng, (9, 40), other)
        check(engine, x, t)


def test_large_arrays_of_other_dtypes(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Byte orders, and `out` of another dtype, where arrays are too large to be copied."""
    x, t = (cases.swapped(cases.normal(rng, (900, 91), dtype)) for _ in range(2))
    part, kind = slice(700, 800), np.dtype(np.float64 if dtype == np.float32 else np.float32)
    out, few = np.full(x.shape, 7, kind), np.full((100, 91), 7, kind)
    got = engine.call("distillation_loss_with_grad", x, t, out=out, reduction="none")
    want = engine.call("distillation_loss_with_grad", x[part], t[part], out=few, reduction="none")
    assert got.grad is out
    assert same_bits(got.loss[part], want.loss)
    assert same_bits(out[part], few)


def test_out(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """In place, of another dtype, and transposed."""
    for shape, axis in (((40, 6), 1), ((9, 3000), 1), ((50, 45), 0)):
        x, t = cases.normal(rng, shape, dtype), cases.normal(rng, shape, dtype)
        want = engine.call("distillation_loss_with_grad", x, t, axis=axis)
        there = x.copy()
        got = engine.call("distillation_loss_with_grad", there, t, axis=axis, out=there)
        assert got.grad is there
        assert (got.loss, got.grad.tobytes()) == (want.loss, want.grad.tobytes())
        out = np.full(shape[::-1], 7, np.float64 if dtype == np.float32 else np.float32).T
        check(engine, x, t, axis=axis, out=out)


@pytest.mark.parametrize("shape", [(5000, 3), (900, 130), (9, 40000)], ids=str)
def test_threads_and_rows_alone(engine: Engine, dtype: DType, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    """The same bits with any number of threads, and for a row alone (but for NumPy)."""
    x, t, s = cases.normal(rng, shape, dtype), cases.normal(rng, shape, dtype), rng.random(shape[0])
    for reduction in ("sum", "none"):
        calls = [
            engine.call(
                "distillation_loss_with_grad",
                x,
                t,
                sample_weight=s,
                temperature=3.0,
                reduction=reduction,
                num_threads=n,
            )
            for n in (1, 2, 7)
        ]
        for other in calls[1:]:
            assert same_bits(other.loss, calls[0].loss)
            assert same_bits(other.grad, calls[0].grad)
    if engine.backend != "numpy":
        for row in (slice(0, 1), slice(4, 7), slice(shape[0] - 1, None)):
            options = {"sample_weight": s[row], "temperature": 3.0, "reduction": "none"}
            alone = engine.call("distillation_loss_with_grad", x[row], t[row], **options)
            assert same_bits(alone.loss, calls[0].loss[row])
            assert same_bits(alone.grad, calls[0].grad[row])


def test_masked_classes_in_front(engine: Engine, dtype: DType) -> None:
    """Excluded classes that the teacher only makes improbable, blocks of them before the others: not infinite."""
    n_classes = 2 * BLOCK + 10
    x, t = np.ones((2, n_classes)), np.ones((2, n_classes))
    x[:, : BLOCK + 5], t[:, : BLOCK + 5] = -np.inf, float(tolerances_lowest(dtype))
    t[1] = t[1, ::-1]
    x[1] = x[1, ::-1]
    x, t = x.astype(dtype), t.astype(dtype)
    for temperature in (1.0, 3.0):
        loss = engine.call("distillation_loss", x, t, temperature=temperature, reduction="none")
        np.testing.assert_allclose(loss, temperature**2 * math.log(BLOCK + 5), rtol=1e-6)


def tolerances_lowest(dtype: DType) -> float:
    return -6e4 if dtype == np.float16 else -1e30


def test_no_rows(engine: Engine) -> None:
    loss, grad = engine.call("distillation_loss_with_grad", np.zeros((0, 3)), np.zeros((0, 3)), reduction="sum")
    assert loss == 0
    assert grad.shape == (0, 3)


def test_bad_weights(engine: Engine, rng: np.random.Generator) -> None:
    """The first in C order, and nothing has been written."""
    x, t = cases.normal(rng, (50, 60, 5), np.float32), cases.normal(rng, (50, 60, 5), np.float32)
    s = np.ones((50, 60))
    s[31, 7], s[31, 8], s[40, 0] = -1, np.nan, np.inf
    out = np.full(x.shape, 7, np.float32)
    message = r"sample_weight: expected finite numbers >= 0, got -1.0 at index \(31, 7\)"
    with pytest.raises(ValueError, match=message):
        engine.call("distillation_loss", x, t, sample_weight=s, num_threads=2)
    with pytest.raises(ValueError, match=message):
        engine.call("distillation_loss_with_grad", x, t, sample_weight=s, out=out)
    assert (out == 7).all()


BAD = [
    ({"teacher_logits": np.zeros((3, 2))}, ValueError, r"teacher_logits: expected the shape of logits, \(2, 3\)"),
    ({"teacher_logits": np.zeros(2, int)}, TypeError, r"teacher_logits: expected"),
    ({"logits": np.zeros((2, 3), int)}, TypeError, r"logits: expected"),
    ({"temperature": 0.0}, ValueError, r"temperature: expected a finite number > 0, got 0.0"),
    ({"temperature": -1}, ValueError, r"temperature: expected a finite number > 0"),
    ({"temperature": math.nan}, ValueError, r"temperature"),
    ({"temperature": math.inf}, ValueError, r"temperature"),
    ({"temperature": "warm"}, TypeError, r"temperature"),
    ({"sample_weight": np.ones(3)}, ValueError, r"sample_weight: expected one number for each row"),
    ({"reduction": "batchmean"}, ValueError, r"reduction"),
    ({"reduction": "sum", "denominator": 2.0}, ValueError, r"denominator"),
    ({"denominator": 0.0}, ValueError, r"denominator"),
    ({"base": 1.0}, ValueError, r"base"),
    ({"axis": 2}, ValueError, r"axis"),
    ({"num_threads": 0}, ValueError, r"num_threads"),
    ({"backend": "fortran"}, ValueError, r"backend"),
]
BAD_OUT = [
    ({"out": np.zeros((3, 2))}, ValueError, r"out"),
    ({"out": np.zeros((2, 3), int)}, TypeError, r"out"),
    ({"out": cases.read_only(np.zeros((2, 3)))}, ValueError, r"out"),
    ({"grad_output": np.ones(2)}, (TypeError, ValueError), r"grad_output"),
    ({"grad_output": np.ones(3), "reduction": "none"}, ValueError, r"grad_output"),
]


@pytest.mark.parametrize("name", ["distillation_loss", "distillation_loss_with_grad"])
@pytest.mark.parametrize(("change", "error", "message"), BAD + BAD_OUT, ids=lambda value: str(value)[:40])
def test_bad_arguments(name: str, change: dict[str, Any], error: Any, message: str) -> None:
    arguments = {"logits": np.zeros((2, 3)), "teacher_logits": np.zeros((2, 3))} | change
    logits, teacher = arguments.pop("logits"), arguments.pop("teacher_logits")
    if name == "distillation_loss" and set(change) & {"out", "grad_output"}:
        error, message = TypeError, "unexpected keyword"
    with pytest.raises(error, match=message):
        getattr(fastce, name)(logits, teacher, **arguments)


def test_out_may_not_overlap_the_teacher() -> None:
    x, t = np.zeros((2, 3)), np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"out: .*teacher_logits"):
        fastce.distillation_loss_with_grad(x, t, out=t)


def test_signatures() -> None:
    text = (
        "(logits, teacher_logits, *, axis=-1, temperature=1.0, sample_weight=None, reduction='mean', "
        "denominator=None, base=None, {}backend='auto', num_threads=None)"
    )
    for name, more in (("distillation_loss", ""), ("distillation_loss_with_grad", "grad_output=None, out=None, ")):
        signature = inspect.signature(getattr(fastce, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        assert str(inspect.Signature(bare)) == text.format(more), name
