"""What moving values costs in bytes, roughly: enough to choose between two ways to partition an op."""

import math
from collections.abc import Sequence

from distributed.mesh import Mesh
from hlo_passes.sharding.spec import Sharding

__all__ = ["received_elements", "summed_elements"]


def received_elements(mesh: Mesh, have: Sharding, want: Sharding) -> float:
    """Elements a core must receive so that a value that lies as ``have`` lies as ``want``.

    It is its new block without the part of it that the core holds already: of each dim all rows if that
    is only cut finer, else its share of those that are put together.
    """
    held = 1.0
    for old, new in zip(have.axes, want.axes, strict=True):
        common = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), None)
        kept = min(len(old), len(new)) if common is None else common
        held /= mesh.size(old[kept:])
    return math.prod(want.local) * (1 - held)


def summed_elements(mesh: Mesh, axes: Sequence[str], local: Sequence[int]) -> float:
    """Elements a core receives in a ring all-reduce over ``axes`` of blocks of shape ``local``."""
    return 2 * math.prod(local) * (1 - 1 / mesh.size(tuple(axes)))
