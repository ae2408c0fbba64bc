"""Mesh axes that no sharding of the user's names: planned like a tensor-parallel degree, under theirs."""

from collections.abc import Iterable, Mapping

from hlo_passes.ir import func, ir, main, module_bytes, parse, sdy
from hlo_passes.ops import inner_ops, terminator
from hlo_passes.sharding.classes import Class, DimClasses
from hlo_passes.sharding.plan import NO_PLAN, Plan, make_plan
from hlo_passes.sharding.prices import Prices
from hlo_passes.sharding.rules import attach_rules
from hlo_passes.sharding.spec import MeshReader, annotations, result_annotations
from hlo_passes.signature import read_attributes, write_signature

__all__ = ["has_manual_part", "plan_free_axis"]


def plan_free_axis(module: ir.Module, instance: str, plan: str) -> Plan:
    """Annotates arguments that have no sharding along the largest axis that no sharding names.

    What the user annotated stays as it is: a dim of theirs, and all that must be cut like it, is not cut
    along that axis as well. Dims that the axis does not divide are left whole too, for the propagation
    that follows would cut the axis.
    """
    free = _free_axes(module)
    if not free:
        return NO_PLAN
    mesh, axis, size = max(free, key=lambda found: found[2])
    # The propagation takes rules on ops for the user's own, so they are attached to a copy.
    copy = parse(module_bytes(module))
    attach_rules(copy)
    function = main(copy)
    classes = DimClasses(function.operation)
    pinned = set(_pinned(function, classes))

    def may_cut(name: Class) -> bool:
        return name not in pinned and classes.tiles(name) % size == 0

    found = make_plan(function, classes, plan, size, Prices(instance, size), may_cut=may_cut)
    given = annotations(function)
    wanted = {
        number: [classes.class_of(value, dim) in found.sharded for dim in range(value.type.rank)]
        for number, value in enumerate(function.arguments)
        if isinstance(value.type, ir.RankedTensorType) and value not in given
    }
    _annotate(main(module), mesh, axis, {n: dims for n, dims in wanted.items() if any(dims)})
    return found


def _free_axes(module: ir.Module) -> list[tuple[str, str, int]]:
    """(mesh, axis, size) of the axes longer than one that occur in no sharding; none beside a shard_map."""
    meshes = [op for op in module.body.operations if isinstance(op, sdy.MeshOp)]
    if len(meshes) != 1 or has_manual_part(module):
        return []
    function = main(module)
    attributes = [*annotations(function).values(), *result_annotations(function).values()]
    named = {axis for attribute in attributes for axes in MeshReader(module).axes(attribute) for axis in axes}
    name = ir.StringAttr(meshes[0].attributes["sym_name"]).value
    axes = [sdy.MeshAxisAttr(axis) for axis in sdy.MeshAttr(meshes[0].attributes["mesh"]).axes]
    return [(name, axis.name, axis.size) for axis in axes if axis.size > 1 and axis.name not in named]


def has_manual_part(module: ir.Module) -> bool:
    """Whether some of the program is written for each core, as ``shard_map`` does."""
    return any(op.name == "sdy.manual_computation" for op in inner_ops(module.operation))


def _pinned(function: func.FuncOp, classes: DimClasses) -> Iterable[Class]:
    """The classes of dims that the user cut, or closed."""
    returned = terminator(function.entry_block).operands
    results = {returned[number]: attribute for number, attribute in result_annotations(function).items()}
    for value, attribute in [*annotations(function).items(), *results.items()]:
        for dim, given in enumerate(sdy.TensorShardingAttr(attribute).dimension_shardings):
            sharding = sdy.DimensionShardingAttr(given)
            if len(sharding.axes) or sharding.is_closed:
                yield classes.class_of(value, dim)


def _annotate(function: func.FuncOp, mesh: str, axis: str, wanted: Mapping[int, list[bool]]) -> None:
    rows = list(read_attributes(function)["arg_attrs"])
    for number, dims in wanted.items():
        text = ", ".join(f'{{"{axis}", ?}}' if cut else "{?}" for cut in dims)
        rows[number] = rows[number] | {
            "sdy.sharding": ir.Attribute.parse(f"#sdy.sharding<@{mesh}, [{text}]>")
        }
    write_signature(function, {"arg_attrs": rows})
