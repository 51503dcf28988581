"""The Numba backend: from a Problem to one compiled kernel and its arguments.

The kernels are in _numba_kernels.py and compiled when first needed, one for each combination of dtypes and target.
Each has a serial twin, the same text compiled without threads: Numba's threading layers kill the process when
two threads are inside (workqueue) or when used in a forked child (omp).
"""

from __future__ import annotations

import functools
import math
import os
import threading
from typing import Any

import numba
import numpy as np
from numba.core import types

from fastce import _dtypes, _settings
from fastce._backends import Plan
from fastce._backends import _numba_kernels as kernels
from fastce._backends._numba_cache import Cache
from fastce._backends._numba_lanes import Stream
from fastce._problem import Array, Output, Problem, Totals

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and without its compiler Numba can do nothing here")

VARIANTS = ("parallel", "serial")

NEAR = 256
"""Classes up to this many bytes apart are gathered row by row."""

_inside = threading.Lock()
"""Held by the one thread that is inside a parallel kernel."""

_forked = threading.Event()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked.set)


def scan(problem: Problem, num_threads: int) -> Totals:
    """Check every row's label, sample weight and dense target; total the weights."""
    return _launch(problem, num_threads, checking=True)


def run(problem: Problem, num_threads: int) -> Totals:
    """Do the problem."""
    return _launch(problem, num_threads, checking=False)


def variants() -> tuple[str, ...]:
    """Return the parallel kernels and their serial twins."""
    return VARIANTS


def describe(problem: Problem, num_threads: int) -> Plan:
    """Return which of the twins this problem would get, and how its vectors are made."""
    threads = _threads(num_threads)
    kernel = "vectors of positions" if _across(problem.logits) else "vectors of classes"
    return Plan("parallel" if threads else "serial", kernel, num_threads=threads or 1)


def config() -> dict[str, Any]:
    """Return the versions of Numba and LLVM, and what Numba would do with threads."""
    try:
        layer = numba.threading_layer()
    except ValueError:
        layer = "not started"
    return {
        "numba": numba.__version__,
        "llvm": ".".join(map(str, numba.core.codegen.ll.llvm_version_info)),
        "threading layer": layer,
        "threads at most": numba.config.NUMBA_NUM_THREADS,
        "cache": getattr(_dispatcher(parallel=False)._cache, "cache_path", None) or "none: no folder can be written",
    }


def _threads(num_threads: int) -> int:
    """Return how many threads the parallel kernel gets, 0 for the serial twin."""
    variant = _settings.current_variant()
    if variant not in (None, *VARIANTS):
        raise ValueError(f"the Numba backend has the variants {', '.join(VARIANTS)}, not {variant!r}")
    threads = min(num_threads, numba.config.NUMBA_NUM_THREADS)
    if variant == "serial" or _forked.is_set() or (threads == 1 and variant is None):
        return 0
    return int(threads)


def _launch(problem: Problem, num_threads: int, *, checking: bool) -> Totals:
    threads = _threads(num_threads)
    if not threads or not _inside.acquire(blocking=False):
        return _call(problem, 0, checking)
    try:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            return _call(problem, threads, checking)
        finally:
            numba.set_num_threads(before)
    finally:
        _inside.release()


def _call(problem: Problem, threads: int, checking: bool) -> Totals:
    p, keep = problem, []  # what the kernel knows by its address alone must outlive the call
    call = np.zeros(1, kernels.CALL)
    about = call[0]
    across = _across(p.logits)
    code = _code(p.logits)
    real = "f8" if p.real == np.float64 else "f4"
    measure = not checking and (p.class_vector is not None or p.dense is not None)

    about["n_rows"] = n_rows = p.n_rows
    about["n_classes"] = p.n_classes
    about["tile"] = kernels.TILE if across else min(64, max(1, 32768 // p.n_classes))
    about["block_rows"] = block = _block_rows(n_rows, p.n_classes, int(about["tile"]))
    about["n_blocks"] = n_blocks = -(-n_rows // block)
    about["n_tasks"] = max(1, threads)
    about["lse"] = p.output is Output.LSE
    about["target_scale"], about["z_loss"], about["grad_scale"] = p.target_scale, p.z_loss, p.grad_scale
    if p.labels is not None:
        about["label_bits"] = 8 * p.labels.itemsize
        about["label_signed"] = p.labels.dtype.kind == "i"
        about["label_swapped"] = not p.labels.dtype.isnative
        if p.ignore_index is not None:
            about["can_ignore"] = 1
            about["ignore_index"] = (p.ignore_index + 2**63) % 2**64 - 2**63
    if p.class_weight is not None:
        about["class_weight"] = _address(p.class_weight)
    if measure:
        _put_measure(p, about, keep)

    sample_weight, grad_output = _per_row(p.sample_weight), _per_row(p.grad_output)
    about["sample_wide"] = sample_weight is not None and sample_weight.itemsize == 8
    about["output_wide"] = grad_output is not None and grad_output.itemsize == 8
    geometry = _geometry(p, None if checking else p.logits, sample_weight, grad_output, None if checking else p.out)

    values = None if checking else p.row_values
    sums, bads = np.zeros((n_blocks, 4)), np.full(n_blocks, -1)
    signature = (
        numba.typeof(call),
        numba.typeof(geometry),
        types.none if checking else Stream(code, real),
        types.none if p.dense is None else Stream(_code(p.dense), "f8" if checking else real),
        Stream(real, real) if measure else types.none,
        types.none if checking or p.out is None else Stream(_code(p.out), real),
        types.int64 if p.output is Output.LOG_SOFTMAX and not checking else types.none,
        types.int64 if across and not checking else types.none,
        types.none if values is None else types.Array(getattr(types, p.real.name), 1, "C"),
        numba.typeof(sums),
        numba.typeof(bads),
    )
    arguments = [None if isinstance(kind, types.NoneType) else 0 for kind in signature]
    arguments[0], arguments[1], arguments[-3:] = call, geometry, [values, sums, bads]
    _compiled(signature, parallel=threads > 0)(*arguments)

    found = bads[bads >= 0]
    if found.size:
        return Totals(int(found.min()), 0.0, 0.0)
    return Totals(-1, _sum(sums[:, :2]), _sum(sums[:, 2:]))


@functools.lru_cache(maxsize=None)
def _compiled(signature: tuple[Any, ...], parallel: bool) -> Any:
    return _dispatcher(parallel).get_compile_result(types.void(*signature)).entry_point


@functools.lru_cache(maxsize=None)
def _dispatcher(parallel: bool) -> Any:
    options = {"parallel": parallel, "nogil": True}
    dispatcher = numba.njit(**options)(kernels.kernel)
    try:
        dispatcher._cache = Cache(kernels.kernel, options)
    except (OSError, RuntimeError):  # no folder to write to, no source to read
        return dispatcher
    return dispatcher


def _put_measure(p: Problem, about: Any, keep: list[Array]) -> None:
    """Describe q = w*t + v: w and v as arrays of the arithmetic's dtype."""
    v = np.zeros(1, p.real) if p.class_vector is None else p.class_vector.astype(p.real)
    if p.dense is not None:
        plain = p.class_vector is None and p.class_weight is None and p.target_scale == 1.0
        about["direct"] = plain and _code(p.dense) == _code(np.empty(0, p.real))
        if not about["direct"]:
            w = np.full(p.n_classes, p.target_scale) if p.class_weight is None else p.target_scale * p.class_weight
            w = w.astype(p.real)
            if p.class_vector is None:
                v = np.zeros(p.n_classes, p.real)
            about["dense_weight"] = _address(w)
            keep.append(w)
    about["class_vector"] = _address(v)
    keep.append(v)


def _geometry(
    p: Problem, logits: Array | None, sample_weight: Array | None, grad_output: Array | None, out: Array | None
) -> Array:
    """Return start and strides of all that is visited: a line of addresses, one for the class axis, one per axis.

    Axes are ordered by the stride of the logits and joined where all strides allow it.
    """
    operands: list[Array | None] = [None] * kernels.OPERANDS
    operands[kernels.LOGITS] = logits
    operands[kernels.LABELS] = p.labels
    operands[kernels.DENSE] = p.dense
    operands[kernels.SAMPLE_WEIGHT] = sample_weight
    operands[kernels.GRAD_OUTPUT] = grad_output
    operands[kernels.OUT] = out
    positions = p.positions
    n = len(positions)
    start = [0 if array is None else _address(array) for array in operands] + [0]
    classes = [0 if array is None or array.ndim == n else array.strides[-1] for array in operands] + [0]
    lines = []
    row = 1
    for axis in range(n - 1, -1, -1):
        size = positions[axis]
        if size > 1:
            line = [0 if array is None else array.strides[axis] for array in operands] + [size]
            line[kernels.ROW] = row
            lines.append(line)
            row *= size
    lines.sort(key=lambda line: abs(line[kernels.LOGITS]), reverse=True)
    joined: list[list[int]] = []
    for line in lines:
        if joined and all(outer == line[-1] * own for outer, own in zip(joined[-1][:-1], line[:-1], strict=True)):
            joined[-1] = [*line[:-1], joined[-1][-1] * line[-1]]
        else:
            joined.append(line)
    return np.array([start, classes, *(joined or [[0] * kernels.OPERANDS + [1]])], dtype=np.int64)


def _block_rows(n_rows: int, n_classes: int, tile: int) -> int:
    block = max(-(-n_rows // 1024), -(-32768 // n_classes))
    return block if block < tile else -(-block // tile) * tile


def _across(logits: Array) -> bool:
    """Tell whether vectors are made of positions: the classes are few, or far apart."""
    return logits.shape[-1] <= kernels.FEW or abs(logits.strides[-1]) > NEAR


def _code(array: Array) -> str:
    dtype = array.dtype
    kind = "bf" if _dtypes.name_of(dtype) == "bfloat16" else dtype.kind
    return ("" if dtype.isnative else ">") + f"{kind}{dtype.itemsize}"


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
