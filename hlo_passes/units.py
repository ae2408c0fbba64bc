"""A block cut into launches and steps: what runs on the cores in one go, what the control CPU drives."""

from dataclasses import dataclass, field

from hlo_passes.ir import ir
from hlo_passes.ops import COLLECTIVES, CONTROL, kind
from hlo_passes.varying import Varying

__all__ = ["Unit", "Units", "uniform_first"]

# What ends a launch: what the control CPU drives (collectives, control flow around them), and a block.
_ENDS = COLLECTIVES | CONTROL | {"return"}


def uniform_first(block: ir.Block, varying: Varying) -> None:
    """Orders the ops of ``block`` (and of the blocks inside) so that each run becomes at most two launches.

    Between two steps, what is equal on all cores comes before what is not. Nothing uniform depends on
    something varying without a collective in between, so the order is a valid one.
    """
    waiting: list[ir.Operation] = []
    for view in list(block.operations):
        op = view.operation
        if kind(op) in _ENDS:
            for moved in waiting:
                moved.move_before(op)
            waiting = []
            for region in op.regions if kind(op) in CONTROL else ():
                for inner in region.blocks:
                    uniform_first(inner, varying)
        elif _varies(op, varying):
            waiting.append(op)


def _varies(op: ir.Operation, varying: Varying) -> bool:
    values = op.results if len(op.results) else op.operands
    return any(varying.is_varying(value) for value in values)


@dataclass(eq=False, kw_only=True)
class Unit:
    """One launch (``varying`` says of which kind), or one step or terminator (``varying`` None).

    ``blocks`` are the units of the blocks inside a control flow step.
    """

    ops: list[ir.Operation]
    varying: bool | None
    blocks: list[list["Unit"]] = field(default_factory=list)


class Units:
    """All units of a PLANNED function and who reads what.

    ``top`` are the units of the function's block; ``inlined`` maps the results of constants and of
    ``replica_id`` to their ops: a launch makes these itself. ``readers`` maps a value to the units that
    read it.
    """

    def __init__(self, block: ir.Block, varying: Varying) -> None:
        self._varying = varying
        self.readers: dict[ir.Value, set[Unit]] = {}
        self.inlined: dict[ir.Value, ir.Operation] = {}
        self.top = self._cut(block)

    def escapes(self, value: ir.Value, unit: Unit) -> bool:
        """Whether anything but ``unit`` reads ``value`` and cannot make it itself."""
        others = self.readers.get(value, frozenset()) - {unit}
        if value in self.inlined:
            return any(reader.varying is None for reader in others)
        return bool(others)

    def _cut(self, block: ir.Block) -> list[Unit]:
        units: list[Unit] = []
        run = {False: Unit(ops=[], varying=False), True: Unit(ops=[], varying=True)}
        for view in block.operations:
            op = view.operation
            name = kind(op)
            if name in _ENDS:
                units += [launch for launch in run.values() if launch.ops]
                run = {False: Unit(ops=[], varying=False), True: Unit(ops=[], varying=True)}
                units.append(self._step(op))
                continue
            if name in ("constant", "replica_id"):
                self.inlined[op.results[0]] = op
            unit = run[_varies(op, self._varying)]
            unit.ops.append(op)
            self._read(op, unit)
        return units

    def _step(self, op: ir.Operation) -> Unit:
        unit = Unit(ops=[op], varying=None)
        if kind(op) in CONTROL:
            unit.blocks = [self._cut(region.blocks[0]) for region in op.regions]
        self._read(op, unit)
        return unit

    def _read(self, op: ir.Operation, unit: Unit) -> None:
        for value in op.operands:
            if value in self.readers:
                self.readers[value].add(unit)
            else:
                self.readers[value] = {unit}
