"""The stages of a compilation, in jax.stages' words: Lowered (StableHLO), Compiled (a ring program)."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.tree_util import PyTreeDef, tree_flatten, tree_unflatten

from distributed.executor import Executor
from distributed.jitted import Jitted, device_of
from distributed.layout import Layout
from distributed.placement import PlacedValue
from distributed.program import Program
from distributed.runtime import Runtime
from distributed.timeline import Timeline, time_program
from distributed.walk import naming_foreign_calls
from hlo_passes.host_lowering import lower_text
from hlo_passes.host_whole import whole_text
from hlo_passes.ir import module_bytes, parse
from hlo_passes.shard import is_annotated
from kernels.dtypes import dtype as find_dtype
from kernels.errors import CompileError
from kernels.hardware import load_instance
from neuronx.arrays import Placements, RingArray
from neuronx.cache import compile_cached
from neuronx.driver import Artifacts, CompileOptions, pipeline_for
from neuronx.environment import environment
from neuronx.executables import Executables
from neuronx.explain import explain
from neuronx.fastest import Tried, clock_named
from neuronx.frontend import Exported, is_key, logical, physical
from neuronx.host_report import host_report
from neuronx.memory import MemoryStats, memory_stats
from neuronx.profile import Profile
from neuronx.saving import save_program

__all__ = ["Compiled", "Lowered"]


class Lowered:
    """A function as StableHLO with global shapes, for fixed argument types."""

    def __init__(self, exported: Exported, options: CompileOptions) -> None:
        self._exported = exported
        self._options = options

    @property
    def exported(self) -> Exported:
        """The module with what is needed to call it."""
        return self._exported

    @property
    def options(self) -> CompileOptions:
        """What it will be compiled for."""
        return self._options

    @property
    def in_tree(self) -> PyTreeDef:
        """The tree of ``(args, kwargs)`` a compiled program is called with: static arguments left out."""
        return self._exported.in_tree

    @property
    def out_tree(self) -> PyTreeDef:
        return self._exported.out_tree

    def as_text(self, *, debug_info: bool = False) -> str:
        """The StableHLO; with ``debug_info`` each op names the user's line."""
        return self._exported.module.operation.get_asm(enable_debug_info=debug_info)

    def compile(self) -> "Compiled":
        """Compiles for the ring; no array is needed or made.

        Raises:
          CompileError: an op, type or sharding the compiler cannot take.
          OutOfDeviceMemoryError: the program does not fit a core's HBM.
        """
        return Compiled(self._exported, compile_cached(self._exported, self._options))


# The cheaper question first: a model has hundreds of arguments.
_ARRAYS = (RingArray, jax.Array)


@dataclass(frozen=True, kw_only=True)
class _Host:
    """What all programs of the process share: compiled segments, and where immutable arrays lie."""

    executor: Executor
    placements: Placements
    poison: bool


@functools.cache
def _shared_host(poison: bool, host_kernels: bool) -> _Host:
    executor = Executor(lower_text if host_kernels else None, kept=Executables())
    return _Host(executor=executor, placements=Placements(), poison=poison)


class Compiled:
    """A program for the ring. It can be read, timed and priced without arrays, and called with them."""

    def __init__(self, exported: Exported, artifacts: Artifacts, weights: tuple[Any, ...] = ()) -> None:
        self._exported = exported
        self._artifacts = artifacts
        self._weights = weights
        self._jitted: dict[Any, Jitted] = {}

    @property
    def in_tree(self) -> PyTreeDef:
        """The tree of ``(args, kwargs)`` this program is called with: static arguments left out."""
        return self._exported.in_tree

    @property
    def out_tree(self) -> PyTreeDef:
        return self._exported.out_tree

    @property
    def input_layouts(self) -> Any:
        """``(args, kwargs)`` with a ``Layout`` for each array: which core holds which block."""
        return tree_unflatten(
            self.in_tree, self._artifacts.program.input_layouts[: len(self._exported.inputs)]
        )

    @property
    def output_layouts(self) -> Any:
        """The result's tree with a ``Layout`` for each array."""
        return tree_unflatten(self.out_tree, self._artifacts.program.output_layouts)

    def as_text(self, level: str = "program") -> str:
        """The program at one level: global, local, fused, planned or program.

        All but the last are StableHLO modules; the last is the list of steps the ring executes.
        """
        return self._artifacts.text(level)

    @property
    def program(self) -> Program:
        """What the ring executes and the clock times, as data."""
        return self._artifacts.program

    def cost_analysis(self) -> dict[str, Any]:
        """What one call costs, on each core.

        ``flops``, ``bytes accessed`` (HBM) and ``collective_bytes`` (of operands brought to collectives: what
        the links carry depends on the algorithm) are counts;
        ``latency_s`` is the predicted time of one call, ``busy_s`` the seconds each engine works, and
        ``assumptions`` say what the prediction had to assume.
        """
        timeline = self._timeline
        return {
            "flops": float(timeline.flops),
            "bytes accessed": float(timeline.bytes_accessed),
            "collective_bytes": float(timeline.collective_bytes),
            "latency_s": timeline.total_s,
            "busy_s": dict(timeline.busy_s),
            "assumptions": list(timeline.assumptions),
        }

    def explain(self) -> str:
        """The sharding of each argument, what plans cost, every collective, and what was given up and why.

        The first time this compiles what plans there are besides, and the levels where layers were folded.
        Where an op has no price it says which, and leaves out what takes times.
        """
        module = parse(self._artifacts.levels["planned"])
        return explain(module, self.program, lambda: self._timeline, self._tried)

    @functools.cached_property
    def _tried(self) -> Tried | None:
        """The plans there were to choose from; where time was not the objective, they are clocked now.

        None where nothing was planned, or an op has no price.
        """
        artifacts, module, options = self._artifacts, self._exported.module, self._artifacts.options
        if artifacts.tried or not artifacts.cut or is_annotated(module):
            return artifacts.tried
        try:
            kept_s = {artifacts.cut: self._timeline.total_s}
            return clock_named(module_bytes(module), pipeline_for(options), options.era, kept_s)
        except CompileError:
            return None

    def explain_host(self) -> str:
        """Which ops run in JIT'd kernels of the host, and why the others of their kind do not."""
        if not self._artifacts.options.host_kernels:
            return "XLA computes all: the program was compiled with host_kernels=False"
        return host_report(self.program)

    @property
    def weights(self) -> tuple[Any, ...]:
        """The first positional arguments, where the program was loaded from a file that holds them."""
        return self._weights

    def save(self, path: str | os.PathLike[str], *, weights: Sequence[Any] = ()) -> None:
        """Writes the program to one file that ``neuronx.load`` reads; whole, or not at all.

        Args:
          path: of the file.
          weights: the first positional arguments, e.g. ``(params,)``, to be saved along.

        Raises:
          CompileError: weights that are not those, or a tree or type that cannot be saved.
          OSError: ``path`` cannot be written.
        """
        save_program(path, self._exported, self._artifacts, weights)

    def profile(self) -> Profile:
        """The timeline of the program on every engine and link."""
        return Profile(self._exported.name, self._timeline)

    @functools.cached_property
    def _timeline(self) -> Timeline:
        options = self._artifacts.options
        return time_program(self._artifacts.program, load_instance(options.instance), era=options.era)

    def memory_analysis(self) -> MemoryStats:
        """What fills the HBM of each core; needs no arrays."""
        artifacts = self._artifacts
        return memory_stats(artifacts.program, artifacts.memory, artifacts.options.instance)

    def device_put(self, *args: Any, **kwargs: Any) -> Any:
        """Cuts the arguments over the ring ahead of a call.

        Takes what a call takes; returns the same positional arguments as a tuple of trees of RingArrays
        (with keywords: ``(args, kwargs)``). A donated RingArray comes back from the call as a RingArray,
        so that a KV cache never leaves the ring. Typed PRNG keys come back as they are.
        """
        leaves = self._leaves(args, kwargs)
        placed = [
            leaf if is_key(kind.dtype) else RingArray(placed, kind.dtype)
            for leaf, placed, kind in zip(leaves, self._located(leaves), self._exported.inputs, strict=True)
        ]
        put_args, put_kwargs = tree_unflatten(self.in_tree, placed)
        return (put_args, put_kwargs) if kwargs else put_args

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program with real numbers on the simulated ring.

        Takes arrays, scalars or RingArrays in ``in_tree`` (no static arguments); returns jax.Arrays.
        An output in the memory of a donated RingArray is a RingArray. Donated arrays are deleted.

        Raises:
          CompileError: another tree, shape or type than the program was compiled for.
          RuntimeError: an array is used again after it was donated.
          FloatingPointError: a result that ``jax.debug_nans`` or ``jax.debug_infs`` forbids.
        """
        return tree_unflatten(self.out_tree, self.call_flat(self._leaves(args, kwargs)))

    def call_flat(self, leaves: Sequence[Any], *, on_ring: bool = False) -> list[Any]:
        """``__call__`` from leaves of ``in_tree`` to those of ``out_tree``.

        With ``on_ring`` all results but typed PRNG keys are RingArrays.
        """
        jitted = None if on_ring else self._jitted_for(leaves)
        if jitted is not None:
            for index, leaf in enumerate(leaves):
                self._check(index, leaf)
            return self._checked(jitted(leaves))
        placed = self._located(leaves)
        results = self._runtime.run([*placed, *self._constants])
        donated = {output: leaves[index] for index, output in self._exported.donated.items()}
        for leaf in donated.values():
            if isinstance(leaf, _ARRAYS):
                leaf.delete()
        handed = [
            self._result(index, value, on_ring=on_ring or isinstance(donated.get(index), RingArray))
            for index, value in enumerate(results)
        ]
        return self._checked(handed)

    def fast_path(self, leaves: Sequence[Any]) -> Any | None:
        """How JAX makes calls with such leaves itself, if it can (``distributed.jitted.call_through``).

        Arrays of NumPy it may still read when the call has returned and their owner changes them.
        """
        is_ours = self._exported.donated or any(isinstance(leaf, np.ndarray) for leaf in leaves)
        jitted = None if is_ours else self._jitted_for(leaves)
        return jitted and jitted.fast_path(leaves, self.out_tree)

    def _jitted_for(self, leaves: Sequence[Any]) -> Jitted | None:
        """What computes the whole call where JAX's own arrays lie; None where the ring is to run."""
        device = device_of(leaves) if self._whole is not None else None
        # What is given several times is not to be overwritten.
        if device is None or (self._exported.donated and len({*map(id, leaves)}) < len(leaves)):
            return None
        if device not in self._jitted:
            with naming_foreign_calls(self.program):
                executable = self._host.executor.load_on(self._whole, device)
            exported = self._exported
            self._jitted[device] = Jitted(
                executable,
                device,
                constants=exported.constants,
                inputs=exported.inputs,
                outputs=exported.outputs,
            )
        return self._jitted[device]

    @functools.cached_property
    def _whole(self) -> str | None:
        kinds = *self._exported.inputs, *self._exported.outputs
        is_plain = not any(jax.dtypes.issubdtype(kind.dtype, jax.dtypes.extended) for kind in kinds)
        return whole_text(self.program, len(self._exported.constants)) if is_plain else None

    def _checked(self, results: list[Any]) -> list[Any]:
        """The results, if ``jax.debug_nans`` and ``jax.debug_infs`` do not forbid them."""
        if not (jax.config.jax_debug_nans or jax.config.jax_debug_infs):
            return results
        floats = [np.asarray(one) for one in results if jax.numpy.issubdtype(one.dtype, np.inexact)]
        for is_on, name, is_bad in (
            (jax.config.jax_debug_nans, "nan", np.isnan),
            (jax.config.jax_debug_infs, "inf", np.isinf),
        ):
            if is_on and any(is_bad(array).any() for array in floats):
                raise FloatingPointError(
                    f"invalid value ({name}) in the results of {self._exported.name}; "
                    "inside `with neuronx.debug():` the op that made it is named"
                )
        return results

    def _result(self, index: int, value: PlacedValue, *, on_ring: bool) -> Any:
        kind = self._exported.outputs[index]
        if on_ring and not is_key(kind.dtype):
            return RingArray(value, kind.dtype)
        return logical(self._runtime.hand_out(index, value, weak_type=kind.weak_type), kind.dtype)

    @functools.cached_property
    def _runtime(self) -> Runtime:
        return Runtime(self._artifacts.program, self._host.executor, poison=self._host.poison)

    @functools.cached_property
    def _host(self) -> "_Host":
        return _shared_host(environment().debug > 0, self._artifacts.options.host_kernels)

    @functools.cached_property
    def _constants(self) -> list[PlacedValue]:
        first = len(self._exported.inputs)
        return [self._placement(index, value) for index, value in enumerate(self._exported.constants, first)]

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        leaves, tree = tree_flatten((args, kwargs))
        if tree != self.in_tree:
            raise CompileError(
                f"called with the argument tree {tree}, expected {self.in_tree}",
                op=self._exported.name,
                fix="pass the arguments the program was lowered with, without the static ones",
            )
        return leaves

    def _check(self, index: int, leaf: Any) -> None:
        expected = self._exported.inputs[index]
        got = leaf if isinstance(leaf, _ARRAYS) else jax.typeof(leaf)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise CompileError(
                f"{self._exported.names[index]} is {got.dtype}{list(got.shape)}, "
                f"expected {expected.dtype}{list(expected.shape)}",
                op=self._exported.name,
                fix="pass that shape and type, or lower and compile the function for the new ones",
            )

    @functools.cached_property
    def _known_at_sight(self) -> list[Layout | None]:
        """The layout of each argument; None where what lies so may be of another type, or must be copied."""
        kinds = enumerate(zip(self._exported.inputs, self._runtime.input_layouts, strict=False))
        return [
            None if is_key(kind.dtype) or index in self._exported.donated else layout
            for index, (kind, layout) in kinds
        ]

    def _located(self, leaves: Sequence[Any]) -> list[PlacedValue]:
        """Where the arguments lie on the ring: as they are, from an earlier call, or cut now."""
        find = self._host.placements.find
        return [
            find(leaf, layout) or self._place(index, leaf)
            for index, (leaf, layout) in enumerate(zip(leaves, self._known_at_sight, strict=True))
        ]

    def _place(self, index: int, leaf: Any) -> PlacedValue:
        self._check(index, leaf)
        if isinstance(leaf, RingArray) and leaf.layout == self._runtime.input_layouts[index]:
            return leaf.placed
        return self._cut(index, leaf) if self._known_at_sight[index] is None else self._placement(index, leaf)

    def _placement(self, index: int, array: Any) -> PlacedValue:
        if not isinstance(array, jax.Array):
            return self._cut(index, array)
        layout = self._runtime.input_layouts[index]
        return self._host.placements.get(array, layout, functools.partial(self._cut, index))

    def _cut(self, index: int, value: Any) -> PlacedValue:
        array = physical(value)
        if not isinstance(array, jax.Array):
            dtype = find_dtype(self._artifacts.program.input_layouts[index].dtype).numpy
            array = np.asarray(array, dtype)
        return self._runtime.place(index, array)
