"""The profile of a program: its timeline as a table for people and as a trace for Perfetto."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from distributed.events import Event, Timeline
from distributed.trace import to_trace

__all__ = ["Profile"]

_TOP_KERNELS = 10


class Profile:
    """What every engine and link does when, in one call of the program on the simulated ring.

    ``timeline`` holds the events; times are predictions of one execution on the device, without the
    launch from the host.
    """

    def __init__(self, name: str, timeline: Timeline) -> None:
        self.name = name
        self.timeline = timeline

    def summary(self) -> str:
        """A table: total, how busy each engine is, the kernels that take most, collectives, assumptions."""
        timeline = self.timeline
        lines = [
            f"{self.name} on {timeline.num_cores} cores: {_time(timeline.total_s)}",
            f"  {timeline.flops:.4g} flop, {timeline.bytes_accessed:.4g} bytes of HBM and "
            f"{timeline.collective_bytes:.4g} bytes into collectives, on each core",
            "",
            *_table(("engine", "busy", "of total"), self._engines()),
            "",
            *_table(("kernel", "count", "time", "of total", "at"), self._kernels()),
        ]
        share = self._collective_s() / timeline.total_s if timeline.total_s else 0.0
        lines += ["", f"collectives: {_time(self._collective_s())}, {share:.1%} of the total"]
        lines += [f"assumed: {assumption}" for assumption in timeline.assumptions]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes the trace as JSON; https://ui.perfetto.dev opens it. Times there are microseconds."""
        Path(path).write_text(json.dumps(to_trace(self.timeline)), encoding="utf-8")

    def _collective_s(self) -> float:
        return self.timeline.busy_s.get("collective", 0.0)

    def _engines(self) -> list[tuple[str, ...]]:
        total = self.timeline.total_s
        return [
            (engine, _time(busy_s), f"{busy_s / total:.1%}" if total else "-")
            for engine, busy_s in self.timeline.busy_s.items()
        ]

    def _kernels(self) -> list[tuple[str, ...]]:
        """Kernels of one name and source line together, by the time their longest engine works."""
        groups: dict[tuple[str, str], list[Event]] = defaultdict(list)
        for event in self.timeline.events:
            if event.core is not None:
                groups[event.name, event.location].append(event)
        rows = sorted(
            ((_busiest(events), *key, events) for key, events in groups.items()), key=lambda r: -r[0]
        )
        total = self.timeline.total_s
        return [
            (name, str(_count(events)), _time(busy_s), f"{busy_s / total:.1%}" if total else "-", where)
            for busy_s, name, where, events in rows[:_TOP_KERNELS]
        ]


def _busiest(events: Sequence[Event]) -> float:
    return max(_by_engine(events).values())


def _count(events: Sequence[Event]) -> int:
    counts: dict[str, int] = defaultdict(int)
    for event in events:
        counts[event.engine] += event.iterations
    busy = _by_engine(events)
    return counts[max(busy, key=lambda engine: busy[engine])]


def _by_engine(events: Sequence[Event]) -> dict[str, float]:
    result: dict[str, float] = defaultdict(float)
    for event in events:
        result[event.engine] += event.busy_s
    return result


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3f} {unit}"
    return f"{seconds * 1e9:.1f} ns"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
