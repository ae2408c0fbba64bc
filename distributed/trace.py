"""A timeline as a Chrome/Perfetto trace: slices, and arrows from cause to effect."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from distributed.analysis import critical_path
from distributed.events import Event, Timeline
from kernels.ops import COMPUTE

__all__ = ["place", "to_trace"]

_PATH = "critical path"
# How the engines of a core stand below one another; links follow by their names.
_ORDER = (_PATH, *COMPUTE, "dma", "collective", "control")

_CORE, _LINKS = 0, 1
_NS_PER_S = 1e9
_NS_PER_US = 1e3


def to_trace(timeline: Timeline) -> dict[str, Any]:
    """The timeline in Chrome's trace format (JSON-ready); opens in Perfetto.

    One process for the core shown, with a thread per engine and one for the critical path, and one for the
    links, with a thread per link and direction. Times are microseconds, in whole nanoseconds: of slices that
    touch, Perfetto drops the second where rounding makes them overlap. ``args`` carry source line, bytes and
    flops.

    At most two arrows (flow events) lead to each kernel, collective and decision: from the run it waited for,
    by what it waited for (its operands or its engine; category "critical path" where both are on it), and
    from the last load that arrived before its engines began.
    """
    events = [*timeline.events, *_path(timeline)]
    process_of = {event.engine: _LINKS if event.core is None else _CORE for event in events}
    # In the order of their numbers Perfetto shows threads; one with its process's own would be the main one.
    numbers = enumerate(sorted(process_of, key=place), _LINKS + 1)
    threads = {engine: (process_of[engine], number) for number, engine in numbers}
    cores = f"core 0 (all {timeline.num_cores} cores are alike)" if timeline.num_cores > 1 else "core 0"
    records = [_named("process_name", _CORE, 0, cores)]
    if _LINKS in process_of.values():
        records.append(_named("process_name", _LINKS, 0, "links"))
    records += [_named("thread_name", *thread, engine) for engine, thread in threads.items()]
    records += [_complete(event, *threads[event.engine]) for event in events]
    for number, (name, category, cause, effect) in enumerate(_arrows(timeline)):
        said = {"name": name, "cat": category, "id": number}
        # Each end binds to the slice around it; an end of a slice is no longer in it.
        records.append(said | {"ph": "s"} | _point(*threads[cause.engine], _ns(cause.end_s) - 1))
        records.append(said | {"ph": "f", "bp": "e"} | _point(*threads[effect.engine], _ns(effect.start_s)))
    return {
        "traceEvents": records,
        "displayTimeUnit": "ns",
        "otherData": {"program": timeline.name, "assumptions": list(timeline.assumptions)},
    }


def _path(timeline: Timeline) -> Iterator[Event]:
    """The critical path as work of an engine of its own, of a loop its first iteration."""
    for step in critical_path(timeline):
        run, start_s = step.run, step.run.start_s
        waits = (f"waits for {run.waited_for}", start_s - step.waited_s, start_s)
        for name, began, ended in (waits, (run.name, start_s, start_s + step.seconds)):
            if ended > began:
                yield Event(
                    name=name,
                    engine=_PATH,
                    core=0,
                    start_s=began,
                    end_s=ended,
                    busy_s=ended - began,
                    location=run.location,
                    run=run.number,
                )


def _arrows(timeline: Timeline) -> Iterator[tuple[str, str, Event, Event]]:
    """(name, category, cause, effect): slices of a whole nanosecond at least, the cause ending before."""
    slices: defaultdict[int, list[Event]] = defaultdict(list)
    for event in timeline.events:
        if event.core is not None and _ns(event.end_s) > _ns(event.start_s):
            slices[event.run].append(event)
    critical = {step.run.number for step in critical_path(timeline)}
    for run in timeline.runs:
        own = _on_engines(slices[run.number])
        cause = max(_on_engines(slices[run.after]), key=lambda event: event.end_s, default=None)
        if cause and (effects := [event for event in own if _is_before(cause, event)]):
            category = _PATH if run.number in critical else "dependency"
            yield run.waited_for or "control", category, cause, effects[0]
        loads = [event for event in slices[run.number] if event not in own and _is_before(event, own[0])]
        if loads:
            category = _PATH if run.number in critical and run.waited_for == "memory" else "load"
            yield "load", category, loads[-1], own[0]


def _on_engines(slices: Sequence[Event]) -> Sequence[Event]:
    """Those that are not traffic, which may come ahead or outlast them; all of what only moves data."""
    return [event for event in slices if event.engine != "dma"] or slices


def _is_before(cause: Event, effect: Event) -> bool:
    return _ns(cause.end_s) <= _ns(effect.start_s)


def place(engine: str) -> tuple[int, list[int], str]:
    """Where an engine stands among others, links last; chips by number: 2 before 10."""
    rank = _ORDER.index(engine) if engine in _ORDER else len(_ORDER)
    return rank, [int(number) for number in re.findall(r"\d+", engine)], engine


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _complete(event: Event, process: int, thread: int) -> dict[str, Any]:
    args: dict[str, Any] = {"busy_us": event.busy_s * _NS_PER_S / _NS_PER_US}
    for key in ("location", "bytes", "flops"):
        if getattr(event, key):
            args[key] = getattr(event, key)
    if event.iterations > 1:
        args["iterations"] = event.iterations
    start_ns = _ns(event.start_s)
    return _point(process, thread, start_ns) | {
        "ph": "X",
        "name": event.name,
        "dur": (_ns(event.end_s) - start_ns) / _NS_PER_US,
        "args": args,
    }


def _point(process: int, thread: int, ns: int) -> dict[str, Any]:
    return {"pid": process, "tid": thread, "ts": ns / _NS_PER_US}


def _ns(seconds: float) -> int:
    return round(seconds * _NS_PER_S)
