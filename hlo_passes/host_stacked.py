"""What all cores hold of a value: arrays that lie apart, or one of all, on which an op is done once."""

from collections.abc import Callable, Mapping, Sequence

from hlo_passes.ir import ir, stablehlo
from hlo_passes.ops import captures, kind, nested_operands, tensor
from hlo_passes.patterns import ELEMENTWISE

__all__ = ["Copies", "stacked_type"]

_COPIED_BYTES = 1 << 13
"""A larger array of one core's is not copied to lie beside the others'."""

_Change = Callable[[list[int], int], list[int]]

# What can be done on stacked values, the cores' dim first, and how its attributes change with it.
_STACKED: Mapping[str, Mapping[str, _Change]] = {
    **{name: {} for name in ELEMENTWISE | {"reshape"}},
    "broadcast_in_dim": {"broadcast_dimensions": lambda dims, cores: [0, *(dim + 1 for dim in dims)]},
    "reduce": {"dimensions": lambda dims, cores: [dim + 1 for dim in dims]},
    "reverse": {"dimensions": lambda dims, cores: [dim + 1 for dim in dims]},
    "slice": {
        "start_indices": lambda starts, cores: [0, *starts],
        "limit_indices": lambda limits, cores: [cores, *limits],
        "strides": lambda strides, cores: [1, *strides],
    },
    "transpose": {"permutation": lambda dims, cores: [0, *(dim + 1 for dim in dims)]},
}


class Copies:
    """The values of one core's segment on all ``cores``; ops are added at the insertion point.

    Each is the same on all cores, or there are arrays that lie apart, one for each, or one is stacked of all.
    A form is made of the other where it is wanted.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._apart: dict[ir.Value, list[ir.Value]] = {}
        self._stacked: dict[ir.Value, ir.Value] = {}

    def put(self, value: ir.Value, arrays: Sequence[ir.Value]) -> None:
        """``value`` is one array for each core, or one that is the same for all."""
        self._apart[value] = list(arrays)

    def put_stacked(self, value: ir.Value, whole: ir.Value) -> None:
        self._stacked[value] = whole

    def differs(self, value: ir.Value) -> bool:
        """Whether it may differ between cores."""
        return value in self._stacked or len(self._apart[value]) > 1

    def common(self, value: ir.Value) -> ir.Value:
        """The one array of a value that does not differ."""
        [array] = self._apart[value]
        return array

    def apart(self, value: ir.Value) -> list[ir.Value]:
        """One array for each core."""
        if value not in self._apart:
            whole = self._stacked[value]
            self._apart[value] = [_row(whole, core, value.type) for core in range(self.cores)]
        arrays = self._apart[value]
        return arrays if len(arrays) > 1 else arrays * self.cores

    def stacked(self, value: ir.Value, shape: Sequence[int] | None = None) -> ir.Value:
        """One array of all cores; of a scalar with ``shape`` behind the cores' dim."""
        found = tensor(value.type)
        wanted = stacked_type(self.cores, value.type, shape)
        if not self.differs(value):
            first = len(wanted.shape) - len(found.shape)
            return _broadcast(self.common(value), wanted, range(first, len(wanted.shape)))
        if value not in self._stacked:
            self._stacked[value] = _concatenated(self._apart[value])
        whole = self._stacked[value]
        return whole if whole.type == wanted else _broadcast(whole, wanted, [0])

    def compute(self, op: ir.Operation) -> None:
        """Does an op for all cores: once where nothing differs or on what is stacked, else once for each."""
        read = {value for _, _, value in nested_operands(op) if self._is_known(value)}
        if not any(map(self.differs, read)):
            made = self._clone(op, self.common)
            for value, array in zip(op.results, made.results, strict=True):
                self.put(value, [array])
        elif self._is_stackable(op):
            self._compute_stacked(op)
        else:
            arrays = {value: self.apart(value) for value in read}
            made = [
                self._clone(op, lambda value, core=core: arrays[value][core]) for core in range(self.cores)
            ]
            for number, value in enumerate(op.results):
                self.put(value, [one.results[number] for one in made])

    def _is_known(self, value: ir.Value) -> bool:
        """Whether it is not of a region inside an op."""
        return value in self._apart or value in self._stacked

    def _is_stackable(self, op: ir.Operation) -> bool:
        once = list(captures(op))
        if kind(op) == "reduce":
            once += op.operands[len(op.results) :]
        apart = [value for value in op.operands if self.differs(value) and value not in self._stacked]
        # A new shape costs nothing where an array lies.
        return (
            kind(op) in _STACKED
            and not any(map(self.differs, once))
            and not (apart and kind(op) == "reshape")
            and all(tensor(value.type).size_bytes <= _COPIED_BYTES for value in apart)
        )

    def _compute_stacked(self, op: ir.Operation) -> None:
        shape = tensor(op.results[0].type).shape
        count = len(op.results) if kind(op) == "reduce" else len(op.operands)
        shapes = [tensor(value.type).shape for value in op.operands[:count]]
        # A scalar beside others is one for each element; alone, what the op makes of it.
        beside = kind(op) in ELEMENTWISE and any(shapes)
        operands = [
            self.stacked(value, shape if beside and not sizes else None)
            for value, sizes in zip(op.operands, shapes, strict=False)
        ]
        made = self._clone(op, self.common, operands)
        for name, change in _STACKED[kind(op)].items():
            old = list(ir.DenseI64ArrayAttr(op.attributes[name]))
            made.attributes[name] = ir.DenseI64ArrayAttr.get(change(old, self.cores))
        for value, whole in zip(op.results, made.results, strict=True):
            whole.set_type(stacked_type(self.cores, value.type))
            self.put_stacked(value, whole)

    def _clone(
        self, op: ir.Operation, array: Callable[[ir.Value], ir.Value], operands: Sequence[ir.Value] = ()
    ) -> ir.Operation:
        """The op with ``operands``, and behind those with the ``array`` of each value it reads."""
        copy = op.clone()
        for inner, number, value in nested_operands(copy):
            if inner is copy and number < len(operands):
                inner.operands[number] = operands[number]
            elif self._is_known(value):
                inner.operands[number] = array(value)
        return copy


def stacked_type(cores: int, one: ir.Type, shape: Sequence[int] | None = None) -> ir.Type:
    """The type of an array of ``cores`` values of type ``one``, or of its elements in a ``shape``."""
    sizes = tensor(one).shape if shape is None else shape
    return ir.RankedTensorType.get([cores, *sizes], one.element_type)


def _concatenated(arrays: Sequence[ir.Value]) -> ir.Value:
    """One array of all cores', a row each."""
    found = tensor(arrays[0].type)
    row = stacked_type(1, arrays[0].type)
    rows = [stablehlo.reshape(row, array) for array in arrays]
    if found.dtype != "bf16":
        return stablehlo.concatenate(rows, 0)
    # XLA would convert each to f32 and back.
    word = ir.IntegerType.get_unsigned(16)
    words = [stablehlo.bitcast_convert(ir.RankedTensorType.get(row.shape, word), array) for array in rows]
    return stablehlo.bitcast_convert(
        stacked_type(len(arrays), arrays[0].type), stablehlo.concatenate(words, 0)
    )


def _broadcast(value: ir.Value, wanted: ir.Type, dims: Sequence[int]) -> ir.Value:
    return stablehlo.broadcast_in_dim(wanted, value, ir.DenseI64ArrayAttr.get(list(dims)))


def _row(whole: ir.Value, core: int, wanted: ir.Type) -> ir.Value:
    """One core's part of a stacked value."""
    sizes = tensor(whole.type).shape[1:]
    row = stablehlo.slice(
        whole,
        ir.DenseI64ArrayAttr.get([core, *(0 for _ in sizes)]),
        ir.DenseI64ArrayAttr.get([core + 1, *sizes]),
        ir.DenseI64ArrayAttr.get([1, *(1 for _ in sizes)]),
    )
    return stablehlo.reshape(wanted, row)
