"""Stored elements as LLVM vectors of f32: loads that widen, stores, and the few operations of tiles.

Addresses are integers. A ``kind`` is a number out of ``KINDS``.
"""

from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, config

from kernels.dtypes import dtype

__all__ = [
    "F32",
    "INT",
    "KINDS",
    "LANES",
    "PAIRS",
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
    "multiply_add",
    "narrowed",
    "paired",
    "prefetch",
    "spread",
    "store",
    "store_masked",
    "widened",
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


def _as_it_is(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
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


# Each kind of stored element: its bits, and how a vector of them becomes f32, exactly.
_WIDEN: tuple[tuple[str, int, Callable[..., ir.Value]], ...] = (
    ("f32", 32, _as_it_is),
    ("bf16", 16, _bf16),
    ("f16", 16, _f16),
    ("i8", 8, _i8),
    ("ui8", 8, _ui8),
    ("f8E4M3", 8, _small_float(3, 7, 0x78)),
    ("f8E4M3FN", 8, _small_float(3, 7, 0x7F)),
    ("f8E5M2", 8, _f8e5m2),
    ("f8E3M4", 8, _small_float(4, 3, 0x70)),
    ("pairs of bf16", 32, _as_it_is),
)

KINDS = {name: number for number, (name, _, _) in enumerate(_WIDEN)}
"""MLIR's name of each element type the kernels read, or that of pairs, and its number for them."""

PAIRS = KINDS["pairs of bf16"]
"""Two terms in 32 bits, the first in the lower half. They are never widened: ``multiply_add`` takes both."""

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
    """Puts an element or a vector at an address."""
    b.store(value, _at(b, address, value.type)).align = _element(value.type)[1]


def _element(kind: ir.Type) -> tuple[str, int]:
    """LLVM's name of an element, or of what a vector is of, and its bytes."""
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    return ("f32", 4) if element is F32 else (f"i{element.width}", element.width // 8)


def widened(b: ir.IRBuilder, kind: int, raw: ir.Value) -> ir.Value:
    """Stored elements as f32."""
    return _WIDEN[kind][2](b, raw)


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
    name, size = _element(vector)
    arguments = [_at(b, address, vector), ir.Constant(INT[32], size), mask, zero]
    return call(b, f"llvm.masked.load.v{LANES}{name}.p0", vector, arguments)


_LOOKED_UP = 64
_LOOKS_UP = bool(
    not (config.CPU_NAME or config.CPU_FEATURES) and binding.get_host_cpu_features().get("avx512vbmi")
)
"""So many 8-bit floats are widened together where the processor, if it is the one that Numba compiles for,
looks up bytes in tables of 128."""


def _look_up(b: ir.IRBuilder, name: str, raw: ir.Value) -> list[ir.Value]:
    """8-bit floats as vectors of f32: each is a bf16, whose bytes stand in two tables but for the sign."""
    count = ir.VectorType(INT[8], _LOOKED_UP)
    words = np.arange(128, dtype=np.uint8).view(dtype(name).numpy).astype(np.float32).view(np.uint32) >> 16

    def found(values: np.ndarray) -> ir.Value:
        low, high = (ir.Constant(count, half.tolist()) for half in np.split(values, 2))
        return call(b, "llvm.x86.avx512.vpermi2var.qi.512", count, [low, raw, high])

    # Sorted so that the even and the odd words of what is interleaved in 16-byte lanes are whole vectors.
    order = np.arange(_LOOKED_UP).reshape(2, 2, 4, 4).transpose(2, 0, 3, 1)
    raw = _shuffled(b, raw, raw, order)
    sign = b.and_(raw, ir.Constant(count, [0x80] * _LOOKED_UP))
    low, high = found(words & 0xFF), b.or_(found(words >> 8), sign)
    lanes = np.arange(2 * _LOOKED_UP).reshape(2, 4, 2, 8)
    pairs = [
        b.bitcast(_shuffled(b, low, high, lanes[:, :, half].transpose(1, 2, 0)), WIDE) for half in (0, 1)
    ]
    return [
        b.bitcast(bits, VECTOR)
        for pair in pairs
        for bits in (b.shl(pair, _splat(16)), b.and_(pair, _splat(0xFFFF0000)))
    ]


def _shuffled(b: ir.IRBuilder, low: ir.Value, high: ir.Value, order: np.ndarray) -> ir.Value:
    places = ir.Constant(ir.VectorType(INT[32], order.size), order.ravel().tolist())
    return b.shuffle_vector(low, high, places)


def load_line(b: ir.IRBuilder, kind: int, address: ir.Value, count: int) -> list[ir.Value]:
    """``count`` times LANES stored elements as so many vectors of f32."""
    name, bits, widen = _WIDEN[kind]
    if not name.startswith("f8"):
        places = [b.add(address, constant(bits // 8 * LANES * v)) for v in range(count)]
        return [load_wide(b, kind, place, None) for place in places]
    raw = load(b, address, ir.VectorType(INT[8], count * LANES), 1)
    if _LOOKS_UP and count * LANES == _LOOKED_UP:
        return _look_up(b, name, raw)
    # Most of their widening is done on 16-bit lanes, of which a register holds twice as many.
    wide = widen(b, raw)
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


_HAS_PAIRS = bool(
    not (config.CPU_NAME or config.CPU_FEATURES) and binding.get_host_cpu_features().get("avx512bf16")
)
"""Whether Numba compiles for a processor that adds up a pair at once; else two steps have the same bits.

The instruction takes denormals for zero, as XLA:CPU tells its threads to do in every other.
"""


class _BFloat(ir.HalfType):
    """LLVM's bf16, which llvmlite does not name."""

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()


def narrowed(b: ir.IRBuilder, kind: int, value: ir.Value) -> ir.Value:
    """What is stored of f32: the nearest bf16 or f16, ties to even, as 16 bits; f32 as they are."""
    if kind == KINDS["f32"]:
        return value
    stored = ir.VectorType(INT[16], LANES)
    if kind == KINDS["f16"] or _HAS_PAIRS:
        narrow = ir.HalfType() if kind == KINDS["f16"] else _BFloat()
        return b.bitcast(b.fptrunc(value, ir.VectorType(narrow, LANES)), stored)
    bits = b.bitcast(value, WIDE)
    odd = b.and_(b.lshr(bits, _splat(16)), _splat(1))
    nearest = b.add(b.add(bits, _splat(0x7FFF)), odd)
    kept = b.select(b.fcmp_unordered("uno", value, value), b.or_(bits, _splat(0x400000)), nearest)
    return b.trunc(b.lshr(kept, _splat(16)), stored)


def multiply_add(b: ir.IRBuilder, kind: int, x: ir.Value, w: ir.Value, total: ir.Value) -> ir.Value:
    """``total + x * w`` of f32, rounded once; of pairs ``total + x1 * w1 + x0 * w0``, once for each."""
    if kind != PAIRS:
        return fma(b, x, w, total)
    if _HAS_PAIRS:
        return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", VECTOR, [total, x, w])
    highs = (b.bitcast(b.and_(pair, _splat(0xFFFF0000)), VECTOR) for pair in (x, w))
    lows = (b.bitcast(b.shl(pair, _splat(16)), VECTOR) for pair in (x, w))
    return fma(b, *lows, fma(b, *highs, total))


def paired(b: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """Two vectors of bf16, as bits, as one of pairs."""
    low, high = (b.zext(half, WIDE) for half in (first, second))
    return b.or_(low, b.shl(high, _splat(16)))


def prefetch(b: ir.IRBuilder, address: ir.Value, size_bytes: int) -> None:
    """Asks for so many bytes to be brought to the second-level cache; no address is wrong.

    In the first they would push out the sums of the tile.
    """
    constants = [ir.Constant(INT[32], value) for value in (0, 2, 1)]  # to read, second level, data
    for offset in range(0, size_bytes, _CACHE_LINE_BYTES):
        pointer = b.inttoptr(b.add(address, constant(offset)), _POINTER)
        call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, *constants])


def store_masked(b: ir.IRBuilder, value: ir.Value, address: ir.Value, mask: ir.Value | None) -> None:
    """Puts the lanes of ``mask``, or all without one, at an address."""
    if mask is None:
        store(b, value, address)
        return
    name, size = _element(value.type)
    arguments = [value, _at(b, address, value.type), ir.Constant(INT[32], size), mask]
    call(b, f"llvm.masked.store.v{LANES}{name}.p0", ir.VoidType(), arguments)
