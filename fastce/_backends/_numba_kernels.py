"""The loops of the Numba backend: threads, blocks of rows, tiles, and what is known of each row before its logits.

A block of rows is the unit of the sums, a task some neighbouring blocks for one thread. Within a block, tiles of
neighbouring positions are done in three steps: a sweep of their classes leaves maximum and sums, `finish` makes the
values of all rows of the tile at once, and a second sweep writes the output. What is done to classes is in
_numba_tile.py. An argument of `kernel` that is None takes the code that would use it out.
"""

from __future__ import annotations

from typing import Any

from numba import njit, prange

from fastce._backends import _numba_tile as vector
from fastce._backends._numba_tile import LABELS, SCRATCH_BYTES, SHARED_BYTES


def tasks(
    entry: Any,
    plan: Any,
    scan_entry: Any,
    scan_plan: Any,
    call: Any,
    count: Any,
    logits: Any,
    labels: Any,
    dense: Any,
    sample_weight: Any,
    grad_output: Any,
    out: Any,
    values: Any,
    class_weight: Any,
    dense_weight: Any,
    class_vector: Any,
    factor: Any,
    positive_weight: Any,
    target_scale: Any,
    z_loss: Any,
    grad_scale: Any,
) -> Any:
    """Call the compiled kernel at an address for each task, on as many threads as Numba is set to.

    With another one to scan the rows first, the gradient is divided by their weight; if that is 0, or a row is bad,
    nothing more is done.
    """
    address = vector.address_of(call)
    rows = (count, logits, labels, dense, sample_weight, grad_output, out, values)
    weights = (class_weight, dense_weight, class_vector, factor, positive_weight)
    if scan_entry != 0:
        vector.prepare(call, scan_plan, *rows, *weights, target_scale, z_loss, grad_scale)
        for task in range(count):
            vector.invoke(scan_entry, address, address + SHARED_BYTES + SCRATCH_BYTES * task, task)
        vector.total(call)
        bad, weight = vector.first_bad_of_all(call), vector.total_weight(call)
        if bad < vector.row_count(call) or not weight > 0.0:
            return bad, 0.0, 0.0
        grad_scale /= weight
    vector.prepare(call, plan, *rows, *weights, target_scale, z_loss, grad_scale)
    for task in prange(count):
        vector.invoke(entry, address, address + SHARED_BYTES + SCRATCH_BYTES * task, task)
    vector.total(call)
    return vector.first_bad_of_all(call), vector.total_loss(call), vector.total_weight(call)


def kernel(
    call: Any, tile: Any, task: Any, x: Any, dense: Any, q: Any, out: Any, logarithm: Any, across: Any, shifted: Any
) -> None:
    """Do a task; without logits (x) only check the rows and add up their weights."""
    vector.start_task(tile)
    for block in range(call.n_blocks * task // call.n_tasks, call.n_blocks * (task + 1) // call.n_tasks):
        vector.start_block(tile)
        bad = call.n_rows
        position = block * call.block_rows
        end = min(position + call.block_rows, call.n_rows)
        while position < end:
            n = min(call.tile, end - position, vector.locate(call, tile, position))
            vector.read_rows(call, tile, n)
            if dense is not None:
                vector.check_dense(call, tile, n, dense, across)
            bad = min(bad, vector.first_bad(call, tile, n))
            vector.add_weights(call, tile, n)
            if x is not None:
                if out is not None:
                    measure(call, tile, n, x, dense, q, out, across, shifted, 1)
                else:
                    measure(call, tile, n, x, dense, q, out, across, shifted, None)
                vector.put_values(call, tile, n, x)
            if out is not None:
                output(call, tile, n, x, dense, q, out, logarithm, across, shifted)
            position += n
        vector.end_block(call, tile, block, bad)
    if out is not None:
        if shifted is not None:
            vector.see_off(call, tile, x, out)
        vector.end_task(call)


@njit(inline="always")
def finish(call: Any, tile: Any, n: Any, q: Any, gradient: Any, shifted: Any) -> None:
    """Make the values of rows that went through their maximum."""
    if q is None:
        alone = 1.0 if call.start[LABELS] == 0 else 0.0
        for i in range(n):
            tile.mass[i] = alone
            tile.pull[i] = tile.top[i] if call.lse else 0.0
    vector.finish(call, tile, n, gradient, shifted)


@njit(inline="always")
def measure(
    call: Any, tile: Any, n: Any, x: Any, dense: Any, q: Any, out: Any, across: Any, shifted: Any, gradient: Any
) -> None:
    """Sweep the classes of a tile, and make of it the values of its rows."""
    if across is None:
        vector.get_labels(call, tile, n, x, q)
        for i in range(n):
            if tile.sample[i] > 0.0:
                vector.row_sums(call, tile, i, x, dense, q, out, shifted)
    elif shifted is None:
        vector.get_labels(call, tile, n, x, q)
        vector.tile_sums(call, tile, n, x, dense, q, shifted)
    else:
        vector.few_sums(call, tile, n, x, out)
    if shifted is None:
        finish(call, tile, n, q, gradient, shifted)
    else:
        unsound = vector.find_unsound(tile, n, x, across)
        vector.finish_shifted(call, tile, n, x, gradient)
        if unsound > 0:
            if across is not None:
                vector.get_labels(call, tile, n, x, q)
                vector.tile_sums(call, tile, n, x, dense, q, shifted)
            finish(call, tile, n, q, gradient, shifted)


@njit(inline="always")
def output(
    call: Any, tile: Any, n: Any, x: Any, dense: Any, q: Any, out: Any, logarithm: Any, across: Any, shifted: Any
) -> None:
    """Write the output of a tile."""
    if across is None:
        if shifted is not None:
            vector.see_off(call, tile, x, out)
            vector.start_leaving(call, tile, n, x, out)
        for i in range(n):
            if tile.sample[i] > 0.0:
                vector.row_output(call, tile, i, x, dense, q, out, logarithm, shifted)
            else:
                vector.clear_row(call, tile, i, out)
        if shifted is not None:
            vector.end_leaving(call, tile, n, x, out)
    elif shifted is not None:
        vector.see_off(call, tile, x, out)
        vector.few_output(call, tile, n, x, out)
        vector.end_leaving(call, tile, n, x, out)
    else:
        vector.tile_output(call, tile, n, x, dense, q, out, logarithm)
        vector.put_labels(call, tile, n, out)
