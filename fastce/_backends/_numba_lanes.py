"""Vectors for Numba kernels: LLVM vectors as a Numba type, memory read as vectors, and arithmetic written in Python.

Numba has no vector type, and leaves it to LLVM to find vectors in loops, which it does not where a sum of floats
must keep its order. Here a function decorated with `traced` is ordinary Python over `Value` objects; Numba code
calls it, and calling it writes the LLVM instructions of its body in place. The kernels' loops are Numba code in
_numba_kernels.py; this file knows no cross entropy.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import NativeValue, intrinsic, models, register_model, unbox

LANES = {"f4": 32, "f8": 16}
"""Elements in a vector of float32 and of float64: two to four registers, so that independent chains interleave."""

LINE = 64
"""Bytes of a cache line."""

_INT64 = ir.IntType(64)
_REALS = {"f4": ir.FloatType(), "f8": ir.DoubleType()}


class Stream(types.Type):
    """The type of an address at which elements of one format lie, to be computed with in float32 or float64.

    The format is a kind and size ("f2", "bf2", "f4", "f8", "b1", "i1" ... "u8"), after ">" where the bytes are
    in the other order than this machine's; ``real`` is "f4" or "f8".
    """

    def __init__(self, code: str, real: str) -> None:
        self.swapped = code.startswith(">")
        self.kind = code.lstrip(">").rstrip("0123456789")
        self.itemsize = int(code[-1])
        self.real = real
        super().__init__(name=f"Stream({code}, {real})")


@register_model(Stream)
class StreamModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, stream: Stream) -> None:
        super().__init__(manager, stream, _INT64)


@unbox(Stream)
def _unbox_stream(stream: Stream, obj: Any, c: Any) -> NativeValue:
    return NativeValue(c.pyapi.long_as_longlong(obj), is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


State = tuple["Value", ...]
"""What a loop carries from one turn to the next; a body without results may also return None."""


class ArrayAddress(types.Type):
    """The type of an argument that is an array or None for Python, and for the compiled code where its elements lie."""

    def __init__(self) -> None:
        super().__init__(name="ArrayAddress")


class RecordAddress(types.Type):
    """The type of an argument that is an array for Python, and for the compiled code the record it begins with."""

    def __init__(self, record: types.Record) -> None:
        self.record = record
        super().__init__(name=f"RecordAddress({record.name})")


@register_model(RecordAddress)
@register_model(ArrayAddress)
class _ArrayAddressModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: ArrayAddress) -> None:
        super().__init__(manager, kind, _INT64)


@unbox(RecordAddress)
@unbox(ArrayAddress)
def _unbox_address(kind: ArrayAddress, obj: Any, c: Any) -> NativeValue:
    # PyArrayObject_fields in NumPy's C interface: an object's head, and then the pointer to the data.
    place = c.builder.ptrtoint(obj, _INT64)
    inside = c.builder.add(place, _INT64(object.__basicsize__))
    missing = c.builder.icmp_unsigned("==", obj, c.pyapi.borrow_none())
    readable = c.builder.inttoptr(c.builder.select(missing, place, inside), ir.PointerType())
    address = c.builder.load(readable, typ=_INT64)
    return NativeValue(c.builder.select(missing, _INT64(0), address))


def _constant(kind: ir.Type, number: float) -> ir.Constant:
    """Return a number, or a vector of equal ones."""
    return _spelled_constant(kind, float(number).hex() if _is_floating(kind) else int(number))


@functools.cache
def _spelled_constant(kind: ir.Type, number: str | int) -> ir.Constant:
    """Make each constant once: to write its text takes longer than most instructions."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [_spelled_constant(kind.element, number)] * kind.count)
    return ir.Constant(kind, float.fromhex(number) if isinstance(number, str) else number)


def _is_floating(kind: ir.Type) -> bool:
    return not isinstance(kind.element if isinstance(kind, ir.VectorType) else kind, ir.IntType)


class Value:
    """A number or vector while code is written: Python's operators append LLVM's instructions.

    Python numbers stand for constants of the other operand's type. Floating comparisons are false for NaN.
    """

    __slots__ = ("builder", "ir")

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.ir = value

    @property
    def count(self) -> int | None:
        return self.ir.type.count if isinstance(self.ir.type, ir.VectorType) else None

    @property
    def element(self) -> ir.Type:
        return self.ir.type.element if isinstance(self.ir.type, ir.VectorType) else self.ir.type

    @property
    def floating(self) -> bool:
        return _is_floating(self.ir.type)

    @property
    def real(self) -> str:
        return "f4" if self.element == _REALS["f4"] else "f8"

    def like(self, number: Value | float) -> Value:
        """Return a constant of this one's type."""
        if isinstance(number, Value):
            return number
        return Value(self.builder, _constant(self.ir.type, number))

    def _binary(self, floating: str, integer: str, other: Value | float) -> Value:
        emit = getattr(self.builder, floating if self.floating else integer)
        return Value(self.builder, emit(self.ir, self.like(other).ir))

    def _compare(self, operator: str, other: Value | float) -> Value:
        emit = self.builder.fcmp_ordered if self.floating else self.builder.icmp_signed
        return Value(self.builder, emit(operator, self.ir, self.like(other).ir))

    def __add__(self, other: Value | float) -> Value:
        return self._binary("fadd", "add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self._binary("fsub", "sub", other)

    def __rsub__(self, other: float) -> Value:
        return self.like(other) - self

    def __mul__(self, other: Value | float) -> Value:
        return self._binary("fmul", "mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._binary("fdiv", "sdiv", other)

    def __rtruediv__(self, other: float) -> Value:
        return self.like(other) / self

    def __and__(self, other: Value | int) -> Value:
        return self._binary("and_", "and_", other)

    def __or__(self, other: Value | int) -> Value:
        return self._binary("or_", "or_", other)

    def __floordiv__(self, other: Value | int) -> Value:
        """Divide integers that are not negative."""
        return self._binary("udiv", "udiv", other)

    def __mod__(self, other: Value | int) -> Value:
        return self._binary("urem", "urem", other)

    def __invert__(self) -> Value:
        return Value(self.builder, self.builder.not_(self.ir))

    def __lshift__(self, other: Value | int) -> Value:
        return self._binary("shl", "shl", other)

    def __rshift__(self, other: int) -> Value:
        """Shift in zeros."""
        return self._binary("lshr", "lshr", other)

    def __lt__(self, other: Value | float) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._compare(">", other)

    def __ge__(self, other: Value | float) -> Value:
        return self._compare(">=", other)

    def differs(self, other: Value | float) -> Value:
        """Compare; true for NaN."""
        emit = self.builder.fcmp_unordered if self.floating else self.builder.icmp_signed
        return Value(self.builder, emit("!=", self.ir, self.like(other).ir))

    def equals(self, other: Value | float) -> Value:
        return self._compare("==", other)

    def _cast(self, name: str, element: ir.Type) -> Value:
        to = element if self.count is None else ir.VectorType(element, self.count)
        return self if to == self.ir.type else Value(self.builder, getattr(self.builder, name)(self.ir, to))

    def bits(self) -> Value:
        """Return the bits of floats as integers."""
        return self._cast("bitcast", _INT64 if self.element == _REALS["f8"] else ir.IntType(32))

    def from_bits(self) -> Value:
        """Return the floats whose bits these integers are."""
        return self._cast("bitcast", _REALS["f8"] if self.element == _INT64 else _REALS["f4"])

    def to(self, real: str) -> Value:
        """Return floats as float32 ("f4") or float64 ("f8")."""
        return self._cast("fptrunc" if real == "f4" else "fpext", _REALS[real])

    def ones(self, width: int) -> Value:
        """Return integers of that many bits, −1 where a comparison held."""
        return self._cast("sext", ir.IntType(width))

    def number(self, real: str, signed: bool = True) -> Value:
        """Return the floats equal to these integers."""
        return self._cast("sitofp" if signed else "uitofp", _REALS[real])

    def extend(self, width: int) -> Value:
        """Return unsigned integers with more bits."""
        return self._cast("zext", ir.IntType(width))

    def narrow(self, width: int) -> Value:
        """Return integers with at most that many bits."""
        return self._cast("trunc", ir.IntType(width))

    def shift_signed(self, other: Value | int) -> Value:
        """Shift right, filling with the sign."""
        return self._binary("ashr", "ashr", other)

    def indices(self, count: int) -> Value:
        """Return the vector 0, 1, 2, … of integers like this one."""
        return Value(self.builder, ir.Constant(ir.VectorType(self.ir.type, count), list(range(count))))

    def within(self, stop: Value | int) -> Value:
        """Compare with 0 and a stop: 0 <= self < stop."""
        return Value(self.builder, self.builder.icmp_unsigned("<", self.ir, self.like(stop).ir))

    def read(self, bits: int, count: int | None = None, mask: Value | None = None) -> Value:
        """Return the integers at this address, 0 and not read where the mask does not hold."""
        element = ir.IntType(bits)
        kind = element if count is None else ir.VectorType(element, count)
        if mask is not None:
            arguments = [self.pointer(), ir.Constant(ir.IntType(32), 1), mask.ir, ir.Constant(kind, None)]
            return Value(self.builder, self._call(kind, f"llvm.masked.load.v{count}i{bits}.p0", arguments))
        loaded = self.builder.load(self.pointer(), typ=kind)
        loaded.align = 1
        return Value(self.builder, loaded)

    def read_like(self, value: Value) -> Value:
        """Return a value of the other's type from this address."""
        loaded = self.builder.load(self.pointer(), typ=value.ir.type)
        loaded.align = 1
        return Value(self.builder, loaded)

    def integer(self, number: int, bits: int) -> Value:
        """Return a constant."""
        return Value(self.builder, ir.Constant(ir.IntType(bits), number))

    def invoke(self, *arguments: Value) -> None:
        """Call the C function at this address."""
        function = ir.FunctionType(ir.VoidType(), [argument.ir.type for argument in arguments])
        self.builder.call(self.builder.inttoptr(self.ir, function.as_pointer()), [a.ir for a in arguments])

    def write(self, value: Value, mask: Value | None = None, *, past_caches: bool = False) -> None:
        """Store a value at this address, or the integers for which the mask holds.

        Where it goes past the caches the address begins a line, and `fence` follows before others read.
        """
        if mask is None:
            stored = self.builder.store(value.ir, self.pointer())
            stored.align = LINE if past_caches else 1
            if past_caches:
                stored.set_metadata("nontemporal", self.builder.module.add_metadata([ir.IntType(32)(1)]))
            return
        name = f"llvm.masked.store.v{value.count}i{value.element.width}.p0"
        self._call(ir.VoidType(), name, [value.ir, self.pointer(), ir.Constant(ir.IntType(32), 1), mask.ir])

    def copy_from(self, source: Value, size: Value) -> None:
        """Copy some bytes to this address."""
        never_volatile = ir.Constant(ir.IntType(1), 0)
        self._call(ir.VoidType(), "llvm.memcpy.p0.p0.i64", [self.pointer(), source.pointer(), size.ir, never_volatile])

    def clear(self, size: Value) -> None:
        """Write some bytes of zeros to this address."""
        zero, never_volatile = ir.Constant(ir.IntType(8), 0), ir.Constant(ir.IntType(1), 0)
        self._call(ir.VoidType(), "llvm.memset.p0.i64", [self.pointer(), zero, size.ir, never_volatile])

    def fence(self) -> None:
        """Have all that was stored so far in memory before what follows."""
        self.builder.fence("seq_cst")

    def prefetch(self, *, to_write: bool = False) -> State:
        """Ask for the cache line at this address."""
        use, keep, data = (ir.Constant(ir.IntType(32), value) for value in (int(to_write), 3, 1))
        self._call(ir.VoidType(), "llvm.prefetch.p0", [self.pointer(), use, keep, data])
        return ()

    def _call(self, result: ir.Type, name: str, arguments: list[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def pointer(self) -> ir.Value:
        return self.builder.inttoptr(self.ir, ir.PointerType())

    def lane(self, index: int) -> Value:
        return Value(self.builder, self.builder.extract_element(self.ir, ir.Constant(ir.IntType(32), index)))

    def splat(self, count: int) -> Value:
        """Return a vector of equal elements."""
        empty = ir.Constant(ir.VectorType(self.ir.type, count), ir.Undefined)
        one = self.builder.insert_element(empty, self.ir, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
        return Value(self.builder, self.builder.shuffle_vector(one, empty, zeros))

    def halves(self) -> tuple[Value, Value]:
        half = (self.count or 0) // 2
        return self.part(0, half), self.part(half, half)

    def reduce(self, combine: Callable[[Value, Value], Value]) -> Value:
        """Combine all elements, half with half."""
        value = self
        while value.count != 1:
            value = combine(*value.halves())
        return value.lane(0)

    def join(self, other: Value) -> Value:
        """Return one vector of the elements of two."""
        return self._shuffle(other, range(2 * (self.count or 0)))

    def interleave(self, other: Value) -> tuple[Value, Value]:
        """Return the elements of two vectors in turn, as two vectors."""
        count = self.count or 0
        both = [place for pair in zip(range(count), range(count, 2 * count), strict=True) for place in pair]
        return self._shuffle(other, both[:count]), self._shuffle(other, both[count:])

    def deinterleave(self, other: Value) -> tuple[Value, Value]:
        """Return every second element of two vectors, and the others."""
        count = self.count or 0
        return self._shuffle(other, range(0, 2 * count, 2)), self._shuffle(other, range(1, 2 * count, 2))

    def part(self, start: int, count: int) -> Value:
        """Return some neighbouring elements."""
        return self._shuffle(self, range(start, start + count))

    def _shuffle(self, other: Value, places: Sequence[int]) -> Value:
        indices = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
        return Value(self.builder, self.builder.shuffle_vector(self.ir, other.ir, indices))

    def call(self, name: str, *others: Value) -> Value:
        """Return the result of LLVM's intrinsic of that name for values of this type."""
        letter = {"float": "f32", "double": "f64"}.get(str(self.element)) or str(self.element)
        suffix = letter if self.count is None else f"v{self.count}{letter}"
        arguments = [self.ir, *(other.ir for other in others)]
        return Value(self.builder, self._call(self.ir.type, f"{name}.{suffix}", arguments))


@functools.cache
def has_feature(name: str) -> bool:
    """Tell whether kernels are compiled for a feature of the processor, in LLVM's words."""
    from numba.core.registry import cpu_target

    return f"+{name}" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def table_size() -> int:
    """Return how many integers of 32 bits `lookup` finds in one register, or 1."""
    return 16 if has_feature("avx512f") else 8 if has_feature("avx2") else 1


def lookup(table: Sequence[int], index: Value) -> Value:
    """Return the entries, ``table_size()`` of them in all, that the lowest bits of integers of 32 bits say."""
    size = len(table)
    name = {16: "llvm.x86.avx512.permvar.si.512", 8: "llvm.x86.avx2.permd"}[size]
    entries = ir.Constant(ir.VectorType(ir.IntType(32), size), list(table))

    def found(part: Value) -> Value:
        if part.count != size:
            low, high = part.halves()
            return found(low).join(found(high))
        return Value(part.builder, part._call(part.ir.type, name, [entries, part.ir]))

    # permvar takes the table first, permd too; both look at the lowest bits only.
    return found(index)


def fma(a: Value, b: Value | float, c: Value | float) -> Value:
    """Return a·b + c, rounded once."""
    return a.call("llvm.fma", a.like(b), a.like(c))


def select(condition: Value, a: Value, b: Value | float) -> Value:
    """Return a where the condition holds, else b."""
    return Value(a.builder, a.builder.select(condition.ir, a.ir, a.like(b).ir))


def maximum(a: Value, b: Value) -> Value:
    """Return the larger; b where a is NaN."""
    return select(a > b, a, b)


def two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """Return a + b rounded, and what the rounding dropped (Knuth)."""
    total = a + b
    rest = total - a
    return total, (a - (total - rest)) + (b - rest)


class Memory:
    """A Stream while code is written: where to read and write vectors."""

    def __init__(self, builder: ir.IRBuilder, stream: Stream, address: ir.Value, f16c: bool) -> None:
        self.builder = builder
        self.stream = stream
        self.address = Value(builder, address)
        self.real = stream.real
        self.real_size = int(stream.real[1])
        self.itemsize = stream.itemsize
        self.lanes = LANES[stream.real]
        self.code = f"{'swapped_' * stream.swapped}{stream.kind}{stream.itemsize}_{stream.real}"
        self.step = self.address.integer(self.lanes * stream.itemsize, 64)
        self._f16c = f16c

    def computed(self) -> Memory:
        """Return the same for elements as they are computed with."""
        return Memory(self.builder, Stream(self.real, self.real), self.address.ir, f16c=False)

    def beside(self, value: Value) -> Memory:
        """Return the same for code that is written where the value is, in another function."""
        return Memory(value.builder, self.stream, self.address.ir, self._f16c)

    def constant(self, number: float) -> Value:
        """Return a vector of equal elements."""
        return Value(self.builder, _constant(ir.VectorType(_REALS[self.stream.real], self.lanes), number))

    def load(self, address: Value, live: Value | None = None, fill: float = 0.0, lanes: int | None = None) -> Value:
        """Return the vector at an address; of its elements only the first ``live`` are read, the rest is ``fill``."""
        lanes = lanes or self.lanes
        mask = None if live is None else self.mask(live, lanes)
        value = self._decode(address.read(8 * self.itemsize, lanes, mask))
        return value if mask is None or fill == 0 else select(mask, value, fill)

    def load_one(self, address: Value) -> Value:
        """Return the element at an address."""
        return self._decode(address.read(8 * self.stream.itemsize))

    def prefetch(self, address: Value) -> None:
        """Ask for the cache lines of a vector."""
        for line in range(0, self.lanes * self.itemsize, LINE):
            (address + line).prefetch()

    def indices(self) -> Value:
        """Return the vector 0, 1, 2, … of integers as wide as a comparison likes them."""
        return self.address.integer(0, 8 * self.real_size).indices(self.lanes)

    def store(self, address: Value, value: Value, live: Value | None = None, *, past_caches: bool = False) -> None:
        """Write a vector, or the first ``live`` of its elements."""
        mask = None if live is None else self.mask(live, value.count or 0)
        address.write(self._encode(value), mask, past_caches=past_caches)

    def store_one(self, address: Value, value: Value) -> None:
        """Write one element."""
        address.write(self._encode(value))

    def mask(self, live: Value, lanes: int) -> Value:
        """Return which of a vector's elements are among the first ``live``."""
        indices = self.address.integer(0, 8 * self.real_size).indices(lanes)
        return indices < live.narrow(8 * self.real_size).splat(lanes)

    def _swap(self, raw: Value) -> Value:
        return raw.call("llvm.bswap") if self.stream.swapped else raw

    def _decode(self, raw: Value) -> Value:
        raw, real, kind = self._swap(raw), self.stream.real, self.stream.kind
        if kind == "b":
            return (raw > 0)._cast("uitofp", _REALS[real])
        if kind in "iu":
            return raw.number(real, signed=kind == "i")
        if kind == "f" and self.stream.itemsize > 2:
            return raw.from_bits().to(real)
        if kind == "bf":
            return (raw._cast("zext", ir.IntType(32)) << 16).from_bits().to(real)
        if self._f16c:
            return raw._cast("bitcast", ir.HalfType())._cast("fpext", _REALS["f4"]).to(real)
        return _from_half(raw).to(real)

    def _encode(self, value: Value) -> Value:
        kind, size = self.stream.kind, self.stream.itemsize
        if kind == "f" and size > 2:
            return self._swap(value.to(f"f{size}").bits())
        value = value.to("f4")
        if kind == "bf":
            return self._swap(_to_bfloat(value))
        if self._f16c:
            return self._swap(value._cast("fptrunc", ir.HalfType())._cast("bitcast", ir.IntType(16)))
        return self._swap(_to_half(value))


class Items:
    """An array inside a structure while code is written."""

    __slots__ = ("address", "bits", "integers")

    def __init__(self, address: Value, element: Any) -> None:
        self.address = address
        self.bits: int = element.bitwidth
        self.integers = isinstance(element, types.Integer)

    def at(self, index: Value | int) -> Value:
        """Return the address of an element."""
        return self.address + self.address.like(index) * (self.bits // 8)

    def __getitem__(self, index: Value | int) -> Value:
        raw = self.at(index).read(self.bits)
        return raw if self.integers else raw.from_bits()

    def __setitem__(self, index: Value | int, value: Value) -> None:
        self.at(index).write(value)


class Struct:
    """A NumPy record while code is written: numbers are read and written by name, an array is an Items."""

    __slots__ = ("address", "record")

    def __init__(self, address: Value, record: types.Record) -> None:
        object.__setattr__(self, "address", address)
        object.__setattr__(self, "record", record)

    def __getattr__(self, name: str) -> Any:
        field = self.record.typeof(name)
        place = self.address + self.record.offset(name)
        return Items(place, field.dtype) if isinstance(field, types.NestedArray) else Items(place, field)[0]

    def __setattr__(self, name: str, value: Value) -> None:
        Items(self.address + self.record.offset(name), self.record.typeof(name))[0] = value


def loop(
    start: Value | int,
    stop: Value,
    step: int,
    state: State,
    body: Callable[..., State | None],
    *,
    short: bool = False,
) -> State:
    """Write ``for i in range(start, stop, step): state = body(i, *state)``; return the last state.

    A ``short`` body is one of so few instructions that LLVM should unroll it.
    """
    builder = stop.builder
    before, head = builder.block, builder.append_basic_block("head")
    inside, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    phis = [builder.phi(value.ir.type) for value in (stop, *state)]
    for phi, value in zip(phis, (stop.like(start), *state), strict=True):
        phi.add_incoming(value.ir, before)
    index, *current = (Value(builder, phi) for phi in phis)
    builder.cbranch((index < stop).ir, inside, after)
    builder.position_at_end(inside)
    following = (index + step, *(body(index, *current) or ()))
    for phi, value in zip(phis, following, strict=True):
        phi.add_incoming(value.ir, builder.block)
    backwards = builder.branch(head)
    if not short:
        _leave_as_written(builder.module, backwards)
    builder.position_at_end(after)
    return tuple(current)


def _leave_as_written(module: ir.Module, backwards: ir.Instruction) -> None:
    """Have LLVM neither unroll nor vectorise a loop: it takes long, and bodies are as wide here as they should be."""
    identity = ir.MDValue(module, [], name=str(len(module.metadata)))
    options = [["llvm.loop.unroll.disable"], ["llvm.loop.vectorize.enable", ir.IntType(1)(0)]]
    identity.operands = (identity, *(module.add_metadata(option) for option in options))
    backwards.set_metadata("llvm.loop", identity)


def when(condition: Value, state: State, body: Callable[..., State | None]) -> State:
    """Write ``if condition: state = body(*state)``; return the state."""
    builder = condition.builder
    before, inside, after = builder.block, builder.append_basic_block("when"), builder.append_basic_block("after")
    builder.cbranch(condition.ir, inside, after)
    builder.position_at_end(inside)
    changed, end = body(*state) or (), builder.block
    builder.branch(after)
    builder.position_at_end(after)
    merged = []
    for old, new in zip(state, changed, strict=True):
        phi = builder.phi(old.ir.type)
        phi.add_incoming(old.ir, before)
        phi.add_incoming(new.ir, end)
        merged.append(Value(builder, phi))
    return tuple(merged)


def outlined(name: str, arguments: tuple[Value, ...], body: Callable[..., object]) -> None:
    """Call a function of its own, written the first time its name is seen in a module, instead of writing in place."""
    builder = arguments[0].builder
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [argument.ir.type for argument in arguments])
        function = ir.Function(builder.module, kind, name=name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inside = ir.IRBuilder(function.append_basic_block())
        body(*(Value(inside, argument) for argument in function.args))
        inside.ret_void()
    builder.call(function, [argument.ir for argument in arguments])


def _from_half(raw: Value) -> Value:
    """Return float16 as float32: the exponent moves by a product, which makes subnormals right; infinities follow."""
    wide = raw._cast("zext", ir.IntType(32))
    magnitude = wide & 0x7FFF
    scaled = ((magnitude << 13).from_bits() * 2.0**112).bits()
    scaled = select(magnitude > 0x7BFF, scaled | 0x7F800000, scaled)
    return (scaled | ((wide & 0x8000) << 16)).from_bits()


def _to_half(value: Value) -> Value:
    """Return float32 as float16, to nearest even (F. Giesen, "float->half variants", the one without branches)."""
    whole = value.bits()
    magnitude = whole & 0x7FFFFFFF
    normal = (magnitude + ((magnitude >> 13) & 1) + (0xFFF - (112 << 23))) >> 13
    small = (magnitude.from_bits() + 0.5).bits() - 0x3F000000
    half = select(magnitude < 0x38800000, small, normal)
    half = select(magnitude > 0x477FFFFF, select(magnitude > 0x7F800000, half.like(0x7E00), 0x7C00), half)
    return (half | ((whole >> 16) & 0x8000))._cast("trunc", ir.IntType(16))


def _to_bfloat(value: Value) -> Value:
    """Return float32 as bfloat16, to nearest even; a NaN stays one."""
    whole = value.bits()
    rounded = (whole + ((whole >> 16) & 1) + 0x7FFF) >> 16
    return select(value.equals(value), rounded, 0x7FC0)._cast("trunc", ir.IntType(16))


def traced(function: Callable[..., Any]) -> Any:
    """Make a Python function over Values callable from Numba code, where it writes its instructions in place.

    It gets a Value for each number, a Memory for each Stream, a Struct for each record, an int for each literal and
    None for None, and returns a number or None. Another such function writes it in place by ``name.here(...)``.
    """
    own = inspect.signature(function)

    @functools.cache
    def result_type(arguments: tuple[types.Type, ...], context: Any) -> Any:
        if own.return_annotation in (None, "None"):
            return types.none
        # Written once into a module that is thrown away, to learn the type of the result.
        inputs = [context.get_value_type(argument) for argument in arguments]
        draft = ir.Function(ir.Module(), ir.FunctionType(ir.VoidType(), inputs), name="draft")
        builder = ir.IRBuilder(draft.append_basic_block())
        return _numba_type(function(*_wrap(context, builder, arguments, draft.args)))

    def define(typing_context: Any, *arguments: types.Type) -> Any:
        from numba.core.registry import cpu_target

        def write(context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]) -> ir.Value:
            found = function(*_wrap(context, builder, signature.args, values))
            return context.get_dummy_value() if found is None else found.ir

        return result_type(arguments, cpu_target.target_context)(*arguments), write

    # Numba binds arguments by the signature, and cannot where it says *arguments.
    first = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = own.replace(parameters=[first, *own.parameters.values()])  # type: ignore[attr-defined]
    define.__name__ = function.__name__
    define.__doc__ = function.__doc__
    callable_from_numba = intrinsic(prefer_literal=True)(define)
    callable_from_numba.here = function
    return callable_from_numba


def _wrap(context: Any, builder: ir.IRBuilder, arguments: tuple[types.Type, ...], values: Any) -> list[Any]:
    f16c = has_feature("f16c")
    wrapped: list[Any] = []
    for argument, value in zip(arguments, values, strict=True):
        if isinstance(argument, Stream):
            wrapped.append(Memory(builder, argument, value, f16c))
        elif isinstance(argument, types.IntegerLiteral):
            wrapped.append(argument.literal_value)
        elif isinstance(argument, RecordAddress):
            wrapped.append(Struct(Value(builder, value), argument.record))
        elif isinstance(argument, types.Record):
            wrapped.append(Struct(Value(builder, builder.ptrtoint(value, _INT64)), argument))
        else:
            wrapped.append(None if argument == types.none else Value(builder, value))
    return wrapped


def _numba_type(value: Value) -> types.Type:
    if value.floating:
        return types.float32 if value.element == _REALS["f4"] else types.float64
    return types.boolean if value.element.width == 1 else getattr(types, f"int{value.element.width}")
