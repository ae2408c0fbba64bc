"""What the partitioner says where it gives something up: the op, the user's line, the bytes, a way out."""

import math

from hlo_passes.ir import ir, source_line
from hlo_passes.sharding.spec import Sharding
from kernels.work import Tensor

__all__ = ["element_bytes", "gather_note", "reshard_note", "whole_note"]


def element_bytes(type_: ir.Type, count: int) -> int:
    """The size of ``count`` elements of a tensor type."""
    return Tensor(shape=(count,), dtype=str(type_.element_type)).size_bytes


def gather_note(op: ir.Operation, moved_bytes: int, why: str, fix: str) -> str:
    """An op that reads more than its shard and a neighbour's."""
    return f"{_where(op)} gathers {moved_bytes} B to each core: {why}; {fix}"


def reshard_note(
    op: ir.Operation | None, value: ir.Value, elements: int, have: Sharding, want: Sharding
) -> str:
    """An operand (of ``op``, None: a result of the program) that is gathered because it lies otherwise."""
    moved, where = element_bytes(value.type, elements), _where(op) if op else "a result of the program"
    return (
        f"{where} gathers {moved} B of {value.type} to each core: it lies as {_spec(have)} and is read as "
        f"{_spec(want)}; a sharding constraint that makes the two equal avoids it"
    )


def whole_note(op: ir.Operation, values: list[tuple[ir.Value, Sharding, int]], why: str) -> str:
    """An op computed whole on every core although these operands, (value, sharding, shards), are sharded."""
    shapes = ", ".join(str(value.type) for value, _, _ in values)
    moved = sum(
        element_bytes(value.type, math.prod(sharding.local) * (shards - 1))
        for value, sharding, shards in values
    )
    dims = sorted({d for _, sharding, _ in values for d, axes in enumerate(sharding.axes) if axes})
    named = " and ".join(map(str, dims))
    return (
        f"{_where(op)} is computed whole on every core, gathering {shapes} ({moved} B to each core): {why}; "
        f"a constraint that shards its operands along other dims than {named} avoids it"
    )


def _where(op: ir.Operation) -> str:
    return f"{op.name} at {source_line(op) or 'unknown line'}"


def _spec(sharding: Sharding) -> str:
    """As the user writes it: ``P('data', None, ('x', 'y'))``."""
    dims = [repr(axes[0] if len(axes) == 1 else axes) if axes else "None" for axes in sharding.axes]
    return f"P({', '.join(dims)})"
