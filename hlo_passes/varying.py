"""Which values may differ between cores: forward analysis of a LOCAL, FUSED or PLANNED module."""

import functools
from dataclasses import dataclass

from distributed.layout import Layout
from hlo_passes.ir import ir, main
from hlo_passes.local import argument_layouts, num_ranks
from hlo_passes.ops import captures, kind, pairs, replica_groups

__all__ = ["Varying", "analyze"]

# Which ranks hold equal values: ranks of one class do. (0, 0, 1, 1) says ranks 0 and 1 agree, 2 and 3 agree.
# Class numbers count up by first appearance, so equal partitions are equal tuples.
Classes = tuple[int, ...]
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Varying:
    """The answer of ``analyze``; valid until the module changes.

    ``classes`` maps every value of ``main``, and of the blocks of its control flow, to the partition of
    the ranks into sets that surely hold the same bits. ``layouts`` are those of ``main``'s arguments.
    """

    classes: dict[ir.Value, Classes]
    layouts: tuple[Layout, ...]

    def is_varying(self, value: ir.Value) -> bool:
        """Whether two cores may hold different values."""
        return any(self.classes[value])


def analyze(module: ir.Module) -> Varying:
    """Finds, by a fixpoint over loops, the values that are surely equal on all cores or on some."""
    ranks = num_ranks(module)
    function = main(module)
    layouts = argument_layouts(module, function)
    analysis = _Analysis(ranks)
    held: dict[tuple[tuple[str, ...], ...], Classes] = {}
    for argument, layout in zip(function.arguments, layouts, strict=True):
        if layout.dim_axes not in held:
            held[layout.dim_axes] = _shards(layout, ranks)
        analysis.classes[argument] = held[layout.dim_axes]
    analysis.block(function.entry_block)
    return Varying(classes=analysis.classes, layouts=layouts)


def _shards(layout: Layout, ranks: int) -> Classes:
    if layout.is_replicated:
        return (0,) * ranks
    mesh = layout.mesh
    return _partition(tuple(tuple(mesh.index(r, axes) for axes in layout.dim_axes) for r in range(ranks)))


def _partition(labels: tuple) -> Classes:
    numbers: dict = {}
    return tuple(numbers.setdefault(label, len(numbers)) for label in labels)


@functools.lru_cache(maxsize=4096)
def _meet(left: Classes, right: Classes) -> Classes:
    if left == right or not any(right):
        return left
    return _partition(tuple(zip(left, right, strict=True))) if any(left) else right


def _members(groups: Groups, ranks: int) -> list[tuple[int, ...]]:
    """The group that each rank is in; a rank outside all is alone."""
    members: list[tuple[int, ...]] = [(rank,) for rank in range(ranks)]
    for group in groups:
        for rank in group:
            members[rank] = group
    return members


@functools.lru_cache(maxsize=4096)
def _shared(groups: Groups, own: Classes) -> Classes:
    """Every member ends with one function of the members' values, taken in the group's order.

    Ranks of different groups count as different even where their sums must agree: each group's result
    is made apart, so the ring does not hold it once.
    """
    return _partition(tuple((g, tuple(own[r] for r in g)) for g in _members(groups, len(own))))


@functools.lru_cache(maxsize=4096)
def _parted(groups: Groups, own: Classes) -> Classes:
    """Every member ends with the part that belongs to its position in the group."""
    members = enumerate(_members(groups, len(own)))
    return _partition(tuple((tuple(own[r] for r in group), group.index(rank)) for rank, group in members))


class _Analysis:
    """The walk and its result so far."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.equal: Classes = (0,) * ranks
        self.classes: dict[ir.Value, Classes] = {}

    def block(self, block: ir.Block) -> list[Classes]:
        """Visits the ops in order; returns the classes of what the terminator hands out."""
        for view in block.operations:
            op = view.operation
            rule = _RULES.get(kind(op), _Analysis._pointwise)
            for result, found in zip(op.results, rule(self, op), strict=True):
                self.classes[result] = found
        return [self.classes[value] for value in op.operands]

    def _meet_all(self, values: list[ir.Value]) -> Classes:
        found = self.equal
        for value in values:
            own = self.classes[value]
            if own is not found:  # most are one object, and long
                found = _meet(found, own)
        return found

    def _pointwise(self, op: ir.Operation) -> list[Classes]:
        found = self._meet_all([*op.operands, *captures(op)])
        return [found] * len(op.results)

    def _rank(self, op: ir.Operation) -> list[Classes]:
        return [tuple(range(self.ranks))]

    def _same_in_group(self, op: ir.Operation) -> list[Classes]:
        groups = replica_groups(op)
        return [_shared(groups, self.classes[value]) for value in op.operands]

    def _own_part(self, op: ir.Operation) -> list[Classes]:
        groups = replica_groups(op)
        return [_parted(groups, self.classes[value]) for value in op.operands]

    def _permute(self, op: ir.Operation) -> list[Classes]:
        sources = {target: source for source, target in pairs(op)}
        return [self._from_source(self.classes[value], sources) for value in op.operands]

    def _broadcast(self, op: ir.Operation) -> list[Classes]:
        sources = {rank: group[0] for group in replica_groups(op) for rank in group}
        return [self._from_source(self.classes[value], sources) for value in op.operands]

    def _from_source(self, own: Classes, sources: dict[int, int]) -> Classes:
        """Ranks without a source end with zeros."""
        ranks = range(self.ranks)
        return _partition(tuple(own[sources[rank]] if rank in sources else None for rank in ranks))

    def _while(self, op: ir.Operation) -> list[Classes]:
        condition, body = (region.blocks[0] for region in op.regions)
        carried = [self.classes[value] for value in op.operands]
        while True:
            for block in (condition, body):
                self.classes.update(zip(block.arguments, carried, strict=True))
            (predicate,) = self.block(condition)
            ends = self.block(body)
            merged = [_meet(_meet(start, end), predicate) for start, end in zip(carried, ends, strict=True)]
            if merged == carried:
                return carried
            carried = merged

    def _case(self, op: ir.Operation) -> list[Classes]:
        index = self.classes[op.operands[0]]
        branches = [self.block(region.blocks[0]) for region in op.regions]
        return [functools.reduce(_meet, found, index) for found in zip(*branches, strict=True)]


_RULES = {
    "replica_id": _Analysis._rank,
    "all_reduce": _Analysis._same_in_group,
    "all_gather": _Analysis._same_in_group,
    "reduce_scatter": _Analysis._own_part,
    "all_to_all": _Analysis._own_part,
    "collective_permute": _Analysis._permute,
    "collective_broadcast": _Analysis._broadcast,
    "while": _Analysis._while,
    "case": _Analysis._case,
    "if": _Analysis._case,
}
