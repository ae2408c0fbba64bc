"""Weights in 8 bits: what they lose, products with them against float64, and OPT with them on a ring."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neuronx
from neuronx.cli.main import main, parse_arguments
from neuronx.models import llama, opt, t5, whisper
from neuronx.models.generation import Generator, logit_errors, tolerance
from neuronx.models.layers import linear, zeros
from neuronx.models.quantised import WEIGHTS, quantised, quantised_shapes

TINY = opt.OPTConfig(name="tiny", hidden=48, heads=6, layers=2, ffn=96, embed=48, vocab=100, positions=32)

# Half a step between neighbours: of integers, and of a float with three bits of mantissa, whose steps are
# relative, and absolute below its least normal number, 2**-6.
LOST = {
    "int8": lambda w, scale: 0.5 * scale,
    "fp8_e4m3": lambda w, scale: np.maximum(abs(w) / 16, scale / 1024),
}


def layer(rng, k, n):
    """Columns of very different sizes, one of them of zeros."""
    w = rng.standard_normal((k, n)) * 10.0 ** rng.integers(-6, 6, n)
    w[:, n // 2] = 0
    return {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(rng.standard_normal(n), jnp.float32)}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_weight_loses_half_a_step_at_most(weights, rng):
    params = layer(rng, 127, 33)
    small = quantised(params, weights)
    assert small["w"].dtype == WEIGHTS[weights] and small["scale"].shape == (33,)
    w, scale = np.asarray(params["w"], np.float64), np.asarray(small["scale"], np.float64)
    restored = np.asarray(small["w"].astype(jnp.float32), np.float64) * scale
    assert np.all(np.abs(restored - w) <= LOST[weights](w, scale) * (1 + 1e-6))
    assert not restored[:, 16].any()
    np.testing.assert_array_equal(small["b"], params["b"])


@pytest.mark.parametrize("weights", ["int8", pytest.param("fp8_e4m3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("m", [1, 3, 17])
def test_products_are_those_of_float64_with_the_stored_numbers(weights, m, rng):
    params = quantised(layer(rng, 129, 257), weights)
    x = jnp.asarray(rng.standard_normal((m, 129)), jnp.float32)
    compiled = neuronx.compile(linear).lower(params, x).compile()
    assert {"int8": "matmul_i8", "fp8_e4m3": "matmul_f8E4M3_"}[weights] in compiled.explain_host()
    wide, scale, b = (
        np.asarray(params[name].astype(jnp.float32), np.float64) for name in ("w", "scale", "b")
    )
    terms = np.asarray(x, np.float64)[..., None] * wide * scale
    bound = 2.0**-24 * (132 * np.abs(terms).sum(axis=1) + np.abs(b))
    assert np.all(np.abs(np.asarray(compiled(params, x)) - (terms.sum(axis=1) + b)) <= bound)


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("tp", [1, 4])
def test_opt_agrees_with_jit_at_every_step(weights, tp):
    seed = int(np.random.default_rng().integers(1 << 30))
    cfg = dataclasses.replace(TINY, layers=1)
    params = quantised(opt.parameters(cfg, jnp.bfloat16, seed), weights)
    generator = Generator.build(
        cfg, dtype="bf16", batch=2, prompt_len=5, new_tokens=3, weights=weights, tp_degree=tp
    )
    tokens = np.random.default_rng(seed).integers(0, TINY.vocab, (2, 5), dtype=np.int32)
    got = generator.run(params, tokens)
    assert max(logit_errors(generator, params, tokens, got)) <= tolerance(generator, got, "bf16")


def test_shapes_are_those_of_the_arrays_and_shared_layers_stay_shared():
    shared = quantised(opt.parameters(TINY, jnp.bfloat16, 0, share_layers=True), "int8")
    shapes = quantised_shapes(opt.parameter_shapes(TINY, jnp.bfloat16), "int8")
    like = jax.tree.map(lambda x: (x.shape, x.dtype), shared)
    assert like == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    first, second = (jax.tree.leaves(layer) for layer in shared["layers"])
    assert all(x is y for x, y in zip(first, second, strict=True))


@pytest.mark.slow
def test_the_command_line_reads_fewer_bytes(capsys):
    def predicted(*options):
        model = ["neuronx", "generate", "--model", "opt-1.3b", "--numerics", "off", *options]
        assert main(parse_arguments(model)) == 0
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time per output")]
        return float(line.split()[4])

    # 24 layers of 12 * 2048**2 weights in one byte less each, at no more than 410 GB/s.
    assert predicted() - predicted("--weights", "int8") >= 24 * 12 * 2048**2 / 410e9 * 1e3


_SIZES = {"name": "tiny", "hidden": 64, "heads": 4, "layers": 2, "ffn": 96, "vocab": 100}
_WITH_HEADS = [
    (llama, llama.LlamaConfig(**_SIZES, kv_heads=2), (), "fp8_e4m3"),
    (t5, t5.T5Config(**_SIZES, is_gated=True, head_dim=16), (), "int8"),
    # No head of its own, but windows of convolutions.
    (whisper, whisper.WhisperConfig(**_SIZES, writers=2, mels=10, frames=24), ((2, 24, 10),), "int8"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "cfg", "sound", "weights"), _WITH_HEADS)
def test_logits_of_small_weights_are_near_those_of_wide_ones(module, cfg, sound, weights, rng):
    params = jax.tree.map(
        lambda leaf: leaf * (5 if leaf.ndim > 1 else 1), module.parameters(cfg, jnp.float32, 0)
    )
    given = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in sound]
    tokens = jnp.asarray(rng.integers(1, 100, (2, 9)), jnp.int32)
    read = jax.jit(functools.partial(module.prefill, cfg))
    cache = zeros(module.cache_shapes(cfg, 2, 16, jnp.float32))
    _, wide, _ = read(params, cache, *given, tokens)
    _, small, _ = read(quantised(params, weights), cache, *given, tokens)
    assert 0 < np.abs(small - wide).max() < 0.25 * np.abs(wide).max()
