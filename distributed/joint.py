"""Launches that compute on all cores in one call, together with collectives of what they make."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from distributed.liveness import deaths
from distributed.program import Block, Branch, Collective, Launch, Loop, Program, Step
from distributed.sum_orders import is_added_up
from kernels.dtypes import dtype

__all__ = ["Joint", "JointLaunch", "joined"]


@dataclass(frozen=True, kw_only=True)
class Joint:
    """How one executable computes a segment for ``cores`` cores.

    ``shared`` are the arguments of the segment that all cores have in common: it takes each once, and of the
    others one array for each core. ``sums`` are (result, algorithm) of results that are all-reduced over all
    cores, ``gathers`` (result, dim) of those that are all-gathered: what these make it gives out once, and of
    other results one array for each core.
    """

    cores: int
    shared: frozenset[int]
    sums: tuple[tuple[int, str], ...] = ()
    gathers: tuple[tuple[int, int], ...] = ()

    def num_given(self, result: int) -> int:
        """How many arrays are given out of a result."""
        return 1 if result in self._whole else self.cores

    @functools.cached_property
    def _whole(self) -> frozenset[int]:
        return frozenset(result for result, _ in (*self.sums, *self.gathers))


@dataclass(frozen=True, kw_only=True)
class JointLaunch:
    """A varying ``Launch`` for all cores at once; ``results`` are the sums where ``joint`` adds up."""

    segment: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    takes_rank: bool
    donated: tuple[tuple[int, int], ...]
    joint: Joint


def joined(program: Program, is_joint: Callable[[Launch], bool]) -> Program:
    """The program with each varying launch that ``is_joint`` chooses as one call for all cores."""
    if program.num_cores == 1:
        return program
    return replace(program, main=_Joiner(program, is_joint).block(program.main))


class _Joiner:
    def __init__(self, program: Program, is_joint: Callable[[Launch], bool]) -> None:
        self._is_joint, self._cores = is_joint, program.num_cores
        self._buffers = {buffer.id: buffer for buffer in program.buffers}
        self._deaths = deaths(program)

    def block(self, block: Block) -> Block:
        steps: list[Step | JointLaunch] = []
        dying = self._deaths[id(block)].after
        for number, step in enumerate(block.steps):
            before = steps[-1] if steps else None
            if isinstance(before, JointLaunch) and self._is_part(step, before, dying[number]):
                steps[-1] = _with(before, step)
            else:
                steps.append(self._step(step))
        return replace(block, steps=tuple(steps))

    def _step(self, step: Step) -> Step | JointLaunch:
        if isinstance(step, Loop):
            return replace(step, condition=self.block(step.condition), body=self.block(step.body))
        if isinstance(step, Branch):
            return replace(step, blocks=tuple(map(self.block, step.blocks)))
        if not isinstance(step, Launch) or not step.varying or not self._is_joint(step):
            return step
        donated = {operand for operand, _ in step.donated}
        shared = frozenset(
            place + step.takes_rank
            for place, number in enumerate(step.operands)
            if not self._buffers[number].varying and place not in donated
        )
        return JointLaunch(
            segment=step.segment,
            operands=step.operands,
            results=step.results,
            takes_rank=step.takes_rank,
            donated=step.donated,
            joint=Joint(cores=self._cores, shared=shared),
        )

    def _is_part(self, step: Step, before: JointLaunch, dying: tuple[int, ...]) -> bool:
        """Whether ``step`` adds up or gathers over all cores what ``before`` makes and nobody else reads."""
        if not isinstance(step, Collective) or len(step.groups) != 1:
            return False
        [group] = step.groups
        everyone = tuple(range(self._cores))
        if step.kind == "all_gather":
            is_possible = group == everyone
        else:
            types = {self._buffers[number].tensor.dtype for number in step.operands}
            is_possible = tuple(sorted(group)) == everyone and all(
                is_added_up(step, dtype(name).numpy) for name in types
            )
        return is_possible and {*step.operands} <= {*before.results} & {*dying}


def _with(launch: JointLaunch, collective: Collective) -> JointLaunch:
    made = dict(zip(collective.operands, collective.results, strict=True))
    places = [place for place, number in enumerate(launch.results) if number in made]
    joint = launch.joint
    if collective.kind == "all_gather":
        joint = replace(joint, gathers=joint.gathers + tuple((place, collective.dim) for place in places))
    else:
        joint = replace(joint, sums=joint.sums + tuple((place, collective.algorithm) for place in places))
    results = tuple(made.get(number, number) for number in launch.results)
    return replace(launch, results=results, joint=joint)
