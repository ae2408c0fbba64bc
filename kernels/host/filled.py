"""Products that leave the empty part of a cache unread, as XLA custom calls."""

import numpy as np
from llvmlite import binding
from numba import carray, cfunc, literally, njit

from kernels.host.elements import KINDS, SIZES
from kernels.host.frame import answer_query, argument, data, dims, result
from kernels.host.matmul import PARALLEL_FROM, add_product, stream_rows
from kernels.host.memory import clear, function_address, pointer, store_word, word
from kernels.host.pool import (
    FIRST_OWN_WORD,
    finish_tile,
    new_job,
    next_tile,
    release_job,
    share_job,
    wait_for_job,
)

__all__ = ["compile_filled"]

# Words of the job. x is [batch, m, k], w [batch, k, n] or (by rows) [batch, n, k], out [batch, m, n].
_X, _W, _OUT, _M, _K, _N, _FILLED = range(FIRST_OWN_WORD, FIRST_OWN_WORD + 7)


@njit
def _up_to_last(values):
    """How many there are up to the last that is not zero."""
    count = len(values)
    while count > 0 and values[count - 1] == 0:
        count -= 1
    return count


@njit
def _weighted(x, k):
    """Up to which of ``k`` f32 weights a row goes; minus zero counts, and so does NaN."""
    return _up_to_last(carray(pointer(x), k, np.uint32))


@njit
def _scores(kind, size, job, batch):
    """Rows of x times the filled rows of w; the other scores are zero, for nobody looks at them."""
    literally(kind)
    m, k, n, filled = word(job, _M), word(job, _K), word(job, _N), word(job, _FILLED)
    x, w = word(job, _X) + 4 * batch * m * k, word(job, _W) + size * batch * n * k
    out = word(job, _OUT) + 4 * batch * m * n
    stream_rows(kind, x, w, size, out, 4 * n, m, k, filled)
    for row in range(m):
        clear(out + 4 * (row * n + filled), 4 * (n - filled))


@njit
def _sums(kind, size, job, batch):
    """Sums of the rows of w up to the last that has a weight."""
    literally(kind)
    m, k, n = word(job, _M), word(job, _K), word(job, _N)
    x, w = word(job, _X) + 4 * batch * m * k, word(job, _W) + size * batch * k * n
    out, filled = word(job, _OUT) + 4 * batch * m * n, 0
    for row in range(m):
        filled = max(filled, _weighted(x + 4 * row * k, k))
    clear(out, 4 * m * n)
    add_product(kind, x, 4 * k, w, size, size * n, out, 4 * n, m, filled, 0, n)


@njit
def _run(frame, by_rows, task):
    """Reads the call frame, makes a job of a tile for each batch and works on it until it is done."""
    x, w, out = argument(frame, 0), argument(frame, 1), result(frame, 0)
    x_dims, out_dims = dims(x), dims(out)
    batch, m, k, n = word(out_dims, 0), word(out_dims, 1), word(x_dims, 2), word(out_dims, 2)
    if by_rows:
        filled = _up_to_last(carray(pointer(data(argument(frame, 2))), n, np.uint8))
        multiplications = batch * m * k * filled
    else:
        filled = _weighted(data(x), k)  # of the first row: whether others help changes no result
        multiplications = batch * m * filled * n
    job = new_job(batch)
    store_word(job, _X, data(x))
    store_word(job, _W, data(w))
    store_word(job, _OUT, data(out))
    store_word(job, _M, m)
    store_word(job, _K, k)
    store_word(job, _N, n)
    store_word(job, _FILLED, filled)
    share_job(frame, job, task, multiplications >= PARALLEL_FROM)
    wait_for_job(job)
    release_job(job)


_COMPILED = []
"""Keeps what XLA calls by address."""


def compile_filled(weights: str, by_rows: bool, stamp: str) -> int:
    """The address of the compiled XLA handler for a cache of one type.

    Operands: f32 x [batch, m, k] and a cache w. With ``by_rows`` w is [batch, n, k], and a mask i1 [n] says
    which of the scores [batch, m, n] somebody looks at. Else w is [batch, k, n], and what lies behind the
    last of x that is not zero is not read. The result is f32. Arguments as of ``compile_matmul``.
    """
    kind, size = KINDS[weights], SIZES[KINDS[weights]]
    task_name = f"neuronx_filled_{weights}_{by_rows}_{stamp}"

    @cfunc("intp(intp)", cache=True)
    def task(job):
        batch = next_tile(job)
        while batch >= 0:
            if by_rows:
                _scores(kind, size, job, batch)
            else:
                _sums(kind, size, job, batch)
            finish_tile(job)
            batch = next_tile(job)
        release_job(job)
        return len(stamp)  # nobody asks, but so the stamp is part of the cache's key

    binding.add_symbol(task_name, task.address)

    @cfunc("intp(intp)", cache=True)
    def handler(frame):
        if not answer_query(frame):
            _run(frame, by_rows, function_address(task_name))
        return 0

    _COMPILED.extend((task, handler))
    return handler.address
