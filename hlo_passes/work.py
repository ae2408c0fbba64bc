"""What a kernel has to do, read off its decomposition: ops with shapes, HBM traffic in and out."""

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace

from hlo_passes.activations import activations
from hlo_passes.fused_instructions import fused_instructions
from hlo_passes.in_place import Update, updates
from hlo_passes.ir import func, functions, ir, source_line, stablehlo
from hlo_passes.ops import CONTROL, inner_ops, is_tf32, kind, tensor
from hlo_passes.trip_count import trip_count
from kernels.work import KernelWork, OpWork, Tensor

__all__ = ["WorkTable", "is_told_by_types", "op_work"]

# Ops that read of their first operand only what they hand on.
_TAKES = frozenset({"slice", "dynamic_slice", "gather"})
_VIEWS = frozenset({"reshape"})


class WorkTable:
    """The work of the kernels of one FUSED or PLANNED module, each decomposition read once."""

    def __init__(self, module: ir.Module) -> None:
        self.functions = functions(module)
        self._found: dict[tuple[str, Set[tuple[int, int]]], KernelWork] = {}
        self._updates: dict[str, tuple[Update, ...]] = {}

    def function(self, composite: ir.Operation) -> func.FuncOp:
        return self.functions[composite.attributes["decomposition"].value]

    def updates(self, composite: ir.Operation) -> tuple[Update, ...]:
        """The (operand, result) pairs that may share memory."""
        name = composite.attributes["decomposition"].value
        if name not in self._updates:
            self._updates[name] = updates(self.functions[name])
        return self._updates[name]

    def work(self, composite: ir.Operation, in_place: Set[tuple[int, int]] = frozenset()) -> KernelWork:
        """The work of one kernel; ``in_place`` are the (operand, result) pairs that do share memory."""
        name = composite.attributes["decomposition"].value
        key = (name, in_place)
        if key not in self._found:
            kept = [
                update for update in self.updates(composite) if (update.operand, update.result) in in_place
            ]
            kernel = composite.attributes["name"].value.partition(".")[2]
            self._found[key] = _kernel_work(kernel, self.functions[name], kept)
        return self._found[key]


def _kernel_work(kernel: str, function: func.FuncOp, in_place: list[Update]) -> KernelWork:
    overwritten = {update.operand for update in in_place}
    reads = [
        part
        for number, argument in enumerate(function.arguments)
        for part in _read(argument, number in overwritten)
    ]
    ops = list(_block_work(function.entry_block, 1))
    written = {update.result: update.written for update in in_place}
    writes = [
        part
        for number, result in enumerate(function.type.results)
        for part in written.get(number, (tensor(result),))
    ]
    return KernelWork(
        name=kernel,
        ops=tuple(work for _, work in ops),
        reads=tuple(reads),
        writes=tuple(writes),
        uncounted_loops=_uncounted_loops(function),
        lines=tuple(source_line(op) for op, _ in ops) if any(kind(op) in CONTROL for op, _ in ops) else (),
    )


def _uncounted_loops(function: func.FuncOp) -> int:
    ops = inner_ops(function.operation)
    return sum(kind(op) == "while" and trip_count(op) is None for op in ops)


def _read(argument: ir.Value, overwritten: bool) -> tuple[Tensor, ...]:
    """What is read of ``argument``: all of it, once, unless every reader takes only a part."""
    whole = tensor(argument.type)
    parts = _parts_read(argument, overwritten)
    if parts is None or sum(part.size_bytes for part in parts) >= whole.size_bytes:
        return (whole,)
    return tuple(parts)


def _parts_read(value: ir.Value, overwritten: bool) -> list[Tensor] | None:
    parts: list[Tensor] = []
    for use in value.uses:
        op, name = use.owner.operation, kind(use.owner)
        if name in _TAKES and use.operand_number == 0:
            parts.append(tensor(op.results[0].type))
        elif name in _VIEWS:
            seen = _parts_read(op.results[0], overwritten)
            if seen is None:
                return None
            parts += seen
        elif not (overwritten and name in ("dynamic_update_slice", "scatter") and use.operand_number == 0):
            return None
    return parts


def _block_work(block: ir.Block, repeats: int) -> Iterator[tuple[ir.Operation, OpWork]]:
    roots, inside = activations(block)
    fused, replaced = fused_instructions(block)
    roots, inside = roots | (fused - inside), inside | replaced
    for view in block.operations:
        op = view.operation
        if kind(op) == "return":
            continue
        work = _as_load(op, op_work(op, repeats))
        if op in roots or op in inside:
            work = replace(work, activation="result" if op in roots else "inside")
        yield op, work
        if kind(op) == "while":
            # Once where the count is not known before the program runs; ``uncounted_loops`` says so.
            times = trip_count(op)
            for region in op.regions:
                yield from _block_work(region.blocks[0], repeats * (1 if times is None else times))
        elif kind(op) in ("case", "if"):
            yield from _costliest([list(_block_work(region.blocks[0], repeats)) for region in op.regions])


def _as_load(op: ir.Operation, work: OpWork) -> OpWork:
    """A slice of the kernel's own operand is part of its load: it touches what it takes, not the whole."""
    if work.kind not in _TAKES or not isinstance(op.operands[0], ir.BlockArgument):
        return work
    if op.operands[0].owner.owner.operation.name != "func.func":
        return work
    return replace(work, operands=(work.results[0], *work.operands[1:]))


def _costliest(branches: list[list[tuple[ir.Operation, OpWork]]]) -> list[tuple[ir.Operation, OpWork]]:
    """The branch with the most arithmetic and data: a time for the worst case."""

    def weight(ops: list[tuple[ir.Operation, OpWork]]) -> int:
        products = sum(2 * math.prod(work.matmul) * work.repeats for _, work in ops if work.matmul)
        return products + sum(part.size * work.repeats for _, work in ops for part in work.results)

    return max(branches, key=weight)


def op_work(op: ir.Operation, repeats: int = 1, shapes: Sequence[tuple[int, ...]] | None = None) -> OpWork:
    """One op's shapes and types; its (batch, m, k, n) where it is a product.

    ``shapes`` of its operands and results replace its own: what it would do on one core.
    """
    name, count = kind(op), len(op.operands)
    tensors = [tensor(value.type) for value in (*op.operands, *op.results)]
    if shapes is not None:
        tensors = [replace(old, shape=shape) for old, shape in zip(tensors, shapes, strict=True)]
    work = OpWork(kind=name, operands=tuple(tensors[:count]), results=tuple(tensors[count:]), repeats=repeats)
    return _DETAILS[name](op, work) if name in _DETAILS else work


def is_told_by_types(op: ir.Operation) -> bool:
    """Whether ops of one kind with the types of ``op`` are the same work: attributes do not matter."""
    return kind(op) not in _DETAILS


def _as_rounded(op: ir.Operation, work: OpWork) -> tuple[Tensor, ...]:
    """The operands of a product; those rounded to tf32, which is stored as f32, as tf32."""
    return tuple(
        replace(part, dtype="tf32") if is_tf32(_moved(value)) else part
        for value, part in zip(op.operands, work.operands, strict=True)
    )


def _moved(value: ir.Value) -> ir.Value:
    """What ``value`` is but for its shape."""
    while not isinstance(value, ir.BlockArgument) and kind(value.owner) in ("reshape", "transpose"):
        value = value.owner.operation.operands[0]
    return value


def _dot_general(op: ir.Operation, work: OpWork) -> OpWork:
    numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    lhs, rhs = (part.shape for part in work.operands)
    batch = math.prod(lhs[dim] for dim in numbers.lhs_batching_dimensions)
    k = math.prod(lhs[dim] for dim in numbers.lhs_contracting_dimensions)
    shared = max(batch * k, 1)
    product = (batch, math.prod(lhs) // shared, k, math.prod(rhs) // shared)
    return replace(work, operands=_as_rounded(op, work), matmul=product)


def _convolution(op: ir.Operation, work: OpWork) -> OpWork:
    """As the product it implies: every result element combines one window of the kernel."""
    numbers = stablehlo.ConvDimensionNumbers(op.attributes["dimension_numbers"])
    groups = op.attributes["feature_group_count"].value * op.attributes["batch_group_count"].value
    kernel, result = work.operands[1], work.results[0]
    features = kernel.shape[numbers.kernel_output_feature_dimension]
    each = max(features, 1)
    product = (groups, result.size // each, kernel.size // each, features // groups)
    taps = tuple(kernel.shape[dim] for dim in numbers.kernel_spatial_dimensions)
    return replace(work, operands=_as_rounded(op, work), matmul=product, taps=taps)


def _window(op: ir.Operation, work: OpWork) -> OpWork:
    sizes = tuple(op.attributes["window_dimensions"])
    beside = [size for size, slid in zip(work.results[0].shape, sizes, strict=False) if slid == 1]
    features = max(beside, default=1) if kind(op) == "reduce_window" else 0
    return replace(work, window=math.prod(sizes), features=features)


_DETAILS = {
    "dot_general": _dot_general,
    "convolution": _convolution,
    "reduce_window": _window,
    "select_and_scatter": _window,
}
