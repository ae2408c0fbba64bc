"""The U-Net of Stable Diffusion in plain JAX: published sizes, one step of taking noise from latents."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    attention,
    convolution,
    convolution_parameters,
    group_norm,
    layer_norm,
    linear,
    linear_parameters,
    norm_parameters,
    split_heads,
)

__all__ = [
    "LATENTS",
    "SIZES",
    "UNetConfig",
    "attended",
    "config",
    "denoise",
    "embedded",
    "grown",
    "parameter_shapes",
    "parameters",
    "residual",
    "residual_parameters",
    "two_products",
    "waves",
]

LATENTS = 4
"""Numbers that a latent has for each square of 8 by 8 pixels."""

_EPSILON, _MIXING_EPSILON = 1e-5, 1e-6
# That each of those sizes is written as.
_SIZE_WAVES = 256


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """One published size, for square images of ``image`` pixels.

    Each level has two blocks on the way down and three on the way up, ``widths`` wide, each with as many
    transformer layers as ``mixes`` says, of ``heads``; between the ways are ``middle`` of them. They read
    ``tokens`` of a sentence, ``context`` numbers each; SDXL also ``pooled`` numbers for all of it, and
    ``sizes``: two each of the image, its crop and its target (its refiner has a score for the latter).
    Latents ``reads`` numbers wide come in: where a part of an image is painted, with a mask and the rest's.
    """

    name: str
    widths: tuple[int, ...]
    mixes: tuple[int, ...]
    middle: int
    heads: tuple[int, ...]
    context: int
    image: int
    reads: int = LATENTS
    pooled: int = 0
    sizes: int = 6
    tokens: int = 77

    @property
    def across(self) -> int:
        return self.image // 8

    @property
    def time(self) -> int:
        """Numbers that tell a block how much noise there is."""
        return 4 * self.widths[0]


_FOUR = {"widths": (320, 640, 1280, 1280), "mixes": (1, 1, 1, 0), "middle": 1}
_SD_1 = _FOUR | {"heads": (8, 8, 8, 8), "context": 768}
_SD_2 = _FOUR | {"heads": (5, 10, 20, 20), "context": 1024}
_SDXL = {"widths": (320, 640, 1280), "mixes": (0, 2, 10), "middle": 10, "heads": (5, 10, 20)}

# Source: unet/config.json of each model on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        UNetConfig(name="stable-diffusion-v1-5-unet", **_SD_1, image=512),
        UNetConfig(name="stable-diffusion-2-1-base-unet", **_SD_2, image=512),
        UNetConfig(name="stable-diffusion-2-1-unet", **_SD_2, image=768),
        UNetConfig(name="stable-diffusion-2-inpainting-unet", **_SD_2, image=512, reads=2 * LATENTS + 1),
        UNetConfig(name="stable-diffusion-inpainting-unet", **_SD_1, image=512, reads=2 * LATENTS + 1),
        UNetConfig(name="sd-turbo-unet", **_SD_2, image=512),
        UNetConfig(name="sdxl-turbo-unet", **_SDXL, context=2048, pooled=1280, image=512),
        UNetConfig(name="stable-diffusion-xl-base-1.0-unet", **_SDXL, context=2048, pooled=1280, image=1024),
        UNetConfig(
            name="stable-diffusion-xl-refiner-1.0-unet",
            widths=(384, 768, 1536, 1536),
            mixes=(0, 4, 4, 0),
            middle=4,
            heads=(6, 12, 24, 24),
            context=1280,
            pooled=1280,
            sizes=5,
            image=1024,
        ),
    )
}


def _parameter_tree(cfg: UNetConfig, make: Make) -> dict[str, Any]:
    conv = functools.partial(convolution_parameters, make)

    def block(width_in: int, width: int, mixes: int) -> dict[str, Any]:
        made = {"residual": residual_parameters(make, width_in, width, cfg.time)}
        return {**made, "mix": _mix_parameters(cfg, make, width, mixes)} if mixes else made

    now, last = cfg.widths[0], len(cfg.widths) - 1
    kept, down, up = [now], [], []
    for level, (width, mixes) in enumerate(zip(cfg.widths, cfg.mixes, strict=True)):
        down.append({"blocks": [block(now, width, mixes), block(width, width, mixes)]})
        kept += [width, width]
        if level < last:
            down[-1]["shrink"] = conv(width, width, 3)
            kept.append(width)
        now = width
    middle = [block(now, now, cfg.middle), block(now, now, 0)]
    for level in reversed(range(len(cfg.widths))):
        width, blocks = cfg.widths[level], []
        for _ in range(3):
            blocks.append(block(now + kept.pop(), width, cfg.mixes[level]))
            now = width
        up.append({"blocks": blocks, "grow": conv(width, width, 3)} if level else {"blocks": blocks})
    tree = {
        "into": conv(cfg.reads, cfg.widths[0], 3),
        "time": two_products(make, cfg.widths[0], cfg.time),
        "down": down,
        "middle": middle,
        "up": up,
        "norm": norm_parameters(make, now),
        "out": conv(now, LATENTS, 3),
    }
    if cfg.pooled:
        tree["pooled"] = two_products(make, cfg.pooled + cfg.sizes * _SIZE_WAVES, cfg.time)
    return tree


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def two_products(make: Make, width_in: int, width: int) -> list[dict[str, Any]]:
    """What ``embedded`` reads."""
    return [linear_parameters(make, width_in, width), linear_parameters(make, width, width)]


def residual_parameters(make: Make, width_in: int, width: int, time: int = 0) -> dict[str, Any]:
    """What ``residual`` reads; ``time`` numbers that tell how much noise there is, 0 for none."""
    conv = functools.partial(convolution_parameters, make)
    made = {
        "first_norm": norm_parameters(make, width_in),
        "first": conv(width_in, width, 3),
        "second_norm": norm_parameters(make, width),
        "second": conv(width, width, 3),
    }
    if time:
        made["time"] = linear_parameters(make, time, width)
    return made if width_in == width else {**made, "shortcut": conv(width_in, width, 1)}


def _mix_parameters(cfg: UNetConfig, make: Make, width: int, layers: int) -> dict[str, Any]:
    def heads(source: int) -> dict[str, Any]:
        widths = {"q": width, "k": source, "v": source}
        made = {name: {"w": make((width_in, width), 0.0)} for name, width_in in widths.items()}
        return {**made, "o": linear_parameters(make, width, width)}

    def layer() -> dict[str, Any]:
        return {
            "attention_norm": norm_parameters(make, width),
            "itself": heads(width),
            "sentence_norm": norm_parameters(make, width),
            "sentence": heads(cfg.context),
            "ffn_norm": norm_parameters(make, width),
            "up": linear_parameters(make, width, 8 * width),
            "down": linear_parameters(make, 4 * width, width),
        }

    return {
        "norm": norm_parameters(make, width),
        "into": linear_parameters(make, width, width),
        "layers": [layer() for _ in range(layers)],
        "out": linear_parameters(make, width, width),
    }


def denoise(
    cfg: UNetConfig,
    params: dict[str, Any],
    latents: jax.Array,
    step: jax.Array,
    sentence: jax.Array,
    *pooled_and_sizes: jax.Array,
) -> jax.Array:
    """The noise [batch, height, width, LATENTS] found in ``latents`` [batch, height, width, reads].

    Args:
      step: i32 [batch], of as many as it was trained with.
      sentence: [batch, tokens, context].
      pooled_and_sizes: of SDXL, [batch, pooled] and [batch, sizes].
    """
    time = embedded(params["time"], waves(step, cfg.widths[0]).astype(latents.dtype))
    if cfg.pooled:
        pooled, sizes = pooled_and_sizes
        written = waves(sizes.reshape(-1), _SIZE_WAVES).reshape(sizes.shape[0], -1).astype(latents.dtype)
        time = time + embedded(params["pooled"], jnp.concatenate([pooled, written], axis=-1))

    def through(x: jax.Array, block: dict[str, Any], heads: int) -> jax.Array:
        x = residual(block["residual"], x, _EPSILON, time)
        return _mixed(block["mix"], x, sentence, heads) if "mix" in block else x

    x = convolution(params["into"], latents, 1)
    kept = [x]
    for stage, heads in zip(params["down"], cfg.heads, strict=True):
        for block in stage["blocks"]:
            x = through(x, block, heads)
            kept.append(x)
        if "shrink" in stage:
            x = convolution(stage["shrink"], x, 2)
            kept.append(x)
    for block in params["middle"]:
        x = through(x, block, cfg.heads[-1])
    for stage, heads in zip(params["up"], reversed(cfg.heads), strict=True):
        for block in stage["blocks"]:
            x = through(jnp.concatenate([x, kept.pop()], axis=-1), block, heads)
        if "grow" in stage:
            x = grown(stage["grow"], x)
    return convolution(params["out"], jax.nn.silu(group_norm(params["norm"], x, _EPSILON)), 1)


def residual(
    weights: dict[str, Any], x: jax.Array, epsilon: float, time: jax.Array | None = None
) -> jax.Array:
    """``x`` [batch, height, width, features] and what two convolutions, each behind a norm, make of it."""
    y = convolution(weights["first"], jax.nn.silu(group_norm(weights["first_norm"], x, epsilon)), 1)
    if time is not None:
        y = y + linear(weights["time"], jax.nn.silu(time))[:, None, None]
    y = convolution(weights["second"], jax.nn.silu(group_norm(weights["second_norm"], y, epsilon)), 1)
    return y + (convolution(weights["shortcut"], x, 1) if "shortcut" in weights else x)


def grown(weights: dict[str, Any], x: jax.Array) -> jax.Array:
    """A convolution of ``x`` with every pixel four times."""
    batch, height, width, features = x.shape
    four = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, features))
    return convolution(weights, four.reshape(batch, 2 * height, 2 * width, features), 1)


def _mixed(weights: dict[str, Any], x: jax.Array, sentence: jax.Array, heads: int) -> jax.Array:
    """``x`` and what transformer layers over its pixels, which read the sentence too, make of it."""
    normal = group_norm(weights["norm"], x, _MIXING_EPSILON)
    y = linear(weights["into"], normal.reshape(x.shape[0], -1, x.shape[-1]))
    for layer in weights["layers"]:
        normal = layer_norm(layer["attention_norm"], y, _EPSILON)
        y = y + attended(layer["itself"], normal, normal, heads)
        normal = layer_norm(layer["sentence_norm"], y, _EPSILON)
        y = y + attended(layer["sentence"], normal, sentence, heads)
        up, gate = jnp.split(linear(layer["up"], layer_norm(layer["ffn_norm"], y, _EPSILON)), 2, axis=-1)
        y = y + linear(layer["down"], up * ACTIVATIONS["gelu"](gate))
    return x + linear(weights["out"], y).reshape(x.shape)


def attended(
    weights: dict[str, Any], x: jax.Array, source: jax.Array, heads: int, visible: jax.Array | None = None
) -> jax.Array:
    """What ``x`` [batch, length, width] takes from all of ``source``, or what of it is ``visible``."""
    q = split_heads(linear(weights["q"], x), heads)
    k, v = (split_heads(linear(weights[name], source), heads) for name in ("k", "v"))
    scaled = q * (1 / math.sqrt(q.shape[-1]))
    mixed = attention(scaled, k, v, jnp.ones((1, 1), bool) if visible is None else visible)
    return linear(weights["o"], mixed.transpose(0, 2, 1, 3).reshape(x.shape))


def embedded(products: list[dict[str, Any]], x: jax.Array) -> jax.Array:
    """Through two products, with a SiLU between them."""
    return linear(products[1], jax.nn.silu(linear(products[0], x)))


def waves(numbers: jax.Array, width: int) -> jax.Array:
    """f32 [count, width]: cosines, then sines, ever slower ones down to 10,000 times as slow."""
    half = width // 2
    slower = jnp.exp(jnp.arange(half, dtype=jnp.float32) * (-math.log(1e4) / half))
    turns = numbers.astype(jnp.float32)[:, None] * slower
    return jnp.concatenate([jnp.cos(turns), jnp.sin(turns)], axis=-1)
