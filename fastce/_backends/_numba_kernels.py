"""The loops of the Numba backend: threads, blocks of rows, tiles, and what is known of each row before its logits.

A block of rows is the unit of the sums, a task some neighbouring blocks for one thread. Within a block, tiles of
neighbouring positions are done in three steps: a sweep of their classes leaves maximum and sums, `finish` makes the
values of all rows of the tile at once, and a second sweep writes the output. What is done to classes is in
_numba_math.py. An argument of `kernel` that is None takes the code that would use it out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from fastce._backends import _numba_math as vector
from fastce._backends._numba_math import GRAD_OUTPUT, LABELS, ROW, SAMPLE_WEIGHT, TILE


def tasks(entry: Any, call: Any, scratch: Any, size: Any, count: Any) -> None:
    """Call the compiled kernel at an address for each task, on as many threads as Numba is set to."""
    for task in prange(count):
        vector.invoke(entry, call, scratch + size * task, task)


def kernel(
    call: Any, tile: Any, task: Any, x: Any, dense: Any, q: Any, out: Any, logarithm: Any, across: Any, shifted: Any
) -> None:
    """Do a task; without logits (x) only check the rows and add up their weights."""
    for block in range(call.n_blocks * task // call.n_tasks, call.n_blocks * (task + 1) // call.n_tasks):
        vector.start_block(tile)
        bad = call.n_rows
        position = block * call.block_rows
        end = min(position + call.block_rows, call.n_rows)
        while position < end:
            n = min(call.tile, end - position, vector.locate(call, tile, position))
            bad = min(bad, read_rows(call, tile, n))
            if dense is not None:
                bad = min(bad, vector.failing(call, tile, n, dense, across))
            if x is not None:
                measure(call, tile, n, x, dense, q, across, shifted)
            if out is not None:
                vector.finish(call, tile, n, 1)
            else:
                vector.finish(call, tile, n, None)
            if x is not None:
                vector.put_values(call, tile, n, x)
            if out is not None:
                output(call, tile, n, x, dense, q, out, logarithm, across)
            position += n
        vector.end_block(call, tile, block, bad)


@njit(forceinline=True)
def measure(call: Any, tile: Any, n: Any, x: Any, dense: Any, q: Any, across: Any, shifted: Any) -> None:
    """Sweep the classes of a tile."""
    if call.start[LABELS] != 0:
        for i in range(n):
            if tile.sample[i] > 0.0:
                vector.get_label(call, tile, i, x, q)
    if across is None:
        for i in range(n):
            if tile.sample[i] > 0.0:
                vector.row_sums(call, tile, i, x, dense, q, shifted)
    else:
        vector.tile_sums(call, tile, n, x, dense, q)
    if q is None:
        alone = 1.0 if call.start[LABELS] == 0 else 0.0
        for i in range(n):
            tile.mass[i] = alone
            tile.pull[i] = tile.top[i] if call.lse else 0.0


@njit(forceinline=True)
def output(call: Any, tile: Any, n: Any, x: Any, dense: Any, q: Any, out: Any, logarithm: Any, across: Any) -> None:
    """Write the output of a tile."""
    if across is None:
        for i in range(n):
            if tile.sample[i] > 0.0:
                vector.row_output(call, tile, i, x, dense, q, out, logarithm)
            else:
                vector.clear_row(call, tile, i, out)
    else:
        vector.tile_output(call, tile, n, x, dense, q, out, logarithm)
    if call.start[LABELS] != 0:
        for i in range(n):
            if tile.sample[i] > 0.0:
                vector.put_label(call, tile, i, out)


@njit(forceinline=True)
def read_rows(call: Any, tile: Any, n: Any) -> Any:
    """Read what labels and weights say of a tile's rows; return the first bad row, or the number of rows."""
    bad = call.n_rows
    for i in range(n):
        tile.sample[i] = 1.0
        tile.scale[i] = call.grad_scale
    for i in range(n, min(n + 16, TILE)):  # finish works on whole vectors
        tile.sample[i] = 0.0
        tile.weight[i] = 0.0
    if call.start[SAMPLE_WEIGHT] != 0:
        for i in range(n):
            s = real_at(tile.at[SAMPLE_WEIGHT] + i * call.inner[SAMPLE_WEIGHT], call.sample_wide)
            if not 0.0 <= s < np.inf:
                bad = min(bad, tile.at[ROW] + i * call.inner[ROW])
                s = 0.0
            tile.sample[i] = s
    if call.start[GRAD_OUTPUT] != 0:
        for i in range(n):
            tile.scale[i] *= real_at(tile.at[GRAD_OUTPUT] + i * call.inner[GRAD_OUTPUT], call.output_wide)
    if call.start[LABELS] != 0:
        bad = min(bad, read_labels(call, tile, n))
    for i in range(n):
        tile.weight[i] = tile.sample[i]
        tile.label_mass[i] = 0.0 if call.start[LABELS] == 0 else call.target_scale
        tile.label_logit[i] = 0.0
        tile.label_vector[i] = 0.0
    if call.start[LABELS] != 0 and call.class_weight != 0:
        for i in range(n):
            weight = vector.double_at(call.class_weight + 8 * tile.label[i])
            tile.label_mass[i] *= weight
            tile.weight[i] *= weight
    return bad


@njit(forceinline=True)
def read_labels(call: Any, tile: Any, n: Any) -> Any:
    """Read labels of any integer dtype once and check them; those of ignored rows become 0."""
    bad = call.n_rows
    unused = 64 - call.label_bits
    for i in range(n):
        place = tile.at[LABELS] + i * call.inner[LABELS]
        if call.label_bits == 64:
            label = vector.label_at(place, 64, call.label_swapped)
        elif call.label_bits == 32:
            label = vector.label_at(place, 32, call.label_swapped)
        elif call.label_bits == 16:
            label = vector.label_at(place, 16, call.label_swapped)
        else:
            label = vector.label_at(place, 8, call.label_swapped)
        if call.label_signed:
            label = (label << unused) >> unused
        if call.can_ignore and label == call.ignore_index:
            tile.sample[i] = 0.0
            label = 0
        elif not 0 <= label < call.n_classes:  # as is what uint64 has beyond int64
            bad = min(bad, tile.at[ROW] + i * call.inner[ROW])
            tile.sample[i] = 0.0
            label = 0
        tile.label[i] = label
    return bad


@njit(forceinline=True)
def real_at(place: Any, wide: Any) -> Any:
    return vector.double_at(place) if wide else vector.single_at(place)
