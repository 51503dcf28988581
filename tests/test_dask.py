"""fastce.dask: whatever the chunks, the answers are those of the library on the whole; and on a cluster of processes.

Nothing here needs another process but the tests of the cluster, which is made once.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import cases
import fastce
from fastce import _pipeline

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

import dask.array as da  # noqa: E402

import fastce.dask as fd  # noqa: E402

Array = cases.Array

CHUNKS = [
    (24, 30),  # one block
    (7, 30),  # rows
    (24, 11),  # classes
    (6, 7),  # both
    ((3, 0, 20, 1), (1, 28, 1)),  # uneven ones, and an empty one
]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"weight": np.linspace(0.5, 2.0, 30), "sample_weight": np.linspace(0.0, 2.0, 24)},
    "smoothing": {"label_smoothing": 0.1, "z_loss": 0.01, "base": 2.0},
    "denominator": {"denominator": 5.0, "weight": np.linspace(0.5, 2.0, 30)},
}


def data(rng: np.random.Generator, dtype: Any = np.float64) -> tuple[Array, Array]:
    x, y = cases.normal(rng, (24, 30), dtype), cases.labels(rng, 24, 30)
    y[3], y[10] = -100, 3
    return x, y


def compute(*lazy: Any) -> Any:
    return dask.compute(*lazy, scheduler="synchronous")


def agree(x: Array, target: Any, logits: Any, lazy_target: Any, rtol: float = 1e-13, **options: Any) -> None:
    """Loss alone, loss with gradient and the gradient, computed together, are those of the whole."""
    lazy = {name: options.pop(name) for name in list(options) if isinstance(options[name], da.Array)}
    known = {name: compute(value)[0] for name, value in lazy.items()}
    forward = {name: value for name, value in (options | lazy).items() if name != "grad_output"}
    want = fastce.cross_entropy_with_grad(x, target, **options, **known)
    loss = fd.cross_entropy(logits, lazy_target, **forward)
    both = fd.cross_entropy_with_grad(logits, lazy_target, **options, **lazy)
    assert isinstance(both, fastce.LossAndGrad)
    assert both.grad.dtype == x.dtype
    assert both.grad.numblocks == logits.numblocks
    assert loss.ndim == both.loss.ndim == (x.ndim - 1 if options.get("reduction") == "none" else 0)
    alone, value, grad = compute(loss, both.loss, both.grad)
    for got in (alone, value):
        np.testing.assert_allclose(got, want.loss, rtol=rtol)
        assert got.dtype == (np.asarray(want.loss).dtype if loss.ndim else np.float64)
    assert grad.dtype == want.grad.dtype
    np.testing.assert_allclose(grad.astype(float), want.grad.astype(float), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_chunks_of_labels(rng: np.random.Generator, chunks: Any, options: dict[str, Any]) -> None:
    x, y = data(rng)
    logits = da.from_array(x, chunks=chunks)
    for reduction in ("mean", "sum", "none"):
        if "denominator" in options and reduction != "mean":
            continue
        agree(x, y, logits, y, reduction=reduction, **options)
    agree(x, y, logits, da.from_array(y, chunks=5), grad_output=-3.0, **options)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_soft_targets(rng: np.random.Generator, chunks: Any) -> None:
    """Dense ones, in other chunks than the logits, and sparse ones."""
    x, _ = data(rng)
    logits = da.from_array(x, chunks=chunks)
    t = cases.dense(rng, x.shape)
    weights = {"weight": da.from_array(rng.random(30), chunks=4), "sample_weight": da.from_array(rng.random(24))}
    agree(x, t, logits, da.from_array(t, chunks=(5, 9)), label_smoothing=0.1, **weights)
    agree(x, t, logits, t, reduction="none", grad_output=rng.standard_normal(24))
    indices, probabilities = rng.integers(-1, 30, (24, 3)), rng.random((24, 3))
    lists = da.from_array(indices, chunks=(9, 2)), da.from_array(probabilities, chunks=(4, 3))
    agree(x, (indices, probabilities), logits, lists)
    agree(x, (indices, probabilities), logits, (indices, probabilities), reduction="sum")


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_dtypes(rng: np.random.Generator, name: str) -> None:
    dtype = np.dtype(name) if name != "bfloat16" else pytest.importorskip("ml_dtypes").bfloat16
    x, y = data(rng, dtype)
    rtol = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6}[name]
    for chunks, reduction in itertools.product([(6, 7), (7, 30)], ["mean", "none"]):
        agree(x, y, da.from_array(x, chunks=chunks), y, rtol=rtol, reduction=reduction, label_smoothing=0.1)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_axes(rng: np.random.Generator, axis: int) -> None:
    x = cases.normal(rng, (6, 8, 10), np.float64)
    positions = tuple(np.delete(x.shape, axis))
    y = cases.labels(rng, positions, x.shape[axis])
    logits = da.from_array(x, chunks=(4, 3, 4))
    agree(x, y, logits, da.from_array(y, chunks=5), axis=axis)
    agree(x, y, logits, y, axis=axis, reduction="none", sample_weight=rng.random(positions))
    whole = logits.rechunk({axis: -1})
    agree(x, y, whole, y, axis=axis, temperature=2.0, softcap=5.0)
    one = da.from_array(x[0, 0], chunks=3)
    agree(x[0, 0], np.array(4), one, np.array(4))


@pytest.mark.parametrize("chunks", [(24, 30), (7, 30), (1, 30)], ids=str)
def test_accumulate(rng: np.random.Generator, chunks: Any) -> None:
    """The summary of all blocks is that of the whole, and errors have their place."""
    x, y = data(rng)
    logits, weights = da.from_array(x, chunks=chunks), rng.random(24)
    options = {"weight": np.linspace(0.5, 2.0, 30), "label_smoothing": 0.1, "base": 2.0, "temperature": 2.0}
    want = fastce.CrossEntropyAccumulator(**options).update(x, y, sample_weight=weights).compute()
    lazy = fd.accumulate(logits, y, sample_weight=weights, split_every=2, **options)
    for _ in range(2):
        (seen,) = compute(lazy)
        np.testing.assert_allclose(seen.compute(), want, rtol=1e-13)
    y[17] = 30
    with pytest.raises(IndexError, match=r"target: label 30 at index \(17,\) is out of range for 30 classes$"):
        compute(fd.accumulate(logits, y))
    with pytest.raises(ValueError, match=r"logits: all classes must be in one block; rechunk\(\{1: -1\}\) does that"):
        fd.accumulate(logits.rechunk((5, 7)), y)


def test_unknown_sizes_of_rows(rng: np.random.Generator) -> None:
    """As after a selection: a dask array of as many blocks goes with it."""
    x, y = data(rng)
    keep, weights = rng.random(24) < 0.6, rng.random(24)
    for chunks in ((7, 30), (7, 11)):
        logits, labels = da.from_array(x, chunks=chunks), da.from_array(y, chunks=7)
        mask, s = da.from_array(keep, chunks=7), da.from_array(weights, chunks=7)
        one_hot = da.from_array((np.arange(30) == y[:, None]).astype(np.float32), chunks=chunks)
        for reduction in ("mean", "none"):
            for lazy, target in ((labels, y), (one_hot, compute(one_hot)[0])):
                loss = fd.cross_entropy(logits[mask], lazy[mask], sample_weight=s[mask], reduction=reduction)
                both = fd.cross_entropy_with_grad(logits[mask], lazy[mask], sample_weight=s[mask], reduction=reduction)
                want = fastce.cross_entropy_with_grad(
                    x[keep], target[keep], sample_weight=weights[keep], reduction=reduction
                )
                alone, value, grad = compute(loss, *both)
                np.testing.assert_allclose(alone, want.loss, rtol=1e-13)
                np.testing.assert_allclose(value, want.loss, rtol=1e-13)
                np.testing.assert_allclose(grad, want.grad, atol=1e-14)
    everything = da.ones(24, dtype=bool, chunks=7)
    np.testing.assert_allclose(*compute(fd.cross_entropy(logits, labels[everything]), fd.cross_entropy(logits, y)))
    with pytest.raises(ValueError, match=r"target: the sizes of the blocks of logits are unknown"):
        fd.cross_entropy(logits[mask], y[keep])
    with pytest.raises(ValueError, match=r"target: where sizes of blocks are unknown their numbers .* \(4,\), got"):
        fd.cross_entropy(logits[mask], da.from_array(y, chunks=12))
    with pytest.raises(ValueError, match=r"logits: the sizes of blocks along the class axis are unknown"):
        fd.cross_entropy(logits.T[da.from_array(np.arange(30) < 9, chunks=11)].T, labels)


def test_nothing_to_average(rng: np.random.Generator) -> None:
    """NaN, and gradients of 0, however the rows are cut."""
    x = cases.normal(rng, (6, 8), np.float64)
    for chunks in ((2, 8), (2, 3)):
        loss, grad = compute(*fd.cross_entropy_with_grad(da.from_array(x, chunks=chunks), np.full(6, -100)))
        assert math.isnan(loss)
        assert not grad.any()


def test_lazy() -> None:
    """Making the graph computes no block."""

    def block(_: Array) -> Array:
        raise RuntimeError("computed")

    for chunks in ((2, 6), (2, 2)):
        logits = da.zeros((4, 6), chunks=chunks).map_blocks(block, dtype=np.float64, meta=np.empty((0, 0)))
        loss = fd.cross_entropy(logits, np.zeros(4, int))
        both = fd.cross_entropy_with_grad(logits, np.zeros(4, int))
        with pytest.raises(RuntimeError, match="computed"):
            compute(loss, *both)


def test_graphs_of_what_is_too_large() -> None:
    """10^13 logits take no memory before they are computed."""
    rows, n_classes = 10**8, 128_256
    for chunks in ((10**5, n_classes), (10**6, n_classes // 4)):
        logits = da.zeros((rows, n_classes), chunks=chunks, dtype=np.float32)
        labels = da.zeros(rows, chunks=chunks[0], dtype=np.int64)
        for reduction in ("mean", "none"):
            loss, grad = fd.cross_entropy_with_grad(logits, labels, reduction=reduction)
            assert (loss.shape, grad.shape) == (() if reduction == "mean" else (rows,), (rows, n_classes))
            assert len(grad.dask.layers) <= 5  # the arrays, and ours: none for each block


def test_partial_results_are_merged_as_a_tree(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """One visit of each block of the forward pass; never more than split_every results in one task."""
    sizes: list[int] = []
    visits: list[tuple[int, ...]] = []

    def watch(name: str, note: Any) -> None:
        function = getattr(fd, name)

        def watched(*arguments: Any) -> Any:
            note(*arguments)
            return function(*arguments)

        monkeypatch.setattr(fd, name, watched)

    watch("_merged", lambda parts: sizes.append(len(parts)))
    watch("_added", lambda sums: sizes.append(len(sums)))
    watch("_part", lambda block: visits.append(block.place.where))
    x, y = data(rng)
    loss = fd.cross_entropy(da.from_array(x, chunks=(2, 1)), y, split_every=3)
    np.testing.assert_allclose(compute(loss)[0], fastce.cross_entropy(x, y), rtol=1e-13)
    assert sorted(visits) == list(itertools.product(range(12), range(30)))
    assert max(sizes) == 3


@pytest.mark.parametrize("chunks", [(7, 30), (7, 11)], ids=str)
def test_threads_of_a_task(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, chunks: Any) -> None:
    """One, unless told otherwise: the scheduler shares out the cores."""
    asked: set[Any] = set()
    choose = _pipeline.choose

    def watched(problem: Any, backend: str, num_threads: Any) -> Any:
        asked.add(num_threads)
        return choose(problem, backend, num_threads)

    monkeypatch.setattr(_pipeline, "choose", watched)
    x, y = data(rng)
    logits = da.from_array(x, chunks=chunks)
    for options, expected in (({}, {1}), ({"num_threads": 2}, {2})):
        asked.clear()
        compute(fd.cross_entropy(logits, y, **options), *fd.cross_entropy_with_grad(logits, y, **options))
        assert asked == expected


@pytest.mark.parametrize("chunks", [(7, 30), (7, 11), (24, 30)], ids=str)
def test_bad_rows_have_their_place_in_the_whole(rng: np.random.Generator, chunks: Any) -> None:
    x, y = data(rng)
    logits = da.from_array(x, chunks=chunks)
    bad = y.copy()
    bad[17] = 30
    calls = (fd.cross_entropy, lambda *a, **k: fd.cross_entropy_with_grad(*a, **k).grad)
    weights = np.ones(24)
    weights[9] = -1.0
    dense = cases.dense(rng, x.shape)
    dense[16, 25] = -2.0
    lists = rng.integers(0, 30, (24, 2)), np.ones((24, 2))
    lists[0][20, 1] = 99
    for call in calls:
        with pytest.raises(IndexError, match=r"target: label 30 at index \(17,\) is out of range for 30 classes$"):
            compute(call(logits, bad))
        with pytest.raises(ValueError, match=r"sample_weight: .* got -1.0 at index \(9,\)$"):
            compute(call(logits, y, sample_weight=weights))
        with pytest.raises(ValueError, match=r"target: expected finite numbers >= 0, got -2.0 at index \(16, 25\)$"):
            compute(call(logits, dense))
        with pytest.raises(IndexError, match=r"target: class 99 at index \(20, 1\) is out of range for 30 classes$"):
            compute(call(logits, lists))
    everything = da.from_array(np.ones(24, bool), chunks=logits.chunks[0])
    lazy = da.from_array(bad, chunks=logits.chunks[0])
    block = 17 // chunks[0]
    with pytest.raises(
        IndexError, match=rf"label 30 at index \({17 - block * chunks[0]},\) .* in block \({block}, \d\)"
    ):
        compute(fd.cross_entropy(logits[everything], lazy[everything]))
    with pytest.raises(IndexError, match=r"label 30 at index \(17,\) is out of range for 30 classes$"):
        fastce.cross_entropy(x, bad)


BAD = [
    ({"logits": np.zeros((4, 6))}, TypeError, r"logits: expected a dask array, got ndarray"),
    ({"logits": da.zeros((4, 6), dtype=int)}, TypeError, r"logits: expected .*, got dtype int64"),
    ({"target": np.zeros(5, int)}, ValueError, r"target: .*labels of shape \(4,\)"),
    ({"target": da.zeros((4, 5))}, ValueError, r"target: .*dense target of shape \(4, 6\)"),
    ({"target": da.zeros(4)}, TypeError, r"target: expected integer labels"),
    ({"weight": np.ones(5)}, ValueError, r"weight: expected one number for each class"),
    ({"weight": da.ones(5)}, ValueError, r"weight: expected one number for each class"),
    ({"sample_weight": da.ones(3)}, ValueError, r"sample_weight: expected one number for each row"),
    ({"reduction": "average"}, ValueError, r"reduction"),
    ({"reduction": "sum", "denominator": 2.0}, ValueError, r"denominator"),
    ({"label_smoothing": 2.0}, ValueError, r"label_smoothing"),
    ({"axis": 2}, ValueError, r"axis"),
    ({"num_threads": 0}, ValueError, r"num_threads"),
    ({"split_every": 1}, ValueError, r"split_every"),
    ({"temperature": 2.0}, ValueError, r"temperature: all classes must be in one block for it; rechunk\(\{1: -1\}\)"),
    ({"softcap": 2.0}, ValueError, r"softcap: all classes must be in one block"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments_are_refused_at_once(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call = {"logits": da.zeros((4, 6), chunks=(2, 3)), "target": np.zeros(4, int)} | change
    for function in (fd.cross_entropy, fd.cross_entropy_with_grad):
        with pytest.raises(error, match=message):
            function(**call)


def test_signatures() -> None:
    """Those of the library, but for what makes no sense here, and what is dask's."""
    import inspect

    for name, missing in (("cross_entropy", set()), ("cross_entropy_with_grad", {"out"})):
        mine, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fd, fastce))
        assert [n for n in theirs if n not in missing] == [n for n in mine if n != "split_every"]
        for n, parameter in mine.items():
            if n not in ("num_threads", "split_every"):
                assert parameter.default == theirs[n].default


def test_examples_run() -> None:
    import doctest

    assert doctest.testmod(fd).failed == 0


# --- a cluster of processes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two processes of one thread each, in a folder that they share with no other cluster."""
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "30s", "distributed.scheduler.allowed-failures": 10}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            memory_limit="1GiB",
            dashboard_address=":0",
            local_directory=str(tmp_path_factory.mktemp("cluster")),
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def slowly(block: Array) -> Array:
    time.sleep(0.1)
    return block


def test_cluster(client: Any, rng: np.random.Generator) -> None:
    """Loss and gradient from other processes; what crosses between them can be pickled."""
    assert len(set(client.run(os.getpid).values()) | {os.getpid()}) == 3
    x, y = data(rng)
    for chunks in ((7, 30), (6, 7)):
        logits = da.from_array(x, chunks=chunks)
        options = {"weight": np.linspace(0.5, 2.0, 30), "label_smoothing": 0.1}
        want = fastce.cross_entropy_with_grad(x, y, **options)
        loss, grad = client.compute(list(fd.cross_entropy_with_grad(logits, y, **options)), sync=True)
        np.testing.assert_allclose(loss, want.loss, rtol=1e-13)
        np.testing.assert_allclose(grad, want.grad, atol=1e-15)
        first, again = (client.compute(fd.cross_entropy(logits, y), sync=True) for _ in range(2))
        assert first == again


def test_cluster_names_a_bad_label(client: Any, rng: np.random.Generator) -> None:
    x, y = data(rng)
    y[17] = 30
    for chunks in ((7, 30), (6, 7)):
        loss = fd.cross_entropy(da.from_array(x, chunks=chunks), y)
        with pytest.raises(IndexError, match=r"target: label 30 at index \(17,\) is out of range for 30 classes"):
            client.compute(loss, sync=True)


@pytest.mark.parametrize("chunks", [(1, 30), (4, 5)], ids=str)
def test_a_worker_is_killed_in_the_middle(client: Any, rng: np.random.Generator, chunks: Any) -> None:
    """What it held is computed again, and the answer is right in the end."""
    x, y = data(rng)
    logits = da.from_array(x, chunks=chunks).map_blocks(slowly, dtype=x.dtype, meta=np.empty((0, 0)))
    lazy = fd.cross_entropy_with_grad(logits, y)
    before = set(client.run(os.getpid).values())
    futures = client.compute(list(lazy))
    time.sleep(0.6)
    assert not any(future.done() for future in futures)
    os.kill(next(iter(before)), signal.SIGKILL)
    loss, grad = client.gather(futures)
    want = fastce.cross_entropy_with_grad(x, y)
    np.testing.assert_allclose(loss, want.loss, rtol=1e-13)
    np.testing.assert_allclose(grad, want.grad, atol=1e-15)
    client.wait_for_workers(2, timeout=30)
    assert set(client.run(os.getpid).values()) != before
