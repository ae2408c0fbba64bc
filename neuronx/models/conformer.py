"""Wav2Vec2-Conformer in plain JAX: published sizes, attention and convolutions over a sound."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neuronx.models.answers import joined
from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    attention,
    convolution,
    layer_norm,
    linear,
    linear_parameters,
    norm_parameters,
    split_heads,
    through_layers,
)
from neuronx.models.positions import Turn, rotate, rotation, skewed
from neuronx.models.wav2vec2 import heard, hearing_parameters

__all__ = ["SIZES", "ConformerConfig", "config", "hear", "parameter_shapes", "parameters"]

_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """One published size; ``window`` moments of each feature are read by a convolution.

    ``is_rotary``: what queries and keys are made of is turned by its place, else scores get what queries make
    of how far the key is.
    """

    name: str
    is_rotary: bool
    hidden: int = 1024
    heads: int = 16
    layers: int = 24
    ffn: int = 4096
    window: int = 31
    letters: int = 32


# Source: config.json of facebook/<name>-ft on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        ConformerConfig(name="wav2vec2-conformer-rel-pos-large-960h", is_rotary=False),
        ConformerConfig(name="wav2vec2-conformer-rope-large-960h", is_rotary=True),
    )
}


def _parameter_tree(cfg: ConformerConfig, make: Make) -> dict[str, Any]:
    wide = cfg.hidden

    def products() -> dict[str, Any]:
        up, down = (linear_parameters(make, *sides) for sides in ((wide, cfg.ffn), (cfg.ffn, wide)))
        return {"up": up, "down": down, "norm": norm_parameters(make, wide)}

    def layer() -> dict[str, Any]:
        made = {name: linear_parameters(make, wide, wide) for name in "qkvo"}
        if not cfg.is_rotary:
            distances = {"distances": {"w": make((wide, wide), 0.0)}}
            made |= distances | {name: make((cfg.heads, wide // cfg.heads), 0.0) for name in ("near", "far")}
        # The batch norm behind it is folded.
        window = {"w": make((1, cfg.window, 1, wide), 0.0), "b": make((wide,), 0.0)}
        matrices = {"gate": make((wide, 2 * wide), 0.0), "out": make((wide, wide), 0.0)}
        names = ("attention_norm", "window_norm", "final_norm")
        return {
            **made,
            "window": window,
            **{name: {"w": w} for name, w in matrices.items()},
            **{name: norm_parameters(make, wide) for name in names},
            "first": products(),
            "second": products(),
        }

    return hearing_parameters(make, wide, is_stable=True) | {
        "layers": [layer() for _ in range(cfg.layers)],
        "norm": norm_parameters(make, wide),
        "head": linear_parameters(make, wide, cfg.letters),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def hear(cfg: ConformerConfig, params: dict[str, Any], sound: jax.Array) -> jax.Array:
    """Logits [batch, moments, letters] of a ``sound`` [batch, samples], 16,000 samples a second."""
    x = heard(params, sound, is_stable=True)
    moments = x.shape[1]
    turn = rotation(jnp.arange(moments), cfg.hidden // cfg.heads, base=1e4) if cfg.is_rotary else None

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        x = x + 0.5 * _products(weights["first"], x)
        x = x + _attended(cfg, weights, layer_norm(weights["attention_norm"], x, _EPSILON), turn)
        x = x + _windowed(weights, layer_norm(weights["window_norm"], x, _EPSILON))
        x = x + 0.5 * _products(weights["second"], x)
        return layer_norm(weights["final_norm"], x, _EPSILON), None

    x, _ = through_layers(layer, x, params["layers"])
    return linear(params["head"], layer_norm(params["norm"], x, _EPSILON))


def _products(weights: dict[str, Any], x: jax.Array) -> jax.Array:
    up = linear(weights["up"], layer_norm(weights["norm"], x, _EPSILON))
    return linear(weights["down"], ACTIVATIONS["silu"](up))


def _windowed(weights: dict[str, Any], x: jax.Array) -> jax.Array:
    """Numbers that gate each other, a convolution of each feature, and a product."""
    first, gate = jnp.split(linear(weights["gate"], x), 2, axis=-1)
    mixed = convolution(weights["window"], (first * jax.nn.sigmoid(gate))[:, None], 1)
    return linear(weights["out"], ACTIVATIONS["silu"](mixed[:, 0]))


def _attended(cfg: ConformerConfig, weights: dict[str, Any], x: jax.Array, turn: Turn | None) -> jax.Array:
    given = x
    if turn is not None:
        given = rotate(split_heads(x, cfg.heads), turn).transpose(0, 2, 1, 3).reshape(x.shape)
    made = zip("qkv", (given, given, x), strict=True)
    q, k, v = (split_heads(linear(weights[name], one), cfg.heads) for name, one in made)
    scale, bias = 1 / math.sqrt(q.shape[-1]), None
    if turn is None:
        bias = _distances(cfg, weights, (q + weights["far"][:, None].astype(q.dtype)) * scale)
        q = q + weights["near"][:, None].astype(q.dtype)
    return joined(weights["o"], attention(q * scale, k, v, jnp.ones((1, 1), bool), bias))


def _distances(cfg: ConformerConfig, weights: dict[str, Any], q: jax.Array) -> jax.Array:
    """f32 [batch, heads, moments, moments]: what queries make of how far each key is behind them."""
    waves = jnp.asarray(_waves(q.shape[2], cfg.hidden), q.dtype)[None]
    far = split_heads(linear(weights["distances"], waves), cfg.heads)[0]
    return skewed(jnp.einsum("bhqd,hrd->bhqr", q, far, preferred_element_type=jnp.float32))


def _waves(moments: int, width: int) -> np.ndarray:
    """[2 * moments - 1, width]: sines and cosines in turn, of the farthest behind first."""
    behind = np.arange(moments - 1, -moments, -1)
    angles = behind[:, None] * np.exp(np.arange(0, width, 2) * (-math.log(1e4) / width))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(len(behind), width)
