"""What the plan pays for ops and collectives, from the machine model: seconds an op keeps a core busy."""

import functools
from collections.abc import Hashable, Iterable

from distributed.collective_cost import collective_cost
from distributed.program import Collective
from distributed.topology import topology
from hlo_passes.ir import ir
from hlo_passes.ops import kind, tensor
from hlo_passes.sharding.classes import origin
from hlo_passes.sharding.rules import RULE, OpRule, headed_dim
from hlo_passes.work import is_told_by_types, op_work
from kernels.cost import cost
from kernels.hardware import Core, load_core, load_instance, load_links
from kernels.ops import OPS, kinds_priced_as
from kernels.work import KernelWork, OpWork, Tensor

__all__ = ["OpPrices", "Prices"]

# Ops that read all of every operand; others may read or update a part.
_READS_ALL = kinds_priced_as("matmul", "elementwise", "reduce")
_CONTROL = ("stablehlo.while", "stablehlo.case", "stablehlo.if")


class Prices:
    """The machine model's prices for ``shards`` cores of ``instance``."""

    def __init__(self, instance: str, shards: int) -> None:
        self._core, self._links = load_core(), load_links()
        self._topology = topology(load_instance(instance))
        self._group = tuple(range(shards))
        self._of_ops: dict[Hashable, OpPrices] = {}
        self.hbm_bytes = self._core.hbm.capacity_bytes - self._core.hbm.microcode_bytes

    def of_op(self, op: ir.Operation, rule: OpRule) -> "OpPrices":
        """One object for all ops that do the same, whatever their values."""
        types = (tuple(v.type for v in op.operands), tuple(v.type for v in op.results))
        told = (op.name, *types) if is_told_by_types(op) else (op_work(op), _stored(op))
        key = (told, op.attributes[RULE])
        if key not in self._of_ops:
            self._of_ops[key] = OpPrices(op, rule, self._core)
        return self._of_ops[key]

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


class OpPrices:
    """Seconds the busiest engine works on an op; what fixed latencies add, sharding cannot save.

    Arguments of the program that a product or an elementwise op or reduction takes are read from HBM;
    whatever else it takes is still in SBUF, as after fusion.
    """

    def __init__(self, op: ir.Operation, rule: OpRule, core: Core) -> None:
        self._op, self._rule, self._core = op, rule, core
        self._known_s: dict[tuple[int, int] | None, float] = {}

    def whole_s(self) -> float:
        return self._of(None)

    def cut_s(self, factor: int, rows: int) -> float:
        """Where ``rows`` of ``factor`` are left on a core."""
        return self._of((factor, rows))

    def _of(self, cut: tuple[int, int] | None) -> float:
        if cut not in self._known_s:
            self._known_s[cut] = self._find(cut)
        return self._known_s[cut]

    def _find(self, cut: tuple[int, int] | None) -> float:
        if self._op.name in _CONTROL or kind(self._op) not in OPS:
            return 0.0
        work = op_work(self._op, shapes=None if cut is None else self._local_shapes(*cut))
        stored = tuple(
            part for part, is_stored in zip(work.operands, _stored(self._op), strict=True) if is_stored
        )
        return _busy_s(work, stored, self._core)

    def _local_shapes(self, factor: int, rows: int) -> list[tuple[int, ...]]:
        """Of operands and results."""
        shapes, values = [], (*self._op.operands, *self._op.results)
        for value, dims in zip(values, self._rule.tensors, strict=True):
            shape, at = list(value.type.shape), headed_dim(dims, factor)
            if at is not None:
                shape[at] = shape[at] // self._rule.sizes[factor] * rows
            shapes.append(tuple(shape))
        return shapes


def _stored(op: ir.Operation) -> tuple[bool, ...]:
    """Whether each operand is read from HBM."""
    reads_all = kind(op) in _READS_ALL
    return tuple(reads_all and isinstance(origin(value), ir.BlockArgument) for value in op.operands)


@functools.lru_cache(maxsize=4096)
def _busy_s(work: OpWork, stored: tuple[Tensor, ...], core: Core) -> float:
    kernel = KernelWork(name="plan", ops=(work,), reads=stored, writes=())
    return max(cost(kernel, core).engine_s.values())
