"""Indices of gather and scatter: their dimension numbers, and indices counted from a core's block."""

from dataclasses import dataclass

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter

__all__ = [
    "IndexNumbers",
    "component",
    "gather_numbers",
    "local_indices",
    "scatter_numbers",
    "spread_components",
    "wide",
]


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


def gather_numbers(op: ir.Operation) -> IndexNumbers:
    text = str(op.attributes["dimension_numbers"])
    return IndexNumbers(
        indexed=_list(text, "start_index_map"), vector_dim=_number(text, "index_vector_dim"),
        removed=_list(text, "collapsed_slice_dims"), batching=_list(text, "operand_batching_dims"),
        window=_list(text, "offset_dims"),
    )  # fmt: skip


def scatter_numbers(op: ir.Operation) -> IndexNumbers:
    text = str(op.attributes["scatter_dimension_numbers"])
    return IndexNumbers(
        indexed=_list(text, "scatter_dims_to_operand_dims"), vector_dim=_number(text, "index_vector_dim"),
        removed=_list(text, "inserted_window_dims"), batching=_list(text, "input_batching_dims"),
        window=_list(text, "update_window_dims"),
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
