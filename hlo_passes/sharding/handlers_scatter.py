"""Scatter into a sharded tensor, and of sharded updates: each core writes what it holds."""

import math

from hlo_passes.ir import ir
from hlo_passes.sharding.choice import Choice
from hlo_passes.sharding.indexing import IndexNumbers, index_numbers, local_indices, wide
from hlo_passes.sharding.partition import Handlers, Partitioner, by_factors
from hlo_passes.sharding.reductions import simple_reducer
from hlo_passes.sharding.rules import OpRule
from hlo_passes.sharding.spec import shape_of

__all__ = ["HANDLERS"]

# What a core that does not hold the old value starts from; the other reducers may count it twice.
_NEUTRAL = {"add": 0, "multiply": 1, "xor": 0}


def _scatter(part: Partitioner, op: ir.Operation, rule: OpRule) -> None:
    """Indices count from the core's own block, where those of others fall outside and are dropped.

    Sharded updates leave partial results, which are reduced with the scatter's own reducer.
    """
    choice, numbers = part.choose(op, rule), index_numbers(op)
    count = len(op.results)
    begins = _begins(part, op, rule, choice, numbers)
    summed = tuple(a for f in sorted(rule.reductions & choice.axes.keys()) for a in choice.axes[f])
    if not begins and not summed:
        part.by_rule(op, rule, choice)
        return
    emit = part.emit
    pairs = zip(op.operands, rule.operands, strict=True)
    local = part.use_all(op.operands, [choice.sharding(shape_of(v), dims, rule) for v, dims in pairs])
    indices = local[count] = wide(emit, local[count])
    if begins:
        offsets = {c: emit.offset(axes, local[0].type.shape[dim]) for c, (axes, dim) in begins.items()}
        indices = local_indices(emit, indices, numbers, offsets)
    if summed:
        indices = _drop_padding(part, op, rule, choice, indices)
        local[0] = _on_first(part, op, local[0], summed)
    local[count] = indices
    shardings = [choice.sharding(shape_of(v), d, rule) for v, d in zip(op.results, rule.results, strict=True)]
    new = part.emit_op(op, local, shardings)
    if summed:
        total = emit.all_reduce(new.results[0], summed, simple_reducer(op.regions[0]))
        part.env[op.results[0]] = (total, shardings[0])


def _begins(
    part: Partitioner, op: ir.Operation, rule: OpRule, choice: Choice, numbers: IndexNumbers
) -> dict[int, tuple[tuple[str, ...], int]]:
    """Axes and dim of the components of an index that point into a sharded dim."""
    found = {
        c: (choice.axes[rule.operands[0][dim][0]], dim)
        for c, dim in enumerate(numbers.indexed)
        if rule.operands[0][dim] and rule.operands[0][dim][0] in choice.axes and dim in numbers.removed
    }
    block = part.use(op.operands[0], choice.sharding(shape_of(op.operands[0]), rule.operands[0], rule))
    if found and not isinstance(block.owner, ir.Block) and block.owner.name == "stablehlo.dynamic_slice":
        # The old value is whole and would be cut here. XLA expands a scatter into slices at clamped
        # indices and merges them with a slice below as if they did not clamp: a dropped update would
        # write rows of another core. So all cores scatter into all of it.
        choice.drop([rule.operands[0][dim][0] for _, dim in found.values()])
        return {}
    return found


def _drop_padding(
    part: Partitioner, op: ir.Operation, rule: OpRule, choice: Choice, indices: ir.Value
) -> ir.Value:
    """Indices of updates that are padding point outside, where a scatter drops them."""
    emit, element = part.emit, indices.type.element_type
    value, dims = op.operands[len(op.results)], rule.operands[len(op.results)]
    outside = emit.constant(ir.Attribute.parse(
        f"dense<{math.prod(shape_of(op.operands[0])) if element.is_unsigned else -1}> : tensor<{element}>"
    ))  # fmt: skip
    for dim, factors in enumerate(dims):
        if factors and factors[0] in rule.reductions & choice.axes.keys():
            axes, size = choice.axes[factors[0]], shape_of(value)[dim]
            if indices.type.shape[dim] * part.targets.mesh.size(axes) != size:
                indices = emit.fill_padding(indices, dim, axes, size, outside)
    return indices


def _on_first(part: Partitioner, op: ir.Operation, local: ir.Value, axes: tuple[str, ...]) -> ir.Value:
    """The old value on the first core along ``axes``, what the reducer ignores on the others."""
    reducer = simple_reducer(op.regions[0])
    if reducer not in _NEUTRAL:
        return local
    emit, element, shape = part.emit, local.type.element_type, local.type.shape
    neutral = emit.no_term(element)
    if _NEUTRAL[reducer]:
        neutral = emit.convert(emit.scalar(1), element)
    first = emit.compare(emit.index(axes), emit.scalar(0), "EQ")
    return emit.select(emit.broadcast(first, shape), local, emit.broadcast(neutral, shape))


HANDLERS: Handlers = {"stablehlo.scatter": by_factors(_scatter)}
