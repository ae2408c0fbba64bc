"""Concatenate along a sharded dim: each core fetches what falls into its block of the result."""

import math
from dataclasses import dataclass

from hlo_passes.ir import ir
from hlo_passes.ops import maker
from hlo_passes.sharding.choice import Choice
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.exchange import Fetch, exchange, moved_rows
from hlo_passes.sharding.handlers_window import rows_of
from hlo_passes.sharding.partition import Handlers, Partitioner
from hlo_passes.sharding.rows import Need, result_need
from hlo_passes.sharding.spec import shape_of

__all__ = ["HANDLERS"]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Rows ``rows`` of ``source``, which come to lie at row ``begin`` of the result."""

    source: ir.Value
    rows: range
    begin: int


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
    shards = part.targets.mesh.size(axes)
    made = choice.sharding(shape_of(result), rule.results[0], rule).with_dims({dim: (axes, local)})
    parts, fetches, pieces = _parts(part, op, dim, axes), {}, {}
    for number, one in enumerate(parts):
        rows, have = shape_of(one.source)[dim], part.forms.lying(one.source)
        sharded = have.axes[dim] == axes
        sharding = made.with_dims({dim: (axes, have.local[dim]) if sharded else ((), rows)})
        value, need = part.use(one.source, sharding), _need(one, size, local, shards)
        permuted, gathered = moved_rows(need, value.type.shape[dim], one.rows)
        if sharded and permuted <= gathered:
            fetches[number] = Fetch(value=value, need=need, rows=one.rows)
        else:
            pieces[number] = rows_of(part, op, value, dim, axes, rows, need, sharded)
    pieces |= dict(zip(fetches, exchange(emit, dim, axes, list(fetches.values())), strict=True))
    whole = pieces[0]
    for number, one in enumerate(parts[1:], 1):
        whole = _after(emit, whole, pieces[number], dim, axes, one.begin, local)
    part.env[result] = (whole, made)


def _parts(part: Partitioner, op: ir.Operation, dim: int, axes: tuple[str, ...]) -> list[_Part]:
    """What is joined: the operands, or where they are rows of a value sharded so, those rows of it."""
    parts, begin = [], 0
    for value in op.operands:
        count, start = shape_of(value)[dim], _first_row(value, dim)
        beneath = None if start is None else value.owner.operands[0]
        # Of a sort whose first rows alone are used nothing else is made.
        if beneath not in part.env or part.env[beneath][1].axes[dim] != axes:
            start, beneath = 0, value
        if count:
            parts.append(_Part(source=beneath, rows=range(start, start + count), begin=begin))
        begin += count
    return parts


def _first_row(value: ir.Value, dim: int) -> int | None:
    """Where ``value`` begins in what it is a slice of along ``dim`` alone, None for other values."""
    op = maker(value)
    if op is None or op.name != "stablehlo.slice":
        return None
    attributes, whole = op.attributes, shape_of(op.operands[0])
    starts, strides = (ir.DenseI64ArrayAttr(attributes[name]) for name in ("start_indices", "strides"))
    others = [d for d, size in enumerate(shape_of(value)) if d != dim and size != whole[d]]
    return None if others or strides[dim] != 1 else starts[dim]


def _need(one: _Part, size: int, local: int, shards: int) -> Need:
    """The rows of the source that fall into each core's block of the result; none where none do."""
    need = result_need(size, local, shards, start=one.rows.start - one.begin)
    pairs = zip(need.starts, need.counts, strict=True)
    counts = tuple(n if s < one.rows.stop and s + n > one.rows.start else 0 for s, n in pairs)
    return Need(starts=need.starts, counts=counts, count=need.count)


def _concatenated(
    part: Partitioner, op: ir.Operation, choice: Choice, dim: int
) -> tuple[tuple[str, ...], int]:
    """Axes and rows per core of the joined dim: as wanted, else as the longest sharded operand lies."""
    size, wanted = shape_of(op.results[0])[dim], part.wanted(op.results[0])
    lying = sorted(op.operands, key=lambda value: -shape_of(value)[dim])
    for axes in (wanted.axes[dim], *(part.env[value][1].axes[dim] for value in lying)):
        shards = part.targets.mesh.size(axes)
        if axes and not choice.used & set(axes) and (axes == wanted.axes[dim] or size >= shards):
            return axes, wanted.local[dim] if axes == wanted.axes[dim] else math.ceil(size / shards)
    return (), size


def _after(
    emit: Emitter, first: ir.Value, second: ir.Value, dim: int, axes: tuple[str, ...], begin: int, local: int
) -> ir.Value:
    """``first`` in the global rows before ``begin``, ``second`` from there on."""
    rows = emit.binary("add", emit.rows(local), emit.broadcast(emit.offset(axes, local), [local]))
    mask = emit.compare(rows, emit.broadcast(emit.scalar(begin), [local]), "GE")
    return emit.select(emit.spread(mask, first.type.shape, [dim]), second, first)


HANDLERS: Handlers = {"stablehlo.concatenate": _concatenate}
