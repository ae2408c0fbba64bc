"""The sum of several cores' arrays in one pass, element by element in order, as an XLA custom call."""

import numpy as np
from numba import carray, cfunc, njit, types

from kernels.host.frame import answer_query, argument, data, num_arguments, rank, result, share
from kernels.host.memory import pointer, word

__all__ = ["compile_sum"]

# Words of a plan (``targets.sum_plan``) and of each stretch behind them.
_ARRAYS, _FIRST_WAY, _ROUNDS, _STRETCHES, _HEAD = range(5)
_START, _END, _ORDER = range(3)
_WORD_BYTES = 8

_BLOCK = 1024
"""Elements added at a time: their sums stay in the first-level cache."""

_SIGN, _MAGNITUDE = np.uint32(1 << 31), np.uint32((1 << 31) - 1)
_INFINITY, _NAN = np.uint32(0x7F800000), np.uint32(0x7FC00000)
_HALF_BITS = np.uint32(16)
_UPPER, _JUST_BELOW_HALF, _ONE = np.uint32(0xFFFF0000), np.uint32(0x7FFF), np.uint32(1)


@njit
def _wide(word):
    """A bf16 as f32."""
    return np.uint32(np.uint32(word) << _HALF_BITS).view(np.float32)


@njit
def _nearest(value):
    """The bits, as f32, of the bf16 that is nearest, ties to even; what is no number stays none."""
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(bits + _JUST_BELOW_HALF + np.uint32(np.uint32(bits >> _HALF_BITS) & _ONE))
    is_nan = np.uint32(bits & _MAGNITUDE) > _INFINITY
    chosen = np.uint32(np.uint32(bits & _SIGN) | _NAN) if is_nan else rounded
    return np.uint32(chosen & _UPPER)


@njit
def _take(narrow, total, address, start, count):
    if narrow:
        words = carray(pointer(address + 2 * start), count, np.uint16)
        for i in range(count):
            total[i] = _wide(words[i])
    else:
        floats = carray(pointer(address + 4 * start), count, np.float32)
        for i in range(count):
            total[i] = floats[i]


@njit
def _add(narrow, rounds, total, address, start, count):
    """Adds some elements of an array, in one pass."""
    if narrow:
        words = carray(pointer(address + 2 * start), count, np.uint16)
        if rounds:
            for i in range(count):
                total[i] = np.uint32(_nearest(total[i] + _wide(words[i]))).view(np.float32)
        else:
            for i in range(count):
                total[i] += _wide(words[i])
    else:
        floats = carray(pointer(address + 4 * start), count, np.float32)
        for i in range(count):
            total[i] += floats[i]


@njit
def _store(narrow, address, total, start, count):
    if narrow:
        words = carray(pointer(address + 2 * start), count, np.uint16)
        for i in range(count):
            words[i] = _nearest(total[i]) >> _HALF_BITS
    else:
        floats = carray(pointer(address + 4 * start), count, np.float32)
        for i in range(count):
            floats[i] = total[i]


@njit
def _array(frame, number, narrow):
    """The address of an array that is added; the plan is the first operand."""
    if num_arguments(frame) == 2:
        return share(argument(frame, 1), rank(result(frame, 0)), number, 2 if narrow else 4)
    return data(argument(frame, number + 1))


@njit
def _add_up(narrow, rounds, frame, order, first, end, total, start, count):
    """The arrays number ``first`` to ``end`` of the order."""
    _take(narrow, total, _array(frame, word(order, first), narrow), start, count)
    for stop in range(first + 1, end):
        _add(narrow, rounds, total, _array(frame, word(order, stop), narrow), start, count)


@njit
def _sum(narrow, frame):
    plan, out = data(argument(frame, 0)), data(result(frame, 0))
    number, turn, rounds = word(plan, _ARRAYS), word(plan, _FIRST_WAY), word(plan, _ROUNDS)
    total, other = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.float32)
    for stretch in range(word(plan, _STRETCHES)):
        place = plan + _WORD_BYTES * (_HEAD + stretch * (_ORDER + number))
        order, end = place + _WORD_BYTES * _ORDER, word(place, _END)
        for start in range(word(place, _START), end, _BLOCK):
            count = min(_BLOCK, end - start)
            _add_up(narrow, rounds, frame, order, turn, number, total, start, count)
            if turn:
                _add_up(narrow, rounds, frame, order, 0, turn, other, start, count)
                for i in range(count):
                    total[i] += other[i]
            _store(narrow, out, total, start, count)


# C's, which know the processor's; their default keeps denormal numbers, which XLA has flushed to zero.
_get_environment, _set_environment = (
    types.ExternalFunction(name, types.int32(types.intp)) for name in ("fegetenv", "fesetenv")
)
_DEFAULT_ENVIRONMENT = -1
_ENVIRONMENT_BYTES = 64


@njit
def _sum_keeping_denormals(narrow, frame):
    was = np.empty(_ENVIRONMENT_BYTES, np.uint8)
    _get_environment(was.ctypes.data)
    _set_environment(_DEFAULT_ENVIRONMENT)
    _sum(narrow, frame)
    _set_environment(was.ctypes.data)


_COMPILED = []
"""Keeps what XLA calls by address."""


def compile_sum(dtype: str, stamp: str) -> int:
    """The address of the compiled XLA handler for arrays of one type, one of ``targets.ADDED``.

    Operands: a plan by ``targets.sum_plan`` as i64, and the arrays, or one with a dim more, the first, that
    holds all. Sums are f32, rounded to the type at every stop if the plan says so, and at the end; no number
    is too small for them.
    """
    narrow = dtype == "bf16"

    @cfunc("intp(intp)", cache=True)
    def handler(frame):
        if not answer_query(frame) and stamp != "":  # the stamp is part of the cache's key
            _sum_keeping_denormals(narrow, frame)
        return 0

    _COMPILED.append(handler)
    return handler.address
