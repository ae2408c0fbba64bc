"""Pass canonicalize: any StableHLO module becomes one ``@main`` of plain, static, deduplicated StableHLO."""

from collections.abc import Callable
from dataclasses import dataclass

from hlo_passes.inline import inline_calls
from hlo_passes.ir import ir, main, run_mlir_passes, walk
from hlo_passes.reject import reject_annotations, reject_unsupported
from kernels.errors import CompileError

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Canonicalize has nothing to choose."""


# Everything that is not a StableHLO op of its own right becomes some.
_LOWER = (
    "func.func(chlo-legalize-to-stablehlo,shape-legalize-to-stablehlo,"
    "stablehlo-legalize-deprecated-ops{fail-on-unused=false},mhlo-flatten-tuple)"
)
# Shapes first spread forward from what is known, then ops that asked for them at run time become static.
_REFINE = (
    "stablehlo-refine-shapes,func.func(shape-legalize-to-stablehlo,stablehlo-canonicalize-dynamism,"
    "stablehlo-check-shape-assertions),stablehlo-refine-shapes"
)
_SIMPLIFY = "canonicalize,cse,canonicalize"


def run(module: ir.Module, options: Options) -> None:
    """Makes the module GLOBAL, in place.

    Calls and composites are inlined, ``chlo`` and ``shape`` lowered, quantised types written as integer
    arithmetic, dynamic shapes made static where the module fixes them; dead and repeated ops go.

    Raises:
      CompileError: a host callback, a shape that stays dynamic, an element type the device has no
        substitute for, a GSPMD annotation, or an op that no lowering knows.
    """
    entry = main(module)
    reject_annotations(module)
    _apply(module, "func.func(stablehlo-legalize-composite-to-call)")
    inline_calls(module, entry)
    with module.context:
        entry.attributes["sym_name"] = ir.StringAttr.get("main")
        entry.attributes["sym_visibility"] = ir.StringAttr.get("public")
    if _any_type(module, _is_dynamic):
        _apply(module, _REFINE)
    # Before the rest is lowered: the arithmetic of quantised types is written with CHLO ops.
    if _any_type(module, lambda t: "!quant." in str(t)):
        _apply(module, "func.func(stablehlo-legalize-quant-to-math)")
    _apply(module, _LOWER)
    _apply(module, _SIMPLIFY)
    reject_unsupported(module)


def _apply(module: ir.Module, pipeline: str) -> None:
    try:
        run_mlir_passes(module, pipeline)
    except ir.MLIRError as error:
        raise CompileError(
            f"the module cannot be lowered to StableHLO ({pipeline}): {error}",
            fix="look at the op named above; only static shapes and StableHLO, CHLO and shape ops lower",
        ) from error


def _is_dynamic(type_: ir.Type) -> bool:
    return isinstance(type_, ir.ShapedType) and not (type_.has_rank and type_.has_static_shape)


def _any_type(module: ir.Module, holds: Callable[[ir.Type], bool]) -> bool:
    """Whether any value of the module has such a type."""
    seen: dict[ir.Type, bool] = {}

    def see(op: ir.Operation) -> None:
        values = [*op.results, *(a for region in op.regions for b in region.blocks for a in b.arguments)]
        for value in values:
            if value.type not in seen:
                seen[value.type] = holds(value.type)

    walk(module.operation, see)
    return any(seen.values())
