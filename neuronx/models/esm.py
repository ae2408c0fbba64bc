"""ESM-2 in plain JAX: published sizes, what each amino acid of a protein is among the others."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.answers import joined
from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    attention,
    layer_norm,
    layer_parameters,
    linear,
    norm_parameters,
    split_heads,
    through_layers,
)
from neuronx.models.positions import rotate, rotation

__all__ = ["SIZES", "ESMConfig", "config", "encode", "parameter_shapes", "parameters"]

# The token of what is hidden, and how much was in training: what is looked up is scaled as if it still were.
_HIDDEN, _HIDDEN_SHARE = 32, 0.15 * 0.8


@dataclass(frozen=True, kw_only=True)
class ESMConfig:
    """One published size: layers that normalise before each half, queries and keys turned by their place."""

    name: str
    hidden: int
    heads: int
    layers: int
    vocab: int = 33
    positions: int = 1024

    @property
    def ffn(self) -> int:
        return 4 * self.hidden


# Source: config.json of facebook/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        ESMConfig(name="esm2-t6-8m-ur50d", hidden=320, heads=20, layers=6),
        ESMConfig(name="esm2-t12-35m-ur50d", hidden=480, heads=20, layers=12),
        ESMConfig(name="esm2-t30-150m-ur50d", hidden=640, heads=20, layers=30),
        ESMConfig(name="esm2-t33-650m-ur50d", hidden=1280, heads=20, layers=33),
        ESMConfig(name="esm2-t36-3b-ur50d", hidden=2560, heads=40, layers=36),
        ESMConfig(name="esm2-t48-15b-ur50d", hidden=5120, heads=40, layers=48),
    )
}


def _parameter_tree(cfg: ESMConfig, make: Make) -> dict[str, Any]:
    return {
        "tokens": make((cfg.vocab, cfg.hidden), 0.0),
        "layers": [layer_parameters(make, cfg.hidden, cfg.ffn) for _ in range(cfg.layers)],
        "norm": norm_parameters(make, cfg.hidden),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters
_norm = functools.partial(layer_norm, epsilon=1e-5)


def encode(cfg: ESMConfig, params: dict[str, Any], tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states [batch, length, hidden].

    Args:
      tokens: i32 [batch, length].
      mask: i32 [batch, length], 1 where there is a token.
    """
    dtype, there = params["norm"]["scale"].dtype, mask.astype(jnp.float32)
    hidden = (tokens == _HIDDEN).astype(jnp.float32)
    shown = 1 - hidden.sum(axis=1) / there.sum(axis=1)
    scale = (1 - hidden) * there * ((1 - _HIDDEN_SHARE) / shown)[:, None]
    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip").astype(dtype) * scale[..., None].astype(dtype)
    turn = rotation(jnp.arange(tokens.shape[1]), cfg.hidden // cfg.heads, base=1e4)
    visible = (mask > 0)[:, None, None, :]

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        normal = _norm(weights["attention_norm"], x)
        q, k, v = (split_heads(linear(weights[name], normal), cfg.heads) for name in "qkv")
        q, k = rotate(q, turn) * (1 / math.sqrt(q.shape[-1])), rotate(k, turn)
        x = x + joined(weights["o"], attention(q, k, v, visible))
        up = ACTIVATIONS["gelu"](linear(weights["up"], _norm(weights["ffn_norm"], x)))
        return x + linear(weights["down"], up), None

    return _norm(params["norm"], through_layers(layer, x, params["layers"])[0])
