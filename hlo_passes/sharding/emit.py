"""Builds the ops of the LOCAL level: which shard am I, masks over padding, slices, collectives."""

from collections.abc import Sequence

import numpy as np

from distributed.mesh import Mesh
from hlo_passes.ir import ir

__all__ = ["Emitter"]


class Emitter:
    """Inserts ops at ``point`` with ``location``; ``mesh`` says how ranks map to shards."""

    def __init__(self, mesh: Mesh, entry: ir.Block) -> None:
        self.mesh = mesh
        self._entry = entry
        self._index: dict[tuple[str, ...], ir.Value] = {}
        self.location = ir.Location.unknown(entry.owner.context)
        self.point = ir.InsertionPoint(entry)

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

    def index(self, axes: tuple[str, ...]) -> ir.Value:
        """The shard number of this core along ``axes`` as tensor<i32>; computed once, at main's entry."""
        if axes not in self._index:
            point, self.point = self.point, ir.InsertionPoint.at_block_begin(self._entry)
            self._index[axes] = self._emit_index(axes)
            self.point = point
        return self._index[axes]

    def _emit_index(self, axes: tuple[str, ...]) -> ir.Value:
        i32 = ir.IntegerType.get_signless(32)
        rank = self.value("stablehlo.replica_id", [], [], ir.IntegerType.get_unsigned(32))
        rank = self.value("stablehlo.convert", [rank], [], i32)
        numbers = [self.mesh.index(r, axes) for r in range(self.mesh.num_ranks)]
        if numbers == list(range(len(numbers))):
            return rank
        table = self.constant(ir.DenseElementsAttr.get(np.array(numbers, np.int32)))
        one = self.value("stablehlo.dynamic_slice", [table, rank], [1], i32, slice_sizes="array<i64: 1>")
        return self.value("stablehlo.reshape", [one], [], i32)

    def offset(self, axes: tuple[str, ...], local: int) -> ir.Value:
        """Where this core's block of ``local`` rows begins, as tensor<i32>."""
        return self.value("stablehlo.multiply", [self.index(axes), self.scalar(local)], [], self._i32())

    def _i32(self) -> ir.Type:
        return ir.IntegerType.get_signless(32)

    def broadcast(self, scalar: ir.Value, shape: Sequence[int]) -> ir.Value:
        element = scalar.type.element_type
        return self.value(
            "stablehlo.broadcast_in_dim", [scalar], shape, element, broadcast_dimensions="array<i64>"
        )

    def fill_padding(
        self, value: ir.Value, dim: int, axes: tuple[str, ...], size: int, fill: ir.Value
    ) -> ir.Value:
        """``value`` with its rows of dim ``dim`` beyond global row ``size`` set to scalar ``fill``."""
        shape = value.type.shape
        rows = self.value("stablehlo.iota", [], [shape[dim]], self._i32(), iota_dimension="0 : i64")
        end = self.value(
            "stablehlo.subtract", [self.scalar(size), self.offset(axes, shape[dim])], [], self._i32()
        )
        inside = self.value(
            "stablehlo.compare", [rows, self.broadcast(end, [shape[dim]])], [shape[dim]],
            ir.IntegerType.get_signless(1), comparison_direction="#stablehlo<comparison_direction LT>",
        )  # fmt: skip
        mask = self.value(
            "stablehlo.broadcast_in_dim", [inside], shape, ir.IntegerType.get_signless(1),
            broadcast_dimensions=f"array<i64: {dim}>",
        )  # fmt: skip
        return self.value(
            "stablehlo.select", [mask, value, self.broadcast(fill, shape)], shape, value.type.element_type
        )

    def zero(self, element: ir.Type) -> ir.Value:
        if isinstance(element, ir.ComplexType):
            part = self.zero(element.element_type)
            return self.value("stablehlo.complex", [part, part], [], element)
        text = "0.0" if isinstance(element, ir.FloatType) else "false" if str(element) == "i1" else "0"
        return self.constant(ir.Attribute.parse(f"dense<{text}> : tensor<{element}>"))

    def resize(self, value: ir.Value, dim: int, size: int) -> ir.Value:
        """Cuts or zero-pads dim ``dim`` at its end to ``size`` rows."""
        shape = list(value.type.shape)
        zeros, more = [0] * len(shape), size - shape[dim]
        if more > 0:
            return self.pad(value, zeros, [more if d == dim else 0 for d in range(len(shape))])
        shape[dim] = size
        return self.cut(value, zeros, shape) if more else value

    def pad(self, value: ir.Value, low: Sequence[int], high: Sequence[int]) -> ir.Value:
        """Zero-pads each dim at its beginning and end."""
        shape = [a + size + b for a, size, b in zip(low, value.type.shape, high, strict=True)]
        element = value.type.element_type
        return self.value(
            "stablehlo.pad",
            [value, self.zero(element)],
            shape,
            element,
            edge_padding_low=_dims(low),
            edge_padding_high=_dims(high),
            interior_padding=_dims([0] * len(shape)),
        )

    def cut(self, value: ir.Value, start: Sequence[int], end: Sequence[int]) -> ir.Value:
        """The rows from ``start`` to before ``end`` of each dim."""
        return self.value(
            "stablehlo.slice",
            [value],
            [b - a for a, b in zip(start, end, strict=True)],
            value.type.element_type,
            start_indices=_dims(start),
            limit_indices=_dims(end),
            strides=_dims([1] * len(start)),
        )

    def take_block(self, value: ir.Value, dim: int, axes: tuple[str, ...], local: int) -> ir.Value:
        """This core's block of ``local`` rows of a value that is whole along ``dim``."""
        value = self.resize(value, dim, local * self.mesh.size(axes))
        shape = list(value.type.shape)
        shape[dim] = local
        zero, start = self.scalar(0), self.offset(axes, local)
        starts = [start if d == dim else zero for d in range(len(shape))]
        return self.value(
            "stablehlo.dynamic_slice",
            [value, *starts],
            shape,
            value.type.element_type,
            slice_sizes=_dims(shape),
        )

    def all_gather(self, value: ir.Value, dim: int, axes: tuple[str, ...]) -> ir.Value:
        shape = list(value.type.shape)
        shape[dim] *= self.mesh.size(axes)
        return self.value(
            "stablehlo.all_gather", [value], shape, value.type.element_type,
            all_gather_dim=f"{dim} : i64", replica_groups=self.groups(axes),
        )  # fmt: skip

    def all_to_all(self, value: ir.Value, split: int, concat: int, axes: tuple[str, ...]) -> ir.Value:
        count, shape = self.mesh.size(axes), list(value.type.shape)
        shape[split] //= count
        shape[concat] *= count
        return self.value(
            "stablehlo.all_to_all",
            [value],
            shape,
            value.type.element_type,
            split_dimension=f"{split} : i64",
            concat_dimension=f"{concat} : i64",
            split_count=f"{count} : i64",
            replica_groups=self.groups(axes),
        )

    def all_reduce(self, value: ir.Value, axes: tuple[str, ...], reducer: str) -> ir.Value:
        """All-reduce with the scalar op ``reducer`` (for example ``stablehlo.add``)."""
        op = ir.Operation.create(
            "stablehlo.all_reduce", results=[value.type], operands=[value], regions=1, loc=self.location,
            ip=self.point, attributes={"replica_groups": ir.Attribute.parse(self.groups(axes))},
        )  # fmt: skip
        scalar = ir.RankedTensorType.get([], value.type.element_type)
        block = op.regions[0].blocks.append(scalar, scalar, arg_locs=[self.location] * 2)
        with ir.InsertionPoint(block), self.location:
            both = ir.Operation.create(reducer, results=[scalar], operands=list(block.arguments))
            ir.Operation.create("stablehlo.return", operands=[both.results[0]])
        return op.results[0]

    def groups(self, axes: tuple[str, ...]) -> str:
        rows = self.mesh.groups(axes)
        text = ", ".join("[" + ", ".join(map(str, row)) + "]" for row in rows)
        return f"dense<[{text}]> : tensor<{len(rows)}x{len(rows[0])}xi64>"


def _dims(numbers: Sequence[int]) -> str:
    return f"array<i64: {', '.join(map(str, numbers))}>" if numbers else "array<i64>"
