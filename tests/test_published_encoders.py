"""Encoders of texts in ``neuronx.models`` against transformers of the same weights, or their definitions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers_models import (
    THEIR_TINY,
    TINY,
    TOLERANCE,
    bert_parameters,
    check_encoder,
    flax_model,
    linear_of,
    norm_of,
    plain_norm,
    quick_jit,
    transformers,
    wide_norm,
)

from neuronx.models import bert, deberta, esm


@pytest.mark.slow
def test_bert_is_transformers_bert() -> None:
    cfg = bert.BertConfig(**TINY)
    whole, theirs = flax_model(
        "BertModel",
        transformers.BertConfig(**THEIR_TINY, max_position_embeddings=32),
    )
    check_encoder(cfg, bert_parameters(whole), theirs)


@pytest.mark.slow
def test_albert_is_transformers_albert() -> None:
    cfg = bert.BertConfig(**TINY, embed=16, shares_layers=True, activation="gelu_new")
    whole, theirs = flax_model(
        "AlbertModel",
        transformers.AlbertConfig(**THEIR_TINY, embedding_size=16, max_position_embeddings=32),
    )
    embeddings, encoder = whole["embeddings"], whole["encoder"]
    one = encoder["albert_layer_groups"]["0"]["albert_layers"]["0"]
    attention = one["attention"]
    layer = {
        **{name[0]: linear_of(attention[name]) for name in ("query", "key", "value")},
        "o": linear_of(attention["dense"]),
        "attention_norm": norm_of(attention["LayerNorm"]),
        "up": linear_of(one["ffn"]),
        "down": linear_of(one["ffn_output"]),
        "ffn_norm": norm_of(one["full_layer_layer_norm"]),
    }
    params = {
        "tokens": embeddings["word_embeddings"]["embedding"],
        "positions": embeddings["position_embeddings"]["embedding"],
        "types": embeddings["token_type_embeddings"]["embedding"],
        "norm": norm_of(embeddings["LayerNorm"]),
        "widen": linear_of(encoder["embedding_hidden_mapping_in"]),
        "layers": [layer],
        "pooler": linear_of(whole["pooler"]),
    }
    check_encoder(cfg, params, theirs)


@pytest.mark.slow
def test_roberta_is_transformers_roberta() -> None:
    cfg = bert.BertConfig(**TINY, types=1, position_offset=2, norm_epsilon=1e-5)
    whole, theirs = flax_model(
        "RobertaModel",
        transformers.RobertaConfig(
            **THEIR_TINY, max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5
        ),
    )
    # Token 1 is its padding, which has no position.
    tokens = np.random.default_rng().integers(2, 100, (3, 20))
    expected, mask = theirs(tokens), np.ones_like(tokens)
    found = quick_jit(functools.partial(bert.encode, cfg))(
        bert_parameters(whole), jnp.asarray(tokens), mask, 0 * tokens
    )
    np.testing.assert_allclose(found[0], expected.last_hidden_state, atol=TOLERANCE)
    np.testing.assert_allclose(found[1], expected.pooler_output, atol=TOLERANCE)


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

    x = plain_norm(cfg, wide["norm"], wide["tokens"][tokens] + wide["positions"][2 : 2 + len(tokens)])
    places, mixed = range(len(tokens)), []
    rows = np.array([[_nearness(key - query) for key in places] for query in places])
    for head in range(2):
        own = slice(8 * head, 8 * head + 8)
        q, k, v = (dense(name, x)[:, own] for name in "qkv")
        scores = np.exp(q @ k.T / np.sqrt(8) + wide["distances"][rows, head])
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
    x = plain_norm(cfg, layer["attention_norm"], x + dense("o", np.concatenate(mixed, axis=-1)))
    up = dense("up", x)
    up = up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2)))
    expected = plain_norm(cfg, layer["ffn_norm"], x + dense("down", up))
    given = jnp.asarray(tokens[None])
    hidden, _ = quick_jit(functools.partial(bert.encode, cfg))(params, given, jnp.ones_like(given), given)
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
    normal, mixed = wide_norm(layer["attention_norm"], x), []
    for q, k, v in zip(*(np.split(dense(name, normal), 2, axis=1) for name in "qkv"), strict=True):
        scores = np.exp(turned(q) @ turned(k).T / np.sqrt(8))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
    x = x + dense("o", np.concatenate(mixed, axis=1))
    up = dense("up", wide_norm(layer["ffn_norm"], x))
    x = x + dense("down", up * 0.5 * (1 + np.vectorize(math.erf)(up / np.sqrt(2))))
    given, mask = jnp.asarray(tokens[None]), (jnp.arange(7) < length)[None].astype(jnp.int32)
    found = quick_jit(functools.partial(esm.encode, cfg))(params, given, mask)
    np.testing.assert_allclose(found[0, :length], wide_norm(wide["norm"], x), rtol=1e-3, atol=1e-4)


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
        plain_norm, dataclasses.replace(bert.config("bert-base-uncased"), norm_epsilon=1e-7)
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
    found = quick_jit(functools.partial(deberta.encode, cfg))(params, given, jnp.ones_like(given))
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_distilbert_is_transformers_distilbert() -> None:
    cfg = bert.BertConfig(**TINY, types=0, has_pooler=False)
    whole, theirs = flax_model(
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
                **{name: linear_of(one["attention"][f"{name}_lin"]) for name in "qkv"},
                "o": linear_of(one["attention"]["out_lin"]),
                "attention_norm": norm_of(one["sa_layer_norm"]),
                "up": linear_of(one["ffn"]["lin1"]),
                "down": linear_of(one["ffn"]["lin2"]),
                "ffn_norm": norm_of(one["output_layer_norm"]),
            }
        )
    params = {
        "tokens": embeddings["word_embeddings"]["embedding"],
        "positions": embeddings["position_embeddings"]["embedding"],
        "norm": norm_of(embeddings["LayerNorm"]),
        "layers": layers,
    }
    tokens = np.random.default_rng().integers(0, 100, (3, 20))
    mask = (np.arange(20) < [[20], [11], [5]]).astype(np.int32)
    expected = theirs(tokens, attention_mask=mask).last_hidden_state
    [hidden] = quick_jit(functools.partial(bert.encode, cfg))(
        params, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(tokens)
    )
    np.testing.assert_allclose(hidden, expected, atol=TOLERANCE)
