"""What the plan pays for ops and collectives, from the machine model: seconds an op keeps a core busy."""

import functools
from collections.abc import Hashable, Iterable, Sequence

from distributed.collective_cost import collective_cost
from distributed.program import Collective
from distributed.topology import topology
from hlo_passes.ir import ir
from hlo_passes.ops import kind, tensor
from hlo_passes.sharding.classes import origin
from hlo_passes.work import is_told_by_types, op_work
from kernels.cost import cost
from kernels.hardware import Core, load_core, load_instance, load_links
from kernels.ops import OPS, kinds_priced_as
from kernels.work import KernelWork, OpWork, Tensor

__all__ = ["Prices"]

# Ops that read all of every operand; others may read or update a part.
_READS_ALL = kinds_priced_as("matmul", "elementwise", "reduce")
_CONTROL = ("stablehlo.while", "stablehlo.case", "stablehlo.if")


class Prices:
    """The machine model's prices for ``shards`` cores of ``instance``."""

    def __init__(self, instance: str, shards: int) -> None:
        self._core, self._links = load_core(), load_links()
        self._topology = topology(load_instance(instance))
        self._group = tuple(range(shards))
        self._known_s: dict[Hashable, float] = {}
        self.of_rows_s: dict[tuple[ir.Operation, int, int], float] = {}
        self.hbm_bytes = self._core.hbm.capacity_bytes - self._core.hbm.microcode_bytes

    def busy_s(self, op: ir.Operation, shapes: Sequence[tuple[int, ...]] | None = None) -> float:
        """Seconds the busiest engine works on ``op``; what fixed latencies add, sharding cannot save.

        Arguments of the program that a product or an elementwise op or reduction takes are read from HBM;
        whatever else it takes is still in SBUF, as after fusion.

        Args:
          op: an op of the global program.
          shapes: of its operands and results on one core; by default whole.
        """
        if op.name in _CONTROL or kind(op) not in OPS:
            return 0.0
        if not is_told_by_types(op):
            return self._find_busy_s(op, shapes)
        types = (tuple(v.type for v in op.operands), tuple(v.type for v in op.results))
        key = (op.name, *types, None if shapes is None else tuple(shapes))
        if key not in self._known_s:
            self._known_s[key] = self._find_busy_s(op, shapes)
        return self._known_s[key]

    def _find_busy_s(self, op: ir.Operation, shapes: Sequence[tuple[int, ...]] | None) -> float:
        work = op_work(op, shapes=shapes)
        operands = zip(op.operands, work.operands, strict=True) if kind(op) in _READS_ALL else ()
        stored = tuple(part for value, part in operands if isinstance(origin(value), ir.BlockArgument))
        return _busy_s(work, stored, self._core)

    def collective_s(self, kind: str, values: Iterable[ir.Value]) -> float:
        """Seconds of one collective over all cores; an all-gather is priced by the gathered bytes."""
        size_bytes = sum(tensor(v.type).size_bytes for v in values)
        if kind == "all_gather":
            size_bytes //= len(self._group)
        return self._collective_s(kind, size_bytes)

    def result_s(self) -> float:
        """What a sharded result costs the host: one transfer a core instead of one."""
        return (len(self._group) - 1) * self._core.dma.latency_s

    @functools.cache  # noqa: B019 (lives as long as one plan)
    def _collective_s(self, kind: str, size_bytes: int) -> float:
        collective = Collective(
            kind=kind, operands=(), results=(), groups=(self._group,), reducer="add", dim=0
        )
        seconds = collective_cost(collective, size_bytes, self._topology, self._links).seconds
        # A collective ends a kernel: what it moves is written to HBM and read back, a DMA latency each.
        return seconds + 2 * self._core.dma.latency_s


@functools.lru_cache(maxsize=4096)
def _busy_s(work: OpWork, stored: tuple[Tensor, ...], core: Core) -> float:
    kernel = KernelWork(name="plan", ops=(work,), reads=stored, writes=())
    return max(cost(kernel, core).engine_s.values())
