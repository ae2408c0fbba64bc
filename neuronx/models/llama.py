"""Llama, Mistral, Mixtral and their kin in plain JAX: published sizes, prefill and decode with a cache."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.layers import (
    Attend,
    Cache,
    Make,
    linear,
    prompt_attention,
    random,
    rms_norm,
    shapes,
    split_heads,
    step_attention,
    through_layers,
)
from neuronx.models.sizes import find

__all__ = [
    "SIZES",
    "LlamaConfig",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """One published size. ``kv_heads`` are fewer than ``heads`` where queries share keys and values.

    Where heads have to divide evenly over cores, shared keys and values are held ``kv_copies`` times, and
    ``extra_heads`` of zero weights are added to the queries (and to keys and values that are not shared).
    Where ``is_tied`` the table of tokens is the head as well. ``rope_factor``: how far Llama 3.1 and later
    stretch the rotation's slow waves, 1 for none. Mixtral has several ``experts`` for the products behind
    attention, of which each token takes ``chosen``.
    """

    name: str
    hidden: int
    heads: int
    kv_heads: int
    layers: int
    ffn: int
    vocab: int = 32000
    positions: int = 4096
    rope_base: float = 1e4
    rope_factor: float = 1.0
    is_tied: bool = False
    norm_epsilon: float = 1e-5
    experts: int = 1
    chosen: int = 1
    extra_heads: int = 0
    kv_copies: int = 1

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def query_heads(self) -> int:
        return self.heads + self.extra_heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values that are held."""
        return self.kv_heads * self.kv_copies if self.kv_heads < self.heads else self.query_heads


def _size(name: str, hidden: int, heads: int, kv_heads: int, layers: int, ffn: int, **other: Any) -> Any:
    return LlamaConfig(
        name=name, hidden=hidden, heads=heads, kv_heads=kv_heads, layers=layers, ffn=ffn, **other
    )


_CODE = {"vocab": 32016, "positions": 16384, "rope_base": 1e6}
_LLAMA_3 = {"vocab": 128256, "positions": 8192, "rope_base": 5e5}
_LLAMA_31 = _LLAMA_3 | {"positions": 131072, "rope_factor": 8.0}
_MIXTRAL = {"rope_base": 1e6, "experts": 8, "chosen": 2}
_LLAMA_32 = _LLAMA_31 | {"rope_factor": 32.0, "is_tied": True}

# Source: config.json of each model on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        _size("llama-7b", 4096, 32, 32, 32, 11008, positions=2048),
        _size("llama-13b", 5120, 40, 40, 40, 13824, positions=2048),
        _size("llama-30b", 6656, 52, 52, 60, 17920, positions=2048),
        _size("llama-65b", 8192, 64, 64, 80, 22016, positions=2048),
        _size("llama-2-7b", 4096, 32, 32, 32, 11008),
        _size("llama-2-13b", 5120, 40, 40, 40, 13824),
        _size("llama-2-70b", 8192, 64, 8, 80, 28672),
        _size("codellama-7b", 4096, 32, 32, 32, 11008, **_CODE),
        _size("codellama-13b", 5120, 40, 40, 40, 13824, **_CODE),
        _size("codellama-34b", 8192, 64, 8, 48, 22016, **_CODE | {"vocab": 32000}),
        _size("codellama-70b", 8192, 64, 8, 80, 28672, **_CODE),
        _size("tinyllama-1.1b", 2048, 32, 4, 22, 5632, positions=2048),
        _size("llama-3-8b", 4096, 32, 8, 32, 14336, **_LLAMA_3),
        _size("llama-3-70b", 8192, 64, 8, 80, 28672, **_LLAMA_3),
        _size("llama-3.1-8b", 4096, 32, 8, 32, 14336, **_LLAMA_31),
        _size("llama-3.1-70b", 8192, 64, 8, 80, 28672, **_LLAMA_31),
        _size("llama-3.1-405b", 16384, 128, 8, 126, 53248, **_LLAMA_31),
        _size("llama-3.2-1b", 2048, 32, 8, 16, 8192, **_LLAMA_32),
        _size("llama-3.2-3b", 3072, 24, 8, 28, 8192, **_LLAMA_32),
        _size("llama-3.3-70b", 8192, 64, 8, 80, 28672, **_LLAMA_31),
        _size("mistral-7b", 4096, 32, 8, 32, 14336, positions=32768),
        _size("mixtral-8x7b", 4096, 32, 8, 32, 14336, positions=32768, **_MIXTRAL),
        _size("mixtral-8x22b", 6144, 48, 8, 56, 16384, positions=65536, **_MIXTRAL),
    )
}


def config(name: str) -> LlamaConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)


def padded(cfg: LlamaConfig, cores: int) -> LlamaConfig:
    """The size that divides over ``cores``: heads and features padded, shared keys and values held on all
    cores whose queries read them, as transformers-neuronx does it."""
    copies, extra = 1, -cfg.heads % cores
    if cfg.kv_heads < cfg.heads:
        copies = cores // math.gcd(cfg.kv_heads, cores)
        extra = -cfg.heads % (cfg.kv_heads * copies)
    vocab, ffn = (size + -size % cores for size in (cfg.vocab, cfg.ffn))
    return replace(cfg, vocab=vocab, ffn=ffn, extra_heads=extra, kv_copies=copies)


def parameter_shapes(cfg: LlamaConfig, dtype: Any) -> dict[str, Any]:
    """The parameter tree as ``jax.ShapeDtypeStruct``s: no memory."""
    return _parameter_tree(cfg, shapes(dtype))


def parameters(cfg: LlamaConfig, dtype: Any, seed: int) -> dict[str, Any]:
    """Random parameters; norm scales around 1."""
    return _parameter_tree(cfg, random(dtype, seed))


def _parameter_tree(cfg: LlamaConfig, make: Make) -> dict[str, Any]:
    def linear_of(width_in: int, width_out: int) -> dict[str, Any]:
        return {"w": make((width_in, width_out), 0.0)}

    def layer() -> dict[str, Any]:
        kv_width, width = cfg.key_heads * cfg.head_dim, cfg.query_heads * cfg.head_dim
        return {
            "attention_norm": make((cfg.hidden,), 1.0),
            "q": linear_of(cfg.hidden, width),
            "k": linear_of(cfg.hidden, kv_width),
            "v": linear_of(cfg.hidden, kv_width),
            "o": linear_of(width, cfg.hidden),
            "ffn_norm": make((cfg.hidden,), 1.0),
            **(products() if cfg.experts == 1 else experts()),
        }

    def products() -> dict[str, Any]:
        return {
            "gate": linear_of(cfg.hidden, cfg.ffn),
            "up": linear_of(cfg.hidden, cfg.ffn),
            "down": linear_of(cfg.ffn, cfg.hidden),
        }

    def experts() -> dict[str, Any]:
        router = linear_of(cfg.hidden, cfg.experts)
        return {"router": router, "experts": [products() for _ in range(cfg.experts)]}

    tree = {
        "tokens": make((cfg.vocab, cfg.hidden), 0.0),
        "layers": [layer() for _ in range(cfg.layers)],
        "final_norm": make((cfg.hidden,), 1.0),
    }
    return tree if cfg.is_tied else {**tree, "head": linear_of(cfg.hidden, cfg.vocab)}


def cache_shapes(cfg: LlamaConfig, batch: int, max_len: int, dtype: Any) -> list[dict[str, Any]]:
    """The KV cache: per layer ``k`` and ``v`` of [batch, key_heads, max_len, head_dim]."""
    entry = jax.ShapeDtypeStruct((batch, cfg.key_heads, max_len, cfg.head_dim), dtype)
    return [{"k": entry, "v": entry} for _ in range(cfg.layers)]


def prefill(
    cfg: LlamaConfig, max_len: int, params: dict[str, Any], tokens: jax.Array
) -> tuple[jax.Array, jax.Array, list[dict[str, jax.Array]]]:
    """Reads the prompt, i32 [batch, length]; the cache holds ``max_len`` positions.

    Returns:
      The next token of each sequence, i32 [batch]; the f32 logits it was chosen from, [batch, vocab];
      the KV cache, filled up to ``length``.
    """
    length = tokens.shape[1]
    attend = prompt_attention(length, max_len)
    x, cache = _decoder(cfg, params, tokens, jnp.arange(length), attend, [None] * cfg.layers)
    return *_next_token(cfg, params, x[:, -1]), cache


def decode(
    cfg: LlamaConfig,
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
    return *_next_token(cfg, params, x[:, -1]), updated


def _decoder(
    cfg: LlamaConfig,
    params: dict[str, Any],
    tokens: jax.Array,
    positions: jax.Array,
    attend: Attend,
    cache: Sequence[Cache | None],
) -> tuple[jax.Array, list[Cache]]:
    """Through all layers; what ``attend`` keeps of each comes back with the result."""
    turn = _rotation(cfg, positions)

    def layer(x: jax.Array, weights: dict[str, Any], old: Cache | None) -> tuple[jax.Array, Cache]:
        normal = rms_norm(weights["attention_norm"], x, cfg.norm_epsilon)
        y, kept = _self_attention(cfg, weights, normal, turn, functools.partial(attend, old=old))
        x = x + y
        normal = rms_norm(weights["ffn_norm"], x, cfg.norm_epsilon)
        return x + _feed_forward(cfg, weights, normal), kept

    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip")
    x, kept = through_layers(layer, x, params["layers"], cache)
    return rms_norm(params["final_norm"], x, cfg.norm_epsilon), kept


def _feed_forward(cfg: LlamaConfig, layer: dict[str, Any], x: jax.Array) -> jax.Array:
    """The products behind attention, or the weighted sum of the experts' that each token of ``x`` chose.

    As transformers-neuronx does it (src/transformers_neuronx/mixtral/hlo.py), every expert works on every
    token; those that were not chosen have no weight.
    """
    if cfg.experts == 1:
        return linear(layer["down"], _gated(layer, x))
    scores = jax.nn.softmax(linear(layer["router"], x).astype(jnp.float32), axis=-1)
    best, which = jax.lax.top_k(scores, cfg.chosen)
    shares = best / best.sum(axis=-1, keepdims=True)
    weights = (jax.nn.one_hot(which, cfg.experts) * shares[..., None]).sum(axis=-2).astype(x.dtype)
    parts = (_gated(one, x) * weights[..., index, None] for index, one in enumerate(layer["experts"]))
    return sum(linear(one["down"], part) for one, part in zip(layer["experts"], parts, strict=True))


def _gated(products: dict[str, Any], x: jax.Array) -> jax.Array:
    return jax.nn.silu(linear(products["gate"], x)) * linear(products["up"], x)


def _self_attention(
    cfg: LlamaConfig,
    layer: dict[str, Any],
    x: jax.Array,
    turn: tuple[jax.Array, jax.Array],
    attend: Attend,
) -> tuple[jax.Array, Cache]:
    q = split_heads(linear(layer["q"], x), cfg.query_heads)
    k, v = (split_heads(linear(layer[name], x), cfg.key_heads) for name in ("k", "v"))
    mixed, kept = attend(_rotate(q, turn) * (1 / math.sqrt(cfg.head_dim)), _rotate(k, turn), v)
    return linear(layer["o"], mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)), kept


def _rotation(cfg: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every position's angles, f32 [length, head_dim / 2]."""
    exponent = jnp.arange(0, cfg.head_dim, 2, dtype=jnp.float32) / cfg.head_dim
    angles = positions.astype(jnp.float32)[:, None] * _stretched(cfg, cfg.rope_base**-exponent)
    return jnp.cos(angles), jnp.sin(angles)


# Llama 3.1's config.json: the positions it was first trained on, and how many turns over them make a wave
# slow (stretched whole) or fast (left alone).
_TRAINED, _SLOW_TURNS, _FAST_TURNS = 8192, 1.0, 4.0


def _stretched(cfg: LlamaConfig, frequency: jax.Array) -> jax.Array:
    """Slow waves ``rope_factor`` times slower, fast ones as they are, those between in proportion."""
    turns = frequency * (_TRAINED / (2 * math.pi))
    fast = jnp.clip((turns - _SLOW_TURNS) / (_FAST_TURNS - _SLOW_TURNS), 0.0, 1.0)
    return frequency * (fast + (1 - fast) / cfg.rope_factor)


def _rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding; the halves of a head are the two coordinates."""
    cos, sin = (part.astype(x.dtype) for part in turn)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _next_token(cfg: LlamaConfig, params: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy choice from the last hidden state, [batch, hidden]."""
    head = params["tokens"].T if cfg.is_tied else params["head"]["w"]
    logits = jnp.matmul(x, head, preferred_element_type=jnp.float32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), logits
