"""A timeline as a Chrome/Perfetto trace."""

from typing import Any

from distributed.events import Event, Timeline

__all__ = ["to_trace"]

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
    records += [_named("thread_name", *threads[engine], engine) for engine in threads]
    records += [_complete(event, *threads[event.engine]) for event in timeline.events]
    return {
        "traceEvents": records,
        "displayTimeUnit": "ns",
        "otherData": {"program": timeline.name, "assumptions": list(timeline.assumptions)},
    }


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


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
