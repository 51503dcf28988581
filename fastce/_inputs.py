"""The only validation: from a user's arguments to a Request that holds a Problem.

Nothing behind this module checks an argument again. What only a visit of the rows can tell (labels, sample
weights, dense targets) comes back from the backend as its first bad row, and `bad_row` turns it into the error.
Arrays are viewed, never copied, whatever their layout; only the two vectors over classes are built here.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastce import _dtypes
from fastce._problem import NEED_LABELS, OF_PARTIALS, Array, Kind, Output, Problem, Statistics

REDUCTIONS = ("mean", "sum", "none")
DIVERGENCE_REDUCTIONS = ("none", "sum", "mean", "batchmean")

NAMES_OF_VALUES = {
    Kind.LOGITS: "logits",
    Kind.LOG_PROBABILITIES: "log_probs",
    Kind.PROBABILITIES: "probs",
    Kind.BINARY_LOGITS: "logits",
    Kind.BINARY_PROBABILITIES: "probs",
    Kind.SQUARES: "prediction",
}
"""What the public functions call the first argument."""

_CPU_DEVICES = (1, 3, 11, 13)
"""DLPack's device types whose memory the host reads: CPU, CUDA pinned, ROCm pinned, CUDA managed."""

_OVERLAP_WORK = 10_000
"""Steps that may be spent on proving that two interleaved arrays share no element."""


class Request(NamedTuple):
    """A validated call."""

    problem: Problem
    axis: int
    """The class axis of the user's arrays, not negative."""
    reduction: str = "none"
    denominator: float | None = None
    unit: float = 1.0
    """What a nat is divided by: ln(base)."""
    grad_output: float = 1.0
    """The scalar one; one for each row is in the problem."""
    result: Any = None
    """The array to hand back, laid out as the user's: the gradient or the probabilities."""
    target_name: str = "target"
    """What the caller calls the dense target."""
    mean_has_class_weight: bool = True
    """Whether the weight of a label's class is part of a mean's denominator."""


def loss_request(
    logits: Any,
    target: Any,
    *,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    denominator: Any,
    base: Any,
    z_loss: Any = 0.0,
    temperature: Any = None,
    softcap: Any = None,
    spread_missing: Any = False,
    kind: Kind = Kind.LOGITS,
    eps: Any = 0.0,
    gradient: bool = False,
    grad_output: Any = None,
    out: Any = None,
) -> Request:
    """Validate a call of cross_entropy, by ``kind`` of its likes for probabilities, with ``gradient`` of a twin."""
    name = NAMES_OF_VALUES[kind]
    given, x, axis = _values(name, logits, axis)
    positions = x.shape[:-1]
    n_classes = x.shape[-1]
    smoothing = _number("label_smoothing", label_smoothing, 0.0, 1.0, "a number in [0, 1]")
    z = _number("z_loss", z_loss, 0.0, math.inf, "a finite number >= 0")
    denominator, unit = scales(reduction, denominator, base)

    sparse = _sparse_target(name, target, given.shape, axis, spread_missing) if kind is Kind.LOGITS else None
    labels, dense = _target(name, target, given.shape, axis) if sparse is None else (None, None)
    listed, probabilities = (None, None) if sparse is None else sparse
    ignored_label = _ignore_index(ignore_index, labels)
    class_weight, class_vector = _over_classes(weight, smoothing, n_classes)
    row_weight = None if sample_weight is None else _per_row("sample_weight", sample_weight, positions)

    row_grad, factor, grad, grad_view = None, 1.0, None, None
    if gradient:
        row_grad, factor = upstream(grad_output, reduction, positions)
        others = [("target", target)] if sparse is None else [("target", part) for part in sparse]
        others += [("weight", weight), ("sample_weight", sample_weight), ("grad_output", grad_output)]
        grad = _gradient(name, out, given, others)
        grad_view = _classes_last(grad, axis)

    problem = Problem(
        output=Output.GRAD if gradient else Output.LOSS,
        logits=x,
        labels=labels,
        ignore_index=ignored_label,
        dense=dense,
        listed=listed,
        probabilities=probabilities,
        spread_missing=bool(spread_missing),
        target_scale=1.0 - smoothing,
        class_weight=class_weight,
        class_vector=class_vector,
        sample_weight=row_weight,
        z_loss=z,
        row_values=_row_values(x) if reduction == "none" else None,
        out=grad_view,
        grad_output=row_grad,
        kind=kind,
        clip=_clip(eps),
        temperature=1.0 if temperature is None else _positive("temperature", temperature),
        softcap=0.0 if softcap is None else _positive("softcap", softcap),
    )
    return Request(problem, axis, reduction, denominator, unit, factor, grad)


class Shard(NamedTuple):
    """A validated call for some neighbouring classes."""

    request: Request
    """Its problem is over all classes where the target counts them (labels, lists), else over those of the shard. Its
    class_weight goes with it."""
    logits: Array
    """(\\*positions, classes of the shard)."""
    start: int
    n_classes: int
    """Of the whole."""
    class_vector: Array | None
    """Of the shard: what label smoothing adds to q / s."""
    weight_digest: int | None
    """By which two class weights are told apart."""
    out: Array | None
    """Like the logits, for the gradient."""


def shard_request(
    logits: Any,
    target: Any,
    class_start: Any,
    n_classes: Any,
    *,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    reduction: Any = "sum",
    denominator: Any = None,
    base: Any = None,
    gradient: bool = False,
    grad_output: Any = None,
    out: Any = None,
) -> Shard:
    """Validate a call of partial_cross_entropy, or with ``gradient`` of its twin."""
    given, x, axis = _values("logits", logits, axis)
    width = x.shape[-1]
    start = _integer("class_start", class_start, "an integer >= 0")
    count = _integer("n_classes", n_classes, "an integer >= 1")
    if not 0 <= start <= count - width:
        raise ValueError(
            f"class_start: {width} classes from {_shown(class_start)} on are not among n_classes={_shown(n_classes)}"
        )
    shape = (*given.shape[:axis], count, *given.shape[axis + 1 :])
    whole = np.broadcast_to(np.zeros((), given.dtype), shape)
    sparse = _sparse_target("logits", target, shape, axis, False)
    dense = sparse is None and _array("target", target).ndim == given.ndim
    others = [("target", part) for part in (target if sparse is not None else (target,))]
    others += [("weight", weight), ("sample_weight", sample_weight), ("grad_output", grad_output)]
    request = loss_request(
        given if dense else whole,
        target,
        axis=axis,
        weight=None,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=0.0,
        reduction="sum",
        denominator=None,
        base=None,
        z_loss=z_loss,
    )
    denominator, unit = scales(reduction, denominator, base)
    smoothing = _number("label_smoothing", label_smoothing, 0.0, 1.0, "a number in [0, 1]")
    class_weight, class_vector = _over_classes(weight, smoothing, count)
    mine = slice(start, start + width)
    digest = None if class_weight is None else zlib.crc32(class_weight.tobytes())
    if class_weight is not None and dense:
        class_weight = class_weight[mine]
    row_grad, factor, grad = None, 1.0, None
    if gradient:
        row_grad, factor = upstream(grad_output, reduction, x.shape[:-1])
        grad = _gradient("logits", out, given, others)
    problem = replace(request.problem, target_scale=1.0 - smoothing, class_weight=class_weight, grad_output=row_grad)
    return Shard(
        Request(problem, axis, reduction, denominator, unit, factor, grad),
        x,
        start,
        count,
        None if class_vector is None else class_vector[mine],
        digest,
        None if grad is None else _classes_last(grad, axis),
    )


class LinearGradients(NamedTuple):
    """The arrays that receive the gradients of linear_cross_entropy, of the shapes of the user's arrays."""

    input: Array
    linear_weight: Array
    linear_bias: Array | None


class LinearRequest(NamedTuple):
    """A validated call of linear_cross_entropy."""

    request: Request
    """Its logits are a stand-in of their shape that takes no memory."""
    input: Array
    """(rows, features)."""
    linear_weight: Array
    """(classes, features)."""
    linear_bias: Array | None
    """(classes,)."""
    grads: LinearGradients | None = None


def linear_request(
    input: Any,
    linear_weight: Any,
    target: Any,
    *,
    linear_bias: Any,
    reduction: Any,
    sample_weight: Any,
    weight: Any,
    gradient: bool = False,
    grad_output: Any = None,
    out: Any = None,
    **options: Any,
) -> LinearRequest:
    """Validate a call of linear_cross_entropy, with ``gradient`` of its twin."""
    x = _floating("input", input)
    if x.ndim == 0:
        raise ValueError("input: expected an array with a feature axis, got one of 0 dimensions")
    positions, n_features = x.shape[:-1], x.shape[-1]
    w = _floating("linear_weight", linear_weight)
    if w.ndim != 2 or w.shape[1] != n_features:
        raise ValueError(
            f"linear_weight: expected shape (classes, {n_features}), its last axis as long as that of input, "
            f"{x.shape}, got shape {w.shape}"
        )
    bias = None if linear_bias is None else _floating("linear_bias", linear_bias)
    if bias is not None and bias.shape != w.shape[:1]:
        raise ValueError(
            f"linear_bias: expected one number for each class, shape {w.shape[:1]}, got shape {bias.shape}"
        )
    parts = [array for array in (x, w, bias) if array is not None]
    wide = any(_dtypes.name_of(array.dtype) == "float64" for array in parts)
    logits = np.broadcast_to(np.zeros((), np.float64 if wide else np.float32), (*positions, len(w)))
    request = loss_request(
        logits, target, axis=-1, reduction=reduction, sample_weight=sample_weight, weight=weight, **options
    )
    n_rows = request.problem.n_rows
    linear = LinearRequest(request, x.reshape(n_rows, n_features), w, bias)
    if not gradient:
        return linear
    row_grad, factor = upstream(grad_output, reduction, positions)
    request = request._replace(problem=replace(request.problem, grad_output=row_grad), grad_output=factor)
    others: list[tuple[str, Any]] = [("input", x), ("linear_weight", w), ("linear_bias", bias)]
    others += [("target", part) for part in (target if isinstance(target, tuple) else (target,))]
    others += [("weight", weight), ("sample_weight", sample_weight), ("grad_output", grad_output)]
    grads = _linear_gradients(out, parts, others)
    return linear._replace(request=request, grads=LinearGradients(*grads, *[None] * (3 - len(grads))))


def focal_request(
    logits: Any,
    target: Any,
    *,
    gamma: Any,
    alpha: Any,
    axis: Any,
    sample_weight: Any,
    ignore_index: Any,
    reduction: Any,
    denominator: Any,
    base: Any,
    gradient: bool = False,
    grad_output: Any = None,
    out: Any = None,
) -> Request:
    """Validate a call of focal_loss, or with ``gradient`` of its twin: cross entropy with a gamma, weighed by alpha."""
    request = loss_request(
        logits,
        target,
        axis=axis,
        weight=None,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=0.0,
        reduction=reduction,
        denominator=denominator,
        base=base,
        gradient=gradient,
        grad_output=grad_output,
        out=out,
    )
    problem = request.problem
    if problem.labels is None:
        raise ValueError(f"target: expected integer labels of shape {problem.positions}, got a dense target")
    exponent = _number("gamma", gamma, 0.0, math.inf, "a finite number >= 0")
    scale, class_weight = 1.0, None
    if alpha is not None:
        array = _array("alpha", alpha)
        if array.ndim == 0:
            scale = _number("alpha", array, 0.0, math.inf, "a finite number >= 0, or one for each class")
        else:
            class_weight = _class_weight(alpha, problem.n_classes, "alpha")
    problem = replace(problem, gamma=exponent, target_scale=scale, class_weight=class_weight)
    return request._replace(problem=problem, mean_has_class_weight=False)


def distillation_request(
    logits: Any,
    teacher_logits: Any,
    *,
    axis: Any,
    temperature: Any,
    sample_weight: Any,
    reduction: Any,
    denominator: Any,
    base: Any,
    gradient: bool = False,
    grad_output: Any = None,
    out: Any = None,
) -> Request:
    """Validate a call of distillation_loss, or with ``gradient`` of its twin."""
    given, x, axis = _values("logits", logits, axis)
    positions = x.shape[:-1]
    denominator, unit = scales(reduction, denominator, base)
    teacher = _floating("teacher_logits", teacher_logits)
    if teacher.shape != given.shape:
        raise ValueError(f"teacher_logits: expected the shape of logits, {given.shape}, got shape {teacher.shape}")
    row_grad, factor, grad = None, 1.0, None
    if gradient:
        row_grad, factor = upstream(grad_output, reduction, positions)
        others = {"teacher_logits": teacher, "sample_weight": sample_weight, "grad_output": grad_output}
        grad = _gradient("logits", out, given, others.items())
    problem = Problem(
        output=Output.GRAD if gradient else Output.LOSS,
        logits=x,
        dense=_classes_last(teacher, axis),
        sample_weight=None if sample_weight is None else _per_row("sample_weight", sample_weight, positions),
        row_values=_row_values(x) if reduction == "none" else None,
        out=None if grad is None else _classes_last(grad, axis),
        grad_output=row_grad,
        kind=Kind.TEACHER,
        temperature=_positive("temperature", temperature),
    )
    return Request(problem, axis, reduction, denominator, unit, factor, grad, target_name="teacher_logits")


def element_request(
    logits: Any,
    target: Any,
    *,
    kind: Kind,
    weight: Any,
    sample_weight: Any,
    reduction: Any,
    denominator: Any,
    base: Any = None,
    pos_weight: Any = None,
    label_smoothing: Any = 0.0,
    eps: Any = 0.0,
    gamma: Any = 0.0,
    alpha: Any = None,
    focal: bool = False,
    gradient: bool = False,
    grad_output: Any = None,
    out: Any = None,
) -> Request:
    """Validate a call of an element-wise loss: a problem whose rows are the elements, each of one class."""
    name = NAMES_OF_VALUES[kind]
    given = _floating(name, logits)
    smoothing = _number("label_smoothing", label_smoothing, 0.0, 1.0, "a number in [0, 1]")
    denominator, unit = scales(reduction, denominator, base)
    dense = _element_target(name, target, given.shape, integers=focal)
    negative, positive = (1.0, 1.0) if alpha is None else _alpha(alpha)

    spread: dict[str, Array | None] = {}
    for key, value in (("weight", weight), ("pos_weight", pos_weight), ("sample_weight", sample_weight)):
        spread[key] = None if value is None else _per_element(name, key, value, given.shape)
    row_grad, factor, grad = None, 1.0, None
    if gradient:
        if grad_output is not None:
            if reduction == "none":
                row_grad = _per_element(name, "grad_output", grad_output, given.shape)
            else:
                factor = _scalar("grad_output", grad_output)
        others = {
            "target": target,
            "weight": weight,
            "pos_weight": pos_weight,
            "sample_weight": sample_weight,
            "grad_output": grad_output,
        }
        grad = _gradient(name, out, given, others.items())

    x = given[..., None]
    problem = Problem(
        output=Output.GRAD if gradient else Output.LOSS,
        logits=x,
        dense=dense[..., None],
        target_scale=1.0 - smoothing,
        class_vector=np.array([smoothing / 2.0]) if smoothing else None,
        sample_weight=spread["sample_weight"],
        row_values=_row_values(x) if reduction == "none" else None,
        out=None if grad is None else grad[..., None],
        grad_output=row_grad,
        kind=kind,
        clip=_clip(eps),
        gamma=_number("gamma", gamma, 0.0, math.inf, "a finite number >= 0"),
        positive=positive,
        negative=negative,
        positive_weight=spread["pos_weight"],
        factor=spread["weight"],
    )
    return Request(problem, given.ndim, reduction, denominator, unit, factor, grad)


def divergence_request(kind: Kind, p: Any, q: Any, *, axis: Any, reduction: Any, base: Any) -> Request:
    """Validate a call of entropy (with q the very p), kl_divergence or js_divergence."""
    if not (isinstance(reduction, str) and reduction in DIVERGENCE_REDUCTIONS):
        accepted = "'none', 'sum', 'mean' or 'batchmean'"
        raise ValueError(f"reduction: expected {accepted}, got {_shown(reduction)}")
    _, unit = scales("none", None, base)
    alone = kind is Kind.PROBABILITIES
    given, x, axis = _values("p" if alone else "q", q, axis)
    other = given if alone else _floating("p", p)
    if other.shape != given.shape:
        raise ValueError(f"p and q: expected arrays of one shape, got {other.shape} and {given.shape}")
    denominator = None
    if reduction == "batchmean":
        denominator = float(x.shape[0]) if x.ndim > 1 else 1.0
    problem = Problem(
        output=Output.LOSS,
        logits=x,
        dense=_classes_last(other, axis),
        row_values=_row_values(x) if reduction == "none" else None,
        kind=kind,
    )
    reduction = "mean" if reduction == "batchmean" else reduction
    return Request(problem, axis, reduction, denominator or None, unit, target_name="p")


def log_loss_request(
    y_true: Any, y_pred: Any, *, normalize: Any, sample_weight: Any, labels: Any, from_logits: Any
) -> Request:
    """Validate a call of log_loss: a problem of rows, or of elements where there is one prediction a sample."""
    for name, flag in (("normalize", normalize), ("from_logits", from_logits)):
        if not isinstance(flag, (bool, np.bool_)):
            raise TypeError(f"{name}: expected True or False, got {_shown(flag)}")
    given = _floating("y_pred", y_pred)
    if given.ndim not in (1, 2):
        raise ValueError(f"y_pred: expected shape (n, classes) or (n,), got shape {given.shape}")
    alone = given.ndim == 1 or given.shape[1] == 1
    if not from_logits and given.size and not (given.min() >= 0 and given.max() <= 1):
        raise ValueError("y_pred: expected probabilities in [0, 1]; for logits give from_logits=True")
    target = _codes(y_true, labels, given.shape, 2 if alone else given.shape[1])
    reduction = "mean" if normalize else "sum"
    eps = 0.0 if from_logits else float(np.finfo(given.dtype).eps if given.dtype.kind == "f" else 2.0**-7)
    if alone:
        return element_request(
            given.reshape(-1),
            target,
            kind=Kind.BINARY_LOGITS if from_logits else Kind.BINARY_PROBABILITIES,
            weight=None,
            sample_weight=None if sample_weight is None else _per_row("sample_weight", sample_weight, target.shape),
            reduction=reduction,
            denominator=None,
            eps=eps,
        )
    return loss_request(
        given,
        target,
        kind=Kind.LOGITS if from_logits else Kind.PROBABILITIES,
        axis=-1,
        weight=None,
        sample_weight=sample_weight,
        ignore_index=-100,
        label_smoothing=0.0,
        reduction=reduction,
        denominator=None,
        base=None,
        eps=eps,
    )


def _codes(y_true: Any, labels: Any, shape: tuple[int, ...], n_classes: int) -> Array:
    """Return the class of each sample, by the order of the sorted labels; or the matrix that says so."""
    truth = _array("y_true", y_true)
    if truth.shape == shape and n_classes == shape[-1] and truth.ndim == 2:
        return truth
    if truth.shape != shape[:1]:
        raise ValueError(f"y_true: expected one label for each sample, shape {shape[:1]}, got shape {truth.shape}")
    known = np.unique(truth if labels is None else _array("labels", labels))
    if len(known) != n_classes or len(known) < 2:
        source = "labels" if labels is not None else "y_true; give all there are as labels="
        raise ValueError(f"y_pred: has {n_classes} classes, and there are {len(known)} in {source}")
    try:
        codes = np.searchsorted(known, truth)
    except TypeError as error:
        raise TypeError(f"labels: cannot be compared with those of y_true: {error}") from None
    codes = np.minimum(codes, n_classes - 1)
    wrong = known[codes] != truth
    if wrong.any():
        i = int(wrong.argmax())
        raise ValueError(f"y_true: {_shown(truth[i].item())} at index ({i},) is not one of the labels")
    return codes


def statistics_request(logits: Any, target: Any, *, fields: Any, axis: Any, ignore_index: Any, base: Any) -> Request:
    """Validate a call of row_statistics."""
    given, x, axis = _values("logits", logits, axis)
    _, unit = scales("none", None, base)
    labels = None
    if target is not None:
        labels, _ = _target("logits", target, given.shape, axis)
        if labels is None:
            shape = x.shape[:-1]
            raise ValueError(f"target: expected integer labels of shape {shape}, got a dense target of {given.shape}")
    hidden = OF_PARTIALS if labels is not None else OF_PARTIALS + NEED_LABELS
    known = tuple(name for name in Statistics._fields if name not in hidden)
    try:
        asked = known if fields is None else (fields,) if isinstance(fields, str) else tuple(fields)
    except TypeError:
        raise TypeError(f"fields: expected names, got {_shown(fields)} of type {type(fields).__name__}") from None
    for name in asked:
        if name not in known:
            without = "" if labels is not None else " without a target"
            raise ValueError(f"fields: expected some of {', '.join(known)}{without}, got {_shown(name)}")
    n_rows = math.prod(x.shape[:-1])
    dtypes = {"argmax": np.dtype(np.int64), "rank": np.dtype(np.int64), "correct": np.dtype(np.bool_)}
    real = _row_values(x[:0] if x.ndim > 1 else x).dtype
    problem = Problem(
        Output.STATISTICS,
        x,
        labels=labels,
        ignore_index=_ignore_index(ignore_index, labels),
        statistics=Statistics(**_answers([(name, dtypes.get(name, real)) for name in asked], n_rows)),
    )
    return Request(problem, axis, unit=unit)


def _answers(fields: Sequence[tuple[str, np.dtype[Any]]], n_rows: int) -> dict[str, Array]:
    """Make an array for each field. Those of one dtype lie in one piece of memory.

    New pages cost more than what is computed for a row of few classes, and a larger piece gets larger pages.
    """
    answers: dict[str, Array] = {}
    for dtype in dict.fromkeys(dtype for _, dtype in fields):
        names = [name for name, other in fields if other == dtype]
        answers.update(zip(names, np.empty((len(names), n_rows), dtype), strict=True))
    return answers


def map_request(output: Output, logits: Any, axis: Any, out: Any) -> Request:
    """Validate a call of softmax, log_softmax or logsumexp."""
    given, x, axis = _values("logits", logits, axis)
    if output is Output.LSE:
        values = _row_values(x)
        if out is not None:
            _check_out(out, x.shape[:-1])
            _refuse_overlap(out, "logits", given)
            if out.dtype == values.dtype and out.flags.c_contiguous and out.flags.aligned:
                values = out.reshape(-1)
        return Request(Problem(output, x, row_values=values), axis, result=out)
    if out is None:
        result = np.empty_like(given, dtype=given.dtype.newbyteorder("="), subok=False)
    else:
        result = _out(out, given)
    return Request(Problem(output, x, out=_classes_last(result, axis)), axis, result=result)


def thread_count(name: str, value: Any) -> int:
    """Validate a number of threads."""
    count = _integer(name, value, "an integer >= 1")
    if count < 1:
        raise ValueError(f"{name}: expected an integer >= 1, got {_shown(value)}")
    return count


_ORIGIN: ContextVar[tuple[int, ...] | None] = ContextVar("fastce_origin", default=None)


@contextmanager
def origin(index: tuple[int, ...] | None) -> Iterator[None]:
    """Let errors for bad rows count from here, where the logits of calls begin in some larger array."""
    token = _ORIGIN.set(index)
    try:
        yield
    finally:
        _ORIGIN.reset(token)


def _in_whole(index: tuple[int, ...], axis: int, *, listed: bool = False) -> tuple[int, ...]:
    """Return an index of the logits, of lists, or one without the class axis, as it is in the larger array."""
    start = _ORIGIN.get()
    if start is None:
        return index
    if listed:
        start = (*start[:axis], 0, *start[axis + 1 :])
    if len(index) < len(start):
        start = start[:axis] + start[axis + 1 :]
    return tuple(i + first for i, first in zip(index, start, strict=True))


def bad_row(request: Request, row: int) -> Exception:
    """Return the error for the row that a backend could not accept."""
    p = request.problem
    index = tuple(int(i) for i in np.unravel_index(row, p.positions))
    if p.labels is not None:
        label = int(p.labels[index])
        if label != p.ignore_index and not 0 <= label < p.n_classes:
            at = _in_whole(index, request.axis)
            return IndexError(f"target: label {label} at index {at} is out of range for {p.n_classes} classes")
    for name, weights in (("sample_weight", p.sample_weight), ("pos_weight", p.positive_weight), ("weight", p.factor)):
        if weights is not None:
            weight = weights[index].item()
            if not 0 <= weight < math.inf:
                at = _in_whole(index, request.axis)
                return ValueError(f"{name}: expected finite numbers >= 0, got {weight!r} at index {at}")
    if p.listed is not None and p.probabilities is not None:
        return _bad_list(request, index, p.listed[index], p.probabilities[index].astype(np.float64))
    if p.dense is not None:
        values = p.dense[index].astype(np.float64)
        wrong = ~((values >= 0) & (values <= p.largest_target))
        if wrong.any():
            k = int(wrong.argmax())
            at = index if p.kind.element_wise else (*index[: request.axis], k, *index[request.axis :])
            at = _in_whole(at, request.axis)
            if p.largest_target == 1.0:
                accepted = "numbers in [0, 1]"
            else:
                beyond = f" in the range of {p.real}" if 0 <= values[k] < math.inf else ""
                accepted = f"finite numbers >= 0{beyond}"
            return ValueError(f"{request.target_name}: expected {accepted}, got {float(values[k])!r} at index {at}")
    return ValueError(f"{request.target_name}: row {index} changed while it was being read")


def _bad_list(request: Request, index: tuple[int, ...], classes: Array, values: Array) -> Exception:
    """Return the error for a row whose list of classes and probabilities a backend could not accept."""
    p = request.problem
    for j in range(len(classes)):
        at = _in_whole((*index[: request.axis], j, *index[request.axis :]), request.axis, listed=True)
        label, value = int(classes[j]), float(values[j])
        if label != -1 and not 0 <= label < p.n_classes:
            return IndexError(f"target: class {label} at index {at} is out of range for {p.n_classes} classes")
        if label != -1 and not 0 <= value <= p.largest_target:
            beyond = f" in the range of {p.real}" if 0 <= value < math.inf else ""
            accepted = f"finite numbers >= 0{beyond}"
            return ValueError(f"target: expected {accepted}, got {value!r} at index {at} of probabilities")
    total = sum((float(value) for value, label in zip(values, classes, strict=True) if label != -1), 0.0)
    if total > p.most_listed:
        most = "that sum to at most 1" if p.spread_missing else f"whose sum is in the range of {p.real}"
        return ValueError(
            f"target: expected probabilities {most}, got {total:.6g} at index {_in_whole(index, request.axis)}"
        )
    return ValueError(f"target: row {index} changed while it was being read")


def _floating(name: str, value: Any) -> Array:
    """Return an array of a dtype that logits may have; nested lists and numbers are float64."""
    given = _array(name, value)
    if isinstance(value, (list, tuple, int, float)) and given.dtype.kind in "biuf":
        given = given.astype(np.float64, copy=False)
    if _dtypes.name_of(given.dtype) is None:
        raise TypeError(f"{name}: expected {_dtypes.ACCEPTED}, got {_described(value, given)}")
    return given


def _values(name: str, value: Any, axis: Any) -> tuple[Array, Array, int]:
    """Return the logits, or what stands for them, as given, the same with the class axis last, and where that was."""
    given = _floating(name, value)
    ndim = given.ndim
    if ndim == 0:
        raise ValueError(f"{name}: expected an array with a class axis, got one of 0 dimensions")
    where = _integer("axis", axis, "an integer")
    if not -ndim <= where < ndim:
        raise np.exceptions.AxisError(where, ndim, f"axis: {name} have shape {given.shape}")
    where %= ndim
    if given.shape[where] == 0 and math.prod(given.shape[:where] + given.shape[where + 1 :]):
        raise ValueError(f"{name}: expected at least one class, got shape {given.shape} with axis={where}")
    return given, _classes_last(given, where), where


def scales(reduction: Any, denominator: Any, base: Any) -> tuple[float | None, float]:
    """Validate what a loss is divided by: the denominator if one was given, and the unit in nats."""
    if not (isinstance(reduction, str) and reduction in REDUCTIONS):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {_shown(reduction)}")
    if denominator is not None:
        if reduction != "mean":
            raise ValueError(f"denominator: only reduction='mean' divides, got reduction={reduction!r}")
        denominator = _positive("denominator", denominator)
    unit = 1.0
    if base is not None:
        unit = math.log(_number("base", base, 1.0, math.inf, "a finite number > 1", open_low=True))
    return denominator, unit


def _positive(name: str, value: Any) -> float:
    return _number(name, value, 0.0, math.inf, "a finite number > 0", open_low=True)


def _clip(eps: Any) -> float:
    return _number("eps", eps, 0.0, 0.5, "a number in [0, 0.5]")


def _alpha(alpha: Any) -> tuple[float, float]:
    """Return the weights of the classes 0 and 1 of a binary focal loss."""
    array = _array("alpha", alpha)
    if not _dtypes.is_real(array.dtype):
        raise TypeError(f"alpha: expected numbers, got {_described(alpha, array)}")
    if array.ndim == 0:
        share = _number("alpha", array, 0.0, 1.0, "a number in [0, 1], or one number >= 0 for each of two classes")
        return 1.0 - share, share
    if array.shape != (2,):
        raise ValueError(f"alpha: expected a number, or one for each of two classes, got shape {array.shape}")
    pair = [_number("alpha", value, 0.0, math.inf, "finite numbers >= 0") for value in array]
    return pair[0], pair[1]


def _element_target(name: str, target: Any, shape: tuple[int, ...], *, integers: bool) -> Array:
    array = _array("target", target)
    if integers and array.dtype.kind not in "biu":
        raise TypeError(f"target: expected labels 0 and 1, integer or boolean, got {_described(target, array)}")
    if not _dtypes.is_real(array.dtype):
        raise TypeError(f"target: expected real numbers, got {_described(target, array)}")
    if array.shape != shape:
        raise ValueError(f"target: expected the shape of {name}, {shape}, got shape {array.shape}")
    return array


def _per_element(values: str, name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Return an array spread over the shape of the values, without a copy."""
    array = _array(name, value)
    if not _dtypes.is_real(array.dtype):
        raise TypeError(f"{name}: expected real numbers, got {_described(value, array)}")
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to that of {values}, {shape}, got shape {array.shape}"
        ) from None


def _gradient(name: str, out: Any, given: Array, others: Iterable[tuple[str, Any]]) -> Array:
    """Return the array that receives the gradient: ``out``, checked against every input, or a new one."""
    if out is None:
        return np.empty_like(given, dtype=given.dtype.newbyteorder("="), subok=False)
    grad = _out(out, given, name)
    for other, value in others:
        _refuse_overlap(grad, other, value, name)
    return grad


def _target(name: str, target: Any, shape: tuple[int, ...], axis: int) -> tuple[Array | None, Array | None]:
    """Return labels or a dense target with the class axis last, and None for the other."""
    array = _array("target", target)
    if not _dtypes.is_real(array.dtype):
        accepted = f"integer labels or a dense target ({_dtypes.ACCEPTED}, integer or boolean)"
        raise TypeError(f"target: expected {accepted}, got {_described(target, array)}")
    positions = shape[:axis] + shape[axis + 1 :]
    if array.ndim == len(shape) - 1:
        if array.size == 0 and isinstance(target, (list, tuple)):
            array = array.astype(np.intp)  # NumPy takes an empty list for float64
        if array.dtype.kind not in "iu":
            raise TypeError(f"target: expected integer labels, got {_described(target, array)}")
        if array.shape == positions:
            return array, None
    elif array.shape == shape:
        return None, _classes_last(array, axis)
    raise ValueError(
        f"target: {name} of shape {shape} with axis={axis} need labels of shape {positions} "
        f"or a dense target of shape {shape}, got shape {array.shape}"
    )


def _sparse_target(
    name: str, target: Any, shape: tuple[int, ...], axis: int, spread_missing: Any
) -> tuple[Array, Array] | None:
    """Return the classes and probabilities of a sparse target with the class axis last; None for another target.

    A pair of arrays of as many dimensions as the values, which no pair of labels or of dense rows has.
    """
    if not isinstance(spread_missing, (bool, np.bool_)):
        raise TypeError(f"spread_missing: expected True or False, got {_shown(spread_missing)}")
    pair = [_array("target", part) for part in target] if type(target) is tuple and len(target) == 2 else []
    if not pair or max(part.ndim for part in pair) < len(shape):
        if spread_missing:
            raise ValueError(
                "spread_missing: only a sparse target, a tuple (indices, probabilities), has something missing"
            )
        return None
    indices, probabilities = pair
    if indices.size == 0 and isinstance(target[0], (list, tuple)):
        indices = indices.astype(np.intp)  # NumPy takes an empty list for float64
    if indices.dtype.kind not in "iu":
        raise TypeError(f"target: expected integer indices of classes, got {_described(target[0], indices)}")
    if not _dtypes.is_real(probabilities.dtype):
        raise TypeError(f"target: expected probabilities that are numbers, got {_described(target[1], probabilities)}")
    expected = (*shape[:axis], "k", *shape[axis + 1 :])
    for part in pair:
        if part.ndim != len(shape) or part.shape[:axis] + part.shape[axis + 1 :] != shape[:axis] + shape[axis + 1 :]:
            raise ValueError(
                f"target: {name} of shape {shape} with axis={axis} need indices and probabilities of shape "
                f"({', '.join(map(str, expected))}), got shapes {indices.shape} and {probabilities.shape}"
            )
    if indices.shape != probabilities.shape:
        raise ValueError(
            f"target: expected indices and probabilities of one shape, got {indices.shape} and {probabilities.shape}"
        )
    return _classes_last(indices, axis), _classes_last(probabilities, axis)


def _linear_gradients(out: Any, by: list[Array], others: list[tuple[str, Any]]) -> list[Array]:
    """Return the arrays that receive the gradients by some arrays: those of ``out``, checked, or new ones."""
    if out is None:
        return [np.empty(array.shape, array.dtype.newbyteorder("=")) for array in by]
    if not isinstance(out, tuple) or len(out) != len(by):
        got = f"{len(out)}" if isinstance(out, tuple) else type(out).__name__
        raise TypeError(f"out: expected a tuple of {len(by)} arrays, as many as there are gradients, got {got}")
    for n, (array, given) in enumerate(zip(out, by, strict=True)):
        _check_out(array, given.shape, f"out[{n}]")
        for name, other in [*others, *((f"out[{m}]", out[m]) for m in range(n))]:
            _refuse_overlap(array, name, other, None, f"out[{n}]")
    return [*out]


def _ignore_index(value: Any, labels: Array | None) -> int | None:
    index = _integer("ignore_index", value, "an integer")
    if labels is None:
        return None
    bits = 8 * labels.dtype.itemsize
    if labels.dtype.kind == "u":
        return index if 0 <= index < 1 << bits else None
    return index if -(1 << bits - 1) <= index < 1 << bits - 1 else None


def _class_weight(weight: Any, n_classes: int, name: str = "weight") -> Array:
    array = _array(name, weight)
    if not _dtypes.is_real(array.dtype):
        raise TypeError(f"{name}: expected real numbers, got {_described(weight, array)}")
    if array.shape != (n_classes,):
        raise ValueError(f"{name}: expected one number for each class, shape {(n_classes,)}, got shape {array.shape}")
    array = np.require(array, np.float64, ["C", "A"])  # kernels read it as doubles
    wrong = ~((array >= 0) & (array < math.inf))
    if wrong.any():
        k = int(wrong.argmax())
        raise ValueError(f"{name}: expected finite numbers >= 0, got {float(array[k])!r} at index ({k},)")
    return array


def _over_classes(weight: Any, smoothing: float, n_classes: int) -> tuple[Array | None, Array | None]:
    """Return the class weights, and what label smoothing adds to q / s."""
    class_weight = None if weight is None else _class_weight(weight, n_classes)
    class_vector = None
    if smoothing > 0.0 and n_classes:
        class_vector = np.full(n_classes, smoothing / n_classes)
        if class_weight is not None:
            with np.errstate(under="ignore"):
                class_vector *= class_weight
    return class_weight, class_vector


def _per_row(name: str, value: Any, positions: tuple[int, ...]) -> Array:
    array = _array(name, value)
    if not _dtypes.is_real(array.dtype):
        raise TypeError(f"{name}: expected real numbers, got {_described(value, array)}")
    if array.shape != positions:
        raise ValueError(f"{name}: expected one number for each row, shape {positions}, got shape {array.shape}")
    return array


def upstream(value: Any, reduction: str, positions: tuple[int, ...]) -> tuple[Array | None, float]:
    """Return what multiplies the gradient: one number for each row, and one for all."""
    if value is None:
        return None, 1.0
    if reduction == "none":
        return _per_row("grad_output", value, positions), 1.0
    return None, _scalar("grad_output", value)


def _scalar(name: str, value: Any) -> float:
    if type(value) is float:
        return value
    array = _array(name, value)
    if not _dtypes.is_real(array.dtype):
        raise TypeError(f"{name}: expected a number, got {_described(value, array)}")
    if array.ndim:
        raise ValueError(f"{name}: expected a scalar for this reduction, got shape {array.shape}")
    return float(array)


def _number(name: str, value: Any, low: float, high: float, accepted: str, *, open_low: bool = False) -> float:
    if type(value) is not float:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value[()]
        if type(value) is bool or not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: expected {accepted}, got {_shown(value)} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not low <= number <= high or math.isinf(number) or (open_low and number == low):
        raise ValueError(f"{name}: expected {accepted}, got {_shown(value)}")
    return number


def _integer(name: str, value: Any, accepted: str) -> int:
    if type(value) is int:
        return value
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected {accepted}, got {_shown(value)} of type {type(value).__name__}") from None


def _array(name: str, value: Any) -> Array:
    """Return a plain ndarray on the memory of whatever array the caller has."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):
        masked = sys.modules.get("numpy.ma")
        if isinstance(value, np.matrix) or (masked is not None and isinstance(value, masked.MaskedArray)):
            raise TypeError(f"{name}: expected a plain array, got {type(value).__module__}.{type(value).__qualname__}")
        return value.view(np.ndarray)
    if not isinstance(value, (list, tuple, int, float, np.generic)):
        _refuse_device(name, value)
        if getattr(value, "requires_grad", False) is True:
            raise TypeError(f"{name}: got a tensor that requires grad; pass {name}.detach()")
        if str(getattr(value, "dtype", None)) == "torch.bfloat16":
            return _torch_bfloat16(name, value)
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except Exception as error:
        text = f"{name}: cannot be read as an array ({type(value).__name__}): {error}"
        raise (ValueError if isinstance(error, ValueError) else TypeError)(text) from error


def _refuse_device(name: str, value: Any) -> None:
    """Raise for an array that lies where the host cannot read it."""
    try:
        device = int(value.__dlpack_device__()[0])
    except Exception:  # not an exporter of DLPack, or not for this tensor
        device = 2 if hasattr(value, "__cuda_array_interface__") else 1
    if device not in _CPU_DEVICES:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(
            f"{name}: got a {kind} in device memory; move it to the host first, with .cpu() (torch), "
            "jax.device_get (JAX) or .get() (CuPy)"
        )


def _torch_bfloat16(name: str, value: Any) -> Array:
    """View the bits of a torch tensor, since NumPy has no dtype that torch could export them as."""
    try:
        dtype = _dtypes.named("bfloat16")
    except ImportError:
        raise TypeError(f"{name}: bfloat16 needs the package ml_dtypes; install it: pip install ml_dtypes") from None
    bits: Array = value.view(sys.modules["torch"].int16).numpy()
    return bits.view(dtype)


def _shown(value: Any) -> str:
    """Return the repr of a value, cut to what fits in a message."""
    try:
        text = repr(value)
    except Exception as error:  # such as an integer of more digits than Python prints
        return f"what cannot be shown ({error})"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _described(value: Any, array: Array) -> str:
    """Return what the caller gave, for a message."""
    if isinstance(value, np.ndarray):
        return f"dtype {array.dtype}"
    return f"{type(value).__name__} of dtype {array.dtype}"


def _classes_last(array: Array, axis: int) -> Array:
    """Return a view with the class axis last."""
    last = array.ndim - 1
    return array if axis == last else array.transpose((*range(axis), *range(axis + 1, last + 1), axis))


def _row_values(x: Array) -> Array:
    dtype = np.float64 if _dtypes.name_of(x.dtype) == "float64" else np.float32
    return np.empty(math.prod(x.shape[:-1]), dtype)


def _out(out: Any, logits: Array, name: str = "logits") -> Array:
    """Validate an array that receives the gradient or the probabilities: apart from the logits, or the logits."""
    array = _check_out(out, logits.shape)
    in_place = (
        array.__array_interface__["data"][0] == logits.__array_interface__["data"][0]
        and array.strides == logits.strides
        and array.dtype == logits.dtype
    )
    if not in_place:
        _refuse_overlap(array, name, logits, name)
    return array


def _check_out(out: Any, shape: tuple[int, ...], name: str = "out") -> Array:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(out).__name__}")
    array = _array(name, out)
    if _dtypes.name_of(array.dtype) is None:
        raise TypeError(f"{name}: expected {_dtypes.ACCEPTED}, got dtype {array.dtype}")
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got shape {array.shape}")
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if _may_overlap_itself(array):
        raise ValueError(f"{name}: its elements share memory with one another (strides {array.strides})")
    return out


def _may_overlap_itself(array: Array) -> bool:
    """Tell whether some elements could share bytes; never so for what slicing and transposing give."""
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return array.size > 0
        reach += stride * (length - 1)
    return False


def _refuse_overlap(out: Array, name: str, other: Any, values: str | None = "logits", own_name: str = "out") -> None:
    if other is None or isinstance(other, (int, float, list, tuple)):
        return
    array = _array(name, other)
    if np.may_share_memory(out, array):
        try:
            shared = np.shares_memory(out, array, max_work=_OVERLAP_WORK)  # type: ignore[arg-type]
        except (np.exceptions.TooHardError, OverflowError):
            shared = True  # not proved apart
        if shared:
            hint = "" if values is None else f"; only {values} themselves may be overwritten, as a whole"
            raise ValueError(f"{own_name}: overlaps {name}{hint}")
