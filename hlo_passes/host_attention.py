"""Two products with a softmax between them as one call of a kernel of the host: attention of many rows."""

import math
from dataclasses import dataclass

import numpy as np

from hlo_passes.host_calls import kernel_call, target_of
from hlo_passes.ir import ir, main, stablehlo
from hlo_passes.ops import kind, maker, splat, tensor
from kernels.host.targets import ATTENTION, Cost, attention_cost, matmul_target, takes_attention

__all__ = ["fuse_attention"]

_SCORES = frozenset({matmul_target("bf16", by_rows=True, pairs=True)})
_SUMS = frozenset({matmul_target("bf16", by_rows=False, pairs=True)})
_OURS = _SCORES | _SUMS


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The call that makes scores, the i1 value that says which are looked at, and what the others become."""

    scores: ir.Operation
    mask: ir.Value
    fill: float


def fuse_attention(module: ir.Module) -> list[tuple[str, Cost]]:
    """Puts one call in the place of each softmax in the flat ``@main`` and of the products around it.

    Returns what each is and costs.
    """
    block, fused = main(module).regions[0].blocks[0], []
    for op in [view.operation for view in block.operations]:
        found = _find(op) if target_of(op, _SUMS) else None
        if found is not None:
            fused.append(_replace(op, found))
    for op in reversed([view.operation for view in block.operations][:-1]):
        is_ours = kind(op) != "custom_call" or target_of(op, _OURS)
        if is_ours and not any(True for value in op.results for _ in value.uses):
            op.erase()
    return fused


def _replace(sums: ir.Operation, found: _Found) -> tuple[str, Cost]:
    rows, keys = found.scores.operands
    values = sums.operands[1]
    (batch, m, depth), (_, n, width) = tensor(rows.type).shape, tensor(values.type).shape
    mask_rows = tensor(found.mask.type).size // n
    with ir.InsertionPoint(sums), sums.location:
        flat = ir.RankedTensorType.get([mask_rows, n], found.mask.type.element_type)
        fill = stablehlo.constant(ir.DenseElementsAttr.get(np.array([found.fill], np.float32)))
        operands = [rows, keys, values, stablehlo.reshape(flat, found.mask), fill]
        [result] = kernel_call(ATTENTION, operands, [sums.results[0].type])
    sums.results[0].replace_all_uses_with(result)
    cost = attention_cost(batch=batch, m=m, n=n, depth=depth, width=width, mask_rows=mask_rows)
    return f"softmax of f32[{batch}, {m}, {n}], in place of both products around it", cost


def _find(sums: ir.Operation) -> _Found | None:
    """What leads to the weights of ``sums``, if it is a masked softmax of a product, over the last dim."""
    scaled = _made(_through(sums.operands[0], "reshape", "convert"), "divide")
    powers = scaled and _made(scaled.operands[0], "exponential")
    shifted = powers and _made(powers.operands[0], "subtract")
    chosen = shifted and _made(shifted.operands[0], "select")
    if chosen is None:
        return None
    highest = _through(shifted.operands[1], "broadcast_in_dim")
    at_least = _made(highest, "maximum")
    if at_least is not None and splat(_through(at_least.operands[0], "broadcast_in_dim")) == -math.inf:
        highest = at_least.operands[1]
    total = _through(scaled.operands[1], "broadcast_in_dim")
    if not _is_reduced(highest, shifted.operands[0], "maximum", -math.inf):
        return None
    if not _is_reduced(total, powers.results[0], "add", 0.0):
        return None
    scores = _made(_through(chosen.operands[1], "reshape"), "custom_call")
    if scores is None or not target_of(scores, _SCORES):
        return None
    batch, m, n = tensor(scores.results[0].type).shape
    fill, mask = splat(_through(chosen.operands[2], "broadcast_in_dim")), _mask(chosen.operands[0], m, n)
    is_same = tensor(sums.operands[0].type).shape == (batch, m, n)
    if fill is None or mask is None or not is_same or not takes_attention(batch=batch, m=m, n=n):
        return None
    return _Found(scores=scores, mask=mask, fill=fill)


def _made(value: ir.Value, name: str) -> ir.Operation | None:
    """The op that makes the value, if it is called so."""
    op = maker(value)
    return op if op is not None and kind(op) == name else None


def _through(value: ir.Value, *names: str) -> ir.Value:
    """What the value was before ops that keep its elements' order, or repeat them along dims at the end.

    Of conversions only those between bf16 and f32 are passed.
    """
    while (op := maker(value)) is not None and kind(op) in names:
        source = tensor(op.operands[0].type)
        if kind(op) == "broadcast_in_dim" and _dims(op, "broadcast_dimensions") != [
            *range(len(source.shape))
        ]:
            break
        if kind(op) == "convert" and source.dtype not in ("bf16", "f32"):
            break
        value = op.operands[0]
    return value


def _dims(op: ir.Operation, name: str) -> list[int]:
    return list(ir.DenseI64ArrayAttr(op.attributes[name]))


def _is_reduced(value: ir.Value, source: ir.Value, name: str, start: float) -> bool:
    """Whether ``value`` is ``source`` with its last dim reduced by the op called ``name``."""
    op = _made(value, "reduce")
    if op is None or len(op.operands) != 2 or op.operands[0] != source or splat(op.operands[1]) != start:
        return False
    last = len(tensor(source.type).shape) - 1
    body = [kind(inner.operation) for inner in op.regions[0].blocks[0].operations]
    return _dims(op, "dimensions") == [last] and body == [name, "return"]


def _mask(value: ir.Value, m: int, n: int) -> ir.Value | None:
    """The i1 value of ``n`` or ``m * n`` elements that ``value`` repeats for each batch, if any."""
    if tensor(value.type).shape[-2:] != (m, n):
        return None
    while (op := _made(value, "broadcast_in_dim")) is not None:
        source, last = tensor(op.operands[0].type), len(tensor(value.type).shape) - 1
        dims = _dims(op, "broadcast_dimensions")
        is_row = source.size == n and source.shape[-1:] == (n,) and dims[-1] == last
        is_whole = source.shape[-2:] == (m, n) and dims[-2:] == [last - 1, last]
        if not is_row and not is_whole:
            return None
        value = op.operands[0]
    return value if tensor(value.type).size in (n, m * n) else None
