"""CrossEntropyAccumulator: any batches, merged in any way, against the whole at once and the oracle."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
import statistics
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cases
import fastce
from checks import answer
from fastce import CrossEntropyAccumulator, _blocks
from matrix import Engine

Array = cases.Array
DType = np.dtype[Any]

EPS = 2.0**-50
"""Some roundings of float64."""


def accumulator(engine: Engine, **options: Any) -> Any:
    return engine.call("CrossEntropyAccumulator", **options)


def update(engine: Engine, into: Any, *args: Any, **options: Any) -> Any:
    with fastce._settings.use_variant(engine.variant):
        return into.update(*args, **options)


def test_batches_are_the_whole(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """One batch has the bits of cross_entropy; many have them within float64's rounding; accuracy, and perplexity."""
    x = cases.grid(rng, (61, 7), dtype, -40, 40)
    labels = cases.labels(rng, 61, 7)
    labels[::9] = -100
    x[9] = np.nan
    s, weight = rng.integers(0, 3, 61) / 2, rng.integers(0, 4, 7) / 2
    variations: list[tuple[dict[str, Any], Any]] = [
        ({}, None),
        ({"base": 2}, s),
        ({"weight": weight, "label_smoothing": 0.1, "z_loss": 0.01}, s),
        ({"temperature": 2.0, "softcap": 9.0}, None),
    ]
    for options, sample_weight in variations:
        whole = engine.cross_entropy(x, labels, sample_weight=sample_weight, **options)
        one = update(engine, accumulator(engine, **options), x, labels, sample_weight=sample_weight).compute()
        assert one.loss == whole
        many = accumulator(engine, **options)
        for rows in np.array_split(np.arange(61), 8):
            update(
                engine,
                many,
                x[rows],
                labels[rows],
                sample_weight=None if sample_weight is None else sample_weight[rows],
            )
        found = many.compute()
        assert found.loss == pytest.approx(whole, rel=EPS)

        mass = np.where(labels == -100, 0.0, 1.0 if sample_weight is None else s)
        seen = mass != 0
        assert found.count == one.count == int(seen.sum())
        right = np.zeros(61, bool)
        right[seen] = x[seen].astype(np.float64).argmax(-1) == labels[seen]
        assert found.accuracy == one.accuracy == pytest.approx(mass[right].sum() / mass.sum(), rel=EPS)
        bare = {name: value for name, value in options.items() if name in ("temperature", "softcap")}
        plain = engine.cross_entropy(x, labels, sample_weight=sample_weight, **bare)
        assert found.perplexity == pytest.approx(math.exp(plain), rel=1e-14)


def test_dense_and_sparse_targets(engine: Engine, dtype: DType, rng: np.random.Generator) -> None:
    """The class of the greatest probability stands for the label; listed more than once, its parts are added."""
    x = cases.grid(rng, (30, 9), dtype)
    t = rng.permuted(np.tile(np.arange(9) / 40, (30, 1)), axis=1)
    right = (x.astype(np.float64).argmax(-1) == t.argmax(-1)).mean()
    order = np.argsort(-t, axis=-1)
    indices = np.concatenate([np.full((30, 1), -1), order[:, 1:4], order[:, :1], order[:, :1]], -1)
    p = np.take_along_axis(t, np.maximum(indices, 0), -1)
    p[:, -2:] /= 2
    p[:, 0] = 7
    for target in (t, (indices, p)):
        found = update(engine, accumulator(engine), x, target).compute()
        assert found.loss == engine.cross_entropy(x, target)
        assert found.accuracy == pytest.approx(right)
    spread = update(engine, accumulator(engine, spread_missing=True), x, (indices, p)).compute()
    assert spread.loss == engine.cross_entropy(x, (indices, p), spread_missing=True)
    nothing = np.full((30, 2), -1), np.ones((30, 2))
    assert update(engine, accumulator(engine), x, nothing).compute().accuracy == 0
    nothing = np.zeros((30, 0), int), np.zeros((30, 0))
    assert update(engine, accumulator(engine), x, nothing).compute()[:3] == (0, 1, 0)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """Batches larger than a block of rows, images among them."""
    x = cases.normal(rng, (6, 5, 4, 3), np.float32)
    labels = cases.labels(rng, (6, 4, 3), 5)
    s = rng.random((6, 4, 3))
    want = CrossEntropyAccumulator(axis=1, weight=np.arange(5)).update(x, labels, sample_weight=s).compute()
    for block in (1, 100, 1000):
        monkeypatch.setattr(_blocks, "BLOCK_BYTES", block)
        got = CrossEntropyAccumulator(axis=1, weight=np.arange(5)).update(x, labels, sample_weight=s).compute()
        assert got == pytest.approx(want, rel=EPS)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_any_grouping(sizes: list[int], random: Any) -> None:
    """Whatever tree of merges, of whatever parts: the value to float64's rounding; the same tree, the same bits."""
    rng = np.random.default_rng(len(sizes))
    n = sum(sizes)
    x, labels = cases.normal(rng, (n, 4), np.float32, 5.0), cases.labels(rng, n, 4)
    options: dict[str, Any] = {"weight": np.array([1.0, 0.5, 2.0, 3.0]), "z_loss": 0.1}

    def tree(order: list[int]) -> Any:
        ends = np.cumsum([0, *sizes])
        parts = [CrossEntropyAccumulator(**options).update(x[a:b], labels[a:b]) for a, b in itertools.pairwise(ends)]
        for i in order:
            k = i % max(1, len(parts) - 1)
            if len(parts) > 1:
                parts[k].merge(parts.pop(k + 1))
        return parts[0].compute()

    order = [random.randrange(12) for _ in sizes]
    whole = CrossEntropyAccumulator(**options).update(x, labels).compute()
    got = tree(order)
    assert got == pytest.approx(whole, rel=EPS, nan_ok=True)
    assert np.array_equal(np.array(tree(order)), np.array(got), equal_nan=True)


def test_standard_error(rng: np.random.Generator) -> None:
    """The textbook's without weights, in exact fractions; of the ratio with them; about 0 where all are equal."""
    x, labels = cases.normal(rng, (50, 3), np.float64), cases.labels(rng, 50, 3)
    exact = [Fraction(loss) for loss in fastce.cross_entropy(x, labels, reduction="none").tolist()]
    found = CrossEntropyAccumulator().update(x[:20], labels[:20]).update(x[20:], labels[20:]).compute()
    assert found.standard_error == pytest.approx(math.sqrt(statistics.variance(exact) / 50), rel=1e-13)
    bits = CrossEntropyAccumulator(base=2).update(x, labels).compute()
    assert bits.standard_error == pytest.approx(found.standard_error / math.log(2), rel=1e-13)

    s, weight = rng.random(50), np.array([1.0, 2.0, 0.5])
    losses = answer(x, labels, {"reduction": "none", "sample_weight": s, "weight": weight}).rows.loss
    w = s * weight[labels]
    want = np.sqrt(50 / 49 * ((losses - losses.sum() / w.sum() * w) ** 2).sum()) / w.sum()
    found = CrossEntropyAccumulator(weight=weight).update(x, labels, sample_weight=s).compute()
    assert found.standard_error == pytest.approx(float(want), rel=1e-12)

    same = CrossEntropyAccumulator()
    for _ in range(100):
        same.update(np.tile(x[:1], (10, 1)), np.zeros(10, int))
    assert same.compute().standard_error < 1e-15
    assert math.isnan(CrossEntropyAccumulator().update(x[:1], labels[:1]).compute().standard_error)


def test_many_small_batches_lose_nothing() -> None:
    """A naive sum of 2^-53's beside a 1 stays 1."""
    big, small = np.array([[0.0, 1.0]]), np.array([[37.0, 0.0]])
    found = CrossEntropyAccumulator().update(big, [0])
    for _ in range(1000):
        found.update(small, [0])
    exact = Fraction(fastce.cross_entropy(big, [0])) + 1000 * Fraction(fastce.cross_entropy(small, [0]))
    assert found.compute().loss == pytest.approx(float(exact / 1001), rel=2.0**-53)


def test_nothing(engine: Engine) -> None:
    for batch in ((np.zeros((0, 3)), np.zeros(0, int)), (np.full((2, 3), np.nan), np.full(2, -100))):
        found = update(engine, accumulator(engine), *batch).compute()
        assert found.count == 0
        assert all(math.isnan(value) for name, value in found._asdict().items() if name != "count")
    assert math.isnan(CrossEntropyAccumulator().compute().loss)


def test_special_values(engine: Engine, dtype: DType) -> None:
    x = np.array([[0, 1], [np.nan, 0], [3, -np.inf]]).astype(dtype)
    found = update(engine, accumulator(engine), x, [1, 0, 0]).compute()
    assert [math.isnan(value) for value in found] == [True, True, False, False, True]
    assert found.accuracy == pytest.approx(2 / 3)
    found = update(engine, accumulator(engine), x[[0, 2]], [1, 1]).compute()
    assert found.loss == found.perplexity == math.inf
    assert found.accuracy == 0.5
    assert math.isnan(found.standard_error)


def test_long_lists_among_few_classes_take_little_memory(rng: np.random.Generator) -> None:
    """Which class a list has most of is found by pairs of its entries, block by block."""
    n, k = 20_000, 40
    x, indices = cases.normal(rng, (n, 3), np.float32), rng.integers(0, 3, (n, k))
    tracemalloc.start()
    try:
        CrossEntropyAccumulator().update(x, (indices, np.full((n, k), 1 / k)))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_pickle_and_copy(rng: np.random.Generator) -> None:
    """Small, and the same in another process."""
    x, labels = cases.normal(rng, (3000, 50), np.float32), cases.labels(rng, 3000, 50)
    one = CrossEntropyAccumulator(z_loss=0.1, backend="cython").update(x, labels)
    text = pickle.dumps(one)
    assert len(text) < 2000
    other = pickle.loads(text)
    assert other.compute() == one.compute()
    assert other.update(x, labels).compute() == one.update(x, labels).compute()
    assert "6000" in repr(one)


def test_a_batch_with_an_error_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocks, "BLOCK_BYTES", 8)
    found = CrossEntropyAccumulator().update([[0.0, 1.0]], [0])
    before = found.compute()
    for batch, error in (
        (([[0.0, 1.0]] * 3, [0, 1, 2]), IndexError),
        (([[0.0, 1.0]] * 3, [0, 1]), ValueError),
        ((np.zeros((2, 2), int), [0, 1]), TypeError),
    ):
        with pytest.raises(error):
            found.update(*batch)
    with pytest.raises(ValueError, match=r"sample_weight: .* at index \(1,\)"):
        found.update([[0.0, 1.0]] * 2, [0, 1], sample_weight=[1, -1])
    assert np.array_equal(np.array(found.compute()), np.array(before), equal_nan=True)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"label_smoothing": 2.0}, ValueError),
        ({"base": 1.0}, ValueError),
        ({"weight": [1.0, -1.0]}, ValueError),
        ({"weight": [[1.0]]}, ValueError),
        ({"softcap": 0}, ValueError),
        ({"spread_missing": 1.5}, TypeError),
        ({"z_loss": "1"}, TypeError),
        ({"ignore_index": 0.5}, TypeError),
        ({"backend": "torch"}, ValueError),
        ({"num_threads": 0}, ValueError),
    ],
)
def test_bad_options_at_once(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        CrossEntropyAccumulator(**options)


def test_what_cannot_be_merged() -> None:
    with pytest.raises(TypeError, match="other: expected a CrossEntropyAccumulator, got float"):
        CrossEntropyAccumulator().merge(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other: its z_loss is not that of this one: 0.0 and 0.5"):
        CrossEntropyAccumulator().merge(CrossEntropyAccumulator(z_loss=0.5))
    for weight in (None, [1.0], [1.0, 3.0]):
        with pytest.raises(ValueError, match="its weight is not"):
            CrossEntropyAccumulator(weight=[1.0, 2.0]).merge(CrossEntropyAccumulator(weight=weight))
        with pytest.raises(ValueError, match="its weight is not"):
            CrossEntropyAccumulator(weight=weight).merge(CrossEntropyAccumulator(weight=[1.0, 2.0]))
    one = CrossEntropyAccumulator(weight=[1.0, 2.0], backend="numpy")
    assert one.merge(CrossEntropyAccumulator(weight=[1, 2])) is one


def test_the_weights_given_may_change_afterwards() -> None:
    weight = np.ones(2)
    found = CrossEntropyAccumulator(weight=weight)
    weight[:] = np.nan
    assert found.update([[0.0, 1.0]], [0]).compute().count == 1


def test_options_are_those_of_cross_entropy() -> None:
    own = inspect.signature(CrossEntropyAccumulator).parameters
    want = inspect.signature(fastce.cross_entropy).parameters
    assert set(want) - set(own) == {"logits", "target", "sample_weight", "reduction", "denominator"}
    assert all(own[name].default == want[name].default for name in own)
