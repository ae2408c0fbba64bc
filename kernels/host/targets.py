"""The host kernels by the names XLA calls them: what each takes, costs and computes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.dtypes import dtype as element_type

__all__ = [
    "ADDED",
    "ATTENTION",
    "FEW_ROWS",
    "WEIGHTS",
    "Cost",
    "attention_cost",
    "attention_reference",
    "filled_reference",
    "filled_target",
    "in_pairs",
    "matmul_cost",
    "matmul_reference",
    "matmul_target",
    "product_targets",
    "reads_filled",
    "sum_cost",
    "sum_plan",
    "sum_reference",
    "sum_target",
    "sum_targets",
    "takes_attention",
    "update_cost",
    "update_reference",
    "update_target",
    "update_targets",
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
      x: f32 or bf16 [batch, m, k].
      w: [batch, k, n], or with ``by_rows`` [batch, n, k], of any stored type.
    """
    wide = w.astype(np.float32).astype(np.float64)
    return x.astype(np.float64) @ (wide.swapaxes(1, 2) if by_rows else wide)


_CACHES = ("bf16", "f16", "f32")


def filled_target(cache: str, *, by_rows: bool) -> str:
    """The custom call of a product that reads the filled part of a cache [b, k, n], or by rows [b, n, k]."""
    return f"neuronx_filled_{cache}_{_LAYOUTS[by_rows]}"


def product_targets() -> dict[str, dict[str, str | bool]]:
    """Every target of the product kernels with the arguments of ``products.compile_product``."""
    ways: dict[str, dict[str, str | bool]] = {}
    for weights in WEIGHTS:
        for by_rows in _LAYOUTS:
            way: dict[str, str | bool] = {"weights": weights, "by_rows": by_rows}
            ways[matmul_target(weights, by_rows=by_rows)] = way
            if weights == "bf16":
                ways[matmul_target(weights, by_rows=by_rows, pairs=True)] = way | {"pairs": True}
            if weights in _CACHES:
                ways[filled_target(weights, by_rows=by_rows)] = way | {"filled": True}
    return ways


def reads_filled(cache: str, *, m: int) -> bool:
    """Whether there is a kernel that leaves the empty part of such a cache unread for ``m`` rows.

    It takes the place of the product kernel and costs no more: where all is filled, the same.
    """
    return cache in _CACHES and m <= FEW_ROWS


def filled_reference(x: np.ndarray, w: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The product in float64 with zeros for what nobody looks at, and nothing of the rows that are not read.

    Args:
      x: f32 [batch, m, k].
      w: with a ``mask``, bool [n], of the columns [batch, n, k]; else [batch, k, n].
    """
    if mask is None:
        read = np.logical_or.accumulate((x != 0).any(axis=1)[:, ::-1], axis=1)[:, ::-1]
        return matmul_reference(x, np.where(read[..., None], w.astype(np.float32), 0), by_rows=False)
    filled = np.flatnonzero(mask).max(initial=-1) + 1
    scores = matmul_reference(x, w[:, :filled], by_rows=True)
    return np.pad(scores, [(0, 0), (0, 0), (0, len(mask) - filled)])


ATTENTION = "neuronx_attention_bf16"
"""The custom call of masked scores, their softmax rounded to bf16, and the sums weighted by it."""

_LEAST_SCORES = 1 << 16
"""Below it they stay in a cache, and XLA's loops over them take some ten microseconds."""


def takes_attention(*, batch: int, m: int, n: int) -> bool:
    """Whether the kernel takes ``m`` rows of attention to ``n`` keys, which both products would."""
    return m > FEW_ROWS and batch * m * n >= _LEAST_SCORES


def attention_cost(*, batch: int, m: int, n: int, depth: int, width: int, mask_rows: int) -> Cost:
    """Of ``m`` rows of ``depth`` and ``n`` values of ``width``: scores never leave the processor's caches."""
    stored = m * depth + n * depth + n * width
    moved_bytes = batch * (2 * stored + 4 * m * width) + mask_rows * n
    return Cost(moved_bytes=moved_bytes, flops=2 * batch * m * n * (depth + width))


def attention_reference(
    rows: np.ndarray, keys: np.ndarray, values: np.ndarray, mask: np.ndarray, fill: float
) -> np.ndarray:
    """Attention in float64; the kernel rounds each weight of the softmax to bf16.

    Args:
      rows: [batch, m, depth]. keys: [batch, n, depth]. values: [batch, n, width].
      mask: bool [m, n] or [1, n]; where it is false, the score is ``fill``.
    """
    scores = np.where(mask, matmul_reference(rows, keys, by_rows=True), fill)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return matmul_reference(weights, values, by_rows=False)


_UPDATED: Mapping[str, int] = {name: element_type(name).bits // 8 for name in _FLOATS}
"""Types of updated arrays, and their bytes. To update a slice XLA:CPU widens narrow floats, whole array and
all, and copies others where a kernel reads the result, as the products with a cache do."""


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
