"""Which dims of which values must be sharded alike: union-find over the factors of a whole program."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

from hlo_passes.folded import Layers, layers, neighbours
from hlo_passes.ir import ir
from hlo_passes.ops import terminator
from hlo_passes.sharding.rules import OpRule, rule_of
from hlo_passes.sharding.spec import shape_of
from hlo_passes.trip_count import trip_count

__all__ = ["PRODUCTS", "Class", "DimClasses", "View", "origin"]

PRODUCTS = ("stablehlo.dot_general", "stablehlo.convolution")
# Ops that hand values through to and from the blocks inside them.
_LOOP = "stablehlo.while"
_CHOICES = ("stablehlo.case", "stablehlo.if")
# Ops a weight may pass through on its way to the product that makes it one.
_RELAYOUTS = frozenset(
    f"stablehlo.{name}" for name in ("broadcast_in_dim", "concatenate", "convert", "reshape", "transpose")
)

Node = int
"""One dim of one value, or of a product's view of it."""

Class = Node
"""A class is named by one of its dims."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Operand ``number`` of an op as the op takes it, or a product's result as it makes it (number None).

    It may be sharded otherwise than the value it is made of or becomes, at the price of moving it there:
    at products that can pay, and where a value or argument is not made for this op alone.
    """

    op: ir.Operation
    number: int | None

    @property
    def value(self) -> ir.Value:
        return self.op.results[0] if self.number is None else self.op.operands[self.number]


class DimClasses:
    """Dims of all values in ``main``, grouped so that a group is sharded as one.

    Two dims are in one class where an op hands a factor from one to the other; sharding a class needs
    no communication except at reductions over it, at ops that block it, and between a value and the
    ``views`` products have of it.

    A class has ``tiles``: the number of equal pieces all its dims can be cut into (a 7168-wide dim that
    elsewhere is 56 heads of 128 has 56), so that shards of all of them correspond, even uneven ones.
    Views have the tiles of their values, so that moving between them is free where both are sharded.

    ``layers`` are those of a folded function that stayed equal.

    Raises:
      UnsteadyError: a folded function without equal layers.
    """

    def __init__(self, function: ir.Operation) -> None:
        self._parent: list[Node] = []
        self._tile_parent: list[Node] = []
        self._tiles: list[int] = []
        self._nodes: dict[ir.Value | View, range] = {}
        self._heads: dict[ir.Operation, tuple[tuple[int, Node], ...]] = {}
        self.rules: dict[ir.Operation, OpRule | None] = {}
        self.ops: list[ir.Operation] = []
        self.repeats: dict[ir.Operation, int] = {}
        self.views: list[View] = []
        self.layers: Layers = layers(function.opview)
        entry = function.regions[0].blocks[0]
        self._function, self._arguments = function, frozenset(entry.arguments)
        self._add_block(entry, 1)

    def class_of(self, source: ir.Value | View, dim: int) -> Class:
        """The class of one dim, named by its representative."""
        return _find(self._parent, self._nodes_of(source)[dim])

    def classes_of(self, source: ir.Value | View) -> list[Class]:
        """The classes of all its dims."""
        return [_find(self._parent, node) for node in self._nodes_of(source)]

    def tile_class(self, source: ir.Value | View, dim: int) -> Class:
        """The dims that are cut into the same tiles: those of a class, and views of them."""
        return _find(self._tile_parent, self._nodes_of(source)[dim])

    def tiles(self, name: Class) -> int:
        return self._tiles[_find(self._tile_parent, name)]

    def factor_classes(self, op: ir.Operation) -> list[tuple[int, Class]]:
        """(factor, class) for every factor of ``op`` that heads some dim."""
        if self.rules[op] is None:
            return []
        if op not in self._heads:
            self._heads[op] = tuple(self._find_heads(op, self.rules[op]))
        return list(dict.fromkeys((factor, _find(self._parent, node)) for factor, node in self._heads[op]))

    def classes(self) -> list[Class]:
        """All classes in the order in which the program first has them."""
        return list(dict.fromkeys(_find(self._parent, node) for node in range(len(self._parent))))

    def home(self, name: Class) -> Class:
        """The class that has the dim ``name``."""
        return _find(self._parent, name)

    def alike(self) -> "DimClasses":
        """The same with the classes that neighbouring equal layers have in one place made one.

        The layers are those of a folded function; in any other they are looked for.
        """
        found = copy.copy(self)
        found._nodes, found._parent = dict(self._nodes), [*self._parent]
        found._tile_parent, found._tiles = [*self._tile_parent], [*self._tiles]
        for pair in self.layers.pairs or neighbours(self._function.opview):
            sources = ([each for source in self._sources(op) for each in _with_value(source)] for op in pair)
            for first, second in zip(*sources, strict=True):
                found._unite_all(first, second)
        return found

    def is_stored(self, view: View) -> bool:
        """Whether it is of an argument, up to layout, that nothing else reads."""
        source = origin(view.value)
        is_argument = view.number is not None and source in self._arguments
        return is_argument and _has_one_use(view.value) and _has_one_use(source)

    def _nodes_of(self, source: ir.Value | View) -> range:
        """Those of its dims; none of a token and the like."""
        found = self._nodes.get(source)
        if found is None:
            shape, start = shape_of(source.value if isinstance(source, View) else source), len(self._parent)
            found = self._nodes[source] = range(start, start + len(shape))
            self._parent += found
            self._tile_parent += found
            self._tiles += shape
        return found

    def _sources(self, op: ir.Operation) -> Iterator[ir.Value | View]:
        """The operands of ``op`` as it takes them, then its results."""
        for number, value in enumerate(op.operands):
            yield View(op=op, number=number) if self._is_viewed(op, value) else value
        yield from (View(op=op, number=None),) if op.name in PRODUCTS else op.results

    def _find_heads(self, op: ir.Operation, rule: OpRule) -> Iterator[tuple[int, Node]]:
        for source, dims in zip(self._sources(op), rule.tensors, strict=True):
            for node, factors in zip(self._nodes_of(source), dims, strict=True):
                if factors:
                    yield factors[0], node

    def _add_block(self, block: ir.Block, repeats: int) -> None:
        for view in block.operations:
            op = view.operation
            self.ops.append(op)
            self.rules[op], self.repeats[op] = rule_of(op), repeats
            if op.name == _LOOP:
                self._add_loop(op, repeats)
            elif op.name in _CHOICES:
                self._add_choice(op, repeats)
            elif op.name == "sdy.manual_computation":
                self._add_block(op.regions[0].blocks[0], repeats)
            elif self.rules[op] is not None:
                self._add_op(op, self.rules[op])
            elif op.name == "stablehlo.optimization_barrier":
                for operand, result in zip(op.operands, op.results, strict=True):
                    self._unite_all(operand, result)

    def _add_op(self, op: ir.Operation, rule: OpRule) -> None:
        homes: dict[int, Node] = {}
        heads: list[tuple[int, Node]] = []
        for source, dims in zip(self._sources(op), rule.tensors, strict=True):
            if isinstance(source, View):
                self._add_view(source)
            for node, factors in zip(self._nodes_of(source), dims, strict=True):
                if not factors:
                    self._limit_tiles(node, 1)  # corresponds to nothing: a convolution's window, say
                    continue
                factor = factors[0]
                heads.append((factor, node))
                if factor in rule.blocked:
                    continue
                self._limit_tiles(node, rule.sizes[factor])
                homes[factor] = self._unite(homes[factor], node) if factor in homes else node
        self._heads[op] = tuple(heads)

    def _is_viewed(self, op: ir.Operation, value: ir.Value) -> bool:
        """Products view all they take; others what was not made for them alone."""
        if not isinstance(value.type, ir.RankedTensorType) or not value.type.rank:
            return False
        return op.name in PRODUCTS or value in self._arguments or not _has_one_use(value)

    def _add_view(self, view: View) -> None:
        self.views.append(view)
        for own, of_value in zip(self._nodes_of(view), self._nodes_of(view.value), strict=True):
            self._unite_tiles(own, of_value)

    def _add_loop(self, op: ir.Operation, repeats: int) -> None:
        # A loop of unknown length counts once: more would be a guess.
        for region in op.regions:
            self._add_block(region.blocks[0], repeats * (trip_count(op) or 1))
        condition, body = (region.blocks[0] for region in op.regions)
        returned = terminator(body).operands
        rows = (op.operands, condition.arguments, body.arguments, returned, op.results)
        for values in zip(*rows, strict=True):
            for other in values[1:]:
                self._unite_all(values[0], other)

    def _add_choice(self, op: ir.Operation, repeats: int) -> None:
        for region in op.regions:
            self._add_block(region.blocks[0], repeats)
            for inner, result in zip(terminator(region.blocks[0]).operands, op.results, strict=True):
                self._unite_all(inner, result)

    def _unite_all(self, left: ir.Value | View, right: ir.Value | View) -> None:
        """Every dim of the one with that of the other."""
        for own, other in zip(self._nodes_of(left), self._nodes_of(right), strict=True):
            self._unite(own, other)

    def _unite(self, left: Node, right: Node) -> Node:
        left, right = _find(self._parent, left), _find(self._parent, right)
        self._parent[right] = left
        self._unite_tiles(left, right)
        return left

    def _unite_tiles(self, left: Node, right: Node) -> None:
        left, right = _find(self._tile_parent, left), _find(self._tile_parent, right)
        self._tile_parent[right] = left
        self._tiles[left] = math.gcd(self._tiles[left], self._tiles[right])

    def _limit_tiles(self, node: Node, tiles: int) -> None:
        node = _find(self._tile_parent, node)
        self._tiles[node] = math.gcd(self._tiles[node], tiles)


def origin(value: ir.Value) -> ir.Value:
    """The value that ``value`` is a relayout of; through loops to what is carried in unchanged.

    Of values that are joined the first stands for all.
    """
    while True:
        if isinstance(value, ir.BlockArgument):
            loop = value.owner.owner.operation
            if loop.name != _LOOP or not _is_invariant(loop, value.arg_number):
                return value
            value = loop.operands[value.arg_number]
        elif value.owner.name in _RELAYOUTS:
            value = value.owner.operands[0]
        else:
            return value


def _with_value(source: ir.Value | View) -> Iterator[ir.Value | View]:
    """A view and its value, or a value."""
    yield source
    if isinstance(source, View):
        yield source.value


def _has_one_use(value: ir.Value) -> bool:
    uses = iter(value.uses)
    return next(uses, None) is not None and next(uses, None) is None


def _is_invariant(loop: ir.Operation, number: int) -> bool:
    body = loop.regions[1].blocks[0]
    return terminator(body).operands[number] == body.arguments[number]


def _find(parent: list[Node], node: Node) -> Node:
    while (up := parent[node]) != node:
        parent[node] = node = parent[up]
    return node
