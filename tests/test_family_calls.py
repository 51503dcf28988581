"""How the family may be called: layouts, dtypes, `out`, threads, batches and state; what cross_entropy promises too."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cases
import family
from checks import same_bits
from family import ELEMENT_WISE, LOSSES, OF_ROWS, Loss, agree, check_grad, diverge
from matrix import BLOCK, DTYPES, Engine

DType = np.dtype[Any]

of_elements = pytest.mark.parametrize("loss", ELEMENT_WISE, ids=str)
of_rows = pytest.mark.parametrize("loss", OF_ROWS, ids=str)
of_both = pytest.mark.parametrize("loss", LOSSES, ids=str)


def targets_of(loss: Loss, rng: np.random.Generator, shape: tuple[int, ...]) -> list[Any]:
    """A target of every kind that the loss has."""
    return [loss.targets(rng, shape), *([cases.labels(rng, shape[:-1], shape[-1])] if loss in OF_ROWS else [])]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@of_both
def test_layouts(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss, layout: str) -> None:
    """The same values in every layout: values, targets, weights and `out`."""
    arrange = cases.LAYOUTS[layout]
    for shape in ((4, 21), (3, 5, 4)):
        x = loss.values(rng, shape, dtype)
        s = rng.random(shape if loss in ELEMENT_WISE else shape[:-1])
        for t in targets_of(loss, rng, shape):
            agree(engine, loss.name, arrange(x), arrange(t), reduction="none", sample_weight=arrange(s))
            plain = engine.call(f"{loss.name}_with_grad", x, t)
            if layout in ("read-only", "transposed"):
                continue
            out = arrange(np.full(shape, 7).astype(dtype))
            got = engine.call(f"{loss.name}_with_grad", x, t, out=out)
            assert got.grad is out
            assert same_bits(got.loss, plain.loss)
            assert same_bits(out.astype(dtype), plain.grad)
            if "spaced" in layout:
                gaps = out.base
                assert gaps is not None
                out[...] = 0
                assert np.isnan(gaps).sum() == gaps.size - out.size


@pytest.mark.parametrize("name", ["binary_cross_entropy_with_logits", "mse_loss", "nll_loss", "cross_entropy"])
def test_sums_have_the_same_bits_in_every_layout(engine: Engine, name: str) -> None:
    """The order of summation goes by the shape alone, with losses of so many sizes that every other order shows."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sizes = rng.uniform(-34, 4, (9, 31, 5, 2)).astype(np.float32)
        x = sizes if name == "binary_cross_entropy_with_logits" else np.exp(sizes) * (-1 if name == "nll_loss" else 1)
        t: Any = np.zeros(x.shape, np.float32)
        if name in ("nll_loss", "cross_entropy"):
            x[..., 1], t = 0, np.where(rng.random(x.shape[:-1]) < 0.1, -100, 0)
        want = engine.call(name, x, t, reduction="sum")
        for arrange in (
            np.asfortranarray,
            cases.spaced,
            cases.backwards,
            lambda a: _with_gaps(a, 1),
            lambda a: _with_gaps(a, 2),
        ):
            assert same_bits(engine.call(name, arrange(x), t, reduction="sum"), want)
            out = arrange(np.zeros_like(x))
            assert same_bits(engine.call(f"{name}_with_grad", x, t, reduction="sum", out=out).loss, want)


def _with_gaps(array: cases.Array, axis: int) -> cases.Array:
    """The same values in an array that is longer along one axis."""
    longer = np.zeros([n + (i == axis) for i, n in enumerate(array.shape)], array.dtype)
    view = longer[(slice(None),) * axis + (slice(1, None),)]
    view[...] = array
    return view


@pytest.mark.parametrize("name", ["entropy", "kl_divergence", "js_divergence"])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts_of_divergences(engine: Engine, rng: np.random.Generator, name: str, layout: str) -> None:
    for kind in (np.float16, np.float64):
        rows = [family.distributions(rng, (4, 3, 21), np.dtype(kind)) for _ in range(1 if name == "entropy" else 2)]
        diverge(engine, name, *map(cases.LAYOUTS[layout], rows))
        diverge(engine, name, *map(cases.LAYOUTS[layout], rows), axis=0)


@of_both
def test_slices_and_broadcasts(engine: Engine, rng: np.random.Generator, loss: Loss) -> None:
    """Strides that do not collapse, of either sign, and zeros."""
    x = loss.values(rng, (4, 6, 5, 7), np.dtype(np.float32))[::2, ::-3, 1:4].transpose(1, 0, 2, 3)
    t = targets_of(loss, rng, x.shape)
    for target in t:
        agree(engine, loss.name, x, target, reduction="none")
    many = np.broadcast_to(x[:1], (3, *x.shape[1:]))
    agree(engine, loss.name, many, np.broadcast_to(t[0][:1], many.shape), reduction="none")
    agree(engine, loss.name, x, np.broadcast_to(t[0][..., :1], x.shape), sample_weight=None)


TARGETS = ["?", "i1", "u1", "i2", "u4", "i4", "i8", "u8", "f2", "bf2", "f4", "f8", ">f8", ">i2"]


@pytest.mark.parametrize("kind", TARGETS)
@of_both
def test_dtypes_of_targets(engine: Engine, rng: np.random.Generator, loss: Loss, kind: str) -> None:
    """Any boolean, integer or floating dtype, in either byte order; labels of any integer one.

    Every kind meets both arithmetics, and every loss does, but not all three each other: each is a compilation.
    """
    wanted = np.dtype(ml_dtypes.bfloat16 if kind == "bf2" else kind)
    shape = (7, 35)
    t = rng.integers(0, 2, shape) if wanted.kind in "iub" else rng.random(shape)
    t = t.astype(wanted)
    if loss.targets is family.decisions and wanted.kind not in "iub":
        with pytest.raises(TypeError, match="target: expected labels 0 and 1"):
            engine.call(loss.name, np.zeros(shape), t)
        return
    real = (np.float32, np.float64)[(LOSSES.index(loss) + TARGETS.index(kind)) % 2]
    x = loss.values(rng, shape, np.dtype(real))
    agree(engine, loss.name, x, t, reduction="none")
    if loss in OF_ROWS and wanted.kind in "iu":
        agree(engine, loss.name, x, cases.labels(rng, 7, 35, wanted), reduction="none")


@pytest.mark.parametrize("kind", TARGETS)
def test_dtypes_of_large_targets(engine: Engine, rng: np.random.Generator, kind: str) -> None:
    """The same where they are too many to be copied, as a backend may do with few; the losses take turns."""
    wanted = np.dtype(ml_dtypes.bfloat16 if kind == "bf2" else kind)
    losses = [loss for loss in LOSSES if loss.targets is not family.decisions]
    loss = losses[TARGETS.index(kind) % len(losses)]
    shape, part = (900, 91), slice(700, 800)
    t = (rng.integers(0, 2, shape) if wanted.kind in "iub" else rng.random(shape)).astype(wanted)
    w = t.astype(np.int8 if wanted.kind == "f" else wanted) if loss in ELEMENT_WISE else None
    for real in (np.float32, np.float64):
        x = loss.values(rng, shape, np.dtype(real))
        got = engine.call(f"{loss.name}_with_grad", x, t, sample_weight=w, reduction="none")
        few = None if w is None else w[part].astype(real)
        want = engine.call(f"{loss.name}_with_grad", x[part], t[part].astype(real), sample_weight=few, reduction="none")
        assert same_bits(got.loss[part], want.loss)
        assert same_bits(got.grad[part], want.grad)


def test_large_arrays_of_other_dtypes(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Byte orders, and `out` of another dtype, where arrays are too large to be copied; the losses take turns."""
    at, shape, part = DTYPES.index(dtype), (900, 91), slice(700, 800)
    for loss in (LOSSES[at], LOSSES[(at + 3) % len(LOSSES)]):
        x, t = loss.values(rng, shape, dtype), targets_of(loss, rng, shape)[-1]
        for values, kind in ((cases.swapped(x), cases.swapped(x).dtype), (x, DTYPES[(at + 1) % len(DTYPES)])):
            out, few = np.full(shape, 7).astype(kind), np.full((100, 91), 7).astype(kind)
            function = f"{loss.name}_with_grad"
            got = engine.call(function, values, t, out=out, reduction="none")
            want = engine.call(function, values[part], t[part], out=few, reduction="none")
            assert got.grad is out
            assert same_bits(got.loss[part], want.loss)
            assert same_bits(out[part], few)


@pytest.mark.parametrize("kind", [bool, np.int32, np.float16, ml_dtypes.bfloat16, np.float64])
@of_elements
def test_dtypes_of_weights(engine: Engine, rng: np.random.Generator, loss: Loss, kind: Any) -> None:
    x, t = loss.values(rng, (6, 5), np.dtype(np.float32)), loss.targets(rng, (6, 5))
    w = np.array([1, 0, 1, 2, 1]).astype(kind)
    names = ["weight", "sample_weight", *(["pos_weight"] if "pos_weight" in loss.options else [])]
    for name in names:
        agree(engine, loss.name, x, t, **{name: w})
    if kind is not bool:
        agree(engine, loss.name, x, t, reduction="none", grad_output=(w - w * 3).astype(kind))


@of_elements
def test_many_weights(engine: Engine, rng: np.random.Generator, loss: Loss) -> None:
    """Any choice of weights, where they are too many to be joined by others, as a backend may do with few."""
    shape, part = (900, 91), slice(700, 800)
    x, t, w = loss.values(rng, shape, np.dtype(np.float32)), loss.targets(rng, shape), rng.integers(0, 3, shape) / 2
    choices: list[dict[str, Any]] = [{"sample_weight": w}, {"weight": w}, {"weight": w, "sample_weight": w[:, :1]}]
    choices.append(choices[-1] | {"grad_output": w - 1})
    if "pos_weight" in loss.options:
        choices += [{"pos_weight": w, "grad_output": w - 1}, {"sample_weight": w, "label_smoothing": 0.5}]
    for options in choices:
        few = {key: value if key == "label_smoothing" else value[part] for key, value in options.items()}
        got = engine.call(f"{loss.name}_with_grad", x, t, reduction="none", **options)
        want = engine.call(f"{loss.name}_with_grad", x[part], t[part], reduction="none", **few)
        assert same_bits(got.loss[part], want.loss)
        assert same_bits(got.grad[part], want.grad)


@of_elements
def test_integer_weights_that_float32_does_not_hold(engine: Engine, rng: np.random.Generator, loss: Loss) -> None:
    """A mean's denominator is the sum of the weights as they are."""
    x, t = loss.values(rng, (6, 5), np.dtype(np.float32)), loss.targets(rng, (6, 5))
    w = np.full((6, 5), 2**24 + 1, np.int32)
    w[0] = 3
    want = engine.call(f"{loss.name}_with_grad", x, t, sample_weight=w.astype(np.float64))
    got = engine.call(f"{loss.name}_with_grad", x, t, sample_weight=w)
    assert got.loss == want.loss
    assert same_bits(got.grad, want.grad)


def test_lists_and_numbers(engine: Engine) -> None:
    """Nested lists and numbers are float64, of integers too."""
    for loss in ELEMENT_WISE:
        value, grad = engine.call(f"{loss.name}_with_grad", [[0, 1], [1, 0]], [[1, 0], [1, 1]], reduction="none")
        assert value.dtype == grad.dtype == np.float64
        assert engine.call(loss.name, 0.5, 1) == engine.call(loss.name, [0.5], [1])
        assert engine.call(loss.name, 0.5, 1, reduction="none").shape == ()
    for loss in OF_ROWS:
        value, grad = engine.call(f"{loss.name}_with_grad", [[0.25, 0.75]], [1], reduction="none")
        assert value.dtype == grad.dtype == np.float64
    assert engine.call("entropy", [0.5, 0.5], base=2) == 1
    assert engine.call("kl_divergence", [1, 0], [0.5, 0.5], base=2) == 1


@pytest.mark.parametrize("other", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@of_both
def test_out_of_another_dtype(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss, other: Any) -> None:
    """The gradient takes the dtype of `out`."""
    x = loss.values(rng, (5, 37), dtype)
    for t in targets_of(loss, rng, (5, 37)):
        out = np.empty(x.shape, other)
        got = engine.call(f"{loss.name}_with_grad", x, t, out=out, reduction="none")
        assert got.grad is out
        check_grad(out, family.answer(loss.name, (x, t), {"reduction": "none"}), dtype)


@of_both
def test_in_place(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """`out` may be the first argument itself: the same loss, the same bits of gradient, in every layout."""
    for layout in ("contiguous", "fortran", "misaligned", "byte-swapped", "spaced", "backwards"):
        for shape in ((5, 37), (3, 6, 19), (2, BLOCK + 3)):
            x = loss.values(rng, shape, dtype)
            for t in targets_of(loss, rng, shape):
                y, z = cases.LAYOUTS[layout](x.copy()), cases.LAYOUTS[layout](x.copy())
                want = engine.call(f"{loss.name}_with_grad", z, t)
                got = engine.call(f"{loss.name}_with_grad", y, t, out=y)
                assert got.grad is y
                assert got.loss == want.loss
                assert same_bits(y.astype(dtype), want.grad)


# --- bits -------------------------------------------------------------------------------------------------------------


@of_both
def test_threads(engine: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """The same bits with any number of threads; the loss the same without the gradient."""
    for shape in ((6000, 3), (300, 130), (9, 4001)):
        x = loss.values(rng, shape, dtype)
        s = rng.random(shape if loss in ELEMENT_WISE else shape[:-1])
        for t in targets_of(loss, rng, shape):
            for reduction in ("sum", "none"):
                options = {"sample_weight": s, "reduction": reduction}
                first, *calls = (
                    engine.call(f"{loss.name}_with_grad", x, t, num_threads=n, **options) for n in (1, 2, 3, 7)
                )
                for got in calls:
                    assert same_bits(got.loss, first.loss)
                    assert same_bits(got.grad, first.grad)
                for n in (1, 3):
                    assert same_bits(engine.call(loss.name, x, t, num_threads=n, **options), first.loss)


@pytest.mark.parametrize("name", ["entropy", "kl_divergence", "js_divergence"])
def test_threads_of_divergences(engine: Engine, dtype: DType, rng: np.random.Generator, name: str) -> None:
    rows = [family.distributions(rng, (3000, 13), dtype) for _ in range(1 if name == "entropy" else 2)]
    options = {} if name == "entropy" else {"reduction": "sum"}
    first, *rest = (engine.call(name, *rows, num_threads=n, **options) for n in (1, 2, 5))
    assert all(same_bits(first, other) for other in rest)


@of_both
def test_alone_and_in_a_batch(compiled: Engine, dtype: DType, rng: np.random.Generator, loss: Loss) -> None:
    """An element, or a row, has the same bits alone and anywhere in a batch of any size and alignment."""
    for n_classes in (3, 40, BLOCK + 3):
        shape = (70 if n_classes < 100 else 5, n_classes)
        x = loss.values(rng, shape, dtype)
        for t in targets_of(loss, rng, shape):
            for options in ({}, {"label_smoothing": 0.1}) if "label_smoothing" in loss.options else ({},):
                options = {"reduction": "none", **options}
                loss_value, grad = compiled.call(f"{loss.name}_with_grad", x, t, **options)
                for rows in (slice(0, 1), slice(1, 2), slice(shape[0] - 1, None), slice(1, 4)):
                    alone = compiled.call(f"{loss.name}_with_grad", x[rows].copy(), t[rows].copy(), **options)
                    assert same_bits(alone.loss, loss_value[rows])
                    assert same_bits(alone.grad, grad[rows])
                if loss in ELEMENT_WISE:
                    some = compiled.call(f"{loss.name}_with_grad", x[:, 1:-1:2], t[:, 1:-1:2], **options)
                    assert same_bits(some.loss, loss_value[:, 1:-1:2])
                    assert same_bits(some.grad, grad[:, 1:-1:2])


@pytest.mark.parametrize("n_classes", [10, 33, 5000])
@of_both
def test_outputs_too_large_for_the_caches(
    compiled: Engine, dtype: DType, rng: np.random.Generator, n_classes: int, loss: Loss
) -> None:
    """More than 4 MiB of gradient is what its rows give in parts; nothing is written around it; in place too."""
    if loss in ELEMENT_WISE and n_classes != 33:
        n_classes = 1  # elements have no classes: one shape is enough, and one that is contiguous
    n = (9 << 19) // dtype.itemsize // n_classes + 7
    base = loss.values(rng, (61, n_classes), dtype)
    x = np.concatenate([base] * (n // 61 + 1))[:n]
    t = loss.targets(rng, (n, n_classes)) if loss in ELEMENT_WISE else cases.labels(rng, n, n_classes)
    if loss in OF_ROWS:
        t[::50] = -100
    options: dict[str, Any] = {"reduction": "sum", "num_threads": 2}
    function = f"{loss.name}_with_grad"
    for offset in (0, 1):
        room = np.full(n * n_classes + 2 * offset, 7, dtype)
        out = room[offset : offset + n * n_classes].reshape(n, n_classes)
        compiled.call(function, x, t, out=out, **options)
        assert (room[:offset] == 7).all()
        assert (room[offset + n * n_classes :] == 7).all()
        for first in (0, n // 2, n - 300):
            part = slice(max(0, first), max(0, first) + 300)
            piece = compiled.call(function, x[part], t[part], **options).grad
            assert same_bits(piece, out[part])
    want = out.copy()
    compiled.call(function, x, t, out=x, **options)
    assert same_bits(x, want)


# --- state ------------------------------------------------------------------------------------------------------------


def every_call(engine: Engine, dtype: DType) -> list[Callable[[], Any]]:
    """Calls of each function that meet NaN, infinities, overflow, underflow and nothing to average."""
    calls: list[Callable[[], Any]] = []

    def add(name: str, *arrays: Any, **options: Any) -> None:
        calls.append(lambda: engine.call(name, *arrays, **options))

    rng = np.random.default_rng(3)
    with np.errstate(all="ignore"):
        odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 6e4, -6e4, 1e-38, 6e-8, -1, 1, 2]).astype(dtype)
        q = np.abs(np.concatenate([family.distributions(rng, (100, 4), dtype).ravel(), odd]).reshape(-1, 4))
        p = np.where(q <= 2, q, 0).astype(dtype)
    for loss in LOSSES:
        x = np.concatenate([loss.values(rng, (400,), dtype), odd, odd]).reshape(-1, 4)
        for t, options in itertools.product(targets_of(loss, rng, x.shape), ({}, {"label_smoothing": 0.1})):
            if set(options) <= set(loss.options):
                add(loss.name, x, t, num_threads=3, **options)
                add(f"{loss.name}_with_grad", x, t, num_threads=3, reduction="none", **options)
        s = np.zeros(x.shape if loss in ELEMENT_WISE else x.shape[:1])
        add(f"{loss.name}_with_grad", x, t, sample_weight=s, grad_output=1e30)
        add(f"{loss.name}_with_grad", x, t, denominator=1e30, grad_output=1e-30)
        add(loss.name, x[:0], t[:0])
    add("entropy", p)
    add("kl_divergence", p, q, base=2)
    add("js_divergence", p, q, reduction="batchmean")
    return calls


def test_no_warnings_and_numpys_error_state(engine: Engine, dtype: DType) -> None:
    """Where NumPy would raise for every floating-point event no call does, or differs; and none warns."""
    before = np.geterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calm = [call() for call in every_call(engine, dtype)]
    assert [str(w.message) for w in caught] == []
    assert np.geterr() == before
    calls = every_call(engine, dtype)
    with np.errstate(all="raise"):
        inside = np.geterr()
        again = [call() for call in calls]
        assert np.geterr() == inside
    for a, b in zip(calm, again, strict=True):
        pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
        assert all(same_bits(*pair) for pair in pairs)


def test_16_threads(engine: Engine, rng: np.random.Generator) -> None:
    """16 Python threads inside one engine, with an element-wise loss, one of rows, and a divergence."""
    problems: list[tuple[str, tuple[Any, ...]]] = []
    for i in range(8):
        shape = (200 * i + 1, 9)
        x, p = cases.normal(rng, shape, np.float32), family.distributions(rng, shape, np.dtype(np.float32))
        problems.append(("binary_cross_entropy_with_logits_with_grad", (x, family.shares(rng, shape))))
        problems.append(("categorical_cross_entropy_with_grad", (p, cases.labels(rng, shape[0], 9))))
        problems.append(("kl_divergence", (p, p[::-1])))

    def solve(problem: tuple[str, tuple[Any, ...]]) -> list[bytes]:
        got = engine.call(problem[0], *problem[1], num_threads=2)
        return [np.asarray(part).tobytes() for part in (got if isinstance(got, tuple) else (got,))]

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(solve, problems * 2))
    assert together == [solve(problem) for problem in problems] * 2
