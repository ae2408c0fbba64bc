"""The update kernel: writes a slice into an array where it lies, as an XLA custom call."""

from numba import cfunc, njit

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
from kernels.host.memory import copy, word

__all__ = ["compile_update"]

_BESIDE_ARRAYS = 2
"""The slice and its starts."""

_WORD_BYTES = 8


@njit
def _place(outer, sizes, parts, starts, last):
    """Elements before row number ``outer`` of the slice in the array; ``last`` is the dim of the rows.

    A start is moved until the slice fits, as StableHLO has it.
    """
    first = min(max(word(starts, last), 0), word(sizes, last) - word(parts, last))
    stride = word(sizes, last)
    for dim in range(last - 1, -1, -1):
        size, part = word(sizes, dim), word(parts, dim)
        start = min(max(word(starts, dim), 0), size - part)
        first += (start + outer % part) * stride
        outer //= part
        stride *= size
    return first


@njit
def _update(frame, number, cores, element_bytes):
    group, core = divmod(number, cores)
    behind, out = group * (cores + _BESIDE_ARRAYS) + cores, result(frame, number)
    update = argument(frame, behind)
    sizes, parts = dims(out), dims(update) + _WORD_BYTES * (rank(update) - rank(out))
    starts = share(argument(frame, behind + 1), 1, core, _WORD_BYTES)
    source = share(update, rank(out), core, element_bytes)
    last = rank(out) - 1
    rows = 1
    for dim in range(last):
        rows *= word(parts, dim)
    row_bytes = word(parts, last) * element_bytes
    for row in range(rows):
        place = _place(row, sizes, parts, starts, last) * element_bytes
        copy(data(out) + place, source + row * row_bytes, row_bytes)


_COMPILED = []
"""Keeps what XLA calls by address."""


def compile_update(element_bytes: int, stamp: str) -> int:
    """The address of the compiled XLA handler for arrays with elements of so many bytes.

    Operands, of one update after the other: the array, which the result shares memory with, the slice, and
    i64 starts, one for each dim. In an update on all cores arrays and results are those of each, and slice
    and starts those of all, with one dim more, the first, or the same for all.
    """

    @cfunc("intp(intp)", cache=True)
    def handler(frame):
        if not answer_query(frame) and stamp != "":  # the stamp is part of the cache's key
            groups = (num_arguments(frame) - num_results(frame)) // _BESIDE_ARRAYS
            for number in range(num_results(frame)):
                _update(frame, number, num_results(frame) // groups, element_bytes)
        return 0

    _COMPILED.append(handler)
    return handler.address
