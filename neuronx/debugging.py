"""Eager debug mode: each op runs by itself on the device's numerics and is compared with a wider type."""

import contextlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from kernels.errors import CompileError
from neuronx.lazy.session import Session
from neuronx.lazy.tensor import LazyArray
from neuronx.lazy.trace import Handle, Node, Value

__all__ = ["CheckedOp", "DebugSession", "NumericsError", "debug"]

_REFERENCES = ("float64", "float32")

# Parameters of primitives that name the type of the result.
_TYPE_PARAMETERS = ("new_dtype", "preferred_element_type", "dtype", "out_dtype")

# The error of one op is a few roundings; those of earlier ops add to it.
_DEFAULT_BOUND_ULPS = 256


class NumericsError(CompileError):
    """An op's error, or a NaN or infinity, exceeds what was allowed; ``checked`` has the figures."""

    def __init__(self, message: str, *, checked: "CheckedOp", location: str, fix: str) -> None:
        super().__init__(message, op=checked.op, location=location, fix=fix)
        self.checked = checked


@dataclass(frozen=True, kw_only=True)
class CheckedOp:
    """One op that ran. Errors are the largest deviation over the largest magnitude of the reference.

    ``own_error`` is that of the op alone, given the operands the device had; ``error`` counts from the
    start. None: it has no floating-point result, or no reference (``why_not`` says why).
    """

    op: str
    line: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    own_error: float | None
    error: float | None
    num_not_finite: int
    why_not: str = ""

    def __str__(self) -> str:
        errors = "not compared: " + self.why_not if self.why_not else f"error {_percent(self.error)}"
        return f"{self.op:<20} {errors}, own {_percent(self.own_error)}  {self.line}"


def debug(
    tp_degree: int | None = None,
    *,
    reference: str = _REFERENCES[0],
    bound: float | None = None,
    stop: bool = True,
    **options: Any,
) -> "DebugSession":
    """``with neuronx.debug(...)``: JAX code inside runs op by op, each compared with ``reference``.

    Args:
      tp_degree: as for ``neuronx.lazy``; so are ``options`` (instance, auto_cast, auto_cast_type, era).
      reference: float64 (default) or float32, in which the same ops run beside.
      bound: the largest error allowed, as a part of the largest magnitude of the reference; left out, 256
        units in the last place of the op's own type.
      stop: raise at the first op beyond it (default); else go on, and ``session.first`` names it.

    Raises:
      CompileError: an option that does not exist.
      NumericsError: (inside) an op beyond the bound, or the first NaN or infinity.
    """
    return DebugSession(tp_degree, reference=reference, bound=bound, stop=stop, **options)


class DebugArray(LazyArray):
    """The array of an op that has run already; control flow on it is plain Python's."""

    __slots__ = ()

    def to_concrete_value(self) -> Any:
        return self.array()


class DebugSession(Session):
    """The context of ``neuronx.debug``; ``ops`` are the checked ops in order, ``first`` the first beyond."""

    array_type = DebugArray

    def __init__(
        self, tp_degree: int | None, *, reference: str, bound: float | None, stop: bool, **options: Any
    ) -> None:
        super().__init__(tp_degree, **options)
        if reference not in _REFERENCES:
            raise CompileError(
                f"reference is {reference!r}, expected one of {', '.join(_REFERENCES)}", op="neuronx.debug"
            )
        self._reference = np.dtype(reference)
        self._bound, self._stop = bound, stop
        self._shadows: weakref.WeakKeyDictionary[Value, np.ndarray] = weakref.WeakKeyDictionary()
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
        operands = [_known(atom) for atom in node.inputs]
        self._run([handle.value for handle in handles], "debug")
        results = [handle.value for handle in handles]
        own, why_not = self._compare(node, [self._widened(operand) for operand in operands], results)
        shadows = [self._shadow(atom) for atom in node.inputs]
        total = None
        if not why_not:
            wide = _evaluate(node, shadows, self._reference)
            total = _largest(_error(value, other) for value, other in zip(results, wide, strict=True))
            for value, other in zip(results, wide, strict=True):
                if _is_float(value.aval):
                    self._shadows[value] = other
        checked = CheckedOp(
            op=node.primitive.name,
            line=node.line,
            operands=tuple(_describe(operand) for operand in operands),
            results=tuple(_describe(_host(value)) for value in results),
            own_error=own,
            error=total,
            num_not_finite=sum(_num_not_finite(value) for value in results),
            why_not=why_not,
        )
        self.ops.append(checked)
        self._judge(checked, operands, results)

    def summary(self, count: int = 10) -> str:
        """The first op beyond the bound, and the ``count`` ops with the largest own errors."""
        worst = sorted(self.ops, key=lambda one: -(one.own_error or 0.0))[:count]
        uncompared = sum(bool(one.why_not) for one in self.ops)
        head = f"{len(self.ops)} ops, {uncompared} without a reference"
        first = f"first beyond the bound: {self.first}" if self.first else "none beyond the bound"
        return "\n".join([head, first, *map(str, worst)])

    def _compare(
        self, node: Node, operands: Sequence[Any], results: Sequence[Value]
    ) -> tuple[float | None, str]:
        if not any(_is_float(value.aval) for value in results):
            return None, "no floating-point result"
        try:
            wide = _evaluate(node, operands, self._reference)
        except Exception as error:  # an op's rule may refuse the wider type in ways of its own
            return None, f"it does not run in {self._reference.name}: {str(error).splitlines()[0]}"
        return _largest(_error(value, other) for value, other in zip(results, wide, strict=True)), ""

    def _widened(self, operand: Any) -> Any:
        kind = getattr(operand, "dtype", None)
        is_float = kind is not None and jnp.issubdtype(kind, jnp.floating)
        return np.asarray(operand).astype(self._reference) if is_float else operand

    def _shadow(self, atom: Any) -> Any:
        found = self._shadows.get(atom) if isinstance(atom, Value) else None
        return self._widened(_known(atom)) if found is None else found

    def _judge(self, checked: CheckedOp, operands: Sequence[Any], results: Sequence[Value]) -> None:
        floats = [value.aval.dtype for value in results if _is_float(value.aval)]
        if self.first is not None or not floats:
            return
        bound = self._bound
        if bound is None:
            bound = max(_DEFAULT_BOUND_ULPS * float(jnp.finfo(dtype).eps) for dtype in floats)
        fresh = checked.num_not_finite and not any(_has_not_finite(operand) for operand in operands)
        if not fresh and (checked.error is None or checked.error <= bound):
            return
        self.first = checked
        if self._stop:
            what = (
                f"{checked.num_not_finite} elements of its result are NaN or infinite"
                if fresh
                else f"the error is {_percent(checked.error)}, allowed are {_percent(bound)}; "
                f"its own part is {_percent(checked.own_error)}"
            )
            table = [f"operand {n}: {text}" for n, text in enumerate(checked.operands)]
            table += [f"result {n}: {text}" for n, text in enumerate(checked.results)]
            raise NumericsError(
                "\n  ".join([what, *table]),
                checked=checked,
                location=checked.line,
                fix="keep this op in a wider type, rescale its operands, or allow more with bound=",
            )


def _evaluate(node: Node, operands: Sequence[Any], dtype: np.dtype) -> list[np.ndarray]:
    """The op on the host, with floating-point results in ``dtype``."""
    params = {
        name: dtype if name in _TYPE_PARAMETERS and _is_float_type(value) else value
        for name, value in node.params.items()
    }
    with jax.enable_x64(True), jax.disable_jit(False):
        known = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in operands]
        results = node.primitive.bind(*known, **params)
    several = node.primitive.multiple_results
    return [_raw(result) for result in (results if several else [results])]


def _known(atom: Any) -> Any:
    if isinstance(atom, Literal):
        return atom.val
    return _host(atom)


def _host(value: Value) -> Any:
    result = value.result
    if isinstance(result, jax.Array) and jax.dtypes.issubdtype(result.dtype, jax.dtypes.prng_key):
        return result
    return np.asarray(result, None if hasattr(result, "dtype") else value.aval.dtype)


def _raw(result: Any) -> Any:
    is_key = jax.dtypes.issubdtype(getattr(result, "dtype", np.float32), jax.dtypes.prng_key)
    return result if is_key else np.asarray(result)


def _is_float_type(value: Any) -> bool:
    try:
        return bool(jnp.issubdtype(value, jnp.floating))
    except TypeError:
        return False


def _is_float(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.floating))


def _error(value: Value, wide: np.ndarray) -> float | None:
    """The largest deviation over the largest magnitude; elements that are not finite in both are equal."""
    if not _is_float(value.aval) or not wide.size:
        return None
    got = np.asarray(value.result).astype(np.float64)
    wide = wide.astype(np.float64)
    both = np.isfinite(got) & np.isfinite(wide)
    if not both.any():
        return 0.0
    scale = np.abs(wide[both]).max()
    return float(np.abs(got - wide)[both].max() / scale) if scale else float(np.abs(got[both]).max())


def _largest(errors: Any) -> float | None:
    known = [error for error in errors if error is not None]
    return max(known) if known else None


def _has_not_finite(operand: Any) -> bool:
    kind = getattr(operand, "dtype", None)
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        return False
    return not bool(np.isfinite(np.asarray(operand).astype(np.float64)).all())


def _num_not_finite(value: Value) -> int:
    if not _is_float(value.aval):
        return 0
    return int((~np.isfinite(np.asarray(value.result).astype(np.float64))).sum())


def _describe(array: Any) -> str:
    """``float32[4, 3], -1.2 to 3.4, mean 0.1, 2 not finite``."""
    kind, shape = getattr(array, "dtype", type(array).__name__), np.shape(array)
    text = f"{kind}{list(shape)}"
    if not isinstance(array, np.ndarray) or not array.size or not jnp.issubdtype(kind, jnp.number):
        return text
    wide = array.astype(np.complex128 if jnp.issubdtype(kind, jnp.complexfloating) else np.float64)
    finite = wide[np.isfinite(wide)]
    if finite.size and not np.iscomplexobj(finite):
        text += f", {finite.min():.6g} to {finite.max():.6g}, mean {finite.mean():.6g}"
    return text + (f", {wide.size - finite.size} not finite" if finite.size < wide.size else "")


def _percent(error: float | None) -> str:
    return "none" if error is None else f"{error:.3g}"
