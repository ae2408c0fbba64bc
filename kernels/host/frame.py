"""What XLA hands a custom call: the words of its call frame and buffers, and the version it asks for.

The layout is that of ``xla/ffi/api/c_api.h``, version 0.3, in 64-bit words.
"""

from numba import njit

from kernels.host.memory import store_word, word

__all__ = [
    "answer_query",
    "argument",
    "data",
    "dims",
    "num_arguments",
    "num_results",
    "rank",
    "result",
    "share",
]

_FRAME_EXTENSION = 1
_FRAME_NUM_ARGUMENTS, _FRAME_ARGUMENTS = 7, 9
_FRAME_NUM_RESULTS, _FRAME_RESULTS = 12, 14
_BUFFER_DATA, _BUFFER_RANK, _BUFFER_DIMS = 3, 4, 5
_EXTENSION_METADATA, _METADATA_VERSION = 3, 3
_API_VERSION = 3 << 32


@njit
def answer_query(frame):
    """Whether the call only asks which version of the interface the handler speaks; then it is told."""
    extension = word(frame, _FRAME_EXTENSION)
    if extension:
        store_word(word(extension, _EXTENSION_METADATA), _METADATA_VERSION, _API_VERSION)
    return extension != 0


@njit
def argument(frame, number):
    return word(word(frame, _FRAME_ARGUMENTS), number)


@njit
def result(frame, number):
    return word(word(frame, _FRAME_RESULTS), number)


@njit
def num_arguments(frame):
    return word(frame, _FRAME_NUM_ARGUMENTS)


@njit
def num_results(frame):
    return word(frame, _FRAME_NUM_RESULTS)


@njit
def data(buffer):
    """The address of a buffer's first element."""
    return word(buffer, _BUFFER_DATA)


@njit
def rank(buffer):
    return word(buffer, _BUFFER_RANK)


@njit
def dims(buffer):
    """The address of a buffer's sizes, one word each."""
    return word(buffer, _BUFFER_DIMS)


@njit
def share(buffer, dims_of_one, number, element_bytes):
    """The address of what a buffer holds for one of the cores.

    With a dim more than ``dims_of_one`` it holds one core's after the other's, else the same for all.
    """
    if rank(buffer) == dims_of_one:
        return data(buffer)
    size_bytes = element_bytes
    for dim in range(1, rank(buffer)):
        size_bytes *= word(dims(buffer), dim)
    return data(buffer) + number * size_bytes
