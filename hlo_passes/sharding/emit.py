"""Builds the ops of the LOCAL level: which shard am I, masks over padding, slices, collectives."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from distributed.mesh import Mesh
from hlo_passes.ir import ir

__all__ = ["Emitter"]


class Emitter:
    """Inserts ops at ``point`` with ``location``; ``mesh`` says how ranks map to shards.

    ``gathered_elements`` counts the elements each core has received in all-gathers so far.
    """

    def __init__(self, mesh: Mesh, entry: ir.Block) -> None:
        self.mesh = mesh
        self.gathered_elements = 0
        self._entry = entry
        self._index: dict[tuple[str, ...], ir.Value] = {}
        self._inside: set[ir.Operation] = set()  # dynamic slices whose starts need no clamping
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
            edge_padding_low=_dims(low), edge_padding_high=_dims(high), interior_padding=_dims(inner),
        )  # fmt: skip

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
        self._clamp_starts(value)
        shape = list(value.type.shape)
        shape[dim] = local
        zero, start = self.scalar(0), self.offset(axes, local)
        starts = [start if d == dim else zero for d in range(len(shape))]
        block = self.value(
            "stablehlo.dynamic_slice", [value, *starts], shape, value.type.element_type,
            slice_sizes=_dims(shape),
        )  # fmt: skip
        self._inside.add(block.owner.operation)
        return block

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

    def convert(self, value: ir.Value, element: ir.Type) -> ir.Value:
        if value.type.element_type == element:
            return value
        return self.value("stablehlo.convert", [value], value.type.shape, element)

    def clamp(self, number: ir.Value, low: int, high: int) -> ir.Value:
        """A tensor<i32> held in ``[low, high]``."""
        return self.value("stablehlo.clamp", [self.scalar(low), number, self.scalar(high)], [], self._i32())

    def spread(self, value: ir.Value, shape: Sequence[int], dims: Sequence[int]) -> ir.Value:
        """``broadcast_in_dim``: dim i of ``value`` becomes dim ``dims[i]`` of ``shape``."""
        element = value.type.element_type
        return self.value(
            "stablehlo.broadcast_in_dim", [value], shape, element, broadcast_dimensions=_dims(dims)
        )

    def concatenate(self, values: Sequence[ir.Value], dim: int) -> ir.Value:
        if len(values) == 1:
            return values[0]
        shape = list(values[0].type.shape)
        shape[dim] = sum(value.type.shape[dim] for value in values)
        element = values[0].type.element_type
        return self.value("stablehlo.concatenate", values, shape, element, dimension=f"{dim} : i64")

    def slice_at(self, value: ir.Value, dim: int, start: ir.Value, rows: int) -> ir.Value:
        """``rows`` rows of one dim from scalar ``start`` on, which is clamped to what there is."""
        self._clamp_starts(value)
        shape = list(value.type.shape)
        shape[dim] = rows
        starts = [start if d == dim else self._zero_like(start) for d in range(len(shape))]
        return self.value(
            "stablehlo.dynamic_slice", [value, *starts], shape, value.type.element_type,
            slice_sizes=_dims(shape),
        )  # fmt: skip

    def _zero_like(self, scalar: ir.Value) -> ir.Value:
        return self.zero(scalar.type.element_type)

    def per_core(self, axes: tuple[str, ...], numbers: Sequence[int]) -> ir.Value:
        """The number of this core as tensor<i32>: ``numbers`` holds one per shard along ``axes``."""
        steps = {b - a for a, b in itertools.pairwise(numbers)} or {0}
        if steps == {0}:
            return self.scalar(numbers[0])
        if len(steps) == 1:
            scaled = self.binary("multiply", self.index(axes), self.scalar(steps.pop()))
            return self.binary("add", scaled, self.scalar(numbers[0])) if numbers[0] else scaled
        table = self.constant(ir.DenseElementsAttr.get(np.array(numbers, np.int32)))
        one = self.slice_at(table, 0, self.index(axes), 1)
        return self.value("stablehlo.reshape", [one], [], self._i32())

    def permute(self, value: ir.Value, axes: tuple[str, ...], pairs: Sequence[tuple[int, int]]) -> ir.Value:
        """Sends from shard to shard along ``axes``; what nobody sends to receives zeros."""
        return self.permute_ranks(value, [(g[a], g[b]) for g in self.mesh.groups(axes) for a, b in pairs])

    def permute_ranks(self, value: ir.Value, pairs: Sequence[tuple[int, int]]) -> ir.Value:
        text = ", ".join(f"[{a}, {b}]" for a, b in pairs)
        return self.value(
            "stablehlo.collective_permute", [value], value.type.shape, value.type.element_type,
            source_target_pairs=f"dense<[{text}]> : tensor<{len(pairs)}x2xi64>",
        )  # fmt: skip

    def sum_parts(self, value: ir.Value, axes: tuple[str, ...]) -> ir.Value:
        """All-reduce of parts of which at most one is not zero at every place."""
        is_bit = str(value.type.element_type) == "i1"
        return self.all_reduce(value, axes, "stablehlo.or" if is_bit else "stablehlo.add")

    def all_gather(self, value: ir.Value, dim: int, axes: tuple[str, ...]) -> ir.Value:
        shape, shards = list(value.type.shape), self.mesh.size(axes)
        self.gathered_elements += math.prod(shape) * (shards - 1)
        shape[dim] *= shards
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
        self._fill_reducer(op, value.type.element_type, reducer)
        return op.results[0]

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

    def groups(self, axes: tuple[str, ...]) -> str:
        rows = self.mesh.groups(axes)
        text = ", ".join("[" + ", ".join(map(str, row)) + "]" for row in rows)
        return f"dense<[{text}]> : tensor<{len(rows)}x{len(rows[0])}xi64>"


def _dims(numbers: Sequence[int]) -> str:
    return f"array<i64: {', '.join(map(str, numbers))}>" if numbers else "array<i64>"
