"""GPT-2, GPT-J, GPT-NeoX, BLOOM and others with layer norms and plain products: published sizes."""

from typing import Any

from neuronx.models.decoder import (
    DecoderConfig,
    cache_shapes,
    decode,
    padded,
    parameter_shapes,
    parameters,
    prefill,
)
from neuronx.models.sizes import find

__all__ = [
    "SIZES",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]

_BIASES = frozenset({"q", "k", "v", "o", "up", "down"})
_GPT2 = {"places": "table", "biases": _BIASES, "activation": "gelu_new", "is_tied": True}
_SHARING = _GPT2 | {"vocab": 49152, "positions": 8192, "kv_heads": 1}
_BLOOM = {
    "places": "alibi",
    "has_embed_norm": True,
    "biases": _BIASES,
    "activation": "gelu_new",
    "is_tied": True,
    "vocab": 250880,
}
_MPT = {"places": "alibi", "norm": "centred", "is_tied": True, "vocab": 50432}
_NEOX = {"is_parallel": True, "biases": _BIASES}
_ONE_NORM = {"is_parallel": True, "has_ffn_norm": False}
_GPTJ = _ONE_NORM | {
    "rotary": 64,
    "is_interleaved": True,
    "biases": frozenset({"up", "down", "head"}),
    "activation": "gelu_new",
    "vocab": 50400,
}
_CODEGEN = _GPTJ | {"vocab": 51200}
_PHI = _ONE_NORM | {
    "rotary": 32,
    "biases": _BIASES | {"head"},
    "activation": "gelu_new",
    "vocab": 51200,
}
_FALCON = {"is_parallel": True, "is_tied": True, "vocab": 65024}
_STABLELM = {"rotary": 20, "activation": "silu", "is_gated": True, "vocab": 50304, "positions": 4096}
_STABLELM_2 = {"rotary": 16, "biases": frozenset({"q", "k", "v"}), "vocab": 100352}
_FALCON_11B = {
    "kv_heads": 8,
    "has_ffn_norm": False,
    "is_tied": False,
    "positions": 8192,
    "rope_base": 500042.0,
}
_STARCODER2 = {
    "biases": _BIASES,
    "activation": "gelu_new",
    "is_tied": True,
    "vocab": 49152,
    "positions": 16384,
    "rope_base": 1e6,
}


def _size(
    name: str, hidden: int, heads: int, layers: int, *families: dict[str, Any], **own: Any
) -> DecoderConfig:
    fields = {"name": name, "hidden": hidden, "heads": heads, "layers": layers, "ffn": 4 * hidden}
    for family in families:
        fields |= family
    return DecoderConfig(**fields | own)


def _neox(name: str, hidden: int, heads: int, layers: int, vocab: int) -> DecoderConfig:
    return _size(name, hidden, heads, layers, _NEOX, rotary=hidden // heads // 4, vocab=vocab)


# Source: config.json of openai-community, distilbert, EleutherAI, bigscience, mosaicml, tiiuae, bigcode,
# Salesforce, stabilityai and microsoft/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        _size("distilgpt2", 768, 12, 6, _GPT2, vocab=50257, positions=1024),
        _size("gpt2", 768, 12, 12, _GPT2, vocab=50257, positions=1024),
        _size("gpt2-medium", 1024, 16, 24, _GPT2, vocab=50257, positions=1024),
        _size("gpt2-large", 1280, 20, 36, _GPT2, vocab=50257, positions=1024),
        _size("gpt2-xl", 1600, 25, 48, _GPT2, vocab=50257, positions=1024),
        _size("gpt-j-6b", 4096, 16, 28, _GPTJ),
        _size("codegen-350m", 1024, 16, 20, _CODEGEN, rotary=32),
        _size("codegen-2b", 2560, 32, 32, _CODEGEN),
        _size("codegen-6b", 4096, 16, 33, _CODEGEN),
        _size("codegen-16b", 6144, 24, 34, _CODEGEN),
        _neox("gpt-neox-20b", 6144, 64, 44, 50432),
        _neox("pythia-70m", 512, 8, 6, 50304),
        _neox("pythia-160m", 768, 12, 12, 50304),
        _neox("pythia-410m", 1024, 16, 24, 50304),
        _neox("pythia-1b", 2048, 8, 16, 50304),
        _neox("pythia-1.4b", 2048, 16, 24, 50304),
        _neox("pythia-2.8b", 2560, 32, 32, 50304),
        _neox("pythia-6.9b", 4096, 32, 32, 50432),
        _neox("pythia-12b", 5120, 40, 36, 50688),
        _size("bloom-560m", 1024, 16, 24, _BLOOM),
        _size("bloom-1b1", 1536, 16, 24, _BLOOM),
        _size("bloom-1b7", 2048, 16, 24, _BLOOM),
        _size("bloom-3b", 2560, 32, 30, _BLOOM),
        _size("bloom-7b1", 4096, 32, 30, _BLOOM),
        _size("bloom-176b", 14336, 112, 70, _BLOOM),
        _size("mpt-7b", 4096, 32, 32, _MPT),
        _size("mpt-30b", 7168, 64, 48, _MPT, positions=8192),
        _size("falcon-7b", 4544, 71, 32, _FALCON, kv_heads=1, has_ffn_norm=False),
        _size("falcon-40b", 8192, 128, 60, _FALCON, kv_heads=8),
        _size("falcon-180b", 14848, 232, 80, _FALCON, kv_heads=8, is_tied=False),
        _size("falcon-11b", 4096, 32, 60, _FALCON, **_FALCON_11B),
        _size("stablelm-3b-4e1t", 2560, 32, 32, _STABLELM, ffn=6912),
        _size("stablelm-2-1.6b", 2048, 32, 24, _STABLELM | _STABLELM_2, ffn=5632),
        _size("starcoderbase-1b", 2048, 16, 24, _SHARING),
        _size("starcoderbase-3b", 2816, 22, 36, _SHARING),
        _size("starcoderbase-7b", 4096, 32, 42, _SHARING),
        _size("starcoder-15b", 6144, 48, 40, _SHARING),
        _size("starcoder2-3b", 3072, 24, 30, _STARCODER2, kv_heads=2),
        _size("starcoder2-7b", 4608, 36, 32, _STARCODER2, kv_heads=4),
        _size("starcoder2-15b", 6144, 48, 40, _STARCODER2, kv_heads=4, is_tied=False),
        _size("phi-1.5", 2048, 32, 24, _PHI),
        _size("phi-2", 2560, 32, 32, _PHI),
    )
}


def config(name: str) -> DecoderConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)
