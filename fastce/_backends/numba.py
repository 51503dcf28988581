"""The Numba backend: from a Problem to one compiled kernel and its arguments.

A kernel is compiled when first needed, one for each combination of dtypes and target, and called for each task by a
loop that exists twice, with and without threads: Numba's threading layers kill the process when two threads are
inside (workqueue) or when used in a forked child (omp). The kernels are in _numba_kernels.py.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba.core import types

from fastce import _dtypes, _settings
from fastce._backends import Plan, _numba_cache, _numba_forks, _numba_kernels
from fastce._backends._numba_lanes import Stream
from fastce._backends._numba_tile import (
    CALL,
    DENSE,
    FEW,
    GRAD_OUTPUT,
    KEPT,
    LABELS,
    LOGITS,
    OPERANDS,
    OUT,
    ROW,
    SAMPLE_WEIGHT,
    SCRATCH,
    TILE,
)
from fastce._problem import Array, Output, Problem, Totals

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


def _do(problem: Problem, num_threads: int, *, checking: bool) -> Totals:
    """Do a problem, or only check its rows."""
    call, blocks, kept = _describe_call(problem, checking)
    entry = _kernel(_kinds(problem, checking))
    threads = _threads(min(num_threads, len(blocks)))
    call["n_tasks"] = n_tasks = max(1, threads)
    _launch(threads, entry, call, np.empty(n_tasks, SCRATCH))
    del kept

    bad = int(blocks["bad"].min())
    if bad < problem.n_rows:
        return Totals(bad, 0.0, 0.0)
    return Totals(-1, _sum(blocks["loss"]), _sum(blocks["weight"]))


def _launch(threads: int, entry: int, call: Array, scratch: Array) -> None:
    arguments = entry, _address(call), _address(scratch), scratch.itemsize, len(scratch)
    if not threads or not _inside.acquire(blocking=False):
        _tasks(parallel=False)(*arguments)
        return
    try:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            _tasks(parallel=True)(*arguments)
        finally:
            numba.set_num_threads(before)
    finally:
        _inside.release()


@functools.cache
def _tasks(parallel: bool) -> Any:
    """Return the loop over tasks, a function of Python integers."""
    return _compiled(_numba_kernels.tasks, (types.int64,) * 5, parallel=parallel).entry_point


@functools.cache
def _kernel(kinds: tuple[Any, ...]) -> int:
    """Return the address of the kernel for arguments of these types."""
    records = numba.from_dtype(CALL), numba.from_dtype(SCRATCH)
    result = _compiled(_numba_kernels.kernel, (*records, types.int64, *kinds), no_cpython_wrapper=True)
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_cfunc_wrapper_name))


def _compiled(function: Any, arguments: tuple[Any, ...], **options: Any) -> Any:
    dispatcher = numba.njit(nogil=True, **options)(function)
    with contextlib.suppress(OSError, RuntimeError):  # compiled anew in each process where nothing can be written
        dispatcher._cache = _numba_cache.Cache(function, options)
    result = dispatcher.get_compile_result(types.void(*arguments))
    _alive.append(dispatcher)
    return result


_alive: list[Any] = []
"""Whatever has been compiled: the code goes with the dispatcher."""


def _kinds(p: Problem, checking: bool) -> tuple[Any, ...]:
    """Return the types of the kernel's arguments that stand for types: x, dense, q, out, logarithm, across, shifted."""
    real = "f8" if p.real == np.float64 else "f4"
    dense = types.none if p.dense is None else Stream(_code(p.dense), real)
    if checking:
        across = p.dense is not None and _across(p.dense)
        return types.none, dense, types.none, types.none, types.none, types.int64 if across else types.none, types.none
    across = _across(p.logits)
    measure = p.class_vector is not None or p.dense is not None
    return (
        Stream(_code(p.logits), real),
        dense,
        Stream(real, real) if measure else types.none,
        types.none if p.out is None else Stream(_code(p.out), real),
        types.int64 if p.output is Output.LOG_SOFTMAX else types.none,
        types.int64 if across else types.none,
        types.int64 if p.labels is not None and not measure and not across and p.z_loss == 0 else types.none,
    )


_BLOCK = np.dtype([("loss", "f8", 2), ("weight", "f8", 2), ("bad", "i8")])
"""What comes back of a block of rows: high and low parts of sums, and the first bad row or the number of rows."""


def _describe_call(p: Problem, checking: bool) -> tuple[Array, Array, list[Array]]:
    """Return what the kernel is told, what it answers, and what must not be freed while it runs."""
    record = np.zeros(1, CALL)
    call, kept = record[0], []
    call["n_rows"] = n_rows = p.n_rows
    call["n_classes"] = n_classes = p.n_classes
    call["tile"] = tile = TILE if _across(p.logits) else min(64, max(1, KEPT // n_classes))
    call["block_rows"] = block_rows = _block_rows(n_rows, n_classes, tile)
    call["n_blocks"] = n_blocks = -(-n_rows // block_rows)
    blocks = np.zeros(n_blocks, _BLOCK)
    call["blocks"] = _address(blocks)
    call["lse"] = p.output is Output.LSE
    call["target_scale"], call["z_loss"], call["grad_scale"] = p.target_scale, p.z_loss, p.grad_scale
    if p.labels is not None:
        call["label_bits"] = 8 * p.labels.itemsize
        call["label_unused"] = 64 - 8 * p.labels.itemsize if p.labels.dtype.kind == "i" else 0
        call["label_swapped"] = not p.labels.dtype.isnative
        if p.ignore_index is not None:
            call["can_ignore"] = 1
            call["ignore_index"] = (p.ignore_index + 2**63) % 2**64 - 2**63
    if p.class_weight is not None:
        call["class_weight"] = _address(p.class_weight)
    if not checking:
        if p.row_values is not None:
            call["values"] = _address(p.row_values)
        for name, array in _measure(p).items():
            call[name] = _address(array)
            kept.append(array)

    sample_weight, grad_output = _per_row(p.sample_weight), _per_row(p.grad_output)
    call["sample_wide"] = sample_weight is not None and sample_weight.itemsize == 8
    call["output_wide"] = grad_output is not None and grad_output.itemsize == 8
    kept += [array for array in (sample_weight, grad_output) if array is not None]
    operands = {LABELS: p.labels, DENSE: p.dense, SAMPLE_WEIGHT: sample_weight}
    if not checking:
        operands |= {LOGITS: p.logits, GRAD_OUTPUT: grad_output, OUT: p.out}
    _put_layout(call, p.positions, {key: array for key, array in operands.items() if array is not None})
    return record, blocks, kept


def _measure(p: Problem) -> dict[str, Array]:
    """Return w and v of q = w*t + v in the arithmetic's dtype, or what is needed of them."""
    if p.dense is None:
        return {} if p.class_vector is None else {"class_vector": p.class_vector.astype(p.real)}
    plain = p.class_vector is None and p.class_weight is None and p.target_scale == 1.0
    if plain and _code(p.dense) == f"f{p.real.itemsize}" and not _across(p.logits):
        return {"class_vector": np.zeros(1, p.real)}
    ones = np.ones(p.n_classes) if p.class_weight is None else p.class_weight
    v = np.zeros(p.n_classes) if p.class_vector is None else p.class_vector
    return {"dense_weight": (p.target_scale * ones).astype(p.real), "class_vector": v.astype(p.real)}


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
        call["size"][index] = size
        call["stride"][index * OPERANDS : (index + 1) * OPERANDS] = strides
    for operand, array in operands.items():
        call["start"][operand] = _address(array)
        if array.ndim > len(positions):
            call["class_stride"][operand] = array.strides[-1]


def _block_rows(n_rows: int, n_classes: int, tile: int) -> int:
    """Return how many rows share one sum: enough to be worth a visit, few enough to share out."""
    rows = max(-(-n_rows // 1024), -(-32768 // n_classes))
    return rows if rows < tile else -(-rows // tile) * tile


def _across(array: Array) -> bool:
    """Tell whether vectors are made of positions: the classes are few, or far apart."""
    return array.shape[-1] <= FEW or abs(array.strides[-1]) > NEAR


def _code(array: Array) -> str:
    """Return the name of a dtype as Stream has it."""
    dtype = array.dtype
    kind = "bf" if _dtypes.name_of(dtype) == "bfloat16" else dtype.kind
    return f"{'' if dtype.isnative else '>'}{kind}{dtype.itemsize}"


def _per_row(array: Array | None) -> Array | None:
    """Return weights as the kernels read them: float32 or float64."""
    if array is None or (array.dtype.isnative and array.dtype.char in "fd"):
        return array
    return array.astype(np.float64)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _sum(parts: Array) -> float:
    """Return the sum of high and low parts: exact, unless the high ones are not all finite."""
    if np.isfinite(parts[:, 0]).all():
        try:
            return math.fsum(parts.ravel().tolist())
        except OverflowError:
            pass
    with np.errstate(all="ignore"):
        return float(parts[:, 0].sum())
