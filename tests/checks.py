"""How a test compares a call with the oracle: `agree` makes the call every way it can be made and checks all of it.

Owns comparison, not truth (oracle.py) and not tolerance (tolerances.py).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import oracle
import tolerances
from matrix import Engine
from oracle import Answer, Wide, widen

Array = npt.NDArray[Any]

_answers: OrderedDict[Any, Answer] = OrderedDict()
"""The last answers of the oracle: engines are given the same work one after the other."""


def answer(logits: Any, target: Any, options: Mapping[str, Any]) -> Answer:
    key = tuple((name, fingerprint(value)) for name, value in [("x", logits), ("t", target), *sorted(options.items())])
    if key not in _answers:
        _answers[key] = oracle.cross_entropy(logits, target, **options)
        while len(_answers) > 64:
            _answers.popitem(last=False)
    return _answers[key]


def fingerprint(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(fingerprint(part) for part in value)
    if isinstance(value, np.ndarray | list):
        value = np.asarray(value)
        return value.shape, value.dtype.str, value.dtype.name, hash(value.tobytes())
    return value


def loss_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype.newbyteorder("=") == np.float64 else np.float32)


def close(got: Any, exact: Any, bound: Any, what: str) -> None:
    """Every element within its bound; NaN and infinities where the oracle has them."""
    got, exact = np.atleast_1d(widen(got)), np.atleast_1d(np.asarray(exact))
    bound = np.broadcast_to(bound, exact.shape)
    assert got.shape == exact.shape, f"{what}: shape {got.shape}, not {exact.shape}"
    with np.errstate(all="ignore"):
        wrong = ~np.where(
            np.isfinite(exact), np.abs(got - exact) <= bound, (got == exact) | np.isnan(got) & np.isnan(exact)
        )
    if wrong.any():
        with np.errstate(all="ignore"):
            excess = np.where(np.isfinite(got - exact), np.abs(got - exact) / bound, Wide(np.inf))
        at = np.unravel_index(np.where(wrong, excess, -1).argmax(), exact.shape)
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} wrong; worst at {tuple(int(i) for i in at)}: got {got[at]!r}, "
            f"exact {exact[at]!r}, off by {float(excess[at]):.3g} times the bound {float(bound[at]):.3g}"
        )


def check_value(got: Any, want: Answer, dtype: np.dtype[Any], reduction: str) -> None:
    if reduction == "none":
        assert isinstance(got, np.ndarray)
        assert got.dtype == loss_dtype(dtype)
        assert got.dtype.isnative
    else:
        assert type(got) is float
    close(got, want.value, tolerances.values(want, dtype, reduction), f"loss ({reduction})")


def check_grad(got: Array, want: Answer, dtype: np.dtype[Any], *, rows: Any = slice(None)) -> None:
    """The gradient; its own dtype may be that of `out`."""
    scale = np.abs(want.scale * want.grad_output)[rows, None]
    with np.errstate(all="ignore"):
        bound = tolerances.gradients(want.rows, dtype)[rows] * scale
    exact = want.rows_of(want.grad)[rows]
    close(want.rows_of(got)[rows], exact, tolerances.stored(bound, exact, got.dtype), "gradient")


def agree(engine: Engine, logits: Any, target: Any, *, num_threads: int | None = None, **options: Any) -> Answer:
    """Loss, and loss with gradient, as the oracle has them; bits equal; dtypes right; inputs untouched."""
    parts = target if isinstance(target, tuple) else (target,)
    arrays = [a for a in [logits, *parts, *options.values()] if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    dtype = logits.dtype if isinstance(logits, np.ndarray) else np.dtype(np.float64)
    want = answer(logits, target, options)
    reduction = options.get("reduction", "mean")
    forward = {name: value for name, value in options.items() if name != "grad_output"}
    loss = engine.cross_entropy(logits, target, num_threads=num_threads, **forward)
    both = engine.cross_entropy_with_grad(logits, target, num_threads=num_threads, **options)
    assert [a.tobytes() for a in arrays] == before, "clause 14: an input was modified"
    check_value(loss, want, dtype, reduction)
    assert same_bits(loss, both.loss), "clause 12: the loss differs with and without the gradient"
    assert both.grad.dtype == dtype.newbyteorder("=")
    assert both.grad.shape == np.shape(logits)
    check_grad(both.grad, want, dtype)
    return want


def same_bits(a: Any, b: Any) -> bool:
    """Equal bits, NaN's own aside: which NaN a row gets is not promised."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    nan = np.isnan(a)
    same = np.array_equal(nan, np.isnan(b))
    return same and np.where(nan, 0, a).astype(a.dtype).tobytes() == np.where(nan, 0, b).astype(b.dtype).tobytes()


def total(values: npt.ArrayLike) -> float:
    return math.fsum(np.asarray(values, dtype=np.float64).ravel().tolist())
