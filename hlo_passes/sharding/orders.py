"""Arguments and results over the mesh in another order of its devices: a permute where they come and go."""

from collections.abc import Mapping
from dataclasses import dataclass

from distributed.mesh import Mesh
from hlo_passes.ir import func, ir, main, sdy
from hlo_passes.local import donations
from hlo_passes.ops import terminator
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.spec import annotations, result_annotations
from hlo_passes.signature import read_attributes, write_signature

__all__ = ["Orders", "place_in_orders", "read_orders"]


@dataclass(frozen=True, kw_only=True)
class Orders:
    """The device ids of the meshes that the user placed arguments and results over, by number."""

    arguments: Mapping[int, tuple[int, ...]]
    results: Mapping[int, tuple[int, ...]]


def read_orders(module: ir.Module) -> Orders:
    """What the user's shardings say; read it before the propagation spreads them.

    A donated argument's order is that of the result in its memory.
    """
    ids = {
        ir.StringAttr(op.attributes["sym_name"]).value: tuple(sdy.MeshAttr(op.attributes["mesh"]).device_ids)
        for op in module.body.operations
        if isinstance(op, sdy.MeshOp)
    }
    function = main(module)

    def order(attribute: ir.Attribute) -> tuple[int, ...]:
        return ids[ir.FlatSymbolRefAttr(sdy.TensorShardingAttr(attribute).mesh_or_ref).value]

    given = annotations(function)
    arguments = {n: order(given[value]) for n, value in enumerate(function.arguments) if value in given}
    results = {number: order(attribute) for number, attribute in result_annotations(function).items()}
    shared = {
        result: arguments[n] for result, n in donations(function) if result is not None and n in arguments
    }
    return Orders(arguments=arguments, results=results | shared)


def place_in_orders(module: ir.Module, mesh: Mesh, orders: Orders) -> None:
    """Moves blocks to where ``orders`` want them on entry to the local ``main`` and on return from it.

    In between all values lie in the order of ``mesh``, so that ops on them need nothing. What lies otherwise
    says so in the attribute ``neuron.device_ids``.
    """
    function = main(module)
    block = function.entry_block
    emit = Emitter(mesh, block)
    emit.point = ir.InsertionPoint.at_block_begin(block)
    marks = _elsewhere(function.attributes["arg_attrs"], mesh, orders.arguments)
    for number, order in marks.items():
        value = block.arguments[number]
        moved = emit.permute_ranks(value, list(zip(order, _order(mesh), strict=True)))
        value.replace_all_uses_except(moved, moved.owner.operation)
    _mark(function, "arg_attrs", marks)
    end = terminator(block)
    emit.point = ir.InsertionPoint(end)
    marks = _elsewhere(function.attributes["res_attrs"], mesh, orders.results)
    for number, order in marks.items():
        pairs = list(zip(_order(mesh), order, strict=True))
        end.operands[number] = emit.permute_ranks(end.operands[number], pairs)
    _mark(function, "res_attrs", marks)


def _order(mesh: Mesh) -> tuple[int, ...]:
    return mesh.device_ids or tuple(range(mesh.num_ranks))


def _elsewhere(
    given: ir.ArrayAttr, mesh: Mesh, orders: Mapping[int, tuple[int, ...]]
) -> dict[int, tuple[int, ...]]:
    """Those that are cut and lie in another order than that of ``mesh``."""
    full = {number: order or tuple(range(mesh.num_ranks)) for number, order in orders.items()}
    return {n: o for n, o in full.items() if o != _order(mesh) and "neuron.dim_axes" in given[n]}


def _mark(function: func.FuncOp, key: str, orders: Mapping[int, tuple[int, ...]]) -> None:
    rows = list(read_attributes(function)[key])
    for number, order in orders.items():
        rows[number] = rows[number] | {"neuron.device_ids": ir.DenseI64ArrayAttr.get(order)}
    write_signature(function, {key: rows})
