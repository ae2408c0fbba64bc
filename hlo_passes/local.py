"""The attributes of the LOCAL level read back: mesh, layouts of arguments and results, donation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from distributed.layout import Layout
from distributed.mesh import Mesh
from hlo_passes.ir import func, ir
from hlo_passes.ops import tensor
from kernels.errors import CompileError

__all__ = ["argument_layouts", "donations", "finite_padding", "mesh", "num_ranks", "result_layouts"]


def num_ranks(module: ir.Module) -> int:
    """``mhlo.num_replicas``; 1 where the module does not say."""
    attributes = module.operation.attributes
    return attributes["mhlo.num_replicas"].value if "mhlo.num_replicas" in attributes else 1


def mesh(module: ir.Module) -> Mesh:
    """The module's ``neuron.mesh``; a module for one core may leave it out."""
    if "neuron.mesh" not in module.operation.attributes:
        if num_ranks(module) > 1:
            raise CompileError(
                "the module has several replicas but no neuron.mesh attribute", fix="run the pass shard first"
            )
        return Mesh(axes=())
    attribute = module.operation.attributes["neuron.mesh"]
    axes = tuple((pair[0].value, pair[1].value) for pair in attribute["axes"])
    return Mesh(axes=axes, device_ids=tuple(attribute["device_ids"]))


def argument_layouts(module: ir.Module, function: func.FuncOp) -> tuple[Layout, ...]:
    types = function.type.inputs
    return tuple(_layouts(mesh(module), types, _attributes(function, "arg_attrs", len(types))))


def result_layouts(module: ir.Module, function: func.FuncOp) -> tuple[Layout, ...]:
    types = function.type.results
    return tuple(_layouts(mesh(module), types, _attributes(function, "res_attrs", len(types))))


def donations(function: func.FuncOp) -> tuple[tuple[int | None, int], ...]:
    """(result index, argument index) the user gave up; the result is None where any may take the memory."""
    found = []
    for number, attributes in enumerate(_attributes(function, "arg_attrs", len(function.type.inputs))):
        if "tf.aliasing_output" in attributes:
            found.append((attributes["tf.aliasing_output"].value, number))
        elif "jax.buffer_donor" in attributes:
            found.append((None, number))
    return tuple(found)


def finite_padding(function: func.FuncOp) -> tuple[int, ...]:
    """The arguments whose padding products multiply by zero instead of masking it."""
    given = _attributes(function, "arg_attrs", len(function.type.inputs))
    return tuple(number for number, attributes in enumerate(given) if "neuron.finite_padding" in attributes)


def _attributes(function: func.FuncOp, key: str, count: int) -> Sequence[ir.DictAttr]:
    if key in function.attributes:
        return list(function.attributes[key])
    return [ir.DictAttr.get({}, function.context)] * count


def _layouts(where: Mesh, types: Sequence[ir.Type], attributes: Sequence[ir.DictAttr]) -> Iterator[Layout]:
    """Those of equal type and attributes are one object."""
    known: dict[tuple, Layout] = {}
    for asked in zip(types, attributes, strict=True):
        if asked not in known:
            value_type, given = asked
            # A DictAttr has no ``get`` that asks.
            key = (value_type, *(given[name] if name in given else None for name in _LAYOUT))  # noqa: SIM401
            if key not in known:
                known[key] = _layout(where, *key)
            known[asked] = known[key]
        yield known[asked]


_LAYOUT = ("neuron.global_type", "neuron.dim_axes", "neuron.device_ids")


def _layout(
    where: Mesh,
    value_type: ir.Type,
    global_type: ir.TypeAttr | None,
    dims: ir.ArrayAttr | None,
    order: ir.DenseI64ArrayAttr | None,
) -> Layout:
    local = tensor(value_type)
    return Layout(
        global_shape=(local if global_type is None else tensor(global_type.value)).shape,
        local_shape=local.shape,
        dtype=local.dtype,
        mesh=where if order is None else replace(where, device_ids=tuple(order)),
        dim_axes=tuple(
            tuple(axis.value for axis in axes) for axes in ([()] * len(local.shape) if dims is None else dims)
        ),
    )
