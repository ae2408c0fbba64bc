"""VGG in plain JAX for inference: published sizes, logits of images."""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.family import Family
from neuronx.models.layers import (
    Make,
    convolution,
    convolution_parameters,
    linear,
    linear_parameters,
)

__all__ = ["SIZES", "VGGConfig", "classify", "config", "parameter_shapes", "parameters"]

# A maximum over 2 x 2 pixels ends each stage.
_POOL = 2


@dataclass(frozen=True, kw_only=True)
class VGGConfig:
    """``depths`` convolutions of 3 x 3 in each stage, ``widths`` wide; two linear layers, ``hidden`` wide,
    over all pixels left, and one to the classes. Batch norms, if there are any, are folded."""

    name: str
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    classes: int = 1000
    image: int = 224


# Source: Simonyan and Zisserman, Very Deep Convolutional Networks, table 1, columns A, B, D and E.
SIZES = {
    size.name: size
    for size in (
        VGGConfig(name="vgg11", depths=(1, 1, 2, 2, 2)),
        VGGConfig(name="vgg13", depths=(2, 2, 2, 2, 2)),
        VGGConfig(name="vgg16", depths=(2, 2, 3, 3, 3)),
        VGGConfig(name="vgg19", depths=(2, 2, 4, 4, 4)),
    )
}


def _parameter_tree(cfg: VGGConfig, make: Make) -> dict[str, Any]:
    features, stages = 3, []
    for depth, width in zip(cfg.depths, cfg.widths, strict=True):
        inputs = [features] + [width] * (depth - 1)
        stages.append([convolution_parameters(make, wide, width, 3) for wide in inputs])
        features = width
    side = cfg.image // _POOL ** len(cfg.depths)
    widths = (features * side**2, cfg.hidden, cfg.hidden, cfg.classes)
    head = [linear_parameters(make, *pair) for pair in itertools.pairwise(widths)]
    return {"stages": stages, "head": head}


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def classify(cfg: VGGConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits [batch, classes] of images [batch, height, width, 3]."""
    x, window = images, (1, _POOL, _POOL, 1)
    for stage in params["stages"]:
        for weights in stage:
            x = jax.nn.relu(convolution(weights, x, 1))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
    x = x.reshape(x.shape[0], -1)
    *hidden, last = params["head"]
    for weights in hidden:
        x = jax.nn.relu(linear(weights, x))
    return linear(last, x)
