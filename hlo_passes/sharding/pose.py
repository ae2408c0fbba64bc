"""Poses the plan of a function as an integer program: what cutting each class of dims gains and costs."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from hlo_passes.folded import Layers
from hlo_passes.ir import func, ir
from hlo_passes.local import donations
from hlo_passes.ops import tensor, terminator
from hlo_passes.sharding.classes import PRODUCTS, Class, DimClasses, origin
from hlo_passes.sharding.prices import Prices
from hlo_passes.sharding.problem import Problem
from hlo_passes.sharding.rules import OpRule, headed_dim
from hlo_passes.sharding.spec import blocks

__all__ = ["find_weights", "pose"]

# A sharded weight is worth as much as this many of the program's dearest all-reduces, beyond the time it
# saves: who asks for a tensor-parallel degree wants the weights sharded even where they are small.
_WEIGHT_IN_ALL_REDUCES = 32


def pose(
    function: func.FuncOp,
    classes: DimClasses,
    weights: Mapping[ir.Value, int],
    shards: int,
    prices: Prices,
    *,
    layers: Layers,
    may_cut: Callable[[Class], bool],
) -> Problem:
    """The problem of cutting classes of dims ``shards`` ways; one of the ``layers`` counts for many.

    ``weights`` are what ``find_weights`` finds.
    """
    arguments = [v for v in function.arguments if isinstance(v.type, ir.RankedTensorType)]
    problem = _seconds(classes, shards, prices, layers)
    _prefer_weights(problem, weights, function, classes, prices, layers)
    held_bytes = sum(tensor(v.type).size_bytes * layers.of_value(v) for v in arguments)
    problem.must_free_bytes = held_bytes - prices.hbm_bytes
    for value in arguments:
        for name in set(classes.classes_of(value)):
            freed_bytes = _freed_bytes(value, classes.tiles(name), shards)
            problem.freed_bytes[name] += freed_bytes * layers.of_value(value)
    problem.whole = frozenset(
        name for name in problem.names() if classes.tiles(name) < 2 or not may_cut(name)
    )
    return problem


def find_weights(arguments: Iterable[ir.Value], ops: Iterable[ir.Operation]) -> dict[ir.Value, int]:
    """Arguments that a product among ``ops`` takes as they come, up to layout; how many weights each holds.

    That is one, or as many as a stack has slices of which a loop takes one at a time. Where both operands are
    arguments, the weight is the one that less of the program reads, or the right one.
    """
    arguments, weights = set(arguments), {}
    for op in _products(ops):
        sources = [_stack(origin(value)) for value in reversed(list(op.operands))]
        taken = [(value, held) for value, held in sources if value in arguments]
        weight, held = min(taken, key=lambda item: len(list(item[0].uses)), default=(None, 0))
        if weight is not None and weight.type.rank >= 2:
            weights[weight] = held
    return weights


def _stack(value: ir.Value) -> tuple[ir.Value, int]:
    """What ``value`` is one slice of, along the first dim, with the number of slices; else itself and one."""
    if isinstance(value, ir.BlockArgument) or value.owner.name != "stablehlo.dynamic_slice":
        return value, 1
    whole = value.owner.operands[0]
    if value.type.shape != [1, *whole.type.shape[1:]]:
        return value, 1
    return origin(whole), whole.type.shape[0]


def _products(ops: Iterable[ir.Operation]) -> Iterable[ir.Operation]:
    return (op for op in ops if op.name in PRODUCTS)


def _freed_bytes(value: ir.Value, tiles: int, shards: int) -> int:
    """What the fullest core no longer holds of an argument when a dim of ``tiles`` pieces is sharded."""
    size_bytes = tensor(value.type).size_bytes
    return size_bytes - blocks(size_bytes, tiles, shards) if tiles else 0


def _prefer_weights(
    problem: Problem,
    weights: Mapping[ir.Value, int],
    function: func.FuncOp,
    classes: DimClasses,
    prices: Prices,
    layers: Layers,
) -> None:
    """What counts besides a step's seconds: cut weights, and results the host need not put together."""
    dearest_s = max(
        (prices.collective_s("all_reduce", op.results) for op in _products(classes.ops)), default=0.0
    )
    for name, count in _weights_in(weights, classes, layers).items():
        problem.bonus_s[name] += count * dearest_s * _WEIGHT_IN_ALL_REDUCES
    for value in _handed_out(function):
        for name in set(classes.classes_of(value)):
            problem.bonus_s[name] -= prices.result_s() * layers.of_value(value)


def _weights_in(weights: Mapping[ir.Value, int], classes: DimClasses, layers: Layers) -> Counter[Class]:
    """How many weights each class has a dim of."""
    found: Counter[Class] = Counter()
    for weight, held in weights.items():
        for name in set(classes.classes_of(weight)):
            found[name] += held * layers.of_value(weight)
    return found


def _handed_out(function: func.FuncOp) -> list[ir.Value]:
    """Results that go to the host: those in the memory of a donated argument stay where they are."""
    stay = {result for result, _ in donations(function)}
    returned = enumerate(terminator(function.entry_block).operands)
    return [v for n, v in returned if n not in stay and isinstance(v.type, ir.RankedTensorType)]


def _seconds(classes: DimClasses, shards: int, prices: Prices, layers: Layers) -> Problem:
    """What of it is told by the ops."""
    problem = Problem()
    for op in classes.ops:
        rule, repeats = classes.rules[op], classes.repeats[op] * layers.of_op(op)
        pairs = list(classes.factor_classes(op))
        priced = prices.of_op(op, rule) if pairs else None
        whole_s = priced.whole_s() if pairs else 0.0
        problem.whole_s += whole_s * repeats
        for factor, name in pairs:
            problem.meets[name] |= {other for f, other in pairs if f != factor}
            if classes.tiles(name) < 2:
                continue
            if factor in rule.blocked:
                problem.gain_s[name] -= repeats * _gather_s(op, factor, rule, prices)
                continue
            rows = blocks(rule.sizes[factor], classes.tiles(name), shards)
            problem.gain_s[name] += repeats * (whole_s - priced.cut_s(factor, rows))
            if factor in rule.reductions:
                problem.gain_s[name] -= repeats * prices.collective_s("all_reduce", op.results)
        for value in (*op.operands, *op.results) if rule is None else ():
            _meet_in_value(value, classes, problem)
    for view in classes.views:
        _meet_in_value(view.value, classes, problem)
        repeats = classes.repeats[view.op] * layers.of_op(view.op)
        gather_s = prices.collective_s("all_gather", [view.value]) * repeats
        is_stored = classes.is_stored(view)
        for pair in zip(classes.classes_of(view.value), classes.classes_of(view), strict=True):
            if pair[0] == pair[1]:
                continue
            problem.cuts[pair if view.number is not None else pair[::-1]] += gather_s
            if is_stored:
                problem.stored.add(pair)
    return problem


def _gather_s(op: ir.Operation, factor: int, rule: OpRule, prices: Prices) -> float:
    """Seconds to gather the operands of an op that needs ``factor`` whole."""
    operands = zip(op.operands, rule.operands, strict=True)
    return sum(
        prices.collective_s("all_gather", [v]) for v, dims in operands if headed_dim(dims, factor) is not None
    )


def _meet_in_value(value: ir.Value, classes: DimClasses, problem: Problem) -> None:
    """Dims of one value cannot share an axis, whether or not an op relates them."""
    if isinstance(value.type, ir.RankedTensorType):
        names = classes.classes_of(value)
        for dim, name in enumerate(names):
            problem.meets[name].update(names[:dim] + names[dim + 1 :])
