"""GPT-2: published sizes. Its decoder is OPT's with GELU and a position table that starts at row 0."""

from neuronx.models.opt import OPTConfig, cache_shapes, decode, padded, parameter_shapes, parameters, prefill
from neuronx.models.sizes import find

__all__ = ["SIZES", "cache_shapes", "config", "decode", "padded", "parameter_shapes", "parameters", "prefill"]


def _size(name: str, hidden: int, heads: int, layers: int) -> OPTConfig:
    return OPTConfig(
        name=name,
        hidden=hidden,
        heads=heads,
        layers=layers,
        ffn=4 * hidden,
        embed=hidden,
        activation="gelu_new",
        position_offset=0,
        vocab=50257,
        positions=1024,
    )


# Source: config.json of openai-community/<name> (distilbert/distilgpt2) on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        _size("distilgpt2", 768, 12, 6),
        _size("gpt2", 768, 12, 12),
        _size("gpt2-medium", 1024, 16, 24),
        _size("gpt2-large", 1280, 20, 36),
        _size("gpt2-xl", 1600, 25, 48),
    )
}


def config(name: str) -> OPTConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)
