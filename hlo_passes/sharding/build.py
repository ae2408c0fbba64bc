"""Builds StableHLO ops one by one where an insertion point stands."""

from collections.abc import Sequence

from hlo_passes.collective_ops import fill_reducer
from hlo_passes.ir import ir
from hlo_passes.ops import maker

__all__ = ["Builder"]


class Builder:
    """Inserts ops at ``point`` with ``location``."""

    def __init__(self, block: ir.Block) -> None:
        self.location = ir.Location.unknown(block.owner.context)
        self.point = ir.InsertionPoint(block)
        self._inside: set[ir.Operation] = set()  # dynamic slices whose starts need no clamping

    def op(
        self, name: str, operands: Sequence[ir.Value], types: Sequence[ir.Type], *, regions: int = 0,
        **attributes: ir.Attribute | str,
    ) -> ir.Operation:  # fmt: skip
        """Any op by name; attributes may be given as MLIR text."""
        parsed = {k: ir.Attribute.parse(v) if isinstance(v, str) else v for k, v in attributes.items()}
        return ir.Operation.create(
            name, results=list(types), operands=list(operands), attributes=parsed, regions=regions,
            loc=self.location, ip=self.point,
        )  # fmt: skip

    def value(
        self, name: str, operands: Sequence[ir.Value], shape: Sequence[int], element: ir.Type,
        **attributes: ir.Attribute | str,
    ) -> ir.Value:  # fmt: skip
        """An op with one ranked tensor as its result."""
        return self.op(name, operands, [ir.RankedTensorType.get(shape, element)], **attributes).results[0]

    def copy(self, op: ir.Operation, operands: Sequence[ir.Value]) -> ir.Operation:
        """``op`` with other operands."""
        new = op.clone(ip=self.point).operation
        for number, value in enumerate(operands):
            new.operands[number] = value
        return new

    def constant(self, attr: ir.Attribute) -> ir.Value:
        return self.op("stablehlo.constant", [], [attr.type], value=attr).results[0]

    def scalar(self, number: int) -> ir.Value:
        return self.constant(ir.Attribute.parse(f"dense<{number}> : tensor<i32>"))

    def rows(self, count: int) -> ir.Value:
        """The numbers from 0 on, as tensor<count x i32>."""
        return self.value("stablehlo.iota", [], [count], self._i32(), iota_dimension="0 : i64")

    def _i32(self) -> ir.Type:
        return ir.IntegerType.get_signless(32)

    def zero(self, element: ir.Type) -> ir.Value:
        return self._zero(element, "0.0")

    def no_term(self, element: ir.Type) -> ir.Value:
        """What leaves each number it is added to as it is: of floats -0.0, for 0.0 makes 0.0 of -0.0."""
        return self._zero(element, "-0.0")

    def _zero(self, element: ir.Type, number: str) -> ir.Value:
        if isinstance(element, ir.ComplexType):
            part = self._zero(element.element_type, number)
            return self.value("stablehlo.complex", [part, part], [], element)
        text = number if isinstance(element, ir.FloatType) else "false" if str(element) == "i1" else "0"
        return self.constant(ir.Attribute.parse(f"dense<{text}> : tensor<{element}>"))

    def broadcast(self, scalar: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.spread(scalar, shape, ())

    def spread(self, value: ir.Value, shape: Sequence[int], dims: Sequence[int]) -> ir.Value:
        """``broadcast_in_dim``: dim i of ``value`` becomes dim ``dims[i]`` of ``shape``."""
        return self.value(
            "stablehlo.broadcast_in_dim", [value], shape, value.type.element_type,
            broadcast_dimensions=ir.DenseI64ArrayAttr.get(dims),
        )  # fmt: skip

    def convert(self, value: ir.Value, element: ir.Type) -> ir.Value:
        if value.type.element_type == element:
            return value
        return self.value("stablehlo.convert", [value], value.type.shape, element)

    def compare(self, left: ir.Value, right: ir.Value, direction: str) -> ir.Value:
        """Elementwise comparison, for example ``LT``."""
        text = f"#stablehlo<comparison_direction {direction}>"
        bit = ir.IntegerType.get_signless(1)
        return self.value("stablehlo.compare", [left, right], left.type.shape, bit, comparison_direction=text)

    def binary(self, name: str, left: ir.Value, right: ir.Value) -> ir.Value:
        """An elementwise op of two operands of one type, by its short name."""
        return self.value(f"stablehlo.{name}", [left, right], left.type.shape, left.type.element_type)

    def select(self, mask: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
        return self.value("stablehlo.select", [mask, yes, no], yes.type.shape, yes.type.element_type)

    def clamp(self, number: ir.Value, low: int, high: int) -> ir.Value:
        """A tensor<i32> held in ``[low, high]``."""
        return self.value("stablehlo.clamp", [self.scalar(low), number, self.scalar(high)], [], self._i32())

    def concatenate(self, values: Sequence[ir.Value], dim: int) -> ir.Value:
        if len(values) == 1:
            return values[0]
        shape = list(values[0].type.shape)
        shape[dim] = sum(value.type.shape[dim] for value in values)
        element = values[0].type.element_type
        return self.value("stablehlo.concatenate", values, shape, element, dimension=f"{dim} : i64")

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        return self.value("stablehlo.reshape", [value], shape, value.type.element_type)

    def resize(self, value: ir.Value, dim: int, size: int) -> ir.Value:
        """Cuts or zero-pads dim ``dim`` at its end to ``size`` rows."""
        more = size - value.type.shape[dim]
        return self.pad(value, dim, 0, more) if more > 0 else self.cut(value, dim, 0, size)

    def pad(
        self, value: ir.Value, dim: int, low: int, high: int, inner: int = 0, fill: ir.Value | None = None
    ) -> ir.Value:
        """Pads ``dim`` at its beginning and end, and between its rows, with scalar ``fill`` (default 0)."""
        shape, element = list(value.type.shape), value.type.element_type
        sizes = [[n if d == dim else 0 for d in range(len(shape))] for n in (low, high, inner)]
        shape[dim] += low + max(shape[dim] - 1, 0) * inner + high
        low_attr, high_attr, inner_attr = map(ir.DenseI64ArrayAttr.get, sizes)
        return self.value(
            "stablehlo.pad", [value, self.zero(element) if fill is None else fill], shape, element,
            edge_padding_low=low_attr, edge_padding_high=high_attr, interior_padding=inner_attr,
        )  # fmt: skip

    def cut(self, value: ir.Value, dim: int, start: int, end: int) -> ir.Value:
        """The rows of ``dim`` from ``start`` to before ``end``."""
        shape = list(value.type.shape)
        if (start, end) == (0, shape[dim]):
            return value
        starts, ends = [0] * len(shape), list(shape)
        starts[dim], ends[dim], shape[dim] = start, end, end - start
        return self.value(
            "stablehlo.slice", [value], shape, value.type.element_type,
            start_indices=ir.DenseI64ArrayAttr.get(starts), limit_indices=ir.DenseI64ArrayAttr.get(ends),
            strides=ir.DenseI64ArrayAttr.get([1] * len(shape)),
        )  # fmt: skip

    def slice_at(self, value: ir.Value, dim: int, start: ir.Value, rows: int) -> ir.Value:
        """``rows`` rows of one dim from scalar ``start`` on, which is clamped to what there is."""
        self._clamp_starts(value)
        shape = list(value.type.shape)
        shape[dim] = rows
        starts = [start if d == dim else self.zero(start.type.element_type) for d in range(len(shape))]
        return self.value(
            "stablehlo.dynamic_slice", [value, *starts], shape, value.type.element_type,
            slice_sizes=ir.DenseI64ArrayAttr.get(shape),
        )  # fmt: skip

    def _clamp_starts(self, value: ir.Value) -> None:
        """Where a slice is sliced again, XLA adds the two starts before it clamps: clamp the first here."""
        op = maker(value)
        if op is None or op.name != "stablehlo.dynamic_slice" or op in self._inside:
            return
        self._inside.add(op)
        source, taken = op.operands[0].type.shape, value.type.shape
        point, self.point = self.point, ir.InsertionPoint(op)
        for dim, (size, count) in enumerate(zip(source, taken, strict=True)):
            start = op.operands[dim + 1]
            element = start.type.element_type
            limits = [f"dense<{n}> : tensor<{element}>" for n in (0, size - count)]
            low, high = (self.constant(ir.Attribute.parse(text)) for text in limits)
            op.operands[dim + 1] = self.value("stablehlo.clamp", [low, start, high], [], element)
        self.point = point

    def reduce(
        self, value: ir.Value, init: ir.Value, dim: int, shape: Sequence[int], reducer: str
    ) -> ir.Value:
        """Reduces one dim, which leaves ``shape``, with the scalar op ``reducer`` (for example ``add``)."""
        type_ = ir.RankedTensorType.get(shape, value.type.element_type)
        dims = ir.DenseI64ArrayAttr.get([dim])
        op = self.op("stablehlo.reduce", [value, init], [type_], regions=1, dimensions=dims)
        fill_reducer(op, reducer, type_)
        return op.results[0]
