"""BERT, GPT-2, Llama, ResNet and ViT of ``neuronx.models`` against transformers with the same weights."""

import dataclasses
import functools
import itertools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuronx.models import (
    bart,
    bert,
    clip,
    deberta,
    decoder,
    esm,
    gpt,
    llama,
    opt,
    perceiver,
    positions,
    resnet,
    t5,
    text_perceiver,
    vgg,
    vit,
    whisper,
)
from neuronx.models.layers import tensor_parallel, zeros
from neuronx.models.names import MODELS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("USE_TORCH", "0")
transformers = pytest.importorskip("transformers", reason="needs the extra [models]")
pytest.importorskip("flax", reason="needs the extra [models]")

# Sums of up to a few hundred f32 terms, over a few layers.
_TOLERANCE = 2e-5


# What runs once or twice is not worth much compiling.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def _theirs(kind: str, config: Any, **shapes: tuple[int, ...]):
    """Parameters of transformers' model ``Flax<kind>``, all at random, and what computes with them: compiled,
    as op by op most of the time goes into compiling each."""
    model = getattr(transformers, f"Flax{kind}")(config, _do_init=False, **shapes)
    rng = np.random.default_rng()

    def drawn(path, shape):
        around = 1.0 if path[-1].key in ("scale", "weight", "var") else 0.0
        # Images keep their size through convolutions.
        spread = 1.4 / np.sqrt(np.prod(shape.shape[:-1])) if len(shape.shape) == 4 else 0.1
        return jnp.asarray(rng.normal(around, spread, shape.shape).astype(np.float32))

    params = jax.tree_util.tree_map_with_path(drawn, model.params_shape_tree)
    compiled = _jit(lambda params, given, named: model(*given, params=params, **named))
    return params, lambda *given, **named: compiled(params, given, named)


def _linear(params):
    found = {"w": params["kernel"]}
    return found | {"b": params["bias"]} if "bias" in params else found


def _norm(params):
    return {"scale": params["scale"], "bias": params["bias"]}


_TINY = {"name": "tiny", "hidden": 64, "heads": 4, "layers": 2, "ffn": 96, "vocab": 100, "positions": 32}
_THEIR_TINY = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def _check_encoder(cfg, params, theirs) -> None:
    rng = np.random.default_rng()
    tokens, types = rng.integers(0, 100, (3, 20)), rng.integers(0, 2, (3, 20))
    mask = (np.arange(20) < rng.integers(5, 21, (3, 1))).astype(np.int32)
    expected = theirs(tokens, attention_mask=mask, token_type_ids=types)
    hidden, pooled = _jit(functools.partial(bert.encode, cfg))(
        params, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(types)
    )
    np.testing.assert_allclose(hidden, expected.last_hidden_state, atol=_TOLERANCE)
    np.testing.assert_allclose(pooled, expected.pooler_output, atol=_TOLERANCE)


def _check_decoder(models, cfg, params, tokens, expected, **tolerance: float) -> None:
    """The last two tokens come one by one: the cache must give what the whole sequence gives."""
    rows, length = tokens.shape
    cache = zeros(models.cache_shapes(cfg, rows, length + 4, jnp.float32))
    read = _jit(functools.partial(models.prefill, cfg))
    token, logits, cache = read(params, cache, jnp.asarray(tokens[:, :-2]))
    np.testing.assert_allclose(logits, expected[:, length - 3], **tolerance)
    assert (token == jnp.argmax(logits, axis=-1)).all()
    step = _jit(functools.partial(models.decode, cfg))
    for position in (length - 2, length - 1):
        _, logits, cache = step(params, cache, jnp.asarray(tokens[:, position]), jnp.int32(position))
        np.testing.assert_allclose(logits, expected[:, position], **tolerance)


def _bert_parameters(given):
    """The parameters of transformers' BERT and RoBERTa, which has the same names."""
    embeddings = given["embeddings"]
    layers = []
    for index in range(2):
        one = given["encoder"]["layer"][str(index)]
        attention = one["attention"]
        layers.append(
            {
                **{name[0]: _linear(attention["self"][name]) for name in ("query", "key", "value")},
                "o": _linear(attention["output"]["dense"]),
                "attention_norm": _norm(attention["output"]["LayerNorm"]),
                "up": _linear(one["intermediate"]["dense"]),
                "down": _linear(one["output"]["dense"]),
                "ffn_norm": _norm(one["output"]["LayerNorm"]),
            }
        )
    return {
        "tokens": embeddings["word_embeddings"]["embedding"],
        "positions": embeddings["position_embeddings"]["embedding"],
        "types": embeddings["token_type_embeddings"]["embedding"],
        "norm": _norm(embeddings["LayerNorm"]),
        "layers": layers,
        "pooler": _linear(given["pooler"]["dense"]),
    }


@pytest.mark.slow
def test_bert_is_transformers_bert() -> None:
    cfg = bert.BertConfig(**_TINY)
    whole, theirs = _theirs(
        "BertModel",
        transformers.BertConfig(**_THEIR_TINY, max_position_embeddings=32),
    )
    _check_encoder(cfg, _bert_parameters(whole), theirs)


@pytest.mark.slow
def test_albert_is_transformers_albert() -> None:
    cfg = bert.BertConfig(**_TINY, embed=16, shares_layers=True, activation="gelu_new")
    whole, theirs = _theirs(
        "AlbertModel",
        transformers.AlbertConfig(**_THEIR_TINY, embedding_size=16, max_position_embeddings=32),
    )
    embeddings, encoder = whole["embeddings"], whole["encoder"]
    one = encoder["albert_layer_groups"]["0"]["albert_layers"]["0"]
    attention = one["attention"]
    layer = {
        **{name[0]: _linear(attention[name]) for name in ("query", "key", "value")},
        "o": _linear(attention["dense"]),
        "attention_norm": _norm(attention["LayerNorm"]),
        "up": _linear(one["ffn"]),
        "down": _linear(one["ffn_output"]),
        "ffn_norm": _norm(one["full_layer_layer_norm"]),
    }
    params = {
        "tokens": embeddings["word_embeddings"]["embedding"],
        "positions": embeddings["position_embeddings"]["embedding"],
        "types": embeddings["token_type_embeddings"]["embedding"],
        "norm": _norm(embeddings["LayerNorm"]),
        "widen": _linear(encoder["embedding_hidden_mapping_in"]),
        "layers": [layer],
        "pooler": _linear(whole["pooler"]),
    }
    _check_encoder(cfg, params, theirs)


@pytest.mark.slow
def test_roberta_is_transformers_roberta() -> None:
    cfg = bert.BertConfig(**_TINY, types=1, position_offset=2, norm_epsilon=1e-5)
    whole, theirs = _theirs(
        "RobertaModel",
        transformers.RobertaConfig(
            **_THEIR_TINY, max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5
        ),
    )
    # Token 1 is its padding, which has no position.
    tokens = np.random.default_rng().integers(2, 100, (3, 20))
    expected, mask = theirs(tokens), np.ones_like(tokens)
    found = _jit(functools.partial(bert.encode, cfg))(
        _bert_parameters(whole), jnp.asarray(tokens), mask, 0 * tokens
    )
    np.testing.assert_allclose(found[0], expected.last_hidden_state, atol=_TOLERANCE)
    np.testing.assert_allclose(found[1], expected.pooler_output, atol=_TOLERANCE)


def _nearness(ahead: int) -> int:
    """Row of MPNet's table of biases for a key so many positions ahead: near ones have one each."""
    far, side = abs(ahead), 16 if ahead > 0 else 0
    return side + (far if far < 8 else min(15, 8 + int(math.log(far / 8) / math.log(128 / 8) * 8)))


@pytest.mark.slow
def test_scores_of_mpnet_are_biased_by_distance(rng) -> None:
    sizes = {"hidden": 16, "heads": 2, "layers": 1, "ffn": 24, "vocab": 50, "positions": 200}
    cfg = dataclasses.replace(bert.config("mpnet-base"), **sizes)
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape).astype(np.float32)),
        bert.parameters(cfg, jnp.float32, 0),
    )
    wide = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float64), params)
    [layer], tokens = wide["layers"], rng.integers(2, 50, 180)

    def dense(name, x):
        return x @ layer[name]["w"] + layer[name]["b"]

    x = _plain_norm(cfg, wide["norm"], wide["tokens"][tokens] + wide["positions"][2 : 2 + len(tokens)])
    places, mixed = range(len(tokens)), []
    rows = np.array([[_nearness(key - query) for key in places] for query in places])
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        q, k, v = (dense(name, x)[:, own] for name in "qkv")
        scores = np.exp(q @ k.T / np.sqrt(8) + wide["distances"][rows, head])
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
    x = _plain_norm(cfg, layer["attention_norm"], x + dense("o", np.concatenate(mixed, axis=-1)))
    up = dense("up", x)
    up = up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2)))
    expected = _plain_norm(cfg, layer["ffn_norm"], x + dense("down", up))
    given = jnp.asarray(tokens[None])
    hidden, _ = _jit(functools.partial(bert.encode, cfg))(params, given, jnp.ones_like(given), given)
    np.testing.assert_allclose(hidden[0], expected, rtol=1e-3, atol=1e-4)


def test_esm_is_the_one_of_transformers_source(rng) -> None:
    cfg = esm.ESMConfig(name="tiny", hidden=16, heads=2, layers=1)
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape).astype(np.float32)),
        esm.parameter_shapes(cfg, jnp.float32),
    )
    wide = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float64), params)
    [layer], tokens, length = wide["layers"], rng.integers(4, 32, 7), 5
    tokens[1] = 32

    def dense(name, x):
        return x @ layer[name]["w"] + layer[name]["b"]

    def turned(x):
        both = (x[:, :4] + 1j * x[:, 4:]) * np.exp(
            1j * np.outer(np.arange(length), 1e4 ** (-np.arange(4) / 4))
        )
        return np.concatenate([both.real, both.imag], axis=1)

    # One of five is hidden, 12 of 100 were when it was trained.
    x = wide["tokens"][tokens[:length]] * (tokens[:length] != 32)[:, None] * 0.88 / 0.8
    normal, mixed = _wide_norm(layer["attention_norm"], x), []
    for q, k, v in zip(*(np.split(dense(name, normal), 2, axis=1) for name in "qkv"), strict=True):
        scores = np.exp(turned(q) @ turned(k).T / np.sqrt(8))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
    x = x + dense("o", np.concatenate(mixed, axis=1))
    up = dense("up", _wide_norm(layer["ffn_norm"], x))
    x = x + dense("down", up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2))))
    given, mask = jnp.asarray(tokens[None]), (jnp.arange(7) < length)[None].astype(jnp.int32)
    found = _jit(functools.partial(esm.encode, cfg))(params, given, mask)
    np.testing.assert_allclose(found[0, :length], _wide_norm(wide["norm"], x), rtol=1e-3, atol=1e-4)


def _log_bucket(behind: int) -> int:
    """make_log_bucket_position of transformers' modeling_deberta_v2.py, of one distance."""
    if abs(behind) <= 128:
        return behind
    return int(
        math.copysign(math.ceil(math.log(abs(behind) / 128) / math.log(511 / 128) * 127) + 128, behind)
    )


def test_deberta_is_the_one_of_transformers_source(rng) -> None:
    cfg = deberta.DebertaConfig(name="tiny", hidden=16, heads=2, layers=1, ffn=24, vocab=30)
    params = jax.tree_util.tree_map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape).astype(np.float32)),
        deberta.parameter_shapes(cfg, jnp.float32),
    )
    wide = jax.tree_util.tree_map(lambda leaf: np.asarray(leaf, np.float64), params)
    [layer], length = wide["layers"], 150
    tokens = rng.integers(0, 30, length)
    norm = functools.partial(
        _plain_norm, dataclasses.replace(bert.config("bert-base-uncased"), norm_epsilon=1e-7)
    )

    def heads(name, x):
        return np.split(x @ layer[name]["w"] + layer[name]["b"], 2, axis=1)

    x, mixed = norm(wide["norm"], wide["tokens"][tokens]), []
    far = norm(wide["distance_norm"], wide["distances"])
    rows = np.array([[_log_bucket(i - j) + 256 for j in range(length)] for i in range(length)])
    parts = zip(*(heads(name, x) for name in "qkv"), *(heads(name, far) for name in "qk"), strict=True)
    for q, k, v, far_q, far_k in parts:
        scores = q @ k.T + np.take_along_axis(q @ far_k.T, rows, axis=1)
        scores = np.exp((scores + np.take_along_axis(far_q @ k.T, rows, axis=0)) / np.sqrt(3 * 8))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
    x = norm(layer["attention_norm"], x + np.concatenate(mixed, axis=1) @ layer["o"]["w"] + layer["o"]["b"])
    up = x @ layer["up"]["w"] + layer["up"]["b"]
    up = up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2)))
    expected = norm(layer["ffn_norm"], x + up @ layer["down"]["w"] + layer["down"]["b"])
    given = jnp.asarray(tokens[None])
    found = _jit(functools.partial(deberta.encode, cfg))(params, given, jnp.ones_like(given))
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_distilbert_is_transformers_distilbert() -> None:
    cfg = bert.BertConfig(**_TINY, types=0, has_pooler=False)
    whole, theirs = _theirs(
        "DistilBertModel",
        transformers.DistilBertConfig(
            vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=96, max_position_embeddings=32
        ),
    )
    embeddings, layers = whole["embeddings"], []
    for index in range(2):
        one = whole["transformer"]["layer"][str(index)]
        layers.append(
            {
                **{name: _linear(one["attention"][f"{name}_lin"]) for name in "qkv"},
                "o": _linear(one["attention"]["out_lin"]),
                "attention_norm": _norm(one["sa_layer_norm"]),
                "up": _linear(one["ffn"]["lin1"]),
                "down": _linear(one["ffn"]["lin2"]),
                "ffn_norm": _norm(one["output_layer_norm"]),
            }
        )
    params = {
        "tokens": embeddings["word_embeddings"]["embedding"],
        "positions": embeddings["position_embeddings"]["embedding"],
        "norm": _norm(embeddings["LayerNorm"]),
        "layers": layers,
    }
    tokens = np.random.default_rng().integers(0, 100, (3, 20))
    mask = (np.arange(20) < [[20], [11], [5]]).astype(np.int32)
    expected = theirs(tokens, attention_mask=mask).last_hidden_state
    [hidden] = _jit(functools.partial(bert.encode, cfg))(
        params, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(tokens)
    )
    np.testing.assert_allclose(hidden, expected, atol=_TOLERANCE)


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
    whole, theirs = _theirs(
        f"{kind}ForCausalLM",
        getattr(transformers, f"{kind}Config")(
            **_THEIR_TINY,
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
                **{name: _linear(one["self_attn"][f"{name}_proj"]) for name in ("q", "k", "v", "o")},
                "ffn_norm": one["post_attention_layernorm"]["weight"],
                **{name: _linear(one["mlp"][f"{name}_proj"]) for name in ("gate", "up", "down")},
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
        params["head"] = _linear(whole["lm_head"])
    tokens = np.random.default_rng().integers(0, 100, (2, 12))
    _check_decoder(llama, cfg, params, tokens, theirs(tokens).logits, atol=_TOLERANCE)


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


def _plain_norm(cfg, weights, x):
    if isinstance(weights, dict):
        weights, x = weights | {"bias": weights.get("bias", 0.0)}, x - x.mean(-1, keepdims=True)
    else:
        weights = {"scale": weights, "bias": 0.0}
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_epsilon) * weights["scale"] + weights["bias"]


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
                one, keys = _plain_norm(cfg, layer["q_norm"], one), _plain_norm(cfg, layer["k_norm"], keys)
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
    x = _plain_norm(cfg, params["norm"], x) if cfg.has_embed_norm else x
    for layer in params["layers"]:
        normal = _plain_norm(cfg, layer["attention_norm"], x)
        y = attended(layer, normal)
        if cfg.is_parallel:
            x = x + y + fed(layer, _plain_norm(cfg, layer["ffn_norm"], x) if cfg.has_ffn_norm else normal)
        else:
            x = x + y
            x = x + fed(layer, _plain_norm(cfg, layer["ffn_norm"], x))
    x = _plain_norm(cfg, params["final_norm"], x)
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
    _check_decoder(decoder, cfg, params, tokens[None], expected[None], **tolerance)


@pytest.mark.slow
def test_gpt2_is_transformers_gpt2() -> None:
    cfg = opt.OPTConfig(
        name="tiny", hidden=64, heads=4, layers=2, ffn=256, embed=64, vocab=100, positions=32,
        position_offset=0, activation="gelu_new",
    )  # fmt: skip
    whole, theirs = _theirs(
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
        layers.append(made | turned | {"attention_norm": _norm(one["ln_1"]), "ffn_norm": _norm(one["ln_2"])})
    params = {
        "tokens": given["wte"]["embedding"],
        "positions": given["wpe"]["embedding"],
        "layers": layers,
        "final_norm": _norm(given["ln_f"]),
    }
    tokens = np.random.default_rng().integers(0, 100, (2, 12))
    _check_decoder(gpt, cfg, params, tokens, theirs(tokens).logits, atol=_TOLERANCE)


@pytest.mark.slow
def test_bloom_is_transformers_bloom() -> None:
    cfg = opt.OPTConfig(
        name="tiny", hidden=64, heads=4, layers=2, ffn=256, embed=64, vocab=100, activation="gelu_new",
        places="alibi", has_embed_norm=True,
    )  # fmt: skip
    whole, theirs = _theirs(
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
                "o": _linear(one["self_attention"]["dense"]),
                "up": _linear(one["mlp"]["dense_h_to_4h"]),
                "down": _linear(one["mlp"]["dense_4h_to_h"]),
                "attention_norm": _norm(one["input_layernorm"]),
                "ffn_norm": _norm(one["post_attention_layernorm"]),
            }
        )
    params = {
        "tokens": given["word_embeddings"]["embedding"],
        "norm": _norm(given["word_embeddings_layernorm"]),
        "layers": layers,
        "final_norm": _norm(given["ln_f"]),
    }
    tokens = np.random.default_rng().integers(0, 100, (2, 12))
    _check_decoder(gpt, cfg, params, tokens, theirs(tokens).logits, atol=_TOLERANCE)


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
        norms = {"attention_norm": _norm(one["ln_1"])}
        if cfg.has_ffn_norm:
            layer = {name: part | {"b": jnp.zeros(64)} for name, part in layer.items()}
            norms["ffn_norm"] = _norm(one["ln_1"])
        layers.append(
            layer | norms | {"up": _linear(one["mlp"]["fc_in"]), "down": _linear(one["mlp"]["fc_out"])}
        )
    return {
        "tokens": given["transformer"]["wte"]["embedding"],
        "layers": layers,
        "final_norm": _norm(given["transformer"]["ln_f"]),
        "head": _linear(given["lm_head"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("is_gptj", [True, False])
def test_gptj_is_transformers_gptj(is_gptj: bool) -> None:
    kind = gpt.config("gpt-j-6b" if is_gptj else "gpt-neox-20b")
    cfg = dataclasses.replace(kind, **_TINY, rotary=8, activation="gelu_new")
    whole, theirs = _theirs(
        "GPTJForCausalLM",
        transformers.GPTJConfig(
            vocab_size=100, n_embd=64, n_layer=2, n_head=4, n_inner=96, n_positions=32, rotary_dim=8
        ),
    )
    params = _gptj_parameters(whole, cfg)
    tokens = np.random.default_rng().integers(0, 100, (2, 12))
    _check_decoder(gpt, cfg, params, tokens, theirs(tokens).logits, atol=_TOLERANCE)


def _widened(params, to):
    """Zeros behind each weight, up to the shapes of ``to``."""

    def wider(leaf, to):
        return jnp.pad(leaf, [(0, there - here) for here, there in zip(leaf.shape, to.shape, strict=True)])

    return jax.tree_util.tree_map(wider, params, to)


def _t5_stack(given, reads):
    def heads(one):
        return {name: _linear(one[name]) for name in "qkvo"}

    layers = []
    for index in range(2):
        one = given["block"][str(index)]["layer"]
        first, last = one["0"], one["1" if reads else "2"]
        products = last["DenseReluDense"]
        names = {"wi": "up", "wi_0": "gate", "wi_1": "up", "wo": "down"}
        layer = {
            **heads(first["SelfAttention"]),
            "attention_norm": first["layer_norm"]["weight"],
            "ffn_norm": last["layer_norm"]["weight"],
            **{names[name]: _linear(part) for name, part in products.items()},
        }
        if not reads:
            source = {"source": heads(one["1"]["EncDecAttention"])}
            layer |= source | {"source_norm": one["1"]["layer_norm"]["weight"]}
        layers.append(layer)
    distances = given["block"]["0"]["layer"]["0"]["SelfAttention"]["relative_attention_bias"]["embedding"]
    return {"layers": layers, "distances": distances, "final_norm": given["final_layer_norm"]["weight"]}


@pytest.mark.slow
@pytest.mark.parametrize("is_gated", [False, True])
def test_t5_is_transformers_t5(is_gated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Theirs calls it by an older name of the argument.
    clip = jnp.clip
    monkeypatch.setattr(jnp, "clip", lambda x, *, a_max=None, **bounds: clip(x, max=a_max, **bounds))
    sizes = {"hidden": 64, "heads": 4, "layers": 2, "ffn": 96, "head_dim": 8, "vocab": 100}
    cfg = t5.T5Config(name="tiny", **sizes, is_gated=is_gated)
    given, theirs = _theirs(
        "T5ForConditionalGeneration",
        transformers.T5Config(
            vocab_size=100, d_model=64, d_kv=8, d_ff=96, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu" if is_gated else "relu", tie_word_embeddings=not is_gated,
            decoder_start_token_id=0,
        ),
    )  # fmt: skip
    params = {
        "tokens": given["shared"]["embedding"],
        "reader": _t5_stack(given["encoder"], True),
        "writer": _t5_stack(given["decoder"], False),
    }
    if is_gated:
        params["head"] = _linear(given["lm_head"])
    rng = np.random.default_rng()
    # Longer than the near distances, which have a bias each, and the farthest of all.
    source, answer = rng.integers(1, 100, (2, 150)), rng.integers(1, 100, (2, 20))
    answer[:, 0] = 0
    expected = theirs(source, decoder_input_ids=answer).logits
    # The size as it is, and for three cores: two heads and two tokens of zeros more.
    wide = t5.padded(cfg, 3)
    assert (wide.extra_heads, wide.vocab) == (2, 102)
    for size, weights in ((cfg, params), (wide, _widened(params, t5.parameter_shapes(wide, jnp.float32)))):
        read = _jit(functools.partial(t5.prefill, size))
        empty = zeros(t5.cache_shapes(size, 2, 160, jnp.float32))
        _, logits, cache = read(weights, empty, jnp.asarray(source))
        np.testing.assert_allclose(logits[:, :100], expected[:, 0], atol=2e-4, rtol=1e-4)
        assert jax.tree_util.tree_map(jnp.shape, cache) == jax.tree_util.tree_map(jnp.shape, empty)
        step = _jit(functools.partial(t5.decode, size))
        for position in range(1, 20):
            token = jnp.asarray(answer[:, position])
            _, logits, cache = step(weights, cache, token, jnp.int32(position))
            np.testing.assert_allclose(logits[:, :100], expected[:, position], atol=2e-4, rtol=1e-4)


def _whisper_layer(one):
    def heads(given):
        return {name[0]: _linear(given[name]) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}

    layer = {
        **heads(one["self_attn"]),
        "attention_norm": _norm(one["self_attn_layer_norm"]),
        "up": _linear(one["fc1"]),
        "down": _linear(one["fc2"]),
        "ffn_norm": _norm(one["final_layer_norm"]),
    }
    if "encoder_attn" in one:
        layer["source"] = heads(one["encoder_attn"])
        layer["source_norm"] = _norm(one["encoder_attn_layer_norm"])
    return layer


@pytest.mark.slow
def test_whisper_is_transformers_whisper() -> None:
    sizes = {"hidden": 64, "heads": 4, "layers": 2, "writers": 1, "ffn": 96}
    cfg = whisper.WhisperConfig(name="tiny", **sizes, mels=10, vocab=100, frames=24, positions=32)
    whole, theirs = _theirs(
        "WhisperForConditionalGeneration",
        transformers.WhisperConfig(
            vocab_size=100, d_model=64, num_mel_bins=10, encoder_layers=2, decoder_layers=1,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96,
            max_source_positions=12, max_target_positions=32, pad_token_id=0, bos_token_id=1,
            eos_token_id=2, decoder_start_token_id=1,
        ),
        input_shape=(1, 10, 24),
    )  # fmt: skip
    given = whole["model"]
    windows = [given["encoder"][name] for name in ("conv1", "conv2")]
    params = {
        "tokens": given["decoder"]["embed_tokens"]["embedding"],
        "hearer": {
            "windows": [{"w": window["kernel"][None], "b": window["bias"]} for window in windows],
            "positions": given["encoder"]["embed_positions"]["embedding"],
            "layers": [_whisper_layer(given["encoder"]["layers"][str(index)]) for index in range(2)],
            "final_norm": _norm(given["encoder"]["layer_norm"]),
        },
        "writer": {
            "positions": given["decoder"]["embed_positions"]["embedding"],
            "layers": [_whisper_layer(given["decoder"]["layers"]["0"])],
            "final_norm": _norm(given["decoder"]["layer_norm"]),
        },
    }
    rng = np.random.default_rng()
    sound, text = rng.standard_normal((2, 24, 10), dtype=np.float32), rng.integers(3, 100, (2, 9))
    heard = jnp.asarray(sound.transpose(0, 2, 1))
    expected = theirs(heard, text).logits
    # The size as it is, and for three cores: two heads and two tokens of zeros more.
    wide = whisper.padded(cfg, 3)
    assert (wide.extra_heads, wide.vocab) == (2, 102)
    for size, weights in (
        (cfg, params),
        (wide, _widened(params, whisper.parameter_shapes(wide, jnp.float32))),
    ):
        read = _jit(functools.partial(whisper.prefill, size))
        empty = zeros(whisper.cache_shapes(size, 2, 16, jnp.float32))
        _, logits, cache = read(weights, empty, jnp.asarray(sound), jnp.asarray(text[:, :7]))
        np.testing.assert_allclose(logits[:, :100], expected[:, 6], atol=_TOLERANCE)
        assert jax.tree_util.tree_map(jnp.shape, cache) == jax.tree_util.tree_map(jnp.shape, empty)
        step = _jit(functools.partial(whisper.decode, size))
        for position in (7, 8):
            _, logits, cache = step(weights, cache, jnp.asarray(text[:, position]), jnp.int32(position))
            np.testing.assert_allclose(logits[:, :100], expected[:, position], atol=_TOLERANCE)


@pytest.mark.slow
def test_bart_is_transformers_bart() -> None:
    sizes = {"hidden": 32, "heads": 2, "layers": 1, "writers": 1, "ffn": 48, "vocab": 60, "places": 20}
    cfg = bart.BartConfig(name="tiny", **sizes)
    whole, theirs = _theirs(
        "BartForConditionalGeneration",
        transformers.BartConfig(
            vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=20,
        ),
    )  # fmt: skip
    given = whole["model"]

    def stack(one):
        layer = _whisper_layer(one["layers"]["0"])
        table = one["embed_positions"]["embedding"]
        return {"positions": table, "norm": _norm(one["layernorm_embedding"]), "layers": [layer]}

    params = {
        "tokens": given["shared"]["embedding"],
        "reader": stack(given["encoder"]),
        "writer": stack(given["decoder"]),
        "bias": whole["final_logits_bias"][0],
    }
    rng = np.random.default_rng()
    source, text = rng.integers(3, 60, (2, 7)), rng.integers(3, 60, (2, 3))
    text[:, 0] = cfg.start
    expected = theirs(source, decoder_input_ids=text).logits
    empty = zeros(bart.cache_shapes(cfg, 2, 10, jnp.float32))
    _, logits, cache = _jit(functools.partial(bart.prefill, cfg))(params, empty, jnp.asarray(source))
    np.testing.assert_allclose(logits, expected[:, 0], atol=_TOLERANCE)
    step = _jit(functools.partial(bart.decode, cfg))
    for position in (1, 2):
        _, logits, cache = step(params, cache, jnp.asarray(text[:, position]), jnp.int32(position))
        np.testing.assert_allclose(logits, expected[:, position], atol=_TOLERANCE)


@pytest.mark.slow
def test_vit_is_transformers_vit() -> None:
    cfg = vit.ViTConfig(name="tiny", hidden=64, heads=4, layers=2, ffn=96, patch=4, image=16, classes=10)
    whole, theirs = _theirs(
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
                **{name[0]: _linear(attention[name]) for name in ("query", "key", "value")},
                "o": _linear(one["attention"]["output"]["dense"]),
                "attention_norm": _norm(one["layernorm_before"]),
                "up": _linear(one["intermediate"]["dense"]),
                "down": _linear(one["output"]["dense"]),
                "ffn_norm": _norm(one["layernorm_after"]),
            }
        )
    patches = given["embeddings"]["patch_embeddings"]["projection"]
    params = {
        "patches": {"w": patches["kernel"].reshape(-1, 64), "b": patches["bias"]},
        "class_token": given["embeddings"]["cls_token"].reshape(64),
        "positions": given["embeddings"]["position_embeddings"][0],
        "layers": layers,
        "final_norm": _norm(given["layernorm"]),
        "head": _linear(whole["classifier"]),
    }
    images = np.random.default_rng().standard_normal((2, 16, 16, 3), dtype=np.float32)
    expected = theirs(jnp.asarray(images.transpose(0, 3, 1, 2))).logits
    np.testing.assert_allclose(
        _jit(functools.partial(vit.classify, cfg))(params, jnp.asarray(images)), expected, atol=1e-4
    )


def _clip_tower(given):
    layers = []
    for index in range(2):
        one = given["encoder"]["layers"][str(index)]
        layers.append(
            {
                **{name: _linear(one["self_attn"][f"{name}_proj"]) for name in "qkv"},
                "o": _linear(one["self_attn"]["out_proj"]),
                "attention_norm": _norm(one["layer_norm1"]),
                "up": _linear(one["mlp"]["fc1"]),
                "down": _linear(one["mlp"]["fc2"]),
                "ffn_norm": _norm(one["layer_norm2"]),
            }
        )
    return {"positions": given["embeddings"]["position_embedding"]["embedding"], "layers": layers}


@pytest.mark.slow
def test_clip_is_transformers_clip() -> None:
    sizes = {"hidden": 64, "heads": 4, "layers": 2, "ffn": 96}
    towers = {"vision": clip.Tower(**sizes), "text": clip.Tower(**sizes)}
    cfg = clip.CLIPConfig(name="tiny", **towers, width=24, patch=4, image=16, vocab=100, positions=32)
    their_text = {**_THEIR_TINY, "max_position_embeddings": 32, "eos_token_id": 2}
    their_vision = {**_THEIR_TINY, "image_size": 16, "patch_size": 4}
    whole, theirs = _theirs(
        "CLIPModel",
        transformers.CLIPConfig(text_config=their_text, vision_config=their_vision, projection_dim=24),
    )
    text, vision = whole["text_model"], whole["vision_model"]
    params = {
        "text": {
            **_clip_tower(text),
            "tokens": text["embeddings"]["token_embedding"]["embedding"],
            "final_norm": _norm(text["final_layer_norm"]),
            "project": _linear(whole["text_projection"]),
        },
        "vision": {
            **_clip_tower(vision),
            "patches": {"w": vision["embeddings"]["patch_embedding"]["kernel"].reshape(-1, 64)},
            "class_token": vision["embeddings"]["class_embedding"],
            "norm": _norm(vision["pre_layrnorm"]),
            "final_norm": _norm(vision["post_layernorm"]),
            "project": _linear(whole["visual_projection"]),
        },
        "temperature": whole["logit_scale"],
    }
    rng = np.random.default_rng()
    images, tokens = rng.standard_normal((3, 16, 16, 3), dtype=np.float32), rng.integers(0, 100, (3, 20))
    expected = theirs(jnp.asarray(tokens), jnp.asarray(images.transpose(0, 3, 1, 2))).logits_per_image
    found = _jit(functools.partial(clip.match, cfg))(params, jnp.asarray(images), jnp.asarray(tokens))
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
    whole, theirs = _theirs(
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
    head = _linear(whole["params"]["classifier"]["1"])
    params = {"stem": fold("embedder", "embedder"), "stages": stages, "head": head}
    images = np.random.default_rng().standard_normal((2, 32, 32, 3), dtype=np.float32)
    expected = theirs(jnp.asarray(images.transpose(0, 3, 1, 2))).logits
    np.testing.assert_allclose(
        _jit(functools.partial(resnet.classify, cfg))(params, jnp.asarray(images)), expected, atol=1e-4
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
    found = _jit(functools.partial(resnet.classify, cfg))(params, images)
    # The tiny weights leave little but the bias of the head.
    assert np.ptp(np.asarray(expected), axis=0).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def _wide_norm(weights, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights["scale"] + weights["bias"]


def _wide_perceiver_layer(one, x, inputs, heads, *, is_kept=True):
    """PerceiverLayer of transformers' modeling_perceiver.py, line by line, of one image in float64."""

    def dense(name, x):
        return x @ one[name]["w"] + one[name]["b"]

    normal = _wide_norm(one["attention_norm"], x)
    read = normal if inputs is None else _wide_norm(one["input_norm"], inputs)
    q, k, v = dense("q", normal), dense("k", read), dense("v", read)
    mixed = []
    for query, key, value in zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True):
        scores = np.exp(query @ key.T / np.sqrt(key.shape[-1]))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ value)
    x = x * is_kept + dense("o", np.concatenate(mixed, axis=-1))
    up = dense("up", _wide_norm(one["ffn_norm"], x))
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
    found = _jit(functools.partial(perceiver.classify, cfg))(params, jnp.asarray(images))
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
    found = _jit(functools.partial(text_perceiver.fill, cfg))(params, given, mask)
    expected = told @ wide["tokens"].T + wide["bias"]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-7b", 6.74),
        ("llama-30b", 32.53),
        ("llama-65b", 65.29),
        ("llama-2-7b", 6.74),
        ("llama-2-13b", 13.0),
        ("llama-2-70b", 69.0),
        ("llama-3-8b", 8.03),
        ("llama-3.1-70b", 70.6),
        ("llama-3.1-405b", 405.85),
        ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213),
        ("codellama-34b", 33.74),
        ("codellama-70b", 68.98),
        ("tinyllama-1.1b", 1.1),
        ("mistral-7b", 7.24),
        ("mixtral-8x7b", 46.70),
        ("mixtral-8x22b", 140.62),
        ("mistral-7b-v0.3", 7.248),
        ("mistral-nemo-12b", 12.25),
        ("mistral-small-24b", 23.57),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-1.5b", 1.544),
        ("qwen2.5-3b", 3.086),
        ("qwen2.5-7b", 7.616),
        ("qwen2.5-14b", 14.77),
        ("qwen2.5-32b", 32.76),
        ("qwen2.5-72b", 72.71),
        ("qwen3-0.6b", 0.596),
        ("qwen3-4b", 4.02),
        ("qwen3-8b", 8.19),
        ("qwen3-32b", 32.76),
        ("gemma-2b", 2.506),
        ("gemma-7b", 8.538),
        ("phi-3-mini", 3.821),
        ("phi-3-medium", 13.96),
        ("phi-4-14b", 14.66),
        ("yi-6b", 6.061),
        ("yi-34b", 34.39),
        ("solar-10.7b", 10.73),
        ("codestral-22b", 22.25),
        ("mistral-large-123b", 122.61),
        ("qwen1.5-0.5b", 0.464),
        ("qwen1.5-1.8b", 1.837),
        ("qwen1.5-4b", 3.95),
        ("qwen1.5-7b", 7.721),
        ("qwen1.5-14b", 14.17),
        ("qwen1.5-72b", 72.29),
        ("deepseek-r1-distill-qwen-1.5b", 1.777),
        ("yi-9b", 8.829),
        ("open-llama-3b", 3.426),
        ("deepseek-llm-7b", 6.91),
        ("deepseek-llm-67b", 67.43),
        ("baichuan2-7b", 7.506),
        ("baichuan2-13b", 13.90),
        ("internlm2-7b", 7.738),
        ("internlm2-20b", 19.86),
        ("falcon3-1b", 1.669),
        ("falcon3-3b", 3.228),
        ("falcon3-7b", 7.456),
        ("falcon3-10b", 10.31),
        ("granite-3.1-2b", 2.534),
        ("granite-3.1-8b", 8.171),
        ("smollm2-135m", 0.1345),
        ("smollm2-360m", 0.3618),
        ("smollm2-1.7b", 1.711),
        ("aya-23-8b", 8.028),
        ("c4ai-command-r-v01", 34.98),
    ],
)
def test_published_llamas_have_their_published_size(name: str, billions: float) -> None:
    shapes = jax.tree_util.tree_leaves(llama.parameter_shapes(llama.config(name), jnp.bfloat16))
    assert sum(shape.size for shape in shapes) == pytest.approx(billions * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt-j-6b", 6.05),
        ("gpt-neox-20b", 20.55),
        ("codegen-350m", 0.3567),
        ("codegen-2b", 2.779),
        ("codegen-6b", 7.064),
        ("codegen-16b", 16.03),
        ("stablelm-3b-4e1t", 2.795),
        ("stablelm-2-1.6b", 1.6445),
        ("pythia-70m", 0.07043),
        ("pythia-160m", 0.16232),
        ("pythia-410m", 0.40533),
        ("pythia-1b", 1.0118),
        ("pythia-1.4b", 1.415),
        ("pythia-12b", 11.85),
        ("t5-small", 0.060506624),
        ("t5-3b", 2.851598336),
        ("flan-t5-base", 0.247577856),
        ("flan-t5-xl", 2.849757184),
        # With a bias of each token's logit.
        ("bart-base", 0.139470681),
        ("bart-large", 0.406341721),
        ("mbart-large-50", 0.611129542),
        ("opus-mt-en-de", 0.074468597),
        ("mt5-small", 0.300176768),
        ("mt5-base", 0.582401280),
        ("mt5-large", 1.229581312),
        ("mt5-xl", 3.742619648),
        ("whisper-tiny", 0.03776),
        ("whisper-base", 0.07259),
        ("whisper-small", 0.24173),
        ("whisper-medium", 0.76386),
        ("whisper-large", 1.5433),
        ("whisper-large-v3-turbo", 0.80888),
        ("distil-small.en", 0.1661),
        ("distil-medium.en", 0.3944),
        ("bloom-560m", 0.559),
        ("bloom-7b1", 7.069),
        ("bloom-176b", 176.247),
        ("mpt-7b", 6.649),
        ("mpt-30b", 29.96),
        # Without a head of its own.
        ("falcon-7b", 7.217 - 0.295),
        ("falcon-40b", 41.836 - 0.533),
        ("falcon-11b", 11.10),
        ("starcoderbase-1b", 1.137),
        ("starcoderbase-3b", 3.043),
        ("starcoderbase-7b", 7.327),
        ("starcoder-15b", 15.52),
        ("starcoder2-3b", 3.03),
        ("starcoder2-7b", 7.17),
        ("starcoder2-15b", 15.96),
        ("phi-1.5", 1.418),
        ("phi-2", 2.78),
    ],
)
def test_published_decoders_have_their_published_size(name: str, billions: float) -> None:
    module = MODELS[name]
    shapes = jax.tree_util.tree_leaves(module.parameter_shapes(module.config(name), jnp.bfloat16))
    assert sum(shape.size for shape in shapes) == pytest.approx(billions * 1e9, rel=0.005)


def test_slow_waves_of_llama_3_are_stretched_and_fast_ones_are_not() -> None:
    cfg = llama.config("llama-3.1-8b")
    # Half a turn and five turns over the 8192 positions of its first training; two lie between.
    turns = np.array([0.5, 5.0, 2.0])
    frequency = jnp.asarray(turns * 2 * np.pi / 8192)
    found = positions.stretched(frequency, cfg.rope_factor) * 8192 / (2 * np.pi)
    np.testing.assert_allclose(found, [0.5 / 8, 5.0, (1 / 3 + 2 / 3 / 8) * 2.0], rtol=1e-5)
    same = positions.stretched(jnp.asarray(turns), llama.config("llama-3-8b").rope_factor)
    np.testing.assert_allclose(same, turns, rtol=1e-6)


def test_published_encoders_and_classifiers_have_their_published_size() -> None:
    sizes = {
        "bert-base-uncased": (bert, 109.5e6),
        "bert-large-uncased": (bert, 335.1e6),
        "roberta-base": (bert, 124.6e6),
        "distilbert-base-uncased": (bert, 66.4e6),
        "gpt2": (gpt, 124.4e6),
        "gpt2-xl": (gpt, 1557.6e6),
        "vit-base-patch16-224": (vit, 86.6e6),
        "vit-large-patch16-224": (vit, 304.3e6),
        # Batch norms are folded: their scales and means are gone.
        "resnet18": (resnet, 11.69e6),
        "resnet50": (resnet, 25.5e6),
        "resnext50-32x4d": (resnet, 25_028_904),
        "resnext101-32x8d": (resnet, 88_791_336),
        "resnext101-64x4d": (resnet, 83_455_272),
        "wide-resnet50-2": (resnet, 68_883_240),
        "wide-resnet101-2": (resnet, 126_886_696),
        "vgg11": (vgg, 132_863_336),
        "vgg13": (vgg, 133_047_848),
        "vgg16": (vgg, 138_357_544),
        "vgg19": (vgg, 143_667_240),
        "mpnet-base": (bert, 109_486_464),
        "bge-m3": (bert, 567_754_752),
        "bert-base-multilingual-uncased": (bert, 167.4e6),
        "bert-base-chinese": (bert, 102.3e6),
        "multilingual-e5-small": (bert, 117.7e6),
        "labse": (bert, 470.9e6),
        "albert-base-v2": (bert, 11.7e6),
        "albert-large-v2": (bert, 17.7e6),
        "albert-xlarge-v2": (bert, 58.7e6),
        "albert-xxlarge-v2": (bert, 222.6e6),
        "electra-small-discriminator": (bert, 13.5e6),
        "all-minilm-l6-v2": (bert, 22.7e6),
        "deit-tiny-patch16-224": (vit, 5.72e6),
        "deit-small-patch16-224": (vit, 22.05e6),
        "vit-base-patch32-384": (vit, 88.3e6),
        "clip-vit-base-patch32": (clip, 151.3e6),
        "clip-vit-large-patch14": (clip, 427.6e6),
        "vision-perceiver-learned": (perceiver, 62.3e6),
        "language-perceiver": (text_perceiver, 201_108_230),
        "deberta-v3-xsmall": (deberta, 70_682_112),
        "deberta-v3-base": (deberta, 183_831_552),
        "deberta-v3-large": (deberta, 434_012_160),
        "mdeberta-v3-base": (deberta, 278_218_752),
        # Less the head that tells what is hidden.
        "esm2-t6-8m-ur50d": (esm, 7_512_353 - 103_393),
        "esm2-t33-650m-ur50d": (esm, 651.04e6 - 1.64e6),
    }
    for name, (module, count) in sizes.items():
        shapes = jax.tree_util.tree_leaves(module.parameter_shapes(module.config(name), jnp.float32))
        assert sum(shape.size for shape in shapes) == pytest.approx(count, rel=0.005), name


def test_the_classic_plan_cuts_columns_then_rows() -> None:
    params = llama.parameter_shapes(llama.config("llama-2-7b"), jnp.bfloat16)
    specs = tensor_parallel(params)
    layer = specs["layers"][0]
    assert tuple(layer["q"]["w"]) == tuple(layer["gate"]["w"]) == (None, "tp")
    assert tuple(layer["o"]["w"]) == tuple(layer["down"]["w"]) == ("tp",)
    assert tuple(specs["tokens"]) == tuple(layer["ffn_norm"]) == ()
