"""Two products with a softmax between them as one call of a kernel of the host: attention."""

import math
from dataclasses import dataclass, replace

import numpy as np

from hlo_passes.host_calls import Decision, kernel_call
from hlo_passes.host_products import (
    Side,
    arranged,
    converted,
    has_own_algorithm,
    in_the_order_of,
    sides,
    stored,
    typed,
)
from hlo_passes.host_softmax import Scores, Softmax, scores_of, softmax_of
from hlo_passes.ir import ir, stablehlo
from hlo_passes.ops import inner_ops, kind, tensor
from kernels.host.targets import (
    ROUNDED,
    AttentionSizes,
    attention_cost,
    attention_target,
    pairs_in_attention,
    why_not_attention,
)

__all__ = ["fuse_attention"]


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """What a product ``sums`` of a softmax and ``values`` computes; ``swapped`` is their order in it."""

    sums: ir.Operation
    softmax: Softmax
    scores: Scores
    queries: Side
    keys: Side
    weights: Side
    values: Side
    swapped: bool

    @property
    def types(self) -> tuple[str, str, str, str]:
        rows, keys, values = (
            tensor(side.value.type).dtype for side in (self.queries, self.keys, self.values)
        )
        return rows, keys, values, self.softmax.rounded

    @property
    def sizes(self) -> AttentionSizes:
        queries, keys, values = self.queries, self.keys, self.values
        return AttentionSizes(
            batch=queries.size(queries.batch),
            m=queries.size(queries.free),
            n=keys.size(keys.free),
            depth=keys.size(keys.contracting),
            width=values.size(values.free),
        )


def fuse_attention(module: ir.Module) -> list[Decision]:
    """Puts one call in the place of each softmax of a product, and of the products around it.

    Calls of functions were inlined. Returns what was decided of each product with a softmax.
    """
    decisions = []
    for sums in [op for op in inner_ops(module.operation) if kind(op) == "dot_general"]:
        for swapped, side in enumerate(sides(sums)):
            softmax = softmax_of(side.value)
            if softmax is not None:
                decisions.append(_decide(sums, softmax, swapped=bool(swapped)))
                break
    if any(decision.target for decision in decisions):
        _erase_unused(module)
    return decisions


def _erase_unused(module: ir.Module) -> None:
    """What was between products: XLA would take it away as well, but products would be lowered."""
    for op in reversed(list(inner_ops(module.operation))):
        is_pure = len(op.results) and kind(op) != "custom_call"
        if is_pure and not any(True for value in op.results for _ in value.uses):
            op.erase()


def _decide(sums: ir.Operation, softmax: Softmax, *, swapped: bool) -> Decision:
    found = tensor(softmax.scores.type)
    name = f"attention with scores {found.dtype}{list(found.shape)}"
    scores = scores_of(softmax.scores)
    if scores is None:
        return Decision(op=name, reason="its scores are more than a product, scaled, biased, masked")
    both = sides(sums)
    found = _queries_and_keys(scores, both[swapped])
    if found is None:
        return Decision(op=name, reason="its two products do not have the same batches and keys")
    attention = _Attention(
        sums=sums,
        softmax=softmax,
        scores=scores,
        queries=found[0],
        keys=stored(found[1]),
        weights=both[swapped],
        values=stored(both[not swapped]),
        swapped=swapped,
    )
    reason = _why_not(attention) or why_not_attention(attention.types, attention.sizes)
    return Decision(op=name, reason=reason) if reason else _replace(attention, name)


def _queries_and_keys(scores: Scores, weights: Side) -> tuple[Side, Side] | None:
    """The sides of the product of scores, with rows in the order in which ``weights``, made of them, are."""
    left, right = sides(scores.product)
    batches, dims = len(left.batch), scores.dims
    last = len(tensor(weights.value.type).shape) - 1
    place, first_right = dims.get(last, -1), batches + len(left.free)
    queries, keys, first = (left, right, batches) if place >= first_right else (right, left, first_right)
    along = len(keys.free) == len(keys.contracting) == 1 and weights.contracting == [last]
    alike = [dims[dim] for dim in weights.batch if dim in dims]
    if not along or place < batches or alike != [at for at in range(batches) if at in dims.values()]:
        return None
    rows = [queries.free[dims[dim] - first] for dim in weights.free if dim in dims]
    alone = [dim for dim in queries.free if dim not in rows]
    return replace(queries, free=[*alone, *rows]), keys


def _why_not(attention: _Attention) -> str:
    products = attention.sums, attention.scores.product
    if any(map(has_own_algorithm, products)):
        return "it asks for an algorithm of its own"
    made = attention.softmax.op.results[0], attention.scores.product.results[0]
    if any(len(list(value.uses)) > 1 for value in made):
        return "its scores or weights are used elsewhere as well"
    return ""


def _replace(attention: _Attention, name: str) -> Decision:
    sums, softmax, scores, sizes = attention.sums, attention.softmax, attention.scores, attention.sizes
    queries, keys, values = attention.queries, attention.keys, attention.values
    stored_as, pairs = attention.types[1], pairs_in_attention(attention.types, m=sizes.m)
    batches = attention.weights.sizes(attention.weights.batch)
    first = [math.prod(batches[:-1]), math.prod(batches[-1:])]
    with ir.InsertionPoint(sums), sums.location:
        rows = converted(queries.value, "bf16" if pairs else "f32")
        mask = _beside(attention, scores.mask, "i1", first)
        beside = stablehlo.not_(mask) if scores.hides else mask, _beside(attention, scores.bias, "f32", first)
        roundings = [ROUNDED[to] for to in (*scores.rounded, softmax.steps, softmax.rounded)]
        numbers = np.array([scores.factor, scores.divisor, scores.fill, *roundings], np.float32)
        operands = [
            arranged(
                rows, [queries.batch, queries.free, queries.contracting], [*first, sizes.m, sizes.depth]
            ),
            arranged(keys.value, [keys.batch, keys.free, keys.contracting], [*first, sizes.n, sizes.depth]),
            arranged(
                values.value, [values.batch, values.contracting, values.free], [*first, sizes.n, sizes.width]
            ),
            *beside,
            stablehlo.constant(ir.DenseElementsAttr.get(numbers)),
        ]
        target, made = attention_target(stored_as, pairs=pairs), typed([*first, sizes.m, sizes.width], "f32")
        [result] = kernel_call(target, operands, [made])
        result = in_the_order_of(sums, result, attention.weights, values, swapped=attention.swapped)
        sums.results[0].replace_all_uses_with(result)
    beside_bytes = sum(tensor(value.type).size_bytes for value in beside)
    cost = attention_cost(stored_as, sizes, pairs=pairs, beside_bytes=beside_bytes)
    return Decision(op=f"{name}, in place of both products", target=target, cost=cost)


def _beside(
    attention: _Attention, found: tuple[ir.Value, list[int]] | None, dtype: str, first: list[int]
) -> ir.Value:
    """A mask or bias as the kernel takes it: the batches and rows that it is the same for as one."""
    if found is None:
        nothing = "true" if dtype == "i1" else "0.0"
        return stablehlo.constant(ir.Attribute.parse(f"dense<{nothing}> : tensor<1x1x1x1x{dtype}>"))
    weights, shape = attention.weights, tensor(attention.softmax.scores.type).shape
    last = weights.contracting
    groups = weights.batch[:-1], weights.batch[-1:], weights.free, last
    source, dims = found
    sizes = tensor(source.type).shape
    own = [dim for dim, size in zip(dims, sizes, strict=True) if size > 1]
    taken = [group == last or not set(own).isdisjoint(group) for group in groups]
    kept = [dim for group, is_taken in zip(groups, taken, strict=True) if is_taken for dim in group]
    value = stablehlo.reshape(typed([size for size in sizes if size > 1], dtype), converted(source, dtype))
    places = ir.DenseI64ArrayAttr.get([kept.index(dim) for dim in own])
    value = stablehlo.broadcast_in_dim(typed([shape[dim] for dim in kept], dtype), value, places)
    whole = [*first, attention.sizes.m, attention.sizes.n]
    return stablehlo.reshape(
        typed([size if is_taken else 1 for size, is_taken in zip(whole, taken, strict=True)], dtype), value
    )
