"""Swin in plain JAX: published sizes, attention within windows that every other block shifts."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    encoder_attention,
    layer_norm,
    layer_parameters,
    linear,
    linear_parameters,
    norm_parameters,
    patches,
)

__all__ = ["SIZES", "SwinConfig", "classify", "config", "parameter_shapes", "parameters"]

_PATCH = 4
_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """``depths`` blocks of ``heads`` in each stage, the first ``width`` wide, each other one twice as wide as
    the one before and half as many positions in each direction; windows are ``window`` by ``window``."""

    name: str
    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    image: int = 224
    classes: int = 1000


_BASE = {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
_LARGE = {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)}

# Source: config.json of microsoft/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        SwinConfig(name="swin-tiny-patch4-window7-224", width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
        SwinConfig(
            name="swin-small-patch4-window7-224", width=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)
        ),
        SwinConfig(name="swin-base-patch4-window7-224", **_BASE),
        SwinConfig(name="swin-base-patch4-window12-384", **_BASE, window=12, image=384),
        SwinConfig(name="swin-large-patch4-window7-224", **_LARGE),
        SwinConfig(name="swin-large-patch4-window12-384", **_LARGE, window=12, image=384),
    )
}


def _parameter_tree(cfg: SwinConfig, make: Make) -> dict[str, Any]:
    def block(width: int, heads: int) -> dict[str, Any]:
        distances = make(((2 * cfg.window - 1) ** 2, heads), 0.0)
        return layer_parameters(make, width, 4 * width) | {"distances": distances}

    width, stages = cfg.width, []
    for depth, heads in zip(cfg.depths, cfg.heads, strict=True):
        stage = {"blocks": [block(width, heads) for _ in range(depth)]}
        if stages:
            stage["norm"] = norm_parameters(make, 2 * width)
            stage["merge"] = {"w": make((2 * width, width), 0.0)}
        stages.append(stage)
        width *= 2
    return {
        "patches": linear_parameters(make, 3 * _PATCH**2, cfg.width),
        "norm": norm_parameters(make, cfg.width),
        "stages": stages,
        "final_norm": norm_parameters(make, width // 2),
        "head": linear_parameters(make, width // 2, cfg.classes),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def classify(cfg: SwinConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits [batch, classes] of images [batch, height, width, 3]."""
    side = cfg.image // _PATCH
    x = layer_norm(params["norm"], linear(params["patches"], patches(images, _PATCH)), _EPSILON)
    for stage, heads in zip(params["stages"], cfg.heads, strict=True):
        if "merge" in stage:
            four = patches(x.reshape(x.shape[0], side, side, -1), 2)
            x, side = linear(stage["merge"], layer_norm(stage["norm"], four, _EPSILON)), side // 2
        for index, block in enumerate(stage["blocks"]):
            # A single window is as wide as all there is.
            shift = cfg.window // 2 if index % 2 and side > cfg.window else 0
            x = _block(block, x, heads, side, cfg.window, shift)
    x = layer_norm(params["final_norm"], x, _EPSILON)
    return linear(params["head"], x.mean(axis=1))


def _block(
    weights: dict[str, Any], x: jax.Array, heads: int, side: int, window: int, shift: int
) -> jax.Array:
    """``x`` [batch, side * side, width] with what its positions take from their windows, and its products."""
    batch, _, width = x.shape
    square = layer_norm(weights["attention_norm"], x, _EPSILON).reshape(batch, side, side, width)
    cut = _windows(jnp.roll(square, (-shift, -shift), (1, 2)) if shift else square, window)
    bias = jnp.take(weights["distances"], _distances(window), axis=0, mode="clip").transpose(2, 0, 1)
    visible = jnp.tile(_together(side, window, shift), (batch, 1, 1, 1))
    mixed = encoder_attention(weights, cut, heads, visible, bias.astype(jnp.float32))
    count = side // window
    square = mixed.reshape(batch, count, count, window, window, width).transpose(0, 1, 3, 2, 4, 5)
    square = square.reshape(batch, side, side, width)
    square = jnp.roll(square, (shift, shift), (1, 2)) if shift else square
    x = x + square.reshape(x.shape)
    up = ACTIVATIONS["gelu"](linear(weights["up"], layer_norm(weights["ffn_norm"], x, _EPSILON)))
    return x + linear(weights["down"], up)


def _windows(x: jax.Array, window: int) -> jax.Array:
    """[batch, side, side, width] to [batch * windows, window * window, width]."""
    cut = patches(x, window)
    return cut.reshape(-1, window**2, x.shape[-1])


def _distances(window: int) -> np.ndarray:
    """Rows of the table of biases, [window * window, window * window]: one for each way two can lie apart."""
    places = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    apart = places[:, None] - places[None] + window - 1
    return apart[..., 0] * (2 * window - 1) + apart[..., 1]


def _together(side: int, window: int, shift: int) -> np.ndarray:
    """Which positions of a window see each other, [windows, 1, queries, keys]: neighbours, not those that the
    shift has brought in from the other end of the image."""
    ends = np.arange(side) + shift >= side
    parts = (2 * ends[:, None] + ends[None]).reshape(side // window, window, side // window, window)
    parts = parts.transpose(0, 2, 1, 3).reshape(-1, 1, window**2)
    return parts[..., :, None] == parts[..., None, :]
