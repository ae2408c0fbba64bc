"""Products on the tensor engine, with their prologue and epilogue: when they fuse and what they cost."""

import math
from collections.abc import Sequence

from kernels.dtypes import dtype
from kernels.elementwise import EPILOGUE, MOVES
from kernels.engines import OpCost, packed_taps, pe_passes, pe_peak_flop_per_s, product, transpose_s
from kernels.errors import CompileError
from kernels.hardware import Core
from kernels.ops import kinds_priced_as
from kernels.work import OpWork, Tensor

__all__ = ["legal", "legal_convolution", "price", "price_transpose", "reload_bytes"]

_CONVOLUTIONS = frozenset({"convolution", "dynamic_conv"})
_PRODUCTS = kinds_priced_as("matmul") - _CONVOLUTIONS
_AROUND = EPILOGUE | MOVES | {"transpose"}


def legal(kinds: Sequence[str]) -> bool:
    """One product, and around it only what its operands' loads and its evacuation from PSUM can do."""
    return _one_of(kinds, _PRODUCTS)


def legal_convolution(kinds: Sequence[str]) -> bool:
    """One convolution, and around it only what its operands' loads and its evacuation from PSUM can do."""
    return _one_of(kinds, _CONVOLUTIONS)


def _one_of(kinds: Sequence[str], products: frozenset[str]) -> bool:
    found = [kind for kind in kinds if kind in products]
    return len(found) == 1 and all(kind in _AROUND or kind in products for kind in kinds)


def price(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """Cycles of the tile instructions, 2bmkn flops, and the operands SBUF cannot hold read again."""
    if op.matmul is None:
        raise CompileError("its (batch, m, k, n) is not given", op=op.kind, fix="set OpWork.matmul")
    batch, m, k, n = op.matmul
    # The wider operand decides the rate where the two differ.
    operand = max(op.operands[:2], key=lambda tensor: pe_passes(tensor.dtype, core)).dtype
    together = _groups_together(op, core)
    runs = math.ceil(batch / together)
    found = product(m, together * k, together * n, core, op.taps)
    cycles = runs * pe_passes(operand, core) * found.cycles
    engine_s = {"pe": cycles / (core.pe.clock_hz * core.pe.sustained_fraction)}
    if len(op.taps) > 0:
        engine_s["dma"] = _shifted_copies_s(op, together * k, core)
    return OpCost(
        engine_s=engine_s,
        flops=2 * batch * m * k * n,
        peak_flop_per_s=pe_peak_flop_per_s(operand, core),
        psum_elements=runs * found.psum_elements,
        reload_bytes=batch * reload_bytes(m, k, n, op.operands[0].dtype, op.operands[1].dtype, core),
        chain=1,
    )


def _groups_together(op: OpWork, core: Core) -> int:
    """Groups of a convolution that are contracted at once.

    Where their features leave rows and columns of the tensor engine free, several share one product whose
    weights are zero between groups (our own lowering; none is published).
    """
    groups, _, k, n = op.matmul
    if not op.taps or groups == 1:
        return 1
    features = max(1, k // max(1, math.prod(op.taps)))
    return max(1, min(groups, core.pe.rows // features, core.pe.columns // max(1, n)))


def _shifted_copies_s(op: OpWork, k: int, core: Core) -> float:
    """DMA time of a convolution's input, copied once for each tap that is contracted with the others.

    Its features lie on partitions, eight to a DMA engine: an image of three colours keeps few engines busy.
    """
    together = packed_taps(k, op.taps, core)
    if together == 1:
        return 0.0
    partitions = together * max(1, k // math.prod(op.taps))
    size_bytes = together * op.operands[0].size_bytes
    busy = min(partitions, core.dma.partitions_per_engine) * size_bytes / partitions
    return busy / core.dma.engine_bytes_per_s


def reload_bytes(m: int, k: int, n: int, lhs_dtype: str, rhs_dtype: str, core: Core) -> int:
    """HBM bytes read beyond the first time, for the best of three ways to block an [m, k] x [k, n] product.

    Half of the usable SBUF holds what stays, the other half streams. What stays is a strip of rows of the
    left, a strip of columns of the right, or a square block of f32 sums.
    """
    lhs_bits, rhs_bits = dtype(lhs_dtype).bits, dtype(rhs_dtype).bits
    lhs_bytes, rhs_bytes = math.ceil(m * k * lhs_bits / 8), math.ceil(k * n * rhs_bits / 8)
    kept_bytes = core.sbuf.usable_bytes - core.sbuf.stream_bytes
    rows = kept_bytes * 8 // max(1, k * lhs_bits)
    columns = kept_bytes * 8 // max(1, k * rhs_bits)
    side = math.isqrt(kept_bytes // 4)
    again = [(_times(n, side) - 1) * lhs_bytes + (_times(m, side) - 1) * rhs_bytes]
    if rows:
        again.append((_times(m, rows) - 1) * rhs_bytes)
    if columns:
        again.append((_times(n, columns) - 1) * lhs_bytes)
    return min(again)


def _times(size: int, block: int) -> int:
    return max(1, math.ceil(size / block))


def price_transpose(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """A transpose as products with the identity, left in PSUM (DMA transposes are slow on v2)."""
    moved: Tensor = op.results[0]
    return OpCost(
        engine_s={"pe": transpose_s(moved.size, core)},
        psum_elements=math.ceil(moved.size / core.pe.rows),
        chain=1,
    )
