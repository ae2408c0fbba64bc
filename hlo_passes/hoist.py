"""Collectives leave loops: what never changes is moved in front, sums that are only carried behind."""

from collections.abc import Sequence

from hlo_passes.collective_ops import (
    Partial,
    all_reduce,
    blocks,
    is_pure,
    lines,
    partial,
    size_bytes,
    sole_user,
    take_partial,
    zeros,
)
from hlo_passes.ir import ir, main
from hlo_passes.notes import add_notes
from hlo_passes.ops import COLLECTIVES, captures, kind, operations, terminator
from hlo_passes.spec import NoOptions as Options
from hlo_passes.trip_count import trip_count

__all__ = ["Options", "run"]


def run(module: ir.Module, options: Options) -> None:
    """Inner loops first, so that what leaves one may leave the next as well.

    A collective whose operands are the same in every iteration runs once, in front of the loop. Where a
    loop only ever adds all-reduces to a carried value, the parts are carried and reduced once, behind it:
    sums are taken in another order, all else is exact. A loop that is known not to run is left alone; one
    of an unknown count is taken to run.
    """
    notes: list[str] = []
    with module.context, ir.Location.unknown():
        for block in blocks(main(module).entry_block):
            for op in operations(block):
                if kind(op) == "while" and trip_count(op) != 0:
                    notes += _lift_invariants(op)
                    notes += _sink_sums(op)
    add_notes(module, notes)


def _times(loop: ir.Operation) -> str:
    trips = trip_count(loop)
    if trips is None:
        return "an unknown number of iterations"
    return "1 iteration" if trips == 1 else f"{trips} iterations"


def _lift_invariants(loop: ir.Operation) -> list[str]:
    """Moves invariant collectives, and what makes their operands, in front of the loop."""
    body = loop.regions[1].blocks[0]
    handed_back = terminator(body).operands
    outer = {
        argument: loop.operands[number]
        for number, argument in enumerate(body.arguments)
        if handed_back[number] == argument
    }
    said = []
    for op in _needed(_invariant_ops(body, outer)):
        for number, value in enumerate(op.operands):
            if value in outer:
                op.operands[number] = outer[value]
        op.move_before(loop)
        if kind(op) in COLLECTIVES:
            said.append(
                f"hoist: {kind(op)} ({size_bytes(op.operands)} B) runs once in front of a loop of "
                f"{_times(loop)}: {lines([op])}"
            )
    return said


def _invariant_ops(body: ir.Block, outer: dict[ir.Value, ir.Value]) -> list[ir.Operation]:
    """Ops of the body that compute the same in every iteration, in order."""
    found: list[ir.Operation] = []
    same: set[ir.Value] = set(outer)
    for op in operations(body):
        inside = [value for value in op.operands if _belongs(value, body)]
        movable = (is_pure(op) or kind(op) in COLLECTIVES) and not captures(op)
        if movable and all(value in same for value in inside):
            found.append(op)
            same.update(op.results)
    return found


def _belongs(value: ir.Value, body: ir.Block) -> bool:
    """Whether ``value`` is made in the body or is its argument."""
    return (value.owner if isinstance(value, ir.BlockArgument) else value.owner.operation.block) == body


def _needed(ops: Sequence[ir.Operation]) -> list[ir.Operation]:
    """The collectives among ``ops`` and those that make their operands, in order."""
    wanted: set[ir.Value] = set()
    kept = []
    for op in reversed(ops):
        if kind(op) in COLLECTIVES or not wanted.isdisjoint(op.results):
            kept.append(op)
            wanted.update(op.operands)
    return kept[::-1]


def _sink_sums(loop: ir.Operation) -> list[str]:
    """Carries this core's part of each sum of all-reduces; reduces it behind the loop."""
    said = []
    for number in range(len(loop.operands)):
        found = _carried_sum(loop, number)
        if found is not None:
            moved = size_bytes(found.reduce.operands)
            said.append(
                f"hoist: all_reduce ({moved} B) of a sum carried through a loop of {_times(loop)} runs once "
                f"behind it ({size_bytes([loop.results[number]])} B): {lines([found.reduce])}"
            )
            _reduce_behind(loop, number, found)
    return said


def _carried_sum(loop: ir.Operation, number: int) -> Partial | None:
    """The all-reduce that the body adds to (or takes from) carried value ``number``, if that is all."""
    condition, body = (region.blocks[0] for region in loop.regions)
    carried, handed_back = body.arguments[number], terminator(body).operands[number]
    unread = next(iter(condition.arguments[number].uses), None) is None
    if not unread or not isinstance(handed_back, ir.OpResult) or str(carried.type.element_type) == "i1":
        return None
    op = handed_back.owner.operation
    if kind(op) not in ("add", "subtract") or op.block != body:
        return None
    user = sole_user(carried)
    if user is None or user != op or sole_user(handed_back) is None:
        return None
    added = op.operands[1] if op.operands[0] == carried else op.operands[0]
    if kind(op) == "subtract" and op.operands[0] != carried:
        return None
    found = partial(added)
    if found is None or found.reducer != "add":
        return None
    moved = size_bytes(found.reduce.operands) * (trip_count(loop) or 1)
    return found if size_bytes([carried]) <= moved else None


def _reduce_behind(loop: ir.Operation, number: int, found: Partial) -> None:
    """The loop starts from zero; behind it the sum of all parts comes to what it started from before."""
    start, result = loop.operands[number], loop.results[number]
    groups, location = found.reduce.attributes["replica_groups"], found.reduce.location
    take_partial(found)
    with ir.InsertionPoint(loop), loop.location:
        nothing = ir.Operation.create(
            "stablehlo.constant", results=[start.type], attributes={"value": zeros(start.type)}
        )
    loop.operands[number] = nothing.results[0]
    uses = [(use.owner, use.operand_number) for use in result.uses]
    behind = _next(loop)
    reduced = all_reduce(result, "add", groups, location, ir.InsertionPoint(behind))
    with ir.InsertionPoint(behind), location:
        total = ir.Operation.create("stablehlo.add", results=[start.type], operands=[start, reduced])
    for user, operand in uses:
        user.operands[operand] = total.results[0]


def _next(op: ir.Operation) -> ir.Operation:
    """The op behind ``op`` in its block; there is one, for blocks end in a terminator."""
    after = operations(op.block)
    return after[after.index(op) + 1]
