"""Launches: what the cores run in one go. Those of one pattern, as equal layers have, are worked out once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from distributed.program import Kernel, Launch
from hlo_passes.buffers import Buffers
from hlo_passes.ir import ir, source_line
from hlo_passes.ops import is_composite, kind
from hlo_passes.segments import Sketch, write_segment
from hlo_passes.units import Unit, Units
from hlo_passes.varying import Varying
from hlo_passes.work import WorkTable
from kernels.work import KernelWork

__all__ = ["LaunchWriter"]

_Numbers = tuple[int, ...]
"""Values, numbered as a launch meets them: its ops' operands and results in order."""


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    """What launches have in common that are alike but for the values they take.

    ``kernels`` are (number of the op, work, operands, results); ``named`` are the values with buffers, in the
    order in which these are numbered.
    """

    segment: str
    operands: _Numbers
    results: _Numbers
    takes_rank: bool
    kernels: tuple[tuple[int, KernelWork, _Numbers, _Numbers], ...]
    donated: tuple[tuple[int, int], ...]
    named: _Numbers


class LaunchWriter:
    """Writes the launches of one program and their segments, ``texts`` by key."""

    def __init__(self, table: WorkTable, units: Units, varying: Varying, buffers: Buffers) -> None:
        self.texts: dict[str, str] = {}
        self._table, self._units, self._varying, self._buffers = table, units, varying, buffers
        self._contents = {value: _content(op) for value, op in units.inlined.items()}
        self._patterns: dict[tuple, _Pattern] = {}

    def launch(self, unit: Unit) -> Launch | None:
        """None where the unit holds only what others make for themselves."""
        ops, numbers, likeness = self._read(unit)
        if not ops:
            return None
        pattern = self._patterns.get(likeness)
        if pattern is None:
            pattern = self._patterns[likeness] = self._pattern(unit, ops, numbers)
        values = list(numbers)
        ids = {number: self._buffers.number(values[number]) for number in pattern.named}

        def buffers(found: _Numbers) -> tuple[int, ...]:
            return tuple([ids[number] for number in found])

        return Launch(
            segment=pattern.segment,
            operands=buffers(pattern.operands),
            results=buffers(pattern.results),
            varying=unit.varying,
            takes_rank=pattern.takes_rank,
            kernels=tuple(
                Kernel(
                    work=work,
                    operands=buffers(operands),
                    results=buffers(results),
                    location=source_line(ops[at]),
                )
                for at, work, operands, results in pattern.kernels
            ),
            donated=pattern.donated,
        )

    def _read(self, unit: Unit) -> tuple[list[ir.Operation], dict[ir.Value, int], tuple]:
        """The ops of a launch, its values with their numbers, and all that its pattern depends on."""
        ops: list[ir.Operation] = []
        numbers: dict[ir.Value, int] = {}
        likeness: list[object] = [unit.varying]
        for op in unit.ops:
            made = {value: self._units.escapes(value, unit) for value in op.results}
            if made and made.keys() <= self._contents.keys() and not any(made.values()):
                continue
            ops.append(op)
            likeness += (_content(op), self._in_place(op))
            for value in op.operands:
                if value not in numbers:
                    numbers[value] = len(numbers)
                    likeness.append(self._contents.get(value) or value.type)
                likeness.append(numbers[value])
            for value, escapes in made.items():
                numbers[value] = len(numbers)
                likeness.append(escapes)
        return ops, numbers, tuple(likeness)

    def _in_place(self, op: ir.Operation) -> tuple[tuple[int, int, bool], ...]:
        """(operand, result) numbers of a kernel to which the plan gave one place; does the operand vary?"""
        if not is_composite(op):
            return ()
        return tuple(
            (update.operand, update.result, self._varying.is_varying(op.operands[update.operand]))
            for update in self._table.updates(op)
            if self._buffers.offset(op.operands[update.operand])
            == self._buffers.offset(op.results[update.result])
        )

    def _pattern(self, unit: Unit, ops: Sequence[ir.Operation], numbers: Mapping[ir.Value, int]) -> _Pattern:
        inlined = self._units.inlined
        made = {result: op for op in ops for result in op.results}
        taken = dict.fromkeys(value for op in ops for value in op.operands if value not in made)
        inputs = [value for value in taken if value not in inlined]
        outputs = [value for value in made if self._units.escapes(value, unit)]
        used = [*ops, *(inlined[value] for value in taken if value in inlined)]
        scalars = {value: op for value, op in made.items() if not is_composite(op)} | inlined
        sketch = Sketch(
            ops=ops,
            inputs=inputs,
            outputs=outputs,
            inlined=inlined,
            donated=self._donated(unit, inputs, outputs),
            takes_rank=any(kind(op) == "replica_id" for op in used),
        )
        key, self.texts[key] = write_segment(sketch, self._table)

        def numbered(values: Sequence[ir.Value]) -> _Numbers:
            return tuple(numbers[value] for value in values)

        kernels = [
            (
                at,
                self._table.work(op, frozenset(pair[:2] for pair in self._in_place(op))),
                numbered(dict.fromkeys(n for value in op.operands for n in _sources(value, scalars))),
                numbered(op.results),
            )
            for at, op in enumerate(ops)
            if is_composite(op)
        ]
        operands, results = numbered(inputs), numbered(outputs)
        named = [*operands, *results, *(n for *_, reads, makes in kernels for n in (*reads, *makes))]
        return _Pattern(
            segment=key,
            operands=operands,
            results=results,
            takes_rank=sketch.takes_rank,
            kernels=tuple(kernels),
            donated=sketch.donated,
            named=tuple(dict.fromkeys(named)),
        )

    def _donated(
        self, unit: Unit, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
    ) -> tuple[tuple[int, int], ...]:
        """(input, output) numbers where a chain of updates in one place leads from the one to the other."""
        origin: dict[ir.Value, ir.Value] = {}
        for op in filter(is_composite, unit.ops):
            for operand, result, _ in self._in_place(op):
                value = op.operands[operand]
                origin[op.results[result]] = origin.get(value, value)
        places = {value: number for number, value in enumerate(inputs)}
        return tuple(
            (places[origin[value]], number)
            for number, value in enumerate(outputs)
            if value in origin
            and origin[value] in places
            and self._varying.is_varying(origin[value]) == unit.varying
        )


def _content(op: ir.Operation) -> object:
    """What ``op`` does apart from its operands."""
    if is_composite(op):
        return op.attributes["decomposition"].value
    attributes = tuple(item for item in op.attributes.items() if item[0] != "neuron.hbm_offset")
    return op.name, attributes, tuple(op.results.types)


def _sources(value: ir.Value, scalars: Mapping[ir.Value, ir.Operation]) -> Iterator[ir.Value]:
    """The values ``value`` comes from, seen through the scalar work that no kernel does."""
    if value not in scalars:
        yield value
        return
    for operand in scalars[value].operands:
        yield from _sources(operand, scalars)
