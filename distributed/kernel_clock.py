"""The clock of one core: kernels on its engines, their traffic on the DMA queues, values in SBUF."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed.books import Books
from distributed.events import Event, Part, Queue, Run
from distributed.program import Buffer, Kernel
from distributed.sbuf import Sbuf, Uses
from kernels.cost import KernelCost, cost
from kernels.errors import CompileError
from kernels.hardware import Core
from kernels.ops import COMPUTE
from kernels.work import KernelWork

__all__ = ["KernelClock"]

_QUEUES = (*COMPUTE, "dma", "collective")


@dataclass(frozen=True)
class _Traffic:
    """HBM traffic of one kernel: bytes and DMA seconds. ``early`` can be fetched before the kernel's
    operands are computed, ``late`` not; ``waits`` where the kernel reads what lies in HBM and came late."""

    early_bytes: float
    early_s: float
    late_bytes: float
    late_s: float
    spill_bytes: float
    waits: bool


class KernelClock:
    """The state of one core while a program is played.

    ``uses`` and ``position`` tell where in which block the clock stands; ``ready`` when each buffer is
    there and ``made_by`` which run made it.
    """

    def __init__(self, buffers: Sequence[Buffer], core: Core) -> None:
        self.core = core
        self.sizes = {buffer.id: buffer.tensor.size_bytes for buffer in buffers}
        self.dma_bytes_per_s = min(
            core.dma.engines * core.dma.engine_bytes_per_s, core.hbm.bandwidth_bytes_per_s
        )
        self.books = Books()
        self.uses, self.position = Uses(), 0
        self.ready: dict[int, float] = {}
        self.made_by: dict[int, int] = {}
        self.costs: dict[int, KernelCost] = {}
        self.prices: dict[KernelWork, KernelCost] = {}
        self.last_on: dict[str, int] = {}
        self.runs, self.last_run = 0, -1
        self.restart(0.0)

    def restart(self, now: float) -> None:
        """All engines idle from ``now`` on, SBUF empty: the start of the program, or a decision."""
        self.origin = self.latest = now
        self.released_by = self.last_run
        self.queues = {name: Queue(now) for name in _QUEUES}
        self.sbuf = Sbuf(self.core.sbuf.usable_bytes - self.core.sbuf.stream_bytes)
        self.ahead: deque[tuple[float, float]] = deque()
        self.room_s = now

    def kernel(self, kernel: Kernel) -> None:
        try:
            price = self.price(kernel.work)
        except CompileError as error:
            raise error.at(kernel.location) from None
        used = [engine for engine in COMPUTE if price.engine_s.get(engine, 0.0) > 0]
        ready, cause = self.latest_of(kernel.operands)
        busiest = max(used, key=lambda engine: self.queues[engine].end, default="")
        free = self.queues[busiest].end if busiest else self.origin
        traffic = self.traffic(kernel, price)
        # Signalling takes time, which work on other values may fill.
        signal_s = self.core.issue.kernel_start_s + (self.core.dma.latency_s if traffic.waits else 0.0)
        usable = ready + signal_s if ready > self.origin else self.origin
        start = max(usable, free)
        computed = start + price.stall_s + price.compute_s
        arrived, end = self.move(kernel, traffic, start, price)
        end = max(computed, end)

        counted = max(used, key=lambda engine: price.engine_s[engine], default="")
        for engine in used:
            # The last tile is worked on last: an engine ends with the kernel, whatever it streams in.
            seconds = price.engine_s[engine]
            began = self.queues[engine].append(max(start, end - seconds), seconds)
            flops = price.flops if engine == counted else 0.0
            self.record(kernel.work.name, engine, began, began + seconds, kernel.location, flops=flops)
        moved = traffic.early_bytes + traffic.late_bytes
        self.books.flops += price.flops
        self.books.bytes_accessed += moved
        self.books.spill_bytes += traffic.spill_bytes
        slowest = counted if price.compute_s >= signal_s + price.stall_s else "latency"
        self.run(
            kind="kernel",
            name=kernel.work.name,
            location=kernel.location,
            start_s=max(start, arrived),
            end_s=end,
            after=cause if usable >= free else self.last_on.get(busiest, -1),
            waited_for="memory" if arrived > start else _waited(usable, free, self.origin),
            bound="hbm" if end > computed else slowest or "latency",
            flops=price.flops,
            bytes=moved,
            engine_s=price.engine_s | {"dma": traffic.early_s + traffic.late_s},
            engines=used,
            results=kernel.results,
            parts=_parts(kernel.work, price),
        )
        self.position += 1
        if kernel.work.uncounted_loops:
            where = f" at {kernel.location}" if kernel.location else ""
            self.books.assumptions.append(
                f"kernel {kernel.work.name}{where}: loop of unknown trip count, timed as one iteration"
            )

    def price(self, work: KernelWork) -> KernelCost:
        """Its cost, reckoned once; equal kernels are mostly one object, and ids are quicker than hashes."""
        found = self.costs.get(id(work))
        if found is None:
            found = self.prices.get(work) or cost(work, self.core)
            self.costs[id(work)] = self.prices[work] = found
        return found

    def traffic(self, kernel: Kernel, price: KernelCost) -> _Traffic:
        """What the kernel moves between HBM and SBUF, given what SBUF holds; takes its results in."""
        early_bytes = early_s = late_bytes = late_s = 0.0
        waits = False
        for number, size, seconds in _shares(kernel.operands, kernel.work.reads, price.read_s, self.sizes):
            if number in self.sbuf or number in self.uses.tiles:
                continue
            if self.ready.get(number, self.origin) <= self.origin:
                early_bytes, early_s = early_bytes + size, early_s + seconds
            else:
                late_bytes, late_s, waits = late_bytes + size, late_s + seconds, True
                if size == self.sizes[number]:
                    self.sbuf.keep(number, size, self.uses.next(number, self.position), is_stored=True)
        spill_bytes = 0
        for number, size, seconds in _shares(kernel.results, kernel.work.writes, price.write_s, self.sizes):
            if number in self.uses.tiles:
                continue
            # What is written in part lies in its place in HBM already.
            is_stored = number in self.uses.stored or size < self.sizes[number]
            if is_stored:
                late_bytes, late_s = late_bytes + size, late_s + seconds
            if size == self.sizes[number]:
                next_use = self.uses.next(number, self.position)
                spill_bytes += self.sbuf.keep(number, size, next_use, is_stored=is_stored)
        self.sbuf.advance(kernel.operands, self.position, self.uses)
        again = price.reload_bytes + spill_bytes
        inside_s = price.engine_s["dma"] - sum(price.read_s) - sum(price.write_s)
        return _Traffic(
            early_bytes=early_bytes,
            early_s=early_s,
            late_bytes=late_bytes + again,
            late_s=late_s + max(inside_s, 0.0) + spill_bytes / self.dma_bytes_per_s,
            spill_bytes=spill_bytes,
            waits=waits,
        )

    def move(self, kernel: Kernel, traffic: _Traffic, start: float, price: KernelCost) -> tuple[float, float]:
        """Puts the kernel's traffic on the DMA queues; returns when its first load begins, and its end."""
        # What streams may fill all that nothing else is kept in, the streaming part at least.
        sbuf = self.core.sbuf
        spare = sbuf.prefetch_fraction * (sbuf.usable_bytes - self.sbuf.used_bytes)
        room = max(sbuf.stream_bytes, spare)
        fetched = min(1.0, room / traffic.early_bytes) if traffic.early_bytes else 0.0
        held = fetched * traffic.early_bytes
        pieces = self.fetch(held, room, fetched * traffic.early_s)
        late_s = (1 - fetched) * traffic.early_s + traffic.late_s
        arrived = end = first = start
        if pieces:
            arrived = pieces[0][0]
            # What was not fetched in time is waited for, as in a kernel that starts with its loads.
            waiting_s = self.core.issue.kernel_start_s + self.core.dma.latency_s + price.stall_s
            end = max(arrived + price.compute_s, pieces[-1][1]) + waiting_s
            first = max(start, arrived + waiting_s)
        ahead = len(pieces)
        pieces += self.queues["dma"].fill(first, late_s)
        if late_s and pieces:
            end = max(end, first + price.stall_s + late_s, pieces[-1][1])
        seconds = traffic.early_s + traffic.late_s
        per_s = (traffic.early_bytes + traffic.late_bytes) / seconds if seconds else 0.0
        for index, (began, ended) in enumerate(pieces):
            size = (ended - began) * per_s
            # Where SBUF cannot take all that could be read ahead, the rest comes while the kernel runs.
            early = index < ahead or held < traffic.early_bytes
            waited = ("sbuf" if self.room_s > self.origin else "control") if early else "kernel"
            self.record(
                kernel.work.name, "dma", began, ended, kernel.location, size_bytes=size, waited_for=waited
            )
        if held:
            self.give_back(held, max(start, arrived), end)
        return arrived, end

    def fetch(self, size_bytes: float, room: float, seconds: float) -> list[tuple[float, float]]:
        """Reads ahead into SBUF, part by part, as earlier kernels give back enough of the streaming part."""
        parts = self.core.sbuf.prefetch_parts
        if not size_bytes:
            return []
        held = sum(size for _, size in self.ahead)
        pieces: list[tuple[float, float]] = []
        for part in range(1, parts + 1):
            while self.ahead and held + size_bytes * part / parts > room:
                done_s, size = self.ahead.popleft()
                held -= size
                self.room_s = max(self.room_s, done_s)
            pieces += self.queues["dma"].fill(self.room_s, seconds / parts)
        return pieces

    def give_back(self, size_bytes: float, start: float, end: float) -> None:
        """Notes when a kernel no longer needs what was read ahead for it, part by part."""
        parts = self.core.sbuf.prefetch_parts
        self.ahead += [
            (end - (end - start) * left / parts, size_bytes / parts) for left in reversed(range(parts))
        ]

    def latest_of(self, numbers: Sequence[int]) -> tuple[float, int]:
        """When the last of these buffers is there, and the run that makes it, or lets all begin."""
        last = max(numbers, key=lambda number: self.ready[number], default=None)
        if last is None or self.ready[last] <= self.origin:
            return self.origin, self.released_by
        return self.ready[last], self.made_by.get(last, -1)

    def run(
        self, *, end_s: float, engines: Sequence[str] = (), results: Sequence[int] = (), **fields: object
    ) -> None:
        """Notes a run, when its results are there, and on which engines it was the last."""
        number, self.runs = self.runs, self.runs + 1
        self.books.runs.append(Run(number=number, end_s=end_s, **fields))
        for engine in engines:
            self.last_on[engine] = number
        for result in results:
            self.ready[result], self.made_by[result] = end_s, number
        if end_s >= self.latest:
            self.latest, self.last_run = end_s, number

    def record(
        self,
        name: str,
        engine: str,
        start_s: float,
        end_s: float,
        location: str,
        *,
        size_bytes: float = 0.0,
        flops: float = 0.0,
        waited_for: str = "",
    ) -> None:
        """Notes what an engine of the core does in the run that is noted next."""
        self.books.record(
            Event(
                name=name,
                engine=engine,
                core=0,
                start_s=start_s,
                end_s=end_s,
                busy_s=end_s - start_s,
                location=location,
                bytes=size_bytes,
                flops=flops,
                waited_for=waited_for,
                run=self.runs,
            )
        )


def _parts(work: KernelWork, price: KernelCost) -> tuple[Part, ...]:
    """The ops of a loop or branch that keep an engine busy; other kernels list no lines."""
    return tuple(
        Part(name=op.kind, location=line, count=op.repeats, engine=engine, seconds=seconds)
        for op, line, (engine, seconds) in zip(work.ops, work.lines, price.busiest, strict=False)
        if seconds
    )


def _waited(ready: float, free: float, origin: float) -> str:
    if max(ready, free) <= origin:
        return ""
    return "operands" if ready >= free else "engine"


def _shares(
    numbers: Sequence[int], parts: Sequence, seconds: Sequence[float], sizes: Mapping[int, int]
) -> list[tuple[int, float, float]]:
    """(buffer, bytes, DMA seconds) of each operand or result.

    Where reads are not one to one with operands, the operands' sizes say what share is whose.
    """
    if len(parts) == len(numbers):
        moved = [part.size_bytes for part in parts]
        return list(zip(numbers, moved, seconds, strict=True))
    total_bytes, total_s = sum(part.size_bytes for part in parts), math.fsum(seconds)
    whole = sum(sizes[number] for number in numbers)
    shares = [sizes[number] / whole if whole else 0.0 for number in numbers]
    return [
        (number, share * total_bytes, share * total_s) for number, share in zip(numbers, shares, strict=True)
    ]
