"""The dataflow of one block as fusion sees it: nodes, what each reads, and the free ops in between."""

from collections.abc import Iterable, Iterator, Sequence, Set

from hlo_passes.folded import Layers
from hlo_passes.ir import ir
from hlo_passes.ops import captures, kind, operations
from hlo_passes.patterns import group_of, is_free

__all__ = ["Graph", "Node"]

_ORDERED = frozenset({"rng", "custom_call"})
_NONE = Layers()


class Node:
    """An op that is stored by somebody: ``reads`` are the values it takes, seen through free ops.

    ``group`` None: it stays as it is, so a free op it uses directly must be materialised.
    """

    __slots__ = ("group", "kind", "op", "reads")

    def __init__(self, op: ir.Operation, group: str | None) -> None:
        self.op, self.kind, self.group = op, kind(op), group
        self.reads: tuple[ir.Value, ...] = ()


class Graph:
    """Nodes of ``block`` in program order, and the free ops (of this and the enclosing blocks) by result.

    ``nodes`` leaves out the terminator and the free ops, except those whose result a holder uses.
    ``readers`` maps a value to the nodes that read it; -1 stands for the terminator. ``now`` maps values
    whose maker was outlined to what stands for them since. In a folded function one of the ``equal`` layers
    stands for those left out.
    """

    def __init__(
        self, block: ir.Block, outer_free: dict[ir.Value, ir.Operation], equal: Layers = _NONE
    ) -> None:
        self.free = dict(outer_free)
        self.nodes: list[Node] = []
        self.maker: dict[ir.Value, int] = {}
        self.readers: dict[ir.Value, set[int]] = {}
        self.now: dict[ir.Value, ir.Value] = {}
        self._leaves: dict[ir.Value, tuple[ir.Value, ...]] = {}
        ops = operations(block)
        are_free = [is_free(op) for op in ops]
        groups = [group_of(op) for op in ops]
        stored = _stored_free_values(ops, are_free, groups)
        for op, is_one, group in zip(ops[:-1], are_free, groups, strict=False):
            if is_one and op.results[0] not in stored:
                self.free[op.results[0]] = op
            else:
                self._add(op, group)
        for value in ops[-1].operands:
            for leaf in self.leaves([value]):
                self.readers.setdefault(leaf, set()).add(-1)
        repeated = [number for number, node in enumerate(self.nodes) if equal.of_op(node.op) > 1]
        self._repeated = range(repeated[0], repeated[-1] + 1) if repeated else range(0)
        self._copies = equal.of_op(self.nodes[repeated[0]].op) - 1 if repeated else 0

    def distances(self, producer: int, readers: Set[int]) -> Iterator[int]:
        """How many nodes each reader lies behind a producer, also in the layers left out; -1: at the end."""
        layer = self._repeated
        for reader in readers:
            first = last = 0
            if producer < layer.start <= reader:
                # A layer that was left out reads what two neighbouring ones read, not what one is handed.
                last = self._copies if reader not in layer or reader + len(layer) in readers else 0
                first = 0 if reader in layer else last
            for copy in range(first, last + 1):
                yield reader - producer + copy * len(layer) if reader >= 0 else -1

    def _add(self, op: ir.Operation, group: str | None) -> None:
        node, number = Node(op, group), len(self.nodes)
        node.reads = self.leaves([*op.operands, *captures(op)])
        for value in node.reads:
            self.readers.setdefault(value, set()).add(number)
        self.nodes.append(node)
        self.maker.update(dict.fromkeys(op.results, number))

    def leaves(self, values: Iterable[ir.Value]) -> tuple[ir.Value, ...]:
        """The values that ``values`` are made of by free ops alone, in order, each once."""
        found: dict[ir.Value, None] = {}
        for value in values:
            found.update(dict.fromkeys(self._leaves_of(value)))
        return tuple(found)

    def _leaves_of(self, value: ir.Value) -> tuple[ir.Value, ...]:
        if value not in self._leaves:
            op = self.free.get(value)
            self._leaves[value] = (value,) if op is None else self.leaves(op.operands)
        return self._leaves[value]

    def predecessors(self) -> list[set[int]]:
        """Per node the nodes that must come before it: makers of what it reads, earlier side effects."""
        found, last_effect = [], None
        for number, node in enumerate(self.nodes):
            before = {self.maker[value] for value in node.reads if value in self.maker}
            if node.kind in _ORDERED:
                before |= {last_effect} if last_effect is not None else set()
                last_effect = number
            found.append(before)
        return found


def _stored_free_values(
    ops: Sequence[ir.Operation], are_free: Sequence[bool], groups: Sequence[str | None]
) -> set[ir.Value]:
    """Results of free ops (constants apart) that a collective, control flow or the terminator uses."""
    made = {
        op.results[0] for op, is_one in zip(ops, are_free, strict=True) if is_one and kind(op) != "constant"
    }
    stored: set[ir.Value] = set()
    for op, is_one, group in zip(ops, are_free, groups, strict=True):
        if group is None and not is_one:
            stored.update(value for value in (*op.operands, *captures(op)) if value in made)
    return stored
