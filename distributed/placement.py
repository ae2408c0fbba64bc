"""Global arrays cut into the blocks of the cores, and put together again."""

from collections.abc import Callable, Sequence

import jax
import ml_dtypes
import numpy as np

from distributed.host_memory import aligned_copy, aligned_empty, is_shareable
from distributed.layout import Layout
from kernels.dtypes import dtype as find_dtype

__all__ = ["PlacedValue", "cut", "join", "poison"]


class PlacedValue:
    """A value that lives on the ring: one array if all cores hold the same, else one per core.

    A donated input is consumed by the run it enters; ``arrays`` raises RuntimeError from then on.
    ``is_finite_padded`` says that no padding holds NaN or infinity; of a result of a run nobody knows.
    """

    def __init__(
        self, layout: Layout, arrays: Sequence[jax.Array], *, is_finite_padded: bool = False
    ) -> None:
        self.layout = layout
        self.is_finite_padded = is_finite_padded or not layout.is_padded
        self._arrays: list[jax.Array] | None = list(arrays)

    @property
    def is_consumed(self) -> bool:
        return self._arrays is None

    @property
    def arrays(self) -> list[jax.Array]:
        """The cores' blocks of ``layout.local_shape``; a list of one where they cannot differ."""
        if self._arrays is None:
            shape = self.layout.global_shape
            raise RuntimeError(
                f"this placed value ({self.layout.dtype}{list(shape)}) was donated to an earlier run, which "
                "reused its memory; use that run's output instead, or do not donate it"
            )
        return self._arrays

    def consume(self) -> list[jax.Array]:
        """Hands the arrays over for good."""
        arrays, self._arrays = self.arrays, None
        return arrays

    def clear_padding(self, to_device: Callable[[np.ndarray], jax.Array]) -> None:
        """Fills the padding with zeros, unless it is known to be finite; the value stays the same."""
        if self.is_finite_padded:
            return
        blocks = [np.asarray(array) for array in self.arrays]
        parts = [block[_inside(self.layout, rank)] for rank, block in enumerate(blocks)]
        self._arrays = [to_device(_block(self.layout, part, np.zeros((), part.dtype))) for part in parts]
        self.is_finite_padded = True


def cut(
    layout: Layout, array: np.ndarray, *, varying: bool, copy: bool, padding: np.ndarray | None = None
) -> list[np.ndarray]:
    """Blocks of a global array, one per rank (one in all where not ``varying``).

    Ranks that hold the same block share one array. Padding holds the scalar ``padding``, by default zero.
    Without ``copy`` a block that lies in one stretch is a view of the caller's memory.

    Raises ValueError if shape or dtype are not the layout's.
    """
    dtype = find_dtype(layout.dtype).numpy
    if array.shape != layout.global_shape or array.dtype != dtype:
        raise ValueError(
            f"expected an array of shape {layout.global_shape} and type {dtype}, "
            f"got shape {array.shape} and type {array.dtype}"
        )
    if not varying:
        return [aligned_copy(array) if copy else array]
    blocks: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
    result = []
    for rank in range(layout.mesh.num_ranks):
        at = layout.block(rank)
        key = tuple((s.start, s.stop) for s in at)
        if key not in blocks:
            blocks[key] = part = array[at]
            if copy or part.shape != layout.local_shape or not is_shareable(part):
                blocks[key] = _block(layout, part, np.zeros((), dtype) if padding is None else padding)
        result.append(blocks[key])
    return result


def join(layout: Layout, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The global array from the blocks of all ranks (or the one block all share); a fresh, aligned array."""
    if layout.is_replicated:
        return aligned_copy(blocks[0])
    result = aligned_empty(layout.global_shape, find_dtype(layout.dtype).numpy)
    for rank in range(layout.mesh.num_ranks):
        at = layout.block(rank)
        block = blocks[rank] if len(blocks) > 1 else blocks[0]
        result[at] = block[_inside(layout, rank)]
    return result


def _inside(layout: Layout, rank: int) -> tuple[slice, ...]:
    """Where in its block ``rank`` has rows of the global array."""
    return tuple(slice(0, s.stop - s.start) for s in layout.block(rank))


def _block(layout: Layout, part: np.ndarray, padding: np.ndarray) -> np.ndarray:
    if part.shape == layout.local_shape:
        return aligned_copy(part)
    result = aligned_empty(layout.local_shape, part.dtype)
    result[...] = padding
    result[tuple(slice(0, size) for size in part.shape)] = part
    return result


def poison(dtype: np.dtype, *, finite: bool = False) -> np.ndarray:
    """What shows when padding is read: NaN (where it must be ``finite`` 16), the largest integer, or True."""
    if dtype.kind in "iu":
        return np.array(np.iinfo(dtype).max, dtype)
    if dtype.kind == "b":
        return np.array(True)
    try:
        return np.array(ml_dtypes.iinfo(dtype).max, dtype)
    except ValueError:
        return np.array(16 if finite else np.nan).astype(dtype)
