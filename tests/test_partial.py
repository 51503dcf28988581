"""Shards of the class axis: whatever the cuts and the order of merging, loss and gradient are those of the whole.

Compared with the oracle within the bounds of cross_entropy itself, for every engine and dtype.
"""

from __future__ import annotations

import functools
import itertools
import pickle
from typing import Any

import numpy as np
import pytest

import cases
import fastce
from checks import answer, check_grad, check_value, loss_dtype, same_bits
from fastce import CrossEntropyPartial
from matrix import Engine

Array = cases.Array
DType = np.dtype[Any]
OF_SCALES = ("reduction", "denominator", "base")


def merged(parts: list[CrossEntropyPartial]) -> CrossEntropyPartial:
    return functools.reduce(CrossEntropyPartial.merge, parts)


def shards(array: Array, cuts: list[int], axis: int) -> list[Array]:
    return [np.take(array, range(a, b), axis) for a, b in itertools.pairwise(cuts)]


def make(
    engine: Engine, x: Array, target: Any, cuts: list[int], *, axis: int = -1, **options: Any
) -> tuple[list[Array], list[Any], list[CrossEntropyPartial]]:
    """The shards of logits and target, and their partial results; cuts are from 0 to the number of classes."""
    pieces = shards(x, cuts, axis)
    dense = not isinstance(target, tuple) and target.ndim == x.ndim
    targets = shards(target, cuts, axis) if dense else [target] * len(pieces)
    n_classes = x.shape[axis]
    parts = [
        engine.call("partial_cross_entropy", piece, t, start, n_classes, axis=axis, **options)
        for piece, t, start in zip(pieces, targets, cuts, strict=False)
    ]
    return pieces, targets, parts


def agree(engine: Engine, x: Array, target: Any, cuts: list[int], *, axis: int = -1, **options: Any) -> None:
    """Loss and gradient by shards are those of the oracle."""
    scales = {name: options.pop(name) for name in OF_SCALES if name in options}
    grad_output = options.pop("grad_output", None)
    pieces, targets, parts = make(engine, x, target, cuts, axis=axis, **options)
    whole = merged(parts)
    want = answer(x, target, options | scales | {"axis": axis, "grad_output": grad_output})
    check_value(whole.compute(**scales), want, x.dtype, scales.get("reduction", "mean"))
    grads = [
        engine.call(
            "partial_cross_entropy_grad",
            piece,
            t,
            part,
            whole,
            axis=axis,
            weight=options.get("weight"),
            grad_output=grad_output,
            **scales,
        )
        for piece, t, part in zip(pieces, targets, parts, strict=True)
    ]
    assert all(grad.dtype == x.dtype for grad in grads)
    check_grad(np.concatenate(grads, axis), want, x.dtype)


def cut(rng: np.random.Generator, n_classes: int, n_shards: int) -> list[int]:
    return [0, *sorted(rng.choice(np.arange(1, n_classes), n_shards - 1, replace=False).tolist()), n_classes]


def torture(n_classes: int, dtype: DType) -> tuple[Array, Array]:
    """Rows that are special, or small in loss, and their labels; classes are cut in half."""
    half = n_classes // 2
    gap = 700.0 if dtype == np.float64 else 80.0
    far = 1e16 if dtype == np.float64 else 1e8 if dtype.itemsize > 2 else 64.0
    rows, labels = [], []

    def row(label: int, base: float = 0.0, **places: float) -> None:
        x = np.full(n_classes, base)
        for name, value in places.items():
            where = {"first": 0, "last": -1, "left": slice(half), "right": slice(half, None), "all": slice(None)}[name]
            x[where] = value
        rows.append(x)
        labels.append(label)

    for y in (0, n_classes - 1):
        row(y, -gap, first=0.0)  # a loss of about exp(-gap) if y = 0, else of gap
        row(y, -gap, last=0.0)
        row(y, -gap, first=0.0, last=0.0)
        row(y, left=-np.inf)  # a shard without probability: of the label, or not
        row(y, right=-np.inf)
        row(y, all=-np.inf)
        row(y, first=np.nan)
        row(y, last=np.inf)
        row(y, right=-np.inf, last=np.nan)
        row(y, far, first=far + (far / 2**20 if dtype.itemsize > 2 else 1.0))  # exact in every dtype
        row(y, -far)
        row(y, 95.0, last=100.0)
        row(y, -1e4 if dtype.itemsize == 2 else -1e30)
        row(y, last=-1e4 if dtype.itemsize == 2 else float(np.finfo(np.float32).min))
    return np.array(rows).astype(dtype), np.array(labels)


@pytest.mark.parametrize("n_classes", [6, 90])
def test_any_cut_of_labels(engine: Engine, dtype: DType, rng: np.random.Generator, n_classes: int) -> None:
    """Shards of one class, of few and of many, with special rows and ignored ones; each reduction."""
    x, y = torture(n_classes, dtype)
    x = np.concatenate([x, cases.normal(rng, (9, n_classes), dtype), cases.grid(rng, (9, n_classes), dtype)])
    y = np.concatenate([y, cases.labels(rng, 18, n_classes)])
    x[30], y[30], y[35] = np.nan, -100, -100
    n = len(x)
    half = n_classes // 2
    for cuts in ([0, n_classes], [0, half, n_classes], list(range(n_classes + 1))[:: max(1, n_classes // 6)]):
        agree(engine, x, y, cuts, reduction="none", grad_output=rng.standard_normal(n))
    sound = np.isfinite(x.astype(np.float64)).all(axis=1)
    agree(engine, x[sound], y[sound], cut(rng, n_classes, 4))
    agree(engine, x[sound], y[sound], cut(rng, n_classes, 3), reduction="sum", base=2.0)
    agree(engine, x[sound], y[sound], cut(rng, n_classes, 3), denominator=5.0)


def test_options(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Class weights, sample weights, label smoothing and z-loss together, in special rows too."""
    n_classes = 90
    x, y = torture(n_classes, dtype)
    with np.errstate(all="ignore"):
        few = ~(np.abs(x.astype(np.float64)) > 1e18).any(axis=1) | ~np.isfinite(x.astype(np.float64)).all(axis=1)
    x, y = x[few], y[few]  # the square of the log-sum-exp of the others has no place in float32
    y[::5] = 7
    n = len(x)
    options = {
        "weight": rng.random(n_classes),
        "sample_weight": np.where(np.arange(n) % 6 == 1, 0.0, rng.random(n)),
        "ignore_index": 7,
        "label_smoothing": 0.1,
        "z_loss": 2.0**-10,
        "reduction": "none",
    }
    for cuts in ([0, n_classes // 2, n_classes], cut(rng, n_classes, 4)):
        agree(engine, x, y, cuts, **options)


def test_dense_targets(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Distributions with zeros, and one-hot ones, whose gradient at the maximum keeps its digits."""
    n_classes = 12
    x, y = torture(n_classes, dtype)
    one_hot = (np.arange(n_classes) == y[:, None]).astype(np.float32)
    agree(engine, x, one_hot, [0, 6, 12], reduction="none")
    t = cases.dense(rng, x.shape)
    options = {"weight": rng.random(n_classes), "sample_weight": rng.random(len(x)), "label_smoothing": 0.1}
    agree(engine, x, t, [0, 6, 12], reduction="none", **options)
    agree(engine, x, t, [0, 1, 5, 11, 12], reduction="none", grad_output=rng.standard_normal(len(x)))


def test_sparse_targets(rng: np.random.Generator, dtype: DType) -> None:
    """Lists of classes that are in other shards or in none, and in more than one entry."""
    engine = Engine("cython", "portable")
    n_classes = 12
    x, y = torture(n_classes, dtype)
    indices = rng.integers(0, n_classes, (len(x), 3))
    indices[:, 0] = y
    indices[::3, 1] = -1
    indices[::4, 2] = y[::4]
    probabilities = rng.random(indices.shape).astype(np.float32)
    for options in ({}, {"label_smoothing": 0.1, "weight": rng.random(n_classes)}):
        for cuts in ([0, 12], [0, 6, 12], [0, 1, 5, 11, 12]):
            agree(engine, x, (indices, probabilities), cuts, reduction="none", **options)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axes(engine: Engine, rng: np.random.Generator, axis: int) -> None:
    """Any class axis, blocks of rows that do not join, one row alone."""
    shape = (5, 6, 7)
    x = cases.normal(rng, shape, np.float32)
    y = cases.labels(rng, shape[:axis] + shape[axis + 1 :], shape[axis])
    agree(engine, x, y, [0, 2, shape[axis]], axis=axis)
    agree(engine, x, y, [0, 2, shape[axis]], axis=axis, label_smoothing=0.1, reduction="none")
    if axis == 0:
        agree(engine, x[:, 0, 0], y[0, 0], [0, 2, 5], axis=0, label_smoothing=0.1)
        agree(engine, x[:, 0, 0], x[:, 0, 0] ** 2, [0, 2, 5], axis=0)
        agree(engine, x[..., ::-2, ::3], y[::-2, ::3], [0, 3, 5], axis=0)


def test_blocks_of_rows(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Rows visited a few at a time, over axes that do not join."""
    monkeypatch.setattr("fastce._blocks.BLOCK_BYTES", 100)
    engine = Engine("cython", "portable")
    x = cases.normal(rng, (4, 5, 9), np.float32).transpose(1, 0, 2)
    y = cases.labels(rng, (5, 4), 9)
    y[2, 1] = -100
    weights = rng.random((5, 4))
    agree(engine, x, y, [0, 4, 9], label_smoothing=0.2, sample_weight=weights)
    agree(engine, x, cases.dense(rng, (5, 4, 9)), [0, 4, 9], sample_weight=weights, reduction="none")
    lists = cases.labels(rng, (5, 4, 2), 9), rng.random((5, 4, 2))
    agree(engine, x, lists, [0, 4, 9], label_smoothing=0.1)


def test_order_and_grouping(rng: np.random.Generator, dtype: DType) -> None:
    """Any order gives the same to rounding of float64, the same order the same bits; nothing that is merged changes."""
    engine = Engine("cython", "portable")
    x, y = torture(24, dtype)
    _, _, parts = make(engine, x, y, [0, 1, 5, 6, 12, 20, 24], z_loss=0.01)
    before = pickle.dumps(parts)
    first = merged(parts)
    assert same_bits(first.compute("none"), merged(parts).compute("none"))
    tree = merged([parts[0].merge(parts[1]), parts[2].merge(parts[3]), parts[4].merge(parts[5])])
    backwards = merged(parts[::-1])
    shuffled = merged([parts[i] for i in rng.permutation(len(parts))])
    for other in (tree, backwards, shuffled):
        assert other.classes == ((0, 24),)
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(other._losses(), first._losses(), rtol=2e-15)
    assert pickle.dumps(parts) == before


def test_pickles_small(rng: np.random.Generator) -> None:
    """What is sent is four or five numbers a row, whatever the number of classes."""
    x, y = cases.normal(rng, (50, 4000), np.float32), cases.labels(rng, 50, 8000)
    part = fastce.partial_cross_entropy(x, y, 4000, 8000, weight=rng.random(8000), sample_weight=rng.random(50))
    sent = pickle.dumps(part)
    assert len(sent) < 5 * 8 * 50 + 1000
    other = fastce.partial_cross_entropy(x, y, 0, 8000, weight=part_weight(8000), sample_weight=rng.random(50))
    with pytest.raises(ValueError, match="merge: the class weights differ"):
        pickle.loads(sent).merge(other)
    assert repr(pickle.loads(sent)) == "<CrossEntropyPartial: 50 rows, classes 4000 to 7999 of 8000>"


def part_weight(n_classes: int) -> Array:
    return np.linspace(0.5, 1.5, n_classes)


def test_rows_alone_and_threads(compiled: Engine, rng: np.random.Generator) -> None:
    """The same bits for any number of threads, and for a row alone."""
    x, y = cases.normal(rng, (700, 40), np.float32), cases.labels(rng, 700, 40)
    options = {"label_smoothing": 0.1}
    losses = []
    for threads in (1, 2, 3):
        _, _, parts = make(compiled, x, y, [0, 3, 40], num_threads=threads, **options)
        losses.append(merged(parts).compute("none"))
    assert same_bits(losses[0], losses[1])
    assert same_bits(losses[0], losses[2])
    for row in (0, 13, 699):
        _, _, alone = make(compiled, x[row : row + 1], y[row : row + 1], [0, 3, 40], **options)
        assert same_bits(merged(alone).compute("none"), losses[0][row : row + 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_out_may_be_the_logits(engine: Engine, rng: np.random.Generator, smoothing: float) -> None:
    x, y = cases.normal(rng, (20, 40), np.float32), cases.labels(rng, 20, 40)
    y[4] = -100
    pieces, _, parts = make(engine, x, y, [0, 15, 40], label_smoothing=smoothing)
    whole = merged(parts)
    for piece, part in zip(pieces, parts, strict=True):
        want = engine.call("partial_cross_entropy_grad", piece, y, part, whole)
        got = engine.call("partial_cross_entropy_grad", piece, y, part, whole, out=piece)
        assert got is piece
        assert same_bits(got, want)
        assert not want[4].any()


def test_rows_of_the_gradient_sum_to_zero(rng: np.random.Generator) -> None:
    x, y = cases.normal(rng, (40, 300), np.float64), cases.labels(rng, 40, 300)
    engine = Engine("cython", "portable")
    pieces, targets, parts = make(engine, x, y, cut(rng, 300, 7))
    whole = merged(parts)
    sums = sum(
        engine.call("partial_cross_entropy_grad", piece, t, part, whole).sum(axis=1)
        for piece, t, part in zip(pieces, targets, parts, strict=True)
    )
    np.testing.assert_allclose(sums, 0.0, atol=8 * np.spacing(1 / 40))  # a gradient is at most 1/40


def test_nothing_to_average() -> None:
    """As cross_entropy: NaN without a denominator, whatever the rows; no rows at all."""
    for x, y in ((np.zeros((0, 2)), np.zeros(0, int)), (np.zeros((3, 2)), np.full(3, -100))):
        part = fastce.partial_cross_entropy(x, y, 0, 4).merge(fastce.partial_cross_entropy(x, y, 2, 4))
        assert np.isnan(part.compute())
        assert part.compute(denominator=2.0) == 0.0
        assert part.compute("sum") == 0.0
        assert part.compute("none").shape == y.shape
        left = fastce.partial_cross_entropy(x, y, 0, 4)
        grad = fastce.partial_cross_entropy_grad(x, y, left, part)
        assert grad.shape == x.shape
        assert not grad.any()


def test_result_dtype(dtype: DType) -> None:
    x = np.zeros((3, 4), dtype)
    part = fastce.partial_cross_entropy(x, np.zeros(3, int), 0, 4, backend="numpy")
    assert part.compute("none").dtype == loss_dtype(dtype)
    assert type(part.compute()) is float


# --- errors -----------------------------------------------------------------------------------------------------------


def test_bad_labels(engine: Engine, rng: np.random.Generator) -> None:
    """By the number of all classes, from every shard; before anything is written."""
    x = cases.normal(rng, (5, 6, 4), np.float32)
    y = cases.labels(rng, (5, 6), 10)
    part = engine.call("partial_cross_entropy", x, y, 4, 10)
    y[2, 3], y[4, 4] = 10, -1
    with pytest.raises(IndexError, match=r"target: label 10 at index \(2, 3\) is out of range for 10 classes"):
        engine.call("partial_cross_entropy", x, y, 4, 10)
    before = x.copy()
    with pytest.raises(IndexError, match=r"label 10 at index \(2, 3\)"):
        engine.call("partial_cross_entropy_grad", x, y, part, part.merge(other(x, 0)).merge(other(x, 8)), out=x)
    assert same_bits(x, before)
    with pytest.raises(IndexError, match=r"label -1 at index \(4, 4\)"):
        engine.call("partial_cross_entropy", x, y, 4, 10, ignore_index=10)


def other(x: Array, start: int) -> CrossEntropyPartial:
    stop = min(start + 4, 10)
    return fastce.partial_cross_entropy(x[..., : stop - start], np.zeros(x.shape[:-1], int), start, 10)


GOOD: dict[str, Any] = {"logits": np.zeros((3, 4)), "target": np.zeros(3, int), "class_start": 2, "n_classes": 9}

BAD = [
    ({"class_start": 6}, ValueError, r"class_start: 4 classes from 6 on are not among n_classes=9"),
    ({"class_start": -1}, ValueError, r"class_start: 4 classes from -1 on"),
    ({"class_start": 1.0}, TypeError, r"class_start: expected an integer"),
    ({"n_classes": "9"}, TypeError, r"n_classes: expected an integer"),
    ({"target": np.zeros(4, int)}, ValueError, r"target: .*labels of shape \(3,\)"),
    ({"target": np.zeros((3, 9))}, ValueError, r"target: .*dense target of shape \(3, 4\), got shape \(3, 9\)"),
    ({"target": np.full((3, 4), -1.0)}, ValueError, r"target: expected finite numbers >= 0"),
    ({"target": ([[9]] * 3, [[1.0]] * 3)}, IndexError, r"target: class 9 at index \(0, 0\) is out of range for 9"),
    ({"weight": np.ones(4)}, ValueError, r"weight: expected one number for each class, shape \(9,\)"),
    ({"sample_weight": [1.0, -1.0, 0.0]}, ValueError, r"sample_weight: expected finite numbers >= 0, got -1.0"),
    ({"label_smoothing": 2.0}, ValueError, r"label_smoothing"),
    ({"z_loss": -1.0}, ValueError, r"z_loss"),
    ({"axis": 2}, ValueError, r"axis"),
    ({"backend": "fortran"}, ValueError, r"backend"),
    ({"num_threads": 0}, ValueError, r"num_threads"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastce.partial_cross_entropy(**(GOOD | change))


def test_what_cannot_be_merged() -> None:
    x, y = np.zeros((3, 4)), np.zeros(3, int)
    part = fastce.partial_cross_entropy(x, y, 0, 9)
    for change, message in (
        ({"class_start": 3}, r"merge: both cover class 3"),
        ({"class_start": 2}, r"merge: both cover classes 2 to 3"),
        ({"n_classes": 10}, r"merge: n_classes differs, 9 and 10"),
        ({"label_smoothing": 0.1}, r"merge: label_smoothing differs, 0.0 and 0.1"),
        ({"z_loss": 0.5}, r"merge: z_loss differs"),
        ({"ignore_index": 3}, r"merge: ignore_index differs"),
        ({"weight": np.ones(9)}, r"merge: the class weights differ"),
        ({"logits": np.zeros((3, 4), np.float32)}, r"merge: dtype of the arithmetic differs, float64 and float32"),
        ({"logits": x[:2], "target": y[:2]}, r"merge: shape of labels differs, \(3,\) and \(2,\)"),
        ({"target": np.ones((3, 4))}, r"merge: target differs, labels and a dense target"),
    ):
        call = {"logits": x, "target": y, "class_start": 5, "n_classes": 9} | change
        with pytest.raises(ValueError, match=message):
            part.merge(fastce.partial_cross_entropy(**call))
    with pytest.raises(TypeError, match="merge: expected a CrossEntropyPartial, got int"):
        part.merge(3)  # type: ignore[arg-type]


def test_what_is_not_complete() -> None:
    x, y = np.zeros((3, 2)), np.zeros(3, int)
    parts = [fastce.partial_cross_entropy(x, y, start, 9) for start in (0, 2, 6)]
    assert repr(parts[0].merge(parts[2])) == "<CrossEntropyPartial: 3 rows, classes 0 to 1, classes 6 to 7 of 9>"
    most = merged(parts)
    with pytest.raises(ValueError, match=r"compute: classes 4 to 5, class 8 of 9 are missing"):
        most.compute()
    with pytest.raises(ValueError, match=r"merged: classes 4 to 5, class 8 of 9 are missing"):
        fastce.partial_cross_entropy_grad(x, y, parts[0], most)
    rest = fastce.partial_cross_entropy(np.zeros((3, 1)), y, 8, 9)
    with pytest.raises(ValueError, match=r"compute: classes 4 to 5 of 9 are missing"):
        most.merge(rest).compute()
    whole = most.merge(rest).merge(fastce.partial_cross_entropy(x, y, 4, 9))
    for change, error, message in (
        ({"part": whole}, ValueError, r"part: expected the partial result of these 2 classes, got <Cross"),
        ({"part": 1}, TypeError, r"part: expected a CrossEntropyPartial, got int"),
        ({"merged": None}, TypeError, r"merged: expected a CrossEntropyPartial, got NoneType"),
        ({"logits": np.zeros((3, 1))}, ValueError, r"part: expected the partial result of these 1 classes"),
        ({"weight": np.ones(9)}, ValueError, r"part: the class weights differ"),
        ({"logits": x[:2], "target": y[:2]}, ValueError, r"part: shape of labels differs"),
        ({"denominator": 0.0}, ValueError, r"denominator"),
        ({"out": np.zeros((3, 3))}, ValueError, r"out: expected shape \(3, 2\)"),
        ({"out": np.broadcast_to(0.0, (3, 2))}, ValueError, r"out"),
    ):
        call = {"logits": x, "target": y, "part": parts[0], "merged": whole} | change
        with pytest.raises(error, match=message):
            fastce.partial_cross_entropy_grad(**call)
    for change in ({"reduction": "average"}, {"base": 1.0}, {"reduction": "sum", "denominator": 2.0}):
        with pytest.raises(ValueError, match=r"reduction|base|denominator"):
            whole.compute(**change)


def test_inputs_stay(engine: Engine, rng: np.random.Generator) -> None:
    x, y = cases.read_only(cases.normal(rng, (6, 40), np.float32)), cases.read_only(cases.labels(rng, 6, 40))
    before = x.tobytes(), y.tobytes()
    part = engine.call("partial_cross_entropy", x, y, 0, 40, label_smoothing=0.1)
    engine.call("partial_cross_entropy_grad", x, y, part, part)
    assert (x.tobytes(), y.tobytes()) == before
