"""Calls of a kernel of the host that do not wait for each other are made one call."""

from hlo_passes.host_calls import call_together, target_of
from hlo_passes.inline import inline_calls
from hlo_passes.ir import ir, main, run_mlir_passes
from hlo_passes.ops import nested_operands

__all__ = ["flatten", "group_calls"]


def flatten(module: ir.Module) -> None:
    """Puts all that ``@main`` calls, composites too, into it."""
    run_mlir_passes(module, "func.func(stablehlo-legalize-composite-to-call)")
    inline_calls(module, main(module))


def group_calls(module: ir.Module, targets: frozenset[str]) -> None:
    """Puts calls in the flat ``@main`` together that take the same types and need nothing of each other.

    Ops are put in the order of how many calls, one after the other, come before them.
    """
    block = main(module).regions[0].blocks[0]
    *ops, terminator = (op.operation for op in block.operations)
    groups: dict[tuple[int, str, tuple[ir.Type, ...]], list[ir.Operation]] = {}
    order: dict[ir.Operation, tuple[int, bool]] = {}
    calls_before: dict[ir.Value, int] = {}
    for op in ops:
        level = max((calls_before.get(value, 0) for _, _, value in nested_operands(op)), default=0)
        target = target_of(op, targets)
        order[op] = level, bool(target)
        calls_before |= dict.fromkeys(op.results, level + bool(target))
        if target:
            types = tuple(value.type for value in op.operands)
            groups.setdefault((level, target, types), []).append(op)
    if all(len(members) == 1 for members in groups.values()):
        return
    last = {members[-1]: members for members in groups.values()}
    for op in sorted(ops, key=order.__getitem__):
        op.move_before(terminator)
        if len(last.get(op, ())) > 1:
            _replace(last[op], terminator)


def _replace(members: list[ir.Operation], before: ir.Operation) -> None:
    with ir.InsertionPoint(before), members[0].location:
        made = call_together(members[0], [list(member.operands) for member in members])
    for member, value in zip(members, made, strict=True):
        member.results[0].replace_all_uses_with(value)
        member.erase()
