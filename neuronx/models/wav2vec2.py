"""Wav2Vec2 and HuBERT in plain JAX: published sizes, which letter each moment of a sound may be."""

from dataclasses import dataclass
from typing import Any

import jax

from kernels.errors import CompileError
from neuronx.models import answers
from neuronx.models.family import Family
from neuronx.models.layers import (
    ACTIVATIONS,
    Make,
    group_norm,
    layer_norm,
    layer_parameters,
    linear,
    linear_parameters,
    norm_parameters,
)

__all__ = [
    "SIZES",
    "Wav2Vec2Config",
    "config",
    "hear",
    "heard",
    "hearing_parameters",
    "parameter_shapes",
    "parameters",
]

_EPSILON = 1e-5
# Samples that each convolution reads, how far it moves on, and how many numbers come of it.
_WINDOWS, _STRIDES, _FEATURES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), 512
# Samples behind the first number, 16,000 a second.
_LEAST = 400
# A convolution that tells places: moments that it reads, and groups of features.
_PLACES, _GROUPS = 128, 16


@dataclass(frozen=True, kw_only=True)
class Wav2Vec2Config:
    """One published size, which hears a sound of any length.

    ``is_stable``: all convolutions of samples have a bias and a layer norm, and layers normalise before each
    half; else the first has a norm of each feature over the whole sound, and layers normalise after it.
    """

    name: str
    hidden: int
    heads: int
    layers: int
    ffn: int
    is_stable: bool = False
    letters: int = 32

    @property
    def style(self) -> answers.Style:
        return answers.Style(heads=self.heads, head_dim=self.hidden // self.heads, norm_first=self.is_stable)


_BASE = {"hidden": 768, "heads": 12, "layers": 12, "ffn": 3072}
_LARGE = {"hidden": 1024, "heads": 16, "layers": 24, "ffn": 4096}

# Source: config.json of facebook/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        Wav2Vec2Config(name="wav2vec2-base-960h", **_BASE),
        Wav2Vec2Config(name="wav2vec2-large-960h", **_LARGE),
        Wav2Vec2Config(name="wav2vec2-large-960h-lv60", **_LARGE, is_stable=True),
        Wav2Vec2Config(name="hubert-base-ls960", **_BASE),
        Wav2Vec2Config(name="hubert-large-ls960-ft", **_LARGE, is_stable=True),
    )
}


def _parameter_tree(cfg: Wav2Vec2Config, make: Make) -> dict[str, Any]:
    places = (1, _PLACES, cfg.hidden // _GROUPS, cfg.hidden)
    return hearing_parameters(make, cfg.hidden, is_stable=cfg.is_stable) | {
        "places": {"w": make(places, 0.0), "b": make((cfg.hidden,), 0.0)},
        "layers": [layer_parameters(make, cfg.hidden, cfg.ffn) for _ in range(cfg.layers)],
        "norm": norm_parameters(make, cfg.hidden),
        "head": linear_parameters(make, cfg.hidden, cfg.letters),
    }


_FAMILY = Family(sizes=SIZES, tree=_parameter_tree)
config, parameter_shapes, parameters = _FAMILY.config, _FAMILY.parameter_shapes, _FAMILY.parameters


def hearing_parameters(make: Make, hidden: int, *, is_stable: bool) -> dict[str, Any]:
    """What ``heard`` reads."""

    def window(number: int, size: int) -> dict[str, Any]:
        made = {"w": make((1, size, _FEATURES if number else 1, _FEATURES), 0.0)}
        made |= {"b": make((_FEATURES,), 0.0)} if is_stable else {}
        return made | ({"norm": norm_parameters(make, _FEATURES)} if is_stable or not number else {})

    return {
        "windows": [window(number, size) for number, size in enumerate(_WINDOWS)],
        "widen_norm": norm_parameters(make, _FEATURES),
        "widen": linear_parameters(make, _FEATURES, hidden),
    }


def heard(params: dict[str, Any], sound: jax.Array, *, is_stable: bool) -> jax.Array:
    """[batch, moments, hidden] of a ``sound`` [batch, samples], 16,000 samples a second.

    Raises:
      CompileError: fewer samples than one moment has.
    """
    if sound.shape[1] < _LEAST:
        raise CompileError(
            f"{sound.shape[1]} samples of sound, and a moment has {_LEAST}",
            op="model",
            fix="give a length in samples, 16000 a second",
        )
    x = sound[:, None, :, None]
    for weights, stride in zip(params["windows"], _STRIDES, strict=True):
        x = _convolution(weights, x, stride, (0, 0))
        if "norm" in weights:
            norm = weights["norm"]
            x = layer_norm(norm, x, _EPSILON) if is_stable else group_norm(norm, x, _EPSILON, _FEATURES)
        x = ACTIVATIONS["gelu"](x)
    return linear(params["widen"], layer_norm(params["widen_norm"], x[:, 0], _EPSILON))


def hear(cfg: Wav2Vec2Config, params: dict[str, Any], sound: jax.Array) -> jax.Array:
    """Logits [batch, moments, letters] of a ``sound`` [batch, samples], 16,000 samples a second."""
    x = heard(params, sound, is_stable=cfg.is_stable)
    places = _convolution(params["places"], x[:, None], 1, (_PLACES // 2, _PLACES // 2 - 1))
    x = cfg.style.after(params["norm"], x + ACTIVATIONS["gelu"](places)[:, 0])
    x = answers.read(cfg.style, params["layers"], x)
    return linear(params["head"], cfg.style.before(params["norm"], x))


def _convolution(weights: dict[str, Any], x: jax.Array, stride: int, around: tuple[int, int]) -> jax.Array:
    """Over [batch, 1, moments, features], of groups of features, ``around`` which zeros stand."""
    kernel = weights["w"]
    y = jax.lax.conv_general_dilated(
        x.astype(kernel.dtype),
        kernel,
        (1, stride),
        ((0, 0), around),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
        preferred_element_type=x.dtype,
    )
    return y + weights["b"] if "b" in weights else y
