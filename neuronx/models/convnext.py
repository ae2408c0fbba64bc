"""ConvNeXt in plain JAX: published sizes, a window for each feature and two products a block."""

from dataclasses import dataclass
from typing import Any

import jax

from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    convolution,
    convolution_parameters,
    layer_norm,
    linear,
    linear_parameters,
    norm_parameters,
    patches,
)

__all__ = ["SIZES", "ConvNeXtConfig", "classify", "config", "parameter_shapes", "parameters"]

_WINDOW = 7
_EPSILON, _LAST_EPSILON = 1e-6, 1e-12


@dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """``depths`` blocks in each stage, ``widths`` wide; the first reads squares of four by four pixels, each
    other one squares of two by two of the one before."""

    name: str
    depths: tuple[int, ...] = (3, 3, 27, 3)
    widths: tuple[int, ...] = (128, 256, 512, 1024)
    image: int = 224
    classes: int = 1000


_TINY, _LARGE = (96, 192, 384, 768), (192, 384, 768, 1536)

# Source: config.json of facebook/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        ConvNeXtConfig(name="convnext-tiny-224", depths=(3, 3, 9, 3), widths=_TINY),
        ConvNeXtConfig(name="convnext-small-224", widths=_TINY),
        ConvNeXtConfig(name="convnext-base-224"),
        ConvNeXtConfig(name="convnext-base-384", image=384),
        ConvNeXtConfig(name="convnext-large-224", widths=_LARGE),
        ConvNeXtConfig(name="convnext-large-384", widths=_LARGE, image=384),
    )
}


def _parameter_tree(cfg: ConvNeXtConfig, make: Make) -> dict[str, Any]:
    def block(width: int) -> dict[str, Any]:
        return {
            "mix": convolution_parameters(make, width, width, _WINDOW, width),
            "norm": norm_parameters(make, width),
            "up": linear_parameters(make, width, 4 * width),
            "down": linear_parameters(make, 4 * width, width),
            "scale": make((width,), 1.0),
        }

    first = cfg.widths[0]
    stages = [{"patches": linear_parameters(make, 3 * 4**2, first), "norm": norm_parameters(make, first)}]
    for before, width in zip(cfg.widths[:-1], cfg.widths[1:], strict=True):
        product = linear_parameters(make, before * 2**2, width)
        stages.append({"norm": norm_parameters(make, before), "patches": product})
    for stage, depth, width in zip(stages, cfg.depths, cfg.widths, strict=True):
        stage["blocks"] = [block(width) for _ in range(depth)]
    return {
        "stages": stages,
        "final_norm": norm_parameters(make, cfg.widths[-1]),
        "head": linear_parameters(make, cfg.widths[-1], cfg.classes),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def classify(cfg: ConvNeXtConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits [batch, classes] of images [batch, height, width, 3]."""
    first, *others = params["stages"]
    x = layer_norm(first["norm"], _smaller(first["patches"], images, 4), _EPSILON)
    x = _through(first["blocks"], x)
    for stage in others:
        x = _smaller(stage["patches"], layer_norm(stage["norm"], x, _EPSILON), 2)
        x = _through(stage["blocks"], x)
    return linear(params["head"], layer_norm(params["final_norm"], x.mean(axis=(1, 2)), _LAST_EPSILON))


def _smaller(weights: dict[str, Any], x: jax.Array, size: int) -> jax.Array:
    """``x`` [batch, side, side, features] with a product of each square of ``size`` by ``size``."""
    side = x.shape[1] // size
    return linear(weights, patches(x, size)).reshape(x.shape[0], side, side, -1)


def _through(blocks: list[dict[str, Any]], x: jax.Array) -> jax.Array:
    for block in blocks:
        y = layer_norm(block["norm"], convolution(block["mix"], x, 1), _EPSILON)
        y = linear(block["down"], ACTIVATIONS["gelu"](linear(block["up"], y)))
        x = x + block["scale"] * y
    return x
