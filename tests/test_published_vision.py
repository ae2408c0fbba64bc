"""Models of images, and Perceivers, in ``neuronx.models`` against transformers with the same weights."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers_models import THEIR_TINY, flax_model, linear_of, norm_of, quick_jit, transformers, wide_norm

from neuronx.models import clip, perceiver, resnet, text_perceiver, vit


@pytest.mark.slow
def test_vit_is_transformers_vit() -> None:
    cfg = vit.ViTConfig(name="tiny", hidden=64, heads=4, layers=2, ffn=96, patch=4, image=16, classes=10)
    whole, theirs = flax_model(
        "ViTForImageClassification",
        transformers.ViTConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, patch_size=4,
            image_size=16, num_labels=10,
        ),
    )  # fmt: skip
    given = whole["vit"]
    layers = []
    for index in range(2):
        one = given["encoder"]["layer"][str(index)]
        attention = one["attention"]["attention"]
        layers.append(
            {
                **{name[0]: linear_of(attention[name]) for name in ("query", "key", "value")},
                "o": linear_of(one["attention"]["output"]["dense"]),
                "attention_norm": norm_of(one["layernorm_before"]),
                "up": linear_of(one["intermediate"]["dense"]),
                "down": linear_of(one["output"]["dense"]),
                "ffn_norm": norm_of(one["layernorm_after"]),
            }
        )
    patches = given["embeddings"]["patch_embeddings"]["projection"]
    params = {
        "patches": {"w": patches["kernel"].reshape(-1, 64), "b": patches["bias"]},
        "class_token": given["embeddings"]["cls_token"].reshape(64),
        "positions": given["embeddings"]["position_embeddings"][0],
        "layers": layers,
        "final_norm": norm_of(given["layernorm"]),
        "head": linear_of(whole["classifier"]),
    }
    images = np.random.default_rng().standard_normal((2, 16, 16, 3), dtype=np.float32)
    expected = theirs(jnp.asarray(images.transpose(0, 3, 1, 2))).logits
    np.testing.assert_allclose(
        quick_jit(functools.partial(vit.classify, cfg))(params, jnp.asarray(images)), expected, atol=1e-4
    )


def _clip_tower(given):
    layers = []
    for index in range(2):
        one = given["encoder"]["layers"][str(index)]
        layers.append(
            {
                **{name: linear_of(one["self_attn"][f"{name}_proj"]) for name in "qkv"},
                "o": linear_of(one["self_attn"]["out_proj"]),
                "attention_norm": norm_of(one["layer_norm1"]),
                "up": linear_of(one["mlp"]["fc1"]),
                "down": linear_of(one["mlp"]["fc2"]),
                "ffn_norm": norm_of(one["layer_norm2"]),
            }
        )
    return {"positions": given["embeddings"]["position_embedding"]["embedding"], "layers": layers}


@pytest.mark.slow
def test_clip_is_transformers_clip() -> None:
    sizes = {"hidden": 64, "heads": 4, "layers": 2, "ffn": 96}
    towers = {"vision": clip.Tower(**sizes), "text": clip.Tower(**sizes)}
    cfg = clip.CLIPConfig(name="tiny", **towers, width=24, patch=4, image=16, vocab=100, positions=32)
    their_text = {**THEIR_TINY, "max_position_embeddings": 32, "eos_token_id": 2}
    their_vision = {**THEIR_TINY, "image_size": 16, "patch_size": 4}
    whole, theirs = flax_model(
        "CLIPModel",
        transformers.CLIPConfig(text_config=their_text, vision_config=their_vision, projection_dim=24),
    )
    text, vision = whole["text_model"], whole["vision_model"]
    params = {
        "text": {
            **_clip_tower(text),
            "tokens": text["embeddings"]["token_embedding"]["embedding"],
            "final_norm": norm_of(text["final_layer_norm"]),
            "project": linear_of(whole["text_projection"]),
        },
        "vision": {
            **_clip_tower(vision),
            "patches": {"w": vision["embeddings"]["patch_embedding"]["kernel"].reshape(-1, 64)},
            "class_token": vision["embeddings"]["class_embedding"],
            "norm": norm_of(vision["pre_layrnorm"]),
            "final_norm": norm_of(vision["post_layernorm"]),
            "project": linear_of(whole["visual_projection"]),
        },
        "temperature": whole["logit_scale"],
    }
    rng = np.random.default_rng()
    images, tokens = rng.standard_normal((3, 16, 16, 3), dtype=np.float32), rng.integers(0, 100, (3, 20))
    expected = theirs(jnp.asarray(tokens), jnp.asarray(images.transpose(0, 3, 1, 2))).logits_per_image
    found = quick_jit(functools.partial(clip.match, cfg))(params, jnp.asarray(images), jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def _folded(conv, norm, stats):
    scale = norm["scale"] / np.sqrt(np.asarray(stats["var"]) + 1e-5)
    return {"w": conv["kernel"] * scale, "b": norm["bias"] - stats["mean"] * scale}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expansion", "names"),
    [
        ("bottleneck", 4, {"reduce": "0", "mix": "1", "expand": "2"}),
        ("basic", 1, {"mix": "layer_0", "expand": "layer_1"}),
    ],
)
def test_resnet_is_transformers_resnet_with_folded_norms(kind, expansion, names) -> None:
    widths = (16 // expansion, 32 // expansion)
    whole, theirs = flax_model(
        "ResNetForImageClassification",
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1], layer_type=kind, num_labels=10
        ),
        input_shape=(1, 32, 32, 3),
    )
    cfg = resnet.ResNetConfig(
        name="tiny", depths=(2, 1), widths=widths, stem=8, classes=10, expansion=expansion,
        is_plain=kind == "basic",
    )  # fmt: skip
    given, stats = whole["params"]["resnet"], whole["batch_stats"]["resnet"]

    def fold(*path: str):
        node, found = (functools.reduce(lambda at, key: at[key], path, tree) for tree in (given, stats))
        return _folded(node["convolution"], node["normalization"], found["normalization"])

    stages = []
    for number, depth in enumerate(cfg.depths):
        blocks = []
        for index in range(depth):
            at = ("encoder", "stages", str(number), "layers", str(index))
            block = {name: fold(*at, "layer", key) for name, key in names.items()}
            if not index:
                block["shortcut"] = fold(*at, "shortcut")
            blocks.append(block)
        stages.append(blocks)
    head = linear_of(whole["params"]["classifier"]["1"])
    params = {"stem": fold("embedder", "embedder"), "stages": stages, "head": head}
    images = np.random.default_rng().standard_normal((2, 32, 32, 3), dtype=np.float32)
    expected = theirs(jnp.asarray(images.transpose(0, 3, 1, 2))).logits
    np.testing.assert_allclose(
        quick_jit(functools.partial(resnet.classify, cfg))(params, jnp.asarray(images)), expected, atol=1e-4
    )


def test_groups_of_a_resnext_are_blocks_of_a_resnets_weights() -> None:
    """Figure 3 of its paper: a window in groups is a whole one, zero where the groups differ."""
    sizes = {"depths": (2,), "widths": (16,), "stem": 8, "classes": 10, "expansion": 2}
    cfg = resnet.ResNetConfig(name="tiny", **sizes, groups=4)
    params = resnet.parameters(cfg, jnp.float32, np.random.default_rng().integers(1 << 30))
    blocks = []
    for block in params["stages"][0]:
        grouped, whole = block["mix"]["w"], np.zeros((3, 3, 16, 16), np.float32)
        assert grouped.shape == (3, 3, 4, 16)
        for start in range(0, 16, 4):
            own = slice(start, start + 4)
            whole[:, :, own, own] = grouped[..., own]
        blocks.append(block | {"mix": block["mix"] | {"w": jnp.asarray(whole)}})
    images = jnp.asarray(np.random.default_rng().standard_normal((2, 16, 16, 3), dtype=np.float32))
    expected = resnet.classify(
        resnet.ResNetConfig(name="tiny", **sizes), params | {"stages": [blocks]}, images
    )
    found = quick_jit(functools.partial(resnet.classify, cfg))(params, images)
    # The tiny weights leave little but the bias of the head.
    assert np.ptp(np.asarray(expected), axis=0).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def _wide_perceiver_layer(one, x, inputs, heads, *, is_kept=True):
    """PerceiverLayer of transformers' modeling_perceiver.py, line by line, of one image in float64."""

    def dense(name, x):
        return x @ one[name]["w"] + one[name]["b"]

    normal = wide_norm(one["attention_norm"], x)
    read = normal if inputs is None else wide_norm(one["input_norm"], inputs)
    q, k, v = dense("q", normal), dense("k", read), dense("v", read)
    mixed = []
    for query, key, value in zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True):
        scores = np.exp(query @ key.T / np.sqrt(key.shape[-1]))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ value)
    x = x * is_kept + dense("o", np.concatenate(mixed, axis=-1))
    up = dense("up", wide_norm(one["ffn_norm"], x))
    return x + dense("down", up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2))))


def _wide_places(pixels, bands, resolution):
    """generate_fourier_features of the same file."""
    rows = []
    for row, column in itertools.product(np.linspace(-1, 1, pixels), repeat=2):
        turns = [place * band for place in (row, column) for band in np.linspace(1, resolution / 2, bands)]
        rows.append([row, column, *np.sin(np.pi * np.array(turns)), *np.cos(np.pi * np.array(turns))])
    return np.array(rows)


def test_pixels_that_are_read_as_they_are_have_a_wave_for_every_two() -> None:
    cfg = dataclasses.replace(perceiver.config("vision-perceiver-fourier"), bands=3, image=16, hidden=16)
    waves = perceiver.parameters(cfg, jnp.float32, 0)["places"]
    np.testing.assert_allclose(waves, _wide_places(16, 3, 16), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("reads", "features", "places"), [("window", 5, 0), ("product", 6, 4)])
def test_perceiver_is_the_one_of_transformers_source(reads: str, features: int, places: int) -> None:
    sizes = {"latents": 7, "hidden": 16, "blocks": 2, "layers": 2, "heads": 4, "image": 16, "classes": 5}
    cfg = perceiver.PerceiverConfig(
        name="tiny", reads=reads, features=features, bands=0 if places else 3, places=places, **sizes
    )
    rng = np.random.default_rng()
    given = perceiver.parameters(cfg, jnp.float32, 0)
    if not places:
        np.testing.assert_allclose(given["places"], _wide_places(3, 3, 4), atol=1e-6)
    waves = given["places"]
    # Larger weights than a model starts with, so that every part of it moves the result.
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape).astype(np.float32)), given
    )
    params = params if places else params | {"places": waves}
    images = rng.standard_normal((2, 16, 16, 3), dtype=np.float32)
    wide = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float64), params)
    found = quick_jit(functools.partial(perceiver.classify, cfg))(params, jnp.asarray(images))
    for image, logits in zip(images.astype(np.float64), found, strict=True):
        seen = image.reshape(-1, 3)
        if reads == "window":
            edged, window = np.pad(image, [(3, 3), (3, 3), (0, 0)]), wide["window"]
            made = np.zeros((8, 8, 5))
            for row, column in itertools.product(range(8), repeat=2):
                cut = edged[2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
                made[row, column] = np.maximum(np.einsum("hwc,hwcf->f", cut, window["w"]) + window["b"], 0)
            starts = itertools.product(range(0, 6, 2), repeat=2)
            seen = np.array([made[row : row + 3, column : column + 3].max((0, 1)) for row, column in starts])
        where = wide["places"]
        if places:
            where = where @ wide["place"]["w"] + wide["place"]["b"]
            seen = seen @ wide["product"]["w"] + wide["product"]["b"]
        x = _wide_perceiver_layer(wide["read"], wide["latents"], np.concatenate([seen, where], axis=-1), 1)
        for one in wide["layers"] * 2:
            x = _wide_perceiver_layer(one, x, None, 4)
        answer = _wide_perceiver_layer(wide["answer"], wide["query"], x, 1)[0]
        np.testing.assert_allclose(
            logits, answer @ wide["head"]["w"] + wide["head"]["b"], rtol=1e-4, atol=1e-4
        )


def test_the_perceiver_of_texts_is_the_one_of_transformers_source(rng) -> None:
    sizes = {"vocab": 9, "width": 8, "positions": 6, "latents": 5, "hidden": 12, "layers": 1}
    cfg = text_perceiver.TextPerceiverConfig(name="tiny", **sizes, heads=2, keys=4)
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape).astype(np.float32)),
        text_perceiver.parameter_shapes(cfg, jnp.float32),
    )
    wide = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float64), params)
    tokens, length = rng.integers(0, 9, 5), 3
    read = (wide["tokens"][tokens] + wide["positions"][:5])[:length]
    x = _wide_perceiver_layer(wide["read"], wide["latents"], read, 2)
    x = _wide_perceiver_layer(wide["layers"][0], x, None, 2)
    told = _wide_perceiver_layer(wide["answer"], wide["queries"], x, 2, is_kept=False)
    given, mask = jnp.asarray(tokens[None]), (jnp.arange(5) < length)[None].astype(jnp.int32)
    found = quick_jit(functools.partial(text_perceiver.fill, cfg))(params, given, mask)
    expected = told @ wide["tokens"].T + wide["bias"]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)
