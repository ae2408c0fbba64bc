"""The lazy context: who holds recorded values, when they run, and what ran already."""

import contextlib
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from kernels.errors import CompileError
from neuronx.arrays import RingArray
from neuronx.driver import CompileOptions
from neuronx.frontend import wrap
from neuronx.function import Function
from neuronx.lazy.difference import changed_number, difference
from neuronx.lazy.graph import Graph, Structure, collect, internal_numbers, structure
from neuronx.lazy.report import HISTORY, METRICS, Execution
from neuronx.lazy.tensor import LazyArray
from neuronx.lazy.trace import Handle, LazyTrace, Node, Value, caller_line, eagerly, recording, replay
from neuronx.stages import Compiled

__all__ = ["GraphBudgetError", "Session", "StrictError", "mark_step", "strict"]

# Compiled graphs of the process; the one longest unused goes first.
_MAX_GRAPHS_KEPT = 256

_here = threading.local()


class StrictError(CompileError):
    """A value was looked at where that was forbidden: the line would have run a graph."""


class GraphBudgetError(CompileError):
    """A context wanted to compile more graphs than its ``max_graphs``."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A compiled graph. ``numbers`` are those of JAX's own code, ``inputs`` the leaves that are arguments."""

    compiled: Compiled
    name: str
    numbers: dict[int, bytes]
    inputs: tuple[int, ...]

    def changed(self, numbers: dict[int, bytes]) -> list[int]:
        """The positions of the numbers that were compiled in and are others now."""
        constant = self.numbers.keys() - set(self.inputs)
        return sorted(position for position in constant if numbers[position] != self.numbers[position])


class _Cache:
    """Compiled graphs by options and structure, shared by all contexts of the process."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.entries: OrderedDict[tuple[Any, Structure], _Entry] = OrderedDict()

    def get(self, key: tuple[Any, Structure]) -> _Entry | None:
        found = self.entries.get(key)
        if found is not None:
            self.entries.move_to_end(key)
        return found

    def put(self, key: tuple[Any, Structure], entry: _Entry) -> None:
        self.entries[key] = entry
        while len(self.entries) > _MAX_GRAPHS_KEPT:
            self.entries.popitem(last=False)

    def known(self, options: Any) -> list[Structure]:
        return [found for asked, found in self.entries if asked == options]

    def clear(self) -> None:
        with self.lock:
            self.entries.clear()


CACHE = _Cache()


class Session:
    """``with neuronx.lazy(...)``: JAX code inside is recorded and runs in compiled graphs on the ring.

    Contexts nest: the inner one records with its own options, and computes what it reads of the outer one.
    A context belongs to the thread that entered it; other threads compute at once, and what they read of a
    lazy array is computed first. Leaving it runs what is pending and still held, unless an exception leaves.

    Args:
      tp_degree: number of cores; left out, the size of the user's own mesh, or 1 without one.
      strict: only ``mark_step`` and leaving the context may run graphs; looking at a value raises.
      max_graphs: the context compiles at most so many graphs, then raises GraphBudgetError.
      options: instance, auto_cast, auto_cast_type, era, objective, host_kernels, as for ``neuronx.compile``.

    Raises:
      CompileError: an option that does not exist, or more cores than the instance has.
    """

    array_type = LazyArray

    def __init__(
        self,
        tp_degree: int | None = None,
        *,
        strict: bool = False,
        max_graphs: int | None = None,
        **options: Any,
    ) -> None:
        self._options = CompileOptions(tp_degree=1 if tp_degree is None else tp_degree, **options)
        if tp_degree is not None:
            self._options.warn_if_unusual()
        if max_graphs is not None and max_graphs < 1:
            raise CompileError(f"max_graphs is {max_graphs}, expected at least 1", op="neuronx.lazy")
        self._tp_degree, self._strict, self._max_graphs = tp_degree, strict, max_graphs
        self._trace = LazyTrace(self)
        self._held: list[weakref.ref[LazyArray]] = []
        self._prune_at = 1024
        self._num_graphs = 0
        self._lock = threading.RLock()
        self._thread: int | None = None
        self._entered: list[Any] = []

    def __enter__(self) -> "Session":
        thread = threading.get_ident()
        if self._thread not in (None, thread):
            raise CompileError(
                "this lazy context is in use on another thread",
                op="neuronx.lazy",
                location=caller_line(),
                fix="make a context of its own on each thread",
            )
        context = recording(self._trace)
        context.__enter__()
        self._thread = thread
        self._entered.append(context)
        _stack().append(self)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        _stack().pop()
        self._entered.pop().__exit__(None, None, None)
        if not self._entered:
            self._thread = None
            if kind is None:
                self._run(self._pending(), "end of the context")

    def mark_step(self) -> None:
        """Compiles (the first time) and runs in one graph all that is pending and still held."""
        METRICS.count("MarkStep")
        self._run(self._pending(), "mark_step")

    @property
    def num_graphs(self) -> int:
        """How many graphs this context compiled."""
        return self._num_graphs

    def hold(self, value: Value) -> Handle:
        """The user's handle for a value; the context knows of it as long as the user keeps it."""
        array = self.array_type(self._trace, value)
        if value.node is not None:
            self._held.append(weakref.ref(array))
            if len(self._held) > self._prune_at:
                with self._lock:
                    self._held = [ref for ref in self._held if _pending_value(ref) is not None]
                    self._prune_at = max(1024, 2 * len(self._held))
        return array

    def recorded(self, node: Node, handles: Sequence[Handle]) -> None:
        """Called with each op after it was recorded."""

    def compute(self, handle: Handle, cause: str) -> None:
        """Runs what ``handle`` needs.

        Raises:
          StrictError: in a strict context or region.
        """
        if (self._strict or getattr(_here, "strict", 0)) and handle.value.node is not None:
            raise StrictError(
                f"{cause} needs the elements of {handle.aval.str_short()}: this would run a graph here",
                op="strict",
                location=caller_line(),
                fix="move it behind neuronx.mark_step(), or out of the strict region; "
                f"the value was recorded at {handle.value.node.line}",
            )
        self._run([handle.value], cause)

    def _pending(self) -> list[Value]:
        with self._lock:
            values = [_pending_value(ref) for ref in self._held]
            return [value for value in values if value is not None]

    def _run(self, wanted: Sequence[Value], cause: str) -> None:
        with self._lock, eagerly():
            graph = collect(wanted, self._pending())
            if not graph.nodes:
                return
            line = caller_line()
            entry, compile_s, changed = self._compiled(graph)
            leaves = [graph.leaves[n] for n in entry.inputs]
            start = time.perf_counter()
            results = entry.compiled.call_flat(list(map(_argument, leaves)), on_ring=True)
            jax.block_until_ready([_buffers(result) for result in results])
            run_s = time.perf_counter() - start
            for value, result in zip(graph.outputs, results, strict=True):
                value.result, value.node = result, None
        execution = Execution(
            cause=cause,
            line=line,
            graph=entry.name,
            is_new=compile_s is not None,
            num_ops=len(graph.nodes),
            num_inputs=len(leaves),
            num_outputs=len(graph.outputs),
            input_bytes=sum(_bytes(leaf.aval) for leaf in leaves),
            output_bytes=sum(_bytes(value.aval) for value in graph.outputs),
            compile_s=compile_s or 0.0,
            run_s=run_s,
            difference=changed,
        )
        HISTORY.append(execution)
        METRICS.record(execution, [node.primitive.name for node in graph.nodes])

    def _compiled(self, graph: Graph) -> tuple[_Entry, float | None, str]:
        """The graph's program, the seconds it took to compile (None: it was there), and what had changed."""
        key, numbers = (self._cache_key, structure(graph)), internal_numbers(graph)
        with CACHE.lock:
            found = CACHE.get(key)
            inputs = {n for n in range(len(graph.leaves)) if n not in numbers}
            if found is None:
                changed = difference(graph, key[1], CACHE.known(self._cache_key))
            else:
                positions = found.changed(numbers)
                if not positions:
                    return found, None, ""
                changed = changed_number(graph, positions[0])
                inputs |= {*found.inputs, *positions}
            self._check_budget(changed)
            start = time.perf_counter()
            name = f"lazy_{key[1].digest}"
            arguments = tuple(sorted(inputs))
            compiled = self._compile(graph, [graph.leaves[n] for n in arguments], name)
            self._num_graphs += 1
            entry = _Entry(compiled=compiled, name=name, numbers=numbers, inputs=arguments)
            CACHE.put(key, entry)
            return entry, time.perf_counter() - start, changed

    def _check_budget(self, changed: str) -> None:
        if self._max_graphs is not None and self._num_graphs >= self._max_graphs:
            raise GraphBudgetError(
                f"this would be graph {self._num_graphs + 1}, and max_graphs is {self._max_graphs}"
                + (f"; {changed}" if changed else ""),
                op="neuronx.lazy",
                location=caller_line(),
                fix="keep shapes and control flow the same from step to step, or allow more graphs",
            )

    @property
    def _cache_key(self) -> Any:
        return (self._tp_degree, self._options)

    def _compile(self, graph: Graph, arguments: Sequence[Value], name: str) -> Compiled:
        outputs = [(value.node, value.index) for value in graph.outputs]

        def program(*args: Any) -> list[Any]:
            return replay(graph.nodes, arguments, outputs, args)

        program.__name__ = name
        jitted = wrap(program, static_argnums=None, static_argnames=None, donate_argnums=None)
        function = Function(program, jitted, self._tp_degree, self._options, None, None)
        return function.lower(*map(_type, arguments)).compile()


def mark_step() -> None:
    """Compiles (the first time) and runs in one graph all that is pending in the innermost lazy context.

    Raises:
      CompileError: outside of any.
    """
    stack = _stack()
    if not stack:
        raise CompileError(
            "mark_step outside of a lazy context",
            op="neuronx.mark_step",
            location=caller_line(),
            fix="call it inside `with neuronx.lazy(...):`, on the thread that entered it",
        )
    stack[-1].mark_step()


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """A region in which looking at the elements of a pending value raises StrictError with the line."""
    _here.strict = getattr(_here, "strict", 0) + 1
    try:
        yield
    finally:
        _here.strict -= 1


def _stack() -> list[Session]:
    if not hasattr(_here, "stack"):
        _here.stack = []
    return _here.stack


def _pending_value(ref: "weakref.ref[LazyArray]") -> Value | None:
    array = ref()
    return array.value if array is not None and array.value.node is not None else None


def _type(leaf: Value) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf.result, "sharding", None)
    named = sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
    aval = leaf.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=named, weak_type=aval.weak_type)


def _argument(leaf: Value) -> Any:
    return (
        leaf.result
        if isinstance(leaf.result, jax.Array | RingArray)
        else np.asarray(leaf.result, leaf.aval.dtype)
    )


def _buffers(result: Any) -> Any:
    return result.placed.arrays if isinstance(result, RingArray) else result


def _bytes(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize
