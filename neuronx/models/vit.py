"""ViT and DeiT in plain JAX: published sizes, random or shape-only weights, logits of images."""

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
    linear_parameters,
    norm_parameters,
    norms_first,
    patches,
)

__all__ = ["SIZES", "ViTConfig", "classify", "config", "parameter_shapes", "parameters"]

NORM_EPSILON = 1e-12


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """One published size: square patches of ``patch`` pixels of a square image of ``image`` pixels."""

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    patch: int = 16
    image: int = 224
    classes: int = 1000

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


_TINY = {"hidden": 192, "heads": 3, "layers": 12, "ffn": 768}
_SMALL = {"hidden": 384, "heads": 6, "layers": 12, "ffn": 1536}
_BASE = {"hidden": 768, "heads": 12, "layers": 12, "ffn": 3072}
_LARGE = {"hidden": 1024, "heads": 16, "layers": 24, "ffn": 4096}

# Source: config.json of google/vit-..., WinKawaks/vit-... and facebook/deit-... on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        ViTConfig(name="vit-tiny-patch16-224", **_TINY),
        ViTConfig(name="vit-small-patch16-224", **_SMALL),
        ViTConfig(name="vit-base-patch16-224", **_BASE),
        ViTConfig(name="vit-base-patch16-384", **_BASE, image=384),
        ViTConfig(name="vit-base-patch32-224", **_BASE, patch=32),
        ViTConfig(name="vit-base-patch32-384", **_BASE, patch=32, image=384),
        ViTConfig(name="vit-large-patch16-224", **_LARGE),
        ViTConfig(name="vit-large-patch16-384", **_LARGE, image=384),
        ViTConfig(name="vit-large-patch32-384", **_LARGE, patch=32, image=384),
        ViTConfig(name="vit-huge-patch14-224", hidden=1280, heads=16, layers=32, ffn=5120, patch=14),
        ViTConfig(name="deit-tiny-patch16-224", **_TINY),
        ViTConfig(name="deit-small-patch16-224", **_SMALL),
        ViTConfig(name="deit-base-patch16-224", **_BASE),
        ViTConfig(name="deit-base-patch16-384", **_BASE, image=384),
    )
}


def _parameter_tree(cfg: ViTConfig, make: Make) -> dict[str, Any]:
    return {
        "patches": linear_parameters(make, 3 * cfg.patch**2, cfg.hidden),
        "class_token": make((cfg.hidden,), 0.0),
        "positions": make((cfg.patches + 1, cfg.hidden), 0.0),
        "layers": [layer_parameters(make, cfg.hidden, cfg.ffn) for _ in range(cfg.layers)],
        "final_norm": norm_parameters(make, cfg.hidden),
        "head": linear_parameters(make, cfg.hidden, cfg.classes),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def classify(cfg: ViTConfig, params: dict[str, Any], images: jax.Array) -> jax.Array:
    """Logits [batch, classes] of images [batch, height, width, 3]."""
    x = linear(params["patches"], patches(images, cfg.patch))
    first = jnp.broadcast_to(params["class_token"].astype(x.dtype), (x.shape[0], 1, cfg.hidden))
    x = jnp.concatenate([first, x], axis=1) + params["positions"].astype(x.dtype)
    how = {"visible": jnp.ones((1, 1), bool), "activation": "gelu", "epsilon": NORM_EPSILON}
    x = norms_first(params["layers"], x, heads=cfg.heads, **how)
    return linear(params["head"], layer_norm(params["final_norm"], x, NORM_EPSILON)[:, 0])
