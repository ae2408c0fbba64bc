"""A timeline as a Chrome/Perfetto trace."""

import re
from typing import Any

from distributed.events import Event, Timeline
from kernels.ops import COMPUTE

__all__ = ["to_trace"]

# How the engines of a core stand below one another; links follow by their names.
_ORDER = (*COMPUTE, "dma", "collective", "control")

_CORE, _LINKS = 0, 1
_US_PER_S = 1e6


def to_trace(timeline: Timeline) -> dict[str, Any]:
    """The timeline in Chrome's trace format (JSON-ready); opens in Perfetto.

    One process for the core shown, with a thread per engine, and one for the links, with a thread per
    link and direction. Times are microseconds; ``args`` carry source line, bytes and flops.
    """
    threads: dict[str, tuple[int, int]] = {}
    for event in timeline.events:
        process = _LINKS if event.core is None else _CORE
        threads.setdefault(event.engine, (process, len(threads)))
    cores = f"core 0 (all {timeline.num_cores} cores are alike)" if timeline.num_cores > 1 else "core 0"
    records = [_named("process_name", _CORE, 0, cores)]
    if any(process == _LINKS for process, _ in threads.values()):
        records.append(_named("process_name", _LINKS, 0, "links"))
    for place, engine in enumerate(sorted(threads, key=_place)):
        records.append(_named("thread_name", *threads[engine], engine))
        records.append(_metadata("thread_sort_index", *threads[engine], sort_index=place))
    records += [_complete(event, *threads[event.engine]) for event in timeline.events]
    return {
        "traceEvents": records,
        "displayTimeUnit": "ns",
        "otherData": {"program": timeline.name, "assumptions": list(timeline.assumptions)},
    }


def _place(engine: str) -> tuple[int, list[int], str]:
    """Cores and chips by number, not by digit: 2 before 10."""
    rank = _ORDER.index(engine) if engine in _ORDER else len(_ORDER)
    return rank, [int(number) for number in re.findall(r"\d+", engine)], engine


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return _metadata(kind, process, thread, name=name)


def _metadata(kind: str, process: int, thread: int, **said: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": said}


def _complete(event: Event, process: int, thread: int) -> dict[str, Any]:
    args: dict[str, Any] = {"busy_us": event.busy_s * _US_PER_S}
    for key in ("location", "bytes", "flops"):
        if getattr(event, key):
            args[key] = getattr(event, key)
    if event.iterations > 1:
        args["iterations"] = event.iterations
    return {
        "ph": "X",
        "name": event.name,
        "pid": process,
        "tid": thread,
        "ts": event.start_s * _US_PER_S,
        "dur": (event.end_s - event.start_s) * _US_PER_S,
        "args": args,
    }
