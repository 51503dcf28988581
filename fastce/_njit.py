"""cross_entropy, its gradient and the softmax functions inside Numba's compiled code: serial calls of the C core.

Types are checked here, while Numba compiles; values by `flat_call` of the core, which compiled code calls by name, with
a flat list of words. So that code may be kept on disk and called by another process, or with another fastce. Numba
itself calls `init`, by the entry point ``numba_extensions``; nothing else imports this module.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.core import types as numba_types
from numba.core.errors import TypingError
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic, overload, register_jitable

from fastce import _backends, _inputs
from fastce._functions import (
    LossAndGrad,
    cross_entropy,
    cross_entropy_with_grad,
    log_softmax,
    logsumexp,
    softmax,
)
from fastce._problem import Output

types: Any = numba_types
"""What Numba says of its types to a type checker is not all there is."""

SYMBOL = "fastce_flat_call"
"""The name by which compiled code calls the core; what it means never changes."""

VERSION = 1
"""Of the words, FLAT_VERSION of src_c/binding/flat_call.h, which explains them."""

UNSIGNED_IGNORE_INDEX, HAS_DENOMINATOR, HAS_BASE = 1, 2, 4

DTYPES: tuple[Any, ...] = (
    *(None, None, types.float32, types.float64, types.boolean),
    *(types.int8, types.int16, types.int32, types.int64),
    *(types.uint8, types.uint16, types.uint32, types.uint64),
)
"""In the order of fastce_dtype; Numba has no arrays of float16 and bfloat16."""

REALS = "float32 or float64"

MESSAGES = {
    1: "this code was compiled for another version of fastce: empty Numba's cache",
    3: "sample_weight: expected finite numbers >= 0, got {number!r} at index {index}",
    4: "target: expected finite numbers >= 0 in the range of the logits' dtype in the row at index {index}",
    5: "axis: it is out of range for logits of shape {shape}",
    6: "logits: expected at least one class, got shape {shape} with axis={axis}",
    7: "label_smoothing: expected a number in [0, 1], got {number!r}",
    8: "z_loss: expected a finite number >= 0, got {number!r}",
    9: "denominator: expected a finite number > 0, got {number!r}",
    10: "base: expected a finite number > 1, got {number!r}",
    11: "target: expected labels of the shape of logits, {shape}, without axis {axis}, or a dense target of that shape",
    12: "weight: expected one number for each class, logits having shape {shape} with axis={axis}",
    13: "weight: expected finite numbers >= 0, got {number!r} at index ({at},)",
    14: "sample_weight: expected one number for each row, logits having shape {shape} with axis={axis}",
    15: "grad_output: expected one number for each row, logits having shape {shape} with axis={axis}",
    16: "out: expected the shape that the result has, logits having shape {shape} with axis={axis}",
    17: "out: its elements share memory with one another",
    18: "out: overlaps an input; only logits themselves may be overwritten, as a whole",
    20: "FASTCE_ISA: an instruction set that is unknown or that this processor does not run",
    21: "the C core refused a call",
    22: "the C core of fastce cannot be loaded, and compiled code needs it: see fastce.show_config()",
}
"""By flat_code of src_c/binding/flat_call.h; those of labels and of memory have errors of their own."""

BAD_LABEL, NO_MEMORY, NO_CORE = 2, 19, 22


# Numba keeps with compiled code the class of an error and its arguments, and makes the error when it is raised.
class LabelError(IndexError):
    """An IndexError for a label out of range; a plain one where it is unpickled."""

    def __init__(self, label: int, beyond: float, row: int, axis: int, shape: tuple[int, ...]) -> None:
        label, index = label + int(beyond), _index(row, axis, shape)
        super().__init__(f"target: label {label} at index {index} is out of range for {shape[axis]} classes")

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexError, self.args


class CallError(ValueError):
    """A ValueError for anything else; a plain one where it is unpickled."""

    def __init__(self, code: int, number: float, at: int, axis: int, shape: tuple[int, ...]) -> None:
        index = _index(at, axis, shape) if "{index}" in MESSAGES[code] else None
        super().__init__(MESSAGES[code].format(number=number, at=at, index=index, axis=axis, shape=shape))

    def __reduce__(self) -> tuple[Any, ...]:
        return ValueError, self.args


def _index(row: int, axis: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    positions = shape[:axis] + shape[axis + 1 :]
    return tuple(int(i) for i in np.unravel_index(row, positions))


# --- the call ---------------------------------------------------------------------------------------------------------

_WORD = ir.IntType(64)


@intrinsic(prefer_literal=True)
def _call(
    typing_context: Any,
    output: Any,
    reduction: Any,
    flags: Any,
    axis: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    denominator: Any,
    base: Any,
    factor: Any,
    logits: Any,
    target: Any,
    weight: Any,
    sample_weight: Any,
    grad_output: Any,
    out: Any,
    values: Any,
) -> Any:
    """Call the core; return code, at, label, axis and number of its result."""
    integers = (output, reduction, flags, axis, ignore_index)
    reals = (label_smoothing, z_loss, denominator, base, factor)
    arrays = (logits, target, weight, sample_weight, grad_output, out, values)
    fields = types.Tuple((types.int64, types.int64, types.int64, types.int64, types.float64))

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, given: Any) -> Any:
        words = [ir.Constant(_WORD, VERSION)]
        for number, (kind, value) in enumerate(zip(signature.args, given, strict=True)):
            if number < len(integers) + len(reals):
                real = number >= len(integers)
                words.append(_number_word(context, builder, kind, value, types.float64 if real else types.int64))
            else:
                words += _array_words(context, builder, kind, value)
        listed = cgutils.alloca_once(builder, _WORD, size=len(words))
        result = cgutils.alloca_once(builder, _WORD, size=len(fields))
        for number, word in enumerate(words):
            builder.store(word, cgutils.gep_inbounds(builder, listed, number))
        function_type = ir.FunctionType(ir.VoidType(), [listed.type, result.type])
        function = cgutils.get_or_insert_function(builder.module, function_type, SYMBOL)
        builder.call(function, [listed, result])
        got = [builder.load(cgutils.gep_inbounds(builder, result, i)) for i in range(len(fields))]
        got[-1] = builder.bitcast(got[-1], ir.DoubleType())
        return context.make_tuple(builder, fields, got)

    return fields(*integers, *reals, *arrays), generate


def _number_word(context: Any, builder: ir.IRBuilder, kind: Any, value: Any, wanted: Any) -> Any:
    """Return a number, or 0 for None, as a word."""
    if _absent(kind):
        return ir.Constant(_WORD, 0)
    if isinstance(kind, types.Omitted):
        kind, value = wanted, context.get_constant(wanted, kind.value)
    return builder.bitcast(context.cast(builder, value, kind, wanted), _WORD)


def _array_words(context: Any, builder: ir.IRBuilder, kind: Any, value: Any) -> list[Any]:
    """Return what describes an array, a number being one without axes, or None."""
    if _absent(kind):
        return [ir.Constant(_WORD, -1)]
    if not isinstance(kind, types.Array):
        plain = types.unliteral(kind)
        number = context.get_value_as_data(builder, plain, context.cast(builder, value, kind, plain))
        place = cgutils.alloca_once_value(builder, number)
        return [ir.Constant(_WORD, DTYPES.index(plain)), builder.ptrtoint(place, _WORD), ir.Constant(_WORD, 0)]
    array = context.make_array(kind)(context, builder, value)
    numbers = (*cgutils.unpack_tuple(builder, array.shape), *cgutils.unpack_tuple(builder, array.strides))
    code, ndim = ir.Constant(_WORD, DTYPES.index(kind.dtype)), ir.Constant(_WORD, kind.ndim)
    return [code, builder.ptrtoint(array.data, _WORD), ndim, *numbers]


@register_jitable
def _check(code: int, at: int, label: int, axis: int, number: float, shape: tuple[int, ...]) -> None:
    if code == BAD_LABEL:
        raise LabelError(label, number, at, axis, shape)
    if code == NO_MEMORY:
        raise MemoryError("the C core could not allocate its scratch")
    if code != 0:
        raise CallError(code, number, at, axis, shape)


def _positions(shape: Any, axis: Any) -> Any:
    """Return the shape without the class axis, as compiled code."""
    raise NotImplementedError


@overload(_positions)
def _positions_overload(shape: Any, axis: Any) -> Any:
    def of_one_row(shape: Any, axis: Any) -> Any:
        return ()

    def implementation(shape: Any, axis: Any) -> Any:
        where = axis + len(shape) if axis < 0 else axis
        positions = shape[1:]
        for i in range(len(positions)):
            positions = tuple_setitem(positions, i, shape[i] if i < where else shape[i + 1])
        return positions

    return of_one_row if len(shape) == 1 else implementation


@register_jitable
def _new_values(logits: Any, axis: Any) -> Any:
    return np.empty(_positions(logits.shape, axis), logits.dtype)


@register_jitable
def _no_values(logits: Any, axis: Any) -> Any:
    return None


@register_jitable
def _new_out(logits: Any, out: Any) -> Any:
    return np.empty_like(logits)


@register_jitable
def _given_out(logits: Any, out: Any) -> Any:
    return out


@register_jitable
def _first(value: Any, other: Any) -> Any:
    return value


@register_jitable
def _second(value: Any, other: Any) -> Any:
    return other


# --- types ------------------------------------------------------------------------------------------------------------


def _absent(kind: Any) -> bool:
    """Tell whether an argument is None, left out or given."""
    return kind is None or isinstance(kind, types.NoneType) or (isinstance(kind, types.Omitted) and kind.value is None)


def _literal(kind: Any) -> Any:
    """Return the value of what is known while compiling, a default or a literal; a type else."""
    if isinstance(kind, types.Omitted):
        return kind.value
    return kind.literal_value if isinstance(kind, types.Literal) else kind


def _is_real(kind: Any) -> bool:
    return types.unliteral(kind) in DTYPES


def _check_logits(logits: Any) -> None:
    if not (isinstance(logits, types.Array) and logits.ndim and logits.dtype in (types.float32, types.float64)):
        raise TypingError(f"logits: in compiled code an array of {REALS} with a class axis, got {logits}")


def _check_target(target: Any, logits: Any) -> None:
    if isinstance(target, types.Array):
        if target.ndim == logits.ndim and _is_real(target.dtype):
            return
        if target.ndim == logits.ndim - 1 and isinstance(target.dtype, types.Integer):
            return
    elif logits.ndim == 1 and isinstance(target, types.Integer):
        return
    raise TypingError(
        f"target: logits of {logits.ndim} dimensions need an array of integer labels of {logits.ndim - 1} dimensions, "
        f"or a dense target of {logits.ndim} ({REALS}, integer or boolean), got {target}"
    )


def _check_rows(name: str, kind: Any, logits: Any) -> None:
    """For what there is one of in each row."""
    if _absent(kind):
        return
    if isinstance(kind, types.Array):
        if kind.ndim == logits.ndim - 1 and _is_real(kind.dtype):
            return
    elif logits.ndim == 1 and _is_real(kind):
        return
    raise TypingError(f"{name}: expected an array of {logits.ndim - 1} dimensions of real numbers, got {kind}")


def _check_number(name: str, kind: Any, *, integer: bool = False, optional: bool = False) -> None:
    if optional and _absent(kind):
        return
    value = _literal(kind)
    if integer:
        if isinstance(kind, types.Integer) or (isinstance(value, int) and not isinstance(value, bool)):
            return
    elif isinstance(kind, (types.Integer, types.Float)) or isinstance(value, (int, float)):
        return
    expected = "an integer" if integer else "a number, or None" if optional else "a number"
    raise TypingError(f"{name}: expected {expected}, got {kind}")


def _check_out(out: Any, logits: Any, ndim: int) -> None:
    if _absent(out):
        return
    if not (isinstance(out, types.Array) and out.ndim == ndim and out.dtype in (types.float32, types.float64)):
        raise TypingError(f"out: expected an array of {ndim} dimensions of {REALS}, got {out}")
    if not out.mutable:
        raise TypingError(f"out: expected a writable array, got {out}")


def _check_runner(backend: Any, num_threads: Any) -> None:
    if _literal(backend) not in ("auto", "cython"):
        raise TypingError(f"backend: compiled code calls the C core, 'auto' or 'cython', got {backend}")
    if not _absent(num_threads) and _literal(num_threads) != 1:
        raise TypingError(f"num_threads: calls in compiled code use the thread they are made on, 1, got {num_threads}")
    error = _backends.why_not("cython")
    if error is not None:
        raise TypingError(f"fastce in compiled code needs its C core: {error}")


def _check_loss(
    logits: Any,
    target: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    reduction: Any,
    denominator: Any,
    base: Any,
) -> tuple[int, int]:
    """Check all that both losses have; return the words for the reduction and for the flags."""
    _check_logits(logits)
    _check_target(target, logits)
    _check_number("axis", axis, integer=True)
    if not (_absent(weight) or (isinstance(weight, types.Array) and weight.ndim == 1 and _is_real(weight.dtype))):
        raise TypingError(f"weight: expected an array of 1 dimension of real numbers, got {weight}")
    _check_rows("sample_weight", sample_weight, logits)
    _check_number("ignore_index", ignore_index, integer=True)
    _check_number("label_smoothing", label_smoothing)
    _check_number("z_loss", z_loss)
    _check_number("denominator", denominator, optional=True)
    _check_number("base", base, optional=True)
    name = _literal(reduction)
    if not (isinstance(name, str) and name in _inputs.REDUCTIONS):
        raise TypingError(f"reduction: expected 'mean', 'sum' or 'none', written in the call, got {reduction}")
    if name != "mean" and not _absent(denominator):
        raise TypingError(f"denominator: only reduction='mean' divides, got reduction={name!r}")
    flags = UNSIGNED_IGNORE_INDEX * (isinstance(ignore_index, types.Integer) and not ignore_index.signed)
    flags += HAS_DENOMINATOR * (not _absent(denominator)) + HAS_BASE * (not _absent(base))
    return _inputs.REDUCTIONS.index(name), flags


_overload = functools.partial(overload, prefer_literal=True, target="cpu")


# --- the functions ----------------------------------------------------------------------------------------------------


@_overload(cross_entropy)
def _cross_entropy(
    logits: Any,
    target: Any,
    axis: Any = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = -100,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    reduction: Any = "mean",
    denominator: Any = None,
    base: Any = None,
    backend: Any = "auto",
    num_threads: Any = None,
) -> Any:
    options = (axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, base)
    how, flags = _check_loss(logits, target, *options)
    _check_runner(backend, num_threads)
    output = int(Output.LOSS)
    values_for, result_of = (_new_values, _second) if _literal(reduction) == "none" else (_no_values, _first)

    def implementation(
        logits: Any,
        target: Any,
        axis: Any = -1,
        weight: Any = None,
        sample_weight: Any = None,
        ignore_index: Any = -100,
        label_smoothing: Any = 0.0,
        z_loss: Any = 0.0,
        reduction: Any = "mean",
        denominator: Any = None,
        base: Any = None,
        backend: Any = "auto",
        num_threads: Any = None,
    ) -> Any:
        values = values_for(logits, axis)
        code, at, label, where, number = _call(
            output,
            how,
            flags,
            axis,
            ignore_index,
            label_smoothing,
            z_loss,
            denominator,
            base,
            1.0,
            logits,
            target,
            weight,
            sample_weight,
            None,
            None,
            values,
        )
        _check(code, at, label, where, number, logits.shape)
        return result_of(number, values)

    return implementation


@_overload(cross_entropy_with_grad)
def _cross_entropy_with_grad(
    logits: Any,
    target: Any,
    axis: Any = -1,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = -100,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    reduction: Any = "mean",
    denominator: Any = None,
    base: Any = None,
    grad_output: Any = None,
    out: Any = None,
    backend: Any = "auto",
    num_threads: Any = None,
) -> Any:
    options = (axis, weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, denominator, base)
    how, flags = _check_loss(logits, target, *options)
    _check_runner(backend, num_threads)
    _check_out(out, logits, logits.ndim)
    by_rows = _literal(reduction) == "none"
    if by_rows:
        _check_rows("grad_output", grad_output, logits)
    else:
        _check_number("grad_output", grad_output, optional=True)
    output = int(Output.GRAD)
    values_for, result_of = (_new_values, _second) if by_rows else (_no_values, _first)
    scale_of, row_grad_of = (_one, _same) if by_rows else (_one if _absent(grad_output) else _same, _nothing)
    grad_for = _new_out if _absent(out) else _given_out

    def implementation(
        logits: Any,
        target: Any,
        axis: Any = -1,
        weight: Any = None,
        sample_weight: Any = None,
        ignore_index: Any = -100,
        label_smoothing: Any = 0.0,
        z_loss: Any = 0.0,
        reduction: Any = "mean",
        denominator: Any = None,
        base: Any = None,
        grad_output: Any = None,
        out: Any = None,
        backend: Any = "auto",
        num_threads: Any = None,
    ) -> Any:
        values = values_for(logits, axis)
        grad = grad_for(logits, out)
        code, at, label, where, number = _call(
            output,
            how,
            flags,
            axis,
            ignore_index,
            label_smoothing,
            z_loss,
            denominator,
            base,
            scale_of(grad_output),
            logits,
            target,
            weight,
            sample_weight,
            row_grad_of(grad_output),
            grad,
            values,
        )
        _check(code, at, label, where, number, logits.shape)
        return LossAndGrad(result_of(number, values), grad)

    return implementation


@register_jitable
def _one(value: Any) -> float:
    return 1.0


@register_jitable
def _same(value: Any) -> Any:
    return value


@register_jitable
def _nothing(value: Any) -> None:
    return None


def _map_overload(function: Callable[..., Any], output: Output) -> None:
    """Register softmax or log_softmax."""
    word = int(output)

    @_overload(function)
    def over_classes(
        logits: Any, axis: Any = -1, out: Any = None, backend: Any = "auto", num_threads: Any = None
    ) -> Any:
        _check_logits(logits)
        _check_number("axis", axis, integer=True)
        _check_out(out, logits, logits.ndim)
        _check_runner(backend, num_threads)
        result_for = _new_out if _absent(out) else _given_out

        def implementation(
            logits: Any, axis: Any = -1, out: Any = None, backend: Any = "auto", num_threads: Any = None
        ) -> Any:
            result = result_for(logits, out)
            code, at, label, where, number = _call(
                word, 1, 0, axis, 0, 0.0, 0.0, None, None, 1.0, logits, None, None, None, None, result, None
            )
            _check(code, at, label, where, number, logits.shape)
            return result

        return implementation


_map_overload(softmax, Output.SOFTMAX)
_map_overload(log_softmax, Output.LOG_SOFTMAX)


@_overload(logsumexp)
def _logsumexp(logits: Any, axis: Any = -1, out: Any = None, backend: Any = "auto", num_threads: Any = None) -> Any:
    _check_logits(logits)
    _check_number("axis", axis, integer=True)
    _check_runner(backend, num_threads)
    if not _absent(out):
        raise TypingError(f"out: logsumexp in compiled code returns a new array; leave it out, got {out}")
    word = int(Output.LSE)

    def implementation(
        logits: Any, axis: Any = -1, out: Any = None, backend: Any = "auto", num_threads: Any = None
    ) -> Any:
        values = _new_values(logits, axis)
        code, at, label, where, number = _call(
            word, 1, 0, axis, 0, 0.0, 0.0, None, None, 1.0, logits, None, None, None, None, None, values
        )
        _check(code, at, label, where, number, logits.shape)
        return values

    return implementation


# --- registration -----------------------------------------------------------------------------------------------------


class _Result(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("code", "at", "label", "axis")] + [("number", ctypes.c_double)]


@ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(_Result))
def _no_core(words: Any, result: Any) -> None:
    result[0] = _Result(NO_CORE, 0, 0, 0, math.nan)


def _address() -> int:
    """Return where the C core takes calls; where it cannot be loaded, of what says so to code that was kept on disk."""
    if _backends.why_not("cython") is not None:
        return ctypes.cast(_no_core, ctypes.c_void_p).value or 0
    from fastce import _core

    isa = os.environ.get("FASTCE_ISA")
    return _core.flat_call_address(os.fsencode(isa) if isa else None)


def init() -> None:
    """Tell Numba's linker the name of the core; the functions are registered by the import of this module."""
    llvmlite.binding.add_symbol(SYMBOL, _address())
