"""Reads and rebuilds collectives for the passes over them: reducers, sums still to be taken, dead ops."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hlo_passes.ir import ir, source_line
from hlo_passes.ops import COLLECTIVES, CONTROL, is_scalar, kind, maker, operations, replica_groups, tensor

__all__ = [
    "Partial",
    "all_reduce",
    "blocks",
    "erase_dead",
    "fill_reducer",
    "groups_attribute",
    "is_pure",
    "lines",
    "partial",
    "reducer",
    "size_bytes",
    "sole_user",
    "take_partial",
    "zeros",
]


def blocks(block: ir.Block) -> Iterator[ir.Block]:
    """``block`` and the blocks of the control flow inside it, inner ones first."""
    for op in operations(block):
        if kind(op) in CONTROL:
            for region in op.regions:
                yield from blocks(region.blocks[0])
    yield block


def reducer(region: ir.Region) -> str | None:
    """The mnemonic of the one op that combines two values; None where there are several or it is uneven."""
    block = region.blocks[0]
    first, *rest = operations(block)
    if len(rest) != 1 or set(first.operands) != set(block.arguments) or len(first.operands) != 2:
        return None
    return kind(first) if list(rest[0].operands) == list(first.results) else None


def sole_user(value: ir.Value) -> ir.Operation | None:
    """The op that uses ``value``, if it is used once."""
    uses = list(value.uses)
    return uses[0].owner.operation if len(uses) == 1 else None


def size_bytes(values: Sequence[ir.Value]) -> int:
    return sum(tensor(value.type).size_bytes for value in values)


def lines(ops: Sequence[ir.Operation]) -> str:
    """The user's lines of several ops, each once."""
    return ", ".join(dict.fromkeys(source_line(op) or "unknown line" for op in ops))


def zeros(type_: ir.Type) -> ir.Attribute:
    """A tensor type's zeros as a constant."""
    dtype = tensor(type_).dtype
    whole = dtype.startswith(("i", "ui"))
    number = (
        "(0.0,0.0)" if dtype.startswith("complex") else "false" if dtype == "i1" else "0" if whole else "0.0"
    )
    return ir.Attribute.parse(f"dense<{number}> : {type_}")


def groups_attribute(groups: Sequence[Sequence[int]]) -> ir.Attribute:
    """Groups of one size as the attribute of a collective."""
    return ir.DenseElementsAttr.get(np.array(groups, np.int64))


def all_reduce(
    operand: ir.Value, reducer_name: str, groups: ir.Attribute, location: ir.Location,
    point: ir.InsertionPoint,
) -> ir.Value:  # fmt: skip
    """A new all-reduce of ``operand`` at ``point``."""
    op = ir.Operation.create(
        "stablehlo.all_reduce", results=[operand.type], operands=[operand], regions=1,
        attributes={"replica_groups": groups}, loc=location, ip=point,
    )  # fmt: skip
    fill_reducer(op, reducer_name, operand.type)
    return op.results[0]


def fill_reducer(op: ir.Operation, reducer_name: str, operand_type: ir.Type) -> None:
    """Gives a collective its region: one scalar op."""
    scalar = ir.RankedTensorType.get([], ir.RankedTensorType(operand_type).element_type)
    body = op.regions[0].blocks.append(scalar, scalar, arg_locs=[op.location] * 2)
    with ir.InsertionPoint(body), op.location:
        both = ir.Operation.create(
            f"stablehlo.{reducer_name}", results=[scalar], operands=list(body.arguments)
        )
        ir.Operation.create("stablehlo.return", operands=[both.results[0]])


@dataclass(frozen=True, kw_only=True)
class Partial:
    """A value that is an all-reduce, seen through ops that could as well come before it.

    Nothing else uses the all-reduce or what stands between it and the value.
    """

    value: ir.Value
    reduce: ir.Operation
    reducer: str
    groups: tuple[tuple[int, ...], ...]


def partial(value: ir.Value) -> Partial | None:
    """``value`` as a reduction that can be put off, if it is one and is used once."""
    seen = value
    passed: list[tuple[ir.Operation, int]] = []
    while isinstance(seen, ir.OpResult) and sole_user(seen) is not None:
        op = seen.owner.operation
        if op.block != value.owner.operation.block:
            return None
        if kind(op) == "all_reduce":
            name = reducer(op.regions[0])
            rules = _COMMUTES.get(name, {})
            if len(op.operands) != 1 or not all(kind(p) in rules and rules[kind(p)](p, i) for p, i in passed):
                return None
            return Partial(value=value, reduce=op, reducer=name, groups=replica_groups(op))
        number = _followed(op)
        if number is None:
            return None
        passed.append((op, number))
        seen = op.operands[number]
    return None


def take_partial(found: Partial) -> ir.Value:
    """Drops the all-reduce; returns what ``found.value`` has become: this core's part of the sum."""
    operand, result = found.reduce.operands[0], found.reduce.results[0]
    value = operand if found.value == result else found.value
    result.replace_all_uses_with(operand)
    found.reduce.erase()
    return value


def _followed(op: ir.Operation) -> int | None:
    """The operand on which the way to the all-reduce goes on."""
    if kind(op) not in _COMMUTES["add"]:
        return None
    if kind(op) == "multiply" and _is_scale(op.operands[0]):
        return 1
    return 0


def _moves(op: ir.Operation, operand: int) -> bool:
    return True


def _widens(op: ir.Operation, operand: int) -> bool:
    """To a float that holds every value of the operand's: sums in it are no less exact."""
    old, new = tensor(op.operands[0].type).dtype, tensor(op.results[0].type).dtype
    return (old, new) in _WIDER


_WIDER = frozenset({("bf16", "f32"), ("f16", "f32"), ("bf16", "f64"), ("f16", "f64"), ("f32", "f64")})


def _scales(op: ir.Operation, operand: int) -> bool:
    return _is_scale(op.operands[1 - operand])


def _divides(op: ir.Operation, operand: int) -> bool:
    return tensor(op.results[0].type).dtype[0] in "bf" and _is_scale(op.operands[1])


def _pads_with_zero(op: ir.Operation, operand: int) -> bool:
    fill = maker(op.operands[1])
    return (
        fill is not None
        and kind(fill) == "constant"
        and fill.attributes["value"] == zeros(fill.results[0].type)
    )


_LAYOUT: dict[str, Callable[[ir.Operation, int], bool]] = {"reshape": _moves, "transpose": _moves}
_ORDER = _LAYOUT | {"convert": _widens}
# By reducer the ops f with f(reduce(x)) = reduce(f(x)): exactly, or for sums up to rounding.
_COMMUTES: Mapping[str | None, Mapping[str, Callable[[ir.Operation, int], bool]]] = {
    "add": _ORDER | {"negate": _moves, "multiply": _scales, "divide": _divides, "pad": _pads_with_zero},
    "maximum": _ORDER,
    "minimum": _ORDER,
    "multiply": _LAYOUT,
    "and": _LAYOUT,
    "or": _LAYOUT,
    "xor": _LAYOUT,
}


def _is_scale(value: ir.Value) -> bool:
    """One number all over, the same on every core."""
    op = maker(value)
    if op is None:
        return False
    if kind(op) == "constant":
        return ir.DenseElementsAttr(op.attributes["value"]).is_splat
    return kind(op) == "broadcast_in_dim" and is_scalar(op.operands[0]) and _is_shared(op.operands[0])


def _is_shared(scalar: ir.Value) -> bool:
    """Whether a scalar is surely equal on all cores: made of constants and of main's own scalars."""
    if isinstance(scalar, ir.BlockArgument):
        return scalar.owner.owner.operation.name == "func.func"
    op = scalar.owner.operation
    if kind(op) in {"replica_id", "rng", "custom_call", *CONTROL} or len(op.regions):
        return False
    return all(is_scalar(operand) and _is_shared(operand) for operand in op.operands)


_KEPT = frozenset({"custom_call", "rng", "return"}) | CONTROL


def erase_dead(block: ir.Block) -> None:
    """Erases what nobody uses in ``block`` and the blocks inside it, dead collectives included."""
    for op in reversed(operations(block)):
        if kind(op) in CONTROL:
            for region in op.regions:
                erase_dead(region.blocks[0])
        elif kind(op) not in _KEPT and all(next(iter(r.uses), None) is None for r in op.results):
            op.erase()


def is_pure(op: ir.Operation) -> bool:
    """Whether the op may run anywhere and any number of times on one core without a difference."""
    return kind(op) not in _KEPT | COLLECTIVES
