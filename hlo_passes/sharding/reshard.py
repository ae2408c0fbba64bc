"""Moves a value from one sharding to another: slices where that suffices, else all-to-all or all-gather."""

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.spec import Sharding

__all__ = ["reshard"]


def reshard(emit: Emitter, value: ir.Value, shape: tuple[int, ...], old: Sharding, new: Sharding) -> ir.Value:
    """``value``, the block of a tensor of global ``shape`` under ``old``, as its block under ``new``."""
    if old == new:
        return value
    moved = _exchange(emit, value, shape, old, new)
    if moved is not None:
        return moved
    # Cut first: every later gather then moves less.
    for dim in range(len(shape)):
        if old.axes[dim] != new.axes[dim] and not old.axes[dim] and not set(new.axes[dim]) & old.used():
            value = emit.take_block(value, dim, new.axes[dim], new.local[dim])
            old = _with_dim(old, dim, new)
    for dim, size in enumerate(shape):
        if (old.axes[dim], old.local[dim]) != (new.axes[dim], new.local[dim]):
            value = _gather_dim(emit, value, dim, size, old)
            old = _with_dim(old, dim, Sharding.whole(shape))
    for dim in range(len(shape)):
        if old.axes[dim] != new.axes[dim]:
            value = emit.take_block(value, dim, new.axes[dim], new.local[dim])
    return value


def _with_dim(sharding: Sharding, dim: int, other: Sharding) -> Sharding:
    axes, local = list(sharding.axes), list(sharding.local)
    axes[dim], local[dim] = other.axes[dim], other.local[dim]
    return Sharding(axes=tuple(axes), local=tuple(local))


def _gather_dim(emit: Emitter, value: ir.Value, dim: int, size: int, old: Sharding) -> ir.Value:
    if not old.axes[dim]:
        return value
    return emit.resize(emit.all_gather(value, dim, old.axes[dim]), dim, size)


def _exchange(
    emit: Emitter, value: ir.Value, shape: tuple[int, ...], old: Sharding, new: Sharding
) -> ir.Value | None:
    """All axes of one dim move to another that had none: an all-to-all carries 1/N of an all-gather."""
    differ = [d for d in range(len(shape)) if old.axes[d] != new.axes[d] or old.local[d] != new.local[d]]
    if len(differ) != 2:
        return None
    source, target = differ if old.axes[differ[0]] else differ[::-1]
    axes = old.axes[source]
    if not axes or new.axes[source] or old.axes[target] or new.axes[target] != axes:
        return None
    value = emit.resize(value, target, new.local[target] * emit.mesh.size(axes))
    return emit.resize(emit.all_to_all(value, target, source, axes), source, shape[source])
