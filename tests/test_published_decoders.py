"""Decoders in ``neuronx.models`` against transformers with the same weights, or their definitions."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers_models import (
    THEIR_TINY,
    TINY,
    TOLERANCE,
    check_decoder,
    flax_model,
    linear_of,
    norm_of,
    plain_norm,
    transformers,
)

from neuronx.models import decoder, gpt, llama, opt, positions
from neuronx.models.names import MODELS

_GEMMA = {"head_width": 32, "embed_scale": 8.0, "activation": "gelu_new"}


@pytest.mark.parametrize(
    ("kv_heads", "is_tied", "own"),
    [
        pytest.param(4, False, {}, marks=pytest.mark.slow),
        (2, True, {}),
        pytest.param(1, True, _GEMMA, marks=pytest.mark.slow),
    ],
)
def test_llama_is_transformers_llama(kv_heads: int, is_tied: bool, own: dict[str, Any]) -> None:
    sizes = {"hidden": 64, "heads": 4, "kv_heads": kv_heads, "layers": 2, "ffn": 96, "vocab": 100}
    cfg = llama.LlamaConfig(name="tiny", **sizes, positions=64, is_tied=is_tied, **own)
    kind = "Gemma" if own else "Llama"
    whole, theirs = flax_model(
        f"{kind}ForCausalLM",
        getattr(transformers, f"{kind}Config")(
            **THEIR_TINY,
            num_key_value_heads=kv_heads,
            max_position_embeddings=64,
            rms_norm_eps=cfg.norm_epsilon,
            head_dim=cfg.head_dim,
        ),
    )
    given = whole["model"]
    if own:
        # Gemma's scales are told by how far they are from one.
        given = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf + 1 if path[-1].key == "weight" else leaf, given
        )
    layers = []
    for index in range(2):
        one = given["layers"][str(index)]
        layers.append(
            {
                "attention_norm": one["input_layernorm"]["weight"],
                **{name: linear_of(one["self_attn"][f"{name}_proj"]) for name in ("q", "k", "v", "o")},
                "ffn_norm": one["post_attention_layernorm"]["weight"],
                **{name: linear_of(one["mlp"][f"{name}_proj"]) for name in ("gate", "up", "down")},
            }
        )
    params = {
        "tokens": given["embed_tokens"]["embedding"],
        "layers": layers,
        "final_norm": given["norm"]["weight"],
    }
    if is_tied and not own:
        # Theirs has a head of its own whatever is asked for.
        whole["lm_head"]["kernel"] = params["tokens"].T
    elif not is_tied:
        params["head"] = linear_of(whole["lm_head"])
    tokens = np.random.default_rng().integers(0, 100, (2, 12))
    check_decoder(llama, cfg, params, tokens, theirs(tokens).logits, atol=TOLERANCE)


def test_a_token_takes_its_experts_by_their_shares() -> None:
    """Mixtral's paper, section 2.1: of a softmax over the largest of the router's scores."""
    sizes = {"hidden": 16, "heads": 2, "kv_heads": 1, "layers": 1, "ffn": 24, "vocab": 10}
    cfg = llama.LlamaConfig(name="tiny", **sizes, experts=4, chosen=2)
    rng = np.random.default_rng()
    [layer] = llama.parameters(cfg, jnp.float32, 0)["layers"]
    layer = jax.tree_util.tree_map(lambda leaf: rng.normal(0, 0.5, leaf.shape), layer)
    x, expected = rng.standard_normal((2, 5, 16)), np.zeros((2, 5, 16))
    for place in np.ndindex(2, 5):
        token = x[place]
        scores = token @ layer["router"]["w"]
        chosen = np.argsort(scores)[-2:]
        shares = np.exp(scores[chosen]) / np.exp(scores[chosen]).sum()
        for share, index in zip(shares, chosen, strict=True):
            one = layer["experts"][index]
            gate = token @ one["gate"]["w"]
            up = gate / (1 + np.exp(-gate)) * (token @ one["up"]["w"])
            expected[place] += share * (up @ one["down"]["w"])
    narrow = jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf, jnp.float32), layer)
    found = decoder._feed_forward(cfg, narrow, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def _plain_turned(cfg, x):
    """[length, head_dim]: pairs as complex numbers, turned by their position's angles."""
    count = cfg.rotary or cfg.head_dim
    first, second = np.split(x[:, :count], 2, axis=1)
    angles = np.outer(np.arange(len(x)), cfg.rope_base ** (-np.arange(0, count, 2) / count))
    turned = (first + 1j * second) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag, x[:, count:]], axis=1)


def _plain_slopes(heads):
    """The paper's for a power of two of heads; else those, and every other one of twice as many."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (head + 1) / heads) for head in range(heads)]
    even = 1 << (heads.bit_length() - 1)
    return _plain_slopes(even) + _plain_slopes(2 * even)[::2][: heads - even]


def _plain_decoder(cfg, params, tokens):
    """Logits [length, vocab] of one sequence: each family's definition, head by head in float64."""

    def dense(weights, x):
        return x @ weights["w"] + weights.get("b", 0.0)

    def attended(layer, x):
        q, k, v = (dense(layer[name], x) for name in "qkv")
        width, mixed, length = cfg.head_dim, [], len(x)
        for head in range(cfg.heads):
            own = slice(head * width, (head + 1) * width)
            shared = head * (cfg.kv_heads or cfg.heads) // cfg.heads
            theirs = slice(shared * width, (shared + 1) * width)
            one, keys = q[:, own], k[:, theirs]
            if cfg.has_head_norms:
                one, keys = plain_norm(cfg, layer["q_norm"], one), plain_norm(cfg, layer["k_norm"], keys)
            if cfg.places == "rotary":
                one, keys = _plain_turned(cfg, one), _plain_turned(cfg, keys)
            scores = one @ keys.T / np.sqrt(width)
            if cfg.places == "alibi":
                ahead = np.subtract.outer(-np.arange(length), -np.arange(length))
                scores = scores + _plain_slopes(cfg.heads)[head] * ahead
            scores = np.where(np.tri(length, dtype=bool), np.exp(scores), 0.0)
            mixed.append(scores / scores.sum(-1, keepdims=True) @ v[:, theirs])
        return dense(layer["o"], np.concatenate(mixed, axis=-1))

    activate = {
        "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
        "gelu_new": lambda x: x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "silu": lambda x: x / (1 + np.exp(-x)),
    }[cfg.activation]

    def fed(layer, x):
        up = dense(layer["up"], x)
        return dense(layer["down"], activate(dense(layer["gate"], x)) * up if cfg.is_gated else activate(up))

    x = params["tokens"][tokens]
    x = x + params["positions"][: len(tokens)] if cfg.places == "table" else x
    x = plain_norm(cfg, params["norm"], x) if cfg.has_embed_norm else x
    for layer in params["layers"]:
        normal = plain_norm(cfg, layer["attention_norm"], x)
        y = attended(layer, normal)
        if cfg.is_parallel:
            x = x + y + fed(layer, plain_norm(cfg, layer["ffn_norm"], x) if cfg.has_ffn_norm else normal)
        else:
            x = x + y
            x = x + fed(layer, plain_norm(cfg, layer["ffn_norm"], x))
    x = plain_norm(cfg, params["final_norm"], x)
    return x @ params["tokens"].T if cfg.is_tied else dense(params["head"], x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("qwen2.5-7b", {"kv_heads": 2}),
        ("qwen3-8b", {"kv_heads": 2, "head_width": 8}),
        ("phi-2", {"rotary": 4}),
        ("starcoder2-3b", {"kv_heads": 2}),
        ("starcoder-15b", {}),
        ("falcon-7b", {}),
        ("falcon-40b", {"kv_heads": 2}),
        ("mpt-7b", {}),
        ("bloom-176b", {"heads": 6, "hidden": 48}),
    ],
)
def test_other_decoders_are_their_definitions(name: str, own: dict[str, int], rng) -> None:
    sizes = {"hidden": 32, "heads": 4, "layers": 2, "ffn": 40, "vocab": 50, "positions": 16}
    cfg = dataclasses.replace(MODELS[name].config(name), **sizes | own)
    given = decoder.parameters(cfg, jnp.float32, 0)
    # Larger weights than a model starts with, so that every part of it moves the result.
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape).astype(np.float32)), given
    )
    wide = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float64), params)
    tokens = rng.integers(0, 50, 9)
    expected = _plain_decoder(cfg, wide, tokens)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * np.abs(expected).max()}
    check_decoder(decoder, cfg, params, tokens[None], expected[None], **tolerance)


@pytest.mark.slow
def test_gpt2_is_transformers_gpt2() -> None:
    cfg = opt.OPTConfig(
        name="tiny", hidden=64, heads=4, layers=2, ffn=256, embed=64, vocab=100, positions=32,
        position_offset=0, activation="gelu_new",
    )  # fmt: skip
    whole, theirs = flax_model(
        "GPT2LMHeadModel",
        transformers.GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4, n_positions=32),
    )
    given = whole["transformer"]
    layers = []
    for index in range(2):
        one = given["h"][str(index)]
        # Their products hold weights transposed, and the first makes queries, keys and values at once.
        weights, biases = (
            jnp.split(one["attn"]["c_attn"]["kernel"].T, 3, 1),
            jnp.split(one["attn"]["c_attn"]["bias"], 3),
        )
        made = {name: {"w": w, "b": b} for name, w, b in zip("qkv", weights, biases, strict=True)}
        others = {"o": one["attn"]["c_proj"], "up": one["mlp"]["c_fc"], "down": one["mlp"]["c_proj"]}
        turned = {name: {"w": part["kernel"].T, "b": part["bias"]} for name, part in others.items()}
        norms = {"attention_norm": norm_of(one["ln_1"]), "ffn_norm": norm_of(one["ln_2"])}
        layers.append(made | turned | norms)
    params = {
        "tokens": given["wte"]["embedding"],
        "positions": given["wpe"]["embedding"],
        "layers": layers,
        "final_norm": norm_of(given["ln_f"]),
    }
    tokens = np.random.default_rng().integers(0, 100, (2, 12))
    check_decoder(gpt, cfg, params, tokens, theirs(tokens).logits, atol=TOLERANCE)


@pytest.mark.slow
def test_bloom_is_transformers_bloom() -> None:
    cfg = opt.OPTConfig(
        name="tiny", hidden=64, heads=4, layers=2, ffn=256, embed=64, vocab=100, activation="gelu_new",
        places="alibi", has_embed_norm=True,
    )  # fmt: skip
    whole, theirs = flax_model(
        "BloomForCausalLM",
        transformers.BloomConfig(vocab_size=100, hidden_size=64, n_layer=2, n_head=4),
    )
    given = whole["transformer"]
    layers = []
    for index in range(2):
        one = given["h"][str(index)]
        made = one["self_attention"]["query_key_value"]
        # The product that makes all three has them side by side in each head.
        weights = jnp.split(made["kernel"].reshape(64, 4, 48), 3, axis=-1)
        biases = jnp.split(made["bias"].reshape(4, 48), 3, axis=-1)
        layers.append(
            {
                **{
                    name: {"w": w.reshape(64, 64), "b": b.reshape(64)}
                    for name, w, b in zip("qkv", weights, biases, strict=True)
                },
                "o": linear_of(one["self_attention"]["dense"]),
                "up": linear_of(one["mlp"]["dense_h_to_4h"]),
                "down": linear_of(one["mlp"]["dense_4h_to_h"]),
                "attention_norm": norm_of(one["input_layernorm"]),
                "ffn_norm": norm_of(one["post_attention_layernorm"]),
            }
        )
    params = {
        "tokens": given["word_embeddings"]["embedding"],
        "norm": norm_of(given["word_embeddings_layernorm"]),
        "layers": layers,
        "final_norm": norm_of(given["ln_f"]),
    }
    tokens = np.random.default_rng().integers(0, 100, (2, 12))
    check_decoder(gpt, cfg, params, tokens, theirs(tokens).logits, atol=TOLERANCE)


def _gptj_parameters(given, cfg):
    """GPT-J's parameters; for GPT-NeoX's form the numbers of a head that turn together are put half a turn
    apart, one norm is given twice and biases are zero: the same function."""
    pairs = np.arange(cfg.rotary).reshape(-1, 2).T.reshape(-1)
    order = pairs if not cfg.is_interleaved else np.arange(cfg.rotary)
    columns = np.concatenate([np.r_[order, cfg.rotary : cfg.head_dim] + start for start in range(0, 64, 16)])
    layers = []
    for index in range(2):
        one = given["transformer"]["h"][str(index)]
        weights = {name: one["attn"][f"{name}_proj"]["kernel"] for name in "qkv"}
        weights |= {name: weights[name][:, columns] for name in "qk"}
        layer = {name: {"w": w} for name, w in weights.items()}
        layer["o"] = {"w": one["attn"]["out_proj"]["kernel"]}
        norms = {"attention_norm": norm_of(one["ln_1"])}
        if cfg.has_ffn_norm:
            layer = {name: part | {"b": jnp.zeros(64)} for name, part in layer.items()}
            norms["ffn_norm"] = norm_of(one["ln_1"])
        layers.append(
            layer | norms | {"up": linear_of(one["mlp"]["fc_in"]), "down": linear_of(one["mlp"]["fc_out"])}
        )
    return {
        "tokens": given["transformer"]["wte"]["embedding"],
        "layers": layers,
        "final_norm": norm_of(given["transformer"]["ln_f"]),
        "head": linear_of(given["lm_head"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("is_gptj", [True, False])
def test_gptj_is_transformers_gptj(is_gptj: bool) -> None:
    kind = gpt.config("gpt-j-6b" if is_gptj else "gpt-neox-20b")
    cfg = dataclasses.replace(kind, **TINY, rotary=8, activation="gelu_new")
    whole, theirs = flax_model(
        "GPTJForCausalLM",
        transformers.GPTJConfig(
            vocab_size=100, n_embd=64, n_layer=2, n_head=4, n_inner=96, n_positions=32, rotary_dim=8
        ),
    )
    params = _gptj_parameters(whole, cfg)
    tokens = np.random.default_rng().integers(0, 100, (2, 12))
    check_decoder(gpt, cfg, params, tokens, theirs(tokens).logits, atol=TOLERANCE)


def test_slow_waves_of_llama_3_are_stretched_and_fast_ones_are_not() -> None:
    cfg = llama.config("llama-3.1-8b")
    # Half a turn and five turns over the 8192 positions of its first training; two lie between.
    turns = np.array([0.5, 5.0, 2.0])
    frequency = jnp.asarray(turns * 2 * np.pi / 8192)
    found = positions.stretched(frequency, cfg.rope_factor) * 8192 / (2 * np.pi)
    np.testing.assert_allclose(found, [0.5 / 8, 5.0, (1 / 3 + 2 / 3 / 8) * 2.0], rtol=1e-5)
    same = positions.stretched(jnp.asarray(turns), llama.config("llama-3-8b").rope_factor)
    np.testing.assert_allclose(same, turns, rtol=1e-6)
