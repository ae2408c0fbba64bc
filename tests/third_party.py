"""Unmodified models of transformers and Flax, with fresh random weights, as functions of (params, inputs)."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Nothing is to be downloaded, and PyTorch, which transformers imports where it finds it, is not needed.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("USE_TORCH", "0")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import transformers

from neuronx.models.opt import OPTConfig, parameters

__all__ = ["MODELS", "Model", "flax_opt", "random_opt", "random_params", "resnet50", "sums_of"]

VOCAB, HIDDEN, HEADS, FFN, LAYERS, POSITIONS = 96, 48, 6, 96, 2, 32
BATCH, LENGTH = 2, 16


@dataclass(frozen=True, kw_only=True)
class Model:
    """``fn(params, inputs)``, and how far two orders of its float32 sums may lie apart.

    ``terms`` is the largest number of products summed in one element, ``depth`` the number of such sums on
    the longest way from the inputs to a result.
    """

    fn: Callable[[Any, Any], Any]
    params: Any
    inputs: Any
    terms: int
    depth: int


def random_params(shapes: Any, rng: np.random.Generator) -> Any:
    """Normal weights that keep the size of what passes through them; no bias or scale is left at 0 or 1."""

    def make(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, noise = path[-1].key, rng.standard_normal(leaf.shape)
        values = {
            "kernel": lambda: noise / math.sqrt(math.prod(leaf.shape[:-1])),
            "embedding": lambda: noise / math.sqrt(leaf.shape[-1]),
            "var": lambda: 1 + 0.1 * np.abs(noise),
        }.get(name, lambda: 0.1 * noise + (name in ("scale", "weight")))
        return jnp.asarray(values(), leaf.dtype)

    return jax.tree_util.tree_map_with_path(make, shapes)


def sums_of(layers: int) -> int:
    """Sums in a row in a transformer: a layer has two norms, q (or k or v), the scores, their softmax, the
    mix, the output and the two of the feed-forward; a norm and a matrix come after the last."""
    return 9 * layers + 2


def _transformer(
    rng: np.random.Generator,
    kind: str,
    config: Any,
    outputs: tuple[str, ...],
    **flags: bool,
) -> Model:
    model = getattr(transformers, kind)(config, _do_init=False)

    def fn(params: Any, ids: jax.Array) -> tuple[jax.Array, ...]:
        result = model(ids, params=params, **flags)
        return tuple(result[name] for name in outputs)

    ids = rng.integers(3, VOCAB, (BATCH, LENGTH)).astype(np.int32)
    return Model(
        fn=fn,
        params=random_params(model.params_shape_tree, rng),
        inputs=ids,
        terms=max(HIDDEN, FFN),
        depth=sums_of(LAYERS),
    )


def _opt(rng: np.random.Generator) -> Model:
    config = transformers.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        num_hidden_layers=LAYERS,
        ffn_dim=FFN,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
    )
    return _transformer(rng, "FlaxOPTForCausalLM", config, ("logits",), deterministic=True)


def _bert(rng: np.random.Generator) -> Model:
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
    )
    return _transformer(rng, "FlaxBertModel", config, ("last_hidden_state", "pooler_output"), train=False)


def _gpt2(rng: np.random.Generator) -> Model:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=FFN, n_positions=POSITIONS
    )
    return _transformer(rng, "FlaxGPT2LMHeadModel", config, ("logits",), train=False)


def _llama(rng: np.random.Generator) -> Model:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
    )
    return _transformer(rng, "FlaxLlamaForCausalLM", config, ("logits",), train=False)


def resnet50(
    rng: np.random.Generator,
    *,
    size: int = 224,
    widths: tuple[int, ...] = (256, 512, 1024, 2048),
    stem: int = 64,
) -> Model:
    """ResNet-50 (3, 4, 6, 3 bottleneck blocks) for one image of ``size`` x ``size``; narrower if asked."""
    config = transformers.ResNetConfig(embedding_size=stem, hidden_sizes=list(widths), num_labels=10)
    shape = (1, size, size, 3)
    model = transformers.FlaxResNetForImageClassification(config, input_shape=shape, _do_init=False)

    def fn(params: Any, images: jax.Array) -> jax.Array:
        return model(images, params=params, train=False).logits

    return Model(
        fn=fn,
        params=random_params(model.params_shape_tree, rng),
        inputs=rng.standard_normal((1, 3, size, size)).astype(np.float32),
        terms=9 * widths[-1] // 4,
        # Three convolutions a block, the stem, the mean over the image and the classifier.
        depth=3 * sum(config.depths) + 3,
    )


def _narrow_resnet50(rng: np.random.Generator) -> Model:
    return resnet50(rng, size=64, widths=(32, 64, 128, 256), stem=16)


def _rnn(rng: np.random.Generator) -> Model:
    """A gated recurrent network: Flax's ``nn.RNN`` (``lax.scan``) around its GRU cell, and a read-out."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(VOCAB)(nn.RNN(nn.GRUCell(HIDDEN))(x))

    network, x = Network(), rng.standard_normal((BATCH, LENGTH, HIDDEN)).astype(np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    return Model(
        fn=network.apply, params=random_params(shapes, rng), inputs=x, terms=HIDDEN, depth=LENGTH + 1
    )


def _lstm(rng: np.random.Generator) -> Model:
    """Flax's LSTM cell, whose four weights are joined inside the program, under ``lax.scan``."""
    network = nn.RNN(nn.OptimizedLSTMCell(HIDDEN))
    x = rng.standard_normal((BATCH, LENGTH, HIDDEN)).astype(np.float32)
    params = random_params(jax.eval_shape(network.init, jax.random.key(0), x), rng)
    return Model(fn=network.apply, params=params, inputs=x, terms=HIDDEN, depth=LENGTH)


def random_opt(cfg: OPTConfig, rng: np.random.Generator) -> dict[str, Any]:
    """Parameters for ``neuronx.models.opt`` that are no smaller than a trained model's."""
    small = parameters(cfg, jnp.float32, seed=int(rng.integers(2**31)))
    # Drawn with a deviation of 0.02, which suits widths in the thousands.
    wider = 1 / (0.02 * math.sqrt(cfg.hidden))
    return jax.tree.map(lambda x: x * wider if x.ndim == 2 else x, small)


def flax_opt(cfg: OPTConfig, params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """transformers' FlaxOPT for ``cfg`` and ``params``, the latter under its own names."""
    config = transformers.OPTConfig(
        vocab_size=cfg.vocab,
        hidden_size=cfg.hidden,
        word_embed_proj_dim=cfg.embed,
        num_hidden_layers=cfg.layers,
        ffn_dim=cfg.ffn,
        num_attention_heads=cfg.heads,
        max_position_embeddings=cfg.positions,
        do_layer_norm_before=cfg.norm_first,
    )
    decoder = {
        "embed_tokens": {"embedding": params["tokens"]},
        "embed_positions": {"embedding": params["positions"]},
        "layers": {str(i): _flax_layer(layer) for i, layer in enumerate(params["layers"])},
    }
    if cfg.norm_first:
        decoder["final_layer_norm"] = params["final_norm"]
    if cfg.embed != cfg.hidden:
        decoder |= {name: {"kernel": params[name]} for name in ("project_in", "project_out")}
    return transformers.FlaxOPTForCausalLM(config, _do_init=False), {"model": {"decoder": decoder}}


def _flax_layer(layer: dict[str, Any]) -> dict[str, Any]:
    linear = {name: {"kernel": layer[name]["w"], "bias": layer[name]["b"]} for name in _FLAX_LINEAR}
    attention = {_FLAX_LINEAR[name]: linear[name] for name in ("q", "k", "v", "o")}
    return {
        "self_attn": attention,
        "self_attn_layer_norm": layer["attention_norm"],
        "fc1": linear["up"],
        "fc2": linear["down"],
        "final_layer_norm": layer["ffn_norm"],
    }


_FLAX_LINEAR = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj", "up": "fc1", "down": "fc2"}


MODELS: dict[str, Callable[[np.random.Generator], Model]] = {
    "opt": _opt,
    "bert": _bert,
    "gpt2": _gpt2,
    "llama": _llama,
    "resnet50": _narrow_resnet50,
    "rnn": _rnn,
    "lstm": _lstm,
}
"""Makers of the small models, by name."""
