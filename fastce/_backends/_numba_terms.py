"""Kernels of the losses that need no softmax: of rows of probabilities or of their logarithms, and element-wise ones.

They stand beside the kernel of _numba_kernels.py and share its tasks, blocks, sums, and the reading of rows. `rows` is
for kinds whose rows have classes: one sweep over the classes of a row, or across positions, makes the loss and the
gradient. `elements` is for element-wise kinds: positions are the vectors, and what lies apart in memory is gathered
first. The formulas are those of `fastce._problem.Kind`; in all of them a coefficient of 0 wins over infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from numba.extending import register_model

from fastce._backends import _numba_tile as vector
from fastce._backends._numba_lanes import (
    Items,
    Memory,
    State,
    Stream,
    StreamModel,
    Struct,
    Value,
    fma,
    loop,
    outlined,
    select,
    traced,
    two_sum,
    when,
)
from fastce._backends._numba_math import (
    Sum,
    Vectors,
    accumulate,
    each,
    exponential,
    in_float64,
    log,
    log1p,
    log1p_of_fraction,
    no_sum,
    smaller,
    sum_of_lanes,
)
from fastce._backends._numba_tile import (
    AHEAD,
    BLOCK,
    DENSE,
    FACTOR,
    FEW,
    GRAD_OUTPUT,
    GROUP,
    LOGITS,
    OUT,
    POSITIVE_WEIGHT,
    ROW,
    SAMPLE_WEIGHT,
    SHIFTED_LIMIT,
)
from fastce._problem import Kind

ELEMENTS = 2048
"""Elements of a tile, at most."""

_DIVERGENCE = {
    # (((1 + d) log(1 + d) + (1 - d) log(1 - d))/d^2 - 1)/d^2 in d^2 for d up to 3/4, highest power first: as in the
    # C core's real_f32.h and real_f64.h.
    "f4": (
        0.07652427,
        -0.10371868,
        0.08403472,
        -0.0170845,
        0.021026917,
        0.021548545,
        0.0357523,
        0.06666585,
        0.16666667,
    ),
    "f8": (
        1.208033346496181,
        -5.844398662732012,
        13.325056288697207,
        -18.8404755599906,
        18.437410897933773,
        -13.200579962304637,
        7.1482042312104985,
        -2.976890913788122,
        0.9689716532680764,
        -0.24170040762464579,
        0.051965922398589756,
        -0.003065129664254744,
        0.006128475182988173,
        0.00645988676586829,
        0.008338222482335775,
        0.010988789809511687,
        0.015151521809484212,
        0.022222222099872693,
        0.035714285715473346,
        0.0666666666666621,
        0.16666666666666666,
    ),
}


class Terms(Stream):
    """A Stream that knows what its elements are, and so what their losses are made of.

    Options are "checks" (targets and weights are looked at, and nothing else), "clips" (probabilities), "plain" (no
    smoothing, and neither a, b nor a positive weight) and "focal" (gamma is not 0).
    """

    def __init__(self, code: str, real: str, loss: Kind, options: frozenset[str]) -> None:
        super().__init__(code, real)
        self.loss = loss
        self.options = options
        self.name = f"Terms({code}, {real}, {loss.name}, {', '.join(sorted(options))})"


register_model(Terms)(StreamModel)


def terms_of(x: Memory) -> Terms:
    if not isinstance(x.stream, Terms):
        raise TypeError(f"{x.stream} does not say what its elements are")
    return x.stream


def weighed(coefficient: Value, cost: Value) -> Value:
    """Return the product, 0 where the coefficient is, whatever the cost."""
    return select(coefficient.differs(0.0), coefficient * cost, 0.0)


def limited(call: Struct, x: Value) -> Value:
    """Return probabilities within their limits; NaN stays."""
    lowest, highest = (limit.to(x.real).splat(x.count or 1) for limit in (call.lowest, call.highest))
    x = select(x < lowest, lowest, x)
    return select(x > highest, highest, x)


def is_probability(x: Value) -> Value:
    return (x >= 0.0) & (x.like(1.0) >= x)


def term(call: Struct, stream: Terms, q: Value, x: Value) -> Value:
    """Return what mass q on a class, of which x is known, adds to the loss."""
    if stream.loss is Kind.LOG_PROBABILITIES:
        return weighed(q, x * -1.0)
    if stream.loss is Kind.PROBABILITIES:
        return weighed(q, log(limited(call, x) if "clips" in stream.options else x) * -1.0)
    x = x + 0.0  # -0 becomes 0
    sound = (x >= 0.0) & (x < math.inf)
    if stream.loss is Kind.KL:
        return weighed(q, select(sound, log_ratio(q, x), math.nan))
    return select(sound, jensen_shannon(q, x), math.nan)


def term_slope(call: Struct, stream: Terms, x: Value) -> Value:
    """Return the derivative of the loss for a mass of 1."""
    if stream.loss is Kind.LOG_PROBABILITIES:
        return select(x.equals(x), x.like(-1.0), x)
    # -0 is 0, and what is below is no probability.
    slope = select(x < 0.0, x.like(math.nan), -1.0 / x.call("llvm.fabs"))
    if "clips" not in stream.options:
        return slope
    kept = limited(call, x)
    return select(kept.equals(x), slope, kept - kept)


def log_ratio(a: Value, b: Value) -> Value:
    """Return log(a / b) for a, b >= 0: log1p of how much the larger exceeds the smaller, in units of that."""
    up = a > b
    large, small = select(up, a, b), select(up, b, a)
    excess = (large - small) / small
    # Where a is 0 nothing is asked.
    far = (excess > SHIFTED_LIMIT[a.real]) & (a > 0.0)
    ratio = log1p(select(far, excess.like(0.0), excess))

    def apart(ratio: Value) -> State:
        return (select(far, log(large) - log(small), ratio),)

    (ratio,) = when(any_lane(far), (ratio,), apart)
    return select(up, ratio, ratio * -1.0)


def any_lane(condition: Value) -> Value:
    found = condition.ones(8).reduce(lambda a, b: a | b)
    return found.differs(0)


def jensen_shannon(a: Value, b: Value) -> Value:
    """Return (a log(2a / (a + b)) + b log(2b / (a + b))) / 2, with d = |a - b| / (a + b).

    Where d is large the two logarithms, of opposite signs, cancel little; else it is (a + b) / 4 times
    d^2 (1 + d^2 P(d^2)), which is as small as the distance squared.
    """
    up = a > b
    large, small = select(up, a, b), select(up, b, a)
    total, apart = large + small, large - small
    d = select(total.equals(0.0), total, apart / total)
    far, z = d > 0.75, d * d
    first, *others = _DIVERGENCE[a.real]
    series = d.like(first)
    for coefficient in others:
        series = fma(series, z, coefficient)
    near = apart * d * 0.25 * fma(z, series, d.like(1.0))

    def distant(near: Value) -> State:
        share = (small + small) / total
        down = select(share.equals(0.0), share, small * log(share))
        return (select(far, fma(large, log1p(select(far, d, 0.0)), down) * 0.5, near),)

    (result,) = when(any_lane(far), (near,), distant)
    return result


def rows(
    call: Any, tile: Any, task: Any, x: Any, dense: Any, q: Any, out: Any, logarithm: Any, across: Any, shifted: Any
) -> None:
    """Do a task of a kind whose rows have classes; the arguments are those of _numba_kernels.kernel."""
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
            vector.get_labels(call, tile, n, x, q)
            if q is None:
                if out is not None:
                    clear_rows(call, tile, n, out)
            elif across is None:
                for i in range(n):
                    if tile.sample[i] > 0.0:
                        row_terms(call, tile, i, x, dense, q, out)
                    elif out is not None:
                        vector.clear_row(call, tile, i, out)
            else:
                tile_terms(call, tile, n, x, dense, q, out)
            finish(call, tile, n, x, q, out)
            vector.put_values(call, tile, n, x)
            if out is not None:
                vector.put_labels(call, tile, n, out)
            position += n
        vector.end_block(call, tile, block, bad)


@traced
def clear_rows(call: Struct, tile: Struct, n: Value, out: Memory) -> None:
    """Write zeros to n rows of the tile."""
    start, inner, stride = tile.at[OUT], call.inner[OUT], call.class_stride[OUT]
    row = call.n_classes * out.itemsize
    zero = start.integer(0, 8 * out.itemsize)
    near = stride.equals(out.itemsize)
    together = near & inner.equals(row)

    def clear(place: Value, size: Value) -> Callable[[], State]:
        def body() -> State:
            place.clear(size)
            return ()

        return body

    def one_row(i: Value) -> State:
        place = start + i * inner

        def one(k: Value) -> State:
            (place + k * stride).write(zero)
            return ()

        when(near, (), clear(place, row))
        when(~near, (), lambda: loop(0, call.n_classes, 1, (), one))
        return ()

    when(together, (), clear(start, row * n))
    when(~together, (), lambda: loop(0, n, 1, (), one_row))


@traced
def row_terms(
    call: Struct, tile: Struct, i: Value, x: Memory, dense: Memory | None, q: Memory, out: Memory | None
) -> None:
    """Leave the loss of row i but for its label's mass, and write its gradient."""
    stream = terms_of(x)
    scale = (tile.scale[i] * tile.sample[i]).to(x.real).splat(x.lanes)

    def block(k: Value, *total: Value) -> State:
        n = smaller(call.n_classes - k, BLOCK)
        logits = vector.row_logits(call, tile, i, k, n, x)
        targets = vector.row_target(call, tile, i, k, n, dense, q)
        put = None
        if out is not None:
            stride, size = call.class_stride[OUT], i.like(out.itemsize)
            to, buffer = tile.at[OUT] + i * call.inner[OUT] + k * stride, tile.out.at(0)
            near = stride.equals(size)
            put = Vectors(out, select(near, to, buffer), out.step)

        def some(first: Value, count: int, live: Value | None, *total: Value) -> State:
            logits.prefetch(first, count, AHEAD)
            targets.prefetch(first, count, AHEAD)
            values, masses = (part.load(first, count, live, 0.0) for part in (logits, targets))
            terms = [term(call, stream, mass, value) for mass, value in zip(masses, values, strict=True)]
            if put is not None:
                slopes = [
                    scale * weighed(mass, term_slope(call, stream, value))
                    for mass, value in zip(masses, values, strict=True)
                ]
                put.store(first, slopes, live)
            return accumulate(total, in_float64(terms, row=True))

        total = each(n, x.lanes, total, some)
        if out is not None:

            def scatter() -> State:
                vector.copy(out, to, stride, buffer, size, n)
                return ()

            when(~near, (), scatter)
        return total

    tile.pull[i] = sum_of_lanes(loop(0, call.n_classes, BLOCK, no_sum(x, across=False), block))


@traced
def tile_terms(
    call: Struct, tile: Struct, n: Value, x: Memory, dense: Memory | None, q: Memory, out: Memory | None
) -> None:
    """Do the same for the n positions of the tile, ignored ones included."""
    stream = terms_of(x)

    def block(k: Value) -> State:
        count = smaller(call.n_classes - k, FEW)
        vector.gather_classes(call, tile, n, k, count, x, dense, q)

        def positions(i: Value) -> State:
            logits, targets = vector.gathered(x, tile.logits.at(0), i), vector.gathered(q, tile.q.at(0), i)
            places = [items.at(i) for items in (tile.pull, tile.mass)]
            nothing = no_sum(x, across=True)
            if out is not None:
                put = vector.gathered(out, tile.out.at(0), i)
                sample, scale = (items.at(i).read_like(nothing[0]) for items in (tile.sample, tile.scale))
                factor, kept = (scale * sample).to(x.real), sample > 0.0

            def some(first: Value, count: int, live: Value | None, *total: Value) -> State:
                values, masses = (part.load(first, count, None, 0.0) for part in (logits, targets))
                terms = [term(call, stream, mass, value) for mass, value in zip(masses, values, strict=True)]
                if out is not None:
                    for index, (mass, value) in enumerate(zip(masses, values, strict=True)):
                        slope = factor * weighed(mass, term_slope(call, stream, value))
                        out.store(put.at(first + index), select(kept, slope, 0.0))
                return accumulate(total, in_float64(terms, row=False))

            def resume(*total: Value) -> State:
                return tuple(place.read_like(part) for place, part in zip(places, total, strict=False))

            total = each(count, None, when(k > 0, nothing, resume), some)
            for place, part in zip(places, total, strict=False):
                place.write(part)
            return ()

        loop(0, n, x.lanes, (), positions)
        if out is not None:
            vector.grid(call, tile, OUT, n, k, count, tile.out).scatter(out)
        return ()

    loop(0, call.n_classes, FEW, (), block)
    if x.real == "f8":

        def whole(i: Value) -> State:
            high, low = (items.at(i).read(64, GROUP).from_bits() for items in (tile.pull, tile.mass))
            tile.pull.at(i).write(high + select(low.equals(low), low, 0.0))
            return ()

        loop(0, n, GROUP, (), whole)


@traced
def finish(call: Struct, tile: Struct, n: Value, x: Memory, q: Memory | None, out: Memory | None) -> None:
    """Make the rows' values, add these up, and prepare the gradient at the label."""
    stream = terms_of(x)

    def some(i: Value) -> State:
        def get(name: str) -> Value:
            items: Items = getattr(tile, name)
            return items.at(i).read(64, GROUP).from_bits()

        s, at = get("sample"), get("label_mass")
        logit = get("label_logit").to(x.real)
        value = at * 0.0
        if stream.loss in (Kind.LOG_PROBABILITIES, Kind.PROBABILITIES):
            value = weighed(at, term(call, stream, logit.like(1.0), logit).to("f8"))
        if q is not None:
            value = value + get("pull")
        value = select(s > 0.0, s * value, 0.0)
        tile.value.at(i).write(value)
        vector.add_to_sums(tile, 0, value)
        if out is not None:
            if q is not None:
                at = at + get("label_vector")
            slope = weighed(at, term_slope(call, stream, logit).to("f8"))
            tile.at_label.at(i).write(get("scale") * s * slope)
        return ()

    loop(0, n, GROUP, (), some)


def add_to_block(tile: Struct, which: int, total: Sum) -> None:
    """Add a sum of some lanes to the block's losses (0) or weights (1)."""
    while total[0].count != GROUP:
        (a, b), (c, d) = (part.halves() for part in total)
        total = accumulate((a, c + d), b)
    for part in total:
        vector.add_to_sums(tile, which, part)


class Inputs(NamedTuple):
    """What an element-wise kind reads: each a Memory, or None where it is absent."""

    x: Memory
    dense: Memory
    sample: Memory | None
    factor: Memory | None
    positive: Memory | None
    grad_output: Memory | None

    def present(self) -> list[tuple[int, Memory]]:
        operands = (LOGITS, DENSE, SAMPLE_WEIGHT, FACTOR, POSITIVE_WEIGHT, GRAD_OUTPUT)
        unread = {LOGITS} if "checks" in terms_of(self.x).options else set()
        return [
            (operand, memory)
            for operand, memory in zip(operands, self, strict=True)
            if memory is not None and operand not in unread
        ]


def elements(
    call: Any,
    tile: Any,
    task: Any,
    x: Any,
    dense: Any,
    sample: Any,
    out: Any,
    factor: Any,
    positive: Any,
    grad_output: Any,
) -> None:
    """Do a task of an element-wise kind: all arguments but the first three stand for types, absent ones for None."""
    for block in range(call.n_blocks * task // call.n_tasks, call.n_blocks * (task + 1) // call.n_tasks):
        vector.start_block(tile)
        bad = call.n_rows
        position = block * call.block_rows
        end = min(position + call.block_rows, call.n_rows)
        while position < end:
            n = min(call.tile, end - position)
            whole = vector.locate(call, tile, position) >= n
            done = 0
            while done < n:
                some = n if whole else min(n - done, vector.locate(call, tile, position + done))
                gather(call, tile, done, some, whole, x, dense, sample, factor, positive, grad_output)
                done += some
            if tile_losses(call, tile, n, whole, x, dense, sample, out, factor, positive, grad_output):
                done = 0
                while done < n:
                    some = min(n - done, vector.locate(call, tile, position + done))
                    bad = min(bad, first_bad(call, tile, some, x, dense, sample, factor, positive))
                    done += some
            done = 0
            while done < n:
                some = n if whole else min(n - done, vector.locate(call, tile, position + done))
                scatter(call, tile, done, some, whole, x, out)
                done += some
            position += n
        vector.end_block(call, tile, block, bad)


def room(tile: Struct, operand: int) -> Value:
    """Return where the elements of an array are gathered that do not lie side by side."""
    items: Items = tile.exponentials
    return items.at(operand * ELEMENTS * 8)


def beside(call: Struct, operand: int, memory: Memory, whole: Value) -> Value:
    """Tell whether the elements of the tile lie side by side in an array."""
    stride: Value = call.inner[operand]
    return whole & stride.equals(memory.itemsize if operand != ROW else 1)


def move(memory: Memory, *places: Value) -> None:
    outlined(f"fastce_copy_{memory.itemsize}_{memory.lanes}", places, lambda *places: vector.copy(memory, *places))


@traced
def gather(
    call: Struct,
    tile: Struct,
    done: Value,
    some: Value,
    whole: Value,
    x: Memory,
    dense: Memory,
    sample: Memory | None,
    factor: Memory | None,
    positive: Memory | None,
    grad_output: Memory | None,
) -> None:
    """Gather the inputs of some elements, those of the tile from ``done`` on."""

    def gather(operand: int, memory: Memory) -> Callable[[], State]:
        def body() -> State:
            size = some.like(memory.itemsize)
            move(memory, room(tile, operand) + size * done, size, tile.at[operand], call.inner[operand], some)
            return ()

        return body

    for operand, memory in Inputs(x, dense, sample, factor, positive, grad_output).present():
        when(~beside(call, operand, memory, whole), (), gather(operand, memory))


@traced
def scatter(call: Struct, tile: Struct, done: Value, some: Value, whole: Value, x: Memory, out: Memory | None) -> None:
    """Write the values and the gradient of some elements where these were not at once."""
    values = x.computed()
    size = some.like(values.itemsize)

    def put_values() -> State:
        start = call.values + tile.at[ROW] * size
        move(values, start, call.inner[ROW] * size, room(tile, ROW) + size * done, size, some)
        return ()

    when((call.values > 0) & ~beside(call, ROW, values, whole), (), put_values)
    if out is None:
        return

    def put() -> State:
        size = some.like(out.itemsize)
        move(out, tile.at[OUT], call.inner[OUT], room(tile, OUT) + size * done, size, some)
        return ()

    when(~beside(call, OUT, out, whole), (), put)


@traced
def first_bad(
    call: Struct,
    tile: Struct,
    n: Value,
    x: Memory,
    dense: Memory,
    sample: Memory | None,
    factor: Memory | None,
    positive: Memory | None,
) -> Value:
    """Return the first of n neighbouring elements whose target or weights are not acceptable, or the number of all."""

    def one(i: Value, first: Value) -> State:
        row = tile.at[ROW] + i * call.inner[ROW]
        for operand, memory in Inputs(x, dense, sample, factor, positive, None).present():
            if operand != LOGITS:
                value = memory.load_one(tile.at[operand] + i * call.inner[operand])
                good = acceptable(terms_of(x), operand, value)
                first = select(good, first, smaller(row, first)) if good is not None else first
        return (first,)

    (first,) = loop(0, n, 1, (call.n_rows,), one)
    return first


def acceptable(stream: Terms, operand: int, value: Value) -> Value | None:
    """Tell which targets or weights are acceptable; None where all are."""
    if operand == DENSE:
        return None if stream.loss is Kind.SQUARES else is_probability(value)
    return (value >= 0.0) & (value < math.inf)


@traced
def tile_losses(
    call: Struct,
    tile: Struct,
    n: Value,
    whole: Value,
    x: Memory,
    dense: Memory,
    sample: Memory | None,
    out: Memory | None,
    factor: Memory | None,
    positive: Memory | None,
    grad_output: Memory | None,
) -> Value:
    """Do the elements of a tile, where they lie or where they were gathered; tell whether some are bad."""
    inputs = Inputs(x, dense, sample, factor, positive, grad_output)
    stream, options = terms_of(x), terms_of(x).options
    values = x.computed()
    places = {
        operand: (memory, select(beside(call, operand, memory, whole), tile.at[operand], room(tile, operand)))
        for operand, memory in inputs.present()
    }
    to_values = call.values + tile.at[ROW] * values.itemsize
    to_values = select(beside(call, ROW, values, whole) & (call.values > 0), to_values, room(tile, ROW))
    if out is not None:
        to = select(beside(call, OUT, out, whole), tile.at[OUT], room(tile, OUT))
    constants = Constants(call, x)

    def load(operand: int, i: Value, live: Value | None) -> Value:
        """Return vector i of an input, in float64 where that is what it is made of."""
        memory, place = places[operand]
        parts = x.lanes // memory.lanes
        vectors = [
            memory.load(place + (i * parts + part) * memory.step, None if live is None else live - part * memory.lanes)
            for part in range(parts)
        ]
        return vectors[0] if parts == 1 else vectors[0].join(vectors[1])

    def some(i: Value, live: Value | None, flags: Value, *sums: Value) -> State:
        losses, weights = sums[:2], sums[2:]
        loaded = {operand: load(operand, i, live) for operand in places}
        for memory, place in places.values():
            memory.prefetch(place + i * (memory.step * (x.lanes // memory.lanes)) + AHEAD)
        for operand, value in loaded.items():
            good = None if operand in (LOGITS, GRAD_OUTPUT) else acceptable(stream, operand, value)
            flags = flags if good is None else select(good, flags, 1.0)
        if sample is not None:
            weights = accumulate(weights, loaded[SAMPLE_WEIGHT].to("f8"))
        if "checks" in options:
            return flags, *losses, *weights
        loss, slope = element_terms(
            constants, stream, loaded[LOGITS], loaded[DENSE], loaded.get(POSITIVE_WEIGHT), out is not None
        )
        weight = weight_of(loaded)
        loss = loss if weight is None else weighed(weight.to(x.real), loss)
        values.store(to_values + i * values.step, loss, live)
        kept = loss if live is None else select(values.mask(live, x.lanes), loss, 0.0)
        if out is not None and slope is not None:
            scale = constants.scale_of(loaded.get(GRAD_OUTPUT), weight)
            slope = scale * slope if weight is None else weighed(scale, slope)
            out.store(to + i * out.step, slope, live)
        return flags, *accumulate(losses, kept.to("f8")), *weights

    vectors, rest = n // x.lanes, n % x.lanes
    # Where a tile ends goes by the layout of every array, so that what rounding drops is kept in float32 too.
    nothing = x.constant(0.0).to("f8")
    state: State = (x.constant(0.0), *(nothing,) * 4)
    state = loop(0, vectors, 1, state, lambda i, *state: some(i, None, *state))
    flags, *sums = when(rest > 0, state, lambda *state: some(vectors, rest, *state))
    add_to_block(tile, 0, tuple(sums[:2]))
    add_to_block(tile, 1, tuple(sums[2:]))
    if sample is None:
        tile.sums[2 * GROUP] = tile.sums[2 * GROUP] + n.number("f8")
    return any_lane(flags > 0.0)


def weight_of(loaded: dict[int, Value]) -> Value | None:
    """Return what multiplies the losses: sample weight and factor, or their product in float64."""
    weights = [loaded[operand] for operand in (SAMPLE_WEIGHT, FACTOR) if operand in loaded]
    if len(weights) < 2:
        return weights[0] if weights else None
    a, b = (weight.to("f8") for weight in weights)
    return a * b


class Constants:
    """The options of a call as vectors."""

    def __init__(self, call: Struct, x: Memory) -> None:
        self._call = call
        self._x = x
        self._scale = self._splat(call.grad_scale)
        self.lowest, self.highest = self._splat(call.lowest), self._splat(call.highest)
        self.gamma, self.positive, self.negative = (self._splat(v) for v in (call.gamma, call.positive, call.negative))
        self._gamma_low = self._splat(call.gamma - call.gamma.to(x.real).to("f8"))
        self.smoothed = self._splat(call.target_scale)
        if "plain" not in terms_of(x).options and terms_of(x).loss is not Kind.SQUARES:
            self.spread = x.computed().load_one(call.class_vector).splat(x.lanes)

    def _splat(self, value: Value) -> Value:
        return value.to(self._x.real).splat(self._x.lanes)

    def scale_of(self, grad_output: Value | None, weight: Value | None) -> Value:
        """Return what multiplies the gradient, as one factor: of two the first may overflow."""
        if grad_output is None and weight is None:
            return self._scale
        scale: Value = self._call.grad_scale.splat(self._x.lanes)
        for factor in (grad_output, weight):
            scale = scale if factor is None else scale * factor.to("f8")
        return scale.to(self._x.real)

    def power(self, large: Value, small: Value) -> Value:
        """Return exp(-gamma (large + small)): what rounding drops from the exponent multiplies it."""
        high, low = two_sum(self.gamma * large, self.gamma * small)
        for part in (large, small):
            low = low + fma(self.gamma, part, self.gamma * part * -1.0)
        low = fma(self._gamma_low, large + small, low)
        result = exponential(high * -1.0)
        return fma(result, select(low.equals(low), low * -1.0, 0.0), result)  # nothing is dropped from infinity


def element_terms(
    constants: Constants, stream: Terms, x: Value, t: Value, positive: Value | None, slopes: bool
) -> tuple[Value, Value | None]:
    """Return the losses of a vector of elements, and their derivatives."""
    if stream.loss is Kind.SQUARES:
        d = x - t
        return d * d, d + d
    on, off = t, 1.0 - t
    if "plain" not in stream.options:
        a = constants.positive if positive is None else constants.positive * positive.to(x.real)
        on = a * fma(constants.smoothed, on, constants.spread)
        off = constants.negative * fma(constants.smoothed, off, constants.spread)
    if stream.loss is Kind.BINARY_LOGITS:
        return binary_logits(constants, "focal" in stream.options, x, on, off, slopes)
    return binary_probabilities(constants, "clips" in stream.options, x, on, off, slopes)


def binary_logits(
    constants: Constants, focal: bool, x: Value, on: Value, off: Value, slopes: bool
) -> tuple[Value, Value | None]:
    e = exponential(x.call("llvm.fabs") * -1.0)
    more = log1p_of_fraction(e)
    above, below = select(x > 0.0, x, 0.0), select(x < 0.0, x * -1.0, 0.0)
    up, down = more + above, more + below  # softplus(x) and softplus(-x)
    share, rest = None, None
    if slopes:  # sigmoid(x) and sigmoid(-x)
        large = 1.0 / (e + 1.0)
        small = e * large
        share, rest = select(x > 0.0, large, small), select(x > 0.0, small, large)
    if focal:
        gamma = constants.gamma
        on, off = on * constants.power(above, more), off * constants.power(below, more)
        if share is not None and rest is not None:  # what sigmoid^gamma adds to the derivative, as if to the sigmoid
            share, rest = (
                fma(gamma, weighed(rest, up), share),
                fma(gamma, weighed(share, down), rest),
            )
    loss = select(x.equals(x), weighed(on, down) + weighed(off, up), x)  # a NaN is one whatever its coefficients
    return loss, None if share is None or rest is None else off * share - on * rest


def binary_probabilities(
    constants: Constants, clips: bool, x: Value, on: Value, off: Value, slopes: bool
) -> tuple[Value, Value | None]:
    kept = x + 0.0  # -0 becomes 0
    if clips:
        kept = select(kept < constants.lowest, constants.lowest, kept)
        kept = select(kept > constants.highest, constants.highest, kept)
    sound = is_probability(kept)
    no = select(kept < 1.0, log1p(kept * -1.0), -math.inf)
    loss = weighed(on, log(kept) * -1.0) + weighed(off, no * -1.0)
    loss = select(sound, loss, math.nan)
    if not slopes:
        return loss, None
    slope = weighed(off, 1.0 / (1.0 - kept)) - weighed(on, 1.0 / kept)
    slope = select(kept.equals(x), slope, 0.0)
    return loss, select(sound, slope, math.nan)
