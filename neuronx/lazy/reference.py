"""One op beside itself in a wider type: the reference's numbers, and how far the device's are from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive

from neuronx.lazy.trace import eagerly

__all__ = [
    "Comparison",
    "compare",
    "describe",
    "is_inexact",
    "num_not_finite",
    "numbers",
    "roundoff",
    "widened",
]

# Parameters of primitives that name the type of the result.
_TYPE_PARAMETERS = frozenset({"dtype", "new_dtype", "out_dtype", "preferred_element_type"})

# They read or write the bits of a float: in a wider type they compute something else.
_OF_BITS = frozenset({"bitcast_convert_type", "nextafter", "reduce_precision"})

# What adds many terms: its error is measured by the sum of their magnitudes, not by what they cancel to.
_SUMS = frozenset(
    {"conv_general_dilated", "cumsum", "dot_general", "reduce_sum", "reduce_window_sum", "scatter-add"}
)

# Terms this much larger than the result cancelled.
_CANCELLED = 16


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``values`` are the op's results in the wider type, ``error`` the device's largest deviation from them.

    The error is a part of the largest of ``scales``: for each result the magnitude that its error is to be
    measured by. That is its largest element; but where terms of another size cancelled on the way, that
    size. ``values`` and ``error`` are None where ``why_not`` says why there is no reference.
    """

    values: tuple[Any, ...] | None = None
    scales: tuple[float, ...] = ()
    error: float | None = None
    why_not: str = ""


def compare(
    primitive: Primitive,
    params: Mapping[str, Any],
    operands: Sequence[Any],
    scales: Sequence[float],
    got: Sequence[Any],
    kind: np.dtype,
) -> Comparison:
    """Evaluates ``primitive`` on the host with floats of type ``kind`` (float32 or float64).

    Args:
      primitive, params: the op.
      operands: arrays that ``widened`` gave, or earlier comparisons.
      scales: of each operand what an earlier comparison gave, or 0.
      got: the device's results.
      kind: the wider type.
    """
    if not any(map(is_inexact, got)):
        return Comparison(why_not="no floating-point result")
    if primitive.name in _OF_BITS:
        return Comparison(why_not="it works on the bits of a float")
    try:
        values = _evaluate(primitive, params, operands, kind)
        terms = values
        if primitive.name in _SUMS:
            magnitudes = [np.abs(operand) if is_inexact(operand) else operand for operand in operands]
            terms = _evaluate(primitive, params, magnitudes, kind)
    except Exception as error:  # an op may refuse the wider type in ways of its own
        return Comparison(why_not=f"not in {kind.name}: {_first_line(error)}")
    inherited = _inherited_scale(primitive, params, operands, scales)
    sizes = tuple(max(_largest(term), inherited) if is_inexact(term) else 0.0 for term in terms)
    errors = [_error(*three) for three in zip(got, values, sizes, strict=True) if is_inexact(three[0])]
    return Comparison(values=values, scales=sizes, error=max(errors))


def _inherited_scale(
    primitive: Primitive, params: Mapping[str, Any], operands: Sequence[Any], scales: Sequence[float]
) -> float:
    """What the scale of operands that cancelled becomes in the result; 0 where none did."""
    sizes = [_largest(operand) if is_inexact(operand) else 0.0 for operand in operands]
    cancelled = [scale for scale, size in zip(scales, sizes, strict=True) if scale > _CANCELLED * size]
    if not cancelled:
        return 0.0
    if primitive.name == "mul":
        return math.prod(map(max, scales, sizes))
    if primitive.name == "integer_pow":
        return max(cancelled) ** abs(params["y"])
    if primitive.name == "div":
        return max(scales[0], sizes[0]) / (sizes[1] or 1.0)
    return max(cancelled)


def is_inexact(value: Any) -> bool:
    """Whether it is an array or number of a real or complex floating-point type."""
    kind = getattr(value, "dtype", None)
    return kind is not None and bool(jnp.issubdtype(kind, jnp.inexact))


def widened(value: Any, kind: np.dtype) -> Any:
    """``value`` with floats as ``kind`` (complex: of twice its size); others as they are."""
    if not is_inexact(value):
        return value
    return np.asarray(value).astype(_wider(value.dtype, kind))


def roundoff(dtype: Any) -> float:
    """One unit in the last place of 1 in a floating-point type; 0 for others."""
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0


def num_not_finite(value: Any) -> int:
    """How many elements are NaN or infinite."""
    return int((~np.isfinite(numbers(value))).sum()) if is_inexact(value) else 0


def describe(value: Any) -> str:
    """``float32[4, 3], -1.2 to 3.4, mean 0.1, 2 not finite``."""
    kind, shape = getattr(value, "dtype", type(value).__name__), list(np.shape(value))
    text = f"{kind}{shape}"
    if 0 in shape or not isinstance(value, np.ndarray) or not jnp.issubdtype(kind, jnp.number):
        return text
    known = numbers(value)
    finite = known[np.isfinite(known)]
    if finite.size and not np.iscomplexobj(finite):
        text += f", {finite.min():.6g} to {finite.max():.6g}, mean {finite.mean():.6g}"
    return text + (f", {known.size - finite.size} not finite" if finite.size < known.size else "")


def _evaluate(
    primitive: Primitive, params: Mapping[str, Any], operands: Sequence[Any], kind: np.dtype
) -> tuple[Any, ...]:
    with eagerly(), jax.enable_x64(True), jax.disable_jit(False):
        known = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in operands]
        results = _bind(primitive, params, known, kind)
        return tuple(np.asarray(result) if is_inexact(result) else result for result in results)


def _bind(
    primitive: Primitive, params: Mapping[str, Any], operands: Sequence[Any], kind: np.dtype
) -> Sequence[Any]:
    wide = {name: _widened_parameter(name, value, kind) for name, value in params.items()}
    if "precision" in wide:
        wide["precision"] = None  # a request for fewer bits
    results = primitive.bind(*operands, **primitive.get_bind_params(wide))
    return results if primitive.multiple_results else [results]


def _widened_parameter(name: str, value: Any, kind: np.dtype) -> Any:
    if isinstance(value, ClosedJaxpr):
        return _widened_function(value, kind)
    if isinstance(value, Jaxpr):
        return _widened_function(ClosedJaxpr(value, ()), kind).jaxpr
    if type(value) is tuple:
        return tuple(_widened_parameter("", item, kind) for item in value)
    return _wider(value, kind) if name in _TYPE_PARAMETERS and _is_inexact_type(value) else value


def _widened_function(closed: ClosedJaxpr, kind: np.dtype) -> ClosedJaxpr:
    """The function inside a primitive (a loop's body, what a scatter combines by) in the wider type."""
    jaxpr = closed.jaxpr

    def run(*args: Any) -> list[Any]:
        env = dict(zip(jaxpr.invars, args, strict=True))
        env.update((var, widened(x, kind)) for var, x in zip(jaxpr.constvars, closed.consts, strict=True))
        read = lambda atom: widened(atom.val, kind) if isinstance(atom, Literal) else env[atom]  # noqa: E731
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _OF_BITS:
                raise TypeError(f"{eqn.primitive.name} works on the bits of a float")
            env.update(
                zip(
                    eqn.outvars, _bind(eqn.primitive, eqn.params, [*map(read, eqn.invars)], kind), strict=True
                )
            )
        return [read(atom) for atom in jaxpr.outvars]

    return jax.make_jaxpr(run)(*(_widened_type(var.aval, kind) for var in jaxpr.invars))


def _widened_type(aval: Any, kind: np.dtype) -> Any:
    dtype = _wider(aval.dtype, kind) if _is_inexact_type(aval.dtype) else aval.dtype
    return jax.ShapeDtypeStruct(aval.shape, dtype, weak_type=aval.weak_type)


def _error(got: Any, value: Any, scale: float) -> float:
    """The largest deviation, as a part of ``scale``, of elements that are finite in both."""
    got, value = numbers(got), numbers(value)
    assert got.shape == value.shape, "the reference is of another shape"
    both = np.isfinite(got) & np.isfinite(value)
    deviation = np.abs(got[both] - value[both]).max(initial=0.0)
    return float(deviation / (scale or 1.0))


def _largest(value: Any) -> float:
    """The largest finite magnitude."""
    sizes = np.abs(numbers(value))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def numbers(value: Any) -> np.ndarray:
    """An array of numbers of any type as float64, or complex128."""
    is_complex = jnp.issubdtype(value.dtype, jnp.complexfloating)
    return np.asarray(value).astype(np.complex128 if is_complex else np.float64)


def _wider(dtype: Any, kind: np.dtype) -> np.dtype:
    return np.result_type(kind, np.complex64) if jnp.issubdtype(dtype, jnp.complexfloating) else kind


def _is_inexact_type(value: Any) -> bool:
    try:
        return bool(jnp.issubdtype(value, jnp.inexact))
    except TypeError:
        return False


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
