"""Moves a value from one sharding to another: slices, then permutes, all-to-alls and last all-gathers."""

import math
from collections.abc import Sequence

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.exchange import fetch
from hlo_passes.sharding.rows import result_need
from hlo_passes.sharding.spec import Sharding
from hlo_passes.sharding.traffic import sums_parts

__all__ = ["Mover", "reshard"]

Axes = tuple[str, ...]


class Mover:
    """A value on its way from ``old`` to ``new``, a block of a tensor of global ``shape``; it lies ``at``.

    ``gathered_elements`` counts what each core receives of it in all-gathers.
    """

    def __init__(
        self, emit: Emitter, value: ir.Value, shape: tuple[int, ...], old: Sharding, new: Sharding
    ) -> None:
        self.emit, self.value, self.shape = emit, value, shape
        self.old, self.at, self.new = old, old, new
        self.gathered_elements = 0

    def place(self, dim: int, axes: Axes, rows: int) -> None:
        self.at = self.at.with_dims({dim: (axes, rows)})

    def refit(self, dim: int, rows: int) -> None:
        """Blocks of ``rows`` rows instead, over the same axes: cores exchange the edges of their blocks."""
        axes, size, before = self.at.axes[dim], self.shape[dim], self.emit.gathered_elements
        if self.at.local[dim] == rows:
            return
        if axes:
            need = result_need(size, rows, self.emit.mesh.size(axes))
            self.value = fetch(self.emit, self.value, dim, axes, size, need)
        else:
            self.value = self.emit.resize(self.value, dim, rows)
        self.place(dim, axes, rows)
        self.gathered_elements += self.emit.gathered_elements - before


def reshard(movers: Sequence[Mover]) -> None:
    """Brings values to where they shall lie; what several of them gather alike goes in one collective.

    What makes blocks smaller comes first, so that every later step moves less.
    """
    for mover in movers:
        if 0 in mover.shape:
            zero = mover.emit.zero(mover.value.type.element_type)
            mover.value, mover.at = mover.emit.broadcast(zero, mover.new.local), mover.new
    for step in (_slice, _permute, _exchange, _sum_few):
        for mover in movers:
            step(mover, mover.new)
    _gather_alike(movers)
    for mover in movers:
        _slice(mover, mover.new)
        _refit(mover, mover.new)
        assert mover.at == mover.new, f"resharding to {mover.new} ended at {mover.at}"


def _slice(mover: Mover, new: Sharding) -> None:
    """Dims that only gain axes which nothing else uses: each core keeps a part of what it has."""
    for dim, (have, want) in enumerate(zip(mover.at.axes, new.axes, strict=True)):
        more = want[len(have) :]
        if want[: len(have)] == have and more and not set(more) & mover.at.used:
            mover.refit(dim, new.local[dim] * mover.emit.mesh.size(more))
            mover.value = mover.emit.take_block(mover.value, dim, more, new.local[dim])
            mover.place(dim, want, new.local[dim])


def _permute(mover: Mover, new: Sharding) -> None:
    """As many blocks of the same shape on other cores: every block travels once."""
    at, mesh = mover.at, mover.emit.mesh
    if at.axes == new.axes or at.local != new.local or mesh.size(_all(at)) != mesh.size(_all(new)):
        return
    holders: dict[tuple[int, ...], list[int]] = {}
    for rank in range(mesh.num_ranks):
        holders.setdefault(tuple(mesh.index(rank, axes) for axes in at.axes), []).append(rank)
    wants = [tuple(mesh.index(rank, axes) for axes in new.axes) for rank in range(mesh.num_ranks)]
    if any(len(holders.get(block, [])) != wants.count(block) for block in wants):
        return  # blocks that only one of the two shardings has: padding beyond the last row
    free = {block: set(ranks) - {r for r in ranks if wants[r] == block} for block, ranks in holders.items()}
    pairs = [
        (rank if rank in holders[block] else free[block].pop(), rank) for rank, block in enumerate(wants)
    ]
    mover.value = mover.emit.permute_ranks(mover.value, pairs)
    mover.at = new


def _all(sharding: Sharding) -> Axes:
    return tuple(axis for axes in sharding.axes for axis in axes)


def _exchange(mover: Mover, new: Sharding) -> None:
    """The last axes of one dim move to the end of another: an all-to-all carries 1/N of an all-gather."""
    for source in range(len(mover.shape)):
        for target in range(len(mover.shape)):
            axes = _moving(mover.at, new, source, target)
            if not axes:
                continue
            shards, rows = mover.emit.mesh.size(axes), new.local[target]
            mover.refit(target, rows * shards)
            mover.value = mover.emit.all_to_all(mover.value, target, source, axes)
            mover.place(source, mover.at.axes[source][: -len(axes)], mover.at.local[source] * shards)
            mover.place(target, mover.at.axes[target] + axes, rows)


def _moving(at: Sharding, new: Sharding, source: int, target: int) -> Axes:
    """The axes that ``source`` has last and does not keep, and ``target`` shall have next, to its end."""
    have, want = at.axes[target], new.axes[target]
    axes = want[len(have) :]
    ends = at.axes[source][len(at.axes[source]) - len(axes) :] == axes
    keeps = len(_common(at.axes[source], new.axes[source]))
    if source == target or not axes or want[: len(have)] != have or not ends:
        return ()
    return axes if len(at.axes[source]) - len(axes) >= keeps else ()


def _common(left: Sequence[str], right: Sequence[str]) -> Axes:
    """The longest common beginning."""
    count = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    return tuple(left[: min(len(left), len(right)) if count is None else count])


def _gone(mover: Mover, dim: int) -> Axes:
    """The axes that ``dim`` has and does not keep."""
    have = mover.at.axes[dim]
    return have[len(_common(have, mover.new.axes[dim])) :]


def _sum_few(mover: Mover, new: Sharding) -> None:
    """Dims of which most blocks are padding: an all-reduce moves less than an all-gather."""
    for dim, size in enumerate(mover.shape):
        gone, emit = _gone(mover, dim), mover.emit
        if gone == mover.at.axes[dim] and sums_parts(size, mover.at.local[dim], emit.mesh.size(gone)):
            mover.value = emit.sum_parts(_alone(mover, dim), gone)
            mover.gathered_elements += math.prod(mover.value.type.shape)
            mover.place(dim, (), size)


def _gather_alike(movers: Sequence[Mover]) -> None:
    """The axes that dims do not keep are gathered: one dim of each value at a time."""
    while True:
        alike: dict[tuple[int, Axes], list[Mover]] = {}
        for mover in movers:
            found = next(((d, _gone(mover, d)) for d in range(len(mover.shape)) if _gone(mover, d)), None)
            if found is not None:
                alike.setdefault(found, []).append(mover)
        if not alike:
            return
        for (dim, gone), members in alike.items():
            emit = members[0].emit
            values = emit.all_gather([mover.value for mover in members], dim, gone)
            for mover, value in zip(members, values, strict=True):
                mover.gathered_elements += math.prod(value.type.shape) - math.prod(mover.value.type.shape)
                mover.value = value
                kept = mover.at.axes[dim][: -len(gone)]
                mover.place(dim, kept, value.type.shape[dim])
                if not kept:
                    mover.refit(dim, mover.shape[dim])


def _alone(mover: Mover, dim: int) -> ir.Value:
    """All rows of ``dim``: this core's own block where it belongs, ``no_term`` elsewhere."""
    emit, axes, shape = mover.emit, mover.at.axes[dim], list(mover.value.type.shape)
    local = shape[dim]
    shape[dim] = local * emit.mesh.size(axes)
    empty = emit.broadcast(emit.no_term(mover.value.type.element_type), shape)
    offset, zero = emit.offset(axes, local), emit.scalar(0)
    starts = [offset if d == dim else zero for d in range(len(shape))]
    placed = emit.value(
        "stablehlo.dynamic_update_slice", [empty, mover.value, *starts], shape, empty.type.element_type
    )
    return emit.resize(placed, dim, mover.shape[dim])


def _refit(mover: Mover, new: Sharding) -> None:
    for dim, rows in enumerate(new.local):
        mover.refit(dim, rows)
