"""Softmax, normalisations and the like as calls of a kernel of the host: composites as programs of rows."""

import math

from hlo_passes.host_calls import Decision, kernel_call
from hlo_passes.ir import func, functions, ir
from hlo_passes.ops import KERNEL_PREFIX, inner_ops, is_composite, kind, operations, splat, tensor
from kernels.host.row_program import (
    EACH,
    RowProgram,
    Step,
    extent_of,
    row_cost,
    row_target,
    why_not_rows,
)
from kernels.host.targets import ROUNDED

__all__ = ["lower_rows"]

_KERNELS = {f"{KERNEL_PREFIX}{name}" for name in ("softmax", "normalization", "reduce")}

_REDUCED = {"add": ("sum", 0.0), "maximum": ("highest", -math.inf)}
"""By the op that reduces: what a program calls it, and where it starts."""

_EXACT_INTEGERS = 1 << 24
"""Up to it each is an f32."""


def lower_rows(module: ir.Module) -> list[Decision]:
    """Puts one call in the place of each composite that is a program of rows.

    Returns what was decided of each composite that has a reduction and no product.
    """
    known = functions(module)
    decisions = []
    for op in list(inner_ops(module.operation)):
        name = op.attributes["decomposition"].value if is_composite(op) else ""
        if name.rpartition(".")[0] in _KERNELS:
            decisions.append(_lower(op, known[name], known))
    return decisions


def _lower(op: ir.Operation, function: func.FuncOp, known: dict[str, func.FuncOp]) -> Decision:
    found = tensor(op.results[0].type)
    name = f"{op.attributes['name'].value.removeprefix(KERNEL_PREFIX)} {found.dtype}{list(found.shape)}"
    program = _program(function)
    if isinstance(program, str):
        return Decision(op=name, reason=program)
    reason = why_not_rows(program)
    if not reason and _is_of_attention(op, program, known):
        reason = "its result goes into a product, as that of attention"
    if reason:
        return Decision(op=name, reason=reason)
    target = row_target(program)
    with ir.InsertionPoint(op), op.location:
        made = kernel_call(target, list(op.operands), [value.type for value in op.results])
    for value, result in zip(op.results, made, strict=True):
        value.replace_all_uses_with(result)
    op.erase()
    return Decision(op=name, target=target, cost=row_cost(program))


def _is_of_attention(op: ir.Operation, program: RowProgram, known: dict[str, func.FuncOp]) -> bool:
    """Whether exponentials go into a product: then another kernel does both, or XLA what is between."""
    readers = [use.owner.operation for value in op.results for use in value.uses]
    ops = [
        inner
        for reader in readers
        for inner in (
            inner_ops(known[reader.attributes["decomposition"].value].operation)
            if is_composite(reader)
            else [reader]
        )
    ]
    has_exponential = any(step.op == "exponential" for step in program.steps)
    return has_exponential and any(kind(inner) == "dot_general" for inner in ops)


class _NotOfRowsError(Exception):
    """Why a function is no program of rows."""


def _program(function: func.FuncOp) -> RowProgram | str:
    """What a function does to the rows of arrays, or why it is not that."""
    ops = operations(function.entry_block)
    reduced = next((tensor(op.operands[0].type).shape for op in ops if kind(op) == "reduce"), ())
    if not reduced:
        return "it has no reduction"
    try:
        return _Reader(math.prod(reduced[:-1]), reduced[-1]).read(function, ops)
    except _NotOfRowsError as error:
        return str(error)


class _Reader:
    """Reads ops one after the other as steps on ``rows`` rows of ``n`` elements.

    An array of as many elements, with any dims, is all rows. What is smaller is one number, numbers of the
    columns along the last dim, or numbers of the rows along the others; what it is stays so where it repeats.
    """

    def __init__(self, rows: int, n: int) -> None:
        self._rows, self._n = rows, n
        self._steps: list[Step] = []
        self._extents: list[str] = []
        self._numbers: dict[ir.Value, int] = {}

    def read(self, function: func.FuncOp, ops: list[ir.Operation]) -> RowProgram:
        for argument in function.entry_block.arguments:
            self._add(argument, Step(op=self._extent(argument), dtype=_dtype(argument)))
        *body, terminator = ops
        for op in body:
            self._op(op)
        results = tuple(self._numbers[value] for value in terminator.operands)
        return RowProgram(rows=self._rows, n=self._n, steps=tuple(self._steps), results=results)

    def _add(self, value: ir.Value, step: Step) -> None:
        self._numbers[value] = len(self._steps)
        self._steps.append(step)
        self._extents.append(extent_of(step, self._extents))

    def _extent(self, argument: ir.Value) -> str:
        shape = tensor(argument.type).shape
        size = math.prod(shape)
        if size == self._rows * self._n:
            return "full"
        if size == 1:
            return "one"
        if size == self._n == shape[-1]:
            return "column"
        raise _NotOfRowsError(f"an argument of {list(shape)} is neither all rows nor one")

    def _op(self, op: ir.Operation) -> None:
        name = kind(op)
        if name in EACH:
            self._each(op)
        elif name in _HANDLED:
            _HANDLED[name](self, op)
        else:
            raise _NotOfRowsError(f"{name} is not among the kernel's steps")

    def _each(self, op: ir.Operation) -> None:
        result = op.results[0]
        operands = tuple(self._numbers[value] for value in op.operands)
        kinds = {self._extents[operand] for operand in operands} - {"one"}
        shape = tensor(result.type).shape
        # Where there are as many rows as columns, one may stand beside the other in shapes that are alike.
        if len(kinds) > 1 and math.prod(shape) != self._rows * self._n:
            raise _NotOfRowsError(f"it has numbers of rows and of columns as {list(shape)}")
        self._add(result, Step(op=kind(op), dtype=_dtype(result), operands=operands))

    def _constant(self, op: ir.Operation) -> None:
        """Of one number, in an array of any size; nothing can be made of an integer but a float."""
        value, result = op.attributes["value"], op.results[0]
        if not isinstance(value, ir.DenseElementsAttr) or not value.is_splat:
            raise _NotOfRowsError("it has an array of constants")
        number = value.get_splat_value().value
        is_exact = isinstance(number, int) and abs(number) <= _EXACT_INTEGERS
        self._add(
            result, Step(op="constant", dtype="f32" if is_exact else _dtype(result), number=float(number))
        )

    def _reduce(self, op: ir.Operation) -> None:
        shape = tensor(op.operands[0].type).shape
        body = [kind(inner.operation) for inner in op.regions[0].blocks[0].operations]
        dims = list(ir.DenseI64ArrayAttr(op.attributes["dimensions"]))
        step, start = _REDUCED.get(body[0], ("", None))
        if len(body) != 2 or len(op.operands) != 2 or start is None or splat(op.operands[1]) != start:
            raise _NotOfRowsError("it reduces by more than a sum or a maximum")
        if dims != [len(shape) - 1] or (math.prod(shape[:-1]), shape[-1]) != (self._rows, self._n):
            raise _NotOfRowsError(f"it reduces dims {dims} of {list(shape)}")
        dtype = _dtype(op.results[0])
        if step == "sum" and dtype != "f32":
            raise _NotOfRowsError(f"its sums are {dtype}")
        number = self._numbers[op.operands[0]]
        self._add(op.results[0], Step(op=step, dtype=dtype, operands=(number,)))

    def _repeat(self, op: ir.Operation) -> None:
        """A broadcast: along dims that are not the value's own it is the same."""
        source, target = tensor(op.operands[0].type).shape, tensor(op.results[0].type).shape
        number = self._numbers[op.operands[0]]
        into = list(ir.DenseI64ArrayAttr(op.attributes["broadcast_dimensions"]))
        own = [dim for dim, size in zip(into, source, strict=True) if size > 1]
        last = len(target) - 1
        others = [dim for dim, size in enumerate(target) if size > 1 and dim not in own]
        fits = {
            "one": True,
            "full": not others,
            "column": own == [last],
            "row": others in ([], [last]) and (not others or target[last] == self._n),
        }
        if own != sorted(own) or not fits[self._extents[number]]:
            raise _NotOfRowsError(f"it repeats {list(source)} along dims of {list(target)}")
        self._numbers[op.results[0]] = number

    def _reshape(self, op: ir.Operation) -> None:
        """New dims change no order. Numbers of columns stay along the last dim."""
        number, shape = self._numbers[op.operands[0]], tensor(op.results[0].type).shape
        if self._extents[number] == "column" and shape[-1] != self._n:
            raise _NotOfRowsError(f"it has one row as {list(shape)}")
        self._numbers[op.results[0]] = number


_HANDLED = {
    "broadcast_in_dim": _Reader._repeat,
    "constant": _Reader._constant,
    "reduce": _Reader._reduce,
    "reshape": _Reader._reshape,
}


def _dtype(value: ir.Value) -> str:
    dtype = tensor(value.type).dtype
    if dtype not in ROUNDED:
        raise _NotOfRowsError(f"{dtype} is not among the kernel's types")
    return dtype
