"""MobileNetV2 and EfficientNet in plain JAX: blocks wide inside, each feature with a window of its own."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax

from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    convolution,
    convolution_parameters,
    linear,
    linear_parameters,
)

__all__ = ["SIZES", "MobileNetConfig", "Stage", "classify", "config", "parameter_shapes", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``depth`` blocks, ``width`` wide outside and ``expansion`` times what they read inside, the first of
    them with ``stride``; windows are ``window`` by ``window``."""

    expansion: int
    width: int
    depth: int
    stride: int
    window: int = 3


@dataclass(frozen=True, kw_only=True)
class MobileNetConfig:
    """One published size. ``is_squeezed``: EfficientNet's blocks weigh features by what all pixels have of
    them. Batch norms are folded into convolutions, as compilers do."""

    name: str
    stages: tuple[Stage, ...]
    stem: int = 32
    last: int = 1280
    is_squeezed: bool = False
    activation: str = "relu6"
    image: int = 224
    classes: int = 1000


# Expansion, width, depth, stride and window of each stage. Sources: Sandler et al., MobileNetV2, table 2; Tan
# and Le, EfficientNet, table 1.
_MOBILE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_EFFICIENT = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


def _mobilenet(name: str) -> MobileNetConfig:
    stages = (dict(zip(("expansion", "width", "depth", "stride"), row, strict=True)) for row in _MOBILE)
    return MobileNetConfig(name=name, stages=tuple(Stage(**stage) for stage in stages))


def _efficientnet(name: str, width: float, depth: float, image: int) -> MobileNetConfig:
    def wide(features: int) -> int:
        """Times ``width``, to the nearest eight, and not below nine tenths of it."""
        nearest = max(8, int(features * width + 4) // 8 * 8)
        return nearest + 8 if nearest < 0.9 * features * width else nearest

    stages = tuple(
        Stage(
            expansion=expansion, width=wide(own), depth=math.ceil(count * depth), stride=stride, window=window
        )
        for expansion, own, count, stride, window in _EFFICIENT
    )
    sizes = {"stem": wide(32), "last": wide(1280), "image": image}
    return MobileNetConfig(name=name, stages=stages, **sizes, is_squeezed=True, activation="silu")


SIZES = {
    size.name: size
    for size in (
        _mobilenet("mobilenet-v2-1.0-224"),
        _efficientnet("efficientnet-b0", 1.0, 1.0, 224),
        _efficientnet("efficientnet-b1", 1.0, 1.1, 240),
        _efficientnet("efficientnet-b2", 1.1, 1.2, 260),
        _efficientnet("efficientnet-b3", 1.2, 1.4, 300),
        _efficientnet("efficientnet-b4", 1.4, 1.8, 380),
        _efficientnet("efficientnet-b5", 1.6, 2.2, 456),
        _efficientnet("efficientnet-b6", 1.8, 2.6, 528),
        _efficientnet("efficientnet-b7", 2.0, 3.1, 600),
    )
}


def _parameter_tree(cfg: MobileNetConfig, make: Make) -> dict[str, Any]:
    conv = functools.partial(convolution_parameters, make)

    def block(features: int, stage: Stage) -> dict[str, Any]:
        inside = stage.expansion * features
        made = {"mix": conv(inside, inside, stage.window, inside), "narrow": conv(inside, stage.width, 1)}
        if stage.expansion > 1:
            made["widen"] = conv(features, inside, 1)
        if cfg.is_squeezed:
            made["squeeze"] = linear_parameters(make, inside, features // 4)
            made["weigh"] = linear_parameters(make, features // 4, inside)
        return made

    features, stages = cfg.stem, []
    for stage in cfg.stages:
        widths = [features] + [stage.width] * (stage.depth - 1)
        stages.append([block(wide, stage) for wide in widths])
        features = stage.width
    return {
        "stem": conv(3, cfg.stem, 3),
        "stages": stages,
        "last": conv(features, cfg.last, 1),
        "head": linear_parameters(make, cfg.last, cfg.classes),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def classify(cfg: MobileNetConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits [batch, classes] of images [batch, height, width, 3]."""
    activate = ACTIVATIONS[cfg.activation]
    x = activate(convolution(params["stem"], images, 2))
    for stage, blocks in zip(cfg.stages, params["stages"], strict=True):
        for index, block in enumerate(blocks):
            stride = 1 if index else stage.stride
            y = activate(convolution(block["widen"], x, 1)) if "widen" in block else x
            y = activate(convolution(block["mix"], y, stride))
            if "squeeze" in block:
                seen = activate(linear(block["squeeze"], y.mean(axis=(1, 2))))
                y = y * jax.nn.sigmoid(linear(block["weigh"], seen))[:, None, None]
            y = convolution(block["narrow"], y, 1)
            x = x + y if x.shape == y.shape else y
    x = activate(convolution(params["last"], x, 1))
    return linear(params["head"], x.mean(axis=(1, 2)))
