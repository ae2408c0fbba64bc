"""Runs a program over the ring: inputs placed, its steps walked, outputs gathered."""

import functools
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np

from distributed.executor import Executor
from distributed.layout import Layout
from distributed.placement import PlacedValue, cut, join, poison
from distributed.program import Launch, Program
from distributed.walk import Prepared, Walk, prepare, repeated

__all__ = ["Runtime"]


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
        self._donated = frozenset(source for _, source in program.aliases)
        varying = {buffer.id for buffer in program.buffers if buffer.varying}
        self._varying = {i for i, number in enumerate(program.main.arguments) if number in varying}
        several = program.num_cores > 1
        self._uniform = [i for i in range(len(program.main.arguments)) if several and i not in self._varying]
        arguments = enumerate(program.main.arguments)
        # Their caller holds these throughout, so no launch may overwrite them, and none dies.
        self._kept = frozenset(number for index, number in arguments if index not in self._donated)
        launched = Counter(
            number for step in program.main.steps if isinstance(step, Launch) for number in step.results
        )
        # Launches make fresh arrays; what other steps give out may be something else's array as well.
        self._passed_on = Counter(program.main.results) - launched
        self.input_layouts = list(map(_same, program.input_layouts))
        self._output_layouts = list(map(_same, program.output_layouts))
        self._ranks = [executor.to_device(np.array(r, np.uint32)) for r in range(program.num_cores)]

    @functools.cached_property
    def _prepared(self) -> Prepared:
        return prepare(self.program, self._executor, immortal=self._kept)

    def load(self) -> None:
        """Compiles all that the program runs, as its first run would.

        Raises CompileError where XLA:CPU refuses a segment.
        """
        _ = self._prepared

    def place(self, index: int, array: np.ndarray | jax.Array) -> PlacedValue:
        """Cuts global input ``index`` into the blocks the program wants on each core.

        Raises ValueError if shape or type are not those of the layout. The array is copied, except
        blocks of an (immutable) jax.Array that lie in one stretch, where the program does not donate it.
        """
        layout = self.input_layouts[index]
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
        walk = Walk(self._prepared, self._executor, self._kept, self._ranks)
        outputs = self._own(inputs, walk.block(self._prepared.main, self._taken(inputs, walk)))
        return [PlacedValue(*pair) for pair in zip(self._output_layouts, outputs, strict=True)]

    def _taken(self, inputs: Sequence[PlacedValue], walk: Walk) -> list[list[jax.Array]]:
        """The arrays of each input; those of donated ones are the walk's from now on."""
        values = [value.arrays for value in inputs]
        if not all(values):
            raise ValueError(f"input {values.index([])} of {self.program.name} is placed on no core")
        for index in self._uniform:
            # Held once, though an earlier run may have made it on each core.
            values[index] = values[index][:1]
        given = Counter(map(id, inputs)) if self._donated else {}
        for index in self._donated:
            inputs[index].consume()
            if given[id(inputs[index])] > 1:
                walk.hold_again(values[index])
            elif len(values[index]) > 1:
                walk.hold_again(repeated(values[index]))
        return values

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

    def hand_out(self, index: int, placed: PlacedValue, *, weak_type: bool = False) -> jax.Array:
        """Global output ``index`` as an array of JAX's own, padding cut off; ``placed`` is used up.

        One block that is all of it is handed out where it lies, several are put together once.
        """
        if self.program.output_layouts[index].is_replicated:
            [whole, *_] = placed.consume()
        else:
            whole = self._executor.to_device(self.gather(index, placed))
        return self._executor.hand_out(whole, weak_type=weak_type)

    def _check(self, inputs: Sequence[PlacedValue]) -> None:
        if [value.layout for value in inputs] == self.input_layouts:
            return
        wanted, name = self.input_layouts, self.program.name
        if len(inputs) != len(wanted):
            raise ValueError(f"{name} takes {len(wanted)} inputs, got {len(inputs)}")
        for index, (value, layout) in enumerate(zip(inputs, wanted, strict=True)):
            if value.layout != layout:
                raise ValueError(
                    f"input {index} of {name} is placed as {value.layout}, but the program wants {layout}; "
                    "place it with this program's Runtime.place"
                )


@functools.lru_cache(maxsize=1 << 14)
def _same(layout: Layout) -> Layout:
    """One object for all equal layouts: what was placed for another program is known at sight."""
    return layout
