"""CLIP in plain JAX: published sizes, how well each image of a batch fits each sentence of another."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.family import Family
from neuronx.models.layers import (
    Make,
    layer_norm,
    layer_parameters,
    linear,
    norm_parameters,
    norms_first,
    patches,
)

__all__ = ["SIZES", "CLIPConfig", "Tower", "config", "match", "parameter_shapes", "parameters"]

NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class Tower:
    """The encoder of one of the two."""

    hidden: int
    heads: int
    layers: int
    ffn: int


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """One published size: a tower for images in square patches and one for sentences of up to ``positions``
    tokens, both projected to ``width``."""

    name: str
    vision: Tower
    text: Tower
    width: int
    patch: int
    image: int = 224
    vocab: int = 49408
    positions: int = 77


_BASE = {
    "vision": Tower(hidden=768, heads=12, layers=12, ffn=3072),
    "text": Tower(hidden=512, heads=8, layers=12, ffn=2048),
    "width": 512,
}
_LARGE = {
    "vision": Tower(hidden=1024, heads=16, layers=24, ffn=4096),
    "text": Tower(hidden=768, heads=12, layers=12, ffn=3072),
    "width": 768,
}

# Source: config.json of openai/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        CLIPConfig(name="clip-vit-base-patch32", **_BASE, patch=32),
        CLIPConfig(name="clip-vit-base-patch16", **_BASE, patch=16),
        CLIPConfig(name="clip-vit-large-patch14", **_LARGE, patch=14),
        CLIPConfig(name="clip-vit-large-patch14-336", **_LARGE, patch=14, image=336),
    )
}


def _parameter_tree(cfg: CLIPConfig, make: Make) -> dict[str, Any]:
    def tower(size: Tower, positions: int) -> dict[str, Any]:
        return {
            "positions": make((positions, size.hidden), 0.0),
            "layers": [layer_parameters(make, size.hidden, size.ffn) for _ in range(size.layers)],
            "final_norm": norm_parameters(make, size.hidden),
            "project": {"w": make((size.hidden, cfg.width), 0.0)},
        }

    wide = cfg.vision.hidden
    vision = {
        "patches": {"w": make((3 * cfg.patch**2, wide), 0.0)},
        "class_token": make((wide,), 0.0),
        "norm": norm_parameters(make, wide),
    }
    return {
        "vision": vision | tower(cfg.vision, (cfg.image // cfg.patch) ** 2 + 1),
        "text": {"tokens": make((cfg.vocab, cfg.text.hidden), 0.0)} | tower(cfg.text, cfg.positions),
        "temperature": make((), 1.0),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def match(cfg: CLIPConfig, params: dict[str, Any], images: jax.Array, tokens: jax.Array) -> jax.Array:
    """Scores [images, sentences] of images [batch, height, width, 3] and tokens i32 [batch, length].

    A sentence ends with its largest token, as in CLIP's vocabulary.
    """
    seen, read = _vision(cfg, params["vision"], images), _text(cfg, params["text"], tokens)
    return jnp.exp(params["temperature"]) * (_unit(seen) @ _unit(read).T)


def _vision(cfg: CLIPConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    x = linear(params["patches"], patches(images, cfg.patch))
    first = jnp.broadcast_to(params["class_token"].astype(x.dtype), (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([first, x], axis=1) + params["positions"].astype(x.dtype)
    x = layer_norm(params["norm"], x, NORM_EPSILON)
    return _projected(params, _tower(cfg.vision, params, x, jnp.ones((1, 1), bool))[:, 0])


def _text(cfg: CLIPConfig, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    length = tokens.shape[1]
    x = jnp.take(params["tokens"], tokens, axis=0, mode="clip") + params["positions"][:length]
    causal = jnp.tril(jnp.ones((length, length), bool))
    x = _tower(cfg.text, params, x.astype(params["final_norm"]["scale"].dtype), causal)
    end = jnp.argmax(tokens, axis=-1)
    return _projected(params, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0])


def _tower(size: Tower, params: dict[str, Any], x: jax.Array, visible: jax.Array) -> jax.Array:
    how = {"activation": "quick_gelu", "epsilon": NORM_EPSILON}
    return norms_first(params["layers"], x, heads=size.heads, visible=visible, **how)


def _projected(params: dict[str, Any], x: jax.Array) -> jax.Array:
    return linear(params["project"], layer_norm(params["final_norm"], x, NORM_EPSILON))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
