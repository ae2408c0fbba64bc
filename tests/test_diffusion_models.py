"""Stable Diffusion's U-Net and image decoder and PixArt against float64 NumPy, and their published sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuronx.models import pixart, unet, vae

# What runs once is not worth much compiling.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def _conv(weights, x, stride=1):
    size = weights["w"].shape[0]
    edged = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(edged, (size, size), axis=(1, 2))
    return np.einsum("bhwcij,ijcf->bhwf", windows[:, ::stride, ::stride], weights["w"]) + weights["b"]


def _dense(weights, x):
    return x @ weights["w"] + weights.get("b", 0.0)


def _norm(x, axes, epsilon):
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon)


def _group_norm(weights, x, epsilon):
    """Each of 32 groups of features over all pixels."""
    groups = x.reshape(len(x), -1, 32, x.shape[-1] // 32)
    return _norm(groups, (1, 3), epsilon).reshape(x.shape) * weights["scale"] + weights["bias"]


def _layer_norm(weights, x):
    return _norm(x, -1, 1e-5) * weights["scale"] + weights["bias"]


def _silu(x):
    return x / (1 + np.exp(-x))


def _residual(weights, x, epsilon, time=None):
    y = _conv(weights["first"], _silu(_group_norm(weights["first_norm"], x, epsilon)))
    if time is not None:
        y = y + _dense(weights["time"], _silu(time))[:, None, None, :]
    y = _conv(weights["second"], _silu(_group_norm(weights["second_norm"], y, epsilon)))
    return y + (_conv(weights["shortcut"], x) if "shortcut" in weights else x)


def _attend(weights, x, source, heads, mask=1):
    q, k, v = _dense(weights["q"], x), _dense(weights["k"], source), _dense(weights["v"], source)
    mixed = []
    for own in np.split(np.arange(q.shape[-1]), heads):
        scores = mask * np.exp(q[..., own] @ k[..., own].swapaxes(1, 2) / np.sqrt(len(own)))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v[..., own])
    return _dense(weights["o"], np.concatenate(mixed, axis=-1))


def _mix(weights, x, sentence, heads):
    y = _dense(weights["into"], _group_norm(weights["norm"], x, 1e-6).reshape(len(x), -1, x.shape[-1]))
    for layer in weights["layers"]:
        normal = _layer_norm(layer["attention_norm"], y)
        y = y + _attend(layer["itself"], normal, normal, heads)
        y = y + _attend(layer["sentence"], _layer_norm(layer["sentence_norm"], y), sentence, heads)
        up, gate = np.split(_dense(layer["up"], _layer_norm(layer["ffn_norm"], y)), 2, axis=-1)
        y = y + _dense(layer["down"], up * gate * 0.5 * (1 + np.vectorize(math.erf)(gate / np.sqrt(2))))
    return x + _dense(weights["out"], y).reshape(x.shape)


def _waves(number, width):
    turns = [number * 10000.0 ** (-index / (width // 2)) for index in range(width // 2)]
    return np.concatenate([np.cos(turns), np.sin(turns)])


def _grow(weights, x):
    return _conv(weights, x.repeat(2, axis=1).repeat(2, axis=2))


def _unet(cfg, params, x, steps, sentence, pooled, sizes):
    def two(products, x):
        return _dense(products[1], _silu(_dense(products[0], x)))

    time = two(params["time"], np.array([_waves(step, cfg.widths[0]) for step in steps]))
    if cfg.pooled:
        waves = [np.concatenate([_waves(size, 256) for size in row]) for row in sizes]
        time = time + two(params["pooled"], np.concatenate([pooled, waves], axis=-1))

    def through(block, x, heads):
        x = _residual(block["residual"], x, 1e-5, time)
        return _mix(block["mix"], x, sentence, heads) if "mix" in block else x

    x = _conv(params["into"], x)
    kept = [x]
    for stage, heads in zip(params["down"], cfg.heads, strict=True):
        for block in stage["blocks"]:
            x = through(block, x, heads)
            kept.append(x)
        if "shrink" in stage:
            x = _conv(stage["shrink"], x, 2)
            kept.append(x)
    for block in params["middle"]:
        x = through(block, x, cfg.heads[-1])
    for stage, heads in zip(params["up"], cfg.heads[::-1], strict=True):
        for block in stage["blocks"]:
            x = through(block, np.concatenate([x, kept.pop()], axis=-1), heads)
        x = _grow(stage["grow"], x) if "grow" in stage else x
    assert not kept
    return _conv(params["out"], _silu(_group_norm(params["norm"], x, 1e-5)))


def _larger(rng, params):
    """Larger weights than a model starts with, so that every part of it moves the result."""
    return jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.15, leaf.shape).astype(np.float32)), params
    )


def _wide(tree):
    return jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [0, 6])
def test_the_unet_is_its_definition(pooled: int, rng) -> None:
    cfg = unet.UNetConfig(
        name="tiny",
        widths=(32, 64),
        mixes=(0, 2),
        middle=1,
        heads=(1, 4),
        context=24,
        image=64,
        pooled=pooled,
    )
    params = _larger(rng, unet.parameters(cfg, jnp.float32, 0))
    latents = rng.standard_normal((2, 8, 8, 4), dtype=np.float32)
    sentence = rng.standard_normal((2, 5, 24), dtype=np.float32)
    steps, sizes = np.array([3, 700], np.int32), rng.integers(0, 1024, (2, 6), dtype=np.int32)
    more = (rng.standard_normal((2, pooled), dtype=np.float32), sizes)
    expected = _unet(cfg, _wide(params), latents, steps, sentence, *more)
    found = _jit(lambda *given: unet.denoise(cfg, *given))(
        params, latents, steps, sentence, *(more if pooled else ())
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def _tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _pixart(cfg, params, latents, steps, sentence, mask, *sides_and_ratio):
    """PixArtTransformer2DModel of diffusers, with each square of latents cut and put back by hand."""

    def told(name, numbers):
        seen = np.array([_waves(number, 256) for number in numbers.reshape(-1)])
        first, second = params[name]
        return _dense(second, _silu(_dense(first, seen))).reshape(len(latents), -1)

    def moved(x, shift, scale):
        return _norm(x, -1, 1e-6) * (1 + scale) + shift

    time = told("time", steps)
    if sides_and_ratio:
        told_more = [told(*pair) for pair in zip(("sides", "ratio"), sides_and_ratio, strict=True)]
        time = time + np.concatenate(told_more, axis=-1)
    moves = _dense(params["moves"], _silu(time)).reshape(len(latents), 6, 1, -1)
    read = _dense(params["sentence"][1], _tanh_gelu(_dense(params["sentence"][0], sentence)))
    places = [(row, column) for row in range(0, cfg.across, 2) for column in range(0, cfg.across, 2)]
    squares = [latents[:, row : row + 2, column : column + 2].reshape(-1, 16) for row, column in places]
    x = _dense(params["patches"], np.stack(squares, axis=1)) + params["positions"]
    for layer in params["layers"]:
        shift, scale, gate, late_shift, late_scale, late_gate = (layer["moves"][:, None] + moves).swapaxes(
            0, 1
        )
        normal = moved(x, shift, scale)
        x = x + gate * _attend(layer["itself"], normal, normal, cfg.heads)
        x = x + _attend(layer["sentence"], x, read, cfg.heads, mask[:, None])
        x = x + late_gate * _dense(
            layer["down"], _tanh_gelu(_dense(layer["up"], moved(x, late_shift, late_scale)))
        )
    x = _dense(params["out"], moved(x, *(params["last"][:, None] + time[:, None, None]).swapaxes(0, 1)))
    made = np.zeros((len(latents), cfg.across, cfg.across, 8))
    for index, (row, column) in enumerate(places):
        made[:, row : row + 2, column : column + 2] = x[:, index].reshape(-1, 2, 2, 8)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("has_sides", [False, True])
def test_pixart_is_its_definition(has_sides: bool, rng) -> None:
    sizes = {"image": 64, "tokens": 5, "hidden": 48, "heads": 4, "layers": 2, "context": 20}
    cfg = pixart.PixArtConfig(name="tiny", has_sides=has_sides, **sizes)
    params = _larger(rng, pixart.parameters(cfg, jnp.float32, 0))
    latents = rng.standard_normal((2, 8, 8, 4), dtype=np.float32)
    sentence = rng.standard_normal((2, 5, 20), dtype=np.float32)
    mask = (np.arange(5) < [[3], [5]]).astype(np.int32)
    sides = (np.array([[64, 64], [48, 80]], np.float32), np.array([[1.0], [0.6]], np.float32))
    given = (latents, np.array([3, 700], np.int32), sentence, mask, *(sides if has_sides else ()))
    expected = _pixart(cfg, _wide(params), *given)
    found = _jit(lambda *given: pixart.denoise(cfg, *given))(params, *given)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_the_image_decoder_is_its_definition(rng) -> None:
    cfg = vae.DecoderConfig(name="tiny", image=32, widths=(64, 64, 32))
    params = _larger(rng, vae.parameters(cfg, jnp.float32, 0))
    latents = rng.standard_normal((2, 8, 8, 4), dtype=np.float32)
    wide = _wide(params)
    x = _conv(wide["into"], _conv(wide["latents"], latents))
    x = _residual(wide["middle"][0], x, 1e-6)
    flat = _group_norm(wide["mix"]["norm"], x, 1e-6).reshape(2, 64, 64)
    x = x + _attend(wide["mix"], flat, flat, 1).reshape(x.shape)
    x = _residual(wide["middle"][1], x, 1e-6)
    for stage in wide["up"]:
        for block in stage["blocks"]:
            x = _residual(block, x, 1e-6)
        x = _grow(stage["grow"], x) if "grow" in stage else x
    expected = _conv(wide["out"], _silu(_group_norm(wide["norm"], x, 1e-6)))
    assert expected.shape == (2, 32, 32, 3)
    found = _jit(functools.partial(vae.decode_images, cfg))(params, latents)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("module", "name", "count"),
    [
        (unet, "stable-diffusion-v1-5-unet", 859_520_964),
        (unet, "stable-diffusion-2-1-unet", 865_910_724),
        (unet, "stable-diffusion-2-inpainting-unet", 865_910_724 + 5 * 320 * 3 * 3),
        (unet, "stable-diffusion-xl-base-1.0-unet", 2_567_463_684),
        (unet, "stable-diffusion-xl-refiner-1.0-unet", 2_259_526_660),
        (unet, "sdxl-turbo-unet", 2_567_463_684),
        (unet, "stable-diffusion-inpainting-unet", 859_520_964 + 5 * 320 * 3 * 3),
        # The table of positions, which is not learned, comes on top.
        (pixart, "pixart-xl-2-512x512-transformer", 610_856_096 + 32**2 * 1152),
        (pixart, "pixart-xl-2-1024-ms-transformer", 611_349_152 + 64**2 * 1152),
        # The decoder, and the product of its latents before it.
        (vae, "stable-diffusion-v1-5-vae", 49_490_179 + 20),
    ],
)
def test_published_sizes_have_their_number_of_parameters(module, name, count) -> None:
    shapes = jax.tree_util.tree_leaves(module.parameter_shapes(module.config(name), jnp.float32))
    assert sum(shape.size for shape in shapes) == count
