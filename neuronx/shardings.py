"""The user's shardings (NamedSharding, PartitionSpec) as Shardy attributes on ``@main``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hlo_passes.ir import ir, main, sdy, walk
from kernels.errors import CompileError

__all__ = ["Sharding", "annotate", "check_meshes", "drop_single_device_meshes", "mesh_axes", "user_sharding"]

Axes = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How the user cuts one array. ``dims`` has the axes of each dim, None where the planner may choose.

    Unlike in ``jax.jit`` a dim need not be divisible by its axes.
    """

    mesh: Axes
    dims: tuple[tuple[str, ...] | None, ...]


def user_sharding(sharding: Any, rank: int, axes: Axes) -> Sharding | None:
    """The sharding asked for an array of ``rank`` dims, or None where nothing was asked.

    Args:
      sharding: a NamedSharding (over a Mesh or AbstractMesh), a PartitionSpec over ``axes``, any other
        JAX sharding (where the data happens to lie: it asks for nothing), or None.

    Raises:
      CompileError: the PartitionSpec names an axis that ``axes`` has not, or has too many entries.
    """
    if isinstance(sharding, NamedSharding):
        mesh = sharding.mesh
        if mesh.size == 1 or AxisType.Explicit in mesh.axis_types:
            return None  # nothing to cut, or part of the array's type, which JAX lowers by itself
        return _sharding(sharding.spec, rank, tuple(zip(mesh.axis_names, mesh.axis_sizes, strict=True)))
    if isinstance(sharding, PartitionSpec):
        return _sharding(sharding, rank, axes)
    return None


def _sharding(spec: PartitionSpec, rank: int, axes: Axes) -> Sharding:
    if len(spec) > rank:
        raise CompileError(
            f"{spec} has {len(spec)} entries for an array of {rank} dims",
            op="sharding",
            fix="give one entry per dim at most",
        )
    dims: list[tuple[str, ...] | None] = []
    for entry in spec:
        if entry is PartitionSpec.UNCONSTRAINED:
            dims.append(None)
        else:
            dims.append(() if entry is None else tuple(entry) if isinstance(entry, tuple) else (entry,))
    known = [name for name, _ in axes]
    for name in (name for dim in dims if dim for name in dim):
        if name not in known:
            raise CompileError(
                f"axis {name!r} of {spec} is not in the mesh; expected one of {known}",
                op="sharding",
                fix="use an axis of the mesh, or pass a NamedSharding over a mesh that has it",
            )
    return Sharding(mesh=axes, dims=tuple(dims) + ((),) * (rank - len(dims)))


def annotate(
    module: ir.Module, arguments: Sequence[Sharding | None], results: Sequence[Sharding | None]
) -> None:
    """Writes ``sdy.sharding`` on ``@main``'s first arguments and its results."""
    function = main(module)
    with module.context, ir.Location.unknown():
        for name, shardings in (("arg_attrs", arguments), ("res_attrs", results)):
            if not any(shardings):
                continue
            count = len(function.type.inputs if name == "arg_attrs" else function.type.results)
            old = list(function.attributes[name]) if name in function.attributes else [{}] * count
            padded = list(shardings) + [None] * (count - len(shardings))
            new = [_with_sharding(module, *pair) for pair in zip(old, padded, strict=True)]
            function.attributes[name] = ir.ArrayAttr.get(new)


def _with_sharding(module: ir.Module, old: Any, sharding: Sharding | None) -> ir.DictAttr:
    attributes = {old[i].name: old[i].attr for i in range(len(old))} if len(old) else {}
    if sharding is not None:
        dims = ", ".join(
            "{?}" if dim is None else "{" + ", ".join(f'"{axis}"' for axis in dim) + "}"
            for dim in sharding.dims
        )
        mesh = _mesh_symbol(module, sharding.mesh)
        attributes["sdy.sharding"] = ir.Attribute.parse(f"#sdy.sharding<@{mesh}, [{dims}]>")
    return ir.DictAttr.get(attributes)


def drop_single_device_meshes(module: ir.Module) -> None:
    """Removes annotations over meshes of one device, which cut nothing (JAX's PRNG leaves such)."""
    single = {name for name, axes in _meshes(module) if _size(axes) == 1}
    if not single:
        return

    def drop(op: ir.Operation) -> None:
        if op.name == "sdy.sharding_constraint" and _mesh_of(op.attributes["sharding"]) in single:
            op.results[0].replace_all_uses_with(op.operands[0])
            op.erase()
        elif op.name == "sdy.mesh" and ir.StringAttr(op.attributes["sym_name"]).value in single:
            op.erase()
        elif "sdy.sharding" in op.attributes and _meshes_named(op.attributes["sdy.sharding"]) <= single:
            del op.attributes["sdy.sharding"]

    walk(module.operation, drop)


def _meshes_named(shardings: ir.Attribute) -> set[str]:
    return {_mesh_of(one) for one in sdy.TensorShardingPerValueAttr(shardings).shardings}


def _mesh_of(sharding: ir.Attribute) -> str:
    return ir.FlatSymbolRefAttr(sdy.TensorShardingAttr(sharding).mesh_or_ref).value


def _meshes(module: ir.Module) -> list[tuple[str, Axes]]:
    result = []
    for op in module.body.operations:
        if isinstance(op, sdy.MeshOp):
            axes = sdy.MeshAttr(op.mesh).axes
            parsed = [sdy.MeshAxisAttr(axis) for axis in axes]
            result.append((op.sym_name.value, tuple((axis.name, axis.size) for axis in parsed)))
    return result


def _mesh_symbol(module: ir.Module, axes: Axes) -> str:
    """The name of the ``sdy.mesh`` with these axes, made where the module has none."""
    meshes = _meshes(module)
    for name, found in meshes:
        if found == axes:
            return name
    taken = {name for name, _ in meshes}
    name = next(n for n in ("mesh", *(f"mesh_{i}" for i in range(len(taken) + 1))) if n not in taken)
    text = ", ".join(f'"{axis}"={size}' for axis, size in axes)
    with ir.InsertionPoint.at_block_begin(module.body):
        sdy.MeshOp(name, ir.Attribute.parse(f"#sdy.mesh<[{text}]>"))
    return name


def mesh_axes(module: ir.Module) -> Axes:
    """The axes of the module's own mesh, () without one (a mesh of one device is none)."""
    sizes = [axes for _, axes in _meshes(module) if _size(axes) > 1]
    return sizes[0] if sizes else ()


def check_meshes(module: ir.Module) -> None:
    """Raises CompileError where the module's meshes do not span the same number of cores."""
    meshes = [(name, axes) for name, axes in _meshes(module) if _size(axes) > 1]
    if len({_size(axes) for _, axes in meshes}) > 1:
        raise CompileError(
            "the shardings lie on meshes of different sizes: "
            + ", ".join(f"{dict(axes)} ({_size(axes)} cores)" for _, axes in meshes),
            op="sharding",
            fix="use meshes over the same cores everywhere in the function",
        )


def _size(axes: Axes) -> int:
    return math.prod(count for _, count in axes)
