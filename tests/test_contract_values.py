"""Clauses 1 and 3 to 9 of the contract: the values of losses and gradients, row by row, against the oracle."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import cases
import oracle
import tolerances
from checks import agree, check_value, close
from matrix import BLOCK, Engine

DType = np.dtype[Any]


def edges(engine: Engine, dtype: DType) -> list[int]:
    """Numbers of classes at which a vectorised kernel changes what it does."""
    n = engine.lanes(dtype)
    return sorted(
        {1, 2, 3, 5, n // 2 - 1, n // 2, n // 2 + 1, n - 1, n, n + 1, 31, 32, 33, 4 * n - 1, 4 * n, 4 * n + 1, 100}
    )


@pytest.mark.parametrize("n_rows", [1, 5])
def test_every_width(engine: Engine, dtype: DType, rng: np.random.Generator, n_rows: int) -> None:
    """Clause 1: exact differences, so the bare ULPs, for every number of classes at an edge."""
    for n_classes in edges(engine, dtype):
        x = cases.grid(rng, (n_rows, n_classes), dtype, -8, 8)
        agree(engine, x, cases.labels(rng, n_rows, n_classes), reduction="none")


@pytest.mark.parametrize("n_classes", [BLOCK - 1, BLOCK, BLOCK + 1])
def test_widths_around_a_block(engine: Engine, dtype: DType, rng: np.random.Generator, n_classes: int) -> None:
    """Clause 1: the maximum in the last block, the first, and anywhere."""
    x = cases.normal(rng, (4, n_classes), dtype)
    x[0, -1] = x[1, 0] = 20
    agree(engine, x, np.array([n_classes - 1, n_classes - 1, 0, 7]), reduction="none")


@pytest.mark.parametrize("n_rows", [BLOCK - 1, BLOCK + 1])
def test_heights_around_a_block(engine: Engine, dtype: DType, rng: np.random.Generator, n_rows: int) -> None:
    """Clause 1: many rows of few classes."""
    x = cases.normal(rng, (n_rows, 3), dtype)
    agree(engine, x, cases.labels(rng, n_rows, 3), reduction="none")


def test_very_many_classes(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 1: 131072 + 1 classes."""
    n_classes = 131072 + 1
    x = cases.normal(rng, (3, n_classes), dtype)
    x[1, -1] = 40
    agree(engine, x, np.array([0, n_classes - 1, 77]), reduction="none")


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0, 40.0])
def test_random_rows(engine: Engine, dtype: DType, rng: np.random.Generator, scale: float) -> None:
    """Clause 1: from nearly uniform to nearly certain rows, whose differences are rounded."""
    for n_classes in (2, 10, 37):
        x = cases.normal(rng, (40, n_classes), dtype, scale)
        agree(engine, x, cases.labels(rng, 40, n_classes), reduction="none")


def test_random_dense_targets(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clauses 1 and 4: rows that are not normalised, and are zero in places."""
    for n_classes in (1, 2, 10, 67):
        x = cases.normal(rng, (9, n_classes), dtype)
        agree(engine, x, cases.dense(rng, x.shape), reduction="none")


def test_worked_examples(engine: Engine, dtype: DType) -> None:
    """Clause 1: p = 0.7 is 0.3567 nats and p = 0.775 is 0.3677 bits, whichever class is the true one."""
    coarse = {2: 2e-3, 1: 2e-2}.get(dtype.itemsize, 1e-4) if dtype.name != "bfloat16" else 2e-2
    x = np.log([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]).astype(dtype)
    losses = engine.cross_entropy(x, np.array([0, 1, 2]), reduction="none")
    np.testing.assert_allclose(losses, 0.3567, atol=coarse)
    bits = engine.cross_entropy(np.log([[0.775, 0.116, 0.039, 0.070]]).astype(dtype), [0], base=2)
    assert bits == pytest.approx(0.3677, abs=coarse)
    assert engine.cross_entropy(x, [0, 1, 2], base=2) == pytest.approx(0.3567 / math.log(2), abs=2 * coarse)


def test_weighted_rows(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 1: a row's loss is -w_y log(exp(x_y) / sum exp(x_c)), also where w_y is 0."""
    x, y = cases.grid(rng, (12, 5), dtype, -4, 4), cases.labels(rng, 12, 5)
    weight = np.array([0.5, 0.0, 3.0, 1.0, 0.125])
    got = engine.cross_entropy(x, y, weight=weight, reduction="none")
    e = np.exp(x.astype(np.float64))
    textbook = -weight[y] * np.log(e[np.arange(12), y] / e.sum(1))
    np.testing.assert_allclose(got, textbook, rtol=1e-5)
    agree(engine, x, y, weight=weight, reduction="none")


def test_one_hot_targets_are_labels(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 1: a one-hot target gives what the labels give, to the same accuracy."""
    x, y = cases.grid(rng, (20, 6), dtype, -16, 16), cases.labels(rng, 20, 6)
    y[:10] = x[:10].argmax(1)
    labels = agree(engine, x, y, reduction="none")
    dense = agree(engine, x, np.eye(6, dtype=np.float32)[y], reduction="none")
    assert np.array_equal(dense.value, labels.value)


@pytest.mark.parametrize("smoothing", [1e-3, 0.1, 0.5, 1.0])
def test_label_smoothing(engine: Engine, dtype: DType, rng: np.random.Generator, smoothing: float) -> None:
    """Clause 3: eps/C goes to all classes, the target's too; with class weights, each class' share times its weight."""
    for n_classes in (1, 2, 10, 67):
        x, y = cases.normal(rng, (9, n_classes), dtype), cases.labels(rng, 9, n_classes)
        agree(engine, x, y, label_smoothing=smoothing, reduction="none")
        agree(engine, x, y, label_smoothing=smoothing, weight=rng.random(n_classes), reduction="none")
        agree(engine, x, cases.dense(rng, x.shape), label_smoothing=smoothing, weight=rng.random(n_classes))


def test_label_smoothing_by_hand(engine: Engine) -> None:
    """Clause 3: two classes at equal logits: any smoothing leaves log 2; torch's weighted sum otherwise."""
    assert engine.cross_entropy([[0.0, 0.0]], [0], label_smoothing=0.3) == pytest.approx(math.log(2))
    # torch.nn.functional.cross_entropy(tensor([[1., 2., 4.]]), tensor([1]), tensor([1., 2., 3.]), label_smoothing=.3,
    # reduction="sum"): 0.7 * 2 * 2.1698 + 0.1 * (1 * 3.1698 + 2 * 2.1698 + 3 * 0.1698).
    got = engine.cross_entropy([[1.0, 2.0, 4.0]], [1], weight=[1, 2, 3], label_smoothing=0.3, reduction="sum")
    lse = math.log(math.e + math.e**2 + math.e**4)
    parts = [lse - 1, lse - 2, lse - 4]
    assert got == pytest.approx(0.7 * 2 * parts[1] + 0.1 * (parts[0] + 2 * parts[1] + 3 * parts[2]), rel=1e-14)


def test_dense_mass_and_zeros(engine: Engine, dtype: DType) -> None:
    """Clause 4: Q is the row's sum; a zero on -inf is 0, not NaN; an all-zero row is 0 with gradient 0."""
    x = np.array([[0, 1, -np.inf], [2, 1, 0], [1, 1, 1], [-np.inf, 0, -np.inf]]).astype(dtype)
    t = np.array([[0.5, 3.0, 0.0], [0, 0, 0], [10, 20, 30], [0, 2, 0]], np.float32)
    want = agree(engine, x, t, reduction="none")
    assert np.isfinite(want.value.astype(float)).all()
    assert engine.cross_entropy_with_grad(x, t, reduction="none").grad[1].astype(float).tolist() == [0, 0, 0]


def test_ignored_rows(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 5: loss 0 and gradient exactly 0 even where the logits are NaN; no other row notices."""
    x = cases.normal(rng, (6, 5), dtype)
    x[1], x[3, 2], x[4] = np.nan, np.inf, -np.inf
    y = np.array([4, -100, 1, -100, -100, 0])
    for reduction in ("mean", "sum", "none"):
        agree(engine, x, y, reduction=reduction, z_loss=0.01)
    grad = engine.cross_entropy_with_grad(x, y, z_loss=0.01, label_smoothing=0.1).grad
    assert not grad[[1, 3, 4]].tobytes().strip(b"\0"), "an ignored row's gradient is not exactly +0"
    agree(engine, x, np.where(y == -100, 3, y), ignore_index=3, reduction="none")


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_ignore_index_is_a_value(engine: Engine, kind: type[np.integer[Any]]) -> None:
    """Clause 5: the comparison is by value, in every integer dtype: -100 is not uint8 156."""
    x = np.linspace(-1, 1, 3 * 200, dtype=np.float32).reshape(3, 200)
    top = 127 if kind is np.int8 else 156
    y = np.array([0, top, 5], kind)
    agree(engine, x, y, reduction="none")
    agree(engine, x, y, reduction="none", ignore_index=top)
    agree(engine, x, y, reduction="none", ignore_index=5 + 2**64)
    agree(engine, x, y, reduction="none", ignore_index=-(2**63))
    if np.issubdtype(kind, np.signedinteger):
        agree(engine, x, np.array([0, -100, 5], kind), reduction="none")
        agree(engine, x, np.array([0, -1, 5], kind), reduction="none", ignore_index=-1)
    big = np.iinfo(kind).max
    agree(engine, x, np.array([0, big, 5], kind), reduction="none", ignore_index=int(big))


def test_ignored_by_sample_weight(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 5: a sample weight of 0 ignores its row, labels and dense targets alike."""
    x = cases.normal(rng, (4, 3), dtype)
    x[2] = np.nan
    s = np.array([1.5, 0.25, 0.0, 2.0])
    for target in (np.array([0, 1, 2, 0]), cases.dense(rng, x.shape)):
        want = agree(engine, x, target, sample_weight=s, z_loss=0.1)
        assert np.isfinite(float(want.value))


def test_excluded_classes(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 6: -inf is probability 0, and gradient -q_k there: exactly 0 where the target puts nothing."""
    for n_classes in (2, 5, 40, 131):
        x = cases.normal(rng, (30, n_classes), dtype)
        x[rng.random(x.shape) < 0.5] = -np.inf
        x[:, 0] = 1
        y = np.where(np.isinf(x).any(1), np.isneginf(x.astype(np.float64)).argmax(1), 0)
        y[::2] = 0
        want = agree(engine, x, y, reduction="none")
        assert np.isinf(want.value).any()
        grad = engine.cross_entropy_with_grad(x, y, reduction="sum").grad.astype(np.float64)
        assert np.isfinite(grad).all()
        hot = np.arange(n_classes) == y[:, None]
        assert (grad[np.isneginf(x.astype(np.float64)) & ~hot] == 0).all()


def test_mass_on_an_excluded_class_from_smoothing(engine: Engine, dtype: DType) -> None:
    """Clause 6: smoothing that reaches a -inf logit makes the loss +inf and leaves the gradient finite."""
    x = np.array([[0, 1, -np.inf], [0, 1, 2]]).astype(dtype)
    want = agree(engine, x, np.array([1, 1]), label_smoothing=0.1, reduction="none")
    assert want.value[0] == np.inf
    assert math.isinf(engine.cross_entropy(x, [1, 1], label_smoothing=0.1))
    # A weight of 0 takes the mass away again.
    agree(engine, x, np.array([1, 1]), label_smoothing=0.1, weight=[1, 1, 0], reduction="none")
    agree(engine, x, np.array([[0.5, 0, 0.5], [0, 1, 0]], np.float32), reduction="none")


SPECIAL = {
    "all -inf": [-np.inf, -np.inf, -np.inf, -np.inf, -np.inf],
    "+inf": [0, np.inf, 1, 2, 3],
    "+inf and -inf": [-np.inf, np.inf, 1, 2, 3],
    "two +inf": [np.inf, np.inf, 1, 2, 3],
    "NaN": [0, 1, np.nan, 2, 3],
    "NaN first": [np.nan, 1, 5, 2, 3],
    "NaN and +inf": [0, np.nan, np.inf, 2, 3],
    "NaN and -inf": [-np.inf, np.nan, -np.inf, -np.inf, -np.inf],
    "all NaN": [np.nan] * 5,
}


@pytest.mark.parametrize("row", SPECIAL.values(), ids=SPECIAL)
def test_rows_that_are_nan(engine: Engine, dtype: DType, rng: np.random.Generator, row: list[float]) -> None:
    """Clause 6: all -inf, any +inf, any NaN: that row's loss and gradient are NaN, and no other row's."""
    x = cases.normal(rng, (9, 5), dtype)
    x[4] = row
    for target in (np.array([0, 1, 2, 3, 1, 0, 1, 2, 3]), cases.dense(rng, x.shape)):
        for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"weight": np.ones(5)}):
            want = agree(engine, x, target, reduction="none", **options)
            assert np.isnan(want.value).tolist() == [i == 4 for i in range(9)]
            assert np.isnan(want.grad).all(1).tolist() == [i == 4 for i in range(9)]
    assert math.isnan(engine.cross_entropy(x, np.zeros(9, int)))


def test_a_nan_at_every_position(engine: Engine, dtype: DType) -> None:
    """Clause 6: no lane of any vector, group or tail loses a NaN or a +inf."""
    for n_classes in [*range(1, 4 * engine.lanes(dtype) + 4), BLOCK + 3]:
        x = np.zeros((2 * n_classes, n_classes), dtype)
        np.fill_diagonal(x[:n_classes], np.nan)
        np.fill_diagonal(x[n_classes:], np.inf)
        x = x if n_classes < BLOCK else x[:: BLOCK // 7]
        for y in (np.zeros(len(x), int), np.arange(len(x)) % n_classes):
            loss, grad = engine.cross_entropy_with_grad(x, y, reduction="none")
            assert np.isnan(loss).all()
            assert np.isnan(grad).all()


OFFSETS = {np.float32: [1e4, 1e6, 1e8, -1e8], np.float64: [1e4, 1e8, 1e16, -1e16]}


@pytest.mark.parametrize("kind", OFFSETS)
def test_a_constant_changes_nothing(engine: Engine, kind: type, rng: np.random.Generator) -> None:
    """Clause 7: offsets cost nothing but the rounding of the inputs; these inputs are rounded to nothing."""
    for offset in OFFSETS[kind]:
        step = max(float(np.spacing(kind(abs(offset)))), 0.125)
        x = (rng.integers(-3, 1, (8, 12)) * step).astype(kind)
        far = x + kind(offset)
        y = cases.labels(rng, 8, 12)
        assert np.array_equal(far - kind(offset), x)
        near = oracle.cross_entropy(x, y, reduction="none")
        for target in (y, cases.dense(rng, x.shape)):
            agree(engine, far, target, reduction="none")
        check_value(engine.cross_entropy(far, y, reduction="none"), near, np.dtype(kind), "none")


def test_random_rows_far_away(engine: Engine, rng: np.random.Generator) -> None:
    """Clause 7: random rows around 1e4 and -1e8, whatever the inputs were rounded to."""
    for offset in (1e4, -1e8):
        x = (rng.standard_normal((8, 12)) * 10 + offset).astype(np.float32)
        agree(engine, x, cases.labels(rng, 8, 12), reduction="none")


def test_small_losses_keep_their_digits(engine: Engine, dtype: DType) -> None:
    """Clause 8: logits (g, 0), label 0: log1p(exp(-g)) to the bare ULPs, and the gradient at the target likewise."""
    highest = 700 if dtype == np.float64 else 80
    gaps = np.array([*range(40), *range(40, highest + 1, 5), 16.5, 17.25, 36.5, 37.5])
    gaps = gaps[gaps.astype(dtype).astype(np.float64) == gaps]
    x = np.stack([gaps, np.zeros_like(gaps)], 1).astype(dtype)
    y = np.zeros(len(x), int)
    want = agree(engine, x, y, reduction="none")
    assert (want.value > 0).all()
    loss, grad = engine.cross_entropy_with_grad(x, y, reduction="sum")
    assert loss > 0
    if dtype != np.float16:
        assert (grad[:, 0] < 0).all()
    agree(engine, x[:, ::-1].copy(), y + 1, reduction="none")
    one_hot = np.eye(2, dtype=np.float32)[y]
    agree(engine, x, one_hot, reduction="none")
    agree(engine, x, one_hot, reduction="none", weight=[0.5, 2], sample_weight=np.full(len(x), 4.0))


def test_small_losses_among_many_classes(engine: Engine, dtype: DType) -> None:
    """Clause 8: the same with the target anywhere in the row, for every width to four vectors and a tail."""
    for n_classes in [*range(2, 4 * engine.lanes(dtype) + 4, 3), BLOCK + 5]:
        at = np.arange(0, n_classes, 1 if n_classes < 100 else 97)
        x = np.zeros((len(at), n_classes), dtype)
        x[np.arange(len(at)), at] = 40
        agree(engine, x, at, reduction="none")


def test_one_class(engine: Engine, dtype: DType) -> None:
    """Clause 9: C = 1 is loss 0 and gradient 0 for a finite logit, and clause 6 otherwise."""
    x = np.array([[0.0], [5.0], [-1e4], [np.inf], [-np.inf], [np.nan]]).astype(dtype)
    y = np.zeros(6, int)
    agree(engine, x, y, reduction="none")
    loss, grad = engine.cross_entropy_with_grad(x[:3], y[:3], reduction="none")
    assert loss.tolist() == [0, 0, 0]
    assert grad.astype(float).ravel().tolist() == [0, 0, 0]
    assert engine.cross_entropy(x[:3], y[:3]) == 0
    agree(engine, x, np.full((6, 1), 2.5, np.float32), reduction="none")


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0, 5), (0, 3, 1), (2, 0, 0)])
def test_no_rows(engine: Engine, dtype: DType, shape: tuple[int, ...]) -> None:
    """Clause 9: N = 0 is empty for "none", NaN for the mean, 0 for the sum; C may be 0 too."""
    x, y = np.empty(shape, dtype), np.empty(shape[:-1], np.int64)
    for target in (y, np.empty(shape, np.float32)):
        for reduction, value in (("mean", math.nan), ("sum", 0.0)):
            loss, grad = engine.cross_entropy_with_grad(x, target, reduction=reduction)
            assert np.array_equal(loss, value, equal_nan=True)
            assert grad.shape == shape
            assert grad.dtype == dtype
            again = engine.cross_entropy(x, target, reduction=reduction)
            assert np.array_equal(again, value, equal_nan=True)
        assert engine.cross_entropy(x, target, reduction="none").shape == shape[:-1]
        assert engine.cross_entropy(x, target, denominator=3) == 0


@pytest.mark.parametrize("z_loss", [1e-4, 0.5])
def test_z_loss(engine: Engine, dtype: DType, rng: np.random.Generator, z_loss: float) -> None:
    """Clause 1: z lse^2, times the sample weight, in loss and gradient, for labels and dense targets."""
    for n_classes in (1, 2, 10, 67):
        x, y = cases.normal(rng, (9, n_classes), dtype), cases.labels(rng, 9, n_classes)
        s = rng.random(9)
        for target in (y, cases.dense(rng, x.shape)):
            agree(engine, x, target, z_loss=z_loss, reduction="none")
            agree(engine, x, target, z_loss=z_loss, sample_weight=s, weight=rng.random(n_classes), label_smoothing=0.1)


def distributions(engine: Engine, x: np.ndarray, axis: int = -1) -> None:
    want = oracle.distribution(x, axis)
    back = np.moveaxis(x, axis, -1).shape

    def rows_of(got: Any) -> Any:
        assert got.shape == x.shape
        assert got.dtype == x.dtype.newbyteorder("=")
        return np.moveaxis(got, axis, -1).reshape(want.x.shape)

    before = x.tobytes()
    for name, exact, bound in (
        ("softmax", want.p, tolerances.probabilities(want, x.dtype)),
        ("log_softmax", want.log_p, tolerances.log_probabilities(want, x.dtype)),
    ):
        got = getattr(engine, name)(x, axis=axis)
        close(rows_of(got), exact, tolerances.stored(bound, exact, got.dtype), name)
    got = engine.logsumexp(x, axis=axis)
    assert got.shape == back[:-1]
    close(got.reshape(-1), want.lse, tolerances.lse(want, x.dtype), "logsumexp")
    assert x.tobytes() == before, "clause 14: logits were modified"


def test_softmax_log_softmax_and_logsumexp(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """Clause 1 for the functions without a target."""
    for n_classes in edges(engine, dtype):
        distributions(engine, cases.grid(rng, (5, n_classes), dtype, -8, 8))
    distributions(engine, cases.normal(rng, (3, BLOCK + 1), dtype))
    distributions(engine, cases.normal(rng, (2, 6, 3), dtype, 30), axis=1)
    distributions(engine, cases.normal(rng, (7, 4), dtype, 30), axis=0)
    distributions(engine, np.empty((0, 4), dtype))


def test_softmax_of_special_rows(engine: Engine, dtype: DType) -> None:
    """Clause 6 for the functions without a target: logsumexp is -inf, +inf or NaN where the row says so."""
    x = np.array([*SPECIAL.values(), [0, -np.inf, 1, -np.inf, 2], [0, 1, 2, 3, 4]]).astype(dtype)
    distributions(engine, x)
    assert engine.logsumexp(x)[:3].tolist() == [-np.inf, np.inf, np.inf]


@pytest.mark.parametrize("axis", [-1, 0])
def test_two_classes(engine: Engine, dtype: DType, axis: int) -> None:
    """Every pair of numbers of all sizes and signs, for either label and none, with weights that are 0 among them."""
    values = np.array([-np.inf, -1e4, -80, -1, 0, 0.125, 3, 79, 1e4, np.inf, np.nan])
    first, second, label = (part.reshape(-1) for part in np.meshgrid(values, values, [0, 1, -100]))
    x = np.moveaxis(np.stack([first, second], -1).astype(dtype), -1, axis)
    for weight in (None, [0.0, 1.5]):
        agree(
            engine,
            x,
            label.astype(int),
            axis=axis,
            weight=weight,
            reduction="none",
            grad_output=np.full(label.shape, 3.0),
        )
    finite = np.isfinite(first) & np.isfinite(second)
    agree(engine, np.compress(finite, x, 1 + axis), label[finite].astype(int), axis=axis)
