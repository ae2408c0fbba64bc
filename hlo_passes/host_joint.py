"""A segment of one core made that of all cores: kernels of the host are called once for all of them."""

from collections.abc import Iterator

import numpy as np

from distributed.joint import Joint
from distributed.sum_orders import order_of_sum
from hlo_passes.host_calls import call_together, kernel_call, target_of
from hlo_passes.ir import func, ir, main, stablehlo
from hlo_passes.ops import nested_operands, tensor
from kernels.host.targets import sum_target

__all__ = ["join_cores"]

_ALIAS = "tf.aliasing_output"

Copies = dict[ir.Value, list[ir.Value]]
"""Each value of one core's: what it is on each core, or once if all have it in common."""


def join_cores(module: ir.Module, joint: Joint, targets: frozenset[str]) -> frozenset[str]:
    """Makes the flat ``@main`` that of all cores, in place.

    Its arguments and results are, in order, those of one core, each as often as ``joint`` says. What does not
    depend on anything of a single core's is computed once.

    Returns:
      the kernels that are called besides ``targets``.
    """
    one = main(module)
    block = one.regions[0].blocks[0]
    *ops, terminator = (op.operation for op in block.operations)
    widths = [1 if number in joint.shared else joint.cores for number in range(len(block.arguments))]
    added = dict(joint.sums)
    with ir.InsertionPoint(one), one.location:
        taken = [
            value.type for value, width in zip(block.arguments, widths, strict=True) for _ in range(width)
        ]
        given = [
            value.type
            for number, value in enumerate(terminator.operands)
            for _ in range(1 if number in added else joint.cores)
        ]
        every = func.FuncOp("main", (taken, given))
        every.arg_attrs = ir.ArrayAttr.get(list(_argument_attributes(one, widths, joint)))
    arguments = iter(every.add_entry_block().arguments)
    copies: Copies = {
        value: [next(arguments) for _ in range(width)]
        for value, width in zip(block.arguments, widths, strict=True)
    }
    sums = set()
    with ir.InsertionPoint(every.regions[0].blocks[0]), one.location:
        for op in ops:
            (_call if target_of(op, targets) else _copy)(op, copies)
        results = []
        for number, value in enumerate(terminator.operands):
            values = copies[value] if len(copies[value]) > 1 else copies[value] * joint.cores
            if number in added:
                element = tensor(value.type).dtype
                sums.add(sum_target(element))
                values = [_sum(values, added[number])]
            results += values
        func.ReturnOp(results)
    one.operation.erase()
    return frozenset(sums)


def _argument_attributes(one: func.FuncOp, widths: list[int], joint: Joint) -> Iterator[ir.Attribute]:
    """Of each argument: which result it shares its memory with, if any."""
    added = dict(joint.sums)
    for attributes, width in zip(one.arg_attrs, widths, strict=True):
        for core in range(width):
            if _ALIAS not in attributes:
                yield ir.DictAttr.get({})
                continue
            result = ir.IntegerAttr(attributes[_ALIAS]).value
            first = sum(1 if before in added else joint.cores for before in range(result))
            yield ir.DictAttr.get({_ALIAS: ir.IntegerAttr.get(ir.IntegerType.get_signless(32), first + core)})


def _on(core: int, values: list[ir.Value]) -> ir.Value:
    return values[core if len(values) > 1 else 0]


def _copy(op: ir.Operation, copies: Copies) -> None:
    """The op for each core, or once where all its operands are in common."""
    read = [copies[value] for _, _, value in nested_operands(op) if value in copies]
    width = max(map(len, read), default=1)
    made = []
    for core in range(width):
        copy = op.clone()
        for inner, number, value in nested_operands(copy):
            if value in copies:
                inner.operands[number] = _on(core, copies[value])
        made.append(list(copy.results))
    for value, *values in zip(op.results, *made, strict=True):
        copies[value] = values


def _call(op: ir.Operation, copies: Copies) -> None:
    """One call for the cores' calls, each of its products for all cores before the next.

    Cores that share all operands then stand side by side, where the kernel looks for them.
    """
    width = max(len(copies[value]) for value in op.operands)
    step = len(op.operands) // len(op.results)
    rows = [list(op.operands)[first : first + step] for first in range(0, len(op.operands), step)]
    made = call_together(
        op, [[_on(core, copies[value]) for value in row] for row in rows for core in range(width)]
    )
    for number, value in enumerate(op.results):
        copies[value] = made[number * width : (number + 1) * width]


def _sum(values: list[ir.Value], algorithm: str) -> ir.Value:
    """What an all-reduce makes of one value of each core."""
    found = tensor(values[0].type)
    words = np.array(order_of_sum(algorithm, len(values), found.size), np.int64)
    table = stablehlo.constant(ir.DenseIntElementsAttr.get(words))
    [result] = kernel_call(sum_target(found.dtype), [table, *values], [values[0].type])
    return result
