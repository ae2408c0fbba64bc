"""The first U-Net in plain JAX for inference: published sizes, a class for each pixel of images."""

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.family import Family
from neuronx.models.layers import Make, convolution, convolution_parameters, linear, linear_parameters

__all__ = ["SIZES", "SegmenterConfig", "config", "parameter_shapes", "parameters", "segment"]


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    """Two convolutions of 3 x 3 at each of ``widths``, half as many pixels in each direction at the next, and
    back. Batch norms are folded; ``image`` divides by two as often as there are widths behind the first."""

    name: str
    image: int
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    classes: int = 2


# Source: Ronneberger et al., U-Net, figure 1, padded so that images keep their size, as milesial/Pytorch-UNet
# (unet_carvana) writes it.
SIZES = {
    size.name: size
    for size in (SegmenterConfig(name="unet-224", image=224), SegmenterConfig(name="unet-512", image=512))
}


def _parameter_tree(cfg: SegmenterConfig, make: Make) -> dict[str, Any]:
    def two(features_in: int, features: int) -> list[dict[str, Any]]:
        return [convolution_parameters(make, wide, features, 3) for wide in (features_in, features)]

    def up(wide: int, features: int) -> dict[str, Any]:
        grow = {"w": make((wide, 4 * features), 0.0), "b": make((features,), 0.0)}
        return {"grow": grow, "mix": two(2 * features, features)}

    inputs, back = (3, *cfg.widths[:-1]), cfg.widths[::-1]
    return {
        "down": [two(*pair) for pair in zip(inputs, cfg.widths, strict=True)],
        "up": [up(*pair) for pair in itertools.pairwise(back)],
        "head": linear_parameters(make, cfg.widths[0], cfg.classes),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def segment(cfg: SegmenterConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits [batch, height, width, classes] of images [batch, height, width, 3]."""
    x, kept, window = images, [], (1, 2, 2, 1)
    for level, weights in enumerate(params["down"]):
        if level:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
        x = _twice(weights, x)
        kept.append(x)
    for weights, before in zip(params["up"], kept[-2::-1], strict=True):
        x = jnp.concatenate([before, _grown(weights["grow"], x)], axis=-1)
        x = _twice(weights["mix"], x)
    return linear(params["head"], x)


def _twice(weights: list[dict[str, Any]], x: jax.Array) -> jax.Array:
    for one in weights:
        x = jax.nn.relu(convolution(one, x, 1))
    return x


def _grown(weights: dict[str, Any], x: jax.Array) -> jax.Array:
    """Each pixel as 2 x 2 of them: a transposed convolution whose windows do not overlap is a product."""
    batch, height, width, _ = x.shape
    cut = linear({"w": weights["w"]}, x).reshape(batch, height, width, 2, 2, -1)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1) + weights["b"]
