"""Which all-reduces the host's sum kernel adds up, and in which order."""

from collections.abc import Callable, Mapping

import numpy as np

from distributed.collectives import ORDERS, even_chunks
from distributed.program import Collective
from kernels.dtypes import dtype
from kernels.host.targets import ADDED, sum_plan

__all__ = ["is_added_up", "order_of_sum"]

_TYPES = frozenset(dtype(name).numpy for name in ADDED)


def is_added_up(collective: Collective, element: np.dtype) -> bool:
    """Whether the kernel does it: all-reduces of f32 and bf16 that add."""
    kind, reducer, algorithm = collective.kind, collective.reducer, collective.algorithm
    return kind == "all_reduce" and reducer == "add" and element in _TYPES and algorithm in ORDERS


def order_of_sum(algorithm: str, count: int, size: int) -> list[int]:
    """The kernel's plan for an all-reduce of ``size`` elements over ``count`` ranks."""
    if algorithm not in _FIRST_WAY:
        return sum_plan([(0, size, range(count))], first_way=0, rounds=False)
    way = _FIRST_WAY[algorithm](count)
    stretches = []
    for owner, chunk in enumerate(even_chunks(size, count)):
        passed = [(owner + 1 + hop) % count for hop in range(count)]
        stretches.append((chunk.start, chunk.stop, [*passed[:way][::-1], *passed[way:]]))
    return sum_plan(stretches, first_way=way, rounds=True)


# Ranks whose parts come to a chunk's owner from the other side; algorithms without hops add all at once.
_FIRST_WAY: Mapping[str, Callable[[int], int]] = {
    "ring": lambda count: 0,
    "bidirectional_ring": lambda count: (count - 1) // 2,
}
