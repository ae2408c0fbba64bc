"""The pipeline: its one literal, the textual form of it, and the loop that runs passes and checks them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from distributed.program import Program
from distributed.program_text import program_text
from hlo_passes import (
    autocast,
    canonicalize,
    combine_collectives,
    fold,
    fuse,
    hoist,
    order,
    overlap,
    plan_memory,
    reassociate,
    scatter_reductions,
    schedule,
    shard,
    unfold,
)
from hlo_passes.ir import ir
from hlo_passes.levels import check_level
from hlo_passes.spec import parse_options, split_spec, unknown
from kernels.errors import CompileError

__all__ = [
    "FOLDING",
    "PASSES",
    "Debug",
    "Pass",
    "Stage",
    "default_pipeline",
    "folding",
    "parse_pipeline",
    "run_pipeline",
]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass: a module with ``Options`` and ``run(module, options)``, and the level it leaves.

    ``leaves`` None: the level it found.
    """

    name: str
    code: ModuleType
    leaves: str | None


PASSES: tuple[Pass, ...] = (
    # First: every later pass knows only plain StableHLO in one function.
    Pass(name="canonicalize", code=canonicalize, leaves="global"),
    # Before shard, so that a collective that ends a product moves the type the device computes.
    Pass(name="autocast", code=autocast, leaves="global"),
    # Everything after this sees one core's shapes, and the collectives it owes the others.
    Pass(name="shard", code=shard, leaves="local"),
    # First of the passes over collectives: a sum of reductions must be one reduction for the next to see it.
    Pass(name="reassociate", code=reassociate, leaves="local"),
    # Before anything is moved or joined: what becomes smaller or goes need not be.
    Pass(name="scatter_reductions", code=scatter_reductions, leaves="local"),
    # A sum of several reductions leaves its loop only as one, and what came to be local needs no way out.
    Pass(name="hoist", code=hoist, leaves="local"),
    # Before the small ones are joined: a joined collective no longer stands next to one product.
    Pass(name="overlap", code=overlap, leaves="local"),
    # What is left of them, before fuse puts kernels between.
    Pass(name="combine_collectives", code=combine_collectives, leaves="local"),
    # After the collectives are final, for they are where kernels must end.
    Pass(name="fuse", code=fuse, leaves="fused"),
    # After fuse, whose kernels it moves, and before the plan, which gives memory to values in their order.
    Pass(name="order", code=order, leaves="fused"),
    # After fuse: what stays inside a kernel needs no place in HBM.
    Pass(name="plan_memory", code=plan_memory, leaves="planned"),
    # Last: reads all of the above into the program that the ring runs and the clock times.
    Pass(name="schedule", code=schedule, leaves="planned"),
)

# These two save time and change nothing else: of equal layers four go through the passes between.
FOLDING: tuple[Pass, ...] = (
    # Before all others: what is left out costs none of them anything.
    Pass(name="fold", code=fold, leaves=None),
    # After fuse, the last pass to look at a layer by itself: order and memory are of the whole.
    Pass(name="unfold", code=unfold, leaves="fused"),
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A pass with its options: one element of a pipeline."""

    name: str
    options: Any


@dataclass(frozen=True, kw_only=True)
class Debug:
    """``check_levels``: what each pass leaves is checked. ``dump_dir``: a numbered file after each pass."""

    check_levels: bool = False
    dump_dir: Path | None = None


_QUIET = Debug()


def default_pipeline(**options: Any) -> tuple[Stage, ...]:
    """All passes in order; ``options`` replaces those of the passes named, e.g. ``autocast=Options(...)``."""
    known = [row.name for row in PASSES]
    for name in options:
        if name not in known:
            raise unknown("pass", name, known)
    return tuple(Stage(name=row.name, options=options.get(row.name, row.code.Options())) for row in PASSES)


def folding(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The default pipeline ``stages`` with the passes ``FOLDING`` in their places."""
    first, second = (Stage(name=row.name, options=row.code.Options()) for row in FOLDING)
    after = 1 + next(at for at, stage in enumerate(stages) if stage.name == "fuse")
    return (first, *stages[:after], second, *stages[after:])


def parse_pipeline(text: str) -> tuple[Stage, ...]:
    """Reads ``canonicalize,shard{tp=4},fuse``.

    Raises:
      CompileError: an unknown pass or option, or a value that does not fit; says what there is.
    """
    known = {row.name: row for row in (*PASSES, *FOLDING)}
    stages = []
    for name, settings in split_spec(text):
        if name not in known:
            raise unknown("pass", name, list(known))
        stages.append(Stage(name=name, options=parse_options(name, known[name].code.Options, settings)))
    return tuple(stages)


def run_pipeline(
    module: ir.Module,
    stages: Sequence[Stage],
    *,
    debug: Debug = _QUIET,
    after: Callable[[Stage, ir.Module], None] | None = None,
) -> Program | None:
    """Runs ``stages`` on ``module`` in place, the MLIR verifier after each.

    Args:
      module: changed in place; after ``schedule`` it is as ``plan_memory`` left it.
      stages: from ``default_pipeline`` or ``parse_pipeline``.
      debug: what to check and write besides.
      after: called with each stage and the module it left.

    Returns:
      The program, if the last stage is ``schedule``; else None.
    """
    known = {row.name: row for row in (*PASSES, *FOLDING)}
    dump = _Dump(module, debug.dump_dir) if debug.dump_dir is not None else None
    program = None
    for stage in stages:
        if program is not None:
            raise CompileError(
                f"pass {stage.name} cannot follow schedule", fix="let schedule be the last pass"
            )
        row = known[stage.name]
        program = row.code.run(module, stage.options)
        if program is None:  # what makes one leaves the module as it is
            _verify(module, stage.name)
        if debug.check_levels and row.leaves is not None:
            check_level(module, row.leaves, stage.name)
        if dump is not None:
            if program is None:
                dump.write(f"{stage.name}.mlir", str(module))
            else:
                dump.write(f"{stage.name}.txt", program_text(program))
        if after is not None:
            after(stage, module)
    return program


def _verify(module: ir.Module, name: str) -> None:
    try:
        module.operation.verify()
    except ir.MLIRError as error:
        raise AssertionError(f"pass {name} left an invalid module: {error}") from error


class _Dump:
    """Writes ``<dir>/<module name>[.n]/00_input.mlir``, ``01_canonicalize.mlir``, ..."""

    def __init__(self, module: ir.Module, directory: Path) -> None:
        attributes = module.operation.attributes
        name = attributes["sym_name"].value if "sym_name" in attributes else "module"
        tries = (directory / (f"{name}.{n}" if n else name) for n in range(10**6))
        self.directory = next(path for path in tries if not path.exists())
        self.directory.mkdir(parents=True)
        self.count = 0
        self.write("input.mlir", str(module))

    def write(self, name: str, text: str) -> None:
        (self.directory / f"{self.count:02d}_{name}").write_text(text)
        self.count += 1
