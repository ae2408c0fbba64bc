"""What compiling costs: OPT decode of shapes only, by depth, from the cache; the clock; the import."""

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
from neuronx.models import opt
from neuronx.stages import Compiled, Lowered

__all__ = ["import_seconds", "main", "measure"]

MODELS = ("opt-30b", "opt-66b")
FEW_LAYERS = 4
MAX_LEN = 64


def _arguments(cfg: opt.OPTConfig) -> tuple[Any, ...]:
    token, position = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    cache = opt.cache_shapes(cfg, 1, MAX_LEN, jnp.bfloat16)
    return opt.parameter_shapes(cfg, jnp.bfloat16), cache, token, position


def _lower(cfg: opt.OPTConfig, cores: int, arguments: tuple[Any, ...]) -> Lowered:
    fn = neuronx.compile(functools.partial(opt.decode, cfg), donate_argnums=1, tp_degree=cores)
    return fn.lower(*arguments)


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor: one thread does the work, and others on the machine do not count."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def measure(cfg: opt.OPTConfig, cores: int, repeats: int) -> dict[str, float]:
    """Median seconds: tracing and lowering, the passes, both, the same from the cache, and one timed step."""
    rows, lower = [], functools.partial(_lower, cfg, cores, _arguments(cfg))
    with tempfile.TemporaryDirectory() as directory:
        os.environ["NEURONX_CACHE_DIR"] = directory
        lower().compile()
        for _ in range(repeats):
            os.environ["NEURONX_CACHE_DIR"] = ""
            lower_s, lowered = _seconds(lower)
            passes_s, _ = _seconds(lowered.compile)
            os.environ["NEURONX_CACHE_DIR"] = directory
            cached_s, found = _seconds(lowered.compile)
            rows.append((lower_s, passes_s, lower_s + passes_s, lower_s + cached_s, _clock_s(found)))
    names = ("lower_s", "passes_s", "total_s", "cached_s", "clock_s")
    return {
        name: statistics.median(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
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
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args(arguments)
    rows = []
    for name in MODELS:
        whole = opt.config(name)
        for cfg in (dataclasses.replace(whole, layers=FEW_LAYERS), whole):
            rows.append({"model": name, "layers": cfg.layers, **measure(cfg, asked.cores, asked.repeats)})
    imports = import_seconds(asked.repeats)
    if asked.json:
        print(json.dumps({"cores": asked.cores, "compile": rows, "import_s": imports}))
        return 0
    print(f"decode of shapes only on {asked.cores} cores, seconds of the processor")
    print(
        f"{'model':<8} {'layers':>6} {'lower':>7} {'passes':>7} {'total':>7} {'cached':>7} {'timed step':>11}"
    )
    for row in rows:
        times = f"{row['lower_s']:7.2f} {row['passes_s']:7.2f} {row['total_s']:7.2f} {row['cached_s']:7.2f}"
        print(f"{row['model']:<8} {row['layers']:>6} {times} {row['clock_s']:11.3f}")
    for few, whole in zip(rows[::2], rows[1::2], strict=True):
        depth = f"{whole['layers']} layers against {few['layers']}"
        print(f"{whole['model']}: {depth}: {whole['total_s'] / few['total_s']:.2f} x")
    for code, seconds in imports.items():
        print(f"{code:<32} {seconds:5.2f} s {seconds / imports['import jax']:5.2f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
