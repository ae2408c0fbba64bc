"""Which results of a kernel may be written over one of its operands, and how much is then written."""

from dataclasses import dataclass

from hlo_passes.ir import func, ir
from hlo_passes.ops import kind, tensor, terminator
from hlo_passes.patterns import ELEMENTWISE
from kernels.work import Tensor

__all__ = ["Update", "is_taken_along", "updates"]


@dataclass(frozen=True, kw_only=True)
class Update:
    """Result ``result`` is operand ``operand`` with parts overwritten: only ``written`` goes to HBM."""

    operand: int
    result: int
    written: tuple[Tensor, ...]


# Op kind to the operand that holds what is put in; the first operand is what it is put into.
_UPDATES = {"dynamic_update_slice": 1, "scatter": 2}


def updates(function: func.FuncOp) -> tuple[Update, ...]:
    """The updates that may happen in place, given a kernel's decomposition.

    Requires that nothing but the update itself reads the old contents, so that no order of work inside
    the kernel can observe the difference.
    """
    arguments = {argument: number for number, argument in enumerate(function.arguments)}
    returned = terminator(function.entry_block).operands
    found = []
    for result, value in enumerate(returned):
        start, written = _chain(value)
        if start != value and start in arguments and start.type == value.type:
            found.append(Update(operand=arguments[start], result=result, written=tuple(written)))
    return tuple(found)


def is_taken_along(function: func.FuncOp, operand: int, result: int) -> bool:
    """Whether a kernel reads an element of the operand only to make those in its place, ``result``'s too.

    Then the result may be written over the operand tile by tile, as a step of training does with a weight.
    """
    argument = function.arguments[operand]
    returned = terminator(function.entry_block)
    reached, waiting = {argument}, [argument]
    while waiting:
        for use in waiting.pop().uses:
            reader = use.owner.operation
            if reader == returned:
                continue
            if kind(reader) not in ELEMENTWISE or reader.results[0].type.shape != argument.type.shape:
                return False
            waiting += {*reader.results} - reached
            reached |= {*reader.results}
    value = returned.operands[result]
    return value in reached and value.type == argument.type


def _chain(value: ir.Value) -> tuple[ir.Value, list[Tensor]]:
    """Back through updates, each the only reader of what it updates; what they write, last first."""
    written: list[Tensor] = []
    while isinstance(value, ir.OpResult):
        op = value.owner
        name = kind(op)
        if name in _UPDATES and len(op.results) == 1:
            taken, before = [op.operands[_UPDATES[name]]], op.operands[0]
        elif name == "while":
            number = value.result_number
            taken, before = [value], op.operands[number]
        else:
            break
        if len(list(before.uses)) != 1:
            break
        written.extend(tensor(part.type) for part in taken)
        value = before
    return value, written
