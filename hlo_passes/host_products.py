"""The sides of a product as kernels of the host take them, and its result as the program has it."""

import math
from dataclasses import dataclass, replace

from hlo_passes.ir import ir, stablehlo
from hlo_passes.ops import kind, tensor
from kernels.host.targets import WEIGHTS

__all__ = [
    "Side",
    "arranged",
    "converted",
    "has_own_algorithm",
    "in_the_order_of",
    "sides",
    "stored",
    "typed",
]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a product: its value, and its dims of each role in the order of the product."""

    value: ir.Value
    batch: list[int]
    free: list[int]
    contracting: list[int]

    def sizes(self, dims: list[int]) -> list[int]:
        shape = tensor(self.value.type).shape
        return [shape[dim] for dim in dims]

    def size(self, dims: list[int]) -> int:
        return math.prod(self.sizes(dims))


def sides(op: ir.Operation) -> tuple[Side, Side]:
    dims = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    both = (
        (op.operands[0], dims.lhs_batching_dimensions, dims.lhs_contracting_dimensions),
        (op.operands[1], dims.rhs_batching_dimensions, dims.rhs_contracting_dimensions),
    )
    left, right = (
        Side(
            value=value,
            batch=list(batch),
            contracting=list(contracting),
            free=[dim for dim in range(len(tensor(value.type).shape)) if dim not in {*batch, *contracting}],
        )
        for value, batch, contracting in both
    )
    return left, right


def has_own_algorithm(op: ir.Operation) -> bool:
    """Whether a product asks for another arithmetic than exact products of its operands summed in f32."""
    if "algorithm" not in op.attributes:
        return False
    asked = stablehlo.DotAlgorithm(op.attributes["algorithm"])
    types = asked.lhs_precision_type, asked.rhs_precision_type, asked.accumulation_type
    taken = *(value.type.element_type for value in op.operands), ir.F32Type.get()
    return types != taken or asked.num_primitive_operations != 1


def stored(w: Side) -> Side:
    """The weights before transposes and conversions that lose nothing: the kernel reads them as they lie."""
    owner = w.value.owner
    if isinstance(owner, ir.Block):
        return w
    source = owner.operands[0] if len(owner.operands) else w.value
    if kind(owner) == "transpose":
        order = list(ir.DenseI64ArrayAttr(owner.attributes["permutation"]))
        moved = {name: [order[dim] for dim in getattr(w, name)] for name in ("batch", "free", "contracting")}
        return stored(Side(value=source, **moved))
    if kind(owner) == "convert" and tensor(w.value.type).dtype in WEIGHTS.get(tensor(source.type).dtype, ()):
        return stored(replace(w, value=source))
    return w


def converted(value: ir.Value, dtype: str) -> ir.Value:
    found = tensor(value.type)
    if found.dtype == dtype:
        return value
    return stablehlo.convert(typed(found.shape, dtype), value)


def arranged(value: ir.Value, groups: list[list[int]], sizes: list[int]) -> ir.Value:
    """The value with its dims in the order of ``groups``, each group as one dim."""
    order = [dim for group in groups for dim in group]
    if order != sorted(order):
        value = stablehlo.transpose(value, ir.DenseI64ArrayAttr.get(order))
    return stablehlo.reshape(typed(sizes, tensor(value.type).dtype), value)


def in_the_order_of(op: ir.Operation, value: ir.Value, x: Side, w: Side, *, swapped: bool) -> ir.Value:
    """The kernel's [batch, m, n] in the shape, order and type of the product's result."""
    shape = [*x.sizes(x.batch), *x.sizes(x.free), *w.sizes(w.free)]
    value = stablehlo.reshape(typed(shape, "f32"), value)
    if swapped:
        batch, rows, columns = len(x.batch), len(x.free), len(w.free)
        order = [*range(batch), *range(batch + rows, batch + rows + columns), *range(batch, batch + rows)]
        value = stablehlo.transpose(value, ir.DenseI64ArrayAttr.get(order))
    return converted(value, tensor(op.results[0].type).dtype)


def typed(shape: list[int] | tuple[int, ...], dtype: str) -> ir.Type:
    return ir.Type.parse(f"tensor<{''.join(f'{size}x' for size in shape)}{dtype}>")
