"""The plan where the user gave none: which classes of dims to shard over the tensor-parallel axis.

Each class is either sharded over the whole axis or not at all. Two classes that meet in one op cannot
both be (the axis would be used twice), so a plan is a set of classes no two of which meet, and the best
one is a small integer program. Weights are sharded first (that is what a tensor-parallel degree asks
for); among plans that shard the same weights the one with the least time wins. Column- then row-wise
sharding of a transformer block is the outcome, not a pattern that is looked for.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from hlo_passes.ir import ir, source_line
from hlo_passes.sharding.classes import DimClasses
from kernels.dtypes import dtype as find_dtype

__all__ = ["Plan", "PlanRates", "make_plan"]

_PRODUCTS = ("stablehlo.dot_general", "stablehlo.convolution")
# Ops a weight may pass through on its way to the product that makes it one.
_RELAYOUTS = {"stablehlo.transpose", "stablehlo.reshape", "stablehlo.convert", "stablehlo.broadcast_in_dim"}

# A sharded weight is worth as much as this many of the program's dearest collectives, beyond the time
# it saves: who asks for a tensor-parallel degree wants the weights sharded even where they are small.
_WEIGHT_IN_COLLECTIVES = 32

Class = tuple[ir.Value, int]


@dataclass(frozen=True, kw_only=True)
class PlanRates:
    """What the plan must know of the machine, in SI units."""

    flops_per_s: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    collective_latency_s: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The classes to shard, and the notes that tell the user what was left whole and why."""

    sharded: frozenset[Class]
    notes: tuple[str, ...]


def make_plan(function: ir.Operation, classes: DimClasses, shards: int, rates: PlanRates) -> Plan:
    """Chooses the classes of dims to shard ``shards`` ways."""
    weights = _find_weights(function, classes)
    meets, saved_s = _weigh(classes, shards, rates)
    bonus_s = _WEIGHT_IN_COLLECTIVES * _dearest_collective_s(classes, shards, rates)
    gain = {}
    for name, count in _weights_in(weights, classes).items():
        if classes.tiles(name) > 1 and name not in meets[name]:
            gain[name] = count * bonus_s + saved_s[name]
    chosen = _best_set({name: value for name, value in gain.items() if value > 0}, meets)
    return Plan(sharded=frozenset(chosen), notes=tuple(_notes(weights, classes, chosen, shards)))


def _find_weights(function: ir.Operation, classes: DimClasses) -> dict[ir.Value, int]:
    """Arguments that a product takes as they come, up to layout, with their size in bytes."""
    arguments = set(function.regions[0].blocks[0].arguments)
    weights = {}
    for op in classes.ops:
        if op.name in _PRODUCTS:
            left, right = (_origin(value) for value in op.operands)
            weight = right if right in arguments else left
            if weight in arguments and weight.type.rank >= 2:
                weights[weight] = _bytes(weight)
    return weights


def _origin(value: ir.Value) -> ir.Value:
    """The value that ``value`` is a relayout of; through loops to what is carried in unchanged."""
    while True:
        owner = value.owner
        if isinstance(owner, ir.Block):
            outer = owner.owner.operation
            if outer.name != "stablehlo.while":
                return value
            value = outer.operands[ir.BlockArgument(value).arg_number]
        elif owner.name in _RELAYOUTS:
            value = owner.operands[0]
        else:
            return value


def _bytes(value: ir.Value) -> int:
    return math.prod(value.type.shape) * find_dtype(str(value.type.element_type)).bits // 8


def _weights_in(weights: dict[ir.Value, int], classes: DimClasses) -> Counter[Class]:
    """How many weights each class has a dim of."""
    return Counter(
        name for weight in weights for name in {classes.class_of(weight, d) for d in range(weight.type.rank)}
    )


def _dearest_collective_s(classes: DimClasses, shards: int, rates: PlanRates) -> float:
    products = (op for op in classes.ops if op.name in _PRODUCTS)
    return max((2 * _collective_s(_bytes(op.results[0]), shards, rates) for op in products), default=0.0)


def _weigh(
    classes: DimClasses, shards: int, rates: PlanRates
) -> tuple[dict[Class, set[Class]], dict[Class, float]]:
    """Which classes meet in some op, and the seconds each saves if it is sharded (collectives deducted)."""
    meets: dict[Class, set[Class]] = defaultdict(set)
    saved_s: dict[Class, float] = defaultdict(float)
    for op in classes.ops:
        pairs = list(classes.factor_classes(op))
        for factor, name in pairs:
            meets[name] |= {other for f, other in pairs if f != factor}
            saved_s[name] += _op_gain_s(op, factor, name, classes, shards, rates)
        for value in (*op.operands, *op.results) if classes.rules[op] is None else ():
            _meet_in_value(value, classes, meets)
    return meets, saved_s


def _meet_in_value(value: ir.Value, classes: DimClasses, meets: dict[Class, set[Class]]) -> None:
    """Dims of one value cannot share an axis, whether or not an op relates them."""
    if isinstance(value.type, ir.RankedTensorType):
        names = [classes.class_of(value, dim) for dim in range(value.type.rank)]
        for dim, name in enumerate(names):
            meets[name].update(names[:dim] + names[dim + 1 :])


def _op_gain_s(
    op: ir.Operation, factor: int, name: Class, classes: DimClasses, shards: int, rates: PlanRates
) -> float:
    """Seconds saved at one op by sharding one of its factors; negative where it costs a collective."""
    rule = classes.rules[op]
    if factor in rule.blocked:
        gathered = [v for v, dims in zip(op.operands, rule.operands, strict=True) if _holds(dims, factor)]
        return -sum(_collective_s(_bytes(v), shards, rates) for v in gathered)
    gain = 0.0
    if op.name in _PRODUCTS:
        tiles = max(classes.tiles(name), 1)
        fraction = math.ceil(tiles / shards) / tiles
        read = sum(_bytes(v) for v in op.operands if isinstance(_origin(v).owner, ir.Block))
        gain = (1 - fraction) * max(_flops(op, rule.sizes) / rates.flops_per_s, read / rates.hbm_bytes_per_s)
    if factor in rule.reductions:
        gain -= sum(2 * _collective_s(_bytes(v), shards, rates) for v in op.results)
    return gain


def _holds(dims: tuple[tuple[int, ...], ...], factor: int) -> bool:
    return any(factors and factors[0] == factor for factors in dims)


def _flops(op: ir.Operation, sizes: tuple[int, ...]) -> float:
    """Multiply-adds times two; a convolution's window is its kernel's elements over channels."""
    if op.name == "stablehlo.dot_general":
        return 2.0 * math.prod(sizes)
    kernel, result = op.operands[1].type.shape, op.results[0].type.shape
    return 2.0 * math.prod(kernel) * math.prod(result) / max(result)


def _collective_s(size_bytes: int, shards: int, rates: PlanRates) -> float:
    """One pass of a ring over ``size_bytes``: what an all-gather takes, half of an all-reduce."""
    moved = size_bytes * (shards - 1) / shards
    return moved / rates.link_bytes_per_s + rates.collective_latency_s


def _best_set(gain: dict[Class, float], meets: dict[Class, set[Class]]) -> set[Class]:
    """The set of largest total gain in which no two classes meet (exact, by HiGHS)."""
    if not gain:
        return set()
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    names = list(gain)
    number = {name: i for i, name in enumerate(names)}
    pairs = sorted({tuple(sorted((number[a], number[b]))) for a in names for b in meets[a] if b in number})
    constraints = []
    if pairs:
        rows = np.repeat(np.arange(len(pairs)), 2)
        matrix = coo_array((np.ones(2 * len(pairs)), (rows, np.ravel(pairs))), shape=(len(pairs), len(names)))
        constraints.append(LinearConstraint(matrix.tocsr(), ub=1))
    scale = max(gain.values())
    objective = -np.array([gain[name] / scale for name in names])
    found = milp(
        objective, integrality=np.ones(len(names)), bounds=Bounds(0, 1), constraints=constraints,
        options={"mip_rel_gap": 1e-9},
    )  # fmt: skip
    assert found.success, found.message
    return {name for name, x in zip(names, found.x, strict=True) if x > 0.5}


def _notes(weights: dict[ir.Value, int], classes: DimClasses, chosen: set[Class], shards: int) -> list[str]:
    """One line per weight that stays whole on every core."""
    notes = []
    for weight, size in weights.items():
        names = [classes.class_of(weight, dim) for dim in range(weight.type.rank)]
        if shards > 1 and not chosen & set(names):
            number = ir.BlockArgument(weight).arg_number
            line = next((source_line(use.owner) for use in weight.uses), "")
            notes.append(
                f"weight argument {number} {weight.type} is replicated on {shards} cores ({size} B each): "
                f"no dim of it can be sharded without using the axis twice; used at {line or 'unknown line'}"
            )
    return notes
