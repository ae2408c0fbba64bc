"""Models by name, as compiled programs of shapes only."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from kernels.errors import CompileError
from neuronx.api import compile as compile_function
from neuronx.driver import AUTO_CAST_TYPES, AUTO_CASTS
from neuronx.models import bart, bert, clip, gpt, llama, t5, whisper
from neuronx.models.layers import tensor_parallel, zeros
from neuronx.models.names import DECODERS, MODELS, resolve
from neuronx.models.quantised import quantised_shapes
from neuronx.models.whole import WHOLE
from neuronx.named import argument_type
from neuronx.stages import Compiled

__all__ = [
    "Workload",
    "compile_prompt",
    "compile_step",
    "function_workload",
    "host_bytes",
    "looked_up_bytes",
    "power_of_two",
    "programs",
    "prompt_bucket",
    "weight_bytes",
    "workload",
]

# Tables that are only looked up; OPT and GPT-2 choose the next token with theirs.
_LOOKED_UP: Mapping[ModuleType, tuple[str, ...]] = {
    bert: ("tokens", "positions", "types"),
    clip: ("tokens", "positions"),
    gpt: ("tokens",),
    llama: ("tokens",),
    t5: ("tokens",),
}
# transformers-neuronx does not have them; the device looks tokens up itself.
_LOOKS_UP = frozenset({t5, bart, whisper})
# What a prompt reads besides tokens.
_ALSO_READ: Mapping[ModuleType, Callable[..., jax.ShapeDtypeStruct]] = {whisper: whisper.sound_shape}
_BY_HEADS = PartitionSpec(None, "tp")
# What an auto_cast_type is stored as; tf32 lies in memory as f32.
_STORED = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "tf32": jnp.float32, "fp8_e4m3": jnp.float8_e4m3}
_BATCH = re.compile(r"\bbatch\b")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The programs of one model, batch and length.

    ``first`` reads the prompt, or is the whole of a model without tokens to write; ``step`` writes one
    token a sequence, None where there are none. ``tokens`` of a request are what it is paid for: tokens
    written, or 1. ``bytes_in`` and ``bytes_out`` pass between host and device each run, of a step
    ``step_bytes_in`` and as many out.
    """

    first: Compiled
    step: Compiled | None
    tokens: int
    bytes_in: int
    bytes_out: int
    step_bytes_in: int = 0


def _config(name: str) -> tuple[ModuleType, Any]:
    known = resolve(name)
    return MODELS[known], MODELS[known].config(known)


def weight_bytes(name: str, dtype: Any) -> int:
    """Bytes of the model's parameters in one type."""
    module, cfg = _config(name)
    return _bytes(jax.tree_util.tree_leaves(module.parameter_shapes(cfg, dtype)))


def workload(
    name: str, *, batch: int, dtype: Any, prompt_len: int, new_tokens: int, **options: Any
) -> Workload:
    """Compiles a model for one kind of request; ``options`` are those of ``neuronx.compile``.

    A prompt is padded to ``prompt_bucket``; the cache has all positions of the request from the start.

    Raises:
      CompileError: an unknown model, or more positions than it has.
      OutOfDeviceMemoryError: it does not fit.
    """
    module, cfg = _config(name)
    length = _length(name, prompt_len, new_tokens)
    if module not in DECODERS:
        return _whole(*_only(module, cfg, batch, prompt_len, dtype), module, cfg, dtype, options)
    prompt_len = prompt_bucket(name, prompt_len, length)
    # The step first: it says sooner whether weights and cache fit.
    step = compile_step(name, batch=batch, length=length, dtype=dtype, **options)
    first = compile_prompt(name, batch=batch, prompt_len=prompt_len, length=length, dtype=dtype, **options)
    cores = options.get("tp_degree", 1)
    read = batch * prompt_len
    exchanged = functools.partial(host_bytes, name, batch=batch, dtype=dtype, cores=cores)
    bytes_in, bytes_out = exchanged(tokens=read, is_prompt=True)
    step_bytes_in, _ = exchanged(tokens=batch)
    return Workload(
        first=first,
        step=step,
        tokens=new_tokens,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        step_bytes_in=step_bytes_in,
    )


def programs(
    name: str, *, batch: int, dtype: Any, prompt_len: int, new_tokens: int
) -> tuple[tuple[Callable[..., Any], Sequence[Any]], ...]:
    """The functions behind ``workload`` and their arguments' types, for one core: of a decoder step, prompt.

    The prompt goes into a new cache: what was in the old one it would not read.

    Raises:
      CompileError: an unknown model, or more positions than it has.
    """
    module, cfg = _config(name)
    length = _length(name, prompt_len, new_tokens)
    params = module.parameter_shapes(cfg, dtype)
    if module not in DECODERS:
        function, sent = _only(module, cfg, batch, prompt_len, dtype)
        return ((function, (params, *sent)),)
    step = _step(module, cfg, params, batch, length, dtype)
    prompt, (_, cache, *sent) = _prompt(module, cfg, params, batch, prompt_len, length, dtype)
    return step, (lambda params, *sent: prompt(params, zeros(cache), *sent), (params, *sent))


def looked_up_bytes(name: str, dtype: Any) -> int:
    """Bytes of the tables of which a run reads the rows of its tokens only."""
    module, cfg = _config(name)
    params = module.parameter_shapes(cfg, dtype)
    tables = () if getattr(cfg, "is_tied", False) else _LOOKED_UP.get(module, ())
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return _bytes([leaf for path, leaf in leaves if path[-1].key in tables])


def _length(name: str, prompt_len: int, new_tokens: int) -> int:
    """Positions that a request takes; raises CompileError where the model has fewer."""
    module, cfg = _config(name)
    length = prompt_len + (new_tokens if module in DECODERS else 0)
    if length > getattr(cfg, "positions", length):
        raise CompileError(
            f"{length} tokens, but {name} has {cfg.positions} positions",
            op="model",
            fix="shorten the prompt or write fewer tokens",
        )
    return length


def prompt_bucket(name: str, tokens: int, positions: int) -> int:
    """Tokens that a prompt is padded to: there are programs for powers of two from 64 on, and ``positions``.

    So it is in transformers-neuronx where nothing else is asked for (src/transformers_neuronx/bucket.py).
    """
    return tokens if _config(name)[0] in _LOOKS_UP else power_of_two(tokens, 64, positions)


def power_of_two(size: int, least: int, most: int) -> int:
    """The smallest from ``least`` on that holds ``size``, or ``most``."""
    return min(most, max(least, 1 << (size - 1).bit_length()))


def host_bytes(
    name: str, *, tokens: int, batch: int, dtype: Any, cores: int, is_prompt: bool = False
) -> tuple[int, int]:
    """What a decoder that reads ``tokens`` in all exchanges with the host in one run: bytes in and out.

    As in transformers-neuronx, where nothing else is asked for, the host looks tokens up and chooses the next
    ones: each core gets its copy of the tokens' vectors (or of i32 tokens), f32 logits come back. What a
    prompt reads besides tokens is sent as well, where it ``is_prompt``.
    """
    module, cfg = _config(name)
    token_bytes = 4 if module in _LOOKS_UP else cfg.hidden * jnp.dtype(dtype).itemsize
    also = _bytes(_also_read(module, cfg, batch, dtype)) if is_prompt else 0
    return cores * (tokens * token_bytes + also), 4 * batch * cfg.vocab


def _only(
    module: ModuleType, cfg: Any, batch: int, length: int, dtype: Any
) -> tuple[Callable[..., Any], Sequence[jax.ShapeDtypeStruct]]:
    """The function of a model that is one program, and its arguments behind the parameters."""
    function, sent = WHOLE[module]
    return functools.partial(function, cfg), sent(cfg, batch, length, dtype)


def _whole(
    function: Callable[..., Any],
    arguments: Sequence[jax.ShapeDtypeStruct],
    module: ModuleType,
    cfg: Any,
    dtype: Any,
    options: Mapping[str, Any],
) -> Workload:
    """A model that is one program. Its f32 matrices are stored as what ``auto_cast`` casts them to."""
    casts = dtype == jnp.float32 and options.get("auto_cast", AUTO_CASTS[0]) != AUTO_CASTS[0]
    stored = _STORED[options.get("auto_cast_type", AUTO_CAST_TYPES[0])] if casts else None
    params = module.parameter_shapes(cfg, dtype, stored)
    only = compile_function(function, **options).lower(params, *arguments).compile()
    results = jax.tree_util.tree_leaves(jax.eval_shape(function, params, *arguments))
    return Workload(first=only, step=None, tokens=1, bytes_in=_bytes(arguments), bytes_out=_bytes(results))


def compile_step(
    name: str, *, batch: int, length: int, dtype: Any, weights: str | None = None, **options: Any
) -> Compiled:
    """A decoder's step of one token a sequence, with a cache of ``length`` positions.

    It is cut as transformers-neuronx cuts it: padded, heads and features over the cores. ``weights`` is one
    of ``quantised.WEIGHTS`` for matrices of 8 bits.
    """
    module, cfg, params, cut = _decoder(name, dtype, weights, options)
    function, arguments = _step(module, cfg, params, batch, length, dtype)
    shards = (cut, _BY_HEADS, PartitionSpec(), PartitionSpec())
    step = compile_function(function, donate_argnums=1, in_shardings=shards, **options)
    return step.lower(*arguments).compile()


def compile_prompt(
    name: str,
    *,
    batch: int,
    prompt_len: int,
    length: int,
    dtype: Any,
    weights: str | None = None,
    **options: Any,
) -> Compiled:
    """The program that reads a decoder's prompt into a cache of ``length`` positions; as the step."""
    module, cfg, params, cut = _decoder(name, dtype, weights, options)
    function, arguments = _prompt(module, cfg, params, batch, prompt_len, length, dtype)
    given = (cut, _BY_HEADS, *[PartitionSpec()] * (len(arguments) - 2))
    results = (PartitionSpec(), PartitionSpec(), _BY_HEADS)
    first = compile_function(function, donate_argnums=1, in_shardings=given, out_shardings=results, **options)
    return first.lower(*arguments).compile()


def _step(
    module: ModuleType, cfg: Any, params: Any, batch: int, length: int, dtype: Any
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    cache = module.cache_shapes(cfg, batch, length, dtype)
    token, position = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    return functools.partial(module.decode, cfg), (params, cache, token, position)


def _prompt(
    module: ModuleType, cfg: Any, params: Any, batch: int, prompt_len: int, length: int, dtype: Any
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    cache = module.cache_shapes(cfg, batch, length, dtype)
    tokens = jax.ShapeDtypeStruct((batch, prompt_len), jnp.int32)
    given = (params, cache, *_also_read(module, cfg, batch, dtype), tokens)
    return functools.partial(module.prefill, cfg), given


def _also_read(module: ModuleType, cfg: Any, batch: int, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    return [_ALSO_READ[module](cfg, batch, dtype)] if module in _ALSO_READ else []


def _decoder(
    name: str, dtype: Any, weights: str | None, options: Mapping[str, Any]
) -> tuple[ModuleType, Any, Any, Any]:
    """A decoder's module, the size padded for the cores, its parameters and how they are cut."""
    module, cfg = _config(name)
    cfg = module.padded(cfg, options.get("tp_degree", 1))
    params = module.parameter_shapes(cfg, dtype)
    if weights:
        params = quantised_shapes(params, weights)
    return module, cfg, params, tensor_parallel(params)


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
