"""Decoders in plain JAX: what families differ in as options of one layer; prefill and decode with a cache."""

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
    head_logits,
    layer_norm,
    linear,
    norm_parameters,
    prompt_attention,
    random,
    rms_norm,
    shapes,
    split_heads,
    step_attention,
    through_layers,
)
from neuronx.models.positions import Turn, alibi, rotate, rotation

__all__ = [
    "DecoderConfig",
    "cache_shapes",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """One published size; families give the fields that their sizes share defaults of their own.

    Attributes:
      kv_heads: fewer than ``heads`` where queries share keys and values, else None.
      head_width: numbers of a head where they are not ``hidden / heads``.
      embed: width of the token table where it is not ``hidden``: products widen it and narrow the result.
      embed_scale: what a token's vector is multiplied by.
      has_embed_norm: whether one follows the token table.
      places: how positions are told: "table", "alibi" (slopes) or "rotary".
      position_offset: the table's row of the first position (a padding convention of OPT's training code).
      rotary: how many numbers of a head are turned where not all are.
      is_interleaved: two neighbours are turned together, else number i with number i + rotary / 2.
      rope_factor: how far Llama 3.1 and later stretch the rotation's slow waves, 1 for none.
      norm: "layer", "centred" (the same without a bias) or "rms".
      norm_first: False for OPT-350m, which normalises after each residual and has no final norm.
      is_parallel: attention and the products behind it read the same input; ``has_ffn_norm``: by norms of
        their own, else by one.
      has_head_norms: queries and keys of each head are normalised.
      biases: the products that have one, of q, k, v, o, gate, up, down and head.
      activation: one of ``layers.ACTIVATIONS``; ``is_gated``: of a product that multiplies the other.
      is_tied: the table of tokens is the head as well.
      experts: Mixtral has several for the products behind attention, of which each token takes ``chosen``.
      extra_heads, kv_copies: of zero weights, where heads have to divide evenly over cores (added to keys and
        values where they are not shared), and how many times shared keys and values are held.
    """

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    vocab: int
    kv_heads: int | None = None
    head_width: int | None = None
    embed: int | None = None
    embed_scale: float = 1.0
    has_embed_norm: bool = False
    places: str = "rotary"
    positions: int = 2048
    position_offset: int = 0
    rotary: int | None = None
    is_interleaved: bool = False
    rope_base: float = 1e4
    rope_factor: float = 1.0
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    norm_first: bool = True
    is_parallel: bool = False
    has_ffn_norm: bool = True
    has_head_norms: bool = False
    biases: frozenset[str] = frozenset()
    activation: str = "gelu"
    is_gated: bool = False
    is_tied: bool = False
    experts: int = 1
    chosen: int = 1
    extra_heads: int = 0
    kv_copies: int = 1

    @property
    def head_dim(self) -> int:
        return self.head_width or self.hidden // self.heads

    @property
    def is_projected(self) -> bool:
        return self.embed not in (None, self.hidden)

    @property
    def query_heads(self) -> int:
        return self.heads + self.extra_heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and values that are held."""
        shares = self.kv_heads and self.kv_heads < self.heads
        return self.kv_heads * self.kv_copies if shares else self.query_heads


def padded(cfg: DecoderConfig, cores: int) -> DecoderConfig:
    """The size that divides over ``cores``: heads and features padded, shared keys and values held on all
    cores whose queries read them, as transformers-neuronx does it."""
    copies, extra = 1, -cfg.heads % cores
    if cfg.kv_heads and cfg.kv_heads < cfg.heads:
        copies = cores // math.gcd(cfg.kv_heads, cores)
        extra = -cfg.heads % (cfg.kv_heads * copies)
    vocab, ffn = (size + -size % cores for size in (cfg.vocab, cfg.ffn))
    return replace(cfg, vocab=vocab, ffn=ffn, extra_heads=extra, kv_copies=copies)


def parameter_shapes(cfg: DecoderConfig, dtype: Any) -> dict[str, Any]:
    """The parameter tree as ``jax.ShapeDtypeStruct``s: no memory."""
    return _parameter_tree(cfg, shapes(dtype))


def parameters(cfg: DecoderConfig, dtype: Any, seed: int, *, share_layers: bool = False) -> dict[str, Any]:
    """Random parameters: normal, standard deviation 0.02 (as OPT starts), norm scales around 1.

    With ``share_layers`` all layers have the first one's arrays: as much to compute, far less to hold.
    """
    return _parameter_tree(cfg, random(dtype, seed), share_layers=share_layers)


def _parameter_tree(cfg: DecoderConfig, make: Make, *, share_layers: bool = False) -> dict[str, Any]:
    layer = functools.partial(_layer_parameters, cfg, make)
    tree = {
        "tokens": make((cfg.vocab, cfg.embed or cfg.hidden), 0.0),
        "layers": [layer()] * cfg.layers if share_layers else [layer() for _ in range(cfg.layers)],
    }
    if cfg.has_embed_norm:
        tree["norm"] = _norm_parameters(cfg, make, cfg.hidden)
    if cfg.places == "table":
        tree["positions"] = make((cfg.positions + cfg.position_offset, cfg.hidden), 0.0)
    if cfg.is_projected:
        tree["project_in"] = make((cfg.embed, cfg.hidden), 0.0)
        tree["project_out"] = make((cfg.hidden, cfg.embed), 0.0)
    if cfg.norm_first:
        tree["final_norm"] = _norm_parameters(cfg, make, cfg.hidden)
    if not cfg.is_tied:
        tree["head"] = _product(cfg, make, "head", cfg.hidden, cfg.vocab)
    return tree


def _layer_parameters(cfg: DecoderConfig, make: Make) -> dict[str, Any]:
    product = functools.partial(_product, cfg, make)
    width, kv_width = cfg.query_heads * cfg.head_dim, cfg.key_heads * cfg.head_dim

    def feed_forward() -> dict[str, Any]:
        up = {
            name: product(name, cfg.hidden, cfg.ffn) for name in (("gate", "up") if cfg.is_gated else ("up",))
        }
        return up | {"down": product("down", cfg.ffn, cfg.hidden)}

    layer = {
        "q": product("q", cfg.hidden, width),
        "k": product("k", cfg.hidden, kv_width),
        "v": product("v", cfg.hidden, kv_width),
        "o": product("o", width, cfg.hidden),
    }
    if cfg.experts == 1:
        layer |= feed_forward()
    else:
        experts = [feed_forward() for _ in range(cfg.experts)]
        layer |= {"router": product("router", cfg.hidden, cfg.experts), "experts": experts}
    norms = {"attention_norm": cfg.hidden}
    if cfg.has_ffn_norm:
        norms["ffn_norm"] = cfg.hidden
    if cfg.has_head_norms:
        norms |= {"q_norm": cfg.head_dim, "k_norm": cfg.head_dim}
    return layer | {name: _norm_parameters(cfg, make, wide) for name, wide in norms.items()}


def _product(cfg: DecoderConfig, make: Make, name: str, width_in: int, width_out: int) -> dict[str, Any]:
    bias = {"b": make((width_out,), 0.0)} if name in cfg.biases else {}
    return {"w": make((width_in, width_out), 0.0)} | bias


def _norm_parameters(cfg: DecoderConfig, make: Make, width: int) -> Any:
    if cfg.norm == "rms":
        return make((width,), 1.0)
    return {"scale": make((width,), 1.0)} if cfg.norm == "centred" else norm_parameters(make, width)


def cache_shapes(
    cfg: DecoderConfig, batch: int, max_len: int, dtype: Any, sharding: Any = None
) -> list[dict[str, Any]]:
    """The KV cache: per layer ``k`` and ``v`` of [batch, key_heads, max_len, head_dim]."""
    shape = (batch, cfg.key_heads, max_len, cfg.head_dim)
    entry = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    return [{"k": entry, "v": entry} for _ in range(cfg.layers)]


def prefill(
    cfg: DecoderConfig, params: dict[str, Any], cache: list[dict[str, jax.Array]], tokens: jax.Array
) -> tuple[jax.Array, jax.Array, list[dict[str, jax.Array]]]:
    """Reads the prompt and writes its keys and values over the first positions of the cache.

    Args:
      cfg: static.
      cache: of ``cache_shapes``, whatever stands in it; to be donated, so that it stays where it is.
      tokens: i32 [batch, length], no more than the cache has positions.

    Returns:
      The next token of each sequence, i32 [batch]; the f32 logits it was chosen from, [batch, vocab];
      the cache, filled up to ``length``.
    """
    length = tokens.shape[1]
    attend = prompt_attention(length, _bias(cfg, length))
    x, filled = _decoder(cfg, params, tokens, jnp.arange(length), attend, cache)
    return *_next_token(cfg, params, x[:, -1]), filled


def decode(
    cfg: DecoderConfig,
    params: dict[str, Any],
    cache: list[dict[str, jax.Array]],
    token: jax.Array,
    position: jax.Array,
) -> tuple[jax.Array, jax.Array, list[dict[str, jax.Array]]]:
    """Reads one token a sequence and writes its keys and values at ``position`` (an i32 scalar) of the cache.

    Returns:
      As ``prefill``.
    """
    max_len = cache[0]["k"].shape[2]
    attend = step_attention(max_len, position, _bias(cfg, max_len))
    x, updated = _decoder(cfg, params, token[:, None], position[None], attend, cache)
    return *_next_token(cfg, params, x[:, -1]), updated


def _bias(cfg: DecoderConfig, keys: int) -> jax.Array | None:
    return alibi(cfg.heads, cfg.extra_heads, keys) if cfg.places == "alibi" else None


def _decoder(
    cfg: DecoderConfig,
    params: dict[str, Any],
    tokens: jax.Array,
    positions: jax.Array,
    attend: Attend,
    cache: Sequence[Cache],
) -> tuple[jax.Array, list[Cache]]:
    """Through all layers; what ``attend`` keeps of each comes back with the result."""
    turn = None
    if cfg.places == "rotary":
        width = cfg.rotary or cfg.head_dim
        turn = rotation(positions, width, base=cfg.rope_base, factor=cfg.rope_factor)

    def layer(x: jax.Array, weights: dict[str, Any], old: Cache) -> tuple[jax.Array, Cache]:
        normal = _norm(cfg, weights["attention_norm"], x) if cfg.norm_first else x
        y, kept = _self_attention(cfg, weights, normal, turn, functools.partial(attend, old=old))
        if cfg.is_parallel:
            own = _norm(cfg, weights["ffn_norm"], x) if cfg.has_ffn_norm else normal
            return x + y + _feed_forward(cfg, weights, own), kept
        if cfg.norm_first:
            x = x + y
            return x + _feed_forward(cfg, weights, _norm(cfg, weights["ffn_norm"], x)), kept
        x = _norm(cfg, weights["attention_norm"], x + y)
        return _norm(cfg, weights["ffn_norm"], x + _feed_forward(cfg, weights, x)), kept

    x, kept = through_layers(layer, _embed(cfg, params, tokens, positions), params["layers"], cache)
    return (_norm(cfg, params["final_norm"], x) if cfg.norm_first else x), kept


def _embed(cfg: DecoderConfig, params: dict[str, Any], tokens: jax.Array, positions: jax.Array) -> jax.Array:
    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip")
    if cfg.is_projected:
        x = x @ params["project_in"]
    if cfg.embed_scale != 1:
        x = x * cfg.embed_scale
    if cfg.has_embed_norm:
        x = _norm(cfg, params["norm"], x)
    if cfg.places == "table":
        x = x + jnp.take(params["positions"], positions + cfg.position_offset, axis=0, mode="clip")
    return x


def _norm(cfg: DecoderConfig, weights: Any, x: jax.Array) -> jax.Array:
    return (rms_norm if cfg.norm == "rms" else layer_norm)(weights, x, cfg.norm_epsilon)


def _self_attention(
    cfg: DecoderConfig, layer: dict[str, Any], x: jax.Array, turn: Turn | None, attend: Attend
) -> tuple[jax.Array, Cache]:
    scale, counts = 1 / math.sqrt(cfg.head_dim), (cfg.query_heads, cfg.key_heads, cfg.key_heads)
    made = (linear(layer[name], x) for name in ("q", "k", "v"))
    # Queries are scaled where it needs no pass of its own: behind the product, or behind the rotation.
    if turn is None:
        q, k, v = made
        q, k, v = map(split_heads, (q * scale, k, v), counts)
    else:
        q, k, v = map(split_heads, made, counts)
        if cfg.has_head_norms:
            q, k = _norm(cfg, layer["q_norm"], q), _norm(cfg, layer["k_norm"], k)
        turned = functools.partial(rotate, turn=turn, is_interleaved=cfg.is_interleaved)
        q, k = turned(q) * scale, turned(k)
    mixed, kept = attend(q, k, v)
    return linear(layer["o"], mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)), kept


def _feed_forward(cfg: DecoderConfig, layer: dict[str, Any], x: jax.Array) -> jax.Array:
    """The products behind attention, or the weighted sum of the experts' that each token of ``x`` chose.

    As transformers-neuronx does it (src/transformers_neuronx/mixtral/hlo.py), every expert works on every
    token; those that were not chosen have no weight.
    """
    if cfg.experts == 1:
        return linear(layer["down"], _activated(cfg, layer, x))
    scores = jax.nn.softmax(linear(layer["router"], x).astype(jnp.float32), axis=-1)
    best, which = jax.lax.top_k(scores, cfg.chosen)
    shares = best / best.sum(axis=-1, keepdims=True)
    weights = (jax.nn.one_hot(which, cfg.experts) * shares[..., None]).sum(axis=-2).astype(x.dtype)
    parts = (
        _activated(cfg, one, x) * weights[..., index, None] for index, one in enumerate(layer["experts"])
    )
    return sum(linear(one["down"], part) for one, part in zip(layer["experts"], parts, strict=True))


def _activated(cfg: DecoderConfig, products: dict[str, Any], x: jax.Array) -> jax.Array:
    activate = ACTIVATIONS[cfg.activation]
    if not cfg.is_gated:
        return activate(linear(products["up"], x))
    return activate(linear(products["gate"], x)) * linear(products["up"], x)


def _next_token(cfg: DecoderConfig, params: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy choice from the last hidden state, [batch, hidden]."""
    if cfg.is_projected:
        x = x @ params["project_out"]
    if cfg.is_tied:
        logits = jnp.einsum("be,ve->bv", x, params["tokens"], preferred_element_type=jnp.float32)
    else:
        logits = head_logits(params["head"], x)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), logits
