"""Indexed reads and writes on the gpsimd engine: when they fuse and what they cost."""

from collections.abc import Sequence

from kernels.elementwise import EPILOGUE, MOVES
from kernels.engines import OpCost, gpsimd_s, lane_elements
from kernels.hardware import Core
from kernels.ops import OPS, kinds_priced_as
from kernels.work import OpWork

__all__ = ["legal", "price"]

_INDEXED = kinds_priced_as("index")


def legal(kinds: Sequence[str]) -> bool:
    """One gather or scatter with the arithmetic and moves on its indices, updates or results."""
    found = [kind for kind in kinds if kind in _INDEXED]
    return len(found) == 1 and all(kind in EPILOGUE or kind in MOVES or kind in _INDEXED for kind in kinds)


def price(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """``150 + N`` over what is taken or written, not over what it is taken from."""
    # scatter: inputs, indices, updates - as many updates as results.
    moved = op.operands[-len(op.results) :] if op.kind == "scatter" else op.results
    size = sum(tensor.size for tensor in moved)
    elements = sum(lane_elements(tensor) for tensor in moved)
    return OpCost(engine_s={"gpsimd": gpsimd_s(elements, core)}, flops=OPS[op.kind].flops * size, chain=1)
