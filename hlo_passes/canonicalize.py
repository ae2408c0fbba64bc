"""Pass canonicalize: any StableHLO module becomes one ``@main`` of plain, static, deduplicated StableHLO."""

from collections.abc import Callable, Sequence

from hlo_passes.inline import inline_calls
from hlo_passes.ir import ir, main, run_mlir_passes, stablehlo, walk
from hlo_passes.ops import inner_ops, kind
from hlo_passes.reject import DYNAMIC_OPS, reject_annotations, reject_unsupported
from hlo_passes.slices import slice_before_broadcast
from hlo_passes.spec import NoOptions as Options
from kernels.errors import CompileError

__all__ = ["Options", "flatten", "lower", "run"]


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
# On booleans StableHLO's sum is "or" and its product "and"; XLA:CPU would add modulo 2.
_BOOLEAN_OPS = {"stablehlo.add": stablehlo.OrOp, "stablehlo.multiply": stablehlo.AndOp}
_SIMPLIFY = "canonicalize,cse,canonicalize"


def run(module: ir.Module, options: Options) -> None:
    """Makes the module GLOBAL, in place.

    Calls and composites are inlined, ``chlo`` and ``shape`` lowered, quantised types written as integer
    arithmetic, dynamic shapes made static where the module fixes them; dead and repeated ops go.

    Raises:
      CompileError: a host callback, a shape that stays dynamic, an element type the device has no
        substitute for, a GSPMD annotation, or an op that no lowering knows.
    """
    flatten(module)
    lower(module)
    reject_unsupported(module)


def flatten(module: ir.Module) -> None:
    """Inlines all calls and composites into one ``@main``; its ops stay as they were written.

    Raises:
      CompileError: a GSPMD annotation, a recursive or missing function.
    """
    entry = main(module)
    reject_annotations(module)
    # As the pass fold does before: what it leaves out and what goes through all passes must come out alike.
    slice_before_broadcast(module)
    _apply(module, "func.func(stablehlo-legalize-composite-to-call)")
    inline_calls(module, entry)
    with module.context:
        entry.attributes["sym_name"] = ir.StringAttr.get("main")
        entry.attributes["sym_visibility"] = ir.StringAttr.get("public")


def lower(module: ir.Module) -> None:
    """Writes what is no StableHLO op of its own right as such ops, makes shapes static, folds and drops ops.

    Raises:
      CompileError: something no lowering knows.
    """
    if _has(module, _is_dynamic, DYNAMIC_OPS):
        _apply(module, _REFINE)
    # Before the rest is lowered: the arithmetic of quantised types is written with CHLO ops.
    if _has(module, _is_quantized):
        _apply(module, "func.func(stablehlo-legalize-quant-to-math)")
    _apply(module, _LOWER)
    walk(module.operation, _name_boolean_op)
    _apply(module, _SIMPLIFY)


def _apply(module: ir.Module, pipeline: str) -> None:
    try:
        run_mlir_passes(module, pipeline)
    except ir.MLIRError as error:
        raise CompileError(
            f"the module cannot be lowered to StableHLO ({pipeline}): {error}",
            fix="look at the op named above; only static shapes and StableHLO, CHLO and shape ops lower",
        ) from error


def _name_boolean_op(op: ir.Operation) -> None:
    if op.name not in _BOOLEAN_OPS or not _is_boolean(op.results[0].type):
        return
    with ir.InsertionPoint(op), op.location:
        named = _BOOLEAN_OPS[op.name](*op.operands)
    for name in op.attributes:
        named.operation.attributes[name] = op.attributes[name]
    op.results[0].replace_all_uses_with(named.result)
    op.erase()


def _is_dynamic(type_: ir.Type) -> bool:
    return isinstance(type_, ir.ShapedType) and not (type_.has_rank and type_.has_static_shape)


def _is_boolean(type_: ir.Type) -> bool:
    element = type_.element_type if isinstance(type_, ir.ShapedType) else None
    return isinstance(element, ir.IntegerType) and element.width == 1


def _is_quantized(type_: ir.Type) -> bool:
    return "!quant." in str(type_)


def _has(module: ir.Module, holds: Callable[[ir.Type], bool], kinds: Sequence[str] = ()) -> bool:
    """Whether the module has a value whose type ``holds``, or an op of one of ``kinds``."""
    ops = list(inner_ops(module.operation))
    blocks = (block for op in ops for region in op.regions for block in region.blocks)
    types = {value.type for op in ops for value in op.results}
    types |= {argument.type for block in blocks for argument in block.arguments}
    return any(kind(op) in kinds for op in ops) or any(map(holds, types))
