"""Small rewrites ahead of fusion: fewer forms of the same thing, nothing stored that need not be."""

from hlo_passes.ir import func, ir, stablehlo
from hlo_passes.ops import holds_collective, kind, tensor

__all__ = ["prepare"]


def prepare(function: func.FuncOp) -> None:
    """Rewrites ``function`` in place; every step leaves it alone the second time."""
    _drop_barriers(function.operation)
    _reshape_trivial_transposes(function.operation)
    _hoist_rank(function)
    _branch_by_number(function.operation)
    _capture_invariants(function.operation)


def _drop_barriers(function: ir.Operation) -> None:
    """An optimization barrier has done its work once the program's order is this pass's choice."""
    for op in _ops_named(function, "optimization_barrier"):
        for result, operand in zip(op.results, op.operands, strict=True):
            result.replace_all_uses_with(operand)
        op.erase()


def _reshape_trivial_transposes(function: ir.Operation) -> None:
    """A transpose that moves only dims of size one moves no data: a reshape says so."""
    for op in _ops_named(function, "transpose"):
        shape = tensor(op.operands[0].type).shape
        moved = [dim for dim in op.attributes["permutation"] if shape[dim] != 1]
        if moved == sorted(moved):
            with ir.InsertionPoint(op), op.location:
                op.results[0].replace_all_uses_with(stablehlo.reshape(op.results[0].type, op.operands[0]))
            op.erase()


def _hoist_rank(function: func.FuncOp) -> None:
    """One ``replica_id`` at the top, so that a loop body that asks for the rank captures it as a value."""
    found = _ops_named(function.operation, "replica_id")
    if not found:
        return
    first = function.entry_block.operations[0].operation
    if found[0] != first:
        found[0].move_before(first)
    for op in found[1:]:
        op.results[0].replace_all_uses_with(found[0].results[0])
        op.erase()


def _branch_by_number(function: ir.Operation) -> None:
    """``if`` around collectives becomes ``case`` (false, true): one form of branch for the control CPU."""
    for op in _ops_named(function, "if"):
        if not holds_collective(op):
            continue
        with ir.InsertionPoint(op), op.location:
            integer = ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))
            index = stablehlo.convert(integer, op.operands[0])
            case = stablehlo.CaseOp([result.type for result in op.results], index, 2).operation
        for region, source in zip(case.regions, reversed(list(op.regions)), strict=True):
            source.blocks[0].append_to(region)
        for old, new in zip(op.results, case.results, strict=True):
            old.replace_all_uses_with(new)
        op.erase()


def _capture_invariants(function: ir.Operation) -> None:
    """A loop with collectives carries only what it changes; the rest is read where it lies.

    Otherwise a scan over stacked weights would hold them twice.
    """
    for op in _ops_named(function, "while"):
        if holds_collective(op):
            _drop_carried(op, _invariants(op))


def _invariants(loop: ir.Operation) -> list[int]:
    body = loop.regions[1].blocks[0]
    handed_back = body.operations[len(body.operations) - 1].operation.operands
    return [number for number, argument in enumerate(body.arguments) if handed_back[number] == argument]


def _drop_carried(loop: ir.Operation, numbers: list[int]) -> None:
    if not numbers:
        return
    kept = [number for number in range(len(loop.operands)) if number not in numbers]
    for number in numbers:
        for region in loop.regions:
            region.blocks[0].arguments[number].replace_all_uses_with(loop.operands[number])
        loop.results[number].replace_all_uses_with(loop.operands[number])
    body = loop.regions[1].blocks[0]
    old_return = body.operations[len(body.operations) - 1].operation
    with ir.InsertionPoint(old_return), old_return.location:
        stablehlo.ReturnOp([old_return.operands[number] for number in kept])
    old_return.erase()
    with ir.InsertionPoint(loop), loop.location:
        operands = [loop.operands[number] for number in kept]
        fresh = stablehlo.WhileOp([value.type for value in operands], operands).operation
    for source, target in zip(loop.regions, fresh.regions, strict=True):
        block = source.blocks[0]
        for number in reversed(numbers):
            block.erase_argument(number)
        block.append_to(target)
    for number, result in zip(kept, fresh.results, strict=True):
        loop.results[number].replace_all_uses_with(result)
    loop.erase()


def _ops_named(function: ir.Operation, name: str) -> list[ir.Operation]:
    found: list[ir.Operation] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if kind(op) == name:
            found.append(op.operation)
        return ir.WalkResult.ADVANCE

    function.walk(visit)
    return found
