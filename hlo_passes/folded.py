"""What a folded module says of itself: how many layers were left out, and what of main belongs to layers."""

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hlo_passes.ir import func, functions, ir
from hlo_passes.ops import inner_ops, nested_operands, operations
from hlo_passes.periods import Run, find_run
from kernels.errors import CompileError

__all__ = [
    "EDGE",
    "Chain",
    "Folded",
    "Layers",
    "UnsteadyError",
    "body",
    "folded",
    "layers",
    "mark",
    "neighbours",
    "steady_run",
    "unmark",
]

EDGE = 2
"""Layers kept at each end: the first and the last become like no other, and those between are compared."""

Chain = tuple[int, ...]
"""Positions of one thing of each layer, in the order of the layers: their first weight, say."""

_EXTRA, _ARGUMENTS, _RESULTS = "fold.extra", "fold.arguments", "fold.results"


class UnsteadyError(CompileError):
    """The layers of a folded module did not stay equal: it has to be compiled whole. ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason, op="fold", fix="leave out the passes fold and unfold")


@dataclass(frozen=True, kw_only=True)
class Folded:
    """``extra`` layers are left out; ``arguments`` and ``results`` of main that belong to layers.

    The positions are those of the whole function. Which of the layers were left out does not matter.
    """

    extra: int
    arguments: tuple[Chain, ...]
    results: tuple[Chain, ...]

    def left_out(self, chains: Iterable[Chain]) -> frozenset[int]:
        """The positions that the folded function does not have."""
        return frozenset(number for chain in chains for number in chain[EDGE:-EDGE])

    def kept(self, chains: Sequence[Chain]) -> tuple[Chain, ...]:
        """The chains as far as they are there, in positions of the folded function."""
        gone = sorted(self.left_out(chains))
        return tuple(
            tuple(number - bisect.bisect(gone, number) for number in (*chain[:EDGE], *chain[-EDGE:]))
            for chain in chains
        )


def mark(module: ir.Module, record: Folded) -> None:
    """Writes ``record`` on the module; its context must be active."""
    attributes = module.operation.attributes
    attributes[_EXTRA] = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), record.extra)
    for name, chains in ((_ARGUMENTS, record.arguments), (_RESULTS, record.results)):
        attributes[name] = ir.ArrayAttr.get([ir.DenseI64ArrayAttr.get(list(chain)) for chain in chains])


def unmark(module: ir.Module) -> None:
    for name in (_EXTRA, _ARGUMENTS, _RESULTS):
        del module.operation.attributes[name]


def folded(module: ir.Module | ir.Operation) -> Folded | None:
    """The record that ``fold`` left; None where it left the module alone."""
    attributes = module.operation.attributes
    if _EXTRA not in attributes:
        return None
    arguments, results = (
        tuple(tuple(ir.DenseI64ArrayAttr(chain)) for chain in attributes[name])
        for name in (_ARGUMENTS, _RESULTS)
    )
    return Folded(extra=attributes[_EXTRA].value, arguments=arguments, results=results)


def body(function: func.FuncOp) -> list[ir.Operation]:
    """The ops of ``function`` without the terminator."""
    return operations(function.entry_block)[:-1]


def steady_run(function: func.FuncOp, record: Folded) -> Run:
    """The layers of a folded function that are still equal: its second and third, as a rule.

    Raises:
      UnsteadyError: no two neighbours are.
    """
    arguments = list(function.arguments)
    following = {
        arguments[first]: arguments[second]
        for chain in record.kept(record.arguments)
        for first, second in itertools.pairwise(chain)
    }
    found = find_run(body(function), functions(function.operation.parent), following)
    if found is None or (following and not found.following):
        raise UnsteadyError("no two of its layers became the same ops")
    return found


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The steady layers of a folded function; of any other function there are none.

    ``pairs`` are the ops of one and of the next. What of ``main`` counts more than once is in ``ops`` and
    ``arguments``: the first of the layers stands for those left out.
    """

    pairs: Sequence[tuple[ir.Operation, ir.Operation]] = ()
    ops: Mapping[ir.Operation, int] = field(default_factory=dict)
    arguments: Mapping[ir.Value, int] = field(default_factory=dict)

    def of_op(self, op: ir.Operation) -> int:
        """How often an op counts."""
        return self.ops.get(op, 1)

    def of_value(self, value: ir.Value) -> int:
        """How often an argument counts, or what an op makes."""
        if isinstance(value, ir.BlockArgument):
            return self.arguments.get(value, 1)
        return self.ops.get(value.owner.operation, 1)


def layers(function: func.FuncOp) -> Layers:
    """Looks for them.

    Raises:
      UnsteadyError: see ``steady_run``.
    """
    record = folded(function.operation.parent)
    if record is None:
        return Layers()
    found, times, ops = steady_run(function, record), record.extra + 1, body(function)
    first = ops[found.start : found.start + found.period]
    read = {value for op in first for _, _, value in nested_operands(op)}
    return Layers(
        pairs=_pairs(ops, found),
        ops=dict.fromkeys((inner for op in first for inner in (op, *inner_ops(op))), times),
        arguments={value: times for value in found.following if value in read},
    )


def neighbours(function: func.FuncOp) -> Sequence[tuple[ir.Operation, ir.Operation]]:
    """The ops of each equal layer and of the next, of a function with all its layers."""
    ops = body(function)
    found = find_run(ops, functions(function.operation.parent))
    return [] if found is None else _pairs(ops, found)


def _pairs(ops: Sequence[ir.Operation], run: Run) -> list[tuple[ir.Operation, ir.Operation]]:
    return [(ops[at], ops[at + run.period]) for at in range(run.start, run.end - run.period)]
