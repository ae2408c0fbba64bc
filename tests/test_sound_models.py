"""Wav2Vec2 and its Conformer against float64 NumPy, and their published sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.errors import CompileError
from neuronx.models import conformer, wav2vec2
from neuronx.models.names import MODELS

# What runs once is not worth much compiling.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def _drawn(tree, rng):
    """Weights under which numbers keep their size, and the same in float64."""

    def draw(leaf):
        return rng.normal(0, 1 / math.sqrt(max(4, np.prod(leaf.shape[:-1]))), leaf.shape).astype(np.float32)

    drawn = jax.tree_util.tree_map(draw, tree)
    return drawn, jax.tree_util.tree_map(np.float64, drawn)


def _dense(weights, x):
    return x @ weights["w"] + weights.get("b", 0.0)


def _norm(weights, x, axis=-1):
    centred = x - x.mean(axis, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis, keepdims=True) + 1e-5) * weights["scale"] + weights["bias"]
    )


def _gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def _convolved(weights, x, stride=1):
    """[moments, features] by windows of them, of groups of features."""
    kernel = weights["w"][0]
    groups = x.shape[1] // kernel.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(x, len(kernel), axis=0)[::stride]
    parts = zip(np.split(windows, groups, axis=1), np.split(kernel, groups, axis=2), strict=True)
    return np.concatenate([np.einsum("tfk,kfg->tg", *part) for part in parts], axis=1) + weights.get("b", 0.0)


def _attended(weights, x, heads):
    mixed = []
    for q, k, v in zip(*(np.split(_dense(weights[name], x), heads, axis=1) for name in "qkv"), strict=True):
        scores = np.exp(q @ k.T / np.sqrt(q.shape[1]))
        mixed.append(scores / scores.sum(1, keepdims=True) @ v)
    return _dense(weights["o"], np.concatenate(mixed, axis=1))


@pytest.mark.parametrize("is_stable", [False, True])
def test_wav2vec2_is_its_definition(is_stable: bool, rng) -> None:
    cfg = wav2vec2.Wav2Vec2Config(
        name="tiny", hidden=32, heads=2, layers=1, ffn=24, is_stable=is_stable, letters=5
    )
    params, wide = _drawn(wav2vec2.parameter_shapes(cfg, jnp.float32), rng)
    sound = rng.standard_normal((1, 2000), dtype=np.float32)
    x = np.float64(sound[0])[:, None]
    for number, (weights, stride) in enumerate(zip(wide["windows"], (5, 2, 2, 2, 2, 2, 2), strict=True)):
        x = _convolved(weights, x, stride)
        if is_stable or not number:
            x = _norm(weights["norm"], x, axis=1 if is_stable else 0)
        x = _gelu(x)
    x = _dense(wide["widen"], _norm(wide["widen_norm"], x))
    x = x + _gelu(_convolved(wide["places"], np.pad(x, [(64, 63), (0, 0)])))
    [layer] = wide["layers"]
    if is_stable:
        x = x + _attended(layer, _norm(layer["attention_norm"], x), 2)
        x = x + _dense(layer["down"], _gelu(_dense(layer["up"], _norm(layer["ffn_norm"], x))))
        x = _norm(wide["norm"], x)
    else:
        x = _norm(wide["norm"], x)
        x = _norm(layer["attention_norm"], x + _attended(layer, x, 2))
        x = _norm(layer["ffn_norm"], x + _dense(layer["down"], _gelu(_dense(layer["up"], x))))
    found = _jit(functools.partial(wav2vec2.hear, cfg))(params, sound)
    np.testing.assert_allclose(found[0], _dense(wide["head"], x), rtol=1e-3, atol=1e-4)


def test_scores_of_a_conformer_tell_how_far_keys_are(rng) -> None:
    """Dai et al., Transformer-XL, section 3.3: waves of the distance, projected, times the query."""
    cfg = conformer.ConformerConfig(name="tiny", is_rotary=False, hidden=8, heads=2)
    q = rng.standard_normal((1, 2, 5, 4), dtype=np.float32)
    w = rng.standard_normal((8, 8), dtype=np.float32)
    found = conformer._distances(cfg, {"distances": {"w": jnp.asarray(w)}}, jnp.asarray(q))
    expected = np.zeros((2, 5, 5))
    for head, query, key in np.ndindex(expected.shape):
        waves = np.zeros(8)
        for index in range(0, 8, 2):
            angle = (query - key) * 1e4 ** (-index / 8)
            waves[index], waves[index + 1] = math.sin(angle), math.cos(angle)
        expected[head, query, key] = q[0, head, query] @ (waves @ w)[4 * head : 4 * head + 4]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Less the vector for what is masked in training and a factor for each moment of the convolution.
        ("wav2vec2-base-960h", 94_396_320 - 768 - 128),
        ("wav2vec2-large-960h", 315_461_792 - 1024 - 128),
        ("wav2vec2-large-960h-lv60", 315_471_520 - 1024 - 128),
        # Less what is not used of it, the vector and half a batch norm a layer.
        ("wav2vec2-conformer-rope-large-960h", 593_376_928 - 8_389_760 - 1024 - 24 * 1024),
    ],
)
def test_published_sizes_have_their_number_of_parameters(name: str, count: int) -> None:
    shapes = jax.tree_util.tree_leaves(MODELS[name].parameter_shapes(MODELS[name].config(name), jnp.float32))
    assert sum(shape.size for shape in shapes) == count


def test_a_sound_too_short_is_refused() -> None:
    cfg = wav2vec2.config("wav2vec2-base-960h")
    with pytest.raises(CompileError, match="100 samples"):
        wav2vec2.hear(cfg, {}, jnp.zeros((1, 100)))
