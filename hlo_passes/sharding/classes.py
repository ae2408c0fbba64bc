"""Which dims of which values must be sharded alike: union-find over the factors of a whole program."""

import math
from collections.abc import Iterator

from hlo_passes.ir import ir
from hlo_passes.sharding.rules import OpRule, rule_of

__all__ = ["DimClasses"]

# Ops that hand values through to and from the blocks inside them.
_LOOP = "stablehlo.while"
_CHOICES = ("stablehlo.case", "stablehlo.if")


class DimClasses:
    """Dims of all values in ``main``, grouped so that a group is sharded as one.

    Two dims are in one class where an op hands a factor from one to the other; sharding a class needs
    no communication except at reductions over it and at ops that block it.

    A class has ``tiles``: the number of equal pieces all its dims can be cut into (a 7168-wide dim that
    elsewhere is 56 heads of 128 has 56), so that shards of all of them correspond, even uneven ones.
    """

    def __init__(self, function: ir.Operation) -> None:
        self._parent: dict[tuple[ir.Value, int], tuple[ir.Value, int]] = {}
        self._tiles: dict[tuple[ir.Value, int], int] = {}
        self.rules: dict[ir.Operation, OpRule | None] = {}
        self.ops: list[ir.Operation] = []
        for block in function.regions[0].blocks:
            self._add_block(block)

    def class_of(self, value: ir.Value, dim: int) -> tuple[ir.Value, int]:
        """The class of one dim, named by its representative."""
        node = (value, dim)
        if node not in self._parent:
            self._parent[node] = node
            self._tiles[node] = value.type.shape[dim]
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def tiles(self, name: tuple[ir.Value, int]) -> int:
        return self._tiles[name]

    def factor_classes(self, op: ir.Operation) -> Iterator[tuple[int, tuple[ir.Value, int]]]:
        """(factor, class) for every factor of ``op`` that heads some dim."""
        rule = self.rules[op]
        if rule is None:
            return
        seen = set()
        for value, dims in zip((*op.operands, *op.results), rule.tensors, strict=True):
            for dim, factors in enumerate(dims):
                if factors and (factors[0], self.class_of(value, dim)) not in seen:
                    seen.add((factors[0], self.class_of(value, dim)))
                    yield factors[0], self.class_of(value, dim)

    def _add_block(self, block: ir.Block) -> None:
        for view in block.operations:
            op = view.operation
            self.ops.append(op)
            self.rules[op] = rule_of(op)
            if op.name == _LOOP:
                self._add_loop(op)
            elif op.name in _CHOICES:
                self._add_choice(op)
            elif op.name == "sdy.manual_computation":
                self._add_block(op.regions[0].blocks[0])
            elif self.rules[op] is not None:
                self._add_op(op, self.rules[op])
            elif op.name == "stablehlo.optimization_barrier":
                for operand, result in zip(op.operands, op.results, strict=True):
                    self._unite_values(operand, result)

    def _add_op(self, op: ir.Operation, rule: OpRule) -> None:
        homes: dict[int, tuple[ir.Value, int]] = {}
        for value, dims in zip((*op.operands, *op.results), rule.tensors, strict=True):
            for dim, factors in enumerate(dims):
                node = self.class_of(value, dim)
                if not factors:
                    self._tiles[node] = 1  # corresponds to nothing: a convolution's window, say
                if not factors or factors[0] in rule.blocked:
                    continue
                factor = factors[0]
                self._tiles[node] = math.gcd(self._tiles[node], rule.sizes[factor])
                homes[factor] = self._unite(homes[factor], node) if factor in homes else node

    def _add_loop(self, op: ir.Operation) -> None:
        for region in op.regions:
            self._add_block(region.blocks[0])
        condition, body = (region.blocks[0] for region in op.regions)
        returned = list(body.operations)[-1].operands
        for values in zip(
            op.operands, condition.arguments, body.arguments, returned, op.results, strict=True
        ):
            for other in values[1:]:
                self._unite_values(values[0], other)

    def _add_choice(self, op: ir.Operation) -> None:
        for region in op.regions:
            self._add_block(region.blocks[0])
            for inner, result in zip(list(region.blocks[0].operations)[-1].operands, op.results, strict=True):
                self._unite_values(inner, result)

    def _unite_values(self, left: ir.Value, right: ir.Value) -> None:
        if isinstance(left.type, ir.RankedTensorType):
            for dim in range(left.type.rank):
                self._unite(self.class_of(left, dim), self.class_of(right, dim))

    def _unite(self, left: tuple[ir.Value, int], right: tuple[ir.Value, int]) -> tuple[ir.Value, int]:
        left, right = self.class_of(*left), self.class_of(*right)
        if left != right:
            self._parent[right] = left
            self._tiles[left] = math.gcd(self._tiles[left], self._tiles[right])
        return left
