"""Perceiver IO for text in plain JAX: latents that read the bytes of a text, what each hidden byte may be."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from neuronx.models.family import Family
from neuronx.models.layers import Make, through_layers
from neuronx.models.perceiver import mixed, mixer_parameters

__all__ = ["SIZES", "TextPerceiverConfig", "config", "fill", "parameter_shapes", "parameters"]


@dataclass(frozen=True, kw_only=True)
class TextPerceiverConfig:
    """One published size: ``latents`` vectors of ``hidden`` numbers that read bytes of ``width``, then
    ``layers`` of them; queries and keys have ``keys``. All ``positions`` are answered, read or not."""

    name: str
    vocab: int = 262
    width: int = 768
    positions: int = 2048
    latents: int = 256
    hidden: int = 1280
    layers: int = 26
    heads: int = 8
    keys: int = 256


# Source: config.json of deepmind/<name> on the Hugging Face hub; Jaegle et al., Perceiver IO, table 8.
SIZES = {size.name: size for size in (TextPerceiverConfig(name="language-perceiver"),)}


def _parameter_tree(cfg: TextPerceiverConfig, make: Make) -> dict[str, Any]:
    own = {"keys": cfg.keys, "values": cfg.hidden}
    return {
        "tokens": make((cfg.vocab, cfg.width), 0.0),
        "positions": make((cfg.positions, cfg.width), 0.0),
        "latents": make((cfg.latents, cfg.hidden), 0.0),
        "read": mixer_parameters(make, cfg.hidden, reads=cfg.width, **own),
        "layers": [mixer_parameters(make, cfg.hidden, **own) for _ in range(cfg.layers)],
        "queries": make((cfg.positions, cfg.width), 0.0),
        "answer": mixer_parameters(make, cfg.width, reads=cfg.hidden, keys=cfg.keys, values=cfg.width),
        "bias": make((cfg.vocab,), 0.0),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def fill(cfg: TextPerceiverConfig, params: dict[str, Any], tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits [batch, positions, vocab] of every position.

    Args:
      tokens: i32 [batch, length].
      mask: i32 [batch, length], 1 where there is a token.
    """
    batch, dtype = tokens.shape[0], params["bias"].dtype

    def each(name: str) -> jax.Array:
        return jnp.broadcast_to(params[name].astype(dtype), (batch, *params[name].shape))

    read = jnp.take(params["tokens"], tokens, axis=0, mode="clip") + params["positions"][: tokens.shape[1]]
    visible = (mask > 0)[:, None, None, :]
    x = mixed(params["read"], each("latents"), read.astype(dtype), cfg.heads, visible)

    def layer(x: jax.Array, weights: dict[str, Any]) -> tuple[jax.Array, None]:
        return mixed(weights, x, None, cfg.heads), None

    x, _ = through_layers(layer, x, params["layers"])
    told = mixed(params["answer"], each("queries"), x, cfg.heads, is_kept=False)
    table = params["tokens"]
    logits = jnp.einsum("ble,ve->blv", told.astype(table.dtype), table, preferred_element_type=dtype)
    return logits + params["bias"]
