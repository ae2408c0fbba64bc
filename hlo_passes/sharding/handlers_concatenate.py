"""Concatenate along a sharded dim: each core fetches what falls into its block of the result."""

import math

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.handlers_window import replaced, rows_of
from hlo_passes.sharding.partition import Choice, Handlers, Partitioner, shape_of
from hlo_passes.sharding.rows import Need, result_need

__all__ = ["HANDLERS"]


def _concatenate(part: Partitioner, op: ir.Operation) -> None:
    """Each core fetches from every operand what falls into its block of the result."""
    rule, result = part.targets.rules[op], op.results[0]
    dim = ir.IntegerAttr(op.attributes["dimension"]).value
    choice = part.choose(op, rule)
    axes, local = _concatenated(part, op, choice, dim)
    if not axes or 0 in shape_of(result):
        part.generic(op)
        return
    emit, size = part.emit, shape_of(result)[dim]
    shards, begin, whole = part.targets.mesh.size(axes), 0, None
    for value, dims in zip(op.operands, rule.operands, strict=True):
        rows, have = shape_of(value)[dim], part.env[value][1]
        if not rows:
            continue
        sharding = choice.sharding(shape_of(value), dims, rule)
        sharded = have.axes[dim] == axes
        if sharded:
            sharding = replaced(sharding, {dim: (axes, have.local[dim])})
        need = _inside(result_need(size, local, shards, start=-begin), rows)
        piece = rows_of(part, op, part.use(value, sharding), dim, axes, rows, need, sharded)
        whole = piece if whole is None else _after(emit, whole, piece, dim, axes, begin, local)
        begin += rows
    sharding = choice.sharding(shape_of(result), rule.results[0], rule)
    part.env[result] = (whole, replaced(sharding, {dim: (axes, local)}))


def _concatenated(
    part: Partitioner, op: ir.Operation, choice: Choice, dim: int
) -> tuple[tuple[str, ...], int]:
    """Axes and rows per core of the joined dim: as wanted, else as the longest sharded operand lies."""
    size, wanted = shape_of(op.results[0])[dim], part.wanted(op.results[0])
    used = {axis for axes in choice.axes.values() for axis in axes}
    lying = sorted(op.operands, key=lambda value: -shape_of(value)[dim])
    for axes in (wanted.axes[dim], *(part.env[value][1].axes[dim] for value in lying)):
        shards = part.targets.mesh.size(axes)
        if axes and not used & set(axes) and (axes == wanted.axes[dim] or size >= shards):
            return axes, wanted.local[dim] if axes == wanted.axes[dim] else math.ceil(size / shards)
    return (), size


def _inside(need: Need, size: int) -> Need:
    """``need`` without counts for cores that read nothing of the ``size`` rows there are."""
    counts = tuple(c if s < size and s + c > 0 else 0 for s, c in zip(need.starts, need.counts, strict=True))
    return Need(starts=need.starts, counts=counts, count=need.count)


def _after(
    emit: Emitter, first: ir.Value, second: ir.Value, dim: int, axes: tuple[str, ...], begin: int, local: int
) -> ir.Value:
    """``first`` in the global rows before ``begin``, ``second`` from there on."""
    i32 = ir.IntegerType.get_signless(32)
    rows = emit.value("stablehlo.iota", [], [local], i32, iota_dimension="0 : i64")
    rows = emit.binary("add", rows, emit.broadcast(emit.offset(axes, local), [local]))
    mask = emit.compare(rows, emit.broadcast(emit.scalar(begin), [local]), "GE")
    return emit.select(emit.spread(mask, first.type.shape, [dim]), second, first)


HANDLERS: Handlers = {"stablehlo.concatenate": _concatenate}
