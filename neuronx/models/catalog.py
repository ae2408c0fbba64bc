"""Models by name, as compiled programs of shapes only: decoders, encoders and image classifiers."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from kernels.errors import CompileError
from neuronx.api import compile as compile_function
from neuronx.models import bert, gpt2, llama, opt, resnet, vit
from neuronx.models.sizes import find
from neuronx.named import argument_type
from neuronx.stages import Compiled

__all__ = ["MODELS", "Workload", "function_workload", "weight_bytes", "workload"]

DECODERS = (opt, gpt2, llama)
# Models of images and their functions.
_CLASSIFIERS: Mapping[ModuleType, Callable[..., jax.Array]] = {resnet: resnet.classify, vit: vit.classify}
_IMAGE = (224, 224, 3)
_BATCH = re.compile(r"\bbatch\b")
_MODULES: tuple[ModuleType, ...] = (*DECODERS, bert, *_CLASSIFIERS)
# Every published size and the module it is written in.
MODELS: Mapping[str, ModuleType] = {name: module for module in _MODULES for name in module.SIZES}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The programs of one model, batch and length.

    ``first`` reads the prompt, or is the whole of a model without tokens to write; ``step`` writes one
    token a sequence, None where there are none. ``tokens`` of a request are what it is paid for: tokens
    written, or 1. ``bytes_in`` and ``bytes_out`` pass between host and device each run.
    """

    first: Compiled
    step: Compiled | None
    tokens: int
    bytes_in: int
    bytes_out: int


def _config(name: str) -> tuple[ModuleType, Any]:
    module = find(MODELS, name)
    return module, module.config(name)


def weight_bytes(name: str, dtype: Any) -> int:
    """Bytes of the model's parameters in one type."""
    module, cfg = _config(name)
    return _bytes(jax.tree_util.tree_leaves(module.parameter_shapes(cfg, dtype)))


def workload(
    name: str, *, batch: int, dtype: Any, prompt_len: int, new_tokens: int, **options: Any
) -> Workload:
    """Compiles a model for one kind of request; ``options`` are those of ``neuronx.compile``.

    Raises:
      CompileError: an unknown model, or more positions than it has.
      OutOfDeviceMemoryError: it does not fit.
    """
    module, cfg = _config(name)
    compiled = functools.partial(compile_function, **options)
    params = module.parameter_shapes(cfg, dtype)
    if module in _CLASSIFIERS:
        images = jax.ShapeDtypeStruct((batch, *_IMAGE), dtype)
        only = compiled(functools.partial(_CLASSIFIERS[module], cfg)).lower(params, images).compile()
        bytes_in, bytes_out = images.size * images.dtype.itemsize, 4 * batch * cfg.classes
        return Workload(first=only, step=None, tokens=1, bytes_in=bytes_in, bytes_out=bytes_out)
    length = prompt_len + (new_tokens if module in DECODERS else 0)
    if length > cfg.positions:
        raise CompileError(
            f"{length} tokens, but {name} has {cfg.positions} positions",
            op="model",
            fix="shorten the prompt or write fewer tokens",
        )
    tokens = jax.ShapeDtypeStruct((batch, prompt_len), jnp.int32)
    bytes_in = 4 * tokens.size
    if module is bert:
        only = compiled(functools.partial(bert.encode, cfg)).lower(params, tokens, tokens, tokens).compile()
        bytes_out = batch * cfg.hidden * prompt_len * jnp.dtype(dtype).itemsize
        return Workload(first=only, step=None, tokens=1, bytes_in=3 * bytes_in, bytes_out=bytes_out)
    prefill = compiled(functools.partial(module.prefill, cfg, length)).lower(params, tokens)
    decode = compiled(functools.partial(module.decode, cfg), donate_argnums=1).lower(
        params,
        module.cache_shapes(cfg, batch, length, dtype),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    # The step first: it says sooner whether weights and cache fit.
    step = decode.compile()
    first = prefill.compile()
    return Workload(first=first, step=step, tokens=new_tokens, bytes_in=bytes_in, bytes_out=4 * batch)


def function_workload(
    function: Callable[..., Any], arguments: Sequence[str], batch: int, **options: Any
) -> Workload:
    """Compiles any function for arguments written as ``f32[batch,128]``.

    What has ``batch`` in its shape comes from the host with every request, as the results go back; all else
    (weights) stays on the device.

    Raises:
      CompileError: an argument is no type, or the compiler refuses the function.
      OutOfDeviceMemoryError: it does not fit.
    """
    types = [argument_type(text, batch=batch) for text in arguments]
    sent = [kind for text, kind in zip(arguments, types, strict=True) if _BATCH.search(text)]
    only = compile_function(function, **options).lower(*types).compile()
    results = jax.tree_util.tree_leaves(jax.eval_shape(function, *types))
    return Workload(first=only, step=None, tokens=1, bytes_in=_bytes(sent), bytes_out=_bytes(results))


def _bytes(shapes: Sequence[jax.ShapeDtypeStruct]) -> int:
    return sum(shape.size * jnp.dtype(shape.dtype).itemsize for shape in shapes)
