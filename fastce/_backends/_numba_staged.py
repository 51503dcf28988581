"""Rows that are not visited as they lie: with a temperature or a softcap, with sparse targets, or of another dtype.

A tile at a time, what a visit is to see is staged in working memory, in the arithmetic's dtype: logits, and dense
targets in place of lists. The visit is that of the kernel for plain rows of the arithmetic's dtype, called by address
with a record of its own; so an option costs a small kernel for each dtype, and none for each combination.

    y = c tanh(x/(T c)), dy/dx = sech(x/(T c))^2/T; without a softcap y = (x - shift)/T

so that an offset common to all classes costs no digits of their differences. The shift is what the visit will subtract,
which is 0 then: a label's logit where that will serve as maximum, else the maximum. A gradient by y takes the place of
y, and leaves multiplied by the derivative; it goes to its place at once where the derivative is even and the dtype the
arithmetic's. Rows are staged one after the other, or where vectors are made of positions one class after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastce._backends import _numba_tile as vector
from fastce._backends._numba_kernels import each_row
from fastce._backends._numba_lanes import (
    Memory,
    State,
    Struct,
    Value,
    loop,
    maximum,
    select,
    traced,
    two_sum,
    when,
)
from fastce._backends._numba_math import Cap, Vectors, divided, each, pairwise, smaller
from fastce._backends._numba_tile import (
    AHEAD,
    AXIS,
    BLOCK,
    BLOCK_BYTES,
    CALL_BYTES,
    DENSE,
    FEW,
    KERNEL_ARGUMENTS,
    LISTED,
    LOGITS,
    OPERANDS,
    OUT,
    SCRATCH_BYTES,
    SHARED_BYTES,
    SHIFTED_LIMIT,
)

_RECORD_BYTES = CALL_BYTES + 8 * AXIS

STAGED_AT = -(-(_RECORD_BYTES + BLOCK_BYTES) // 64) * 64
"""Where in a task's memory the operands may begin: behind the record of the visit, and what that leaves."""

BY_MAXIMUM, BY_LABEL = 1, 2
"""What a row is shifted by, in the record; 0 is nothing."""

LISTED_BYTES = 16
"""Of each class in a list: its number, and its mass."""


def staged(
    call: Any, tile: Any, task: Any, _x: Any, _dense: Any, _q: Any, _out: Any, _log: Any, _across: Any, _: Any
) -> None:
    """Do a task; where nothing is to be visited only check the rows and add up their weights."""
    start_visits(call, tile, task)
    for block in range(call.n_blocks * task // call.n_tasks, call.n_blocks * (task + 1) // call.n_tasks):
        vector.start_block(tile)
        vector.start_rows(call, tile)
        start_sums(tile)
        bad = call.n_rows
        position = block * call.block_rows
        end = min(position + call.block_rows, call.n_rows)
        while position < end:
            n = min(call.tile, end - position, vector.locate(call, tile, position))
            vector.read_rows(call, tile, n)
            do_with(call, tile, n, call.list_entry)
            bad = min(bad, vector.first_bad(call, tile, n))
            if call.visit_entry != 0:
                do_with(call, tile, n, call.stage_entry)
                bad = min(bad, visit(call, tile, n))
                if call.send_entry != 0:
                    vector.locate(call, tile, position)
                    do_with(call, tile, n, call.send_entry)
            else:
                vector.add_weights(call, tile, n)
            position += n
        if call.visit_entry != 0:
            end_sums(call, tile, block, bad)
        else:
            vector.end_block(call, tile, block, bad)


def stage_logits(
    call: Any, tile: Any, n: Any, x: Any, _dense: Any, _q: Any, _out: Any, _log: Any, across: Any, _: Any
) -> None:
    """Stage the logits of n rows."""
    if across is None:
        stage_rows(call, tile, n, x)
    else:
        stage_classes(call, tile, n, x)


def send_gradient(
    call: Any, tile: Any, n: Any, x: Any, _dense: Any, _q: Any, out: Any, _log: Any, across: Any, _: Any
) -> None:
    """Send the staged gradient of n rows to its place."""
    if across is None:
        send_rows(call, tile, n, x, out)
    else:
        send_classes(call, tile, n, x, out)


def stage_lists(
    call: Any, tile: Any, n: Any, _x: Any, probabilities: Any, q: Any, _out: Any, _log: Any, _across: Any, _: Any
) -> None:
    """Check the lists of n rows, and stage them as dense targets if there will be a visit."""
    put_lists(call, tile, n, probabilities, q)


# Around a visit


@traced
def do_with(call: Struct, tile: Struct, n: Value, entry: Value) -> None:
    """Call the compiled function at an address, if there is one, for n rows of the tile."""
    when(entry.differs(0), (), lambda: _invoke(entry, call, tile, n))


def _invoke(entry: Value, call: Struct, tile: Struct, number: Value) -> None:
    entry.invoke(call.address, tile.address, number, *[number.like(0)] * (KERNEL_ARGUMENTS - 3))


def _visited(call: Struct, tile: Struct) -> Struct:
    """Return the record of the visit."""
    return Struct(tile.staging, call.record)


@traced
def start_visits(call: Struct, tile: Struct, task: Value) -> None:
    """Find the task's memory for staging, and tell the visit what does not depend on the rows."""
    tile.staging = call.address + SHARED_BYTES + call.n_tasks * SCRATCH_BYTES + task * call.staging
    visited = _visited(call, tile)

    def begin() -> None:
        tile.staging.copy_from(call.visit_plan, call.visit_plan.read(64))
        visited.n_rows = call.n_rows
        visited.n_tasks = task.like(1)
        visited.blocks = tile.staging + _RECORD_BYTES
        for name in ("values", "class_weight", "dense_weight", "class_vector", "target_scale", "z_loss"):
            setattr(visited, name, getattr(call, name))
        visited.grad_scale = call.grad_scale / call.gradient_divisor
        for operand in range(OPERANDS):
            there = call.stage[operand] > 0
            visited.inner[operand] = select(there, visited.inner[operand], call.inner[operand])
            visited.axis[1 + operand] = visited.inner[operand]

    when(call.visit_entry.differs(0), (), begin)


@traced
def visit(call: Struct, tile: Struct, n: Value) -> Value:
    """Visit n rows, and add what that leaves to the block's sums; return the first bad row, or the number of rows."""
    visited = _visited(call, tile)
    visited.block_rows = n
    visited.axis[0] = n
    for operand in range(OPERANDS):
        place = call.stage[operand]
        visited.start[operand] = select(place > 0, tile.staging + place, tile.at[operand])
    _invoke(call.visit_entry, visited, tile, n.like(0))
    for which in range(2):
        high, low = (tile.staged_sums[2 * which + part] for part in range(2))
        more, dropped = ((visited.blocks + 8 * (2 * which + part)).read_like(high) for part in range(2))
        high, rounded = two_sum(high, more)
        tile.staged_sums[2 * which] = high
        tile.staged_sums[2 * which + 1] = low + (dropped + rounded)
    bad: Value = (visited.blocks + 32).read(64)
    return bad


@traced
def start_sums(tile: Struct) -> None:
    for index in range(4):
        tile.staged_sums[index] = tile.staged_sums[0].like(0.0)


@traced
def end_sums(call: Struct, tile: Struct, block: Value, bad: Value) -> None:
    """Write the sums of a block of rows and the first bad one of them."""
    answer = call.blocks + block * BLOCK_BYTES
    for index in range(4):
        (answer + 8 * index).write(tile.staged_sums[index])
    (answer + 32).write(bad)


# Logits


def _per_temperature(call: Struct, x: Memory) -> tuple[Value, Value]:
    high, low = (call.per_temperature[part].to(x.real).splat(x.lanes) for part in range(2))
    return high, low


def _cap(call: Struct, x: Memory) -> Cap:
    numbers = (call.per_softcap, call.softcap, call.steepest)
    return Cap(_per_temperature(call, x), *(number.to(x.real).splat(x.lanes) for number in numbers))


def _place(call: Struct, tile: Struct, offset: Value, i: Value, k: Value, x: Memory, *, across: bool) -> Vectors:
    """Return where classes of row i, or of rows i, i + 1, …, are staged from class k on."""
    reals = x.computed()
    row = i * x.real_size if across else i * call.stage_row
    start = tile.staging + offset + row + k * call.stage_class
    return Vectors(reals, start, call.stage_class if across else reals.step)


def _transform(
    call: Struct, source: Vectors, to: Vectors, slopes: Vectors, n: Value, lanes: int | None, shift: Value
) -> None:
    """Stage n classes."""
    x = source.memory

    def capped() -> None:
        cap = _cap(call, x)

        def some(first: Value, count: int, live: Value | None) -> State:
            both = [cap.apply(logit) for logit in source.load(first, count, live, 0.0)]
            to.store(first, [value for value, _ in both], live)
            when(call.slopes > 0, (), lambda: slopes.store(first, [slope for _, slope in both], live))
            return ()

        each(n, lanes, (), some)

    def shifted() -> None:
        inverse = _per_temperature(call, x)

        def some(first: Value, count: int, live: Value | None) -> State:
            logits = source.load(first, count, live, 0.0)
            to.store(first, [divided(logit - shift, inverse) for logit in logits], live)
            return ()

        each(n, lanes, (), some)

    when(call.softcap > 0.0, (), capped)
    when(~(call.softcap > 0.0), (), shifted)


def _finite(top: Value) -> Value:
    return select((top - top).equals(0.0), top, 0.0)


def _get_labels(call: Struct, tile: Struct, n: Value, x: Memory) -> None:
    when(call.shifts.equals(BY_LABEL), (), lambda: vector.get_labels.here(call, tile, n, x, None))


def _shift(call: Struct, top: Value, logit: Value, x: Memory) -> Value:
    """Return by how much rows are shifted, of their maxima and their labels' logits, all in float64."""
    gap = call.temperature * math.log(SHIFTED_LIMIT[x.real])
    by_label = call.shifts.equals(BY_LABEL)
    if top.count is not None:
        by_label, gap = by_label.splat(top.count), gap.splat(top.count)
    return _finite(select(by_label & (top - logit < gap), logit, top))


@traced
def stage_rows(call: Struct, tile: Struct, n: Value, x: Memory) -> None:
    """Stage n rows one after the other, but for those that are ignored."""
    _get_labels(call, tile, n, x)
    shifts = select(call.shifts > 0, call.n_classes, 0)

    def row(i: Value) -> None:
        def highest(k: Value, top: Value) -> State:
            count = smaller(call.n_classes - k, BLOCK)
            logits = vector.row_logits(call, tile, i, k, count, x)

            def some(first: Value, some: int, live: Value | None, top: Value) -> State:
                found = pairwise(maximum, logits.load(first, some, live, -math.inf))
                logits.prefetch(first, some, AHEAD)
                return (maximum(found, top),)

            return each(count, x.lanes, (top,), some)

        (top,) = loop(0, shifts, BLOCK, (x.constant(-math.inf),), highest)
        shift = _shift(call, top.reduce(maximum).to("f8"), tile.label_logit[i], x)
        shift = select(call.shifts > 0, shift, 0.0)
        tile.offset[i] = shift / call.temperature
        shift = shift.to(x.real).splat(x.lanes)

        def block(k: Value) -> State:
            count = smaller(call.n_classes - k, BLOCK)
            to, slopes = (
                _place(call, tile, offset, i, k, x, across=False) for offset in (call.stage[LOGITS], call.slopes)
            )
            _transform(call, vector.row_logits(call, tile, i, k, count, x), to, slopes, count, x.lanes, shift)
            return ()

        loop(0, call.n_classes, BLOCK, (), block)

    each_row(tile, n, row)


@traced
def stage_classes(call: Struct, tile: Struct, n: Value, x: Memory) -> None:
    """Stage n positions, one class after the other."""
    _get_labels(call, tile, n, x)

    def gather(k: Value, count: Value) -> None:
        vector.gather_classes(call, tile, n, k, count, x, None, None)

    def highest(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)
        gather(k, count)

        def positions(i: Value) -> State:
            place, lowest = tile.top.at(i), x.constant(-math.inf)
            so_far = select(k.equals(0).splat(x.lanes), lowest, place.read_like(lowest.to("f8")).to(x.real))
            logits = vector.gathered(x, tile.logits.at(0), i)

            def some(first: Value, some: int, live: Value | None, top: Value) -> State:
                return (maximum(pairwise(maximum, logits.load(first, some, live, 0.0)), top),)

            (top,) = each(count, None, (so_far,), some)
            place.write(top.to("f8"))
            return ()

        return loop(0, n, x.lanes, (), positions)

    def block(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)
        when((call.shifts < 1) | (call.n_classes > FEW), (), lambda: gather(k, count))

        def positions(i: Value) -> State:
            top = tile.top.at(i).read_like(x.constant(0.0).to("f8"))
            shift = _shift(call, top, tile.label_logit.at(i).read_like(top), x)
            shift = select((call.shifts > 0).splat(x.lanes), shift, 0.0)
            tile.offset.at(i).write(shift / call.temperature.splat(x.lanes))
            to, slopes = (
                _place(call, tile, offset, i, k, x, across=True) for offset in (call.stage[LOGITS], call.slopes)
            )
            logits = vector.gathered(x, tile.logits.at(0), i)
            _transform(call, logits, to, slopes, count, None, shift.to(x.real))
            return ()

        return loop(0, n, x.lanes, (), positions)

    loop(0, select(call.shifts > 0, call.n_classes, 0), FEW, (), highest)
    loop(0, call.n_classes, FEW, (), block)


# Gradients


def _sent(call: Struct, staged: Vectors, slopes: Vectors, out: Vectors, n: Value, lanes: int | None) -> None:
    """Write n classes of a staged gradient, multiplied by the derivative of what was staged if there is one."""

    def write(multiplied: bool) -> Callable[[], State]:
        def some(first: Value, count: int, live: Value | None) -> State:
            values = staged.load(first, count, live, 0.0)
            if multiplied:
                values = [a * b for a, b in zip(values, slopes.load(first, count, live, 0.0), strict=True)]
            out.store(first, values, live)
            return ()

        return lambda: each(n, lanes, (), some)

    when(call.slopes > 0, (), write(multiplied=True))
    when(call.slopes < 1, (), write(multiplied=False))


@traced
def send_rows(call: Struct, tile: Struct, n: Value, x: Memory, out: Memory) -> None:
    """Send the gradient of n rows."""
    stride, size = call.class_stride[OUT], n.like(out.itemsize)
    beside = stride.equals(size)

    def row(i: Value) -> None:
        def block(k: Value) -> State:
            count = smaller(call.n_classes - k, BLOCK)
            to, buffer = tile.at[OUT] + i * call.inner[OUT] + k * stride, tile.out.at(0)
            staged, slopes = (
                _place(call, tile, offset, i, k, x, across=False) for offset in (call.stage[OUT], call.slopes)
            )
            put = Vectors(out, select(beside, to, buffer), out.step)
            _sent(call, staged, slopes, put, count, x.lanes)

            def scatter() -> None:
                vector.copy(out, to, stride, buffer, size, count)

            return when(~beside, (), scatter)

        loop(0, call.n_classes, BLOCK, (), block)

    each_row(tile, n, row, lambda i: vector.clear_row.here(call, tile, i, out))


@traced
def send_classes(call: Struct, tile: Struct, n: Value, x: Memory, out: Memory) -> None:
    """Send the gradient of n positions."""
    nothing = x.constant(0.0)

    def block(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)

        def positions(i: Value) -> State:
            live = tile.sample.at(i).read_like(nothing.to("f8")) > 0.0
            staged, slopes = (
                _place(call, tile, offset, i, k, x, across=True) for offset in (call.stage[OUT], call.slopes)
            )
            put = vector.gathered(out, tile.out.at(0), i)
            _sent(call, staged, slopes, put, count, None)

            def clear(j: Value) -> State:
                kept = out.load(put.at(j))
                out.store(put.at(j), select(live, kept, 0.0))
                return ()

            ignored = (~live).extend(64).reduce(lambda a, b: a | b)
            return when(ignored > 0, (), lambda: loop(0, count, 1, (), clear))

        loop(0, n, x.lanes, (), positions)
        vector.grid(call, tile, OUT, n, k, count, tile.out).scatter(out)
        return ()

    loop(0, call.n_classes, FEW, (), block)


# Lists


@traced
def put_lists(call: Struct, tile: Struct, n: Value, probabilities: Memory, q: Memory) -> None:
    """Check the lists of n rows; stage as dense targets those that are acceptable, if there will be a visit.

    A class that is listed is loaded once, and used as checked: the arrays may change meanwhile. Until it gets the
    masses, the staged row remembers what is listed.
    """
    # Loaded once: to LLVM any store might change them.
    length, n_classes, visits = call.list_length, call.n_classes, call.stage[DENSE] > 0
    can_ignore, ignore_index, largest = call.can_ignore > 0, call.ignore_index, call.largest_listed
    listed_at, listed_row, listed_step = (items[LISTED] for items in (tile.at, call.inner, call.class_stride))
    width, unused, swapped = call.label_bits, call.label_unused, call.label_swapped > 0
    mass_at, mass_row, mass_step = (items[DENSE] for items in (tile.at, call.inner, call.class_stride))
    staged, to_row, to_class = tile.staging + call.stage[DENSE], call.stage_row, call.stage_class
    classes = tile.staging + call.lists
    masses = classes + length * 8
    zero = call.grad_scale.like(0.0)
    bits = 8 * q.itemsize

    def target(i: Value, k: Value) -> Value:
        address: Value = staged + i * to_row + k * to_class
        return address

    def row(i: Value) -> State:
        index, probability = listed_at + i * listed_row, mass_at + i * mass_row

        def one(j: Value, bad: Value, total: Value, again: Value) -> State:
            k = integer(index + j * listed_step)
            p = probabilities.load_one(probability + j * mass_step).to("f8")
            padding = can_ignore & k.equals(ignore_index)
            sound = k.within(n_classes) & (p >= 0.0) & (largest >= p)
            kept = sound & ~padding
            (classes + j * 8).write(select(kept, k, -1))
            p = select(kept, p, 0.0)
            (masses + j * 8).write(p)
            (again,) = when(kept & visits, (again,), lambda again: mark(i, k, again))
            return select(sound | padding, bad, 1), total + p, again

        bad, total, again = loop(0, length, 1, (i.like(0), zero, i.like(0)), one)
        bad = select(total > call.most_listed, bad.like(1), bad)
        vector.mark_bad(tile, i, bad > 0)
        when(visits & (bad < 1), (), lambda: stage(i, total, again))
        return ()

    def integer(place: Value) -> Value:
        """Return the class at a place; what uint64 has beyond int64 becomes negative."""

        def of(bits: int) -> Callable[[Value], State]:
            def read(_: Value) -> State:
                raw = place.read(bits)
                if bits > 8:
                    raw = select(swapped, raw.call("llvm.bswap"), raw)
                return ((raw.extend(64) << unused).shift_signed(unused),)

            return read

        value = place
        for bits in (64, 32, 16, 8):
            (value,) = when(width.equals(bits), (value,), of(bits))
        return value

    def mark(i: Value, k: Value, again: Value) -> State:
        place = target(i, k)
        before = place.read(bits)
        place.write(before.like(1))
        return (again | before.extend(64),)

    def each_listed(state: State, body: Callable[..., State]) -> State:
        def one(j: Value, *state: Value) -> State:
            k = (classes + j * 8).read(64)
            return when(k > -1, state, lambda *state: body(j, k, *state))

        return loop(0, length, 1, state, one)

    def stage(i: Value, total: Value, again: Value) -> State:
        def count(_: Value, k: Value, distinct: Value) -> State:
            return (distinct + 1,)

        def put(j: Value, k: Value) -> State:
            q.store_one(target(i, k), (masses + j * 8).read_like(zero))
            return ()

        def spread() -> State:
            (distinct,) = each_listed((i.like(0),), count)
            others = n_classes - distinct
            return when(others > 0, (), lambda: fill(i, (zero.like(1.0) - total) / others.number("f8")))

        when(again > 0, (), lambda: join(i))
        when((call.spreads > 0) & (total < 1.0), (), spread)
        return each_listed((), put)

    def join(i: Value) -> State:
        """Move the masses of a class to the last place where it is listed, in the order of the list."""

        def remember(j: Value, k: Value) -> State:
            target(i, k).write(j.narrow(bits))
            return ()

        def add_up(j: Value, k: Value) -> State:
            last = target(i, k).read(bits).extend(64)

            def move() -> State:
                to = masses + last * 8
                to.write(to.read_like(zero) + (masses + j * 8).read_like(zero))
                (classes + j * 8).write(last.like(-1))
                return ()

            return when(last.differs(j), (), move)

        each_listed((), remember)
        return each_listed((), add_up)

    def fill(i: Value, value: Value) -> State:
        several = value.to(q.real).splat(q.lanes)
        whole = select(to_class.equals(q.itemsize), n_classes - n_classes % q.lanes, 0)

        def vectors(k: Value) -> State:
            q.store(target(i, k), several)
            return ()

        def one(k: Value) -> State:
            q.store_one(target(i, k), value)
            return ()

        loop(0, whole, q.lanes, (), vectors)
        return loop(whole, n_classes, 1, (), one)

    def clear() -> State:
        target(n.like(0), n.like(0)).clear(call.stage_bytes)
        return ()

    when(visits, (), clear)
    loop(0, n, 1, (), row)
