"""The arithmetic of the Numba kernels, written once for float32 and float64.

A *sweep* visits the classes of one row, whose neighbours fill a vector, or of neighbouring positions, one in each
lane (across). Both add up the same per lane, relative to the running maximum ``top``:

    total   sum of exp(x - top) over classes below it        mass    sum of q
    ties    number of classes that reach it                  pull    sum of q*(top - x) over q > 0

so that r of the design's formula is total + (ties - 1). Where vectors come from is known to _numba_tile.py.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable
from typing import NamedTuple

from fastce._backends._numba_lanes import (
    Memory,
    State,
    Value,
    fma,
    lookup,
    loop,
    maximum,
    select,
    table_size,
    two_sum,
    when,
)

_EXP = {
    # What adding rounds to an integer, and leaves it with the exponent's bias in the lowest bits; the exponent's
    # place; log(2) in two parts; the smallest argument, whose result is 0, and the
    # largest, whose result is infinite; (exp(r) - 1 - r)/r^2 on |r| <= log(2)/2
    # by mpmath.chebyfit to 8e-9 of exp(r) (float32) and as in the C core's real_f64.h, highest power first.
    "f4": (
        1.5 * 2**23 + 127,
        23,
        (0.693359375, -2.12194440e-4),
        -88.03,
        88.3,
        (0.00139261836, 0.00836317905, 0.0416665546, 0.16666577, 0.5),
    ),
    "f8": (
        1.5 * 2**52 + 1023,
        52,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        -709.0,
        709.4,
        (
            2.5100569275813683e-08,
            2.762032742826824e-07,
            2.75572680728901e-06,
            2.4801520792572694e-05,
            0.00019841269863303223,
            0.0013888888917538296,
            0.008333333333330011,
            0.04166666666662348,
            0.16666666666666669,
            0.5000000000000001,
        ),
    ),
}

_LOG = {
    # The exponent's place and bias; log(2) in two parts; R/s^2 in s^2, highest power first, where s = f/(2 + f) and
    # log(1 + f) = f - f^2/2 + s*(f^2/2 + R): as in the C core's real_f32.h, and in FreeBSD's e_log.c.
    "f4": (23, 127, (0.693145751953125, 1.428606765330187e-06), (0.29590318, 0.3998855, 0.66666687)),
    "f8": (
        52,
        1023,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        (
            1.479819860511658591e-01,
            1.531383769920937332e-01,
            1.818357216161805012e-01,
            2.222219843214978396e-01,
            2.857142874366239149e-01,
            3.999999999940941908e-01,
            6.666666666666735130e-01,
        ),
    ),
}


_STEPS = {
    # What there is for float32 where a register holds a table of 2^(j/steps): (exp(r) - 1 - r)/r^2 on
    # |r| <= log(2)/(2 steps), to 2.6e-8 (8 steps) and 1.6e-9 (16) of exp(r), highest power first.
    8: (0.16667667031288147, 0.5000648498535156),
    16: (0.1666690707206726, 0.5000162124633789),
}


# As in the C core's avx512_f32.c and real_f32.h: c near 1/(1 + n/_LOG_STEPS) and -log(c) of each step n of a logarithm
# from 1 to 2, and (log(1 + r) - r)/r^2 for |r| up to 0.0323, highest power first.
_LOG_STEPS = 15.49
_LOG_INVERSES = (
    1.0,
    0.93921125,
    0.8856894,
    0.83762485,
    0.79476565,
    0.75611645,
    0.72077453,
    0.68860406,
    0.6595114,
    0.63242203,
    0.60766697,
    0.5847988,
    0.56360537,
    0.5438449,
    0.5250989,
    0.508023,
)
_LOG_OF_STEPS = (
    0.0,
    0.06271485,
    0.12138898,
    0.17718495,
    0.22970799,
    0.27955988,
    0.3274289,
    0.37308884,
    0.41625604,
    0.45819834,
    0.4981283,
    0.5364874,
    0.573401,
    0.6090912,
    0.6441686,
    0.6772285,
)
_LOG_OF_REST = (0.20014895, -0.25017378, 0.3333333, -0.49999997)


_TANH = {
    # (tanh(u)/u - 1)/u^2 in u^2 for |u| up to 5/8, highest power first: as in the C core's real_f32.h and real_f64.h.
    "f4": (-0.006096714, 0.02099718, -0.053850908, 0.1333277, -0.33333328),
    "f8": (
        6.485163482793113e-06,
        -3.12011014257974e-05,
        9.257116129556769e-05,
        -0.0002375906496055562,
        0.0005896606577757043,
        -0.0014557754120478055,
        0.0035921217511549622,
        -0.008863235103240878,
        0.021869488519008305,
        -0.05396825396789699,
        0.13333333333333042,
        -0.3333333333333333,
    ),
}


def exponential(x: Value, bounded: bool = True) -> Value:
    """Return exp(x) to about 1 ULP; 0 below about −87.7 (float32) or −708.7 (float64); NaN for NaN.

    ``bounded`` says that x is below 88 (709); else the result is above 1e38 where x is above.
    """
    magic, place, (log2_high, log2_low), smallest, largest, polynomial = _EXP[x.real]
    steps = table_size() if x.real == "f4" else 1
    if steps > 1:
        # The bits that say the fraction of an octave come below the exponent's.
        magic, place = 1.5 * 2**23 + 127 * steps, 24 - steps.bit_length()
        polynomial = _STEPS[steps]
    x = select(x < smallest, x.like(smallest), x)
    if not bounded:
        x = select(x > largest, x.like(largest), x)
    rounded = fma(x, steps / math.log(2), x.like(magic))
    n = rounded - magic
    r = fma(n, -log2_low / steps, fma(n, -log2_high / steps, x))
    p = x.like(polynomial[0])
    for coefficient in polynomial[1:]:
        p = fma(p, r, coefficient)
    scale = rounded.bits() << place
    if steps > 1:
        scale = scale + lookup(_fractions(steps), rounded.bits())
    return fma(fma(p * r, r, r), scale.from_bits(), scale.from_bits())


@functools.cache
def _fractions(steps: int) -> tuple[int, ...]:
    """Return the mantissas of 2^(j/steps), less what j adds that is shifted to the exponent's place with it."""
    return tuple(round((2.0 ** (j / steps) - 1.0) * 2**23) - (j << (24 - steps.bit_length())) for j in range(steps))


def _binade(x: Value) -> tuple[Value, Value]:
    """Return n and f of x = 2^(n - bias)*(1 + f), a normal number above 0, with 1 + f from sqrt(1/2) to sqrt(2)."""
    place, bias, *_ = _LOG[x.real]
    one, root = bias << place, x.like(math.sqrt(0.5)).bits()
    moved = x.bits() + (root.like(one) - root)
    return moved >> place, ((moved & ((1 << place) - 1)) + root).from_bits() - 1.0


def _scaled_log(n: Value, f: Value) -> Value:
    """Return log(2^(n - bias)*(1 + f)) to about 1 ULP."""
    place, bias, (log2_high, log2_low), polynomial = _LOG[f.real]
    # An integer as a number, by way of the bits of 1.5*2^place plus it.
    exponent = (n + ((bias + place << place) + (1 << place - 1))).from_bits() - (1.5 * 2.0**place + bias)
    half = f * f * 0.5
    s = f / (f + 2.0)
    z = s * s
    series = z.like(polynomial[0])
    for coefficient in polynomial[1:]:
        series = fma(series, z, coefficient)
    low = fma(s, fma(series, z, half), exponent * log2_low)
    return fma(exponent, log2_high, f - (half - low))


def log1p(x: Value) -> Value:
    """Return log(1 + x) for -1 < x < 1e30 to about 1 ULP; NaN for NaN and infinity."""
    place, bias, *_ = _LOG[x.real]
    n, _ = _binade(x + 1.0)
    scale = ((n.like(2 * bias) - n) << place).from_bits()
    return _scaled_log(n, fma(x, scale, scale - 1.0))  # f is x itself where the exponent is 0


def log1p_of_fraction(x: Value) -> Value:
    """Return log(1 + x) for 0 <= x <= 1 to about 1 ULP; NaN for NaN.

    Where a register holds a table, by the nearest of its steps as in the C core: with c near 1/(1 + x) of the step,
    r = x - (1 - c)(1 + x) is small, and -log(c) is looked up.
    """
    if x.real != "f4" or table_size() != len(_LOG_INVERSES):
        return log1p(x)
    n = fma(x, _LOG_STEPS, x.like(1.5 * 2**23)).bits()
    c, log = (lookup(table, n).from_bits() for table in (_bits_of(_LOG_INVERSES), _bits_of(_LOG_OF_STEPS)))
    r = fma(x, c, c - 1.0)
    p = x.like(_LOG_OF_REST[0])
    for coefficient in _LOG_OF_REST[1:]:
        p = fma(p, r, coefficient)
    return log + fma(r * r, p, r)


@functools.cache
def _bits_of(numbers: tuple[float, ...]) -> tuple[int, ...]:
    """Return the bits of numbers as float32."""
    return struct.unpack(f"<{len(numbers)}i", struct.pack(f"<{len(numbers)}f", *numbers))


def log(x: Value) -> Value:
    """Return log(x) to about 1 ULP: -inf for 0, NaN below it and for NaN."""
    place, bias, *_ = _LOG[x.real]
    subnormal = x < 2.0 ** (1 - bias)
    n, f = _binade(select(subnormal, x * 2.0 ** (place + 1), x))
    result = _scaled_log(select(subnormal, n - (place + 1), n), f)
    special = select(x.equals(0.0), x.like(-math.inf), select(x > 0.0, x, math.nan))
    return select((x > 0.0) & (x < math.inf), result, special)


def power(x: Value, exponent: Value) -> Value:
    """Return x^exponent for a normal x up to 1 and an exponent above 0, in float64; 0 below the smallest normal number.

    The error of a logarithm as a whole, times the exponent, would be that of the result: of x = 2^n (1 + f) each of
    exponent*n and exponent*log2(1 + f) is an integer and a rest.
    """
    magic, place, *_ = _EXP["f8"]
    _, bias, *_ = _LOG["f8"]
    n, f = _binade(x)
    exponent = select(exponent < 2.0**40, exponent, 2.0**40)
    octaves, rest = _whole(exponent, (n - bias).number("f8"))
    more, other_rest = _whole(exponent, _scaled_log(n.like(bias), f) * (1 / math.log(2)))
    octaves = octaves + more
    octaves = select(octaves > -1023.0, octaves, -1023.0)
    scale = ((octaves + magic).bits() << place).from_bits()
    return exponential((rest + other_rest) * math.log(2)) * scale


def _whole(a: Value, b: Value) -> tuple[Value, Value]:
    """Return the integer nearest to a product, and what is left of it."""
    whole = (a * b).call("llvm.rint")
    return whole, fma(a, b, whole * -1.0)


def divided(x: Value, inverse: tuple[Value, Value]) -> Value:
    """Return x over a number whose inverse is the sum of two parts above 0, rounded about once; infinities stay."""
    high, low = inverse
    return fma(x, high, x * low)


class Cap(NamedTuple):
    """What a softcap is made of, for vectors."""

    per_temperature: tuple[Value, Value]
    """1/T, high and low part."""
    per_softcap: Value
    """1/(T*c)."""
    softcap: Value
    steepest: Value
    """4/T."""

    def apply(self, x: Value) -> tuple[Value, Value]:
        """Return c*tanh(x/(T*c)) and its derivative, to about 2 ULP each beside what the rounding of the quotient does.

        With u the quotient it is u + u^3*P(u^2) near 0, and else (1 - e)/(1 + e), where e = exp(-2*|u|); the
        derivative of tanh is 4*e/(1 + e)^2.
        """
        u = x * self.per_softcap
        size, square = u.call("llvm.fabs"), u * u
        p = u.like(_TANH[u.real][0])
        for coefficient in _TANH[u.real][1:]:
            p = fma(p, square, coefficient)
        linear = divided(x, self.per_temperature)  # the result itself where c is huge
        near = fma(linear * square, p, linear)
        e = exponential(size * -2.0)
        share = 1.0 / (e + 1.0)
        far = (self.softcap * ((1.0 - e) * share)).call("llvm.copysign", u)
        return select(size < 0.625, near, far), e * share * (share * self.steepest)


class Vectors(NamedTuple):
    """Where the vectors of a sweep lie."""

    memory: Memory
    address: Value
    step: Value
    """Bytes from one to the next."""
    beyond: Value | int = 0
    """Bytes from these classes to the next."""

    def at(self, index: Value) -> Value:
        return self.address + index * self.step

    def load(self, first: Value, count: int, live: Value | None, fill: float) -> list[Value]:
        """Return some, or their ``live`` first elements with the others filled in."""
        return [self.memory.load(self.at(first + i), self._live(live, i, count), fill) for i in range(count)]

    def store(self, first: Value, values: list[Value], live: Value | None, *, past_caches: bool = False) -> None:
        """Write some, or their ``live`` first elements."""
        for i, value in enumerate(values):
            past = past_caches and live is None
            self.memory.store(self.at(first + i), value, self._live(live, i, len(values)), past_caches=past)

    def _live(self, live: Value | None, index: int, count: int) -> Value | None:
        """Return how much of a vector is there, None for all: of four, the first two are whole (`each`)."""
        return None if live is None or index < count - 2 else live - index * self.memory.lanes

    def prefetch(self, first: Value, count: int, beyond: Value | int | None = None) -> None:
        """Ask for the same vectors of what follows these classes: the next block, or the next row."""
        for index in range(count):
            self.memory.prefetch(self.at(first + index) + (self.beyond if beyond is None else beyond))


def each(n: Value, lanes: int | None, state: State, body: Callable[..., State]) -> State:
    """Do ``body(first, how_many, live, *state)`` for four vectors at a time, and for what is left.

    A row has n elements; what is left of them is done as two or four vectors of which only the first ``live`` elements
    are there. Across positions (``lanes`` is None) n vectors follow each other.
    """
    if lanes is None:
        fours = n & ~3
        state = loop(0, fours, 4, state, lambda first, *state: body(first, 4, None, *state))
        return loop(fours, n, 1, state, lambda first, *state: body(first, 1, None, *state))
    rest = n % (4 * lanes)
    fours = (n - rest) // lanes
    few = rest < 2 * lanes + 1
    state = loop(0, fours, 4, state, lambda first, *state: body(first, 4, None, *state))
    state = when(~few, state, lambda *state: body(fours, 4, rest, *state))
    return when(few & (rest > 0), state, lambda *state: body(fours, 2, rest, *state))


def pairwise(combine: Callable[[Value, Value], Value], values: list[Value]) -> Value:
    """Combine one, two or four vectors."""
    while len(values) > 1:
        values = [combine(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def add(a: Value, b: Value) -> Value:
    return a + b


def smaller(a: Value, b: Value | int) -> Value:
    return select(a < b, a, b)


Sum = tuple[Value, ...]
"""Per lane: one float64 for float32 terms; for float64 terms a second one, of what the first could not hold."""


def no_sum(x: Memory, across: bool) -> Sum:
    """Return a sum of nothing; the vectors of a row are halved before they are added."""
    term = x.constant(0.0) if across else x.constant(0.0).halves()[0]
    return (term.to("f8"),) if x.real == "f4" else (term, term)


def accumulate(total: Sum, term: Value) -> Sum:
    """Add a term to each lane of a sum."""
    if len(total) == 1:
        return (total[0] + term,)
    high, dropped = two_sum(total[0], term)
    # Nothing is dropped beside an infinity, of which two_sum makes NaN.
    return high, total[1] + select(dropped.equals(dropped), dropped, 0.0)


def split(values: State, x: Memory) -> tuple[Sum, ...]:
    """Return the sums that follow each other in a state."""
    width = len(no_sum(x, across=True))
    return tuple(values[i : i + width] for i in range(0, len(values), width))


def nothing(x: Memory, q: Memory | None, across: bool) -> State:
    """Return a sweep of no classes: top, ties, the sum total, and with a target the sums mass and pull."""
    top = x.constant(-math.inf)
    return top, top.bits().like(0), *(no_sum(x, across) * (1 if q is None else 3))


def sweep(state: State, x: Vectors, q: Vectors | None, n: Value, lanes: int | None, later: Value) -> State:
    """Add classes to a state, which holds nothing unless ``later``; ``lanes`` is None across positions."""
    before, *_ = state
    row = lanes is not None

    def highest(first: Value, some: int, live: Value | None, higher: Value) -> State:
        return (maximum(pairwise(maximum, x.load(first, some, live, -math.inf)), higher),)

    (top,) = each(n, lanes, (before,), highest)
    if row:
        top = top.reduce(maximum).splat(x.memory.lanes)
    _, ties, *sums = when(later, state, lambda *state: relative_to(top, x.memory, *state))
    total, *target = split(tuple(sums), x.memory)
    shift = select(top > -math.inf, top, 0.0)

    def exponentials(first: Value, some: int, live: Value | None, ties: Value, *total: Value) -> State:
        terms = []
        for logits in x.load(first, some, live, -math.inf):
            lower = logits.differs(top)
            ties = select(lower, ties, ties + 1)
            e = exponential(logits - shift)
            terms.append(select(lower, e, 0.0))
        if row and live is None:
            x.prefetch(first, some)
        return ties, *accumulate(total, in_float64(terms, row))

    ties, *added = each(n, lanes, (ties, *total), exponentials)
    if q is None:
        return top, ties, *added

    def targets(first: Value, some: int, live: Value | None, *sums: Value) -> State:
        mass, pull = split(sums, x.memory)
        masses = q.load(first, some, live, 0.0)
        logits = x.load(first, some, live, -math.inf)
        pulls = [select(t > 0.0, t * (shift - logit), 0.0) for t, logit in zip(masses, logits, strict=True)]
        return *accumulate(mass, in_float64(masses, row)), *accumulate(pull, in_float64(pulls, row))

    return top, ties, *added, *each(n, lanes, (*target[0], *target[1]), targets)


def in_float64(terms: list[Value], row: bool) -> Value:
    """Add one, two or four vectors, and the halves of a row's; float32 is rounded at most three times."""
    term = pairwise(add, terms)
    return (add(*term.halves()) if row else term).to("f8")


def relative_to(top: Value, x: Memory, before: Value, ties: Value, *sums: Value) -> State:
    """Return a state rescaled to a maximum that is not lower; one tie a lane stays apart, so that none overflows."""
    total, *target = split(sums, x)
    moves = top > before
    factor = select(moves, exponential(before - top), 1.0).to("f8")
    # Where all was −inf so far, pull is infinite or 0, and stays.
    distance = select(moves, select(before > -math.inf, top - before, 0.0), 0.0).to("f8")
    kept = select(moves, ties.like(0), select(ties > 0, ties.like(1), 0))
    counted = (ties - kept).number("f8")
    if total[0].count != top.count:  # a row: its maximum is the same in each lane
        factor, distance, counted = factor.halves()[0], distance.halves()[0], add(*counted.halves())
    total = accumulate(tuple(part * factor for part in total), counted * factor)
    if target:
        mass, pull = target
        target = [mass, accumulate(pull, distance * mass[0])]
    return top, kept, *total, *(part for each_sum in target for part in each_sum)


def sum_of_lanes(total: Sum) -> Value:
    """Return the sum of a row as one float64."""
    if len(total) == 1:
        return total[0].reduce(add)
    while total[0].count != 1:
        (a, b), (c, d) = (part.halves() for part in total)
        total = accumulate((a, c + d), b)
    return (total[0] + total[1]).lane(0)


class Row(NamedTuple):
    """What the output of a row, or of one row in each lane, is made of; `finish` makes it."""

    sample: Value
    top: Value
    rest: Value
    log: Value
    target: Value
    lowered: Value
    factor: Value
    target_factor: Value
    at_top: Value
    at_top_z: Value

    def write(
        self,
        x: Vectors,
        q: Vectors | None,
        out: Vectors,
        n: Value,
        lanes: int | None,
        logarithm: Value | None,
        *,
        lowered: bool = False,
    ) -> None:
        """Write the gradient without the label, probabilities, or their logarithms."""

        def some(first: Value, count: int, part: Value | None) -> State:
            logits = x.load(first, count, part, -math.inf)
            if logarithm is not None:
                values = [logit - self.top - self.log for logit in logits]
            else:
                values = [exponential(logit - self.top) for logit in logits]
                if lowered:
                    values = [value * self.lowered for value in values]
                values = [value * self.factor for value in values]
            if q is not None:
                targets = q.load(first, count, part, 0.0)
                values = [self._gradient(*three) for three in zip(logits, targets, values, strict=True)]
            if lanes is None:  # an ignored row may be among them
                values = [select(self.sample > 0.0, value, 0.0) for value in values]
            out.store(first, values, part)
            return ()

        each(n, lanes, (), some)

    def scale(self, exponentials: Vectors, out: Vectors, n: Value) -> State:
        """Write the gradient of a row whose exponentials are known."""

        def some(first: Value, count: int, part: Value | None) -> State:
            out.store(first, [e * self.factor for e in exponentials.load(first, count, part, 0.0)], part)
            return ()

        return each(n, out.memory.lanes, (), some)

    def _gradient(self, logit: Value, t: Value, value: Value) -> Value:
        # Where all of q is on the maximum, its gradient keeps relative accuracy.
        at_top = fma(self.at_top, (self.target - t) - t * self.rest, self.at_top_z)
        return select(logit.equals(self.top), at_top, value - self.target_factor * t)
