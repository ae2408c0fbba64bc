"""One decode step of OPT with a KV cache: ours and jax.jit, in the same type and in f32, in turn."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import neuronx
from benchmarks.timing import Row, arguments, in_turn, report, streaming_bytes_per_s
from neuronx.models import opt
from neuronx.models.generation import DTYPES

__all__ = ["main"]

POSITION = 3


def _cache(cfg: opt.OPTConfig, batch: int, length: int, dtype: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), opt.cache_shapes(cfg, batch, length, dtype))


def _step(decode: Callable[..., Any], params: Any, cache: Any, batch: int) -> Callable[[], Any]:
    token, position = jnp.zeros(batch, jnp.int32), jnp.int32(POSITION)

    def step() -> Any:
        nonlocal cache
        _, logits, cache = decode(params, cache, token, position)
        return np.asarray(logits)

    return step


def _row(cfg: opt.OPTConfig, asked: Any, params: Any) -> Row:
    dtype, batch = DTYPES[asked.dtype], asked.batch
    function = functools.partial(opt.decode, cfg)
    cache = functools.partial(_cache, cfg, batch, asked.length)
    ours = neuronx.compile(function, donate_argnums=1, tp_degree=asked.cores)
    ours = ours.lower(params, cache(dtype), jnp.zeros(batch, jnp.int32), jnp.int32(0)).compile()
    placed = ours.device_put(params, cache(dtype), jnp.zeros(batch, jnp.int32), jnp.int32(0))
    steps = {"ours": _step(ours, placed[0], placed[1], batch)}
    jitted = jax.jit(function, donate_argnums=1)
    steps[f"jax.jit {asked.dtype}"] = _step(jitted, params, cache(dtype), batch)
    if asked.dtype != "f32":
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        steps["jax.jit f32"] = _step(jitted, wide, cache(jnp.float32), batch)
    # Of the positions one row is read; the tied token table is read whole, as the head.
    weights = sum(x.nbytes for x in jax.tree.leaves(params)) - params["positions"].nbytes
    name = f"{cfg.name} {cfg.layers} layers {asked.dtype} batch {batch} tp {asked.cores}"
    return Row(name=name, taken=in_turn(steps, asked.repeats), bytes_read=weights)


def main(argv: list[str]) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="opt-1.3b", help=f"one of {', '.join(opt.SIZES)}")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cores", type=int, default=1, help="of the simulated ring")
    parser.add_argument("--length", type=int, default=64, help="positions the cache holds")
    asked = parser.parse_args(argv)
    cfg = opt.config(asked.model)
    if asked.layers:
        cfg = dataclasses.replace(cfg, layers=asked.layers)
    row = _row(cfg, asked, opt.parameters(cfg, DTYPES[asked.dtype], 0))
    report([row], stream=streaming_bytes_per_s(asked.repeats), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
