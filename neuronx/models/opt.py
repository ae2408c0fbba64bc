"""OPT: published sizes of the decoder."""

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
    "OPTConfig",
    "cache_shapes",
    "config",
    "decode",
    "padded",
    "parameter_shapes",
    "parameters",
    "prefill",
]


@dataclass(frozen=True, kw_only=True)
class OPTConfig(DecoderConfig):
    """A decoder with what OPT's sizes share."""

    vocab: int = 50272
    places: str = "table"
    position_offset: int = 2
    biases: frozenset[str] = frozenset({"q", "k", "v", "o", "up", "down"})
    activation: str = "relu"
    is_tied: bool = True


def _size(name: str, hidden: int, heads: int, layers: int, **other: Any) -> OPTConfig:
    fields = {"embed": hidden, "ffn": 4 * hidden} | other
    return OPTConfig(name=name, hidden=hidden, heads=heads, layers=layers, **fields)


# Source: config.json of facebook/opt-<size> on the Hugging Face hub.
SIZES = {
    "opt-125m": _size("opt-125m", 768, 12, 12),
    "opt-350m": _size("opt-350m", 1024, 16, 24, embed=512, norm_first=False),
    "opt-1.3b": _size("opt-1.3b", 2048, 32, 24),
    "opt-2.7b": _size("opt-2.7b", 2560, 32, 32),
    "opt-6.7b": _size("opt-6.7b", 4096, 32, 32),
    "opt-13b": _size("opt-13b", 5120, 40, 40),
    "opt-30b": _size("opt-30b", 7168, 56, 48),
    "opt-66b": _size("opt-66b", 9216, 72, 64),
}


def config(name: str) -> OPTConfig:
    """The published size called ``name``; raises CompileError for any other."""
    return find(SIZES, name)
