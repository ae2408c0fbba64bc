"""What a softmax, and what the scores it takes, are made of."""

import math
from dataclasses import dataclass, replace

from hlo_passes.ir import ir
from hlo_passes.ops import kind, maker, splat, tensor

__all__ = ["Scores", "Softmax", "repeated", "scores_of", "softmax_of"]


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """One over the last dim of ``scores``; ``op`` makes its f32, which are then ``rounded`` to a type."""

    scores: ir.Value
    op: ir.Operation
    rounded: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A product times ``scale`` plus ``bias``; where the ``mask`` is false, ``fill``; if there are such."""

    product: ir.Operation
    scale: float = 1.0
    bias: ir.Value | None = None
    mask: ir.Value | None = None
    fill: float = 0.0


def softmax_of(value: ir.Value) -> Softmax | None:
    """The softmax that ``value`` is the result of, if it is one."""
    rounded = "f32"
    while (op := _made(value, "convert")) is not None:
        rounded = tensor(value.type).dtype if tensor(value.type).dtype != "f32" else rounded
        value = op.operands[0]
    divided = _made(value, "divide")
    powers = divided and _made(divided.operands[0], "exponential")
    shifted = powers and _made(powers.operands[0], "subtract")
    if shifted is None:
        return None
    scores, highest = shifted.operands[0], _repeated_whole(shifted.operands[1])
    at_least = _made(highest, "maximum")
    if at_least is not None and splat(_repeated_whole(at_least.operands[0])) == -math.inf:
        highest = at_least.operands[1]
    total = _repeated_whole(divided.operands[1])
    is_softmax = _is_reduced(highest, scores, "maximum", -math.inf) and _is_reduced(
        total, powers.results[0], "add", 0.0
    )
    return Softmax(scores=scores, op=divided, rounded=rounded) if is_softmax else None


def scores_of(value: ir.Value) -> Scores | None:
    """What scores are made of, in f32 throughout and each step at most once; None if of anything else."""
    select = _made(value, "select")
    if select is not None:
        fill, before = splat(_repeated_whole(select.operands[2])), scores_of(select.operands[1])
        if fill is None or before is None or before.mask is not None:
            return None
        return replace(before, mask=select.operands[0], fill=fill)
    add = _made(value, "add")
    if add is not None:
        for number in (0, 1):
            before = _scaled(add.operands[number])
            if before is not None:
                return replace(before, bias=add.operands[1 - number])
        return None
    return _scaled(value)


def _scaled(value: ir.Value) -> Scores | None:
    op, scale = maker(value), 1.0
    if op is not None and kind(op) in ("multiply", "divide"):
        factors = [splat(_repeated_whole(operand)) for operand in op.operands]
        if factors[1] is None and kind(op) == "multiply":
            factors, value = factors[::-1], op.operands[1]
        else:
            value = op.operands[0]
        if factors[1] is None or (kind(op) == "divide" and not _is_power_of_two(factors[1])):
            return None
        scale = factors[1] if kind(op) == "multiply" else 1 / factors[1]
    product = _made(value, "dot_general")
    if product is None or tensor(value.type).dtype != "f32":
        return None
    return Scores(product=product, scale=scale)


def _is_power_of_two(number: float) -> bool:
    """To divide by it and to multiply by one over it are the same."""
    return abs(math.frexp(number)[0]) == 0.5


def repeated(value: ir.Value) -> tuple[ir.Value, list[int]]:
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
    source, dims = repeated(value)
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
