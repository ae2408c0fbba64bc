"""Rows of a sharded dim: which of them each core needs, and those it needs of what it has."""

from collections.abc import Sequence
from dataclasses import dataclass

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter

__all__ = ["Need", "fill_outside", "own_rows", "owned_rows", "result_need"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """Core i (its index along the axes) needs global rows ``[starts[i], starts[i] + counts[i])``.

    ``starts`` and ends may lie outside the tensor. All cores get ``count`` rows, of which those beyond
    ``counts[i]`` or outside the tensor are of no defined value.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    count: int


def result_need(
    size: int, local: int, shards: int, *, start: int = 0, stride: int = 1, extent: int = 1
) -> Need:
    """What cores need to make their blocks of ``local`` of ``size`` result rows.

    Result row o reads rows ``[start + o * stride, start + o * stride + extent)``.
    """
    valid = [min(max(size - i * local, 0), local) for i in range(shards)]
    return Need(
        starts=tuple(start + i * local * stride for i in range(shards)),
        counts=tuple((n - 1) * stride + extent if n else 0 for n in valid),
        count=(local - 1) * stride + extent,
    )


def own_rows(
    emit: Emitter, value: ir.Value, dim: int, axes: tuple[str, ...], need: Need, begins: Sequence[int]
) -> ir.Value:
    """Cuts what each core needs out of ``value``, which on core i begins with global row ``begins[i]``."""
    offsets = [s - b for s, b in zip(need.starts, begins, strict=True)]
    active = [o for o, count in zip(offsets, need.counts, strict=True) if count] or [0]
    offsets = [min(max(o, min(active)), max(active)) for o in offsets]
    rows = value.type.shape[dim]
    before, after = max(0, -min(offsets)), max(0, max(offsets) + need.count - rows)
    if before or after:
        value, offsets = emit.pad(value, dim, before, after), [o + before for o in offsets]
    if len(set(offsets)) > 1:
        return emit.slice_at(value, dim, emit.per_core(axes, offsets), need.count)
    return emit.cut(value, dim, offsets[0], offsets[0] + need.count)


def fill_outside(
    emit: Emitter, value: ir.Value, dim: int, axes: tuple[str, ...], size: int, need: Need, fill: ir.Value
) -> ir.Value:
    """``value``, as ``fetch`` gave it, with scalar ``fill`` in the rows outside the tensor."""
    ends = [s + c for s, c in zip(need.starts, need.counts, strict=True)]
    active = [count > 0 for count in need.counts]
    below = any(a and s < 0 for a, s in zip(active, need.starts, strict=True))
    above = any(a and e > size for a, e in zip(active, ends, strict=True))
    if not (below or above):
        return value
    shape = list(value.type.shape)
    rows = emit.binary(
        "add", emit.rows(shape[dim]), emit.broadcast(emit.per_core(axes, need.starts), [shape[dim]])
    )
    masks = []
    if below:
        masks.append(emit.compare(rows, emit.broadcast(emit.scalar(0), [shape[dim]]), "GE"))
    if above:
        masks.append(emit.compare(rows, emit.broadcast(emit.scalar(size), [shape[dim]]), "LT"))
    mask = masks[0] if len(masks) == 1 else emit.binary("and", *masks)
    return emit.select(emit.spread(mask, shape, [dim]), value, emit.broadcast(fill, shape))


def owned_rows(
    emit: Emitter, block: ir.Value, dim: int, axes: tuple[str, ...], start: ir.Value, count: int
) -> ir.Value:
    """Global rows ``[start, start + count)`` as far as this core holds them, ``no_term`` for the others.

    ``start`` is tensor<i32> and the rows must lie inside the tensor.
    """
    local, shape = block.type.shape[dim], list(block.type.shape)
    absent = emit.no_term(block.type.element_type)
    first = emit.binary("subtract", start, emit.offset(axes, local))
    taken = min(count, local)
    at = emit.clamp(first, 0, local - taken)
    piece = emit.slice_at(block, dim, at, taken)
    if count == 1:
        inside = emit.compare(first, at, "EQ")
        shape[dim] = 1
        return emit.select(emit.broadcast(inside, shape), piece, emit.broadcast(absent, shape))
    # The piece begins with row ``at`` of the block, where ``first`` was asked for: shift it into place.
    shift = emit.binary("add", emit.binary("subtract", first, at), emit.scalar(count))
    wide = emit.pad(piece, dim, count, count, fill=absent)
    return emit.slice_at(wide, dim, emit.clamp(shift, 0, taken + count), count)
