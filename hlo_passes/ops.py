"""Questions every late pass asks of an op: its kind, its tensors, its groups, what its regions capture."""

import functools
from collections.abc import Iterator

import numpy as np

from hlo_passes.ir import ir, stablehlo
from kernels.errors import CompileError
from kernels.work import Tensor

__all__ = [
    "CASTS",
    "COLLECTIVES",
    "COMPOSITE",
    "CONTROL",
    "KERNEL_PREFIX",
    "TF32",
    "captures",
    "direction",
    "holds_collective",
    "inner_ops",
    "is_composite",
    "is_scalar",
    "is_tf32",
    "kind",
    "maker",
    "nested_operands",
    "operations",
    "pairs",
    "replica_groups",
    "splat",
    "tensor",
    "terminator",
]

COLLECTIVES = frozenset({
    "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute", "collective_broadcast",
})  # fmt: skip
# They ride along with the op that reads or writes.
CASTS = frozenset({"convert", "reduce_precision"})
CONTROL = frozenset({"while", "case", "if"})
COMPOSITE = "composite"
KERNEL_PREFIX = "neuron."
TF32 = {"exponent_bits": 8, "mantissa_bits": 10}
"""The attributes of the ``reduce_precision`` that rounds to tf32."""


def kind(op: ir.Operation | ir.OpView) -> str:
    """The mnemonic without its dialect: ``dot_general``, ``while``, ``return``, ..."""
    return op.operation.name.rpartition(".")[2]


def is_composite(op: ir.Operation | ir.OpView) -> bool:
    """Whether ``op`` is a kernel that ``fuse`` made: composites of others are inlined long before."""
    return op.operation.name == "stablehlo.composite"


@functools.lru_cache(maxsize=65536)
def tensor(value_type: ir.Type) -> Tensor:
    """Shape and element type of a static tensor type; raises CompileError for anything else."""
    if not isinstance(value_type, ir.RankedTensorType):
        raise CompileError(
            f"a value of type {value_type} has no place on the device; expected a tensor",
            fix="remove the token or tuple from the function's interface",
        )
    return Tensor(shape=tuple(value_type.shape), dtype=str(value_type.element_type))


def operations(block: ir.Block) -> list[ir.Operation]:
    return [view.operation for view in block.operations]


def terminator(block: ir.Block) -> ir.Operation:
    return block.operations[len(block.operations) - 1].operation


def maker(value: ir.Value) -> ir.Operation | None:
    """The op that ``value`` is a result of; None for the argument of a block."""
    return value.owner.operation if isinstance(value, ir.OpResult) else None


def splat(value: ir.Value) -> float | None:
    """The one number that a constant of floats is filled with; None for anything else."""
    op = maker(value)
    if op is None or kind(op) != "constant":
        return None
    attribute = op.attributes["value"]
    if not isinstance(attribute, ir.DenseElementsAttr) or not attribute.is_splat:
        return None
    element = attribute.get_splat_value()
    return element.value if isinstance(element, ir.FloatAttr) else None


def direction(compare: ir.Operation) -> str:
    """``LT``, ``GE`` and the like."""
    return stablehlo.ComparisonDirectionAttr(compare.attributes["comparison_direction"]).value


def is_scalar(value: ir.Value) -> bool:
    return not tensor(value.type).shape


def is_tf32(value: ir.Value) -> bool:
    """Whether ``value`` was just rounded to tf32, which has no type of its own: it is stored as f32."""
    if isinstance(value, ir.BlockArgument) or kind(value.owner) != "reduce_precision":
        return False
    attributes = value.owner.operation.attributes
    return all(ir.IntegerAttr(attributes[name]).value == bits for name, bits in TF32.items())


def replica_groups(op: ir.Operation | ir.OpView) -> tuple[tuple[int, ...], ...]:
    """The groups of ranks of a collective that has them; the padding (-1) of uneven groups is dropped."""
    return _rows(op.operation.attributes["replica_groups"])


def pairs(op: ir.Operation | ir.OpView) -> tuple[tuple[int, int], ...]:
    """(source, target) ranks of a collective_permute."""
    return _rows(op.operation.attributes["source_target_pairs"])


@functools.lru_cache(maxsize=1024)
def _rows(numbers: ir.Attribute) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in row if n >= 0) for row in np.array(numbers))


def holds_collective(op: ir.Operation | ir.OpView) -> bool:
    """Whether a collective lies anywhere inside the regions of ``op``."""
    return any(kind(inner) in COLLECTIVES for inner in inner_ops(op.operation))


def inner_ops(op: ir.Operation) -> Iterator[ir.Operation]:
    """Every op inside the regions of ``op``, at any depth, outer ones first."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from inner_ops(inner.operation)


def nested_operands(op: ir.Operation) -> Iterator[tuple[ir.Operation, int, ir.Value]]:
    """(op, operand number, value) of ``op`` itself and of every op inside its regions."""
    for number, value in enumerate(op.operands):
        yield op, number, value
    for inner in inner_ops(op):
        for number, value in enumerate(inner.operands):
            yield inner, number, value


def captures(op: ir.Operation | ir.OpView) -> list[ir.Value]:
    """Values used inside the regions of ``op`` but defined outside it, in order of first use."""
    op = op.operation
    if not len(op.regions):
        return []
    inside: set[ir.Value] = set()
    used: dict[ir.Value, None] = {}
    _collect(op, inside, used)
    return [value for value in used if value not in inside]


def _collect(op: ir.Operation, inside: set[ir.Value], used: dict[ir.Value, None]) -> None:
    for region in op.regions:
        for block in region.blocks:
            inside.update(block.arguments)
            for inner in block.operations:
                inside.update(inner.operation.results)
                used.update(dict.fromkeys(inner.operation.operands))
                _collect(inner.operation, inside, used)
