"""Plans judged by the clock: each goes through the whole pipeline, and its program is timed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from distributed.device_memory import check_fits
from distributed.program import Program
from distributed.timeline import time_program
from hlo_passes import shard
from hlo_passes.folded import UnsteadyError
from hlo_passes.ir import module_bytes, parse
from hlo_passes.pipeline import Stage, folding, run_pipeline
from hlo_passes.sharding.search import Cut, Space, search
from kernels.errors import CompileError, OutOfDeviceMemoryError
from neuronx.progress import Progress

__all__ = ["Tried", "clock_named", "find_fastest"]

T = TypeVar("T")

# At most so many classes that need no move are also tried alone: a batch, say, is data parallelism.
_ALONE = 8
# How many further plans are clocked: fewer of a large program, whose plans take longer.
_LEAST, _MOST, _OPS = 8, 64, 10_000


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Seconds of a step under each plan with a name, how many plans were clocked, and whether that is all.

    Infinite where a plan does not fit.
    """

    named_s: Mapping[str, float]
    count: int
    is_all: bool


def find_fastest(source: bytes, stages: Sequence[Stage], era: str) -> tuple[str, Tried]:
    """The plan of the least predicted time, written out, of a module without shardings of the user's.

    Of plans that take equally long those with a name come first, in the order of ``shard.PLANS``.

    Args:
      source: the module as bytecode.
      stages: the pipeline.
      era: of the clock.
    """
    return _with_clock(_find, source, stages, era, {})


def clock_named(
    source: bytes, stages: Sequence[Stage], era: str, known_s: Mapping[str, float] | None = None
) -> Tried:
    """The plans with a name alone; arguments as for ``find_fastest``.

    ``known_s`` are seconds of plans, written out, that need not be clocked again.
    """
    return _with_clock(_clock_named, source, stages, era, known_s or {})


def _with_clock(
    use: Callable[["_Clock"], T],
    source: bytes,
    stages: Sequence[Stage],
    era: str,
    known_s: Mapping[str, float],
) -> T:
    def clocked(*, fold: bool) -> T:
        with Progress("timing plans", [*shard.PLANS, "others"]) as shown:
            return use(_Clock(source, stages, era, known_s, shown, fold=fold))

    try:
        return clocked(fold=True)
    except CompileError:
        # Equal layers that cannot be cut alike, or an error to be said of the whole program.
        return clocked(fold=False)


def _find(clock: "_Clock") -> tuple[str, Tried]:
    named = _clock_named(clock)
    problem = clock.planner.problem.for_time()
    space = Space.of(problem)
    alone = sorted(problem.joined(problem.cuts).units(), key=problem.step_s)[:_ALONE]
    limit = max(_LEAST, min(_MOST, _OPS // clock.planner.num_ops))
    tried_s, is_all = search(space, [*clock.known, *alone], clock.seconds_if_steady, limit)
    found = replace(named, count=len(tried_s), is_all=is_all)
    return clock.planner.write(min(tried_s, key=tried_s.get)), found


def _clock_named(clock: "_Clock") -> Tried:
    named_s = {}
    for name in shard.PLANS:
        named_s[name] = clock.seconds(clock.planner.solve(name).cut)
        clock.progress.advance()
    return Tried(named_s=named_s, count=len(clock.known), is_all=False)


class _Clock:
    """Times a program under its plans; those that leave the same program on a core are compiled once."""

    def __init__(
        self, source: bytes, stages: Sequence[Stage], era: str, known_s: Mapping[str, float],
        progress: Progress, *, fold: bool,
    ) -> None:  # fmt: skip
        passes = folding(stages) if fold else stages
        at = next(number for number, stage in enumerate(passes) if stage.name == "shard")
        module = parse(source)
        run_pipeline(module, passes[:at])
        self._before, self._shard, self._rest = module_bytes(module), passes[at], passes[at + 1 :]
        self._era, self._module = era, module  # whose ops the planner reads: they live as long as it does
        self.planner = shard.planner(module, self._shard.options)
        self.progress = progress
        cuts = {text: self.planner.read(text) for text in known_s}
        # Written out for all layers, a plan says nothing of a few, and the other way round.
        self.known = {cut: known_s[text] for text, cut in cuts.items() if self.planner.write(cut) == text}
        self._programs_s: dict[bytes, float] = {}

    def seconds(self, cut: Cut) -> float:
        """Of a step; infinite where the program does not fit."""
        if cut not in self.known:
            module = parse(self._before)
            options = replace(self._shard.options, plan=self.planner.write(cut))
            run_pipeline(module, [replace(self._shard, options=options)])
            del module.operation.attributes[shard.PLAN]
            local = module_bytes(module)
            if local not in self._programs_s:
                self._programs_s[local] = self._program_s(run_pipeline(module, self._rest))
            self.known[cut] = self._programs_s[local]
        return self.known[cut]

    def seconds_if_steady(self, cut: Cut) -> float:
        """The same; infinite where the cut leaves no equal layers of a folded program."""
        try:
            return self.seconds(cut)
        except UnsteadyError:
            return math.inf

    def _program_s(self, program: Program) -> float:
        instance = self._shard.options.instance
        try:
            check_fits(program, instance)
        except OutOfDeviceMemoryError:
            return math.inf
        return time_program(program, instance, era=self._era).total_s
