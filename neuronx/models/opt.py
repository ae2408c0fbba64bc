"""OPT in plain JAX: published sizes, random or shape-only weights, prefill and decode with a KV cache."""

import functools
import math
from collections.abc import Callable, Sequence
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
    "OPTConfig",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]

NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class OPTConfig:
    """One published OPT size. ``embed`` is the width of the token table (350m projects 512 to 1024);
    ``norm_first`` is False for 350m, which normalises after each residual and has no final norm.
    ``extra_heads`` of zero weights are added where heads have to divide evenly over cores. OPT's position
    table starts at row ``position_offset`` (a padding convention of its training code).
    ``activation``: one of ``layers.ACTIVATIONS``. BLOOM (``has_alibi``) has slopes instead of a position
    table, and a norm behind its token table."""

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    embed: int
    norm_first: bool = True
    extra_heads: int = 0
    vocab: int = 50272
    positions: int = 2048
    position_offset: int = 2
    activation: str = "relu"
    has_alibi: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


def _size(name: str, hidden: int, heads: int, layers: int, **other: Any) -> OPTConfig:
    fields = {"embed": hidden, "ffn": 4 * hidden} | other
    return OPTConfig(name=name, hidden=hidden, heads=heads, layers=layers, **fields)


# Source: config.json of facebook/opt-<size> on the Hugging Face hub.
SIZES = {
    "opt-125m": _size("opt-125m", 768, 12, 12),
    "opt-350m": _size("opt-350m", 1024, 16, 24, embed=512, norm_first=False),
    "opt-1.3b": _size("opt-1.3b", 2048, 32, 24),
    "opt-2.7b": _size("opt-2.7b", 2560, 32, 32),
    "opt-6.7b": _size("opt-6.7b", 4096, 32, 32),
    "opt-13b": _size("opt-13b", 5120, 40, 40),
    "opt-30b": _size("opt-30b", 7168, 56, 48),
    "opt-66b": _size("opt-66b", 9216, 72, 64),
}


def config(name: str) -> OPTConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)


def padded(cfg: OPTConfig, cores: int) -> OPTConfig:
    """The size that divides over ``cores``: heads and features padded, as transformers-neuronx does it."""
    vocab, ffn = (size + -size % cores for size in (cfg.vocab, cfg.ffn))
    return replace(cfg, vocab=vocab, ffn=ffn, extra_heads=-cfg.heads % cores)


def parameter_shapes(cfg: OPTConfig, dtype: Any) -> dict[str, Any]:
    """The parameter tree as ``jax.ShapeDtypeStruct``s: no memory."""
    return _parameter_tree(cfg, shapes(dtype))


def parameters(cfg: OPTConfig, dtype: Any, seed: int, *, share_layers: bool = False) -> dict[str, Any]:
    """Random parameters: normal, standard deviation 0.02 (as OPT starts), norm scales around 1.

    With ``share_layers`` all layers have the first one's arrays: as much to compute, far less to hold.
    """
    return _parameter_tree(cfg, random(dtype, seed), share_layers=share_layers)


def _parameter_tree(cfg: OPTConfig, make: Make, *, share_layers: bool = False) -> dict[str, Any]:
    width = (cfg.heads + cfg.extra_heads) * cfg.head_dim
    layer = functools.partial(layer_parameters, make, cfg.hidden, cfg.ffn, width)
    tree = {
        "tokens": make((cfg.vocab, cfg.embed), 0.0),
        "layers": [layer()] * cfg.layers if share_layers else [layer() for _ in range(cfg.layers)],
    }
    if cfg.has_alibi:
        tree["norm"] = norm_parameters(make, cfg.hidden)
    else:
        tree["positions"] = make((cfg.positions + cfg.position_offset, cfg.hidden), 0.0)
    if cfg.embed != cfg.hidden:
        tree["project_in"] = make((cfg.embed, cfg.hidden), 0.0)
        tree["project_out"] = make((cfg.hidden, cfg.embed), 0.0)
    if cfg.norm_first:
        tree["final_norm"] = norm_parameters(make, cfg.hidden)
    return tree


def cache_shapes(
    cfg: OPTConfig, batch: int, max_len: int, dtype: Any, sharding: Any = None
) -> list[dict[str, Any]]:
    """The KV cache: per layer ``k`` and ``v`` of [batch, heads + extra_heads, max_len, head_dim]."""
    shape = (batch, cfg.heads + cfg.extra_heads, max_len, cfg.head_dim)
    entry = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    return [{"k": entry, "v": entry} for _ in range(cfg.layers)]


def prefill(
    cfg: OPTConfig, max_len: int, params: dict[str, Any], tokens: jax.Array
) -> tuple[jax.Array, jax.Array, list[dict[str, jax.Array]]]:
    """Reads the prompt.

    Args:
      cfg, max_len: static; the cache holds ``max_len`` positions.
      tokens: i32 [batch, length], length <= max_len.

    Returns:
      The next token of each sequence, i32 [batch]; the f32 logits it was chosen from, [batch, vocab];
      the KV cache, filled up to ``length``.
    """
    length = tokens.shape[1]
    attend = prompt_attention(length, max_len, _bias(cfg, length))
    x = _embed(cfg, params, tokens, jnp.arange(length))
    x, cache = _decoder(cfg, params, x, attend, [None] * cfg.layers)
    return *_next_token(cfg, params, x[:, -1]), cache


def decode(
    cfg: OPTConfig,
    params: dict[str, Any],
    cache: list[dict[str, jax.Array]],
    token: jax.Array,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array, list[dict[str, jax.Array]]]:
    """Reads one token a sequence and writes its keys and values at ``position`` (an i32 scalar) of the cache.

    Returns:
      As ``prefill``, with the updated cache (to be donated, so that it stays where it is).
    """
    max_len = cache[0]["k"].shape[2]
    attend = step_attention(max_len, position, _bias(cfg, max_len))
    x = _embed(cfg, params, token[:, None], position[None])
    x, updated = _decoder(cfg, params, x, attend, cache)
    return *_next_token(cfg, params, x[:, -1]), updated


def _embed(cfg: OPTConfig, params: dict[str, Any], tokens: jax.Array, positions: jax.Array) -> jax.Array:
    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip")
    if cfg.embed != cfg.hidden:
        x = x @ params["project_in"]
    if cfg.has_alibi:
        return layer_norm(params["norm"], x, NORM_EPSILON)
    return x + jnp.take(params["positions"], positions + cfg.position_offset, axis=0, mode="clip")


def _bias(cfg: OPTConfig, keys: int) -> jax.Array | None:
    """ALiBi's [heads, 1, keys]: a key's score grows with its position by its head's slope.

    There is a power of two of heads; those of zero weights have no slope.
    """
    if not cfg.has_alibi:
        return None
    slopes = [2.0 ** (-8 * (head + 1) / cfg.heads) for head in range(cfg.heads)]
    of_heads = jnp.array(slopes + [0.0] * cfg.extra_heads, jnp.float32)
    return of_heads[:, None, None] * jnp.arange(keys, dtype=jnp.float32)


def _decoder(
    cfg: OPTConfig, params: dict[str, Any], x: jax.Array, attend: Attend, cache: Sequence[Cache | None]
) -> tuple[jax.Array, list[Cache]]:
    """Through all layers; what ``attend`` keeps of each comes back with the result."""

    def layer(x: jax.Array, weights: dict[str, Any], old: Cache | None) -> tuple[jax.Array, Cache]:
        attention = functools.partial(_self_attention, cfg, weights, attend, old)
        x, kept = _residual(cfg, weights["attention_norm"], x, attention)
        x, _ = _residual(cfg, weights["ffn_norm"], x, functools.partial(_feed_forward, cfg, weights))
        return x, kept

    x, kept = through_layers(layer, x, params["layers"], cache)
    return (layer_norm(params["final_norm"], x, NORM_EPSILON) if cfg.norm_first else x), kept


def _residual(
    cfg: OPTConfig, norm: dict[str, Any], x: jax.Array, block: Callable[[jax.Array], tuple[jax.Array, Any]]
) -> tuple[jax.Array, Any]:
    if cfg.norm_first:
        y, kept = block(layer_norm(norm, x, NORM_EPSILON))
        return x + y, kept
    y, kept = block(x)
    return layer_norm(norm, x + y, NORM_EPSILON), kept


def _self_attention(
    cfg: OPTConfig, layer: dict[str, Any], attend: Attend, old: Cache | None, x: jax.Array
) -> tuple[jax.Array, Cache]:
    q, k, v = (linear(layer[name], x) for name in ("q", "k", "v"))
    q = q * (1 / math.sqrt(cfg.head_dim))
    mixed, kept = attend(*(split_heads(part, cfg.heads + cfg.extra_heads) for part in (q, k, v)), old)
    return linear(layer["o"], mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)), kept


def _feed_forward(cfg: OPTConfig, layer: dict[str, Any], x: jax.Array) -> tuple[jax.Array, None]:
    return linear(layer["down"], ACTIVATIONS[cfg.activation](linear(layer["up"], x))), None


def _next_token(cfg: OPTConfig, params: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy choice from the last hidden state, [batch, hidden], through the tied token table."""
    if cfg.embed != cfg.hidden:
        x = x @ params["project_out"]
    logits = jnp.einsum("be,ve->bv", x, params["tokens"], preferred_element_type=jnp.float32)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), logits
