"""BERT and ELECTRA encoders in plain JAX: published sizes, random or shape-only weights."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.layers import (
    Make,
    encoder_attention,
    encoder_layer,
    layer_norm,
    linear,
    linear_parameters,
    norm_parameters,
    random,
    shapes,
)
from neuronx.models.sizes import find

__all__ = ["SIZES", "BertConfig", "config", "encode", "parameter_shapes", "parameters"]

NORM_EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """One published size. ``has_pooler`` is False for ELECTRA, which ends with its last layer."""

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    vocab: int = 30522
    positions: int = 512
    types: int = 2
    has_pooler: bool = True


# Source: config.json of each model on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        BertConfig(name="bert-base-uncased", hidden=768, heads=12, layers=12, ffn=3072),
        BertConfig(name="bert-base-cased", hidden=768, heads=12, layers=12, ffn=3072, vocab=28996),
        BertConfig(name="bert-large-uncased", hidden=1024, heads=16, layers=24, ffn=4096),
        BertConfig(name="bert-large-cased", hidden=1024, heads=16, layers=24, ffn=4096, vocab=28996),
        BertConfig(
            name="electra-base-discriminator", hidden=768, heads=12, layers=12, ffn=3072, has_pooler=False
        ),
        BertConfig(
            name="electra-large-discriminator", hidden=1024, heads=16, layers=24, ffn=4096, has_pooler=False
        ),
    )
}


def config(name: str) -> BertConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)


def parameter_shapes(cfg: BertConfig, dtype: Any, matrix_dtype: Any = None) -> dict[str, Any]:
    """The parameter tree as ``jax.ShapeDtypeStruct``s; matrices may have a type of their own."""
    return _parameter_tree(cfg, shapes(dtype, matrix_dtype))


def parameters(cfg: BertConfig, dtype: Any, seed: int) -> dict[str, Any]:
    """Random parameters; norm scales around 1."""
    return _parameter_tree(cfg, random(dtype, seed))


def _parameter_tree(cfg: BertConfig, make: Make) -> dict[str, Any]:
    tree = {
        "tokens": make((cfg.vocab, cfg.hidden), 0.0),
        "positions": make((cfg.positions, cfg.hidden), 0.0),
        "types": make((cfg.types, cfg.hidden), 0.0),
        "norm": norm_parameters(make, cfg.hidden),
        "layers": [encoder_layer(make, cfg.hidden, cfg.ffn) for _ in range(cfg.layers)],
    }
    if cfg.has_pooler:
        tree["pooler"] = linear_parameters(make, cfg.hidden, cfg.hidden)
    return tree


def encode(
    cfg: BertConfig, params: dict[str, Any], tokens: jax.Array, mask: jax.Array, types: jax.Array
) -> tuple[jax.Array, ...]:
    """Hidden states [batch, length, hidden] and, with a pooler, the pooled first token [batch, hidden].

    Args:
      tokens, types: i32 [batch, length].
      mask: i32 [batch, length], 1 where there is a token.
    """
    dtype = params["norm"]["scale"].dtype
    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip")
    x = x + params["positions"][: tokens.shape[1]]
    x = (x + jnp.take(params["types"], types, axis=0, mode="clip")).astype(dtype)
    x = layer_norm(params["norm"], x, NORM_EPSILON)
    visible = (mask > 0)[:, None, None, :]
    for layer in params["layers"]:
        x = layer_norm(
            layer["attention_norm"], x + encoder_attention(layer, x, cfg.heads, visible), NORM_EPSILON
        )
        up = _gelu(linear(layer["up"], x))
        x = layer_norm(layer["ffn_norm"], x + linear(layer["down"], up), NORM_EPSILON)
    return (x, jnp.tanh(linear(params["pooler"], x[:, 0]))) if cfg.has_pooler else (x,)


def _gelu(x: jax.Array) -> jax.Array:
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
