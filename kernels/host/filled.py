"""The arithmetic of products that leave the empty part of a cache unread."""

import numpy as np
from numba import carray, literally, njit

from kernels.host.matmul import add_product, stream_rows
from kernels.host.memory import clear, pointer

__all__ = ["multiply_filled", "up_to_last", "weighted"]


@njit
def up_to_last(values):
    """How many there are up to the last that is not zero."""
    count = len(values)
    while count > 0 and values[count - 1] == 0:
        count -= 1
    return count


@njit
def weighted(x, k):
    """Up to which of ``k`` f32 weights a row goes; minus zero counts, and so does NaN."""
    return up_to_last(carray(pointer(x), k, np.uint32))


@njit
def _scores(kind, size, x, w, out, m, k, n, filled):
    """Rows of x times the filled rows of w; the other scores are zero, for nobody looks at them."""
    literally(kind)
    stream_rows(kind, x, w, size, out, 4 * n, m, k, filled)
    for row in range(m):
        clear(out + 4 * (row * n + filled), 4 * (n - filled))


@njit
def _sums(kind, size, x, w, out, m, k, n):
    """Sums of the rows of w up to the last that has a weight."""
    literally(kind)
    filled = 0
    for row in range(m):
        filled = max(filled, weighted(x + 4 * row * k, k))
    clear(out, 4 * m * n)
    add_product(kind, x, 4 * k, w, size, size * n, out, 4 * n, m, filled, 0, n)


@njit
def multiply_filled(kind, size, by_rows, x, w, out, m, k, n, filled):
    """``out[m, n] = x[m, k] @ w``: w is [n, k], of which ``filled`` rows are read, or [k, n]."""
    literally(kind)
    literally(by_rows)
    if by_rows:
        _scores(kind, size, x, w, out, m, k, n, filled)
    else:
        _sums(kind, size, x, w, out, m, k, n)
