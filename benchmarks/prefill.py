"""Reading a prompt with OPT, or a batch with BERT: ours and jax.jit in the same type, in turn."""

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

import neuronx
from benchmarks.shares import shares
from benchmarks.timing import Row, arguments, in_turn, report, streaming_bytes_per_s
from neuronx.models import bert, opt
from neuronx.models.generation import DTYPES
from neuronx.models.layers import zeros

__all__ = ["main"]


def _opt(asked: Any) -> tuple[str, Any, Any, tuple[Any, ...]]:
    cfg = opt.config(asked.model)
    if asked.layers:
        cfg = dataclasses.replace(cfg, layers=asked.layers)
    dtype = DTYPES[asked.dtype]
    cache = zeros(opt.cache_shapes(cfg, asked.batch, asked.length, dtype))
    tokens = jnp.zeros((asked.batch, asked.length), jnp.int32)
    function, params = functools.partial(opt.prefill, cfg), opt.parameters(cfg, dtype, 0)
    return f"{cfg.name} {cfg.layers} layers", function, params, (cache, tokens)


def _bert(asked: Any) -> tuple[str, Any, Any, tuple[Any, ...]]:
    cfg = bert.config(asked.model)
    if asked.layers:
        cfg = dataclasses.replace(cfg, layers=asked.layers)
    tokens = jnp.zeros((asked.batch, asked.length), jnp.int32)
    function = functools.partial(bert.encode, cfg)
    params = bert.parameters(cfg, DTYPES[asked.dtype], 0)
    return f"{cfg.name} {cfg.layers} layers", function, params, (tokens, jnp.ones_like(tokens), tokens)


def main(argv: list[str]) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="opt-1.3b", help=f"one of {', '.join([*opt.SIZES, *bert.SIZES])}")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512, help="tokens of each sequence")
    parser.add_argument("--shares", action="store_true", help="print what ours spends its time on instead")
    asked = parser.parse_args(argv)
    name, function, params, arrays = (_bert if asked.model in bert.SIZES else _opt)(asked)
    compiled, jitted = neuronx.compile(function), jax.jit(function)
    steps = {
        "ours": lambda: compiled(params, *arrays),
        f"jax.jit {asked.dtype}": lambda: jitted(params, *arrays),
    }
    if asked.shares:
        jax.block_until_ready(steps["ours"]())
        print(shares(steps["ours"]))
        return 0
    tokens = asked.batch * asked.length
    matrices = sum(x.size for x in jax.tree.leaves(params["layers"]) if x.ndim > 1)
    row = Row(
        name=f"{name} {asked.dtype} batch {asked.batch} x {asked.length}",
        taken=in_turn(steps, asked.repeats),
        flops=2 * tokens * matrices,
    )
    report([row], stream=streaming_bytes_per_s(asked.repeats), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
