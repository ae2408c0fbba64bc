"""Why the engines of a core stand still, and for how long."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping

from distributed.analysis import most_first
from distributed.events import Run, Timeline
from kernels.ops import COMPUTE

__all__ = ["stalls"]

# Those of a core that can stand still.
_ENGINES = (*COMPUTE, "dma", "collective")
# What an engine waits for within a run, by what bounds the run; else for another engine.
_WITHIN: Mapping[str, str] = {"hbm": "memory", "latency": "latency"}


def stalls(timeline: Timeline) -> dict[str, dict[str, float]]:
    """For each engine of a core with work, the seconds it stands still, by what it waits for, most first.

    Reasons: "kernel", "collective" or "control" (for others of that kind to end, one after the other),
    "memory" (for what comes from HBM), "engine" (for another engine of the same kernel), "latency" (for
    signals and dependent instructions), "sbuf" (DMA: for room to read ahead into) and "done" (nothing left;
    "loop" where there are loops: nothing left in this iteration either).
    """
    runs = {run.number: run for run in timeline.runs}
    rest = "loop" if any(run.iterations > 1 for run in timeline.runs) else "done"
    found: dict[str, dict[str, float]] = {}
    for engine in _ENGINES:
        busy_s = timeline.busy_s.get(engine, 0.0)
        if not busy_s:
            continue
        reasons: defaultdict[str, float] = defaultdict(float)
        for reason, seconds in _dma_waits(timeline) if engine == "dma" else _waits(timeline, engine, runs):
            reasons[reason] += max(seconds, 0.0)
        reasons[rest] += max(timeline.total_s - busy_s - sum(reasons.values()), 0.0)
        found[engine] = most_first(reasons)
    return found


def _waits(timeline: Timeline, engine: str, runs: Mapping[int, Run]) -> Iterator[tuple[str, float]]:
    """Why and how long an engine waits before each of its runs, and within."""
    last = 0.0
    for run in timeline.runs:
        seconds = run.engine_s.get(engine, 0.0)
        if not seconds:
            continue
        yield from _before(run, last, runs)
        # An engine ends with its kernel; the traffic of a collective may outlast it.
        end_s = run.end_s if run.kind == "kernel" else run.start_s + seconds
        idle_s = end_s - seconds - max(last, run.start_s)
        yield _WITHIN.get(run.bound, "engine"), idle_s * run.iterations
        last = max(last, end_s)


def _before(run: Run, last: float, runs: Mapping[int, Run]) -> Iterator[tuple[str, float]]:
    """What a run waits for from ``last`` to its start, back along the runs that had to end before."""
    while run.start_s > last:
        cause = runs.get(run.after)
        if cause is not None and cause.iterations > run.iterations:
            return  # the loop's other iterations, which are not listed
        # The traffic of a collective may outlast the start of the next.
        ended = max(min(cause.end_s, run.start_s), last) if cause else last
        yield "memory" if run.waited_for == "memory" else "latency", (run.start_s - ended) * run.iterations
        if cause is None:
            return
        yield cause.kind, (ended - max(cause.start_s, last)) * cause.iterations
        run = cause


def _dma_waits(timeline: Timeline) -> Iterator[tuple[str, float]]:
    """Why and how long the DMA queues stand still before each piece of traffic, the last first.

    What is read ahead takes the first gap from when it has room: all gaps before it are for want of room.
    """
    traffic = [event for event in timeline.events if event.engine == "dma"]
    ends = itertools.accumulate((event.end_s for event in traffic), max, initial=0.0)
    waits_for_room = False
    for event, last in reversed(list(zip(traffic, ends, strict=False))):
        if event.waited_for in ("sbuf", "control"):
            waits_for_room = event.waited_for == "sbuf"
        yield "sbuf" if waits_for_room else event.waited_for, event.start_s - last
