"""The profile of a program: tables for people, JSON for scripts, a trace for Perfetto, a page to look at."""

import dataclasses
import itertools
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from distributed.analysis import (
    KernelRow,
    critical_path,
    exposed_collective_s,
    kernel_rows,
    mbu,
    mfu,
    path_s,
)
from distributed.events import Part, Timeline
from distributed.layers import LayerRow, layer_rows
from distributed.stalls import stalls
from distributed.trace import to_trace
from distributed.xplane import to_xspace

__all__ = ["Profile"]

_TOP_KERNELS = 10
_TOP_PARTS = 5
_PAGE_EVENTS = 20_000
_DATA = "/*DATA*/null"


class Profile:
    """What every engine and link does when, in one call of the program on the simulated ring.

    ``timeline`` holds the events; times are predictions of one execution on the device by the constants of
    ``timeline.era``, without the launch from the host.
    """

    def __init__(self, name: str, timeline: Timeline) -> None:
        self.name = name
        self.timeline = timeline

    def summary(self) -> str:
        """Tables: total, engines and why they stand still, longest kernels, critical path, assumptions."""
        timeline = self.timeline
        lines = [
            f"{self.name} on {_cores(timeline.num_cores)} of {timeline.instance}: {_time(timeline.total_s)} "
            f"(era {timeline.era})",
            f"  {timeline.flops:.4g} flop, {timeline.bytes_accessed:.4g} bytes of HBM "
            f"({timeline.spill_bytes:.3g} spilled) and {timeline.collective_bytes:.4g} bytes into "
            "collectives, on each core",
            f"  MFU {mfu(timeline):.1%}, MBU {mbu(timeline):.1%}",
            "",
            *_table(("engine", "busy", "of total", "stands still for"), self._engines()),
            "",
            *_table(("kernel", "count", "time", "of total", "bound", "at"), list(self._kernels())),
            "",
            *self._layers(),
            *self._path(),
        ]
        share = self._part(self._collective_s())
        exposed_s = exposed_collective_s(timeline)
        lines += [
            f"collectives: {_time(self._collective_s())}, {share:.1%} of the total; "
            f"{self._part(exposed_s):.1%} on the critical path"
        ]
        lines += [f"assumed: {assumption}" for assumption in timeline.assumptions]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything in the summary as plain data, nothing left out; seconds, bytes, flops and shares."""
        timeline = self.timeline
        return {
            "name": self.name,
            "era": timeline.era,
            "instance": timeline.instance,
            "cores": timeline.num_cores,
            "total_s": timeline.total_s,
            "flops": timeline.flops,
            "bytes_accessed": timeline.bytes_accessed,
            "spill_bytes": timeline.spill_bytes,
            "collective_bytes": timeline.collective_bytes,
            "mfu": mfu(timeline),
            "mbu": mbu(timeline),
            "collective_share": self._part(self._collective_s()),
            "exposed_collective_share": self._part(exposed_collective_s(timeline)),
            "peak_flop_per_s": timeline.peak_flop_per_s,
            "bandwidth_bytes_per_s": timeline.bandwidth_bytes_per_s,
            "busy_s": dict(timeline.busy_s),
            "stalls_s": stalls(timeline),
            "kernels": [dataclasses.asdict(row) for row in kernel_rows(timeline)],
            "layers": [dataclasses.asdict(row) for row in layer_rows(timeline)],
            "critical_path": [
                {
                    "name": step.run.name,
                    "location": step.run.location,
                    "start_s": step.run.start_s,
                    "end_s": step.run.end_s,
                    "seconds": step.seconds,
                    "iterations": step.run.iterations,
                    "bound": step.run.bound,
                    "waited_s": step.waited_s,
                    "waited_for": step.run.waited_for,
                }
                for step in critical_path(timeline)
            ],
            "critical_path_s": path_s(timeline),
            "assumptions": list(timeline.assumptions),
        }

    def save(self, path: str | Path) -> None:
        """Writes the trace as JSON; https://ui.perfetto.dev opens it. Times there are microseconds."""
        Path(path).write_text(json.dumps(to_trace(self.timeline)), encoding="utf-8")

    def save_tensorboard(self, logdir: str | Path, *, run: str | None = None) -> Path:
        """Writes ``plugins/profile/<run>/neuron.xplane.pb`` under ``logdir`` and returns its path.

        TensorBoard's profile plugin (``xprof --logdir ...``) shows it: overview, trace, roofline, ops by
        kernel and line (op_profile, hlo_stats), with the peaks of one core. Its tables look for ops in planes
        called TPU, so this is one too. A ``run`` left out is named after program, cores and instance; one of
        the same name there is replaced.
        """
        timeline = self.timeline
        run = run or f"{self.name} {_cores(timeline.num_cores)} of {timeline.instance}"
        run = re.sub(r"[^\w.-]+", "_", run)
        path = Path(logdir) / "plugins" / "profile" / run / "neuron.xplane.pb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_xspace(timeline))
        return path

    def save_json(self, path: str | Path) -> None:
        """Writes ``to_json``."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")

    def save_html(self, path: str | Path) -> None:
        """Writes one page with roofline, timeline and tables that needs nothing else to open.

        Of a timeline with more than 20,000 events the page draws the first so many and says so.
        """
        page = files("neuronx").joinpath("report.html").read_text(encoding="utf-8")
        shown = self.timeline.events[:_PAGE_EVENTS]
        data = self.to_json() | {
            "events": [
                [event.engine, event.name, event.location, event.start_s, event.end_s, event.busy_s]
                for event in shown
            ],
            "left_out": len(self.timeline.events) - len(shown),
        }
        # A closing tag inside a name must not end the script.
        text = json.dumps(data).replace("</", "<\\/")
        Path(path).write_text(page.replace(_DATA, text), encoding="utf-8")

    def _collective_s(self) -> float:
        return self.timeline.busy_s.get("collective", 0.0)

    def _part(self, seconds: float) -> float:
        return seconds / self.timeline.total_s if self.timeline.total_s else 0.0

    def _engines(self) -> list[tuple[str, ...]]:
        idle = stalls(self.timeline)
        links = {event.engine for event in self.timeline.events if event.core is None}
        rows = [
            (
                engine,
                busy_s,
                self._parts(idle.get(engine, {})),
            )
            for engine, busy_s in self.timeline.busy_s.items()
            if engine not in links
        ]
        if links:
            busiest = max(sorted(links), key=lambda link: self.timeline.busy_s[link])
            rows.append((busiest, self.timeline.busy_s[busiest], f"busiest of {len(links)} links"))
        return [(engine, _time(busy_s), f"{self._part(busy_s):.1%}", note) for engine, busy_s, note in rows]

    def _kernels(self) -> Iterator[tuple[str, ...]]:
        """A row a kernel; below a loop or branch what its ops take of the engine each keeps longest."""
        for row in kernel_rows(self.timeline)[:_TOP_KERNELS]:
            yield self._kernel(row.name, row, row.bound)
            for part in row.parts[:_TOP_PARTS]:
                yield self._kernel(f"- {part.name}", part, part.engine)

    def _kernel(self, name: str, row: KernelRow | Part, bound: str) -> tuple[str, ...]:
        share = f"{self._part(row.seconds):.1%}"
        return name, str(row.count), _time(row.seconds), share, bound, row.location

    def _layers(self) -> list[str]:
        groups = itertools.groupby(layer_rows(self.timeline), key=lambda row: row.group)
        lines = [_group(list(rows)) for _, rows in groups]
        return [*lines, ""] if lines else []

    def _path(self) -> list[str]:
        parts = self._parts(path_s(self.timeline))
        return [f"critical path: {parts}"] if parts else []

    def _parts(self, seconds: Mapping[str, float]) -> str:
        """Shares of the total, those that round to nothing left out."""
        shares = {name: f"{self._part(s):.1%}" for name, s in seconds.items()}
        return ", ".join(f"{name} {share}" for name, share in shares.items() if share != "0.0%")


def _group(rows: Sequence[LayerRow]) -> str:
    """What is said of layers that do the same."""
    least, most = (_time(choose(row.seconds for row in rows)) for choose in (min, max))
    each = least if least == most else f"{least} to {most}"
    collective_s = statistics.median(row.collective_s for row in rows)
    return f"layers: {len(rows)} alike, each {each}, {_time(collective_s)} of it in collectives"


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"


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
