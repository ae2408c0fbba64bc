"""Attributes that spell out sizes, made those of one core."""

from hlo_passes.ir import ir

__all__ = ["LOCAL_SIZES"]


def _slice_sizes(old: ir.Operation, new: ir.Operation) -> None:
    """Slices that took all of a dim take all of the local dim."""
    whole, local = old.operands[0].type.shape, new.operands[0].type.shape
    taken = list(ir.DenseI64ArrayAttr(old.attributes["slice_sizes"]))
    sizes = [have if take == all_ else take for take, all_, have in zip(taken, whole, local, strict=True)]
    new.attributes["slice_sizes"] = ir.DenseI64ArrayAttr.get(sizes)


def _slice_limits(old: ir.Operation, new: ir.Operation) -> None:
    whole, local = old.operands[0].type.shape, new.operands[0].type.shape
    limits = list(ir.DenseI64ArrayAttr(old.attributes["limit_indices"]))
    sizes = [have if have != all_ else end for end, all_, have in zip(limits, whole, local, strict=True)]
    new.attributes["limit_indices"] = ir.DenseI64ArrayAttr.get(sizes)


def _group_counts(old: ir.Operation, new: ir.Operation) -> None:
    """A convolution in groups of channels has as many fewer groups as it makes fewer channels."""
    layout = str(old.attributes["dimension_numbers"]).split("x[")[1].split("]")[0]
    out = layout.split(", ").index("o")
    for name in ("feature_group_count", "batch_group_count"):
        groups = ir.IntegerAttr(old.attributes[name]).value
        if groups > 1:
            whole, local = old.operands[1].type.shape[out], new.operands[1].type.shape[out]
            new.attributes[name] = ir.IntegerAttr.get(
                ir.IntegerType.get_signless(64), groups * local // whole
            )


# Ops whose attributes spell out sizes.
LOCAL_SIZES = {
    "stablehlo.slice": _slice_limits,
    "stablehlo.dynamic_slice": _slice_sizes,
    "stablehlo.gather": _slice_sizes,
    "stablehlo.convolution": _group_counts,
}
