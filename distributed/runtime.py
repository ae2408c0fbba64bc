"""Runs a program over the ring: inputs placed, launches, collectives and loops walked, outputs gathered."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from distributed import collectives
from distributed.executor import Executable, Executor
from distributed.liveness import Deaths, deaths
from distributed.placement import PlacedValue, cut, join, poison
from distributed.program import Block, Branch, Collective, Launch, Loop, Program
from distributed.sums import add_up, is_added_up

__all__ = ["RankMissingError", "Runtime"]

# A core that makes so much leaves a thread idle: XLA's loops over one array do not share it out. A core that
# reads much and makes little is busy with kernels of the host, each of which keeps all threads at work.
_SIDE_BY_SIDE_BYTES = 1 << 18

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
      poison: fill the padding of uneven shards with what shows when it is read (``placement.poison``)
        instead of zeros.
    """

    def __init__(self, program: Program, executor: Executor, *, poison: bool = False) -> None:
        self.program = program
        self._executor = executor
        self._poison = poison
        self._size_bytes = {buffer.id: buffer.tensor.size_bytes for buffer in program.buffers}
        self._donated = frozenset(source for _, source in program.aliases)
        varying = {buffer.id for buffer in program.buffers if buffer.varying}
        self._varying = {i for i, number in enumerate(program.main.arguments) if number in varying}
        arguments = enumerate(program.main.arguments)
        # Their caller holds these throughout, so no launch may overwrite them, and none dies.
        self._kept = frozenset(number for index, number in arguments if index not in self._donated)
        self._deaths = deaths(program, immortal=self._kept)
        launched = Counter(
            number for step in program.main.steps if isinstance(step, Launch) for number in step.results
        )
        # Launches make fresh arrays; what other steps give out may be something else's array as well.
        self._passed_on = Counter(program.main.results) - launched
        # The same object as an input's layout that is equal: what comes back is known at sight.
        layouts = {layout: layout for layout in (*program.output_layouts, *program.input_layouts)}
        self._output_layouts = [layouts[layout] for layout in program.output_layouts]
        self._ranks = [executor.to_device(np.array(r, np.uint32)) for r in range(program.num_cores)]

    def place(self, index: int, array: np.ndarray | jax.Array) -> PlacedValue:
        """Cuts global input ``index`` into the blocks the program wants on each core.

        Raises ValueError if shape or type are not those of the layout. The array is copied, except
        blocks of an (immutable) jax.Array that lie in one stretch, where the program does not donate it.
        """
        layout = self.program.input_layouts[index]
        varying = index in self._varying
        immutable = isinstance(array, jax.Array)
        host = self._executor.contents(array) if immutable else np.asarray(array)
        copy, finite = not immutable or index in self._donated, index in self.program.finite_padding
        padding = poison(host.dtype, finite=finite) if self._poison else None
        blocks = cut(layout, host, varying=varying, copy=copy, padding=padding)
        placed = {id(block): self._executor.to_device(block) for block in blocks}
        arrays = [placed[id(block)] for block in blocks]
        return PlacedValue(layout, arrays, is_finite_padded=finite or not self._poison)

    def run(self, inputs: Sequence[PlacedValue]) -> list[PlacedValue]:
        """Runs the program on placed inputs; its outputs stay on the cores.

        Raises ValueError for a wrong number of inputs or another layout, RuntimeError for an input that
        an earlier run consumed, RankMissingError for a collective that some rank does not reach.
        """
        self._check(inputs)
        for index in self.program.finite_padding:
            inputs[index].clear_padding(self._executor.to_device)
        executables = self._executor.load_all(self.program.segments)
        walk = _Walk(
            self.program, self._executor, executables, self._deaths, self._kept, self._ranks, self._size_bytes
        )
        kept = {id(value) for index, value in enumerate(inputs) if index not in self._donated}
        values = []
        for index, value in enumerate(inputs):
            if index in self._donated:
                arrays = self._once(index, value.consume())
                if id(value) in kept or len(arrays) > 1:
                    walk.hold_again(arrays if id(value) in kept else _repeated(arrays))
            else:
                arrays = self._once(index, value.arrays)
            values.append(arrays)
        outputs = self._own(inputs, walk.block(self.program.main, values))
        return [PlacedValue(*pair) for pair in zip(self._output_layouts, outputs, strict=True)]

    def _once(self, index: int, arrays: list[jax.Array]) -> list[jax.Array]:
        """An input that cannot differ between cores is held once, though an earlier run made it on each."""
        return arrays if index in self._varying else arrays[:1]

    def _own(self, inputs: Sequence[PlacedValue], outputs: list[list[jax.Array]]) -> list[list[jax.Array]]:
        """Memory of its own for each output that is an input or another output as well.

        Either may be donated later without the other.
        """
        if not self._passed_on:
            return outputs
        seen = {id(x) for value in inputs if not value.is_consumed for x in value.arrays}
        for index, arrays in enumerate(outputs):
            own = {id(x): self._executor.copy(x) if id(x) in seen else x for x in arrays}
            seen |= set(own)
            outputs[index] = [own[id(x)] for x in arrays]
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


def _repeated(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Each array once for every time it occurs after the first."""
    found = {id(x): x for x in arrays}
    return [found[key] for key in (Counter(map(id, arrays)) - Counter(found.keys())).elements()]


class _Walk:
    """One run. Knows which arrays have several holders, for only what a single one holds is overwritten."""

    def __init__(
        self,
        program: Program,
        executor: Executor,
        executables: Mapping[str, Executable],
        dying: dict[int, Deaths],
        kept: frozenset[int],
        ranks: list[jax.Array],
        size_bytes: Mapping[int, int],
    ) -> None:
        self.executor, self.executables = executor, executables
        self.dying, self.kept, self.ranks = dying, kept, ranks
        self.size_bytes = size_bytes
        self.num_cores = program.num_cores
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
        defined = list(block.arguments)
        dying = self.dying[id(block)]
        for step, moved, after in zip(block.steps, dying.moved, dying.after, strict=True):
            _STEPS[type(step)](self, step, moved)
            self.drop(after)
            defined += step.results
        results = [self.values[number] for number in block.results]
        ending = {number for number in defined if number in self.values and number not in self.kept}
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
        if not step.varying and any(len(arrays) > 1 for arrays in columns):
            raise AssertionError(f"launch {step.segment} is uniform but reads a varying buffer")
        for operand, _ in step.donated:
            columns[operand] = self.owned(step.operands[operand], count)
        columns = [arrays if len(arrays) == count else arrays * count for arrays in columns]
        if step.takes_rank:
            columns.insert(0, self.ranks[:count])
        executable = self.executables[step.segment]
        rows = list(zip(*columns, strict=True)) if columns else [()] * count
        updated = {result for _, result in step.donated}
        made = [number for place, number in enumerate(step.results) if place not in updated]
        if sum(self.size_bytes[number] for number in made) >= _SIDE_BY_SIDE_BYTES:
            outputs = self.executor.run_side_by_side(executable, rows)
        else:
            outputs = [executable(arguments) for arguments in rows]
        for number, *arrays in zip(step.results, *outputs, strict=True):
            self.values[number] = arrays

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
                    self.hold_again(_repeated(results))
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
    Launch: _Walk.launch,
    Collective: _Walk.collective,
    Loop: _Walk.loop,
    Branch: _Walk.branch,
}
