"""Gather from a table that is sharded along dims it looks rows up in (vocabulary-parallel embedding)."""

from hlo_passes.ir import ir
from hlo_passes.sharding.choice import Choice
from hlo_passes.sharding.indexing import (
    IndexNumbers,
    component,
    index_numbers,
    local_indices,
    spread_components,
    wide,
)
from hlo_passes.sharding.partition import Handlers, Partitioner, by_factors
from hlo_passes.sharding.rules import OpRule
from hlo_passes.sharding.spec import shape_of

__all__ = ["HANDLERS"]


def _gather(part: Partitioner, op: ir.Operation, rule: OpRule) -> None:
    """Each core looks up the rows it holds, zero elsewhere, and all add up: one all-reduce."""
    choice = part.choose(op, rule)
    cut = _cut_dims(op, rule, choice)
    if not cut:
        part.by_rule(op, rule, choice)
        return
    emit, numbers, (table, indices) = part.emit, index_numbers(op), op.operands
    pairs = zip(op.operands, rule.operands, strict=True)
    lying = [choice.sharding(shape_of(v), dims, rule) for v, dims in pairs]
    block, looked = part.use_all([table, indices], lying)
    here, inside = _local_lookup(part, op, looked, numbers, cut, block)
    result = choice.sharding(shape_of(op.results[0]), rule.results[0], rule)
    rows = part.emit_op(op, [block, here], [result]).results[0]
    # A dim that no index points into is read at its first row, which the first core holds.
    for dim, axes in cut.items():
        if dim not in numbers.indexed:
            first = emit.compare(emit.index(axes), emit.scalar(0), "EQ")
            first = emit.broadcast(first, inside.type.shape)
            inside = emit.binary("and", inside, first)
    kept = _keep_rows(part, rows, inside, numbers)
    axes = tuple(axis for axes in cut.values() for axis in axes)
    part.env[op.results[0]] = (emit.sum_parts(kept, axes), result)


def _cut_dims(op: ir.Operation, rule: OpRule, choice: Choice) -> dict[int, tuple[str, ...]]:
    """The dims of the table of which slices take one row and which are sharded, with their axes."""
    taken = list(ir.DenseI64ArrayAttr(op.attributes["slice_sizes"]))
    batching = index_numbers(op).batching
    return {
        dim: choice.axes[factors[0]]
        for dim, factors in enumerate(rule.operands[0])
        if factors and factors[0] in rule.reductions & choice.axes.keys()
        and taken[dim] == 1 and dim not in batching
    }  # fmt: skip


def _local_lookup(
    part: Partitioner, op: ir.Operation, indices: ir.Value, numbers: IndexNumbers,
    cut: dict[int, tuple[str, ...]], block: ir.Value,
) -> tuple[ir.Value, ir.Value]:  # fmt: skip
    """Indices into this core's block, and for each index vector whether it points into the block."""
    emit, table = part.emit, shape_of(op.operands[0])
    taken = list(ir.DenseI64ArrayAttr(op.attributes["slice_sizes"]))
    indices = wide(emit, indices)
    shape, element = list(indices.type.shape), indices.type.element_type
    # Out-of-range indices are clamped before they are told apart, as the unsharded gather clamps them.
    last = [emit.scalar(table[dim] - taken[dim]) for dim in numbers.indexed]
    zero = emit.broadcast(emit.zero(element), shape)
    last = spread_components(emit, last, numbers, shape, element) if last else zero
    indices = emit.value("stablehlo.clamp", [zero, indices, last], shape, element)
    begins = {
        c: emit.offset(cut[dim], block.type.shape[dim]) for c, dim in enumerate(numbers.indexed) if dim in cut
    }
    here = local_indices(emit, indices, numbers, begins) if begins else indices
    batch = [n for d, n in enumerate(shape) if d != numbers.vector_dim]
    inside = emit.broadcast(emit.constant(ir.Attribute.parse("dense<true> : tensor<i1>")), batch)
    for c in begins:
        row = component(emit, here, numbers, c)
        end = emit.convert(emit.scalar(block.type.shape[numbers.indexed[c]]), element)
        low = emit.compare(row, emit.broadcast(emit.zero(element), batch), "GE")
        high = emit.compare(row, emit.broadcast(end, batch), "LT")
        inside = emit.binary("and", inside, emit.binary("and", low, high))
    return here, inside


def _keep_rows(part: Partitioner, rows: ir.Value, inside: ir.Value, numbers: IndexNumbers) -> ir.Value:
    """The looked-up rows, but ``no_term`` where the index is not ``inside`` this core's block."""
    emit, shape = part.emit, rows.type.shape
    dims = [d for d in range(len(shape)) if d not in numbers.window]
    mask = emit.spread(inside, shape, dims)
    return emit.select(mask, rows, emit.broadcast(emit.no_term(rows.type.element_type), shape))


HANDLERS: Handlers = {"stablehlo.gather": by_factors(_gather)}
