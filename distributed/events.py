"""The records of a timeline, and the books of the engines: what is busy when."""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Event", "Part", "Queue", "Run", "Timeline"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something an engine or link did.

    ``engine`` is pe, vector, scalar, gpsimd, dma, collective, control, or the name of a link (then
    ``core`` is None). ``busy_s`` is less than ``end_s - start_s`` for a link, which waits between the steps
    of a collective, and where the event stands for ``iterations`` of a loop not listed one by one.
    Traffic of the DMA queues says what it ``waited_for``: room in "sbuf" to read ahead into, the "control"
    CPU before which nothing is read, the "kernel" it belongs to, its "collective", or its "loop" to begin
    anew. ``run`` is the number of its run; of further iterations that of the last of their loop's body.
    """

    name: str
    engine: str
    core: int | None
    start_s: float
    end_s: float
    busy_s: float
    location: str = ""
    bytes: float = 0.0
    flops: float = 0.0
    iterations: int = 1
    waited_for: str = ""
    run: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """An op in a kernel that is a loop or branch; ``count`` is how often it runs.

    ``seconds`` is how long that keeps the ``engine`` with most of its work; engines work side by side.
    """

    name: str
    location: str
    count: int
    engine: str
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One kernel, collective or decision of the control CPU, and why it took as long and began as late.

    Attributes:
      number: of the run; ``after`` that of the run whose end it had to wait for, -1 for none.
      kind: kernel, collective or control.
      waited_for: what it waited for after that run was there: "operands", "engine" or "memory" (weights
        not fetched yet); empty where it began at once.
      bound: what decided its length: pe, vector, scalar, gpsimd, hbm, link or latency.
      iterations: of the loop it stands in; all its numbers are those of one.
      parts: what a kernel that is a loop or branch is made of.
    """

    number: int
    after: int
    kind: str
    name: str
    location: str
    start_s: float
    end_s: float
    waited_for: str
    bound: str
    flops: float = 0.0
    bytes: float = 0.0
    engine_s: Mapping[str, float] = field(default_factory=dict)
    iterations: int = 1
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When what happens in one run of a program, from its first instruction to its last.

    All cores run the same program and are alike, so ``events`` show core 0; links are shown each.

    Attributes:
      events: in order of their start.
      total_s: seconds of one run.
      busy_s: seconds of work per engine of one core and per link.
      flops: floating-point operations of one core, those of loops times their iterations.
      bytes_accessed: HBM bytes read and written by the kernels of one core; what passes from kernel to
        kernel in SBUF is not among them.
      spill_bytes: of those, what would have stayed in SBUF had there been room.
      collective_bytes: operand bytes one core brings to collectives.
      num_cores: cores the program runs on, of one ``instance``.
      era: whose constants the times come from.
      runs: kernels, collectives and decisions in the order of their start.
      peak_flop_per_s, bandwidth_bytes_per_s: of one core, as documented: what times are measured against.
      assumptions: what had to be supposed because the program does not say, for example trip counts.
    """

    name: str
    events: Sequence[Event]
    total_s: float
    busy_s: Mapping[str, float]
    flops: float
    bytes_accessed: float
    spill_bytes: float
    collective_bytes: float
    num_cores: int
    instance: str
    era: str
    runs: Sequence[Run]
    peak_flop_per_s: float
    bandwidth_bytes_per_s: float
    assumptions: tuple[str, ...]


class Queue:
    """One engine's time: work is put into the earliest gap that is long enough, or in pieces into several.

    Work never overlaps.
    """

    def __init__(self, now: float) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._floor = now

    @property
    def end(self) -> float:
        """When the last piece of work ends."""
        return self._ends[-1] if self._ends else self._floor

    def append(self, earliest: float, seconds: float) -> float:
        """Puts work after everything there is; returns its start."""
        start = max(earliest, self.end)
        self._insert(len(self._starts), start, start + seconds)
        return start

    def fill(self, earliest: float, seconds: float) -> list[tuple[float, float]]:
        """Puts work into the gaps from ``earliest`` on, cut in pieces where needed; returns the pieces."""
        pieces: list[tuple[float, float]] = []
        start, left = max(earliest, self._floor), seconds
        at = bisect.bisect_right(self._ends, start)
        while left > 0:
            limit = self._starts[at] if at < len(self._starts) else float("inf")
            if limit > start:
                end = min(start + left, limit)
                if end > start:
                    pieces.append((start, end))
                # The last piece takes exactly what is left, so that no rounding error goes on forever.
                left = 0.0 if end < limit or limit - start >= left else left - (end - start)
            if at < len(self._starts):
                start = max(start, self._ends[at])
            at += 1
        for piece in pieces:
            self._insert(bisect.bisect_left(self._starts, piece[0]), *piece)
        return pieces

    def _insert(self, at: int, start: float, end: float) -> None:
        if end <= start:
            return
        # Neighbours that touch are one: few intervals stay, however many kernels there are.
        if at > 0 and self._ends[at - 1] >= start:
            self._ends[at - 1] = end
            at -= 1
        else:
            self._starts.insert(at, start)
            self._ends.insert(at, end)
        if at + 1 < len(self._starts) and self._starts[at + 1] <= end:
            self._ends[at] = self._ends[at + 1]
            del self._starts[at + 1], self._ends[at + 1]
