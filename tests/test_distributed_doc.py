"""docs/distributed.md: its examples run; those for engines that are not here, on stand-ins with the same calls."""

from __future__ import annotations

import doctest
import functools
import itertools
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastce

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "distributed.md").read_text(encoding="utf-8")


def blocks(section: str) -> list[str]:
    start = TEXT.index(f"\n## {section}\n")
    return re.findall(r"^```python\n(.*?)^```$", TEXT[start : TEXT.find("\n## ", start + 1)], re.MULTILINE | re.DOTALL)


def test_examples() -> None:
    pytest.importorskip("dask")
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner()
    for text in (*blocks("The two functions"), *blocks("Dask")):
        test = doctest.DocTestParser().get_doctest(text, names, "distributed.md", None, None)
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        assert not said, "".join(said)
        names = test.globs


class Ray(types.ModuleType):
    """`ray` whose remote functions are done at once."""

    @staticmethod
    def remote(function: Any) -> Any:
        return types.SimpleNamespace(remote=function)

    @staticmethod
    def get(value: Any) -> Any:
        return value


class RDD:
    """What the example asks of one of Spark's."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def map(self, function: Any) -> RDD:
        return RDD([function(row) for row in self.rows])

    def reduceByKey(self, function: Any) -> RDD:
        found: dict[Any, Any] = {}
        for key, value in self.rows:
            found[key] = function(found[key], value) if key in found else value
        return RDD(list(found.items()))

    def values(self) -> RDD:
        return RDD([value for _, value in self.rows])

    def treeReduce(self, function: Any) -> Any:
        return functools.reduce(function, self.rows)


@pytest.mark.parametrize("cuts", [[0, 40], [0, 13, 40], [0, 3, 9, 20, 31, 40]], ids=str)
def test_ray_and_spark(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, cuts: list[int]) -> None:
    logits, labels = rng.standard_normal((12, 40)), rng.integers(0, 40, 12)
    want = fastce.cross_entropy_with_grad(logits, labels)
    shards, starts = [logits[:, a:b] for a, b in itertools.pairwise(cuts)], cuts[:-1]

    monkeypatch.setitem(sys.modules, "ray", Ray("ray"))
    names: dict[str, Any] = {}
    exec(blocks("Ray")[0], names)
    loss, grads = names["loss_and_gradients"](shards, labels, starts, 40)
    assert loss == pytest.approx(want.loss, rel=1e-14)
    np.testing.assert_allclose(np.concatenate(grads, 1), want.grad, atol=1e-16)

    exec(blocks("Spark")[0], names)
    rdd = RDD(
        [
            (rows, start, shard[rows * 4 : rows * 4 + 4], labels[rows * 4 : rows * 4 + 4])
            for rows in range(3)
            for shard, start in zip(shards, starts, strict=True)
        ]
    )
    assert names["mean_loss"](rdd, 40) == pytest.approx(want.loss, rel=1e-14)
