"""A segment of one core made that of all cores: most ops, and kernels of the host, once for all of them."""

import itertools
from collections.abc import Iterator

import numpy as np

from distributed.joint import Joint
from distributed.sum_orders import order_of_sum
from hlo_passes.host_calls import is_in_place, kernel_call, target_of
from hlo_passes.host_stacked import Copies, stacked_type
from hlo_passes.ir import func, ir, main, stablehlo
from hlo_passes.ops import tensor
from kernels.host.targets import attention_targets, sum_target

__all__ = ["join_cores"]

_ALIAS = "tf.aliasing_output"


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
    with ir.InsertionPoint(one), one.location:
        taken = [
            value.type for value, width in zip(block.arguments, widths, strict=True) for _ in range(width)
        ]
        every = func.FuncOp("main", (taken, []))
        every.arg_attrs = ir.ArrayAttr.get(list(_argument_attributes(one, widths, joint)))
    arguments = iter(every.add_entry_block().arguments)
    copies = Copies(joint.cores)
    for value, width in zip(block.arguments, widths, strict=True):
        copies.put(value, [next(arguments) for _ in range(width)])
    with ir.InsertionPoint(every.regions[0].blocks[0]), one.location:
        for op in ops:
            if target_of(op, targets) and any(map(copies.differs, op.operands)):
                _call(op, copies)
            else:
                copies.compute(op)
        results = [
            array
            for number, value in enumerate(terminator.operands)
            for array in _given(value, copies, joint, number)
        ]
        func.ReturnOp(results)
    every.attributes["function_type"] = ir.TypeAttr.get(
        ir.FunctionType.get(taken, [value.type for value in results])
    )
    sums = {sum_target(tensor(terminator.operands[place].type).dtype) for place, _ in joint.sums}
    one.operation.erase()
    return frozenset(sums)


def _argument_attributes(one: func.FuncOp, widths: list[int], joint: Joint) -> Iterator[ir.Attribute]:
    """Of each argument: which result it shares its memory with, if any; none with what is of all cores."""
    for attributes, width in zip(one.arg_attrs, widths, strict=True):
        result = ir.IntegerAttr(attributes[_ALIAS]).value if _ALIAS in attributes else None
        if result is None or joint.num_given(result) == 1:
            yield from [ir.DictAttr.get({})] * width
            continue
        first = sum(joint.num_given(before) for before in range(result))
        for core in range(width):
            yield ir.DictAttr.get({_ALIAS: ir.IntegerAttr.get(ir.IntegerType.get_signless(32), first + core)})


def _call(op: ir.Operation, copies: Copies) -> None:
    """One call for the cores' calls.

    The kernels take weights, caches and what they update as arrays that lie apart, all else stacked or once.
    """
    in_place, target = is_in_place(op), op.attributes["call_target_name"].value
    apart = (0,) if in_place else (1, 2) if target in attention_targets() else (1,)
    step = len(op.operands) // len(op.results)
    operands: list[ir.Value] = []
    firsts = []
    for number, value in enumerate(op.operands):
        if number % step == 0:
            firsts.append(len(operands))
        if number % step in apart:
            operands += copies.apart(value)
        else:
            operands.append(copies.stacked(value) if copies.differs(value) else copies.common(value))
    if not in_place:
        made = kernel_call(target, operands, [stacked_type(copies.cores, value.type) for value in op.results])
        for value, whole in zip(op.results, made, strict=True):
            copies.put_stacked(value, whole)
        return
    types = [value.type for value in op.results for _ in range(copies.cores)]
    shared = [first + core for first in firsts for core in range(copies.cores)]
    made = iter(kernel_call(target, operands, types, shared=shared))
    for value in op.results:
        copies.put(value, list(itertools.islice(made, copies.cores)))


def _given(value: ir.Value, copies: Copies, joint: Joint, number: int) -> list[ir.Value]:
    """What is given out of a result: a sum, what was gathered, or one array for each core."""
    if number in dict(joint.sums):
        return [_sum(copies.stacked(value), value.type, dict(joint.sums)[number])]
    if number in dict(joint.gathers):
        return [_gathered(copies.stacked(value), dict(joint.gathers)[number])]
    return copies.apart(value)


def _sum(whole: ir.Value, one: ir.Type, algorithm: str) -> ir.Value:
    """What an all-reduce makes of a value of all cores."""
    found, cores = tensor(one), tensor(whole.type).shape[0]
    words = np.array(order_of_sum(algorithm, cores, found.size), np.int64)
    table = stablehlo.constant(ir.DenseIntElementsAttr.get(words))
    [result] = kernel_call(sum_target(found.dtype), [table, whole], [one])
    return result


def _gathered(whole: ir.Value, dim: int) -> ir.Value:
    """What an all-gather along ``dim`` makes of a value of all cores."""
    cores, *sizes = tensor(whole.type).shape
    order = [*range(1, dim + 1), 0, *range(dim + 1, len(sizes) + 1)]
    sizes[dim] *= cores
    beside = stablehlo.transpose(whole, ir.DenseI64ArrayAttr.get(order))
    return stablehlo.reshape(ir.RankedTensorType.get(sizes, whole.type.element_type), beside)
