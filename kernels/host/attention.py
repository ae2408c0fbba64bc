"""Attention of many rows as an XLA custom call: scores, softmax and sums of a block of rows at a time."""

import numpy as np
from llvmlite import binding
from numba import carray, cfunc, njit

from kernels.host.filled import up_to_last
from kernels.host.frame import answer_query, argument, data, dims, num_results, result
from kernels.host.memory import function_address, pointer, store_word, word
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

__all__ = ["compile_attention"]

_OPERANDS = 5
_ROWS, _KEYS, _VALUES, _MASK, _FILL, _OUT = range(FIRST_OWN_WORD, FIRST_OWN_WORD + 6)
_M, _N, _DEPTH, _WIDTH, _MASK_ROWS, _BLOCK, _BLOCKS = range(_OUT + 1, _OUT + 8)

_BLOCK_SCORES = 1 << 16
"""As many scores, and half as many bytes of weights, stay in the second-level cache."""

_LEAST_ROWS, _MOST_ROWS, _TILE_ROWS = 12, 60, 6
"""Of a block; products take six rows at a time."""

_COLUMNS = 256
"""So many are multiplied in one go."""

_LOG2_E = np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_TO_INTEGER = np.float32(12582912.0)
_TERMS = tuple(map(np.float32, (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666665e-1, 0.5)))
"""Of exp(r) behind 1 + r, from r**7 down, for r of at most half the logarithm of two (Cephes' ``expf``)."""

_ONE, _ALL_BUT_SIGN = np.float32(1), np.int32(0x7FFFFFFF)
_EXPONENT_BIAS, _MANTISSA_BITS, _SIGN_PLACE = np.int32(127), np.int32(23), np.int32(31)
_ZERO_BELOW = np.float32(-87.3)
"""Its exponential is no normal number, which XLA:CPU takes for zero."""

_JUST_BELOW_HALF, _LAST, _HALF_BITS, _NAN = np.uint32(0x7FFF), np.uint32(1), np.uint32(16), np.uint16(0x7FC0)


@njit
def _mask_out(scores, mask, fill):
    for i in range(len(scores)):
        scores[i] = scores[i] if mask[i] else fill


@njit
def _highest(scores, room):
    """Found among integers: floats without a sign keep their order as such, those with one turn it."""
    bits, one = scores.view(np.int32), room.view(np.int32)
    found = np.int32(-(1 << 31))
    for i in range(len(bits)):
        found = max(found, bits[i] ^ ((bits[i] >> _SIGN_PLACE) & _ALL_BUT_SIGN))
    one[0] = found ^ ((found >> _SIGN_PLACE) & _ALL_BUT_SIGN)
    return room[0]


@njit
def _exponentials(scores, highest, powers):
    """``exp(scores - highest)`` in place, of relative error 2**-23; ``powers`` is room for as many."""
    for i in range(len(scores)):
        x = scores[i] - highest
        scores[i] = x
        powers[i] = (_ZERO_BELOW if x < _ZERO_BELOW else x) * _LOG2_E + _TO_INTEGER
    bits = powers.view(np.int32)
    start = np.int32(0x4B400000)  # of _TO_INTEGER
    for i in range(len(scores)):
        x = scores[i]
        power = powers[i] - _TO_INTEGER
        r = (_ZERO_BELOW if x < _ZERO_BELOW else x) - power * _LN_2_HIGH - power * _LN_2_LOW
        total = _TERMS[0]
        for term in _TERMS[1:]:
            total = total * r + term
        total = total * r * r + r + _ONE
        scores[i] = np.float32(0) if x < _ZERO_BELOW else total
        bits[i] = (bits[i] - start + _EXPONENT_BIAS) << _MANTISSA_BITS
    for i in range(len(scores)):
        scores[i] *= powers[i]


@njit(fastmath={"reassoc"})
def _sum(values):
    """In whatever order this processor adds fastest, which is one for each length."""
    total = np.float32(0)
    for value in values:
        total += value
    return total


@njit
def _divide(values, total, weights):
    """The quotients as bf16, the nearest, ties to even."""
    if total != total:
        weights[:] = _NAN
        return
    for i in range(len(values)):
        values[i] /= total
    bits = values.view(np.uint32)
    for i in range(len(values)):
        weights[i] = (bits[i] + _JUST_BELOW_HALF + ((bits[i] >> _HALF_BITS) & _LAST)) >> _HALF_BITS


@njit
def _compute_block(job, tile):
    """Some rows of one batch, keys up to the last that one of them looks at.

    What no row looks at has a weight all the same where the fill is not far below all scores, as in rows that
    look at nothing: then all values are read.
    """
    m, n, depth, width = word(job, _M), word(job, _N), word(job, _DEPTH), word(job, _WIDTH)
    batch, part = divmod(tile, word(job, _BLOCKS))
    first = part * word(job, _BLOCK)
    rows = min(word(job, _BLOCK), m - first)
    all_masks = carray(pointer(word(job, _MASK)), (word(job, _MASK_ROWS), n), np.uint8)
    masks = all_masks[first : first + rows] if word(job, _MASK_ROWS) > 1 else all_masks
    fill = carray(pointer(word(job, _FILL)), 1, np.float32)[0]
    filled = 0
    for row in range(len(masks)):
        filled = max(filled, up_to_last(masks[row]))
    read = filled + filled % 2  # n is even, and products take two terms at a time
    scores, powers = np.empty((rows, n), np.float32), np.empty(n, np.float32)
    own_rows = word(job, _ROWS) + 2 * depth * (batch * m + first)
    keys = word(job, _KEYS) + 2 * depth * batch * n
    for column in range(0, read, _COLUMNS):
        place, columns = scores.ctypes.data + 4 * column, min(_COLUMNS, read - column)
        multiply_pairs(True, own_rows, keys + 2 * depth * column, place, rows, depth, n, columns)
    highest = np.empty(rows, np.float32)
    for row in range(rows):
        mask = masks[row if len(masks) > 1 else 0]
        _mask_out(scores[row, :read], mask[:read], fill)
        highest[row] = _highest(scores[row, :read], powers) if read else fill
        if read < n and fill > highest[row]:
            highest[row] = fill
        is_number = highest[row] == highest[row]  # if not, no weight of the row is one, whatever is read
        if read < n and is_number and not fill - highest[row] < _ZERO_BELOW:
            read = n
    if read > filled:
        scores[:, filled:read] = fill
    weights = np.empty((rows, read), np.uint16)
    for row in range(rows):
        own = scores[row, :read]
        _exponentials(own, highest[row], powers[:read])
        _divide(own, _sum(own), weights[row])
    values, out = (
        word(job, _VALUES) + 2 * width * batch * n,
        word(job, _OUT) + 4 * width * (batch * m + first),
    )
    for column in range(0, width, _COLUMNS):
        columns = min(_COLUMNS, width - column)
        multiply_pairs(
            False, weights.ctypes.data, values + 2 * column, out + 4 * column, rows, read, width, columns
        )


@njit
def _run(frame, number, task):
    """One attention out of a call: reads the call frame, makes the job and works on it with others."""
    rows, keys = argument(frame, _OPERANDS * number), argument(frame, _OPERANDS * number + 1)
    values, mask = argument(frame, _OPERANDS * number + 2), argument(frame, _OPERANDS * number + 3)
    m, n = word(dims(rows), 1), word(dims(keys), 1)
    fitting = _BLOCK_SCORES // n // _TILE_ROWS * _TILE_ROWS
    block = max(_LEAST_ROWS, min(_MOST_ROWS, fitting))
    blocks = (m + block - 1) // block
    job = new_job(word(dims(rows), 0) * blocks)
    store_word(job, _ROWS, data(rows))
    store_word(job, _KEYS, data(keys))
    store_word(job, _VALUES, data(values))
    store_word(job, _MASK, data(mask))
    store_word(job, _FILL, data(argument(frame, _OPERANDS * number + 4)))
    store_word(job, _OUT, data(result(frame, number)))
    store_word(job, _M, m)
    store_word(job, _N, n)
    store_word(job, _DEPTH, word(dims(rows), 2))
    store_word(job, _WIDTH, word(dims(values), 2))
    store_word(job, _MASK_ROWS, word(dims(mask), 0))
    store_word(job, _BLOCK, block)
    store_word(job, _BLOCKS, blocks)
    share_job(frame, job, task, True)
    wait_for_job(job)
    release_job(job)


_COMPILED = []
"""Keeps what XLA calls by address."""


def compile_attention(stamp: str) -> int:
    """The address of the compiled XLA handler of attention in bf16.

    Operands, of one after the other: bf16 rows [batch, m, depth], keys [batch, n, depth] and values
    [batch, n, width], a mask i1 [m, n], or [1, n] for all rows, and f32 [1], the score of what is masked out;
    depth and n are even. Results f32 [batch, m, width].
    """
    task_name = f"neuronx_attention_{stamp}"

    @cfunc("intp(intp)", cache=True)
    def task(job):
        tile = next_tile(job)
        while tile >= 0:
            _compute_block(job, tile)
            finish_tile(job)
            tile = next_tile(job)
        release_job(job)
        return len(stamp)  # nobody asks, but so the stamp is part of the cache's key

    binding.add_symbol(task_name, task.address)

    @cfunc("intp(intp)", cache=True)
    def handler(frame):
        if not answer_query(frame):
            for number in range(num_results(frame)):
                _run(frame, number, function_address(task_name))
        return 0

    _COMPILED.extend((task, handler))
    return handler.address
