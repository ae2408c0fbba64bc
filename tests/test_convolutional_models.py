"""MobileNetV2, EfficientNet, ConvNeXt, Swin and U-Net against float64 NumPy, and their published sizes."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuronx.models import convnext, mobilenet, segmenter, swin
from neuronx.models.names import MODELS

# What runs once is not worth much compiling.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def _wide_conv(weights, x, stride=1):
    """Zeros around images; each feature by itself where the kernel reads one only."""
    kernel, edge = weights["w"], weights["w"].shape[0] // 2
    edged = np.pad(x, [(0, 0), (edge, edge), (edge, edge), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(edged, kernel.shape[:2], axis=(1, 2))
    alone = kernel.shape[2] < x.shape[-1]
    kernel = kernel[:, :, 0] if alone else kernel
    names = "bhwcij,ijc->bhwc" if alone else "bhwcij,ijcf->bhwf"
    return np.einsum(names, windows[:, ::stride, ::stride], kernel) + weights["b"]


def _wide_dense(weights, x):
    return x @ weights["w"] + weights["b"]


def _larger(params, rng):
    """Larger weights than a model starts with, so that every part of it moves the result; and in float64."""
    larger = jax.tree_util.tree_map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), params)
    return larger, jax.tree_util.tree_map(np.float64, larger)


def _wide_norm(weights, x, epsilon=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return normal * weights["scale"] + weights["bias"]


def _wide_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def _wide_sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.slow
@pytest.mark.parametrize("is_squeezed", [False, True])
def test_blocks_wide_inside_are_their_definition(is_squeezed: bool, rng) -> None:
    stages = (
        mobilenet.Stage(expansion=1, width=8, depth=1, stride=1),
        mobilenet.Stage(expansion=3, width=12, depth=2, stride=2, window=5),
    )
    kind = {"is_squeezed": is_squeezed, "activation": "silu" if is_squeezed else "relu6"}
    cfg = mobilenet.MobileNetConfig(name="tiny", stages=stages, stem=8, last=20, image=16, classes=5, **kind)
    params, wide = _larger(mobilenet.parameters(cfg, jnp.float32, 0), rng)
    images = rng.standard_normal((2, 16, 16, 3), dtype=np.float32)

    def activate(x):
        return x * _wide_sigmoid(x) if is_squeezed else np.clip(x, 0, 6)

    x = activate(_wide_conv(wide["stem"], images, 2))
    assert [len(blocks) for blocks in wide["stages"]] == [1, 2]
    for block, stride, adds in zip(
        itertools.chain(*wide["stages"]), (1, 2, 1), (True, False, True), strict=True
    ):
        y = activate(_wide_conv(block["widen"], x)) if "widen" in block else x
        y = activate(_wide_conv(block["mix"], y, stride))
        if is_squeezed:
            seen = activate(_wide_dense(block["squeeze"], y.mean((1, 2), keepdims=True)))
            y = y * _wide_sigmoid(_wide_dense(block["weigh"], seen))
        y = _wide_conv(block["narrow"], y)
        x = x + y if adds else y
    x = activate(_wide_conv(wide["last"], x)).mean((1, 2))
    found = _jit(functools.partial(mobilenet.classify, cfg))(params, images)
    np.testing.assert_allclose(found, _wide_dense(wide["head"], x), rtol=1e-4, atol=1e-4)


def test_the_first_unet_is_its_definition(rng) -> None:
    cfg = segmenter.SegmenterConfig(name="tiny", image=8, widths=(4, 6, 8), classes=3)
    params, wide = _larger(segmenter.parameters(cfg, jnp.float32, 0), rng)
    images = rng.standard_normal((2, 8, 8, 3), dtype=np.float32)

    def twice(weights, x):
        for one in weights:
            x = np.maximum(_wide_conv(one, x), 0)
        return x

    x, kept = np.float64(images), []
    for weights in wide["down"]:
        kept.append(twice(weights, x))
        x = kept[-1].reshape(2, kept[-1].shape[1] // 2, 2, kept[-1].shape[2] // 2, 2, -1).max((2, 4))
    x = kept.pop()
    for weights, before in zip(wide["up"], reversed(kept), strict=True):
        grown = np.zeros(before.shape)
        kernel = weights["grow"]["w"].reshape(x.shape[-1], 2, 2, -1)
        for row, column in itertools.product(range(2), repeat=2):
            grown[:, row::2, column::2] = x @ kernel[:, row, column] + weights["grow"]["b"]
        x = twice(weights["mix"], np.concatenate([before, grown], axis=-1))
    expected = _wide_dense(wide["head"], x)
    found = _jit(functools.partial(segmenter.segment, cfg))(params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


@pytest.mark.slow
def test_convnext_is_its_definition(rng) -> None:
    cfg = convnext.ConvNeXtConfig(name="tiny", depths=(1, 2), widths=(6, 10), image=32, classes=5)
    params, wide = _larger(convnext.parameters(cfg, jnp.float32, 0), rng)
    images = rng.standard_normal((2, 32, 32, 3), dtype=np.float32)

    def cut(weights, x, size):
        """A convolution whose windows do not overlap."""
        kernel = weights["w"].reshape(size, size, x.shape[-1], -1)
        places = range(0, x.shape[1], size)
        squares = [[x[:, row : row + size, column : column + size] for column in places] for row in places]
        return np.einsum("hwbijc,ijcf->bhwf", np.array(squares), kernel) + weights["b"]

    x = images.astype(np.float64)
    for number, stage in enumerate(wide["stages"]):
        x = _wide_norm(stage["norm"], cut(stage["patches"], x, 4)) if not number else x
        x = cut(stage["patches"], _wide_norm(stage["norm"], x), 2) if number else x
        for block in stage["blocks"]:
            up = _wide_dense(block["up"], _wide_norm(block["norm"], _wide_conv(block["mix"], x)))
            x = x + block["scale"] * _wide_dense(block["down"], _wide_gelu(up))
    expected = _wide_dense(wide["head"], _wide_norm(wide["final_norm"], x.mean((1, 2)), 1e-12))
    found = _jit(functools.partial(convnext.classify, cfg))(params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def _sees(one, other, side, window, shift):
    """Row of the table of biases for two places of an image of windows moved by ``shift``; None where they
    are in different ones, or in one that the edge of the image divides."""
    rows = []
    for here, there in zip(one, other, strict=True):
        here, there = (here - shift) % side, (there - shift) % side
        if here // window != there // window or (here >= side - shift) != (there >= side - shift):
            return None
        rows.append(here - there + window - 1)
    return rows[0] * (2 * window - 1) + rows[1]


def _wide_swin_block(block, x, heads, side, window, shift):
    """Every place of one image [side * side, width] with every other, those not seen left out."""
    places = list(itertools.product(range(side), repeat=2))
    rows = [[_sees(one, other, side, window, shift) for other in places] for one in places]
    seen = np.array([[row is not None for row in line] for line in rows])
    bias = block["distances"][np.array([[row or 0 for row in line] for line in rows])]
    normal, mixed = _wide_norm(block["attention_norm"], x, 1e-5), []
    q, k, v = (np.split(_wide_dense(block[name], normal), heads, axis=-1) for name in "qkv")
    for head in range(heads):
        scores = seen * np.exp(q[head] @ k[head].T / np.sqrt(q[head].shape[1]) + bias[..., head])
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v[head])
    x = x + _wide_dense(block["o"], np.concatenate(mixed, axis=-1))
    up = _wide_dense(block["up"], _wide_norm(block["ffn_norm"], x, 1e-5))
    return x + _wide_dense(block["down"], _wide_gelu(up))


@pytest.mark.slow
def test_swin_is_its_definition(rng) -> None:
    cfg = swin.SwinConfig(name="tiny", width=8, depths=(2, 2), heads=(2, 4), window=4, image=32, classes=5)
    params, wide = _larger(swin.parameters(cfg, jnp.float32, 0), rng)
    images = rng.standard_normal((2, 32, 32, 3), dtype=np.float32)
    found = _jit(functools.partial(swin.classify, cfg))(params, images)
    first, second = wide["stages"]
    for image, logits in zip(images, found, strict=True):
        starts = list(itertools.product(range(0, 32, 4), repeat=2))
        x = np.stack([image[row : row + 4, column : column + 4].reshape(-1) for row, column in starts])
        x = _wide_norm(wide["norm"], _wide_dense(wide["patches"], x), 1e-5)
        for block, shift in zip(first["blocks"], (0, 2), strict=True):
            x = _wide_swin_block(block, x, 2, 8, 4, shift)
        square = x.reshape(8, 8, 8)
        four = np.concatenate([square[row::2, column::2] for row in (0, 1) for column in (0, 1)], axis=-1)
        x = _wide_norm(second["norm"], four.reshape(16, 32), 1e-5) @ second["merge"]["w"]
        for block in second["blocks"]:
            # A single window: nothing to shift.
            x = _wide_swin_block(block, x, 4, 4, 4, 0)
        expected = _wide_dense(wide["head"], _wide_norm(wide["final_norm"], x, 1e-5).mean(0))
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mobilenet-v2-1.0-224", 3_504_872),
        ("efficientnet-b0", 5_288_548),
        ("efficientnet-b1", 7_794_184),
        ("efficientnet-b2", 9_109_994),
        ("efficientnet-b3", 12_233_232),
        ("efficientnet-b4", 19_341_616),
        ("efficientnet-b5", 30_389_784),
        ("efficientnet-b6", 43_040_704),
        ("efficientnet-b7", 66_347_960),
    ],
)
def test_mobile_networks_have_their_number_of_parameters(name, count) -> None:
    """Behind each convolution is a norm with a scale and a bias, of which the latter is left."""
    tree = mobilenet.parameter_shapes(mobilenet.config(name), jnp.float32)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    scales = [leaf.size for path, leaf in leaves if path[-1].key == "b" and _is_convolution(tree, path)]
    assert sum(leaf.size for _, leaf in leaves) + sum(scales) == count


def _is_convolution(tree, path):
    for entry in path[:-1]:
        tree = tree[getattr(entry, "key", getattr(entry, "idx", None))]
    return len(tree["w"].shape) == 4


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("convnext-tiny-224", 28_589_128),
        ("convnext-small-224", 50_223_688),
        ("convnext-base-224", 88_591_464),
        ("convnext-large-224", 197_767_336),
        ("swin-tiny-patch4-window7-224", 28_288_354),
        ("swin-small-patch4-window7-224", 49_606_258),
        ("swin-base-patch4-window7-224", 87_768_224),
        ("swin-large-patch4-window7-224", 196_532_476),
        # Batch norms are folded: 5,888 features have a bias of the two numbers.
        ("unet-224", 31_037_698 - 5_888),
    ],
)
def test_others_have_their_number_of_parameters(name, count) -> None:
    tree = MODELS[name].parameter_shapes(MODELS[name].config(name), jnp.float32)
    assert sum(leaf.size for leaf in jax.tree_util.tree_leaves(tree)) == count
