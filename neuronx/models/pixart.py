"""PixArt-alpha and -sigma in plain JAX: published sizes, one step of taking noise from latents."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    layer_norm,
    linear,
    linear_parameters,
    patches,
    through_layers,
)
from neuronx.models.unet import LATENTS, attended, embedded, two_products, waves

__all__ = ["SIZES", "PixArtConfig", "config", "denoise", "parameter_shapes", "parameters"]

_PATCH = 2
_EPSILON = 1e-6
# Shift, scale and gate of either half of a layer; shift and scale of the result.
_HALVES, _LAST = 6, 2
# Numbers that a step or a side of the picture is written as.
_WAVES = 256


@dataclass(frozen=True, kw_only=True)
class PixArtConfig:
    """One published size, for square images of ``image`` pixels, whose latents are read in squares of 2 by 2.

    Layers read ``tokens`` of a sentence, ``context`` numbers each. With ``has_sides`` the picture's height,
    width and their ratio are told, too. The result is as wide again as the latents: noise and its variance.
    """

    name: str
    image: int
    tokens: int
    has_sides: bool = False
    hidden: int = 1152
    heads: int = 16
    layers: int = 28
    context: int = 4096

    @property
    def across(self) -> int:
        return self.image // 8


# Source: transformer/config.json of PixArt-alpha/<name> on the Hugging Face hub, and diffusers' pipelines.
SIZES = {
    size.name: size
    for size in (
        PixArtConfig(name="pixart-xl-2-256x256-transformer", image=256, tokens=120),
        PixArtConfig(name="pixart-xl-2-512x512-transformer", image=512, tokens=120),
        PixArtConfig(name="pixart-xl-2-1024-ms-transformer", image=1024, tokens=120, has_sides=True),
        PixArtConfig(name="pixart-sigma-xl-2-256x256-transformer", image=256, tokens=300),
        PixArtConfig(name="pixart-sigma-xl-2-512-ms-transformer", image=512, tokens=300),
        PixArtConfig(name="pixart-sigma-xl-2-1024-ms-transformer", image=1024, tokens=300),
    )
}


def _parameter_tree(cfg: PixArtConfig, make: Make) -> dict[str, Any]:
    wide = cfg.hidden
    product = functools.partial(linear_parameters, make)

    def heads() -> dict[str, Any]:
        return {name: product(wide, wide) for name in "qkvo"}

    def layer() -> dict[str, Any]:
        return {
            "itself": heads(),
            "sentence": heads(),
            "up": product(wide, 4 * wide),
            "down": product(4 * wide, wide),
            "moves": make((_HALVES, wide), 0.0),
        }

    tree = {
        "patches": product(LATENTS * _PATCH**2, wide),
        "positions": make(((cfg.across // _PATCH) ** 2, wide), 0.0),
        "sentence": two_products(make, cfg.context, wide),
        "time": two_products(make, _WAVES, wide),
        "moves": product(wide, _HALVES * wide),
        "layers": [layer() for _ in range(cfg.layers)],
        "last": make((_LAST, wide), 0.0),
        "out": product(wide, 2 * LATENTS * _PATCH**2),
    }
    if cfg.has_sides:
        tree |= {name: two_products(make, _WAVES, wide // 3) for name in ("sides", "ratio")}
    return tree


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def denoise(
    cfg: PixArtConfig,
    params: dict[str, Any],
    latents: jax.Array,
    step: jax.Array,
    sentence: jax.Array,
    mask: jax.Array,
    *sides_and_ratio: jax.Array,
) -> jax.Array:
    """Noise and its variance, [batch, across, across, 2 * LATENTS], of ``latents`` half as wide.

    Args:
      step: i32 [batch], of as many as it was trained with.
      sentence: [batch, tokens, context]; ``mask``: i32 [batch, tokens], 1 where there is a token.
      sides_and_ratio: with ``has_sides``, f32 [batch, 2] and [batch, 1].
    """
    batch, wide, dtype = latents.shape[0], cfg.hidden, latents.dtype

    def told(name: str, numbers: jax.Array) -> jax.Array:
        """What ``numbers`` [batch, count] tell, side by side."""
        seen = waves(numbers.reshape(-1), _WAVES).astype(dtype)
        return embedded(params[name], seen).reshape(batch, -1)

    time = told("time", step)
    if cfg.has_sides:
        sides, ratio = sides_and_ratio
        time = time + jnp.concatenate([told("sides", sides), told("ratio", ratio)], axis=-1)
    moves = linear(params["moves"], jax.nn.silu(time)).reshape(batch, _HALVES, wide)
    first, second = params["sentence"]
    read = linear(second, ACTIVATIONS["gelu_new"](linear(first, sentence)))
    visible = (mask > 0)[:, None, None, :]

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        shift, scale, gate, late_shift, late_scale, late_gate = jnp.split(
            weights["moves"] + moves, _HALVES, axis=1
        )
        normal = _moved(x, shift, scale)
        x = x + gate * attended(weights["itself"], normal, normal, cfg.heads)
        x = x + attended(weights["sentence"], x, read, cfg.heads, visible)
        up = ACTIVATIONS["gelu_new"](linear(weights["up"], _moved(x, late_shift, late_scale)))
        return x + late_gate * linear(weights["down"], up), None

    x = linear(params["patches"], patches(latents, _PATCH)) + params["positions"].astype(dtype)
    x, _ = through_layers(layer, x, params["layers"])
    x = linear(params["out"], _moved(x, *jnp.split(params["last"] + time[:, None], _LAST, axis=1)))
    side = cfg.across // _PATCH
    squares = x.reshape(batch, side, side, _PATCH, _PATCH, 2 * LATENTS).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch, cfg.across, cfg.across, 2 * LATENTS)


def _moved(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return layer_norm({"scale": 1 + scale, "bias": shift}, x, _EPSILON)
