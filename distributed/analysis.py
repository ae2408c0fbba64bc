"""What a timeline says: critical path, why engines stand still, kernels and layers, shares of the peaks."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed.events import Run, Timeline
from kernels.ops import COMPUTE

__all__ = [
    "KernelRow",
    "LayerRow",
    "critical_path",
    "exposed_collective_s",
    "kernel_rows",
    "layer_rows",
    "mbu",
    "mfu",
    "stalls",
]


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """All runs of one name and source line. Seconds are from first to last instruction, summed.

    ``bound`` is what bounds most of that time.
    """

    name: str
    location: str
    kind: str
    count: int
    seconds: float
    bound: str
    flops: float
    bytes: float
    engine_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One of several equal stretches of a program; ``collective_s`` is the part that collectives fill."""

    number: int
    start_s: float
    seconds: float
    collective_s: float
    flops: float
    bytes: float


def mfu(timeline: Timeline) -> float:
    """Flops over what the tensor engine could do in that time (documented bf16 peak)."""
    return _share(timeline.flops, timeline.total_s * timeline.peak_flop_per_s)


def mbu(timeline: Timeline) -> float:
    """Kernel traffic over what the core's share of HBM could carry in that time."""
    return _share(timeline.bytes_accessed, timeline.total_s * timeline.bandwidth_bytes_per_s)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def critical_path(timeline: Timeline) -> list[Run]:
    """The chain of runs, each waiting for the one before, that ends with the last one; first to last.

    A run that waited for nothing but weights ends the chain.
    """
    by_number = {run.number: run for run in timeline.runs}
    at = max(timeline.runs, key=lambda run: (run.end_s, run.number), default=None)
    path: list[Run] = []
    while at is not None:
        path.append(at)
        before = by_number.get(at.after)
        # Runs of another iteration are not listed; a cause always ends before its effect begins.
        at = before if before is not None and before.number < at.number else None
    return path[::-1]


def exposed_collective_s(timeline: Timeline) -> float:
    """Seconds of the critical path that are collectives: what a free network would save at most."""
    return sum(
        (run.end_s - run.start_s) * run.iterations
        for run in critical_path(timeline)
        if run.kind == "collective"
    )


def stalls(timeline: Timeline) -> dict[str, dict[str, float]]:
    """For each compute engine with work, the seconds it stands still, by what its next kernel waits for.

    Reasons: "collective" or "kernel" (for the result of one), "memory" (for weights), "engine" (another
    engine of the same kernel is busy) and "done" (nothing left, or a loop whose iterations are not listed).
    """
    numbers = {run.number: run for run in timeline.runs}
    found: dict[str, dict[str, float]] = {}
    for engine in COMPUTE:
        busy_s = timeline.busy_s.get(engine, 0.0)
        if not busy_s:
            continue
        reasons: defaultdict[str, float] = defaultdict(float)
        last = 0.0
        for run in timeline.runs:
            if not run.engine_s.get(engine, 0.0):
                continue
            idle = run.end_s - run.engine_s[engine] - last
            if idle > 0:
                reasons[_reason(run, numbers)] += idle
            last = max(last, run.end_s)
        left = timeline.total_s - busy_s - sum(reasons.values())
        if left > 0:
            reasons["done"] += left
        found[engine] = dict(sorted(reasons.items(), key=lambda item: -item[1]))
    return found


def _reason(run: Run, numbers: Mapping[int, Run]) -> str:
    if run.waited_for == "operands":
        cause = numbers.get(run.after)
        return "collective" if cause is not None and cause.kind == "collective" else "kernel"
    return run.waited_for or "memory"


def kernel_rows(timeline: Timeline) -> list[KernelRow]:
    """Kernels, collectives and decisions by name and source line, those that take longest first."""
    groups: defaultdict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in timeline.runs:
        groups[run.kind, run.name, run.location].append(run)
    rows = [_row(*key, runs) for key, runs in groups.items()]
    return sorted(rows, key=lambda row: (-row.seconds, row.name, row.location))


def _row(kind: str, name: str, location: str, runs: Sequence[Run]) -> KernelRow:
    by_bound: defaultdict[str, float] = defaultdict(float)
    engine_s: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        by_bound[run.bound] += (run.end_s - run.start_s) * run.iterations
        for engine, seconds in run.engine_s.items():
            engine_s[engine] += seconds * run.iterations
    return KernelRow(
        name=name,
        location=location,
        kind=kind,
        count=sum(run.iterations for run in runs),
        seconds=sum(by_bound.values()),
        bound=max(by_bound, key=lambda bound: by_bound[bound]),
        flops=sum(run.flops * run.iterations for run in runs),
        bytes=sum(run.bytes * run.iterations for run in runs),
        engine_s={engine: seconds for engine, seconds in engine_s.items() if seconds},
    )


def layer_rows(timeline: Timeline) -> list[LayerRow]:
    """The program cut at the first kernel that comes as often as most kernels do: unrolled equal layers.

    Empty where nothing repeats. What stands before the first layer and behind the last is in neither.
    """
    kernels = [run for run in timeline.runs if run.kind == "kernel"]
    counts = Counter((run.name, run.location, run.flops) for run in kernels)
    repeated = Counter(count for count in counts.values() if count > 1)
    if not repeated:
        return []
    layers = max(repeated, key=lambda count: (repeated[count] * count, count))
    anchor = next(run for run in kernels if counts[run.name, run.location, run.flops] == layers)
    key = (anchor.name, anchor.location, anchor.flops)
    starts = [run.start_s for run in kernels if (run.name, run.location, run.flops) == key]
    bounds = [*starts, starts[-1] + (starts[-1] - starts[-2])]
    return [_layer(number, *bounds[number : number + 2], timeline.runs) for number in range(layers)]


def _layer(number: int, start_s: float, end_s: float, runs: Sequence[Run]) -> LayerRow:
    inside = [run for run in runs if start_s <= run.start_s < end_s]
    return LayerRow(
        number=number,
        start_s=start_s,
        seconds=end_s - start_s,
        collective_s=sum(run.end_s - run.start_s for run in inside if run.kind == "collective"),
        flops=sum(run.flops for run in inside),
        bytes=sum(run.bytes for run in inside if run.kind == "kernel"),
    )
