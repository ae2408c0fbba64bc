"""PLANNED to PROGRAM: launches, collectives, loops and branches over numbered buffers."""

from collections.abc import Sequence
from dataclasses import dataclass

from distributed.collective_cost import cheapest
from distributed.program import Block, Branch, Buffer, Collective, Loop, Program, Step
from distributed.topology import Topology, topology
from hlo_passes.buffers import Buffers
from hlo_passes.ir import func, ir, main, source_line
from hlo_passes.launches import LaunchWriter
from hlo_passes.local import donations, finite_padding, num_ranks, result_layouts
from hlo_passes.ops import kind, pairs, replica_groups, tensor
from hlo_passes.trip_count import trip_count
from hlo_passes.units import Unit, Units
from hlo_passes.varying import Varying, analyze
from hlo_passes.work import WorkTable
from kernels.errors import CompileError
from kernels.hardware import load_algorithms, load_links

__all__ = ["Options", "run"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """``instance``: the machine whose links decide by which algorithm each collective goes."""

    instance: str = "inf2.48xlarge"


def run(module: ir.Module, options: Options) -> Program:
    """The program of a PLANNED module; the module is left as it is.

    Raises:
      CompileError: a loop around collectives whose condition, or a branch whose index, may differ between
        cores (they would wait for each other for ever), a collective with an unknown reducer, or a module
        that is not PLANNED.
    """
    if "neuron.hbm_bytes" not in module.operation.attributes:
        raise CompileError(
            "its values have no places in memory", op="schedule", fix="run the pass plan_memory first"
        )
    with module.context, ir.Location.unknown():
        function = main(module)
        writer = _Writer(module, function, topology(options.instance))
        block = writer.block(writer.units.top, function.arguments)
    return Program(
        name=_name(module),
        num_cores=num_ranks(module),
        buffers=tuple(writer.buffers.made),
        main=block,
        segments=writer.launches.texts,
        input_layouts=writer.varying.layouts,
        output_layouts=result_layouts(module, function),
        aliases=_aliases(function, block, writer.buffers.made),
        finite_padding=finite_padding(function),
    )


def _name(module: ir.Module) -> str:
    attributes = module.operation.attributes
    return attributes["sym_name"].value if "sym_name" in attributes else "main"


def _aliases(function: func.FuncOp, block: Block, buffers: Sequence[Buffer]) -> tuple[tuple[int, int], ...]:
    """The donated arguments whose memory a result has indeed."""
    offsets = [buffers[number].offset_bytes for number in block.results]
    found: list[tuple[int, int]] = []
    for wanted, argument in donations(function):
        offset = buffers[block.arguments[argument]].offset_bytes
        candidates = range(len(offsets)) if wanted is None else [wanted]
        found += [(result, argument) for result in candidates if offsets[result] == offset][:1]
    return tuple(found)


class _Writer:
    """Writes the steps."""

    def __init__(self, module: ir.Module, function: func.FuncOp, ring: Topology) -> None:
        self.ring = ring
        self.varying: Varying = analyze(module)
        self.units = Units(function.entry_block, self.varying)
        self.buffers = Buffers(function, self.varying)
        self.launches = LaunchWriter(WorkTable(module), self.units, self.varying, self.buffers)

    def block(self, units: list[Unit], arguments: Sequence[ir.Value]) -> Block:
        numbers = self.buffers.numbers(arguments)
        steps = [step for unit in units[:-1] if (step := self.step(unit)) is not None]
        results = self.buffers.numbers(units[-1].ops[0].operands)
        return Block(arguments=numbers, steps=tuple(steps), results=results)

    def step(self, unit: Unit) -> Step | None:
        if unit.varying is not None:
            return self.launches.launch(unit)
        op = unit.ops[0]
        write = {"while": self.loop, "case": self.branch}.get(kind(op), self.collective)
        return write(unit, op)

    def collective(self, unit: Unit, op: ir.Operation) -> Collective:
        name = kind(op)
        groups = pairs(op) if name == "collective_permute" else replica_groups(op)
        size_bytes = sum(tensor(value.type).size_bytes for value in op.operands)
        price = cheapest(name, groups, size_bytes, self.ring, load_links(), load_algorithms())
        return Collective(
            kind=name,
            operands=self.buffers.numbers(op.operands),
            results=self.buffers.numbers(op.results),
            groups=groups,
            algorithm=price.algorithm,
            reducer=_reducer(op) if len(op.regions) else None,
            location=source_line(op),
            **{key: op.attributes[attribute].value for key, attribute in _DIMS.get(name, {}).items()},
        )

    def loop(self, unit: Unit, op: ir.Operation) -> Loop:
        condition, body = (region.blocks[0] for region in op.regions)
        self._demand_uniform(unit.blocks[0][-1].ops[0].operands[0], op, "condition of the loop")
        for carried in (condition.arguments, body.arguments):
            self.buffers.share(carried, op.results)
        return Loop(
            operands=self.buffers.numbers(op.operands),
            condition=self.block(unit.blocks[0], condition.arguments),
            body=self.block(unit.blocks[1], body.arguments),
            results=self.buffers.numbers(op.results),
            trip_count=trip_count(op),
            location=source_line(op),
        )

    def branch(self, unit: Unit, op: ir.Operation) -> Branch:
        self._demand_uniform(op.operands[0], op, "index of the branch")
        return Branch(
            index=self.buffers.number(op.operands[0]),
            blocks=tuple(self.block(units, []) for units in unit.blocks),
            results=self.buffers.numbers(op.results),
            location=source_line(op),
        )

    def _demand_uniform(self, value: ir.Value, op: ir.Operation, what: str) -> None:
        if self.varying.is_varying(value):
            raise CompileError(
                f"the {what} may differ between cores, but there are collectives inside: expected a value "
                "that all cores share",
                op=op.name,
                location=source_line(op),
                fix="reduce it over all devices first (psum or pmax), or move the collective outside",
            )


_DIMS = {
    "all_gather": {"dim": "all_gather_dim"},
    "reduce_scatter": {"dim": "scatter_dimension"},
    "all_to_all": {"dim": "concat_dimension", "split_dim": "split_dimension"},
}
_REDUCERS = frozenset({"add", "multiply", "maximum", "minimum", "and", "or", "xor"})


def _reducer(op: ir.Operation) -> str:
    """The one op of a collective's region."""
    names = [kind(inner) for inner in op.regions[0].blocks[0].operations][:-1]
    if len(names) != 1 or names[0] not in _REDUCERS:
        raise CompileError(
            f"its reduction is {' then '.join(names) or 'empty'}; "
            f"expected one of {', '.join(sorted(_REDUCERS))}",
            op=op.name,
            location=source_line(op),
            fix="reduce with one plain op",
        )
    return names[0]
