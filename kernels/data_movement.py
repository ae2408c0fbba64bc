"""Copies, slices, pads, transposes by DMA and the tensor engine: when they fuse and what they cost."""

from collections.abc import Sequence

from kernels.elementwise import FREE, MOVES
from kernels.engines import OpCost, dma_s
from kernels.hardware import Core
from kernels.ops import OPS
from kernels.work import OpWork, Tensor

__all__ = ["legal", "moved", "price", "price_free"]

_MOVES = MOVES | {"transpose"}


def legal(kinds: Sequence[str]) -> bool:
    """Only moves and access patterns, no arithmetic."""
    return bool(kinds) and all(kind in _MOVES or kind in FREE for kind in kinds)


def moved(op: OpWork) -> Tensor:
    """What an op moves."""
    return op.operands[1] if op.kind == "dynamic_update_slice" else op.results[0]


def price(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """The bytes moved inside SBUF; none where the op rides on the kernel's own load or store."""
    if "hbm" in places:
        return OpCost()
    part = moved(op)
    return OpCost(engine_s={"dma": dma_s(part.size_bytes, part.size, core)}, chain=1)


def price_free(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """No time of its own; a cast counts its flops as XLA does."""
    return OpCost(flops=OPS[op.kind].flops * sum(tensor.size for tensor in op.results))
