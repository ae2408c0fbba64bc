"""Models of transformers with random weights, ours held against them, and norms in float64."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuronx.models import bert
from neuronx.models.layers import zeros

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("USE_TORCH", "0")
transformers = pytest.importorskip("transformers", reason="needs the extra [models]")
pytest.importorskip("flax", reason="needs the extra [models]")


# Sums of up to a few hundred f32 terms, over a few layers.
TOLERANCE = 2e-5


# What runs once or twice is not worth much compiling.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def flax_model(kind: str, config: Any, **shapes: tuple[int, ...]):
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
    compiled = quick_jit(lambda params, given, named: model(*given, params=params, **named))
    return params, lambda *given, **named: compiled(params, given, named)


def linear_of(params):
    found = {"w": params["kernel"]}
    return found | {"b": params["bias"]} if "bias" in params else found


def norm_of(params):
    return {"scale": params["scale"], "bias": params["bias"]}


TINY = {"name": "tiny", "hidden": 64, "heads": 4, "layers": 2, "ffn": 96, "vocab": 100, "positions": 32}


THEIR_TINY = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def check_encoder(cfg, params, theirs) -> None:
    rng = np.random.default_rng()
    tokens, types = rng.integers(0, 100, (3, 20)), rng.integers(0, 2, (3, 20))
    mask = (np.arange(20) < rng.integers(5, 21, (3, 1))).astype(np.int32)
    expected = theirs(tokens, attention_mask=mask, token_type_ids=types)
    hidden, pooled = quick_jit(functools.partial(bert.encode, cfg))(
        params, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(types)
    )
    np.testing.assert_allclose(hidden, expected.last_hidden_state, atol=TOLERANCE)
    np.testing.assert_allclose(pooled, expected.pooler_output, atol=TOLERANCE)


def check_decoder(models, cfg, params, tokens, expected, **tolerance: float) -> None:
    """The last two tokens come one by one: the cache must give what the whole sequence gives."""
    rows, length = tokens.shape
    cache = zeros(models.cache_shapes(cfg, rows, length + 4, jnp.float32))
    read = quick_jit(functools.partial(models.prefill, cfg))
    token, logits, cache = read(params, cache, jnp.asarray(tokens[:, :-2]))
    np.testing.assert_allclose(logits, expected[:, length - 3], **tolerance)
    assert (token == jnp.argmax(logits, axis=-1)).all()
    step = quick_jit(functools.partial(models.decode, cfg))
    for position in (length - 2, length - 1):
        _, logits, cache = step(params, cache, jnp.asarray(tokens[:, position]), jnp.int32(position))
        np.testing.assert_allclose(logits, expected[:, position], **tolerance)


def bert_parameters(given):
    """The parameters of transformers' BERT and RoBERTa, which has the same names."""
    embeddings = given["embeddings"]
    layers = []
    for index in range(2):
        one = given["encoder"]["layer"][str(index)]
        attention = one["attention"]
        layers.append(
            {
                **{name[0]: linear_of(attention["self"][name]) for name in ("query", "key", "value")},
                "o": linear_of(attention["output"]["dense"]),
                "attention_norm": norm_of(attention["output"]["LayerNorm"]),
                "up": linear_of(one["intermediate"]["dense"]),
                "down": linear_of(one["output"]["dense"]),
                "ffn_norm": norm_of(one["output"]["LayerNorm"]),
            }
        )
    return {
        "tokens": embeddings["word_embeddings"]["embedding"],
        "positions": embeddings["position_embeddings"]["embedding"],
        "types": embeddings["token_type_embeddings"]["embedding"],
        "norm": norm_of(embeddings["LayerNorm"]),
        "layers": layers,
        "pooler": linear_of(given["pooler"]["dense"]),
    }


def plain_norm(cfg, weights, x):
    if isinstance(weights, dict):
        weights, x = weights | {"bias": weights.get("bias", 0.0)}, x - x.mean(-1, keepdims=True)
    else:
        weights = {"scale": weights, "bias": 0.0}
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_epsilon) * weights["scale"] + weights["bias"]


def wide_norm(weights, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights["scale"] + weights["bias"]
