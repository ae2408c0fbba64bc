"""Arguments of unknown size get one: what turns a module exported for all sizes into one for some."""

from hlo_passes.canonicalize import flatten
from hlo_passes.ir import ir, main, stablehlo
from hlo_passes.signature import write_signature

__all__ = ["fix_sizes"]


def fix_sizes(module: ir.Module, size: int) -> None:
    """Every ``?`` of the entry function's arguments becomes ``size``; ``canonicalize`` does the rest.

    A module with such an argument takes the sizes themselves as integer scalars: these become constants,
    ``size`` as well, and stay arguments that nothing reads. A module without stays as it is.
    """
    if all(ir.ShapedType(argument.type).has_static_shape for argument in main(module).arguments):
        return
    flatten(module)  # a call would still expect the unknown sizes
    function = main(module)
    block = function.regions[0].blocks[0]
    with module.context, ir.Location.unknown():
        for argument in list(block.arguments):
            known = ir.RankedTensorType(argument.type)
            dims = range(known.rank)
            shape = [size if known.is_dynamic_dim(dim) else known.get_dim_size(dim) for dim in dims]
            fixed = ir.RankedTensorType.get(shape, known.element_type)
            argument.set_type(fixed)
            if not shape and isinstance(known.element_type, ir.IntegerType) and known.element_type.width > 1:
                number = ir.IntegerAttr.get(known.element_type, size)
                with ir.InsertionPoint.at_block_begin(block):
                    constant = stablehlo.ConstantOp(ir.DenseElementsAttr.get_splat(fixed, number))
                argument.replace_all_uses_with(constant.result)
        write_signature(function, {})  # an argument may be a result
