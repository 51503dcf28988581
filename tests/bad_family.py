"""The table of bad calls of the family: what is given, what is raised, what the message says, and for which functions.

A row changes a good call of every function that it names; test_family_bad_inputs.py runs it on every engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NAN, INF = math.nan, math.inf
ACCEPTED = "float16, bfloat16, float32 or float64"

LOGITS = ("binary_cross_entropy_with_logits", "binary_focal_loss_with_logits")
BINARY = (*LOGITS, "binary_cross_entropy")
ELEMENTS = (*BINARY, "mse_loss")
ROWS = ("nll_loss", "categorical_cross_entropy")
LOSSES = (*ELEMENTS, *ROWS)
PAIRS = ("kl_divergence", "js_divergence")
MEASURES = ("entropy", *PAIRS)
SHARES = ("binary_cross_entropy_with_logits", "binary_cross_entropy")
FIRST = {
    **dict.fromkeys(LOGITS, "logits"),
    "binary_cross_entropy": "probs",
    "mse_loss": "prediction",
    "nll_loss": "log_probs",
    "categorical_cross_entropy": "probs",
    "entropy": "p",
    "kl_divergence": "q",
    "js_divergence": "q",
    "log_loss": "y_pred",
}
"""What each function calls the argument whose dtype is that of the arithmetic."""


def good(name: str) -> dict[str, Any]:
    """A call that is right: two rows of three."""
    first = np.array([[0.25, 0.5, 0.125], [1, 0.25, 0.5]], np.float32)
    if name in MEASURES:
        return {FIRST[name]: first} | ({"p": first[::-1].copy()} if name in PAIRS else {})
    if name == "log_loss":
        return {"y_true": np.array([2, 1]), "y_pred": first, "labels": np.array([0, 1, 2])}
    target = np.array([0, 2]) if name in ROWS else np.array([[0, 1, 1], [1, 0, 0]])
    return {FIRST[name]: first, "target": target}


@dataclass(frozen=True)
class Bad:
    """One bad call."""

    name: str
    functions: tuple[str, ...]
    arguments: Callable[[str], dict[str, Any]]
    """Makes the arguments that differ from `good`, from the name of the function's first argument."""
    error: type[Exception]
    message: str
    """A regular expression the message contains; {} is the name of the first argument."""
    gradient: bool = False
    """Whether only the functions with a gradient have the argument."""


def _first(value: Any) -> Callable[[str], dict[str, Any]]:
    return lambda name: {name: value}


def _given(**arguments: Any) -> Callable[[str], dict[str, Any]]:
    return lambda name: {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in arguments.items()}


def _target(at: tuple[int, int], value: float, kind: Any = np.float64, key: str = "target") -> Callable[[str], Any]:
    def arguments(name: str) -> dict[str, Any]:
        target = np.full((2, 3), 0.25).astype(kind)
        target[at] = value
        return {key: target}

    return arguments


def _weights(key: str, value: float, kind: Any = np.float64) -> Callable[[str], dict[str, Any]]:
    return _given(**{key: np.array([1, value, 1]).astype(kind)})


def _read_only(name: str) -> dict[str, Any]:
    out = np.zeros((2, 3), np.float32)
    out.flags.writeable = False
    return {"out": out}


def _shifted(name: str) -> dict[str, Any]:
    buffer = np.full(7, 0.5, np.float32)
    return {name: buffer[:6].reshape(2, 3), "out": buffer[1:].reshape(2, 3)}


def _over(key: str, value: Any) -> Callable[[str], dict[str, Any]]:
    def arguments(name: str) -> dict[str, Any]:
        shared = np.array(value, np.float32)
        return {key: shared, "out": shared}

    return arguments


def _over_itself(name: str) -> dict[str, Any]:
    return {"out": np.lib.stride_tricks.as_strided(np.zeros(3, np.float32), (2, 3), (0, 4))}


EVERYTHING = (*LOSSES, *MEASURES, "log_loss")

VALUES = [
    *(
        Bad(f"{np.dtype(k)}", EVERYTHING, _first(np.ones((2, 3), k)), TypeError, f"{{}}: .*{ACCEPTED}.*{np.dtype(k)}")
        for k in (np.int32, np.bool_, np.complex64, object)
    ),
    Bad("longdouble", EVERYTHING, _first(np.ones((2, 3), np.longdouble)), TypeError, f"{{}}: .*{ACCEPTED}"),
    Bad("masked", EVERYTHING, _first(np.ma.ones((2, 3))), TypeError, "{}: .*MaskedArray"),
    Bad("none", EVERYTHING, _first(None), TypeError, "{}: "),
    Bad("ragged", EVERYTHING, _first([[1.0, 2.0], [3.0]]), ValueError, "{}: "),
    Bad("a number", (*ROWS, *MEASURES), _first(np.float32(1)), ValueError, "{}: .*class axis"),
    Bad("no classes", (*ROWS, "entropy"), _first(np.zeros((2, 0), np.float32)), ValueError, r"{}: .*class.*\(2, 0\)"),
    Bad("axis too large", (*ROWS, *MEASURES), _given(axis=2), np.exceptions.AxisError, "axis.* 2 is out of bounds"),
    Bad("axis of float", (*ROWS, *MEASURES), _given(axis=1.0), TypeError, "axis: .*integer.*1.0"),
]

TARGETS = [
    Bad(
        "target of another shape",
        ELEMENTS,
        _given(target=np.ones((3, 2), int)),
        ValueError,
        r"target: .*{}.*\(2, 3\).*\(3, 2\)",
    ),
    Bad("target that broadcasts", ELEMENTS, _given(target=np.ones(3, int)), ValueError, r"target: .*\(2, 3\).*\(3,\)"),
    Bad("target of complex", ELEMENTS, _given(target=np.ones((2, 3), complex)), TypeError, "target: .*complex128"),
    Bad("target of objects", LOSSES, _given(target=np.ones((2, 3), object)), TypeError, "target: .*object"),
    Bad("no target", LOSSES, _given(target=None), TypeError, "target: "),
    Bad("floating labels", LOGITS[1:], _target((0, 0), 1.0), TypeError, "target: .*labels 0 and 1.*float64"),
    Bad("label 2", LOGITS[1:], _target((1, 2), 2, int), ValueError, r"target: .*\[0, 1\].*2.* at index \(1, 2\)"),
    Bad("label -1", LOGITS[1:], _target((0, 1), -1, int), ValueError, r"target: .*\[0, 1\].*-1.* at index \(0, 1\)"),
    *(
        Bad(f"target {v}", SHARES, _target((1, 2), v), ValueError, rf"target: .*\[0, 1\], got {v} at index \(1, 2\)")
        for v in (-0.5, 1.5, NAN, INF)
    ),
    Bad("a half above 1", SHARES, _target((0, 1), 1.0078125, np.float16), ValueError, r"target: .*at index \(0, 1\)"),
    Bad("labels of float", ROWS, _given(target=np.zeros(2)), TypeError, "target: .*integer.*float64"),
    Bad("too many labels", ROWS, _given(target=np.zeros(3, int)), ValueError, r"target: {}.*\(2, 3\).*\(2,\).*\(3,\)"),
    Bad("label = C", ROWS, _given(target=np.array([0, 3])), IndexError, r"label 3 at index \(1,\) .* 3 classes"),
    Bad("two bad labels", ROWS, _given(target=np.array([7, -5])), IndexError, r"label 7 at index \(0,\) .* 3 classes"),
    *(
        Bad(f"dense target {v}", ROWS, _target((1, 2), v), ValueError, rf"target: .*>= 0.* got {v} at index \(1, 2\)")
        for v in (-0.5, NAN, INF)
    ),
    *(
        Bad(f"p = {v}", PAIRS, _target((1, 2), v, key="p"), ValueError, rf"p: .*>= 0.* got {v} at index \(1, 2\)")
        for v in (-0.5, NAN, INF)
    ),
    Bad("entropy of NaN", ("entropy",), _target((1, 2), NAN, key="p"), ValueError, r"p: .*nan at index \(1, 2\)"),
    Bad("p of another shape", PAIRS, _given(p=np.ones((3, 2))), ValueError, r"p and q: .*\(3, 2\).*\(2, 3\)"),
    Bad("p of integers", PAIRS, _given(p=np.ones((2, 3), int)), TypeError, f"p: .*{ACCEPTED}.*int64"),
]

WEIGHTS = [
    *(
        Bad(
            f"{key} {v}",
            functions,
            _weights(key, v),
            ValueError,
            rf"{key}: .*finite numbers >= 0, got {v} at index \(0, 1\)",
        )
        for key, functions in (("weight", ELEMENTS), ("sample_weight", ELEMENTS), ("pos_weight", LOGITS[:1]))
        for v in (-1.5, NAN, INF)
    ),
    *(
        Bad(
            f"{key} broadcast",
            functions,
            _given(**{key: np.ones((3, 1))}),
            ValueError,
            rf"{key}: .*broadcasts.*{{}}, \(2, 3\).*\(3, 1\)",
        )
        for key, functions in (("weight", ELEMENTS), ("sample_weight", ELEMENTS), ("pos_weight", LOGITS[:1]))
    ),
    Bad("weight of complex", ELEMENTS, _given(weight=1j), TypeError, "weight: .*real numbers.*complex"),
    Bad("class weights", ROWS, _given(weight=np.ones(2)), ValueError, r"weight: .*\(3,\).*\(2,\)"),
    Bad("class weight -2", ROWS, _weights("weight", -2.0), ValueError, r"weight: .*-2\.0 at .*1"),
    Bad("sample weights", ROWS, _given(sample_weight=np.ones(3)), ValueError, r"sample_weight: .*\(2,\).*\(3,\)"),
    Bad(
        "sample weight -2",
        ROWS,
        _given(sample_weight=np.array([1, -2.0])),
        ValueError,
        r"sample_weight: .*-2\.0 at .*\(1,\)",
    ),
]

OPTIONS = [
    *(
        Bad(
            f"label_smoothing={v}",
            (*SHARES, *ROWS),
            _given(label_smoothing=v),
            ValueError,
            rf"label_smoothing: .*\[0, 1\].*{v}",
        )
        for v in (-0.1, 1.1, NAN)
    ),
    *(
        Bad(f"eps={v}", ("binary_cross_entropy", ROWS[1]), _given(eps=v), ValueError, rf"eps: .*\[0, 0\.5\].*{v}")
        for v in (-0.1, 0.6, NAN)
    ),
    Bad("eps of str", ("binary_cross_entropy", ROWS[1]), _given(eps="0.1"), TypeError, "eps: .*'0.1'"),
    *(Bad(f"gamma={v}", LOGITS[1:], _given(gamma=v), ValueError, f"gamma: .*>= 0.*{v}") for v in (-1, NAN, INF)),
    Bad("no gamma", LOGITS[1:], _given(gamma=None), TypeError, "gamma: .*None"),
    *(Bad(f"alpha={v}", LOGITS[1:], _given(alpha=v), ValueError, rf"alpha: .*\[0, 1\].*{v}") for v in (-0.5, 1.5, NAN)),
    Bad("three alphas", LOGITS[1:], _given(alpha=[1, 2, 3]), ValueError, r"alpha: .*two classes.*\(3,\)"),
    Bad("alpha -1 of two", LOGITS[1:], _given(alpha=[1.0, -1.0]), ValueError, r"alpha: .*>= 0.*-1\.0"),
    Bad("alpha of str", LOGITS[1:], _given(alpha="a"), TypeError, "alpha: "),
    *(
        Bad(f"reduction={v}", LOSSES, _given(reduction=v), ValueError, f"reduction: .*'mean', 'sum' or 'none'.*{v}")
        for v in ("batchmean", None)
    ),
    Bad("divergence reduction", PAIRS, _given(reduction="avg"), ValueError, "reduction: .*'batchmean'.*'avg'"),
    *(
        Bad(f"denominator={v}", LOSSES, _given(denominator=v), ValueError, f"denominator: .*> 0.*{v}")
        for v in (0, -1.0, NAN, INF)
    ),
    Bad("denominator of a sum", LOSSES, _given(denominator=2, reduction="sum"), ValueError, "denominator: .*mean.*sum"),
    *(
        Bad(f"base={v}", (*BINARY, *ROWS, *MEASURES), _given(base=v), ValueError, f"base: .*> 1.*{v}")
        for v in (1, 0.5, NAN, INF)
    ),
    Bad("ignore_index", ROWS, _given(ignore_index=1.0), TypeError, "ignore_index: .*integer.*1.0"),
    Bad("num_threads=0", EVERYTHING, _given(num_threads=0), ValueError, "num_threads: .*>= 1.*0"),
    Bad("unknown backend", EVERYTHING, _given(backend="fortran"), ValueError, "backend: .*auto, cython.*'fortran'"),
]

GRADIENTS = [
    Bad(
        "grad_output of a mean", LOSSES, _given(grad_output=np.ones((2, 3))), ValueError, "grad_output: .*scalar", True
    ),
    Bad(
        "grad_output that does not broadcast",
        ELEMENTS,
        _given(grad_output=np.ones(2), reduction="none"),
        ValueError,
        r"grad_output: .*broadcasts.*\(2, 3\).*\(2,\)",
        True,
    ),
    Bad(
        "grad_output of rows",
        ROWS,
        _given(grad_output=np.ones(3), reduction="none"),
        ValueError,
        r"grad_output: .*\(2,\).*\(3,\)",
        True,
    ),
    Bad("grad_output of complex", LOSSES, _given(grad_output=1j), TypeError, "grad_output: .*complex", True),
    Bad("out of another shape", LOSSES, _given(out=np.zeros((3, 2))), ValueError, r"out: .*\(2, 3\).*\(3, 2\)", True),
    Bad("out of integers", LOSSES, _given(out=np.zeros((2, 3), int)), TypeError, f"out: .*{ACCEPTED}.*int64", True),
    Bad("out is a list", LOSSES, _given(out=[[0.0] * 3] * 2), TypeError, "out: .*list", True),
    Bad("read-only out", LOSSES, _read_only, ValueError, "out: .*read-only", True),
    Bad("out one element further", LOSSES, _shifted, ValueError, "out: .*overlaps {}", True),
    Bad(
        "out is the target",
        (*SHARES, "mse_loss", *ROWS),
        _over("target", [[0.5] * 3] * 2),
        ValueError,
        "out: .*overlaps target; only {}",
        True,
    ),
    Bad("out is weight", ELEMENTS, _over("weight", [[1] * 3] * 2), ValueError, "out: .*overlaps weight", True),
    Bad("out is pos_weight", LOGITS[:1], _over("pos_weight", [[1] * 3] * 2), ValueError, "out: .*overlaps pos_w", True),
    Bad(
        "out is sample_weight", ELEMENTS, _over("sample_weight", [[1] * 3] * 2), ValueError, "out: .*overlaps sam", True
    ),
    Bad("out overlaps itself", LOSSES, _over_itself, ValueError, "out: .*share", True),
]

LOG_LOSS = [
    Bad("y_pred above 1", ("log_loss",), _target((0, 1), 1.5, np.float32, "y_pred"), ValueError, r"y_pred: .*\[0, 1\]"),
    Bad("y_pred of NaN", ("log_loss",), _target((0, 1), NAN, np.float32, "y_pred"), ValueError, r"y_pred: .*\[0, 1\]"),
    Bad("y_pred of 3 axes", ("log_loss",), _first(np.ones((2, 1, 3))), ValueError, r"y_pred: .*\(2, 1, 3\)"),
    Bad("too few y_true", ("log_loss",), _given(y_true=[1]), ValueError, r"y_true: .*\(2,\).*\(1,\)"),
    Bad("unknown label", ("log_loss",), _given(y_true=[1, 5]), ValueError, r"y_true: 5 at index \(1,\)"),
    Bad("too few labels", ("log_loss",), _given(labels=[0, 1], y_true=[0, 1]), ValueError, "3 classes.*2 in labels"),
    Bad("unseen label", ("log_loss",), _given(labels=None), ValueError, "3 classes.*2 in y_true.*labels="),
    Bad("labels of another kind", ("log_loss",), _given(labels=["a", "b", "c"]), ValueError, "y_true: 2 at index"),
    Bad("sample weights", ("log_loss",), _given(sample_weight=np.ones(3)), ValueError, r"sample_weight: .*\(3,\)"),
    Bad("sample weight -2", ("log_loss",), _given(sample_weight=[1, -2.0]), ValueError, r"sample_weight: .*-2\.0"),
    Bad("normalize=1", ("log_loss",), _given(normalize=1), TypeError, "normalize: .*True or False.*1"),
    Bad("from_logits=None", ("log_loss",), _given(from_logits=None), TypeError, "from_logits: .*True or False.*None"),
]  # fmt: skip

BAD = [*VALUES, *TARGETS, *WEIGHTS, *OPTIONS, *GRADIENTS, *LOG_LOSS]
CALLS = [(bad, name) for bad in BAD for name in bad.functions]
