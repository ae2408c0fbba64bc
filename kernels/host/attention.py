"""Attention as an XLA custom call: scores, softmax and sums, some rows at a time, of what is filled."""

import numpy as np
from llvmlite import binding
from numba import carray, cfunc, literally, njit

from kernels.host.elements import KINDS, SIZES
from kernels.host.frame import (
    answer_query,
    argument,
    data,
    dims,
    num_arguments,
    num_results,
    rank,
    result,
    share,
)
from kernels.host.matmul import add_product, multiply_columns
from kernels.host.memory import (
    allocate,
    clear,
    function_address,
    pointer,
    release,
    store_word,
    word,
)
from kernels.host.pairs import multiply_pairs
from kernels.host.pool import (
    FIRST_OWN_WORD,
    finish_tile,
    new_job,
    next_tile,
    release_job,
    share_job,
    wait_for_job,
)
from kernels.host.softmax import ZERO_BELOW, add_up, exponentials, highest_of, round_to, upper_halves
from kernels.host.targets import ATTENTION_NUMBERS, FEW_ROWS

__all__ = ["compile_attention"]

_FRAME, _FIRST, _RESULT, _CORES, _INNER, _BATCHES, _M, _N, _DEPTH, _WIDTH, _BLOCK, _BLOCKS = range(
    FIRST_OWN_WORD, FIRST_OWN_WORD + 12
)

_DIMS = 4
"""Of each operand of one core: two of batches, rows, columns."""

# Operands behind the rows and the keys and values of each core.
_MASK, _BIAS, _NUMBERS = range(3)

_NUM_NUMBERS = len(ATTENTION_NUMBERS)
_FACTOR, _DIVISOR, _FILL, _PRODUCT, _SCALED, _BIASED, _SOFTMAX, _WEIGHTS = range(_NUM_NUMBERS)

_BLOCK_SCORES = 1 << 16
"""As many scores, and half as many bytes of weights, stay in the second-level cache."""

_LEAST_TILES, _MOST_ROWS = 2, 128
"""Of a block; products take six rows of pairs at a time, or eight."""

_COLUMNS = 256
"""So many are multiplied in one go."""

_PARALLEL_FROM = 1 << 18
"""Multiplications that are worth waking another thread for."""

_WORD_BYTES = 8


@njit
def _up_to_last(address, n):
    """How many of ``n`` bytes there are up to the last that is not zero."""
    values, count = carray(pointer(address), n, np.uint8), n
    while count >= _WORD_BYTES and word(address + count - _WORD_BYTES, 0) == 0:
        count -= _WORD_BYTES
    while count > 0 and values[count - 1] == 0:
        count -= 1
    return count


@njit
def _mask_out(scores, mask, fill):
    for i in range(len(scores)):
        scores[i] = scores[i] if mask[i] else fill


@njit
def _operand(job, number):
    """The buffer of an operand that comes behind rows, keys and values."""
    return argument(word(job, _FRAME), word(job, _FIRST) + 1 + 2 * word(job, _CORES) + number)


@njit
def _columns(buffer):
    return word(dims(buffer), rank(buffer) - 1)


@njit
def _row_of(job, buffer, core, batch, row, size):
    """The address of a row of an operand whose other dims may be one, for all."""
    sizes = dims(buffer) + 8 * (rank(buffer) - _DIMS)
    outer, inner = divmod(batch, word(job, _INNER))
    outer, inner = min(outer, word(sizes, 0) - 1), min(inner, word(sizes, 1) - 1)
    place = (outer * word(sizes, 1) + inner) * word(sizes, 2) + min(row, word(sizes, 2) - 1)
    return share(buffer, _DIMS, core, size) + size * word(sizes, 3) * place


@njit
def _filled(job, core, batch, first, rows):
    """Up to which key some of the rows look."""
    mask, n, filled = _operand(job, _MASK), word(job, _N), 0
    if _columns(mask) < n:
        return n
    for row in range(first, first + rows):
        filled = max(filled, _up_to_last(_row_of(job, mask, core, batch, row, 1), n))
        if filled == n or word(dims(mask), rank(mask) - 2) == 1:
            break
    return filled


@njit
def _finish_scores(job, scores, core, batch, row, numbers):
    """Products of one row made scores: scaled, with a bias, and the fill where none is wanted."""
    round_to(scores, numbers[_PRODUCT])
    factor, divisor = numbers[_FACTOR], numbers[_DIVISOR]
    if factor != np.float32(1):
        for i in range(len(scores)):
            scores[i] *= factor
    if divisor != np.float32(1):
        for i in range(len(scores)):
            scores[i] /= divisor
    round_to(scores, numbers[_SCALED])
    bias, mask, n = _operand(job, _BIAS), _operand(job, _MASK), word(job, _N)
    if _columns(bias) == n:
        added = carray(pointer(_row_of(job, bias, core, batch, row, 4)), n, np.float32)
        for i in range(len(scores)):
            scores[i] += added[i]
    round_to(scores, numbers[_BIASED])
    if _columns(mask) == n:
        own_mask = carray(pointer(_row_of(job, mask, core, batch, row, 1)), n, np.uint8)
        _mask_out(scores, own_mask, numbers[_FILL])


@njit
def _soften(scores, highest, room, rounded):
    """Scores of one row made their softmax, each step of it ``rounded``; there is ``room`` for one."""
    if rounded:
        for i in range(len(scores)):
            scores[i] -= highest
        round_to(scores, rounded)
        highest = np.float32(0)
    exponentials(scores, highest)
    round_to(scores, rounded)
    room[0] = add_up(scores)
    round_to(room, rounded)
    divisor = room[0]
    for i in range(len(scores)):
        scores[i] /= divisor


@njit
def _multiply_keys(kind, size, pairs, rows, keys, scores, m, depth, n):
    """``scores[m, n]``: of some rows with the first ``n`` keys."""
    literally(kind)
    literally(pairs)
    for column in range(0, n, _COLUMNS):
        out, columns = scores + 4 * column, min(_COLUMNS, n - column)
        if pairs:
            multiply_pairs(True, rows, keys + 2 * depth * column, out, m, depth, n, columns)
        else:
            multiply_columns(kind, size, True, rows, keys + size * depth * column, out, m, depth, n, columns)


@njit
def _weigh_values(kind, size, pairs, weights, values, out, m, n, width):
    """``out[m, width]``: the sums of ``n`` values by ``weights[m, n]``, which of pairs are bf16."""
    literally(kind)
    literally(pairs)
    if not pairs and m <= FEW_ROWS:
        clear(out, 4 * m * width)
        add_product(kind, weights, 4 * n, values, size, size * width, out, 4 * width, m, n, 0, width)
        return
    for column in range(0, width, _COLUMNS):
        place, columns = values + size * column, min(_COLUMNS, width - column)
        if pairs:
            multiply_pairs(False, weights, place, out + 4 * column, m, n, width, columns)
        else:
            multiply_columns(kind, size, False, weights, place, out + 4 * column, m, n, width, columns)


@njit
def _make_weights(pairs, job, scores, core, batch, first, rows, read):
    """Products of rows with ``read`` keys made weights, where they lie; of pairs the bf16 lie side by side.

    False, and nothing of use, where keys that are not looked at have a weight all the same: the fill is not
    far below all scores, as in rows that look at nothing.
    """
    literally(pairs)
    n, numbers = word(job, _N), carray(pointer(data(_operand(job, _NUMBERS))), _NUM_NUMBERS, np.float32)
    fill, room = numbers[_FILL], np.empty(1, np.float32)
    for row in range(rows):
        own = carray(pointer(scores + 4 * read * row), read, np.float32)
        _finish_scores(job, own, core, batch, first + row, numbers)
        highest = highest_of(own) if read else fill
        if read < n:
            highest = fill if fill > highest else highest
            # If it is no number, no weight of the row is one, whatever is read.
            if highest == highest and not fill - highest < ZERO_BELOW:
                return False
        _soften(own, highest, room, numbers[_SOFTMAX])
        round_to(own, numbers[_WEIGHTS])
        if pairs:
            upper_halves(own, carray(pointer(scores + 2 * read * row), read, np.uint16))
    return True


@njit
def _compute_block(kind, size, pairs, job, tile):
    """Some rows of one batch of one core, keys up to the last that one of them looks at, or that weighs."""
    literally(kind)
    literally(pairs)
    frame, operands, cores = word(job, _FRAME), word(job, _FIRST), word(job, _CORES)
    m, n, depth, width = word(job, _M), word(job, _N), word(job, _DEPTH), word(job, _WIDTH)
    one, part = divmod(tile, word(job, _BLOCKS))
    core, batch = divmod(one, word(job, _BATCHES))
    first, row_size = part * word(job, _BLOCK), 2 if pairs else 4
    rows, before = min(word(job, _BLOCK), m - first), batch * m + first
    own_rows = share(argument(frame, operands), _DIMS, core, row_size) + row_size * depth * before
    keys = data(argument(frame, operands + 1 + core)) + size * depth * batch * n
    values = data(argument(frame, operands + 1 + cores + core)) + size * width * batch * n
    out = share(result(frame, word(job, _RESULT)), _DIMS, core, 4) + 4 * width * before
    read, is_made = _filled(job, core, batch, first, rows), False
    scores = allocate(4 * rows * n)
    while not is_made:
        read += read % 2 if pairs else 0  # then n is even, and terms go two at a time
        _multiply_keys(kind, size, pairs, own_rows, keys, scores, rows, depth, read)
        is_made = _make_weights(pairs, job, scores, core, batch, first, rows, read)
        if is_made:
            _weigh_values(kind, size, pairs, scores, values, out, rows, read, width)
        read = n
    release(scores)


@njit
def _run(frame, number, pairs, task):
    """One attention out of a call, on all cores: makes the job and works on it with others."""
    first = number * (num_arguments(frame) // num_results(frame))
    rows, out = argument(frame, first), result(frame, number)
    before = rank(out) - _DIMS
    cores = word(dims(out), 0) if before else 1
    inner, m, width = word(dims(out), before + 1), word(dims(out), before + 2), word(dims(out), before + 3)
    batches, n = word(dims(out), before) * inner, word(dims(argument(frame, first + 1)), 2)
    depth, step = word(dims(rows), rank(rows) - 1), 6 if pairs else 8
    most = max(_LEAST_TILES * step, min(_MOST_ROWS, _BLOCK_SCORES // n))
    blocks = (m + most - 1) // most
    block = m if blocks == 1 else ((m + blocks - 1) // blocks + step - 1) // step * step
    blocks = (m + block - 1) // block
    job = new_job(cores * batches * blocks)
    store_word(job, _FRAME, frame)
    store_word(job, _FIRST, first)
    store_word(job, _RESULT, number)
    store_word(job, _CORES, cores)
    store_word(job, _INNER, inner)
    store_word(job, _BATCHES, batches)
    store_word(job, _M, m)
    store_word(job, _N, n)
    store_word(job, _DEPTH, depth)
    store_word(job, _WIDTH, width)
    store_word(job, _BLOCK, block)
    store_word(job, _BLOCKS, blocks)
    read = _filled(job, 0, 0, 0, m) if m <= FEW_ROWS else n
    share_job(frame, job, task, cores * batches * m * read * (depth + width) >= _PARALLEL_FROM)
    wait_for_job(job)
    release_job(job)


_COMPILED = []
"""Keeps what XLA calls by address."""


def compile_attention(stored: str, stamp: str, *, pairs: bool) -> int:
    """The address of the compiled XLA handler of attention to keys and values of one type.

    Operands, of one after the other: f32, or with ``pairs`` bf16, rows [outer, inner, m, depth], keys
    [outer, inner, n, depth] and values [outer, inner, n, width]; a mask i1 and a bias f32
    [outer, inner, m, n] of which the first three dims may be 1, or [1, 1, 1, 1] where there is none; and f32
    for each of ``ATTENTION_NUMBERS``. With ``pairs`` weights are rounded to bf16, and depth and n are even.
    Results f32 [outer, inner, m, width]. A result with one dim more, the first, is that of all cores: then
    there are keys of each core, values of each core, and the rest is that of all with such a dim, or the same
    for all without.

    Args:
      stored: the type of keys and values, one of ``KINDS``; with ``pairs`` bf16.
      stamp: of the sources; what was compiled of others is not found again.
    """
    kind, size = KINDS[stored], SIZES[KINDS[stored]]
    task_name = f"neuronx_attention_{stored}_{pairs}_{stamp}"

    @cfunc("intp(intp)", cache=True)
    def task(job):
        tile = next_tile(job)
        while tile >= 0:
            _compute_block(kind, size, pairs, job, tile)
            finish_tile(job)
            tile = next_tile(job)
        release_job(job)
        return len(stamp)  # nobody asks, but so the stamp is part of the cache's key

    binding.add_symbol(task_name, task.address)

    @cfunc("intp(intp)", cache=True)
    def handler(frame):
        if not answer_query(frame):
            for number in range(num_results(frame)):
                _run(frame, number, pairs, function_address(task_name))
        return 0

    _COMPILED.extend((task, handler))
    return handler.address
