"""What a softmax, and what the scores it takes, are made of."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from hlo_passes.ir import ir
from hlo_passes.ops import kind, maker, splat, tensor
from kernels.dtypes import dtype as element_type
from kernels.host.targets import ROUNDED

__all__ = ["Scores", "Softmax", "scores_of", "softmax_of"]


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """One over the last dim of ``scores``; ``steps`` is the type of each step, though f32 are added up.

    ``op`` makes its results, which are then ``rounded`` to a type.
    """

    scores: ir.Value
    op: ir.Operation
    steps: str
    rounded: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A product times ``factor``, over ``divisor``, plus ``bias``; where the ``mask`` is false, ``fill``.

    A mask that ``hides`` is true there. ``dims`` are those of the product by those of the scores, but for
    dims of size one. ``rounded`` are the types of the product, of what was scaled, and of what was biased;
    ``done`` is the last step of _STEPS. Bias and mask are what they repeat, and of each of its dims the one
    of the scores.
    """

    product: ir.Operation
    dims: Mapping[int, int]
    factor: float = 1.0
    divisor: float = 1.0
    bias: tuple[ir.Value, list[int]] | None = None
    mask: tuple[ir.Value, list[int]] | None = None
    hides: bool = False
    fill: float = 0.0
    rounded: tuple[str, str, str] = ("f32", "f32", "f32")
    done: int = 0


def softmax_of(value: ir.Value) -> Softmax | None:
    """The softmax that ``value`` is the result of, if it is one."""
    types = set()
    while (op := _made(value, "convert")) is not None:
        types.add(tensor(value.type).dtype)
        value = op.operands[0]
    steps = tensor(value.type).dtype
    rounded = {*types, steps} - {"f32"} or {"f32"}
    divided = _made(value, "divide")
    powers = divided and _made(divided.operands[0], "exponential")
    shifted = powers and _made(powers.operands[0], "subtract")
    if shifted is None or len(rounded) > 1:
        return None
    scores, highest = shifted.operands[0], _repeated_whole(shifted.operands[1])
    at_least = _made(highest, "maximum")
    if at_least is not None and splat(_repeated_whole(at_least.operands[0])) == -math.inf:
        highest = at_least.operands[1]
    is_softmax = _is_reduced(highest, scores, "maximum", -math.inf) and _is_sum(
        _repeated_whole(divided.operands[1]), powers.results[0]
    )
    return Softmax(scores=scores, op=divided, steps=steps, rounded=rounded.pop()) if is_softmax else None


def _is_sum(value: ir.Value, powers: ir.Value) -> bool:
    """Whether ``value`` is the sum of ``powers`` along their last dim, added up in f32."""
    narrowed = _made(value, "convert")
    if narrowed is None:
        return tensor(value.type).dtype == "f32" and _is_reduced(value, powers, "add", 0.0)
    total = _repeated_whole(narrowed.operands[0])
    widened = _made(total, "reduce") and _made(maker(total).operands[0], "convert")
    return (
        widened is not None
        and tensor(total.type).dtype == "f32"
        and widened.operands[0] == powers
        and _is_reduced(total, widened.results[0], "add", 0.0)
    )


def scores_of(value: ir.Value, before: int = 4) -> Scores | None:
    """What scores are made of, each step at most once, in the order of ``_STEPS``; None if of others.

    Args:
      before: only steps with a lower number are taken.
    """
    op = maker(value)
    number, step = _STEPS.get(kind(op) if op is not None else "", (4, _product))
    scores = step(op, before) if number < before else None
    return _rounded(scores, tensor(value.type).dtype) if scores is not None else None


def _rounded(scores: Scores, dtype: str) -> Scores | None:
    """The scores as values of a type, which may be narrower than what their last step makes."""
    last = min(scores.done, _BIASED)
    if dtype == "f32":
        return scores
    if dtype not in ROUNDED or scores.rounded[last] not in ("f32", dtype):
        return None
    first, second, third = (dtype if step == last else name for step, name in enumerate(scores.rounded))
    return replace(scores, rounded=(first, second, third), fill=_as_type(scores.fill, dtype))


def _product(op: ir.Operation, before: int) -> Scores:
    shape = tensor(op.results[0].type).shape
    return Scores(product=op, dims={dim: dim for dim, size in enumerate(shape) if size > 1})


def _converted(op: ir.Operation, before: int) -> Scores | None:
    return scores_of(op.operands[0], before)


def _transposed(op: ir.Operation, before: int) -> Scores | None:
    scores = scores_of(op.operands[0], min(before, _BIASED))
    if scores is None:
        return None
    order = enumerate(ir.DenseI64ArrayAttr(op.attributes["permutation"]))
    return replace(scores, dims={dim: scores.dims[at] for dim, at in order if at in scores.dims})


def _reshaped(op: ir.Operation, before: int) -> Scores | None:
    """Where only dims of size one are others."""
    scores = scores_of(op.operands[0], min(before, _BIASED))
    shapes = tensor(op.operands[0].type).shape, tensor(op.results[0].type).shape
    places, dims = ([dim for dim, size in enumerate(shape) if size > 1] for shape in shapes)
    if scores is None or [shapes[0][at] for at in places] != [shapes[1][dim] for dim in dims]:
        return None
    return replace(scores, dims={dim: scores.dims[at] for dim, at in zip(dims, places, strict=True)})


def _scaled(op: ir.Operation, before: int) -> Scores | None:
    name, places = ("factor", (0, 1)) if kind(op) == "multiply" else ("divisor", (0,))
    for place in places:
        scale = _number(op.operands[1 - place])
        scores = scores_of(op.operands[place], _SCALED) if scale is not None else None
        if scores is not None:
            return replace(scores, done=_SCALED, **{name: scale})
    return None


def _biased(op: ir.Operation, before: int) -> Scores | None:
    for place in (0, 1):
        scores = scores_of(op.operands[place], _BIASED)
        if scores is not None:
            bias, dims = _repeated(op.operands[1 - place])
            return _hidden(scores, bias, dims) or replace(scores, done=_BIASED, bias=(bias, dims))
    return None


def _hidden(scores: Scores, bias: ir.Value, dims: list[int]) -> Scores | None:
    """The scores masked, where a bias is nought or a number so low that no score changes it."""
    select = _made(bias, "select")
    if select is None or tensor(select.operands[0].type).shape != tensor(bias.type).shape:
        return None
    for hides, (nought, fill) in enumerate(permutations(map(_number, select.operands[1:]))):
        if nought == 0 and fill is not None and fill <= _UNCHANGED:
            mask, inner = _repeated(select.operands[0])
            dims = [dims[dim] for dim in inner]
            return replace(scores, done=_MASKED, mask=(mask, dims), hides=bool(hides), fill=fill)
    return None


def _masked(op: ir.Operation, before: int) -> Scores | None:
    mask = _repeated(op.operands[0])
    for hides, (value, other) in enumerate(permutations(op.operands[1:])):
        fill = _number(other)
        scores = scores_of(value, _MASKED) if fill is not None else None
        if scores is not None:
            return replace(scores, done=_MASKED, mask=mask, hides=bool(hides), fill=fill)
    return None


_SCALED, _BIASED, _MASKED = 1, 2, 3
_STEPS: Mapping[str, tuple[int, Callable[[ir.Operation, int], Scores | None]]] = {
    "dot_general": (0, _product),
    "convert": (0, _converted),
    "transpose": (0, _transposed),
    "reshape": (0, _reshaped),
    "multiply": (_SCALED, _scaled),
    "divide": (_SCALED, _scaled),
    "add": (_BIASED, _biased),
    "select": (_MASKED, _masked),
}
"""Of each op that makes scores: numbers, in the order of which they may come, and what it does."""

_UNCHANGED = -(2.0**126)
"""What is added to it is lost if it is less than 2**101, or in bf16 even less than 2**117."""

_FOLDED: Mapping[str, Callable[..., np.floating]] = {
    "convert": np.positive,
    "divide": np.divide,
    "multiply": np.multiply,
    "sqrt": np.sqrt,
}


def _as_type(number: float, dtype: str) -> float:
    with np.errstate(all="ignore"):
        return float(element_type(dtype).numpy.type(number))


def _number(value: ir.Value) -> float | None:
    """The one number that a value of floats is known to be filled with."""
    value = _repeated_whole(value)
    op, found = maker(value), splat(value)
    if found is not None or op is None or kind(op) not in _FOLDED:
        return found
    numbers = [_number(operand) for operand in op.operands]
    if None in numbers:
        return None
    dtype = element_type(tensor(value.type).dtype).numpy
    with np.errstate(all="ignore"):
        return float(_FOLDED[kind(op)](*(dtype.type(number) for number in numbers)))


def _repeated(value: ir.Value) -> tuple[ir.Value, list[int]]:
    """The least that ``value`` repeats along some dims, and of each of its dims the one of ``value``."""
    dims = [*range(len(tensor(value.type).shape))]
    while (op := maker(value)) is not None and kind(op) == "broadcast_in_dim":
        source, target = tensor(op.operands[0].type).shape, tensor(value.type).shape
        into = list(ir.DenseI64ArrayAttr(op.attributes["broadcast_dimensions"]))
        if any(size != target[dim] and size != 1 for size, dim in zip(source, into, strict=True)):
            break
        dims, value = [dims[dim] for dim in into], op.operands[0]
    return value, dims


def _repeated_whole(value: ir.Value) -> ir.Value:
    """What ``value`` repeats along dims behind its own."""
    source, dims = _repeated(value)
    return source if dims == [*range(len(dims))] else value


def _made(value: ir.Value, name: str) -> ir.Operation | None:
    """The op that makes the value, if it is called so."""
    op = maker(value)
    return op if op is not None and kind(op) == name else None


def _is_reduced(value: ir.Value, source: ir.Value, name: str, start: float) -> bool:
    """Whether ``value`` is ``source`` with its last dim reduced by the op called ``name``."""
    op = _made(value, "reduce")
    if op is None or len(op.operands) != 2 or op.operands[0] != source or splat(op.operands[1]) != start:
        return False
    last = len(tensor(source.type).shape) - 1
    body = [kind(inner.operation) for inner in op.regions[0].blocks[0].operations]
    return list(ir.DenseI64ArrayAttr(op.attributes["dimensions"])) == [last] and body == [name, "return"]
