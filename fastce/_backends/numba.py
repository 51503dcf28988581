"""The Numba backend: from a Problem to one compiled kernel and its arguments.

A kernel is compiled when first needed, one for each combination of dtypes and target, and called for each task by a
loop that exists twice, with and without threads: Numba's threading layers kill the process when two threads are
inside (workqueue) or when used in a forked child (omp). The kernels are in _numba_kernels.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import defaultdict
from contextvars import ContextVar
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding
import numba
import numpy as np
from numba.core import types

from fastce import _dtypes, _inputs, _settings
from fastce._backends import (
    Plan,
    Quick,
    _numba_cache,
    _numba_forks,
    _numba_kernels,
    _numba_pairs,
    _numba_rows,
    _numba_staged,
    _numba_terms,
)
from fastce._backends._numba_lanes import ArrayAddress, RecordAddress, Stream
from fastce._backends._numba_terms import ELEMENTS, Terms
from fastce._backends._numba_tile import (
    AXIS,
    CALL,
    CALL_BYTES,
    DENSE,
    FACTOR,
    FEW,
    GRAD_OUTPUT,
    KEPT,
    LABELS,
    LOGITS,
    MAX_BLOCKS,
    OPERANDS,
    OUT,
    POSITIVE_WEIGHT,
    ROW,
    SAMPLE_WEIGHT,
    SCRATCH,
    SCRATCH_BYTES,
    SHARED_BYTES,
    STREAMED,
    TILE,
)
from fastce._problem import Array, Kind, Output, Problem, Statistics, Totals
from fastce._threads import threads_for

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and without its compiler Numba can do nothing here")

VARIANTS = ("parallel", "serial")

NEAR = 128
"""Classes up to this many bytes apart are gathered row by row."""

_inside = threading.Lock()
"""Held by the one thread that is inside Numba's threading layer."""


def scan(problem: Problem, num_threads: int) -> Totals:
    """Check every row's label, sample weight and dense target; total the weights."""
    return _do(problem, num_threads, checking=True)


def run(problem: Problem, num_threads: int) -> Totals:
    """Do the problem."""
    return _do(problem, num_threads, checking=False)


def variants() -> tuple[str, ...]:
    """Return the loops over tasks."""
    return VARIANTS


def describe(problem: Problem, num_threads: int) -> Plan:
    """Return what this problem would get, were no other thread inside."""
    threads = _threads(num_threads)
    kernel = "vectors of positions" if _across(problem.logits) else "vectors of classes"
    if _is_staged(problem, checking=False):
        kernel = f"staged rows, {kernel}"
    elif problem.output is Output.STATISTICS:
        kernel = f"statistics of rows, {kernel}"
    elif problem.kind is Kind.TEACHER:
        kernel = f"rows beside a teacher's, {kernel}"
    elif problem.kind.element_wise:
        kernel = "vectors of elements"
    elif problem.kind is not Kind.LOGITS:
        kernel = f"rows of probabilities, {kernel}"
    return Plan("parallel" if threads else "serial", kernel, num_threads=threads or 1)


def config() -> dict[str, Any]:
    """Return the versions of Numba and LLVM, and what Numba does about threads and its cache."""
    try:
        layer = numba.threading_layer()
    except ValueError:
        layer = "not started"
    return {
        "numba": numba.__version__,
        "llvm": ".".join(map(str, llvmlite.binding.llvm_version_info)),
        "threading layer": layer,
        "most threads": numba.config.NUMBA_NUM_THREADS,
        "cache": _numba_cache.folder(_numba_kernels.kernel) or "none, no folder can be written",
    }


def _threads(num_threads: int) -> int:
    """Return how many of Numba's threads to use, 0 for none."""
    variant = _settings.current_variant()
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"expected one of the variants {', '.join(VARIANTS)}, got {variant!r}")
    threads = min(num_threads, int(numba.config.NUMBA_NUM_THREADS))
    if variant == "serial" or _numba_forks.forked() or (threads == 1 and variant is None):
        return 0
    return threads


class _Plan(NamedTuple):
    """What all calls of the same dtypes, shapes, strides and options share."""

    record: Array
    """What the kernel is told but for addresses and scales; never written again."""
    entry: int
    """The kernel's address."""
    n_rows: int
    n_blocks: int
    staging: int = 0
    """Bytes that each task stages rows in."""
    visit: Array | None = None
    """The record that visits of staged rows are told."""


_plans: dict[Any, _Plan] = {}

MOST_PLANS = 1000
"""How many are kept; then all are forgotten."""


def _do(p: Problem, num_threads: int, *, checking: bool) -> Totals:
    """Do a problem, or only check its rows."""
    asked = p
    p = _with_usual_operands(p, checking)
    plan = _plan_of(p, checking)
    grad_output, sample_weight = _row_weights(p)
    logits, out, values, dense_weight, class_vector = None, None, None, None, None
    if not checking:
        logits, out, values = p.logits, p.out, _places(p.statistics) if p.statistics else p.row_values
        dense_weight, class_vector = _measure(p)
    totals = _launch(
        plan,
        _threads(min(num_threads, plan.n_blocks)),
        logits,
        p.labels,
        p.dense if p.probabilities is None else p.probabilities,
        sample_weight,
        None if checking else grad_output,
        out,
        values,
        p.class_weight,
        dense_weight,
        class_vector,
        p.factor if p.listed is None else p.listed,
        p.positive_weight,
        p.target_scale,
        p.z_loss,
        p.grad_scale,
    )
    if p.out is not None and asked.out is not None and p.out is not asked.out and totals.bad_row < 0:
        _put(p.out, asked.out)
    return totals


def quick(overrides: tuple[ContextVar[Any], ...]) -> Quick:
    """Return what does small plain calls."""
    return _Quick(overrides)


class _Quick:
    """Small plain calls, of the same dtypes, shapes and strides as one before: validated then, done here at once."""

    def __init__(self, overrides: tuple[ContextVar[Any], ...]) -> None:
        self._overrides = overrides
        self._tasks = _tasks(parallel=False)
        self._losses: dict[Any, _Plan | None] = {}
        self._gradients: dict[Any, tuple[_Plan, _Plan] | None] = {}

    def loss(
        self,
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
        num_threads: Any,
    ) -> float | None:
        """Return the mean or the sum of the losses, or None."""
        if weight is not None or sample_weight is not None or denominator is not None or base is not None:
            return None
        if type(logits) is not np.ndarray or type(target) is not np.ndarray or type(reduction) is not str:
            return None
        if reduction not in ("mean", "sum"):
            return None
        if not self._plain(axis, ignore_index, label_smoothing, z_loss, num_threads):
            return None
        key = logits.shape, logits.strides, logits.dtype, target.strides, target.dtype, target.shape, ignore_index
        try:
            plan = self._losses[key]
        except KeyError:
            plan = self._learn_loss(key, logits, target)
        if plan is None:
            return None
        bad, loss, total = _visit(self._tasks, plan, None, 1, logits, target, *_PLAIN)
        if bad < plan.n_rows:
            return None
        return loss if reduction == "sum" else loss / total if total > 0 else None

    def loss_and_grad(
        self,
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
        grad_output: Any,
        out: Any,
        num_threads: Any,
    ) -> tuple[float, Array] | None:
        """Return the mean loss and its gradient, or None."""
        if weight is not None or sample_weight is not None or denominator is not None or base is not None:
            return None
        if type(logits) is not np.ndarray or type(target) is not np.ndarray or type(reduction) is not str:
            return None
        if reduction != "mean" or grad_output is not None:
            return None
        if not self._plain(axis, ignore_index, label_smoothing, z_loss, num_threads):
            return None
        if out is None and logits.dtype.isnative:
            out = np.empty_like(logits)
        if type(out) is not np.ndarray:
            return None
        inputs = logits.shape, logits.strides, logits.dtype, target.strides, target.dtype, target.shape, ignore_index
        key = *inputs, out.strides, out.dtype, out.shape
        try:
            plans = self._gradients[key]
        except KeyError:
            plans = self._learn_gradient(key, logits, target, out)
        if plans is None or not out.flags.writeable:
            return None
        if (out is not logits and np.may_share_memory(out, logits)) or np.may_share_memory(out, target):
            return None
        scan, plan = plans
        bad, loss, total = _visit(self._tasks, plan, scan, 1, logits, target, None, None, None, out, *_PLAIN[4:])
        return (loss / total, out) if bad == plan.n_rows and total > 0 else None

    def _plain(self, axis: Any, ignore_index: Any, label_smoothing: Any, z_loss: Any, num_threads: Any) -> bool:
        """Tell whether options are at their defaults, but for the number of threads, of which such calls get one."""
        for variable in self._overrides:
            if variable.get() is not None:
                return False
        if type(axis) is not int or axis != -1 or type(ignore_index) is not int:
            return False
        if type(label_smoothing) is not float or label_smoothing or type(z_loss) is not float or z_loss:
            return False
        return num_threads is None or (type(num_threads) is int and num_threads > 0)

    def _learn_loss(self, key: Any, logits: Array, target: Array) -> _Plan | None:
        request = _inputs.loss_request(logits, target, ignore_index=key[6], **_DEFAULTS)
        plan = _plan_of(request.problem, checking=False) if _is_small(request.problem) else None
        return _remember(self._losses, key, plan)

    def _learn_gradient(self, key: Any, logits: Array, target: Array, out: Array) -> tuple[_Plan, _Plan] | None:
        request = _inputs.loss_request(logits, target, ignore_index=key[6], gradient=True, out=out, **_DEFAULTS)
        plans = None
        if _is_small(request.problem):
            plans = _plan_of(request.problem, checking=True), _plan_of(request.problem, checking=False)
        return _remember(self._gradients, key, plans)


_DEFAULTS: dict[str, Any] = {
    "axis": -1,
    "weight": None,
    "sample_weight": None,
    "label_smoothing": 0.0,
    "reduction": "mean",
    "denominator": None,
    "base": None,
}
"""The options of a plain call."""

_PLAIN = None, None, None, None, None, None, None, None, None, None, 1.0, 0.0, 1.0
"""The arguments of a visit that follow the labels."""


def _is_small(p: Problem) -> bool:
    """Tell whether labels are all there is to a problem of usual dtypes, which one thread does on its own."""
    usual = p.logits.dtype.isnative and (p.out is None or p.out.dtype == p.logits.dtype)
    return usual and p.labels is not None and p.logits.size > 0 and threads_for(p, 2) == 1


_Value = TypeVar("_Value")


def _remember(memory: dict[Any, _Value], key: Any, value: _Value) -> _Value:
    if len(memory) >= MOST_PLANS:
        memory.clear()
    memory[key] = value
    return value


def _launch(plan: _Plan, threads: int, *arguments: Any) -> Totals:
    if not threads or not _inside.acquire(blocking=False):
        bad, loss, weight = _visit(_tasks(parallel=False), plan, None, threads or 1, *arguments)
    else:
        try:
            before = numba.get_num_threads()
            numba.set_num_threads(threads)
            try:
                bad, loss, weight = _visit(_tasks(parallel=True), plan, None, threads, *arguments)
            finally:
                numba.set_num_threads(before)
        finally:
            _inside.release()
    return Totals(bad, 0.0, 0.0) if bad < plan.n_rows else Totals(-1, loss, weight)


def _visit(tasks: Any, plan: _Plan, scan: _Plan | None, n_tasks: int, *arguments: Any) -> tuple[int, float, float]:
    """Return the first bad row, or the number of rows, and the sums of losses and weights."""
    rooms = _rooms[n_tasks] if plan.staging == 0 else _rooms[n_tasks, plan.staging]
    try:
        room = rooms.pop()
    except IndexError:
        room = _new_room(n_tasks, plan.staging)
    entry, record = (0, None) if scan is None else (scan.entry, scan.record)
    totals: tuple[int, float, float] = tasks(plan.entry, plan.record, entry, record, room, n_tasks, *arguments)
    if plan.staging <= MOST_KEPT_STAGING:
        rooms.append(room)
    return totals


_rooms: defaultdict[Any, list[Array]] = defaultdict(list)
"""Working memory of calls that are over, by the number of tasks, and what each has for staging if anything. A call
takes some, or makes it, and gives it back: none is ever shared."""

MOST_KEPT_STAGING = 1 << 21


def _new_room(n_tasks: int, staging: int) -> Array:
    line = 64
    room = np.empty(SHARED_BYTES + n_tasks * (SCRATCH_BYTES + staging) + line, np.uint8)
    skipped = -room.ctypes.data % line
    return room[skipped:]


@functools.cache
def _tasks(parallel: bool) -> Any:
    """Return the loop over tasks, a function of integers, arrays (None where there is none) and numbers."""
    array = ArrayAddress()
    kernels = types.int64, array, types.int64, array
    arguments = *kernels, RecordAddress(numba.from_dtype(CALL)), types.int64, *(array,) * 12
    result = types.containers.Tuple((types.int64, types.float64, types.float64))
    signature = result(*arguments, *(types.float64,) * 3)
    return _compiled(_numba_kernels.tasks, signature, parallel=parallel).entry_point


@functools.cache
def _kernel(function: Any, kinds: tuple[Any, ...]) -> int:
    """Return the address of a kernel for arguments of these types."""
    records = numba.from_dtype(CALL), numba.from_dtype(SCRATCH)
    result = _compiled(function, types.void(*records, types.int64, *kinds), no_cpython_wrapper=True)
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name))


def _compiled(function: Any, signature: Any, **options: Any) -> Any:
    dispatcher = numba.njit(nogil=True, **options)(function)
    with contextlib.suppress(OSError, RuntimeError):  # compiled anew in each process where nothing can be written
        dispatcher._cache = _numba_cache.Cache(function, options)
    result = dispatcher.get_compile_result(signature)
    _alive.append(dispatcher)
    return result


_alive: list[Any] = []
"""Whatever has been compiled: the code goes with the dispatcher."""


def _function(p: Problem, checking: bool) -> tuple[Any, tuple[Any, ...]]:
    """Return the kernel, and the types of its arguments that stand for types."""
    if p.kind.element_wise:
        return _numba_terms.elements, _element_kinds(p, checking)
    if p.output is Output.STATISTICS:
        return _numba_rows.statistics, _kinds(p, checking)
    kinds = _kinds(p, checking)
    shifted = not checking and kinds[-1] is not types.none
    if shifted and p.kind is Kind.LOGITS and p.n_classes == 2 and not p.gamma:
        return _numba_pairs.pairs, kinds
    if checking or p.kind is Kind.LOGITS:
        return _numba_kernels.kernel, kinds
    return _numba_rows.distillation if p.kind is Kind.TEACHER else _numba_terms.rows, kinds


def _kinds(p: Problem, checking: bool) -> tuple[Any, ...]:
    """Return the types of the kernel's arguments that stand for types: x, dense, q, out, logarithm, across, shifted."""
    real = "f8" if p.real == np.float64 else "f4"
    if p.statistics is not None:
        asked = (types.none if part is None else types.int64 for part in _asked(p.statistics))
        return Stream(_code(p.logits), real), *asked, types.int64 if _across(p.logits) else types.none, types.none
    if checking and p.kind is Kind.TEACHER:  # any logit is acceptable
        return (types.none,) * 7
    dense = types.none if p.dense is None else Stream(_code(p.dense), real)
    if checking:
        across = p.dense is not None and _across(p.dense)
        return types.none, dense, types.none, types.none, types.none, types.int64 if across else types.none, types.none
    across, few = _across(p.logits), p.n_classes <= FEW
    measure = p.class_vector is not None or p.dense is not None
    x = Stream(_code(p.logits), real)
    if p.kind not in (Kind.LOGITS, Kind.TEACHER):
        x = Terms(_code(p.logits), real, p.kind, frozenset({"clips"} if p.clip > 0 else ()))
    return (
        x,
        dense,
        Stream(real, real) if measure else types.none,
        types.none if p.out is None else Stream(_code(p.out), real),
        types.int64 if p.output is Output.LOG_SOFTMAX else types.none,
        types.int64 if across else types.none,
        types.int64 if p.labels is not None and not measure and p.z_loss == 0 and (few or not across) else types.none,
    )


def _element_kinds(p: Problem, checking: bool) -> tuple[Any, ...]:
    """Return the same for an element-wise kind: x, dense, sample, out, factor, positive, grad_output."""
    real = "f8" if p.real == np.float64 else "f4"
    if p.dense is None:
        raise TypeError("an element-wise problem has a dense target")
    code, options = _code(p.logits), {"clips": p.clip > 0, "focal": p.gamma > 0, "plain": _is_plain(p)}
    if checking:  # logits are not read
        code, options = f"f{real[1]}", {"checks": True}

    def weights(array: Array | None) -> Any:
        return types.none if array is None else Stream(_code(array), "f8" if _is_wide(array) else real)

    return (
        Terms(code, real, p.kind, frozenset(option for option, given in options.items() if given)),
        Stream(_code(p.dense), real),
        weights(p.sample_weight),
        types.none if checking or p.out is None else Stream(_code(p.out), real),
        weights(p.factor),
        weights(p.positive_weight),
        types.none if checking else weights(p.grad_output),
    )


def _is_plain(p: Problem) -> bool:
    """Tell whether an element-wise loss is made of the target as it is."""
    even = p.positive == 1 and p.negative == 1 and p.positive_weight is None
    return even and p.target_scale == 1 and p.class_vector is None


def _plan_of(p: Problem, checking: bool) -> _Plan:
    arrays = (
        p.logits,
        p.labels,
        p.dense,
        p.sample_weight,
        p.grad_output,
        p.out,
        p.factor,
        p.positive_weight,
        p.listed,
        p.probabilities,
    )
    key = (
        checking,
        p.output,
        p.kind,
        p.temperature,
        p.softcap,
        None if p.listed is None else (p.listed.shape[-1], p.spread_missing, p.most_listed),
        None if p.statistics is None else _asked(p.statistics),
        p.ignore_index,
        p.z_loss == 0,
        p.class_vector is None,
        p.target_scale == 1,
        p.clip,
        p.gamma,
        p.positive,
        p.negative,
        p.logits.shape,
        *(None if array is None else (array.dtype, array.strides) for array in arrays),
    )
    plan = _plans.get(key)
    return _remember(_plans, key, _make_plan(p, checking)) if plan is None else plan


def _make_plan(p: Problem, checking: bool) -> _Plan:
    if _is_staged(p, checking):
        return _make_staged_plan(p, checking)
    record = _make_record(p, checking, _tile(p))
    return _Plan(record, _kernel(*_function(p, checking)), p.n_rows, int(record[0]["n_blocks"]))


def _tile(p: Problem) -> int:
    """Return how many rows are done together, at most."""
    if p.kind.element_wise:
        return ELEMENTS
    return TILE if _across(p.logits) else min(64, max(1, KEPT // p.n_classes))


def _make_record(p: Problem, checking: bool, tile: int) -> Array:
    """Return what a kernel is told but for addresses and scales, and what concerns rows that are staged."""
    record = np.zeros(1, CALL)
    call = record[0]
    call["n_rows"] = n_rows = p.n_rows
    call["n_classes"] = n_classes = p.n_classes
    call["tile"] = tile
    call["block_rows"] = block_rows = _block_rows(n_rows, n_classes, tile)
    call["n_blocks"] = -(-n_rows // block_rows)
    call["temperature"] = p.temperature
    call["lse"] = p.output is Output.LSE
    call["streamed"] = not checking and p.out is not None and p.out.nbytes > STREAMED
    integers = p.labels if p.listed is None else p.listed
    if integers is not None:
        call["label_bits"] = 8 * integers.itemsize
        call["label_unused"] = 64 - 8 * integers.itemsize if integers.dtype.kind == "i" else 0
        call["label_swapped"] = not integers.dtype.isnative
        ignore_index = p.ignore_index
        if p.listed is not None:
            ignore_index = -1 if integers.dtype.kind == "i" else None
        if ignore_index is not None:
            call["can_ignore"] = 1
            call["ignore_index"] = (ignore_index + 2**63) % 2**64 - 2**63
    call["lowest"], call["highest"] = p.real.type(p.clip), p.real.type(1 - p.clip)
    call["gamma"], call["positive"], call["negative"] = p.gamma, p.positive, p.negative
    grad_output, sample_weight = _row_weights(p)
    call["sample_wide"] = sample_weight is not None and sample_weight.itemsize == 8
    call["output_wide"] = grad_output is not None and grad_output.itemsize == 8
    operands = {
        LABELS: p.labels,
        DENSE: p.dense if p.probabilities is None else p.probabilities,
        SAMPLE_WEIGHT: sample_weight,
        FACTOR: p.factor if p.listed is None else p.listed,
        POSITIVE_WEIGHT: p.positive_weight,
    }
    if not checking:
        operands |= {LOGITS: p.logits, GRAD_OUTPUT: grad_output, OUT: p.out}
    _put_layout(call, p.positions, {key: array for key, array in operands.items() if array is not None})
    return record


# Rows that are staged: _numba_staged.py


def _is_staged(p: Problem, checking: bool) -> bool:
    """Tell whether rows are visited as they are staged, not as they lie."""
    return p.listed is not None or (not checking and _is_transformed(p))


def _is_transformed(p: Problem) -> bool:
    return p.kind is Kind.LOGITS and (p.softcap > 0 or p.temperature != 1)


STAGED_BYTES = 1 << 19
"""Of logits staged together, at most, where positions are side by side."""

LEAST_STAGED = 16
"""Positions that are staged together all the same: less would not fill a cache line."""


def _make_staged_plan(p: Problem, checking: bool) -> _Plan:
    """Say what is staged and where, how it is made, and what a visit of it is told."""
    size, n_classes = p.real.itemsize, p.n_classes
    name = f"f{size}"
    across = _across(p.logits)
    tile = _tile(p)
    if across:
        tile = min(tile, max(LEAST_STAGED, STAGED_BYTES // (size * n_classes) // LEAST_STAGED * LEAST_STAGED))
    record = _make_record(p, checking, tile)
    call = record[0]
    end = _numba_staged.STAGED_AT

    def room(size: int) -> int:
        nonlocal end
        start, end = end, end + -(-size // 64) * 64
        return start

    def kernel(function: Any, **streams: Stream) -> int:
        at = types.int64 if across and function is not _numba_staged.stage_lists else types.none
        kinds = (streams.get(name, types.none) for name in ("x", "dense", "q", "out"))
        return _kernel(function, (*kinds, types.none, at, types.none))

    real = Stream(name, name)
    if p.listed is not None and p.probabilities is not None:
        call["list_length"] = length = p.listed.shape[-1]
        call["largest_listed"], call["most_listed"] = p.largest_target, p.most_listed
        call["spreads"] = p.spread_missing
        call["lists"] = room(length * _numba_staged.LISTED_BYTES)
        call["list_entry"] = kernel(_numba_staged.stage_lists, dense=Stream(_code(p.probabilities), "f8"), q=real)
    visit = None
    if not checking:
        pitch = tile + 2 * LEAST_STAGED  # whole vectors are written, and no power of two
        row, to_class = (size, pitch * size) if across else (n_classes * size, size)
        call["stage_row"], call["stage_class"] = row, to_class
        call["stage_bytes"] = n_bytes = (pitch if across else tile) * n_classes * size
        transformed, capped = _is_transformed(p), p.softcap > 0
        out = p.out is not None and (capped or _code(p.out) != name)
        logits = transformed or out or _code(p.logits) != name
        staged = {LOGITS: logits, OUT: out, DENSE: p.listed is not None}
        if logits:
            call["stage"][LOGITS] = room(n_bytes)
            call["stage_entry"] = kernel(_numba_staged.stage_logits, x=Stream(_code(p.logits), name))
        if out and p.out is not None:
            call["stage"][OUT] = call["stage"][LOGITS]
            call["slopes"] = room(n_bytes) if capped else 0
            call["send_entry"] = kernel(_numba_staged.send_gradient, x=real, out=Stream(_code(p.out), name))
        if p.listed is not None:
            call["stage"][DENSE] = room(n_bytes)
        _put_transform(call, p)
        visited = _visited(p, tile, staged, (row, to_class))
        visit = _make_record(visited, checking, tile)
        visit["tile"], visit["n_blocks"], visit["streamed"] = tile, 1, call["streamed"] and not out
        function, kinds = _function(visited, checking)
        if call["shifts"] and kinds[-1] is not types.none:
            call["shifts"] = _numba_staged.BY_LABEL
        visit["shifts"], visit["checked"] = call["shifts"], p.listed is not None
        call["visit_plan"] = visit.ctypes.data
        call["visit_entry"] = _kernel(function, kinds)
    call["staging"] = staging = 1 << (end - 1).bit_length()
    entry = _kernel(_numba_staged.staged, (types.none,) * 7)
    return _Plan(record, entry, p.n_rows, int(call["n_blocks"]), staging, visit)


def _put_transform(call: Any, p: Problem) -> None:
    """Describe what is done to logits."""
    call["shifts"] = _numba_staged.BY_MAXIMUM if p.temperature != 1 and not p.softcap else 0
    call["gradient_divisor"] = 1.0 if p.softcap else p.temperature
    temperature, limits = Fraction(p.temperature), np.finfo(p.real)
    most, least = Fraction(float(limits.max)), float(limits.smallest_subnormal)
    inverse = min(1 / temperature, most)
    # Rounded down, and a rest above 0: in a product with an infinity both have its sign.
    high = p.real.type(float(inverse))
    high = np.nextafter(high, 0 * high) if Fraction(float(high)) >= inverse else high
    high = max(float(high), least)
    call["per_temperature"] = high, max(float(inverse - Fraction(high)), least)
    call["softcap"] = p.softcap
    if p.softcap:
        call["per_softcap"] = float(min(1 / (temperature * Fraction(p.softcap)), most))
        call["steepest"] = float(min(4 / temperature, most))


def _visited(p: Problem, rows: int, staged: dict[int, bool], steps: tuple[int, int]) -> Problem:
    """Return a problem like that of the staged rows, in dtypes, strides along the classes, and options."""
    shape = rows, p.n_classes

    def per_row(array: Array | None) -> Array | None:
        return None if array is None else np.zeros(rows, array.dtype)

    def per_class(operand: int, array: Array) -> Array:
        here = staged[operand]
        dtype, strides = (p.real, steps) if here else (array.dtype, (0, array.strides[-1]))
        return np.lib.stride_tricks.as_strided(np.zeros(1, dtype), shape, strides)

    grad_output, sample_weight = _row_weights(p)
    target = p.dense if p.probabilities is None else p.probabilities
    return dataclasses.replace(
        p,
        logits=per_class(LOGITS, p.logits),
        out=None if p.out is None else per_class(OUT, p.out),
        dense=None if target is None else per_class(DENSE, target),
        labels=per_row(p.labels),
        grad_output=per_row(grad_output),
        sample_weight=per_row(sample_weight),
        listed=None,
        probabilities=None,
        temperature=1.0,
        softcap=0.0,
    )


def _asked(statistics: Statistics) -> _numba_rows.Asked:
    return _numba_rows.asked_of({name for name, array in statistics._asdict().items() if array is not None})


def _places(statistics: Statistics) -> Array:
    """Return where the statistics go, 0 for what is not asked for."""
    found = statistics._asdict()
    arrays = (found[name] for name in _numba_rows.FIELDS)
    return np.array([0 if array is None else array.ctypes.data for array in arrays], np.int64)


_ZERO = np.zeros(1)
"""As float32 its first is 0 too."""


def _measure(p: Problem) -> tuple[Array | None, Array | None]:
    """Return w and v of q = w*t + v in the arithmetic's dtype, or what is needed of them."""
    if p.kind is Kind.TEACHER:
        return None, None
    if p.kind.element_wise:
        return None, _ZERO if p.class_vector is None else p.class_vector.astype(p.real)
    if p.dense is None and p.listed is None:
        return None, None if p.class_vector is None else p.class_vector.astype(p.real)
    plain = p.class_vector is None and p.class_weight is None and p.target_scale == 1.0
    as_read = p.dense is None or _code(p.dense) == f"f{p.real.itemsize}"
    if plain and as_read and not _across(p.logits):
        return None, np.zeros(1, p.real)
    ones = np.ones(p.n_classes) if p.class_weight is None else p.class_weight
    v = np.zeros(p.n_classes) if p.class_vector is None else p.class_vector
    return (p.target_scale * ones).astype(p.real), v.astype(p.real)


def _put_layout(call: Any, positions: tuple[int, ...], operands: dict[int, Array]) -> None:
    """Describe where things lie. Axes are ordered by the stride of the logits and joined where all strides allow it."""
    lines = []
    row = 1
    for axis in reversed(range(len(positions))):
        if positions[axis] > 1:
            strides = [0] * OPERANDS
            strides[ROW] = row
            for operand, array in operands.items():
                strides[operand] = array.strides[axis]
            lines.append((positions[axis], strides))
            row *= positions[axis]
    lines.sort(key=lambda line: abs(line[1][LOGITS]), reverse=True)
    axes: list[tuple[int, list[int]]] = []
    for size, strides in lines or [(1, [0] * OPERANDS)]:
        if axes and axes[-1][1] == [size * stride for stride in strides]:
            size *= axes.pop()[0]
        axes.append((size, strides))

    call["axes"] = len(axes)
    call["inner"] = axes[-1][1]
    for index, (size, strides) in enumerate(axes):
        call["axis"][index * AXIS : (index + 1) * AXIS] = (size, *strides)
    call["bytes"] = CALL_BYTES + 8 * AXIS * len(axes)
    for operand, array in operands.items():
        if array.ndim > len(positions):
            call["class_stride"][operand] = array.strides[-1]


def _block_rows(n_rows: int, n_classes: int, tile: int) -> int:
    """Return how many rows share one sum: enough to be worth a visit, few enough to share out."""
    rows = max(-(-n_rows // MAX_BLOCKS), -(-32768 // n_classes))
    return rows if rows < tile else -(-rows // tile) * tile


def _across(array: Array) -> bool:
    """Tell whether vectors are made of positions: the classes are few, or far apart."""
    return array.shape[-1] <= FEW or abs(array.strides[-1]) > NEAR


def _code(array: Array) -> str:
    """Return the name of a dtype as Stream has it."""
    dtype = array.dtype
    kind = "bf" if _dtypes.name_of(dtype) == "bfloat16" else dtype.kind
    return f"{'' if dtype.isnative else '>'}{kind}{dtype.itemsize}"


def _with_usual_operands(p: Problem, checking: bool) -> Problem:
    """Return the problem with its small arrays in dtypes that kernels are at hand for.

    A kernel for each dtype of each operand takes longer to compile than any small array to copy, and so does one for
    each choice of the weights of elements: where some are given, small problems have others too, which are 1.
    """
    usual: dict[str, Any] = {}
    if not checking:
        usual["logits"] = _usual_logits(p.logits)
        usual["out"] = _usual_output(p)
    names = _OPERANDS if p.kind.element_wise else ("dense",)  # weights of rows are copied anyway: _row_weights
    usual |= {name: _usual(getattr(p, name), p) for name in names}
    if p.probabilities is not None:
        usual["probabilities"] = _usual_probabilities(p.probabilities)
    if p.kind.element_wise and p.logits.size <= SMALL:
        usual |= {name: _ones(p) for name in _missing_weights(p, checking)}
    changed: dict[str, Any] = {name: array for name, array in usual.items() if array is not getattr(p, name)}
    return dataclasses.replace(p, **changed) if changed else p


_OPERANDS = "dense", "sample_weight", "grad_output", "factor", "positive_weight"

SMALL = 1 << 16
"""Elements of an array that may be copied."""

TINY = 1 << 12
"""Elements that may be copied where kernels for them as they are may well be at hand."""


def _usual_logits(array: Array) -> Array:
    """Return logits, copied where they are small and their bytes in the other order."""
    if array.dtype.isnative or array.size > SMALL:
        return array
    copied = array.astype(array.dtype.newbyteorder("="))
    return copied if _across(copied) == _across(array) else array  # the strides say which kernel rows get


def _usual_output(p: Problem) -> Array | None:
    """Return where a kernel writes: `out`, or an array that `_put` copies there as the kernel itself would write it."""
    out, own = p.out, p.logits.dtype.newbyteorder("=")
    if out is None or out.dtype == own or out.size > SMALL:
        return out
    return np.empty_like(out, own if out.dtype.newbyteorder("=") == own else p.real)


def _put(written: Array, out: Array) -> None:
    """Copy what a kernel wrote to where it belongs."""
    with np.errstate(all="ignore"):
        if out.dtype.itemsize == 2 and written.dtype.itemsize == 8:
            written = written.astype(np.float32)  # kernels round twice
        np.copyto(out, written, casting="unsafe")


def _missing_weights(p: Problem, checking: bool) -> set[str]:
    """Return which weights of elements are absent while others are there, of those that make no difference as ones."""
    wanted: set[str] = set()
    if p.sample_weight is not None or p.factor is not None or (checking and p.positive_weight is not None):
        wanted |= {"sample_weight", "factor"}
    if (checking and wanted) or (not checking and p.kind is Kind.BINARY_LOGITS and not p.gamma and not _is_plain(p)):
        wanted |= {"positive_weight"}
    if wanted and not checking and p.out is not None:
        wanted |= {"grad_output"}
    return {name for name in wanted if getattr(p, name) is None}


_ONE = np.ones(1)


def _ones(p: Problem) -> Array:
    """Return weights of 1 for all positions."""
    ones: Array = np.ndarray(p.positions, _ONE.dtype, _ONE, 0, (0,) * len(p.positions))
    return ones


def _usual(array: Array | None, p: Problem) -> Array | None:
    """Return a dense target in the arithmetic's dtype, or the logits', and weights in float64, where they are few."""
    if array is None:
        return None
    usual = (p.real, p.logits.dtype) if array is p.dense else (_WIDE,)
    if array.dtype.isnative and array.dtype in usual:
        return array
    once = array[tuple(slice(1 if stride == 0 else None) for stride in array.strides)]
    if once.size > (TINY if array.dtype.isnative and array.dtype.char in "fd" else SMALL):
        return array
    with np.errstate(all="ignore"):
        return np.broadcast_to(once.astype(usual[0]), array.shape)


_WIDE = np.dtype(np.float64)


def _usual_probabilities(array: Array) -> Array:
    """Return the probabilities of lists, copied where they are small and neither float32 nor float64."""
    if (array.dtype.isnative and array.dtype.char in "fd") or array.size > SMALL:
        return array
    return array.astype(np.float64)


def _is_wide(weights: Array) -> bool:
    """Tell whether float32 does not hold all numbers of this dtype: they are read as float64 then."""
    return weights.itemsize == 8 or (weights.itemsize == 4 and weights.dtype.kind in "iu")


def _row_weights(p: Problem) -> tuple[Array | None, Array | None]:
    """Return grad_output and sample weights as the kernels read them."""
    if p.kind.element_wise:
        return p.grad_output, p.sample_weight
    return _per_row(p.grad_output), _per_row(p.sample_weight)


def _per_row(array: Array | None) -> Array | None:
    """Return weights as the kernels read them: float32 or float64."""
    if array is None or (array.dtype.isnative and array.dtype.char in "fd"):
        return array
    return array.astype(np.float64)
