"""Rows of a sharded dim that a core needs but others hold: fetched from neighbours, or gathered."""

from collections.abc import Sequence
from dataclasses import dataclass

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter

__all__ = ["Need", "fetch", "fill_outside", "moved_rows", "own_rows", "owned_rows", "result_need"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """Core i (its index along the axes) needs global rows ``[starts[i], starts[i] + counts[i])``.

    ``starts`` and ends may lie outside the tensor. All cores get ``count`` rows, of which those beyond
    ``counts[i]`` or outside the tensor are of no defined value.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    count: int


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Rows ``[low, high)`` of the block ``hop`` blocks after each core's first; pairs are (from, to)."""

    hop: int
    low: int
    high: int
    pairs: tuple[tuple[int, int], ...]

    @property
    def is_own(self) -> bool:
        return all(source == target for source, target in self.pairs)

    @property
    def rounds(self) -> list[list[tuple[int, int]]]:
        """The pairs in as many permutes as the busiest sender has receivers."""
        rounds: list[list[tuple[int, int]]] = []
        for source, target in self.pairs:
            free = [r for r in rounds if all(source != other for other, _ in r)]
            if not free:
                free = [[]]
                rounds.append(free[0])
            free[0].append((source, target))
        return rounds

    @property
    def moved(self) -> int:
        return 0 if self.is_own else (self.high - self.low) * len(self.rounds)


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


def moved_rows(need: Need, block: int, size: int) -> tuple[int, int]:
    """Rows a core receives by permutes, and by an all-gather instead."""
    pieces, _ = _pieces(need, block, size)
    return sum(piece.moved for piece in pieces), (len(need.starts) - 1) * block


def fetch(emit: Emitter, value: ir.Value, dim: int, axes: tuple[str, ...], size: int, need: Need) -> ir.Value:
    """The rows each core needs of a dim of ``size`` global rows that is sharded over ``axes``.

    By permutes where they move less than an all-gather does.
    """
    block = value.type.shape[dim]
    permuted, gathered = moved_rows(need, block, size)
    if permuted <= gathered:
        return _exchange(emit, value, dim, axes, size, need)
    return own_rows(emit, emit.all_gather(value, dim, axes), dim, axes, need, [0] * len(need.starts))


def _exchange(
    emit: Emitter, value: ir.Value, dim: int, axes: tuple[str, ...], size: int, need: Need
) -> ir.Value:
    block, shards = value.type.shape[dim], len(need.starts)
    pieces, begins = _pieces(need, block, size)
    parts = [_receive(emit, value, dim, axes, piece, shards) for piece in pieces] or [value]
    return own_rows(emit, emit.concatenate(parts, dim), dim, axes, need, begins)


def own_rows(
    emit: Emitter, value: ir.Value, dim: int, axes: tuple[str, ...], need: Need, begins: Sequence[int]
) -> ir.Value:
    """Cuts what each core needs out of ``value``, which on core i begins with global row ``begins[i]``."""
    offsets = [s - b for s, b in zip(need.starts, begins, strict=True)]
    active = [o for o, count in zip(offsets, need.counts, strict=True) if count] or [0]
    offsets = [min(max(o, min(active)), max(active)) for o in offsets]
    rows = value.type.shape[dim]
    before, after = max(0, -min(offsets)), max(0, max(offsets) + need.count - rows)
    low, high = [0] * value.type.rank, [0] * value.type.rank
    if before or after:
        low[dim], high[dim] = before, after
        value, offsets = emit.pad(value, low, high), [o + before for o in offsets]
    if len(set(offsets)) > 1:
        return emit.slice_at(value, dim, emit.per_core(axes, offsets), need.count)
    if offsets[0] == 0 and need.count == value.type.shape[dim]:
        return value
    start, end = [0] * value.type.rank, list(value.type.shape)
    start[dim], end[dim] = offsets[0], offsets[0] + need.count
    return emit.cut(value, start, end)


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
    shape, i32 = list(value.type.shape), ir.IntegerType.get_signless(32)
    rows = emit.value("stablehlo.iota", [], [shape[dim]], i32, iota_dimension="0 : i64")
    rows = emit.binary("add", rows, emit.broadcast(emit.per_core(axes, need.starts), [shape[dim]]))
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
    """Global rows ``[start, start + count)`` as far as this core holds them, and zeros for the others.

    ``start`` is tensor<i32> and the rows must lie inside the tensor.
    """
    local, shape = block.type.shape[dim], list(block.type.shape)
    first = emit.binary("subtract", start, emit.offset(axes, local))
    taken = min(count, local)
    at = emit.clamp(first, 0, local - taken)
    piece = emit.slice_at(block, dim, at, taken)
    if count == 1:
        inside = emit.compare(first, at, "EQ")
        shape[dim] = 1
        return emit.select(
            emit.broadcast(inside, shape), piece, emit.broadcast(emit.zero(block.type.element_type), shape)
        )
    # The piece begins with row ``at`` of the block, where ``first`` was asked for: shift it into place.
    low, high = [0] * len(shape), [0] * len(shape)
    low[dim], high[dim] = count, count
    shift = emit.binary("add", emit.binary("subtract", first, at), emit.scalar(count))
    return emit.slice_at(emit.pad(piece, low, high), dim, emit.clamp(shift, 0, taken + count), count)


def _pieces(need: Need, block: int, size: int) -> tuple[list[_Piece], list[int]]:
    """The blocks each core needs in order, and the global row with which each core's first one begins.

    Blocks are counted from the one a core's first row lies in, or from one at a fixed distance from the
    core's own, or from the core's mirror image: whichever way moves least.
    """
    first = [start // block for start in need.starts]
    forth = min(q - i for i, q in enumerate(first))
    back = min(q + i for i, q in enumerate(first))
    bases = (first, [i + forth for i in range(len(first))], [back - i for i in range(len(first))])
    plans = [(_pieces_from(base, need, block, size), base) for base in bases]
    pieces, base = min(plans, key=lambda plan: sum(piece.moved for piece in plan[0]))
    if not pieces:
        return [], list(need.starts)
    return pieces, [(q + pieces[0].hop) * block + pieces[0].low for q in base]


def _pieces_from(base: Sequence[int], need: Need, block: int, size: int) -> list[_Piece]:
    found: dict[int, list[tuple[int, int, int, int]]] = {}
    for target, (start, count) in enumerate(zip(need.starts, need.counts, strict=True)):
        low, high = max(start, 0), min(start + count, size)
        for source in range(low // block, -(-high // block)) if low < high else ():
            rows = max(low - source * block, 0), min(high - source * block, block)
            found.setdefault(source - base[target], []).append((source, target, *rows))
    if not found:
        return []
    first, last = min(found), max(found)
    pieces = []
    for hop in range(first, last + 1):
        wants = found.get(hop, [])
        pieces.append(_Piece(
            hop=hop, pairs=tuple((source, target) for source, target, _, _ in wants),
            low=min(low for _, _, low, _ in wants) if hop == first else 0,
            high=max(high for _, _, _, high in wants) if hop == last else block,
        ))  # fmt: skip
    return pieces


def _receive(
    emit: Emitter, value: ir.Value, dim: int, axes: tuple[str, ...], piece: _Piece, shards: int
) -> ir.Value:
    start, end = [0] * value.type.rank, list(value.type.shape)
    start[dim], end[dim] = piece.low, piece.high
    if end != list(value.type.shape) or piece.low:
        value = emit.cut(value, start, end)
    if piece.is_own:
        return value
    result = None
    for pairs in piece.rounds:
        received = emit.permute(value, axes, pairs)
        if result is None:
            result = received
            continue
        targets = {target for _, target in pairs}
        mine = emit.per_core(axes, [int(i in targets) for i in range(shards)])
        mask = emit.compare(mine, emit.scalar(1), "EQ")
        result = emit.select(emit.broadcast(mask, value.type.shape), received, result)
    return result
