"""PLANNED to PROGRAM: launches, collectives, loops and branches over numbered buffers."""

from collections.abc import Sequence
from dataclasses import dataclass

from distributed.collective_cost import cheapest
from distributed.program import Block, Branch, Buffer, Collective, Kernel, Launch, Loop, Program, Step
from distributed.topology import Topology, topology
from hlo_passes.ir import func, ir, main, source_line
from hlo_passes.local import donations, finite_padding, num_ranks, result_layouts
from hlo_passes.ops import is_composite, kind, pairs, replica_groups, tensor
from hlo_passes.segments import SegmentTable, Sketch
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
        buffers=tuple(writer.buffers),
        main=block,
        segments=writer.segments.texts,
        input_layouts=writer.varying.layouts,
        output_layouts=result_layouts(module, function),
        aliases=_aliases(function, block, writer.buffers),
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
    """Numbers the buffers and writes the steps."""

    def __init__(self, module: ir.Module, function: func.FuncOp, ring: Topology) -> None:
        self.ring = ring
        self.varying: Varying = analyze(module)
        self.table = WorkTable(module)
        self.units = Units(function.entry_block, self.varying)
        self.segments = SegmentTable(self.table)
        self.buffers: list[Buffer] = []
        self._ids: dict[ir.Value, int] = {}
        self._offsets: dict[ir.Value, int] = {}
        if len(function.arguments):
            for argument, given in zip(function.arguments, function.attributes["arg_attrs"], strict=True):
                self._offsets[argument] = given["neuron.hbm_offset"].value

    def buffer(self, value: ir.Value) -> int:
        """The number of the buffer that holds ``value``."""
        number = self._ids.get(value)
        if number is None:
            number = self._ids[value] = len(self.buffers)
            offset = self._offset(value)
            self.buffers.append(
                Buffer(
                    id=number,
                    tensor=tensor(value.type),
                    varying=self.varying.is_varying(value),
                    offset_bytes=None if offset < 0 else offset,
                )
            )
        return number

    def _offset(self, value: ir.Value) -> int:
        if value not in self._offsets:
            op = value.owner.operation
            self._offsets.update(zip(op.results, op.attributes["neuron.hbm_offset"], strict=True))
        return self._offsets[value]

    def numbers(self, values: Sequence[ir.Value]) -> tuple[int, ...]:
        return tuple(map(self.buffer, values))

    def block(self, units: list[Unit], arguments: Sequence[ir.Value]) -> Block:
        numbers = self.numbers(arguments)
        steps = [step for unit in units[:-1] if (step := self.step(unit)) is not None]
        return Block(arguments=numbers, steps=tuple(steps), results=self.numbers(units[-1].ops[0].operands))

    def step(self, unit: Unit) -> Step | None:
        if unit.varying is not None:
            return self.launch(unit)
        op = unit.ops[0]
        write = {"while": self.loop, "case": self.branch}.get(kind(op), self.collective)
        return write(unit, op)

    def launch(self, unit: Unit) -> Launch | None:
        """None where the unit holds only what others make for themselves."""
        ops = [
            op for op in unit.ops
            if not (len(op.results) and op.results[0] in self.units.inlined)
            or self.units.escapes(op.results[0], unit)
        ]  # fmt: skip
        if not ops:
            return None
        made = {result: op for op in ops for result in op.results}
        taken = dict.fromkeys(value for op in ops for value in op.operands if value not in made)
        inputs = [value for value in taken if value not in self.units.inlined]
        outputs = [value for value in made if self.units.escapes(value, unit)]
        used = [*ops, *(self.units.inlined[value] for value in taken if value in self.units.inlined)]
        scalars = {value: op for value, op in made.items() if not is_composite(op)} | self.units.inlined
        sketch = Sketch(
            ops=ops,
            inputs=inputs,
            outputs=outputs,
            inlined=self.units.inlined,
            donated=self.donated(unit, inputs, outputs),
            takes_rank=any(kind(op) == "replica_id" for op in used),
        )
        return Launch(
            segment=self.segments.key(sketch),
            operands=self.numbers(inputs),
            results=self.numbers(outputs),
            varying=unit.varying,
            takes_rank=sketch.takes_rank,
            kernels=tuple(self.kernel(op, scalars) for op in ops if is_composite(op)),
            donated=sketch.donated,
        )

    def donated(self, unit: Unit, inputs: list, outputs: list) -> tuple[tuple[int, int], ...]:
        """(input, output) numbers where a chain of updates in one place leads from the one to the other."""
        origin: dict[ir.Value, ir.Value] = {}
        for op in filter(is_composite, unit.ops):
            for operand, result in self.in_place(op):
                value = op.operands[operand]
                origin[op.results[result]] = origin.get(value, value)
        places = {value: number for number, value in enumerate(inputs)}
        return tuple(
            (places[origin[value]], number)
            for number, value in enumerate(outputs)
            if value in origin
            and origin[value] in places
            and self.varying.is_varying(origin[value]) == unit.varying
        )

    def in_place(self, op: ir.Operation) -> frozenset[tuple[int, int]]:
        """The (operand, result) numbers of a kernel to which the plan gave one place."""
        return frozenset(
            (update.operand, update.result)
            for update in self.table.updates(op)
            if self._offset(op.operands[update.operand]) == self._offset(op.results[update.result])
        )

    def kernel(self, op: ir.Operation, scalars: dict[ir.Value, ir.Operation]) -> Kernel:
        operands = [number for value in op.operands for number in self.sources(value, scalars)]
        return Kernel(
            work=self.table.work(op, self.in_place(op)),
            operands=tuple(dict.fromkeys(operands)),
            results=self.numbers(op.results),
            location=source_line(op),
        )

    def sources(self, value: ir.Value, scalars: dict[ir.Value, ir.Operation]) -> list[int]:
        """The buffers ``value`` comes from, seen through the scalar work that no kernel does."""
        if value not in scalars:
            return [self.buffer(value)]
        return [n for operand in scalars[value].operands for n in self.sources(operand, scalars)]

    def collective(self, unit: Unit, op: ir.Operation) -> Collective:
        name = kind(op)
        groups = pairs(op) if name == "collective_permute" else replica_groups(op)
        size_bytes = sum(tensor(value.type).size_bytes for value in op.operands)
        price = cheapest(name, groups, size_bytes, self.ring, load_links(), load_algorithms())
        return Collective(
            kind=name,
            operands=self.numbers(op.operands),
            results=self.numbers(op.results),
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
            for argument, result in zip(carried, op.results, strict=True):
                self._offsets[argument] = self._offset(result)
        return Loop(
            operands=self.numbers(op.operands),
            condition=self.block(unit.blocks[0], condition.arguments),
            body=self.block(unit.blocks[1], body.arguments),
            results=self.numbers(op.results),
            trip_count=trip_count(op),
            location=source_line(op),
        )

    def branch(self, unit: Unit, op: ir.Operation) -> Branch:
        self._demand_uniform(op.operands[0], op, "index of the branch")
        return Branch(
            index=self.buffer(op.operands[0]),
            blocks=tuple(self.block(units, []) for units in unit.blocks),
            results=self.numbers(op.results),
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
