"""BART, mBART and Marian in plain JAX: published sizes, reading a source and writing an answer."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kernels.errors import CompileError
from neuronx.models import answers
from neuronx.models.family import Family
from neuronx.models.layers import (
    Make,
    layer_norm,
    layer_parameters,
    norm_parameters,
    prompt_attention,
    step_attention,
)
from neuronx.models.sizes import padded

__all__ = [
    "SIZES",
    "BartConfig",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]

_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class BartConfig:
    """One published size: ``layers`` that read and ``writers`` that write, of up to ``places`` tokens each.

    ``norm_first``: mBART normalises before each half, and once more at the end. ``has_embed_norm``: a norm
    follows the tables. Marian's table of places is made of waves: as large to read, and ``offset`` 0.
    ``start`` is the token that an answer starts with. ``extra_heads`` of zero weights are added where heads
    have to divide evenly over cores.
    """

    name: str
    hidden: int
    heads: int
    layers: int
    writers: int
    ffn: int
    vocab: int = 50265
    places: int = 1024
    offset: int = 2
    start: int = 2
    embed_scale: float = 1.0
    norm_first: bool = False
    has_embed_norm: bool = True
    activation: str = "gelu"
    extra_heads: int = 0

    @property
    def all_heads(self) -> int:
        return self.heads + self.extra_heads

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def style(self) -> answers.Style:
        shared = {name: getattr(self, name) for name in ("norm_first", "activation", "embed_scale", "offset")}
        return answers.Style(heads=self.all_heads, head_dim=self.head_dim, **shared)


_BASE = {"hidden": 768, "heads": 12, "layers": 6, "writers": 6, "ffn": 3072}
_LARGE = {"hidden": 1024, "heads": 16, "layers": 12, "writers": 12, "ffn": 4096}
_MBART = _LARGE | {"norm_first": True, "embed_scale": 32.0, "activation": "relu"}
_MARIAN = {
    "hidden": 512,
    "heads": 8,
    "layers": 6,
    "writers": 6,
    "ffn": 2048,
    "places": 512,
    "offset": 0,
    "embed_scale": 512**0.5,
    "has_embed_norm": False,
    "activation": "silu",
}

# Source: config.json of facebook/<name>, sshleifer/<name> and Helsinki-NLP/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        BartConfig(name="bart-base", **_BASE),
        BartConfig(name="bart-large", **_LARGE),
        BartConfig(name="bart-large-cnn", **_LARGE, vocab=50264),
        BartConfig(name="distilbart-cnn-12-6", **_LARGE | {"writers": 6}, vocab=50264),
        BartConfig(name="mbart-large-50", **_MBART, vocab=250054),
        BartConfig(name="opus-mt-en-de", **_MARIAN, vocab=58101, start=58100),
        BartConfig(name="opus-mt-en-fr", **_MARIAN, vocab=59514, start=59513),
    )
}


def _parameter_tree(cfg: BartConfig, make: Make) -> dict[str, Any]:
    width = cfg.all_heads * cfg.head_dim
    read, write = (
        functools.partial(made, make, cfg.hidden, cfg.ffn, width)
        for made in (layer_parameters, answers.writer_parameters)
    )

    def stack(layers: list[dict[str, Any]]) -> dict[str, Any]:
        norms = {"norm": cfg.has_embed_norm, "final_norm": cfg.norm_first}
        made = {name: norm_parameters(make, cfg.hidden) for name, has_it in norms.items() if has_it}
        return made | {"positions": make((cfg.places + cfg.offset, cfg.hidden), 0.0), "layers": layers}

    return {
        "tokens": make((cfg.vocab, cfg.hidden), 0.0),
        "reader": stack([read() for _ in range(cfg.layers)]),
        "writer": stack([write() for _ in range(cfg.writers)]),
        "bias": make((cfg.vocab,), 0.0),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def cache_shapes(cfg: BartConfig, batch: int, max_len: int, dtype: Any) -> dict[str, Any]:
    """``answers.cache_shapes`` of this size."""
    return answers.cache_shapes(cfg.writers, cfg.all_heads, cfg.head_dim, batch, max_len, dtype)


def prefill(
    cfg: BartConfig, params: dict[str, Any], cache: dict[str, Any], tokens: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """As ``t5.prefill``; raises CompileError for a source of more tokens than the model has places."""
    batch, length = tokens.shape
    if length > cfg.places:
        fix = "shorten the prompt"
        raise CompileError(f"{length} tokens, but {cfg.name} has {cfg.places} places", op="model", fix=fix)
    seen = _read(cfg, params, tokens)
    filled, readable = answers.sources(cfg.all_heads, params["writer"]["layers"], cache, seen)
    start, position = jnp.full((batch, 1), cfg.start, jnp.int32), jnp.zeros((1,), jnp.int32)
    return _write(cfg, params, start, position, prompt_attention(1), filled, readable)


def decode(
    cfg: BartConfig, params: dict[str, Any], cache: dict[str, Any], token: jax.Array, position: jax.Array
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """As ``t5.decode``."""
    readable = cache["readable"]
    attend = step_attention(readable.shape[-1], position)
    return _write(cfg, params, token[:, None], position[None], attend, cache["layers"], readable)


def _write(
    cfg: BartConfig, params: dict[str, Any], *given: Any
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """``answers.write``, and what is readable with the rest of the cache."""
    chosen, logits, kept = answers.write(cfg.style, params, *given)
    return chosen, logits, {"layers": kept, "readable": given[-1]}


def _read(cfg: BartConfig, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Hidden states [batch, length, hidden] of a source."""
    reader, style = params["reader"], cfg.style
    x = answers.embedded(style, params, reader, tokens, jnp.arange(tokens.shape[1]))
    x = answers.read(style, reader["layers"], x)
    return layer_norm(reader["final_norm"], x, _EPSILON) if cfg.norm_first else x
