"""Reductions and sliding windows on the vector engine: when they fuse and what they cost."""

import math
from collections.abc import Sequence

from kernels.elementwise import EPILOGUE
from kernels.engines import OpCost, lane_elements, vector_s
from kernels.hardware import Core
from kernels.ops import kinds_priced_as
from kernels.work import OpWork

__all__ = ["legal", "price", "price_window"]

_REDUCTIONS = kinds_priced_as("reduce", "window")


def legal(kinds: Sequence[str]) -> bool:
    """At least one reduction; its elementwise producers and consumers come along."""
    if not any(kind in _REDUCTIONS for kind in kinds):
        return False
    return all(kind in EPILOGUE or kind in _REDUCTIONS for kind in kinds)


def price(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """One pass over the input; a result element costs one flop per element it takes in but the first."""
    # Operands are inputs then initial values, as many of each; variadic reductions run one pass per input.
    inputs = op.operands[: max(1, len(op.results))]
    is_bf16 = {tensor.dtype for tensor in (*inputs, *op.results)} == {"bf16"}
    cycles = core.vector.bf16_reduce_cycles if is_bf16 else 1.0
    taken = max((tensor.size for tensor in inputs), default=0)
    made = max((tensor.size for tensor in op.results), default=0)
    flops = max(0, taken - made)
    if op.activation:
        # The activation that makes the input adds it up.
        return OpCost(flops=flops)
    seconds = sum(vector_s(lane_elements(tensor), core, cycles=cycles) for tensor in inputs)
    return OpCost(engine_s={"vector": seconds}, flops=flops, chain=len(inputs))


def price_window(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """The cheaper of two ways: one reduction that reads each window whole, as nki's average_pool2d does, or
    by doubling, ceil(log2(window)) passes that each combine two shifted operands."""
    passes = max(1, math.ceil(math.log2(max(1, op.window))))
    size = max((tensor.size for tensor in op.results), default=0)
    elements = max((lane_elements(tensor) for tensor in (*op.results, *op.operands)), default=0)
    ways = [(vector_s(elements, core, cycles=core.vector.pair_cycles, passes=passes), passes)]
    if op.features:
        # Features lie on partitions, as a convolution leaves them.
        share = op.features / (math.ceil(op.features / core.vector.lanes) * core.vector.lanes)
        read_s = sum(vector_s(math.ceil(op.window * lane_elements(t) / share), core) for t in op.results)
        ways.append((read_s, len(op.results)))
    seconds, chain = min(ways)
    return OpCost(engine_s={"vector": seconds}, flops=size * max(0, op.window - 1), chain=chain)
