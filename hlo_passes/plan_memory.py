"""FUSED to PLANNED: every value gets its place in the HBM of each core."""

import bisect
import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hlo_passes.in_place import is_taken_along
from hlo_passes.ir import func, ir, main
from hlo_passes.lifetimes import Item, Lifetimes, Place
from hlo_passes.local import donations
from hlo_passes.ops import is_composite
from hlo_passes.work import WorkTable
from kernels.errors import CompileError

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``alignment_bytes``: every offset is a multiple of it (a DMA descriptor's natural unit)."""

    alignment_bytes: int = 64

    def __post_init__(self) -> None:
        if self.alignment_bytes < 1:
            raise CompileError(
                f"alignment_bytes={self.alignment_bytes}, expected 1 or more", op="plan_memory",
                fix="give the multiple that offsets shall be of",
            )  # fmt: skip


def run(module: ir.Module, options: Options) -> None:
    """Writes ``neuron.hbm_offset`` on ops, on main for its arguments, and ``neuron.hbm_bytes`` on the module.

    Values that are never alive together may share memory. Arguments stay where they are to the end, unless
    donated: then the result that the user named takes their place, if a chain of in-place updates leads
    there, or the argument is dead before the result is made or dies there element by element. Whether it all
    fits is not asked here.
    """
    function, table = main(module), WorkTable(module)
    lifetimes = _with_realised_donations(function, table)
    offsets, size_bytes = _assign(lifetimes.places.values(), lifetimes.end, options.alignment_bytes)
    with module.context, ir.Location.unknown():
        function.attributes["neuron.hbm_offset"] = _offsets(lifetimes, offsets, function.arguments)
        _annotate(lifetimes.items, lifetimes, offsets)
        module.operation.attributes["neuron.hbm_bytes"] = ir.IntegerAttr.get(
            ir.IntegerType.get_signless(64), size_bytes
        )


def _with_realised_donations(function: func.FuncOp, table: WorkTable) -> Lifetimes:
    """Lifetimes in which just those donated arguments are given up whose place a result takes."""
    wanted = dict((argument, result) for result, argument in donations(function))
    while True:
        lifetimes = Lifetimes(function, table, frozenset(wanted))
        unusable = _hand_over(list(function.arguments), lifetimes, table, wanted)
        if not unusable:
            return lifetimes
        for number in unusable:
            del wanted[number]


def _hand_over(
    arguments: Sequence[ir.Value], lifetimes: Lifetimes, table: WorkTable, wanted: Mapping[int, int | None]
) -> list[int]:
    """Lets results have the places of donated arguments; returns the arguments that none can have.

    ``wanted`` has the result that is to have it, or None where any may.
    """
    returned, places = list(lifetimes.items[-1].op.operands), lifetimes.places
    held_by_arguments = {places[argument] for argument in arguments}
    members: dict[Place, list[ir.Value]] = defaultdict(list)
    for value, place in places.items():
        members[place].append(value)
    unusable = []
    for number, result in wanted.items():
        held = places[arguments[number]]
        for value in returned if result is None else [returned[result]]:
            place = places.get(value)
            if place is held:
                break
            if place is None or place in held_by_arguments or place.size_bytes != held.size_bytes:
                continue
            if held.end < place.start or _dies_along(arguments[number], held, value, place, table):
                held.end = place.end
                places.update(dict.fromkeys(members[place], held))
                break
        else:
            unusable.append(number)
    return unusable


def _dies_along(argument: ir.Value, held: Place, value: ir.Value, place: Place, table: WorkTable) -> bool:
    """Whether the kernel that makes ``value`` is the last to read the argument, and takes it along."""
    maker = value.owner.operation
    if held.end != place.start + 1 or not is_composite(maker):
        return False
    read = [number for number, operand in enumerate(maker.operands) if operand == argument]
    function, made = table.function(maker), ir.OpResult(value).result_number
    return read != [] and all(is_taken_along(function, number, made) for number in read)


def _assign(values: Iterable[Place], end: int, alignment_bytes: int) -> tuple[dict[Place, int], int]:
    """Offsets of places: what lives throughout first, the rest best-fit in order of birth."""
    places = dict.fromkeys(values)
    offsets: dict[Place, int] = {}
    base = 0
    for place in places:
        if place.start == 0 and place.end >= end - 1:
            offsets[place] = base
            base += _padded(place, alignment_bytes)
    top = base
    taken: list[tuple[int, int]] = []
    ends: list[tuple[int, int]] = []
    rest = [place for place in places if place not in offsets]
    for place in sorted(rest, key=lambda own: (own.start, -own.size_bytes)):
        while ends and ends[0][0] < place.start:
            _, gone = heapq.heappop(ends)
            del taken[bisect.bisect_left(taken, (gone,))]
        size = _padded(place, alignment_bytes)
        offset = _best_fit(taken, base, size)
        bisect.insort(taken, (offset, offset + size))
        heapq.heappush(ends, (place.end, offset))
        offsets[place] = offset
        top = max(top, offset + size)
    return offsets, top


def _best_fit(taken: list[tuple[int, int]], base: int, size: int) -> int:
    """The start of the smallest gap that holds ``size``, or the end of what is taken."""
    best, at = None, base
    for start, stop in taken:  # disjoint, and in order
        gap = start - at
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, at)
        at = stop
    return at if best is None else best[1]


def _padded(place: Place, alignment_bytes: int) -> int:
    return -(-max(place.size_bytes, 1) // alignment_bytes) * alignment_bytes


def _offsets(
    lifetimes: Lifetimes, offsets: Mapping[Place, int], values: Iterable[ir.Value]
) -> ir.DenseI64ArrayAttr:
    """Of each value its offset, or -1."""
    found = map(lifetimes.places.get, values)
    return ir.DenseI64ArrayAttr.get([-1 if place is None else offsets[place] for place in found])


def _annotate(items: list[Item], lifetimes: Lifetimes, offsets: Mapping[Place, int]) -> None:
    for item in items:
        if item.results:
            item.op.attributes["neuron.hbm_offset"] = _offsets(lifetimes, offsets, item.results)
        for _, inner in item.blocks:
            _annotate(inner, lifetimes, offsets)
