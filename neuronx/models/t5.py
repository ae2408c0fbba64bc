"""T5, Flan-T5 and mT5 in plain JAX: published sizes, reading a source and writing an answer with a cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models import answers
from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Attend,
    Cache,
    Make,
    attention,
    head_logits,
    linear,
    prompt_attention,
    rms_norm,
    split_heads,
    step_attention,
    through_layers,
)
from neuronx.models.positions import DISTANCES, distance_bias
from neuronx.models.sizes import padded

__all__ = [
    "SIZES",
    "T5Config",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]

NORM_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """One published size: as many ``layers`` read as write. ``extra_heads`` of zero weights are added where
    heads have to divide evenly over cores.

    ``is_gated``: Flan-T5's products gate each other, and it has a head of its own; else the head is the table
    of tokens. Positions are not limited.
    """

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    head_dim: int = 64
    is_gated: bool = False
    extra_heads: int = 0
    vocab: int = 32128

    @property
    def all_heads(self) -> int:
        return self.heads + self.extra_heads

    @property
    def is_tied(self) -> bool:
        return not self.is_gated


def _size(name: str, hidden: int, heads: int, layers: int, ffn: int, **other: Any) -> T5Config:
    return T5Config(name=name, hidden=hidden, heads=heads, layers=layers, ffn=ffn, **other)


_MT5 = {"is_gated": True, "vocab": 250112}

# Source: config.json of google-t5/<name> and google/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        _size("t5-small", 512, 8, 6, 2048),
        _size("t5-base", 768, 12, 12, 3072),
        _size("t5-large", 1024, 16, 24, 4096),
        _size("t5-3b", 1024, 32, 24, 16384, head_dim=128),
        _size("t5-11b", 1024, 128, 24, 65536, head_dim=128),
        _size("flan-t5-small", 512, 6, 8, 1024, is_gated=True),
        _size("flan-t5-base", 768, 12, 12, 2048, is_gated=True),
        _size("flan-t5-large", 1024, 16, 24, 2816, is_gated=True),
        _size("flan-t5-xl", 2048, 32, 24, 5120, is_gated=True),
        _size("flan-t5-xxl", 4096, 64, 24, 10240, is_gated=True),
        _size("mt5-small", 512, 6, 8, 1024, **_MT5),
        _size("mt5-base", 768, 12, 12, 2048, **_MT5),
        _size("mt5-large", 1024, 16, 24, 2816, **_MT5),
        _size("mt5-xl", 2048, 32, 24, 5120, **_MT5),
        _size("mt5-xxl", 4096, 64, 24, 10240, **_MT5),
    )
}


def _parameter_tree(cfg: T5Config, make: Make) -> dict[str, Any]:
    width = cfg.all_heads * cfg.head_dim

    def matrix(width_in: int, width_out: int) -> dict[str, Any]:
        return {"w": make((width_in, width_out), 0.0)}

    def heads() -> dict[str, Any]:
        made = {name: matrix(cfg.hidden, width) for name in ("q", "k", "v")}
        return made | {"o": matrix(width, cfg.hidden)}

    def layer(reads: bool) -> dict[str, Any]:
        names = ("gate", "up") if cfg.is_gated else ("up",)
        norms = ("attention_norm", "ffn_norm") if reads else ("attention_norm", "source_norm", "ffn_norm")
        return {
            **heads(),
            **({} if reads else {"source": heads()}),
            **{name: matrix(cfg.hidden, cfg.ffn) for name in names},
            "down": matrix(cfg.ffn, cfg.hidden),
            **{name: make((cfg.hidden,), 1.0) for name in norms},
        }

    def stack(reads: bool) -> dict[str, Any]:
        return {
            "layers": [layer(reads) for _ in range(cfg.layers)],
            "distances": make((DISTANCES, cfg.all_heads), 0.0),
            "final_norm": make((cfg.hidden,), 1.0),
        }

    tree = {"tokens": make((cfg.vocab, cfg.hidden), 0.0), "reader": stack(True), "writer": stack(False)}
    return tree if cfg.is_tied else {**tree, "head": matrix(cfg.hidden, cfg.vocab)}


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def cache_shapes(cfg: T5Config, batch: int, max_len: int, dtype: Any) -> dict[str, Any]:
    """``answers.cache_shapes`` of this size."""
    return answers.cache_shapes(cfg.layers, cfg.all_heads, cfg.head_dim, batch, max_len, dtype)


def prefill(
    cfg: T5Config, params: dict[str, Any], cache: dict[str, Any], tokens: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Reads the source, i32 [batch, length], and writes the first token of the answer.

    The cache is of ``cache_shapes``, any finite numbers; it is to be donated, so that it stays where it is.

    Returns:
      The first token of each answer, i32 [batch]; the f32 logits it was chosen from, [batch, vocab]; the
      cache, to be gone on with at position 1.
    """
    seen = _read(cfg, params, tokens)
    filled, readable = answers.sources(cfg.all_heads, params["writer"]["layers"], cache, seen)
    # An answer starts with token 0, which is padding elsewhere.
    start, position = jnp.zeros_like(tokens[:, 0]), jnp.zeros((1,), jnp.int32)
    bias = distance_bias(params["writer"]["distances"], position, position, both_ways=False)
    return _write(cfg, params, start, prompt_attention(1, bias), filled, readable)


def decode(
    cfg: T5Config,
    params: dict[str, Any],
    cache: dict[str, Any],
    token: jax.Array,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Reads one token of each answer and writes its keys and values at ``position`` (an i32 scalar).

    Returns:
      As ``prefill``, with the updated cache (to be donated, so that it stays where it is).
    """
    max_len = cache["readable"].shape[-1]
    bias = distance_bias(params["writer"]["distances"], position[None], jnp.arange(max_len), both_ways=False)
    attend = step_attention(max_len, position, bias)
    return _write(cfg, params, token, attend, cache["layers"], cache["readable"])


def _read(cfg: T5Config, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Hidden states [batch, length, hidden] of a source."""
    reader, places = params["reader"], jnp.arange(tokens.shape[1])
    bias = distance_bias(reader["distances"], places, places, both_ways=True)

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        normal = rms_norm(weights["attention_norm"], x, NORM_EPSILON)
        q, k, v = (split_heads(linear(weights[name], normal), cfg.all_heads) for name in ("q", "k", "v"))
        x = x + answers.joined(weights["o"], attention(q, k, v, jnp.ones((1, 1), bool), bias))
        return _fed_forward(cfg, weights, x), None

    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip")
    x, _ = through_layers(layer, x, reader["layers"])
    return rms_norm(reader["final_norm"], x, NORM_EPSILON)


def _write(
    cfg: T5Config,
    params: dict[str, Any],
    token: jax.Array,
    attend: Attend,
    cache: Sequence[Cache],
    readable: jax.Array,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """One token more, chosen greedily, with its logits and what was kept."""
    writer = params["writer"]

    def layer(x: jax.Array, weights: dict[str, Any], old: Cache) -> tuple[jax.Array, Cache]:
        normal = rms_norm(weights["attention_norm"], x, NORM_EPSILON)
        q, k, v = (split_heads(linear(weights[name], normal), cfg.all_heads) for name in ("q", "k", "v"))
        mixed, kept = attend(q, k, v, old)
        x = x + answers.joined(weights["o"], mixed)
        normal, source = rms_norm(weights["source_norm"], x, NORM_EPSILON), weights["source"]
        q = split_heads(linear(source["q"], normal), cfg.all_heads)
        x = x + answers.joined(source["o"], attention(q, old["source_k"], old["source_v"], readable))
        return _fed_forward(cfg, weights, x), old | kept

    x = jnp.take(params["tokens"], token[:, None], axis=0, mode="clip")
    x, kept = through_layers(layer, x, writer["layers"], cache)
    last = rms_norm(writer["final_norm"], x, NORM_EPSILON)[:, -1]
    if cfg.is_tied:
        head, last = {"w": params["tokens"].T}, last * (1 / math.sqrt(cfg.hidden))
    else:
        head = params["head"]
    logits = head_logits(head, last)
    chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return chosen, logits, {"layers": kept, "readable": readable}


def _fed_forward(cfg: T5Config, weights: dict[str, Any], x: jax.Array) -> jax.Array:
    normal = rms_norm(weights["ffn_norm"], x, NORM_EPSILON)
    up = linear(weights["up"], normal)
    if cfg.is_gated:
        up = ACTIVATIONS["gelu_new"](linear(weights["gate"], normal)) * up
    else:
        up = ACTIVATIONS["relu"](up)
    return x + linear(weights["down"], up)
