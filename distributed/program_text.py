"""Prints a program as text: one line a step, bodies indented, buffers with shape, type, place and spread."""

from collections.abc import Iterator, Sequence

from distributed.program import Block, Branch, Buffer, Collective, Launch, Loop, Program, Step

__all__ = ["program_text"]

_INDENT = "  "


def program_text(program: Program) -> str:
    """The program as readable text; the same program always gives the same text.

    A buffer is declared where it appears first, as ``%3: bf16[64,128] @0x40 varying``: shape in
    elements, HBM offset in bytes (``host`` for scalars of the control CPU), and whether cores may hold
    different values. Later it is just ``%3``. Segments are named by their key; their StableHLO follows
    in ``Program.segments`` and is not repeated here.
    """
    printer = _Printer(program)
    lines = [f"program @{program.name} on {program.num_cores} cores"]
    for kind, ids, layouts in (
        ("input", program.main.arguments, program.input_layouts),
        ("output", program.main.results, program.output_layouts),
    ):
        for index, (number, layout) in enumerate(zip(ids, layouts, strict=True)):
            shape = "x".join(str(d) for d in layout.global_shape) or "scalar"
            cut = "replicated" if layout.is_replicated else f"cut by {_axes(layout.dim_axes)}"
            finite = ", padding finite" if kind == "input" and index in program.finite_padding else ""
            lines.append(f"{_INDENT}{kind} {index} = %{number}: global {shape} {layout.dtype} {cut}{finite}")
    for output, source in program.aliases:
        lines.append(f"{_INDENT}output {output} lies in the memory of input {source}")
    lines += printer.block("main", program.main, "")
    return "\n".join(lines) + "\n"


class _Printer:
    """Remembers which buffers were declared, so that each is described once."""

    def __init__(self, program: Program) -> None:
        self.buffers = {buffer.id: buffer for buffer in program.buffers}
        self.declared: set[int] = set()

    def block(self, name: str, block: Block, indent: str) -> Iterator[str]:
        yield f"{indent}{name}({self.values(block.arguments)}) {{"
        for step in block.steps:
            yield from self.step(step, indent + _INDENT)
        yield f"{indent}{_INDENT}return {self.values(block.results)}"
        yield f"{indent}}}"

    def step(self, step: Step, indent: str) -> Iterator[str]:
        yield from _PRINT[type(step)](self, step, indent)

    def launch(self, step: Launch, indent: str) -> Iterator[str]:
        where = "every core" if step.varying else "once"
        operands = self.values(step.operands)
        if step.takes_rank:
            operands = f"rank, {operands}" if operands else "rank"
        kernels = ", ".join(kernel.work.name for kernel in step.kernels)
        donated = "".join(f" donate {a}->{b}" for a, b in step.donated)
        head = f"launch {step.segment} {where}({operands})"
        yield f"{indent}{self.values(step.results)} = {head} [{kernels}]{donated}"

    def collective(self, step: Collective, indent: str) -> Iterator[str]:
        details = [f"groups {_groups(step.groups)}"]
        for name in ("reducer", "dim", "split_dim"):
            value = getattr(step, name)
            if value is not None:
                details.append(f"{name} {value}")
        if step.kind != "collective_permute":
            details.append(f"by {step.algorithm}")
        text = f"{step.kind}({self.values(step.operands)}) {' '.join(details)}"
        yield f"{indent}{self.values(step.results)} = {text}{_at(step.location)}"

    def loop(self, step: Loop, indent: str) -> Iterator[str]:
        trips = "unknown" if step.trip_count is None else step.trip_count
        head = f"loop({self.values(step.operands)}) trips {trips}"
        yield f"{indent}{self.values(step.results)} = {head}{_at(step.location)}"
        yield from self.block("while", step.condition, indent + _INDENT)
        yield from self.block("do", step.body, indent + _INDENT)

    def branch(self, step: Branch, indent: str) -> Iterator[str]:
        yield f"{indent}{self.values(step.results)} = branch %{step.index}{_at(step.location)}"
        for index, block in enumerate(step.blocks):
            yield from self.block(f"case {index}", block, indent + _INDENT)

    def values(self, ids: Sequence[int]) -> str:
        return ", ".join(self.value(number) for number in ids)

    def value(self, number: int) -> str:
        if number in self.declared:
            return f"%{number}"
        self.declared.add(number)
        return f"%{number}: {_buffer(self.buffers[number])}"


_PRINT = {
    Launch: _Printer.launch,
    Collective: _Printer.collective,
    Loop: _Printer.loop,
    Branch: _Printer.branch,
}


def _buffer(buffer: Buffer) -> str:
    shape = ",".join(str(d) for d in buffer.tensor.shape)
    place = "host" if buffer.offset_bytes is None else f"@{buffer.offset_bytes:#x}"
    return f"{buffer.tensor.dtype}[{shape}] {place}{' varying' if buffer.varying else ''}"


def _axes(dim_axes: Sequence[Sequence[str]]) -> str:
    return ", ".join(f"dim {d} over {'*'.join(axes)}" for d, axes in enumerate(dim_axes) if axes)


def _groups(groups: Sequence[Sequence[int]]) -> str:
    return "[" + ", ".join("[" + ",".join(str(r) for r in group) + "]" for group in groups) + "]"


def _at(location: str) -> str:
    return f" at {location}" if location else ""
