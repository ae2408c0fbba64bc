"""What every family of models has in the same way: sizes by name, and parameters of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from neuronx.models.layers import Make, random, shapes
from neuronx.models.sizes import find

__all__ = ["Family"]

_Config = TypeVar("_Config")


@dataclass(frozen=True, kw_only=True)
class Family(Generic[_Config]):
    """``sizes`` by name; ``tree`` makes the parameters of one, each by what it is given."""

    sizes: Mapping[str, _Config]
    tree: Callable[[_Config, Make], dict[str, Any]]

    def config(self, name: str) -> _Config:
        """The published size called ``name``; raises CompileError for any other."""
        return find(self.sizes, name)

    def parameter_shapes(self, cfg: _Config, dtype: Any, matrix_dtype: Any = None) -> dict[str, Any]:
        """As ``jax.ShapeDtypeStruct``s, without memory; matrices may have a type of their own."""
        return self.tree(cfg, shapes(dtype, matrix_dtype))

    def parameters(self, cfg: _Config, dtype: Any, seed: int) -> dict[str, Any]:
        """Random parameters: normal, standard deviation 0.02, norm scales around 1."""
        return self.tree(cfg, random(dtype, seed))
