"""Other machines beside Inferentia: what a model asks of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from neuronx.models.catalog import looked_up_bytes, programs

__all__ = ["Work", "function_work", "model_work"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run of one program, whatever the machine.

    Attributes:
      flops: as XLA counts them.
      read_bytes: read at least: weights and cache once, nothing of tables that are only looked up.
      held_bytes: all its arguments.
    """

    flops: float
    read_bytes: float
    held_bytes: float


def model_work(name: str, *, batch: int, dtype: Any, prompt_len: int, new_tokens: int) -> tuple[Work, ...]:
    """The programs of ``neuronx.models.catalog.programs``.

    Raises:
      CompileError: an unknown model, or more positions than it has.
    """
    found = programs(name, batch=batch, dtype=dtype, prompt_len=prompt_len, new_tokens=new_tokens)
    looked_up = looked_up_bytes(name, dtype)
    return tuple(function_work(*program, looked_up) for program in found)


def function_work(function: Callable[..., Any], arguments: Sequence[Any], looked_up: int = 0) -> Work:
    """Of any function of arguments of these types; ``looked_up`` bytes of them are held and not read."""
    leaves = jax.tree_util.tree_leaves(arguments)
    held = float(sum(leaf.size * leaf.dtype.itemsize for leaf in leaves))
    flops = jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    return Work(flops=flops, read_bytes=held - looked_up, held_bytes=held)
