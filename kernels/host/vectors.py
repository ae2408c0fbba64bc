"""LLVM vector instructions that Numba lacks: loads that widen to f32, and tiles of products.

Addresses are integers. ``kind`` arguments are compile-time constants out of ``KINDS``.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "KINDS",
    "LANES",
    "SIZES",
    "column_tile",
    "row_tile",
    "transpose_tile",
    "widen_tile",
]

LANES = 16
"""f32 elements worked on together: one AVX-512 register; LLVM splits them where registers are narrower."""

_INT = {bits: ir.IntType(bits) for bits in (1, 8, 16, 32, 64)}
_F32 = ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_WIDE = ir.VectorType(_INT[32], LANES)
_POINTER = _INT[8].as_pointer()
_CACHE_LINE_BYTES = 64


def _splat(value: int) -> ir.Constant:
    return ir.Constant(_WIDE, [value] * LANES)


def _f32(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return raw


def _bf16(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return b.bitcast(b.shl(b.zext(raw, _WIDE), _splat(16)), _VECTOR)


def _f16(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return b.fpext(b.bitcast(raw, ir.VectorType(ir.HalfType(), LANES)), _VECTOR)


def _i8(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return b.sitofp(b.sext(raw, _WIDE), _VECTOR)


def _ui8(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return b.uitofp(b.zext(raw, _WIDE), _VECTOR)


def _small_float(mantissa: int, bias: int, first_special: int, infinity: bool) -> Callable[..., ir.Value]:
    """An 8-bit float. Magnitudes from ``first_special`` on are no numbers, or the first of them is infinite.

    Subnormals are scaled integers: as f32 they are normal, but on the way XLA's threads would flush them.
    """

    def widen(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
        wide = b.zext(raw, _WIDE)
        magnitude = b.and_(wide, _splat(0x7F))
        sign = b.shl(b.and_(wide, _splat(0x80)), _splat(24))
        normal = b.add(b.shl(magnitude, _splat(23 - mantissa)), _splat((127 - bias) << 23))
        step = ir.Constant(_VECTOR, [2.0 ** (1 - bias - mantissa)] * LANES)
        subnormal = b.bitcast(b.fmul(b.uitofp(magnitude, _VECTOR), step), _WIDE)
        bits = b.select(b.icmp_unsigned("<", magnitude, _splat(1 << mantissa)), subnormal, normal)
        special = b.icmp_unsigned(">=", magnitude, _splat(first_special))
        bits = b.select(special, _splat(0x7FC00000), bits)
        if infinity:
            bits = b.select(b.icmp_unsigned("==", magnitude, _splat(first_special)), _splat(0x7F800000), bits)
        return b.bitcast(b.or_(bits, sign), _VECTOR)

    return widen


# Each kind of stored element: its bits, its type in memory, and how a vector of them becomes f32, exactly.
_WIDEN: tuple[tuple[str, int, Callable[..., ir.Value]], ...] = (
    ("f32", 32, _f32),
    ("bf16", 16, _bf16),
    ("f16", 16, _f16),
    ("i8", 8, _i8),
    ("ui8", 8, _ui8),
    ("f8E4M3", 8, _small_float(3, 7, 0x78, True)),
    ("f8E4M3FN", 8, _small_float(3, 7, 0x7F, False)),
    ("f8E5M2", 8, _small_float(2, 15, 0x7C, True)),
    ("f8E3M4", 8, _small_float(4, 3, 0x70, True)),
)

KINDS = {name: number for number, (name, _, _) in enumerate(_WIDEN)}
"""MLIR's name of each element type the kernels read, and its number for them."""


SIZES = {name: bits // 8 for name, bits, _ in _WIDEN}
"""Bytes of an element of each."""


def _number(value: int) -> ir.Constant:
    return ir.Constant(_INT[64], value)


def _at(b: ir.IRBuilder, address: ir.Value, element: ir.Type) -> ir.Value:
    return b.inttoptr(address, element.as_pointer())


def _load(b: ir.IRBuilder, address: ir.Value, element: ir.Type, align: int) -> ir.Value:
    loaded = b.load(_at(b, address, element))
    loaded.align = align
    return loaded


def _store(b: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    b.store(value, _at(b, address, value.type)).align = 4


def _call(b: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Value:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def _load_wide(b: ir.IRBuilder, kind: int, address: ir.Value, mask: ir.Value | None) -> ir.Value:
    """LANES stored elements as f32; those masked out are not touched and read as zero."""
    _, bits, widen = _WIDEN[kind]
    element = _F32 if kind == KINDS["f32"] else _INT[bits]
    vector = ir.VectorType(element, LANES)
    if mask is None:
        return widen(b, _load(b, address, vector, bits // 8))
    suffix = f"v{LANES}{'f32' if element is _F32 else f'i{bits}'}"
    arguments = [
        _at(b, address, vector),
        ir.Constant(_INT[32], bits // 8),
        mask,
        ir.Constant(vector, None),
    ]
    return widen(b, _call(b, f"llvm.masked.load.{suffix}.p0", vector, arguments))


def _mask(b: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """The first ``count`` lanes."""
    lanes = ir.Constant(_WIDE, list(range(LANES)))
    return b.icmp_signed("<", lanes, _spread(b, b.trunc(count, _INT[32]), _WIDE))


def _spread(b: ir.IRBuilder, scalar: ir.Value, vector: ir.Type) -> ir.Value:
    first = b.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_INT[32], 0))
    return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), _splat(0))


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return _call(b, f"llvm.fma.v{LANES}f32", _VECTOR, [x, y, z])


def _prefetch(b: ir.IRBuilder, address: ir.Value, size_bytes: int) -> None:
    constants = [ir.Constant(_INT[32], value) for value in (0, 3, 1)]  # read, keep in all caches, data
    for offset in range(0, size_bytes, _CACHE_LINE_BYTES):
        pointer = b.inttoptr(b.add(address, _number(offset)), _POINTER)
        _call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, *constants])


def _call_shared(
    b: ir.IRBuilder, name: str, arguments: Sequence[ir.Value], body: Callable[..., None]
) -> None:
    """Calls a function of its own that holds ``body``: LLVM sees it once, however often it is called."""
    kind = ir.FunctionType(ir.VoidType(), [_INT[64]] * len(arguments))
    if name not in b.module.globals:
        function = ir.Function(b.module, kind, name)
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block())
        body(inner, *function.args)
        inner.ret_void()
    b.call(b.module.globals[name], arguments)


def _constants(*arguments: types.Type) -> list[int] | None:
    if not all(isinstance(argument, types.IntegerLiteral) for argument in arguments):
        return None
    return [argument.literal_value for argument in arguments]


@intrinsic(prefer_literal=True)
def column_tile(typing, kind, rows, vectors, masked, out, ldo, x, ldx, w, ldw, depth, ahead, columns):
    """``out[rows, vectors * LANES] += x[rows, depth] @ w[depth, vectors * LANES]``, one f32 sum each.

    ``out`` and ``x`` are f32 in memory, ``w`` of ``kind``; ``ld*`` are bytes from row to row. ``ahead`` is
    the distance in bytes of what will be read next. ``masked``: only the first ``columns`` exist.
    """
    found = _constants(kind, rows, vectors, masked)
    if found is None:
        return None
    code, num_rows, num_vectors, has_mask = found
    size = _WIDEN[code][1] // 8

    def body(b, out, ldo, x, ldx, w, ldw, depth, ahead, columns):
        mask = _mask(b, columns) if has_mask else None
        places = [
            b.add(b.add(out, b.mul(ldo, _number(r))), _number(4 * LANES * v))
            for r in range(num_rows)
            for v in range(num_vectors)
        ]
        sums = [cgutils.alloca_once(b, _VECTOR) for _ in places]
        for place, total in zip(places, sums, strict=True):
            b.store(_load_wide(b, KINDS["f32"], place, mask), total)
        with cgutils.for_range(b, depth) as loop:
            row = b.add(w, b.mul(loop.index, ldw))
            weights = [
                _load_wide(b, code, b.add(row, _number(size * LANES * v)), mask) for v in range(num_vectors)
            ]
            if not has_mask:
                _prefetch(b, b.add(row, ahead), size * LANES * num_vectors)
            column = b.add(x, b.mul(loop.index, _number(4)))
            for r in range(num_rows):
                scalar = _load(b, b.add(column, b.mul(ldx, _number(r))), _F32, 4)
                factor = _spread(b, scalar, _VECTOR)
                for v, weight in enumerate(weights):
                    total = sums[r * num_vectors + v]
                    b.store(_fma(b, factor, weight, b.load(total)), total)
        for place, total in zip(places, sums, strict=True):
            _store_masked(b, b.load(total), place, mask)

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        name = f"neuronx_column_tile_{code}_{num_rows}_{num_vectors}_{has_mask}"
        _call_shared(b, name, arguments[4:], body)
        return context.get_dummy_value()

    return types.void(kind, rows, vectors, masked, *[types.intp] * 9), generate


def _store_masked(b: ir.IRBuilder, value: ir.Value, address: ir.Value, mask: ir.Value | None) -> None:
    if mask is None:
        _store(b, value, address)
        return
    arguments = [value, _at(b, address, _VECTOR), ir.Constant(_INT[32], 4), mask]
    _call(b, f"llvm.masked.store.v{LANES}f32.p0", ir.VoidType(), arguments)


@intrinsic(prefer_literal=True)
def row_tile(typing, kind, rows, columns, out, ldo, x, ldx, w, ldw, depth):
    """``out[rows, columns] = x[rows, depth] @ w[columns, depth].T``: dot products along memory.

    Each is LANES f32 sums, added as a tree at the end. Arguments as of ``column_tile``.
    """
    found = _constants(kind, rows, columns)
    if found is None:
        return None
    code, num_rows, num_columns = found
    size = _WIDEN[code][1] // 8

    def body(b, out, ldo, x, ldx, w, ldw, depth):
        sums = [cgutils.alloca_once(b, _VECTOR) for _ in range(num_rows * num_columns)]
        for total in sums:
            b.store(ir.Constant(_VECTOR, None), total)

        def step(position: ir.Value, mask: ir.Value | None) -> None:
            at = b.mul(position, _number(size))
            weights = [
                _load_wide(b, code, b.add(b.add(w, b.mul(ldw, _number(c))), at), mask)
                for c in range(num_columns)
            ]
            for r in range(num_rows):
                place = b.add(b.add(x, b.mul(ldx, _number(r))), b.mul(position, _number(4)))
                row = _load_wide(b, KINDS["f32"], place, mask)
                for c, weight in enumerate(weights):
                    total = sums[r * num_columns + c]
                    b.store(_fma(b, row, weight, b.load(total)), total)

        with cgutils.for_range(b, b.udiv(depth, _number(LANES))) as loop:
            step(b.mul(loop.index, _number(LANES)), None)
        rest = b.urem(depth, _number(LANES))
        with b.if_then(b.icmp_signed(">", rest, _number(0))):
            step(b.sub(depth, rest), _mask(b, rest))
        for number, total in enumerate(sums):
            row, column = divmod(number, num_columns)
            place = b.add(b.add(out, b.mul(ldo, _number(row))), _number(4 * column))
            _store(b, _tree_sum(b, b.load(total)), place)

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        name = f"neuronx_row_tile_{code}_{num_rows}_{num_columns}"
        _call_shared(b, name, arguments[3:], body)
        return context.get_dummy_value()

    return types.void(kind, rows, columns, *[types.intp] * 7), generate


def _tree_sum(b: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    width = LANES
    while width > 1:
        width //= 2
        moved = [*range(width, 2 * width), *[0] * (LANES - width)]
        shifted = b.shuffle_vector(vector, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_WIDE, moved))
        vector = b.fadd(vector, shifted)
    return b.extract_element(vector, ir.Constant(_INT[32], 0))


@intrinsic(prefer_literal=True)
def widen_tile(typing, kind, out, ldo, w, ldw, depth, ahead, columns):
    """Copies ``w[depth, columns]``, columns <= LANES, to f32 rows of LANES; zeros fill the rest of a row."""
    found = _constants(kind)
    if found is None:
        return None
    [code] = found

    def body(b, out, ldo, w, ldw, depth, ahead, columns):
        mask = _mask(b, columns)
        with cgutils.for_range(b, depth) as loop:
            place = b.add(w, b.mul(loop.index, ldw))
            _prefetch(b, b.add(place, ahead), 1)
            _store(b, _load_wide(b, code, place, mask), b.add(out, b.mul(loop.index, ldo)))

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        _call_shared(b, f"neuronx_widen_tile_{code}", arguments[1:], body)
        return context.get_dummy_value()

    return types.void(kind, *[types.intp] * 7), generate


@intrinsic(prefer_literal=True)
def transpose_tile(typing, kind, out, ldo, w, ldw, depth, columns):
    """Copies ``w[columns, depth].T``, both <= LANES, to f32 rows of LANES; zeros fill the rest of a row."""
    found = _constants(kind)
    if found is None:
        return None
    [code] = found

    def body(b, out, ldo, w, ldw, depth, columns):
        mask = _mask(b, depth)
        none = ir.Constant(ir.VectorType(_INT[1], LANES), None)
        rows = []
        for r in range(LANES):
            exists = b.icmp_signed("<", _number(r), columns)
            rows.append(_load_wide(b, code, b.add(w, b.mul(ldw, _number(r))), b.select(exists, mask, none)))
        for r, row in enumerate(_transposed(b, rows)):
            with b.if_then(b.icmp_signed("<", _number(r), depth)):
                _store(b, row, b.add(out, b.mul(ldo, _number(r))))

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        _call_shared(b, f"neuronx_transpose_tile_{code}", arguments[1:], body)
        return context.get_dummy_value()

    return types.void(kind, *[types.intp] * 6), generate


def _transposed(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """A square of LANES vectors on its other side: in log2(LANES) rounds, pairs swap their halves."""
    half = LANES // 2
    while half:
        low = [i if not i & half else LANES + i - half for i in range(LANES)]
        high = [i + half if not i & half else LANES + i for i in range(LANES)]
        for first in (i for i in range(LANES) if not i & half):
            pair = rows[first], rows[first + half]
            rows[first] = b.shuffle_vector(*pair, ir.Constant(_WIDE, low))
            rows[first + half] = b.shuffle_vector(*pair, ir.Constant(_WIDE, high))
        half //= 2
    return rows
