"""What encoder-decoders share: answers written token by token, with a cache, by layers that read a source."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.layers import (
    ACTIVATIONS,
    Attend,
    Cache,
    Make,
    attention,
    encoder_attention,
    layer_norm,
    layer_parameters,
    linear,
    split_heads,
    through_layers,
)

__all__ = [
    "Style",
    "cache_shapes",
    "embedded",
    "fed_forward",
    "joined",
    "read",
    "sources",
    "write",
    "writer_parameters",
]

_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class Style:
    """How layers with layer norms are put together: those of BART, Marian and Whisper.

    ``norm_first``: they normalise before each half and once at the end, else after each half. The table's row
    of the first position is ``offset``.
    """

    heads: int
    head_dim: int
    norm_first: bool = True
    activation: str = "gelu"
    embed_scale: float = 1.0
    offset: int = 0

    def before(self, weights: dict[str, Any], x: jax.Array) -> jax.Array:
        """What a half reads of ``x``."""
        return layer_norm(weights, x, _EPSILON) if self.norm_first else x

    def after(self, weights: dict[str, Any], x: jax.Array) -> jax.Array:
        """What becomes of ``x`` and the half's result, added up."""
        return x if self.norm_first else layer_norm(weights, x, _EPSILON)


def writer_parameters(make: Make, hidden: int, ffn: int, width: int) -> dict[str, Any]:
    """Of a layer of ``write``, whose heads have ``width`` numbers in all."""
    own, source = (layer_parameters(make, hidden, ffn, width) for _ in range(2))
    return own | {"source": {name: source[name] for name in "qkvo"}, "source_norm": source["attention_norm"]}


def cache_shapes(
    layers: int, heads: int, head_dim: int, batch: int, max_len: int, dtype: Any
) -> dict[str, Any]:
    """What steps read: per layer keys and values of the answer and of the source, of [batch, heads, max_len,
    head_dim] each, and which of the source's positions there are."""
    entry = jax.ShapeDtypeStruct((batch, heads, max_len, head_dim), dtype)
    names = ("k", "v", "source_k", "source_v")
    return {
        "layers": [dict.fromkeys(names, entry) for _ in range(layers)],
        "readable": jax.ShapeDtypeStruct((batch, heads, 1, max_len), jnp.bool_),
    }


def sources(
    heads: int, layers: Sequence[dict[str, Any]], cache: dict[str, Any], seen: jax.Array
) -> tuple[list[Cache], jax.Array]:
    """The cache with keys and values of what was ``seen``, [batch, length, hidden], and what is readable."""

    readable = cache["readable"]
    room = [(0, 0), (0, 0), (0, readable.shape[-1] - seen.shape[1]), (0, 0)]

    def source(weights: dict[str, Any]) -> Cache:
        made = {name: split_heads(linear(weights[name], seen), heads) for name in ("k", "v")}
        return {f"source_{name}": jnp.pad(part, room) for name, part in made.items()}

    filled = [old | source(one["source"]) for old, one in zip(cache["layers"], layers, strict=True)]
    return filled, jnp.broadcast_to(jnp.arange(readable.shape[-1]) < seen.shape[1], readable.shape)


def embedded(
    style: Style, params: dict[str, Any], stack: dict[str, Any], tokens: jax.Array, positions: jax.Array
) -> jax.Array:
    """Tokens i32 [batch, length] at ``positions`` i32 [length], looked up and added."""
    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip")
    x = x * style.embed_scale if style.embed_scale != 1 else x
    rows = positions + style.offset if style.offset else positions
    x = x + jnp.take(stack["positions"], rows, axis=0, mode="clip")
    return layer_norm(stack["norm"], x, _EPSILON) if "norm" in stack else x


def read(style: Style, layers: Sequence[dict[str, Any]], x: jax.Array) -> jax.Array:
    """``x`` [batch, length, hidden] through encoder layers, in which all positions see each other."""

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        norm = weights["attention_norm"]
        mixed = encoder_attention(weights, style.before(norm, x), style.heads, jnp.ones((1, 1), bool))
        return fed_forward(style, weights, style.after(norm, x + mixed)), None

    return through_layers(layer, x, layers)[0]


def write(
    style: Style,
    params: dict[str, Any],
    tokens: jax.Array,
    positions: jax.Array,
    attend: Attend,
    cache: Sequence[Cache],
    readable: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, list[Cache]]:
    """One token more, i32 [batch], chosen greedily, with its f32 logits and what was kept.

    Without ``readable``, bool [batch, heads, 1, length], all of the source is.
    """
    writer = params["writer"]

    def heads(weights: dict[str, Any], name: str, x: jax.Array) -> jax.Array:
        return split_heads(linear(weights[name], x), style.heads)

    def query(weights: dict[str, Any], x: jax.Array) -> jax.Array:
        return heads(weights, "q", x) * (1 / math.sqrt(style.head_dim))

    def layer(x: jax.Array, weights: dict[str, Any], old: Cache) -> tuple[jax.Array, Cache]:
        given = style.before(weights["attention_norm"], x)
        keys, values = (heads(weights, name, given) for name in "kv")
        mixed, kept = attend(query(weights, given), keys, values, old)
        x = style.after(weights["attention_norm"], x + joined(weights["o"], mixed))
        source, given = weights["source"], style.before(weights["source_norm"], x)
        visible = jnp.ones((1, 1), bool) if readable is None else readable
        mixed = attention(query(source, given), old["source_k"], old["source_v"], visible)
        x = style.after(weights["source_norm"], x + joined(source["o"], mixed))
        return fed_forward(style, weights, x), old | kept

    x = embedded(style, params, writer, tokens, positions)
    x, kept = through_layers(layer, x, writer["layers"], cache)
    last = style.before(writer["final_norm"], x[:, -1]) if style.norm_first else x[:, -1]
    logits = jnp.einsum("be,ve->bv", last, params["tokens"], preferred_element_type=jnp.float32)
    logits = logits + params["bias"] if "bias" in params else logits
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), logits, kept


def fed_forward(style: Style, weights: dict[str, Any], x: jax.Array) -> jax.Array:
    """The second half of a layer."""
    up = ACTIVATIONS[style.activation](linear(weights["up"], style.before(weights["ffn_norm"], x)))
    return style.after(weights["ffn_norm"], x + linear(weights["down"], up))


def joined(weights: dict[str, Any], mixed: jax.Array) -> jax.Array:
    """[batch, heads, length, head_dim] projected to [batch, length, hidden]."""
    batch, _, length, _ = mixed.shape
    return linear(weights, mixed.transpose(0, 2, 1, 3).reshape(batch, length, -1))
