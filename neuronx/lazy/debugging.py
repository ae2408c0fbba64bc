"""Eager debug mode: each op runs by itself on the device's numerics and is compared with a wider type."""

import contextlib
import dataclasses
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from kernels.errors import CompileError
from neuronx.function import Function
from neuronx.lazy.reference import (
    Comparison,
    compare,
    describe,
    is_inexact,
    num_not_finite,
    roundoff,
    widened,
)
from neuronx.lazy.session import Session
from neuronx.lazy.tensor import LazyArray
from neuronx.lazy.trace import Handle, Node, Value

__all__ = ["CheckedOp", "DebugArray", "DebugFunction", "DebugSession", "NumericsError", "debug"]

_REFERENCES = ("float64", "float32")

# What is allowed of one op without ``bound``, in units in the last place of the coarsest type on the way. All
# up to it may lose half of the digits.
_OWN_ULPS = 16

# One unit in the last place of 1 in the types that auto_cast narrows to.
_CAST_ROUNDOFF = {"bf16": 2**-7, "fp16": 2**-10, "tf32": 2**-10, "fp8_e4m3": 2**-3}


class NumericsError(CompileError):
    """An op's error, or a NaN or infinity, exceeds what was allowed; ``checked`` has the figures."""

    def __init__(self, message: str, *, checked: "CheckedOp", fix: str) -> None:
        super().__init__(message, op=checked.op, location=checked.line, fix=fix)
        self.checked = checked


@dataclass(frozen=True, kw_only=True)
class CheckedOp:
    """One op that ran. Errors are the largest deviation as a part of the reference's largest magnitude.

    ``own_error`` is that of the op alone, given the operands the device had; ``error`` counts from the
    start. None: there is no reference, and ``why_not`` says why. ``operands`` and ``results`` are types and
    statistics. ``beyond`` says in words what is wrong with it, "" where nothing is.
    """

    op: str
    line: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    own_error: float | None
    error: float | None
    why_not: str
    beyond: str

    def __str__(self) -> str:
        if self.why_not:
            return f"{self.op:<24} not compared: {self.why_not}  {self.line}"
        return f"{self.op:<24} error {self.error:.2g}, own {self.own_error:.2g}  {self.line}"


@dataclass(frozen=True, kw_only=True)
class _Wide:
    """What a value would be had all been computed in the wider type.

    ``scale`` is what its error is measured by, ``roundoff`` that of the coarsest type on its way.
    """

    array: np.ndarray
    scale: float
    roundoff: float


class DebugArray(LazyArray):
    """The array of an op that has run already; control flow on it is plain Python's."""

    __slots__ = ()

    def to_concrete_value(self) -> Any:
        return self.array()


class DebugSession(Session):
    """``with neuronx.debug(...)``: JAX code inside runs op by op, each compared with ``reference``.

    ``ops`` are the checked ops in order, ``first`` is the first of them beyond the bound, or None.

    Args:
      tp_degree: as for ``neuronx.lazy``; so are ``options`` (instance, auto_cast, ...).
      reference: float64 (default) or float32, in which the same ops run beside.
      bound: the largest error allowed, as a part of the largest magnitude of the reference. Left out: of one
        op 16 units in the last place of the coarsest type on the way, of all up to it the square root of one
        (half of the digits).
      stop: raise at the first op beyond it (default); else go on, and ``first`` names it.

    Raises:
      CompileError: an option that does not exist.
      NumericsError: (inside) an op beyond the bound, or the first NaN or infinity.
    """

    array_type = DebugArray

    def __init__(
        self,
        tp_degree: int | None = None,
        *,
        reference: str = _REFERENCES[0],
        bound: float | None = None,
        stop: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(tp_degree, **options)
        if reference not in _REFERENCES:
            raise CompileError(
                f"reference is {reference!r}, expected one of {', '.join(_REFERENCES)}", op="neuronx.debug"
            )
        self._kind = np.dtype(reference)
        self._bound, self._stop = bound, stop
        cast = self._options.auto_cast != "none"
        self._least_roundoff = _CAST_ROUNDOFF[self._options.auto_cast_type] if cast else 0.0
        self._wide: weakref.WeakKeyDictionary[Value, _Wide] = weakref.WeakKeyDictionary()
        self._op_by_op: list[contextlib.AbstractContextManager[Any]] = []
        self.ops: list[CheckedOp] = []
        self.first: CheckedOp | None = None

    def __enter__(self) -> "DebugSession":
        super().__enter__()
        # Jitted functions, scans and conditions run as Python, so that each op inside arrives by itself.
        op_by_op = jax.disable_jit()
        op_by_op.__enter__()
        self._op_by_op.append(op_by_op)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self._op_by_op.pop().__exit__(None, None, None)
        super().__exit__(kind, error, traceback)

    def recorded(self, node: Node, handles: Sequence[Handle]) -> None:
        """Runs the op and checks what it gave."""
        values = [handle.value for handle in handles]
        self._run(values, "debug")
        operands, results = [_known(atom) for atom in node.inputs], [_host(value) for value in values]
        exact = [widened(operand, self._kind) for operand in operands]
        own = total = self._compare(node, exact, [0.0] * len(exact), results)
        if own.values is not None:
            earlier = [self._wide.get(atom) if isinstance(atom, Value) else None for atom in node.inputs]
            wide = [x if found is None else found.array for x, found in zip(exact, earlier, strict=True)]
            scales = [0.0 if found is None else found.scale for found in earlier]
            total = self._compare(node, wide, scales, results)
        coarsest = max([self._least_roundoff, *map(self._roundoff_of, [*node.inputs, *values])])
        for value, array, scale in zip(values, total.values or (), total.scales, strict=False):
            if is_inexact(array):  # choices (an index, a comparison) stay the device's
                self._wide[value] = _Wide(array=array, scale=scale, roundoff=coarsest)
        checked = CheckedOp(
            op=node.primitive.name,
            line=node.line,
            operands=tuple(map(describe, operands)),
            results=tuple(map(describe, results)),
            own_error=own.error,
            error=total.error,
            why_not=total.why_not,
            beyond=_not_finite(operands, results) or self._too_much(own.error, total.error, coarsest),
        )
        self.ops.append(checked)
        if checked.beyond and self.first is None:
            self.first = checked
            if self._stop:
                raise _numerics_error(checked)

    def summary(self, count: int = 10) -> str:
        """The first op beyond the bound, and the ``count`` ops with the largest own errors."""
        compared = [one for one in self.ops if not one.why_not]
        worst = sorted(compared, key=lambda one: -one.own_error)[:count]
        first = f"first beyond the bound: {self.first}" if self.first else "none beyond the bound"
        return "\n".join([f"{len(self.ops)} ops, {len(compared)} compared", first, *map(str, worst)])

    def _check_budget(self, changed: str) -> None:
        """Each op is a graph: a budget meant for whole steps does not hold here."""

    def _compare(
        self, node: Node, operands: Sequence[Any], scales: Sequence[float], results: Sequence[Any]
    ) -> Comparison:
        return compare(node.primitive, node.params, operands, scales, results, self._kind)

    def _roundoff_of(self, atom: Any) -> float:
        found = self._wide.get(atom) if isinstance(atom, Value) else None
        return roundoff(atom.aval.dtype) if found is None else found.roundoff

    def _too_much(self, own: float | None, total: float | None, ulp: float) -> str:
        all_of_it = math.sqrt(ulp) if self._bound is None else self._bound
        of_one = min(_OWN_ULPS * ulp, all_of_it) if self._bound is None else self._bound
        for what, error, allowed in (
            ("its own error", own, of_one),
            ("the error up to it", total, all_of_it),
        ):
            if error is not None and error > allowed:
                return f"{what} is {error:.3g} of the largest element, allowed is {allowed:.3g}"
        return ""


debug = DebugSession


class DebugFunction(Function):
    """What ``neuronx.compile`` returns under NEURONX_EAGER_DEBUG: a call runs op by op and checks each."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        options = dataclasses.asdict(self._options)
        options["tp_degree"] = self._tp_degree
        session = DebugSession(**options)
        with session:
            results = self.__wrapped__(*args, **kwargs)
        return jax.tree.map(
            lambda leaf: leaf.array() if isinstance(leaf, LazyArray) else jnp.asarray(leaf), results
        )


def _known(atom: Any) -> Any:
    return atom.val if isinstance(atom, Literal) else _host(atom)


def _host(value: Value) -> Any:
    result = value.result
    if jax.dtypes.issubdtype(value.aval.dtype, jax.dtypes.extended):
        return result
    return np.asarray(result, None if hasattr(result, "dtype") else value.aval.dtype)


def _not_finite(operands: Sequence[Any], results: Sequence[Any]) -> str:
    """What is NaN or infinite of the results of finite operands."""
    count = sum(map(num_not_finite, results))
    if not count or any(map(num_not_finite, operands)):
        return ""
    return f"{count} elements of its results are NaN or infinite, and all operands are finite"


def _numerics_error(checked: CheckedOp) -> NumericsError:
    table = [f"operand {n}: {text}" for n, text in enumerate(checked.operands)]
    table += [f"result {n}: {text}" for n, text in enumerate(checked.results)]
    if checked.error is not None:
        table.append(f"error of the op alone {checked.own_error:.3g}, from the start {checked.error:.3g}")
    return NumericsError(
        "\n  ".join([checked.beyond, *table]),
        checked=checked,
        fix="compute it in a wider type, rescale its operands, or allow more: bound=, stop=False",
    )
