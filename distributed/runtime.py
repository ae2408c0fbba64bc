"""Runs a program over the ring: inputs placed, launches, collectives and loops walked, outputs gathered."""

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from distributed import collectives
from distributed.executor import Executor
from distributed.liveness import Deaths, deaths
from distributed.placement import PlacedValue, cut, join
from distributed.program import Block, Branch, Collective, Launch, Loop, Program

__all__ = ["RankMissingError", "Runtime"]

# These need every rank in a group; in the others a rank outside simply receives zeros.
_NEED_ALL_RANKS = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})


class RankMissingError(RuntimeError):
    """A collective cannot run because a rank brings nothing to it: the real ring would hang here."""


class Runtime:
    """Executes one program on ``program.num_cores`` simulated cores.

    Values that cannot differ between cores are computed and held once. Donated inputs are updated in
    place, and their placed values cannot be used again. Nothing is kept between runs.

    Args:
      program: what to run.
      executor: compiles and runs the segments; programs that share one share equal segments.
      poison: fill the padding of uneven shards with NaN (integers: their maximum) instead of zeros, so
        that whatever reads padding shows.
    """

    def __init__(self, program: Program, executor: Executor, *, poison: bool = False) -> None:
        self.program = program
        self._executor = executor
        self._poison = poison
        self._buffers = {buffer.id: buffer for buffer in program.buffers}
        self._donated = frozenset(source for _, source in program.aliases)
        self._deaths = deaths(program)
        self._ranks = [executor.to_device(np.array(r, np.uint32)) for r in range(program.num_cores)]

    def place(self, index: int, array: np.ndarray | jax.Array) -> PlacedValue:
        """Cuts global input ``index`` into the blocks the program wants on each core.

        Raises ValueError if shape or type are not those of the layout. The array is copied, except an
        (immutable) jax.Array that all cores hold whole and the program does not donate.
        """
        layout = self.program.input_layouts[index]
        varying = self._buffers[self.program.main.arguments[index]].varying
        copy = not isinstance(array, jax.Array) or index in self._donated
        blocks = cut(layout, np.asarray(array), varying=varying, poison=self._poison, copy=copy)
        placed = {id(block): self._executor.to_device(block) for block in blocks}
        return PlacedValue(layout, [placed[id(block)] for block in blocks])

    def run(self, inputs: Sequence[PlacedValue]) -> list[PlacedValue]:
        """Runs the program on placed inputs; its outputs stay on the cores.

        Raises ValueError for a wrong number of inputs or another layout, RuntimeError for an input that
        an earlier run consumed, RankMissingError for a collective that some rank does not reach.
        """
        self._check(inputs)
        walk = _Walk(self.program, self._executor, self._deaths, self._ranks)
        # Their caller still holds these, so no launch may overwrite them.
        kept = [x for index, value in enumerate(inputs) if index not in self._donated for x in value.arrays]
        walk.hold(kept)
        values = [
            value.consume() if index in self._donated else list(value.arrays)
            for index, value in enumerate(inputs)
        ]
        seen = {id(x) for x in kept}
        outputs = []
        for layout, arrays in zip(
            self.program.output_layouts, walk.block(self.program.main, values), strict=True
        ):
            # An output that is an input or another output as well gets memory of its own: either may be
            # donated later without the other.
            own = {id(x): self._executor.copy(x) if id(x) in seen else x for x in arrays}
            seen |= set(own)
            outputs.append(PlacedValue(layout, [own[id(x)] for x in arrays]))
        return outputs

    def gather(self, index: int, placed: PlacedValue) -> np.ndarray:
        """Global output ``index``: the cores' blocks put together in a fresh array, padding cut off."""
        layout = self.program.output_layouts[index]
        return join(layout, [self._executor.to_host(x) for x in placed.arrays])

    def _check(self, inputs: Sequence[PlacedValue]) -> None:
        wanted, name = self.program.input_layouts, self.program.name
        if len(inputs) != len(wanted):
            raise ValueError(f"{name} takes {len(wanted)} inputs, got {len(inputs)}")
        for index, (value, layout) in enumerate(zip(inputs, wanted, strict=True)):
            if value.layout is not layout and value.layout != layout:
                raise ValueError(
                    f"input {index} of {name} is placed as {value.layout}, but the program wants {layout}; "
                    "place it with this program's Runtime.place"
                )
            if not value.arrays:
                raise ValueError(f"input {index} of {name} is placed on no core")


class _Walk:
    """One run. Counts who holds each array, so that only an array with a single holder is overwritten."""

    def __init__(
        self, program: Program, executor: Executor, dying: dict[int, Deaths], ranks: list[jax.Array]
    ) -> None:
        self.program, self.executor, self.dying, self.ranks = program, executor, dying, ranks
        self.num_cores = program.num_cores
        self.values: dict[int, list[jax.Array]] = {}
        self.holders: Counter[int] = Counter()

    def hold(self, arrays: Sequence[jax.Array]) -> None:
        self.holders.update(map(id, arrays))

    def release(self, arrays: Sequence[jax.Array]) -> None:
        for array in arrays:
            self.holders[id(array)] -= 1
            # ids are used again once the array is gone
            if not self.holders[id(array)]:
                del self.holders[id(array)]

    def bind(self, number: int, arrays: list[jax.Array]) -> None:
        self.hold(arrays)
        self.values[number] = arrays

    def drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.release(self.values.pop(number))

    def block(self, block: Block, values: list[list[jax.Array]]) -> list[list[jax.Array]]:
        """Runs a block; takes ``values`` out of the list, so that what dies inside is really freed."""
        for number, arrays in zip(block.arguments, values, strict=True):
            self.bind(number, arrays)
        values.clear()
        defined = list(block.arguments)
        dying = self.dying[id(block)]
        for step, moved, after in zip(block.steps, dying.moved, dying.after, strict=True):
            _STEPS[type(step)](self, step, moved)
            self.drop(after)
            defined += step.results
        results = [self.values[number] for number in block.results]
        self.drop([number for number in defined if number in self.values])
        return results

    def launch(self, step: Launch, moved: Sequence[int]) -> None:
        executable = self.executor.load(self.program.segments[step.segment])
        operands = [self.values[number] for number in step.operands]
        donated = {operand for operand, _ in step.donated}
        if not step.varying and any(len(arrays) > 1 for arrays in operands):
            raise AssertionError(f"launch {step.segment} is uniform but reads a varying buffer")
        count = self.num_cores if step.varying else 1
        results: list[list[jax.Array]] = [[] for _ in step.results]
        for rank in range(count):
            arguments = [self.ranks[rank]] if step.takes_rank else []
            for index, arrays in enumerate(operands):
                array = arrays[rank if len(arrays) > 1 else 0]
                if index in donated and (len(arrays) < count or self.holders[id(array)] > 1):
                    array = self.executor.copy(array)
                arguments.append(array)
            for result, array in zip(results, executable(arguments), strict=True):
                result.append(array)
        for number, arrays in zip(step.results, results, strict=True):
            self.bind(number, arrays)

    def collective(self, step: Collective, moved: Sequence[int]) -> None:
        operands = [self.arrived(step, number) for number in step.operands]
        on_host = {id(x): self.executor.to_host(x) for arrays in operands for x in arrays}
        # A permute or broadcast hands arrays through: those stay the buffers they are.
        on_device = {id(on_host[id(x)]): x for arrays in operands for x in arrays}
        outputs = collectives.run(step, [[on_host[id(x)] for x in arrays] for arrays in operands])
        for number, ranks in zip(step.results, outputs, strict=True):
            for array in ranks:
                if id(array) not in on_device:
                    on_device[id(array)] = self.executor.to_device(array)
            shared = all(array is ranks[0] for array in ranks)
            self.bind(number, [on_device[id(array)] for array in (ranks[:1] if shared else ranks)])

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
        self.drop(moved)
        while True:
            carried = [x for arrays in values for x in arrays]
            self.hold(carried)
            [[holds]] = self.block(step.condition, list(values))
            self.release(carried)
            del carried
            if not self.executor.to_host(holds):
                break
            values = self.block(step.body, values)
        for number, arrays in zip(step.results, values, strict=True):
            self.bind(number, arrays)

    def branch(self, step: Branch, moved: Sequence[int]) -> None:
        [index] = self.values[step.index]
        chosen = int(self.executor.to_host(index))
        if not 0 <= chosen < len(step.blocks):
            chosen = len(step.blocks) - 1
        for number, arrays in zip(step.results, self.block(step.blocks[chosen], []), strict=True):
            self.bind(number, arrays)


_STEPS = {
    Launch: _Walk.launch,
    Collective: _Walk.collective,
    Loop: _Walk.loop,
    Branch: _Walk.branch,
}
