"""Finding a published size by name."""

from collections.abc import Mapping
from typing import TypeVar

from kernels.errors import CompileError

__all__ = ["find"]

_Config = TypeVar("_Config")


def find(sizes: Mapping[str, _Config], name: str) -> _Config:
    """The size called ``name``; raises CompileError, which lists the known ones, for any other."""
    if name not in sizes:
        raise CompileError(f"unknown model {name!r}", op="model", fix=f"use one of {', '.join(sizes)}")
    return sizes[name]
