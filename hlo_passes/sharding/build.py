"""Builds StableHLO ops one by one where an insertion point stands."""

from collections.abc import Sequence

from hlo_passes.ir import ir

__all__ = ["Builder", "i64s"]


class Builder:
    """Inserts ops at ``point`` with ``location``."""

    def __init__(self, block: ir.Block) -> None:
        self.location = ir.Location.unknown(block.owner.context)
        self.point = ir.InsertionPoint(block)
        self._inside: set[ir.Operation] = set()  # dynamic slices whose starts need no clamping

    def op(
        self, name: str, operands: Sequence[ir.Value], types: Sequence[ir.Type], **attributes: str
    ) -> ir.Operation:
        """Any op by name; attributes are given as MLIR text."""
        parsed = {key: ir.Attribute.parse(text) for key, text in attributes.items()}
        return ir.Operation.create(
            name,
            results=list(types),
            operands=list(operands),
            attributes=parsed,
            loc=self.location,
            ip=self.point,
        )

    def value(
        self,
        name: str,
        operands: Sequence[ir.Value],
        shape: Sequence[int],
        element: ir.Type,
        **attributes: str,
    ) -> ir.Value:
        """An op with one ranked tensor as its result."""
        return self.op(name, operands, [ir.RankedTensorType.get(shape, element)], **attributes).results[0]

    def constant(self, attr: ir.Attribute) -> ir.Value:
        return ir.Operation.create(
            "stablehlo.constant",
            results=[attr.type],
            attributes={"value": attr},
            loc=self.location,
            ip=self.point,
        ).results[0]

    def scalar(self, number: int) -> ir.Value:
        return self.constant(ir.Attribute.parse(f"dense<{number}> : tensor<i32>"))

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
        element = value.type.element_type
        return self.value(
            "stablehlo.broadcast_in_dim", [value], shape, element, broadcast_dimensions=i64s(dims)
        )

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

    def resize(self, value: ir.Value, dim: int, size: int) -> ir.Value:
        """Cuts or zero-pads dim ``dim`` at its end to ``size`` rows."""
        shape = list(value.type.shape)
        zeros, more = [0] * len(shape), size - shape[dim]
        if more > 0:
            return self.pad(value, zeros, [more if d == dim else 0 for d in range(len(shape))])
        shape[dim] = size
        return self.cut(value, zeros, shape) if more else value

    def pad(
        self, value: ir.Value, low: Sequence[int], high: Sequence[int], inner: Sequence[int] = (),
        fill: ir.Value | None = None,
    ) -> ir.Value:  # fmt: skip
        """Pads each dim at its beginning and end, and between its rows, with scalar ``fill`` (default 0)."""
        inner = inner or [0] * len(low)
        sizes = zip(low, value.type.shape, inner, high, strict=True)
        shape = [a + size + max(size - 1, 0) * gap + b for a, size, gap, b in sizes]
        element = value.type.element_type
        return self.value(
            "stablehlo.pad", [value, self.zero(element) if fill is None else fill], shape, element,
            edge_padding_low=i64s(low), edge_padding_high=i64s(high), interior_padding=i64s(inner),
        )  # fmt: skip

    def cut(self, value: ir.Value, start: Sequence[int], end: Sequence[int]) -> ir.Value:
        """The rows from ``start`` to before ``end`` of each dim."""
        return self.value(
            "stablehlo.slice",
            [value],
            [b - a for a, b in zip(start, end, strict=True)],
            value.type.element_type,
            start_indices=i64s(start),
            limit_indices=i64s(end),
            strides=i64s([1] * len(start)),
        )

    def slice_at(self, value: ir.Value, dim: int, start: ir.Value, rows: int) -> ir.Value:
        """``rows`` rows of one dim from scalar ``start`` on, which is clamped to what there is."""
        self._clamp_starts(value)
        shape = list(value.type.shape)
        shape[dim] = rows
        starts = [start if d == dim else self._zero_like(start) for d in range(len(shape))]
        return self.value(
            "stablehlo.dynamic_slice", [value, *starts], shape, value.type.element_type,
            slice_sizes=i64s(shape),
        )  # fmt: skip

    def _clamp_starts(self, value: ir.Value) -> None:
        """Where a slice is sliced again, XLA adds the two starts before it clamps: clamp the first here."""
        if isinstance(value.owner, ir.Block):
            return
        op = value.owner.operation
        if op.name != "stablehlo.dynamic_slice" or op in self._inside:
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

    def _zero_like(self, scalar: ir.Value) -> ir.Value:
        return self.zero(scalar.type.element_type)

    def reduce(
        self, value: ir.Value, init: ir.Value, dim: int, shape: Sequence[int], reducer: str
    ) -> ir.Value:
        """Reduces one dim, which leaves ``shape``, with the scalar op ``reducer``."""
        element = value.type.element_type
        op = ir.Operation.create(
            "stablehlo.reduce", results=[ir.RankedTensorType.get(shape, element)], operands=[value, init],
            attributes={"dimensions": ir.DenseI64ArrayAttr.get([dim])}, regions=1, loc=self.location,
            ip=self.point,
        )  # fmt: skip
        self._fill_reducer(op, element, reducer)
        return op.results[0]

    def _fill_reducer(self, op: ir.Operation, element: ir.Type, reducer: str) -> None:
        scalar = ir.RankedTensorType.get([], element)
        block = op.regions[0].blocks.append(scalar, scalar, arg_locs=[self.location] * 2)
        with ir.InsertionPoint(block), self.location:
            both = ir.Operation.create(reducer, results=[scalar], operands=list(block.arguments))
            ir.Operation.create("stablehlo.return", operands=[both.results[0]])


def i64s(numbers: Sequence[int]) -> str:
    """Numbers of dims as the text of an attribute."""
    return f"array<i64: {', '.join(map(str, numbers))}>" if numbers else "array<i64>"
