"""Weights in 8 bits: the matrices of linear layers as small numbers with a scale for each column."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["WEIGHTS", "quantised", "quantised_shapes"]

WEIGHTS: Mapping[str, Any] = {"int8": jnp.int8, "fp8_e4m3": jnp.float8_e4m3}
"""What a matrix can be stored in, by the names of the command line."""


# Dims of a convolution's kernel.
_WINDOWS = 4


def quantised(params: Any, weights: str) -> Any:
    """The tree with each linear layer's ``w`` [.., in, out] as 8-bit numbers, and ``scale``, f32 [.., out].

    ``w`` is about ``scale`` times the 8-bit number. The largest magnitude of a column becomes the largest one
    that is stored; integers are rounded to the nearest. Layers that share an array share the result. Tables,
    windows of convolutions, norms and biases stay as they are: ``layers.linear`` and ``layers.head_logits``
    alone know of scales.

    Args:
      weights: one of ``WEIGHTS``.
    """
    made: dict[int, dict[str, jax.Array]] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, list):
            return [visit(child) for child in node]
        if not isinstance(node, dict):
            return node
        if "w" not in node:
            return {name: visit(child) for name, child in node.items()}
        if node["w"].ndim == _WINDOWS:
            return node
        if id(node["w"]) not in made:
            made[id(node["w"])] = _scaled(node["w"], weights)
        return {**node, **made[id(node["w"])]}

    return visit(params)


def quantised_shapes(params: Any, weights: str) -> Any:
    """The same for a tree of ``jax.ShapeDtypeStruct``s."""
    return jax.eval_shape(lambda tree: quantised(tree, weights), params)


def _scaled(w: jax.Array, weights: str) -> dict[str, jax.Array]:
    dtype = WEIGHTS[weights]
    integer = jnp.issubdtype(dtype, jnp.integer)
    largest = float((jnp.iinfo if integer else jnp.finfo)(dtype).max)
    wide = w.astype(jnp.float32)
    scale = jnp.abs(wide).max(axis=-2) / largest
    # A column of zeros, as padded heads have, needs no scale.
    scaled = wide / jnp.where(scale == 0, 1, scale)[..., None, :]
    return {"w": (jnp.round(scaled) if integer else scaled).astype(dtype), "scale": scale}
