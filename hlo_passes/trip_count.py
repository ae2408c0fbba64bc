"""How often a ``while`` runs, where its text tells: a counter from a constant, compared with a constant."""

import numpy as np

from hlo_passes.ir import ir
from hlo_passes.ops import direction, is_scalar, kind, maker, terminator

__all__ = ["trip_count"]

_FLIPPED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}


def trip_count(loop: ir.Operation) -> int | None:
    """The number of times the body of a ``stablehlo.while`` runs; None where only running it tells.

    Knows what JAX's scan and fori_loop make: ``i`` starts at a constant, the condition compares it with a
    bound (a constant, or a carried value that never changes), the body adds a constant.
    """
    condition, body = (region.blocks[0] for region in loop.regions)
    test = maker(terminator(condition).operands[0])
    if test is None or kind(test) != "compare":
        return None
    order, (left, right) = direction(test), test.operands
    if not (isinstance(left, ir.BlockArgument) and left.owner == condition) or _bound(loop, left) is not None:
        left, right, order = right, left, _FLIPPED.get(order, "")
    if not (isinstance(left, ir.BlockArgument) and left.owner == condition):
        return None
    start = _constant(loop.operands[left.arg_number])
    step, bound = _step(body, left.arg_number), _bound(loop, right)
    if start is None or step is None or bound is None:
        return None
    return _count(start, bound, step, order)


def _count(start: int, bound: int, step: int, order: str) -> int | None:
    if order in ("GT", "GE"):
        start, bound, step = -start, -bound, -step
        order = _FLIPPED[order]
    if order == "NE":
        whole = step != 0 and (bound - start) % step == 0 and (bound - start) // step >= 0
        return (bound - start) // step if whole else None
    if order not in ("LT", "LE"):
        return None
    end = bound + (order == "LE")
    if end <= start:
        return 0
    return -((start - end) // step) if step > 0 else None


def _bound(loop: ir.Operation, value: ir.Value) -> int | None:
    """A constant, or the constant that a carried value starts with and keeps."""
    condition, body = (region.blocks[0] for region in loop.regions)
    if isinstance(value, ir.BlockArgument):
        if value.owner != condition:
            return None
        number = value.arg_number
        if terminator(body).operands[number] != body.arguments[number]:
            return None
        return _constant(loop.operands[number])
    return _constant(value)


def _step(body: ir.Block, number: int) -> int | None:
    """What the body adds to carried value ``number``."""
    op = maker(terminator(body).operands[number])
    if op is None or kind(op) not in ("add", "subtract"):
        return None
    counter = body.arguments[number]
    left, right = op.operands
    if kind(op) == "add":
        other = right if left == counter else left if right == counter else None
        return None if other is None else _constant(other)
    amount = _constant(right) if left == counter else None
    return None if amount is None else -amount


def _constant(value: ir.Value) -> int | None:
    op = maker(value)
    if op is None or kind(op) != "constant" or not is_scalar(value):
        return None
    if not isinstance(value.type.element_type, ir.IntegerType):
        return None
    return int(np.array(op.attributes["value"]))
