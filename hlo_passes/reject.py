"""What no pass can compile, as tables, and the error each gets: host transfers, dynamic shapes, types."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from hlo_passes.ir import ir, source_line, walk
from kernels.dtypes import dtype
from kernels.errors import CompileError

__all__ = [
    "DYNAMIC_OPS",
    "HOST_OPS",
    "argument_attributes",
    "refusals",
    "reject_annotations",
    "reject_unsupported",
]


@dataclass(frozen=True, kw_only=True)
class _CustomCall:
    """Custom calls whose target matches ``target``: why they cannot run on the device, and what to do."""

    target: re.Pattern[str]
    why: str
    fix: str


_CALLBACK_FIX = (
    "call it outside the compiled function: return the values and print, check or record them on the host "
    "(jax.debug.print, jax.pure_callback, io_callback and checkify make host callbacks)"
)
_GSPMD_FIX = "export with Shardy (jax_use_shardy_partitioner, JAX's default), or drop the annotation"

_CUSTOM_CALLS = (
    _CustomCall(
        target=re.compile(r"xla_.*callback"),
        why="a host callback; a NeuronCore cannot call Python",
        fix=_CALLBACK_FIX,
    ),
    _CustomCall(
        target=re.compile(r"Sharding|SPMDFullToShardShape|SPMDShardToFullShape"),
        why="a sharding annotation of the GSPMD partitioner; this compiler reads Shardy's",
        fix=_GSPMD_FIX,
    ),
    _CustomCall(
        target=re.compile(r"annotate_device_placement|MoveToHost|MoveToDevice"),
        why="a transfer between host and device memory inside the program",
        fix="keep the value in device memory: do not set a memory kind in its sharding",
    ),
)

HOST_OPS = ("infeed", "outfeed", "send", "recv")
DYNAMIC_OPS = (
    "dynamic_broadcast_in_dim", "dynamic_conv", "dynamic_gather", "dynamic_iota", "dynamic_pad",
    "dynamic_reshape", "get_dimension_size", "real_dynamic_slice", "set_dimension_size",
)  # fmt: skip
_DYNAMIC_FIX = (
    "compile for concrete shapes: pass arguments (or jax.ShapeDtypeStruct) without symbolic dimensions, and "
    "pad to a few bucket sizes where sizes vary"
)
# GSPMD shardings that say nothing but "whole on every device".
_TRIVIAL_SHARDINGS = ("", "{replicated}", "{manual}")


def reject_annotations(module: ir.Module) -> None:
    """Raises CompileError where a GSPMD sharding would be lost without a word."""

    def check(op: ir.Operation) -> None:
        for attributes in [op.attributes, *argument_attributes(op)]:
            if "mhlo.sharding" not in attributes:
                continue
            sharding = attributes["mhlo.sharding"]
            if not isinstance(sharding, ir.StringAttr) or sharding.value not in _TRIVIAL_SHARDINGS:
                raise _error(op, f"carries the GSPMD sharding {sharding}", _GSPMD_FIX)

    walk(module.operation, check)
    trivial: list[ir.Operation] = []
    walk(module.operation, lambda op: trivial.append(op) if _is_trivial_annotation(op) else None)
    for op in trivial:
        op.results[0].replace_all_uses_with(op.operands[0])
        op.erase()


def _is_trivial_annotation(op: ir.Operation) -> bool:
    if op.name != "stablehlo.custom_call" or op.attributes["call_target_name"].value != "Sharding":
        return False
    return "mhlo.sharding" not in op.attributes or op.attributes["mhlo.sharding"].value in _TRIVIAL_SHARDINGS


def argument_attributes(op: ir.Operation) -> list[ir.DictAttr]:
    """The attributes of each argument and result of a function; none of any other op."""
    if op.name != "func.func":
        return []
    return [one for key in ("arg_attrs", "res_attrs") if key in op.attributes for one in op.attributes[key]]


def reject_unsupported(module: ir.Module) -> None:
    """Raises CompileError for the first op (innermost, in program order) that cannot be compiled."""
    error = next(refusals(module), None)
    if error is not None:
        try:
            raise error
        finally:
            del error  # a frame that holds its own exception keeps alive all that the traceback reaches


def refusals(module: ir.Module) -> Iterator[CompileError]:
    """What stops the compiler at each op, innermost first, in program order."""
    seen: dict[ir.Type, tuple[str, str] | None] = {}
    ops: list[ir.Operation] = []
    walk(module.operation, ops.append)
    for op in ops:
        dialect, _, kind = op.name.partition(".")
        if dialect not in ("stablehlo", "sdy", "func"):
            yield _error(op, "has no lowering to StableHLO", "write it in StableHLO or CHLO ops")
        if kind in HOST_OPS:
            yield _error(op, "a transfer to or from the host inside the program", _CALLBACK_FIX)
        if kind in DYNAMIC_OPS:
            yield _error(op, "a shape known only at run time (NCC_EMOD025)", _DYNAMIC_FIX)
        if kind == "custom_call":
            yield from _custom_call_refusals(op)
        for type_ in _types(op):
            if type_ not in seen:
                seen[type_] = _complaint(type_)
            if seen[type_] is not None:
                yield _error(op, *seen[type_])


_DTYPE_FIX = "convert to a type the device has (neuronx hw lists them), for example f32, bf16, f8E4M3 or i32"


def _types(op: ir.Operation) -> list[ir.Type]:
    types = [result.type for result in op.results]
    return types + [a.type for region in op.regions for b in region.blocks for a in b.arguments]


def _complaint(type_: ir.Type) -> tuple[str, str] | None:
    """Why no value may have ``type_``, and what to do about it."""
    if isinstance(type_, ir.TupleType):
        return f"has the tuple type {type_}", "use several results in place of a tuple"
    if str(type_) == "!stablehlo.token":
        return "orders side effects by a token, and the device has no side effects", _CALLBACK_FIX
    if not isinstance(type_, ir.ShapedType):
        return None
    if not (type_.has_rank and type_.has_static_shape):
        return f"has shape {type_}, which is not static (NCC_EMOD025)", _DYNAMIC_FIX
    element = dtype(str(type_.element_type))
    return (
        (f"has element type {element.name}: {element.note}", _DTYPE_FIX)
        if element.support == "rejected"
        else None
    )


def _custom_call_refusals(op: ir.Operation) -> Iterator[CompileError]:
    target = op.attributes["call_target_name"].value
    for row in _CUSTOM_CALLS:
        if row.target.fullmatch(target):
            yield _error(op, f"@{target} is {row.why}", row.fix)
    if "called_computations" in op.attributes and len(op.attributes["called_computations"]):
        yield _error(
            op,
            f"@{target} calls a function of the module, and no kernel does that (NCC_EHCA005)",
            "write it in JAX's own ops, for example jax.lax.top_k in place of jax.lax.approx_max_k",
        )


def _error(op: ir.Operation, message: str, fix: str) -> CompileError:
    return CompileError(message, op=op.name, location=source_line(op), fix=fix)
