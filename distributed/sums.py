"""All-reduces that add f32 or bf16, in one pass of a JIT'd kernel over the cores' arrays where they lie."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from distributed.collectives import ORDERS, even_chunks, in_groups
from distributed.executor import Direct, Executor
from distributed.program import Collective
from kernels.dtypes import dtype
from kernels.host.targets import ADDED, sum_plan, sum_target

__all__ = ["add_up", "is_added_up"]

_TYPES = {dtype(name).numpy: name for name in ADDED}


def is_added_up(collective: Collective, element: np.dtype) -> bool:
    """Whether ``add_up`` does it: all-reduces of f32 and bf16 that add."""
    kind, reducer, algorithm = collective.kind, collective.reducer, collective.algorithm
    return kind == "all_reduce" and reducer == "add" and element in _TYPES and algorithm in ORDERS


def add_up(executor: Executor, collective: Collective, ranks: Sequence[jax.Array]) -> list[jax.Array]:
    """The all-reduce of one operand, to the bit what ``collectives.run`` gives.

    A call of an executable like the launches before it, whose code is in the processor's caches. What NumPy
    needs to make an array and XLA to take it as a buffer is not, and takes longer than the sum.

    Args:
      ranks: the operand on each rank.

    Returns:
      The result on each rank; the ranks of a group share one.

    Raises:
      ValueError: a rank is not in just one group.
    """
    shape, name = ranks[0].shape, _TYPES[ranks[0].dtype]

    def one_group(group: Sequence[int]) -> list[jax.Array]:
        add = executor.load_host(_sum(collective.algorithm, len(group), shape, name))
        return add([ranks[rank] for rank in sorted(group)]) * len(group)

    return in_groups(collective, len(ranks), one_group)


@functools.lru_cache(maxsize=256)
def _sum(algorithm: str, count: int, shape: tuple[int, ...], name: str) -> Direct:
    """Adds up ``count`` arrays of one shape and type."""
    plan, target = _plan(algorithm, count, int(np.prod(shape))), sum_target(name)
    table = f"tensor<{len(plan)}xi64>"
    array = f"tensor<{''.join(f'{size}x' for size in shape)}{name}>"
    taken = [f"%{number}" for number in range(count)]
    text = f"""module {{ func.func @main({", ".join(f"{value}: {array}" for value in taken)}) -> {array} {{
  %plan = stablehlo.constant dense<{plan}> : {table}
  %sum = stablehlo.custom_call @{target}(%plan, {", ".join(taken)}) {{api_version = 4 : i32}}
    : ({", ".join([table, *[array] * count])}) -> {array}
  return %sum : {array} }} }}"""
    return Direct(text=text, targets=frozenset({target}))


def _plan(algorithm: str, count: int, size: int) -> list[int]:
    """The order of summation of an all-reduce of ``size`` elements over ``count`` ranks."""
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
