"""Instruction times of one core's engines, from the documented cycle formulas. All times in seconds.

Sources: nki/api/nki/isa @v2.26.1 (cycles per instruction), nki/deep-dives/nki-dma-bandwidth-guide.rst.
N is always the number of elements per partition: elements spread over all lanes.
"""

import functools
import math
from dataclasses import dataclass, field

import numpy as np

from kernels.dtypes import dtype
from kernels.hardware import Core
from kernels.work import Tensor

__all__ = [
    "OpCost",
    "Product",
    "contracted_tiles",
    "dma_s",
    "gpsimd_s",
    "lane_elements",
    "packed_taps",
    "pe_passes",
    "pe_peak_flop_per_s",
    "product",
    "scalar_s",
    "stall_s",
    "transpose_s",
    "vector_s",
]


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """One run of one op: busy seconds per engine, flops, and what is left for the kernel to place.

    ``flops_per_s`` is the peak its flops are measured against; ``psum_elements`` are elements per partition
    left in PSUM, ``reload_bytes`` HBM bytes read more than once; ``chain`` counts dependent instructions.
    """

    engine_s: dict[str, float] = field(default_factory=dict)
    flops: int = 0
    transcendentals: int = 0
    peak_flop_per_s: float = math.inf
    psum_elements: int = 0
    reload_bytes: int = 0
    chain: int = 0


def lane_elements(tensor: Tensor) -> int:
    """Elements the lanes see: a complex number is two."""
    return tensor.size * (2 if dtype(tensor.dtype).is_complex else 1)


def vector_s(elements: int, core: Core, *, cycles: float = 1.0, passes: int = 1) -> float:
    """``passes`` instructions of ``max(MIN_II, cycles * N)`` on the vector engine."""
    unit = core.vector
    busy = max(unit.min_interval_cycles, cycles * math.ceil(elements / unit.lanes))
    return passes * busy / unit.clock_hz


def scalar_s(elements: int, core: Core, *, passes: int = 1) -> float:
    """``passes`` activations of ``max(MIN_II, N)`` on the scalar engine."""
    unit = core.scalar
    return passes * max(unit.min_interval_cycles, math.ceil(elements / unit.lanes)) / unit.clock_hz


def gpsimd_s(elements: int, core: Core, *, passes: int = 1) -> float:
    """``passes`` instructions of ``150 + N`` on the gpsimd engine; without one, on the vector engine."""
    unit = core.gpsimd
    if unit is None:
        return vector_s(elements, core, passes=passes)
    return passes * (unit.fixed_cycles + math.ceil(elements / unit.lanes)) / unit.clock_hz


def stall_s(core: Core) -> float:
    """What a dependent instruction waits for the one before, beyond its own shortest interval."""
    return core.issue.dependent_op_s - core.scalar.min_interval_cycles / core.scalar.clock_hz


def pe_passes(name: str, core: Core) -> int:
    """Runs through the tensor engine that a product of this operand type takes.

    Integers go through f32 (NCC_EVRF035); 64-bit types are narrowed to 32 bits, as neuronx-cc does.
    """
    full_rate = (*core.pe.full_rate_dtypes, *core.pe.emulated_full_rate_dtypes)
    passes = 1 if name in full_rate else core.pe.f32_passes
    return passes * (core.pe.complex_products if dtype(name).is_complex else 1)


def pe_peak_flop_per_s(name: str, core: Core) -> float:
    """Documented peak for products of this operand type: nothing may be faster."""
    passes = pe_passes(name, core)
    if passes == 1:
        return core.pe.peak_flop_per_s
    return core.pe.f32_peak_flop_per_s * core.pe.f32_passes / passes


@dataclass(frozen=True, kw_only=True)
class Product:
    """How one (m, k, n) product is put on the tensor engine: cycles of one pass, and elements per partition
    that it leaves in PSUM."""

    cycles: int
    psum_elements: int


def packed_taps(k: int, taps: tuple[int, ...], core: Core) -> int:
    """Taps of a convolution's last dim that are contracted at once.

    A convolution contracts its features tap by tap. Where they leave rows of the tensor engine free, shifted
    copies of the input fill them (our own lowering; none is published).
    """
    count = math.prod(taps)
    if count <= 1:
        return 1
    features = max(1, k // count)
    return max(1, min(taps[-1], core.pe.rows // features))


def contracted_tiles(k: int, taps: tuple[int, ...], core: Core) -> int:
    """Tiles of contracted rows of one product, or of one convolution as its implicit product."""
    rows, count = core.pe.rows, math.prod(taps)
    if count <= 1:
        return math.ceil(k / rows)
    steps = count // taps[-1] * math.ceil(taps[-1] / packed_taps(k, taps, core))
    return steps * math.ceil(max(1, k // count) / rows)


def product(m: int, k: int, n: int, core: Core, taps: tuple[int, ...] = ()) -> Product:
    """The cheaper of the two choices of the stationary operand.

    A tile instruction contracts 128 rows of 128 stationary with up to 512 moving columns and takes
    ``max(min(64, N_stationary), N_moving)`` cycles. Loading weights hides behind the product before.
    """
    tiles = contracted_tiles(k, taps, core)
    choices = (_stationary(m, n, tiles, core), _stationary(n, m, tiles, core))
    return min(choices, key=lambda choice: (choice.cycles, choice.psum_elements))


def _stationary(stationary: int, moving: int, contracted_tiles: int, core: Core) -> Product:
    unit = core.pe
    full, rest = divmod(stationary, unit.columns)
    # Moving tiles are cut evenly, so each but a lone one is longer than the shortest interval.
    cycles = full * max(min(unit.min_interval_cycles, unit.columns), moving)
    if rest:
        cycles += max(min(unit.min_interval_cycles, rest), moving)
    tiles = math.ceil(stationary / unit.columns)
    return Product(cycles=cycles * contracted_tiles, psum_elements=tiles * moving)


def transpose_s(elements: int, core: Core) -> float:
    """A transpose through the tensor engine: ``max(P, min(64, F))`` cycles per 128 x 128 tile."""
    tiles = math.ceil(elements / (core.pe.rows * core.pe.columns))
    return tiles * core.pe.rows / core.pe.clock_hz


def dma_s(size_bytes: int, elements: int, core: Core) -> float:
    """Busy time of the DMA engines for one tensor spread over the partitions, without the fixed latency.

    A tensor of fewer elements than partitions goes to as many partitions as it has elements.

    Descriptors below about 2.4 KiB a partition cost as much as one of that size (the published curve of
    efficiency by size, its digitising noise removed so that more bytes never take less time).
    """
    if not size_bytes:
        return 0.0
    unit = core.dma
    partitions = min(core.sbuf.partitions, elements)
    equivalent_bytes = _equivalent_bytes(
        size_bytes / partitions, unit.curve_partition_bytes, unit.curve_fraction
    )
    seconds = min(partitions, unit.partitions_per_engine) * equivalent_bytes / unit.engine_bytes_per_s
    # The queues together may be faster than the core's share of the memory.
    return max(seconds, size_bytes / core.hbm.bandwidth_bytes_per_s)


def _equivalent_bytes(
    partition_bytes: float, curve_bytes: tuple[int, ...], curve_fraction: tuple[float, ...]
) -> float:
    if partition_bytes >= curve_bytes[-1]:
        return partition_bytes
    costs = _monotone(curve_bytes, curve_fraction)
    return float(np.interp(partition_bytes, curve_bytes, costs))


@functools.cache
def _monotone(curve_bytes: tuple[int, ...], curve_fraction: tuple[float, ...]) -> tuple[float, ...]:
    """Bytes at full rate that take as long as each point of the curve, never falling."""
    costs = np.array(curve_bytes) / np.array(curve_fraction)
    return tuple(np.maximum.accumulate(costs).tolist())
