"""The arithmetic of products: rows times weights of any stored type, in both layouts."""

import numpy as np
from numba import literally, njit

from kernels.host.elements import KINDS, LANES, PAIRS
from kernels.host.memory import allocate, clear, copy, release
from kernels.host.targets import FEW_ROWS
from kernels.host.vectors import column_tile, row_tile, stream_tile, transpose_tile, widen_tile

__all__ = [
    "add_product",
    "add_stretches",
    "multiply_columns",
    "multiply_stretch",
    "stream_columns",
    "stream_rows",
    "tile_height",
    "tile_width",
]

_STREAM_DEPTH = 4
_COLUMN_DEPTH = 8
"""Rows of weights that one row, and several, meet together: the sums are read and written once for all."""

_NEAR_SUMS = 8192
"""Sums that stay in the first-level cache."""

_REGISTER_VECTORS = 8
"""Vectors of sums of one row that stay in registers: 128 columns, as two heads of 64 have."""

_AHEAD_BYTES = 1 << 16
"""How far ahead weights are asked for."""

_STRETCHES = 8
"""One row takes its weights [k, n] in so many stretches of whole rows, each with sums of its own."""

_NEAR_COLUMNS = 24
"""Rows of [n, k] weights that meet all rows of x before the next: a multiple of the columns of each tile."""

_BLOCK_ROWS = 256
_BLOCK_DEPTH = 256
_BLOCK_COLUMNS = 256
_PANEL = 2 * LANES
"""Widened weights lie in panels of two vectors a row, 256 rows and 8 panels at a time, and meet 256 rows of x
at a time: each is a quarter of the second-level cache."""

_F32 = KINDS["f32"]
_ALIGN = 64


@njit
def _column_group(kind, rows, vectors, x, ldx, w, size, ldw, out, ldo, depth, ahead, columns):
    literally(kind)
    literally(rows)
    literally(vectors)
    step = vectors * LANES
    column = 0
    while column + step <= columns:
        column_tile(
            kind, rows, vectors, 0, out + 4 * column, ldo, x, ldx, w + size * column, ldw, depth, ahead, 0
        )
        column += step
    while column < columns:
        left = min(columns - column, LANES)
        column_tile(
            kind, rows, 1, 1, out + 4 * column, ldo, x, ldx, w + size * column, ldw, depth, ahead, left
        )
        column += LANES


@njit
def add_product(kind, x, ldx, w, size, ldw, out, ldo, m, depth, ahead, columns):
    """``out[m, columns] += x[m, depth] @ w[depth, columns]``, rows of x in groups that fit registers."""
    literally(kind)
    row = 0
    while row < m:
        x_row, out_row = x + row * ldx, out + row * ldo
        if m - row >= 8:
            _column_group(kind, 8, 2, x_row, ldx, w, size, ldw, out_row, ldo, depth, ahead, columns)
            row += 8
        elif m - row >= 4:
            _column_group(kind, 4, 2, x_row, ldx, w, size, ldw, out_row, ldo, depth, ahead, columns)
            row += 4
        elif m - row >= 2:
            _column_group(kind, 2, 4, x_row, ldx, w, size, ldw, out_row, ldo, depth, ahead, columns)
            row += 2
        else:
            _column_group(kind, 1, 4, x_row, ldx, w, size, ldw, out_row, ldo, depth, ahead, columns)
            row += 1


@njit
def _distance(group_bytes):
    """From what is read to what is asked for: some whole groups of rows of weights."""
    return max(1, _AHEAD_BYTES // group_bytes) * group_bytes


@njit
def _stream_row(kind, x, w, size, out, k, n, behind):
    """One row, weights [k, n]: they pass by once, in one stretch if their sums fit the first-level cache.

    ``behind`` them lie so many bytes that will be read next.
    """
    literally(kind)
    distance, total = _distance(_STREAM_DEPTH * size * n), size * k * n + behind
    if n == _REGISTER_VECTORS * LANES:
        ahead = distance // 4 if behind else 0
        column_tile(kind, 1, _REGISTER_VECTORS, 0, out, 0, x, 0, w, size * n, k, ahead, 0)
        return
    for column in range(0, n, _NEAR_SUMS):
        columns = min(_NEAR_SUMS, n - column)
        place, sums = w + size * column, out + 4 * column
        top = 0
        while top + _STREAM_DEPTH <= k:
            at = size * n * top
            ahead = distance if at + distance < total else 0
            stream_tile(kind, _STREAM_DEPTH, sums, x + 4 * top, place + at, size * n, ahead, columns)
            top += _STREAM_DEPTH
        while top < k:
            stream_tile(kind, 1, sums, x + 4 * top, place + size * n * top, size * n, 0, columns)
            top += 1


@njit
def stream_columns(kind, x, w, size, ldw, out, ldo, m, k, columns):
    """Few rows, weights [k, n]: a few rows of weights at a time pass by once.

    The sums lie by themselves meanwhile: as rows of ``out`` they share a few places of the first-level cache
    with the rows of weights, which push them out.
    """
    literally(kind)
    row_bytes = 4 * columns + _ALIGN
    memory = allocate(m * row_bytes + _ALIGN)
    sums = (memory + _ALIGN - 1) // _ALIGN * _ALIGN
    clear(sums, m * row_bytes)
    for top in range(0, k, _COLUMN_DEPTH):
        depth = min(_COLUMN_DEPTH, k - top)
        place, ahead = w + top * ldw, depth * ldw
        add_product(kind, x + 4 * top, 4 * k, place, size, ldw, sums, row_bytes, m, depth, ahead, columns)
    for row in range(m):
        copy(out + row * ldo, sums + row * row_bytes, 4 * columns)
    release(memory)


@njit
def _row_group(kind, rows, wide, x, w, size, out, ldo, k, columns):
    literally(kind)
    literally(rows)
    literally(wide)
    column, ldw = 0, size * k
    ahead = _distance(wide * ldw)
    while column + wide <= columns:
        row_tile(kind, rows, wide, out + 4 * column, ldo, x, 4 * k, w + ldw * column, ldw, k, ahead)
        column += wide
    while column < columns:
        row_tile(kind, rows, 1, out + 4 * column, ldo, x, 4 * k, w + ldw * column, ldw, k, 0)
        column += 1


@njit
def stream_rows(kind, x, w, size, out, ldo, m, k, columns):
    """Few rows, weights [n, k]: dot products along their rows, of which a few stay near for all rows of x."""
    literally(kind)
    for first in range(0, columns, _NEAR_COLUMNS):
        count = min(_NEAR_COLUMNS, columns - first)
        _row_groups(kind, x, w + size * k * first, size, out + 4 * first, ldo, m, k, count)


@njit
def _row_groups(kind, x, w, size, out, ldo, m, k, columns):
    literally(kind)
    row = 0
    while row < m:
        x_row, out_row = x + 4 * k * row, out + ldo * row
        if kind == PAIRS and m - row >= 8:
            _row_group(kind, 8, 3, x_row, w, size, out_row, ldo, k, columns)
            row += 8
        elif m - row >= 4:
            _row_group(kind, 4, 6, x_row, w, size, out_row, ldo, k, columns)
            row += 4
        elif m - row >= 2:
            _row_group(kind, 2, 4, x_row, w, size, out_row, ldo, k, columns)
            row += 2
        else:
            _row_group(kind, 1, 4, x_row, w, size, out_row, ldo, k, columns)
            row += 1


@njit
def _pack_columns(kind, panels, w, size, ldw, depth, columns):
    """``w[depth, columns]`` to f32 panels; few rows at a time, so that each is read along memory."""
    literally(kind)
    for top in range(0, depth, _COLUMN_DEPTH):
        rows = min(_COLUMN_DEPTH, depth - top)
        for column in range(0, columns, LANES):
            panel = panels + 4 * (column // _PANEL * _PANEL * _BLOCK_DEPTH + column % _PANEL)
            place = w + top * ldw + size * column
            left = min(LANES, columns - column)
            widen_tile(kind, panel + 4 * _PANEL * top, 4 * _PANEL, place, ldw, rows, rows * ldw, left)


@njit
def _pack_rows(kind, panels, w, size, ldw, depth, columns):
    """``w[columns, depth].T`` to f32 panels."""
    literally(kind)
    for column in range(0, columns, LANES):
        panel = panels + 4 * (column // _PANEL * _PANEL * _BLOCK_DEPTH + column % _PANEL)
        left = min(LANES, columns - column)
        for top in range(0, depth, LANES):
            place = w + column * ldw + size * top
            rows = min(LANES, depth - top)
            transpose_tile(kind, panel + 4 * _PANEL * top, 4 * _PANEL, place, ldw, rows, left)


@njit
def _blocks(kind, by_rows, x, w, size, ldw, out, ldo, m, k, columns):
    """Many rows: blocks of weights are widened once and stay in the cache for all rows of x."""
    literally(kind)
    literally(by_rows)
    memory = allocate(4 * _BLOCK_DEPTH * _BLOCK_COLUMNS + _ALIGN)
    panels = (memory + _ALIGN - 1) // _ALIGN * _ALIGN
    for top in range(0, k, _BLOCK_DEPTH):
        depth = min(_BLOCK_DEPTH, k - top)
        if by_rows:
            _pack_rows(kind, panels, w + size * top, size, ldw, depth, columns)
        else:
            _pack_columns(kind, panels, w + top * ldw, size, ldw, depth, columns)
        for first in range(0, m, _BLOCK_ROWS):
            rows, row = min(_BLOCK_ROWS, m - first), x + 4 * (first * k + top)
            for column in range(0, columns, _PANEL):
                panel = panels + 4 * column * _BLOCK_DEPTH
                place = out + first * ldo + 4 * column
                left = min(_PANEL, columns - column)
                add_product(_F32, row, 4 * k, panel, 4, 4 * _PANEL, place, ldo, rows, depth, 0, left)
    release(memory)


@njit
def multiply_columns(kind, size, by_rows, x, w, out, m, k, n, columns):
    """``out[m, columns] = x[m, k] @ w[k, columns]``; rows of out, and of w unless ``by_rows``, are of n."""
    literally(kind)
    literally(by_rows)
    ldo = 4 * n
    if by_rows and m <= FEW_ROWS:
        stream_rows(kind, x, w, size, out, ldo, m, k, columns)
        return
    if m <= FEW_ROWS:
        stream_columns(kind, x, w, size, size * n, out, ldo, m, k, columns)
    else:
        for row in range(m):
            clear(out + row * ldo, 4 * columns)
        _blocks(kind, by_rows, x, w, size, size * (k if by_rows else n), out, ldo, m, k, columns)


@njit
def multiply_stretch(kind, size, x, w, sums, k, n, behind):
    """``sums[n] = x[k] @ w[k, n]`` of one row; ``behind`` the weights so many bytes will be read next."""
    literally(kind)
    clear(sums, 4 * n)
    _stream_row(kind, x, w, size, sums, k, n, behind)


@njit
def add_stretches(sums, out, stretches, n):
    """``out[n]``: the sum of ``sums[stretches, n]``, added in order."""
    ones = np.ones(_STRETCHES, np.float32)
    clear(out, 4 * n)
    _stream_row(_F32, ones.ctypes.data, sums, 4, out, stretches, n, 0)


@njit
def tile_width(m, n):
    """Columns of a tile: equal shares, some for each thread, and of few rows stretches that stream well."""
    tiles, highest = (max(2, min(8, n // 512)), 1024) if m <= FEW_ROWS else (8, _BLOCK_COLUMNS)
    wanted = (n + tiles - 1) // tiles
    return min(highest, max(2 * _PANEL, (wanted + _PANEL - 1) // _PANEL * _PANEL))


@njit
def tile_height(k):
    """Rows of weights of a stretch, all of them whole groups."""
    group = 8 * _STREAM_DEPTH
    wanted = (k + _STRETCHES - 1) // _STRETCHES
    return (wanted + group - 1) // group * group
