"""What moving values costs in bytes, roughly: enough to choose between two ways to partition an op."""

import math
from collections.abc import Sequence

from distributed.mesh import Mesh
from hlo_passes.sharding.spec import Sharding

__all__ = ["received_elements", "summed_elements", "sums_parts"]


def received_elements(mesh: Mesh, have: Sharding, want: Sharding, shape: Sequence[int]) -> float:
    """Elements a core must receive so that a value that lies as ``have`` lies as ``want``.

    It is its new block without the part of it that the core holds already: of each dim all rows if that
    is only cut finer, else its share of those that are put together, padding included.
    """
    held, rows, summed = 1.0, list(want.local), 1.0
    for dim, (old, new) in enumerate(zip(have.axes, want.axes, strict=True)):
        common = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        kept = min(len(old), len(new)) if common is None else common
        shards = mesh.size(old[kept:])
        held /= shards
        if sums_parts(shape[dim], have.local[dim], shards) and not new:
            summed *= 2
        elif shards > 1 and new == old[:kept]:
            rows[dim] = have.local[dim] * shards
    return math.prod(rows) * summed * (1 - held)


def sums_parts(size: int, local: int, shards: int) -> bool:
    """Whether so few of the blocks of ``local`` rows hold any of ``size`` that all-reducing moves less.

    An all-gather moves all blocks, full or not, an all-reduce twice the rows there are.
    """
    return 2 * size < local * shards


def summed_elements(mesh: Mesh, axes: Sequence[str], local: Sequence[int]) -> float:
    """Elements a core receives in a ring all-reduce over ``axes`` of blocks of shape ``local``."""
    return 2 * math.prod(local) * (1 - 1 / mesh.size(tuple(axes)))
