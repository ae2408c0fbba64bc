"""The cost of one kernel on one core: engines overlapped, bytes moved, never below the roofline."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from kernels import data_movement, elementwise, gather_scatter, matmul, reduction, single
from kernels.engines import OpCost, dma_s, scalar_s, stall_s, transpose_s, vector_s
from kernels.hardware import Core
from kernels.ops import COMPUTE, ENGINES, rule
from kernels.work import KernelWork, OpWork, Tensor

__all__ = ["PRICES", "KernelCost", "cost"]


@dataclass(frozen=True, kw_only=True)
class KernelCost:
    """What one run of one kernel takes on one core.

    Attributes:
      flops: floating-point operations as XLA's cost analysis counts them; 2bmkn for a product.
      transcendentals: exponentials, roots and the like, counted apart.
      bytes_read: HBM bytes the kernel reads once.
      bytes_written: HBM bytes it writes.
      reload_bytes: HBM bytes read again because SBUF cannot hold a product's operands.
      engine_s: busy seconds of "pe", "vector", "scalar", "gpsimd" and "dma".
      read_s: DMA seconds of each of the work's reads; write_s: of each of its writes.
      compute_s: seconds from the first to the last instruction with all operands in SBUF, no waits counted.
      stall_s: waits of dependent instructions.
      latency_s: seconds from its start to its last write, run alone with its operands in HBM.
      bound: the busiest engine, or "latency" where waiting outweighs any engine's work.
      busiest: of each op the engine it keeps longest ("" for none), and for how long, in all its repeats; of
        one that is a part of the kernel's own load or store this is "dma".
    """

    flops: int
    transcendentals: int
    bytes_read: int
    bytes_written: int
    reload_bytes: int
    engine_s: dict[str, float]
    read_s: tuple[float, ...]
    write_s: tuple[float, ...]
    compute_s: float
    stall_s: float
    latency_s: float
    bound: str
    busiest: tuple[tuple[str, float], ...]


# The price rules named in the op table. Places say where each operand lies: "psum" for a product still
# there, "broadcast" for what is repeated and not stored, "hbm" for the kernel's own reads, else "sbuf".
PRICES: dict[str, Callable[[OpWork, tuple[str, ...], Core], OpCost]] = {
    "matmul": matmul.price,
    "transpose": matmul.price_transpose,
    "elementwise": elementwise.price,
    "reduce": reduction.price,
    "window": reduction.price_window,
    "move": data_movement.price,
    "free": data_movement.price_free,
    "index": gather_scatter.price,
    "sort": single.price_sort,
    "fft": single.price_fft,
    "linalg": single.price_linalg,
}

# Kernels whose rows lie along partitions, where they are reduced. The products that read them contract that
# dim, so it has to lie across partitions: the tensor engine turns their results.
_BY_ROWS = frozenset({"normalization", "softmax"})
_CARRIES_PLACE = frozenset({"bitcast_convert", "convert", "reshape"})
_REPEATED = frozenset({"broadcast", "broadcast_in_dim", "constant", "dynamic_broadcast_in_dim"})


def cost(work: KernelWork, core: Core) -> KernelCost:
    """Prices ``work`` on ``core``.

    Engines overlap as far as ``core.issue.overlap_fraction`` says, fully by default, so the busiest
    decides; to that come one DMA latency and, for every op of the chain, the wait of a dependent
    instruction. The ops of one kernel pass their results through SBUF and PSUM. A kernel that reduces
    rows of one dim hands its result on transposed.

    Raises:
      CompileError: an op kind is unknown or none that a core computes.
    """
    placed, left_in_psum = _places(work)
    runs = [
        (op, PRICES[rule(op.kind).price](op, places, core))
        for op, places in zip(work.ops, placed, strict=True)
    ]
    reload_bytes = sum(price.reload_bytes for _, price in runs)
    bytes_read = sum(tensor.size_bytes for tensor in work.reads)
    bytes_written = sum(tensor.size_bytes for tensor in work.writes)
    busy = dict.fromkeys(ENGINES, 0.0)
    for op, price in runs:
        for engine, seconds in price.engine_s.items():
            busy[engine] += op.repeats * seconds
    if core.gpsimd is None:
        busy["vector"], busy["gpsimd"] = busy["vector"] + busy["gpsimd"], 0.0
    share = _busy_lanes(work, core)
    busy["vector"], busy["scalar"] = busy["vector"] / share, busy["scalar"] / share
    for index in left_in_psum:
        op, price = runs[index]
        _evacuate(busy, op.repeats, price.psum_elements * core.sbuf.partitions, core)
    if _is_by_rows(work):
        for tensor in work.writes:
            busy["pe"] += transpose_s(tensor.size, core)
            _evacuate(busy, 1, tensor.size, core)
    busy["dma"] += reload_bytes / (core.dma.engines * core.dma.engine_bytes_per_s)
    read_s = tuple(dma_s(tensor.size_bytes, tensor.size, core) for tensor in work.reads)
    write_s = tuple(dma_s(tensor.size_bytes, tensor.size, core) for tensor in work.writes)
    busy["dma"] += sum(read_s) + sum(write_s)
    busiest = max(busy, key=lambda engine: busy[engine])
    stalled_s = stall_s(core) * sum(op.repeats * price.chain for op, price in runs)
    waiting_s = core.issue.kernel_start_s + core.dma.latency_s + stalled_s
    compute_s = max(_side_by_side_s(busy, core), _compute_floor_s(runs, core))
    traffic_s = (bytes_read + bytes_written + reload_bytes) / core.hbm.bandwidth_bytes_per_s
    return KernelCost(
        flops=sum(op.repeats * price.flops for op, price in runs),
        transcendentals=sum(op.repeats * price.transcendentals for op, price in runs),
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        reload_bytes=reload_bytes,
        engine_s=busy,
        read_s=read_s,
        write_s=write_s,
        compute_s=compute_s,
        stall_s=stalled_s,
        latency_s=max(waiting_s + max(busy["dma"], compute_s), traffic_s),
        bound=busiest if busy[busiest] >= waiting_s else "latency",
        busiest=tuple(
            _busiest(op, price, places, core) for (op, price), places in zip(runs, placed, strict=True)
        ),
    )


def _is_by_rows(work: KernelWork) -> bool:
    """Whether rows of one dim are reduced. An image's features lie across partitions before and after."""
    reduced = [len(op.operands[0].shape) - len(op.results[0].shape) for op in work.ops if op.kind == "reduce"]
    return work.name in _BY_ROWS and set(reduced) == {1}


def _busiest(op: OpWork, price: OpCost, places: tuple[str, ...], core: Core) -> tuple[str, float]:
    busy = price.engine_s
    if rule(op.kind).price == "move" and "hbm" in places:
        moved = data_movement.moved(op)
        busy = {"dma": dma_s(moved.size_bytes, moved.size, core)}
    engine = max(busy, key=lambda engine: busy[engine], default="")
    return engine, op.repeats * busy.get(engine, 0.0)


def _side_by_side_s(busy: dict[str, float], core: Core) -> float:
    """The busiest compute engine, and of the others what does not overlap with it."""
    seconds = [busy[engine] for engine in COMPUTE]
    longest = max(seconds)
    return longest + (1 - core.issue.overlap_fraction) * (sum(seconds) - longest)


def _compute_floor_s(runs: list[tuple[OpWork, OpCost]], core: Core) -> float:
    """All flops at the documented peak of their type; the tensor engine's where the op states none."""
    peak = core.pe.peak_flop_per_s
    return sum(op.repeats * price.flops / min(price.peak_flop_per_s, peak) for op, price in runs)


def _busy_lanes(work: KernelWork, core: Core) -> float:
    """The share of lanes that work on a convolution's result, whose features lie on partitions.

    The next convolution contracts features, so they stay there: 64 of them leave half of the lanes idle.
    """
    lanes = core.vector.lanes
    counts = [op.matmul[0] * op.matmul[3] for op in work.ops if op.taps and op.matmul]
    return min((count / (math.ceil(count / lanes) * lanes) for count in counts if count), default=1.0)


def _evacuate(busy: dict[str, float], times: int, elements: int, core: Core) -> None:
    """Copies ``elements`` out of PSUM on whichever of vector and scalar is free sooner."""
    copies = {"vector": vector_s(elements, core), "scalar": scalar_s(elements, core)}
    engine = min(copies, key=lambda name: busy[name] + times * copies[name])
    busy[engine] += times * copies[engine]


def _places(work: KernelWork) -> tuple[list[tuple[str, ...]], list[int]]:
    """Where each op finds each operand, and the ops whose product no vector or scalar op takes from PSUM.

    Values are told apart by shape and type alone, which is all that a kernel's work states: two products of
    one shape are taken in the order last made, first used, and what an op makes hides a read of its kind.
    """
    reads, writes = set(work.reads), frozenset(work.writes)
    in_psum: dict[Tensor, list[int]] = {}
    repeated: Counter[Tensor] = Counter()
    placed = []
    for index, op in enumerate(work.ops):
        found = rule(op.kind)
        engine = elementwise.engine_of(op) if found.price == "elementwise" else found.engine
        evacuates = engine in ("vector", "scalar")
        places = []
        for operand in op.operands:
            waiting = in_psum.get(operand)
            if waiting and (evacuates or op.kind in _CARRIES_PLACE):
                producer = waiting.pop()
                places.append("psum")
                if op.kind in _CARRIES_PLACE:
                    in_psum.setdefault(op.results[0], []).append(producer)
            elif repeated[operand]:
                repeated[operand] -= 1
                places.append("broadcast")
            else:
                places.append("hbm" if operand in reads else "sbuf")
        if found.price == "move" and not (reads | writes).isdisjoint((*op.operands, *op.results)):
            # A slice may read only its result, an update in place write only what it puts in.
            places = ["hbm"] * len(places)
        if op.kind in _REPEATED or (op.kind in _CARRIES_PLACE and "broadcast" in places):
            repeated.update(op.results)
        if found.price in ("matmul", "transpose"):
            in_psum.setdefault(op.results[0], []).append(index)
        # A loop's results are what its body reads, which lies where the loop found it.
        if op.kind not in elementwise.CONTROL:
            reads.difference_update(op.results)
        placed.append(tuple(places))
    return placed, sorted(index for waiting in in_psum.values() for index in waiting)
