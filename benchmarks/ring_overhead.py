"""What simulating more cores costs the host: OPT decode on rings, and jax.jit on 8 forced CPU devices."""

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import neuronx
from benchmarks.timing import Taken
from distributed.program import Launch, Program
from neuronx.models import opt
from neuronx.models.generation import DTYPES
from neuronx.models.layers import tensor_parallel
from neuronx.stages import Compiled

__all__ = ["decode", "launch_overhead", "main", "measure"]

JAX_DEVICES = 8
MAX_LEN = 64
Step = Callable[[int], float]
"""Decodes one token at a position and waits for its logits; returns the seconds it took."""


def decode(cfg: opt.OPTConfig, dtype: Any, cores: int) -> Compiled:
    """A decode step of one sequence, compiled from shapes."""
    fn = neuronx.compile(functools.partial(opt.decode, cfg), donate_argnums=1, tp_degree=cores)
    scalar = jax.ShapeDtypeStruct((), jnp.int32)
    token = jax.ShapeDtypeStruct((1,), jnp.int32)
    cache = opt.cache_shapes(cfg, 1, MAX_LEN, dtype)
    return fn.lower(opt.parameter_shapes(cfg, dtype), cache, token, scalar).compile()


def _empty_cache(cfg: opt.OPTConfig, dtype: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), opt.cache_shapes(cfg, 1, MAX_LEN, dtype))


def _ring_step(cfg: opt.OPTConfig, dtype: Any, params: Any, cores: int) -> Step:
    exe, token = decode(cfg, dtype, cores), jnp.zeros(1, jnp.int32)
    params, cache, _, _ = exe.device_put(params, _empty_cache(cfg, dtype), token, jnp.int32(0))

    def step(position: int) -> float:
        nonlocal cache
        start = time.perf_counter()
        _, logits, cache = exe(params, cache, token, np.int32(position))
        np.asarray(logits)
        return time.perf_counter() - start

    return step


def _serve_jax(pipe: Connection, cfg: opt.OPTConfig, dtype_name: str) -> None:
    """Another process: jax.jit decodes at each position that comes, and its seconds go back.

    Alone, because forced devices change how XLA's threads are shared out in the whole process.
    """
    jax.config.update("jax_num_cpu_devices", JAX_DEVICES)
    dtype = DTYPES[dtype_name]
    mesh = jax.make_mesh((JAX_DEVICES,), ("tp",), axis_types=(jax.sharding.AxisType.Auto,))
    place = functools.partial(NamedSharding, mesh)
    params = opt.parameters(cfg, dtype, 0)
    params = jax.device_put(params, jax.tree.map(place, tensor_parallel(params)))
    cache = jax.device_put(_empty_cache(cfg, dtype), place(PartitionSpec(None, "tp")))
    token = jax.device_put(jnp.zeros(1, jnp.int32), place(PartitionSpec()))
    fn = jax.jit(functools.partial(opt.decode, cfg), donate_argnums=1)
    while (position := pipe.recv()) is not None:
        start = time.perf_counter()
        _, logits, cache = fn(params, cache, token, np.int32(position))
        np.asarray(logits)
        pipe.send(time.perf_counter() - start)


@contextlib.contextmanager
def _jax_step(cfg: opt.OPTConfig, dtype_name: str) -> Iterator[Step]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_jax, args=(there, cfg, dtype_name), daemon=True)
    process.start()

    def step(position: int) -> float:
        here.send(position)
        return here.recv()

    yield step
    here.send(None)
    process.join()


def measure(steps: Mapping[str, Step], repeats: int) -> dict[str, Taken]:
    """The seconds of each step; they are taken in turns, after one round that compiles.

    At each turn a step runs once before it is timed, as in ``benchmarks.timing.in_turn``.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for position in range(repeats + 1):
        for name, step in steps.items():
            step(position)
            taken[name].append(step(position))
    return {
        name: Taken(median_s=statistics.median(seconds[1:]), best_s=min(seconds[1:]))
        for name, seconds in taken.items()
    }


def launch_overhead(cores: int, repeats: int) -> tuple[int, dict[str, Taken]]:
    """Launches of a decode step of a very small OPT, and the seconds of the step divided by them.

    Whatever the host does besides computing is in it: collectives, the loop over steps, the call itself.
    Beside it, in turn, as many calls of ``jax.jit`` of one addition, each waited for.
    """
    cfg = dataclasses.replace(
        opt.config("opt-125m"), hidden=cores * 8, heads=cores, ffn=cores * 8, embed=cores * 8, vocab=cores * 8
    )
    step = _ring_step(cfg, jnp.float32, opt.parameters(cfg, jnp.float32, 0), cores)
    launches = _launches(decode(cfg, jnp.float32, cores).program)
    add, x = jax.jit(lambda x: x + 1), jnp.zeros(cores * 8)

    def calls(position: int) -> float:
        start = time.perf_counter()
        for _ in range(launches):
            add(x).block_until_ready()
        return time.perf_counter() - start

    taken = measure({"launch": step, "jax.jit": calls}, min(repeats * 3, MAX_LEN - 1))
    return launches, {
        name: Taken(median_s=one.median_s / launches, best_s=one.best_s / launches)
        for name, one in taken.items()
    }


def _launches(program: Program) -> int:
    launches = [step for step in program.main.steps if isinstance(step, Launch)]
    return sum(program.num_cores if launch.varying else 1 for launch in launches)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="opt-1.3b", help=f"one of {', '.join(opt.SIZES)}")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--cores", default="1,8,24", help="rings, the first is what others are compared with")
    parser.add_argument("--repeats", type=int, default=11, help="measurements of each, the median counts")
    parser.add_argument("--no-jax", action="store_true", help="leave out jax.jit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args(arguments)
    cfg, dtype = opt.config(asked.model), DTYPES[asked.dtype]
    if asked.layers:
        cfg = dataclasses.replace(cfg, layers=asked.layers)
    params = opt.parameters(cfg, dtype, 0)
    rings = [int(cores) for cores in asked.cores.split(",")]
    steps = {f"ring of {cores}": _ring_step(cfg, dtype, params, cores) for cores in rings}
    del params
    with contextlib.ExitStack() as stack:
        if not asked.no_jax:
            name = f"jax.jit on {JAX_DEVICES} devices"
            steps[name] = stack.enter_context(_jax_step(cfg, asked.dtype))
        found = measure(steps, min(asked.repeats, MAX_LEN - 1))
    base = found[f"ring of {rings[0]}"]
    launches, calls = launch_overhead(JAX_DEVICES, asked.repeats)
    if asked.json:
        steps, calls = (
            {name: dataclasses.asdict(t) for name, t in taken.items()} for taken in (found, calls)
        )
        print(json.dumps({"model": cfg.name, "layers": cfg.layers, "dtype": asked.dtype, "steps": steps,
                          "launches": launches, "calls": calls}))  # fmt: skip
        return 0
    print(f"{cfg.name}, {cfg.layers} layers, {asked.dtype}, batch 1: one decode step, median and best")
    for name, taken in found.items():
        print(
            f"{name:<24} {taken.median_s * 1e3:9.1f} ms {taken.median_s / base.median_s:6.2f} x"
            f" {taken.best_s * 1e3:9.1f} ms {taken.best_s / base.best_s:6.2f} x"
        )
    print(
        f"host time of a launch, ring of {JAX_DEVICES}, {launches} launches a step; and of jax.jit of x + 1"
    )
    for name, taken in calls.items():
        print(f"{name:<24} {taken.median_s * 1e6:9.1f} us {' ':8} {taken.best_s * 1e6:9.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
