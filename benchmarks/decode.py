"""One decode step of OPT with a KV cache: ours and jax.jit in the same type, f32 and 8 bits, in turn.

Where PyTorch and transformers are installed, theirs as well.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import neuronx
from benchmarks import pytorch
from benchmarks.shares import shares
from benchmarks.timing import Row, arguments, in_turn, report, streaming_bytes_per_s
from neuronx.models import opt
from neuronx.models.generation import DTYPES
from neuronx.models.quantised import WEIGHTS, quantised

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


def _ours(cfg: opt.OPTConfig, asked: Any, params: Any) -> Callable[[], Any]:
    dtype, batch = DTYPES[asked.dtype], asked.batch
    cache = _cache(cfg, batch, asked.length, dtype)
    shapes = params, cache, jnp.zeros(batch, jnp.int32), jnp.int32(0)
    decode = neuronx.compile(functools.partial(opt.decode, cfg), donate_argnums=1, tp_degree=asked.cores)
    compiled = decode.lower(*shapes).compile()
    return _step(compiled, *compiled.device_put(*shapes)[:2], batch)


def _row(cfg: opt.OPTConfig, asked: Any, params: Any) -> Row:
    dtype, batch = DTYPES[asked.dtype], asked.batch
    jitted = jax.jit(functools.partial(opt.decode, cfg), donate_argnums=1)

    def theirs(params: Any, dtype: Any) -> Callable[[], Any]:
        return _step(jitted, params, _cache(cfg, batch, asked.length, dtype), batch)

    used = quantised(params, asked.weights) if asked.weights else params
    steps = {"ours": _ours(cfg, asked, used)}
    if asked.weights:
        steps[f"ours {asked.dtype}"] = _ours(cfg, asked, params)
        steps[f"jax.jit {asked.weights}"] = theirs(used, dtype)
    else:
        steps[f"jax.jit {asked.dtype}"] = theirs(params, dtype)
    if asked.dtype != "f32" and not asked.weights:
        steps["jax.jit f32"] = theirs(jax.tree.map(lambda x: x.astype(jnp.float32), params), jnp.float32)
    if not asked.weights and pytorch.is_installed():
        in_torch = pytorch.decode_step(cfg, asked.dtype, batch=batch, position=POSITION)
        steps[f"PyTorch {asked.dtype}"] = in_torch
    # Of the positions one row is read; the tied token table is read whole, as the head.
    read = sum(x.nbytes for x in jax.tree.leaves(used)) - used["positions"].nbytes
    stored = f" with {asked.weights} weights" if asked.weights else ""
    name = f"{cfg.name} {cfg.layers} layers {asked.dtype}{stored} batch {batch} tp {asked.cores}"
    return Row(name=name, taken=in_turn(steps, asked.repeats), bytes_read=read)


def main(argv: list[str]) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="opt-1.3b", help=f"one of {', '.join(opt.SIZES)}")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--weights", choices=tuple(WEIGHTS), help="matrices of layers in 8 bits, with scales")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cores", type=int, default=1, help="of the simulated ring")
    parser.add_argument("--length", type=int, default=64, help="positions the cache holds")
    parser.add_argument(
        "--shares", action="store_true", help="print what our step spends its time on instead"
    )
    asked = parser.parse_args(argv)
    cfg = opt.config(asked.model)
    if asked.layers:
        cfg = dataclasses.replace(cfg, layers=asked.layers)
    params = opt.parameters(cfg, DTYPES[asked.dtype], 0)
    if asked.shares:
        step = _ours(cfg, asked, quantised(params, asked.weights) if asked.weights else params)
        step()
        print(shares(step))
        return 0
    row = _row(cfg, asked, params)
    report([row], stream=streaming_bytes_per_s(asked.repeats), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
