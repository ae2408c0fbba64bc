"""GPT-J, GPT-NeoX and Pythia in plain JAX: attention and feed-forward side by side; prefill and decode."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.layers import (
    ACTIVATIONS,
    Attend,
    Cache,
    Make,
    layer_norm,
    layer_parameters,
    linear,
    linear_parameters,
    norm_parameters,
    prompt_attention,
    random,
    shapes,
    split_heads,
    step_attention,
    through_layers,
)
from neuronx.models.sizes import find

__all__ = [
    "SIZES",
    "GPTJConfig",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]

NORM_EPSILON = 1e-5
_ROPE_BASE = 1e4


@dataclass(frozen=True, kw_only=True)
class GPTJConfig:
    """One published size. The first ``rotary`` numbers of a head are turned: two neighbours together where
    ``is_interleaved``, else number i with number i + rotary / 2.

    GPT-J is plainer than GPT-NeoX but for its head's bias: where ``is_gptj``, one norm serves both halves and
    attention has no biases. ``extra_heads`` of zero weights are added where heads have to divide over cores.
    """

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    vocab: int
    rotary: int
    positions: int = 2048
    activation: str = "gelu"
    is_gptj: bool = False
    is_interleaved: bool = False
    extra_heads: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def _size(name: str, hidden: int, heads: int, layers: int, vocab: int, **other: Any) -> GPTJConfig:
    fields = {"ffn": 4 * hidden, "rotary": hidden // heads // 4} | other
    return GPTJConfig(name=name, hidden=hidden, heads=heads, layers=layers, vocab=vocab, **fields)


_GPTJ = {"rotary": 64, "activation": "gelu_new", "is_gptj": True, "is_interleaved": True}

# Source: config.json of EleutherAI/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        _size("gpt-j-6b", 4096, 16, 28, 50400, **_GPTJ),
        _size("gpt-neox-20b", 6144, 64, 44, 50432),
        _size("pythia-1.4b", 2048, 16, 24, 50304),
        _size("pythia-2.8b", 2560, 32, 32, 50304),
        _size("pythia-6.9b", 4096, 32, 32, 50432),
        _size("pythia-12b", 5120, 40, 36, 50688),
    )
}


def config(name: str) -> GPTJConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)


def padded(cfg: GPTJConfig, cores: int) -> GPTJConfig:
    """The size that divides over ``cores``: heads and features padded, as transformers-neuronx does it."""
    vocab, ffn = (size + -size % cores for size in (cfg.vocab, cfg.ffn))
    return replace(cfg, vocab=vocab, ffn=ffn, extra_heads=-cfg.heads % cores)


def parameter_shapes(cfg: GPTJConfig, dtype: Any) -> dict[str, Any]:
    """The parameter tree as ``jax.ShapeDtypeStruct``s: no memory."""
    return _parameter_tree(cfg, shapes(dtype))


def parameters(cfg: GPTJConfig, dtype: Any, seed: int) -> dict[str, Any]:
    """Random parameters; norm scales around 1."""
    return _parameter_tree(cfg, random(dtype, seed))


def _parameter_tree(cfg: GPTJConfig, make: Make) -> dict[str, Any]:
    width = (cfg.heads + cfg.extra_heads) * cfg.head_dim

    def layer() -> dict[str, Any]:
        tree = layer_parameters(make, cfg.hidden, cfg.ffn, width)
        if not cfg.is_gptj:
            return tree
        bare = {name: {"w": tree[name]["w"]} for name in ("q", "k", "v", "o")}
        return {name: bare.get(name, part) for name, part in tree.items() if name != "ffn_norm"}

    head = linear_parameters(make, cfg.hidden, cfg.vocab)
    return {
        "tokens": make((cfg.vocab, cfg.hidden), 0.0),
        "layers": [layer() for _ in range(cfg.layers)],
        "final_norm": norm_parameters(make, cfg.hidden),
        "head": head if cfg.is_gptj else {"w": head["w"]},
    }


def cache_shapes(cfg: GPTJConfig, batch: int, max_len: int, dtype: Any) -> list[dict[str, Any]]:
    """The KV cache: per layer ``k`` and ``v`` of [batch, heads + extra_heads, max_len, head_dim]."""
    shape = (batch, cfg.heads + cfg.extra_heads, max_len, cfg.head_dim)
    entry = jax.ShapeDtypeStruct(shape, dtype)
    return [{"k": entry, "v": entry} for _ in range(cfg.layers)]


def prefill(
    cfg: GPTJConfig, max_len: int, params: dict[str, Any], tokens: jax.Array
) -> tuple[jax.Array, jax.Array, list[dict[str, jax.Array]]]:
    """Reads the prompt, i32 [batch, length]; the cache holds ``max_len`` positions.

    Returns:
      The next token of each sequence, i32 [batch]; the f32 logits it was chosen from, [batch, vocab];
      the KV cache, filled up to ``length``.
    """
    length = tokens.shape[1]
    attend = prompt_attention(length, max_len)
    x, cache = _decoder(cfg, params, tokens, jnp.arange(length), attend, [None] * cfg.layers)
    return *_next_token(params, x[:, -1]), cache


def decode(
    cfg: GPTJConfig,
    params: dict[str, Any],
    cache: list[dict[str, jax.Array]],
    token: jax.Array,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array, list[dict[str, jax.Array]]]:
    """Reads one token a sequence and writes its keys and values at ``position`` (an i32 scalar) of the cache.

    Returns:
      As ``prefill``, with the updated cache (to be donated, so that it stays where it is).
    """
    attend = step_attention(cache[0]["k"].shape[2], position)
    x, updated = _decoder(cfg, params, token[:, None], position[None], attend, cache)
    return *_next_token(params, x[:, -1]), updated


def _decoder(
    cfg: GPTJConfig,
    params: dict[str, Any],
    tokens: jax.Array,
    positions: jax.Array,
    attend: Attend,
    cache: Sequence[Cache | None],
) -> tuple[jax.Array, list[Cache]]:
    """Through all layers; what ``attend`` keeps of each comes back with the result."""
    turn = functools.partial(_rotate, cfg, _angles(cfg, positions))

    def layer(x: jax.Array, weights: dict[str, Any], old: Cache | None) -> tuple[jax.Array, Cache]:
        normal = layer_norm(weights["attention_norm"], x, NORM_EPSILON)
        q, k, v = (split_heads(linear(weights[name], normal), cfg.heads + cfg.extra_heads) for name in "qkv")
        mixed, kept = attend(turn(q) * (1 / math.sqrt(cfg.head_dim)), turn(k), v, old)
        attended = linear(weights["o"], mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))
        if not cfg.is_gptj:
            normal = layer_norm(weights["ffn_norm"], x, NORM_EPSILON)
        up = ACTIVATIONS[cfg.activation](linear(weights["up"], normal))
        return x + attended + linear(weights["down"], up), kept

    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip")
    x, kept = through_layers(layer, x, params["layers"], cache)
    return layer_norm(params["final_norm"], x, NORM_EPSILON), kept


def _angles(cfg: GPTJConfig, positions: jax.Array) -> jax.Array:
    """Of every position, f32 [length, rotary / 2]."""
    exponent = jnp.arange(0, cfg.rotary, 2, dtype=jnp.float32) / cfg.rotary
    return positions.astype(jnp.float32)[:, None] / _ROPE_BASE**exponent


def _rotate(cfg: GPTJConfig, angles: jax.Array, x: jax.Array) -> jax.Array:
    """Rotary position embedding of the first ``rotary`` numbers of each head."""
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    turned, rest = x[..., : cfg.rotary], x[..., cfg.rotary :]
    # The pairs' two coordinates lie along a dim of their own: the last, or the one before it.
    axis = -1 if cfg.is_interleaved else -2
    pairs = turned.reshape(*x.shape[:-1], *((-1, 2) if cfg.is_interleaved else (2, -1)))
    first, second = (jnp.squeeze(part, axis) for part in jnp.split(pairs, 2, axis=axis))
    both = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=axis)
    return jnp.concatenate([both.reshape(turned.shape), rest], axis=-1)


def _next_token(params: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy choice from the last hidden state, [batch, hidden]."""
    head = params["head"]
    logits = jnp.matmul(x, head["w"], preferred_element_type=jnp.float32)
    logits = logits + head["b"] if "b" in head else logits
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), logits
