"""What a timeline says: its critical path, its kernels, and shares of the peaks."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from distributed.events import Part, Run, Timeline

__all__ = [
    "KernelRow",
    "PathStep",
    "critical_path",
    "exposed_collective_s",
    "kernel_rows",
    "mbu",
    "mfu",
    "most_first",
    "path_s",
]


@dataclass(frozen=True, kw_only=True)
class PathStep:
    """A run of the critical path: seconds from its start to its end, or to that of the run that follows.

    ``waited_s`` is how long it began after the run before.
    """

    run: Run
    waited_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """All runs of one name and source line. Seconds are from first to last instruction, summed.

    ``bound`` is what bounds most of that time. ``parts`` are the ops of loops and branches by kind, line and
    engine, those that take longest first.
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
    parts: tuple[Part, ...] = ()


def mfu(timeline: Timeline) -> float:
    """Flops over what the tensor engine could do in that time (documented bf16 peak)."""
    return _share(timeline.flops, timeline.total_s * timeline.peak_flop_per_s)


def mbu(timeline: Timeline) -> float:
    """Kernel traffic over what the core's share of HBM could carry in that time."""
    return _share(timeline.bytes_accessed, timeline.total_s * timeline.bandwidth_bytes_per_s)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def critical_path(timeline: Timeline) -> list[PathStep]:
    """The chain of runs, each waiting for the one before, that ends with the last one; first to last.

    Its steps follow upon one another without a gap: their seconds, times their iterations, are the total.
    """
    by_number = {run.number: run for run in timeline.runs}
    at = max(timeline.runs, key=lambda run: (run.end_s, run.number), default=None)
    path: list[PathStep] = []
    until = timeline.total_s
    while at is not None:
        before = by_number.get(at.after)
        end_s = min(at.end_s, until)
        # What follows a loop begins as its last iteration ends, and only the first is listed.
        leaves = before is not None and before.iterations > at.iterations
        waited_s = 0.0 if leaves else at.start_s - min(before.end_s if before else 0.0, at.start_s)
        path.append(PathStep(run=at, waited_s=waited_s, seconds=end_s - at.start_s))
        at, until = before, at.start_s
    return path[::-1]


def exposed_collective_s(timeline: Timeline) -> float:
    """Seconds of the critical path that are collectives: what a free network would save at most."""
    return sum(
        step.seconds * step.run.iterations
        for step in critical_path(timeline)
        if step.run.kind == "collective"
    )


def path_s(timeline: Timeline) -> dict[str, float]:
    """The seconds of the critical path by what bounds them, most first: they add up to the total.

    Waiting for weights counts as "hbm", for signals and the first bytes of operands as "latency".
    """
    found: defaultdict[str, float] = defaultdict(float)
    for step in critical_path(timeline):
        run = step.run
        found[run.bound] += step.seconds * run.iterations
        found["hbm" if run.waited_for == "memory" else "latency"] += step.waited_s * run.iterations
    return most_first(found)


def most_first(seconds: Mapping[str, float]) -> dict[str, float]:
    """What takes any time, the longest first."""
    return {name: s for name, s in sorted(seconds.items(), key=lambda item: -item[1]) if s > 0}


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
        parts=_parts(runs),
    )


def _parts(runs: Sequence[Run]) -> tuple[Part, ...]:
    found: dict[tuple[str, str, str], Part] = {}
    for run in runs:
        for part in run.parts:
            key = part.name, part.location, part.engine
            before = found.get(key, replace(part, count=0, seconds=0.0))
            found[key] = replace(
                before,
                count=before.count + part.count * run.iterations,
                seconds=before.seconds + part.seconds * run.iterations,
            )
    return tuple(sorted(found.values(), key=lambda part: -part.seconds))
