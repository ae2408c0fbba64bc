"""What the collectives of a per-core StableHLO module move, whoever partitioned it."""

import math
import re
from collections import Counter
from dataclasses import dataclass

from hlo_passes.ir import ir, walk

__all__ = ["Traffic", "traffic_of"]

# Bytes a core receives for each byte of its operand (a) or result (b) in a group of n, by the algorithm
# that moves least: a ring.
_RECEIVED = {
    "stablehlo.all_gather": lambda a, b, n: b - b // n,
    "stablehlo.all_reduce": lambda a, b, n: 2 * (a - a // n),
    "stablehlo.reduce_scatter": lambda a, b, n: a - a // n,
    "stablehlo.all_to_all": lambda a, b, n: a - a // n,
    "stablehlo.collective_permute": lambda a, b, n: a,
    "stablehlo.collective_broadcast": lambda a, b, n: a,
}
_SIZE = re.compile(r'"(\w+)"=(\d+)')
_MESH = re.compile(r"mesh = @(\w+)")
_AXIS = re.compile(r'axis_ref<name = "(\w+)"(?:, sub_axis_info = \(\d+\)(\d+))?')


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """``bytes`` a core receives in one run and ``collectives`` by kind, those in loops once per turn."""

    bytes: int
    collectives: dict[str, int]

    @property
    def count(self) -> int:
        return sum(self.collectives.values())


def traffic_of(module: ir.Module, cores: int, turns: int) -> Traffic:
    """Adds up the collectives of a module for one of ``cores`` cores; loops are taken to run ``turns`` times.

    Groups of one core, and permutes in which every core keeps its own, move nothing and do not count.
    """
    meshes = {
        ir.StringAttr(op.operation.attributes["sym_name"]).value: dict(
            _SIZE.findall(str(op.operation.attributes["mesh"]))
        )
        for op in module.body.operations
        if op.operation.name == "sdy.mesh"
    }
    moved, kinds = 0, Counter()

    def visit(op: ir.Operation) -> None:
        nonlocal moved
        if op.name not in _RECEIVED:
            return
        group = _group_size(op, meshes, cores)
        if group > 1:
            times = turns ** _loops_around(op)
            operands, results = (sum(_bytes(v) for v in values) for values in (op.operands, op.results))
            moved += times * _RECEIVED[op.name](operands, results, group)
            kinds[op.name.removeprefix("stablehlo.")] += times

    walk(module.operation, visit)
    return Traffic(bytes=moved, collectives=dict(sorted(kinds.items())))


def _group_size(op: ir.Operation, meshes: dict[str, dict[str, str]], cores: int) -> int:
    if op.name == "stablehlo.collective_permute":
        pairs = list(ir.DenseIntElementsAttr(op.attributes["source_target_pairs"]))
        moving = any(a != b for a, b in zip(pairs[::2], pairs[1::2], strict=True))
        return cores if moving else 1
    groups = op.attributes["replica_groups"]
    axes = _AXIS.findall(str(groups))
    if axes:
        sizes = meshes[_MESH.search(str(groups))[1]]
        return math.prod(int(part or sizes[name]) for name, part in axes)
    return ir.RankedTensorType(groups.type).shape[1] or cores


def _loops_around(op: ir.Operation) -> int:
    count, parent = 0, op.parent
    while parent is not None:
        count += parent.name == "stablehlo.while"
        parent = parent.parent
    return count


def _bytes(value: ir.Value) -> int:
    type_ = ir.RankedTensorType(value.type)
    element = type_.element_type
    factor = 2 if isinstance(element, ir.ComplexType) else 1
    width = ir.ComplexType(element).element_type.width if factor == 2 else element.width
    return math.prod(type_.shape) * factor * max(width // 8, 1)
