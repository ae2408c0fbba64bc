"""One run of a program: its launches, collectives, loops and branches, over the arrays of all cores."""

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import jax
import numpy as np

from distributed import collectives
from distributed.executor import Executable, Executor
from distributed.joint import Joint, JointLaunch, joined
from distributed.liveness import Deaths, deaths, nested_blocks
from distributed.program import Block, Branch, Collective, Launch, Loop, Program
from distributed.sum_orders import is_added_up
from distributed.sums import add_up
from kernels.errors import CompileError

__all__ = ["Prepared", "RankMissingError", "Walk", "naming_foreign_calls", "prepare", "repeated"]

# A core that makes so much leaves a thread idle: XLA's loops over one array do not share it out. A core that
# reads much and makes little is busy with kernels of the host, which are called for all cores at once.
_SIDE_BY_SIDE_BYTES = 1 << 18

# These need every rank in a group; in the others a rank outside simply receives zeros.
_NEED_ALL_RANKS = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})

_Key = tuple[str, Joint | None]
"""An executable: its segment, and how it computes for all cores if it does."""


class RankMissingError(RuntimeError):
    """A collective cannot run because a rank brings nothing to it: the real ring would hang here."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run needs: the steps, when buffers die, executables, and segments that run ``side_by_side``."""

    main: Block
    deaths: Mapping[int, Deaths]
    executables: Mapping[_Key, Executable]
    side_by_side: frozenset[str]


def prepare(program: Program, executor: Executor, *, immortal: Set[int]) -> Prepared:
    """Compiles a program's segments, those with kernels of the host that make little as one for all cores.

    Args:
      immortal: buffers that outlive the run.

    Raises CompileError where XLA:CPU refuses a segment.
    """
    size_bytes = {buffer.id: buffer.tensor.size_bytes for buffer in program.buffers}
    side_by_side = set()

    @functools.cache
    def calls_kernels(segment: str) -> bool:
        return executor.calls_kernels(program.segments[segment])

    def is_joint(launch: Launch) -> bool:
        updated = {result for _, result in launch.donated}
        made = [number for place, number in enumerate(launch.results) if place not in updated]
        if sum(size_bytes[number] for number in made) >= _SIDE_BY_SIDE_BYTES:
            side_by_side.add(launch.segment)
            return False
        return calls_kernels(launch.segment)

    run = joined(program, is_joint)
    keys = list(dict.fromkeys(_keys(run.main)))
    with naming_foreign_calls(program):
        executables = executor.load_all((program.segments[segment], joint) for segment, joint in keys)
    return Prepared(
        main=run.main,
        deaths=deaths(run, immortal=immortal),
        executables=dict(zip(keys, executables, strict=True)),
        side_by_side=frozenset(side_by_side),
    )


@contextlib.contextmanager
def naming_foreign_calls(program: Program) -> Iterator[None]:
    """Gives a CompileError from inside the lines of custom calls: XLA:CPU may have no code for them."""
    try:
        yield
    except CompileError as error:
        raise error.at(", ".join(dict.fromkeys(_foreign_calls(program.main)))) from error


def _foreign_calls(block: Block) -> Iterator[str]:
    for step in block.steps:
        if isinstance(step, Launch):
            kinds = ((kernel.location, op.kind) for kernel in step.kernels for op in kernel.work.ops)
            yield from (location for location, kind in kinds if kind == "custom_call")
        for nested in nested_blocks(step):
            yield from _foreign_calls(nested)


def _keys(block: Block) -> Iterator[_Key]:
    for step in block.steps:
        if isinstance(step, Launch | JointLaunch):
            yield step.segment, step.joint if isinstance(step, JointLaunch) else None
        for nested in nested_blocks(step):
            yield from _keys(nested)


def repeated(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Each array once for every time it occurs after the first."""
    found = {id(x): x for x in arrays}
    if len(found) == len(arrays):
        return []
    return [found[key] for key in (Counter(map(id, arrays)) - Counter(found.keys())).elements()]


class Walk:
    """One run. Knows which arrays have several holders, for only what a single one holds is overwritten."""

    def __init__(
        self, prepared: Prepared, executor: Executor, kept: frozenset[int], ranks: list[jax.Array]
    ) -> None:
        self.executables, self.dying = prepared.executables, prepared.deaths
        self.side_by_side = prepared.side_by_side
        self.executor, self.kept, self.ranks = executor, kept, ranks
        self.num_cores = len(ranks)
        self.values: dict[int, list[jax.Array]] = {}
        # Holders of an array beyond its first; hardly any array has some.
        self.more_holders: Counter[int] = Counter()

    def hold_again(self, arrays: Sequence[jax.Array]) -> None:
        self.more_holders.update(map(id, arrays))

    def release(self, arrays: Sequence[jax.Array]) -> None:
        if not self.more_holders:
            return
        for array in arrays:
            if id(array) in self.more_holders:
                self.more_holders[id(array)] -= 1
                # ids are used again once the array is gone
                if not self.more_holders[id(array)]:
                    del self.more_holders[id(array)]

    def drop(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.release(self.values.pop(number))

    def block(self, block: Block, values: list[list[jax.Array]]) -> list[list[jax.Array]]:
        """Runs a block. Its arguments take over a hold on each of ``values``, its caller one on each result.

        Takes ``values`` out of the list, so that what dies inside is really freed.
        """
        self.values.update(zip(block.arguments, values, strict=True))
        values.clear()
        dying = self.dying[id(block)]
        for step, moved, after in zip(block.steps, dying.moved, dying.after, strict=True):
            _STEPS[type(step)](self, step, moved)
            self.drop(after)
        results = [self.values[number] for number in block.results]
        ending = set(dying.last)
        for number, arrays in zip(block.results, results, strict=True):
            # The result takes over the hold of its number, the first time.
            if number in ending:
                ending.remove(number)
                del self.values[number]
            else:
                self.hold_again(arrays)
        self.drop(ending)
        return results

    def launch(self, step: Launch, moved: Sequence[int]) -> None:
        count = self.num_cores if step.varying else 1
        columns = [self.values[number] for number in step.operands]
        if not step.varying and max(map(len, columns), default=1) > 1:
            raise AssertionError(f"launch {step.segment} is uniform but reads a varying buffer")
        for operand, _ in step.donated:
            columns[operand] = self.owned(step.operands[operand], count)
        if count > 1:
            columns = [arrays if len(arrays) == count else arrays * count for arrays in columns]
        if step.takes_rank:
            columns.insert(0, self.ranks[:count])
        executable = self.executables[step.segment, None]
        rows = list(zip(*columns, strict=True)) if columns else [()] * count
        if step.segment in self.side_by_side:
            outputs = self.executor.run_side_by_side(executable, rows)
        else:
            outputs = [executable(arguments) for arguments in rows]
        for number, *arrays in zip(step.results, *outputs, strict=True):
            self.values[number] = arrays

    def joint_launch(self, step: JointLaunch, moved: Sequence[int]) -> None:
        cores, joint = self.num_cores, step.joint
        columns = [self.values[number] for number in step.operands]
        for operand, _ in step.donated:
            columns[operand] = self.owned(step.operands[operand], cores)
        if step.takes_rank:
            columns.insert(0, self.ranks)
        arguments: list[jax.Array] = []
        for number, arrays in enumerate(columns):
            whole = number in joint.shared or len(arrays) == cores
            arguments += arrays if whole else arrays * cores
        outputs = iter(self.executables[step.segment, joint](arguments))
        for place, number in enumerate(step.results):
            self.values[number] = list(itertools.islice(outputs, joint.num_given(place)))

    def owned(self, number: int, count: int) -> list[jax.Array]:
        """The arrays of a buffer, one for each of ``count`` cores, each to be overwritten."""
        arrays = self.values[number]
        shared = number in self.kept or len(arrays) < count
        if not shared and not self.more_holders:
            return arrays
        if len(arrays) < count:
            arrays = arrays * count
        return [self.executor.copy(x) if shared or id(x) in self.more_holders else x for x in arrays]

    def collective(self, step: Collective, moved: Sequence[int]) -> None:
        for number, made in zip(step.operands, step.results, strict=True):
            ranks = self.arrived(step, number)
            if is_added_up(step, ranks[0].dtype):
                results = add_up(self.executor, step, ranks)
                if len(step.groups) == 1:
                    del results[1:]
                else:
                    self.hold_again(repeated(results))
                self.values[made] = results
                continue
            on_host = {id(x): self.executor.to_host(x) for x in ranks}
            [results] = collectives.run(step, [[on_host[id(x)] for x in ranks]])
            # A permute or broadcast hands arrays through: those stay the buffers they are.
            on_device = {id(on_host[id(x)]): x for x in ranks}
            shared = all(array is results[0] for array in results)
            self.values[made] = [
                self._landed(array, on_device) for array in (results[:1] if shared else results)
            ]

    def _landed(self, array: np.ndarray, on_device: dict[int, jax.Array]) -> jax.Array:
        """The buffer of a collective's result; another hold on it, if there is one already."""
        found = on_device.get(id(array))
        if found is None:
            found = on_device[id(array)] = self.executor.to_device(array)
        else:
            self.hold_again([found])
        return found

    def arrived(self, step: Collective, number: int) -> list[jax.Array]:
        """One array per rank for operand ``number``, or an error that names the rank that does not come."""
        arrays = self.values.get(number, [])
        ranks = arrays * self.num_cores if len(arrays) == 1 else arrays
        missing = {rank for rank in range(self.num_cores) if rank >= len(ranks) or ranks[rank].is_deleted()}
        if step.kind in _NEED_ALL_RANKS:
            missing |= set(range(self.num_cores)) - {rank for group in step.groups for rank in group}
        if missing:
            names = ", ".join(str(rank) for rank in sorted(missing))
            at = f" at {step.location}" if step.location else ""
            raise RankMissingError(
                f"{step.kind}{at} waits for rank {names} of {self.num_cores}: operand %{number} never "
                "arrives there, or the rank is in no replica group"
            )
        return ranks

    def loop(self, step: Loop, moved: Sequence[int]) -> None:
        values = [self.values[number] for number in step.operands]
        for arrays in values:
            self.hold_again(arrays)
        self.drop(moved)
        while True:
            for arrays in values:
                self.hold_again(arrays)
            [[holds]] = self.block(step.condition, list(values))
            self.release([holds])
            if not self.executor.to_host(holds):
                break
            values = self.block(step.body, values)
        self.values.update(zip(step.results, values, strict=True))

    def branch(self, step: Branch, moved: Sequence[int]) -> None:
        [index] = self.values[step.index]
        chosen = int(self.executor.to_host(index))
        if not 0 <= chosen < len(step.blocks):
            chosen = len(step.blocks) - 1
        self.values.update(zip(step.results, self.block(step.blocks[chosen], []), strict=True))


_STEPS = {
    Launch: Walk.launch,
    JointLaunch: Walk.joint_launch,
    Collective: Walk.collective,
    Loop: Walk.loop,
    Branch: Walk.branch,
}
