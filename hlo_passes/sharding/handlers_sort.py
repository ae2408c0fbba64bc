"""Sort along a sharded dim: of what is cut to its first rows afterwards, only candidates are gathered."""

from collections.abc import Sequence

from hlo_passes.collective_ops import size_bytes
from hlo_passes.ir import ir
from hlo_passes.ops import operations
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.partition import Handlers, Partitioner, by_factors
from hlo_passes.sharding.rules import OpRule
from hlo_passes.sharding.spec import shape_of

__all__ = ["HANDLERS"]


def _sort(part: Partitioner, op: ir.Operation, rule: OpRule) -> None:
    """Top-k: each core sorts its block, the first rows of all blocks are gathered and sorted once more."""
    dim, size = _dim(op), shape_of(op.operands[0])
    have = max((part.env[v][1] for v in op.operands), key=lambda s: (len(s.axes[dim]), -s.local[dim]))
    axes, local = have.axes[dim], have.local[dim]
    cuts, shards = _first_rows(op, dim), part.targets.mesh.size(axes)
    if not axes:
        part.generic(op)
        return
    choice = part.choose(op, rule, may_move=False)
    rows = max((shape_of(cut.results[0])[dim] for cut in cuts), default=size[dim])
    if choice.used & set(axes) or 2 * min(rows, local) > local:
        _sort_whole(part, op, axes, shards)
        return
    emit = part.emit
    whole = [choice.sharding(size, dims, rule) for dims in rule.operands]
    blocks = [part.use(v, s.with_dims({dim: (axes, local)})) for v, s in zip(op.operands, whole, strict=True)]
    flags = _flags(emit, blocks[0].type.shape, dim, axes, size[dim])
    first = _flagged_sort(part, op, [*blocks, flags])
    candidates = emit.all_gather([_head(emit, v, dim, rows) for v in first], dim, axes)
    best = _flagged_sort(part, op, candidates)[:-1]
    for cut in cuts:
        number = next(n for n, result in enumerate(op.results) if result == cut.operands[0])
        value = _head(emit, best[number], dim, shape_of(cut.results[0])[dim])
        part.env[cut.results[0]] = (value, whole[number].with_dims({dim: ((), value.type.shape[dim])}))
        part.done.add(cut)


def _sort_whole(part: Partitioner, op: ir.Operation, axes: tuple[str, ...], shards: int) -> None:
    """All rows on each core; of a batch that is long enough each core takes a part."""
    rule = part.targets.rules[op]
    choice = part.choose(op, rule)
    if not choice.used & set(axes):
        moved = size_bytes([part.env[v][0] for v in op.operands]) * (shards - 1)
        why = f"all of sharded dim {_dim(op)} is sorted, not its first few rows"
        part.note_gather(op, moved, why, f"do not shard dim {_dim(op)}")
    part.by_rule(op, rule, choice)


def _dim(op: ir.Operation) -> int:
    rank = len(shape_of(op.operands[0]))
    return (
        ir.IntegerAttr(op.attributes["dimension"]).value % rank if "dimension" in op.attributes else rank - 1
    )


def _first_rows(op: ir.Operation, dim: int) -> list[ir.Operation]:
    """The slices of the first rows of ``dim`` that are all the results are used for; none if they are not."""
    users = [use.owner.operation for result in op.results for use in result.uses]
    for user in users:
        if user.name != "stablehlo.slice" or user.block != op.block:
            return []
        starts, strides = (
            list(ir.DenseI64ArrayAttr(user.attributes[k])) for k in ("start_indices", "strides")
        )
        whole, taken = shape_of(user.operands[0]), shape_of(user.results[0])
        others = [d for d in range(len(whole)) if d != dim and whole[d] != taken[d]]
        if others or any(starts) or strides[dim] != 1:
            return []
    return users


def _head(emit: Emitter, value: ir.Value, dim: int, rows: int) -> ir.Value:
    return emit.resize(value, dim, min(rows, value.type.shape[dim]))


def _flags(emit: Emitter, shape: Sequence[int], dim: int, axes: tuple[str, ...], size: int) -> ir.Value:
    """0 where a row is of the tensor, 1 where it is padding, which sorts last."""
    zeros = emit.broadcast(emit.scalar(0), shape)
    return emit.fill_padding(zeros, dim, axes, size, emit.scalar(1))


def _flagged_sort(part: Partitioner, op: ir.Operation, values: list[ir.Value]) -> list[ir.Value]:
    """Sorts by the flags, the last of ``values``, then as ``op`` compares; equal rows keep their order."""
    emit = part.emit
    new = emit.op(
        "stablehlo.sort", values, [v.type for v in values], regions=1,
        dimension=f"{_dim(op)} : i64", is_stable="true",
    )  # fmt: skip
    old = op.regions[0].blocks[0]
    flag = ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))
    types = [argument.type for argument in old.arguments]
    block = new.regions[0].blocks.append(*types, flag, flag, arg_locs=[emit.location] * (len(types) + 2))
    mapping = dict(zip(old.arguments, block.arguments, strict=False))
    outer, emit.point = emit.point, ir.InsertionPoint(block)
    for inner in operations(old):
        operands = [mapping[v] if v in mapping else part.whole(v) for v in inner.operands]
        if inner.name == "stablehlo.return":
            break
        mapping |= dict(zip(inner.results, emit.copy(inner, operands).results, strict=True))
    left, right = list(block.arguments)[-2:]
    earlier, same = emit.compare(left, right, "LT"), emit.compare(left, right, "EQ")
    less = emit.binary("or", earlier, emit.binary("and", same, operands[0]))
    emit.op("stablehlo.return", [less], [])
    emit.point = outer
    return list(new.results)


HANDLERS: Handlers = {"stablehlo.sort": by_factors(_sort)}
