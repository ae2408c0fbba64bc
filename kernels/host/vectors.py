"""Tiles of products as LLVM vector instructions, for Numba.

Addresses are integers. ``kind`` arguments are compile-time constants out of ``elements.KINDS``.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.host.elements import (
    F32,
    INT,
    KINDS,
    LANES,
    PAIRS,
    SIZES,
    VECTOR,
    WIDE,
    constant,
    first_lanes,
    fma,
    load,
    load_line,
    load_masked,
    load_wide,
    multiply_add,
    paired,
    prefetch,
    spread,
    store,
    store_masked,
)

__all__ = ["column_tile", "row_tile", "stream_tile", "transpose_tile", "transposed", "widen_tile"]


def _call_shared(
    b: ir.IRBuilder, name: str, arguments: Sequence[ir.Value], body: Callable[..., None]
) -> None:
    """Calls a function of its own that holds ``body``: LLVM sees it once, however often it is called."""
    kind = ir.FunctionType(ir.VoidType(), [INT[64]] * len(arguments))
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
    the distance in bytes of what will be read next. ``masked``: only the first ``columns`` exist. Of pairs
    x holds the terms side by side, and w one above the other: a row of pairs is two rows of bf16.
    """
    found = _constants(kind, rows, vectors, masked)
    if found is None:
        return None
    code, num_rows, num_vectors, has_mask = found
    factors = WIDE if code == PAIRS else VECTOR

    def body(b, out, ldo, x, ldx, w, ldw, depth, ahead, columns):
        mask = first_lanes(b, columns) if has_mask else None
        places = [
            b.add(b.add(out, b.mul(ldo, constant(r))), constant(4 * LANES * v))
            for r in range(num_rows)
            for v in range(num_vectors)
        ]
        sums = [cgutils.alloca_once(b, VECTOR) for _ in places]
        for place, total in zip(places, sums, strict=True):
            b.store(load_wide(b, KINDS["f32"], place, mask), total)
        with cgutils.for_range(b, depth) as loop:
            row = b.add(w, b.mul(loop.index, ldw))
            weights = _load_row(b, code, row, ldw, num_vectors, mask, ahead)
            column = b.add(x, b.mul(loop.index, constant(4)))
            for r in range(num_rows):
                scalar = load(b, b.add(column, b.mul(ldx, constant(r))), factors.element, 2)
                factor = spread(b, scalar, factors)
                for v, weight in enumerate(weights):
                    total = sums[r * num_vectors + v]
                    b.store(multiply_add(b, code, factor, weight, b.load(total)), total)
        for place, total in zip(places, sums, strict=True):
            store_masked(b, b.load(total), place, mask)

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        name = f"neuronx_column_tile_{code}_{num_rows}_{num_vectors}_{has_mask}"
        _call_shared(b, name, arguments[4:], body)
        return context.get_dummy_value()

    return types.void(kind, rows, vectors, masked, *[types.intp] * 9), generate


def _load_row(
    b: ir.IRBuilder,
    kind: int,
    row: ir.Value,
    ldw: ir.Value,
    count: int,
    mask: ir.Value | None,
    ahead: ir.Value,
) -> list[ir.Value]:
    """``count`` vectors of a row of weights, or of two as pairs; what lies ``ahead`` of it is asked for."""
    stored = [row] if kind != PAIRS else [row, b.add(row, b.lshr(ldw, constant(1)))]
    size = SIZES[kind] // len(stored)
    if mask is None:
        for place in stored:
            prefetch(b, b.add(place, ahead), size * LANES * count)
    places = [[b.add(place, constant(size * LANES * v)) for place in stored] for v in range(count)]
    if kind != PAIRS:
        return [load_wide(b, kind, place, mask) for [place] in places]
    every = ir.Constant(ir.VectorType(INT[1], LANES), [1] * LANES) if mask is None else mask
    return [paired(b, *(load_masked(b, place, INT[16], every) for place in two)) for two in places]


_LINE_VECTORS = {1: 4, 2: 2, 4: 2}
"""Vectors of a stream read before the next stream's turn, by bytes of an element: whole cache lines."""


@intrinsic(prefer_literal=True)
def stream_tile(typing, kind, depth, out, x, w, ldw, ahead, columns):
    """``out[columns] += x[depth] @ w[depth, columns]``, its ``depth`` rows of weights read side by side.

    Each sum takes its terms one after the other. Arguments as of ``column_tile``.
    """
    found = _constants(kind, depth)
    if found is None:
        return None
    code, num_streams = found
    size = SIZES[code]

    def body(b, out, x, w, ldw, ahead, columns):
        streams = [b.add(w, b.mul(ldw, constant(d))) for d in range(num_streams)]
        factors = [spread(b, load(b, b.add(x, constant(4 * d)), F32, 4), VECTOR) for d in range(num_streams)]

        def step(column: ir.Value, count: int, mask: ir.Value | None) -> None:
            places = [
                b.add(out, b.mul(b.add(column, constant(LANES * v)), constant(4))) for v in range(count)
            ]
            sums = [load_wide(b, KINDS["f32"], place, mask) for place in places]
            at = b.mul(column, constant(size))
            for stream, factor in zip(streams, factors, strict=True):
                row = b.add(stream, at)
                if mask is None:
                    prefetch(b, b.add(row, ahead), size * LANES * count)
                weights = load_line(b, code, row, count) if mask is None else [load_wide(b, code, row, mask)]
                sums = [fma(b, factor, weight, total) for weight, total in zip(weights, sums, strict=True)]
            for place, total in zip(places, sums, strict=True):
                store_masked(b, total, place, mask)

        line = constant(LANES * _LINE_VECTORS[size])
        with cgutils.for_range(b, b.udiv(columns, line)) as loop:
            step(b.mul(loop.index, line), _LINE_VECTORS[size], None)
        first = b.sub(columns, b.urem(columns, line))
        with cgutils.for_range_slice(b, first, columns, constant(LANES), INT[64], inc=True) as (column, _):
            step(column, 1, first_lanes(b, b.sub(columns, column)))

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        _call_shared(b, f"neuronx_stream_tile_{code}_{num_streams}", arguments[2:], body)
        return context.get_dummy_value()

    return types.void(kind, depth, *[types.intp] * 6), generate


@intrinsic(prefer_literal=True)
def row_tile(typing, kind, rows, columns, out, ldo, x, ldx, w, ldw, depth, ahead):
    """``out[rows, columns] = x[rows, depth] @ w[columns, depth].T``: dot products along memory.

    Each is LANES f32 sums, added as a tree at the end. Arguments as of ``column_tile``, but that pairs lie
    side by side in both.
    """
    found = _constants(kind, rows, columns)
    if found is None:
        return None
    code, num_rows, num_columns = found
    size = SIZES[code]

    def body(b, out, ldo, x, ldx, w, ldw, depth, ahead):
        sums = [cgutils.alloca_once(b, VECTOR) for _ in range(num_rows * num_columns)]
        for total in sums:
            b.store(ir.Constant(VECTOR, None), total)

        def step(position: ir.Value, count: int, mask: ir.Value | None) -> None:
            at = b.mul(position, constant(size))
            places = [b.add(b.add(w, b.mul(ldw, constant(c))), at) for c in range(num_columns)]
            if mask is None:
                for place in places:
                    prefetch(b, b.add(place, ahead), size * LANES * count)
            if count == 1:
                lines = [[load_wide(b, code, place, mask)] for place in places]
            else:
                lines = [load_line(b, code, place, count) for place in places]
            for v in range(count):
                first = b.mul(b.add(position, constant(LANES * v)), constant(4))
                for r in range(num_rows):
                    place = b.add(b.add(x, b.mul(ldx, constant(r))), first)
                    row = load_wide(b, PAIRS if code == PAIRS else KINDS["f32"], place, mask)
                    for c, line in enumerate(lines):
                        total = sums[r * num_columns + c]
                        b.store(multiply_add(b, code, row, line[v], b.load(total)), total)

        # The sums of several rows alone fill the registers.
        count = _LINE_VECTORS[size] if num_rows == 1 else 1
        line = constant(LANES * count)
        with cgutils.for_range(b, b.udiv(depth, line)) as loop:
            step(b.mul(loop.index, line), count, None)
        first = b.sub(depth, b.urem(depth, line))
        with cgutils.for_range_slice(b, first, depth, constant(LANES), INT[64], inc=True) as (position, _):
            step(position, 1, first_lanes(b, b.sub(depth, position)))
        for number, total in enumerate(sums):
            row, column = divmod(number, num_columns)
            place = b.add(b.add(out, b.mul(ldo, constant(row))), constant(4 * column))
            store(b, _tree_sum(b, b.load(total)), place)

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        name = f"neuronx_row_tile_{code}_{num_rows}_{num_columns}"
        _call_shared(b, name, arguments[3:], body)
        return context.get_dummy_value()

    return types.void(kind, rows, columns, *[types.intp] * 8), generate


def _tree_sum(b: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    width = LANES
    while width > 1:
        width //= 2
        moved = [*range(width, 2 * width), *[0] * (LANES - width)]
        shifted = b.shuffle_vector(vector, ir.Constant(VECTOR, ir.Undefined), ir.Constant(WIDE, moved))
        vector = b.fadd(vector, shifted)
    return b.extract_element(vector, ir.Constant(INT[32], 0))


@intrinsic(prefer_literal=True)
def widen_tile(typing, kind, out, ldo, w, ldw, depth, ahead, columns):
    """Copies ``w[depth, columns]``, columns <= LANES, to f32 rows of LANES; zeros fill the rest of a row."""
    found = _constants(kind)
    if found is None:
        return None
    [code] = found

    def body(b, out, ldo, w, ldw, depth, ahead, columns):
        mask = first_lanes(b, columns)
        with cgutils.for_range(b, depth) as loop:
            place = b.add(w, b.mul(loop.index, ldw))
            prefetch(b, b.add(place, ahead), 1)
            store(b, load_wide(b, code, place, mask), b.add(out, b.mul(loop.index, ldo)))

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
        mask = first_lanes(b, depth)
        none = ir.Constant(ir.VectorType(INT[1], LANES), None)
        rows = []
        for r in range(LANES):
            exists = b.icmp_signed("<", constant(r), columns)
            rows.append(load_wide(b, code, b.add(w, b.mul(ldw, constant(r))), b.select(exists, mask, none)))
        for r, row in enumerate(transposed(b, rows)):
            with b.if_then(b.icmp_signed("<", constant(r), depth)):
                store(b, row, b.add(out, b.mul(ldo, constant(r))))

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        _call_shared(b, f"neuronx_transpose_tile_{code}", arguments[1:], body)
        return context.get_dummy_value()

    return types.void(kind, *[types.intp] * 6), generate


def transposed(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """A square of LANES vectors on its other side: in log2(LANES) rounds, pairs swap their halves."""
    half = LANES // 2
    while half:
        low = [i if not i & half else LANES + i - half for i in range(LANES)]
        high = [i + half if not i & half else LANES + i for i in range(LANES)]
        for first in (i for i in range(LANES) if not i & half):
            pair = rows[first], rows[first + half]
            rows[first] = b.shuffle_vector(*pair, ir.Constant(WIDE, low))
            rows[first + half] = b.shuffle_vector(*pair, ir.Constant(WIDE, high))
        half //= 2
    return rows
