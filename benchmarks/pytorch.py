"""The decode step of OPT by PyTorch on the processor: transformers' model of the same sizes."""

import importlib.util
from collections.abc import Callable

from neuronx.models.opt import OPTConfig

__all__ = ["decode_step", "is_installed"]

_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def decode_step(cfg: OPTConfig, dtype: str, *, batch: int, position: int) -> Callable[[], object]:
    """A step of one token a row behind a cache of ``position`` others, with random weights.

    Args:
      dtype: of weights, cache and arithmetic, as ``generation.DTYPES`` names it.
    """
    import torch
    import transformers

    config = transformers.OPTConfig(
        hidden_size=cfg.hidden,
        num_attention_heads=cfg.heads,
        num_hidden_layers=cfg.layers,
        ffn_dim=cfg.ffn,
        word_embed_proj_dim=cfg.embed,
        do_layer_norm_before=cfg.norm_first,
        vocab_size=cfg.vocab,
        max_position_embeddings=cfg.positions,
    )
    torch_dtype = getattr(torch, _TYPES[dtype])
    model = transformers.AutoModelForCausalLM.from_config(config, torch_dtype=torch_dtype).eval()
    token = torch.zeros((batch, 1), dtype=torch.long)
    rows = torch.zeros((batch, cfg.heads, position, cfg.head_dim), dtype=torch_dtype)
    cache = [(rows, rows)] * cfg.layers

    def step() -> object:
        with torch.inference_mode():
            # What it returns is a new cache, one position longer: this one stays as it is.
            return model(input_ids=token, past_key_values=cache, use_cache=True).logits

    return step
