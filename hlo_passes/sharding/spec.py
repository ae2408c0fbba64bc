"""How one value is sharded, and how shardings and meshes are read from and written to attributes."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed.mesh import Mesh
from hlo_passes.ir import func, ir, sdy, walk
from hlo_passes.signature import read_attributes

__all__ = [
    "CONSTRAINTS",
    "MeshReader",
    "Sharding",
    "annotations",
    "blocks",
    "layout_attributes",
    "local_type",
    "mesh_attribute",
    "result_annotations",
    "shape_of",
]

CONSTRAINTS = ("sdy.sharding_constraint", "sdy.reshard")


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Mesh axes per dim (major first) and the size of the block each core holds.

    A core with index i along ``axes[d]`` holds rows ``[i * local[d], (i + 1) * local[d])`` of dim d;
    rows beyond the global size are padding of no defined value.
    """

    axes: tuple[tuple[str, ...], ...]
    local: tuple[int, ...]

    @staticmethod
    def whole(shape: Sequence[int]) -> "Sharding":
        return Sharding(axes=((),) * len(shape), local=tuple(shape))

    @property
    def is_whole(self) -> bool:
        return not any(self.axes)

    @property
    def used(self) -> set[str]:
        return {axis for axes in self.axes for axis in axes}

    def with_dims(self, dims: Mapping[int, tuple[tuple[str, ...], int]]) -> "Sharding":
        """The same with other axes and rows per core along some dims; no axis may be used twice."""
        axes, local = list(self.axes), list(self.local)
        for dim, (names, rows) in dims.items():
            axes[dim], local[dim] = names, rows
        return Sharding(axes=tuple(axes), local=tuple(local))


class MeshReader:
    """Reads ``sdy`` meshes and shardings; sub-axes are cut into axes of their own.

    An axis "tp" of 8 of which some sharding uses ``"tp":(1)2`` becomes the axes "tp:(1)2" and "tp:(2)4".
    The propagation may cut an axis of 6 into 2 x 3 here and 3 x 2 there; no one mesh has both, and what
    does not fit the cuts taken counts as not sharded.
    """

    def __init__(self, module: ir.Module) -> None:
        self._meshes: dict[str, sdy.MeshAttr] = {}
        for op in module.body.operations:
            if isinstance(op, sdy.MeshOp):
                self._meshes[ir.StringAttr(op.attributes["sym_name"]).value] = sdy.MeshAttr(
                    op.attributes["mesh"]
                )
        self._cuts: dict[str, set[int]] = {}

    def meshes(self) -> list[sdy.MeshAttr]:
        """The meshes with axes: a mesh without any pins a value to one device and shards nothing."""
        return [mesh for mesh in self._meshes.values() if len(mesh.axes)]

    def sizes(self) -> dict[str, int]:
        """The sizes of the mesh's axes."""
        axes = [sdy.MeshAxisAttr(axis) for mesh in self.meshes()[:1] for axis in mesh.axes]
        return {axis.name: axis.size for axis in axes}

    def note_cuts(self, attr: ir.Attribute) -> None:
        """Remembers where this sharding cuts axes into sub-axes; call for all before ``mesh``."""
        for dim in sdy.TensorShardingAttr(attr).dimension_shardings:
            for axis in sdy.DimensionShardingAttr(dim).axes:
                name, info = sdy.AxisRefAttr(axis).name, sdy.AxisRefAttr(axis).sub_axis_info
                if info is not None:
                    sub = sdy.SubAxisInfoAttr(info)
                    self._cuts.setdefault(name, set()).update((sub.pre_size, sub.pre_size * sub.size))

    def mesh(self) -> Mesh:
        """The one mesh of the module, its axes cut where some sharding cuts them."""
        attr = self.meshes()[0]
        axes = [(sdy.MeshAxisAttr(a).name, sdy.MeshAxisAttr(a).size) for a in attr.axes]
        parts = [part for name, size in axes for part in self._parts(name, size)]
        return Mesh(axes=tuple(parts), device_ids=tuple(attr.device_ids))

    def _parts(self, name: str, size: int) -> list[tuple[str, int]]:
        cuts = self._chain(name, size)
        if len(cuts) == 2:
            return [(name, size)]
        return [(f"{name}:({low}){high // low}", high // low) for low, high in itertools.pairwise(cuts)]

    def _chain(self, name: str, size: int) -> list[int]:
        """The cuts of an axis, each a multiple of the one before."""
        chain = [1]
        for cut in sorted(self._cuts.get(name, set())):
            if cut > chain[-1] and cut % chain[-1] == 0:
                chain.append(cut)
        return chain if chain[-1] == size else [*chain, size]

    def axes(self, attr: ir.Attribute) -> tuple[tuple[str, ...], ...]:
        """Axes per dim of an ``sdy.sharding`` attribute."""
        sharding = sdy.TensorShardingAttr(attr)
        result = []
        for dim in sharding.dimension_shardings:
            refs = [sdy.AxisRefAttr(axis) for axis in sdy.DimensionShardingAttr(dim).axes]
            known = itertools.takewhile(bool, map(self._names, refs))
            result.append(tuple(itertools.chain.from_iterable(known)))
        return tuple(result)

    def _names(self, ref: sdy.AxisRefAttr) -> list[str]:
        sizes = self.sizes()
        low, high = 1, sizes[ref.name]
        if ref.sub_axis_info is not None:
            sub = sdy.SubAxisInfoAttr(ref.sub_axis_info)
            low, high = sub.pre_size, sub.pre_size * sub.size
        if not {low, high} <= set(self._chain(ref.name, sizes[ref.name])):
            return []
        names, at = [], 1
        for name, size in self._parts(ref.name, sizes[ref.name]):
            if low <= at < high:
                names.append(name)
            at *= size
        return names


def mesh_attribute(mesh: Mesh) -> ir.Attribute:
    """``neuron.mesh``: ``{axes = [["tp", 4 : i64]], device_ids = array<i64>}``."""
    axes = ", ".join(f'["{name}", {size} : i64]' for name, size in mesh.axes)
    ids = f": {', '.join(map(str, mesh.device_ids))}" if mesh.device_ids else ""
    return ir.Attribute.parse(f"{{axes = [{axes}], device_ids = array<i64{ids}>}}")


def local_type(value: ir.Value, sharding: Sharding) -> ir.Type:
    """The type of one core's block of ``value``; tokens and the like keep theirs."""
    if not isinstance(value.type, ir.RankedTensorType):
        return value.type
    return ir.RankedTensorType.get(sharding.local, value.type.element_type, value.type.encoding)


def layout_attributes(global_type: ir.Type, sharding: Sharding) -> dict[str, ir.Attribute]:
    """What an argument or result of the LOCAL level says about the global tensor it is a block of."""
    attributes: dict[str, ir.Attribute] = {"neuron.global_type": ir.TypeAttr.get(global_type)}
    if not sharding.is_whole:
        dims = ", ".join("[" + ", ".join(f'"{a}"' for a in axes) + "]" for axes in sharding.axes)
        attributes["neuron.dim_axes"] = ir.Attribute.parse(f"[{dims}]")
    return attributes


def blocks(size: int, tiles: int, shards: int) -> int:
    """Rows per core when ``size`` rows in ``tiles`` equal tiles go to ``shards`` cores, whole tiles each."""
    return size // tiles * math.ceil(tiles / shards) if tiles else 0


def annotations(function: func.FuncOp) -> dict[ir.Value, ir.Attribute]:
    """Every ``sdy.sharding`` in the function, by the value it stands on."""
    rows = zip(function.arguments, read_attributes(function)["arg_attrs"], strict=True)
    found = {value: row["sdy.sharding"] for value, row in rows if "sdy.sharding" in row}

    def visit(op: ir.Operation) -> None:
        if op.name in CONSTRAINTS:
            found[op.results[0]] = op.attributes["sharding"]
        elif op.name == "sdy.manual_computation":
            outs = sdy.TensorShardingPerValueAttr(op.attributes["out_shardings"]).shardings
            found.update(zip(op.results, outs, strict=True))
        elif "sdy.sharding" in op.attributes and len(op.results):
            each = sdy.TensorShardingPerValueAttr(op.attributes["sdy.sharding"]).shardings
            found.update(zip(op.results, each, strict=True))

    walk(function.operation, visit)
    return {value: attr for value, attr in found.items() if isinstance(value.type, ir.RankedTensorType)}


def result_annotations(function: func.FuncOp) -> dict[int, ir.Attribute]:
    """The ``sdy.sharding`` of each result of ``function`` that has one."""
    rows = enumerate(read_attributes(function)["res_attrs"])
    return {number: row["sdy.sharding"] for number, row in rows if "sdy.sharding" in row}


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The shape of a tensor; () for tokens and the like."""
    return tuple(value.type.shape) if isinstance(value.type, ir.RankedTensorType) else ()
