"""Padding of reduced dims: what must fill it, and which operand of a product may keep its own."""

import math
from collections.abc import Sequence, Set

from hlo_passes.ir import ir
from hlo_passes.sharding.classes import PRODUCTS

__all__ = ["finite_argument", "padding_fill"]

# What is finite stays finite through these.
_RELAYOUTS = frozenset(f"stablehlo.{name}" for name in ("convert", "reshape", "transpose"))


def padding_fill(op: ir.Operation, number: int) -> ir.Value | None:
    """The (global) scalar that padding of operand ``number`` must hold along a reduced dim; None is zero."""
    return op.operands[number + len(op.results)] if op.name == "stablehlo.reduce" else None


def finite_argument(
    op: ir.Operation, operands: Sequence[ir.Value], donated: Set[int]
) -> tuple[int | None, int | None]:
    """The operand of a product that may keep its padding, and the argument of main it is; else Nones.

    That is the largest of the local ``operands`` that comes as it was placed: of an argument the runtime
    can vouch that its padding is finite, unless it is ``donated`` and so the result of an earlier run.
    """
    if op.name not in PRODUCTS:
        return None, None
    for number in sorted(range(2), key=lambda n: -_size(operands[n])):
        source = operands[number]
        while not isinstance(source, ir.BlockArgument) and source.owner.name in _RELAYOUTS:
            source = source.owner.operands[0]
        if (
            isinstance(source, ir.BlockArgument)
            and source.owner.owner.operation.name == "func.func"
            and source.arg_number not in donated
        ):
            return number, source.arg_number
    return None, None


def _size(value: ir.Value) -> int:
    return math.prod(value.type.shape)
