"""Which axes the factors of an op take: as its results are wanted, as its operands lie, what moves least."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from distributed.mesh import Mesh
from hlo_passes.ir import ir
from hlo_passes.sharding.classes import PRODUCTS
from hlo_passes.sharding.notes import element_bytes
from hlo_passes.sharding.rules import OpRule
from hlo_passes.sharding.spec import Sharding, shape_of
from hlo_passes.sharding.traffic import received_elements, summed_elements

__all__ = ["Choice", "Targets", "choose"]

Dims = tuple[tuple[int, ...], ...]
Lying = Callable[[ir.Value], Sharding]

# Ops along a dim they need whole, of which a batch may be as long as there are cores.
_MOVED = ("stablehlo.sort", "stablehlo.fft", "stablehlo.cholesky", "stablehlo.triangular_solve")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the plan or the user wants.

    ``wanted`` gives the sharding of a value, None for no opinion; ``demanded`` those of main's results,
    None where any will do; ``chosen`` the factors of an op, where a plan settles them; ``axes_of`` reads
    the axes per dim of an ``sdy.sharding`` attribute.
    """

    mesh: Mesh
    rules: dict[ir.Operation, OpRule | None]
    wanted: Callable[[ir.Value], Sharding | None]
    demanded: tuple[Sharding | None, ...]
    axes_of: Callable[[ir.Attribute], tuple[tuple[str, ...], ...]]
    chosen: Callable[[ir.Operation], "Choice"] | None = None


@dataclass(kw_only=True)
class Choice:
    """The axes and the rows per core chosen for each factor of an op."""

    axes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    local: dict[int, int] = field(default_factory=dict)

    def sharding(self, shape: Sequence[int], dims: Dims, rule: OpRule) -> Sharding:
        """The sharding a tensor with these dims must have under this choice."""
        axes, local = [], []
        for size, factors in zip(shape, dims, strict=True):
            sharded = bool(factors) and factors[0] in self.axes
            axes.append(self.axes[factors[0]] if sharded else ())
            local.append(self.local[factors[0]] * _minor(factors, rule) if sharded else size)
        return Sharding(axes=tuple(axes), local=tuple(local))

    @property
    def used(self) -> set[str]:
        return {axis for axes in self.axes.values() for axis in axes}

    def drop(self, factors: Iterable[int]) -> None:
        """Gives up sharding these factors."""
        for factor in set(factors) & self.axes.keys():
            del self.axes[factor], self.local[factor]

    def offer(self, rule: OpRule, factors: tuple[int, ...], axes: tuple[str, ...], local: int) -> None:
        """Takes ``axes`` for the major factor of a dim if the factor and the axes are still free."""
        rows, rest = divmod(local, _minor(factors, rule))
        if factors[0] in rule.blocked or factors[0] in self.axes or self.used & set(axes) or rest:
            return
        self.axes[factors[0]], self.local[factors[0]] = axes, rows


def choose(targets: Targets, lying: Lying, op: ir.Operation, rule: OpRule, *, may_move: bool) -> Choice:
    """Axes per factor for ``op``, whose operands are ``lying`` so.

    What is wanted of the results comes first, then how the largest operands lie; or the other way round,
    only what is wanted, or no reduction in parts, where that moves no more bytes. Ops that are long to
    compute are not spread over fewer cores for it, and products may begin with their smallest operand.
    Where it ``may_move`` them, axes of a dim that some ops need whole go to one they do not.
    """
    if targets.chosen is not None:
        return targets.chosen(op)
    wanted = [(targets.wanted(v), dims) for v, dims in zip(op.results, rule.results, strict=True)]
    results = [(sharding, dims) for sharding, dims in wanted if sharding is not None]
    operands = sorted(zip(op.operands, rule.operands, strict=True), key=lambda p: -math.prod(shape_of(p[0])))
    there = [(lying(value), dims) for value, dims in operands]
    orders = [*results, *there], [*there, *results], results, [*results, *there]
    first, *others = (_offered(rule, order) for order in orders)
    others[-1].drop(rule.reductions)
    if op.name in PRODUCTS:
        others.append(_offered(rule, [*reversed(there), *results]))
    if op.name in (*PRODUCTS, *_MOVED):
        others = [one for one in others if _shards(targets.mesh, one) >= _shards(targets.mesh, first)]
    if any(one != first for one in others):
        # What moves as little as the rest lies as it did: it may never have to move.
        first = min((*others, first), key=lambda one: _moved_bytes(targets, lying, op, rule, one))
    if may_move and op.name in _MOVED:
        _offer_elsewhere(targets.mesh, lying(op.operands[0]), rule, first)
    return first


def _offered(rule: OpRule, sources: Sequence[tuple[Sharding, Dims]]) -> Choice:
    choice = Choice()
    for sharding, dims in sources:
        for axes, local, factors in zip(sharding.axes, sharding.local, dims, strict=True):
            if axes and factors:
                choice.offer(rule, factors, axes, local)
    return choice


def _shards(mesh: Mesh, choice: Choice) -> int:
    return math.prod(mesh.size(axes) for axes in choice.axes.values())


def _moved_bytes(targets: Targets, lying: Lying, op: ir.Operation, rule: OpRule, choice: Choice) -> float:
    """Bytes a core receives: operands moved, partial results summed, results moved."""
    mesh, total = targets.mesh, 0.0
    for value, dims in zip(op.operands, rule.operands, strict=True):
        read = choice.sharding(shape_of(value), dims, rule)
        received = received_elements(mesh, lying(value), read, shape_of(value))
        total += _size(value, received) / (_product_uses(value) if op.name in PRODUCTS else 1)
    summed = tuple(axis for factor in rule.reductions & choice.axes.keys() for axis in choice.axes[factor])
    for value, dims in zip(op.results, rule.results, strict=True):
        made, wanted = choice.sharding(shape_of(value), dims, rule), targets.wanted(value)
        total += _size(value, summed_elements(mesh, summed, made.local) if summed else 0)
        total += _size(value, received_elements(mesh, made, wanted, shape_of(value)) if wanted else 0)
    return total


def _product_uses(value: ir.Value) -> int:
    """How many products read a value: they share what they gather of it."""
    return sum(use.owner.name in PRODUCTS for use in value.uses)


def _size(value: ir.Value, elements: float) -> float:
    return elements and elements * element_bytes(value.type, 1)


def _offer_elsewhere(mesh: Mesh, have: Sharding, rule: OpRule, choice: Choice) -> None:
    """Moves axes of a dim the op needs whole to one it does not: an all-to-all, not an all-gather."""
    dims, made = rule.operands[0], {factors[0] for factors in rule.results[0] if factors}
    for axes, factors in zip(have.axes, dims, strict=True):
        shards = mesh.size(axes)
        if not axes or not factors or factors[0] not in rule.blocked:
            continue
        others = [f for f in dims if f and f[0] in made and len(f) == 1 and rule.sizes[f[0]] >= shards]
        for other in sorted(others, key=lambda f: -rule.sizes[f[0]]):
            choice.offer(rule, other, axes, math.ceil(rule.sizes[other[0]] / shards))


def _minor(factors: tuple[int, ...], rule: OpRule) -> int:
    return math.prod(rule.sizes[f] for f in factors[1:])
