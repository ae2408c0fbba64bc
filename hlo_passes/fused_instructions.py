"""Ops of a kernel that one activation of the scalar engine does along the way: a bias, a square, a sum.

Source: nki/api/nki/isa @v2.26.1. ``activation`` is function(data * scale + bias) with one bias for each
partition; ``activation_reduce`` also adds up what it makes (sums are all it adds up on v2).
"""

from collections.abc import Iterator

from hlo_passes.ir import ir
from hlo_passes.ops import CASTS, kind, operations
from kernels.ops import OPS

__all__ = ["fused_instructions"]


def fused_instructions(block: ir.Block) -> tuple[set[ir.Operation], set[ir.Operation]]:
    """(ops whose result is one activation's, ops that this activation replaces) in a kernel's body.

    A row lies along a partition: what is added to all of it is a bias, and a sum over it is one a partition;
    of several dims, as in a group of an image's features, it lies along a few, whose sums are few to add.
    """
    roots: set[ir.Operation] = set()
    inside: set[ir.Operation] = set()
    for view in block.operations:
        op = view.operation
        sums = [reader for reader in _readers(op) if _sums_rows(reader)]
        if not _is_function(op) and not (sums and _is_square(op)):
            continue
        roots.add(op)
        inside.update(sums)
        if _is_function(op) and _is_biased(op.operands[0]):
            inside.add(op.operands[0].owner.operation)
    return roots, inside


def _is_function(op: ir.Operation) -> bool:
    found = OPS.get(kind(op))
    return found is not None and found.engine == "scalar" and found.passes == 1


def _is_square(op: ir.Operation) -> bool:
    return kind(op) == "multiply" and op.operands[0] == op.operands[1]


def _readers(op: ir.Operation) -> Iterator[ir.Operation]:
    """The ops that take the result of ``op``, as it is or cast, which costs nothing."""
    for use in op.results[0].uses if len(op.results) == 1 else ():
        reader = use.owner.operation
        if kind(reader) in CASTS:
            yield from _readers(reader)
        else:
            yield reader


def _sums_rows(op: ir.Operation) -> bool:
    if kind(op) != "reduce" or len(op.results) != 1:
        return False
    body = operations(op.regions[0].blocks[0])
    last = len(op.operands[0].type.shape) - 1
    return len(body) == 2 and kind(body[0]) == "add" and last in list(op.attributes["dimensions"])


def _is_biased(value: ir.Value) -> bool:
    """Whether ``value``, read once, has something added that is the same along each row."""
    if isinstance(value, ir.BlockArgument) or len(list(value.uses)) != 1:
        return False
    op = value.owner.operation
    return kind(op) in ("add", "subtract") and _is_same_along_rows(op.operands[1])


def _is_same_along_rows(value: ir.Value) -> bool:
    if isinstance(value, ir.BlockArgument) or kind(value.owner) != "broadcast_in_dim":
        return False
    op = value.owner.operation
    placed = zip(op.attributes["broadcast_dimensions"], op.operands[0].type.shape, strict=True)
    return dict(placed).get(len(value.type.shape) - 1, 1) == 1
