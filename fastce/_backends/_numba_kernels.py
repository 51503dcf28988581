"""The loops of the Numba backend: from one call's description to the rows' values, sums and output.

A block of rows is the unit of parallel work and of the sums; within a block *tiles* of neighbouring positions
are done in three steps: a sweep of their classes leaves maximum and sums, `finish` makes the values of all rows of
the tile at once, and a second sweep writes the output. Where the class axis is dense in memory a vector holds
neighbouring classes of one row; else (``across``) neighbouring positions, each class block being gathered first.
What a call lacks is None, and Numba drops the code for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from fastce._backends import _numba_math as vector
from fastce._backends._numba_lanes import Memory, Value, traced
from fastce._backends._numba_math import (
    AT_LABEL,
    FIELDS,
    LABEL_LOGIT,
    LABEL_MASS,
    LABEL_VECTOR,
    MASS,
    PULL,
    REST,
    SAMPLE,
    SCALE,
    TOP,
    VALUE,
    WEIGHT,
)

TILE = 256
"""Positions of a tile, at most."""

BLOCK = 2048
"""Classes of a row done at once, at most."""

FEW = 32
"""Classes done at once across positions, at most: TILE of them are gathered."""

ROW, LOGITS, LABELS, DENSE, SAMPLE_WEIGHT, GRAD_OUTPUT, OUT, OPERANDS = range(8)
"""What has a stride along each axis of the positions: the number of the row, and the arrays."""

CALL = np.dtype(
    [
        ("n_rows", "i8"),
        ("n_classes", "i8"),
        ("n_blocks", "i8"),
        ("block_rows", "i8"),
        ("tile", "i8"),
        ("n_tasks", "i8"),
        ("label_bits", "i8"),
        ("label_signed", "i8"),
        ("label_swapped", "i8"),
        ("can_ignore", "i8"),
        ("ignore_index", "i8"),
        ("sample_wide", "i8"),
        ("output_wide", "i8"),
        ("class_weight", "i8"),
        ("class_vector", "i8"),
        ("direct", "i8"),
        ("dense_weight", "i8"),
        ("lse", "i8"),
        ("target_scale", "f8"),
        ("z_loss", "f8"),
        ("grad_scale", "f8"),
    ]
)
"""What a kernel is told beside the types of its arguments."""


@njit(forceinline=True)
def read_rows(call, geometry, at, n, rows, labels):
    """Fill in what the labels, sample weights and gradients say of a tile's rows; return the first bad row or −1."""
    bad = -1
    inner = geometry[-1]
    for i in range(n):
        rows[SAMPLE, i] = 1.0
        rows[SCALE, i] = call.grad_scale
        rows[LABEL_MASS, i] = 0.0
        rows[LABEL_LOGIT, i] = 0.0
        rows[LABEL_VECTOR, i] = 0.0
    if at[SAMPLE_WEIGHT] != 0:
        for i in range(n):
            place = at[SAMPLE_WEIGHT] + i * inner[SAMPLE_WEIGHT]
            s = vector.double_at(place) if call.sample_wide else vector.single_at(place)
            if not 0.0 <= s < np.inf:
                bad = earlier(bad, at[ROW] + i * inner[ROW])
                s = 0.0
            rows[SAMPLE, i] = s
    if at[GRAD_OUTPUT] != 0:
        for i in range(n):
            place = at[GRAD_OUTPUT] + i * inner[GRAD_OUTPUT]
            rows[SCALE, i] *= vector.double_at(place) if call.output_wide else vector.single_at(place)
    if at[LABELS] != 0:
        read_labels(call, at[LABELS], inner[LABELS], n, labels)
        for i in range(n):
            label = labels[i]
            if call.can_ignore and label == call.ignore_index:
                labels[i] = 0
                rows[SAMPLE, i] = 0.0
            elif label < 0 or label >= call.n_classes:
                bad = earlier(bad, at[ROW] + i * inner[ROW])
                labels[i] = 0
                rows[SAMPLE, i] = 0.0
    for i in range(n):
        rows[WEIGHT, i] = rows[SAMPLE, i]
    if at[LABELS] != 0:
        for i in range(n):
            rows[LABEL_MASS, i] = call.target_scale
        if call.class_weight != 0:
            for i in range(n):
                weight = vector.double_at(call.class_weight + 8 * labels[i])
                rows[LABEL_MASS, i] *= weight
                rows[WEIGHT, i] *= weight
    return bad


@njit
def read_labels(call, address, stride, n, labels):
    """Read labels of any integer dtype as int64 (uint64 above its range wraps to what is out of range)."""
    for i in range(n):
        place = address + i * stride
        if call.label_bits == 64:
            labels[i] = vector.integer_at(place, 64, call.label_swapped)
        elif call.label_bits == 32:
            labels[i] = vector.integer_at(place, 32, call.label_swapped)
        elif call.label_bits == 16:
            labels[i] = vector.integer_at(place, 16, call.label_swapped)
        else:
            labels[i] = vector.integer_at(place, 8, call.label_swapped)
    if call.label_signed:
        unused = 64 - call.label_bits
        for i in range(n):
            labels[i] = (labels[i] << unused) >> unused


@njit(forceinline=True)
def earlier(bad, row):
    return row if bad < 0 or row < bad else bad


@njit(forceinline=True)
def gather(x, to, source, stride, n):
    """Copy n elements, ``stride`` bytes apart, to where they are neighbours."""
    size = vector.itemsize(x)
    i = 0
    if stride == size:
        lanes = vector.lanes(x)
        while i + lanes <= n:
            vector.move_vector(x, to + i * size, source + i * size)
            i += lanes
    while i < n:
        vector.move(x, to + i * size, source + i * stride)
        i += 1


@njit(forceinline=True)
def scatter(x, to, source, stride, n):
    """Copy n neighbours to where they are ``stride`` bytes apart."""
    size = vector.itemsize(x)
    i = 0
    if stride == size:
        lanes = vector.lanes(x)
        while i + lanes <= n:
            vector.move_vector(x, to + i * size, source + i * size)
            i += lanes
    while i < n:
        vector.move(x, to + i * stride, source + i * size)
        i += 1


@njit(forceinline=True)
def dense_block(x, source, stride, n, buffer):
    """Return where n classes of a row lie side by side: where they are, or gathered in the buffer."""
    if stride == vector.itemsize(x):
        return source
    gather(x, buffer, source, stride, n)
    return buffer


@njit(forceinline=True)
def sweep(state, x, address, step, vectors, live, q, q_step):
    """Add vectors of classes, and in a row the first ``live`` elements of one more, to the sums."""
    top, total, ties, mass, pull = state
    fours = vectors - vectors % 4
    end = address + vectors * step
    higher = top
    for i in range(0, fours, 4):
        higher = vector.highest(higher, x, address + i * step, step, 4, None)
    for i in range(fours, vectors):
        higher = vector.highest(higher, x, address + i * step, step, 1, None)
    if live is not None:
        if live > 0:
            higher = vector.highest(higher, x, end, step, 1, live)
        higher = vector.widest(higher)
    top, total, ties, mass, pull = vector.raise_top(higher, top, total, ties, mass, pull)
    for i in range(0, fours, 4):
        total, ties = vector.sum_exponentials(top, total, ties, x, address + i * step, step, 4, None)
    for i in range(fours, vectors):
        total, ties = vector.sum_exponentials(top, total, ties, x, address + i * step, step, 1, None)
    if live is not None:
        if live > 0:
            total, ties = vector.sum_exponentials(top, total, ties, x, end, step, 1, live)
    if q is not None:
        for i in range(0, fours, 4):
            mass, pull = vector.sum_target(
                top, mass, pull, x, address + i * step, step, q + i * q_step, q_step, 4, None
            )
        for i in range(fours, vectors):
            mass, pull = vector.sum_target(
                top, mass, pull, x, address + i * step, step, q + i * q_step, q_step, 1, None
            )
        if live is not None:
            if live > 0:
                mass, pull = vector.sum_target(top, mass, pull, x, end, step, q + vectors * q_step, q_step, 1, live)
    return top, total, ties, mass, pull


@njit(forceinline=True)
def row_target(call, x, dense, q, source, stride, k, n, buffers):
    """Return where q of n classes from class k on lies."""
    size = vector.real_size(x)
    if dense is None:
        return call.class_vector + k * size
    place = dense_block(dense, source + k * stride, stride, n, buffers[2])
    if call.direct:
        return place
    step = vector.itemsize(dense)
    lanes = vector.lanes(x)
    w = call.dense_weight + k * size
    v = call.class_vector + k * size
    i = 0
    while i + lanes <= n:
        t = vector.target_of(x, dense, place + i * step, w + i * size, v + i * size, None)
        vector.put_reals(x, buffers[1] + i * size, t)
        i += lanes
    if i < n:
        t = vector.target_of(x, dense, place + i * step, w + i * size, v + i * size, n - i)
        vector.put_reals(x, buffers[1] + i * size, t)
    return buffers[1]


@njit
def row_sums(call, geometry, at, i, x, dense, q, buffers, rows):
    """Leave the sums of row i of the tile."""
    inner = geometry[-1]
    strides = geometry[1]
    address = at[LOGITS] + i * inner[LOGITS]
    lanes = vector.lanes(x)
    step = lanes * vector.itemsize(x)
    state = vector.nothing(x)
    for k in range(0, call.n_classes, BLOCK):
        n = min(BLOCK, call.n_classes - k)
        place = dense_block(x, address + k * strides[LOGITS], strides[LOGITS], n, buffers[0])
        if q is not None:
            target = row_target(call, x, dense, q, at[DENSE] + i * inner[DENSE], strides[DENSE], k, n, buffers)
            state = sweep(state, x, place, step, n // lanes, n % lanes, target, lanes * vector.real_size(x))
        else:
            state = sweep(state, x, place, step, n // lanes, n % lanes, None, 0)
    top, total, ties, mass, pull = state
    top, rest, mass, pull = vector.sum_lanes(top, total, ties, mass, pull)
    rows[TOP, i] = top
    rows[REST, i] = rest
    rows[MASS, i] = mass
    rows[PULL, i] = pull


@njit
def row_output(call, geometry, at, i, x, dense, q, out, logarithm, buffers, rows, labels):
    """Write row i of the tile."""
    inner = geometry[-1]
    strides = geometry[1]
    address = at[LOGITS] + i * inner[LOGITS]
    to = at[OUT] + i * inner[OUT]
    lanes = vector.lanes(x)
    step = lanes * vector.itemsize(x)
    out_step = lanes * vector.itemsize(out)
    target_step = lanes * vector.real_size(x)
    row = vector.of_row(x, np.int64(rows.ctypes.data) + 8 * i, 8 * TILE)
    for k in range(0, call.n_classes, BLOCK):
        n = min(BLOCK, call.n_classes - k)
        place = dense_block(x, address + k * strides[LOGITS], strides[LOGITS], n, buffers[0])
        beside = strides[OUT] == vector.itemsize(out)
        put = to + k * strides[OUT] if beside else buffers[3]
        if q is not None:
            target = row_target(call, x, dense, q, at[DENSE] + i * inner[DENSE], strides[DENSE], k, n, buffers)
            emit(row, x, place, step, out, put, out_step, target, target_step, logarithm, None, n // lanes, n % lanes)
        else:
            emit(row, x, place, step, out, put, out_step, None, 0, logarithm, None, n // lanes, n % lanes)
        if not beside:
            scatter(out, to + k * strides[OUT], put, strides[OUT], n)
    if at[LABELS] != 0:
        vector.put_element(out, to + labels[i] * strides[OUT], rows[AT_LABEL, i])


@njit(forceinline=True)
def emit(row, x, address, step, out, to, out_step, q, q_step, logarithm, across, vectors, live):
    """Write vectors of classes, and in a row the first ``live`` elements of one more."""
    fours = vectors - vectors % 4
    for i in range(0, vectors):
        if q is not None:
            vector.write(
                row,
                x,
                address + i * step,
                step,
                out,
                to + i * out_step,
                out_step,
                q + i * q_step,
                q_step,
                logarithm,
                across,
                1,
                None,
            )
        else:
            vector.write(
                row,
                x,
                address + i * step,
                step,
                out,
                to + i * out_step,
                out_step,
                None,
                q_step,
                logarithm,
                across,
                1,
                None,
            )
    if live is not None:
        if live > 0:
            i = vectors
            if q is not None:
                vector.write(
                    row,
                    x,
                    address + i * step,
                    step,
                    out,
                    to + i * out_step,
                    out_step,
                    q + i * q_step,
                    q_step,
                    logarithm,
                    across,
                    1,
                    live,
                )
            else:
                vector.write(
                    row,
                    x,
                    address + i * step,
                    step,
                    out,
                    to + i * out_step,
                    out_step,
                    None,
                    q_step,
                    logarithm,
                    across,
                    1,
                    live,
                )


@njit(forceinline=True)
def gather_classes(call, geometry, at, n, k, count, x, dense, q, buffers):
    """Gather the logits and targets of ``count`` classes from class k on, of the n positions of a tile."""
    inner = geometry[-1]
    strides = geometry[1]
    lanes = vector.lanes(x)
    size = vector.real_size(x)
    for j in range(count):
        gather(x, buffers[0] + j * TILE * vector.itemsize(x), at[LOGITS] + (k + j) * strides[LOGITS], inner[LOGITS], n)
        if q is not None:
            put = buffers[1] + j * TILE * size
            if dense is not None:
                gather(dense, buffers[2], at[DENSE] + (k + j) * strides[DENSE], inner[DENSE], n)
                for i in range(0, n, lanes):
                    t = vector.target_at(
                        x,
                        dense,
                        buffers[2] + i * vector.itemsize(dense),
                        call.dense_weight + (k + j) * size,
                        call.class_vector + (k + j) * size,
                    )
                    vector.put_reals(x, put + i * size, t)
            else:
                t = vector.splat_at(x, call.class_vector + (k + j) * size)
                for i in range(0, n, lanes):
                    vector.put_reals(x, put + i * size, t)


@njit
def tile_sums(call, geometry, at, n, x, dense, q, buffers, rows):
    """Leave the sums of the n positions of the tile."""
    lanes = vector.lanes(x)
    size = vector.itemsize(x)
    left = np.int64(rows.ctypes.data)
    for k in range(0, call.n_classes, FEW):
        count = min(FEW, call.n_classes - k)
        gather_classes(call, geometry, at, n, k, count, x, dense, q, buffers)
        for i in range(0, n, lanes):
            kept = buffers[4] + i * 40
            state = vector.nothing(x) if k == 0 else vector.load_state(x, kept)
            place = buffers[0] + i * size
            if q is not None:
                real = vector.real_size(x)
                state = sweep(state, x, place, TILE * size, count, None, buffers[1] + i * real, TILE * real)
            else:
                state = sweep(state, x, place, TILE * size, count, None, None, 0)
            top, total, ties, mass, pull = state
            if k + count < call.n_classes:
                vector.save_state(kept, top, total, ties, mass, pull)
            else:
                vector.leave(left + 8 * i, 8 * TILE, top, total, ties, mass, pull)


@njit
def tile_output(call, geometry, at, n, x, dense, q, out, logarithm, buffers, rows, labels):
    """Write the n positions of the tile."""
    inner = geometry[-1]
    strides = geometry[1]
    lanes = vector.lanes(x)
    size = vector.itemsize(x)
    out_size = vector.itemsize(out)
    for k in range(0, call.n_classes, FEW):
        count = min(FEW, call.n_classes - k)
        if call.n_classes > FEW:
            gather_classes(call, geometry, at, n, k, count, x, dense, q, buffers)
        for i in range(0, n, lanes):
            row = vector.of_positions(x, np.int64(rows.ctypes.data) + 8 * i, 8 * TILE)
            place = buffers[0] + i * size
            put = buffers[3] + i * out_size
            if q is not None:
                real = vector.real_size(x)
                emit(
                    row,
                    x,
                    place,
                    TILE * size,
                    out,
                    put,
                    TILE * out_size,
                    buffers[1] + i * real,
                    TILE * real,
                    logarithm,
                    1,
                    count,
                    None,
                )
            else:
                emit(row, x, place, TILE * size, out, put, TILE * out_size, None, 0, logarithm, 1, count, None)
        for j in range(count):
            scatter(out, at[OUT] + (k + j) * strides[OUT], buffers[3] + j * TILE * out_size, inner[OUT], n)
    if at[LABELS] != 0:
        for i in range(n):
            if rows[SAMPLE, i] > 0.0:
                vector.put_element(out, at[OUT] + i * inner[OUT] + labels[i] * strides[OUT], rows[AT_LABEL, i])


@njit
def check_dense(call, geometry, at, i, dense):
    """Return whether a row of a dense target is finite and not negative."""
    inner = geometry[-1]
    stride = geometry[1][DENSE]
    source = at[DENSE] + i * inner[DENSE]
    size = vector.itemsize(dense)
    lanes = vector.lanes(dense)
    flags = vector.zeros(dense)
    k = 0
    if stride == size:
        while k + lanes <= call.n_classes:
            flags = vector.acceptable(dense, source + k * size, None, flags)
            k += lanes
        if k < call.n_classes:
            flags = vector.acceptable(dense, source + k * size, call.n_classes - k, flags)
        return vector.any_lane(flags) == 0.0
    for k in range(call.n_classes):
        t = vector.element_at(dense, source + k * stride)
        if not 0.0 <= t < np.inf:
            return False
    return True


@njit
def visit(calls, geometry, task, x, dense, q, out, logarithm, across, values, sums, bads):
    """Do a task: neighbouring blocks of rows."""
    call = calls[0]
    rows = np.zeros((FIELDS, TILE))
    labels = np.zeros(TILE, np.int64)
    memory = np.empty((4, FEW * TILE + 64))
    kept = np.empty(5 * TILE)
    buffers = np.empty(5, np.int64)
    for i in range(4):
        buffers[i] = memory[i].ctypes.data
    buffers[4] = kept.ctypes.data
    at = np.empty(OPERANDS, np.int64)
    partial = np.zeros(64)
    for block in range(call.n_blocks * task // call.n_tasks, call.n_blocks * (task + 1) // call.n_tasks):
        partial[:] = 0.0
        bads[block] = visit_rows(
            call, geometry, block, x, dense, q, out, logarithm, across, values, rows, labels, partial, buffers, at
        )
        sums[block, 0], sums[block, 1] = vector.sum_of(np.int64(partial.ctypes.data), 0)
        sums[block, 2], sums[block, 3] = vector.sum_of(np.int64(partial.ctypes.data), 1)
    # Their addresses are in use until here.
    return memory[0, 0] + kept[0] + partial[0] + rows[0, 0]


@njit
def visit_rows(call, geometry, block, x, dense, q, out, logarithm, across, values, rows, labels, partial, buffers, at):
    bad = -1
    position = block * call.block_rows
    end = min(position + call.block_rows, call.n_rows)
    inner = geometry[-1]
    while position < end:
        rest = position
        for operand in range(OPERANDS):
            at[operand] = geometry[0, operand]
        for axis in range(len(geometry) - 1, 1, -1):
            index = rest % geometry[axis, OPERANDS]
            rest //= geometry[axis, OPERANDS]
            for operand in range(OPERANDS):
                at[operand] += index * geometry[axis, operand]
        n = min(call.tile, end - position, inner[OPERANDS] - position % inner[OPERANDS])
        found = read_rows(call, geometry, at, n, rows, labels)
        if found >= 0:
            bad = earlier(bad, found)
        if dense is not None:
            for i in range(n):
                if not check_dense(call, geometry, at, i, dense):
                    bad = earlier(bad, at[ROW] + i * inner[ROW])
                    rows[SAMPLE, i] = 0.0
        for i in range(n, TILE):
            rows[SAMPLE, i] = 0.0
            rows[WEIGHT, i] = 0.0
        if x is not None:
            do_tile(call, geometry, at, n, x, dense, q, out, logarithm, across, values, rows, labels, partial, buffers)
        else:
            for i in range(0, n, 16):
                vector.finish(
                    np.int64(rows.ctypes.data) + 8 * i,
                    8 * TILE,
                    call.z_loss,
                    call.lse,
                    np.int64(partial.ctypes.data),
                    None,
                )
        position += n
    return bad


@njit
def do_tile(call, geometry, at, n, x, dense, q, out, logarithm, across, values, rows, labels, partial, buffers):
    inner = geometry[-1]
    strides = geometry[1]
    if at[LABELS] != 0:
        for i in range(n):
            if rows[SAMPLE, i] > 0.0:
                place = at[LOGITS] + i * inner[LOGITS] + labels[i] * strides[LOGITS]
                rows[LABEL_LOGIT, i] = vector.element_at(x, place)
                if q is not None:
                    rows[LABEL_VECTOR, i] = vector.element_at(q, call.class_vector + labels[i] * vector.real_size(x))
    if across is None:
        for i in range(n):
            if rows[SAMPLE, i] > 0.0:
                row_sums(call, geometry, at, i, x, dense, q, buffers, rows)
    else:
        tile_sums(call, geometry, at, n, x, dense, q, buffers, rows)
    if at[LABELS] == 0 and q is None:
        for i in range(n):
            rows[MASS, i] = 1.0
            rows[PULL, i] = rows[TOP, i] if call.lse else 0.0
    for i in range(0, n, 16):
        if out is not None:
            vector.finish(
                np.int64(rows.ctypes.data) + 8 * i, 8 * TILE, call.z_loss, call.lse, np.int64(partial.ctypes.data), 1
            )
        else:
            vector.finish(
                np.int64(rows.ctypes.data) + 8 * i, 8 * TILE, call.z_loss, call.lse, np.int64(partial.ctypes.data), None
            )
    if values is not None:
        for i in range(n):
            values[at[ROW] + i * inner[ROW]] = rows[VALUE, i]
    if out is not None:
        if across is None:
            for i in range(n):
                if rows[SAMPLE, i] > 0.0:
                    row_output(call, geometry, at, i, x, dense, q, out, logarithm, buffers, rows, labels)
                else:
                    for k in range(call.n_classes):
                        vector.put_element(out, at[OUT] + i * inner[OUT] + k * strides[OUT], 0.0)
        else:
            tile_output(call, geometry, at, n, x, dense, q, out, logarithm, buffers, rows, labels)


def kernel(calls, geometry, x, dense, q, out, logarithm, across, values, sums, bads):
    for task in prange(calls[0].n_tasks):
        visit(calls, geometry, task, x, dense, q, out, logarithm, across, values, sums, bads)
