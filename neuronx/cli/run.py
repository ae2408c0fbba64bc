"""``neuronx run``: compiles and runs StableHLO files; ``--check`` judges self-checking programs."""

import argparse
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from absl import logging

from distributed.executor import Executor
from distributed.runtime import Runtime
from hlo_passes.fix_sizes import fix_sizes
from hlo_passes.ir import ir
from hlo_passes.sharding.randomize import randomize
from kernels.errors import CompileError
from neuronx.driver import DEFAULT_INSTANCE, CompileOptions, compile_module
from neuronx.inputs import random_inputs
from neuronx.selfcheck import judge, programs, take_checks

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "run"
HELP = "compile and run @main of each file; exit status 0, 1 (a check failed), 2 (did not compile or parse)"

_PASSED, _CHECK_FAILED, _NOT_RUN = 0, 1, 2
_RANDOM = re.compile(r"random:(\d{1,18})")


@dataclass(frozen=True, kw_only=True)
class _Settings:
    check: bool
    seed: int
    verbosity: int
    options: CompileOptions
    shard_seed: int | None
    size: int | None


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What became of one file: its exit status, and the lines to print."""

    status: int
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help=".mlir files")
    parser.add_argument("--check", action="store_true", help="judge the checks in the files, print failures")
    parser.add_argument("--tp-degree", type=int, default=1, help="cores to shard over (default 1)")
    parser.add_argument("--instance", default=DEFAULT_INSTANCE, help=f"default {DEFAULT_INSTANCE}")
    parser.add_argument(
        "--size", type=int, help="of every unknown dim of an @main's arguments, and of its integer scalars"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs of an @main with arguments")
    parser.add_argument(
        "--shard", metavar="random:SEED", help="random shardings on what enters each program, not a plan's"
    )


def main(args: argparse.Namespace) -> int:
    options = CompileOptions(tp_degree=args.tp_degree, instance=args.instance)
    options.warn_if_unusual()
    settings = _Settings(
        check=args.check, seed=args.seed, verbosity=logging.get_verbosity(), options=options,
        shard_seed=None if args.shard is None else _shard_seed(args.shard), size=args.size,
    )  # fmt: skip
    statuses = []
    for name, outcome in _run_all(args.files, settings):
        statuses.append(outcome.status)
        if outcome.status != _PASSED:
            print(f"{name}: {outcome.text}", file=sys.stdout if args.check else sys.stderr, flush=True)
        elif not args.check:
            print(f"{name}\n{outcome.text}", flush=True)
    if args.check:
        print(f"passed {statuses.count(_PASSED)} of {len(statuses)}")
    return max(statuses)


def _shard_seed(text: str) -> int:
    match = _RANDOM.fullmatch(text)
    if match is None:
        raise CompileError(
            f"--shard is {text!r}, expected random:SEED",
            op="shard", fix="write for example --shard random:7; without --shard the compiler plans",
        )  # fmt: skip
    return int(match[1])


def _run_all(names: list[str], settings: _Settings) -> Iterator[tuple[str, _Outcome]]:
    """Runs the files in a process of its own; where a file ends it, the next file gets a new one."""
    waiting = list(names)
    while waiting:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            while waiting:
                name = waiting.pop(0)
                try:
                    yield name, pool.submit(_run_file, name, settings).result()
                except BrokenProcessPool:
                    yield name, _Outcome(status=_NOT_RUN, text="the process that ran it ended abnormally")
                    break


def _run_file(name: str, settings: _Settings) -> _Outcome:
    logging.set_verbosity(settings.verbosity)
    try:
        return _run_programs(Path(name).read_text(), settings)
    except OSError as error:
        return _Outcome(status=_NOT_RUN, text=f"cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        return _Outcome(status=_NOT_RUN, text="is not text; give StableHLO as text")
    except CompileError as error:
        return _Outcome(status=_NOT_RUN, text=_one_line(str(error)) if settings.check else str(error))
    except Exception as error:  # one file's fault, ours or XLA's, must not cost the others their results
        logging.debug("%s", name, exc_info=True)
        return _Outcome(status=_NOT_RUN, text=_one_line(f"{type(error).__name__}: {error}"))


def _run_programs(text: str, settings: _Settings) -> _Outcome:
    reasons, printed, count = [], [], 0
    for module in programs(text):
        checks = take_checks(module) if settings.check else []
        outputs = _run_module(module, settings)
        reasons += filter(None, (judge(check, outputs) for check in checks))
        printed += [] if settings.check else [_show(index, output) for index, output in enumerate(outputs)]
        count += len(checks)
    if settings.check and not count:
        return _Outcome(status=_NOT_RUN, text="holds no check; run it without --check to see its results")
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return _Outcome(status=_CHECK_FAILED, text=reasons[0] + more)
    return _Outcome(status=_PASSED, text="\n".join(printed))


def _run_module(module: ir.Module, settings: _Settings) -> list[np.ndarray]:
    if settings.size is not None:
        fix_sizes(module, settings.size)
    inputs = random_inputs(module, settings.seed)
    if settings.shard_seed is not None:
        randomize(module, settings.options.tp_degree, settings.shard_seed)
    program = compile_module(module, settings.options).program
    runtime = Runtime(program, Executor())
    outputs = runtime.run([runtime.place(index, array) for index, array in enumerate(inputs)])
    return [runtime.gather(index, output) for index, output in enumerate(outputs)]


def _show(index: int, output: np.ndarray) -> str:
    return f"result {index}: {output.dtype.name}{list(output.shape)}\n{output}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
