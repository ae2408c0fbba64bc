"""ResNets, plain, wide and in groups, in plain JAX: batch norms folded into convolutions, as compilers do."""

import functools
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

__all__ = ["SIZES", "ResNetConfig", "classify", "config", "parameter_shapes", "parameters"]


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """``depths`` blocks per stage, ``widths`` wide inside, ``expansion`` times that outside.

    They are bottlenecks whose 3 x 3 convolution has ``groups``, or (``is_plain``) two 3 x 3 convolutions.
    Images are ``image`` pixels high and wide.
    """

    name: str
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64
    classes: int = 1000
    expansion: int = 4
    groups: int = 1
    is_plain: bool = False
    image: int = 224


_PLAIN = {"expansion": 1, "is_plain": True}
_TWICE, _FOUR_TIMES = (128, 256, 512, 1024), (256, 512, 1024, 2048)

# Sources: He et al., Deep Residual Learning for Image Recognition, table 1; Xie et al., Aggregated Residual
# Transformations, table 1; Zagoruyko et al., Wide Residual Networks. Strides as in torchvision: on the 3 x 3
# convolution.
SIZES = {
    size.name: size
    for size in (
        ResNetConfig(name="resnet18", depths=(2, 2, 2, 2), **_PLAIN),
        ResNetConfig(name="resnet34", depths=(3, 4, 6, 3), **_PLAIN),
        ResNetConfig(name="resnet50", depths=(3, 4, 6, 3)),
        ResNetConfig(name="resnet101", depths=(3, 4, 23, 3)),
        ResNetConfig(name="resnet152", depths=(3, 8, 36, 3)),
        ResNetConfig(name="resnext50-32x4d", depths=(3, 4, 6, 3), widths=_TWICE, expansion=2, groups=32),
        ResNetConfig(
            name="resnext101-32x8d", depths=(3, 4, 23, 3), widths=_FOUR_TIMES, expansion=1, groups=32
        ),
        ResNetConfig(
            name="resnext101-64x4d", depths=(3, 4, 23, 3), widths=_FOUR_TIMES, expansion=1, groups=64
        ),
        ResNetConfig(name="wide-resnet50-2", depths=(3, 4, 6, 3), widths=_TWICE, expansion=2),
        ResNetConfig(name="wide-resnet101-2", depths=(3, 4, 23, 3), widths=_TWICE, expansion=2),
    )
}


def _parameter_tree(cfg: ResNetConfig, make: Make) -> dict[str, Any]:
    conv = functools.partial(convolution_parameters, make)
    features, stages = cfg.stem, []
    for depth, width in zip(cfg.depths, cfg.widths, strict=True):
        blocks = []
        for _ in range(depth):
            outside = cfg.expansion * width
            if cfg.is_plain:
                block = {"mix": conv(features, width, 3), "expand": conv(width, outside, 3)}
            else:
                block = {
                    "reduce": conv(features, width, 1),
                    "mix": conv(width, width, 3, cfg.groups),
                    "expand": conv(width, outside, 1),
                }
            blocks.append(block if features == outside else {**block, "shortcut": conv(features, outside, 1)})
            features = outside
        stages.append(blocks)
    head = linear_parameters(make, features, cfg.classes)
    return {"stem": conv(3, cfg.stem, 7), "stages": stages, "head": head}


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def classify(cfg: ResNetConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits [batch, classes] of images [batch, height, width, 3]."""
    x = jax.nn.relu(convolution(params["stem"], images, 2))
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)
    for number, stage in enumerate(params["stages"]):
        for index, block in enumerate(stage):
            stride = 2 if number and not index else 1
            y = jax.nn.relu(convolution(block["reduce"], x, 1)) if "reduce" in block else x
            y = jax.nn.relu(convolution(block["mix"], y, stride))
            shortcut = convolution(block["shortcut"], x, stride) if "shortcut" in block else x
            x = jax.nn.relu(convolution(block["expand"], y, 1) + shortcut)
    return linear(params["head"], x.mean(axis=(1, 2)))
