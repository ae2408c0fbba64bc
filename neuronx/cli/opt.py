"""``neuronx opt``: any part of the pipeline on a module as text."""

import argparse
from collections.abc import Sequence

from distributed.program import Program
from distributed.program_text import program_text
from distributed.timeline import time_program
from hlo_passes.ir import ir, module_bytes, parse
from hlo_passes.pipeline import FOLDING, PASSES, Debug, Stage, parse_pipeline, run_pipeline
from hlo_passes.shard import is_annotated, plan_of
from kernels.eras import DEFAULT_ERA
from kernels.errors import CompileError
from kernels.hardware import load_instance
from neuronx.environment import environment
from neuronx.explain import explain
from neuronx.fastest import clock_named
from neuronx.named import read_module

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "opt"
HELP = "run passes on StableHLO text; prints the module, or the program where the last pass is schedule"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = ", ".join(row.name for row in (*PASSES, *FOLDING))
    parser.add_argument(
        "-p",
        "--passes",
        required=True,
        help=f"passes in order, as 'canonicalize,shard{{tp=4}},fuse'; there is {names}",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="print the plan, its prices, collectives and what was given up; the last pass is schedule",
    )
    parser.add_argument("file", help="a .mlir file, or - for standard input")


def main(args: argparse.Namespace) -> int:
    stages = parse_pipeline(args.passes)
    module = read_module(args.file)
    source = module_bytes(module)
    asked = environment()
    program = run_pipeline(module, stages, debug=Debug(check_levels=asked.debug > 0, dump_dir=asked.dump))
    if args.explain:
        print(_explained(source, module, program, stages))
    else:
        print(module if program is None else program_text(program))
    return 0


def _explained(source: bytes, module: ir.Module, program: Program | None, stages: Sequence[Stage]) -> str:
    if program is None:
        raise CompileError("--explain needs the program", fix="let schedule be the last pass")
    cut, _ = plan_of(module)
    is_folded = any(stage.name == row.name for stage in stages for row in FOLDING)
    is_free = cut and not is_folded and not is_annotated(parse(source))
    tried = clock_named(source, stages, DEFAULT_ERA) if is_free else None
    instance = load_instance(stages[-1].options.instance)
    return explain(module, program, lambda: time_program(program, instance, era=DEFAULT_ERA), tried)
