"""BLOOM: published sizes. Its decoder is OPT's with GELU, ALiBi instead of positions and a norm more."""

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
        has_alibi=True,
        vocab=250880,
    )


# Source: config.json of bigscience/<name> on the Hugging Face hub.
SIZES = {
    size.name: size
    for size in (
        _size("bloom-560m", 1024, 16, 24),
        _size("bloom-1b1", 1536, 16, 24),
        _size("bloom-1b7", 2048, 16, 24),
        _size("bloom-3b", 2560, 32, 30),
        _size("bloom-7b1", 4096, 32, 30),
    )
}


def config(name: str) -> OPTConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)
