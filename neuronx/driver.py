"""From a StableHLO module to a program for the ring: options, levels as bytes, the final fit check."""

import contextlib
import functools
import gc
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from distributed.device_memory import DeviceMemory, check_fits
from distributed.program import Program
from distributed.program_text import program_text
from distributed.timeline import time_program
from hlo_passes import autocast, order, overlap, schedule, shard
from hlo_passes.folded import UnsteadyError, folded
from hlo_passes.ir import ir, module_bytes, parse
from hlo_passes.notes import add_notes
from hlo_passes.pipeline import PASSES, Debug, Stage, default_pipeline, folding, run_pipeline
from hlo_passes.spec import unknown
from kernels.eras import DEFAULT_ERA, ERAS
from kernels.errors import CompileError, OutOfDeviceMemoryError
from kernels.hardware import load_instance, load_links
from neuronx.environment import environment
from neuronx.fastest import Tried, find_fastest
from neuronx.progress import Progress

__all__ = [
    "AUTO_CASTS",
    "AUTO_CAST_TYPES",
    "DEFAULT_INSTANCE",
    "LEVELS",
    "OBJECTIVES",
    "Artifacts",
    "CompileOptions",
    "WholeLevels",
    "compile_module",
    "copy_module",
    "pipeline_for",
    "with_levels",
    "without_collector",
]

DEFAULT_INSTANCE = "inf2.48xlarge"
LEVELS = ("global", "local", "fused", "planned", "program")

# neuronx-cc's --auto-cast and --auto-cast-type; the first of each is its default since SDK 2.27.
AUTO_CASTS = ("none", "matmult", "all")
AUTO_CAST_TYPES = ("bf16", "fp16", "tf32", "fp8_e4m3")

# What a plan is for, the default first.
OBJECTIVES = ("memory", "time")


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """What to compile for.

    Args:
      tp_degree: number of cores, 1 to those of the instance.
      instance: inf2.xlarge, inf2.8xlarge, inf2.24xlarge or inf2.48xlarge.
      auto_cast: which f32 ops are computed in ``auto_cast_type``: none, matmult or all.
      auto_cast_type: bf16, fp16, tf32 or fp8_e4m3.
      era: whose constants predictions use: "sdk-2.18", what AWS's software achieved, or "ideal", what the
        documented rates of the hardware allow.
      objective: what the plan of an unannotated program is for: memory or time.
      host_kernels: execute products with the host's JIT'd kernels; False leaves all to XLA:CPU.

    Raises:
      CompileError: a value that does not exist, or more cores than the instance has.
    """

    tp_degree: int = 1
    instance: str = DEFAULT_INSTANCE
    auto_cast: str = AUTO_CASTS[0]
    auto_cast_type: str = AUTO_CAST_TYPES[0]
    era: str = DEFAULT_ERA
    objective: str = OBJECTIVES[0]
    host_kernels: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (
            ("auto_cast", self.auto_cast, AUTO_CASTS),
            ("auto_cast_type", self.auto_cast_type, AUTO_CAST_TYPES),
            ("era", self.era, ERAS),
            ("objective", self.objective, OBJECTIVES),
        ):
            if value not in known:
                raise unknown(name, value, known)
        cores = load_instance(self.instance).cores
        if isinstance(self.tp_degree, bool) or not isinstance(self.tp_degree, int) or self.tp_degree < 1:
            raise CompileError(
                f"tp_degree is {self.tp_degree!r}, expected an integer from 1 to {cores}",
                op="tp_degree",
                fix="give the number of cores to use",
            )
        if self.tp_degree > cores:
            raise CompileError(
                f"tp_degree {self.tp_degree} is more than the {cores} cores of {self.instance}",
                op="tp_degree",
                fix=f"use at most {cores}, or a larger instance",
            )

    def warn_if_unusual(self) -> None:
        """Warns of a degree that the simulator runs and the real runtime may refuse."""
        documented = load_links(load_instance(self.instance).family).documented_degrees
        if self.tp_degree not in documented:
            warnings.warn(
                f"tp_degree {self.tp_degree} runs here, but the Neuron runtime may refuse it: "
                f"the documented degrees are {', '.join(map(str, documented))}",
                UserWarning,
                stacklevel=3,
            )


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """What a compilation leaves: the program, and the module at each level as MLIR bytecode.

    ``plan`` is that of the pass ``shard``, ``cut`` the same written out ("": nothing was planned); ``tried``
    says what it was chosen from where time is the objective.
    """

    program: Program
    memory: DeviceMemory
    options: CompileOptions
    levels: Mapping[str, bytes]
    plan: str = shard.PLANS[0]
    cut: str = ""
    tried: Tried | None = None

    def text(self, level: str) -> str:
        """The module at ``level`` (one of ``LEVELS``), or the program, as text."""
        if level not in LEVELS:
            raise unknown("level", level, LEVELS)
        if level == "program":
            return program_text(self.program)
        return str(parse(self.levels[level]))


def compile_module(module: ir.Module, options: CompileOptions, *, weights: Collection[int] = ()) -> Artifacts:
    """Runs the whole pipeline on a copy of ``module``, and checks that the program fits the device.

    Where time is the objective the pipeline runs for many plans, and the one of the least predicted time
    among those that fit is kept; else for two at most.

    ``weights`` are the positions of ``@main``'s arguments that count as weights in memory tables.

    Raises:
      CompileError: the module holds what the compiler cannot take; names op, line and what to do.
      OutOfDeviceMemoryError: the program needs more HBM than a core has.
    """
    source, plans, tried, weights = module_bytes(module), [shard.PLANS[0]], None, frozenset(weights)
    if options.objective == "time" and options.tp_degree > 1 and not shard.is_annotated(module):
        plan, tried = find_fastest(source, pipeline_for(options), options.era)
        plans = [plan]
    found: list[Artifacts] = []
    too_large = None
    for plan in plans:
        done = _compile(source, pipeline_for(options, plan))
        try:
            memory = check_fits(done.program, options.instance, weights=weights)
        except OutOfDeviceMemoryError as error:
            too_large = error
        else:
            row = Artifacts(program=done.program, memory=memory, options=options, levels=done.levels)
            found.append(replace(row, plan=plan, cut=done.cut, tried=tried))
        if done.is_contested:
            plans.append("weights_still")
    if not found:
        raise too_large
    return found[0] if len(found) == 1 else min(found, key=_step_s)


def _step_s(artifacts: Artifacts) -> float:
    """Of a step; infinite where an op has no price, so that no plan is faster than the first."""
    options = artifacts.options
    try:
        return time_program(artifacts.program, load_instance(options.instance), era=options.era).total_s
    except CompileError:
        return math.inf


@dataclass(frozen=True, kw_only=True)
class _Done:
    """What one run of the passes leaves; ``cut`` is its plan written out, see ``hlo_passes.shard.PLAN``."""

    program: Program
    levels: Mapping[str, bytes]
    cut: str
    is_contested: bool


def _compile(source: bytes, stages: tuple[Stage, ...]) -> _Done:
    """Compiles for one plan, with equal layers folded unless somebody wants to see every pass."""
    asked = environment()
    if asked.debug or asked.dump:
        return _run(source, stages, Debug(check_levels=asked.debug > 0, dump_dir=asked.dump))
    try:
        return _run(source, stages, Debug(), fold=True)
    except UnsteadyError as error:
        note = f"fold: equal layers were compiled one by one, for {error.reason}"
        return _run(source, stages, Debug(), note=note)
    except CompileError:
        # Said again of the whole program, whose arguments have the user's numbers.
        return _run(source, stages, Debug())


def _run(
    source: bytes, stages: tuple[Stage, ...], debug: Debug, *, fold: bool = False, note: str | None = None
) -> _Done:
    """Runs ``stages``; with ``fold`` a few of many equal layers go through most of them.

    ``note`` is added to those of the pass ``shard``.
    """
    module, passes = parse(source), folding(stages) if fold else stages
    levels: dict[str, bytes] = {}
    leaves = {row.name: row.leaves for row in PASSES}
    last = {leaves[stage.name]: stage for stage in passes if stage.name in leaves}
    progress = Progress("compiling", [stage.name for stage in passes])
    is_folded = False

    def keep(stage: Stage, at: ir.Module) -> None:
        nonlocal is_folded
        progress.advance()
        is_folded = is_folded or folded(at) is not None
        if note is not None and stage.name == "shard":
            add_notes(at, [note])
        if not is_folded and last.get(leaves.get(stage.name)) is stage:
            levels[leaves[stage.name]] = module_bytes(at)

    with progress, without_collector():
        program = run_pipeline(module, passes, debug=debug, after=keep)
    assert program is not None, "the pipeline ends with schedule"
    cut, is_contested = shard.plan_of(module)
    return _Done(
        program=program,
        levels=WholeLevels(source, _with_plan(stages, cut), program) if is_folded else levels,
        cut=cut,
        is_contested=is_contested,
    )


def _with_plan(stages: Sequence[Stage], plan: str) -> tuple[Stage, ...]:
    """The same pipeline with a plan for the pass ``shard``; "" leaves its own."""
    return tuple(
        replace(stage, options=replace(stage.options, plan=plan)) if plan and stage.name == "shard" else stage
        for stage in stages
    )


def with_levels(artifacts: Artifacts, source: bytes) -> Artifacts:
    """``artifacts`` that were kept without levels: they are made of ``source`` when one is asked for."""
    stages = pipeline_for(artifacts.options, artifacts.cut or artifacts.plan)
    return replace(artifacts, levels=WholeLevels(source, stages, artifacts.program))


class WholeLevels(Mapping[str, bytes]):
    """The levels of a program whose layers were folded: made of all layers when one is asked for.

    ``source`` is the module that was compiled, as bytecode.
    """

    def __init__(self, source: bytes, stages: tuple[Stage, ...], program: Program) -> None:
        self.source, self._stages, self._program = source, stages, program

    @functools.cached_property
    def _levels(self) -> Mapping[str, bytes]:
        done = _run(self.source, self._stages, Debug())
        if done.program != self._program:
            warnings.warn(
                "levels and notes are of the program compiled without folding equal layers, and it is not "
                "the one that runs",
                stacklevel=2,
            )
        return done.levels

    def __getitem__(self, level: str) -> bytes:
        return self._levels[level]

    def __iter__(self) -> Iterator[str]:
        return iter(self._levels)

    def __len__(self) -> int:
        return len(self._levels)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Holds Python's search for cycles: what runs inside makes many objects and no garbage to speak of."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def pipeline_for(options: CompileOptions, plan: str = shard.PLANS[0]) -> tuple[Stage, ...]:
    """The passes of a compilation, in order; ``plan`` is one of the pass ``shard``."""
    return default_pipeline(
        autocast=autocast.Options(mode=options.auto_cast, type=options.auto_cast_type),
        shard=shard.Options(tp=options.tp_degree, instance=options.instance, plan=plan),
        overlap=overlap.Options(instance=options.instance),
        order=order.Options(instance=options.instance, era=options.era),
        schedule=schedule.Options(instance=options.instance),
    )


def copy_module(module: ir.Module) -> ir.Module:
    """A module of its own with the same ops and locations."""
    return parse(module_bytes(module))
