"""Generation with OPT: the ring's tokens and logits are jax.jit's, its cache stays sharded and in place."""

import dataclasses
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neuronx
from neuronx.cli import generate
from neuronx.cli.main import main, parse_arguments
from neuronx.models import opt
from neuronx.models.generation import Generator, logit_errors, tolerance

TINY = opt.OPTConfig(name="tiny", hidden=48, heads=6, layers=2, ffn=96, embed=48, vocab=100, positions=32)
POST_NORM = opt.OPTConfig(
    name="post", hidden=48, heads=6, layers=2, ffn=96, embed=24, vocab=100, positions=32, norm_first=False
)


def build(cfg, tp, dtype="f32", **options):
    return Generator.build(cfg, dtype=dtype, batch=2, prompt_len=5, new_tokens=4, tp_degree=tp, **options)


@pytest.mark.parametrize(
    ("cfg", "tp"),
    [(TINY, 1), (POST_NORM, 2), (TINY, 4), (POST_NORM, 8)],
    ids=lambda one: getattr(one, "name", None),
)
def test_logits_agree_with_jit_at_every_step(cfg, tp):
    seed = int(np.random.default_rng().integers(1 << 30))
    generator = build(cfg, tp)
    params = opt.parameters(cfg, jnp.float32, seed)
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab, (2, 5), dtype=np.int32)
    got = generator.run(params, tokens)
    errors = logit_errors(generator, params, tokens, got)
    assert got.tokens.shape == (2, 4) and len(errors) == 4
    assert max(errors) <= tolerance(generator, got, "f32")
    np.testing.assert_array_equal(got.tokens, np.stack([x.argmax(-1) for x in got.logits], axis=1))


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("f16", marks=pytest.mark.slow)])
def test_narrow_types_stay_within_their_rounding(dtype):
    generator = build(TINY, 2, dtype)
    params = opt.parameters(TINY, {"bf16": jnp.bfloat16, "f16": jnp.float16}[dtype], 1)
    tokens = np.random.default_rng().integers(0, TINY.vocab, (2, 5), dtype=np.int32)
    got = generator.run(params, tokens)
    assert max(logit_errors(generator, params, tokens, got)) <= tolerance(generator, got, dtype)


@pytest.mark.parametrize("tp", [2, 3, 6])
def test_the_cache_is_cut_by_heads_and_updated_in_place(tp):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "tp_degree . runs here", UserWarning)
        generator = build(TINY, tp)
    (_, cache, _, _), _ = generator.decode.input_layouts
    for layer in cache:
        assert layer["k"].dim_axes == layer["v"].dim_axes == ((), ("tp",), (), ())
        assert layer["k"].local_shape == (2, 6 // tp, 9, 8)
    memory = generator.decode.memory_analysis()
    assert memory.alias_size_in_bytes == 2 * TINY.layers * 2 * (6 // tp) * 9 * 8 * 4


def test_a_wrong_logit_is_found():
    generator = build(TINY, 2)
    params = opt.parameters(TINY, jnp.float32, 0)
    tokens = np.zeros((2, 5), np.int32)
    got = generator.run(params, tokens)
    other = opt.parameters(TINY, jnp.float32, 1)
    assert max(logit_errors(generator, other, tokens, got)) > tolerance(generator, got, "f32")


def shell(*arguments):
    return main(parse_arguments(["neuronx", "generate", *arguments]))


@pytest.mark.parametrize(
    ("options", "types"),
    [
        ("--dtype f16", ["f16"]),
        ("--dtype f16 --auto-cast matmult", ["f16"]),
        ("--dtype f16 --auto-cast all", ["f16", "bf16"]),
        ("--dtype f32 --auto-cast matmult --auto-cast-type tf32", ["f32", "tf32"]),
    ],
)
def test_verify_allows_for_each_type_on_the_way(options, types, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(generate, "_verify", lambda *given: asked.extend(given[-1]) or 0)
    monkeypatch.setattr(opt, "config", lambda name: TINY)
    assert shell("--verify", "--prompt-len", "2", "--new-tokens", "1", *options.split()) == 0
    assert asked == types


def test_numerics_off_times_a_large_model_without_weights(capsys):
    assert shell("--model", "opt-6.7b", "--tp-degree", "8", "--numerics", "off", "--new-tokens", "8") == 0
    text = capsys.readouterr().out
    assert "tokens[0]" not in text
    first, each = (
        float(re.search(rf"{name} +([\d.]+) ms", text)[1]) for name in ("first token", "output token")
    )
    # Each step reads every weight of its core once: 6.66 G parameters of 2 bytes over 8 cores at 410 GB/s.
    assert each > 6.66e9 * 2 / 8 / 410e9 * 1e3 and first >= each * 0.5
    hbm = float(re.search(r"HBM per core +([\d.]+) of", text)[1])
    assert hbm * 2**30 > 6.65e9 * 2 / 8


def test_too_many_positions_are_an_error(capsys):
    assert shell("--prompt-len", "2000", "--new-tokens", "100", "--numerics", "off") == 2
    assert "2048 positions" in capsys.readouterr().err


def test_a_model_that_does_not_fit_says_what_would(capsys):
    assert (
        shell("--model", "opt-30b", "--instance", "inf2.xlarge", "--tp-degree", "2", "--numerics", "off") == 2
    )
    assert " on inf2.24xlarge should fit" in capsys.readouterr().err


@pytest.mark.slow
def test_the_main_job(capsys):
    assert (
        shell("--tp-degree", "4", "--prompt-len", "8", "--new-tokens", "4", "--dtype", "f32", "--verify") == 0
    )
    text = capsys.readouterr().out
    assert "verify ok" in text and re.search(r"tokens\[0\]: (\d+ ){3}\d+", text)
    for row in (
        "time to first token",
        "time per output token",
        "tokens per second",
        "HBM per core",
        "host: decode",
    ):
        assert row in text


@pytest.mark.slow
def test_opt_66b_on_24_cores_without_arrays(capsys):
    assert shell("--model", "opt-66b", "--tp-degree", "24", "--numerics", "off") == 0
    assert "time per output token" in capsys.readouterr().out


def test_out_of_memory_is_the_public_error():
    huge = dataclasses.replace(TINY, vocab=100_000_000)
    with pytest.raises(neuronx.OutOfDeviceMemoryError):
        build(huge, 1)


def test_shared_layer_weights_are_one_layers_arrays():
    cfg = dataclasses.replace(TINY, layers=3)
    shared = opt.parameters(cfg, np.float32, 0, share_layers=True)
    leaves = {id(leaf) for layer in shared["layers"] for leaf in jax.tree.leaves(layer)}
    assert len(shared["layers"]) == cfg.layers and len(leaves) == len(jax.tree.leaves(shared["layers"][0]))
