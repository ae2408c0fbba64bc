"""DeBERTa-v3 in plain JAX: published sizes, scores that tell what a token is from how far away it stands."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from neuronx.models.positions import skewed

__all__ = ["SIZES", "DebertaConfig", "config", "encode", "parameter_shapes", "parameters"]

# Distances that have numbers of their own in either direction; half of them alone, the far ones sharing.
_BUCKETS, _FARTHEST = 256, 512


@dataclass(frozen=True, kw_only=True)
class DebertaConfig:
    """One published size; queries and keys of a distance are made as those of a token."""

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    vocab: int = 128100
    positions: int = 512


_BASE = {"hidden": 768, "heads": 12, "layers": 12, "ffn": 3072}

# Source: config.json of microsoft/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        DebertaConfig(name="deberta-v3-xsmall", hidden=384, heads=6, layers=12, ffn=1536),
        DebertaConfig(name="deberta-v3-small", **_BASE | {"layers": 6}),
        DebertaConfig(name="deberta-v3-base", **_BASE),
        DebertaConfig(name="deberta-v3-large", hidden=1024, heads=16, layers=24, ffn=4096),
        DebertaConfig(name="mdeberta-v3-base", **_BASE, vocab=251000),
    )
}


def _parameter_tree(cfg: DebertaConfig, make: Make) -> dict[str, Any]:
    return {
        "tokens": make((cfg.vocab, cfg.hidden), 0.0),
        "norm": norm_parameters(make, cfg.hidden),
        "distances": make((2 * _BUCKETS, cfg.hidden), 0.0),
        "distance_norm": norm_parameters(make, cfg.hidden),
        "layers": [layer_parameters(make, cfg.hidden, cfg.ffn) for _ in range(cfg.layers)],
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters
_norm = functools.partial(layer_norm, epsilon=1e-7)


def encode(cfg: DebertaConfig, params: dict[str, Any], tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Hidden states [batch, length, hidden].

    Args:
      tokens: i32 [batch, length].
      mask: i32 [batch, length], 1 where there is a token.
    """
    dtype = params["norm"]["scale"].dtype
    x = _norm(params["norm"], jnp.take(params["tokens"], tokens, axis=0, mode="clip").astype(dtype))
    x = x * mask[..., None].astype(dtype)
    table = _norm(params["distance_norm"], params["distances"].astype(dtype))
    far = jnp.take(table, _rows(tokens.shape[1]), axis=0, mode="clip")[None]
    visible = (mask > 0)[:, None, None, :]

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        q, k, v = (split_heads(linear(weights[name], x), cfg.heads) for name in "qkv")
        q = q * (1 / math.sqrt(3 * q.shape[-1]))
        far_q, far_k = (split_heads(linear(weights[name], far), cfg.heads)[0] for name in "qk")
        told = functools.partial(jnp.einsum, "bhtd,hrd->bhtr", preferred_element_type=jnp.float32)
        # A key sees distances the other way round.
        of_keys = skewed(told(k, far_q[:, ::-1] * (1 / math.sqrt(3 * q.shape[-1]))))
        bias = skewed(told(q, far_k)) + of_keys.swapaxes(2, 3)
        mixed = joined(weights["o"], attention(q, k, v, visible, bias))
        x = _norm(weights["attention_norm"], x + mixed)
        up = ACTIVATIONS["gelu"](linear(weights["up"], x))
        return _norm(weights["ffn_norm"], x + linear(weights["down"], up)), None

    return through_layers(layer, x, params["layers"])[0]


def _rows(length: int) -> np.ndarray:
    """The table's row of each distance, i32 [2 * length - 1], the farthest behind first."""
    behind, half = np.arange(length - 1, -length, -1), _BUCKETS // 2
    far = np.maximum(np.abs(behind), half)
    shared = np.ceil(np.log(far / half) / math.log((_FARTHEST - 1) / half) * (half - 1)) + half
    bucket = np.where(np.abs(behind) <= half, behind, shared * np.sign(behind))
    return np.clip(bucket + _BUCKETS, 0, 2 * _BUCKETS - 1).astype(np.int32)
