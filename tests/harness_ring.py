"""JAX's own test harnesses under random input shardings on a ring of 4, against unsharded XLA:CPU.

``python tests/harness_ring.py --seed S --count N`` runs a sample, ``--only NAME`` one harness by its name.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np
from fuzz_sharding import through_runtime
from jax._src.internal_test_util.test_harnesses import Harness, all_harnesses

from hlo_passes.ir import ir, parse
from hlo_passes.sharding.randomize import randomize
from kernels.errors import CompileError

__all__ = ["CORES", "TOLERANCES", "Outcome", "run_sample", "sample"]

CORES = 4

# Largest difference in units of the type's epsilon, relative to the largest element of the result. Floats
# of 32 bits and more: sums in another order, of up to some hundreds of terms (convolutions, cumulative
# sums), and exp or log in other vector lanes of XLA:CPU. 16 bits: XLA:CPU sums in f32 and rounds once,
# while a ring of 4 rounds each of 4 partial sums and each of 3 additions of them. Integers and booleans
# must be equal.
TOLERANCES = {
    "float16": 8,
    "bfloat16": 8,
    "float32": 128,
    "float64": 128,
    "complex64": 128,
    "complex128": 128,
}

_BATCH = 40


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``status``: passed, skipped or failed; ``reason`` why, for the last two."""

    name: str
    status: str
    reason: str = ""


def sample(seed: int, count: int) -> list[int]:
    """Positions in ``all_harnesses``."""
    return random.Random(seed).sample(range(len(all_harnesses)), count)


def run_sample(seed: int, count: int, workers: int = 1) -> Iterator[Outcome]:
    """Runs a sample in processes of their own; one that dies fails the harness that ended it."""
    places = sample(seed, count)
    batches = [places[at : at + _BATCH] for at in range(0, count, _BATCH)]
    died: list[int] = []
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        futures = [(batch, pool.submit(_run_batch, batch, seed)) for batch in batches]
        for batch, future in futures:
            try:
                yield from future.result()
            except BrokenProcessPool:
                died += batch
    for place in died:
        yield from _run_alone(place, seed)


def _run_alone(place: int, seed: int) -> Iterator[Outcome]:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.submit(_run_batch, [place], seed).result()
        except BrokenProcessPool:
            yield Outcome(name=all_harnesses[place].fullname, status="failed", reason="the process died")


def _run_batch(places: list[int], seed: int) -> list[Outcome]:
    return [_run(all_harnesses[place], seed) for place in places]


def _run(harness: Harness, seed: int) -> Outcome:
    unable = [x.description for x in harness.jax_unimplemented if x.filter(device="cpu", dtype=harness.dtype)]
    if unable:
        reason = f"JAX does not implement it on CPU: {unable[0]}"
        return Outcome(name=harness.fullname, status="skipped", reason=reason)
    arguments = harness.dyn_args_maker(np.random.RandomState(seed))
    try:
        traced = jax.jit(harness.dyn_fun, keep_unused=True).trace(*arguments)
        lowered = traced.lower(lowering_platforms=("cpu",))
        compiled = lowered.compile(compiler_options={"xla_allow_excess_precision": False})
        want = [_host(x) for x in jax.tree.leaves(compiled(*arguments))]
    except Exception as error:
        return Outcome(name=harness.fullname, status="skipped", reason=f"JAX itself: {_one_line(error)}")
    module = parse(lowered.compiler_ir("stablehlo").operation.get_asm(enable_debug_info=True))
    leaves = [_host(x) for x in jax.tree.leaves(arguments)]
    return _judge(harness.fullname, module, leaves, want, seed)


def _judge(
    name: str, module: ir.Module, arguments: list[np.ndarray], want: list[np.ndarray], seed: int
) -> Outcome:
    """Where the ring fails, the same program on one core says whose fault it is."""
    alone = _attempt(parse(str(module)), arguments, want, 1, None)
    reason = _attempt(module, arguments, want, CORES, seed)
    if not reason:
        return Outcome(name=name, status="passed")
    if alone:
        return Outcome(name=name, status="skipped", reason=f"on one core as well: {alone}")
    return Outcome(name=name, status="failed", reason=reason)


def _attempt(
    module: ir.Module, arguments: list[np.ndarray], want: list[np.ndarray], cores: int, seed: int | None
) -> str:
    if seed is not None:
        randomize(module, cores, seed)
    try:
        got = through_runtime(module, arguments, cores)
    except CompileError as error:
        return f"refused: {_one_line(error)}"
    except Exception as error:
        return _one_line(error)
    reasons = (_differs(ours, theirs) for ours, theirs in zip(got, want, strict=True))
    return next((f"result {n}: {reason}" for n, reason in enumerate(reasons) if reason), "")


def _differs(ours: np.ndarray, theirs: np.ndarray) -> str:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"got {ours.dtype}{list(ours.shape)}, expected {theirs.dtype}{list(theirs.shape)}"
    name = theirs.dtype.name
    wide = np.complex128 if theirs.dtype.kind == "c" else np.float64 if name in TOLERANCES else theirs.dtype
    x, y = ours.astype(wide), theirs.astype(wide)
    same = (x == y) | ((x != x) & (y != y))
    if name in TOLERANCES:
        scale = np.abs(y[np.isfinite(y)]).max(initial=0.0)
        with np.errstate(invalid="ignore"):
            same |= np.abs(x - y) <= TOLERANCES[name] * float(jax.numpy.finfo(theirs.dtype).eps) * scale
    if same.all():
        return ""
    at = tuple(np.argwhere(~same)[0])
    return f"{(~same).sum()} of {same.size} of {name} differ; at {list(map(int, at))}: {x[at]} for {y[at]}"


def _host(x: Any) -> np.ndarray:
    is_key = hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    x = np.asarray(jax.random.key_data(x) if is_key else x)
    return x.astype(jax.dtypes.canonicalize_dtype(x.dtype))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", help="one harness by its full name")
    args = parser.parse_args()
    if args.only:
        named = next(h for h in all_harnesses if h.fullname == args.only)
        outcomes = iter([_run(named, args.seed)])
    else:
        outcomes = run_sample(args.seed, args.count, args.workers)
    begun, statuses, reasons = time.perf_counter(), Counter(), Counter()
    for outcome in outcomes:
        statuses[outcome.status] += 1
        if outcome.status == "skipped":
            reasons[outcome.reason.split(" at [")[0]] += 1
        if outcome.status == "failed":
            again = f"python tests/harness_ring.py --seed {args.seed} --only '{outcome.name}'"
            print(f"{again}  # {outcome.reason}", flush=True)
    for reason, count in reasons.most_common():
        print(f"skipped {count}: {reason}")
    print(f"{dict(statuses)} in {time.perf_counter() - begun:.0f} s")
    return bool(statuses["failed"])


if __name__ == "__main__":
    sys.exit(_main())
