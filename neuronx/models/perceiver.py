"""Perceiver IO for images in plain JAX: published sizes, latents that read all pixels, logits of images."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    attention,
    convolution,
    convolution_parameters,
    layer_norm,
    linear,
    linear_parameters,
    norm_parameters,
    random,
    split_heads,
    through_layers,
)

__all__ = [
    "SIZES",
    "PerceiverConfig",
    "classify",
    "config",
    "mixed",
    "mixer_parameters",
    "parameter_shapes",
    "parameters",
]

NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig:
    """One published size: ``latents`` vectors of ``hidden`` numbers that read the image once, and then pass
    ``blocks`` times through the same ``layers``.

    An image becomes ``features`` numbers a pixel: its colours ("pixels"), a product of them ("product"), or
    those of a window of 7 by 7 on a quarter as many pixels in each direction ("window"). Behind those stand
    numbers for the place: ``bands`` waves in each direction, or a learned table of ``places`` numbers.
    """

    name: str
    reads: str
    features: int
    bands: int = 0
    places: int = 0
    latents: int = 512
    hidden: int = 1024
    blocks: int = 8
    layers: int = 6
    heads: int = 8
    image: int = 224
    classes: int = 1000

    @property
    def across(self) -> int:
        """Pixels in each direction that are read."""
        return ((self.image // 2) - 3) // 2 + 1 if self.reads == "window" else self.image

    @property
    def place_width(self) -> int:
        return self.places or 2 + 4 * self.bands


# Source: config.json of deepmind/<name> on the Hugging Face hub, and transformers' classes of their names.
SIZES = {
    size.name: size
    for size in (
        PerceiverConfig(name="vision-perceiver-conv", reads="window", features=64, bands=64),
        PerceiverConfig(name="vision-perceiver-learned", reads="product", features=256, places=256),
        PerceiverConfig(name="vision-perceiver-fourier", reads="pixels", features=3, bands=64),
    )
}


def parameters(cfg: PerceiverConfig, dtype: Any, seed: int) -> dict[str, Any]:
    """Random parameters; norm scales around 1, and waves where no table of places is learned."""
    tree = _parameter_tree(cfg, random(dtype, seed))
    return tree if cfg.places else tree | {"places": jnp.asarray(_waves(cfg), dtype)}


def mixer_parameters(
    make: Make, hidden: int, *, reads: int | None = None, keys: int | None = None, values: int | None = None
) -> dict[str, Any]:
    """Of ``mixed``: vectors of ``hidden`` numbers that read others of ``reads``, or each other (None).

    Queries and keys have ``keys`` numbers in all heads, values ``values``, where it is not what is read.
    """
    width = reads or hidden
    keys, values = keys or width, values or width
    norms = {"input_norm": norm_parameters(make, reads)} if reads else {}
    return norms | {
        "attention_norm": norm_parameters(make, hidden),
        "q": linear_parameters(make, hidden, keys),
        "k": linear_parameters(make, width, keys),
        "v": linear_parameters(make, width, values),
        "o": linear_parameters(make, values, hidden),
        "ffn_norm": norm_parameters(make, hidden),
        "up": linear_parameters(make, hidden, hidden),
        "down": linear_parameters(make, hidden, hidden),
    }


def _parameter_tree(cfg: PerceiverConfig, make: Make) -> dict[str, Any]:
    wide = cfg.hidden
    tree = {
        "places": make((cfg.across**2, cfg.place_width), 0.0),
        "latents": make((cfg.latents, wide), 0.0),
        "read": mixer_parameters(make, wide, reads=cfg.features + cfg.place_width),
        "layers": [mixer_parameters(make, wide) for _ in range(cfg.layers)],
        "query": make((1, wide), 0.0),
        "answer": mixer_parameters(make, wide, reads=wide),
        "head": linear_parameters(make, wide, cfg.classes),
    }
    if cfg.places:
        tree["place"] = linear_parameters(make, cfg.places, cfg.places)
    if cfg.reads == "window":
        tree["window"] = convolution_parameters(make, 3, cfg.features, 7)
    if cfg.reads == "product":
        tree["product"] = linear_parameters(make, 3, cfg.features)
    return tree


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes = _FAMILY.config, _FAMILY.parameter_shapes


def classify(cfg: PerceiverConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits [batch, classes] of images [batch, height, width, 3]."""
    batch, dtype = images.shape[0], images.dtype
    seen = _pixels(cfg, params, images)
    places = params["places"].astype(dtype)
    if cfg.places:
        places = linear(params["place"], places)
    seen = jnp.concatenate([seen, jnp.broadcast_to(places, (batch, *places.shape))], axis=-1)
    x = jnp.broadcast_to(params["latents"].astype(dtype), (batch, cfg.latents, cfg.hidden))
    x = mixed(params["read"], x, seen, 1)

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        return mixed(weights, x, None, cfg.heads), None

    x, _ = through_layers(layer, x, params["layers"] * cfg.blocks)
    query = jnp.broadcast_to(params["query"].astype(dtype), (batch, 1, cfg.hidden))
    return linear(params["head"], mixed(params["answer"], query, x, 1)[:, 0])


def _pixels(cfg: PerceiverConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """[batch, pixels, features]."""
    x = images
    if cfg.reads == "window":
        x = jax.nn.relu(convolution(params["window"], x, 2))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    x = x.reshape(x.shape[0], cfg.across**2, -1)
    return linear(params["product"], x) if cfg.reads == "product" else x


def mixed(
    weights: dict[str, Any],
    x: jax.Array,
    inputs: jax.Array | None,
    heads: int,
    visible: jax.Array | None = None,
    *,
    is_kept: bool = True,
) -> jax.Array:
    """What ``x`` [batch, length, hidden] takes from ``inputs`` or itself, and the products after.

    Without ``visible``, bool [batch, 1, 1, positions of inputs], it sees them all; ``is_kept``: added to what
    it was.
    """
    normal = layer_norm(weights["attention_norm"], x, NORM_EPSILON)
    read = normal if inputs is None else layer_norm(weights["input_norm"], inputs, NORM_EPSILON)
    q = split_heads(linear(weights["q"], normal), heads)
    k, v = (split_heads(linear(weights[name], read), heads) for name in ("k", "v"))
    seen = jnp.ones((1, 1), bool) if visible is None else visible
    taken = attention(q * (1 / math.sqrt(q.shape[-1])), k, v, seen)
    taken = linear(weights["o"], taken.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1))
    x = x + taken if is_kept else taken
    up = ACTIVATIONS["gelu"](linear(weights["up"], layer_norm(weights["ffn_norm"], x, NORM_EPSILON)))
    return x + linear(weights["down"], up)


def _waves(cfg: PerceiverConfig) -> np.ndarray:
    """[pixels, place_width]: row and column from -1 to 1, sines of both, and cosines.

    Each has ``bands`` waves, from half a turn over the image to one for every two of its pixels (of the
    ones read by a window a quarter of the image's pixels in each direction).
    """
    line = np.linspace(-1.0, 1.0, cfg.across)
    places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    size = cfg.image // 4 if cfg.reads == "window" else cfg.image
    turns = np.pi * places[:, :, None] * np.linspace(1.0, size / 2, cfg.bands)
    turns = turns.reshape(len(places), -1)
    return np.concatenate([places, np.sin(turns), np.cos(turns)], axis=-1)
