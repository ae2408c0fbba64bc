"""What a timeline has counted: events, busy seconds, flops and bytes; parts can be counted several times."""

from collections import defaultdict
from dataclasses import replace

from distributed.events import Event, Run

__all__ = ["Books"]


class Books:
    """What has been counted so far; a part of the program can be counted apart and added several times."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.runs: list[Run] = []
        self.assumptions: list[str] = []
        self.busy_s: defaultdict[str, float] = defaultdict(float)
        self.cores: dict[str, int | None] = {}
        self.flops = self.bytes_accessed = self.spill_bytes = self.collective_bytes = 0.0

    def record(self, event: Event) -> None:
        self.events.append(event)
        self.busy_s[event.engine] += event.busy_s
        self.cores[event.engine] = event.core

    def add(self, other: "Books") -> None:
        """Takes over everything in ``other``, its events included."""
        self.events += other.events
        self.runs += other.runs
        self.assumptions += other.assumptions
        self._count(other, 1)

    def add_iterations(self, body: "Books", start_s: float, seconds: float, times: int, *, run: int) -> None:
        """Counts ``body``, which ends with a ``run``, ``times`` more: one event per engine spans them all."""
        name = "1 more iteration" if times == 1 else f"{times} more iterations"
        self.events += [
            Event(
                name=name, engine=engine, core=body.cores[engine], start_s=start_s,
                end_s=start_s + seconds * times, busy_s=busy_s * times, iterations=times, waited_for="loop",
                run=run,
            )
            for engine, busy_s in body.busy_s.items()
        ]  # fmt: skip
        inside = {run.number for run in body.runs}
        self.runs = [
            replace(run, iterations=run.iterations * (times + 1)) if run.number in inside else run
            for run in self.runs
        ]
        self._count(body, times)

    def _count(self, other: "Books", times: int) -> None:
        self.cores |= other.cores
        for engine, busy_s in other.busy_s.items():
            self.busy_s[engine] += busy_s * times
        self.flops += other.flops * times
        self.bytes_accessed += other.bytes_accessed * times
        self.spill_bytes += other.spill_bytes * times
        self.collective_bytes += other.collective_bytes * times
