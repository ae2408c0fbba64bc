"""Slices of what was broadcast become smaller broadcasts: layers that each take a row become equal."""

from collections.abc import Sequence

from hlo_passes.ir import ir, stablehlo, walk
from hlo_passes.ops import kind, maker

__all__ = ["slice_before_broadcast"]

_OWN = frozenset({"start_indices", "limit_indices", "strides"})


def slice_before_broadcast(module: ir.Module) -> None:
    """Replaces every slice along dims that a broadcast made, also of a converted one, in all functions."""
    with module.context:
        walk(module.operation, _shrink)


def _shrink(op: ir.Operation) -> None:
    if op.name != "stablehlo.slice" or {*op.attributes} != _OWN:
        return
    with ir.InsertionPoint(op), op.location:
        smaller = _part(op.operands[0], op.results[0].type.shape)
    if smaller is not None:
        op.results[0].replace_all_uses_with(smaller)
        op.erase()


def _part(value: ir.Value, shape: Sequence[int]) -> ir.Value | None:
    """What a slice to ``shape`` leaves of ``value``; None where that depends on where it begins."""
    made = maker(value)
    if made is None or kind(made) not in ("broadcast_in_dim", "convert"):
        return None
    source = made.operands[0]
    part_type = ir.RankedTensorType.get(shape, value.type.element_type)
    if kind(made) == "convert":
        part = _part(source, shape)
        return None if part is None else stablehlo.ConvertOp(part_type, part).result
    dims = list(ir.DenseI64ArrayAttr(made.attributes["broadcast_dimensions"]))
    if not all(one.has_static_shape for one in (source.type, value.type, part_type)):
        return None
    sizes = zip(source.type.shape, dims, strict=True)
    keeps = all(size == 1 or value.type.shape[dim] == shape[dim] for size, dim in sizes)
    return stablehlo.BroadcastInDimOp(part_type, source, dims).result if keeps else None
