"""How one global tensor lies on the ring: which rank holds which block."""

import functools
from dataclasses import dataclass

from distributed.mesh import Mesh

__all__ = ["Layout"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A global tensor cut into equal blocks of ``local_shape``.

    Along dim d shard i (of ``mesh.size(dim_axes[d])``) holds the global rows
    ``[i * local_shape[d], (i + 1) * local_shape[d])``, cut off at ``global_shape[d]``; what lies
    beyond is padding, of no defined value unless the program asks for more (``finite_padding``);
    a shard may be all padding. A dim without axes is whole.
    """

    global_shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    dtype: str
    mesh: Mesh
    dim_axes: tuple[tuple[str, ...], ...]

    @property
    def is_replicated(self) -> bool:
        return not any(self.dim_axes)

    @functools.cached_property
    def is_padded(self) -> bool:
        """Whether some core's block is not full."""
        sizes = zip(self.global_shape, self.local_shape, self.dim_axes, strict=True)
        return any(local * self.mesh.size(axes) != whole for whole, local, axes in sizes)

    def block(self, rank: int) -> tuple[slice, ...]:
        """The part of the global tensor that ``rank`` holds, without its padding."""
        result = []
        for whole, local, axes in zip(self.global_shape, self.local_shape, self.dim_axes, strict=True):
            start = min(self.mesh.index(rank, axes) * local, whole) if axes else 0
            result.append(slice(start, min(start + local, whole)))
        return tuple(result)
