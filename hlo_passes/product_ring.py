"""A product cut along one dim into one part per core of a ring: its shape, its work, its ops."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hlo_passes.collective_ops import groups_attribute, zeros
from hlo_passes.ir import ir, stablehlo
from hlo_passes.ops import kind, tensor
from hlo_passes.work import op_work
from kernels.work import KernelWork, OpWork, Tensor

__all__ = ["Cut", "Ring", "cuts", "partial_work", "whole_work"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One dim of a product: where it lies in each operand and in the result, None where it does not.

    ``role`` is its place in (batch, m, k, n).
    """

    left: int | None
    right: int | None
    result: int | None
    role: int


def cuts(dot: ir.Operation) -> list[Cut]:
    """Every dim of a dot_general: batch, free and contracted ones."""
    numbers = stablehlo.DotDimensionNumbers(dot.attributes["dot_dimension_numbers"])
    left, right = (len(tensor(value.type).shape) for value in dot.operands)
    batch = list(zip(numbers.lhs_batching_dimensions, numbers.rhs_batching_dimensions, strict=True))
    summed = list(zip(numbers.lhs_contracting_dimensions, numbers.rhs_contracting_dimensions, strict=True))
    taken = [{pair[side] for pair in (*batch, *summed)} for side in (0, 1)]
    found = [Cut(left=a, right=b, result=i, role=0) for i, (a, b) in enumerate(batch)]
    found += [Cut(left=a, right=b, result=None, role=2) for a, b in summed]
    at = len(batch)
    for dim in (d for d in range(left) if d not in taken[0]):
        found.append(Cut(left=dim, right=None, result=at, role=1))
        at += 1
    for dim in (d for d in range(right) if d not in taken[1]):
        found.append(Cut(left=None, right=dim, result=at, role=3))
        at += 1
    return found


def _part(whole: Tensor, dim: int | None, count: int) -> Tensor:
    shape = list(whole.shape)
    if dim is not None:
        shape[dim] //= count
    return Tensor(shape=tuple(shape), dtype=whole.dtype)


def whole_work(dot: ir.Operation, narrowed: ir.Operation | None) -> KernelWork:
    """The kernel of a product as it stands, with the conversion behind it."""
    return _kernel(op_work(dot), narrowed)


def partial_work(dot: ir.Operation, narrowed: ir.Operation | None, cut: Cut, count: int) -> KernelWork:
    """The kernel of one of ``count`` parts."""
    whole = op_work(dot)
    sizes = list(whole.matmul)
    sizes[cut.role] //= count
    dims = (cut.left, cut.right)
    part = replace(
        whole,
        operands=tuple(_part(t, dim, count) for t, dim in zip(whole.operands, dims, strict=True)),
        results=(_part(whole.results[0], cut.result, count),),
        matmul=tuple(sizes),
    )
    return _kernel(part, narrowed)


def _kernel(product: OpWork, narrowed: ir.Operation | None) -> KernelWork:
    ops, written = [product], product.results[0]
    if narrowed is not None:
        written = Tensor(shape=written.shape, dtype=tensor(narrowed.results[0].type).dtype)
        ops.append(OpWork(kind="convert", operands=product.results, results=(written,)))
    return KernelWork(name="matmul", ops=tuple(ops), reads=product.operands, writes=(written,))


class Ring:
    """Builds ops in front of ``before``: blocks by position on the ring, sends to the next position.

    ``location`` is that of the ops to come: of ``before`` at first, then of the product last cut.

    ``groups`` list ranks in ring order; every rank is in one of them, all are of one size.
    """

    def __init__(self, groups: tuple[tuple[int, ...], ...], before: ir.Operation) -> None:
        self.groups, self.count = groups, len(groups[0])
        self.location = before.location
        self.point = ir.InsertionPoint(before)
        # What all layers count alike stands before them all: in the first, that one would be like no other.
        self._scalar = functools.partial(self._op, ir.InsertionPoint.at_block_begin(before.block))
        self._position = self._emit_position()
        self.pairs = tuple(
            (rank, group[(at + 1) % len(group)]) for group in groups for at, rank in enumerate(group)
        )

    def op(
        self, name: str, operands: Sequence[ir.Value], type_: ir.Type, **attributes: ir.Attribute
    ) -> ir.Value:
        return self._op(self.point, name, operands, type_, **attributes)

    def _op(
        self, point: ir.InsertionPoint, name: str, operands: Sequence[ir.Value], type_: ir.Type,
        **attributes: ir.Attribute,
    ) -> ir.Value:  # fmt: skip
        return ir.Operation.create(
            f"stablehlo.{name}",
            results=[type_],
            operands=list(operands),
            attributes=attributes,
            loc=self.location,
            ip=point,
        ).results[0]

    def _emit_position(self) -> ir.Value:
        """This core's position in its group, as tensor<i32>."""
        positions = {rank: at for group in self.groups for at, rank in enumerate(group)}
        table = np.array([positions[rank] for rank in range(len(positions))], np.int32)
        rank = self._scalar("replica_id", [], ir.RankedTensorType.get([], ir.IntegerType.get_unsigned(32)))
        rank = self._scalar("convert", [rank], self._i32())
        if (table == np.arange(len(table))).all():
            return rank
        one = ir.RankedTensorType.get([1], self._i32().element_type)
        held = self._constant(table)
        picked = self._scalar("dynamic_slice", [held, rank], one, slice_sizes=ir.DenseI64ArrayAttr.get([1]))
        return self._scalar("reshape", [picked], self._i32())

    def _i32(self) -> ir.RankedTensorType:
        return ir.RankedTensorType.get([], ir.IntegerType.get_signless(32))

    def _constant(self, value: np.ndarray) -> ir.Value:
        held = ir.DenseElementsAttr.get(value)
        return self._scalar("constant", [], held.type, value=held)

    def number(self, value: int) -> ir.Value:
        return self._constant(np.array(value, np.int32))

    def zeros(self, type_: ir.Type) -> ir.Value:
        return self.op("constant", [], type_, value=zeros(type_))

    def start(self, ahead: int, rows: int) -> ir.Value:
        """The first row of the block that is ``ahead`` positions from this core's, blocks being ``rows``."""
        moved = self._scalar("add", [self._position, self.number(ahead % self.count)], self._i32())
        around = self._scalar("remainder", [moved, self.number(self.count)], self._i32())
        return self._scalar("multiply", [around, self.number(rows)], self._i32())

    def take(self, value: ir.Value, dim: int, ahead: int) -> ir.Value:
        """That block of ``value`` along ``dim``; of a converted value, the block converted."""
        owner = value.owner
        if isinstance(value, ir.OpResult) and kind(owner) == "convert":
            source = self.take(owner.operation.operands[0], dim, ahead)
            return self.op("convert", [source], self.block_type(value.type, dim))
        type_ = self.block_type(value.type, dim)
        shape = list(tensor(type_).shape)
        starts = [self.start(ahead, shape[d]) if d == dim else self.number(0) for d in range(len(shape))]
        sizes = ir.DenseI64ArrayAttr.get(shape)
        return self.op("dynamic_slice", [value, *starts], type_, slice_sizes=sizes)

    def put(self, into: ir.Value, block: ir.Value, dim: int, ahead: int) -> ir.Value:
        """``into`` with that block along ``dim`` overwritten."""
        rows = tensor(block.type).shape[dim]
        rank = len(tensor(into.type).shape)
        starts = [self.start(ahead, rows) if d == dim else self.number(0) for d in range(rank)]
        return self.op("dynamic_update_slice", [into, block, *starts], into.type)

    def block_type(self, whole: ir.Type, dim: int) -> ir.Type:
        shape = list(tensor(whole).shape)
        shape[dim] //= self.count
        return ir.RankedTensorType.get(shape, ir.RankedTensorType(whole).element_type)

    def send(self, value: ir.Value) -> ir.Value:
        """What the core before this one on the ring has."""
        return self.op(
            "collective_permute", [value], value.type, source_target_pairs=groups_attribute(self.pairs)
        )

    def gather(self, value: ir.Value, dim: int, whole: ir.Type) -> ir.Value:
        at = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)
        groups = groups_attribute(self.groups)
        return self.op("all_gather", [value], whole, all_gather_dim=at, replica_groups=groups)

    def product(
        self, dot: ir.Operation, operands: Sequence[ir.Value], cut: Cut, narrowed: ir.Operation | None
    ) -> ir.Value:
        """``dot`` of other operands, one part of it, converted as the whole is."""
        self.location = dot.location
        type_ = dot.results[0].type
        if cut.result is not None:
            type_ = self.block_type(type_, cut.result)
        kept = {name: dot.attributes[name] for name in dot.attributes}
        made = self.op("dot_general", operands, type_, **kept)
        if narrowed is None:
            return made
        element = ir.RankedTensorType(narrowed.results[0].type).element_type
        return self.op("convert", [made], ir.RankedTensorType.get(list(tensor(type_).shape), element))
