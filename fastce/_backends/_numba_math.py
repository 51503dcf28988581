"""The arithmetic of the Numba kernels, written once for float32 and float64: what is done to a few vectors.

A *sweep* visits the classes of one row, whose neighbours fill a vector, or of neighbouring positions, one in each
lane. Both add up the same per lane, relative to the running maximum ``top``:

    total   sum of exp(x - top) over classes below it        mass    sum of q
    ties    number of classes that reach it                  pull    sum of q*(top - x) over q > 0

so that r of the design's formula is total + (ties - 1). The loops are in _numba_kernels.py.
"""

from __future__ import annotations

import math
from typing import Any

from fastce._backends._numba_lanes import Memory, Stream, Value, fma, maximum, select, traced, two_sum

_EXP = {
    # What n, the exponent's bias and field, the logarithm in two parts, the smallest argument (below it the scale's
    # exponent field is 0 and the result 0), and (exp(r) - 1 - r)/r^2 on |r| <= log(2)/2 by mpmath.chebyfit, to
    # 8e-9 (float32) and 1.3e-17 (float64) of exp(r), highest power first.
    "f4": (
        1.5 * 2**23 + 127,
        23,
        (0.693359375, -2.12194440e-4),
        -88.1,
        (0.00139261836, 0.00836317905, 0.0416665546, 0.16666577, 0.5),
    ),
    "f8": (
        1.5 * 2**52 + 1023,
        52,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        -709.0,
        (
            2.51003854955103191e-8,
            2.76200884454097482e-7,
            2.75572684599970648e-6,
            2.48015212959543751e-5,
            1.98412698630536169e-4,
            1.38888889172137169e-3,
            8.33333333333006183e-3,
            4.16666666666241279e-2,
            1.66666666666666675e-1,
            0.5,
        ),
    ),
}

_LOG = (
    # FreeBSD's e_log.c: log(1 + f) = f - f^2/2 + s*(f^2/2 + R), s = f/(2 + f), R even in s; highest power first.
    1.479819860511658591e-01,
    1.531383769920937332e-01,
    1.818357216161805012e-01,
    2.222219843214978396e-01,
    2.857142874366239149e-01,
    3.999999999940941908e-01,
    6.666666666666735130e-01,
)
_LOG2_HIGH, _LOG2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10


# What is kept of each row of a tile, as float64: what goes in, what a sweep leaves, and what `finish` makes of it.
(
    SAMPLE,  # s; 0 marks an ignored row
    SCALE,  # of the gradient
    LABEL_MASS,  # q at the label / s
    LABEL_LOGIT,
    LABEL_VECTOR,  # the class vector at the label
    WEIGHT,  # of the row in the mean's denominator
    TOP,
    REST,  # r
    MASS,  # of the class vector or dense target / s
    PULL,
    VALUE,  # the loss, or whatever the row's value is
    FACTOR,  # what exp(x - top) is multiplied by in the output
    TARGET_FACTOR,  # what q is multiplied by in the gradient
    AT_LABEL,  # the gradient there
    AT_TOP,  # the gradient at the maximum is AT_TOP*((Q - q) - q*r) + AT_TOP_Z
    AT_TOP_Z,
    LOG1P,
    TARGET,  # Q / s
    FIELDS,
) = range(19)


def _real(value: Value) -> str:
    return "f4" if str(value.element) == "float" else "f8"


def exponential(x: Value) -> Value:
    """Return exp(x) for x <= 0 to about 1 ULP; 0 below about −87.7 (float32) or −708.7 (float64); NaN for NaN."""
    magic, shift, (log2_high, log2_low), smallest, polynomial = _EXP[_real(x)]
    x = select(x < smallest, x.like(smallest), x)
    # Adding the magic number rounds x/log(2) to an integer n and leaves n + bias in the lowest bits.
    rounded = fma(x, 1 / math.log(2), x.like(magic))
    n = rounded - magic
    r = fma(n, -log2_low, fma(n, -log2_high, x))
    p = x.like(polynomial[0])
    for coefficient in polynomial[1:]:
        p = fma(p, r, coefficient)
    p = fma(p * r, r, r) + 1.0
    return p * (rounded.bits() << shift).from_bits()


def log1p(x: Value) -> Value:
    """Return log(1 + x) for float64 x >= 0 to about 1 ULP; NaN for NaN and infinity."""
    u, dropped = two_sum(x, x.like(1.0))
    bits = u.bits() + (0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
    # The exponent as a float64, by way of the bits of 1.5*2^52 plus it.
    exponent = ((bits >> 52) + (0x4338000000000000 - 1023)).from_bits() - 1.5 * 2**52
    f = ((bits & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).from_bits() - 1.0
    half = f * f * 0.5
    s = f / (f + 2.0)
    z = s * s
    series = z.like(_LOG[0])
    for coefficient in _LOG[1:]:
        series = fma(series, z, coefficient)
    low = fma(exponent, _LOG2_LOW, dropped / u)
    return fma(exponent, _LOG2_HIGH, f - (half - fma(s, half + z * series, low)))


def _total(values: list[Value]) -> Value:
    """Return the sum, pair by pair, in float64: float32 is rounded log2 of their number times."""
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0].to("f8")


def _finite(top: Value) -> Value:
    """Return what is taken off the logits: the maximum, 0 where all are −inf."""
    return select(top > -math.inf, top, 0.0)


def _vectors(memory: Memory, address: Value, step: Value, count: int, live: Value | None, fill: float) -> list[Value]:
    """Return neighbouring vectors: ``count`` whole ones, ``step`` bytes apart, or one that is partly live."""
    return [memory.load(address + step * index, live, fill) for index in range(count)]


def _doubles(address: Value) -> Memory:
    return Memory(address.builder, Stream("f8", "f8"), address.ir, f16c=False)


def _reals(x: Memory, address: Value) -> Memory:
    return Memory(address.builder, Stream(x.stream.real, x.stream.real), address.ir, f16c=False)


@traced
def itemsize(x: Memory) -> Value:
    return x.address.like(x.stream.itemsize)


@traced
def lanes(x: Memory) -> Value:
    return x.address.like(x.lanes)


@traced
def real_size(x: Memory) -> Value:
    return x.address.like(int(x.stream.real[1]))


@traced
def integer_at(address: Value, bits: int, swapped: Value) -> Value:
    """Return the unsigned integer at an address as int64, its bytes turned round if ``swapped`` is 1."""
    raw = address.read(bits)
    if bits > 8:
        raw = select(swapped > 0, raw.call("llvm.bswap"), raw)
    return raw.extend(64)


@traced
def double_at(address: Value) -> Value:
    return _doubles(address).load_one(address)


@traced
def single_at(address: Value) -> Value:
    return Memory(address.builder, Stream("f4", "f8"), address.ir, f16c=False).load_one(address)


@traced
def element_at(x: Memory, address: Value) -> Value:
    """Return one element as float64."""
    return x.load_one(address).to("f8")


@traced
def put_element(out: Memory, address: Value, value: Value) -> None:
    """Write a float64 as one element."""
    out.store(address, value)


@traced
def move(x: Memory, to: Value, source: Value) -> None:
    """Copy an element as it is."""
    to.write(source.read(8 * x.stream.itemsize))


@traced
def move_vector(x: Memory, to: Value, source: Value) -> None:
    """Copy a vector as it is."""
    to.write(source.read(8 * x.stream.itemsize, x.lanes))


@traced
def acceptable(dense: Memory, address: Value, live: Value | None, so_far: Value) -> Value:
    """Return ``so_far`` where a vector of a dense target is finite and not negative, else 1."""
    t = dense.load(address, live)
    return select((t >= 0.0) & (t < math.inf), so_far, 1.0)


@traced
def zeros(x: Memory) -> Value:
    return x.constant(0.0)


@traced
def any_lane(flags: Value) -> Value:
    """Return 1.0 if one of the flags is, else 0.0."""
    return flags.reduce(maximum).to("f8")


@traced
def put_doubles(address: Value, value: Value) -> None:
    """Write a vector as float64."""
    _doubles(address).store(address, value.to("f8"))


@traced
def put_reals(x: Memory, address: Value, value: Value) -> None:
    _reals(x, address).store(address, value)


@traced
def target_of(x: Memory, dense: Memory, address: Value, w: Value, v: Value, live: Value | None) -> Value:
    """Return w*t + v of neighbouring classes."""
    t = dense.load(address, live)
    return fma(t, _reals(x, w).load(w, live), _reals(x, v).load(v, live))


@traced
def target_at(x: Memory, dense: Memory, address: Value, w: Value, v: Value) -> Value:
    """Return w*t + v of neighbouring positions."""
    w, v = (_reals(x, place).load_one(place).splat(x.lanes) for place in (w, v))
    return fma(dense.load(address), w, v)


@traced
def splat_at(x: Memory, address: Value) -> Value:
    return _reals(x, address).load_one(address).splat(x.lanes)


@traced
def load_state(x: Memory, address: Value) -> tuple[Value, ...]:
    """Return what `save_state` kept."""
    size = x.lanes * 8
    top, total, mass, pull = (_doubles(address).load(address + size * index, lanes=x.lanes) for index in range(4))
    ties = Value(address.builder, (address + size * 4).read(x.constant(0.0).bits().element.width, x.lanes).ir)
    return top.to(x.stream.real), total, ties, mass, pull


@traced
def save_state(address: Value, top: Value, total: Value, ties: Value, mass: Value, pull: Value) -> None:
    size = (top.count or 1) * 8
    for index, value in enumerate((top, total, mass, pull)):
        _doubles(address).store(address + size * index, value.to("f8"))
    (address + size * 4).write(ties)


@traced
def leave(rows: Value, size: Value, top: Value, total: Value, ties: Value, mass: Value, pull: Value) -> None:
    """Leave the sums of as many rows as there are lanes for `finish`."""
    r = total + (ties.number("f8") - 1.0)
    for field, value in ((TOP, top.to("f8")), (REST, r), (MASS, mass), (PULL, pull)):
        _doubles(rows).store(rows + size * field, value)


@traced
def nothing(x: Memory) -> tuple[Value, ...]:
    """Return (top, total, ties, mass, pull) of no classes."""
    top = x.constant(-math.inf)
    zero = top.to("f8").like(0.0)
    return top, zero, top.bits().like(0), zero, zero


@traced
def highest(top: Value, x: Memory, address: Value, step: Value, count: int, live: Value | None) -> Value:
    """Return the maximum of ``top`` and vectors of logits; NaN counts as nothing."""
    found = _vectors(x, address, step, count, live, -math.inf)
    while len(found) > 1:
        found = [maximum(a, b) for a, b in zip(found[::2], found[1::2], strict=True)]
    return maximum(found[0], top)


@traced
def widest(top: Value) -> Value:
    """Return a vector whose elements all are the largest."""
    return top.reduce(maximum).splat(top.count or 1)


@traced
def raise_top(higher: Value, top: Value, total: Value, ties: Value, mass: Value, pull: Value) -> tuple[Value, ...]:
    """Return the sums relative to a new maximum, which is ``top`` or higher."""
    moves = higher > top
    factor = select(moves, exponential(top - higher), 1.0).to("f8")
    # Where all was −inf so far, pull is infinite or 0, and stays.
    distance = select(moves, select(top > -math.inf, higher - top, 0.0), 0.0).to("f8")
    total = select(moves, (total + ties.number("f8")) * factor, total)
    return higher, total, select(moves, ties.like(0), ties), mass, fma(distance, mass, pull)


@traced
def sum_exponentials(
    top: Value, total: Value, ties: Value, x: Memory, address: Value, step: Value, count: int, live: Value | None
) -> tuple[Value, Value]:
    """Return total and ties with vectors of logits added."""
    shift = _finite(top)
    terms = []
    for logits in _vectors(x, address, step, count, live, -math.inf):
        tie = logits.equals(top)
        ties = ties - tie.ones(ties.element.width)
        e = exponential(logits - shift)
        terms.append(select(tie, e.like(0.0), e))
    return total + _total(terms), ties


@traced
def sum_target(
    top: Value,
    mass: Value,
    pull: Value,
    x: Memory,
    address: Value,
    step: Value,
    q: Value,
    q_step: Value,
    count: int,
    live: Value | None,
) -> tuple[Value, Value]:
    """Return mass and pull with vectors of logits and target added."""
    shift = _finite(top)
    targets = _vectors(_reals(x, q), q, q_step, count, live, 0.0)
    pulls = [
        select(target > 0.0, target * (shift - logits), 0.0)
        for target, logits in zip(targets, _vectors(x, address, step, count, live, -math.inf), strict=True)
    ]
    return mass + _total(targets), pull + _total(pulls)


@traced
def sum_lanes(top: Value, total: Value, ties: Value, mass: Value, pull: Value) -> tuple[Value, ...]:
    """Return the sums of a row, float64: (top, r, mass, pull)."""

    def add(a: Value, b: Value) -> Value:
        return a + b

    r = total.reduce(add) + (ties.reduce(add).number("f8") - 1.0)
    return top.lane(0).to("f8"), r, mass.reduce(add), pull.reduce(add)


@traced
def finish(rows: Value, size: Value, z_loss: Value, loose: Value, sums: Value, gradient: Value | None) -> None:
    """Turn what a sweep left of some rows into their values, add these up, and prepare the gradient.

    ``loose`` is 1 where a row whose maximum is infinite has a value, else 0; ``sums`` is where high and low parts
    of the sums of values and weights are kept, per lane.
    """

    doubles = _doubles(rows)

    def get(field: int) -> Value:
        return doubles.load(rows + size * field)

    def put(field: int, value: Value) -> None:
        doubles.store(rows + size * field, value)

    s, top, at, logit = get(SAMPLE), get(TOP), get(LABEL_MASS), get(LABEL_LOGIT)
    counts, lanes = s > 0.0, doubles.lanes
    sound = (top > -math.inf) & (top < math.inf) | (loose.splat(lanes) > 0)
    r = select(sound, get(REST), math.nan)
    z = z_loss.splat(lanes)
    log = log1p(r)
    lse = top + log
    target = get(MASS) + at
    pull = get(PULL) + select(at > 0.0, at * (top - logit), 0.0)
    value = fma(target, log, pull) + select(z > 0.0, z * lse * lse, 0.0)
    value = select(counts, s * value, 0.0)
    put(VALUE, value)
    for index, term in enumerate((value, get(WEIGHT))):
        high, low = (sums + 8 * lanes * (2 * index + part) for part in range(2))
        total, dropped = two_sum(doubles.load(high), term)
        doubles.store(high, total)
        doubles.store(low, doubles.load(low) + dropped)
    if gradient is None:
        return
    inverse = 1.0 / (r + 1.0)
    scale = get(SCALE) * s
    push = select(z > 0.0, z * lse * 2.0, 0.0)
    e = exponential(logit - top)
    at = at + get(LABEL_VECTOR)
    put(FACTOR, scale * (target + push) * inverse)
    put(TARGET_FACTOR, scale)
    put(AT_LABEL, scale * ((fma(target, e, at * -1.0) - at * r) + push * e) * inverse)
    put(AT_TOP, scale * inverse)
    put(AT_TOP_Z, scale * push * inverse)
    put(REST, r)
    put(LOG1P, log)
    put(TARGET, target)


@traced
def sum_of(sums: Value, which: int) -> tuple[Value, Value]:
    """Return high and low part of the sum of values (0) or of weights (1)."""
    doubles = _doubles(sums)
    high, low = (doubles.load(sums + 8 * doubles.lanes * (2 * which + part)) for part in range(2))
    while high.count != 1:
        (a, b), (c, d) = high.halves(), low.halves()
        high, dropped = two_sum(a, b)
        low = c + d + dropped
    return high.lane(0), low.lane(0)


OUTPUT_FIELDS = (SAMPLE, TOP, REST, FACTOR, TARGET_FACTOR, AT_TOP, AT_TOP_Z, LOG1P, TARGET)


@traced
def of_row(x: Memory, rows: Value, size: Value) -> tuple[Value, ...]:
    """Return OUTPUT_FIELDS of one row, the same in each lane."""
    return tuple(
        _doubles(rows).load_one(rows + size * field).to(x.stream.real).splat(x.lanes) for field in OUTPUT_FIELDS
    )


@traced
def of_positions(x: Memory, rows: Value, size: Value) -> tuple[Value, ...]:
    """Return OUTPUT_FIELDS of as many rows as there are lanes."""
    return tuple(_doubles(rows).load(rows + size * field, lanes=x.lanes).to(x.stream.real) for field in OUTPUT_FIELDS)


@traced
def write(
    row: tuple[Value, ...],
    x: Memory,
    address: Value,
    step: Value,
    out: Memory,
    out_address: Value,
    out_step: Value,
    q: Value | None,
    q_step: Value,
    logarithm: Value | None,
    across: Value | None,
    count: int,
    live: Value | None,
) -> None:
    """Write vectors of the gradient without the label, of probabilities, or of their logarithms."""
    s, top, r, factor, target_factor, at_top, at_top_z, log1p_r, target = row
    logits = _vectors(x, address, step, count, live, -math.inf)
    if logarithm is not None:
        values = [logit - top - log1p_r for logit in logits]
    else:
        exponentials = [exponential(logit - top) for logit in logits]
        values = [e * factor for e in exponentials]
        if q is not None:
            targets = _vectors(_reals(x, q), q, q_step, count, live, 0.0)
            values = [
                # Where all of q is on the maximum, its gradient keeps relative accuracy.
                select(logit.equals(top), fma(at_top, (target - t) - t * r, at_top_z), value - target_factor * t)
                for logit, t, value in zip(logits, targets, values, strict=True)
            ]
    for index, value in enumerate(values):
        if across is not None:
            value = select(s > 0.0, value, 0.0)
        out.store(out_address + out_step * index, value, live)
