"""Other machines beside Inferentia: what a model asks of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr

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
    """Of any function of arguments of these types; ``looked_up`` bytes of them are held and not read.

    Nor is what the results do not depend on: of a step that writes, the weights that read the source.
    """
    traced = jax.jit(function).trace(*arguments)
    _, is_read = dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.out_avals))
    sizes = [float(leaf.size * leaf.dtype.itemsize) for leaf in jax.tree_util.tree_leaves(arguments)]
    read = sum(size for size, reads in zip(sizes, is_read, strict=True) if reads)
    flops = traced.lower().cost_analysis()["flops"]
    return Work(flops=flops, read_bytes=read - looked_up, held_bytes=sum(sizes))
