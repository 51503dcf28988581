"""What is asked of each row beside its loss (the output STATISTICS), and cross entropy against a teacher's softmax.

Two kernels like that of _numba_kernels.py, over the same blocks, tiles and loads. A sweep carries its sums to a higher
maximum as that of _numba_math.py does; with m the maximum, r the sum of exp(x_k - m) without one class that reaches it:

    statistics    r, the sum of (m - x_k) exp(x_k - m), the first class at m, the greatest of the others than the label
                  and how many are above the label's
    distillation  r, M = sum of e_k with e_k = exp((t_k - n)/T), n the teacher's maximum, and sum of e_k (m - x_k)/T
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastce._backends import _numba_tile as vector
from fastce._backends._numba_lanes import (
    Items,
    Memory,
    State,
    Struct,
    Value,
    loop,
    maximum,
    select,
    traced,
    when,
)
from fastce._backends._numba_math import (
    Sum,
    Vectors,
    accumulate,
    add,
    each,
    exponential,
    in_float64,
    log1p,
    no_sum,
    pairwise,
    smaller,
    split,
    sum_of_lanes,
)
from fastce._backends._numba_tile import BLOCK, DENSE, FEW, GROUP, LABELS, LOGITS, OUT, ROW

FIELDS = ("lse", "loss", "entropy", "argmax", "target_probability", "rank", "margin", "correct", "maximum", "rest")
"""The statistics, in the order of their addresses at ``call.values``."""

NO_PLACE = 2**31 - 1
"""Behind every class of a block."""


class Asked(NamedTuple):
    """What a kernel for statistics is compiled for; each is None or not."""

    sums: Any
    """lse, loss, entropy, target_probability or rest."""
    spread: Any
    """entropy."""
    label: Any
    """rank or margin."""
    first: Any
    """argmax or correct."""


def asked_of(fields: set[str]) -> Asked:
    """Return what has to be known of each row."""
    wanted = (
        {"lse", "loss", "entropy", "target_probability", "rest"},
        {"entropy"},
        {"rank", "margin"},
        {"argmax", "correct"},
    )
    return Asked(*(True if fields & those else None for those in wanted))


def statistics(
    call: Any, tile: Any, task: Any, x: Any, sums: Any, spread: Any, label: Any, first: Any, across: Any, _: Any
) -> None:
    """Do a task of the output STATISTICS: all arguments but the first three stand for types, absent ones for None."""
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
            vector.get_labels(call, tile, n, x, None)
            if across is None:
                for i in range(n):
                    look_at_row(call, tile, i, x, sums, spread, label, first)
            else:
                look_across(call, tile, n, x, sums, spread, label, first)
            if first is not None:
                find_nans(call, tile, n, x)
            answer(call, tile, n, x, sums, spread, label, first)
            position += n
        vector.end_block(call, tile, block, bad)


def distillation(
    call: Any, tile: Any, task: Any, x: Any, teacher: Any, _q: Any, out: Any, _logarithm: Any, across: Any, _: Any
) -> None:
    """Do a task of the kind TEACHER; the arguments are those of _numba_kernels.kernel."""
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
            if across is None:
                for i in range(n):
                    if tile.sample[i] > 0.0:
                        compare_row(call, tile, i, x, teacher)
            else:
                compare_across(call, tile, n, x, teacher)
            if out is not None:
                finish_comparison(call, tile, n, 1)
            else:
                finish_comparison(call, tile, n, None)
            vector.put_values(call, tile, n, x)
            if out is not None:
                if across is None:
                    for i in range(n):
                        if tile.sample[i] > 0.0:
                            write_row(call, tile, i, x, teacher, out)
                        else:
                            vector.clear_row(call, tile, i, out)
                else:
                    write_across(call, tile, n, x, teacher, out)
            position += n
        vector.end_block(call, tile, block, bad)


def numbers(tile: Struct, name: str, i: Value, count: int) -> Value:
    """Return what is known of rows i, i + 1, …"""
    items: Items = getattr(tile, name)
    return items.at(i).read(64, count).from_bits()


def number(a: Value, b: Value) -> Value:
    """Return the larger; the other where one is NaN."""
    return a.call("llvm.maxnum", b)


def classes(x: Memory, at: Value, row: bool) -> Value:
    """Return the classes of the vector that begins at class ``at``, or of ``at`` across positions."""
    start = at.narrow(8 * x.real_size).splat(x.lanes)
    return start + x.indices() if row else start


class Scale(NamedTuple):
    """How sums move to a maximum that is not lower."""

    factor: Value
    """exp(before - top), 1 where it stays."""
    rise: Value
    """top - before, 0 where it stays and where all was −inf."""
    kept: Value
    """Ties that are not counted yet: one a lane stays apart, so that none overflows."""
    counted: Value

    def rest(self, total: Sum) -> Sum:
        return accumulate(tuple(part * self.factor for part in total), self.counted * self.factor)


def scale_to(top: Value, before: Value, ties: Value, per_t: Value | None, narrow: bool) -> Scale:
    """Return how sums that are relative to the maximum before, in half of the lanes if ``narrow``, move to the next."""
    moves = top > before
    down, up = before - top, top - before
    if per_t is not None:
        down, up = down * per_t, up * per_t
    factor = select(moves, exponential(down), 1.0).to("f8")
    rise = select(moves, select(before > -math.inf, up, 0.0), 0.0).to("f8")
    kept = select(moves, ties.like(0), select(ties > 0, ties.like(1), 0))
    counted = (ties - kept).number("f8")
    if narrow:
        factor, rise, counted = factor.halves()[0], rise.halves()[0], add(*counted.halves())
    return Scale(factor, rise, kept, counted)


def times(total: Sum, factor: Value) -> Sum:
    """Return a sum times a factor, nothing where that is 0 whatever the sum."""
    return tuple(select(factor > 0.0, part * factor, 0.0) for part in total)


def value_of(total: Sum) -> Value:
    return pairwise(add, list(total))


def joined(*sums: Sum) -> State:
    return tuple(part for one in sums for part in one)


# Statistics


def nothing_seen(x: Memory, across: bool) -> State:
    """Return a row of no classes: top, nan, other, above, ties, first, and the sums r and spread."""
    lowest = x.constant(-math.inf)
    none = lowest.bits().like(0)
    first = x.address.like(0)
    sums = no_sum(x, across) * 2
    return lowest, x.constant(0.0), lowest, none, none, first.splat(x.lanes) if across else first, *sums


def look(
    state: State, x: Vectors, n: Value, lanes: int | None, k: Value, label: Value, logit: Value, asked: Asked
) -> State:
    """See n classes from class k on; ``label`` is that among them, or -1."""
    row, memory = lanes is not None, x.memory
    before, nan, other, above, ties, first, *sums = state

    def highest(start: Value, some: int, live: Value | None, *state: Value) -> State:
        top, nan, other, above = state
        logits = x.load(start, some, live, -math.inf)
        top = number(pairwise(number, logits), top)
        for value in logits:
            nan = select(value.equals(value), nan, 1.0)
        if asked.label is not None:
            others = []
            for i, value in enumerate(logits):
                at = (start + i) * lanes if lanes is not None else start + i
                others.append(select(classes(memory, at, row).differs(label), value, -math.inf))
                above = above - (value > logit).ones(8 * memory.real_size)
            other = number(pairwise(number, others), other)
        return top, nan, other, above

    top, nan, other, above = each(n, lanes, (before, nan, other, above), highest)
    if row:
        top = top.reduce(maximum).splat(memory.lanes)
    if asked.sums is None and asked.first is None:
        return top, nan, other, above, ties, first, *sums

    def move(ties: Value, *sums: Value) -> State:
        rest, spread = split(sums, memory)
        scale = scale_to(top, before, ties, None, row)
        if asked.spread is not None:
            spread = times(accumulate(spread, scale.rise * (value_of(rest) + scale.counted)), scale.factor)
        return scale.kept, *joined(scale.rest(rest), spread)

    if asked.sums is not None:
        ties, *sums = when(k > 0, (ties, *sums), move)
    shift = select(top > -math.inf, top, 0.0)
    nowhere = ties.like(NO_PLACE)

    def add_up(start: Value, some: int, live: Value | None, place: Value, ties: Value, *sums: Value) -> State:
        terms, distances = [], []
        rest, spread = split(sums, memory)
        for i, value in enumerate(x.load(start, some, live, -math.inf)):
            lower = value.differs(top)
            if asked.first is not None:
                at = (start + i) * lanes if lanes is not None else start + i
                place = smaller(select(lower, nowhere, classes(memory, at, row)), place)
            if asked.sums is None:
                continue
            ties = select(lower, ties, ties + 1)
            e = select(lower, exponential(value - shift), 0.0)
            terms.append(e)
            if asked.spread is not None:
                distances.append(select(e > 0.0, e * (shift - value), 0.0))
        if row and live is None:
            x.prefetch(start, some)
        if terms:
            rest = accumulate(rest, in_float64(terms, row))
        if distances:
            spread = accumulate(spread, in_float64(distances, row))
        return place, ties, *joined(rest, spread)

    place, ties, *sums = each(n, lanes, (nowhere, ties, *sums), add_up)
    if row:
        found = k + place.reduce(smaller).extend(64)
        first = select((top > before).lane(0), found, first)
    else:
        first = select(top > before, k.splat(memory.lanes) + place.extend(64), first)
    return top, nan, other, above, ties, first, *sums


def place_of(label: Value, k: Value, n: Value, bits: int) -> Value:
    """Return where a label, or one in each lane, is among n classes from class k on; -1 where it is not."""
    if label.count is not None:
        k, n = k.splat(label.count), n.splat(label.count)
    place = label - k
    return select(place.within(n), place, -1).narrow(bits)


@traced
def look_at_row(
    call: Struct, tile: Struct, i: Value, x: Memory, sums: Any, spread: Any, label: Any, first: Any
) -> None:
    """See the classes of row i of the tile."""
    asked = Asked(sums, spread, label, first)
    logit = tile.label_logit[i].to(x.real).splat(x.lanes)

    def block(k: Value, *state: Value) -> State:
        n = smaller(call.n_classes - k, BLOCK)
        logits = vector.row_logits(call, tile, i, k, n, x)
        at = place_of(tile.label[i], k, n, 8 * x.real_size).splat(x.lanes)
        return look(state, logits, n, x.lanes, k, at, logit, asked)

    state = loop(0, call.n_classes, BLOCK, nothing_seen(x, across=False), block)
    top, nan, other, above, ties, at, *added = state
    rest, distance = split(tuple(added), x)
    tile.top[i] = top.lane(0).to("f8")
    tile.has_nan[i] = nan.reduce(maximum).to("f8")
    tile.first[i] = at
    if label is not None:
        tile.other[i] = other.reduce(maximum).to("f8")
        tile.above[i] = above.extend(64).reduce(add)
    if sums is not None:
        tile.rest[i] = sum_of_lanes(rest) + (ties.reduce(add).number("f8") - 1.0)
    if spread is not None:
        tile.pull[i] = sum_of_lanes(distance)


KEPT_LANES = 16
"""Lanes of 64 bits that a sweep across positions may keep between two blocks of classes, for each position."""


def resumed(tile: Struct, i: Value, k: Value, start: State) -> State:
    """Return what a sweep of positions i, i + 1, … starts with: nothing, or what it kept before class k."""

    def resume(*start: Value) -> State:
        lanes = start[0].count or 1
        return tuple(tile.q.at(i * KEPT_LANES + part * lanes).read_like(value) for part, value in enumerate(start))

    return when(k > 0, start, resume)


def keep(tile: Struct, i: Value, state: State) -> None:
    lanes = state[0].count or 1
    for part, value in enumerate(state):
        tile.q.at(i * KEPT_LANES + part * lanes).write(value)


def ask_for_next(call: Struct, tile: Struct, operand: int, i: Value, n: Value, lanes: int) -> None:
    """Ask for the same rows of the next tile, while there is something to compute."""
    inner = call.inner[operand]

    def line(at: Value) -> State:
        (tile.at[operand] + (n + i) * inner + at).prefetch()
        return ()

    loop(0, inner * lanes, 64, (), line)


@traced
def look_across(
    call: Struct, tile: Struct, n: Value, x: Memory, sums: Any, spread: Any, label: Any, first: Any
) -> None:
    """See the classes of the n positions of the tile."""
    asked = Asked(sums, spread, label, first)

    def block(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)
        vector.gather_classes(call, tile, n, k, count, x, None, None)

        def positions(i: Value) -> State:
            logit = numbers(tile, "label_logit", i, x.lanes).to(x.real)
            at = place_of(tile.label.at(i).read(64, x.lanes), k, count, 8 * x.real_size)
            ask_for_next(call, tile, LOGITS, i, n, x.lanes)
            state = resumed(tile, i, k, nothing_seen(x, across=True))
            state = look(state, vector.gathered(x, tile.logits.at(0), i), count, None, k, at, logit, asked)

            def put_by() -> State:
                keep(tile, i, state)
                return ()

            when(call.n_classes > FEW, (), put_by)
            top, nan, other, above, ties, where, *added = state
            rest, distance = split(tuple(added), x)
            tile.top.at(i).write(top.to("f8"))
            tile.has_nan.at(i).write(nan.to("f8"))
            tile.first.at(i).write(where)
            if label is not None:
                tile.other.at(i).write(other.to("f8"))
                tile.above.at(i).write(above.extend(64))
            if sums is not None:
                tile.rest.at(i).write(value_of(rest) + (ties.number("f8") - 1.0))
            if spread is not None:
                tile.pull.at(i).write(value_of(distance))
            return ()

        return loop(0, n, x.lanes, (), positions)

    loop(0, call.n_classes, FEW, (), block)


@traced
def find_nans(call: Struct, tile: Struct, n: Value, x: Memory) -> None:
    """Let the first NaN of a row be its first maximum."""
    stride = call.class_stride[LOGITS]

    def row(i: Value) -> State:
        start = tile.at[LOGITS] + i * call.inner[LOGITS]

        def one(back: Value, first: Value) -> State:
            k = call.n_classes - 1 - back
            value = x.load_one(start + k * stride)
            return (select(value.equals(value), first, k),)

        def find() -> State:
            (tile.first[i],) = loop(0, call.n_classes, 1, (i.like(0),), one)
            return ()

        return when(tile.has_nan[i] > 0.0, (), find)

    loop(0, n, 1, (), row)


@traced
def answer(call: Struct, tile: Struct, n: Value, x: Memory, sums: Any, spread: Any, label: Any, first: Any) -> None:
    """Write what is asked of the tile's rows; one without a label has no answer to what is asked of its label."""
    stride, real = call.inner[ROW], x.real

    def some(i: Value) -> State:
        def get(name: str) -> Value:
            return numbers(tile, name, i, GROUP)

        def put(name: str, value: Value) -> None:
            size = value.element.width // 8 if not value.floating else x.real_size
            address = (call.values + 8 * FIELDS.index(name)).read(64)
            place = address + (tile.at[ROW] + i * stride) * size
            whole = stride.equals(1) & (i + (GROUP - 1) < n)

            def apart() -> State:
                room = tile.value.at(0)
                room.write(value)

                def one(j: Value) -> State:
                    (place + j * stride * size).write((room + j * size).read(8 * size))
                    return ()

                return loop(0, smaller(n - i, GROUP), 1, (), one)

            def together() -> State:
                place.write(value)
                return ()

            when((address > 0) & whole, (), together)
            when((address > 0) & ~whole, (), apart)

        labelled = (get("sample") > 0.0) & call.start[LABELS].differs(0).splat(GROUP)
        top, logit = get("top"), get("label_logit")
        has_nan = get("has_nan") > 0.0
        put("maximum", select(has_nan, top.like(math.nan), top).to(real))
        if sums is not None:
            sound = (top > -math.inf) & (top < math.inf) & ~has_nan
            rest = select(sound, get("rest"), math.nan)
            log = log1p(rest)
            put("lse", select(sound, top + log, select(has_nan, top.like(math.nan), top)).to(real))
            put("loss", select(labelled, log + (top - logit), 0.0).to(real))
            share = exponential(logit - top) / (rest + 1.0)
            put("target_probability", select(labelled, share, math.nan).to(real))
            put("rest", rest.to(real))
        if spread is not None:
            put("entropy", (log + get("pull") / (rest + 1.0)).to(real))
        if label is not None:
            put("rank", select(labelled, tile.above.at(i).read(64, GROUP), -1))
            put("margin", select(labelled, logit.to(real) - get("other").to(real), math.nan))
        if first is not None:
            at = tile.first.at(i).read(64, GROUP)
            put("argmax", at)
            put("correct", (labelled & at.equals(tile.label.at(i).read(64, GROUP))).extend(8))
        return ()

    loop(0, n, GROUP, (), some)


# Distillation


def nothing_compared(x: Memory, across: bool) -> State:
    """Return rows of no classes: the maxima, ties, and the sums r, M and the distance."""
    lowest = x.constant(-math.inf)
    return lowest, lowest, lowest.bits().like(0), *(no_sum(x, across) * 3)


def finite(top: Value) -> Value:
    return select(top > -math.inf, top, 0.0)


def compare(state: State, x: Vectors, t: Vectors, n: Value, lanes: int | None, later: Value, per_t: Value) -> State:
    """Add classes of the logits and of the teacher's."""
    row, memory = lanes is not None, x.memory
    before, teacher_before, ties, *sums = state

    def highest(start: Value, some: int, live: Value | None, top: Value, teacher_top: Value) -> State:
        top = maximum(pairwise(maximum, x.load(start, some, live, -math.inf)), top)
        return top, maximum(pairwise(maximum, t.load(start, some, live, -math.inf)), teacher_top)

    top, teacher_top = each(n, lanes, (before, teacher_before), highest)
    if row:
        top, teacher_top = (each_top.reduce(maximum).splat(memory.lanes) for each_top in (top, teacher_top))

    def move(ties: Value, *sums: Value) -> State:
        rest, mass, distance = split(sums, memory)
        scale = scale_to(top, before, ties, per_t, row)
        teacher = scale_to(teacher_top, teacher_before, ties.like(0), per_t, row)
        distance = accumulate(distance, scale.rise * value_of(mass))
        # What the teacher's new maximum leaves nothing of is no longer infinite either.
        mass, distance = times(mass, teacher.factor), times(distance, teacher.factor)
        return scale.kept, *joined(scale.rest(rest), mass, distance)

    ties, *sums = when(later, (ties, *sums), move)
    shift, teacher_shift = finite(top), finite(teacher_top)

    def add_up(start: Value, some: int, live: Value | None, ties: Value, *sums: Value) -> State:
        rest, mass, distance = split(sums, memory)
        logits, teachers = (vectors.load(start, some, live, -math.inf) for vectors in (x, t))
        masses = [exponential((value - teacher_shift) * per_t) for value in teachers]
        gaps = [(shift - value) * per_t for value in logits]
        distances = [select(e > 0.0, e * gap, 0.0) for e, gap in zip(masses, gaps, strict=True)]
        terms = []
        for value, gap in zip(logits, gaps, strict=True):
            lower = value.differs(top)
            ties = select(lower, ties, ties + 1)
            terms.append(select(lower, exponential(gap * -1.0), 0.0))
        if row and live is None:
            x.prefetch(start, some)
            t.prefetch(start, some)
        rest, mass, distance = (
            accumulate(total, in_float64(parts, row))
            for total, parts in ((rest, terms), (mass, masses), (distance, distances))
        )
        return ties, *joined(rest, mass, distance)

    return top, teacher_top, *each(n, lanes, (ties, *sums), add_up)


def per_temperature(call: Struct, x: Memory) -> Value:
    inverse: Value = 1.0 / call.temperature
    return inverse.to(x.real).splat(x.lanes)


def row_teacher(call: Struct, tile: Struct, i: Value, k: Value, n: Value, teacher: Memory) -> Vectors:
    """Return n classes of row i of the teacher from class k on."""
    stride = call.class_stride[DENSE]
    source = tile.at[DENSE] + i * call.inner[DENSE] + k * stride
    place = vector.side_by_side(teacher, source, stride, n, tile.dense.at(0))
    return Vectors(teacher, place, teacher.step, n * teacher.itemsize)


@traced
def compare_row(call: Struct, tile: Struct, i: Value, x: Memory, teacher: Memory) -> None:
    """Leave the sums of row i of the tile for `finish_comparison`."""
    per_t = per_temperature(call, x)

    def block(k: Value, *state: Value) -> State:
        n = smaller(call.n_classes - k, BLOCK)
        logits = vector.row_logits(call, tile, i, k, n, x)
        return compare(state, logits, row_teacher(call, tile, i, k, n, teacher), n, x.lanes, k > 0, per_t)

    top, teacher_top, ties, *sums = loop(0, call.n_classes, BLOCK, nothing_compared(x, across=False), block)
    rest, mass, distance = split(tuple(sums), x)
    tile.top[i] = top.lane(0).to("f8")
    tile.other[i] = teacher_top.lane(0).to("f8")
    tile.rest[i] = sum_of_lanes(rest) + (ties.reduce(add).number("f8") - 1.0)
    tile.mass[i] = sum_of_lanes(mass)
    tile.pull[i] = sum_of_lanes(distance)


def gather_both(call: Struct, tile: Struct, n: Value, k: Value, count: Value, x: Memory, teacher: Memory) -> None:
    """Gather both logits of ``count`` classes from class k on, of the n positions of a tile."""
    vector.grid(call, tile, LOGITS, n, k, count, tile.logits).gather(x)
    vector.grid(call, tile, DENSE, n, k, count, tile.dense).gather(teacher)


@traced
def compare_across(call: Struct, tile: Struct, n: Value, x: Memory, teacher: Memory) -> None:
    """Leave the sums of the n positions of the tile for `finish_comparison`."""
    per_t = per_temperature(call, x)

    def block(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)
        gather_both(call, tile, n, k, count, x, teacher)

        def positions(i: Value) -> State:
            for operand in (LOGITS, DENSE):
                ask_for_next(call, tile, operand, i, n, x.lanes)
            start = resumed(tile, i, k, nothing_compared(x, across=True))
            logits, teachers = (
                vector.gathered(x, tile.logits.at(0), i),
                vector.gathered(teacher, tile.dense.at(0), i),
            )
            state = compare(start, logits, teachers, count, None, k > 0, per_t)

            def put_by() -> State:
                keep(tile, i, state)
                return ()

            when(call.n_classes > FEW, (), put_by)
            top, teacher_top, ties, *sums = state
            rest, mass, distance = (value_of(total) for total in split(tuple(sums), x))
            tile.top.at(i).write(top.to("f8"))
            tile.other.at(i).write(teacher_top.to("f8"))
            tile.rest.at(i).write(rest + (ties.number("f8") - 1.0))
            tile.mass.at(i).write(mass)
            tile.pull.at(i).write(distance)
            return ()

        return loop(0, n, x.lanes, (), positions)

    loop(0, call.n_classes, FEW, (), block)


@traced
def finish_comparison(call: Struct, tile: Struct, n: Value, gradient: int | None) -> None:
    """Turn what the sweeps left into the rows' losses, add these up, and prepare the gradient."""
    temperature = call.temperature.splat(GROUP)

    def rows(i: Value) -> State:
        def get(name: str) -> Value:
            return numbers(tile, name, i, GROUP)

        s, top, teacher_top, mass = (get(name) for name in ("sample", "top", "other", "mass"))
        sound = (top > -math.inf) & (top < math.inf) & (teacher_top > -math.inf) & (teacher_top < math.inf)
        rest = select(sound, get("rest"), math.nan)
        loss = temperature * temperature * (log1p(rest) + get("pull") / mass)
        value = select(s > 0.0, s * loss, 0.0)
        tile.value.at(i).write(value)
        vector.add_to_sums(tile, 0, value)
        if gradient is not None:
            scale = get("scale") * s * temperature
            tile.factor.at(i).write(scale / (rest + 1.0))
            tile.target_factor.at(i).write(scale / mass)
        return ()

    loop(0, n, GROUP, (), rows)


class Slope(NamedTuple):
    """What the gradient of a row, or of one row in each lane, is made of."""

    sample: Value
    top: Value
    other: Value
    factor: Value
    target_factor: Value

    def write(self, x: Vectors, t: Vectors, out: Vectors, n: Value, lanes: int | None, per_t: Value) -> None:
        shift, teacher_shift = finite(self.top), finite(self.other)

        def some(start: Value, count: int, live: Value | None) -> State:
            values = []
            pairs = zip(*(v.load(start, count, live, -math.inf) for v in (x, t)), strict=True)
            for value, teacher in pairs:
                p = exponential((value - shift) * per_t) * self.factor
                slope = p - exponential((teacher - teacher_shift) * per_t) * self.target_factor
                values.append(slope if lanes is not None else select(self.sample > 0.0, slope, 0.0))
            out.store(start, values, live)
            return ()

        each(n, lanes, (), some)


def slope_of(tile: Struct, i: Value, x: Memory, *, across: bool) -> Slope:
    lanes = x.lanes if across else 1
    numbers_of = (numbers(tile, name, i, lanes).to(x.real) for name in Slope._fields)
    return Slope(*(value if across else value.lane(0).splat(x.lanes) for value in numbers_of))


@traced
def write_row(call: Struct, tile: Struct, i: Value, x: Memory, teacher: Memory, out: Memory) -> None:
    """Write the gradient of row i of the tile."""
    per_t = per_temperature(call, x)
    row = slope_of(tile, i, x, across=False)
    stride, size = call.class_stride[OUT], i.like(out.itemsize)
    beside = stride.equals(size)
    start = tile.at[OUT] + i * call.inner[OUT]

    def block(k: Value) -> State:
        n = smaller(call.n_classes - k, BLOCK)
        to, buffer = start + k * stride, tile.out.at(0)
        put = Vectors(out, select(beside, to, buffer), out.step)
        logits, teachers = vector.row_logits(call, tile, i, k, n, x), row_teacher(call, tile, i, k, n, teacher)
        row.write(logits, teachers, put, n, x.lanes, per_t)

        def scatter() -> State:
            vector.copy(out, to, stride, buffer, size, n)
            return ()

        return when(~beside, (), scatter)

    loop(0, call.n_classes, BLOCK, (), block)


@traced
def write_across(call: Struct, tile: Struct, n: Value, x: Memory, teacher: Memory, out: Memory) -> None:
    """Write the gradient of the n positions of the tile."""
    per_t = per_temperature(call, x)

    def block(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)

        def again() -> State:
            gather_both(call, tile, n, k, count, x, teacher)
            return ()

        def positions(i: Value) -> State:
            row = slope_of(tile, i, x, across=True)
            logits, teachers = (
                vector.gathered(x, tile.logits.at(0), i),
                vector.gathered(teacher, tile.dense.at(0), i),
            )
            row.write(logits, teachers, vector.gathered(out, tile.out.at(0), i), count, None, per_t)
            return ()

        when(call.n_classes > FEW, (), again)
        loop(0, n, x.lanes, (), positions)
        vector.grid(call, tile, OUT, n, k, count, tile.out).scatter(out)
        return ()

    loop(0, call.n_classes, FEW, (), block)
