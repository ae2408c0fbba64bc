"""Finding a published size by name, and the size that divides over cores."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from kernels.errors import CompileError

__all__ = ["find", "padded"]

_Config = TypeVar("_Config")
# Of unknown names so many of those most like them are listed.
_LISTED = 10


def find(sizes: Mapping[str, _Config], name: str) -> _Config:
    """The size called ``name``; raises CompileError, which lists those most like it, for any other."""
    if name not in sizes:
        like = difflib.get_close_matches(name, sizes, n=_LISTED, cutoff=0.0)
        known = ", ".join(size for size in sizes if size in like)
        more = "" if len(like) == len(sizes) else ", or one of the others that neuronx plan --help lists"
        raise CompileError(f"unknown model {name!r}", op="model", fix=f"use one of {known}{more}")
    return sizes[name]


def padded(cfg: Any, cores: int) -> Any:
    """The size that divides over ``cores``: heads, features and tokens padded.

    Args:
      cfg: a frozen dataclass with ``heads``, ``extra_heads``, ``ffn`` and ``vocab``.
    """
    vocab, ffn = (size + -size % cores for size in (cfg.vocab, cfg.ffn))
    return dataclasses.replace(cfg, vocab=vocab, ffn=ffn, extra_heads=-cfg.heads % cores)
