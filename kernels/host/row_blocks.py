"""A program of rows as LLVM's code: loops of vectors over each row, as many as sums wait for each other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llvmlite import ir
from numba.core import cgutils

from kernels.host.elements import (
    F32,
    INT,
    KINDS,
    LANES,
    SIZES,
    VECTOR,
    WIDE,
    call,
    constant,
    fma,
    load,
    load_wide,
    narrowed,
    spread,
    store_masked,
    widened,
)
from kernels.host.row_program import ARGUMENTS, REDUCTIONS, RowProgram
from kernels.host.softmax import EXPONENT_OF_ONE, EXPONENTIAL, LN_2_HIGH, LN_2_LOW, LOG2_E, TO_INTEGER

__all__ = ["build_block"]

_VECTORS = 4
"""So many side by side, each with sums of its own, for a sum to wait less for the one before it."""

_NEAR_ELEMENTS, _MOST_ROWS = 1 << 12, 32
"""Of rows that take turns, for one not to wait until the sum of another is done: in the first-level cache."""

_FIRST = ir.Constant(INT[32], 0)
_BYTES = INT[8].as_pointer()


def _number(value: float) -> ir.Constant:
    return ir.Constant(VECTOR, [float(value)] * LANES)


def _word(value: int) -> ir.Constant:
    return ir.Constant(WIDE, [int(value)] * LANES)


def _intrinsic(name: str) -> Callable[..., ir.Value]:
    return lambda b, *operands: call(b, f"llvm.{name}.v{LANES}f32", VECTOR, operands)


def _exponential(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Of relative error 2**-23; nought where it is below 2**-125."""
    low, high = _number(-86.9), _number(88.8)
    is_nought = b.fcmp_ordered("<", x, low)
    clamped = b.select(is_nought, low, b.select(b.fcmp_ordered(">", x, high), high, x))
    shifted = fma(b, clamped, _number(LOG2_E), _number(TO_INTEGER))
    power = b.fsub(_number(TO_INTEGER), shifted)
    r = fma(b, power, _number(LN_2_LOW), fma(b, power, _number(LN_2_HIGH), clamped))
    total, *terms = map(_number, EXPONENTIAL)
    for term in terms:
        total = fma(b, total, r, term)
    total = b.fadd(fma(b, total, b.fmul(r, r), r), _number(1))
    # Half the power of two, and twice the rest: 2**128 is no f32, though the exponential may be one.
    bits = b.shl(b.sub(b.bitcast(shifted, WIDE), _word(EXPONENT_OF_ONE + 1)), _word(23))
    return b.select(is_nought, _number(0), b.fmul(b.fadd(total, total), b.bitcast(bits, VECTOR)))


def _log(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Of the one number that all lanes hold."""
    return spread(b, call(b, "llvm.log.f32", F32, [b.extract_element(x, _FIRST)]), VECTOR)


_square_root = _intrinsic("sqrt")

_EACH: Mapping[str, Callable[..., ir.Value]] = {
    "abs": _intrinsic("fabs"),
    "add": ir.IRBuilder.fadd,
    "convert": lambda b, x: x,
    "divide": ir.IRBuilder.fdiv,
    "exponential": _exponential,
    "log": _log,
    "maximum": _intrinsic("maximum"),
    "minimum": _intrinsic("minimum"),
    "multiply": ir.IRBuilder.fmul,
    "negate": ir.IRBuilder.fneg,
    "rsqrt": lambda b, x: b.fdiv(_number(1), _square_root(b, x)),
    "sqrt": _square_root,
    "subtract": ir.IRBuilder.fsub,
}


def _highest(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """As ``maximum``, but it does not matter which of two noughts; that is half the work."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 2)
    function = cgutils.get_or_insert_function(b.module, kind, f"llvm.maximum.v{LANES}f32")
    return b.call(function, [x, y], fastmath=("nsz",))


_REDUCED: Mapping[str, tuple[Callable[..., ir.Value], float]] = {
    "sum": (ir.IRBuilder.fadd, 0.0),
    "highest": (_highest, float("-inf")),
}
"""What makes one of two, and what changes nothing then."""


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A vector of a row's elements from number ``at`` on: the values of steps, and how those are stored."""

    at: ir.Value
    mask: ir.Constant | None
    values: dict[int, ir.Value] = field(default_factory=dict)
    stored: dict[int, ir.Value] = field(default_factory=dict)


def build_block(program: RowProgram, module: ir.Module) -> ir.Function:
    """``block(arrays, first, last)``: the program on rows from ``first`` up to ``last``.

    ``arrays`` is where the addresses of the arguments and the results lie. In each loop over a row are the
    reductions that can be made by then, and what can be given out. The next loop computes again what it needs
    of the one before, but for exponentials, which are kept.
    """
    block = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT[64]] * 3), "block")
    _Block(program, block).build()
    return block


class _Block:
    def __init__(self, program: RowProgram, function: ir.Function) -> None:
        self._program, self._rows = program, function.args[1:]
        self._at_a_time = max(1, min(_MOST_ROWS, _NEAR_ELEMENTS // program.n))
        self._b = b = ir.IRBuilder(function.append_basic_block())
        self._arrays = {
            place: load(b, b.add(function.args[0], constant(8 * place)), INT[64], 8)
            for place in range(len(program.arguments) + len(program.results))
        }
        self._loops = [self._needed(level) for level in range(max(program.levels) + 1)]
        self._of_all = {number: self._number_of_all(number) for number in self._with_extent("one")}
        self._of_rows = {
            number: cgutils.alloca_once(b, VECTOR, self._at_a_time) for number in self._with_extent("row")
        }
        self._room: dict[int, ir.Value] = {}
        self._made: set[int] = set()
        # The row that is worked on, of all and of those that take turns.
        self._row, self._place = constant(0), constant(0)

    def build(self) -> None:
        b, program = self._b, self._program
        kept = [
            number
            for number, step in enumerate(program.steps)
            if step.op not in ARGUMENTS
            and (step.op == "exponential" or step.dtype != "f32")
            and sum(number in loop for loop in self._loops) > 1
        ]
        size = 4 * program.n * self._at_a_time
        room = call(b, "malloc", _BYTES, [constant(size * len(kept))])
        for place, number in enumerate(kept):
            self._room[number] = b.add(b.ptrtoint(room, INT[64]), constant(size * place))
        first, last = self._rows
        step = constant(self._at_a_time)
        groups = b.sdiv(b.add(b.sub(last, first), constant(self._at_a_time - 1)), step)
        with cgutils.for_range(b, groups) as group:
            start = b.add(first, b.mul(group.index, step))
            left = b.sub(last, start)
            count = b.select(b.icmp_signed("<", left, step), left, step)
            for level, needed in enumerate(self._loops):
                with cgutils.for_range(b, count) as loop:
                    self._row, self._place = b.add(start, loop.index), loop.index
                    self._compute_of_row(level)
                    self._over_row(level)
                self._made |= needed
        call(b, "free", ir.VoidType(), [room])
        b.ret_void()

    def _with_extent(self, extent: str) -> list[int]:
        return [number for number, found in enumerate(self._program.extents) if found == extent]

    def _sums(self, level: int) -> list[int]:
        """The reductions of values that are known behind so many."""
        steps = enumerate(self._program.steps)
        return [
            number
            for number, step in steps
            if step.op in REDUCTIONS and self._program.levels[number] == level + 1
        ]

    def _given(self, level: int) -> list[tuple[int, int]]:
        """The places of results behind so many reductions, and their steps."""
        results = enumerate(self._program.results)
        return [(place, number) for place, number in results if self._program.levels[number] == level]

    def _needed(self, level: int) -> set[int]:
        """The steps on each element that the loop behind so many reductions takes part in."""
        steps, extents = self._program.steps, self._program.extents
        found: set[int] = set()
        left = [operand for number in self._sums(level) for operand in steps[number].operands]
        left += [number for _, number in self._given(level)]
        while left:
            number = left.pop()
            if number not in found and extents[number] in ("full", "column"):
                found.add(number)
                left += steps[number].operands
        return found

    def _number_of_all(self, number: int) -> ir.Value:
        """A number that is the same for all rows, in every lane."""
        b, step = self._b, self._program.steps[number]
        if step.op == "constant":
            return _number(step.number)
        if step.op == "one":
            address = self._arrays[self._program.arguments.index(number)]
            return spread(
                b, b.extract_element(load_wide(b, KINDS[step.dtype], address, _lanes(1)), _FIRST), VECTOR
            )
        return self._rounded(_EACH[step.op](b, *map(self._number_of_all, step.operands)), number, {})

    def _of_row(self, number: int) -> ir.Value:
        """A number of the row, or of all, in every lane."""
        if number in self._of_all:
            return self._of_all[number]
        return self._b.load(self._of_row_at(number))

    def _of_row_at(self, number: int) -> ir.Value:
        return self._b.gep(self._of_rows[number], [self._place])

    def _compute_of_row(self, level: int) -> None:
        """The numbers of the row that follow from the reductions of the loop before."""
        for number in self._of_rows:
            step = self._program.steps[number]
            if step.op not in REDUCTIONS and self._program.levels[number] == level:
                value = _EACH[step.op](self._b, *map(self._of_row, step.operands))
                self._b.store(self._rounded(value, number, {}), self._of_row_at(number))

    def _over_row(self, level: int) -> None:
        """All vectors of a row, some at a time; what is left over, one after the other."""
        b, n, step = self._b, self._program.n, _VECTORS * LANES
        wanted = self._sums(level)
        if not wanted and not self._given(level):
            return
        totals = [[cgutils.alloca_once(b, VECTOR) for _ in wanted] for _ in range(_VECTORS)]
        for vector in totals:
            for number, total in zip(wanted, vector, strict=True):
                b.store(_number(_REDUCED[self._program.steps[number].op][1]), total)
        if n >= step:
            with cgutils.for_range(b, constant(n // step)) as loop:
                first = b.mul(loop.index, constant(step))
                for place, vector in enumerate(totals):
                    self._compute(_Chunk(at=b.add(first, constant(place * LANES)), mask=None), level, vector)
        for place, at in enumerate(range(n // step * step, n, LANES)):
            mask = _lanes(n - at) if n - at < LANES else None
            self._compute(_Chunk(at=constant(at), mask=mask), level, totals[place])
        for place, number in enumerate(wanted):
            total = self._reduced(number, [b.load(vector[place]) for vector in totals])
            b.store(total, self._of_row_at(number))

    def _compute(self, chunk: _Chunk, level: int, totals: list[ir.Value]) -> None:
        b, program = self._b, self._program
        for number, total in zip(self._sums(level), totals, strict=True):
            step = program.steps[number]
            combine, nothing = _REDUCED[step.op]
            value = self._value(step.operands[0], chunk)
            if chunk.mask is not None:
                value = b.select(chunk.mask, value, _number(nothing))
            b.store(combine(b, b.load(total), value), total)
        for place, number in self._given(level):
            dtype = program.steps[number].dtype
            value = self._value(number, chunk)
            if number not in chunk.stored:
                chunk.stored[number] = narrowed(b, KINDS[dtype], value)
            address = self._address(len(program.arguments) + place, dtype, chunk, "full")
            store_masked(b, chunk.stored[number], address, chunk.mask)

    def _value(self, number: int, chunk: _Chunk) -> ir.Value:
        """What a step makes of a vector's elements, computed once for each."""
        if number not in chunk.values:
            is_long = self._program.extents[number] in ("full", "column")
            chunk.values[number] = self._computed(number, chunk) if is_long else self._of_row(number)
        return chunk.values[number]

    def _computed(self, number: int, chunk: _Chunk) -> ir.Value:
        b, step = self._b, self._program.steps[number]
        if step.op in ARGUMENTS:
            place = self._program.arguments.index(number)
            return load_wide(
                b, KINDS[step.dtype], self._address(place, step.dtype, chunk, step.op), chunk.mask
            )
        if number not in self._room:
            return self._rounded(self._applied(step.op, step.operands, chunk), number, chunk.stored)
        at = b.add(chunk.at, b.mul(self._place, constant(self._program.n)))
        address = b.add(self._room[number], b.mul(at, constant(4)))
        if number in self._made:
            return load_wide(b, KINDS["f32"], address, chunk.mask)
        value = self._rounded(self._applied(step.op, step.operands, chunk), number, chunk.stored)
        store_masked(b, value, address, chunk.mask)
        return value

    def _applied(self, op: str, operands: tuple[int, ...], chunk: _Chunk) -> ir.Value:
        return _EACH[op](self._b, *(self._value(operand, chunk) for operand in operands))

    def _rounded(self, value: ir.Value, number: int, stored: dict[int, ir.Value]) -> ir.Value:
        dtype = self._program.steps[number].dtype
        if dtype == "f32":
            return value
        stored[number] = narrowed(self._b, KINDS[dtype], value)
        return widened(self._b, KINDS[dtype], stored[number])

    def _reduced(self, number: int, totals: list[ir.Value]) -> ir.Value:
        """One number of all lanes of some vectors, in every lane."""
        b, combine = self._b, _REDUCED[self._program.steps[number].op][0]
        while len(totals) > 1:
            totals = [combine(b, *totals[:2]), *totals[2:]]
        [total], distance = totals, LANES // 2
        while distance:
            others = ir.Constant(WIDE, [lane ^ distance for lane in range(LANES)])
            total = combine(b, total, b.shuffle_vector(total, total, others))
            distance //= 2
        return total

    def _address(self, place: int, dtype: str, chunk: _Chunk, extent: str) -> ir.Value:
        b, size = self._b, SIZES[KINDS[dtype]]
        at = chunk.at
        if extent == "full":
            at = b.add(at, b.mul(self._row, constant(self._program.n)))
        return b.add(self._arrays[place], b.mul(at, constant(size)))


def _lanes(count: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT[1], LANES), [lane < count for lane in range(LANES)])
