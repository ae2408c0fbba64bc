"""When the values of a FUSED module live, and which of them share one place in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hlo_passes.ir import func, ir
from hlo_passes.ops import COLLECTIVES, CONTROL, captures, is_composite, is_scalar, kind, tensor
from hlo_passes.work import WorkTable

__all__ = ["Item", "Lifetimes", "Place", "in_hbm"]


def in_hbm(op: ir.Operation, result: ir.Value) -> bool:
    """Whether a result lies in HBM; counters, predicates and start indices are the control CPU's."""
    if is_composite(op) or kind(op) in COLLECTIVES:
        return True
    if kind(op) in CONTROL:
        return not (is_scalar(result) and tensor(result.type).dtype[0] in "iu")
    return not is_scalar(result)


@dataclass(eq=False, kw_only=True)
class Place:
    """One range of HBM and the ticks, both inclusive, over which it is taken."""

    size_bytes: int
    start: int
    end: int


@dataclass(eq=False, kw_only=True)
class Item:
    """An op with the ticks it takes; the ops of its blocks (control flow around collectives) lie between.

    ``reads`` are its operands and what its regions capture.
    """

    op: ir.Operation
    reads: list[ir.Value]
    results: list[ir.Value]
    start: int
    end: int = 0
    blocks: list[tuple[ir.Block, list["Item"]]] = field(default_factory=list)


class Lifetimes:
    """Places of all values of ``function`` that lie in HBM, and the ticks over which they are taken.

    ``donated`` are the arguments whose memory the program may write over; all others keep theirs to the
    end. A kernel that updates an operand in place hands that operand's place on to its result, provided
    the old value dies there. A loop's carried value has one place: the body's argument and the result, and
    its initial value too where that dies at the loop.
    """

    def __init__(self, function: func.FuncOp, table: WorkTable, donated: frozenset[int]) -> None:
        self.places: dict[ir.Value, Place] = {}
        self._table = table
        self._tick = 0
        self._last: dict[ir.Value, int] = {}
        self._source: dict[ir.Value, ir.Value] = {}
        self.items = self._measure(function.entry_block)
        self.end = self._tick
        for number, argument in enumerate(function.arguments):
            if number not in donated:
                self._last[argument] = self.end
            self._new(argument, 0)
        self._inherit(function.entry_block, self.items, is_body=False)
        self._place(self.items)

    def _measure(self, block: ir.Block) -> list[Item]:
        items = []
        for view in block.operations:
            op = view.operation
            reads = [*op.operands, *captures(op)]
            item = Item(op=op, reads=reads, results=list(op.results), start=self._tick)
            self._tick += 1
            if kind(op) in CONTROL:
                item.blocks = [(r.blocks[0], self._measure(r.blocks[0])) for r in op.regions]
            item.end = self._tick
            self._tick += 1
            self._last.update(dict.fromkeys(reads, item.end))
            items.append(item)
        return items

    def _new(self, value: ir.Value, start: int) -> None:
        end = max(start, self._last.get(value, start))
        self.places[value] = Place(size_bytes=tensor(value.type).size_bytes, start=start, end=end)

    def _inherit(self, block: ir.Block, items: list[Item], *, is_body: bool) -> None:
        """Finds for each result the operand whose place it takes over."""
        local = set(block.arguments)
        heirs: dict[ir.Value, ir.Value] = {}
        for item in items:
            for operand, result in self._pairs(item.op):
                value = item.reads[operand]
                if value in local and value not in heirs and self._dies(value, item):
                    heirs[value] = item.results[result]
            local.update(item.results)
            for inner, inner_items in item.blocks:
                self._inherit(inner, inner_items, is_body=kind(item.op) == "while")
        if is_body:
            self._keep_carried(block, items[-1].op, heirs)
        self._source.update({result: value for value, result in heirs.items()})

    def _pairs(self, op: ir.Operation) -> Iterator[tuple[int, int]]:
        if is_composite(op):
            yield from ((update.operand, update.result) for update in self._table.updates(op))
        elif kind(op) == "while":
            yield from ((number, number) for number in range(len(op.results)))

    def _dies(self, value: ir.Value, item: Item) -> bool:
        return self._last.get(value) == item.end and item.reads.count(value) == 1

    def _keep_carried(
        self, body: ir.Block, terminator: ir.Operation, heirs: dict[ir.Value, ir.Value]
    ) -> None:
        """A body may overwrite a carried value only with what it carries on in the same position."""
        for number, argument in enumerate(body.arguments):
            value = argument
            while value in heirs:
                value = heirs[value]
            if number >= len(terminator.operands) or terminator.operands[number] != value:
                heirs.pop(argument, None)

    def _place(self, items: list[Item]) -> None:
        for item in items:
            for result in item.results:
                self._place_result(item, result)
            for block, inner in item.blocks:
                if kind(item.op) == "while":
                    carried = zip(block.arguments, item.results, strict=True)
                    self.places.update({arg: self.places[res] for arg, res in carried if res in self.places})
                self._place(inner)

    def _place_result(self, item: Item, result: ir.Value) -> None:
        if not in_hbm(item.op, result):
            return
        if result in self._source and self._source[result] in self.places:
            self.places[result] = self.places[self._source[result]]
        else:
            self._new(result, item.start)
        place = self.places[result]
        place.end = max(place.end, item.end, self._last.get(result, 0))
