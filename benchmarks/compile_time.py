"""What compiling costs, of shapes only: OPT decode or a BERT training step by depth; clock; import."""

import argparse
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import neuronx
from neuronx.models import bert, opt
from neuronx.stages import Compiled, Lowered

__all__ = ["decode", "import_seconds", "main", "measure", "training"]

FEW_LAYERS = 4
MAX_LEN = 64


def decode(cfg: opt.OPTConfig, cores: int) -> Callable[[], Lowered]:
    """Lowers one step of a decoder."""
    token, position = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    cache = opt.cache_shapes(cfg, 1, MAX_LEN, jnp.bfloat16)
    arguments = opt.parameter_shapes(cfg, jnp.bfloat16), cache, token, position
    return lambda: neuronx.compile(
        functools.partial(opt.decode, cfg), donate_argnums=1, tp_degree=cores
    ).lower(*arguments)


def training(cfg: bert.BertConfig, cores: int) -> Callable[[], Lowered]:
    """Lowers one step of gradient descent on an encoder, 8 sequences of 128 tokens in float32."""
    tokens = [jax.ShapeDtypeStruct((8, 128), jnp.int32)] * 3
    params = bert.parameter_shapes(cfg, jnp.float32)

    def step(params: Any, *tokens: jax.Array) -> tuple[jax.Array, Any]:
        def loss(params: Any) -> jax.Array:
            return jnp.mean(bert.encode(cfg, params, *tokens)[0] ** 2)

        value, slopes = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda param, slope: param - 0.01 * slope, params, slopes)

    # A new partial each time, which JAX has not traced yet.
    return lambda: neuronx.compile(functools.partial(step), donate_argnums=0, tp_degree=cores).lower(
        params, *tokens
    )


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor: one thread does the work, and others on the machine do not count."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


# Models by name, and what is lowered of each.
_DECODING = {"opt-30b": (opt.config, decode), "opt-66b": (opt.config, decode)}
_TRAINING = {"bert-large-uncased": (bert.config, training)}


def measure(lower: Callable[[], Lowered], repeats: int) -> dict[str, float]:
    """Median seconds: tracing and lowering, the passes, both, the same from the cache, and one timed step."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        # The first round fills the cache: from the same line, for where a function is called is part of it.
        for _ in range(repeats + 1):
            os.environ["NEURONX_CACHE_DIR"] = ""
            lower_s, lowered = _seconds(lower)
            passes_s, _ = _seconds(lowered.compile)
            os.environ["NEURONX_CACHE_DIR"] = directory
            cached_s, found = _seconds(lowered.compile)
            rows.append((lower_s, passes_s, lower_s + passes_s, lower_s + cached_s, _clock_s(found)))
    names = ("lower_s", "passes_s", "total_s", "cached_s", "clock_s")
    return {
        name: statistics.median(column)
        for name, column in zip(names, zip(*rows[1:], strict=True), strict=True)
    }


def _clock_s(compiled: Compiled) -> float:
    return _seconds(compiled.cost_analysis)[0]


def import_seconds(repeats: int) -> dict[str, float]:
    """Median seconds of processes, taken in turns: importing JAX, this package, what it compiles with.

    The package puts off what only a compilation needs; ``neuronx.compile`` asks for it.
    """
    codes = ("import jax", "import neuronx", "import neuronx; neuronx.compile")
    taken: dict[str, list[float]] = {code: [] for code in codes}
    for _ in range(repeats + 1):
        for code, seconds in taken.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(time.perf_counter() - start)
    # The first of each reads the files.
    return {code: statistics.median(seconds[1:]) for code, seconds in taken.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each, the median counts")
    parser.add_argument("--training", action="store_true", help="of a training step in place of decoding")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args(arguments)
    rows = []
    for name, (config, lowering) in (_TRAINING if asked.training else _DECODING).items():
        whole = config(name)
        for cfg in (dataclasses.replace(whole, layers=FEW_LAYERS), whole):
            row = measure(lowering(cfg, asked.cores), asked.repeats)
            rows.append({"model": name, "layers": cfg.layers, **row})
    imports = import_seconds(asked.repeats)
    if asked.json:
        print(json.dumps({"cores": asked.cores, "compile": rows, "import_s": imports}))
        return 0
    work = "a training step" if asked.training else "decode"
    print(f"{work} of shapes only on {asked.cores} cores, seconds of the processor")
    heads = f"{'layers':>6} {'lower':>7} {'passes':>7} {'total':>7} {'cached':>7} {'timed step':>11}"
    print(f"{'model':<18} {heads}")
    for row in rows:
        times = f"{row['lower_s']:7.2f} {row['passes_s']:7.2f} {row['total_s']:7.2f} {row['cached_s']:7.2f}"
        print(f"{row['model']:<18} {row['layers']:>6} {times} {row['clock_s']:11.3f}")
    for few, whole in zip(rows[::2], rows[1::2], strict=True):
        depth = f"{whole['layers']} layers against {few['layers']}"
        print(f"{whole['model']}: {depth}: {whole['total_s'] / few['total_s']:.2f} x")
    for code, seconds in imports.items():
        print(f"{code:<32} {seconds:5.2f} s {seconds / imports['import jax']:5.2f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
