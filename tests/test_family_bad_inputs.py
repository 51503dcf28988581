"""Every bad call of the family, on every engine: the error, its words, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bad_family
import cases
import family
import fastce
from bad_family import CALLS, Bad
from matrix import ENGINES, Engine


def test_good_calls_are_good(engine: Engine) -> None:
    for name in bad_family.FIRST:
        value = engine.call(name, **bad_family.good(name))
        if name in bad_family.LOSSES:
            assert engine.call(f"{name}_with_grad", **bad_family.good(name)).loss == value


@pytest.mark.parametrize(("bad", "name"), CALLS, ids=[f"{name}: {bad.name}" for bad, name in CALLS])
def test_bad_calls(engine: Engine, bad: Bad, name: str) -> None:
    """The error and its message, from the function and its twin; `out` and all arguments as they were."""
    twins = [f"{name}_with_grad"] if name in bad_family.LOSSES else []
    for function in twins if bad.gradient else [name, *twins]:
        first = bad_family.FIRST[name]
        arguments = bad_family.good(name) | bad.arguments(first)
        if function in twins and bad.name != "ragged":
            arguments.setdefault("out", np.full(np.shape(arguments[first]), 7, np.float32))
        arrays = [a for a in arguments.values() if isinstance(a, np.ndarray) and a.dtype != object]
        before = [a.tobytes() for a in arrays]
        with pytest.raises(bad.error, match=bad.message.replace("{}", first)) as raised:
            engine.call(function, **arguments)
        assert type(raised.value) is bad.error, "a subclass of what is promised"
        assert [a.tobytes() for a in arrays] == before


@pytest.mark.parametrize("loss", family.ELEMENT_WISE, ids=str)
def test_nothing_is_written_before_all_is_checked(engine: Engine, rng: np.random.Generator, loss: family.Loss) -> None:
    """A bad last target or weight leaves `out`, and the first argument as `out`, as they were; the first is named."""
    n = 7001
    x, t = loss.values(rng, (n,), np.dtype(np.float32)), loss.targets(rng, (n,))
    ones, out = np.ones(n), np.full(n, 7, np.float32)
    before = x.tobytes(), out.tobytes()
    calls: list[tuple[str, Any]] = [("weight", np.where(np.arange(n) > n - 3, -1, ones))]
    calls += [("sample_weight", np.where(np.arange(n) > n - 3, np.nan, ones))]
    if loss.name != "mse_loss":
        calls += [("target", np.where(np.arange(n) > n - 3, 2, t))]
    for key, value in calls:
        for target in (out, x):
            arguments: dict[str, Any] = {"target": t, key: value}
            with pytest.raises(ValueError, match=rf"{key}: .* at index \({n - 2},\)"):
                engine.call(f"{loss.name}_with_grad", x, out=target, num_threads=2, **arguments)
            assert (x.tobytes(), out.tobytes()) == before
        with pytest.raises(ValueError, match=rf"{key}: .* at index \({n - 2},\)"):
            engine.call(loss.name, x, num_threads=3, **{"target": t, key: value})


@pytest.mark.parametrize("loss", family.OF_ROWS, ids=str)
def test_the_first_bad_row(engine: Engine, rng: np.random.Generator, loss: family.Loss) -> None:
    """The same for labels and dense targets, whose index is in the user's axes."""
    n = 3001
    x, y = loss.values(rng, (n, 5), np.dtype(np.float32)), cases.labels(rng, n, 5)
    y[-2:], dense = 5, np.ones((n, 5))
    dense[-1, 3] = dense[-2, 1] = -1
    before = x.tobytes()
    for target, error, message in ((y, IndexError, rf"label 5 at index \({n - 2},\)"),
                                   (dense, ValueError, rf"target: .* at index \({n - 2}, 1\)")):  # fmt: skip
        with pytest.raises(error, match=message):
            engine.call(f"{loss.name}_with_grad", x, target, out=x, num_threads=2)
        assert x.tobytes() == before
    with pytest.raises(ValueError, match=rf"target: .* at index \(1, {n - 2}\)"):
        engine.call(loss.name, x.T, dense.T, axis=0)


def test_errors_are_the_same_from_every_backend() -> None:
    for bad, name in CALLS:
        if bad.gradient or bad.name == "unknown backend":
            continue
        texts = set()
        for engine in ENGINES:
            with pytest.raises(bad.error) as raised:
                engine.call(name, **bad_family.good(name) | bad.arguments(bad_family.FIRST[name]))
            texts.add(str(raised.value))
        assert len(texts) == 1, texts


def test_shapes_and_names_of_scalars() -> None:
    """What has no index is named all the same."""
    with pytest.raises(ValueError, match=r"target: .*\[0, 1\], got 2\.0 at index \(\)"):
        fastce.binary_cross_entropy_with_logits(0.5, 2.0)
