"""Encoder-decoders in ``neuronx.models`` against transformers with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers_models import TOLERANCE, flax_model, linear_of, norm_of, quick_jit, transformers

from neuronx.models import bart, t5, whisper
from neuronx.models.layers import zeros


def _widened(params, to):
    """Zeros behind each weight, up to the shapes of ``to``."""

    def wider(leaf, to):
        return jnp.pad(leaf, [(0, there - here) for here, there in zip(leaf.shape, to.shape, strict=True)])

    return jax.tree_util.tree_map(wider, params, to)


def _t5_stack(given, reads):
    def heads(one):
        return {name: linear_of(one[name]) for name in "qkvo"}

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
            **{names[name]: linear_of(part) for name, part in products.items()},
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
    given, theirs = flax_model(
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
        params["head"] = linear_of(given["lm_head"])
    rng = np.random.default_rng()
    # Longer than the near distances, which have a bias each, and the farthest of all.
    source, answer = rng.integers(1, 100, (2, 150)), rng.integers(1, 100, (2, 20))
    answer[:, 0] = 0
    expected = theirs(source, decoder_input_ids=answer).logits
    # The size as it is, and for three cores: two heads and two tokens of zeros more.
    wide = t5.padded(cfg, 3)
    assert (wide.extra_heads, wide.vocab) == (2, 102)
    for size, weights in ((cfg, params), (wide, _widened(params, t5.parameter_shapes(wide, jnp.float32)))):
        read = quick_jit(functools.partial(t5.prefill, size))
        empty = zeros(t5.cache_shapes(size, 2, 160, jnp.float32))
        _, logits, cache = read(weights, empty, jnp.asarray(source))
        np.testing.assert_allclose(logits[:, :100], expected[:, 0], atol=2e-4, rtol=1e-4)
        assert jax.tree_util.tree_map(jnp.shape, cache) == jax.tree_util.tree_map(jnp.shape, empty)
        step = quick_jit(functools.partial(t5.decode, size))
        for position in range(1, 20):
            token = jnp.asarray(answer[:, position])
            _, logits, cache = step(weights, cache, token, jnp.int32(position))
            np.testing.assert_allclose(logits[:, :100], expected[:, position], atol=2e-4, rtol=1e-4)


def _whisper_layer(one):
    def heads(given):
        return {name[0]: linear_of(given[name]) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}

    layer = {
        **heads(one["self_attn"]),
        "attention_norm": norm_of(one["self_attn_layer_norm"]),
        "up": linear_of(one["fc1"]),
        "down": linear_of(one["fc2"]),
        "ffn_norm": norm_of(one["final_layer_norm"]),
    }
    if "encoder_attn" in one:
        layer["source"] = heads(one["encoder_attn"])
        layer["source_norm"] = norm_of(one["encoder_attn_layer_norm"])
    return layer


@pytest.mark.slow
def test_whisper_is_transformers_whisper() -> None:
    sizes = {"hidden": 64, "heads": 4, "layers": 2, "writers": 1, "ffn": 96}
    cfg = whisper.WhisperConfig(name="tiny", **sizes, mels=10, vocab=100, frames=24, positions=32)
    whole, theirs = flax_model(
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
            "final_norm": norm_of(given["encoder"]["layer_norm"]),
        },
        "writer": {
            "positions": given["decoder"]["embed_positions"]["embedding"],
            "layers": [_whisper_layer(given["decoder"]["layers"]["0"])],
            "final_norm": norm_of(given["decoder"]["layer_norm"]),
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
        read = quick_jit(functools.partial(whisper.prefill, size))
        empty = zeros(whisper.cache_shapes(size, 2, 16, jnp.float32))
        _, logits, cache = read(weights, empty, jnp.asarray(sound), jnp.asarray(text[:, :7]))
        np.testing.assert_allclose(logits[:, :100], expected[:, 6], atol=TOLERANCE)
        assert jax.tree_util.tree_map(jnp.shape, cache) == jax.tree_util.tree_map(jnp.shape, empty)
        step = quick_jit(functools.partial(whisper.decode, size))
        for position in (7, 8):
            _, logits, cache = step(weights, cache, jnp.asarray(text[:, position]), jnp.int32(position))
            np.testing.assert_allclose(logits[:, :100], expected[:, position], atol=TOLERANCE)


@pytest.mark.slow
def test_bart_is_transformers_bart() -> None:
    sizes = {"hidden": 32, "heads": 2, "layers": 1, "writers": 1, "ffn": 48, "vocab": 60, "places": 20}
    cfg = bart.BartConfig(name="tiny", **sizes)
    whole, theirs = flax_model(
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
        return {"positions": table, "norm": norm_of(one["layernorm_embedding"]), "layers": [layer]}

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
    _, logits, cache = quick_jit(functools.partial(bart.prefill, cfg))(params, empty, jnp.asarray(source))
    np.testing.assert_allclose(logits, expected[:, 0], atol=TOLERANCE)
    step = quick_jit(functools.partial(bart.decode, cfg))
    for position in (1, 2):
        _, logits, cache = step(params, cache, jnp.asarray(text[:, position]), jnp.int32(position))
        np.testing.assert_allclose(logits, expected[:, position], atol=TOLERANCE)
