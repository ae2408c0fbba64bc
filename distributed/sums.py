"""All-reduces that add f32 or bf16, in one pass of a JIT'd kernel over the cores' arrays where they lie."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from distributed.collectives import in_groups
from distributed.executor import Direct, Executor
from distributed.program import Collective
from distributed.sum_orders import order_of_sum
from kernels.dtypes import dtype
from kernels.host.targets import ADDED, sum_target

__all__ = ["add_up"]

_TYPES = {dtype(name).numpy: name for name in ADDED}


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
    order, target = order_of_sum(algorithm, count, int(np.prod(shape))), sum_target(name)
    table = f"tensor<{len(order)}xi64>"
    array = f"tensor<{''.join(f'{size}x' for size in shape)}{name}>"
    taken = [f"%{number}" for number in range(count)]
    text = f"""module {{ func.func @main({", ".join(f"{value}: {array}" for value in taken)}) -> {array} {{
  %plan = stablehlo.constant dense<{order}> : {table}
  %sum = stablehlo.custom_call @{target}(%plan, {", ".join(taken)}) {{api_version = 4 : i32}}
    : ({", ".join([table, *[array] * count])}) -> {array}
  return %sum : {array} }} }}"""
    return Direct(text=text, targets=frozenset({target}))
