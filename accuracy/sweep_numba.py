"""The largest error of the Numba backend's functions: the same sweep as sweep.c, in Python.

float32: every so manieth number of the whole range, against NumPy's functions in float64. float64: a sample, half of it
even among the numbers and half even on the line, against longdouble, and what lies beside the worst that was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types

from fastce._backends._numba_lanes import Memory, State, Stream, Value, loop, traced
from fastce._backends._numba_math import Cap, exponential, log, log1p, power

Array = npt.NDArray[Any]

CHUNK = 1 << 20
SAMPLE = 1 << 24
SWEPT_EXPONENT = 2.3
"""As in sweep.h."""
TINY = {"float32": 2.0**-126, "float64": 2.0**-1022}


class Swept(NamedTuple):
    """A function: what it is in NumPy, and its arguments by dtype, above the one number and up to the other."""

    write: Callable[[Value], Value]
    exact: Callable[[Array], Array]
    float32: tuple[float, float] | None
    float64: tuple[float, float]


def _cap(x: Value) -> Cap:
    """A softcap of 1."""
    one = x.like(1.0)
    return Cap((one, x.like(TINY["float32" if x.real == "f4" else "float64"])), one, one, x.like(4.0))


def _tanh(x: Value) -> Value:
    return _cap(x).apply(x)[0]


def _sech_squared(x: Value) -> Value:
    return _cap(x).apply(x)[1]


def _power(x: Value) -> Value:
    return power(x, x.like(SWEPT_EXPONENT))


FUNCTIONS = {
    "exp": Swept(exponential, np.exp, (-np.inf, 88.0), (-np.inf, 709.0)),
    "log1p": Swept(log1p, np.log1p, (-1.0, 1e30), (-1.0, 1e30)),
    "log": Swept(log, np.log, (0.0, float(np.finfo(np.float32).max)), (0.0, float(np.finfo(np.float64).max))),
    "tanh": Swept(_tanh, np.tanh, (0.0, float(np.finfo(np.float32).max)), (0.0, float(np.finfo(np.float64).max))),
    "sech_squared": Swept(_sech_squared, lambda x: 1 / np.cosh(x) ** 2, (0.0, 1e30), (0.0, 1e30)),
    "power": Swept(_power, lambda x: x**SWEPT_EXPONENT, None, (2.0**-1022, 1.0)),
}

LOST_BELOW = {"exp": 1.0, "sech_squared": 8.0, "power": 1.0}
"""Results above 0 that may be lost, in smallest normal numbers."""


def dtypes(name: str) -> tuple[str, ...]:
    """Return those that a function is compiled for."""
    return tuple(dtype for dtype in TINY if getattr(FUNCTIONS[name], dtype) is not None)


class Worst(NamedTuple):
    error: float
    argument: float
    value: float


def sweep(name: str, dtype: str, every: int) -> tuple[Worst, int]:
    """Return the worst that was found, and how many numbers were tried."""
    replace = _compiled(name, dtype)
    worst, tried = Worst(-1.0, 0.0, 0.0), 0

    def look(x: Array) -> None:
        nonlocal worst, tried
        lowest, highest = getattr(FUNCTIONS[name], dtype)
        x = x[(x > lowest) & (x <= highest)]
        if not len(x):
            return
        got = np.resize(x, -(-len(x) // 64) * 64)
        replace(got.ctypes.data, len(got))
        error = _errors(name, dtype, x, got[: len(x)])
        at = int(error.argmax())
        tried += len(x)
        if error[at] > worst.error:
            worst = Worst(float(error[at]), float(x[at]), float(got[at]))

    for x in _in_order(every) if dtype == "float32" else _sample(name, SAMPLE // every):
        look(x)
    rng = np.random.default_rng(0)
    for _ in range(64):  # beside the worst there are worse
        bits = np.array(worst.argument, dtype).view(_integer(dtype)).astype(np.int64)
        distance = (2.0 ** rng.uniform(0, 46 if dtype == "float64" else 17, 1 << 12)).astype(np.int64)
        look((bits + distance * rng.choice([-1, 1], len(distance))).astype(_integer(dtype)).view(dtype))
    return worst, tried


def _integer(dtype: str) -> Any:
    return np.uint32 if dtype == "float32" else np.uint64


def _in_order(every: int) -> Iterator[Array]:
    for first in range(0, 1 << 32, every * CHUNK):
        yield np.arange(first, min(first + every * CHUNK, 1 << 32), every, dtype=np.uint32).view(np.float32)


def _sample(name: str, count: int) -> Iterator[Array]:
    rng = np.random.default_rng(0)
    even = {"exp": 709.0, "tanh": 20.0, "sech_squared": 360.0}.get(name, 2.0)
    for _ in range(0, count, CHUNK):
        yield rng.integers(0, 1 << 64, min(count, CHUNK) // 2, np.uint64).view(np.float64)
        yield rng.uniform(-even, even, min(count, CHUNK) // 2)


def _errors(name: str, dtype: str, x: Array, got: Array) -> Array:
    """In ULP of the exact value; infinite where a number is due, unless it may be lost."""
    wide = np.float64 if dtype == "float32" else np.longdouble
    bits, lowest = (23, -126) if dtype == "float32" else (52, -1022)
    with np.errstate(all="ignore"):
        exact = FUNCTIONS[name].exact(x.astype(wide))
        exponent = np.maximum(np.frexp(exact)[1] - 1, lowest)
        off = np.abs(got - exact)
        error = np.ldexp(off, bits - exponent).astype(np.float64)
        if name in LOST_BELOW:
            lost = LOST_BELOW[name] * TINY[dtype]
            error = np.where(exact < lost, np.where(off <= lost, 0.0, np.inf), error)
        return np.where(np.isfinite(error), error, np.inf)


def _compiled(name: str, dtype: str) -> Any:
    write, real = FUNCTIONS[name].write, "f4" if dtype == "float32" else "f8"

    @traced
    def over_array(x: Memory, count: Value) -> None:
        def some(i: Value) -> State:
            at = x.address + i * x.itemsize
            x.store(at, write(x.load(at)))
            return ()

        loop(0, count, x.lanes, (), some)

    def replace(x: Any, count: Any) -> None:
        over_array(x, count)

    signature = types.void(Stream(real, real), types.int64)
    return numba.njit(replace).get_compile_result(signature).entry_point
