"""Permutes that bring each core rows of a sharded dim that others hold; one may serve several values."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.rows import Need, own_rows

__all__ = ["Fetch", "exchange", "fetch", "moved_rows"]

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """What cores ``need`` of a value of which each holds a block; only the global ``rows`` matter."""

    value: ir.Value
    need: Need
    rows: range


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Rows ``[low, high)`` of the block ``hop`` blocks after each core's first; pairs are (from, to)."""

    hop: int
    low: int
    high: int
    pairs: Pairs

    @property
    def is_own(self) -> bool:
        return all(source == target for source, target in self.pairs)

    @property
    def rounds(self) -> list[Pairs]:
        """The pairs in as many permutes as the busiest sender has receivers."""
        rounds: list[list[tuple[int, int]]] = []
        for source, target in self.pairs:
            free = [r for r in rounds if all(source != other for other, _ in r)]
            if not free:
                free = [[]]
                rounds.append(free[0])
            free[0].append((source, target))
        return [tuple(pairs) for pairs in rounds]

    @property
    def moved(self) -> int:
        return 0 if self.is_own else (self.high - self.low) * len(self.rounds)


@dataclass(frozen=True, kw_only=True)
class _Send:
    """The same rows of every core's block, from the first to the second core of each pair."""

    value: ir.Value
    pairs: Pairs

    def fits(self, other: "_Send") -> bool:
        """Whether one permute can carry both: no core sends or receives twice."""
        sides = zip(zip(*self.pairs, strict=True), zip(*other.pairs, strict=True), strict=True)
        return self.value.type == other.value.type and all(not set(a) & set(b) for a, b in sides)


_Key = tuple[int, _Piece, int]
"""Which of several fetches, which of its pieces and which round of it."""


def moved_rows(need: Need, block: int, rows: range) -> tuple[int, int]:
    """Rows a core receives by permutes, and by an all-gather instead."""
    pieces, _ = _pieces(need, block, rows)
    return sum(piece.moved for piece in pieces), (len(need.starts) - 1) * block


def fetch(emit: Emitter, value: ir.Value, dim: int, axes: tuple[str, ...], size: int, need: Need) -> ir.Value:
    """The rows each core needs of a dim of ``size`` global rows that is sharded over ``axes``.

    By permutes where they move less than an all-gather does, or a single one as much.
    """
    block = value.type.shape[dim]
    permuted, by_gather = moved_rows(need, block, range(size))
    if permuted < by_gather or permuted == block:
        return exchange(emit, dim, axes, [Fetch(value=value, need=need, rows=range(size))])[0]
    [gathered] = emit.all_gather([value], dim, axes)
    return own_rows(emit, gathered, dim, axes, need, [0] * len(need.starts))


def exchange(emit: Emitter, dim: int, axes: tuple[str, ...], fetches: Sequence[Fetch]) -> list[ir.Value]:
    """What each core needs of each of several values, all of them sharded over ``axes`` along ``dim``."""
    cut = functools.cache(lambda value, low, high: emit.cut(value, dim, low, high))
    plans = [_pieces(one.need, one.value.type.shape[dim], one.rows) for one in fetches]
    sends = {
        (number, piece, turn): _Send(value=cut(one.value, piece.low, piece.high), pairs=pairs)
        for number, (one, (pieces, _)) in enumerate(zip(fetches, plans, strict=True))
        for piece in pieces if not piece.is_own
        for turn, pairs in enumerate(piece.rounds)
    }  # fmt: skip
    received = _sent(emit, axes, sends)
    results = []
    for number, (one, (pieces, begins)) in enumerate(zip(fetches, plans, strict=True)):
        parts = []
        for piece in pieces:
            turns = [key for key in sends if key[:2] == (number, piece)]
            part = received[turns[0]] if turns else cut(one.value, piece.low, piece.high)
            for key in turns[1:]:
                part = _where(emit, axes, [target for _, target in sends[key].pairs], received[key], part)
            parts.append(part)
        joined = emit.concatenate(parts or [one.value], dim)
        results.append(own_rows(emit, joined, dim, axes, one.need, begins))
    return results


def _sent(emit: Emitter, axes: tuple[str, ...], sends: dict[_Key, _Send]) -> dict[_Key, ir.Value]:
    """What comes of each, in few permutes: a core chooses what it sends in one that carries several."""
    groups: list[dict[_Key, _Send]] = []
    for key, send in sends.items():
        free = [group for group in groups if all(send.fits(other) for other in group.values())]
        if not free:
            free = [{}]
            groups.append(free[0])
        free[0][key] = send
    received = {}
    for group in groups:
        first, *others = group.values()
        value = first.value
        for send in others:
            if send.value != first.value:
                value = _where(emit, axes, [source for source, _ in send.pairs], send.value, value)
        value = emit.permute(value, axes, [pair for send in group.values() for pair in send.pairs])
        received |= dict.fromkeys(group, value)
    return received


def _where(
    emit: Emitter, axes: tuple[str, ...], cores: Sequence[int], value: ir.Value, other: ir.Value
) -> ir.Value:
    """``value`` on these cores, ``other`` on the rest."""
    mine = emit.per_core(axes, [int(core in cores) for core in range(emit.mesh.size(axes))])
    mask = emit.compare(mine, emit.scalar(1), "EQ")
    return emit.select(emit.broadcast(mask, value.type.shape), value, other)


def _pieces(need: Need, block: int, rows: range) -> tuple[list[_Piece], list[int]]:
    """The blocks each core needs in order, and the global row with which each core's first one begins.

    Blocks are counted from the one a core's first row lies in, or from one at a fixed distance from the
    core's own, or from the core's mirror image: whichever way moves least.
    """
    first = [start // block for start in need.starts]
    forth = min(q - i for i, q in enumerate(first))
    back = min(q + i for i, q in enumerate(first))
    bases = (first, [i + forth for i in range(len(first))], [back - i for i in range(len(first))])
    plans = [(_pieces_from(base, need, block, rows), base) for base in bases]
    pieces, base = min(plans, key=lambda plan: sum(piece.moved for piece in plan[0]))
    if not pieces:
        return [], list(need.starts)
    return pieces, [(q + pieces[0].hop) * block + pieces[0].low for q in base]


def _pieces_from(base: Sequence[int], need: Need, block: int, rows: range) -> list[_Piece]:
    found: dict[int, list[tuple[int, int, int, int]]] = {}
    for target, (start, count) in enumerate(zip(need.starts, need.counts, strict=True)):
        low, high = max(start, rows.start), min(start + count, rows.stop)
        for source in range(low // block, -(-high // block)) if low < high else ():
            inside = max(low - source * block, 0), min(high - source * block, block)
            found.setdefault(source - base[target], []).append((source, target, *inside))
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
