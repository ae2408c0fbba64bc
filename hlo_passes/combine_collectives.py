"""Joins small independent collectives of a kind into one, for each costs the latency of a whole ring."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hlo_passes.collective_ops import is_pure, lines, reducer, size_bytes
from hlo_passes.ir import ir, main
from hlo_passes.notes import add_notes
from hlo_passes.ops import captures, kind, replica_groups, tensor

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``threshold_bytes``: what one combined collective hands out at most; larger ones gain little."""

    threshold_bytes: int = 4 * 2**20


def run(module: ir.Module, options: Options) -> None:
    """Replaces all-reduces (or all-gathers) by one, where none waits for another.

    They must have the same groups and the same reducer and type (the same dim, of any types). The ops that
    wait for the first of them move behind the last; all else keeps its order. Nothing moves across another
    collective, control flow, or an op with side effects.
    """
    notes: list[str] = []
    with module.context, ir.Location.unknown():
        _combine_block(main(module).entry_block, options, notes)
    add_notes(module, notes)


@dataclass(kw_only=True)
class _Group:
    """Collectives that may become one, and the ops that wait for them, in program order."""

    key: tuple
    members: list[ir.Operation] = field(default_factory=list)
    waiting: list[ir.Operation] = field(default_factory=list)
    made: set[ir.Value] = field(default_factory=set)
    size_bytes: int = 0

    def add(self, op: ir.Operation) -> None:
        self.members.append(op)
        self.made.update(op.results)
        self.size_bytes += size_bytes(op.results)

    def defer(self, op: ir.Operation) -> None:
        self.waiting.append(op)
        self.made.update(op.results)


def _combine_block(block: ir.Block, options: Options, notes: list[str]) -> None:
    group: _Group | None = None
    for view in list(block.operations):
        op = view.operation
        key = _key(op, options)
        for region in op.regions if key is None else ():
            for inner in region.blocks:
                _combine_block(inner, options, notes)
        depends = group is not None and not group.made.isdisjoint((*op.operands, *captures(op)))
        if key is not None and group is not None and not depends and _fits(group, key, op, options):
            group.add(op)
        elif key is not None:
            _finish(group, notes)
            group = _Group(key=key)
            group.add(op)
        elif group is not None and not is_pure(op):
            # Only ops whose order among themselves no one can observe may wait for a combined collective.
            _finish(group, notes)
            group = None
        elif depends:
            group.defer(op)


def _key(op: ir.Operation, options: Options) -> tuple | None:
    """What collectives must share to become one; None for what is no small collective that may."""
    if kind(op) not in _KEYS or size_bytes(op.results) > options.threshold_bytes:
        return None
    shared = _KEYS[kind(op)](op)
    return None if shared is None else (kind(op), replica_groups(op), shared)


def _reduction(op: ir.Operation) -> tuple[str, str] | None:
    """The reducer and the type it takes; None where either is not one."""
    types = {tensor(value.type).dtype for value in op.operands}
    combined = reducer(op.regions[0])
    return None if combined is None or len(types) != 1 else (combined, types.pop())


_KEYS: Mapping[str, Callable[[ir.Operation], tuple[str, str] | int | None]] = {
    "all_reduce": _reduction,
    "all_gather": lambda op: op.attributes["all_gather_dim"].value,
}


def _fits(group: _Group, key: tuple, op: ir.Operation, options: Options) -> bool:
    return group.key == key and group.size_bytes + size_bytes(op.results) <= options.threshold_bytes


def _finish(group: _Group | None, notes: list[str]) -> None:
    """Puts one collective in the place of the last member, what waited behind it."""
    if group is None or len(group.members) < 2:
        return
    first, last = group.members[0], group.members[-1]
    results = [result for op in group.members for result in op.results]
    notes.append(
        f"combine_collectives: {len(group.members)} {kind(first)} became one ({group.size_bytes} B): "
        f"{lines(group.members)}"
    )
    combined = ir.Operation.create(
        first.name,
        results=[result.type for result in results],
        operands=[value for op in group.members for value in op.operands],
        attributes={name: first.attributes[name] for name in first.attributes},
        regions=len(first.regions),
        loc=_location(group.members),
        ip=ir.InsertionPoint(last),
    )
    for source, target in zip(first.regions, combined.regions, strict=True):
        source.blocks[0].append_to(target)
    anchor = combined
    for op in _before(group.waiting, last):
        op.move_after(anchor)
        anchor = op
    for old, new in zip(results, combined.results, strict=True):
        old.replace_all_uses_with(new)
    for op in group.members:
        op.erase()


def _before(waiting: list[ir.Operation], last: ir.Operation) -> list[ir.Operation]:
    """Those that stand in front of ``last`` and must move; the others follow it already."""
    return [op for op in waiting if op.is_before_in_block(last)]


def _location(members: list[ir.Operation]) -> ir.Location:
    return ir.Location.fused([op.location for op in members], context=members[0].context)
