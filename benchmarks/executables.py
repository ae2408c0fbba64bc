"""What XLA takes to compile the segments of an OPT decode step, and to read them from the compile cache."""

import json
import os
import statistics
import sys
import tempfile
import time

import jax.numpy as jnp

from benchmarks.ring_overhead import decode
from benchmarks.timing import arguments
from distributed.executor import Executor
from distributed.program import Program
from distributed.runtime import Runtime
from hlo_passes.host_lowering import lower_text
from neuronx.executables import Executables
from neuronx.models import opt

__all__ = ["main", "measure"]


def measure(program: Program, repeats: int) -> dict[str, float]:
    """Median seconds until all segments are ready to run: compiled, and out of the cache that left."""
    taken: dict[str, list[float]] = {"compiled": [], "cached": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as directory:
            os.environ["NEURONX_CACHE_DIR"] = directory
            for seconds in taken.values():
                executor = Executor(lower_text, kept=Executables())
                start = time.perf_counter()
                Runtime(program, executor).load()
                seconds.append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def main(given: list[str]) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", default="opt-1.3b", help=f"one of {', '.join(opt.SIZES)}")
    parser.add_argument("--cores", type=int, default=8)
    asked = parser.parse_args(given)
    # Before anything is measured: the kernels of the host are compiled or loaded once for a process.
    program = decode(opt.config(asked.model), jnp.bfloat16, asked.cores).program
    Runtime(program, Executor(lower_text)).load()
    found = measure(program, asked.repeats)
    if asked.json:
        print(
            json.dumps(
                {"model": asked.model, "cores": asked.cores, "segments": len(program.segments), **found}
            )
        )
        return 0
    print(f"{asked.model}, bf16 decode on {asked.cores} cores, {len(program.segments)} distinct segments")
    for name, seconds in found.items():
        print(f"{name:<10} {seconds:6.3f} s {found['compiled'] / seconds:6.1f} x")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
