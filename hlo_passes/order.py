"""Kernels and collectives are put in the order in which the links wait least: a list scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass

from distributed.collective_cost import cheapest
from distributed.device_memory import device_memory
from distributed.list_schedule import Task, list_schedule, makespan_s
from distributed.timeline import time_program
from distributed.topology import topology
from hlo_passes import plan_memory, schedule
from hlo_passes.collective_ops import blocks, lines, size_bytes
from hlo_passes.ir import ir, main, module_bytes, parse
from hlo_passes.notes import add_notes
from hlo_passes.ops import COLLECTIVES, CONTROL, is_composite, kind, operations, pairs, replica_groups
from hlo_passes.units import uniform_first
from hlo_passes.varying import analyze
from hlo_passes.work import WorkTable
from kernels.cost import cost
from kernels.eras import DEFAULT_ERA, core_of, links_of
from kernels.hardware import load_algorithms, load_instance
from kernels.ops import OPS

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``instance`` and ``era``: whose clock decides. ``least_gain``: the share of a run's time to save."""

    instance: str = "inf2.48xlarge"
    era: str = DEFAULT_ERA
    least_gain: float = 0.01


def run(module: ir.Module, options: Options) -> None:
    """Lets independent kernels run while a collective flies, and collectives start early.

    A list scheduler orders each straight run of ops by their prices alone. Where it promises ``least_gain``,
    the whole program is planned and timed in both orders, and the better stays: program order, unless the
    other takes less time and no memory that the device lacks. Values do not change. The choice is noted.
    """
    with module.context, ir.Location.unknown():
        entry = main(module).entry_block
        before = [operations(block) for block in blocks(entry)]
        prices = _Prices(module, options)
        kernels = (op for listed in before for op in listed if is_composite(op))
        different = {op.attributes["decomposition"]: op for op in kernels}
        if not all(map(prices.has, different.values())):
            return  # a custom call: nothing says what it costs, so no order is known to be better
        moved = [op for listed in before for run in _runs(listed) for op in _order(run, prices)]
        if not moved:
            return
        uniform_first(entry, analyze(module))
        after = [operations(block) for block in blocks(entry)]
        new_s, new_fits = _played(module, options)
        _restore(before)
        old_s, old_fits = _played(module, options)
        if new_s >= old_s or (old_fits and not new_fits):
            why = "more than HBM holds" if old_fits and not new_fits else f"{new_s * 1e6:.1f} us"
            note = f"order: program order, {old_s * 1e6:.1f} us; the list scheduler's would take {why}"
        else:
            _restore(after)
            note = (
                f"order: {len(moved)} kernels and collectives moved forward, {(old_s - new_s) * 1e6:.1f} us "
                f"less of {old_s * 1e6:.1f}: {lines(moved)}"
            )
        add_notes(module, [note])


def _restore(ops: Sequence[Sequence[ir.Operation]]) -> None:
    for *listed, terminator in ops:
        for op in listed:
            op.move_before(terminator)


def _played(module: ir.Module, options: Options) -> tuple[float, bool]:
    """Seconds of the program as the module stands, and whether it fits a core's HBM."""
    copy = parse(module_bytes(module))
    plan_memory.run(copy, plan_memory.Options())
    program = schedule.run(copy, schedule.Options(instance=options.instance))
    used = device_memory(program, family=load_instance(options.instance).family)
    seconds = time_program(program, options.instance, era=options.era).total_s
    return seconds, used.total_bytes <= used.capacity_bytes


class _Prices:
    """What a kernel or collective takes, by itself."""

    def __init__(self, module: ir.Module, options: Options) -> None:
        spec = load_instance(options.instance)
        self.table = WorkTable(module)
        self.least_gain = options.least_gain
        self._core, self._links = core_of(options.era, spec.family), links_of(options.era, spec.family)
        self._ring, self._available = topology(options.instance), load_algorithms()
        self._known: dict[tuple, float] = {}

    def has(self, kernel: ir.Operation) -> bool:
        return all(op.kind in OPS for op in self.table.work(kernel).ops)

    def seconds(self, op: ir.Operation) -> float:
        if is_composite(op):
            key = (op.attributes["decomposition"].value,)
        else:
            name = kind(op)
            groups = pairs(op) if name == "collective_permute" else replica_groups(op)
            key = (name, groups, size_bytes(op.operands))
        if key not in self._known:
            self._known[key] = self._kernel_s(op) if is_composite(op) else self._collective_s(*key)
        return self._known[key]

    def _kernel_s(self, op: ir.Operation) -> float:
        in_place = frozenset((update.operand, update.result) for update in self.table.updates(op))
        return cost(self.table.work(op, in_place), self._core).latency_s

    def _collective_s(self, name: str, groups: tuple[tuple[int, ...], ...], size: int) -> float:
        return cheapest(name, groups, size, self._ring, self._links, self._available).seconds


def _runs(listed: Sequence[ir.Operation]) -> list[list[ir.Operation]]:
    """The ops between control flow, across which nothing moves; each with the op it ends at."""
    found: list[list[ir.Operation]] = [[]]
    for op in listed:
        found[-1].append(op)
        if kind(op) in CONTROL:
            found.append([])
    return found


def _order(run: list[ir.Operation], prices: _Prices) -> list[ir.Operation]:
    """Puts the ops of one run in a better order, if there is one; returns those that start earlier."""
    *movable, last = run
    steps = [op for op in movable if is_composite(op) or kind(op) in COLLECTIVES]
    if not any(kind(op) in COLLECTIVES for op in steps):
        return []
    tasks = _tasks(movable, steps, prices)
    order = list_schedule(tasks)
    old_s, new_s = makespan_s(tasks, range(len(tasks))), makespan_s(tasks, order)
    if new_s > (1 - prices.least_gain) * old_s:
        return []
    _place(movable, [steps[number] for number in order], last)
    return [steps[number] for place, number in enumerate(order) if place < number]


def _tasks(movable: list[ir.Operation], steps: list[ir.Operation], prices: _Prices) -> list[Task]:
    """What each step waits for: who makes its operands, and who must have read what it writes over."""
    numbers = {op: number for number, op in enumerate(steps)}
    makers: dict[ir.Value, tuple[int, ...]] = {}
    overwriters: dict[ir.Value, int] = {}
    tasks: list[Task] = []
    for op in movable:
        operands = list(op.operands)
        after = {number for value in operands for number in makers.get(value, ())}
        if op not in numbers:
            makers.update(dict.fromkeys(op.results, tuple(after)))
            continue
        here = len(tasks)
        after |= {overwriters[value] for value in operands if value in overwriters}
        for update in prices.table.updates(op) if is_composite(op) else ():
            value = operands[update.operand]
            readers = (numbers.get(use.owner.operation, here) for use in value.uses)
            after |= {number for number in readers if number < here}
            overwriters[value] = here
        makers.update(dict.fromkeys(op.results, (here,)))
        resource = "core" if is_composite(op) else "link"
        tasks.append(Task(resource=resource, seconds=prices.seconds(op), after=frozenset(after)))
    return tasks


def _place(movable: list[ir.Operation], order: list[ir.Operation], last: ir.Operation) -> None:
    """Moves all ops in front of ``last``: steps in their new order, scalar ops as soon as they can be."""
    makers = {result: op for op in movable for result in op.results}
    placed: set[ir.Operation] = set()

    def place(op: ir.Operation) -> None:
        if op in placed:
            return
        placed.add(op)
        for value in op.operands:
            if value in makers:
                place(makers[value])
        op.move_before(last)

    for op in [*order, *movable]:
        place(op)
