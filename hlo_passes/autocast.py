"""Pass autocast: neuronx-cc's --auto-cast, and the device's own accumulation in f32 made explicit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from hlo_passes.activations import activations
from hlo_passes.ir import ir, main, run_mlir_passes, stablehlo
from hlo_passes.ops import TF32, is_tf32, kind, maker, operations, splat

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``mode`` says which f32 ops are cast, ``type`` to what; names and defaults are neuronx-cc's."""

    mode: Literal["none", "matmult", "all"] = "none"
    type: Literal["bf16", "fp16", "tf32", "fp8_e4m3"] = "bf16"


_ELEMENT_TYPES: dict[str, Callable[[], ir.Type]] = {
    "bf16": ir.BF16Type.get,
    "fp16": ir.F16Type.get,
    "fp8_e4m3": ir.Float8E4M3Type.get,
}

_PRODUCTS = {"stablehlo.dot_general", "stablehlo.convolution"}
_REDUCTIONS = {"stablehlo.reduce", "stablehlo.reduce_window"}
_SUMMING = {"stablehlo.add", "stablehlo.multiply"}
# What the body of a sum may hold for its types to be exchanged in place: ops of one type throughout.
_ONE_TYPE = _SUMMING | {"stablehlo.maximum", "stablehlo.minimum", "stablehlo.return"}
_CONTROL_FLOW = {"stablehlo.while", "stablehlo.case", "stablehlo.if", "sdy.manual_computation"}
# Ops that move f32 values without computing: narrowing pays in bytes, and tf32 has none to save.
_MOVES = {
    "stablehlo.all_gather", "stablehlo.all_to_all", "stablehlo.broadcast_in_dim",
    "stablehlo.collective_broadcast", "stablehlo.collective_permute", "stablehlo.concatenate",
    "stablehlo.dynamic_slice", "stablehlo.dynamic_update_slice", "stablehlo.gather", "stablehlo.pad",
    "stablehlo.reshape", "stablehlo.reverse", "stablehlo.select", "stablehlo.slice", "stablehlo.transpose",
}  # fmt: skip
# --auto-cast all leaves these alone: their f32 was asked for by name, or has no narrow form.
_NOT_CAST = {
    "stablehlo.bitcast_convert", "stablehlo.cholesky", "stablehlo.convert", "stablehlo.custom_call",
    "stablehlo.optimization_barrier", "stablehlo.reduce_precision", "stablehlo.return", "stablehlo.rng",
    "stablehlo.triangular_solve",
}  # fmt: skip


def run(module: ir.Module, options: Options) -> None:
    """Rewrites products and sums to the arithmetic the device does, in place.

    Products of bf16, f16 and fp8 give f32 and are rounded once when written; so are sums and products
    along dims. Under ``matmult`` the f32 operands of products are cast to ``type``; under ``all`` every
    other f32 op computes in it too, but for the steps of one activation of the scalar engine, which is f32
    inside. ``tf32`` rounds operands and keeps them f32. The types of ``@main`` do not change.
    """
    with module.context, ir.Location.unknown():
        narrow = _Narrow(options.type)
        for op, role in _roles(main(module).operation, options.mode):
            if role is not None:
                narrow.activation(op, role)
            elif op.name in _PRODUCTS:
                if options.mode != "none":
                    narrow.operands(op)
                _widen_results(op)
            elif op.name in _REDUCTIONS:
                if _is_low_precision_sum(op):
                    _accumulate_in_f32(op)
                if options.mode == "all":
                    narrow.reduction(op)
            elif options.mode == "all" and op.name == "stablehlo.convert":
                _take_back(op)
            elif options.mode == "all" and op.name.startswith("stablehlo."):
                narrow.whole(op)
    run_mlir_passes(module, "canonicalize,cse")


def _device_ops(op: ir.Operation) -> Iterator[ir.Operation]:
    """Ops that run as such; not the scalar bodies of reductions, sorts and the like."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                if inner.operation.name in _CONTROL_FLOW:
                    yield from _device_ops(inner.operation)


@dataclass(frozen=True, kw_only=True)
class _Role:
    """Of an op of one activation: which operands come from outside, and whether its result leaves."""

    entering: tuple[int, ...]
    leaves: bool


def _roles(function: ir.Operation, mode: str) -> list[tuple[ir.Operation, _Role | None]]:
    """All ops, and their part in an activation under ``all``; what repeats its constants has one too.

    Found before anything is rewritten: the hash of an op follows its operands.
    """
    ops = list(_device_ops(function))
    if mode != "all":
        return [(op, None) for op in ops]
    roots: set[ir.Operation] = set()
    inside: set[ir.Operation] = set()
    for block in {op.block for op in ops}:
        found = activations(block)
        roots, inside = roots | found[0], inside | found[1]
    makers = {maker(operand) for op in roots | inside for operand in op.operands}
    inside |= {op for op in makers if op is not None and _is_constant(op)}
    members = roots | inside

    def enters(value: ir.Value) -> bool:
        op = maker(value)
        return _is_f32(value) and (op is None or not (op in inside or _is_constant(op)))

    def role(op: ir.Operation) -> _Role | None:
        if op not in members or op.name in _NOT_CAST or not _is_f32(op.results[0]):
            return None
        entering = tuple(index for index, operand in enumerate(op.operands) if enters(operand))
        return _Role(entering=entering, leaves=op in roots)

    return [(op, role(op)) for op in ops]


def _is_constant(op: ir.Operation) -> bool:
    """A constant of one number, or one that repeats it."""
    if op.name == "stablehlo.broadcast_in_dim":
        return splat(op.operands[0]) is not None
    return splat(op.results[0]) is not None


def _element(value: ir.Value) -> ir.Type | None:
    return value.type.element_type if isinstance(value.type, ir.RankedTensorType) else None


def _is_f32(value: ir.Value) -> bool:
    return isinstance(_element(value), ir.F32Type)


def _is_low_precision(value: ir.Value) -> bool:
    element = _element(value)
    return isinstance(element, ir.BF16Type | ir.F16Type) or str(element).startswith("f8")


def _with_element(value: ir.Value, element: ir.Type) -> ir.Type:
    shaped = ir.RankedTensorType(value.type)
    return ir.RankedTensorType.get(shaped.shape, element, shaped.encoding)


def _convert(value: ir.Value, element: ir.Type, like: ir.Operation) -> ir.Value:
    """``value`` as ``element`` at the current insertion point; narrowing takes back an earlier widening."""
    source = _converted_from(value)
    if _is_f32(value) and source is not None and _element(source) == element:
        return source
    number = splat(value)
    if number is not None:
        constant = ir.DenseElementsAttr.get_splat(
            _with_element(value, element), ir.FloatAttr.get(element, number)
        )
        return stablehlo.ConstantOp(constant, loc=like.location).result
    converted = stablehlo.ConvertOp(_with_element(value, element), value, loc=like.location)
    return converted.result


def _take_back(op: ir.Operation) -> None:
    """Drops a cast of the program's own that undoes the widening of what is narrow by now."""
    source = _converted_from(op.operands[0])
    if _is_f32(op.operands[0]) and source is not None and source.type == op.results[0].type:
        op.results[0].replace_all_uses_with(source)


def _converted_from(value: ir.Value) -> ir.Value | None:
    op = maker(value)
    return op.operands[0] if op is not None and kind(op) == "convert" else None


def _retype_result(op: ir.Operation, result: ir.Value, element: ir.Type) -> None:
    """Makes ``op`` give ``element``, and its users what they had, through one convert."""
    outer = _element(result)
    result.set_type(_with_element(result, element))
    with ir.InsertionPoint.after(op):
        back = stablehlo.ConvertOp(_with_element(result, outer), result, loc=op.location)
    if "sdy.sharding" in op.attributes:
        back.operation.attributes["sdy.sharding"] = op.attributes["sdy.sharding"]
    result.replace_all_uses_except(back.result, back.operation)


def _widen_results(op: ir.Operation) -> None:
    for result in op.results:
        if _is_low_precision(result):
            _retype_result(op, result, ir.F32Type.get())


def _is_low_precision_sum(op: ir.Operation) -> bool:
    body = operations(op.regions[0].blocks[0])
    return (
        any(_is_low_precision(operand) for operand in op.operands)
        and all(inner.name in _ONE_TYPE for inner in body)
        and any(inner.name in _SUMMING and _is_low_precision(inner.results[0]) for inner in body)
    )


def _accumulate_in_f32(op: ir.Operation) -> None:
    """Rebuilds a low-precision sum with f32 operands, body and results."""
    f32 = ir.F32Type.get()
    with ir.InsertionPoint(op):
        for index, operand in enumerate(list(op.operands)):
            if _is_low_precision(operand):
                op.operands[index] = _convert(operand, f32, op)
    block = op.regions[0].blocks[0]
    inside = [*block.arguments, *(result for inner in block.operations for result in inner.operation.results)]
    for value in inside:
        if _is_low_precision(value):
            value.set_type(_with_element(value, f32))
    _widen_results(op)


class _Narrow:
    """Casts f32 values to one ``--auto-cast-type``."""

    def __init__(self, type_: str) -> None:
        self.element = _ELEMENT_TYPES[type_]() if type_ in _ELEMENT_TYPES else None

    def operands(self, op: ir.Operation, count: int | None = None) -> None:
        """Narrows the (first ``count``) f32 operands of ``op``."""
        with ir.InsertionPoint(op):
            for index, operand in enumerate(list(op.operands)[:count]):
                if _is_f32(operand):
                    op.operands[index] = self._value(operand, op)

    def _value(self, value: ir.Value, op: ir.Operation) -> ir.Value:
        if self.element is not None:
            return _convert(value, self.element, op)
        if is_tf32(value):
            return value
        return stablehlo.reduce_precision(value, **TF32, loc=op.location)

    def whole(self, op: ir.Operation) -> None:
        """Lets ``op`` compute in the narrow type: operands cast, results cast back to f32."""
        values = [*op.operands, *op.results]
        if op.name in _NOT_CAST or len(op.regions) or any(_is_complex(value) for value in values):
            return
        if not any(_is_f32(operand) for operand in op.operands):
            return
        if self.element is None:
            if op.name not in _MOVES:
                self.operands(op)
            return
        self.operands(op)
        for result in op.results:
            if _is_f32(result):
                _retype_result(op, result, self.element)

    def activation(self, op: ir.Operation, role: _Role) -> None:
        """Rounds what an op of an activation reads of others and what it hands on; it computes in f32."""
        with ir.InsertionPoint(op):
            for index in role.entering:
                rounded = self._value(op.operands[index], op)
                # What is rounded to tf32 is f32 already.
                is_wide = self.element is None
                op.operands[index] = rounded if is_wide else _convert(rounded, ir.F32Type.get(), op)
        if role.leaves and self.element is not None and not self._is_rounded_by_users(op.results[0]):
            self._round_result(op, op.results[0])

    def reduction(self, op: ir.Operation) -> None:
        """Rounds what a reduction reads and writes; in between it accumulates in f32 as the device does."""
        count = len(op.operands) // 2
        self.operands(op, count)
        if self.element is None:
            return
        with ir.InsertionPoint(op):
            for index, operand in enumerate(list(op.operands)[:count]):
                if _element(operand) == self.element:
                    op.operands[index] = _convert(operand, ir.F32Type.get(), op)
        for result in op.results:
            if _is_f32(result) and not self._is_rounded_by_users(result):
                self._round_result(op, result)

    def _is_rounded_by_users(self, value: ir.Value) -> bool:
        users = [use.owner.operation for use in value.uses]
        return all(op.name == "stablehlo.convert" and _element(op.results[0]) == self.element for op in users)

    def _round_result(self, op: ir.Operation, result: ir.Value) -> None:
        with ir.InsertionPoint.after(op):
            rounded = stablehlo.ConvertOp(_with_element(result, self.element), result, loc=op.location)
            back = stablehlo.ConvertOp(result.type, rounded.result, loc=op.location)
        result.replace_all_uses_except(back.result, rounded.operation)


def _is_complex(value: ir.Value) -> bool:
    return isinstance(_element(value), ir.ComplexType)
