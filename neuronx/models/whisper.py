"""Whisper in plain JAX: published sizes, hearing half a minute of sound and writing text with a cache."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models import answers
from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Cache,
    Make,
    convolution,
    layer_norm,
    layer_parameters,
    linear,
    norm_parameters,
    norms_first,
    prompt_attention,
    split_heads,
    step_attention,
)
from neuronx.models.sizes import padded

__all__ = [
    "SIZES",
    "WhisperConfig",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
    "sound_shape",
]

NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class WhisperConfig:
    """One published size: ``layers`` that hear and ``writers`` that write, ``hidden`` wide.

    Sound is ``frames`` frames of ``mels`` numbers, of which every two make a position. ``extra_heads`` of
    zero weights are added where heads have to divide evenly over cores.
    """

    name: str
    hidden: int
    heads: int
    layers: int
    writers: int
    ffn: int
    mels: int = 80
    vocab: int = 51865
    frames: int = 3000
    positions: int = 448
    extra_heads: int = 0

    @property
    def heard(self) -> int:
        return self.frames // 2

    @property
    def all_heads(self) -> int:
        return self.heads + self.extra_heads

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def style(self) -> answers.Style:
        return answers.Style(heads=self.all_heads, head_dim=self.head_dim)


def _size(name: str, hidden: int, heads: int, layers: int, writers: int, **other: Any) -> WhisperConfig:
    sizes = {"hidden": hidden, "heads": heads, "layers": layers, "writers": writers, "ffn": 4 * hidden}
    return WhisperConfig(name=name, **sizes, **other)


_V3 = {"mels": 128, "vocab": 51866}
_ENGLISH = {"vocab": 51864}

# Source: config.json of openai/<name> and distil-whisper/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        _size("whisper-tiny", 384, 6, 4, 4),
        _size("whisper-tiny.en", 384, 6, 4, 4, **_ENGLISH),
        _size("whisper-base", 512, 8, 6, 6),
        _size("whisper-base.en", 512, 8, 6, 6, **_ENGLISH),
        _size("whisper-small", 768, 12, 12, 12),
        _size("whisper-small.en", 768, 12, 12, 12, **_ENGLISH),
        _size("whisper-medium", 1024, 16, 24, 24),
        _size("whisper-medium.en", 1024, 16, 24, 24, **_ENGLISH),
        _size("whisper-large", 1280, 20, 32, 32),
        _size("whisper-large-v3", 1280, 20, 32, 32, **_V3),
        _size("whisper-large-v3-turbo", 1280, 20, 32, 4, **_V3),
        _size("distil-small.en", 768, 12, 12, 4, **_ENGLISH),
        _size("distil-medium.en", 1024, 16, 24, 2, **_ENGLISH),
        _size("distil-large-v2", 1280, 20, 32, 2),
        _size("distil-large-v3", 1280, 20, 32, 2, **_V3),
    )
}


def _parameter_tree(cfg: WhisperConfig, make: Make) -> dict[str, Any]:
    width = cfg.all_heads * cfg.head_dim

    def without_bias(made: dict[str, Any]) -> dict[str, Any]:
        return {"w": made["k"]["w"]}

    def layer() -> dict[str, Any]:
        made = layer_parameters(make, cfg.hidden, cfg.ffn, width)
        return made | {"k": without_bias(made)}

    def writer() -> dict[str, Any]:
        made = answers.writer_parameters(make, cfg.hidden, cfg.ffn, width)
        return made | {
            "k": without_bias(made),
            "source": made["source"] | {"k": without_bias(made["source"])},
        }

    def window(features: int) -> dict[str, Any]:
        return {"w": make((1, 3, features, cfg.hidden), 0.0), "b": make((cfg.hidden,), 0.0)}

    return {
        "tokens": make((cfg.vocab, cfg.hidden), 0.0),
        "hearer": {
            "windows": [window(cfg.mels), window(cfg.hidden)],
            "positions": make((cfg.heard, cfg.hidden), 0.0),
            "layers": [layer() for _ in range(cfg.layers)],
            "final_norm": norm_parameters(make, cfg.hidden),
        },
        "writer": {
            "positions": make((cfg.positions, cfg.hidden), 0.0),
            "layers": [writer() for _ in range(cfg.writers)],
            "final_norm": norm_parameters(make, cfg.hidden),
        },
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def sound_shape(cfg: WhisperConfig, batch: int, dtype: Any) -> jax.ShapeDtypeStruct:
    """What ``prefill`` hears."""
    return jax.ShapeDtypeStruct((batch, cfg.frames, cfg.mels), dtype)


def cache_shapes(cfg: WhisperConfig, batch: int, max_len: int, dtype: Any) -> list[dict[str, Any]]:
    """What steps read: per layer keys and values of the text, [batch, heads, max_len, head_dim], and of the
    sound, [batch, heads, heard, head_dim]."""

    def entry(length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, cfg.all_heads, length, cfg.head_dim), dtype)

    lengths = {"k": max_len, "v": max_len, "source_k": cfg.heard, "source_v": cfg.heard}
    return [{name: entry(length) for name, length in lengths.items()} for _ in range(cfg.writers)]


def prefill(
    cfg: WhisperConfig, params: dict[str, Any], cache: list[Cache], sound: jax.Array, tokens: jax.Array
) -> tuple[jax.Array, jax.Array, list[Cache]]:
    """Hears ``sound`` [batch, frames, mels] and reads what the text starts with, i32 [batch, length].

    The cache is of ``cache_shapes``, any finite numbers; it is to be donated, so that it stays where it is.

    Returns:
      The next token of each text, i32 [batch]; the f32 logits it was chosen from, [batch, vocab]; the cache,
      filled up to ``length``.
    """
    heard = _hear(cfg, params["hearer"], sound)

    def source(weights: dict[str, Any]) -> Cache:
        return {f"source_{name}": split_heads(linear(weights[name], heard), cfg.all_heads) for name in "kv"}

    layers = zip(cache, params["writer"]["layers"], strict=True)
    filled = [old | source(weights["source"]) for old, weights in layers]
    length = tokens.shape[1]
    return answers.write(cfg.style, params, tokens, jnp.arange(length), prompt_attention(length), filled)


def decode(
    cfg: WhisperConfig, params: dict[str, Any], cache: list[Cache], token: jax.Array, position: jax.Array
) -> tuple[jax.Array, jax.Array, list[Cache]]:
    """Reads one token of each text and writes its keys and values at ``position`` (an i32 scalar).

    Returns:
      As ``prefill``, with the updated cache (to be donated, so that it stays where it is).
    """
    attend = step_attention(cache[0]["k"].shape[2], position)
    return answers.write(cfg.style, params, token[:, None], position[None], attend, cache)


def _hear(cfg: WhisperConfig, weights: dict[str, Any], sound: jax.Array) -> jax.Array:
    """Hidden states [batch, heard, hidden]."""
    x = sound[:, None]
    for stride, window in enumerate(weights["windows"], 1):
        x = ACTIVATIONS["gelu"](convolution(window, x, stride))
    how = {"heads": cfg.all_heads, "visible": jnp.ones((1, 1), bool), "activation": "gelu"}
    x = norms_first(weights["layers"], x[:, 0] + weights["positions"], **how, epsilon=NORM_EPSILON)
    return _norm(weights["final_norm"], x)


_norm = functools.partial(layer_norm, epsilon=NORM_EPSILON)
