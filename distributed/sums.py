"""All-reduces that add f32 or bf16, in one pass of a JIT'd kernel over the cores' arrays where they lie."""

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from distributed.collectives import ORDERS, even_chunks, in_groups
from distributed.host_memory import aligned_empty
from distributed.program import Collective
from kernels.dtypes import dtype
from kernels.host.handlers import adder
from kernels.host.targets import ADDED, sum_plan

__all__ = ["add_up", "is_added_up"]

_TYPES = {dtype(name).numpy: name for name in ADDED}


def is_added_up(collective: Collective, element: np.dtype) -> bool:
    """Whether ``add_up`` does it: all-reduces of f32 and bf16 that add."""
    kind, reducer, algorithm = collective.kind, collective.reducer, collective.algorithm
    return kind == "all_reduce" and reducer == "add" and element in _TYPES and algorithm in ORDERS


def add_up(
    collective: Collective, addresses: Sequence[int], shape: tuple[int, ...], element: np.dtype
) -> list[np.ndarray]:
    """The all-reduce of one operand, to the bit what ``collectives.run`` gives.

    Args:
      addresses: where the operand of each rank lies, a dense array of ``shape`` and type ``element``.

    Returns:
      The result on each rank; the ranks of a group share one.

    Raises:
      ValueError: a rank is not in just one group.
    """
    add = adder(_TYPES[element])

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        result = aligned_empty(shape, element)
        operands = (ctypes.c_int64 * len(group))(*[addresses[rank] for rank in sorted(group)])
        add(operands, _plan(collective.algorithm, len(group), result.size), result.ctypes.data)
        return [result] * len(group)

    return in_groups(collective, len(addresses), one_group)


@functools.lru_cache(maxsize=64)
def _plan(algorithm: str, count: int, size: int) -> ctypes.Array[ctypes.c_int64]:
    """The order of summation of an all-reduce of ``size`` elements over ``count`` ranks."""
    if algorithm not in _FIRST_WAY:
        words = sum_plan([(0, size, range(count))], first_way=0, rounds=False)
    else:
        way = _FIRST_WAY[algorithm](count)
        stretches = []
        for owner, chunk in enumerate(even_chunks(size, count)):
            passed = [(owner + 1 + hop) % count for hop in range(count)]
            stretches.append((chunk.start, chunk.stop, [*passed[:way][::-1], *passed[way:]]))
        words = sum_plan(stretches, first_way=way, rounds=True)
    return (ctypes.c_int64 * len(words))(*words)


# Ranks whose parts come to a chunk's owner from the other side; algorithms without hops add all at once.
_FIRST_WAY: Mapping[str, Callable[[int], int]] = {
    "ring": lambda count: 0,
    "bidirectional_ring": lambda count: (count - 1) // 2,
}
