"""The host kernels by the names XLA calls them: what each takes, costs and computes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.dtypes import dtype as element_type

__all__ = [
    "ADDED",
    "ATTENTION_NUMBERS",
    "FEW_ROWS",
    "ROUNDED",
    "WEIGHTS",
    "AttentionSizes",
    "Cost",
    "attention_cost",
    "attention_reference",
    "attention_target",
    "attention_targets",
    "in_pairs",
    "matmul_cost",
    "matmul_reference",
    "matmul_target",
    "pairs_in_attention",
    "product_targets",
    "sum_cost",
    "sum_plan",
    "sum_reference",
    "sum_target",
    "sum_targets",
    "update_cost",
    "update_reference",
    "update_target",
    "update_targets",
    "why_not_attention",
    "why_not_matmul",
    "why_not_update",
]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The least that one call moves between memory and the processor, in bytes, and its arithmetic."""

    moved_bytes: int
    flops: int


WEIGHTS: Mapping[str, frozenset[str]] = {
    "f32": frozenset(),
    "bf16": frozenset({"f32"}),
    "f16": frozenset({"f32"}),
    "i8": frozenset({"bf16", "f16", "f32"}),
    "ui8": frozenset({"bf16", "f16", "f32"}),
    "f8E4M3": frozenset({"bf16", "f16", "f32"}),
    "f8E4M3FN": frozenset({"bf16", "f16", "f32"}),
    "f8E5M2": frozenset({"bf16", "f16", "f32"}),
    "f8E3M4": frozenset({"bf16", "f16", "f32"}),
}
"""Types of weights the product kernel reads, and the types each converts to without loss."""

FEW_ROWS = 8
"""Up to so many rows of the other operand the weights stream by once and are not kept."""

_FLOATS = frozenset(WEIGHTS) - {"i8", "ui8"}
_RESULTS = frozenset({"f32", "bf16", "f16"})

_LEAST_MULTIPLICATIONS = 1 << 12
"""Below it a call through the FFI costs more than XLA's own loop."""

_LAYOUTS = {False: "columns", True: "rows"}


def matmul_target(weights: str, *, by_rows: bool, pairs: bool = False) -> str:
    """The custom call of ``x[b, m, k] @ w[b, k, n]``; ``by_rows``: w is [b, n, k].

    The result is f32, and so is x, unless ``pairs``: then x and w are bf16.
    """
    return f"neuronx_matmul_{weights}_{'pairs_' if pairs else ''}{_LAYOUTS[by_rows]}"


def in_pairs(x: str, weights: str, *, m: int, k: int) -> bool:
    """Whether the product of these types and sizes takes its terms in pairs."""
    return x == weights == "bf16" and m > 1 and k % 2 == 0


def why_not_matmul(
    types: tuple[str, str, str], *, batch: int, m: int, k: int, n: int, algorithm: bool
) -> str:
    """Why XLA computes this product itself, or "" where the kernel does.

    Args:
      types: of the streamed rows, the weights as stored, and the result.
      algorithm: whether the product names the arithmetic it wants.
    """
    x, w, result = types
    if algorithm:
        return "it asks for an algorithm of its own"
    if w == "f32" and m > FEW_ROWS:
        return f"{m} rows of f32 it multiplies at the speed of the processor"
    if x not in _FLOATS or w not in WEIGHTS or result not in _RESULTS:
        return f"{x} x {w} -> {result} is not among the kernel's types"
    if batch * m * k * n < _LEAST_MULTIPLICATIONS:
        return f"{batch * m * k * n} multiplications are fewer than {_LEAST_MULTIPLICATIONS}"
    return ""


def matmul_cost(weights: str, *, batch: int, m: int, k: int, n: int, pairs: bool = False) -> Cost:
    """Of ``x[batch, m, k] @ w[batch, k, n]``: each operand is read once and the f32 result written once."""
    size_x, size_w = 2 if pairs else 4, element_type(weights).bits // 8
    moved_bytes = batch * (size_x * m * k + size_w * k * n + 4 * m * n)
    return Cost(moved_bytes=moved_bytes, flops=2 * batch * m * k * n)


def matmul_reference(x: np.ndarray, w: np.ndarray, *, by_rows: bool) -> np.ndarray:
    """The exact product in float64, of which the kernel computes an f32: at most ``k`` roundings apart.

    Args:
      x: f32 or bf16 [..., m, k].
      w: [..., k, n], or with ``by_rows`` [..., n, k], of any stored type.
    """
    wide = w.astype(np.float32).astype(np.float64)
    return x.astype(np.float64) @ (wide.swapaxes(-1, -2) if by_rows else wide)


def product_targets() -> dict[str, dict[str, str | bool]]:
    """Every target of the product kernels with the arguments of ``products.compile_product``."""
    ways: dict[str, dict[str, str | bool]] = {}
    for weights in WEIGHTS:
        for by_rows in _LAYOUTS:
            way: dict[str, str | bool] = {"weights": weights, "by_rows": by_rows}
            ways[matmul_target(weights, by_rows=by_rows)] = way
            if weights == "bf16":
                ways[matmul_target(weights, by_rows=by_rows, pairs=True)] = way | {"pairs": True}
    return ways


ROUNDED = {"f32": 0, "bf16": 1, "f16": 2}
"""What scores and weights of a softmax may be rounded to, and the attention kernel's numbers for it."""

ATTENTION_NUMBERS = ("factor", "divisor", "fill", "product", "scaled", "biased", "softmax", "weights")
"""What the attention kernel is told: what products are multiplied with and divided by, the score of what is
masked out, and of ``ROUNDED`` what is rounded to: products, those scaled, those biased, each step of the
softmax, and the weights that it makes."""

_LEAST_SCORES = 1 << 16
"""Of many rows; below it they stay in a cache, and XLA's loops over them take some ten microseconds."""


def attention_target(stored: str, *, pairs: bool) -> str:
    """The custom call of scores, their softmax, and the sums of values that it weighs.

    Keys and values are ``stored``, the rows f32, or with ``pairs`` bf16.
    """
    return f"neuronx_attention_{stored}{'_pairs' if pairs else ''}"


def attention_targets() -> dict[str, dict[str, str | bool]]:
    """Every target of the attention kernel with the arguments of ``attention.compile_attention``."""
    ways: list[tuple[str, bool]] = [*((stored, False) for stored in ROUNDED), ("bf16", True)]
    return {
        attention_target(stored, pairs=pairs): {"stored": stored, "pairs": pairs} for stored, pairs in ways
    }


@dataclass(frozen=True, kw_only=True)
class AttentionSizes:
    """``batch`` times ``m`` rows meet ``n`` keys, both of ``depth``, and the keys' values, of ``width``."""

    batch: int
    m: int
    n: int
    depth: int
    width: int


def why_not_attention(types: tuple[str, str, str, str], sizes: AttentionSizes) -> str:
    """Why attention is two products and a softmax of XLA's, or "" where the kernel does it.

    Args:
      types: of the rows, of keys and values as stored, and of the weights that the softmax makes.
    """
    rows, keys, values, weights = types
    scores = sizes.batch * sizes.m * sizes.n
    if sizes.m <= FEW_ROWS:
        if rows not in _FLOATS or keys != values or not {keys, weights} <= {*ROUNDED}:
            return f"{rows} rows, {keys} keys, {weights} weights and {values} values are not its types"
        multiplications = scores * min(sizes.depth, sizes.width)
        if multiplications < _LEAST_MULTIPLICATIONS:
            return f"{multiplications} multiplications are fewer than {_LEAST_MULTIPLICATIONS}"
        return ""
    if {*types} not in ({"f32"}, {"bf16"}):
        return f"many rows of {rows}, {keys} keys, {weights} weights and {values} values are not its types"
    if keys == "bf16" and (sizes.n % 2 or sizes.depth % 2):
        return f"{sizes.n} keys of {sizes.depth} do not go in pairs"
    return f"{scores} scores are fewer than {_LEAST_SCORES}" if scores < _LEAST_SCORES else ""


def pairs_in_attention(types: tuple[str, str, str, str], *, m: int) -> bool:
    """Whether ``m`` rows of attention, types as of ``why_not_attention``, take their terms in pairs."""
    return m > FEW_ROWS and {*types} == {"bf16"}


def attention_cost(stored: str, sizes: AttentionSizes, *, pairs: bool, beside_bytes: int) -> Cost:
    """Of one call: scores never leave the processor's caches. All keys count, not only those looked at.

    ``beside_bytes`` are those of mask and bias.
    """
    row_size, size = 2 if pairs else 4, element_type(stored).bits // 8
    wide = sizes.depth + sizes.width
    moved = row_size * sizes.m * sizes.depth + size * sizes.n * wide + 4 * sizes.m * sizes.width
    flops = 2 * sizes.batch * sizes.m * sizes.n * wide
    return Cost(moved_bytes=sizes.batch * moved + beside_bytes, flops=flops)


def attention_reference(
    rows: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    fill: float,
    bias: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Attention in float64; the kernel rounds each weight of the softmax as it is told.

    Args:
      rows: [..., m, depth]. keys: [..., n, depth]. values: [..., n, width].
      mask, bias: what broadcasts to [..., m, n]; where the mask is false, the score is ``fill``.
    """
    scores = np.where(mask, matmul_reference(rows, keys, by_rows=True) + bias, fill)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return matmul_reference(weights, values, by_rows=False)


_UPDATED: Mapping[str, int] = {name: element_type(name).bits // 8 for name in _FLOATS}
"""Types of updated arrays, and their bytes. To update a slice XLA:CPU widens narrow floats, whole array and
all, and copies others where a kernel reads the result, as attention to a cache does."""


def update_target(dtype: str) -> str:
    """The custom call of ``dynamic_update_slice`` in the memory of its first operand."""
    return f"neuronx_update_{_UPDATED[dtype]}"


def update_targets() -> dict[str, int]:
    """Every target of the update kernel with the bytes of its elements."""
    return {update_target(dtype): size for dtype, size in _UPDATED.items()}


def why_not_update(dtype: str, shape: tuple[int, ...]) -> str:
    """Why XLA updates this array itself, or "" where the kernel does."""
    if dtype not in _UPDATED:
        return f"XLA updates arrays of {dtype} where they lie"
    return "" if shape else "it has no dims"


def update_cost(dtype: str, update: Sequence[int]) -> Cost:
    """Of a slice with sizes ``update`` put into an array: the slice is read and written."""
    return Cost(moved_bytes=2 * _UPDATED[dtype] * math.prod(update), flops=0)


def update_reference(array: np.ndarray, update: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """The array with the slice in it, moved until it fits, bit for bit what the kernel leaves there."""
    result = array.copy()
    room = zip(starts, array.shape, update.shape, strict=True)
    first = [min(max(start, 0), size - part) for start, size, part in room]
    result[tuple(slice(at, at + part) for at, part in zip(first, update.shape, strict=True))] = update
    return result


ADDED = frozenset({"f32", "bf16"})
"""Types of the arrays that the sum of several cores adds."""


def sum_target(dtype: str) -> str:
    """The custom call that adds several arrays of ``dtype`` by the plan that is its first operand."""
    return f"neuronx_sum_{dtype}"


def sum_targets() -> dict[str, str]:
    """Every target of the sum kernel with the type it adds."""
    return {sum_target(dtype): dtype for dtype in ADDED}


def sum_plan(
    stretches: Sequence[tuple[int, int, Sequence[int]]], *, first_way: int, rounds: bool
) -> list[int]:
    """The table of words by which the sum of several arrays works.

    Args:
      stretches: of the result: the first element, the end, and the numbers of all arrays in the order in
        which they are added.
      first_way: so many of them are added by themselves, before the sum of the others comes to theirs.
      rounds: whether the sum is rounded to its type whenever an array was added, not only at the end.
    """
    words = [len(stretches[0][2]), first_way, int(rounds), len(stretches)]
    for start, end, order in stretches:
        words += [start, end, *order]
    return words


def sum_cost(dtype: str, *, count: int, size: int) -> Cost:
    """Of ``count`` arrays of ``size`` elements: each is read once, and the result written once."""
    moved_bytes = (count + 1) * size * element_type(dtype).bits // 8
    return Cost(moved_bytes=moved_bytes, flops=(count - 1) * size)


def sum_reference(plan: Sequence[int], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of flat arrays of one type by a plan of ``sum_plan``, to the bit."""
    count, first_way, rounds, stretches = plan[:4]
    dtype, result = arrays[0].dtype, np.empty_like(arrays[0])
    for words in np.reshape(plan[4:], (stretches, 2 + count)):
        at, order = slice(*words[:2]), words[2:]
        total = np.float32(0)
        for numbers in filter(len, (order[first_way:], order[:first_way])):
            one_way = arrays[numbers[0]][at].astype(np.float32)
            for number in numbers[1:]:
                one_way = one_way + arrays[number][at].astype(np.float32)
                one_way = one_way.astype(dtype).astype(np.float32) if rounds else one_way
            total = one_way + total
        result[at] = total.astype(dtype)
    return result
