"""Products of several rows of bf16 with bf16 weights, two terms at a time."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import literally, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.host.elements import (
    INT,
    KINDS,
    LANES,
    PAIRS,
    VECTOR,
    WIDE,
    constant,
    first_lanes,
    load,
    load_masked,
    load_wide,
    multiply_add,
    paired,
    spread,
    store,
    store_masked,
)
from kernels.host.matmul import stream_columns, stream_rows
from kernels.host.memory import allocate, clear, release
from kernels.host.targets import FEW_ROWS
from kernels.host.vectors import transposed

__all__ = ["multiply_pairs"]

_PANEL_VECTORS = 4
_PANEL = _PANEL_VECTORS * LANES
_PAIR_ROW_BYTES = 4 * _PANEL
_BLOCK_ROWS = 256
_BLOCK_PAIRS = 128
_BLOCK_COLUMNS = 256
_PANEL_BYTES = _BLOCK_PAIRS * _PAIR_ROW_BYTES
"""Pairs of weights lie in panels of four vectors a row, 128 rows and 4 panels at a time, and meet 256 rows of
x at a time: each is 128 KiB of the second-level cache."""

_TILE_ROWS = 6
_ALIGN = 64


@intrinsic(prefer_literal=True)
def _pair_tile(typing, rows, out, ldo, x, ldx, panel, pairs, columns):
    """``out[rows, columns] += x[rows, 2 * pairs] @ panel``, columns <= _PANEL; ``ld*`` are bytes of a row.

    Each sum takes its pairs one after the other, of each the second term first.
    """
    if not isinstance(rows, types.IntegerLiteral):
        return None
    num_rows = rows.literal_value

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        _, out, ldo, x, ldx, panel, pairs, columns = arguments
        masks = [first_lanes(b, b.sub(columns, constant(LANES * v))) for v in range(_PANEL_VECTORS)]
        places = [
            (b.add(b.add(out, b.mul(ldo, constant(r))), constant(4 * LANES * v)), mask)
            for r in range(num_rows)
            for v, mask in enumerate(masks)
        ]
        sums = [cgutils.alloca_once(b, VECTOR) for _ in places]
        for (place, mask), total in zip(places, sums, strict=True):
            b.store(load_wide(b, KINDS["f32"], place, mask), total)
        with cgutils.for_range(b, pairs) as loop:
            row = b.add(panel, b.mul(loop.index, constant(_PAIR_ROW_BYTES)))
            weights = [
                load(b, b.add(row, constant(4 * LANES * v)), WIDE, _ALIGN) for v in range(_PANEL_VECTORS)
            ]
            column = b.add(x, b.mul(loop.index, constant(4)))
            for r in range(num_rows):
                pair = spread(b, load(b, b.add(column, b.mul(ldx, constant(r))), INT[32], 2), WIDE)
                for v, weight in enumerate(weights):
                    total = sums[r * _PANEL_VECTORS + v]
                    b.store(multiply_add(b, PAIRS, pair, weight, b.load(total)), total)
        for (place, mask), total in zip(places, sums, strict=True):
            store_masked(b, b.load(total), place, mask)
        return context.get_dummy_value()

    return types.void(rows, *[types.intp] * 7), generate


@intrinsic
def _pack_columns(typing, panel, w, ldw, pairs, columns):
    """Rows of ``w[2 * pairs, columns]``, columns <= LANES, two by two to a vector of pairs; zeros fill it."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        panel, w, ldw, pairs, columns = arguments
        mask = first_lanes(b, columns)
        with cgutils.for_range(b, pairs) as loop:
            first = b.add(w, b.mul(loop.index, b.add(ldw, ldw)))
            two = (load_masked(b, place, INT[16], mask) for place in (first, b.add(first, ldw)))
            store(b, paired(b, *two), b.add(panel, b.mul(loop.index, constant(_PAIR_ROW_BYTES))))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@intrinsic
def _pack_rows(typing, panel, w, ldw, pairs, columns):
    """Up to LANES pairs of each row of ``w[columns, 2 * pairs]`` to vectors of pairs; zeros fill them."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        panel, w, ldw, pairs, columns = arguments
        mask = first_lanes(b, pairs)
        none = ir.Constant(mask.type, None)
        rows = []
        for r in range(LANES):
            exists = b.select(b.icmp_signed("<", constant(r), columns), mask, none)
            rows.append(load_masked(b, b.add(w, b.mul(ldw, constant(r))), INT[32], exists))
        for r, row in enumerate(transposed(b, rows)):
            with b.if_then(b.icmp_signed("<", constant(r), pairs)):
                store(b, row, b.add(panel, constant(r * _PAIR_ROW_BYTES)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@njit
def _pack(by_rows, panels, w, ldw, pairs, columns):
    literally(by_rows)
    for column in range(0, columns, LANES):
        panel = panels + column // _PANEL * _PANEL_BYTES + 4 * (column % _PANEL)
        left = min(LANES, columns - column)
        if by_rows:
            for top in range(0, pairs, LANES):
                place = w + column * ldw + 4 * top
                _pack_rows(panel + top * _PAIR_ROW_BYTES, place, ldw, min(LANES, pairs - top), left)
        else:
            _pack_columns(panel, w + 2 * column, ldw, pairs, left)


@njit
def _add_panel(x, ldx, panel, out, ldo, rows, pairs, columns):
    row = 0
    while row + _TILE_ROWS <= rows:
        _pair_tile(_TILE_ROWS, out + row * ldo, ldo, x + row * ldx, ldx, panel, pairs, columns)
        row += _TILE_ROWS
    while row < rows:
        _pair_tile(1, out + row * ldo, ldo, x + row * ldx, ldx, panel, pairs, columns)
        row += 1


@njit
def _add_pairs(by_rows, x, w, ldw, out, ldo, m, k, columns):
    """``out[m, columns] += x[m, k] @ w[k, columns]``, or ``w[columns, k]`` by rows; k is even.

    x and w are bf16 and out is f32, as are the sums. Blocks of weights are arranged once, and stay in the
    cache for all rows of x.
    """
    literally(by_rows)
    memory = allocate(_PANEL_BYTES * (_BLOCK_COLUMNS // _PANEL) + _ALIGN)
    panels = (memory + _ALIGN - 1) // _ALIGN * _ALIGN
    for top in range(0, k // 2, _BLOCK_PAIRS):
        pairs = min(_BLOCK_PAIRS, k // 2 - top)
        _pack(by_rows, panels, w + (4 * top if by_rows else 2 * top * ldw), ldw, pairs, columns)
        for first in range(0, m, _BLOCK_ROWS):
            rows, row = min(_BLOCK_ROWS, m - first), x + 2 * (first * k + 2 * top)
            for column in range(0, columns, _PANEL):
                panel = panels + column // _PANEL * _PANEL_BYTES
                place = out + first * ldo + 4 * column
                _add_panel(row, 2 * k, panel, place, ldo, rows, pairs, min(_PANEL, columns - column))
    release(memory)


@njit
def multiply_pairs(by_rows, x, w, out, m, k, n, columns):
    """As ``matmul.multiply_columns``, of bf16 rows and weights."""
    literally(by_rows)
    if m <= FEW_ROWS and by_rows:
        stream_rows(PAIRS, x, w, 4, out, 4 * n, m, k // 2, columns)
    elif m <= FEW_ROWS:
        stream_columns(PAIRS, x, w, 2, 4 * n, out, 4 * n, m, k // 2, columns)
    else:
        for row in range(m):
            clear(out + 4 * n * row, 4 * columns)
        _add_pairs(by_rows, x, w, 2 * (k if by_rows else n), out, 4 * n, m, k, columns)
