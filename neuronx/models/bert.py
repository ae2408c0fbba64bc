"""BERT and encoders like it (RoBERTa, DistilBERT, ELECTRA, ALBERT, ...) in plain JAX: published sizes."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    encoder_attention,
    layer_norm,
    layer_parameters,
    linear,
    linear_parameters,
    norm_parameters,
    through_layers,
)
from neuronx.models.positions import DISTANCES, distance_bias

__all__ = ["SIZES", "BertConfig", "config", "encode", "parameter_shapes", "parameters"]


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """One published size. ``has_pooler`` is False where the model ends with its last layer.

    ``types`` is 0 for DistilBERT, which does not tell sentences apart. RoBERTa's position table starts at row
    ``position_offset``. Where the tables are narrower than ``hidden``, ``embed`` wide, a product widens what
    is looked up. ``shares_layers``: ALBERT's layers are all the same one. ``activation``: gelu, or gelu_new,
    its tanh form. ``has_distances``: MPNet's scores are biased by how far two positions are apart.
    """

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    vocab: int = 30522
    positions: int = 512
    position_offset: int = 0
    types: int = 2
    has_pooler: bool = True
    norm_epsilon: float = 1e-12
    embed: int | None = None
    shares_layers: bool = False
    activation: str = "gelu"
    has_distances: bool = False


_BASE = {"hidden": 768, "heads": 12, "layers": 12, "ffn": 3072}
_MINI = {"hidden": 384, "heads": 12, "layers": 12, "ffn": 1536}
_LARGE = {"hidden": 1024, "heads": 16, "layers": 24, "ffn": 4096}
_ALBERT = {"vocab": 30000, "embed": 128, "shares_layers": True, "activation": "gelu_new"}
_DISTILBERT = _BASE | {"layers": 6, "types": 0, "has_pooler": False}
_ROBERTA = {"vocab": 50265, "position_offset": 2, "types": 1, "norm_epsilon": 1e-5}
_MPNET = {"vocab": 30527, "types": 0, "has_distances": True}

# Source: config.json of each model on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        BertConfig(name="bert-base-uncased", **_BASE),
        BertConfig(name="bert-base-cased", **_BASE, vocab=28996),
        BertConfig(name="bert-base-multilingual-cased", **_BASE, vocab=119547),
        BertConfig(name="bert-base-multilingual-uncased", **_BASE, vocab=105879),
        BertConfig(name="bert-base-chinese", **_BASE, vocab=21128),
        BertConfig(name="bert-base-german-cased", **_BASE, vocab=30000),
        BertConfig(name="scibert-scivocab-uncased", **_BASE, vocab=31090),
        BertConfig(name="labse", **_BASE, vocab=501153),
        BertConfig(name="bge-large-zh-v1.5", **_LARGE, vocab=21128),
        BertConfig(name="bert-large-uncased", **_LARGE),
        BertConfig(name="bert-large-cased", **_LARGE, vocab=28996),
        BertConfig(name="roberta-base", **_BASE | _ROBERTA),
        BertConfig(name="roberta-large", **_LARGE | _ROBERTA),
        BertConfig(name="distilroberta-base", **_BASE | _ROBERTA | {"layers": 6}),
        BertConfig(name="camembert-base", **_BASE | _ROBERTA | {"vocab": 32005}),
        BertConfig(name="camembert-large", **_LARGE | _ROBERTA | {"vocab": 32005}),
        BertConfig(name="xlm-roberta-base", **_BASE | _ROBERTA | {"vocab": 250002}),
        BertConfig(name="xlm-roberta-large", **_LARGE | _ROBERTA | {"vocab": 250002}),
        BertConfig(name="bge-m3", **_LARGE | _ROBERTA | {"vocab": 250002}, positions=8192),
        BertConfig(name="mpnet-base", **_BASE | _ROBERTA | _MPNET),
        BertConfig(name="distilbert-base-uncased", **_DISTILBERT),
        BertConfig(name="distilbert-base-cased", **_DISTILBERT, vocab=28996),
        BertConfig(name="distilbert-base-multilingual-cased", **_DISTILBERT, vocab=119547),
        BertConfig(name="all-minilm-l6-v2", **_MINI | {"layers": 6}),
        BertConfig(name="all-minilm-l12-v2", **_MINI),
        BertConfig(name="multilingual-e5-small", **_MINI, vocab=250037),
        BertConfig(name="albert-base-v2", **_BASE | _ALBERT),
        BertConfig(name="albert-large-v2", **_LARGE | _ALBERT),
        BertConfig(name="albert-xlarge-v2", hidden=2048, heads=16, layers=24, ffn=8192, **_ALBERT),
        BertConfig(name="albert-xxlarge-v2", hidden=4096, heads=64, layers=12, ffn=16384, **_ALBERT),
        BertConfig(
            name="electra-small-discriminator",
            hidden=256,
            heads=4,
            layers=12,
            ffn=1024,
            embed=128,
            has_pooler=False,
        ),
        BertConfig(name="electra-base-discriminator", **_BASE, has_pooler=False),
        BertConfig(name="electra-large-discriminator", **_LARGE, has_pooler=False),
    )
}


def _parameter_tree(cfg: BertConfig, make: Make) -> dict[str, Any]:
    width, layers = cfg.embed or cfg.hidden, 1 if cfg.shares_layers else cfg.layers
    tree = {
        "tokens": make((cfg.vocab, width), 0.0),
        "positions": make((cfg.positions + cfg.position_offset, width), 0.0),
        "norm": norm_parameters(make, width),
        "layers": [layer_parameters(make, cfg.hidden, cfg.ffn) for _ in range(layers)],
    }
    if cfg.embed:
        tree["widen"] = linear_parameters(make, width, cfg.hidden)
    if cfg.types:
        tree["types"] = make((cfg.types, width), 0.0)
    if cfg.has_distances:
        tree["distances"] = make((DISTANCES, cfg.heads), 0.0)
    if cfg.has_pooler:
        tree["pooler"] = linear_parameters(make, cfg.hidden, cfg.hidden)
    return tree


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def encode(
    cfg: BertConfig, params: dict[str, Any], tokens: jax.Array, mask: jax.Array, types: jax.Array
) -> tuple[jax.Array, ...]:
    """Hidden states [batch, length, hidden] and, with a pooler, the pooled first token [batch, hidden].

    Args:
      tokens, types: i32 [batch, length]; where the model has no types they are not looked at.
      mask: i32 [batch, length], 1 where there is a token.
    """
    dtype = params["norm"]["scale"].dtype
    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip")
    x = x + params["positions"][cfg.position_offset :][: tokens.shape[1]]
    if cfg.types:
        x = x + jnp.take(params["types"], types, axis=0, mode="clip")
    norm = functools.partial(layer_norm, epsilon=cfg.norm_epsilon)
    x = norm(params["norm"], x.astype(dtype))
    if cfg.embed:
        x = linear(params["widen"], x)
    visible, bias = (mask > 0)[:, None, None, :], None
    if cfg.has_distances:
        places = jnp.arange(tokens.shape[1])
        bias = distance_bias(params["distances"], places, places, both_ways=True)

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        x = norm(weights["attention_norm"], x + encoder_attention(weights, x, cfg.heads, visible, bias))
        up = ACTIVATIONS[cfg.activation](linear(weights["up"], x))
        return norm(weights["ffn_norm"], x + linear(weights["down"], up)), None

    layers = params["layers"] * cfg.layers if cfg.shares_layers else params["layers"]
    x, _ = through_layers(layer, x, layers)
    return (x, jnp.tanh(linear(params["pooler"], x[:, 0]))) if cfg.has_pooler else (x,)
