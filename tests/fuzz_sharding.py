"""Runs random programs under random shardings and compares with the same programs on one XLA:CPU device.

``python tests/fuzz_sharding.py --seed S [--steps K]`` runs one program and shows it where it fails;
``--count N`` runs seeds S, S+1, ..., each in a process that may die without taking the others along.
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np
from oracles import OracleRefusal
from random_programs import Program, generate
from ring_oracle import lower, run_sharded

from distributed.executor import Executor
from distributed.runtime import Runtime
from hlo_passes import shard
from hlo_passes.ir import ir
from neuronx.driver import CompileOptions, compile_module

__all__ = ["RUNTIME_SHARE", "Outcome", "command", "run_many", "run_one", "through_runtime"]

# One program in so many goes through the whole pipeline and our runtime, the others through XLA:CPU.
RUNTIME_SHARE = 5
# Sums in another order, up to a few dozen steps deep, relative to the largest element.
_SMOOTH_TOLERANCE = 1e-3
_BATCH = 50


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``failure`` is "" where the program's answers were those of one device.

    ``runtime``: it ran through the whole pipeline and our runtime, not on N replicas of XLA:CPU.
    """

    seed: int
    steps: int
    cores: int
    failure: str
    runtime: bool = False


def command(outcome: Outcome) -> str:
    """What runs exactly this program again."""
    return f"python tests/fuzz_sharding.py --seed {outcome.seed} --steps {outcome.steps}"


def run_one(seed: int, steps: int | None = None, *, runtime: bool | None = None) -> Outcome:
    """Runs the program of ``seed``; ``runtime``: through the whole pipeline, else what the seed says."""
    program = generate(seed, steps)
    whole = seed % RUNTIME_SHARE == 0 if runtime is None else runtime
    try:
        try:
            failure = _failure(program, whole)
        except OracleRefusal:
            # XLA:CPU itself fails on some collectives inside branches: one operand in two layouts.
            whole, failure = True, _failure(program, True)
    except Exception as error:
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}"
    return Outcome(seed=seed, steps=program.steps, cores=program.cores, failure=failure, runtime=whole)


def _failure(program: Program, runtime: bool) -> str:
    arguments = program.arguments()
    want = [np.asarray(x) for x in jax.jit(program.unsharded)(*arguments)]
    module = lower(program.function, program.specs())
    if runtime:
        got = through_runtime(module, arguments, program.cores)
    else:
        shard.run(module, shard.Options(tp=program.cores))
        assert module.operation.verify()
        got = run_sharded(module, arguments, program.cores)
    for number, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        wrong = _differs(ours, theirs, program.exact)
        if wrong:
            return f"result {number} {theirs.dtype}{list(theirs.shape)}: {wrong}"
    return ""


def through_runtime(module: ir.Module, arguments: Sequence[np.ndarray], cores: int) -> list[np.ndarray]:
    """The whole pipeline and our runtime, with poison in the padding of arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # degrees that AWS does not document
        program = compile_module(module, CompileOptions(tp_degree=cores)).program
    ring = Runtime(program, Executor(), poison=True)
    outputs = ring.run([ring.place(index, array) for index, array in enumerate(arguments)])
    return [ring.gather(index, output) for index, output in enumerate(outputs)]


def _differs(ours: np.ndarray, theirs: np.ndarray, exact: bool) -> str:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"got {ours.dtype}{list(ours.shape)}"
    x, y = ours.astype(np.float64), theirs.astype(np.float64)
    limit = 0.0 if exact else _SMOOTH_TOLERANCE * np.abs(y).max(initial=1e-3)
    good = (x == y) | (np.isnan(x) & np.isnan(y)) | (np.abs(x - y) <= limit)
    if good.all():
        return ""
    at = tuple(np.argwhere(~good)[0])
    return (
        f"{(~good).sum()} of {good.size} elements differ; at {list(map(int, at))}: {x[at]}, expected {y[at]}"
    )


def run_many(seeds: Sequence[int], workers: int = 1) -> Iterator[Outcome]:
    """Runs programs in processes of their own, which XLA and MLIR may end; yields in any order."""
    batches = [list(seeds[at : at + _BATCH]) for at in range(0, len(seeds), _BATCH)]
    while batches:
        with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
            futures = [(batch, pool.submit(_run_batch, batch)) for batch in batches]
            batches = []
            for batch, future in futures:
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    # Someone's batch ended the process: they are run one by one to see whose.
                    half = len(batch) // 2
                    if half:
                        batches += [batch[:half], batch[half:]]
                    else:
                        yield from _run_alone(batch[0])


def _run_batch(seeds: list[int]) -> list[Outcome]:
    return [run_one(seed) for seed in seeds]


def _run_alone(seed: int) -> Iterator[Outcome]:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.submit(_run_batch, [seed]).result()
        except BrokenProcessPool:
            program = generate(seed)
            yield Outcome(seed=seed, steps=program.steps, cores=program.cores, failure="the process died")


def _smallest(outcome: Outcome, runtime: bool | None) -> Outcome:
    """The shortest program of the seed that fails."""
    for steps in range(outcome.steps):
        shorter = run_one(outcome.seed, steps, runtime=runtime)
        if shorter.failure:
            return shorter
    return outcome


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="only so many steps of the program")
    parser.add_argument("--count", type=int, default=1, help="seeds from --seed on")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--runtime", action="store_true", default=None, help="every program through our runtime"
    )
    parser.add_argument("--reduce", action="store_true", help="find the fewest steps that fail")
    args = parser.parse_args()
    if args.count > 1:
        return _many(args)
    outcome = run_one(args.seed, args.steps, runtime=args.runtime)
    if outcome.failure and args.reduce:
        outcome = _smallest(outcome, args.runtime)
    if outcome.failure:
        program = generate(outcome.seed, outcome.steps)
        print(lower(program.function, program.specs()))
    print(f"{command(outcome)}: tp={outcome.cores}: {outcome.failure or 'passed'}")
    return bool(outcome.failure)


def _many(args: Any) -> int:
    begun, failed, runtime, cores = time.perf_counter(), 0, 0, Counter()
    for outcome in run_many(range(args.seed, args.seed + args.count), args.workers):
        cores[outcome.cores] += 1
        runtime += outcome.runtime
        if outcome.failure:
            failed += 1
            print(f"{command(outcome)}  # tp={outcome.cores}: {outcome.failure}", flush=True)
    each = ", ".join(f"{n} on {c} cores" for c, n in sorted(cores.items()))
    print(
        f"{args.count - failed} of {args.count} passed ({each}; {runtime} of them through our runtime) "
        f"in {time.perf_counter() - begun:.0f} s"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(_main())
