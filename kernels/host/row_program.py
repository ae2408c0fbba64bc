"""Programs of rows, as softmax and normalisations are: steps on each row of an array, its sums among them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kernels.dtypes import dtype as element_type
from kernels.host.targets import Cost

__all__ = [
    "ARGUMENTS",
    "EACH",
    "REDUCTIONS",
    "RowProgram",
    "Step",
    "extent_of",
    "is_row_target",
    "row_cost",
    "row_program",
    "row_reference",
    "row_target",
    "why_not_rows",
]

ARGUMENTS = ("full", "column", "one")
"""What is read: all rows, one row that is the same for all, or one number."""

EACH: Mapping[str, Callable[..., np.ndarray]] = {
    "abs": np.abs,
    "add": np.add,
    "convert": np.positive,
    "divide": np.divide,
    "exponential": np.exp,
    "log": np.log,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "multiply": np.multiply,
    "negate": np.negative,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "subtract": np.subtract,
}
"""Steps on each element, by StableHLO's names of them."""

REDUCTIONS: Mapping[str, Callable[..., np.ndarray]] = {"sum": np.sum, "highest": np.max}
"""Steps that make one number of each row."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One value: what ``op`` makes of earlier ones, computed in f32 and rounded to ``dtype``.

    ``op`` is one of ARGUMENTS, in the order of the operands, of EACH or REDUCTIONS, or a "constant", which
    has a ``number``.
    """

    op: str
    dtype: str
    operands: tuple[int, ...] = ()
    number: float = 0.0


def extent_of(step: Step, extents: Sequence[str]) -> str:
    """Whether a step is "one" number in all, one of each "row" or "column", or "full"; by those before it."""
    if step.op in ARGUMENTS:
        return step.op
    if step.op in REDUCTIONS:
        return "row"
    found = {extents[operand] for operand in step.operands} - {"one"}
    return "full" if len(found) > 1 else found.pop() if found else "one"


@dataclass(frozen=True, kw_only=True)
class RowProgram:
    """Steps on ``rows`` rows of ``n`` elements; ``results`` are the numbers of those that are given out."""

    rows: int
    n: int
    steps: tuple[Step, ...]
    results: tuple[int, ...]

    @cached_property
    def extents(self) -> tuple[str, ...]:
        """``extent_of`` each step."""
        found: list[str] = []
        for step in self.steps:
            found.append(extent_of(step, found))
        return tuple(found)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Of each step: how many reductions, one after the other, come before it."""
        found: list[int] = []
        for step in self.steps:
            before = max((found[operand] for operand in step.operands), default=0)
            found.append(before + (step.op in REDUCTIONS))
        return tuple(found)

    @property
    def arguments(self) -> tuple[int, ...]:
        return tuple(number for number, step in enumerate(self.steps) if step.op in ARGUMENTS)


_PREFIX = "neuronx_rows"


def row_target(program: RowProgram) -> str:
    """The custom call that does the program: its operands are the arguments, its results the results."""
    steps = ";".join(
        ":".join([step.op, step.dtype, *map(str, step.operands), *_number(step)]) for step in program.steps
    )
    return f"{_PREFIX}/{program.rows}x{program.n}/{steps}/{','.join(map(str, program.results))}"


def _number(step: Step) -> list[str]:
    return [step.number.hex()] if step.op == "constant" else []


def is_row_target(target: str) -> bool:
    return target.startswith(f"{_PREFIX}/")


def row_program(target: str) -> RowProgram:
    """The program of which ``target`` is the ``row_target``."""
    _, sizes, steps, results = target.split("/")
    rows, n = map(int, sizes.split("x"))
    return RowProgram(
        rows=rows,
        n=n,
        steps=tuple(map(_step, steps.split(";"))),
        results=tuple(map(int, results.split(","))),
    )


def _step(text: str) -> Step:
    op, dtype, *rest = text.split(":")
    if op == "constant":
        return Step(op=op, dtype=dtype, number=float.fromhex(rest[0]))
    return Step(op=op, dtype=dtype, operands=tuple(map(int, rest)))


_LEAST_ELEMENTS = 1 << 15
"""Below it XLA's loops take some ten microseconds, and a launch for all cores has them once for all."""

_LEAST_COLUMNS = 64
"""In shorter rows most of the time goes to what is done once a row."""

_MOST_ARRAYS = 24


def why_not_rows(program: RowProgram) -> str:
    """Why XLA does the program itself, or "" where the kernel does."""
    elements, arrays = program.rows * program.n, len(program.arguments) + len(program.results)
    extents = program.extents
    if any(step.op == "log" and extents[number] == "full" for number, step in enumerate(program.steps)):
        return "the logarithm of each element is not among the kernel's steps"
    if any(extents[number] != "full" for number in program.results):
        return "it gives out less than an element for each that it reads"
    if program.rows == 1:
        return "there is one row only"
    if program.n < _LEAST_COLUMNS:
        return f"rows of {program.n} are shorter than {_LEAST_COLUMNS}"
    if arrays > _MOST_ARRAYS:
        return f"{arrays} arrays are more than {_MOST_ARRAYS}"
    return f"{elements} elements are fewer than {_LEAST_ELEMENTS}" if elements < _LEAST_ELEMENTS else ""


def row_cost(program: RowProgram) -> Cost:
    """Of one call: each argument is read once and each result written once."""
    elements = {"full": program.rows * program.n, "row": program.rows, "column": program.n, "one": 1}
    sizes = [elements[extent] for extent in program.extents]
    moved_bytes = sum(
        sizes[number] * element_type(program.steps[number].dtype).bits // 8
        for number in (*program.arguments, *program.results)
    )
    flops = sum(
        sizes[max(step.operands, key=sizes.__getitem__)]
        for step in program.steps
        if step.op != "convert" and step.operands
    )
    return Cost(moved_bytes=moved_bytes, flops=flops)


def row_reference(program: RowProgram, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The exact results in float64 [rows, n], of which the kernel rounds each step."""
    shapes = {"full": (program.rows, program.n), "column": (1, program.n), "one": (1, 1)}
    values: list[np.ndarray] = []
    given = iter(arrays)
    with np.errstate(all="ignore"):
        for step in program.steps:
            operands = [values[operand] for operand in step.operands]
            if step.op in ARGUMENTS:
                values.append(next(given).astype(np.float64).reshape(shapes[step.op]))
            elif step.op == "constant":
                values.append(np.full((1, 1), step.number))
            elif step.op in REDUCTIONS:
                values.append(
                    REDUCTIONS[step.op](np.broadcast_to(*operands, shapes["full"]), axis=1, keepdims=True)
                )
            else:
                values.append(EACH[step.op](*operands))
    return [np.broadcast_to(values[number], shapes["full"]) for number in program.results]
