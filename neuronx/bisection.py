"""``neuronx.bisect``: the pass after which a program's results differ, and the op they first differ at."""

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn
from jax.tree_util import tree_flatten

from distributed.executor import Executor
from distributed.placement import cut, join
from distributed.replicas import Replicas
from distributed.runtime import Runtime
from hlo_passes.host_lowering import lower_text
from hlo_passes.ir import ir, main, source_line, walk
from hlo_passes.local import argument_layouts, num_ranks, result_layouts
from hlo_passes.ops import COLLECTIVES, kind
from hlo_passes.pipeline import run_pipeline
from hlo_passes.runnable import runnable_text
from kernels.dtypes import dtype as find_dtype
from kernels.errors import CompileError
from neuronx.api import compile
from neuronx.driver import compile_module, copy_module, pipeline_for
from neuronx.frontend import physical
from neuronx.function import Function
from neuronx.lazy.reference import numbers, roundoff
from neuronx.lazy.trace import line_of
from neuronx.prefixes import inlined, prefix

__all__ = ["Bisection", "Step", "bisect"]

Arrays = list[np.ndarray]

_replicas = functools.lru_cache(maxsize=2)(Replicas)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The program after one pass. ``change`` is the largest deviation of its results from those before it.

    Deviations are parts of the largest magnitude; infinite where a NaN or infinity came or went. None: there
    is nothing to compare, and ``note`` says why.
    """

    name: str
    change: float | None
    is_beyond: bool
    note: str

    def __str__(self) -> str:
        shown = "-" if self.change is None else f"{self.change:.3g}"
        return f"{self.name:<22}{shown:>10}  {self.note}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """``culprit`` is the first pass that changes the results by more than the bound, "" if none does.

    ``op`` is the first op of the traced function whose value it changes so, "" if no first part of the
    function shows it; ``line`` is the user's. ``made`` and ``removed`` are the casts, kernels and collectives
    of that line that come and go with the pass.
    """

    steps: tuple[Step, ...]
    culprit: str = ""
    op: str = ""
    line: str = ""
    made: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{'after':<22}{'change':>10}", *map(str, self.steps)]
        if not self.culprit:
            return "\n".join([*lines, "no pass changes the results by more than the bound"])
        lines.append(f"{self.culprit} is the first to change the results by more than the bound")
        if not self.op:
            return "\n".join([*lines, "in no first part of the function it does: it needs all of it"])
        lines.append(
            f"the first value it changes so is that of {self.op} at {self.line or 'an unknown line'}"
        )
        for what, found in (("made", self.made), ("removed", self.removed)):
            lines += [f"of that line it {what} {', '.join(found)}"] if found else []
        return "\n".join(lines)


def bisect(
    fn: Callable[..., Any],
    *args: Any,
    tp_degree: int | None = None,
    bound: float | None = None,
    **options: Any,
) -> Bisection:
    """Runs ``fn(*args)`` as it is after each pass, and compares each result with the one before.

    Modules before ``shard`` run on XLA:CPU, those after it on as many replicas of it, the program on the
    simulated ring, without and then with the host's own kernels. Where a pass changes results by more than
    ``bound``, first parts of the function are compiled up to that pass to find the op where it begins.

    Args:
      fn: a function, or what ``neuronx.compile`` returned (its options hold then).
      args: arrays and scalars to call it with.
      tp_degree, options: as for ``neuronx.compile``.
      bound: the largest deviation allowed, as a part of an output's largest magnitude; left out, the square
        root of one unit in the last place of its type (half of the digits). 0 finds the first changed bit.

    Raises:
      CompileError: a pass refuses the program, or there are options beside a compiled function.
    """
    if isinstance(fn, Function) and (tp_degree is not None or options):
        raise CompileError(
            "options beside a compiled function, which has its own",
            op="neuronx.bisect",
            fix="give the plain function, or leave the options out",
        )
    function = fn if isinstance(fn, Function) else compile(fn, tp_degree=tp_degree, **options)
    lowered = function.lower(*args)
    plan = compile_module(lowered.exported.module, lowered.options).plan
    levels = _Levels(function, args, plan, None)
    steps, bases, base = [], {}, 0
    for number, name in enumerate(levels.names):
        steps.append(levels.step(base, number, name, bound))
        bases[name] = base
        base = base if levels.outputs(number) is None else number
    culprit = next((step.name for step in steps if step.is_beyond), "")
    if not culprit:
        return Bisection(steps=tuple(steps))
    number = levels.names.index(culprit)
    eqn = _first_op(function, args, plan, bases[culprit], number, bound)
    if eqn is None:
        return Bisection(steps=tuple(steps), culprit=culprit)
    line = line_of(eqn.source_info.traceback)
    before, after = (_of_line(levels.module(n), line) for n in (bases[culprit], number))
    return Bisection(
        steps=tuple(steps),
        culprit=culprit,
        op=eqn.primitive.name,
        line=line,
        made=_counted(after - before),
        removed=_counted(before - after),
    )


class _Levels:
    """A function called with ``args``: number 0 is its StableHLO, 1 that after the first pass, and so on.

    ``plan`` is the one of the pass ``shard`` that the compiled program has, though a part might have another.
    Last comes the program on the ring again, with the host's own kernels where the options want them. Only
    the first ``count`` are made, all where it is None.
    """

    def __init__(self, function: Function, args: tuple[Any, ...], plan: str, count: int | None) -> None:
        lowered = function.lower(*args)
        exported = lowered.exported
        every = pipeline_for(lowered.options, plan)
        stages = every[:count]
        self.names = ["StableHLO", *(stage.name for stage in stages)]
        self._modules = [copy_module(exported.module)]
        module = copy_module(exported.module)
        self._program = run_pipeline(
            module, stages, after=lambda _, at: self._modules.append(copy_module(at))
        )
        self._executors = {len(every): Executor()} if self._program is not None else {}
        if self._executors and lowered.options.host_kernels and (count is None or count > len(every)):
            self.names.append("host kernels")
            self._executors[len(every) + 1] = Executor(lower_text)
        types = [ir.RankedTensorType(argument.type) for argument in main(self._modules[0]).arguments]
        leaves, _ = tree_flatten(function.dynamic(args, {}))
        self._inputs = [
            np.asarray(physical(leaf)).astype(find_dtype(str(type_.element_type)).numpy)
            for leaf, type_ in zip([*leaves, *exported.constants], types, strict=True)
        ]
        self._known: dict[int | str, Arrays] = {}

    def module(self, number: int) -> ir.Module:
        return self._modules[min(number, len(self._modules) - 1)]

    def outputs(self, number: int) -> Arrays | None:
        """The results after pass ``number``; None where XLA cannot run the module by itself."""
        if number in self._executors:
            return self._computed(number, lambda: self._on_the_ring(self._executors[number]))
        module = self._modules[number]
        text = runnable_text(module)
        # A pass that changes nothing leaves the same text.
        return None if text is None else self._computed(text, lambda: self._on_replicas(module, text))

    def step(self, before: int, number: int, name: str, bound: float | None) -> Step:
        """Pass ``number`` with what it changes of the results of ``before``."""
        old, new = self.outputs(before), self.outputs(number)
        if new is None:
            note = "shard_map is one program on many devices: it runs after shard"
            return Step(name=name, change=None, is_beyond=False, note=note)
        if old is None:
            return Step(name=name, change=None, is_beyond=False, note="the first that runs")
        changes = [_deviation(*pair) for pair in zip(old, new, strict=True)]
        allowed = [math.sqrt(roundoff(array.dtype)) if bound is None else bound for array in old]
        return Step(
            name=name,
            change=max(changes, default=0.0),
            is_beyond=any(change > limit for change, limit in zip(changes, allowed, strict=True)),
            note="",
        )

    def _computed(self, key: int | str, run: Callable[[], Arrays]) -> Arrays:
        if key not in self._known:
            self._known[key] = run()
        return self._known[key]

    def _on_the_ring(self, executor: Executor) -> Arrays:
        runtime = Runtime(self._program, executor)
        outputs = runtime.run([runtime.place(index, array) for index, array in enumerate(self._inputs)])
        return [runtime.gather(index, output) for index, output in enumerate(outputs)]

    def _on_replicas(self, module: ir.Module, text: str) -> Arrays:
        count, function = num_ranks(module), main(module)
        layouts = argument_layouts(module, function)
        blocks = [
            cut(layout, array, varying=True, copy=True)
            for layout, array in zip(layouts, self._inputs, strict=True)
        ]
        results = _replicas(count).run(text, [shards * (count // len(shards)) for shards in blocks])
        layouts = result_layouts(module, function)
        return [join(layout, shards) for layout, shards in zip(layouts, results, strict=True)]


def _first_op(
    function: Function, args: tuple[Any, ...], plan: str, before: int, number: int, bound: float | None
) -> JaxprEqn | None:
    """The op whose value pass ``number`` changes, while all it is computed from stays as it was."""
    closed = inlined(function.trace(args, {}).traced.jaxpr)
    dynamic, _ = function.dynamic(args, {})

    def is_wrong(count: int) -> bool:
        first = prefix(closed, count)
        part = function.with_body(lambda *given: first(*tree_flatten(given)[0]))
        return _Levels(part, dynamic, plan, number).step(before, number, "", bound).is_beyond

    right, wrong = 0, len(closed.jaxpr.eqns)
    if not wrong or not is_wrong(wrong):
        return None
    while wrong - right > 1:
        middle = (right + wrong) // 2
        right, wrong = (right, middle) if is_wrong(middle) else (middle, wrong)
    return closed.jaxpr.eqns[wrong - 1]


def _deviation(before: np.ndarray, after: np.ndarray) -> float:
    """The largest, as a part of the largest magnitude of ``before``."""
    old, new = numbers(before), numbers(after)
    finite = np.isfinite(old)
    if not np.array_equal(finite, np.isfinite(new)):
        return math.inf
    deviation = np.abs(new[finite] - old[finite]).max(initial=0.0)
    return float(deviation / (np.abs(old[finite]).max(initial=0.0) or 1.0))


def _of_line(module: ir.Module, line: str) -> Counter[str]:
    """The casts, kernels and collectives of a line of the user's."""
    found: Counter[str] = Counter()
    file, _, number = line.rpartition(":")

    def see(op: ir.Operation) -> None:
        # A kernel has the locations of all its ops.
        if kind(op) == "composite" and f'"{file}":{number}:' in str(op.location):
            found[op.attributes["name"].value] += 1
        elif source_line(op) != line:
            return
        elif kind(op) in COLLECTIVES:
            found[kind(op)] += 1
        elif kind(op) == "convert":
            ends = (ir.ShapedType(value.type).element_type for value in (op.operands[0], op.results[0]))
            found["convert " + " to ".join(map(str, ends))] += 1

    walk(module.operation, see)
    return found


def _counted(found: Counter[str]) -> tuple[str, ...]:
    return tuple(name if count == 1 else f"{count} x {name}" for name, count in sorted(found.items()))
