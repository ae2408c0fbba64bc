"""The decoder of Stable Diffusion's autoencoder in plain JAX: published sizes, images of latents."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.family import Family
from neuronx.models.layers import (
    Make,
    attention,
    convolution,
    convolution_parameters,
    group_norm,
    linear,
    linear_parameters,
    norm_parameters,
)
from neuronx.models.unet import LATENTS, grown, residual, residual_parameters

__all__ = ["SIZES", "DecoderConfig", "config", "decode_images", "parameter_shapes", "parameters"]

_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """One published size, for square images of ``image`` pixels: ``widths`` of its levels, the last first."""

    name: str
    image: int
    widths: tuple[int, ...] = (512, 512, 256, 128)

    @property
    def across(self) -> int:
        return self.image // 2 ** (len(self.widths) - 1)


# Source: vae/config.json of each model on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        DecoderConfig(name="stable-diffusion-v1-5-vae", image=512),
        DecoderConfig(name="stable-diffusion-2-1-base-vae", image=512),
        DecoderConfig(name="stable-diffusion-2-1-vae", image=768),
        DecoderConfig(name="stable-diffusion-2-inpainting-vae", image=512),
        DecoderConfig(name="stable-diffusion-inpainting-vae", image=512),
        DecoderConfig(name="sd-turbo-vae", image=512),
        DecoderConfig(name="sdxl-turbo-vae", image=512),
        DecoderConfig(name="stable-diffusion-xl-base-1.0-vae", image=1024),
        DecoderConfig(name="stable-diffusion-xl-refiner-1.0-vae", image=1024),
        DecoderConfig(name="pixart-xl-2-256x256-vae", image=256),
        DecoderConfig(name="pixart-xl-2-512x512-vae", image=512),
        DecoderConfig(name="pixart-xl-2-1024-ms-vae", image=1024),
        DecoderConfig(name="pixart-sigma-xl-2-256x256-vae", image=256),
        DecoderConfig(name="pixart-sigma-xl-2-512-ms-vae", image=512),
        DecoderConfig(name="pixart-sigma-xl-2-1024-ms-vae", image=1024),
    )
}


def _parameter_tree(cfg: DecoderConfig, make: Make) -> dict[str, Any]:
    conv, block = (functools.partial(made, make) for made in (convolution_parameters, residual_parameters))
    now = cfg.widths[0]
    tree = {
        "latents": conv(LATENTS, LATENTS, 1),
        "into": conv(LATENTS, now, 3),
        "middle": [block(now, now), block(now, now)],
        "mix": {name: linear_parameters(make, now, now) for name in "qkvo"}
        | {"norm": norm_parameters(make, now)},
        "up": [],
    }
    for width in cfg.widths:
        tree["up"].append({"blocks": [block(now, width), block(width, width), block(width, width)]})
        now = width
    for stage, width in zip(tree["up"][:-1], cfg.widths, strict=False):
        stage["grow"] = conv(width, width, 3)
    return tree | {"norm": norm_parameters(make, now), "out": conv(now, 3, 3)}


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def decode_images(cfg: DecoderConfig, params: dict[str, Any], latents: jax.Array) -> jax.Array:
    """Images [batch, image, image, 3] of ``latents`` [batch, across, across, LATENTS]."""
    x = convolution(params["into"], convolution(params["latents"], latents, 1), 1)
    first, last = params["middle"]
    x = residual(last, _mixed(params["mix"], residual(first, x, _EPSILON)), _EPSILON)
    for stage in params["up"]:
        for block in stage["blocks"]:
            x = residual(block, x, _EPSILON)
        if "grow" in stage:
            x = grown(stage["grow"], x)
    return convolution(params["out"], jax.nn.silu(group_norm(params["norm"], x, _EPSILON)), 1)


def _mixed(weights: dict[str, Any], x: jax.Array) -> jax.Array:
    """``x`` and what each pixel takes from all others, by one head."""
    flat = group_norm(weights["norm"], x, _EPSILON).reshape(x.shape[0], 1, -1, x.shape[-1])
    q, k, v = (linear(weights[name], flat) for name in "qkv")
    mixed = attention(q * (1 / math.sqrt(x.shape[-1])), k, v, jnp.ones((1, 1), bool))
    return x + linear(weights["o"], mixed).reshape(x.shape)
