"""The arithmetic of a softmax over one row of f32."""

import numpy as np
from numba import njit

from kernels.host.targets import ROUNDED

__all__ = [
    "EXPONENTIAL",
    "EXPONENT_OF_ONE",
    "LN_2_HIGH",
    "LN_2_LOW",
    "LOG2_E",
    "TO_INTEGER",
    "ZERO_BELOW",
    "add_up",
    "exponentials",
    "highest_of",
    "round_to",
    "upper_halves",
]

_TO_BF16, _TO_F16 = ROUNDED["bf16"], ROUNDED["f16"]

LOG2_E = np.float32(1.44269504)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
TO_INTEGER = np.float32(12582912.0)
EXPONENTIAL = tuple(
    map(np.float32, (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666665e-1, 0.5))
)
"""Of exp(r) behind 1 + r, from r**7 down, for r of at most half the logarithm of two (Cephes' ``expf``)."""

_ONE, _ALL_BUT_SIGN = np.float32(1), np.int32(0x7FFFFFFF)
_MANTISSA_BITS, _SIGN_PLACE = np.int32(23), np.int32(31)
EXPONENT_OF_ONE = np.int32(0x4B400000 - 127)
"""What is to be taken from the bits of ``TO_INTEGER`` and a power of two, for its exponent as f32 has it."""

ZERO_BELOW = np.float32(-87.3)
"""Its exponential is no normal number, which XLA:CPU takes for zero."""

_MAGNITUDE, _SIGN, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x80000000), np.uint32(0x7F800000)
_JUST_BELOW_HALF, _LAST, _HALF_BITS = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)
_UPPER_HALF = np.uint32(0xFFFF0000)

_F16_SMALL, _F16_PLACE = np.float32(2.0**-14), np.float32(0.5)
"""Below it floats of 16 bits are multiples of one number, as are f32 from a half on."""

_F16_JUST_BELOW_HALF, _F16_BITS, _F16_UPPER = np.uint32(0x0FFF), np.uint32(13), np.uint32(0xFFFFE000)
_F16_INFINITY = np.uint32(0x47800000)
"""Of two to the 16th."""


@njit
def highest_of(scores):
    """Found among integers: floats without a sign keep their order as such, those with one turn it."""
    bits = scores.view(np.int32)
    found = np.int32(-(1 << 31))
    for i in range(len(bits)):
        found = max(found, bits[i] ^ ((bits[i] >> _SIGN_PLACE) & _ALL_BUT_SIGN))
    return np.int32(found ^ ((found >> _SIGN_PLACE) & _ALL_BUT_SIGN)).view(np.float32)


@njit(fastmath={"contract"})
def exponentials(scores, highest):
    """``exp(scores - highest)`` in place, of relative error 2**-23."""
    for i in range(len(scores)):
        x = scores[i] - highest
        clamped = ZERO_BELOW if x < ZERO_BELOW else x
        shifted = np.float32(clamped * LOG2_E + TO_INTEGER)
        power = shifted - TO_INTEGER
        r = clamped - power * LN_2_HIGH - power * LN_2_LOW
        total = EXPONENTIAL[0]
        for term in EXPONENTIAL[1:]:
            total = total * r + term
        total = total * r * r + r + _ONE
        exponent = np.int32(np.int32(shifted.view(np.int32)) - EXPONENT_OF_ONE) << _MANTISSA_BITS
        scores[i] = np.float32(0) if x < ZERO_BELOW else total * np.int32(exponent).view(np.float32)


@njit(fastmath={"reassoc"})
def add_up(values):
    """In whatever order this processor adds fastest, which is one for each length."""
    total = np.float32(0)
    for i in range(len(values)):  # over the values themselves LLVM adds one after the other
        total += values[i]
    return total


@njit
def round_to(values, rounded):
    """In place, to the nearest of what ``ROUNDED`` says, ties to even; what is no number stays so."""
    bits = values.view(np.uint32)
    if rounded == _TO_BF16:
        for i in range(len(bits)):
            kept = (bits[i] + _JUST_BELOW_HALF + ((bits[i] >> _HALF_BITS) & _LAST)) & _UPPER_HALF
            bits[i] = bits[i] if (bits[i] & _MAGNITUDE) > _INFINITY else kept
    elif rounded == _TO_F16:
        for i in range(len(bits)):
            x = values[i]
            if abs(x) < _F16_SMALL:
                place = _F16_PLACE if x > 0 else -_F16_PLACE
                values[i] = (x + place) - place
            elif (bits[i] & _MAGNITUDE) <= _INFINITY:
                kept = (bits[i] + _F16_JUST_BELOW_HALF + ((bits[i] >> _F16_BITS) & _LAST)) & _F16_UPPER
                bits[i] = (kept & _SIGN) | _INFINITY if (kept & _MAGNITUDE) >= _F16_INFINITY else kept


@njit
def upper_halves(values, weights):
    """As bf16 what was rounded to it."""
    bits = values.view(np.uint32)
    for i in range(len(values)):
        weights[i] = bits[i] >> _HALF_BITS
