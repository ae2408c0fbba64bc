"""Stored elements as LLVM vectors of f32: loads that widen, stores, and the few operations of tiles.

Addresses are integers. A ``kind`` is a number out of ``KINDS``.
"""

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba.core import cgutils

__all__ = [
    "F32",
    "INT",
    "KINDS",
    "LANES",
    "SIZES",
    "VECTOR",
    "WIDE",
    "call",
    "constant",
    "first_lanes",
    "fma",
    "load",
    "load_line",
    "load_masked",
    "load_wide",
    "prefetch",
    "spread",
    "store",
    "store_masked",
]

LANES = 16
"""f32 elements worked on together: one AVX-512 register; LLVM splits them where registers are narrower."""

INT = {bits: ir.IntType(bits) for bits in (1, 8, 16, 32, 64)}
F32 = ir.FloatType()
VECTOR = ir.VectorType(F32, LANES)
WIDE = ir.VectorType(INT[32], LANES)
_POINTER = INT[8].as_pointer()
_CACHE_LINE_BYTES = 64


def _splat(value: int) -> ir.Constant:
    return ir.Constant(WIDE, [value] * LANES)


def _halves(value: int, lanes: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT[16], lanes), [value] * lanes)


def _f32(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return raw


def _bf16(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return b.bitcast(b.shl(b.zext(raw, WIDE), _splat(16)), VECTOR)


def _f16(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    lanes = raw.type.count
    return b.fpext(b.bitcast(raw, ir.VectorType(ir.HalfType(), lanes)), ir.VectorType(F32, lanes))


def _i8(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return b.sitofp(b.sext(raw, WIDE), VECTOR)


def _ui8(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return b.uitofp(b.zext(raw, WIDE), VECTOR)


def _small_float(mantissa: int, bias: int, first_special: int) -> Callable[..., ir.Value]:
    """An 8-bit float. Magnitudes from ``first_special`` on are infinity or NaN, as their mantissa says.

    Its bits are put where f16 has them and the f16 is widened, which is exact, subnormals included: the
    processor's conversion heeds no mode that XLA's threads set. What remains is a power of two.
    """
    shift = 10 - mantissa

    def widen(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
        lanes = raw.type.count
        shifted = b.shl(b.sext(raw, ir.VectorType(INT[16], lanes)), _halves(shift, lanes))
        magnitude = b.and_(shifted, _halves(0x7F << shift, lanes))
        bits = b.and_(shifted, _halves(0x8000 | 0x7F << shift, lanes))
        special = b.icmp_unsigned(">=", magnitude, _halves(first_special << shift, lanes))
        bits = b.select(special, b.or_(bits, _halves(0x7C00, lanes)), bits)
        return b.fmul(_f16(b, bits), ir.Constant(ir.VectorType(F32, lanes), [2.0 ** (15 - bias)] * lanes))

    return widen


def _f8e5m2(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    """The upper half of an f16."""
    lanes = raw.type.count
    return _f16(b, b.shl(b.zext(raw, ir.VectorType(INT[16], lanes)), _halves(8, lanes)))


# Each kind of stored element: its bits, its type in memory, and how a vector of them becomes f32, exactly.
_WIDEN: tuple[tuple[str, int, Callable[..., ir.Value]], ...] = (
    ("f32", 32, _f32),
    ("bf16", 16, _bf16),
    ("f16", 16, _f16),
    ("i8", 8, _i8),
    ("ui8", 8, _ui8),
    ("f8E4M3", 8, _small_float(3, 7, 0x78)),
    ("f8E4M3FN", 8, _small_float(3, 7, 0x7F)),
    ("f8E5M2", 8, _f8e5m2),
    ("f8E3M4", 8, _small_float(4, 3, 0x70)),
)

KINDS = {name: number for number, (name, _, _) in enumerate(_WIDEN)}
"""MLIR's name of each element type the kernels read, and its number for them."""


SIZES = tuple(bits // 8 for _, bits, _ in _WIDEN)
"""Bytes of an element of each kind."""


def constant(value: int) -> ir.Constant:
    """A 64-bit word."""
    return ir.Constant(INT[64], value)


def _at(b: ir.IRBuilder, address: ir.Value, element: ir.Type) -> ir.Value:
    return b.inttoptr(address, element.as_pointer())


def load(b: ir.IRBuilder, address: ir.Value, element: ir.Type, align: int) -> ir.Value:
    """One element or vector at an address that is a multiple of ``align`` bytes."""
    loaded = b.load(_at(b, address, element))
    loaded.align = align
    return loaded


def store(b: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    """Puts a vector of 32-bit elements at an address."""
    b.store(value, _at(b, address, value.type)).align = 4


def call(b: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Value:
    """Of a function, or of an instruction of LLVM's, by name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def load_wide(b: ir.IRBuilder, kind: int, address: ir.Value, mask: ir.Value | None) -> ir.Value:
    """LANES stored elements as f32; those masked out are not touched and read as zero."""
    _, bits, widen = _WIDEN[kind]
    element = F32 if kind == KINDS["f32"] else INT[bits]
    vector = ir.VectorType(element, LANES)
    if mask is None:
        return widen(b, load(b, address, vector, bits // 8))
    return widen(b, load_masked(b, address, element, mask))


def load_masked(b: ir.IRBuilder, address: ir.Value, element: ir.Type, mask: ir.Value) -> ir.Value:
    """LANES elements as they are; those masked out are not touched and read as zero."""
    vector, zero = ir.VectorType(element, LANES), ir.Constant(ir.VectorType(element, LANES), None)
    name, size = ("f32", 4) if element is F32 else (f"i{element.width}", element.width // 8)
    arguments = [_at(b, address, vector), ir.Constant(INT[32], size), mask, zero]
    return call(b, f"llvm.masked.load.v{LANES}{name}.p0", vector, arguments)


def load_line(b: ir.IRBuilder, kind: int, address: ir.Value, count: int) -> list[ir.Value]:
    """``count`` times LANES stored elements as so many vectors of f32."""
    name, bits, widen = _WIDEN[kind]
    if not name.startswith("f8"):
        places = [b.add(address, constant(bits // 8 * LANES * v)) for v in range(count)]
        return [load_wide(b, kind, place, None) for place in places]
    # Most of their widening is done on 16-bit lanes, of which a register holds twice as many.
    wide = widen(b, load(b, address, ir.VectorType(INT[8], count * LANES), 1))
    parts = [ir.Constant(WIDE, list(range(LANES * v, LANES * (v + 1)))) for v in range(count)]
    return [b.shuffle_vector(wide, ir.Constant(wide.type, ir.Undefined), part) for part in parts]


def first_lanes(b: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """The first ``count`` lanes."""
    lanes = ir.Constant(WIDE, list(range(LANES)))
    return b.icmp_signed("<", lanes, spread(b, b.trunc(count, INT[32]), WIDE))


def spread(b: ir.IRBuilder, scalar: ir.Value, vector: ir.Type) -> ir.Value:
    """A vector with the scalar in every lane."""
    first = b.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(INT[32], 0))
    return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), _splat(0))


def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """``x * y + z``, rounded once."""
    return call(b, f"llvm.fma.v{LANES}f32", VECTOR, [x, y, z])


def prefetch(b: ir.IRBuilder, address: ir.Value, size_bytes: int, level: int = 1) -> None:
    """Asks for so many bytes to be brought to the cache of that ``level``; no address is wrong."""
    constants = [ir.Constant(INT[32], value) for value in (0, 4 - level, 1)]  # to read, how near, data
    for offset in range(0, size_bytes, _CACHE_LINE_BYTES):
        pointer = b.inttoptr(b.add(address, constant(offset)), _POINTER)
        call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, *constants])


def store_masked(b: ir.IRBuilder, value: ir.Value, address: ir.Value, mask: ir.Value | None) -> None:
    """Puts the lanes of ``mask``, or all without one, at an address."""
    if mask is None:
        store(b, value, address)
        return
    arguments = [value, _at(b, address, VECTOR), ir.Constant(INT[32], 4), mask]
    call(b, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), arguments)
