"""row_statistics: all it tells of a row, on every engine, against longdouble, and the same however it is asked."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import cases
import fastce
import oracle
import tolerances
from checks import close, loss_dtype, same_bits
from matrix import BLOCK, DTYPES, Engine
from oracle import Wide, widen

Array = cases.Array
DType = np.dtype[Any]
FIELDS = ("lse", "loss", "entropy", "argmax", "target_probability", "rank", "margin", "correct")
WITHOUT_TARGET = ("lse", "entropy", "argmax")


def exact(x: Array, y: Array, ignore_index: int = -100) -> tuple[oracle.Rows, dict[str, Array]]:
    """Rows of logits (n, C), and what is asked of them; labels may be ignored."""
    n = len(x)
    ignored = y == ignore_index
    label = np.where(ignored, 0, y).astype(np.intp)
    q = np.zeros(x.shape, Wide)
    q[np.arange(n), label] = np.where(ignored, 0, 1)
    rows = oracle.compute_rows(x, q, np.zeros(n, Wide), ignored)
    real = x.astype(loss_dtype(x.dtype))
    nan = np.isnan(real)
    first = np.where(nan.any(-1), nan.argmax(-1), np.where(nan, -np.inf, real).argmax(-1))
    logit = real[np.arange(n), label]
    others = np.where(nan, -np.inf, real)
    others[np.arange(n), label] = -np.inf
    with np.errstate(all="ignore"):
        entropy = np.where(rows.finite, -np.where(rows.p > 0, rows.p * rows.log_p, Wide(0)).sum(-1), Wide(np.nan))
        margin = logit - others.max(-1)
    return rows, {
        "lse": rows.lse,
        "loss": rows.loss,
        "entropy": entropy,
        "argmax": first,
        "target_probability": np.where(ignored, Wide(np.nan), rows.p[np.arange(n), label]),
        "rank": np.where(ignored, -1, (real > logit[:, None]).sum(-1)),
        "margin": np.where(ignored, np.nan, margin),
        "correct": ~ignored & (first == label),
    }


def check(got: Any, x: Array, y: Array, *, axis: int = -1, ignore_index: int = -100) -> None:
    """Every field that is there, of logits of any shape."""
    flat = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    rows, want = exact(flat, y.reshape(-1), ignore_index)
    dtype, real = x.dtype, loss_dtype(x.dtype)
    label = np.where(rows.ignored, 0, y.reshape(-1)).astype(np.intp)
    bounds = tolerances.statistics(rows, label, dtype)
    assert got._fields == FIELDS
    for name, values in got._asdict().items():
        if values is None:
            continue
        kind = {"argmax": np.dtype(np.int64), "rank": np.dtype(np.int64), "correct": np.dtype(bool)}.get(name, real)
        assert (values.shape, values.dtype) == (y.shape, kind), name
        values = values.reshape(-1)
        if name in bounds:
            close(values, want[name], tolerances.stored(bounds[name], want[name], real), name)
        else:
            np.testing.assert_array_equal(values, want[name], err_msg=name)


def ask(engine: Engine, *args: Any, **options: Any) -> Any:
    return engine.call("row_statistics", *args, **options)


def same(a: Any, b: Any) -> None:
    for name, left, right in zip(FIELDS, a, b, strict=True):
        assert (left is None) == (right is None), name
        assert left is None or same_bits(left, right), name


def sizes(engine: Engine, dtype: DType) -> list[int]:
    lanes = engine.lanes(dtype)
    return sorted({1, 2, lanes - 1 or 1, lanes, lanes + 1, 32, 33, 4 * lanes + 1, BLOCK - 1, BLOCK, BLOCK + 1, 5000})


def test_sizes(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Around vectors and blocks, with ties, in differences that are exact."""
    for n_classes in sizes(engine, dtype):
        x = cases.grid(rng, (19 if n_classes < 100 else 4, n_classes), dtype, -24, 24)
        y = cases.labels(rng, len(x), n_classes)
        y[1] = -100
        y[2] = x[2].argmax()
        check(ask(engine, x, y), x, y)


def test_spread_logits(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Logits of any size, where the smallest probabilities vanish; offsets change little."""
    for scale, offset in ((0.01, 0.0), (3.0, 100.0), (30.0, -1000.0), (300.0, 0.0)):
        x = (rng.standard_normal((21, 40)) * scale + offset).astype(dtype)
        y = cases.labels(rng, 21, 40)
        check(ask(engine, x, y), x, y)


def test_maximum_in_any_place(engine: Engine, dtype: DType) -> None:
    """The maximum, and the label, at each place; then at two places."""
    for n_classes in (7, 4 * engine.lanes(dtype) + 3):
        x = np.full((n_classes, n_classes), -9.0) + 8.0 * np.eye(n_classes)
        y = np.arange(n_classes)
        for labels in (y, y[::-1].copy()):
            check(ask(engine, x.astype(dtype), labels), x.astype(dtype), labels)
        x[:, -1] = -1.0
        check(ask(engine, x.astype(dtype), y), x.astype(dtype), y)


def special_rows(n_classes: int, dtype: DType) -> Array:
    nan, inf = np.nan, np.inf
    rows = np.zeros((14, n_classes))
    rows[:] = np.arange(n_classes) % 5
    rows[0, 0] = nan
    rows[1, -1] = nan
    rows[2] = nan
    rows[3, n_classes // 2] = inf
    rows[4, :] = inf
    rows[5, :] = -inf
    rows[6, 0] = -inf
    rows[7, 1:] = -inf
    rows[8, n_classes // 2], rows[8, -1] = inf, nan
    rows[9, : n_classes // 2], rows[9, n_classes // 3] = -inf, nan
    rows[10, :-1] = -inf
    rows[11] = 3.0
    rows[12] = float(np.finfo(np.float32).min) if dtype.itemsize > 2 else -1000.0
    rows[13] = np.where(np.arange(n_classes) < n_classes // 2, -inf, 1.0)
    return rows.astype(dtype)


@pytest.mark.parametrize("n_classes", [2, 9, 70, BLOCK + 900])
def test_special_rows(engine: Engine, dtype: DType, n_classes: int) -> None:
    """NaN, infinities, ties and excluded classes, with the label on them and beside; no other row is touched."""
    x = special_rows(n_classes, dtype)
    for label in (0, n_classes // 2, n_classes - 1):
        y = np.full(len(x), label)
        check(ask(engine, x, y), x, y)
        without = ask(engine, x)
        assert [name for name, values in without._asdict().items() if values is not None] == list(WITHOUT_TARGET)
        check(without, x, y)
    y[:] = -100
    check(ask(engine, x, y), x, y)


def test_one_class(engine: Engine, dtype: DType) -> None:
    """Loss and entropy 0, probability 1, and nothing to compare with."""
    x, y = np.array([[3.0], [-np.inf], [np.inf], [np.nan], [0.0]]).astype(dtype), np.array([0, 0, 0, 0, -100])
    found = ask(engine, x, y)
    check(found, x, y)
    assert (found.loss[0], found.entropy[0], found.target_probability[0], found.margin[0]) == (0, 0, 1, np.inf)


def test_layouts(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The same bits for the same strides of classes in any layout, and right in all of them."""
    for n_classes in (5, 37):
        x, y = cases.normal(rng, (7, n_classes), dtype), cases.labels(rng, 7, n_classes)
        for (name, logits), (_, labels) in zip(cases.layouts(x), cases.layouts(y), strict=True):
            found = ask(engine, logits, labels)
            check(found, x, y)
            if name in ("misaligned", "byte-swapped", "read-only"):
                same(found, ask(engine, x, y))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes(engine: Engine, dtype: DType, rng: np.random.Generator, axis: int) -> None:
    """Any class axis, with few classes and with more than are gathered at once."""
    for shape in ((6, 5, 7), (40, 50, 45)):
        x = cases.normal(rng, shape, dtype)
        y = cases.labels(rng, shape[:axis] + shape[axis + 1 :], shape[axis])
        y.flat[3] = -100
        check(ask(engine, x, y, axis=axis), x, y, axis=axis)
    check(ask(engine, x[:, ::-2, ::3], y_of(y, axis), axis=axis), x[:, ::-2, ::3], y_of(y, axis), axis=axis)


def y_of(y: Array, axis: int) -> Array:
    """The labels of every second and third position; where an axis of classes was thinned, they still are in range."""
    taken = (slice(None), slice(None, None, -2), slice(None, None, 3))
    thinned = y[taken[:axis] + taken[axis + 1 :]]
    return np.where(thinned < 0, thinned, thinned // 3)


@pytest.mark.parametrize("kind", "bhilBHIL")
def test_labels_of_any_dtype(engine: Engine, rng: np.random.Generator, kind: str) -> None:
    x = cases.normal(rng, (40, 6), np.float32)
    y = cases.labels(rng, 40, 6, kind)
    ignore = 255 if kind == "B" else 3
    y[::9] = ignore
    check(ask(engine, x, y, ignore_index=ignore), x, y, ignore_index=ignore)
    check(ask(engine, x, cases.swapped(y), ignore_index=ignore), x, y, ignore_index=ignore)


@pytest.mark.parametrize("n_classes", [4, 50])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_fields_alone(engine: Engine, rng: np.random.Generator, kind: type, n_classes: int) -> None:
    """A field asked for alone has the bits it has among all, in special rows too."""
    dtype = np.dtype(kind)
    x = np.concatenate([cases.normal(rng, (20, n_classes), dtype), special_rows(n_classes, dtype)])
    y = cases.labels(rng, len(x), n_classes)
    y[3] = -100
    everything = ask(engine, x, y)
    for name in FIELDS:
        alone = ask(engine, x, y, fields=name)
        assert [field for field, values in alone._asdict().items() if values is not None] == [name]
        assert same_bits(getattr(alone, name), getattr(everything, name)), name
    if dtype == np.float32:
        pair = ask(engine, x, y, fields=["rank", "loss", "rank"])
        assert same_bits(pair.loss, everything.loss)
        assert same_bits(pair.rank, everything.rank)
    for name in WITHOUT_TARGET:
        assert same_bits(getattr(ask(engine, x, fields=[name]), name), getattr(everything, name)), name


@pytest.mark.parametrize("shape", [(5000, 3), (900, 130), (9, 40000)], ids=str)
def test_threads_and_rows_alone(engine: Engine, dtype: DType, rng: np.random.Generator, shape: tuple[int, int]) -> None:
    """The same bits with any number of threads, and for a row alone (but for NumPy)."""
    x, y = cases.normal(rng, shape, dtype), cases.labels(rng, shape[0], shape[1])
    y[::7] = -100
    found = ask(engine, x, y, num_threads=1)
    for n in (2, 3, 7):
        same(ask(engine, x, y, num_threads=n), found)
    if engine.backend != "numpy":
        for row in (0, 1, 5, shape[0] - 1):
            alone = ask(engine, x[row : row + 1], y[row : row + 1])
            same(alone, [values[row : row + 1] for values in found])


def test_agrees_with_the_other_functions(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The loss is that of cross_entropy, lse that of logsumexp, the probability that of softmax, within the bounds."""
    for n_classes in (10, 200):
        x, y = cases.normal(rng, (50, n_classes), dtype), cases.labels(rng, 50, n_classes)
        found = ask(engine, x, y)
        rows, _ = exact(x, y)
        real = loss_dtype(dtype)
        others = {
            "loss": (engine.cross_entropy(x, y, reduction="none"), tolerances.losses(rows, dtype)),
            "lse": (engine.logsumexp(x.astype(real)), tolerances.lse(rows, dtype)),
            "target_probability": (
                engine.softmax(x.astype(real))[np.arange(50), y],
                tolerances.probabilities(rows, dtype)[np.arange(50), y],
            ),
        }
        for name, (other, bound) in others.items():
            wide = widen(other)
            close(getattr(found, name), wide, 2 * tolerances.stored(bound, wide, real), name)


def test_base(engine: Engine, rng: np.random.Generator) -> None:
    """Loss and entropy in bits; lse stays a number of nats."""
    x, y = cases.normal(rng, (9, 20), np.float64), cases.labels(rng, 9, 20)
    nats, bits = ask(engine, x, y), ask(engine, x, y, base=2)
    np.testing.assert_allclose(bits.loss, nats.loss / np.log(2.0), rtol=1e-15)
    np.testing.assert_allclose(bits.entropy, nats.entropy / np.log(2.0), rtol=1e-15)
    assert same_bits(bits.lse, nats.lse)


def test_no_rows(engine: Engine) -> None:
    for shape, axis in (((0, 3), 1), ((2, 0, 3), 2), ((0, 0), 1)):
        found = ask(engine, np.zeros(shape), np.zeros(shape[:axis], int), axis=axis)
        assert all(values.shape == shape[:axis] for values in found)
    found = ask(engine, np.array([1.0, 2.0]), np.array(1))
    assert (found.argmax.shape, int(found.argmax), bool(found.correct)) == ((), 1, True)


@pytest.mark.parametrize("n_classes", [3, 100])
def test_bad_labels(engine: Engine, rng: np.random.Generator, n_classes: int) -> None:
    """The first in C order, whatever is asked of the rows."""
    x = cases.normal(rng, (50, 60, n_classes), np.float32)
    y = cases.labels(rng, (50, 60), n_classes)
    y[31, 7], y[31, 8], y[49, 0] = n_classes, -1, -7
    for fields in (None, "argmax", "rank"):
        with pytest.raises(IndexError, match=rf"label {n_classes} at index \(31, 7\) is out of range for {n_classes} "):
            ask(engine, x, y, fields=fields, num_threads=2)
    with pytest.raises(IndexError, match=r"label -1 at index \(31, 8\)"):
        ask(engine, x, y, ignore_index=n_classes)
    moved = np.moveaxis(x, -1, 0)
    with pytest.raises(IndexError, match=rf"label {n_classes} at index \(31, 7\)"):
        ask(engine, moved, y, axis=0)


BAD = [
    ({"fields": "losses"}, ValueError, r"fields: expected some of lse, loss, .*correct, got 'losses'"),
    ({"fields": ["lse", 3]}, ValueError, r"fields: expected some of .*, got 3"),
    ({"target": None, "fields": "loss"}, ValueError, r"fields: expected some of lse, entropy, argmax without a target"),
    ({"target": np.ones((2, 3))}, ValueError, r"target: expected integer labels of shape \(2,\)"),
    ({"target": np.zeros(3, int)}, ValueError, r"target: .*labels of shape \(2,\)"),
    ({"target": np.zeros(2)}, TypeError, r"target: expected integer labels"),
    ({"logits": np.zeros((2, 3), int)}, TypeError, r"logits: expected"),
    ({"logits": np.zeros((2, 0))}, ValueError, r"logits: expected at least one class"),
    ({"axis": 2}, ValueError, r"axis"),
    ({"base": 1.0}, ValueError, r"base"),
    ({"ignore_index": 1.5}, TypeError, r"ignore_index"),
    ({"num_threads": 0}, ValueError, r"num_threads"),
    ({"backend": "fortran"}, ValueError, r"backend"),
    ({"fields": 5}, TypeError, r"fields: expected names, got 5"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": np.zeros((2, 3)), "target": np.array([0, 2])} | change
    with pytest.raises(error, match=message):
        fastce.row_statistics(arguments.pop("logits"), arguments.pop("target"), **arguments)


def test_signature() -> None:
    signature = inspect.signature(fastce.row_statistics)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == (
        "(logits, target=None, *, fields=None, axis=-1, ignore_index=-100, base=None, backend='auto', num_threads=None)"
    )
    assert fastce.RowStatistics._fields == FIELDS
    assert isinstance(fastce.row_statistics([[1.0]], [0]), fastce.RowStatistics)


def test_inputs_stay(engine: Engine) -> None:
    for dtype in DTYPES:
        x, y = cases.read_only(np.ones((3, 5), dtype)), cases.read_only(np.array([1, -100, 2]))
        before = x.tobytes(), y.tobytes()
        ask(engine, x, y)
        assert (x.tobytes(), y.tobytes()) == before
