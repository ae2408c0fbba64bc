"""OPT in plain JAX: published sizes, and the same numbers as transformers' FlaxOPT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.errors import CompileError
from neuronx.models import opt
from neuronx.models.layers import zeros

# Numbers of parameters of facebook/opt-*, tied embeddings counted once.
PARAMETERS = {
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
}


def tiny(**other):
    fields = {"hidden": 48, "heads": 6, "layers": 2, "ffn": 96, "embed": 48, "vocab": 100, "positions": 32}
    return opt.OPTConfig(name="tiny", **(fields | other))


TINY = {"norm first": tiny(), "norm last, projected": tiny(norm_first=False, embed=24)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name):
    shapes = opt.parameter_shapes(opt.config(name), jnp.float32)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


@pytest.mark.parametrize("name", opt.SIZES)
def test_names_tell_the_size(name):
    shapes = opt.parameter_shapes(opt.config(name), jnp.bfloat16)
    billions = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e9
    number = name.removeprefix("opt-")
    told = float(number[:-1]) / (1000 if number.endswith("m") else 1)
    assert billions == pytest.approx(told, rel=0.06)


def test_an_unknown_size_is_an_error():
    with pytest.raises(CompileError, match=r"unknown model 'opt-9b'.*\n.*opt-125m, .*opt-66b"):
        opt.config("opt-9b")


def test_parameters_and_shapes_agree():
    for cfg in TINY.values():
        made = opt.parameters(cfg, jnp.bfloat16, seed=3)
        shapes = opt.parameter_shapes(cfg, jnp.bfloat16)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
            lambda x: (x.shape, x.dtype), shapes
        )
    again = opt.parameters(cfg, jnp.bfloat16, seed=3)
    jax.tree.map(np.testing.assert_array_equal, made, again)


@pytest.mark.parametrize("kind", TINY)
def test_decoding_step_by_step_is_reading_at_once(kind):
    cfg = TINY[kind]
    params = opt.parameters(cfg, jnp.float32, seed=int(np.random.default_rng().integers(1 << 30)))
    tokens = jnp.asarray(np.random.default_rng().integers(0, cfg.vocab, (2, 7)), jnp.int32)
    prefill, empty = (
        jax.jit(functools.partial(opt.prefill, cfg)),
        zeros(opt.cache_shapes(cfg, 2, 12, jnp.float32)),
    )
    decode = jax.jit(functools.partial(opt.decode, cfg))
    _, _, cache = prefill(params, empty, tokens[:, :4])
    for position in range(4, 7):
        token, logits, cache = decode(params, cache, tokens[:, position], jnp.int32(position))
    want_token, want, want_cache = prefill(params, empty, tokens)
    np.testing.assert_allclose(logits, want, atol=1e-5)
    np.testing.assert_array_equal(token, want_token)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cache, want_cache)


@pytest.mark.parametrize("kind", TINY)
def test_logits_are_those_of_flax_opt(kind):
    transformers = pytest.importorskip("transformers", reason="needs the models extra")
    cfg = TINY[kind]
    flax_config = transformers.OPTConfig(
        vocab_size=cfg.vocab,
        hidden_size=cfg.hidden,
        num_hidden_layers=cfg.layers,
        ffn_dim=cfg.ffn,
        num_attention_heads=cfg.heads,
        max_position_embeddings=cfg.positions,
        word_embed_proj_dim=cfg.embed,
        do_layer_norm_before=cfg.norm_first,
    )
    theirs = transformers.FlaxOPTForCausalLM(flax_config, seed=0)
    ours = opt.parameters(cfg, jnp.float32, seed=5)
    tokens = np.random.default_rng().integers(3, cfg.vocab, (2, 9)).astype(np.int32)
    empty = zeros(opt.cache_shapes(cfg, 2, 9, jnp.float32))
    want = theirs(tokens, params=_as_flax(cfg, ours)).logits[:, -1]
    _, got, _ = opt.prefill(cfg, ours, empty, jnp.asarray(tokens))
    np.testing.assert_allclose(got, want, atol=2e-5)


def _as_flax(cfg, params):
    def linear(p):
        return {"kernel": p["w"], "bias": p["b"]}

    def layer(p):
        attention = {f"{n}_proj": linear(p[n]) for n in "qkv"} | {"out_proj": linear(p["o"])}
        return {
            "self_attn": attention,
            "self_attn_layer_norm": p["attention_norm"],
            "fc1": linear(p["up"]),
            "fc2": linear(p["down"]),
            "final_layer_norm": p["ffn_norm"],
        }

    decoder = {
        "embed_tokens": {"embedding": params["tokens"]},
        "embed_positions": {"embedding": params["positions"]},
        "layers": {str(i): layer(p) for i, p in enumerate(params["layers"])},
    }
    if "final_norm" in params:
        decoder["final_layer_norm"] = params["final_norm"]
    for name in ("project_in", "project_out"):
        if name in params:
            decoder[name] = {"kernel": params[name]}
    return {"model": {"decoder": decoder}}
