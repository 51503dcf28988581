"""The one table of bad inputs: what is given, what is raised, what the message says. A new way to go wrong is a row.

test_bad_inputs.py runs every row on every backend; the tests of the command line run those that can be files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ANY, GRADIENT, FILES = "any function", "gradients only", "any function, and files"


@dataclass(frozen=True)
class Bad:
    """One bad call."""

    name: str
    arguments: Callable[[], dict[str, Any]]
    """Makes the arguments that differ from `good`."""
    error: type[Exception]
    message: str
    """A regular expression the message contains."""
    where: str = ANY
    """ANY; GRADIENT: only cross_entropy_with_grad has the argument; FILES: ANY, and logits, target and weight, which
    alone differ from `good`, can be .npy files."""


def good() -> dict[str, Any]:
    """A call that is right: two rows of three classes."""
    return {"logits": np.arange(6, dtype=np.float32).reshape(2, 3), "target": np.array([0, 2])}


def _logits(array: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"logits": np.asarray(array)}


def _given(**arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


def _target(value: Any) -> Callable[[], dict[str, Any]]:
    return _given(target=value)


def _weight(value: Any) -> Callable[[], dict[str, Any]]:
    return _given(weight=value)


def _rows(value: Any) -> Callable[[], dict[str, Any]]:
    return _given(sample_weight=value)


def _dtype(kind: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"logits": good()["logits"].astype(kind)}


def _labels(*values: int, kind: Any = np.int64) -> Callable[[], dict[str, Any]]:
    return lambda: {"target": np.array(values, kind)}


def _dense(at: tuple[int, int], value: float, kind: Any = np.float64) -> Callable[[], dict[str, Any]]:
    def arguments() -> dict[str, Any]:
        target = np.full((2, 3), 0.25, kind)
        target[at] = value
        return {"target": target}

    return arguments


def _read_only() -> dict[str, Any]:
    out = np.zeros((2, 3), np.float32)
    out.flags.writeable = False
    return {"out": out}


def _shifted() -> dict[str, Any]:
    buffer = np.zeros(7, np.float32)
    return {"logits": buffer[:6].reshape(2, 3), "out": buffer[1:].reshape(2, 3)}


def _reversed() -> dict[str, Any]:
    logits = good()["logits"]
    return {"logits": logits, "out": logits[::-1]}


def _transposed() -> dict[str, Any]:
    logits = np.zeros((3, 3), np.float32)
    return {"logits": logits, "target": np.zeros(3, int), "out": logits.T}


def _other_dtype() -> dict[str, Any]:
    logits = np.zeros((2, 3), np.float32)
    return {"logits": logits, "out": logits.view(np.float16).reshape(2, 6)[:, :3]}


def _over_target() -> dict[str, Any]:
    target = np.full((2, 3), 0.5, np.float32)
    return {"target": target, "out": target}


def _over_labels() -> dict[str, Any]:
    buffer = np.zeros(6, np.float32)
    return {"target": buffer.view(np.int32)[:2], "out": buffer.reshape(2, 3)}


def _over_sample_weight() -> dict[str, Any]:
    buffer = np.ones(6, np.float32)
    return {"sample_weight": buffer[2:4], "out": buffer.reshape(2, 3)}


def _over_itself() -> dict[str, Any]:
    return {"out": np.lib.stride_tricks.as_strided(np.zeros(3, np.float32), (2, 3), (0, 4))}


def _lists(indices: Any, probabilities: Any, **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"target": (np.asarray(indices), np.asarray(probabilities)), **more}


def _over_probabilities() -> dict[str, Any]:
    out = np.full((2, 3), 0.25, np.float32)
    return {"target": (np.zeros((2, 2), int), out[:, 1:]), "out": out}


NAN, INF = math.nan, math.inf
PAIRS, HALVES = [[0, 1], [1, 2]], [[0.5, 0.5], [0.5, 0.25]]
ACCEPTED = "float16, bfloat16, float32 or float64"

LOGITS = [
    *(
        Bad(f"logits of {np.dtype(k)}", _dtype(k), TypeError, f"logits: .*{ACCEPTED}.*{np.dtype(k)}", FILES)
        for k in (np.int32, np.int64, np.uint8, np.bool_, np.complex64, np.complex128)
    ),
    Bad("logits of longdouble", _dtype(np.longdouble), TypeError, f"logits: .*{ACCEPTED}.*float128|longdouble"),
    Bad("logits of objects", _dtype(object), TypeError, f"logits: .*{ACCEPTED}.*object"),
    Bad("logits of strings", _logits([["a", "b", "c"]] * 2), TypeError, f"logits: .*{ACCEPTED}.*<U1", FILES),
    Bad("logits of dates", _logits(np.zeros((2, 3), "M8[s]")), TypeError, f"logits: .*{ACCEPTED}.*datetime64"),
    Bad("structured logits", _logits(np.zeros((2, 3), "f4,f4")), TypeError, f"logits: .*{ACCEPTED}.*f0"),
    Bad("logits of float8", _dtype(ml_dtypes.float8_e4m3fn), TypeError, f"logits: .*{ACCEPTED}.*float8_e4m3fn"),
    Bad("np.matrix", lambda: {"logits": np.zeros((2, 3)).view(np.matrix)}, TypeError, "logits: .*matrix"),
    Bad("masked logits", lambda: {"logits": np.ma.zeros((2, 3))}, TypeError, "logits: .*MaskedArray"),
    Bad("no logits", _given(logits=None), TypeError, "logits: "),
    Bad("ragged logits", _given(logits=[[1.0, 2.0], [3.0]]), ValueError, "logits: "),
    Bad("a number as logits", _logits(np.float32(1)), ValueError, "logits: .*axis", FILES),
    Bad("no classes", _given(logits=np.zeros((2, 0), np.float32)), ValueError, r"logits: .*class.*\(2, 0\)", FILES),
]

SPARSE = [
    Bad("floating indices", _lists(HALVES, HALVES), TypeError, "target: .*integer indices.*float64"),
    Bad("probabilities of complex", _lists(PAIRS, 1j * np.ones((2, 2))), TypeError, "target: .*prob.*complex128"),
    Bad("probabilities for others", _lists(PAIRS, [[0.5], [0.5]]), ValueError, r"target: .*\(2, 2\) and \(2, 1\)"),
    Bad("lists of too many rows", _lists([[0]] * 3, [[1.0]] * 3), ValueError, r"target: .*\(2, k\).*\(3, 1\)"),
    Bad("flat probabilities", _lists(PAIRS, [0.5, 0.5]), ValueError, r"target: .*\(2, k\).*\(2, 2\) and \(2,\)"),
    Bad("class 3 listed", _lists([[0, 3], [1, 2]], HALVES), IndexError, r"class 3 at index \(0, 1\) .* 3 classes"),
    Bad("class -2 listed", _lists([[0, 1], [-2, 2]], HALVES), IndexError, r"class -2 at index \(1, 0\)"),
    Bad("class of uint64", _lists(np.array(PAIRS, np.uint64) - np.uint64(1), HALVES), IndexError, r"class 18446\d* at"),
    Bad("negative probability", _lists(PAIRS, [[1, 1], [1, -1]]), ValueError, r"-1.0 at index \(1, 1\) of prob"),
    Bad("probability of NaN", _lists(PAIRS, [[NAN, 1], [1, 1]]), ValueError, r"nan at index \(0, 0\) of prob"),
    Bad("infinite probability", _lists(PAIRS, [[1, INF], [1, 1]]), ValueError, r"inf at index \(0, 1\) of prob"),
    Bad(
        "nothing missing", _lists(PAIRS, [[0.5, 0.5], [1, 0.5]], spread_missing=True), ValueError, r"1.5 at index \(1,"
    ),
    Bad("missing from labels", _given(spread_missing=True), ValueError, "spread_missing: .*sparse"),
    Bad(
        "spread_missing of 1", _lists(PAIRS, HALVES, spread_missing=1), TypeError, "spread_missing: .*True or False.*1"
    ),
    Bad("out over probabilities", _over_probabilities, ValueError, "out: overlaps target", GRADIENT),
    Bad("three arrays", _given(target=(np.zeros((2, 1), int),) * 3), ValueError, r"target: .*\(3, 2, 1\)"),
]

AXIS = [
    Bad("axis too large", _given(axis=2), np.exceptions.AxisError, "axis.* 2 is out of bounds"),
    Bad("axis too small", _given(axis=-3), np.exceptions.AxisError, "axis.* -3 is out of bounds"),
    Bad("axis of float", _given(axis=1.0), TypeError, "axis: .*integer.*1.0"),
    Bad("no axis", _given(axis=None), TypeError, "axis: .*integer.*None"),
    Bad("axis of bool", _given(axis=True), TypeError, "axis: .*integer.*True"),
]

TARGET = [
    Bad("labels of bool", _labels(0, 1, kind=bool), TypeError, "target: .*integer.*bool", FILES),
    Bad("labels of float", _labels(0, 1, kind=np.float32), TypeError, "target: .*integer.*float32", FILES),
    Bad("labels of objects", _labels(0, 1, kind=object), TypeError, "target: .*integer.*object"),
    Bad("labels of complex", _labels(0, 1, kind=complex), TypeError, "target: .*integer.*complex128", FILES),
    Bad("too few labels", _labels(0), ValueError, r"target: .*\(2, 3\).*\(2,\).*\(1,\)", FILES),
    Bad("too many labels", _labels(0, 1, 2), ValueError, r"target: .*\(2, 3\).*\(2,\).*\(3,\)", FILES),
    Bad("a label for two rows", _target(1), ValueError, r"target: .*\(2, 3\).*\(\)"),
    Bad("labels in columns", _target(np.zeros((2, 1), int)), ValueError, r"\(2, 3\).*\(2, 1\)", FILES),
    Bad("labels of three axes", _target(np.zeros((2, 1, 1), int)), ValueError, r"\(2, 3\).*\(2, 1, 1\)", FILES),
    Bad("dense target transposed", _target(np.ones((3, 2))), ValueError, r"\(2, 3\).*\(3, 2\)", FILES),
    Bad("dense target of complex", _target(np.ones((2, 3), complex)), TypeError, "target: .*complex128", FILES),
    Bad("dense target of longdouble", _target(np.ones((2, 3), np.longdouble)), TypeError, "target: .*float128|long"),
    Bad("dense target of objects", _target(np.ones((2, 3), object)), TypeError, "target: .*object"),
    Bad("no target", _target(None), TypeError, "target: "),
    Bad("masked labels", lambda: {"target": np.ma.zeros(2, int)}, TypeError, "target: .*MaskedArray"),
    Bad("label = C", _labels(0, 3), IndexError, r"label 3 at index \(1,\) .* 3 classes", FILES),
    Bad("label -1", _labels(-1, 0), IndexError, r"label -1 at index \(0,\) .* 3 classes", FILES),
    Bad("two bad labels", _labels(7, -5), IndexError, r"label 7 at index \(0,\) .* 3 classes", FILES),
    Bad("uint8 156 is not -100", _labels(0, 156, kind=np.uint8), IndexError, r"label 156 at index \(1,\)", FILES),
    Bad(
        "label 2**64 - 1",
        _labels(0, 2**64 - 1, kind=np.uint64),
        IndexError,
        r"label 18446744073709551615 at index \(1,\) .* 3 classes",
        FILES,
    ),
    Bad("label 2**32", _labels(2**32, 0), IndexError, r"label 4294967296 at index \(0,\)", FILES),
    Bad("label -2**63", _labels(0, -(2**63)), IndexError, r"label -9223372036854775808 at index \(1,\)", FILES),
    Bad(
        "a bad label of weight 0",
        _given(target=np.array([0, 9]), sample_weight=np.array([1.0, 0.0])),
        IndexError,
        r"label 9 at index \(1,\)",
    ),
    Bad(
        "label -100 where another is ignored",
        _given(target=np.array([-100, 0]), ignore_index=5),
        IndexError,
        "label -100",
    ),
    Bad("negative dense target", _dense((1, 2), -0.5), ValueError, r"target: .*-0\.5 at index \(1, 2\)", FILES),
    Bad("NaN in a dense target", _dense((0, 1), NAN), ValueError, r"target: .*nan at index \(0, 1\)", FILES),
    Bad("dense target over float32", _dense((1, 0), 1e300), ValueError, r"target: .*1e\+300 at index \(1, 0\)", FILES),
    Bad(
        "inf in a dense target", _dense((1, 0), INF, np.float32), ValueError, r"target: .*inf at index \(1, 0\)", FILES
    ),
    Bad(
        "negative integer dense target",
        _dense((1, 1), -1, np.int8),
        ValueError,
        r"target: .*-1.* at index \(1, 1\)",
        FILES,
    ),
]

WEIGHTS = [
    Bad("too few class weights", _weight(np.ones(2)), ValueError, r"weight: .*\(3,\).*\(2,\)", FILES),
    Bad("class weights of two axes", _weight(np.ones((1, 3))), ValueError, r"weight: .*\(3,\).*\(1, 3\)", FILES),
    Bad("a number as class weights", _weight(1.0), ValueError, r"weight: .*\(3,\).*\(\)"),
    Bad("negative class weight", _weight(np.array([1, -2.0, 1])), ValueError, r"weight: .*-2\.0 at .*1", FILES),
    Bad("NaN class weight", _weight(np.array([1, 1, NAN])), ValueError, r"weight: .*nan at .*2", FILES),
    Bad("infinite class weight", _weight(np.array([INF, 1, 1])), ValueError, r"weight: .*inf at .*0", FILES),
    Bad("class weights of complex", _weight(np.ones(3, complex)), TypeError, "weight: .*complex128", FILES),
    Bad("class weights of objects", _weight(np.ones(3, object)), TypeError, "weight: .*object"),
    Bad("too many sample weights", _rows(np.ones(3)), ValueError, r"sample_weight: .*\(2,\).*\(3,\)"),
    Bad("a number as sample weights", _rows(2.0), ValueError, r"sample_weight: .*\(2,\).*\(\)"),
    Bad("negative sample weight", _rows(np.array([1, -1.5])), ValueError, r"sample_weight: .*-1\.5 at .*\(1,\)"),
    Bad("NaN sample weight", _rows(np.array([NAN, 1])), ValueError, r"sample_weight: .*nan at .*\(0,\)"),
    Bad("infinite sample weight", _rows(np.array([1, INF])), ValueError, r"sample_weight: .*inf at .*\(1,\)"),
    Bad("negative integer sample weight", _rows(np.array([1, -2])), ValueError, r"sample_weight: .*-2 at .*\(1,\)"),
    Bad(
        "negative sample weight of an ignored row",
        _given(target=np.array([0, -100]), sample_weight=np.array([1, -1.0])),
        ValueError,
        r"sample_weight: .*-1\.0 at .*\(1,\)",
    ),
    Bad("sample weights of complex", _rows(np.ones(2, complex)), TypeError, "sample_weight: .*complex128"),
]

OPTIONS = [
    *(
        Bad(f"label_smoothing={v}", _given(label_smoothing=v), ValueError, rf"label_smoothing: .*\[0, 1\].*{v}")
        for v in (-0.1, 1.1, NAN, INF)
    ),
    Bad("label_smoothing of str", _given(label_smoothing="0.1"), TypeError, "label_smoothing: .*'0.1'"),
    *(Bad(f"z_loss={v}", _given(z_loss=v), ValueError, f"z_loss: .*>= 0.*{v}") for v in (-1e-4, NAN, INF)),
    *(
        Bad(f"{name}={v}", _given(**{name: v}), ValueError, f"{name}: .*finite number > 0.*{v}")
        for name in ("temperature", "softcap")
        for v in (0, -1.0, NAN, INF)
    ),
    Bad("temperature of str", _given(temperature="2"), TypeError, "temperature: .*'2'"),
    Bad("softcap of bool", _given(softcap=True), TypeError, "softcap: .*True"),
    Bad("z_loss=None", _given(z_loss=None), TypeError, "z_loss: .*None"),
    *(
        Bad(f"reduction={v}", _given(reduction=v), ValueError, f"reduction: .*'mean', 'sum' or 'none'.*{v}")
        for v in ("avg", None)
    ),
    *(
        Bad(f"denominator={v}", _given(denominator=v), ValueError, f"denominator: .*> 0.*{v}")
        for v in (0, -1.0, NAN, INF, -INF)
    ),
    Bad("denominator of str", _given(denominator="2"), TypeError, "denominator: .*'2'"),
    *(
        Bad(f"denominator with {r}", _given(denominator=2, reduction=r), ValueError, f"denominator: .*mean.*{r}")
        for r in ("sum", "none")
    ),
    *(Bad(f"base={v}", _given(base=v), ValueError, f"base: .*> 1.*{v}") for v in (1, 0, 0.5, -2, NAN, INF)),
    Bad("base of str", _given(base="2"), TypeError, "base: .*'2'"),
    Bad("ignore_index of float", _given(ignore_index=-100.0), TypeError, "ignore_index: .*integer.*-100.0"),
    Bad("ignore_index=None", _given(ignore_index=None), TypeError, "ignore_index: .*integer.*None"),
    Bad("num_threads=0", _given(num_threads=0), ValueError, "num_threads: .*>= 1.*0"),
    Bad("num_threads=-1", _given(num_threads=-1), ValueError, "num_threads: .*>= 1.*-1"),
    Bad("num_threads of bool", _given(num_threads=True), TypeError, "num_threads: .*integer.*True"),
    Bad("num_threads of float", _given(num_threads=2.0), TypeError, "num_threads: .*integer.*2.0"),
    Bad("unknown backend", _given(backend="fortran"), ValueError, "backend: .*auto, cython, numba, numpy.*'fortran'"),
    Bad("backend=None", _given(backend=None), ValueError, "backend: .*auto, cython, numba, numpy.*None"),
]

GRADIENTS = [
    Bad(
        "grad_output of a mean is a vector",
        _given(grad_output=np.ones(2)),
        ValueError,
        r"grad_output: .*scalar.*\(2,\)",
        GRADIENT,
    ),
    Bad(
        "grad_output of none is a scalar",
        _given(grad_output=2.0, reduction="none"),
        ValueError,
        r"grad_output: .*\(2,\).*\(\)",
        GRADIENT,
    ),
    Bad(
        "grad_output too long",
        _given(grad_output=np.ones(3), reduction="none"),
        ValueError,
        r"grad_output: .*\(2,\).*\(3,\)",
        GRADIENT,
    ),
    Bad("grad_output of complex", _given(grad_output=1j), TypeError, "grad_output: .*complex", GRADIENT),
    Bad(
        "out of another shape",
        _given(out=np.zeros((3, 2), np.float32)),
        ValueError,
        r"out: .*\(2, 3\).*\(3, 2\)",
        GRADIENT,
    ),
    Bad("out of integers", _given(out=np.zeros((2, 3), int)), TypeError, f"out: .*{ACCEPTED}.*int64", GRADIENT),
    Bad("out of complex", _given(out=np.zeros((2, 3), complex)), TypeError, f"out: .*{ACCEPTED}.*complex128", GRADIENT),
    Bad("out is a list", _given(out=[[0.0] * 3] * 2), TypeError, "out: .*list", GRADIENT),
    Bad("masked out", lambda: {"out": np.ma.zeros((2, 3))}, TypeError, "out: .*MaskedArray", GRADIENT),
    Bad("read-only out", _read_only, ValueError, "out: .*read-only", GRADIENT),
    Bad("out one element further", _shifted, ValueError, "out: .*overlaps logits", GRADIENT),
    Bad("out is logits backwards", _reversed, ValueError, "out: .*overlaps logits", GRADIENT),
    Bad("out is logits transposed", _transposed, ValueError, "out: .*overlaps logits", GRADIENT),
    Bad("out is logits as another dtype", _other_dtype, ValueError, "out: .*overlaps logits", GRADIENT),
    Bad("out is the dense target", _over_target, ValueError, "out: .*overlaps target", GRADIENT),
    Bad("out overlaps the labels", _over_labels, ValueError, "out: .*overlaps target", GRADIENT),
    Bad("out overlaps sample weights", _over_sample_weight, ValueError, "out: .*overlaps sample_weight", GRADIENT),
    Bad("out overlaps itself", _over_itself, ValueError, "out: .*share", GRADIENT),
]

BAD_INPUTS = [*LOGITS, *AXIS, *TARGET, *SPARSE, *WEIGHTS, *OPTIONS, *GRADIENTS]
