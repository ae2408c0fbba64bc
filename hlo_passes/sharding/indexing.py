"""Indices of gather and scatter: their dimension numbers, and indices counted from a core's block."""

from dataclasses import dataclass

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter

__all__ = ["IndexNumbers", "component", "index_numbers", "local_indices", "spread_components", "wide"]


@dataclass(frozen=True, kw_only=True)
class IndexNumbers:
    """What gather and scatter share.

    ``indexed[c]`` is the operand dim that component c of an index vector points into, ``vector_dim`` the
    dim of the indices that holds the components (their rank: there is one component and no such dim);
    ``removed`` are operand dims of which a slice is one row that the slices do not show, ``batching``
    those that go along with dims of the indices; ``window`` are the dims of the slices in the result
    of the gather (or in the scatter's updates).
    """

    indexed: tuple[int, ...]
    vector_dim: int
    removed: tuple[int, ...]
    batching: tuple[int, ...]
    window: tuple[int, ...]


# Their attribute, and its fields in the order of the record.
_FIELDS = {
    "stablehlo.gather": (
        "dimension_numbers", "start_index_map", "collapsed_slice_dims", "operand_batching_dims",
        "offset_dims",
    ),
    "stablehlo.scatter": (
        "scatter_dimension_numbers", "scatter_dims_to_operand_dims", "inserted_window_dims",
        "input_batching_dims", "update_window_dims",
    ),
}  # fmt: skip


def index_numbers(op: ir.Operation) -> IndexNumbers:
    """Those of a gather or scatter."""
    attribute, *names = _FIELDS[op.name]
    text = str(op.attributes[attribute])
    indexed, removed, batching, window = (_list(text, name) for name in names)
    return IndexNumbers(
        indexed=indexed, vector_dim=_number(text, "index_vector_dim"), removed=removed, batching=batching,
        window=window,
    )  # fmt: skip


def _number(text: str, field: str) -> int:
    _, found, rest = text.partition(f"{field} = ")
    return int(rest.split(",")[0].split(">")[0]) if found else 0


def _list(text: str, field: str) -> tuple[int, ...]:
    _, found, rest = text.partition(f"{field} = [")
    return tuple(int(d) for d in rest.split("]")[0].split(",")) if found and rest[0] != "]" else ()


def wide(emit: Emitter, indices: ir.Value) -> ir.Value:
    """Indices in a type that can hold any offset: at least 32 bits, and signed where that is possible."""
    element = indices.type.element_type
    if element.width >= 64 or (element.width == 32 and not element.is_unsigned):
        return indices
    bits = 64 if element.width == 32 else 32
    return emit.convert(indices, ir.IntegerType.get_signless(bits))


def component(emit: Emitter, indices: ir.Value, numbers: IndexNumbers, which: int) -> ir.Value:
    """One component of all index vectors, without the dim of the components."""
    shape, dim = list(indices.type.shape), numbers.vector_dim
    if dim == len(shape):
        return indices
    one = emit.cut(indices, dim, which, which + 1)
    return emit.reshape(one, [n for d, n in enumerate(shape) if d != dim])


def local_indices(
    emit: Emitter, indices: ir.Value, numbers: IndexNumbers, begins: dict[int, ir.Value]
) -> ir.Value:
    """Indices minus where the core's block begins: tensor<i32> for each component of a sharded dim."""
    shape, element = list(indices.type.shape), indices.type.element_type
    zero = emit.scalar(0)
    scalars = [begins.get(c, zero) for c in range(len(numbers.indexed))]
    return emit.binary("subtract", indices, spread_components(emit, scalars, numbers, shape, element))


def spread_components(
    emit: Emitter, scalars: list[ir.Value], numbers: IndexNumbers, shape: list[int], element: ir.Type
) -> ir.Value:
    """One number (tensor<i32>) for each component, in the shape of the indices."""
    scalars = [emit.convert(scalar, element) for scalar in scalars]
    if numbers.vector_dim == len(shape) or len(scalars) == 1:
        return emit.broadcast(scalars[0], shape)
    rows = [emit.reshape(scalar, [1]) for scalar in scalars]
    return emit.spread(emit.concatenate(rows, 0), shape, [numbers.vector_dim])
