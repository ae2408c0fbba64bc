"""Ops that need more than their factor rule: sources, indexed reads, control flow, manual regions."""

import math

from hlo_passes.ir import ir, sdy, source_line
from hlo_passes.sharding.partition import Handlers, Partitioner, local_type, shape_of
from hlo_passes.sharding.spec import Sharding
from kernels.errors import CompileError

__all__ = ["HANDLERS"]


def _constant(part: Partitioner, op: ir.Operation) -> None:
    """A splat is made as small as it is wanted; other data is whole and cut where it is used."""
    value, sharding = op.results[0], part.wanted(op.results[0])
    whole = Sharding.whole(shape_of(value))
    # The bindings cannot hand out complex data; copied with its op it stays whole.
    attr = None if isinstance(value.type.element_type, ir.ComplexType) else op.attributes["value"]
    if sharding == whole or not (isinstance(attr, ir.DenseElementsAttr) and attr.is_splat):
        part.emit_op(op, [], [whole])
        return
    attr = ir.DenseElementsAttr.get_splat(local_type(value, sharding), attr.get_splat_value())
    part.env[value] = (part.emit.constant(attr), sharding)


def _iota(part: Partitioner, op: ir.Operation) -> None:
    value, emit = op.results[0], part.emit
    sharding = part.wanted(value)
    new = part.emit_op(op, [], [sharding]).results[0]
    dim = ir.IntegerAttr(op.attributes["iota_dimension"]).value
    if sharding.axes[dim]:
        element = value.type.element_type
        start = emit.offset(sharding.axes[dim], sharding.local[dim])
        start = emit.value("stablehlo.convert", [start], [], element)
        new = emit.value(
            "stablehlo.add", [new, emit.broadcast(start, sharding.local)], sharding.local, element
        )
    part.env[value] = (new, sharding)


def _gather(part: Partitioner, op: ir.Operation) -> None:
    """Rows of a table sharded by rows: each core looks up those it holds, zero elsewhere, and all add up."""
    rule = part.targets.rules[op]
    if rule is None:
        part.generic(op)
        return
    choice, table = part.choose(op, rule), op.operands[0]
    rows = [f for f in rule.reductions if f in choice.axes]
    if not rows:
        part.emit_with(op, rule, choice)
        return
    dim = next(d for d, factors in enumerate(rule.operands[0]) if factors[:1] == (rows[0],))
    axes, local, size = choice.axes[rows[0]], choice.local[rows[0]], shape_of(table)[dim]
    emit = part.emit
    indices = part.use(op.operands[1], choice.sharding(shape_of(op.operands[1]), rule.operands[1], rule))
    shape, element = indices.type.shape, indices.type.element_type

    def number(value: ir.Value) -> ir.Value:
        return emit.broadcast(emit.value("stablehlo.convert", [value], [], element), shape)

    # Out-of-range indices are clamped before they are told apart, as the unsharded gather clamps them.
    last, zero = number(emit.scalar(size - 1)), number(emit.scalar(0))
    indices = emit.value("stablehlo.clamp", [zero, indices, last], shape, element)
    here = emit.value("stablehlo.subtract", [indices, number(emit.offset(axes, local))], shape, element)
    new = part.emit_op(
        op,
        [part.use(table, choice.sharding(shape_of(table), rule.operands[0], rule)), here],
        [choice.sharding(shape_of(op.results[0]), rule.results[0], rule)],
    ).results[0]
    inside = _inside(part, here, number(emit.scalar(local)), zero)
    kept = _keep_rows(part, op, new, inside)
    part.env[op.results[0]] = (emit.all_reduce(kept, axes, "stablehlo.add"), part.env[op.results[0]][1])


def _inside(part: Partitioner, indices: ir.Value, end: ir.Value, zero: ir.Value) -> ir.Value:
    emit, shape, bit = part.emit, indices.type.shape, ir.IntegerType.get_signless(1)

    def compare(direction: str, other: ir.Value) -> ir.Value:
        text = f"#stablehlo<comparison_direction {direction}>"
        return emit.value("stablehlo.compare", [indices, other], shape, bit, comparison_direction=text)

    return emit.value("stablehlo.and", [compare("GE", zero), compare("LT", end)], shape, bit)


def _keep_rows(part: Partitioner, op: ir.Operation, rows: ir.Value, inside: ir.Value) -> ir.Value:
    """Zeroes the looked-up rows whose index is not ``inside`` this core's block."""
    emit, bit = part.emit, ir.IntegerType.get_signless(1)
    numbers = str(op.attributes["dimension_numbers"])
    shape, element = rows.type.shape, rows.type.element_type
    batch_shape = [n for d, n in enumerate(inside.type.shape) if d != _number(numbers, "index_vector_dim")]
    inside = emit.value("stablehlo.reshape", [inside], batch_shape, bit)
    offset_dims = _list(numbers, "offset_dims")
    dims = [d for d in range(len(shape)) if d not in offset_dims]
    mask = emit.value(
        "stablehlo.broadcast_in_dim", [inside], shape, bit,
        broadcast_dimensions=f"array<i64: {', '.join(map(str, dims))}>" if dims else "array<i64>",
    )  # fmt: skip
    return emit.value(
        "stablehlo.select", [mask, rows, emit.broadcast(emit.zero(element), shape)], shape, element
    )


def _number(numbers: str, field: str) -> int:
    _, found, rest = numbers.partition(f"{field} = ")
    return int(rest.split(",")[0].split(">")[0]) if found else 0


def _list(numbers: str, field: str) -> list[int]:
    _, found, rest = numbers.partition(f"{field} = [")
    return [int(d) for d in rest.split("]")[0].split(",")] if found and rest[0] != "]" else []


def _update_slice(part: Partitioner, op: ir.Operation) -> None:
    """A block that is sharded along the updated dim is written only by the cores whose rows are updated."""
    rule, emit = part.targets.rules[op], part.emit
    choice = part.choose(op, rule)
    target, update, *starts = op.operands
    have, new = shape_of(target), shape_of(update)
    partial = [d for d, factors in enumerate(rule.operands[0]) if have[d] != new[d] and factors]
    sharded = [d for d in partial if rule.operands[0][d][0] in choice.axes]
    if not sharded:
        part.emit_with(op, rule, choice)
        return
    sharding = choice.sharding(have, rule.operands[0], rule)
    block, element = part.use(target, sharding), target.type.element_type
    piece = part.use(update, choice.sharding(new, rule.operands[1], rule))
    starts = [part.whole(start) for start in starts]
    low, high = [0] * len(have), [0] * len(have)
    for dim in sharded:
        # Rows of the update that belong to other cores fall into a margin that is cut off again.
        margin, kind = new[dim], starts[dim].type.element_type
        number = lambda n, kind=kind: emit.value("stablehlo.convert", [emit.scalar(n)], [], kind)  # noqa: E731
        start = emit.value("stablehlo.clamp", [number(0), starts[dim], number(have[dim] - margin)], [], kind)
        offset = emit.value(
            "stablehlo.convert", [emit.offset(sharding.axes[dim], sharding.local[dim])], [], kind
        )
        start = emit.value("stablehlo.add", [start, number(margin)], [], kind)
        # Never below zero, also where the index type has no sign.
        offset = emit.value("stablehlo.minimum", [offset, start], [], kind)
        starts[dim] = emit.value("stablehlo.subtract", [start, offset], [], kind)
        low[dim] = high[dim] = margin
    wide = emit.pad(block, low, high)
    wide = emit.value("stablehlo.dynamic_update_slice", [wide, piece, *starts], wide.type.shape, element)
    local = emit.cut(wide, low, [a + b for a, b in zip(low, sharding.local, strict=True)])
    part.env[op.results[0]] = (local, sharding)


def _loop(part: Partitioner, op: ir.Operation) -> None:
    """Carried values keep one sharding; the condition's predicate is whole."""
    carried = [part.wanted(value) for value in op.results]
    inits = [part.use(v, s) for v, s in zip(op.operands, carried, strict=True)]
    new = _like(op, inits, [value.type for value in inits], part)
    for region, fresh, wanted in zip(op.regions, new.regions, ([Sharding.whole(())], carried), strict=True):
        old = region.blocks[0]
        block = fresh.blocks.append(*(v.type for v in inits), arg_locs=[v.location for v in old.arguments])
        for value, argument, sharding in zip(old.arguments, block.arguments, carried, strict=True):
            part.env[value] = (argument, sharding)
        _fill_block(part, old, block, wanted)
    for value, result, sharding in zip(op.results, new.results, carried, strict=True):
        part.env[value] = (result, sharding)


def _choice(part: Partitioner, op: ir.Operation) -> None:
    """case and if: the index is whole, and all branches hand out results sharded alike."""
    shardings = [part.wanted(value) for value in op.results]
    types = [local_type(v, s) for v, s in zip(op.results, shardings, strict=True)]
    new = _like(op, [part.whole(op.operands[0])], types, part)
    for region, fresh in zip(op.regions, new.regions, strict=True):
        _fill_block(part, region.blocks[0], fresh.blocks.append(), shardings)
    for value, result, sharding in zip(op.results, new.results, shardings, strict=True):
        part.env[value] = (result, sharding)


def _like(
    op: ir.Operation, operands: list[ir.Value], types: list[ir.Type], part: Partitioner
) -> ir.Operation:
    attributes = {name: op.attributes[name] for name in op.attributes if not name.startswith("sdy.")}
    return ir.Operation.create(
        op.name, results=types, operands=operands, attributes=attributes, regions=len(op.regions),
        loc=op.location, ip=part.emit.point,
    )  # fmt: skip


def _fill_block(part: Partitioner, old: ir.Block, new: ir.Block, wanted: list[Sharding]) -> None:
    outer, part.emit.point = part.emit.point, ir.InsertionPoint(new)
    values = part.operations(old)
    results = [part.use(v, s) for v, s in zip(values, wanted, strict=True)]
    ir.Operation.create("stablehlo.return", operands=results, loc=part.emit.location, ip=part.emit.point)
    part.emit.point = outer


def _barrier(part: Partitioner, op: ir.Operation) -> None:
    """Values go through unchanged, each as it lies."""
    pairs = [part.env[value] for value in op.operands]
    part.emit_op(op, [local for local, _ in pairs], [sharding for _, sharding in pairs])


def _constraint(part: Partitioner, op: ir.Operation) -> None:
    """The user's own sharding of a value: always followed."""
    sharding = part.wanted(op.results[0])
    part.env[op.results[0]] = (part.use(op.operands[0], sharding), sharding)


def _forward(part: Partitioner, op: ir.Operation) -> None:
    part.env[op.results[0]] = part.env[op.operands[0]]


def _nothing(part: Partitioner, op: ir.Operation) -> None:
    """Advice to the propagation that is over by now."""


def _manual(part: Partitioner, op: ir.Operation) -> None:
    """``shard_map``: the body is per-core code already along its manual axes."""
    manual = set(sdy.ManualAxesAttr(op.attributes["manual_axes"]))
    ins = sdy.TensorShardingPerValueAttr(op.attributes["in_shardings"]).shardings
    outs = sdy.TensorShardingPerValueAttr(op.attributes["out_shardings"]).shardings
    body = op.regions[0].blocks[0]
    for value, argument, attr in zip(op.operands, body.arguments, ins, strict=True):
        outside, inside = _two_views(part, shape_of(value), part.targets.axes_of(attr), manual)
        part.env[argument] = (part.use(value, outside), inside)
    part.manual_depth += 1
    returned = part.operations(body)
    part.manual_depth -= 1
    for value, result, attr in zip(returned, op.results, outs, strict=True):
        outside, inside = _two_views(part, shape_of(result), part.targets.axes_of(attr), manual)
        part.env[result] = (part.use(value, inside), outside)


def _two_views(
    part: Partitioner, shape: tuple[int, ...], axes: tuple[tuple[str, ...], ...], manual: set[str]
) -> tuple[Sharding, Sharding]:
    """One placement as the program sees it and as the body does, to which manual axes do not exist."""
    mesh = part.targets.mesh
    local = tuple(math.ceil(size / mesh.size(names)) for size, names in zip(shape, axes, strict=True))
    free = tuple(tuple(name for name in names if name.split(":")[0] not in manual) for names in axes)
    return Sharding(axes=axes, local=local), Sharding(axes=free, local=local)


def _rank(part: Partitioner, op: ir.Operation) -> None:
    """The core's number inside ``shard_map``; a program for all cores has only one partition."""
    if part.manual_depth:
        local = part.emit.op("stablehlo.replica_id", [], [op.results[0].type]).results[0]
    else:
        local = part.emit.constant(ir.Attribute.parse("dense<0> : tensor<ui32>"))
    part.env[op.results[0]] = (local, Sharding.whole(()))


def _collective(part: Partitioner, op: ir.Operation) -> None:
    """Collectives the user wrote inside ``shard_map`` stay as they are."""
    if not part.manual_depth:
        raise CompileError(
            "a collective outside shard_map has no meaning in a program for all cores",
            op=op.name, location=source_line(op), fix="write it inside jax.shard_map over a mesh",
        )  # fmt: skip
    part.emit_op(op, [part.whole(v) for v in op.operands], [Sharding.whole(shape_of(v)) for v in op.results])


_COLLECTIVES = (
    "all_reduce", "all_gather", "all_to_all", "reduce_scatter", "collective_permute", "collective_broadcast",
)  # fmt: skip

HANDLERS: Handlers = {
    "stablehlo.constant": _constant,
    "stablehlo.iota": _iota,
    "stablehlo.gather": _gather,
    "stablehlo.dynamic_update_slice": _update_slice,
    "stablehlo.while": _loop,
    "stablehlo.case": _choice,
    "stablehlo.if": _choice,
    "stablehlo.optimization_barrier": _barrier,
    "stablehlo.partition_id": _rank,
    "stablehlo.replica_id": _rank,
    "sdy.sharding_constraint": _constraint,
    "sdy.reshard": _constraint,
    "sdy.propagation_barrier": _forward,
    "sdy.sharding_group": _nothing,
    "sdy.manual_computation": _manual,
} | {f"stablehlo.{name}": _collective for name in _COLLECTIVES}
