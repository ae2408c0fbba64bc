"""Host arrays that XLA:CPU can take without a copy."""

import math

import numpy as np

__all__ = ["aligned_copy", "aligned_empty", "is_shareable"]

# XLA:CPU shares a host buffer only on this boundary (its vector loads assume it), else it copies.
_ALIGNMENT_BYTES = 64


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised array of ``shape`` elements on a 64-byte boundary."""
    memory = np.empty(math.prod(shape) * dtype.itemsize + _ALIGNMENT_BYTES, np.uint8)
    return np.ndarray(shape, dtype, memory, -memory.ctypes.data % _ALIGNMENT_BYTES)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    result = aligned_empty(array.shape, array.dtype)
    result[...] = array
    return result


def is_shareable(array: np.ndarray) -> bool:
    """Whether XLA:CPU can use the array where it lies."""
    return array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT_BYTES == 0
