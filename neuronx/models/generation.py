"""Greedy generation with OPT on the ring: prefill and decode as two compiled programs and one KV cache."""

import functools
import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.errors import CompileError
from neuronx.api import compile as compile_function
from neuronx.models import opt
from neuronx.models.layers import zeros
from neuronx.models.quantised import quantised_shapes
from neuronx.stages import Compiled

__all__ = ["DTYPES", "Generated", "Generator", "logit_errors", "tolerance"]

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}

# Half a unit in the last place, relative: the largest error of one rounding.
_ROUNDOFF = {
    "f32": 2.0**-24,
    "f16": 2.0**-11,
    "fp16": 2.0**-11,
    "tf32": 2.0**-11,
    "bf16": 2.0**-9,
    "fp8_e4m3": 2.0**-4,
}

_ROUNDED_PER_LAYER = 8
"""Results a layer writes in the model's type on the way from its input to its output: two norms, the
projections of attention and feed-forward, their mix, and two residual sums."""

_MARGIN = 8


@dataclass(frozen=True, kw_only=True)
class Generator:
    """Two compiled programs for one model, batch and length; made without any array.

    ``prefill(params, cache, tokens)`` and ``decode(params, cache, token, position)`` as in
    ``neuronx.models.opt``; the plan shards the cache by heads over the cores, and it is donated.
    """

    cfg: opt.OPTConfig
    dtype: str
    batch: int
    prompt_len: int
    new_tokens: int
    prefill: Compiled
    decode: Compiled

    @classmethod
    def build(
        cls,
        cfg: opt.OPTConfig,
        *,
        dtype: str,
        batch: int,
        prompt_len: int,
        new_tokens: int,
        weights: str = "",
        **options: Any,
    ) -> "Generator":
        """Compiles both programs; ``options`` are those of ``neuronx.compile``.

        Args:
          weights: one of ``quantised.WEIGHTS`` for parameters of ``quantised``; "" for those of ``dtype``.

        Raises:
          CompileError: lengths below 1, or more positions than the model has.
          OutOfDeviceMemoryError: weights, cache and temporaries do not fit a core.
        """
        for name, value in (("batch", batch), ("prompt length", prompt_len), ("new tokens", new_tokens)):
            if value < 1:
                raise CompileError(f"{name} is {value}", op="generate", fix="give at least 1")
        max_len = prompt_len + new_tokens
        if max_len > cfg.positions:
            raise CompileError(
                f"{prompt_len} + {new_tokens} tokens, but {cfg.name} has {cfg.positions} positions",
                op="generate",
                fix="shorten the prompt or generate fewer tokens",
            )
        element = DTYPES[dtype]
        params = opt.parameter_shapes(cfg, element)
        if weights:
            params = quantised_shapes(params, weights)
        cache = opt.cache_shapes(cfg, batch, max_len, element)
        prefill = compile_function(functools.partial(opt.prefill, cfg), donate_argnums=1, **options)
        decode = compile_function(functools.partial(opt.decode, cfg), donate_argnums=1, **options)
        tokens = jax.ShapeDtypeStruct((batch, prompt_len), jnp.int32)
        token = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return cls(
            cfg=cfg,
            dtype=dtype,
            batch=batch,
            prompt_len=prompt_len,
            new_tokens=new_tokens,
            prefill=prefill.lower(params, cache, tokens).compile(),
            decode=decode.lower(params, cache, token, jax.ShapeDtypeStruct((), jnp.int32)).compile(),
        )

    @property
    def time_to_first_token_s(self) -> float:
        """Predicted: one prefill."""
        return self.prefill.cost_analysis()["latency_s"]

    @property
    def time_per_token_s(self) -> float:
        """Predicted: one decode step; the cache has a fixed length, so every step takes the same."""
        return self.decode.cost_analysis()["latency_s"]

    @property
    def tokens_per_s(self) -> float:
        """Predicted: new tokens of the whole batch over the time from prompt to last token."""
        total = self.time_to_first_token_s + (self.new_tokens - 1) * self.time_per_token_s
        return self.batch * self.new_tokens / total

    def empty_cache(self) -> list[dict[str, jax.Array]]:
        """What ``prefill`` writes the prompt into."""
        return zeros(
            opt.cache_shapes(self.cfg, self.batch, self.prompt_len + self.new_tokens, DTYPES[self.dtype])
        )

    def run(self, params: dict[str, Any], tokens: np.ndarray) -> "Generated":
        """Generates greedily with real numbers.

        Args:
          params: of ``opt.parameters``, or ``quantised`` of them.
          tokens: i32 [batch, prompt_len].
        """
        start = time.perf_counter()
        token, logits, cache = self.prefill(params, self.empty_cache(), tokens)
        steps, chosen, step_host_s = [np.asarray(logits)], [np.asarray(token)], []
        after_prefill = time.perf_counter()
        position = jnp.int32(self.prompt_len)
        if self.new_tokens > 1:
            # Onto the ring once; from here on the cache stays there and is updated in place.
            _, cache, _, _ = self.decode.device_put(params, cache, token, position)
        for index in range(1, self.new_tokens):
            position, before = jnp.int32(self.prompt_len + index - 1), time.perf_counter()
            token, logits, cache = self.decode(params, cache, token, position)
            steps.append(np.asarray(logits))
            chosen.append(np.asarray(token))
            step_host_s.append(time.perf_counter() - before)
        return Generated(
            tokens=np.stack(chosen, axis=1),
            logits=tuple(steps),
            prefill_host_s=after_prefill - start,
            decode_host_s=time.perf_counter() - after_prefill,
            step_host_s=tuple(step_host_s),
        )


@dataclass(frozen=True, kw_only=True)
class Generated:
    """``tokens`` is i32 [batch, new tokens]; ``logits`` holds f32 [batch, vocab] of each step.

    ``step_host_s`` are the decode steps alone, the first with the compilation of its segments;
    ``decode_host_s`` has the way of weights and cache onto the ring besides.
    """

    tokens: np.ndarray
    logits: tuple[np.ndarray, ...]
    prefill_host_s: float
    decode_host_s: float
    step_host_s: tuple[float, ...]


def logit_errors(
    generator: Generator, params: dict[str, Any], tokens: np.ndarray, got: Generated
) -> list[float]:
    """Largest absolute difference of each step's logits to ``jax.jit`` of the same functions on the CPU.

    The reference reads the tokens the ring chose, so that every step compares the same inputs.
    """
    cfg, prefill = generator.cfg, functools.partial(opt.prefill, generator.cfg)
    _, logits, cache = jax.jit(prefill, donate_argnums=1)(params, generator.empty_cache(), tokens)
    errors = [float(np.abs(got.logits[0] - logits).max())]
    decode = jax.jit(functools.partial(opt.decode, cfg), donate_argnums=1)
    for index in range(1, generator.new_tokens):
        token, position = jnp.asarray(got.tokens[:, index - 1]), jnp.int32(generator.prompt_len + index - 1)
        _, logits, cache = decode(params, cache, token, position)
        errors.append(float(np.abs(got.logits[index] - logits).max()))
    return errors


def tolerance(generator: Generator, got: Generated, *types: str) -> float:
    """How far logits computed in these types may lie from another correct computation of them.

    Each of the roundings on the way through the layers moves a value by at most half a unit in the last
    place; independent ones add up like their root. Relative to the largest logit, times a margin.
    """
    roundings = _ROUNDED_PER_LAYER * generator.cfg.layers
    largest = max(float(np.abs(step).max()) for step in got.logits)
    return _MARGIN * math.sqrt(roundings) * max(_ROUNDOFF[one] for one in types) * largest
