"""What the contract says of inputs: any layout, any axis, any label dtype, other libraries' arrays, `out`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cases
import fastce
import oracle
from checks import agree, check_grad, check_value, loss_dtype, same_bits
from matrix import DTYPES, Engine

DType = np.dtype[Any]


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_layouts(engine: Engine, dtype: DType, rng: np.random.Generator, layout: str) -> None:
    """The same values in every layout: strides, alignment, byte order, read-only; logits, labels, weights, targets."""
    arrange = cases.LAYOUTS[layout]
    for shape in ((4, 21), (3, 5, 4)):
        x = cases.normal(rng, shape, dtype)
        y = cases.labels(rng, shape[:-1], shape[-1])
        s = rng.random(shape[:-1])
        agree(engine, arrange(x), arrange(y), reduction="none")
        agree(engine, arrange(x), y, sample_weight=arrange(s), weight=arrange(rng.random(shape[-1])))
        agree(engine, arrange(x), arrange(cases.dense(rng, shape)), reduction="none")
        agree(engine, x, y, grad_output=arrange(s), reduction="none")


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axis(engine: Engine, dtype: DType, rng: np.random.Generator, axis: int) -> None:
    """The class axis anywhere, labels shaped as what is left, and every layout of that."""
    shape = (3, 5, 37)
    left = tuple(n for i, n in enumerate(shape) if i != axis % 3)
    x, y = cases.normal(rng, shape, dtype), cases.labels(rng, left, shape[axis])
    agree(engine, x, y, axis=axis, reduction="none")
    agree(engine, np.asfortranarray(x), np.asfortranarray(y), axis=axis, weight=rng.random(shape[axis]))
    agree(engine, x, cases.dense(rng, shape), axis=axis, reduction="none", sample_weight=rng.random(left))
    agree(engine, cases.backwards(x), y, axis=axis, reduction="none", z_loss=0.1, label_smoothing=0.1)


def test_images(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Class axis 1 of four, with as many neighbours as fill vectors and leave a tail; slices of it do not collapse."""
    inner = 4 * engine.lanes(dtype) + 3
    x = cases.normal(rng, (3, 5, 2, inner), dtype)
    y = cases.labels(rng, (3, 2, inner), 5)
    y[1, 0, ::3] = -100
    agree(engine, x, y, axis=1, reduction="none", num_threads=2)
    agree(engine, x, y, axis=1, weight=rng.random(5), sample_weight=rng.random(y.shape), label_smoothing=0.1)
    agree(engine, x[:, :, :, 1:-1], y[:, :, 1:-1], axis=1, reduction="none")
    agree(engine, x[:, :, ::-1, ::2], y[:, ::-1, ::2], axis=1, reduction="none")
    agree(engine, x[:, 1:4], np.minimum(y, 2), axis=1, reduction="none")
    agree(engine, x, cases.dense(rng, x.shape), axis=1, reduction="none", z_loss=0.01)


def test_axes_that_do_not_collapse(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Five axes of positions with strides that no two of them share."""
    x = cases.normal(rng, (4, 3, 6, 2, 5, 7), dtype)[::2, :, ::-3, :, 1:4].transpose(3, 0, 2, 1, 4, 5)
    y = cases.labels(rng, x.shape[:-1], 7)
    agree(engine, x, y, reduction="none")
    agree(engine, x, cases.labels(rng, x.shape[:2] + x.shape[3:], x.shape[2]), axis=2, reduction="none")


def test_zero_strides(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """np.broadcast_to along positions, along classes, and of labels, weights and dense targets."""
    x = cases.normal(rng, (1, 9), dtype)
    many = np.broadcast_to(x, (6, 9))
    y = cases.labels(rng, 6, 9)
    agree(engine, many, y, reduction="none")
    agree(engine, many, np.broadcast_to(y[:1], 6), sample_weight=np.broadcast_to(0.5, 6))
    agree(
        engine, np.broadcast_to(x.T, (9, 5)), cases.labels(rng, 9, 5), reduction="none", weight=np.broadcast_to(2.0, 5)
    )
    agree(engine, cases.normal(rng, (6, 9), dtype), np.broadcast_to(cases.dense(rng, (1, 9)), (6, 9)), reduction="none")
    agree(engine, cases.normal(rng, (6, 9), dtype), np.broadcast_to(np.float32(0.5), (6, 9)), reduction="none")


def test_one_row_of_logits(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """One dimension: a single position, whose label is a scalar and whose loss for "none" has no dimensions."""
    x = cases.normal(rng, (12,), dtype)
    loss, grad = engine.cross_entropy_with_grad(x, 3, reduction="none")
    want = oracle.cross_entropy(x, 3, reduction="none")
    assert np.shape(loss) == ()
    check_value(np.asarray(loss), want, dtype, "none")
    check_grad(grad, want, dtype)
    agree(engine, x, np.array(3), reduction="sum")
    agree(engine, x, cases.dense(rng, (12,)))


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "p", "P"])
def test_label_dtypes(engine: Engine, rng: np.random.Generator, kind: str) -> None:
    """Labels of any integer dtype, in either byte order and off their alignment."""
    x = cases.normal(rng, (7, 100), np.float32)
    y = cases.labels(rng, 7, 100, np.dtype(kind))
    agree(engine, x, y, reduction="none")
    for arrange in (cases.swapped, cases.misaligned, cases.backwards):
        agree(engine, x, arrange(y), reduction="none", label_smoothing=0.1)


@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "bf2", "f4", "f8"])
def test_dense_dtypes(engine: Engine, rng: np.random.Generator, kind: str) -> None:
    """Dense targets of any boolean, integer or floating dtype."""
    check_dense(engine, rng, np.float32, np.dtype(ml_dtypes.bfloat16 if kind == "bf2" else kind))


@pytest.mark.parametrize(
    ("real", "kind"), [(np.float64, "f4"), (np.float64, "i8"), (np.float32, ">f8"), (np.float32, ">i2")]
)
def test_dense_dtypes_further(engine: Engine, rng: np.random.Generator, real: Any, kind: str) -> None:
    """With float64 logits, and of the other byte order."""
    check_dense(engine, rng, real, np.dtype(kind))


def check_dense(engine: Engine, rng: np.random.Generator, real: Any, kind: DType) -> None:
    x = cases.normal(rng, (7, 35), real)
    t = rng.integers(0, 3, x.shape).astype(kind) if kind.kind in "iub" else rng.random(x.shape).astype(kind)
    losses = engine.cross_entropy(x, t, reduction="none")
    check_value(losses, oracle.cross_entropy(x, t, reduction="none"), x.dtype, "none")


@pytest.mark.parametrize("kind", [bool, np.int32, np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtypes_of_weights(engine: Engine, rng: np.random.Generator, kind: Any) -> None:
    """Class weights, sample weights and grad_output of any real dtype."""
    x, y = cases.normal(rng, (7, 5), np.float32), cases.labels(rng, 7, 5)
    weight, s = rng.integers(0, 2, 5).astype(kind), rng.integers(0, 2, 7).astype(kind)
    weight[y[0]] = s[0] = 1
    agree(engine, x, y, weight=weight, sample_weight=s)
    if kind is not bool:
        agree(engine, x, y, grad_output=(s - 3 * weight[y]).astype(kind), reduction="none")


def test_integer_weights_that_float32_does_not_hold(engine: Engine, rng: np.random.Generator) -> None:
    """Clause 2: a mean's denominator is the sum of the weights as they are, however few there are."""
    x, y = cases.normal(rng, (5, 4), np.float32), cases.labels(rng, 5, 4)
    w = np.array([2**24 + 1] * 4 + [3], np.int32)
    want = engine.cross_entropy_with_grad(x, y, sample_weight=w.astype(np.float64))
    got = engine.cross_entropy_with_grad(x, y, sample_weight=w)
    assert got.loss == want.loss == engine.cross_entropy(x, y, sample_weight=w)
    assert same_bits(got.grad, want.grad)


def test_lists(engine: Engine) -> None:
    """Nested lists are float64, of integers too; lists of labels, weights and dense targets."""
    x = [[1, 2, 3], [0, 5, -1]]
    loss, grad = engine.cross_entropy_with_grad(x, [0, 1], weight=[1, 2, 3], sample_weight=[1, 0.5], reduction="none")
    assert loss.dtype == grad.dtype == np.float64
    agree(engine, x, [0, 1], weight=[1, 2, 3])
    agree(engine, x, [[0, 0.5, 0.5], [1, 0, 0]])
    assert engine.softmax(x).dtype == np.float64


def test_memory_maps(engine: Engine, dtype: DType, rng: np.random.Generator, tmp_path: Path) -> None:
    """Read from a file and written to one, without becoming an array in between."""
    x, y = cases.normal(rng, (20, 9), dtype), cases.labels(rng, 20, 9)
    maps = []
    for name, array in (("x", x), ("y", y)):
        mapped = np.memmap(tmp_path / name, array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        mapped.flush()
        maps.append(np.memmap(tmp_path / name, array.dtype, "r", shape=array.shape))
    agree(engine, *maps, reduction="none")
    assert type(engine.cross_entropy(*maps, reduction="none")) is np.ndarray
    assert type(engine.cross_entropy_with_grad(*maps).grad) is np.ndarray
    out = np.memmap(tmp_path / "grad", dtype, "w+", shape=x.shape)
    engine.cross_entropy_with_grad(*maps, out=out)
    out.flush()
    check_grad(np.fromfile(tmp_path / "grad", dtype).reshape(x.shape), oracle.cross_entropy(x, y), dtype)


def test_subclasses_are_plain_arrays(engine: Engine, rng: np.random.Generator) -> None:
    """A harmless subclass of ndarray is read as the array it is; np.matrix and masked arrays are refused elsewhere."""

    class Named(np.ndarray):
        pass

    x, y = cases.normal(rng, (4, 3), np.float32), cases.labels(rng, 4, 3)
    got = engine.cross_entropy(x.view(Named), y.view(Named), reduction="none")
    assert same_bits(got, engine.cross_entropy(x, y, reduction="none"))
    assert type(engine.cross_entropy_with_grad(x.view(Named), y).grad) is np.ndarray


@pytest.mark.parametrize("layout", ["contiguous", "fortran", "misaligned", "byte-swapped", "spaced", "backwards"])
def test_out(engine: Engine, dtype: DType, rng: np.random.Generator, layout: str) -> None:
    """The gradient goes to `out` in any layout and is returned; nothing between its elements is touched."""
    for shape, axis in (((5, 37), -1), ((3, 6, 19), 1)):
        x = cases.normal(rng, shape, dtype)
        left = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
        y = cases.labels(rng, left, shape[axis])
        y[0] = -100
        want = oracle.cross_entropy(x, y, axis=axis)
        plain = engine.cross_entropy_with_grad(x, y, axis=axis)
        out = cases.LAYOUTS[layout](np.full(shape, 7).astype(dtype))
        got = engine.cross_entropy_with_grad(x, y, axis=axis, out=out)
        assert got.grad is out
        check_grad(out, want, dtype)
        assert same_bits(out.astype(dtype), plain.grad)
        assert same_bits(got.loss, plain.loss)
        if layout == "spaced":
            gaps = out.base
            assert gaps is not None
            out[...] = 0
            assert np.isnan(gaps).sum() == gaps.size - out.size
        soft = cases.LAYOUTS[layout](np.full(shape, 7).astype(dtype))
        assert engine.softmax(x, axis=axis, out=soft) is soft
        assert same_bits(soft.astype(dtype), engine.softmax(x, axis=axis))


@pytest.mark.parametrize("other", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_out_of_another_dtype(engine: Engine, dtype: DType, rng: np.random.Generator, other: Any) -> None:
    """The gradient takes the dtype of `out`, whatever the dtype of the arithmetic."""
    x, y = cases.normal(rng, (5, 37), dtype), cases.labels(rng, 5, 37)
    out = np.empty(x.shape, other)
    loss, grad = engine.cross_entropy_with_grad(x, y, out=out, reduction="none")
    assert grad is out
    assert loss.dtype == loss_dtype(dtype)
    check_grad(out, oracle.cross_entropy(x, y, reduction="none"), dtype)


def test_in_place(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """`out` may be logits itself: same loss, same bits of gradient; in every layout and for every kind of target."""
    for layout in ("contiguous", "fortran", "misaligned", "byte-swapped", "spaced", "backwards"):
        for shape, axis in (((5, 37), -1), ((5, 37), 0), ((3, 6, 19), 1), ((2, 2, 2051), -1)):
            x = cases.normal(rng, shape, dtype)
            left = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
            targets = [cases.labels(rng, left, shape[axis]), cases.dense(rng, shape, np.float32)]
            for target in targets[: 1 if layout != "contiguous" else 2]:
                y, z = cases.LAYOUTS[layout](x.copy()), cases.LAYOUTS[layout](x.copy())
                loss, grad = engine.cross_entropy_with_grad(z, target, axis=axis, z_loss=0.1)
                got = engine.cross_entropy_with_grad(y, target, axis=axis, z_loss=0.1, out=y)
                assert got.grad is y
                assert got.loss == loss
                assert same_bits(y.astype(dtype), grad)
        y = cases.normal(rng, (5, 37), dtype)
        p = engine.softmax(y)
        assert engine.softmax(y, out=y) is y
        assert same_bits(y, p)


def test_in_place_through_another_view(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The same memory seen by two array objects is in place too; ignored rows become zeros."""
    x, y = cases.normal(rng, (5, 37), dtype), cases.labels(rng, 5, 37)
    y[2] = -100
    want = engine.cross_entropy_with_grad(x, y)
    view = x[:]
    got = engine.cross_entropy_with_grad(x, y, out=view)
    assert got.grad is view
    assert got.loss == want.loss
    assert same_bits(x, want.grad)


def test_logsumexp_out(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """With logsumexp `out` has the positions' shape, any strides and any floating dtype."""
    x = cases.normal(rng, (4, 6, 5), dtype)
    want = engine.logsumexp(x, axis=1)
    for out in (np.empty((4, 5), want.dtype), np.empty((5, 4), want.dtype).T, np.empty((4, 5), np.float64)):
        assert engine.logsumexp(x, axis=1, out=out) is out
        assert np.array_equal(out, want)


@pytest.mark.parametrize(("shape", "axis"), [((900, 91), -1), ((30, 5, 700), 1)], ids=["rows", "positions"])
def test_large_arrays_of_other_dtypes(
    engine: Engine, dtype: DType, rng: np.random.Generator, shape: tuple[int, ...], axis: int
) -> None:
    """Byte orders, and `out` of another dtype, where arrays are too large to be copied: the bits of a part alone."""
    x, part = cases.normal(rng, shape, dtype), slice(17, 20)
    y = cases.labels(rng, shape[:1] + shape[2:] if axis == 1 else shape[:1], shape[axis])
    x_swapped = cases.swapped(x)
    assert same_bits(
        engine.cross_entropy(x_swapped, y, axis=axis, reduction="none"),
        engine.cross_entropy(x, y, axis=axis, reduction="none"),
    )
    other = DTYPES[(DTYPES.index(dtype) + 1) % len(DTYPES)]
    for logits, kind in ((x_swapped, x_swapped.dtype), (x, other)):
        out, few = np.full(shape, 7).astype(kind), np.full(x[part].shape, 7).astype(kind)
        got = engine.cross_entropy_with_grad(logits, y, axis=axis, out=out, reduction="none")
        want = engine.cross_entropy_with_grad(logits[part], y[part], axis=axis, out=few, reduction="none")
        assert got.grad is out
        assert same_bits(got.loss[part], want.loss)
        assert same_bits(out[part], few)
    plain = engine.cross_entropy_with_grad(x, y, axis=axis, reduction="none")
    got = engine.cross_entropy_with_grad(x_swapped, y, axis=axis, out=x_swapped, reduction="none")
    assert got.grad is x_swapped
    assert same_bits(got.loss, plain.loss)
    assert same_bits(x_swapped.astype(dtype), plain.grad)


class Exporter:
    """An array of another library: readable through `__array__` alone."""

    def __init__(self, array: cases.Array) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> cases.Array:
        assert copy is not True
        return self.array


class DLPackExporter:
    """An array of another library: readable through DLPack alone."""

    def __init__(self, array: cases.Array, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        assert self.device[0] == 1, "a device array was exported"
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


@pytest.mark.parametrize("wrap", [Exporter, DLPackExporter])
def test_arrays_of_other_libraries(engine: Engine, rng: np.random.Generator, wrap: Any) -> None:
    """`__array__` and CPU DLPack are read, for logits, targets and weights alike."""
    x, y = cases.normal(rng, (4, 3), np.float32), cases.labels(rng, 4, 3)
    s = rng.random(4)
    got = engine.cross_entropy(wrap(x), wrap(y), sample_weight=wrap(s), reduction="none")
    assert same_bits(got, engine.cross_entropy(x, y, sample_weight=s, reduction="none"))
    assert same_bits(engine.cross_entropy_with_grad(wrap(x), wrap(y)).grad, engine.cross_entropy_with_grad(x, y).grad)
    dense = cases.dense(rng, x.shape)
    assert engine.cross_entropy(wrap(x), wrap(dense)) == engine.cross_entropy(x, dense)


def test_device_arrays_are_refused(engine: Engine) -> None:
    """A GPU array is a TypeError that says how to move it."""
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"logits: .*device.*\.cpu\(\)"):
        engine.cross_entropy(DLPackExporter(x, (2, 0)), [0, 1])
    with pytest.raises(TypeError, match=r"target: .*device.*\.cpu\(\)"):
        engine.cross_entropy(x, DLPackExporter(np.zeros(2, int), (2, 0)))


def test_tensors_that_require_grad_are_refused(engine: Engine) -> None:
    """A tensor that requires grad is a TypeError that says .detach()."""
    leaf = Exporter(np.zeros((2, 3), np.float32))
    leaf.requires_grad = True  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"logits: .*requires grad.*\.detach\(\)"):
        engine.cross_entropy(leaf, [0, 1])


def test_torch_tensors(rng: np.random.Generator) -> None:
    """Tensors of torch, bfloat16 through its 16-bit view; runs where torch is installed."""
    torch = pytest.importorskip("torch")
    x, y = cases.normal(rng, (6, 5), np.float32), cases.labels(rng, 6, 5)
    want = torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(y), label_smoothing=0.1).item()
    assert fastce.cross_entropy(torch.tensor(x), torch.tensor(y), label_smoothing=0.1) == pytest.approx(want, rel=1e-6)
    half = torch.tensor(x).bfloat16()
    again = half.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    assert fastce.cross_entropy(half, torch.tensor(y)) == fastce.cross_entropy(again, y)
    with pytest.raises(TypeError, match=r"\.detach\(\)"):
        fastce.cross_entropy(torch.tensor(x, requires_grad=True), torch.tensor(y))


def test_jax_arrays(rng: np.random.Generator) -> None:
    """Arrays of JAX, bfloat16 among them; runs where JAX is installed."""
    jnp = pytest.importorskip("jax.numpy")
    x, y = cases.normal(rng, (6, 5), np.float32), cases.labels(rng, 6, 5)
    for kind in (np.float32, np.float16, ml_dtypes.bfloat16):
        given = jnp.asarray(x.astype(kind))
        loss, grad = fastce.cross_entropy_with_grad(given, jnp.asarray(y))
        assert loss == fastce.cross_entropy(x.astype(kind), y)
        assert grad.dtype == kind


@st.composite
def problems(draw: st.DrawFn, dtype: DType) -> tuple[cases.Array, Any, dict[str, Any]]:
    """Logits of 1 to 4 axes in some layout, with some target and some options."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 17, 34]), min_size=1, max_size=3)))
    shape = (*shape, draw(st.integers(1, 40)))
    order = draw(st.permutations(range(len(shape))))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    scale = draw(st.sampled_from([0.1, 3.0, 30.0]))
    x = cases.LAYOUTS[draw(st.sampled_from(sorted(cases.LAYOUTS)))](cases.normal(rng, shape, dtype, scale))
    x = x.transpose(order)
    # Slices: a step of either sign on some axes, and a broadcast one.
    x = x[tuple(slice(None, None, draw(st.sampled_from([1, 1, -1, 2, -3]))) for _ in x.shape)]
    if draw(st.booleans()):
        x = np.broadcast_to(x, (2, *x.shape))
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    n_classes = x.shape[axis]
    left = tuple(n for i, n in enumerate(x.shape) if i != axis % x.ndim)
    if x.flags.writeable and draw(st.booleans()):
        x[rng.random(x.shape) < 0.1] = -np.inf
    target: cases.Array
    if draw(st.booleans()):
        target = cases.labels(
            rng, left, n_classes, draw(st.sampled_from([np.int64, np.int32, np.int8, np.uint16, ">i4"]))
        )
        if target.dtype.kind == "i":
            target[rng.random(left) < 0.2] = -100
    else:
        target = cases.dense(rng, x.shape, np.float32)
    options: dict[str, Any] = {"axis": axis, "reduction": draw(st.sampled_from(["mean", "sum", "none", "none"]))}
    if draw(st.booleans()):
        options["weight"] = np.round(rng.random(n_classes) * 4) / 4
    if draw(st.booleans()):
        options["sample_weight"] = np.round(rng.random(left) * 4) / 4
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([0.1, 0.5, 1.0]))
    if draw(st.booleans()):
        options["z_loss"] = 0.01
    if draw(st.booleans()):
        options["base"] = draw(st.sampled_from([2, 10.0]))
    if options["reduction"] == "mean" and draw(st.booleans()):
        options["denominator"] = 7.5
    if draw(st.booleans()):
        options["grad_output"] = rng.standard_normal(left) if options["reduction"] == "none" else -2.5
    return x, target, options


@given(data=st.data())
def test_anything(engine: Engine, dtype: DType, data: st.DataObject) -> None:
    """Clause 1 over shapes, strides, layouts, dtypes, values, axes and options drawn at random; inputs untouched."""
    x, target, options = data.draw(problems(dtype))
    agree(engine, x, target, num_threads=data.draw(st.sampled_from([None, 1, 2])), **options)
