"""Values that cores compute again, whole, rather than move: made by cheap ops of what all cores have."""

import math
from collections.abc import Callable

from hlo_passes.ir import ir
from hlo_passes.ops import kind
from hlo_passes.sharding.spec import CONSTRAINTS, shape_of
from kernels.ops import kinds_priced_as

__all__ = ["ops_to_repeat"]

# No products or reductions, nothing that writes in place, differs between cores or draws numbers.
_CHEAP = kinds_priced_as("elementwise", "move", "transpose", "free") - {
    "dynamic_update_slice", "partition_id", "replica_id", "rng", "rng_bit_generator",
}  # fmt: skip
# What an engine does (128 lanes at 1.12 GHz) while a core receives an f32 (56.7 GB/s), and while anything
# takes one hop (1.3 us), rounded down; and while it does nothing but begin an instruction (64 cycles).
_PER_MOVED, _PER_COLLECTIVE, _PER_OP = 8, 2**17, 2**13


def ops_to_repeat(
    value: ir.Value, is_there: Callable[[ir.Value], bool], moved_elements: float
) -> list[ir.Operation] | None:
    """The ops that make ``value`` of values that are there, in order.

    None where others than cheap ones are among them, or it takes longer than to receive so many elements.
    """
    found: dict[ir.Operation, None] = {}
    left = _PER_MOVED * moved_elements + _PER_COLLECTIVE

    def can_make(value: ir.Value) -> bool:
        nonlocal left
        if is_there(value) or (isinstance(value, ir.OpResult) and value.owner.operation in found):
            return True
        if isinstance(value, ir.BlockArgument):
            return False
        op = value.owner.operation
        if op.name in CONSTRAINTS:
            return can_make(op.operands[0])
        left -= max(math.prod(shape_of(value)), _PER_OP)
        is_cheap = kind(op) in _CHEAP and not len(op.regions) and len(op.results) == 1
        if left < 0 or not is_cheap or not all(map(can_make, op.operands)):
            return False
        found[op] = None
        return True

    return list(found) if can_make(value) else None
