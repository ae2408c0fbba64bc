"""The clock: plays a program on one core's engines and the links, without any arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from distributed.books import Books
from distributed.collective_cost import collective_cost
from distributed.events import Event, Timeline
from distributed.kernel_clock import KernelClock
from distributed.program import Block, Branch, Collective, Launch, Loop, Program, Step
from distributed.sbuf import Uses
from distributed.topology import Topology, topology
from kernels.eras import DEFAULT_ERA, Era, core_of, links_of
from kernels.errors import CompileError
from kernels.hardware import Core, InstanceSpec, LinkSpec, load_accesses, load_instance

__all__ = ["Event", "Timeline", "time_program"]


def time_program(
    program: Program,
    instance: str | InstanceSpec,
    *,
    era: str | Era = DEFAULT_ERA,
    sharers: int | None = None,
) -> Timeline:
    """Times one run of a program on an instance. No launch from the host is in it.

    Rules: each engine takes its work in program order. A kernel starts when its operands are computed
    and its engines are free. Values stay in SBUF from kernel to kernel as far as there is room; what does
    not fit is spilled to HBM, and collectives find their operands there. What a kernel reads of the
    block's inputs (weights above all) does not depend on computed values, so the DMA queues fetch it ahead
    as far as the streaming part of SBUF holds it; the rest streams in while the kernel runs. Collectives
    run beside compute, one after the other, and take their share of the DMA queues. All cores of a chip
    run at once, each with its share of the memory's bandwidth, unless told otherwise. Loops and branches
    wait for everything before them, and each decision of the control CPU takes one DMA latency. A loop's
    first iteration is listed, the others are added up; its condition is evaluated once more than its body.

    Args:
      era: one of ``kernels.eras.ERAS``, or constants of one's own.
      sharers: cores of a chip that are busy at once and share its memory; left out, all of them.

    Raises:
      CompileError: the instance or era is unknown, or the instance has fewer cores than the program.
    """
    spec = instance if isinstance(instance, InstanceSpec) else load_instance(instance)
    ring = topology(spec)
    if program.num_cores > ring.cores:
        raise CompileError(
            f"{program.name} needs {program.num_cores} cores, {ring.instance} has {ring.cores}",
            op="program",
            fix="use a larger instance or a smaller tp_degree",
        )
    core = core_of(era, spec.family)
    if sharers is not None:
        bandwidth = core.hbm.bandwidth_bytes_per_s * ring.cores_per_chip / sharers
        core = replace(core, hbm=replace(core.hbm, bandwidth_bytes_per_s=bandwidth))
    clock = _Clock(program, ring, core, links_of(era, spec.family))
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
        spill_bytes=books.spill_bytes,
        collective_bytes=books.collective_bytes,
        num_cores=program.num_cores,
        instance=spec.name,
        era=era if isinstance(era, str) else "custom",
        runs=tuple(sorted(books.runs, key=lambda run: (run.start_s, run.number))),
        peak_flop_per_s=clock.core.pe.peak_flop_per_s,
        bandwidth_bytes_per_s=clock.core.hbm.bandwidth_bytes_per_s,
        assumptions=tuple(dict.fromkeys(books.assumptions)),
    )


class _Clock(KernelClock):
    """Plays steps; kernels are the base's."""

    def __init__(self, program: Program, ring: Topology, core: Core, links: LinkSpec) -> None:
        super().__init__(program.buffers, core)
        self.ring, self.links, self.accesses = ring, links, load_accesses()

    def steps(self, block: Block) -> None:
        outer = self.uses, self.position
        self.uses, self.position = Uses.of(block, row_tiles=self.core.sbuf.row_tiles), 0
        for step in block.steps:
            _STEPS[type(step)](self, step)
        self.uses, self.position = outer

    def launch(self, step: Launch) -> None:
        for kernel in step.kernels:
            self.kernel(kernel)
        # Scalar work and operands handed through belong to no kernel: there when all else in the launch is.
        made = {number for kernel in step.kernels for number in kernel.results}
        sources = (*step.operands, *made)
        there = max([self.origin, *(self.ready[number] for number in sources)])
        last = max(sources, key=lambda number: self.ready[number], default=None)
        for number in step.results:
            if number not in made:
                self.ready[number] = there
                self.made_by[number] = self.made_by.get(last, -1) if last is not None else -1

    def collective(self, step: Collective) -> None:
        size_bytes = sum(self.sizes[number] for number in step.operands)
        price = collective_cost(step, size_bytes, self.ring, self.links)
        ready, cause = self.latest_of(step.operands)
        free = self.queues["collective"].end
        start = self.queues["collective"].append(max(ready, self.origin), price.seconds)
        end = start + price.seconds
        if price.seconds:
            self.record(step.kind, "collective", start, end, step.location, size_bytes=size_bytes)
            end = max(end, self._collective_traffic(step, price.link_bytes, start))
        for link, busy_s in price.busy_s.items():
            event = Event(
                name=step.kind,
                engine=link.name,
                core=None,
                start_s=start,
                end_s=start + price.seconds,
                busy_s=busy_s,
                location=step.location,
                bytes=busy_s * link.bandwidth_bytes_per_s(self.links),
                run=self.runs,
            )
            self.books.record(event)
        self.books.collective_bytes += size_bytes
        hops_s = self.links.hop_latency_s * price.steps
        waited = "engine" if free > ready else "operands"
        self.run(
            kind="collective",
            name=step.kind,
            location=step.location,
            start_s=start,
            end_s=end,
            after=self.last_on.get("collective", -1) if free > ready else cause,
            waited_for=waited if start > self.origin else "",
            bound="latency" if 2 * hops_s > price.seconds else "link",
            bytes=size_bytes,
            engine_s={"collective": price.seconds},
            engines=("collective",),
            results=step.results,
        )

    def _collective_traffic(self, step: Collective, link_bytes: float, start: float) -> float:
        """Charges the collective's reads and writes of HBM to the DMA queues; returns when they are done."""
        cores = sum(len(group) for group in step.groups) or 1
        moved = link_bytes / cores * getattr(self.accesses, step.kind)
        pieces = self.queues["dma"].fill(start, moved / self.dma_bytes_per_s)
        for began, ended in pieces:
            size = (ended - began) * self.dma_bytes_per_s
            self.record(
                step.kind, "dma", began, ended, step.location, size_bytes=size, waited_for="collective"
            )
        return pieces[-1][1] if pieces else start

    def loop(self, step: Loop) -> None:
        if step.trip_count is None:
            where = f" at {step.location}" if step.location else ""
            self.books.assumptions.append(f"loop{where}: unknown trip count, timed as one iteration")
        trips = 1 if step.trip_count is None else step.trip_count
        if trips:
            start = self.latest
            body, seconds = self.apart(lambda: self.iteration(step))
            self.books.add(body)
            if trips > 1:
                self.books.add_iterations(body, start + seconds, seconds, trips - 1, run=self.last_run)
            self.restart(start + seconds * trips)
        self.decide(step)
        self.hand_on(step.results)

    def iteration(self, step: Loop) -> None:
        self.decide(step)
        self.hand_on(step.body.arguments)
        self.steps(step.body)

    def decide(self, step: Loop) -> None:
        """Evaluates the condition on the cores and has the control CPU read it."""
        self.restart(self.latest)
        self.hand_on(step.condition.arguments)
        self.steps(step.condition)
        self.control("loop condition", step.location)

    def branch(self, step: Branch) -> None:
        self.restart(self.latest)
        self.control("branch index", step.location)
        start, decision = self.latest, self.last_run
        played = []
        for block in step.blocks:
            self.last_run = decision
            self.restart(start)
            played.append((*self.apart(lambda block=block: self.steps(block)), self.last_run))
        books, seconds, self.last_run = max(played, key=lambda block: block[1])
        where = f" at {step.location}" if step.location else ""
        self.books.assumptions.append(
            f"branch{where}: which block runs is not known, timed as the slowest of {len(played)}"
        )
        self.books.add(books)
        self.restart(start + seconds)
        self.hand_on(step.results)

    def apart(self, play: Callable[[], None]) -> tuple[Books, float]:
        """Plays something into books of its own; returns them and how long it took."""
        outer, start = self.books, self.latest
        self.books = Books()
        play()
        inner, self.books = self.books, outer
        return inner, self.latest - start

    def hand_on(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.ready[number], self.made_by[number] = self.latest, self.last_run

    def control(self, name: str, location: str) -> None:
        """The control CPU fetches a scalar and decides; nothing overlaps with that."""
        start, end = self.latest, self.latest + self.core.dma.latency_s
        self.record(name, "control", start, end, location)
        self.run(
            kind="control",
            name=name,
            location=location,
            start_s=start,
            end_s=end,
            after=self.last_run,
            waited_for="operands",
            bound="latency",
        )
        self.restart(end)


_STEPS: Mapping[type, Callable[[_Clock, Step], None]] = {
    Launch: _Clock.launch,
    Collective: _Clock.collective,
    Loop: _Clock.loop,
    Branch: _Clock.branch,
}
