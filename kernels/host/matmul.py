"""The product kernels: rows times weights of any stored type, in both layouts, as XLA custom calls."""

import numpy as np
from llvmlite import binding
from numba import carray, cfunc, literally, njit

from kernels.host.elements import KINDS, LANES, SIZES
from kernels.host.frame import answer_query, argument, data, dims, result
from kernels.host.memory import allocate, clear, function_address, pointer, release, store_word, word
from kernels.host.pairs import add_pairs
from kernels.host.pool import (
    FIRST_OWN_WORD,
    finish_tile,
    new_job,
    next_tile,
    release_job,
    share_job,
    wait_for_job,
)
from kernels.host.targets import FEW_ROWS
from kernels.host.vectors import column_tile, row_tile, stream_tile, transpose_tile, widen_tile

__all__ = ["PARALLEL_FROM", "add_product", "compile_matmul", "stream_rows"]

# Words of the job. x is [batch, m, k], w [batch, k, n] or (by rows) [batch, n, k], out [batch, m, n].
_X, _W, _OUT, _M, _K, _N, _SIZE, _TILES = range(FIRST_OWN_WORD, FIRST_OWN_WORD + 8)

_STREAM_DEPTH = 4
_COLUMN_DEPTH = 8
"""Rows of weights that one row, and several, meet together: the sums are read and written once for all."""

_NEAR_SUMS = 8192
"""Sums that stay in the first-level cache."""

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

PARALLEL_FROM = 1 << 17
"""Multiplications that are worth waking another thread for."""

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
def _stream_row(kind, x, w, size, out, k, n):
    """One row, weights [k, n]: they pass by once, in one stretch if their sums fit the first-level cache."""
    literally(kind)
    distance, total = _distance(_STREAM_DEPTH * size * n), size * k * n
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
def _stream_columns(kind, x, w, size, ldw, out, ldo, m, k, columns):
    """Few rows, weights [k, n]: a few rows of weights at a time pass by once."""
    literally(kind)
    for top in range(0, k, _COLUMN_DEPTH):
        depth = min(_COLUMN_DEPTH, k - top)
        add_product(
            kind, x + 4 * top, 4 * k, w + top * ldw, size, ldw, out, ldo, m, depth, depth * ldw, columns
        )


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
        if m - row >= 4:
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
def _compute_pairs(by_rows, job, tile):
    """As ``_compute_columns``, of bf16 rows and weights."""
    m, k, n, width = word(job, _M), word(job, _K), word(job, _N), word(job, _SIZE)
    batch, part = divmod(tile, word(job, _TILES))
    first = part * width
    columns = min(width, n - first)
    x = word(job, _X) + 2 * batch * m * k
    w = word(job, _W) + 2 * (batch * k * n + first * (k if by_rows else 1))
    out, ldo = word(job, _OUT) + 4 * (batch * m * n + first), 4 * n
    for row in range(m):
        clear(out + row * ldo, 4 * columns)
    add_pairs(by_rows, x, w, 2 * (k if by_rows else n), out, ldo, m, k, columns)


@njit
def _compute_stretch(kind, size, job, tile):
    """One row times some rows of weights, added up by themselves."""
    literally(kind)
    k, n, height = word(job, _K), word(job, _N), word(job, _SIZE)
    batch, part = divmod(tile, word(job, _TILES))
    first = part * height
    x = word(job, _X) + 4 * (batch * k + first)
    w = word(job, _W) + size * n * (batch * k + first)
    sums = word(job, _OUT) + 4 * n * tile
    clear(sums, 4 * n)
    _stream_row(kind, x, w, size, sums, min(height, k - first), n)


@njit
def _compute_columns(kind, size, by_rows, job, tile):
    """All rows of one range of columns."""
    literally(kind)
    literally(by_rows)
    m, k, n, width = word(job, _M), word(job, _K), word(job, _N), word(job, _SIZE)
    batch, part = divmod(tile, word(job, _TILES))
    first = part * width
    columns = min(width, n - first)
    x = word(job, _X) + 4 * batch * m * k
    w = word(job, _W) + size * (batch * k * n + first * (k if by_rows else 1))
    out, ldo = word(job, _OUT) + 4 * (batch * m * n + first), 4 * n
    if by_rows and m <= FEW_ROWS:
        stream_rows(kind, x, w, size, out, ldo, m, k, columns)
        return
    for row in range(m):
        clear(out + row * ldo, 4 * columns)
    if m <= FEW_ROWS:
        _stream_columns(kind, x, w, size, size * n, out, ldo, m, k, columns)
    else:
        _blocks(kind, by_rows, x, w, size, size * (k if by_rows else n), out, ldo, m, k, columns)


@njit
def _compute_tile(kind, size, by_rows, job, tile):
    """A part of the job, in one order of summation however the tiles are shared out."""
    literally(kind)
    literally(by_rows)
    if word(job, _M) == 1 and not by_rows:
        _compute_stretch(kind, size, job, tile)
    else:
        _compute_columns(kind, size, by_rows, job, tile)


@njit
def _tile_width(m, n):
    """Columns of a tile: equal shares, some for each thread, and of few rows stretches that stream well."""
    tiles, highest = (max(2, min(8, n // 512)), 1024) if m <= FEW_ROWS else (8, _BLOCK_COLUMNS)
    wanted = (n + tiles - 1) // tiles
    return min(highest, max(2 * _PANEL, (wanted + _PANEL - 1) // _PANEL * _PANEL))


@njit
def _tile_height(k):
    """Rows of weights of a tile, all of them whole groups."""
    group = 8 * _STREAM_DEPTH
    wanted = (k + _STRETCHES - 1) // _STRETCHES
    return (wanted + group - 1) // group * group


@njit
def _multiply(frame, task, x, w, out, batch, m, k, n, size, tiles):
    """Makes the job, of tiles of ``size`` columns or rows, and works on it, with others, until it is done."""
    job = new_job(batch * tiles)
    store_word(job, _X, x)
    store_word(job, _W, w)
    store_word(job, _OUT, out)
    store_word(job, _M, m)
    store_word(job, _K, k)
    store_word(job, _N, n)
    store_word(job, _SIZE, size)
    store_word(job, _TILES, tiles)
    share_job(frame, job, task, batch * m * k * n >= PARALLEL_FROM)
    wait_for_job(job)
    release_job(job)


@njit
def _multiply_row(frame, task, x, w, out, batch, k, n):
    """One row times weights [k, n]: the sums of each stretch, and then the sum of these."""
    height = _tile_height(k)
    tiles = (k + height - 1) // height
    if tiles <= 1:
        _multiply(frame, task, x, w, out, batch, 1, k, n, height, tiles)
        return
    memory = allocate(4 * (tiles + batch * tiles * n))
    ones, sums = carray(pointer(memory), tiles, np.float32), memory + 4 * tiles
    ones[:] = 1
    _multiply(frame, task, x, w, sums, batch, 1, k, n, height, tiles)
    clear(out, 4 * batch * n)
    for one in range(batch):
        _stream_row(_F32, memory, sums + 4 * one * tiles * n, 4, out + 4 * one * n, tiles, n)
    release(memory)


@njit
def _run(frame, by_rows, task):
    """Reads the call frame and computes what it asks for."""
    x, w, out = argument(frame, 0), argument(frame, 1), result(frame, 0)
    x_dims, out_dims = dims(x), dims(out)
    batch, m, k, n = word(out_dims, 0), word(out_dims, 1), word(x_dims, 2), word(out_dims, 2)
    if m == 1 and not by_rows:
        _multiply_row(frame, task, data(x), data(w), data(out), batch, k, n)
    else:
        width = _tile_width(m, n)
        tiles = (n + width - 1) // width
        _multiply(frame, task, data(x), data(w), data(out), batch, m, k, n, width, tiles)


_COMPILED = []
"""Keeps what XLA calls by address."""


def compile_matmul(weights: str, by_rows: bool, pairs: bool, stamp: str) -> int:
    """The address of the compiled XLA handler of the product with weights of one type and layout.

    Operands: f32, or with ``pairs`` bf16, [batch, m, k] and weights [batch, k, n], or with ``by_rows``
    [batch, n, k]; result f32 [batch, m, n]. Loaded from Numba's cache on disk where this machine compiled it
    before.

    Args:
      weights: one of ``KINDS``; with ``pairs`` bf16.
      stamp: of the sources; what was compiled of others is not found again.
    """
    kind, size = KINDS[weights], SIZES[KINDS[weights]]
    task_name = f"neuronx_matmul_{weights}_{by_rows}_{pairs}_{stamp}"

    @cfunc("intp(intp)", cache=True)
    def task(job):
        tile = next_tile(job)
        while tile >= 0:
            if pairs:
                _compute_pairs(by_rows, job, tile)
            else:
                _compute_tile(kind, size, by_rows, job, tile)
            finish_tile(job)
            tile = next_tile(job)
        release_job(job)
        return len(stamp)  # nobody asks, but so the stamp is part of the cache's key

    # The handler finds the task by its name: an address would be wrong once it is loaded from the cache.
    binding.add_symbol(task_name, task.address)

    @cfunc("intp(intp)", cache=True)
    def handler(frame):
        if not answer_query(frame):
            _run(frame, by_rows, function_address(task_name))
        return 0

    _COMPILED.extend((task, handler))
    return handler.address
