"""Which ops of a kernel are together one activation of the scalar engine: GELU, SiLU, erf and the like.

StableHLO has no such ops: they arrive as polynomials or as a handful of sums, products and exponentials.
What they compute is found out by computing it on a few points.
"""

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from hlo_passes.ir import ir
from hlo_passes.ops import CASTS, direction, kind, splat, tensor
from kernels.dtypes import dtype

__all__ = ["TABLE", "activations"]

_erf = np.vectorize(math.erf)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# What the scalar engine's tables hold. Source: nki/api/nki.language, "supported activation functions".
TABLE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: x * 0.5 * (1 + _erf(x * math.sqrt(0.5))),
    "gelu_apprx_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_apprx_sigmoid": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.logaddexp(x, 0),
    "mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "erf": _erf,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}

_POINTS = np.linspace(-5.0, 5.0, 41)
# Half-precision constants are off by up to 2^-9; the functions of the table differ by more than this.
_TOLERANCE = 4e-3
_EPSILON = 1e-30

_NUMPY: Mapping[str, Callable[..., np.ndarray]] = {
    "abs": np.abs,
    "add": np.add,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "convert": lambda x: x,
    "divide": lambda x, y: x / np.where(np.abs(y) < _EPSILON, _EPSILON, y),
    "exponential": np.exp,
    "exponential_minus_one": np.expm1,
    "log": lambda x: np.log(np.maximum(x, _EPSILON)),
    "log_plus_one": lambda x: np.log1p(np.maximum(x, _EPSILON - 1)),
    "logistic": _sigmoid,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "multiply": np.multiply,
    "negate": np.negative,
    "reduce_precision": lambda x: x,
    "subtract": np.subtract,
    "tanh": np.tanh,
}
_COMPARE: Mapping[str, Callable[..., np.ndarray]] = {
    "EQ": np.equal,
    "GE": np.greater_equal,
    "GT": np.greater,
    "LE": np.less_equal,
    "LT": np.less,
    "NE": np.not_equal,
}
_KNOWN = frozenset({*_NUMPY, "compare", "select"})
# No function of the table is made without one of these.
_TELLING = frozenset({"divide", "exponential", "exponential_minus_one", "logistic", "log_plus_one", "tanh"})
_REPEATS = frozenset({"broadcast_in_dim", "reshape"})
_AT_LEAST = 2


def activations(block: ir.Block) -> tuple[set[ir.Operation], set[ir.Operation]]:
    """(ops whose result is one activation's, ops that this activation replaces) in a kernel's body."""
    sources, constants = _sources(block)
    roots: set[ir.Operation] = set()
    inside: set[ir.Operation] = set()
    for view in reversed(list(block.operations)):
        op = view.operation
        # A cast of the result costs nothing: the activation is what it casts.
        if op in inside or kind(op) not in _KNOWN - CASTS or op.results[0] not in sources:
            continue
        cone = _cone(op, sources)
        if len(cone) < _AT_LEAST or not any(kind(member) in _TELLING for member in cone):
            continue
        if _is_in_table(cone, sources[op.results[0]], constants):
            roots.add(op)
            inside |= _unused_elsewhere(cone, op)
    return roots, inside


def _sources(block: ir.Block) -> tuple[dict[ir.Value, ir.Value], dict[ir.Value, float]]:
    """The one value that each elementwise value is a function of; and the values of the constants."""
    sources: dict[ir.Value, ir.Value] = {}
    constants: dict[ir.Value, float] = {}
    for view in block.operations:
        op = view.operation
        if len(op.results) != 1:
            continue
        result = op.results[0]
        if kind(op) == "constant":
            value = splat(result)
            if value is not None:
                constants[result] = value
        elif kind(op) in _REPEATS | CASTS and op.operands[0] in constants:
            constants[result] = constants[op.operands[0]]
        elif kind(op) in _KNOWN and _is_real(result):
            found = {sources.get(value, value) for value in op.operands if value not in constants}
            sources[result] = found.pop() if len(found) == 1 else result
    return sources, constants


def _is_real(value: ir.Value) -> bool:
    found = dtype(tensor(value.type).dtype)
    return not found.is_integer and not found.is_complex


def _cone(op: ir.Operation, sources: Mapping[ir.Value, ir.Value]) -> tuple[ir.Operation, ...]:
    """The ops between the source of ``op`` and ``op`` itself, which comes last."""
    source = sources[op.results[0]]
    ordered: dict[ir.Operation, None] = {}

    def visit(at: ir.Operation) -> None:
        for value in at.operands:
            if value != source and value in sources and sources[value] == source:
                maker = value.owner.operation
                if maker not in ordered:
                    visit(maker)
        ordered[at] = None

    visit(op)
    return tuple(ordered)


def _is_in_table(cone: Iterable[ir.Operation], source: ir.Value, constants: Mapping[ir.Value, float]) -> bool:
    values: dict[ir.Value, np.ndarray] = {source: _POINTS}
    with np.errstate(all="ignore"):
        for op in cone:
            operands = (values.get(value, constants.get(value, 0.0)) for value in op.operands)
            values[op.results[0]] = _compute(op, *operands)
        result = values[op.results[0]]
        return any(np.allclose(result, exact(_POINTS), atol=_TOLERANCE) for exact in TABLE.values())


def _compute(op: ir.Operation, *operands: np.ndarray | float) -> np.ndarray:
    if kind(op) == "select":
        return np.where(*operands)
    if kind(op) == "compare":
        return _COMPARE[direction(op)](*operands)
    return _NUMPY[kind(op)](*operands)


def _unused_elsewhere(cone: tuple[ir.Operation, ...], root: ir.Operation) -> set[ir.Operation]:
    """The ops of the cone whose result nobody but the activation takes."""
    gone = {root}
    for op in reversed(cone[:-1]):
        if all(use.owner.operation in gone for use in op.results[0].uses):
            gone.add(op)
    return gone - {root}
