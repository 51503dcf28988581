"""What is done to a tile of neighbouring positions, step by step; the steps are in order in _numba_kernels.py.

Here is known where things lie: the records that a kernel is told (CALL) and works in (SCRATCH), strides, gathering
and scattering. Logits come in one of two ways. Where the class axis is dense in memory or nearly so, row by row; else,
or where classes are few, *across*: FEW classes of TILE positions are gathered, each class side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastce._backends._numba_lanes import (
    LINE,
    Items,
    Memory,
    State,
    Struct,
    Value,
    fma,
    loop,
    maximum,
    outlined,
    select,
    traced,
    two_sum,
    when,
)
from fastce._backends._numba_math import (
    Row,
    Vectors,
    accumulate,
    add,
    each,
    exponential,
    in_float64,
    log1p,
    no_sum,
    nothing,
    pairwise,
    power,
    smaller,
    split,
    sum_of_lanes,
    sweep,
)

TILE = 256
"""Positions of a tile, at most."""

PITCH = TILE + 16
"""Positions from one class to the next, where classes are gathered: no power of two, lest a load seem to depend on a
store some pages away."""

BLOCK = 2048
"""Classes of a row done at once, at most."""

FEW = 32
"""Classes done at once across positions, at most: TILE of each are gathered."""

KEPT = 32768
"""Exponentials kept from the sums of a tile's rows to their gradient, but for the last vector of each row, and where
one row has more."""

MOST_ROWS = 64
"""Rows of a tile that are done row by row, at most."""

KEPT_BYTES = 1 << 20
"""Exponentials of one row kept, at most: some share of the second cache."""

STREAMED = 1 << 22
"""Bytes of output beyond which it goes past the caches."""

KEPT_ROOM = KEPT_BYTES + MOST_ROWS * 32 * 8

GATHERED = 512
"""Classes up to which the rows of a tile are gathered to one run of memory before they leave past the caches."""

AHEAD = 4096
"""Bytes ahead of its use that memory is asked for: a page, so that its translation comes along."""

ROW, LOGITS, LABELS, DENSE, SAMPLE_WEIGHT, GRAD_OUTPUT, OUT, FACTOR, POSITIVE_WEIGHT, OPERANDS = range(10)
"""What has a stride along each axis of the positions: the number of the row, and the arrays."""

LISTED = FACTOR
"""The classes of a sparse target, the probabilities being DENSE; element-wise kinds have none."""

MAX_AXES = 64
"""NumPy's own limit."""

AXIS = 1 + OPERANDS
"""Numbers that describe an axis of the positions: its size, and the strides along it."""

CALL = np.dtype(
    [
        ("bytes", "i8"),  # of this record, without the axes that are not there
        ("n_rows", "i8"),
        ("n_classes", "i8"),
        ("n_blocks", "i8"),
        ("n_tasks", "i8"),
        ("block_rows", "i8"),
        ("tile", "i8"),  # rows
        ("axes", "i8"),
        ("start", "i8", OPERANDS),  # addresses, 0 for what is absent
        ("class_stride", "i8", OPERANDS),
        ("inner", "i8", OPERANDS),  # strides of the last axis
        ("label_bits", "i8"),
        ("label_unused", "i8"),  # bits of an int64 that a sign must fill
        ("label_swapped", "i8"),  # bytes
        ("can_ignore", "i8"),
        ("ignore_index", "i8"),
        ("sample_wide", "i8"),  # float64, not float32
        ("output_wide", "i8"),
        ("class_weight", "i8"),  # address of float64, or 0
        ("dense_weight", "i8"),  # w and v of q = w*t + v, in the arithmetic's dtype; q = t where w is absent
        ("class_vector", "i8"),
        ("values", "i8"),
        ("blocks", "i8"),
        ("lse", "i8"),
        ("lowest", "f8"),  # limits of probabilities
        ("highest", "f8"),
        ("gamma", "f8"),  # as in Problem
        ("positive", "f8"),
        ("negative", "f8"),
        ("streamed", "i8"),  # whether rows of the output go past the caches
        ("target_scale", "f8"),
        ("z_loss", "f8"),
        ("grad_scale", "f8"),
        ("temperature", "f8"),
        # Rows that are staged, see _numba_staged.py. What is done with them, 0 where there is nothing to do:
        ("list_entry", "i8"),
        ("stage_entry", "i8"),
        ("visit_entry", "i8"),
        ("send_entry", "i8"),
        ("visit_plan", "i8"),  # the record that a visit is told
        ("staging", "i8"),  # bytes for each task
        ("stage", "i8", OPERANDS),  # where in them an operand is staged, 0 where it is not
        ("slopes", "i8"),  # likewise
        ("lists", "i8"),
        ("stage_row", "i8"),  # bytes from a staged row to the next
        ("stage_class", "i8"),
        ("stage_bytes", "i8"),  # of an operand
        ("shifts", "i8"),  # by what each row is shifted, if it is
        ("per_temperature", "f8", 2),  # high and low part, neither 0
        ("per_softcap", "f8"),  # 1/(temperature*softcap)
        ("softcap", "f8"),
        ("steepest", "f8"),
        ("gradient_divisor", "f8"),
        ("list_length", "i8"),
        ("largest_listed", "f8"),
        ("most_listed", "f8"),
        ("spreads", "i8"),
        ("checked", "i8"),  # dense targets have been
        ("bad", "i8"),  # the first bad row, or the number of rows
        ("loss", "f8"),
        ("weight", "f8"),
        ("axis", "i8", MAX_AXES * AXIS),
    ]
)
"""What a kernel is told beside the types of its arguments; and what came of it: bad, loss and weight."""

CALL_BYTES = CALL.itemsize - 8 * MAX_AXES * AXIS
"""Of the record of a call without the axes, which are its end."""

BLOCK_BYTES = 40
"""What a block of rows leaves: high and low parts of its loss and of its weight, and its first bad row."""

MAX_BLOCKS = 1024

SHARED_BYTES = -(-(CALL.itemsize + MAX_BLOCKS * BLOCK_BYTES) // 64) * 64
"""What all tasks of a call share: its record, and what the blocks leave."""

GROUP = 16
"""Rows done at once in float64."""

SUMS = 4 * GROUP

SCRATCH = np.dtype(
    [
        ("at", "i8", OPERANDS),  # where the tile starts
        ("label", "i8", PITCH),
        # Of each row of the tile: what goes in,
        ("sample", "f8", PITCH),  # s; 0 marks an ignored row, −0 a bad one
        ("scale", "f8", PITCH),  # of the gradient
        ("weight", "f8", PITCH),  # in the mean's denominator
        ("label_mass", "f8", PITCH),  # q at the label / s, but for the class vector
        ("label_vector", "f8", PITCH),  # which has this there
        ("label_logit", "f8", PITCH),
        ("offset", "f8", PITCH),  # what was taken off all logits, if call.shifts
        # what a sweep leaves,
        ("top", "f8", PITCH),
        ("rest", "f8", PITCH),  # r
        ("mass", "f8", PITCH),
        ("pull", "f8", PITCH),
        # and what `finish` makes of it.
        ("value", "f8", PITCH),
        ("target", "f8", PITCH),  # Q / s
        ("log", "f8", PITCH),  # log1p(r)
        ("lowered", "f8", PITCH),  # what exponentials shifted by a label's logit are multiplied by first
        ("factor", "f8", PITCH),  # what exp(x - top) is multiplied by in the output
        ("target_factor", "f8", PITCH),  # what q is multiplied by in the gradient
        ("at_label", "f8", PITCH),  # the gradient at the label
        ("at_top", "f8", PITCH),  # the gradient at the maximum is at_top*((Q - q) - q*r) + at_top_z
        ("at_top_z", "f8", PITCH),
        # What is known of rows of which _numba_rows.py asks more: the teacher's maximum, or the greatest logit but the
        # label's and how many are above that; the first class at the maximum; 1 where there is a NaN.
        ("other", "f8", PITCH),
        ("above", "i8", PITCH),
        ("first", "i8", PITCH),
        ("has_nan", "f8", PITCH),
        ("sound", "i8", PITCH),  # 1 where the label's logit served in place of the maximum
        ("kept_rows", "i8", PITCH),  # 1 where `exponentials` has a row's
        ("staging", "i8"),  # where this task stages rows
        ("staged_sums", "f8", 4),  # of the block, as it leaves them
        ("any_bad", "i8"),
        ("any_unsound", "i8"),
        ("any_lowered", "i8"),
        ("sums", "f8", SUMS),  # of the block's values and weights: per lane, high and low parts
        ("kept", "f8", 8 * PITCH),  # sweeps between two blocks of classes
        ("logits", "f8", FEW * PITCH),  # gathered elements as they are in memory, and q as it is computed with
        ("q", "f8", FEW * PITCH),
        ("dense", "f8", FEW * PITCH),
        ("out", "f8", FEW * PITCH),
        # Rows that leave past the caches, a line at a time, while the next tile is computed:
        ("leaving", "i8", 3),  # from where, to where, and how many elements
        ("leaving_factor", "f8"),
        ("waiting", "i8"),  # rows that follow, one with each row of the next tile
        ("waiting_to", "i8", MOST_ROWS),
        ("waiting_factor", "f8", MOST_ROWS),
        ("way", "i8"),
        ("turn", "i8"),  # whose turn it is of two rooms for exponentials; the other one is leaving
        ("exponentials", "u1", 2 * KEPT_ROOM),
    ]
)
"""A thread's working memory."""

SCRATCH_BYTES = -(-SCRATCH.itemsize // 64) * 64


def copy(memory: Memory, to: Value, to_stride: Value, source: Value, stride: Value, n: Value) -> None:
    """Copy n elements as they are, from and to neighbours or places ``stride`` bytes apart."""
    copy_elements(memory.itemsize, memory.lanes, to, to_stride, source, stride, n)


def copy_elements(size: int, lanes: int, to: Value, to_stride: Value, source: Value, stride: Value, n: Value) -> None:
    beside = to_stride.equals(size) & stride.equals(size)
    whole = select(beside, n - n % lanes, 0)

    def move(count: int | None) -> Callable[[Value], State]:
        def body(i: Value) -> State:
            (to + i * to_stride).write((source + i * stride).read(8 * size, count))
            return ()

        return body

    loop(0, whole, lanes, (), move(lanes))
    loop(whole, n, 1, (), move(None), short=True)


def side_by_side(memory: Memory, source: Value, stride: Value, n: Value, buffer: Value) -> Value:
    """Return where n elements are neighbours: where they are, or in the buffer, gathered."""
    size = source.like(memory.itemsize)

    def gather(_: Value) -> State:
        copy(memory, buffer, size, source, stride, n)
        return (buffer,)

    (address,) = when(~stride.equals(size), (source,), gather)
    return address


class Grid(NamedTuple):
    """Positions by classes: elements ``inner`` and ``stride`` bytes apart in memory, gathered PITCH positions apart."""

    start: Value
    inner: Value
    stride: Value
    positions: Value
    classes: Value
    buffer: Value

    def gather(self, memory: Memory) -> None:
        """Copy from memory to the buffer."""
        outlined(f"fastce_gather_{memory.itemsize}", self, lambda *grid: Grid(*grid)._copy(memory, inward=True))

    def scatter(self, memory: Memory) -> State:
        """Copy from the buffer to memory."""
        outlined(f"fastce_scatter_{memory.itemsize}", self, lambda *grid: Grid(*grid)._copy(memory, inward=False))
        return ()

    def _copy(self, memory: Memory, *, inward: bool) -> None:
        size = self.start.like(memory.itemsize)

        def by_class(j: Value) -> State:
            outside, inside = (self.start + j * self.stride, self.inner), (self.buffer + j * size * PITCH, size)
            copy(memory, *(inside + outside if inward else outside + inside), self.positions)
            return ()

        rows = self.stride.equals(size) & ~self.inner.equals(size)
        rows = rows & (self.positions > GROUP - 1) & (self.classes > 1)
        pairs = rows & (self.classes < 4)
        packed = pairs & self.classes.equals(2) & self.inner.equals(size * 2)
        when(packed, (), lambda: self._transpose(memory.itemsize, 2, inward, packed=True))
        when(pairs & ~packed, (), lambda: self._transpose(memory.itemsize, 2, inward))
        when(rows & ~pairs, (), lambda: self._transpose(memory.itemsize, 4, inward))
        when(~rows, (), lambda: loop(0, self.classes, 1, (), by_class))

    def _transpose(self, size: int, width: int, inward: bool, *, packed: bool = False) -> State:
        """Copy where the classes are neighbours: GROUP positions by ``width`` classes at a time, in registers.

        The last positions and classes overlap those before. Where the rows are packed they are loaded together.
        """
        steps, together = width.bit_length() - 1, GROUP // width

        def block(i: Value, j: Value) -> State:
            i, j = smaller(i, self.positions - GROUP), smaller(j, self.classes - width)
            first = self.start + i * self.inner + j * size

            def row(index: int) -> Value:
                return first + self.inner * index

            def place(index: int) -> Value:
                return self.buffer + ((j + index) * PITCH + i) * size

            if inward:
                if packed:
                    vectors = [(first + index * GROUP * size).read(8 * size, GROUP) for index in range(width)]
                else:
                    vectors = [row(index).read(8 * size, width) for index in range(GROUP)]
                while len(vectors) > width:
                    vectors = [a.join(b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
                for _ in range(steps):
                    pairs = [a.deinterleave(b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
                    vectors = [pair[part] for part in range(2) for pair in pairs]
                for index, value in enumerate(vectors):
                    place(index).write(value)
                return ()
            vectors = [place(index).read(8 * size, GROUP) for index in range(width)]
            for _ in range(steps):
                pairs = [a.interleave(b) for a, b in zip(vectors[: width // 2], vectors[width // 2 :], strict=True)]
                vectors = [value for pair in pairs for value in pair]
            if packed:
                for index, value in enumerate(vectors):
                    (first + index * GROUP * size).write(value)
                return ()
            for index in range(GROUP):
                row(index).write(vectors[index // together].part(index % together * width, width))
            return ()

        def positions(i: Value) -> State:
            return loop(0, self.classes, width, (), lambda j: block(i, j))

        return loop(0, self.positions, GROUP, (), positions)


def row_logits(call: Struct, tile: Struct, i: Value, k: Value, n: Value, x: Memory) -> Vectors:
    """Return n classes of row i from class k on."""
    stride = call.class_stride[LOGITS]
    source = tile.at[LOGITS] + i * call.inner[LOGITS] + k * stride
    return Vectors(x, side_by_side(x, source, stride, n, tile.logits.at(0)), x.step, n * x.itemsize)


def row_target(call: Struct, tile: Struct, i: Value, k: Value, n: Value, dense: Memory | None, q: Memory) -> Vectors:
    """Return q of n classes of row i from class k on."""
    if dense is None:
        return Vectors(q, call.class_vector + k * q.itemsize, q.step)
    stride = call.class_stride[DENSE]
    source = tile.at[DENSE] + i * call.inner[DENSE] + k * stride
    t = Vectors(dense, side_by_side(dense, source, stride, n, tile.dense.at(0)), dense.step)
    w = Vectors(q, call.dense_weight + k * q.itemsize, q.step)
    v = Vectors(q, call.class_vector + k * q.itemsize, q.step)
    made = Vectors(q, tile.q.at(0), q.step)

    def make(_: Value) -> State:
        def some(first: Value, count: int, live: Value | None) -> State:
            loaded = (part.load(first, count, live, 0.0) for part in (t, w, v))
            made.store(first, [fma(*three) for three in zip(*loaded, strict=True)], live)
            return ()

        each(n, q.lanes, (), some)
        return (made.address,)

    (address,) = when(call.dense_weight > 0, (t.address,), make)
    return made._replace(address=address)


def grid(call: Struct, tile: Struct, operand: int, n: Value, k: Value, count: Value, buffer: Items) -> Grid:
    """Return n positions by ``count`` classes from class k on of an array."""
    stride = call.class_stride[operand]
    return Grid(tile.at[operand] + k * stride, call.inner[operand], stride, n, count, buffer.at(0))


def gather_classes(
    call: Struct, tile: Struct, n: Value, k: Value, count: Value, x: Memory, dense: Memory | None, q: Memory | None
) -> None:
    """Gather logits and targets of ``count`` classes from class k on, of the n positions of a tile."""
    grid(call, tile, LOGITS, n, k, count, tile.logits).gather(x)
    if q is None:
        return
    if dense is not None:
        grid(call, tile, DENSE, n, k, count, tile.dense).gather(dense)

    def one(j: Value) -> State:
        place = (k + j) * q.itemsize
        v = q.load_one(call.class_vector + place).splat(q.lanes)
        if dense is not None:
            w = q.load_one(call.dense_weight + place).splat(q.lanes)

        def positions(i: Value) -> State:
            index = j * PITCH + i
            t = v if dense is None else fma(dense.load(tile.dense.at(0) + index * dense.itemsize), w, v)
            q.store(tile.q.at(0) + index * q.itemsize, t)
            return ()

        return loop(0, n, q.lanes, (), positions)

    loop(0, count, 1, (), one)


def gathered(memory: Memory, buffer: Value, i: Value) -> Vectors:
    """Return the classes of positions i, i + 1, … of what was gathered."""
    return Vectors(memory, buffer + i * memory.itemsize, i.like(PITCH * memory.itemsize))


@traced
def row_sums(
    call: Struct,
    tile: Struct,
    i: Value,
    x: Memory,
    dense: Memory | None,
    q: Memory | None,
    out: Memory | None,
    shifted: Value | None,
) -> None:
    """Leave the sums of row i of the tile for `finish`."""
    if shifted is None:
        maximum_sums(call, tile, i, x, dense, q)
        return

    def again() -> State:
        maximum_sums(call, tile, i, x, dense, q)
        return ()

    when(~shifted_sum(call, tile, i, x, out), (), again)


def maximum_sums(call: Struct, tile: Struct, i: Value, x: Memory, dense: Memory | None, q: Memory | None) -> None:
    """Leave the sums of row i relative to its maximum."""

    def block(k: Value, *state: Value) -> State:
        n = smaller(call.n_classes - k, BLOCK)
        logits = row_logits(call, tile, i, k, n, x)
        targets = None if q is None else row_target(call, tile, i, k, n, dense, q)
        return sweep(state, logits, targets, n, x.lanes, k > 0)

    top, ties, *sums = loop(0, call.n_classes, BLOCK, nothing(x, q, across=False), block)
    total, *target = split(tuple(sums), x)
    tile.top[i] = top.lane(0).to("f8")
    tile.rest[i] = sum_of_lanes(total) + (ties.reduce(add).number("f8") - 1.0)
    for field, value in zip((tile.mass, tile.pull), target, strict=False):
        field[i] = sum_of_lanes(value)


SMALLEST_FACTOR = {"f4": 2.0**-120, "f8": 2.0**-1000}
LOWERED = {"f4": 2.0**-100, "f8": 2.0**-500}
"""Far below the other logits a label makes the exponentials so large, and their factor so small, that its digits would
not fit where the gradient's do: then a power of two moves from them to it."""

SHIFTED_LIMIT = {"f4": 1e18, "f8": 1e150}


def kept_row(call: Struct, tile: Struct, i: Value, x: Memory, turn: Value | None = None) -> Vectors:
    """Return where the exponentials of row i are kept, one row after the other."""
    reals = x.computed()
    room = tile.exponentials.at(0) + (tile.turn if turn is None else turn) * KEPT_ROOM
    return Vectors(reals, room + i * call.n_classes * x.real_size, reals.step)


class Leaving(NamedTuple):
    """Exponentials that leave past the caches, times a factor: from a line's begin on, as many as ``left``."""

    source: Value
    to: Value
    left: Value

    @staticmethod
    def of(tile: Struct) -> Leaving:
        return Leaving(*(tile.leaving[index] for index in range(3)))

    def put(self, tile: Struct) -> None:
        for index, value in enumerate(self):
            tile.leaving[index] = value

    def send(self, count: int, factor: Value, x: Memory, out: Memory) -> Leaving:
        """Send some vectors, where so much is left."""

        def vectors(source: Value, to: Value, left: Value) -> State:
            for index in range(count):
                e = x.computed().load(source + index * x.lanes * x.real_size)
                out.store(to + index * x.lanes * out.itemsize, e * factor, past_caches=True)
            n = count * x.lanes
            return source + n * x.real_size, to + n * out.itemsize, left - n

        return Leaving(*when(self.left > count * x.lanes - 1, self, vectors))


def put_line(x: Memory, out: Memory, source: Value, to: Value, factor: Value, live: Value | None = None) -> State:
    """Write a whole line past the caches, or its ``live`` first elements through them."""
    count = LINE // out.itemsize
    e = x.computed().beside(to).load(source, live, lanes=count)
    out.beside(to).store(to, e * factor.to(x.real).splat(count), live, past_caches=live is None)
    return ()


def begin_leaving(tile: Struct, x: Memory, out: Memory, source: Value, to: Value, n: Value, factor: Value) -> None:
    """Let elements leave: those before the first whole line at once, the others when they are sent."""
    size = out.itemsize

    def begin(source: Value, to: Value, n: Value, factor: Value, leaving: Value, its_factor: Value) -> None:
        # The last line, if not whole, goes through the caches: the stores behind it would wait for it.
        (to + n * size).prefetch(to_write=True)
        head = smaller((to.like(0) - to) % LINE // size, n)
        when(head > 0, (), lambda: put_line(x, out, source, to, factor, head))
        for index, value in enumerate((source + head * x.real_size, to + head * size, n - head)):
            (leaving + 8 * index).write(value)
        its_factor.write(factor)

    place = tile.leaving.at(0)
    outlined(f"fastce_begin_{x.code}_{out.code}", (source, to, n, factor, place, place + 24), begin)


def finish_leaving(tile: Struct, x: Memory, out: Memory) -> State:
    """Send all that is leaving."""

    def finish(leaving: Value) -> None:
        source, to, left = ((leaving + 8 * index).read(64) for index in range(3))
        factor = (leaving + 24).read(64).from_bits()
        count = LINE // out.itemsize

        def line(i: Value, source: Value, to: Value) -> State:
            put_line(x, out, source, to, factor)
            return source + count * x.real_size, to + LINE

        rest = left % count
        source, to = loop(0, left - rest, count, (source, to), line)
        when(rest > 0, (), lambda: put_line(x, out, source, to, factor, rest))
        (leaving + 16).write(left.like(0))

    outlined(f"fastce_finish_{x.code}_{out.code}", (tile.leaving.at(0),), finish)
    return ()


def begin_row(call: Struct, tile: Struct, i: Value, x: Memory, out: Memory) -> None:
    """Let row i of the tile before leave, if it waits."""

    def begin() -> State:
        source = kept_row(call, tile, i, x, 1 - tile.turn).address
        begin_leaving(tile, x, out, source, tile.waiting_to[i], call.n_classes, tile.waiting_factor[i])
        tile.waiting_to[i] = i.like(0)
        return ()

    waits = i < tile.waiting
    when(waits & tile.waiting_to[select(waits, i, 0)].differs(0), (), begin)


@traced
def see_off(call: Struct, tile: Struct, x: Memory, out: Memory) -> None:
    """Send what the tile before has left."""

    def row(i: Value) -> State:
        begin_row(call, tile, i, x, out)
        finish_leaving(tile, x, out)
        return ()

    finish_leaving(tile, x, out)
    loop(0, tile.waiting, 1, (), row)
    tile.waiting = call.n_rows.like(0)


DIRECT, ROW_BY_ROW, TOGETHER = range(3)
"""How rows whose exponentials are kept leave: at once and through the caches, or past them while the next tile is
computed, each row for itself or all rows of a tile as one run of memory."""


@traced
def start_leaving(call: Struct, tile: Struct, n: Value, x: Memory, out: Memory) -> None:
    """Choose how the rows of the tile leave."""
    size = n.like(out.itemsize)

    def choose(_: Value) -> State:
        def kept(i: Value, all_kept: Value) -> State:
            tile.waiting_to[i] = i.like(0)
            return (select((tile.sample[i] > 0.0) & (tile.kept_rows[i] > 0), all_kept, 0),)

        (all_kept,) = loop(0, n, 1, (n.like(1),), kept)
        packed = call.inner[OUT].equals(size * call.n_classes) & (call.n_classes < GATHERED + 1)
        return (select(packed & (all_kept > 0), n.like(TOGETHER), ROW_BY_ROW),)

    in_lines = (call.streamed > 0) & call.class_stride[OUT].equals(size)
    aligned = (tile.at[OUT] % size).equals(0) & (call.inner[OUT] % size).equals(0)
    (tile.way,) = when(in_lines & aligned, (n.like(DIRECT),), choose)


@traced
def end_leaving(call: Struct, tile: Struct, n: Value, x: Memory, out: Memory) -> None:
    """Let the rows of the tile leave that were not written at once."""

    def together() -> State:
        source = kept_row(call, tile, n.like(0), x).address
        begin_leaving(tile, x, out, source, tile.at[OUT], n * call.n_classes, call.grad_scale.like(1.0))
        return ()

    when(tile.way.equals(TOGETHER), (), together)
    tile.waiting = select(tile.way.equals(ROW_BY_ROW), n, 0)
    tile.turn = select(tile.way.equals(DIRECT), tile.turn, 1 - tile.turn)


def shifted_sum(call: Struct, tile: Struct, i: Value, x: Memory, out: Memory | None) -> Value:
    """Leave the sums of row i relative to the logit of its label; return whether they are of use.

    No maximum is needed, and no class but the label left out: r is the sum of exp(x_k - x_y) over the others. Where
    that is large the row has to be done again.
    """
    logit: Value = tile.label_logit[i]
    shift = logit.to(x.real).splat(x.lanes)
    kept, fits = kept_row(call, tile, i, x), call.n_classes < KEPT_BYTES // x.real_size + 1
    leaving: State = ()
    if out is not None:
        begin_row(call, tile, i, x, out)
        leaving = Leaving.of(tile)
        factor = tile.leaving_factor.to(x.real).splat(x.lanes)

    def block(k: Value, *state: Value) -> State:
        n = smaller(call.n_classes - k, BLOCK)
        vectors = row_logits(call, tile, i, k, n, x)
        label = tile.label[i] - k

        def some(first: Value, some: int, live: Value | None, *state: Value) -> State:
            leaving, total = state[: len(state) - width], state[len(state) - width :]
            terms = [
                exponential(logits - shift, bounded=False) for logits in vectors.load(first, some, live, -math.inf)
            ]
            vectors.prefetch(first, some, AHEAD)
            at = label - first * x.lanes
            if out is not None:

                def store() -> State:
                    kept.store(k // x.lanes + first, terms, None)
                    return ()

                when(fits, (), store)
                leaving = Leaving(*leaving).send(some, factor, x, out)

            def without(*_: Value) -> State:
                kept = [
                    select(
                        x.indices().differs((at - index * x.lanes).narrow(8 * x.real_size).splat(x.lanes)), term, 0.0
                    )
                    for index, term in enumerate(terms)
                ]
                return (in_float64(kept, row=True),)

            (term,) = when(at.within(some * x.lanes), (in_float64(terms, row=True),), without)
            return *leaving, *accumulate(total, term)

        return each(n, x.lanes, state, some)

    nothing = no_sum(x, across=False)
    width = len(nothing)
    end = loop(0, call.n_classes, BLOCK, (*leaving, *nothing), block)
    rest = sum_of_lanes(end[len(end) - width :])
    tile.top[i] = logit
    tile.rest[i] = rest
    useful = (rest < SHIFTED_LIMIT[x.real]) & (logit > -math.inf) & (logit < math.inf)
    if out is not None:
        Leaving(*end[:3]).put(tile)
        when(tile.waiting > 0, (), lambda: finish_leaving(tile, x, out))
        tile.kept_rows[i] = (useful & fits).extend(64)
    tile.sound[i] = useful.extend(64)
    return useful


@traced
def few_sums(call: Struct, tile: Struct, n: Value, x: Memory, out: Memory | None) -> None:
    """Leave the sums of the n positions of the tile relative to the logits of their labels, as `shifted_sum` does.

    The last class takes the label's place, and for a gradient exponentials that of the logits.
    """
    grid(call, tile, LOGITS, n, n.like(0), call.n_classes, tile.logits).gather(x)
    inner, last = call.inner[LOGITS], call.n_classes - 1

    def positions(i: Value) -> State:
        loop(0, inner * x.lanes, LINE, (), lambda line: ask_ahead(call, tile, n + i, line))
        logits, kept = gathered(x, tile.logits.at(0), i), gathered(x.computed(), tile.q.at(0), i)
        labels = few_labels(tile, i, x)
        (last_logit,) = logits.load(last, 1, None, 0.0)
        leaving: State = () if out is None else Leaving.of(tile)
        factor = x.constant(1.0)

        def take(k: Value, label_logit: Value, *leaving: Value) -> State:
            (logit,) = logits.load(k, 1, None, 0.0)
            taken = labels.equals(few_class(k, x))
            kept.store(k, [select(taken, last_logit, logit)], None)
            if out is not None:
                leaving = Leaving(*leaving).send(1, factor, x, out)
            return select(taken, logit, label_logit), *leaving

        shift, *still = loop(0, last, 1, (last_logit, *leaving), take)

        def some(first: Value, count: int, _: None, *state: Value) -> State:
            leaving, total = state[: len(state) - width], state[len(state) - width :]
            terms = [exponential(logit - shift, bounded=False) for logit in kept.load(first, count, None, 0.0)]
            if out is not None:
                kept.store(first, terms, None)
                leaving = Leaving(*leaving).send(count, factor, x, out)
            return *leaving, *accumulate(total, in_float64(terms, row=False))

        total = no_sum(x, across=True)
        width = len(total)
        end = each(last, None, (*still, *total), some)
        rest = pairwise(add, list(end[len(end) - width :]))
        if out is not None:
            Leaving(*end[:3]).put(tile)
        sound = (rest < SHIFTED_LIMIT[x.real]) & (shift - shift).equals(0.0)
        tile.rest.at(i).write(select(sound, rest, math.inf))
        return ()

    loop(0, n, x.lanes, (), positions)


def few_labels(tile: Struct, i: Value, x: Memory) -> Value:
    """Return the labels of positions i, i + 1, ..., as wide as the logits."""
    labels: Value = tile.label.at(i).read(64, x.lanes)
    return labels.narrow(8 * x.real_size)


def few_class(k: Value, x: Memory) -> Value:
    return k.narrow(8 * x.real_size).splat(x.lanes)


@traced
def find_unsound(tile: Struct, n: Value, x: Memory, across: Value | None) -> Value:
    """Tell whether some row of the tile must go through its maximum, or did."""

    def sound_at(i: Value) -> Value:
        field: Items = tile.sound if across is None else tile.rest
        found = field.at(i).read(64, GROUP)
        return found > 0 if across is None else found.from_bits() < SHIFTED_LIMIT[x.real]

    def any_of(i: Value, flags: Value) -> State:
        live = tile.sample.at(i).read(64, GROUP).from_bits() > 0.0
        return (flags | (live & ~sound_at(i)).extend(64),)

    def mark(i: Value) -> State:
        tile.sound.at(i).write(sound_at(i).extend(64))
        return ()

    (flags,) = loop(0, n, GROUP, (n.like(0).splat(GROUP),), any_of)
    tile.any_unsound = found = flags.reduce(lambda a, b: a | b)
    if across is not None:
        when(found > 0, (), lambda: loop(0, n, GROUP, (), mark))
    return found


def ask_ahead(call: Struct, tile: Struct, i: Value, line: Value) -> State:
    """Ask for rows of the next tile, while there is something to compute."""
    (tile.at[LOGITS] + i * call.inner[LOGITS] + line).prefetch()
    return ()


@traced
def tile_sums(
    call: Struct, tile: Struct, n: Value, x: Memory, dense: Memory | None, q: Memory | None, shifted: Value | None
) -> None:
    """Leave the sums of the n positions of the tile for `finish`; if ``shifted``, of those that are not sound."""
    inner = call.inner[LOGITS]

    def block(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)
        gather_classes(call, tile, n, k, count, x, dense, q)

        def positions(i: Value) -> State:
            def kept(part: int) -> Value:
                items: Items = tile.kept
                return items.at(i * 8 + part * x.lanes)

            def resume(*start: Value) -> State:
                return tuple(kept(part).read_like(value) for part, value in enumerate(start))

            def keep() -> State:
                for part, value in enumerate(state):
                    kept(part).write(value)
                return ()

            logits = gathered(x, tile.logits.at(0), i)
            targets = None if q is None else gathered(q, tile.q.at(0), i)
            loop(0, inner * x.lanes, LINE, (), lambda line: ask_ahead(call, tile, n + i, line))
            state = when(k > 0, nothing(x, q, across=True), resume)
            state = sweep(state, logits, targets, count, None, k > 0)
            when(call.n_classes > FEW, (), keep)
            top, ties, *sums = state
            total, *target = (pairwise(add, list(each_sum)) for each_sum in split(tuple(sums), x))
            rest = total + (ties.number("f8") - 1.0)
            for field, value in zip((tile.top, tile.rest, tile.mass, tile.pull), (top, rest, *target), strict=False):
                value = value.to("f8")
                if shifted is not None:
                    sound = tile.sound.at(i).read(64, x.lanes) > 0
                    value = select(sound, field.at(i).read_like(value), value)
                field.at(i).write(value)
            return ()

        return loop(0, n, x.lanes, (), positions)

    loop(0, call.n_classes, FEW, (), block)


def group_of(tile: Struct, i: Value) -> tuple[Callable[[str], Value], Callable[[str, Value], None]]:
    """Return what reads and what writes a field of GROUP rows from row i on."""

    def get(name: str) -> Value:
        items: Items = getattr(tile, name)
        return items.at(i).read(64, GROUP).from_bits()

    def put(name: str, value: Value) -> None:
        getattr(tile, name).at(i).write(value)

    return get, put


def add_to_sums(tile: Struct, which: int, term: Value) -> None:
    """Add GROUP terms to the block's sums: 0 for the values, 1 for the weights."""
    high, low = (tile.sums.at((2 * which + part) * GROUP) for part in range(2))
    total, dropped = two_sum(high.read_like(term), term)
    high.write(total)
    low.write(low.read_like(term) + dropped)


@traced
def add_weights(call: Struct, tile: Struct, n: Value) -> None:
    """Add up the rows' weights in a mean."""
    zero = call.grad_scale.like(0.0).splat(GROUP)

    def exactly(field: Items) -> Callable[[], State]:
        def add(i: Value) -> State:
            add_to_sums(tile, 1, field.at(i).read_like(zero))
            return ()

        return lambda: loop(0, n, GROUP, (), add)

    def ones() -> State:
        def add(i: Value, count: Value) -> State:
            return (count + tile.sample.at(i).read_like(zero),)

        add_to_sums(tile, 1, *loop(0, n, GROUP, (zero,), add))  # of zeros and ones no sum is rounded
        return ()

    by_class = call.class_weight.differs(0) & call.start[LABELS].differs(0)
    by_row = call.start[SAMPLE_WEIGHT].differs(0)
    when(by_class, (), exactly(tile.weight))
    when(~by_class & by_row, (), exactly(tile.sample))
    when(~by_class & ~by_row, (), ones)


def focused(call: Struct, u: Value, ratio: Value, value: Value, scale: Value) -> State:
    """Return losses and factors of gradients, of a focal loss if this is one.

    With u = 1 - p and c = -log(p) losses are multiplied by u^gamma, gradients by u^gamma*(1 + gamma*ratio), where
    ratio is p*c/u.
    """

    def focal(value: Value, scale: Value) -> State:
        gamma = call.gamma.splat(GROUP)
        focus = select(u > 0.0, power(maximum(u, u.like(SMALLEST)), gamma), 0.0)
        return value * focus, scale * (focus * fma(gamma, ratio, ratio.like(1.0)))

    return when(call.gamma > 0.0, (value, scale), focal)


SMALLEST = 2.0**-1022
"""The smallest normal float64."""


@traced
def finish_shifted(call: Struct, tile: Struct, n: Value, x: Memory, gradient: int | None) -> None:
    """Do what `finish` does for rows shifted by their label's logit, where r is all there is to them."""
    zero = call.grad_scale.like(0.0).splat(GROUP)

    def rows(i: Value, low: Value, *total: Value) -> State:
        get, put = group_of(tile, i)
        s, r = get("sample"), get("rest").to(x.real)
        mass = s * get("label_mass")
        log = log1p(r)
        value, scale = (mass.to(x.real) * log).to("f8"), get("scale") * mass
        wide = get("rest")
        ratio = select(wide > 0.0, log.to("f8") / wide, 1.0)
        value, scale = focused(call, wide / (wide + 1.0), ratio, value, scale)
        value = select(s > 0.0, value, 0.0)
        put("value", value)
        if gradient is not None:
            factor = scale * (1.0 / (r + 1.0)).to("f8")
            smallest = SMALLEST_FACTOR[x.real]
            lower = (factor < smallest) & (factor > -smallest)
            low = low | lower.extend(64)
            put("lowered", select(lower, zero + LOWERED[x.real], 1.0))
            put("factor", select(lower, factor * (1 / LOWERED[x.real]), factor))
            put("at_label", factor * r.to("f8") * -1.0)
        return low, *accumulate(total, value)

    def add_up() -> State:
        for part in total:
            add_to_sums(tile, 0, part)
        return ()

    low, *total = loop(0, n, GROUP, (zero.bits(), zero, zero), rows)
    tile.any_lowered = low.reduce(lambda a, b: a | b)
    when(tile.any_unsound.equals(0), (), add_up)


@traced
def finish(call: Struct, tile: Struct, n: Value, gradient: int | None, shifted: Value | None) -> None:
    """Turn what the sweeps left into the rows' values, add these up, and prepare the output.

    If ``shifted``, only rows that are not sound are left to do.
    """

    def rows(i: Value) -> State:
        get, put_all = group_of(tile, i)
        done = tile.sound.at(i).read(64, GROUP) > 0

        def put(name: str, value: Value) -> None:
            put_all(name, value if shifted is None else select(done, get(name), value))

        s, top, at, logit = (get(name) for name in ("sample", "top", "label_mass", "label_logit"))
        # Only logsumexp has a value where the maximum is infinite.
        sound = (top > -math.inf) & (top < math.inf) | (call.lse.splat(GROUP) > 0)
        r = select(sound, get("rest"), math.nan)
        z = call.z_loss.splat(GROUP)
        log = log1p(r)
        lse = top + offset_of(call, tile, i) + log
        target = get("mass") + at
        pull = get("pull") + select(at > 0.0, at * (top - logit), 0.0)
        value = fma(target, log, pull) + select(z > 0.0, z * lse * lse, 0.0)
        inverse = 1.0 / (r + 1.0)
        e = exponential(logit - top)
        on_top = logit.equals(top)
        p, u = e * inverse, select(on_top, r * inverse, 1.0 - e * inverse)
        cost = select(p > 0.0, p * (log + (top - logit)), 0.0)
        ratio = select(u > 0.0, cost / u, 1.0)
        value, scale = focused(call, u, ratio, s * value, get("scale") * s)
        value = select(s > 0.0, value, 0.0)
        put("value", value)
        add_to_sums(tile, 0, get("value"))
        if gradient is None:
            return ()
        push = select(z > 0.0, z * lse * 2.0, 0.0)
        at = at + get("label_vector")
        put("rest", r)
        put("log", log)
        put("target", target)
        put("factor", scale * (target + push) * inverse)
        if shifted is not None:
            put("lowered", s.like(1.0))
        put("target_factor", scale)
        put("at_label", scale * ((fma(target, e, at * -1.0) - at * r) + push * e) * inverse)
        put("at_top", scale * inverse)
        put("at_top_z", scale * push * inverse)
        return ()

    loop(0, n, GROUP, (), rows)


def offset_of(call: Struct, tile: Struct, i: Value) -> Value:
    """Return by how much the logits of GROUP rows from row i on are lower than they stand for."""
    offset: Value = tile.offset.at(i).read(64, GROUP).from_bits()
    return select(call.shifts.splat(GROUP) > 0, offset, 0.0)


def no_measure(call: Struct, tile: Struct, n: Value) -> None:
    """Write what `finish` takes from a sweep with a target, where there was none: as if all of it were at no class."""
    unlabelled = call.start[LABELS].equals(0).number("f8", signed=False).splat(GROUP)
    nothing = unlabelled.like(0.0)

    def rows(i: Value) -> None:
        tile.mass.at(i).write(unlabelled)
        top = tile.top.at(i).read_like(nothing) + offset_of(call, tile, i)
        tile.pull.at(i).write(select(call.lse.splat(GROUP) > 0, top, nothing))

    loop(0, n, GROUP, (), rows)


def output_of(tile: Struct, i: Value, x: Memory, *, across: bool) -> Row:
    """Return what the output of row i, or of as many rows as there are lanes, is made of."""

    def get(name: str) -> Value:
        items: Items = getattr(tile, name)
        return items.at(i).read(64, x.lanes).from_bits().to(x.real) if across else items[i].to(x.real).splat(x.lanes)

    return Row(*(get(name) for name in Row._fields))


@traced
def row_output(
    call: Struct,
    tile: Struct,
    i: Value,
    x: Memory,
    dense: Memory | None,
    q: Memory | None,
    out: Memory,
    logarithm: Value | None,
    shifted: Value | None,
) -> None:
    """Write row i of the tile."""
    row = output_of(tile, i, x, across=False)
    stride, size = call.class_stride[OUT], i.like(out.itemsize)
    beside = stride.equals(size)
    start = tile.at[OUT] + i * call.inner[OUT]

    def block(k: Value) -> State:
        n = smaller(call.n_classes - k, BLOCK)
        to, buffer = start + k * stride, tile.out.at(0)
        put = Vectors(out, select(beside, to, buffer), out.step)
        targets = None if q is None else row_target(call, tile, i, k, n, dense, q)
        lowered = shifted is not None
        row.write(row_logits(call, tile, i, k, n, x), targets, put, n, x.lanes, logarithm, lowered=lowered)
        return when(~beside, (), lambda: scatter(to, buffer, n))

    def scatter(to: Value, buffer: Value, n: Value) -> State:
        copy(out, to, stride, buffer, size, n)
        return ()

    def compute() -> State:
        loop(0, call.n_classes, BLOCK, (), block)
        when(call.start[LABELS].differs(0), (), lambda: put_label(call, tile, i, out))
        return ()

    def scale() -> State:
        kept = kept_row(call, tile, i, x)
        # The factor makes of it the gradient at the label, where all of q is.
        kept.memory.store_one(kept.address + tile.label[i] * x.real_size, (tile.rest[i] * -1.0).to(x.real))
        lower = row._replace(factor=row.lowered)
        when(tile.any_lowered > 0, (), lambda: lower.scale(kept, kept, call.n_classes))
        when(tile.way.equals(ROW_BY_ROW), (), wait)
        when(tile.way.equals(DIRECT), (), lambda: row.scale(kept, Vectors(out, start, out.step), call.n_classes))
        when(tile.way.equals(TOGETHER), (), lambda: row.scale(kept, kept, call.n_classes))
        return ()

    def wait() -> State:
        tile.waiting_to[i] = start
        tile.waiting_factor[i] = tile.factor[i]
        return ()

    if shifted is None:
        compute()
    else:
        kept = beside & (tile.kept_rows[i] > 0)
        when(kept, (), scale)
        when(~kept, (), compute)


@traced
def start_task(tile: Struct) -> None:
    """Begin with nothing that is leaving."""
    nothing = tile.sums[0].like(0.0).bits()
    tile.leaving[2] = tile.waiting = tile.turn = nothing


@traced
def tile_output(
    call: Struct,
    tile: Struct,
    n: Value,
    x: Memory,
    dense: Memory | None,
    q: Memory | None,
    out: Memory,
    logarithm: Value | None,
) -> None:
    """Write the n positions of the tile."""

    def block(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)

        def again() -> State:
            gather_classes(call, tile, n, k, count, x, dense, q)
            return ()

        def positions(i: Value) -> State:
            row = output_of(tile, i, x, across=True)
            targets = None if q is None else gathered(q, tile.q.at(0), i)
            put = gathered(out, tile.out.at(0), i)
            row.write(gathered(x, tile.logits.at(0), i), targets, put, count, None, logarithm)
            return ()

        when(call.n_classes > FEW, (), again)
        loop(0, n, x.lanes, (), positions)
        grid(call, tile, OUT, n, k, count, tile.out).scatter(out)
        return ()

    loop(0, call.n_classes, FEW, (), block)


@traced
def few_output(call: Struct, tile: Struct, n: Value, x: Memory, out: Memory) -> None:
    """Write the n positions of the tile from the exponentials that `few_sums` left."""
    last = call.n_classes - 1
    reals = x.computed()
    tile.way = n.like(DIRECT)
    if out.code == reals.code:
        size = n.like(out.itemsize)
        packed = call.class_stride[OUT].equals(size) & call.inner[OUT].equals(size * call.n_classes)
        aligned = (tile.at[OUT] % size).equals(0)
        together = (call.streamed > 0) & packed & aligned & tile.any_unsound.equals(0)
        tile.way = select(together, n.like(TOGETHER), DIRECT)

    def positions(i: Value) -> State:
        def get(name: str) -> Value:
            items: Items = getattr(tile, name)
            return items.at(i).read(64, x.lanes).from_bits().to(x.real)

        kept, put = gathered(reals, tile.q.at(0), i), gathered(out, tile.out.at(0), i)
        labels, factor, at_label = few_labels(tile, i, x), get("factor"), get("at_label")
        live = get("sample") > 0.0

        def lower(k: Value) -> State:
            kept.store(k, [e * get("lowered") for e in kept.load(k, 1, None, 0.0)], None)
            return ()

        when(tile.any_lowered > 0, (), lambda: loop(0, last, 1, (), lower))

        def one(k: Value, last_value: Value) -> State:
            (e,) = kept.load(k, 1, None, 0.0)
            value, taken = e * factor, labels.equals(few_class(k, x))
            put.store(k, [select(live, select(taken, at_label, value), 0.0)], None)
            return (select(taken, value, last_value),)

        (last_value,) = loop(0, last, 1, (factor,), one)
        taken = labels.equals(few_class(last, x))
        put.store(last, [select(live, select(taken, at_label, last_value), 0.0)], None)

        def by_maximum(k: Value) -> State:
            (logit,) = gathered(x, tile.logits.at(0), i).load(k, 1, None, 0.0)
            (written,) = put.load(k, 1, None, 0.0)
            value = select(labels.equals(few_class(k, x)), at_label, exponential(logit - get("top")) * factor)
            sound = tile.sound.at(i).read(64, x.lanes) > 0
            put.store(k, [select(sound, written, select(live, value, 0.0))], None)
            return ()

        return when(tile.any_unsound > 0, (), lambda: loop(0, call.n_classes, 1, (), by_maximum))

    def gather_rows() -> State:
        room = kept_row(call, tile, n.like(0), x).address
        size = n.like(out.itemsize)
        Grid(room, size * call.n_classes, size, n, call.n_classes, tile.out.at(0)).scatter(out)
        return ()

    loop(0, n, x.lanes, (), positions)
    when(tile.way.equals(TOGETHER), (), gather_rows)
    there = grid(call, tile, OUT, n, n.like(0), call.n_classes, tile.out)
    when(tile.way.equals(DIRECT), (), lambda: there.scatter(out))


@traced
def clear_row(call: Struct, tile: Struct, i: Value, out: Memory) -> None:
    """Write zeros to row i of the tile."""
    start = tile.at[OUT] + i * call.inner[OUT]

    def one(k: Value) -> State:
        (start + k * call.class_stride[OUT]).write(start.integer(0, 8 * out.itemsize))
        return ()

    loop(0, call.n_classes, 1, (), one)


def put_label(call: Struct, tile: Struct, i: Value, out: Memory) -> State:
    """Write the gradient at the label of row i."""
    place = tile.at[OUT] + i * call.inner[OUT] + tile.label[i] * call.class_stride[OUT]
    out.store_one(place, tile.at_label[i])
    return ()


@traced
def put_labels(call: Struct, tile: Struct, n: Value, out: Memory) -> None:
    """Write the gradient at the labels of the tile."""

    def one(i: Value) -> State:
        return when(tile.sample[i] > 0.0, (), lambda: put_label(call, tile, i, out))

    when(call.start[LABELS].differs(0), (), lambda: loop(0, n, 1, (), one))


@traced
def get_labels(call: Struct, tile: Struct, n: Value, x: Memory, q: Memory | None) -> None:
    """Read what belongs to the labels of the tile, which have been checked."""
    start, inner, stride = tile.at[LOGITS], call.inner[LOGITS], call.class_stride[LOGITS]
    vector = call.class_vector

    def one(i: Value) -> State:
        label = tile.label[i]

        def get() -> State:
            tile.label_logit[i] = x.load_one(start + i * inner + label * stride).to("f8")
            if q is not None:
                tile.label_vector[i] = q.load_one(vector + label * q.itemsize).to("f8")
            return ()

        return when(tile.sample[i] > 0.0, (), get)

    if q is None:
        tile_zeros(tile.label_vector, n)
    when(call.start[LABELS].differs(0), (), lambda: loop(0, n, 1, (), one))


def tile_zeros(items: Items, n: Value) -> None:
    zeros = n.number("f8").like(0.0).splat(GROUP)

    def some(i: Value) -> State:
        items.at(i).write(zeros)
        return ()

    loop(0, n, GROUP, (), some)


@traced
def put_values(call: Struct, tile: Struct, n: Value, x: Memory) -> None:
    """Write the rows' values."""
    start = call.values + tile.at[ROW] * x.real_size
    stride = call.inner[ROW] * x.real_size

    def one(i: Value) -> State:
        (start + i * stride).write(tile.value[i].to(x.real))
        return ()

    when(call.values > 0, (), lambda: loop(0, n, 1, (), one))


def read_reals(wide: Value, to: Items, source: Value, stride: Value, n: Value) -> None:
    """Read numbers that are float64 if ``wide``, else float32."""

    def reals(bits: int) -> Callable[[], State]:
        def one(i: Value) -> State:
            to[i] = (source + i * stride).read(bits).from_bits().to("f8")
            return ()

        return lambda: loop(0, n, 1, (), one)

    when(wide > 0, (), reals(64))
    when(wide < 1, (), reals(32))


def read_labels(call: Struct, tile: Struct, n: Value) -> Value:
    """Return where the tile's labels lie as int64, whole groups of them; what uint64 has beyond becomes negative."""
    source, stride = tile.at[LABELS], call.inner[LABELS]
    ahead = select(stride.equals(call.label_bits >> 3), n * stride, 0)
    loop(0, ahead, LINE, (), lambda line: (source + line + AHEAD).prefetch())

    def width(bits: int) -> Callable[[], State]:
        buffer = tile.logits.at(0)

        def vectors(i: Value) -> State:
            raw = (buffer + i * (bits // 8)).read(bits, GROUP)
            if bits > 8:
                raw = select(call.label_swapped.splat(GROUP) > 0, raw.call("llvm.bswap"), raw)
            unused = call.label_unused.splat(GROUP)
            tile.label.at(i).write((raw.extend(64) << unused).shift_signed(unused))
            return ()

        def read() -> State:
            copy_elements(bits // 8, GROUP, buffer, n.like(bits // 8), source, stride, n)
            return loop(0, n, GROUP, (), vectors)

        return read

    def copied(_: Value) -> State:
        for bits in (8, 16, 32, 64):
            when(call.label_bits.equals(bits), (), width(bits))
        return (tile.label.at(0),)

    there = stride.equals(8) & call.label_bits.equals(64) & (call.label_swapped < 1) & (n % GROUP).equals(0)
    (place,) = when(~there, (source,), copied)
    return place


@traced
def read_rows(call: Struct, tile: Struct, n: Value) -> None:
    """Read what labels and weights say of a tile's rows; mark the bad and the ignored ones."""
    labelled, weighted = call.start[LABELS].differs(0), call.start[SAMPLE_WEIGHT].differs(0)
    outputs, class_weighted = call.start[GRAD_OUTPUT].differs(0), call.class_weight.differs(0)

    def read(wide: Value, items: Items, operand: int) -> Callable[[], State]:
        def body() -> State:
            read_reals(wide, items, tile.at[operand], call.inner[operand], n)
            return ()

        return body

    def labels(_: Value) -> State:
        return (read_labels(call, tile, n),)

    when(weighted, (), read(call.sample_wide, tile.sample, SAMPLE_WEIGHT))
    when(outputs, (), read(call.output_wide, tile.scale, GRAD_OUTPUT))
    (labels_at,) = when(labelled, (tile.label.at(0),), labels)
    one = call.grad_scale.like(1.0).splat(GROUP)

    def check(i: Value, bad: Value) -> State:
        live = i.indices(GROUP) < (n - i).splat(GROUP)
        s = select(weighted.splat(GROUP), tile.sample.at(i).read_like(one), one) + 0.0  # -0 becomes 0
        sound = (s >= 0.0) & (s < math.inf)
        y = select(labelled.splat(GROUP), (labels_at + i * 8).read(64, GROUP), 0)
        ignored = (call.can_ignore.splat(GROUP) > 0) & y.equals(call.ignore_index.splat(GROUP))
        inside = y.within(call.n_classes.splat(GROUP))
        wrong = live & ~(sound & (inside | ignored))
        s = select(live & sound & inside & ~ignored, s, 0.0)
        tile.label.at(i).write(select(inside & ~ignored, y, 0))
        tile.sample.at(i).write(select(wrong, s.like(-0.0), s))
        return (bad | wrong.extend(64),)

    def weigh(i: Value) -> State:
        w = (call.class_weight + tile.label[i] * 8).read(64).from_bits()
        tile.label_mass[i] = call.target_scale * w
        tile.weight[i] = tile.sample[i] * w
        return ()

    def weigh_all() -> State:
        tile.weight.at(n - n % GROUP).write(one.like(0.0))  # what lies between the last row and the end of its group
        return loop(0, n, 1, (), weigh)

    def scaled(i: Value) -> State:
        scale = tile.scale.at(i)
        scale.write(call.grad_scale.splat(GROUP) * scale.read_like(one))
        return ()

    when(outputs, (), lambda: loop(0, n, GROUP, (), scaled))
    (bad,) = loop(0, n, GROUP, (n.like(0).splat(GROUP),), check)
    tile.any_bad = bad.reduce(lambda a, b: a | b)
    when(labelled & class_weighted, (), weigh_all)


@traced
def start_rows(call: Struct, tile: Struct) -> None:
    """Write what `read_rows` leaves as it is, unless there are class weights or scales of rows."""
    mass = select(call.start[LABELS].differs(0), call.target_scale, 0.0)

    def some(i: Value) -> State:
        tile.label_mass.at(i).write(mass.splat(GROUP))
        tile.scale.at(i).write(call.grad_scale.splat(GROUP))
        return ()

    loop(0, smaller(call.tile, call.n_rows), GROUP, (), some)


def is_bad(tile: Struct, i: Value) -> Value:
    found: Value = tile.sample[i].bits()
    return found < 0


def mark_bad(tile: Struct, i: Value, bad: Value) -> None:
    """Make a row a bad one, on a condition."""
    tile.sample[i] = select(bad, tile.sample[i].like(-0.0), tile.sample[i])
    tile.any_bad = select(bad, i.like(1), tile.any_bad)


@traced
def first_bad(call: Struct, tile: Struct, n: Value) -> Value:
    """Return the first bad row, or the number of rows."""
    number, inner = tile.at[ROW], call.inner[ROW]

    def judge(i: Value, first: Value) -> State:
        row = number + i * inner
        return (select(is_bad(tile, i) & (row < first), row, first),)

    (first,) = when(tile.any_bad > 0, (call.n_rows,), lambda first: loop(0, n, 1, (first,), judge))
    return first


@traced
def check_dense(call: Struct, tile: Struct, n: Value, dense: Memory, across: Value | None) -> None:
    """Mark rows with an element that is not finite or negative."""
    n = select(call.checked > 0, n.like(0), n)
    stride, inner = call.class_stride[DENSE], call.inner[DENSE]
    start = tile.at[DENSE]

    def worse(t: Value, flags: Value) -> Value:
        return select((t >= 0.0) & (t < math.inf), flags, 1.0)

    def row(i: Value) -> State:
        def block(k: Value, flags: Value) -> State:
            count = smaller(call.n_classes - k, BLOCK)
            place = side_by_side(dense, start + i * inner + k * stride, stride, count, tile.dense.at(0))

            def some(first: Value, some: int, live: Value | None, flags: Value) -> State:
                for t in Vectors(dense, place, dense.step).load(first, some, live, 0.0):
                    flags = worse(t, flags)
                return (flags,)

            return each(count, dense.lanes, (flags,), some)

        (flags,) = loop(0, call.n_classes, BLOCK, (dense.constant(0.0),), block)
        mark_bad(tile, i, flags.reduce(maximum) > 0.0)
        return ()

    def one_class(k: Value) -> State:
        copy(dense, tile.dense.at(0), n.like(dense.itemsize), start + k * stride, inner, n)

        def positions(i: Value) -> State:
            flags = tile.top.at(i)
            so_far = flags.read(64, dense.lanes).from_bits().to(dense.real)
            flags.write(worse(dense.load(tile.dense.at(0) + i * dense.itemsize), so_far).to("f8"))
            return ()

        return loop(0, n, dense.lanes, (), positions)

    def judge(i: Value) -> State:
        mark_bad(tile, i, tile.top[i] > 0.0)
        return ()

    if across is None:
        loop(0, n, 1, (), row)
    else:
        tile_zeros(tile.top, n)
        loop(0, call.n_classes, 1, (), one_class)
        loop(0, n, 1, (), judge)


@traced
def locate(call: Struct, tile: Struct, position: Value) -> Value:
    """Find where a position lies; return how many follow it on the innermost axis, itself included."""
    for operand in range(OPERANDS):
        tile.at[operand] = call.start[operand]

    def axis(outward: Value, rest: Value) -> State:
        axis = call.axes - 1 - outward
        size, index = axis_size(call, axis), axis * AXIS + 1
        for operand in range(OPERANDS):
            tile.at[operand] = tile.at[operand] + rest % size * call.axis[index + operand]
        return (rest // size,)

    loop(0, call.axes, 1, (position,), axis)
    innermost = axis_size(call, call.axes - 1)
    return innermost - position % innermost


def axis_size(call: Struct, axis: Value) -> Value:
    size: Value = call.axis[axis * AXIS]
    return size


@traced
def start_block(tile: Struct) -> None:
    for index in range(SUMS):
        tile.sums[index] = tile.sums[0].like(0.0)


@traced
def end_block(call: Struct, tile: Struct, block: Value, bad: Value) -> None:
    """Write the sums of a block of rows and the first bad one of them."""
    answer = call.blocks + block * BLOCK_BYTES
    for which in range(2):
        high, low = (tile.sums.at((2 * which + part) * GROUP).read(64, GROUP).from_bits() for part in range(2))
        while high.count != 1:
            (a, b), (c, d) = high.halves(), low.halves()
            high, dropped = two_sum(a, b)
            low = c + d + dropped
        for part, value in enumerate((high, low)):
            (answer + 8 * (2 * which + part)).write(value.lane(0))
    (answer + 32).write(bad)


@traced
def end_task(call: Struct) -> None:
    """Have all of the output in memory."""
    call.n_rows.fence()


@traced
def prepare(
    call: Struct,
    plan: Value,
    tasks: Value,
    logits: Value,
    labels: Value,
    dense: Value,
    sample_weight: Value,
    grad_output: Value,
    out: Value,
    values: Value,
    class_weight: Value,
    dense_weight: Value,
    class_vector: Value,
    factor: Value,
    positive_weight: Value,
    target_scale: Value,
    z_loss: Value,
    grad_scale: Value,
) -> None:
    """Make the record of a call from its plan, which is shared by all calls like it, and from what is its own."""
    place = call.address
    place.copy_from(plan, plan.read(64))
    call.n_tasks = tasks
    call.blocks = place + CALL.itemsize
    for operand, start in (
        (LOGITS, logits),
        (LABELS, labels),
        (DENSE, dense),
        (SAMPLE_WEIGHT, sample_weight),
        (GRAD_OUTPUT, grad_output),
        (OUT, out),
        (FACTOR, factor),
        (POSITIVE_WEIGHT, positive_weight),
    ):
        call.start[operand] = start
    call.values = values
    call.class_weight, call.dense_weight, call.class_vector = class_weight, dense_weight, class_vector
    call.target_scale, call.z_loss, call.grad_scale = target_scale, z_loss, grad_scale


@traced
def total(call: Struct) -> None:
    """Add up what the blocks left, in their order: what rounding drops is added at the end."""
    zero = call.grad_scale.like(0.0)

    def block(i: Value, bad: Value, *sums: Value) -> State:
        place = call.blocks + i * BLOCK_BYTES
        added: list[Value] = []
        for which in range(2):
            high, low = sums[2 * which : 2 * which + 2]
            more, dropped = ((place + 8 * (2 * which + part)).read_like(high) for part in range(2))
            high, rounded = two_sum(high, more)
            added += [high, low + (dropped + rounded)]
        return smaller(bad, (place + 32).read(64)), *added

    bad, loss, loss_low, weight, weight_low = loop(0, call.n_blocks, 1, (call.n_rows, zero, zero, zero, zero), block)
    call.bad = bad
    # Nothing is dropped beside an infinity, of which two_sum makes NaN.
    call.loss = loss + select(loss_low.equals(loss_low), loss_low, 0.0)
    call.weight = weight + select(weight_low.equals(weight_low), weight_low, 0.0)


@traced
def first_bad_of_all(call: Struct) -> Value:
    bad: Value = call.bad
    return bad


@traced
def row_count(call: Struct) -> Value:
    rows: Value = call.n_rows
    return rows


@traced
def total_loss(call: Struct) -> Value:
    loss: Value = call.loss
    return loss


@traced
def total_weight(call: Struct) -> Value:
    weight: Value = call.weight
    return weight


@traced
def address_of(call: Struct) -> Value:
    address: Value = call.address
    return address


@traced
def invoke(entry: Value, call: Value, tile: Value, task: Value) -> None:
    """Call a compiled kernel, whose last arguments stand for types and hold nothing."""
    entry.invoke(call, tile, task, *[task.like(0)] * (KERNEL_ARGUMENTS - 3))


KERNEL_ARGUMENTS = 10
