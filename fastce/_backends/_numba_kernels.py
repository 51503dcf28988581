"""The loops of the Numba backend: threads, blocks of rows, tiles, and what is known of each row before its logits.

A block of rows is the unit of the sums, a task some neighbouring blocks for one thread. Within a block, tiles of
neighbouring positions are done in three steps: a sweep of their classes leaves maximum and sums, `finish` makes the
values of all rows of the tile at once, and a second sweep writes the output. What is done to classes is in
_numba_tile.py. An argument of `kernel` that is None takes the code that would use it out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import prange

from fastce._backends import _numba_tile as vector
from fastce._backends._numba_lanes import Memory, Struct, Value, loop, traced, when
from fastce._backends._numba_tile import SCRATCH_BYTES, SHARED_BYTES


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
        vector.start_rows(call, tile)
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
                measure(call, tile, n, x, dense, q, out, across, shifted)
                vector.put_values(call, tile, n, x)
            if out is not None:
                output(call, tile, n, x, dense, q, out, logarithm, across, shifted)
            position += n
        vector.end_block(call, tile, block, bad)
    if out is not None:
        if shifted is not None:
            vector.see_off(call, tile, x, out)
        vector.end_task(call)


@traced
def measure(
    call: Struct,
    tile: Struct,
    n: Value,
    x: Memory,
    dense: Memory | None,
    q: Memory | None,
    out: Memory | None,
    across: Value | None,
    shifted: Value | None,
) -> None:
    """Sweep the classes of a tile, and make of it the values of its rows."""

    def by_maximum() -> None:
        vector.get_labels.here(call, tile, n, x, q)
        vector.tile_sums.here(call, tile, n, x, dense, q, shifted)

    def finish() -> None:
        """Make the values of rows that went through their maximum."""
        if q is None:
            vector.no_measure(call, tile, n)
        vector.finish.here(call, tile, n, gradient, shifted)

    def again() -> None:
        if across is not None:
            by_maximum()
        finish()

    gradient = None if out is None else 1
    if across is None:
        vector.get_labels.here(call, tile, n, x, q)
        each_row(tile, n, lambda i: vector.row_sums.here(call, tile, i, x, dense, q, out, shifted))
    elif shifted is None:
        by_maximum()
    else:
        vector.few_sums.here(call, tile, n, x, out)
    if shifted is None:
        finish()
        return
    unsound = vector.find_unsound.here(tile, n, x, across)
    vector.finish_shifted.here(call, tile, n, x, gradient)
    when(unsound > 0, (), again)


def each_row(
    tile: Struct, n: Value, kept: Callable[[Value], None], ignored: Callable[[Value], None] | None = None
) -> None:
    """Do something for each row of a tile that is not ignored, and something else for those that are."""

    def row(i: Value) -> None:
        live = tile.sample[i] > 0.0
        when(live, (), lambda: kept(i))
        if ignored is not None:
            when(~live, (), lambda: ignored(i))

    loop(0, n, 1, (), row)


@traced
def output(
    call: Struct,
    tile: Struct,
    n: Value,
    x: Memory,
    dense: Memory | None,
    q: Memory | None,
    out: Memory,
    logarithm: Value | None,
    across: Value | None,
    shifted: Value | None,
) -> None:
    """Write the output of a tile."""
    if shifted is not None:
        vector.see_off.here(call, tile, x, out)
    if across is None:
        if shifted is not None:
            vector.start_leaving.here(call, tile, n, x, out)
        each_row(
            tile,
            n,
            lambda i: vector.row_output.here(call, tile, i, x, dense, q, out, logarithm, shifted),
            lambda i: vector.clear_row.here(call, tile, i, out),
        )
    elif shifted is not None:
        vector.few_output.here(call, tile, n, x, out)
    else:
        vector.tile_output.here(call, tile, n, x, dense, q, out, logarithm)
        vector.put_labels.here(call, tile, n, out)
    if shifted is not None:
        vector.end_leaving.here(call, tile, n, x, out)
