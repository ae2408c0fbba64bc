"""Llama, Mistral, Qwen, Gemma and their kin, with RMS norms and gated products: published sizes."""

from dataclasses import dataclass
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
    "LlamaConfig",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(DecoderConfig):
    """A decoder with what Llama's sizes share."""

    vocab: int = 32000
    positions: int = 4096
    norm: str = "rms"
    activation: str = "silu"
    is_gated: bool = True


def _size(name: str, hidden: int, heads: int, kv_heads: int, layers: int, ffn: int, **other: Any) -> Any:
    return LlamaConfig(
        name=name, hidden=hidden, heads=heads, kv_heads=kv_heads, layers=layers, ffn=ffn, **other
    )


_CODE = {"vocab": 32016, "positions": 16384, "rope_base": 1e6}
_LLAMA_3 = {"vocab": 128256, "positions": 8192, "rope_base": 5e5}
_LLAMA_31 = _LLAMA_3 | {"positions": 131072, "rope_factor": 8.0}
_MIXTRAL = {"rope_base": 1e6, "experts": 8, "chosen": 2}
_QWEN2 = {
    "vocab": 151936,
    "positions": 32768,
    "rope_base": 1e6,
    "norm_epsilon": 1e-6,
    "biases": frozenset({"q", "k", "v"}),
}
_QWEN_MATH = _QWEN2 | {"positions": 131072, "rope_base": 1e4}
_QWEN2_LARGE = _QWEN2 | {"vocab": 152064}
_QWEN3 = _QWEN2 | {
    "positions": 40960,
    "biases": frozenset(),
    "head_width": 128,
    "has_head_norms": True,
}
_GEMMA = {
    "vocab": 256000,
    "positions": 8192,
    "head_width": 256,
    "norm_epsilon": 1e-6,
    "activation": "gelu_new",
    "is_tied": True,
}
_PHI_3 = {"vocab": 32064}
_NEMO = {"vocab": 131072, "rope_base": 1e6, "head_width": 128}
_LLAMA_32 = _LLAMA_31 | {"rope_factor": 32.0, "is_tied": True}

# What these multiply embeddings, scores, residuals and logits by is folded into tables, matrices and norms.
_GRANITE = {"vocab": 49155, "positions": 131072, "rope_base": 5e6, "is_tied": True, "embed_scale": 12.0}
_FALCON3 = {"vocab": 131072, "positions": 32768, "rope_base": 1000042.0, "head_width": 256}
_SMOL = {"vocab": 49152, "positions": 8192, "is_tied": True}
_COHERE = {
    "vocab": 256000,
    "positions": 8192,
    "norm": "centred",
    "is_parallel": True,
    "has_ffn_norm": False,
    "is_interleaved": True,
    "is_tied": True,
}

# Source: config.json of each model on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        _size("llama-7b", 4096, 32, 32, 32, 11008, positions=2048),
        _size("llama-13b", 5120, 40, 40, 40, 13824, positions=2048),
        _size("llama-30b", 6656, 52, 52, 60, 17920, positions=2048),
        _size("llama-65b", 8192, 64, 64, 80, 22016, positions=2048),
        _size("llama-2-7b", 4096, 32, 32, 32, 11008),
        _size("llama-2-13b", 5120, 40, 40, 40, 13824),
        _size("llama-2-70b", 8192, 64, 8, 80, 28672),
        _size("codellama-7b", 4096, 32, 32, 32, 11008, **_CODE),
        _size("codellama-13b", 5120, 40, 40, 40, 13824, **_CODE),
        _size("codellama-34b", 8192, 64, 8, 48, 22016, **_CODE | {"vocab": 32000}),
        _size("codellama-70b", 8192, 64, 8, 80, 28672, **_CODE),
        _size("tinyllama-1.1b", 2048, 32, 4, 22, 5632, positions=2048),
        _size("llama-3-8b", 4096, 32, 8, 32, 14336, **_LLAMA_3),
        _size("llama-3-70b", 8192, 64, 8, 80, 28672, **_LLAMA_3),
        _size("llama-3.1-8b", 4096, 32, 8, 32, 14336, **_LLAMA_31),
        _size("llama-3.1-70b", 8192, 64, 8, 80, 28672, **_LLAMA_31),
        _size("llama-3.1-405b", 16384, 128, 8, 126, 53248, **_LLAMA_31),
        _size("llama-3.2-1b", 2048, 32, 8, 16, 8192, **_LLAMA_32),
        _size("llama-3.2-3b", 3072, 24, 8, 28, 8192, **_LLAMA_32),
        _size("llama-3.3-70b", 8192, 64, 8, 80, 28672, **_LLAMA_31),
        _size("mistral-7b", 4096, 32, 8, 32, 14336, positions=32768),
        _size("mistral-7b-v0.3", 4096, 32, 8, 32, 14336, vocab=32768, positions=32768, rope_base=1e6),
        _size("mistral-nemo-12b", 5120, 32, 8, 40, 14336, **_NEMO, positions=131072),
        _size("mistral-small-24b", 5120, 32, 8, 40, 32768, **_NEMO | {"rope_base": 1e8}, positions=32768),
        _size("codestral-22b", 6144, 48, 8, 56, 16384, vocab=32768, positions=32768, rope_base=1e6),
        _size("mistral-large-123b", 12288, 96, 8, 88, 28672, vocab=32768, positions=131072, rope_base=1e6),
        _size("mixtral-8x7b", 4096, 32, 8, 32, 14336, positions=32768, **_MIXTRAL),
        _size("mixtral-8x22b", 6144, 48, 8, 56, 16384, positions=65536, **_MIXTRAL),
        _size("qwen1.5-0.5b", 1024, 16, 16, 24, 2816, **_QWEN2, is_tied=True),
        _size("qwen1.5-1.8b", 2048, 16, 16, 24, 5504, **_QWEN2),
        _size("qwen1.5-4b", 2560, 20, 20, 40, 6912, **_QWEN2),
        _size("qwen1.5-7b", 4096, 32, 32, 32, 11008, **_QWEN2),
        _size("qwen1.5-14b", 5120, 40, 40, 40, 13696, **_QWEN2_LARGE),
        _size("qwen1.5-72b", 8192, 64, 64, 80, 24576, **_QWEN2_LARGE),
        _size("qwen2.5-0.5b", 896, 14, 2, 24, 4864, **_QWEN2, is_tied=True),
        _size("qwen2.5-1.5b", 1536, 12, 2, 28, 8960, **_QWEN2, is_tied=True),
        _size("deepseek-r1-distill-qwen-1.5b", 1536, 12, 2, 28, 8960, **_QWEN_MATH),
        _size("qwen2.5-3b", 2048, 16, 2, 36, 11008, **_QWEN2, is_tied=True),
        _size("qwen2.5-7b", 3584, 28, 4, 28, 18944, **_QWEN2_LARGE),
        _size("qwen2.5-14b", 5120, 40, 8, 48, 13824, **_QWEN2_LARGE),
        _size("qwen2.5-32b", 5120, 40, 8, 64, 27648, **_QWEN2_LARGE),
        _size("qwen2.5-72b", 8192, 64, 8, 80, 29568, **_QWEN2_LARGE),
        _size("qwen3-0.6b", 1024, 16, 8, 28, 3072, **_QWEN3, is_tied=True),
        _size("qwen3-1.7b", 2048, 16, 8, 28, 6144, **_QWEN3, is_tied=True),
        _size("qwen3-4b", 2560, 32, 8, 36, 9728, **_QWEN3, is_tied=True),
        _size("qwen3-8b", 4096, 32, 8, 36, 12288, **_QWEN3),
        _size("qwen3-14b", 5120, 40, 8, 40, 17408, **_QWEN3),
        _size("qwen3-32b", 5120, 64, 8, 64, 25600, **_QWEN3),
        _size("gemma-2b", 2048, 8, 1, 18, 16384, **_GEMMA, embed_scale=2048**0.5),
        _size("gemma-7b", 3072, 16, 16, 28, 24576, **_GEMMA, embed_scale=3072**0.5),
        _size("phi-3-mini", 3072, 32, 32, 32, 8192, **_PHI_3),
        _size("phi-3-mini-128k", 3072, 32, 32, 32, 8192, **_PHI_3, positions=131072),
        _size("phi-3-medium", 5120, 40, 10, 40, 17920, **_PHI_3),
        _size("phi-4-14b", 5120, 40, 10, 40, 17920, vocab=100352, positions=16384, rope_base=2.5e5),
        _size("yi-6b", 4096, 32, 4, 32, 11008, vocab=64000, rope_base=5e6),
        _size("yi-9b", 4096, 32, 4, 48, 11008, vocab=64000, rope_base=5e6),
        _size("yi-34b", 7168, 56, 8, 60, 20480, vocab=64000, rope_base=5e6),
        _size("solar-10.7b", 4096, 32, 8, 48, 14336),
        _size("open-llama-3b", 3200, 32, 32, 26, 8640, positions=2048),
        _size("deepseek-llm-7b", 4096, 32, 32, 30, 11008, vocab=102400),
        _size("deepseek-llm-67b", 8192, 64, 8, 95, 22016, vocab=102400),
        _size("baichuan2-7b", 4096, 32, 32, 32, 11008, vocab=125696, norm_epsilon=1e-6),
        _size("baichuan2-13b", 5120, 40, 40, 40, 13696, vocab=125696, norm_epsilon=1e-6, places="alibi"),
        _size("internlm2-7b", 4096, 32, 8, 32, 14336, vocab=92544, positions=32768, rope_base=1e6),
        _size("internlm2-20b", 6144, 48, 8, 48, 16384, vocab=92544, positions=32768, rope_base=1e6),
        _size("falcon3-1b", 2048, 8, 4, 18, 8192, **_FALCON3 | {"positions": 8192}),
        _size("falcon3-3b", 3072, 12, 4, 22, 9216, **_FALCON3),
        _size("falcon3-7b", 3072, 12, 4, 28, 23040, **_FALCON3),
        _size("falcon3-10b", 3072, 12, 4, 40, 23040, **_FALCON3),
        _size("granite-3.1-2b", 2048, 32, 8, 40, 8192, **_GRANITE),
        _size("granite-3.1-8b", 4096, 32, 8, 40, 12800, **_GRANITE),
        _size("smollm2-135m", 576, 9, 3, 30, 1536, **_SMOL, rope_base=1e5),
        _size("smollm2-360m", 960, 15, 5, 32, 2560, **_SMOL, rope_base=1e5),
        _size("smollm2-1.7b", 2048, 32, 32, 24, 8192, **_SMOL, rope_base=1.3e5),
        _size("aya-23-8b", 4096, 32, 8, 32, 14336, **_COHERE),
        _size("c4ai-command-r-v01", 8192, 64, 64, 40, 22528, **_COHERE, rope_base=8e6),
    )
}


def config(name: str) -> LlamaConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)
