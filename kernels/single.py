"""Kernels of one op that nothing else takes in: control flow, sort, FFT, linear algebra."""

import math
from collections.abc import Sequence

from kernels.engines import OpCost, lane_elements, vector_s
from kernels.hardware import Core
from kernels.ops import OPS, kinds_priced_as
from kernels.work import OpWork

__all__ = ["legal", "legal_control", "price_fft", "price_linalg", "price_sort"]

_CONTROL = kinds_priced_as("sort", "fft", "linalg") | {
    "while",
    "case",
    "if",
    "rng",
    "rng_bit_generator",
    "map",
}


def legal_control(kinds: Sequence[str]) -> bool:
    """Exactly one op with a body or an algorithm of its own."""
    return len(kinds) == 1 and kinds[0] in _CONTROL


def legal(kinds: Sequence[str]) -> bool:
    """Any one op that a core computes, and a custom call: it runs on the host, though nothing prices it."""
    return len(kinds) == 1 and (kinds[0] in OPS or kinds[0] == "custom_call")


def price_sort(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """A bitonic network over the longest dim: L(L+1)/2 stages, each a minimum and a maximum of half."""
    longest = max((max(tensor.shape, default=1) for tensor in op.results), default=1)
    levels = math.ceil(math.log2(max(2, longest)))
    stages = levels * (levels + 1) // 2
    elements = sum(lane_elements(tensor) for tensor in op.results)
    size = max(tensor.size for tensor in op.results)
    seconds = vector_s(elements, core, cycles=core.vector.pair_cycles, passes=stages)
    flops = size * math.ceil(math.log2(max(2, size)))
    return OpCost(engine_s={"vector": seconds}, flops=flops, chain=stages)


def price_fft(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """Radix 2 over the last dim: log2(n) stages of ten real operations on each pair; 5 N log2(n) flops."""
    result = max((*op.operands, *op.results), key=lambda tensor: tensor.size)
    length = max(result.shape, default=1)
    stages = math.ceil(math.log2(max(2, length)))
    # Ten operations a pair are five an element, each between two operands in SBUF.
    seconds = vector_s(result.size, core, cycles=core.vector.pair_cycles, passes=5 * stages)
    return OpCost(engine_s={"vector": seconds}, flops=5 * result.size * stages, chain=5 * stages)


def price_linalg(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """Column by column: each of the n steps scales one column and updates what is left."""
    matrix, result = op.operands[0], op.results[0]
    n = matrix.shape[-1]
    # cholesky: n^3 / 3 flops a matrix; a triangular solve: n flops for each element of the result.
    flops = result.size * n // 3 if op.kind == "cholesky" else result.size * n
    step = vector_s(lane_elements(result) // 2, core, cycles=core.vector.pair_cycles)
    scale = vector_s(max(1, lane_elements(result) // max(1, n)), core)
    return OpCost(engine_s={"vector": n * (step + scale)}, flops=flops, chain=2 * n)
