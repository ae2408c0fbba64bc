"""Finds the equal layers of a program: ops that repeat, each repetition fed by the one before."""

import hashlib
import itertools
import operator
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distributed.layers import distances
from hlo_passes.ir import func, ir
from hlo_passes.ops import captures

__all__ = ["Run", "find_run"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """``count`` periods of ``period`` ops each, the first op of the first at ``start``.

    The ops at one place of all periods are equal, and so is where their operands come from: the same value
    from before the run in all, the same place of the same or the preceding period (in the first period:
    anything from before the run), or arguments of the function that follow upon one another.
    ``following`` maps such an argument of one period to that of the next.
    """

    start: int
    period: int
    count: int
    following: Mapping[ir.Value, ir.Value]

    @property
    def end(self) -> int:
        return self.start + self.period * self.count


def find_run(
    ops: Sequence[ir.Operation],
    functions: Mapping[str, func.FuncOp],
    following: Mapping[ir.Value, ir.Value] | None = None,
) -> Run | None:
    """The run that covers most of ``ops``, a block without its terminator; None where nothing repeats.

    Args:
      ops: in order.
      functions: those that ``ops`` call, by name; calls of functions of equal text are equal.
      following: which argument follows upon which, where that is known.
    """
    keys = _Keys(functions)
    numbers: dict[Hashable, int] = {}
    ids = [numbers.setdefault(keys.of(op), len(numbers)) for op in ops]
    table = _Operands(ops, following)
    best = None
    for period in distances(ids):
        best = _longer(best, ids, period, table)
    return best


class _Keys:
    """What an op does, apart from which values it takes."""

    def __init__(self, functions: Mapping[str, func.FuncOp]) -> None:
        self._functions = functions
        self._digests: dict[str, str] = {}

    def of(self, op: ir.Operation) -> Hashable:
        if not len(op.regions):
            return self._own(op)
        return self._own(op), self._inside(op, {value: n for n, value in enumerate(op.operands)})

    def _own(self, op: ir.Operation) -> Hashable:
        types = (*(value.type for value in op.operands), *op.results.types)
        attributes = tuple((name, self._attribute(value)) for name, value in op.attributes.items())
        return op.name, types, attributes

    def _attribute(self, attribute: ir.Attribute) -> Hashable:
        if isinstance(attribute, ir.FlatSymbolRefAttr) and attribute.value in self._functions:
            return self._digest(attribute.value)
        return attribute

    def _inside(self, op: ir.Operation, numbers: dict[ir.Value, int]) -> Hashable:
        """What lies in the regions, where each value has a number from its first use on."""

        def numbered(values: Iterable[ir.Value]) -> tuple[int, ...]:
            return tuple(numbers.setdefault(value, len(numbers)) for value in values)

        def block_key(block: ir.Block) -> Hashable:
            arguments = numbered(block.arguments), tuple(value.type for value in block.arguments)
            ops = (view.operation for view in block.operations)
            return arguments, tuple(
                (
                    self._own(inner),
                    numbered(inner.operands),
                    numbered(inner.results),
                    self._inside(inner, numbers),
                )
                for inner in ops
            )

        return tuple(tuple(map(block_key, region.blocks)) for region in op.regions)

    def _digest(self, name: str) -> str:
        """Equal for functions that differ in their names alone."""
        if name not in self._digests:
            self._digests[name] = ""  # its own name within it
            text = self._functions[name].operation.get_asm(enable_debug_info=False, use_local_scope=True)
            named = _SYMBOL.sub(self._symbol, text)
            self._digests[name] = hashlib.sha256(named.encode()).hexdigest()
        return self._digests[name]

    def _symbol(self, found: re.Match[str]) -> str:
        return self._digest(found[1]) if found[1] in self._functions else found[0]


_SYMBOL = re.compile(r'@"?([\w.$-]+)"?')


@dataclass(frozen=True, kw_only=True)
class _Link:
    """How the operands of an op and of its like one period later are related.

    ``fixed``: positions of what both take. ``shifted``: positions of what the first takes where the other
    takes the same of one period later. ``carried``: positions of what the first takes from before the run
    (-1: an argument) and the other from the first period. ``arguments``: numbers of those that follow upon
    one another.
    """

    fixed: tuple[int, ...]
    shifted: tuple[int, ...]
    carried: tuple[tuple[int, int], ...]
    arguments: tuple[tuple[int, int], ...]


class _Operands:
    """Where the operands of each op come from: (op, result), or (-1, number) of an argument."""

    def __init__(self, ops: Sequence[ir.Operation], following: Mapping[ir.Value, ir.Value] | None) -> None:
        self._made = {value: (at, n) for at, op in enumerate(ops) for n, value in enumerate(op.results)}
        self._outer: dict[ir.Value, tuple[int, int]] = {}
        self._reads = [[self._source(value) for value in (*op.operands, *captures(op))] for op in ops]
        self._following = following and {
            self._source(first)[1]: self._source(second)[1] for first, second in following.items()
        }

    def _source(self, value: ir.Value) -> tuple[int, int]:
        return self._made.get(value) or self._outer.setdefault(value, (-1, len(self._outer)))

    def link(self, at: int, period: int) -> _Link | None:
        """None where op ``at`` and the one a period later cannot be in one run."""
        fixed, shifted, carried, arguments = [], [], [], []
        for first, second in zip(self._reads[at], self._reads[at + period], strict=True):
            if first == second:
                fixed.append(first[0])
            elif second[0] < 0:
                if first[0] >= 0 or not self._may_follow(first[1], second[1]):
                    return None
                arguments.append((first[1], second[1]))
            elif first == (second[0] - period, second[1]):
                shifted.append(first[0])
            else:
                carried.append((first[0], second[0]))
        return _Link(
            fixed=tuple(fixed), shifted=tuple(shifted), carried=tuple(carried), arguments=tuple(arguments)
        )

    def _may_follow(self, first: int, second: int) -> bool:
        return self._following is None or self._following.get(first) == second

    def values(self, following: Mapping[int, int]) -> dict[ir.Value, ir.Value]:
        """Arguments by their numbers."""
        outer = list(self._outer)
        return {outer[first]: outer[second] for first, second in following.items()}


def _longer(best: Run | None, ids: Sequence[int], period: int, table: _Operands) -> Run | None:
    """``best``, or a run of ``period`` that covers more ops, or as many in more repetitions."""
    for start, stop in _stretches(ids, period):
        # Only where there is room for a better one: to look at operands takes longer.
        if best is None or _size(period, stop - start + period) > _size(best.period, best.end - best.start):
            run = _run(start, [table.link(at, period) for at in range(start, stop)], period, table)
            if run is not None and (
                best is None or _size(period, run.end - run.start) > _size(best.period, best.end - best.start)
            ):
                best = run
    return best


def _size(period: int, room: int) -> tuple[int, int]:
    """How many ops whole periods cover of ``room``, and how many periods."""
    count = room // period
    return period * count, count


def _stretches(ids: Sequence[int], period: int) -> Iterator[tuple[int, int]]:
    """The maximal ranges, a period or longer, of ops that are like those a period later."""
    start = 0
    for alike, group in itertools.groupby(map(operator.eq, ids, ids[period:])):
        stop = start + len(list(group))
        if alike and stop - start >= period:
            yield start, stop
        start = stop


def _run(begin: int, links: Sequence[_Link | None], period: int, table: _Operands) -> Run | None:
    """The last run among ops from ``begin`` on, of which ``links`` say how they relate to the next period."""
    broken = [at for at, link in enumerate(links, begin) if link is None]
    stop = begin + len(links)
    # Of the parts between breaks the longest.
    edges = [begin - 1, *broken, stop]
    first, stop = max(itertools.pairwise(edges), key=lambda edge: edge[1] - edge[0])
    start = _start(first + 1, stop, links[first + 1 - begin : stop - begin], period)
    count = (stop - start) // period + 1
    inside = links[start - begin : start - begin + (count - 1) * period]
    following = _following(inside)
    feeds = any(link.carried or min(link.shifted, default=start) < start for link in inside[:period])
    if count < 2 or following is None or not feeds:
        return None
    return Run(start=start, period=period, count=count, following=table.values(following))


def _start(start: int, stop: int, links: Sequence[_Link], period: int) -> int:
    """The first op from which on what is fixed comes from before, and what is carried enters only once."""
    low = start
    carried = [(at, *pair) for at, link in enumerate(links, low) for pair in link.carried]
    while True:
        was = start
        start = max([start, *(at + 1 for link in links[start - low :] for at in link.fixed)])
        for at, before, made in carried:
            if at >= start and not (before < start <= made < start + period and at < start + period):
                needed = max(before + 1, made - period + 1, at - period + 1)
                start = needed if start < needed <= min(made, at) else at + 1
        if start == was or start >= stop:
            return min(start, stop)


def _following(links: Sequence[_Link]) -> dict[int, int] | None:
    """Which argument follows upon which; None where the links contradict one another."""
    following: dict[int, int] = {}
    for link in links:
        for first, second in link.arguments:
            if following.setdefault(first, second) != second:
                return None
    return following if len(set(following.values())) == len(following) else None
