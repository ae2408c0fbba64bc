"""Models padded to divide over cores compute what the plain ones do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuronx.models import llama, opt
from neuronx.models.layers import zeros

_LLAMA = llama.LlamaConfig(
    name="tiny", hidden=64, heads=8, kv_heads=2, layers=1, ffn=96, vocab=90, positions=32
)
_OPT = opt.OPTConfig(name="tiny", hidden=32, heads=4, layers=1, ffn=96, embed=32, vocab=90, positions=32)
_CASES = [
    # Six cores: each of two key heads is held three times, its four queries have six places.
    (llama, _LLAMA, 6),
    (llama, dataclasses.replace(_LLAMA, kv_heads=8), 3),
    (opt, _OPT, 3),
]


def _spread(values, places, count):
    """Heads along the first dim put at ``places`` of ``count``, zeros elsewhere."""
    out = np.zeros((count, *values.shape[1:]), values.dtype)
    out[places] = values
    return out


def _padded_layer(cfg, wide, layer):
    """The weights of a layer in the form of the padded size."""
    width = cfg.head_dim
    heads, total = cfg.heads, cfg.heads + wide.extra_heads
    queries = np.arange(heads)
    kv_heads = cfg.kv_heads or heads
    if kv_heads < heads:
        group = heads // kv_heads
        queries = queries // group * (total // kv_heads) + queries % group

    def columns(name, part):
        if name in ("k", "v") and kv_heads < heads:
            return np.repeat(part, wide.kv_copies, axis=0)
        return _spread(part, queries, total)

    found = dict(layer)
    for name in ("q", "k", "v"):
        part = {"w": np.moveaxis(np.asarray(layer[name]["w"]).reshape(cfg.hidden, -1, width), 1, 0)}
        found[name] = {"w": np.moveaxis(columns(name, part["w"]), 0, 1).reshape(cfg.hidden, -1)}
        if "b" in layer[name]:
            found[name]["b"] = columns(name, np.asarray(layer[name]["b"]).reshape(-1, width)).reshape(-1)
    rows = np.asarray(layer["o"]["w"]).reshape(heads, width, cfg.hidden)
    found["o"] = {**layer["o"], "w": _spread(rows, queries, total).reshape(-1, cfg.hidden)}
    return found


@pytest.mark.parametrize(("code", "cfg", "cores"), _CASES)
def test_padded_heads_change_no_logit(code, cfg, cores, rng) -> None:
    wide = code.padded(cfg, cores)
    assert wide.extra_heads > 0 and wide.ffn == cfg.ffn and wide.vocab == cfg.vocab
    params = code.parameters(cfg, jnp.float32, 0)
    layers = [_padded_layer(cfg, wide, layer) for layer in params["layers"]]
    expected = jax.tree.map(lambda leaf: leaf.shape, code.parameter_shapes(wide, jnp.float32))
    assert jax.tree.map(lambda leaf: leaf.shape, params | {"layers": layers}) == expected
    tokens = rng.integers(0, cfg.vocab, (2, 5), dtype=np.int32)
    logits = []
    for size, weights in ((cfg, params), (wide, params | {"layers": layers})):
        empty = zeros(code.cache_shapes(size, 2, 16, jnp.float32))
        token, first, cache = jax.jit(functools.partial(code.prefill, size))(weights, empty, tokens)
        decode = jax.jit(functools.partial(code.decode, size))
        logits.append((first, decode(weights, cache, token, jnp.int32(5))[1]))
    for got, want in zip(logits[1], logits[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "cores"), [("llama-2-70b", 24), ("llama-3-8b", 12), ("mistral-7b", 24)])
def test_shared_keys_divide_over_more_cores_than_there_are(name, cores) -> None:
    cfg = llama.config(name)
    wide = llama.padded(cfg, cores)
    assert wide.key_heads % cores == 0 == wide.query_heads % wide.key_heads
    assert wide.query_heads // cfg.kv_heads >= cfg.heads // cfg.kv_heads
    assert llama.padded(cfg, cfg.kv_heads) == cfg
