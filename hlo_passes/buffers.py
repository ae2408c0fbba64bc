"""The numbered buffers of a program, and where in HBM the plan put them."""

from collections.abc import Iterable, Sequence

from distributed.program import Buffer
from hlo_passes.ir import func, ir
from hlo_passes.ops import tensor
from hlo_passes.varying import Varying

__all__ = ["Buffers"]


class Buffers:
    """Numbers values as they are asked for; ``made`` are the buffers so far."""

    def __init__(self, function: func.FuncOp, varying: Varying) -> None:
        self.made: list[Buffer] = []
        self._varying = varying
        self._ids: dict[ir.Value, int] = {}
        places = function.attributes["neuron.hbm_offset"]
        self._offsets: dict[ir.Value, int] = dict(zip(function.arguments, places, strict=True))

    def number(self, value: ir.Value) -> int:
        """The number of the buffer that holds ``value``."""
        number = self._ids.get(value)
        if number is None:
            number = self._ids[value] = len(self.made)
            offset = self.offset(value)
            self.made.append(
                Buffer(
                    id=number,
                    tensor=tensor(value.type),
                    varying=self._varying.is_varying(value),
                    offset_bytes=None if offset < 0 else offset,
                )
            )
        return number

    def numbers(self, values: Iterable[ir.Value]) -> tuple[int, ...]:
        return tuple(map(self.number, values))

    def offset(self, value: ir.Value) -> int:
        """Its place in bytes; -1 where it has none."""
        if value not in self._offsets:
            op = value.owner.operation
            self._offsets.update(zip(op.results, op.attributes["neuron.hbm_offset"], strict=True))
        return self._offsets[value]

    def share(self, values: Sequence[ir.Value], places: Sequence[ir.Value]) -> None:
        """Says that ``values``, which no op makes, lie where ``places`` do."""
        for value, place in zip(values, places, strict=True):
            self._offsets[value] = self.offset(place)
