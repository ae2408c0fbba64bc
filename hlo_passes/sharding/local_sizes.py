"""Attributes that spell out sizes, made those of one core."""

from collections.abc import Callable

from hlo_passes.ir import ir
from hlo_passes.sharding.windows import convolution_roles

__all__ = ["LOCAL_SIZES"]


def _all_taken(name: str) -> Callable[[ir.Operation, ir.Operation], None]:
    """Slices that took all of a dim, by attribute ``name``, take all of the local dim."""

    def localize(old: ir.Operation, new: ir.Operation) -> None:
        whole, local = old.operands[0].type.shape, new.operands[0].type.shape
        taken = zip(ir.DenseI64ArrayAttr(old.attributes[name]), whole, local, strict=True)
        new.attributes[name] = ir.DenseI64ArrayAttr.get([own if n == every else n for n, every, own in taken])

    return localize


def _group_counts(old: ir.Operation, new: ir.Operation) -> None:
    """A convolution in groups of channels has as many fewer groups as it makes fewer channels."""
    out = convolution_roles(old)[1].index("o")
    for name in ("feature_group_count", "batch_group_count"):
        groups = ir.IntegerAttr(old.attributes[name]).value
        if groups > 1:
            whole, local = old.operands[1].type.shape[out], new.operands[1].type.shape[out]
            new.attributes[name] = ir.IntegerAttr.get(
                ir.IntegerType.get_signless(64), groups * local // whole
            )


# Ops whose attributes spell out sizes.
LOCAL_SIZES = {
    "stablehlo.slice": _all_taken("limit_indices"),
    "stablehlo.dynamic_slice": _all_taken("slice_sizes"),
    "stablehlo.gather": _all_taken("slice_sizes"),
    "stablehlo.convolution": _group_counts,
}
