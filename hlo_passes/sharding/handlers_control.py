"""Control flow and ``shard_map`` bodies, with the collectives the user wrote in them."""

import math

from hlo_passes.ir import ir, sdy, source_line
from hlo_passes.ops import COLLECTIVES
from hlo_passes.sharding.agree import AGREE
from hlo_passes.sharding.partition import Handlers, Partitioner
from hlo_passes.sharding.spec import Sharding, local_type, shape_of
from kernels.errors import CompileError

__all__ = ["HANDLERS"]


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
    if not part.manual_depth:
        attributes[AGREE] = ir.UnitAttr.get()
    return ir.Operation.create(
        op.name, results=types, operands=operands, attributes=attributes, regions=len(op.regions),
        loc=op.location, ip=part.emit.point,
    )  # fmt: skip


def _fill_block(part: Partitioner, old: ir.Block, new: ir.Block, wanted: list[Sharding]) -> None:
    with part.forms.inside(new):
        values = part.operations(old)
        results = [part.use(v, s) for v, s in zip(values, wanted, strict=True)]
        ir.Operation.create("stablehlo.return", operands=results, loc=part.emit.location, ip=part.emit.point)


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


def _collective(part: Partitioner, op: ir.Operation) -> None:
    """Collectives the user wrote inside ``shard_map`` stay as they are, each core with its part of them."""
    if not part.manual_depth:
        raise CompileError(
            "a collective outside shard_map has no meaning in a program for all cores",
            op=op.name, location=source_line(op), fix="write it inside jax.shard_map over a mesh",
        )  # fmt: skip
    named = [ir.IntegerAttr(op.attributes[k]).value for k in _COLLECTIVE_DIMS if k in op.attributes]
    operands, shardings = [], []
    for value, result in zip(op.operands, op.results, strict=True):
        lying, shape = part.env[value][1], shape_of(value)
        free = [d not in named for d in range(len(shape))]
        axes = tuple(a if f else () for a, f in zip(lying.axes, free, strict=True))
        operand = tuple(n if f else m for n, m, f in zip(lying.local, shape, free, strict=True))
        local = tuple(n if f else m for n, m, f in zip(lying.local, shape_of(result), free, strict=True))
        operands.append(part.use(value, Sharding(axes=axes, local=operand)))
        shardings.append(Sharding(axes=axes, local=local))
    part.emit_op(op, operands, shardings)


# The dims a collective cuts or joins; along the others it may be sharded over axes that are not manual.
_COLLECTIVE_DIMS = ("all_gather_dim", "scatter_dimension", "split_dimension", "concat_dimension")

HANDLERS: Handlers = {
    "stablehlo.while": _loop,
    "stablehlo.case": _choice,
    "stablehlo.if": _choice,
    "sdy.manual_computation": _manual,
} | {f"stablehlo.{name}": _collective for name in COLLECTIVES}
