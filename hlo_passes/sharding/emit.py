"""Builds the ops of one core among many: which shard am I, masks over padding, blocks, collectives."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from distributed.mesh import Mesh
from hlo_passes.collective_ops import all_reduce, groups_attribute
from hlo_passes.ir import ir
from hlo_passes.sharding.build import Builder

__all__ = ["Emitter"]


class Emitter(Builder):
    """Inserts ops at ``point`` with ``location``; ``mesh`` says how ranks map to shards.

    ``gathered_elements`` counts the elements each core has received in all-gathers so far.
    """

    def __init__(self, mesh: Mesh, entry: ir.Block) -> None:
        super().__init__(entry)
        self.mesh = mesh
        self.gathered_elements = 0
        self._entry = entry
        self._index: dict[tuple[str, ...], ir.Value] = {}

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
        return self.reshape(one, [])

    def offset(self, axes: tuple[str, ...], local: int) -> ir.Value:
        """Where this core's block of ``local`` rows begins, as tensor<i32>."""
        return self.binary("multiply", self.index(axes), self.scalar(local))

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
        return self.reshape(one, [])

    def fill_padding(
        self, value: ir.Value, dim: int, axes: tuple[str, ...], size: int, fill: ir.Value
    ) -> ir.Value:
        """``value`` with its rows of dim ``dim`` beyond global row ``size`` set to scalar ``fill``."""
        shape = value.type.shape
        rows = self.rows(shape[dim])
        end = self.binary("subtract", self.scalar(size), self.offset(axes, shape[dim]))
        inside = self.compare(rows, self.broadcast(end, [shape[dim]]), "LT")
        return self.select(self.spread(inside, shape, [dim]), value, self.broadcast(fill, shape))

    def take_block(self, value: ir.Value, dim: int, axes: tuple[str, ...], local: int) -> ir.Value:
        """This core's block of ``local`` rows of a value that is whole along ``dim``."""
        value = self.resize(value, dim, local * self.mesh.size(axes))
        block = self.slice_at(value, dim, self.offset(axes, local), local)
        self._inside.add(block.owner.operation)
        return block

    def permute(self, value: ir.Value, axes: tuple[str, ...], pairs: Sequence[tuple[int, int]]) -> ir.Value:
        """Sends from shard to shard along ``axes``; what nobody sends to receives zeros."""
        return self.permute_ranks(value, [(g[a], g[b]) for g in self.mesh.groups(axes) for a, b in pairs])

    def permute_ranks(self, value: ir.Value, pairs: Sequence[tuple[int, int]]) -> ir.Value:
        return self.value(
            "stablehlo.collective_permute", [value], value.type.shape, value.type.element_type,
            source_target_pairs=groups_attribute(pairs),
        )  # fmt: skip

    def sum_parts(self, value: ir.Value, axes: tuple[str, ...]) -> ir.Value:
        """All-reduce of parts of which at every place all but one are ``no_term``."""
        is_bit = str(value.type.element_type) == "i1"
        return self.all_reduce(value, axes, "or" if is_bit else "add")

    def all_gather(self, values: Sequence[ir.Value], dim: int, axes: tuple[str, ...]) -> list[ir.Value]:
        """All blocks of dim ``dim`` of each value, in one collective."""
        types, shards = [], self.mesh.size(axes)
        for value in values:
            shape = list(value.type.shape)
            self.gathered_elements += math.prod(shape) * (shards - 1)
            shape[dim] *= shards
            types.append(ir.RankedTensorType.get(shape, value.type.element_type))
        op = self.op(
            "stablehlo.all_gather", values, types, all_gather_dim=f"{dim} : i64",
            replica_groups=self.groups(axes),
        )  # fmt: skip
        return list(op.results)

    def all_to_all(self, value: ir.Value, split: int, concat: int, axes: tuple[str, ...]) -> ir.Value:
        count, shape = self.mesh.size(axes), list(value.type.shape)
        shape[split] //= count
        shape[concat] *= count
        return self.value(
            "stablehlo.all_to_all", [value], shape, value.type.element_type,
            split_dimension=f"{split} : i64", concat_dimension=f"{concat} : i64",
            split_count=f"{count} : i64", replica_groups=self.groups(axes),
        )  # fmt: skip

    def all_reduce(self, value: ir.Value, axes: tuple[str, ...], reducer: str) -> ir.Value:
        """All-reduce with the scalar op ``reducer`` (for example ``add``)."""
        return all_reduce(value, reducer, self.groups(axes), self.location, self.point)

    def groups(self, axes: tuple[str, ...]) -> ir.Attribute:
        return groups_attribute(self.mesh.groups(axes))
