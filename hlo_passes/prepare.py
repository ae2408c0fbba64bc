"""Small rewrites ahead of fusion: fewer forms of the same thing, nothing stored that need not be."""

from collections.abc import Iterable, Sequence

from hlo_passes.ir import func, ir, stablehlo
from hlo_passes.ops import holds_collective, kind, tensor, terminator

__all__ = ["prepare"]

Ops = list[ir.Operation]


def prepare(function: func.FuncOp) -> None:
    """Rewrites ``function`` in place; every step leaves it alone the second time."""
    names = ("optimization_barrier", "transpose", "replica_id", "if", "while")
    barriers, transposes, ranks, branches, loops = _ops_named(function.operation, names)
    _drop_barriers(barriers)
    _reshape_trivial_transposes(transposes)
    _hoist_rank(function, ranks)
    _branch_by_number(branches)
    _capture_invariants(loops)


def _drop_barriers(barriers: Ops) -> None:
    """An optimization barrier has done its work once the program's order is this pass's choice."""
    for op in barriers:
        for result, operand in zip(op.results, op.operands, strict=True):
            result.replace_all_uses_with(operand)
        op.erase()


def _reshape_trivial_transposes(transposes: Ops) -> None:
    """A transpose that moves only dims of size one moves no data: a reshape says so."""
    for op in transposes:
        shape = tensor(op.operands[0].type).shape
        moved = [dim for dim in op.attributes["permutation"] if shape[dim] != 1]
        if moved == sorted(moved):
            with ir.InsertionPoint(op), op.location:
                op.results[0].replace_all_uses_with(stablehlo.reshape(op.results[0].type, op.operands[0]))
            op.erase()


def _hoist_rank(function: func.FuncOp, found: Ops) -> None:
    """One ``replica_id`` at the top, so that a loop body that asks for the rank captures it as a value."""
    if not found:
        return
    first = function.entry_block.operations[0].operation
    if found[0] != first:
        found[0].move_before(first)
    for op in found[1:]:
        op.results[0].replace_all_uses_with(found[0].results[0])
        op.erase()


def _branch_by_number(branches: Ops) -> None:
    """``if`` around collectives becomes ``case`` (false, true): one form of branch for the control CPU."""
    for op in branches:
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


def _capture_invariants(loops: Ops) -> None:
    """A loop with collectives carries only what it changes; the rest is read where it lies.

    Otherwise a scan over stacked weights would hold them twice.
    """
    for op in loops:
        if holds_collective(op):
            _drop_carried(op, _invariants(op))


def _invariants(loop: ir.Operation) -> list[int]:
    body = loop.regions[1].blocks[0]
    handed_back = terminator(body).operands
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
    old_return = terminator(body)
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


def _ops_named(function: ir.Operation, names: Sequence[str]) -> Iterable[Ops]:
    """The ops of each name, inner ones first."""
    found: dict[str, Ops] = {name: [] for name in names}

    def visit(op: ir.Operation) -> ir.WalkResult:
        name = kind(op)
        if name in found:
            found[name].append(op.operation)
        return ir.WalkResult.ADVANCE

    function.walk(visit)
    return found.values()
