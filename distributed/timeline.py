"""The clock: plays a program on one core's engines and the links, without any arrays."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from distributed.books import Books
from distributed.collective_cost import collective_cost
from distributed.events import Event, Queue, Timeline
from distributed.program import Block, Branch, Collective, Kernel, Launch, Loop, Program, Step
from distributed.topology import Topology, topology
from kernels.cost import KernelCost, cost
from kernels.errors import CompileError
from kernels.hardware import InstanceSpec, LinkSpec, load_core, load_instance, load_links
from kernels.work import KernelWork

__all__ = ["Event", "Timeline", "time_program"]

_COMPUTE = ("pe", "vector", "scalar", "gpsimd")
_QUEUES = (*_COMPUTE, "dma", "collective", "control")


def time_program(program: Program, instance: str | InstanceSpec) -> Timeline:
    """Times one run of a program on an instance. No launch from the host is in it.

    Rules: each engine takes its work in program order. A kernel starts when its operands are computed
    and its engines are free. What it reads of the block's inputs (weights above all) does not depend on
    computed values, so the DMA queues fetch it ahead as far as half of SBUF holds it; the rest streams in
    while the kernel runs. Collectives run beside compute, one after the other, and are not charged to
    the DMA queues. Loops and branches wait for everything before them, and each decision of the control
    CPU takes one DMA latency. A loop's first iteration is listed, the others are added up; its condition
    is evaluated once more than its body.

    Raises:
      CompileError: the instance is unknown or has fewer cores than the program.
    """
    ring = topology(instance if isinstance(instance, InstanceSpec) else load_instance(instance))
    if program.num_cores > ring.cores:
        raise CompileError(
            f"{program.name} needs {program.num_cores} cores, {ring.instance} has {ring.cores}",
            op="program",
            fix="use a larger instance or a smaller tp_degree",
        )
    clock = _Clock(program, ring, load_links())
    for number in program.main.arguments:
        clock.ready[number] = 0.0
    clock.steps(program.main)
    books = clock.books
    return Timeline(
        name=program.name,
        events=tuple(sorted(books.events, key=lambda e: (e.start_s, e.engine, e.end_s))),
        total_s=clock.latest,
        busy_s=dict(sorted(books.busy_s.items())),
        flops=books.flops,
        bytes_accessed=books.bytes_accessed,
        collective_bytes=books.collective_bytes,
        num_cores=program.num_cores,
        assumptions=tuple(dict.fromkeys(books.assumptions)),
    )


class _Clock:
    """The state of the machine while the program is played."""

    def __init__(self, program: Program, ring: Topology, links: LinkSpec) -> None:
        self.core, self.links, self.ring = load_core(), links, ring
        self.sizes = {buffer.id: buffer.tensor.size_bytes for buffer in program.buffers}
        self.books = Books()
        self.ready: dict[int, float] = {}
        self.costs: dict[int, KernelCost] = {}
        self.prices: dict[KernelWork, KernelCost] = {}
        self.restart(0.0)

    def restart(self, now: float) -> None:
        """All engines idle from ``now`` on, SBUF empty: the start of the program, or a decision."""
        self.origin = self.latest = now
        self.queues = {name: Queue(now) for name in _QUEUES}
        self.ahead: deque[tuple[float, float]] = deque()
        self.room_s = now

    def steps(self, block: Block) -> None:
        for step in block.steps:
            _STEPS[type(step)](self, step)

    def launch(self, step: Launch) -> None:
        for kernel in step.kernels:
            self.kernel(kernel)
        # Scalar work and operands handed through belong to no kernel: there when all else in the launch is.
        made = {number for kernel in step.kernels for number in kernel.results}
        there = max([self.origin, *(self.ready[number] for number in (*step.operands, *made))])
        self.ready.update((number, there) for number in step.results if number not in made)

    def kernel(self, kernel: Kernel) -> None:
        price = self.price(kernel.work)
        used = [engine for engine in _COMPUTE if price.engine_s.get(engine, 0.0) > 0]
        ready = max((self.ready[number] for number in kernel.operands), default=self.origin)
        start = max(ready, self.origin, *(self.queues[engine].end for engine in used))

        early, own_s, per_byte = self.traffic(kernel, price)
        longest = max(price.engine_s.values(), default=0.0)
        busiest = max([own_s, *(price.engine_s[engine] for engine in used)])
        waiting_s = price.latency_s - longest
        end = start + busiest + waiting_s

        room = self.core.sbuf.usable_bytes / 2
        fetched = min(early, room)
        pieces = self.fetch(fetched, room, per_byte)
        if pieces:
            # What was not fetched in time is waited for, as in a kernel that starts with its loads.
            end = max(end, pieces[0][0] + price.latency_s, pieces[-1][1] + waiting_s)
        pieces += self.queues["dma"].fill(start, (early - fetched) * per_byte + own_s)
        end = max([end, *(piece_end for _, piece_end in pieces)])
        for piece in pieces:
            size = (piece[1] - piece[0]) / per_byte
            self.record(kernel.work.name, "dma", *piece, kernel.location, size_bytes=size)
        counted = max(used, key=lambda engine: price.engine_s[engine], default="")
        for engine in used:
            # The last tile is worked on last: an engine ends with the kernel, whatever it streams in.
            seconds = price.engine_s[engine]
            began = self.queues[engine].append(max(start, end - seconds), seconds)
            flops = price.flops if engine == counted else 0.0
            self.record(kernel.work.name, engine, began, began + seconds, kernel.location, flops=flops)
        if fetched:
            self.ahead.append((end, fetched))
        self.books.flops += price.flops
        self.books.bytes_accessed += price.bytes_read + price.bytes_written + price.reload_bytes
        self.finish(kernel.results, end)

    def price(self, work: KernelWork) -> KernelCost:
        """Its cost, reckoned once; equal kernels are mostly one object, and ids are quicker than hashes."""
        found = self.costs.get(id(work))
        if found is None:
            found = self.prices.get(work) or cost(work, self.core)
            self.costs[id(work)] = self.prices[work] = found
        return found

    def traffic(self, kernel: Kernel, price: KernelCost) -> tuple[float, float, float]:
        """(bytes read that were there from the block's start, DMA seconds of all else, seconds a byte)."""
        moved = price.bytes_read + price.bytes_written + price.reload_bytes
        if not moved:
            return 0.0, 0.0, 0.0
        per_byte = price.engine_s["dma"] / moved
        there = [self.ready[number] <= self.origin for number in kernel.operands]
        if len(kernel.work.reads) == len(there):
            sizes = [tensor.size_bytes for tensor in kernel.work.reads]
        else:
            # Reads that are not one to one with operands: the operands' sizes say what share is early.
            sizes = [self.sizes[number] for number in kernel.operands]
        whole = sum(sizes)
        early = price.bytes_read * sum(size for size, is_there in zip(sizes, there, strict=True) if is_there)
        early = early / whole if whole else 0.0
        return early, (moved - early) * per_byte, per_byte

    def fetch(self, size_bytes: float, room: float, per_byte: float) -> list[tuple[float, float]]:
        """Reads ahead into SBUF as soon as earlier kernels have given back enough of its half."""
        held = sum(size for _, size in self.ahead)
        while self.ahead and held + size_bytes > room:
            done_s, size = self.ahead.popleft()
            held -= size
            self.room_s = max(self.room_s, done_s)
        self.queues["dma"].forget(self.room_s)
        return self.queues["dma"].fill(self.room_s, size_bytes * per_byte)

    def collective(self, step: Collective) -> None:
        size_bytes = sum(self.sizes[number] for number in step.operands)
        price = collective_cost(step, size_bytes, self.ring, self.links)
        ready = max((self.ready[number] for number in step.operands), default=self.origin)
        start = self.queues["collective"].append(max(ready, self.origin), price.seconds)
        end = start + price.seconds
        if price.seconds:
            self.record(step.kind, "collective", start, end, step.location, size_bytes=size_bytes)
        for link, busy_s in price.busy_s.items():
            carried = busy_s * link.bandwidth_bytes_per_s(self.links)
            event = Event(
                name=step.kind,
                engine=link.name,
                core=None,
                start_s=start,
                end_s=end,
                busy_s=busy_s,
                location=step.location,
                bytes=carried,
            )
            self.books.record(event)
        self.books.collective_bytes += size_bytes
        self.finish(step.results, end)

    def loop(self, step: Loop) -> None:
        if step.trip_count is None:
            where = f" at {step.location}" if step.location else ""
            self.books.assumptions.append(f"loop{where}: unknown trip count, timed as one iteration")
        trips = 1 if step.trip_count is None else step.trip_count
        if trips:
            start = self.latest
            body, seconds = self.apart(lambda: self.iteration(step))
            self.books.add(body)
            name = f"{trips - 1} more iterations"
            if trips > 1:
                self.books.add_iterations(body, start + seconds, seconds, trips - 1, name)
            self.restart(start + seconds * trips)
        self.decide(step)
        for number in step.results:
            self.ready[number] = self.latest

    def iteration(self, step: Loop) -> None:
        self.decide(step)
        self.bind(step.body.arguments)
        self.steps(step.body)

    def decide(self, step: Loop) -> None:
        """Evaluates the condition on the cores and has the control CPU read it."""
        self.restart(self.latest)
        self.bind(step.condition.arguments)
        self.steps(step.condition)
        self.control("loop condition", step.location)

    def branch(self, step: Branch) -> None:
        self.restart(self.latest)
        self.control("branch index", step.location)
        start = self.latest
        played = []
        for block in step.blocks:
            self.restart(start)
            played.append(self.apart(lambda block=block: self.steps(block)))
        slowest = max(range(len(played)), key=lambda index: played[index][1])
        where = f" at {step.location}" if step.location else ""
        self.books.assumptions.append(
            f"branch{where}: which block runs is not known, timed as the slowest of {len(played)}"
        )
        self.books.add(played[slowest][0])
        self.restart(start + played[slowest][1])
        for number in step.results:
            self.ready[number] = self.latest

    def apart(self, play: Callable[[], None]) -> tuple[Books, float]:
        """Plays something into books of its own; returns them and how long it took."""
        outer, start = self.books, self.latest
        self.books = Books()
        play()
        inner, self.books = self.books, outer
        return inner, self.latest - start

    def bind(self, arguments: Sequence[int]) -> None:
        for number in arguments:
            self.ready[number] = self.latest

    def control(self, name: str, location: str) -> None:
        """The control CPU fetches a scalar and decides; nothing overlaps with that."""
        start, end = self.latest, self.latest + self.core.dma.latency_s
        self.record(name, "control", start, end, location)
        self.restart(end)

    def finish(self, results: Sequence[int], end: float) -> None:
        for number in results:
            self.ready[number] = end
        self.latest = max(self.latest, end)

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
    ) -> None:
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
            )
        )


_STEPS: Mapping[type, Callable[[_Clock, Step], None]] = {
    Launch: _Clock.launch,
    Collective: _Clock.collective,
    Loop: _Clock.loop,
    Branch: _Clock.branch,
}
