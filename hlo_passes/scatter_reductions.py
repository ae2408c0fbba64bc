"""Collectives that move more than is used become smaller ones, or none at all."""

from collections.abc import Callable, Mapping

from hlo_passes.collective_ops import (
    Partial,
    blocks,
    erase_dead,
    fill_reducer,
    groups_attribute,
    lines,
    partial,
    reducer,
    size_bytes,
    take_partial,
)
from hlo_passes.ir import ir, main
from hlo_passes.local import num_ranks
from hlo_passes.notes import add_notes
from hlo_passes.ops import COLLECTIVES, kind, maker, operations, replica_groups, tensor
from hlo_passes.rank_values import value_per_rank
from hlo_passes.spec import NoOptions as Options
from hlo_passes.varying import Varying, analyze

__all__ = ["Options", "run"]


def run(module: ir.Module, options: Options) -> None:
    """Rewrites, in this order and everywhere outside reducers:

    - equal collectives of equal operands: the first one's results;
    - a gather of what the group has in common, or of the blocks each core has just cut from a common value,
      a maximum, minimum, and, or of a common value, and collectives of groups of one: done locally;
    - an all-reduce of which each core takes its own block only: a reduce-scatter.
    """
    notes: list[str] = []
    with module.context, ir.Location.unknown():
        entry = main(module).entry_block
        for block in blocks(entry):
            notes += _merge_equal(block)
        varying = analyze(module)
        ranks = num_ranks(module)
        for block in blocks(entry):
            for op, rewrite in _local_ones(block, varying, ranks):
                notes.append(f"scatter_reductions: {kind(op)} done locally, {_why(op)}: {lines([op])}")
                op.results[0].replace_all_uses_with(rewrite())
                op.erase()
        for block in blocks(entry):
            notes += _scatter(block, ranks)
        erase_dead(entry)
    add_notes(module, notes)


def _why(op: ir.Operation) -> str:
    return f"{size_bytes(op.operands)} B that the group has in common"


def _merge_equal(block: ir.Block) -> list[str]:
    first: dict[tuple, ir.Operation] = {}
    said = []
    for op in operations(block):
        combine = reducer(op.regions[0]) if kind(op) in COLLECTIVES and len(op.regions) else None
        if kind(op) not in COLLECTIVES or (len(op.regions) and combine is None):
            continue
        attributes = tuple(sorted((name, str(op.attributes[name])) for name in op.attributes))
        key = (kind(op), tuple(op.operands), attributes, combine)
        if key not in first:
            first[key] = op
            continue
        said.append(f"scatter_reductions: {kind(op)} merged with an equal one: {lines([op])}")
        for result, same in zip(op.results, first[key].results, strict=True):
            result.replace_all_uses_with(same)
        op.erase()
    return said


def _local_ones(
    block: ir.Block, varying: Varying, ranks: int
) -> list[tuple[ir.Operation, Callable[[], ir.Value]]]:
    """The collectives of a block that need not be, each with what builds its value without it."""
    found = []
    for op in operations(block):
        if kind(op) in _LOCAL_FORMS and len(op.operands) == 1:
            groups = replica_groups(op)
            shared = _is_common(varying, op.operands[0], groups)
            build = _LOCAL_FORMS[kind(op)](op, groups, shared, varying, ranks)
            if build is not None:
                found.append((op, build))
    return found


Groups = tuple[tuple[int, ...], ...]


def _is_common(varying: Varying, value: ir.Value, groups: Groups) -> bool:
    """Whether the ranks of each group surely hold the same bits."""
    classes = varying.classes[value]
    return all(len({classes[rank] for rank in group}) == 1 for group in groups)


def _as_it_is(op: ir.Operation) -> Callable[[], ir.Value]:
    return lambda: op.operands[0]


def _local_gather(
    op: ir.Operation, groups: Groups, shared: bool, varying: Varying, ranks: int
) -> Callable[[], ir.Value] | None:
    if all(len(group) == 1 for group in groups):
        return _as_it_is(op)
    if shared:
        return lambda: _repeat(op, len(groups[0]))
    source = maker(op.operands[0])
    if source is None or kind(source) != "dynamic_slice":
        return None
    whole, cut = source.operands[0], _own_block(source, groups, ranks)
    dim = op.attributes["all_gather_dim"].value
    if cut is None or cut != (dim, groups) or not _is_common(varying, whole, groups):
        return None
    return (lambda: whole) if whole.type == op.results[0].type else None


def _repeat(op: ir.Operation, count: int) -> ir.Value:
    """``count`` copies of the operand one behind the other along the gathered dim."""
    value, dim = op.operands[0], op.attributes["all_gather_dim"].value
    shape, element = tensor(value.type).shape, ir.RankedTensorType(value.type).element_type
    kept = [number + (number >= dim) for number in range(len(shape))]
    with ir.InsertionPoint(op), op.location:
        copies = ir.Operation.create(
            "stablehlo.broadcast_in_dim",
            results=[ir.RankedTensorType.get([*shape[:dim], count, *shape[dim:]], element)],
            operands=[value],
            attributes={"broadcast_dimensions": ir.DenseI64ArrayAttr.get(kept)},
        ).results[0]
        return ir.Operation.create(
            "stablehlo.reshape", results=[op.results[0].type], operands=[copies]
        ).results[0]


_IDEMPOTENT = frozenset({"maximum", "minimum", "and", "or"})


def _local_reduce(
    op: ir.Operation, groups: Groups, shared: bool, varying: Varying, ranks: int
) -> Callable[[], ir.Value] | None:
    alone = all(len(group) == 1 for group in groups)
    return _as_it_is(op) if alone or (shared and reducer(op.regions[0]) in _IDEMPOTENT) else None


def _local_alone(
    op: ir.Operation, groups: Groups, shared: bool, varying: Varying, ranks: int
) -> Callable[[], ir.Value] | None:
    return _as_it_is(op) if all(len(group) == 1 for group in groups) else None


_LOCAL_FORMS: Mapping[str, Callable] = {
    "all_gather": _local_gather,
    "all_reduce": _local_reduce,
    "reduce_scatter": _local_alone,
    "all_to_all": _local_alone,
}


def _own_block(cut: ir.Operation, groups: Groups, ranks: int) -> tuple[int, Groups] | None:
    """(dim, groups in the order of their blocks) of a dynamic_slice that takes each core's block of one dim.

    None where the blocks of a group do not cover the dim, each once.
    """
    whole, part = tensor(cut.operands[0].type).shape, tensor(cut.results[0].type).shape
    dims = [dim for dim, (have, taken) in enumerate(zip(whole, part, strict=True)) if have != taken]
    if len(dims) != 1:
        return None
    dim = dims[0]
    starts = value_per_rank(cut.operands[1 + dim], ranks)
    if starts is None or len({len(group) for group in groups}) != 1:
        return None
    wanted = [position * part[dim] for position in range(len(groups[0]))]
    if wanted[-1] + part[dim] != whole[dim]:
        return None
    ordered = tuple(tuple(sorted(group, key=lambda rank: starts[rank])) for group in groups)
    matches = all([starts[rank] for rank in group] == wanted for group in ordered)
    return (dim, ordered) if matches else None


def _scatter(block: ir.Block, ranks: int) -> list[str]:
    said = []
    for op in operations(block):
        if kind(op) != "dynamic_slice":
            continue
        found = partial(op.operands[0])
        cut = None if found is None else _own_block(op, found.groups, ranks)
        if cut is not None:
            moved = size_bytes(found.reduce.operands)
            said.append(
                f"scatter_reductions: all_reduce ({moved} B) of which each core takes its block became "
                f"reduce_scatter: {lines([found.reduce])}"
            )
            _replace(op, found, *cut)
    return said


def _replace(cut: ir.Operation, found: Partial, dim: int, groups: Groups) -> None:
    i64 = ir.IntegerType.get_signless(64)
    location = found.reduce.location
    with ir.InsertionPoint(cut), location:
        scatter = ir.Operation.create(
            "stablehlo.reduce_scatter",
            results=[cut.results[0].type],
            operands=[take_partial(found)],
            attributes={
                "scatter_dimension": ir.IntegerAttr.get(i64, dim),
                "replica_groups": groups_attribute(groups),
            },
            regions=1,
        )
    fill_reducer(scatter, found.reducer, cut.results[0].type)
    cut.results[0].replace_all_uses_with(scatter.results[0])
    cut.erase()
