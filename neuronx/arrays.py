"""Values that live on the ring: the handle a user holds, and the placements of arrays that cannot change."""

import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distributed.layout import Layout
from distributed.placement import PlacedValue, join

__all__ = ["Deferred", "Placements", "RingArray"]


class Deferred:
    """A value that is computed when somebody reads it; a compiled function takes what ``array`` gives."""

    __slots__ = ()

    def array(self, cause: str = "read") -> jax.Array:
        raise NotImplementedError


class RingArray:
    """A global array cut over the cores of the ring, as an executable takes and gives it.

    NumPy and JAX read it as an array (``np.asarray(x)``, ``jnp.asarray(x)``), which puts the blocks
    together and copies. Passing it as a donated argument consumes it: later reads raise RuntimeError.
    """

    def __init__(self, placed: PlacedValue, dtype: np.dtype) -> None:
        self._placed = placed
        self.dtype = np.dtype(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._placed.layout.global_shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def layout(self) -> Layout:
        """Which core holds which block."""
        return self._placed.layout

    @property
    def placed(self) -> PlacedValue:
        """The blocks; raises RuntimeError once the array has been donated."""
        if self.is_deleted():
            raise RuntimeError(
                f"Array has been deleted with shape={self.dtype.name}{list(self.shape)}: it was donated to "
                "an earlier call, which reused its memory. Use the array that call returned."
            )
        return self._placed

    def is_deleted(self) -> bool:
        return self._placed.is_consumed

    def delete(self) -> None:
        """Gives up the blocks, as donating the array to a call does."""
        if not self.is_deleted():
            self._placed.consume()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("a RingArray is put together from the cores' blocks: it cannot be read uncopied")
        host = join(self.layout, [np.asarray(block) for block in self.placed.arrays])
        return host if dtype is None else host.astype(dtype, copy=False)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(np.asarray(self))

    def __repr__(self) -> str:
        state = "deleted" if self.is_deleted() else f"over {self.layout.mesh.num_ranks} cores"
        return f"RingArray({self.dtype.name}{list(self.shape)}, {state})"


class Placements:
    """Where immutable arrays already lie on the ring, so that weights are cut once and not per call.

    Found by the identity of the array; what is known of it goes when it does.
    """

    def __init__(self) -> None:
        self._placed: dict[int, tuple[weakref.ref[jax.Array], list[PlacedValue]]] = {}

    def find(self, value: Any, layout: Layout) -> PlacedValue | None:
        """Where ``value`` lies as this very ``layout`` says: a RingArray, or an array that was added."""
        if type(value) is RingArray:
            return value.placed if value.layout is layout else None
        found = self._placed.get(id(value))
        if found is not None and found[0]() is value and not value.is_deleted():
            for placed in found[1]:
                if placed.layout is layout:
                    return placed
        return None

    def get(self, array: jax.Array, layout: Layout, place: Callable[[jax.Array], PlacedValue]) -> PlacedValue:
        """The placement of ``array``; ``place`` makes it the first time."""
        placed = self.find(array, layout)
        if placed is None:
            key, placed = id(array), place(array)
            known = self._placed.get(key)
            if known is None or known[0]() is not array:
                known = self._placed[key] = (weakref.ref(array, lambda _: self._placed.pop(key, None)), [])
            known[1].append(placed)
        return placed

    def __len__(self) -> int:
        return len(self._placed)
