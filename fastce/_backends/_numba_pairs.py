"""The kernel of two classes and nothing but a label: the loss is the softplus of the difference of the logits.

With d the other logit less the label's own, cross entropy is log1p(exp(d)), and its gradient that of a logistic
function. Of -|d| no exponential is large, so that no row needs its maximum, and loss and gradient are made in one go.
Rows that lie one after the other, in both arrays, are read and written where they are; others go through a tile, each
class side by side.
"""

from __future__ import annotations

from typing import Any

from fastce._backends import _numba_tile as vector
from fastce._backends._numba_lanes import (
    Memory,
    State,
    Struct,
    Value,
    fma,
    loop,
    maximum,
    select,
    traced,
    two_sum,
    when,
)
from fastce._backends._numba_math import exponential, log1p_of_fraction
from fastce._backends._numba_tile import AHEAD, LOGITS, OUT, Grid, Leaving


def pairs(
    call: Any, tile: Any, task: Any, x: Any, _dense: Any, _q: Any, out: Any, _log: Any, _across: Any, _shifted: Any
) -> None:
    """Do a task; the arguments are those of _numba_kernels.kernel."""
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
            bad = min(bad, vector.first_bad(call, tile, n))
            vector.add_weights(call, tile, n)
            tile_of_pairs(call, tile, n, x, out)
            vector.put_values(call, tile, n, x)
            position += n
        vector.end_block(call, tile, block, bad)
    if out is not None:
        vector.see_off(call, tile, x, out)
        vector.end_task(call)


@traced
def tile_of_pairs(call: Struct, tile: Struct, n: Value, x: Memory, out: Memory | None) -> None:
    """Make the losses of the n rows of a tile, and their gradients; add up the losses."""
    beside = _one_after_the_other(call, LOGITS, x)
    leaves = n.like(0) > 0
    if out is not None:
        beside = beside & _one_after_the_other(call, OUT, out)
        to = tile.at[OUT]
        if out.code == x.computed().code:
            leaves = (call.streamed > 0) & beside & (to % out.itemsize).equals(0)
            to = select(leaves, vector.kept_row(call, tile, n.like(0), x).address, to)
    whole = select(beside, n - n % x.lanes, 0)  # rows that are read and written as they lie

    def vectors(i: Value, high: Value, low: Value, *leaving: Value) -> State:
        place = tile.at[LOGITS] + i * (2 * x.itemsize)
        halves = [x.load(place), x.load(place + x.step)]
        for address in (place, place + x.step):
            x.prefetch(address + AHEAD)
        loss, gradients = _losses(call, tile, i, *halves[0].deinterleave(halves[1]), x, out)
        if out is not None:
            leaving = Leaving(*leaving).send(2, x.constant(1.0), x, out)
            place = to + i * (2 * out.itemsize)
            for half, address in zip(gradients[0].interleave(gradients[1]), (place, place + out.step), strict=True):
                out.store(address, half)
        return *_added(high, low, loss), *leaving

    def columns(i: Value, high: Value, low: Value) -> State:
        first, second = (vector.gathered(x, tile.logits.at(0), i).load(i.like(k), 1, None, 0.0)[0] for k in range(2))
        loss, gradients = _losses(call, tile, whole + i, first, second, x, out, n - whole - i)
        if out is not None:
            for k, gradient in enumerate(gradients):
                vector.gathered(out, tile.out.at(0), i).store(i.like(k), [gradient], None)
        return _added(high, low, loss)

    def gathered(high: Value, low: Value) -> State:
        rest = n - whole
        inner, stride, two = call.inner[LOGITS], call.class_stride[LOGITS], n.like(2)
        Grid(tile.at[LOGITS] + whole * inner, inner, stride, rest, two, tile.logits.at(0)).gather(x)
        sums = loop(0, rest, x.lanes, (high, low), columns)
        if out is not None:
            inner, stride = call.inner[OUT], call.class_stride[OUT]
            Grid(to + whole * inner, inner, stride, rest, two, tile.out.at(0)).scatter(out)
        return sums

    nothing = x.constant(0.0).to("f8")
    leaving: State = () if out is None else Leaving.of(tile)
    high, low, *still = loop(0, whole, x.lanes, (nothing, nothing, *leaving), vectors)
    high, low = when(whole < n, (high, low), gathered)
    while high.count != vector.GROUP:
        (a, b), (c, d) = high.halves(), low.halves()
        high, dropped = two_sum(a, b)
        low = c + d + dropped
    vector.add_to_sums(tile, 0, high)
    vector.add_to_sums(tile, 0, select(low.equals(low), low, 0.0))  # nothing is dropped beside an infinity
    if out is not None:
        Leaving(*still).put(tile)
        vector.finish_leaving(tile, x, out)
        when(leaves, (), lambda: _leave(tile, n, x, out, to))


def _one_after_the_other(call: Struct, operand: int, memory: Memory) -> Value:
    found: Value = call.class_stride[operand].equals(memory.itemsize) & call.inner[operand].equals(2 * memory.itemsize)
    return found


def _added(high: Value, low: Value, term: Value) -> State:
    high, dropped = two_sum(high, term)
    return high, low + dropped


def _leave(tile: Struct, n: Value, x: Memory, out: Memory, room: Value) -> State:
    vector.begin_leaving(tile, x, out, room, tile.at[OUT], n * 2, tile.leaving_factor.like(1.0))
    tile.turn = 1 - tile.turn
    return ()


def _losses(
    call: Struct,
    tile: Struct,
    i: Value,
    first: Value,
    second: Value,
    x: Memory,
    out: Memory | None,
    left: Value | None = None,
) -> tuple[Value, tuple[Value, Value]]:
    """Return losses in float64, and gradients, of the rows from i on, as many as are left; put the losses down."""
    of_first = vector.few_labels(tile, i, x).equals(0)
    own, other = select(of_first, first, second), select(of_first, second, first)
    d = fma(maximum(own, other), 0.0, other - own)  # NaN where one is +inf
    e = exponential(d.call("llvm.fabs") * -1.0)
    loss = log1p_of_fraction(e) + select(d > 0.0, d, 0.0)
    sample, label_mass, scale = (
        items.at(i).read(64, x.lanes).from_bits() for items in (tile.sample, tile.label_mass, tile.scale)
    )
    live = sample > 0.0
    if left is not None:
        live = live & (i.indices(x.lanes) < left.splat(x.lanes))
    mass = sample * label_mass
    weight = mass.to(x.real)
    loss = weight * select(weight > 0.0, loss, e)  # no mass makes no infinity a NaN
    loss = select(live, loss, 0.0).to("f8")

    def put() -> State:
        tile.value.at(i).write(loss)
        return ()

    when(call.values > 0, (), put)
    if out is None:
        return loss, (loss, loss)
    larger = 1.0 / (e + 1.0)
    share = select(d > 0.0, larger, e * larger)  # the probability of the other class
    up = (scale * mass * share.to("f8")).to(x.real)  # in float64, which holds it however large the scale
    up, down = select(live, up, 0.0), select(live, up * -1.0, 0.0)
    return loss, (select(of_first, down, up), select(of_first, up, down))
