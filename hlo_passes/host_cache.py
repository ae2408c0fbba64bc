"""Which products may read a part of a cache only: scores under a mask, and sums weighted by a softmax."""

from hlo_passes.ir import func, ir
from hlo_passes.ops import KERNEL_PREFIX, inner_ops, is_composite, kind, tensor

__all__ = ["mask_of_columns", "softmax_results"]


def softmax_results(module: ir.Module) -> frozenset[ir.Value]:
    """The arguments of decompositions that are the result of a softmax wherever the kernel is called."""
    calls: dict[str, list[ir.Operation]] = {}
    for op in inner_ops(module.operation):
        if is_composite(op):
            calls.setdefault(op.attributes["decomposition"].value, []).append(op)
    return frozenset(
        argument
        for function in module.body.operations
        if isinstance(function, func.FuncOp) and function.name.value in calls
        for number, argument in enumerate(function.arguments)
        if all(_is_softmax(call.operands[number]) for call in calls[function.name.value])
    )


def _is_softmax(value: ir.Value) -> bool:
    owner = value.owner
    return (
        not isinstance(owner, ir.Block)
        and is_composite(owner)
        and owner.attributes["name"].value == f"{KERNEL_PREFIX}softmax"
    )


def mask_of_columns(product: ir.Value) -> ir.Value | None:
    """The i1 value with one dim of more than one element, if any, that says which columns somebody looks at.

    All that reads the product takes another value where the mask, the same for all rows, is false.
    """
    masks = set()
    for use in product.uses:
        if kind(use.owner) != "select" or use.operand_number != 1:
            return None
        masks.add(_same_for_all_rows(use.owner.operands[0]))
    return masks.pop() if len(masks) == 1 else None


def _same_for_all_rows(value: ir.Value) -> ir.Value | None:
    """The row that ``value`` repeats, in whatever shape it was before, or None where rows may differ."""
    shape = tensor(value.type).shape
    if not shape:
        return None
    columns, dim = shape[-1], len(shape) - 1
    while (owner := value.owner) and not isinstance(owner, ir.Block) and len(owner.operands):
        shape, source_shape = tensor(value.type).shape, tensor(owner.operands[0].type).shape
        if kind(owner) == "broadcast_in_dim":
            dims = list(ir.DenseI64ArrayAttr(owner.attributes["broadcast_dimensions"]))
            found = dims.index(dim) if dim in dims else len(dims)
        elif kind(owner) == "reshape" and dim == len(shape) - 1:
            found = len(source_shape) - 1
        else:
            break
        if source_shape[found : found + 1] != (columns,):
            break
        value, dim = owner.operands[0], found
    return value if tensor(value.type).size == columns else None
