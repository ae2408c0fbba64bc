"""dynamic_slice and dynamic_update_slice along sharded dims: rows are read and written where they lie."""

import functools

from hlo_passes.collective_ops import size_bytes
from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.partition import Handlers, Partitioner, by_factors
from hlo_passes.sharding.rows import owned_rows
from hlo_passes.sharding.rules import OpRule
from hlo_passes.sharding.spec import shape_of

__all__ = ["HANDLERS"]


def _slice(part: Partitioner, op: ir.Operation, rule: OpRule) -> None:
    """Every core takes the rows it holds, zeros for the others, and all add up."""
    value, *starts = op.operands
    choice, have = part.choose(op, rule), part.env[value][1]
    whole, taken = shape_of(value), shape_of(op.results[0])
    cut, gathered = {}, []
    for dim, axes in enumerate(have.axes):
        if axes and taken[dim] != whole[dim] and not choice.used & set(axes):
            # An all-reduce moves twice what it reduces, an all-gather the whole dim once.
            small = 2 * taken[dim] <= whole[dim]
            cut |= {dim: (axes, have.local[dim])} if small else {}
            gathered += [] if small else [dim]
    if gathered:
        part.note_gather(
            op, size_bytes([part.env[value][0]]) * part.targets.mesh.num_ranks,
            f"it takes most of sharded dim {gathered[0]} from a place known at run time only",
            f"do not shard dim {gathered[0]}",
        )  # fmt: skip
    if not cut:
        part.by_rule(op, rule, choice)
        return
    emit, sharding = part.emit, choice.sharding(whole, rule.operands[0], rule)
    local = part.use(value, sharding.with_dims(cut))
    begins = [part.whole(start) for start in starts]
    for dim, (axes, _) in cut.items():
        local = owned_rows(
            emit, local, dim, axes, _clamped(emit, begins[dim], whole[dim] - taken[dim]), taken[dim]
        )
        begins[dim] = emit.zero(begins[dim].type.element_type)
    result = choice.sharding(taken, rule.results[0], rule)
    new = part.emit_op(op, [local, *begins], [result])
    sizes = [
        taken[d] if d in cut else n for d, n in enumerate(ir.DenseI64ArrayAttr(new.attributes["slice_sizes"]))
    ]
    new.attributes["slice_sizes"] = ir.DenseI64ArrayAttr.get(sizes)
    axes = tuple(axis for names, _ in cut.values() for axis in names)
    part.env[op.results[0]] = (emit.sum_parts(new.results[0], axes), result)


def _clamped(emit: Emitter, start: ir.Value, last: int) -> ir.Value:
    """A start index as tensor<i32>, held in ``[0, last]`` as the ops clamp it."""
    element = start.type.element_type
    low, high = emit.zero(element), emit.convert(emit.scalar(last), element)
    start = emit.value("stablehlo.clamp", [low, start, high], [], element)
    return emit.convert(start, ir.IntegerType.get_signless(32))


def _update(part: Partitioner, op: ir.Operation, rule: OpRule) -> None:
    """Rows of a sharded dim are written only by the cores that hold them, in place."""
    choice, (target, update, *starts) = part.choose(op, rule), op.operands
    have, new = shape_of(target), shape_of(update)
    sharding = choice.sharding(have, rule.operands[0], rule)
    cut = [d for d in range(len(have)) if have[d] != new[d] and sharding.axes[d]]
    if not cut:
        part.by_rule(op, rule, choice)
        return
    emit, block = part.emit, part.use(target, sharding)
    piece = part.use(update, choice.sharding(new, rule.operands[1], rule))
    begins = [
        _clamped(emit, part.whole(start), size - rows)
        for start, size, rows in zip(starts, have, new, strict=True)
    ]
    inside = {}
    for dim in cut:
        offset = emit.offset(sharding.axes[dim], sharding.local[dim])
        first = emit.binary("subtract", begins[dim], offset)
        piece, inside[dim], begins[dim] = _fit(emit, piece, dim, first, sharding.local[dim])
    shape, element = list(piece.type.shape), block.type.element_type
    masks = [emit.spread(rows, shape, [dim]) for dim, rows in inside.items()]
    mask = functools.reduce(lambda a, b: emit.binary("and", a, b), masks)
    old = emit.value(
        "stablehlo.dynamic_slice", [block, *begins], shape, element,
        slice_sizes=ir.DenseI64ArrayAttr.get(shape),
    )  # fmt: skip
    merged = emit.select(mask, piece, old)
    written = emit.value("stablehlo.dynamic_update_slice", [block, merged, *begins], sharding.local, element)
    part.env[op.results[0]] = (written, sharding)


def _fit(
    emit: Emitter, piece: ir.Value, dim: int, first: ir.Value, local: int
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Makes an update that goes to row ``first`` of a block of ``local`` rows, or beside it, go into it.

    Returns what to write, which of its rows are of the update, and at which row of the block it begins.
    """
    rows = piece.type.shape[dim]
    taken = min(rows, local)
    at = emit.clamp(first, 0, local - taken)
    shift = emit.binary("subtract", at, first)
    numbers = emit.binary("add", emit.rows(taken), emit.broadcast(shift, [taken]))
    low = emit.compare(numbers, emit.broadcast(emit.scalar(0), [taken]), "GE")
    high = emit.compare(numbers, emit.broadcast(emit.scalar(rows), [taken]), "LT")
    inside = emit.binary("and", low, high)
    if rows > 1:
        begin = emit.clamp(emit.binary("add", shift, emit.scalar(taken)), 0, rows + taken)
        piece = emit.slice_at(emit.pad(piece, dim, taken, taken), dim, begin, taken)
    return piece, inside, at


HANDLERS: Handlers = {
    "stablehlo.dynamic_slice": by_factors(_slice),
    "stablehlo.dynamic_update_slice": by_factors(_update),
}
