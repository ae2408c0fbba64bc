"""A timeline as XLA's XSpace, the file that TensorBoard's profile plugin and ``jax.profiler`` read.

The few protobuf messages are written by hand. Source of their field numbers: xplane.proto of OpenXLA; of the
names of lines and of what is said of ops: xplane_schema.cc beside it.
"""

import itertools
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath

from distributed.analysis import mbu, mfu
from distributed.events import Run, Timeline
from distributed.trace import place

__all__ = ["to_xspace"]

_PS_PER_S = 1e12
_VARINT, _DOUBLE, _BYTES = 0, 1, 2
# The plugin's tables (op_profile, hlo_stats, roofline_model, overview_page) look for the lines Steps, XLA
# Modules and XLA Ops in planes of this name, whatever the device; its trace viewer then shows no others.
_DEVICE = "/device:TPU:0"
# Where its overview looks for MFU and MBU.
_HOST = "/host:CPU"
_STATS = (
    "location", "bytes", "flops", "program_id", "symbol_id", "group_id", "hlo_category", "tf_op", "source",
    "model_flops", "bytes_accessed", "memory_access_breakdown", "device_type_string",
    "peak_teraflops_per_second", "peak_hbm_bw_gigabytes_per_second", "matrix_unit_utilization_percent",
    "hbm_utilization_percent",
)  # fmt: skip
_NUMBERS = {name: number for number, name in enumerate(_STATS, 1)}
_READ, _HBM = 1, 1
# Of loops with more ops than that the first iteration is listed and the others are one op.
_MOST_OPS = 20_000

_Stats = Mapping[str, int | float | str | bytes]
_Item = tuple[str, float, float, _Stats]
"""What stands on a line: name, start and end in seconds, and what is said of this one."""
_Op = tuple[float, float, Run | None, str]
"""One time that a run happens: start and end; a name where several runs stand together."""


def to_xspace(timeline: Timeline) -> bytes:
    """A serialised XSpace: a plane of ops by kernel and line, for the plugin's tables, of engines and links.

    The runs of core 0 are the ops, the whole program is one step; the peaks are those of one core.
    """
    if not timeline.runs:
        return _field(4, timeline.name.encode())
    about: dict[str, _Stats] = {}
    lines: defaultdict[str, list[_Item]] = defaultdict(list)
    whole = 0.0, timeline.total_s
    lines["Steps"] = [("step", *whole, {"group_id": 0})]
    lines["XLA Modules"] = [(timeline.name, *whole, {"group_id": 0, "program_id": 1})]
    lines["XLA Ops"] = _op_items(timeline, about)
    for event in sorted(timeline.events, key=lambda event: place(event.engine)):
        said = {"location": event.location, "bytes": round(event.bytes), "flops": round(event.flops)}
        stats = {key: value for key, value in said.items() if value}
        lines[event.engine].append((event.name, event.start_s, event.end_s, stats))
    device: _Stats = {
        "device_type_string": f"one core of {timeline.instance}, simulated",
        "peak_teraflops_per_second": timeline.peak_flop_per_s / 1e12,
        "peak_hbm_bw_gigabytes_per_second": timeline.bandwidth_bytes_per_s / 1e9,
    }
    shares: _Stats = {
        "matrix_unit_utilization_percent": 100 * mfu(timeline),
        "hbm_utilization_percent": 100 * mbu(timeline),
    }
    planes = _plane(1, _DEVICE, lines, about, device), _plane(2, _HOST, {}, {}, shares)
    return b"".join([*(_field(1, plane) for plane in planes), _field(4, timeline.name.encode())])


def _op_items(timeline: Timeline, about: dict[str, _Stats]) -> list[_Item]:
    """The ops in order; notes what is said ``about`` those of a name. Equal work has one name."""
    names: dict[tuple, str] = {}
    items: list[_Item] = []
    for start, end, run, name in sorted(_ops(timeline), key=lambda op: op[:2]):
        key = (run.kind, run.name, run.location, run.flops, run.bytes) if run else (name,)
        if key not in names:
            names[key] = f"{run.name}.{len(names)}" if run else name
            about[names[key]] = _said(run, name) | {"program_id": 1, "symbol_id": len(names)}
        items.append((names[key], start, end, {"group_id": 0}))
    return items


def _said(run: Run | None, name: str) -> dict[str, int | str | bytes]:
    """What the tables say of an op. Its bytes of HBM stand as read: they ask for one kind or the other."""
    if run is None:
        return {"hlo_category": "loop", "tf_op": name}
    moved = round(run.bytes) if run.kind == "kernel" else 0
    return {
        "hlo_category": run.name,
        "tf_op": f"{run.name} {PurePath(run.location).name}".rstrip(),
        "source": run.location,
        "flops": round(run.flops),
        "model_flops": round(run.flops),
        "bytes_accessed": moved,
        "memory_access_breakdown": _field(1, _field(1, _READ) + _field(2, _HBM) + _field(3, moved)),
    }


def _ops(timeline: Timeline) -> list[_Op]:
    """Every time that a run happens, in loops each iteration: as the first, which the timeline lists."""
    ops: list[_Op] = [(run.start_s, run.end_s, run, "") for run in timeline.runs]
    further = (event for event in timeline.events if event.waited_for == "loop")
    loops = {(e.end_s - e.start_s, e.start_s, e.iterations, e.name) for e in further}
    # Loops inside of others are shorter.
    for whole_s, start, times, name in sorted(loops):
        seconds = whole_s / times
        body = [op for op in ops if start - seconds < (op[0] + op[1]) / 2 < start]
        if len(ops) + times * len(body) > _MOST_OPS:
            ops.append((start, start + whole_s, None, name))
            continue
        shifts = (number * seconds for number in range(1, times + 1))
        ops += [(a + by, b + by, run, name) for by, (a, b, run, name) in itertools.product(shifts, body)]
    return ops


def _plane(
    number: int,
    name: str,
    lines: Mapping[str, Sequence[_Item]],
    about: Mapping[str, _Stats],
    stats: _Stats,
) -> bytes:
    """A plane with ``stats`` of its own, and what is said ``about`` all events of a name."""
    texts = dict.fromkeys(item[0] for line in lines.values() for item in line)
    names = {text: index for index, text in enumerate(texts, 1)}
    parts = [_field(1, number), _field(2, name.encode())]
    parts += [_field(3, _line(index, line, lines[line], names)) for index, line in enumerate(lines, 1)]
    parts += [_field(4, _entry(index, text, about.get(text, {}))) for text, index in names.items()]
    parts += [_field(5, _entry(index, text)) for text, index in _NUMBERS.items()]
    return b"".join([*parts, *_stats(6, stats)])


def _line(number: int, name: str, items: Sequence[_Item], names: Mapping[str, int]) -> bytes:
    parts = [_field(1, number), _field(2, name.encode())]
    return b"".join([*parts, *(_field(4, _event(names[name], *item)) for name, *item in items)])


def _event(name: int, start_s: float, end_s: float, stats: _Stats) -> bytes:
    start, end = (round(seconds * _PS_PER_S) for seconds in (start_s, end_s))
    return b"".join([_field(1, name), _field(2, start), _field(3, end - start), *_stats(4, stats)])


def _entry(number: int, name: str, stats: _Stats | None = None) -> bytes:
    """An entry of the map from numbers to names (of events, and of what is said of them)."""
    named = b"".join([_field(1, number), _field(2, name.encode()), *_stats(5, stats or {})])
    return _field(1, number) + _field(2, named)


def _stats(field: int, stats: _Stats) -> Iterator[bytes]:
    for name, value in stats.items():
        yield _field(field, _field(1, _NUMBERS[name]) + _stat(value))


def _stat(value: float | str | bytes) -> bytes:
    if isinstance(value, float):
        return _varint(2 << 3 | _DOUBLE) + struct.pack("<d", value)
    if isinstance(value, int):
        return _field(3, value)
    return _field(5, value.encode()) if isinstance(value, str) else _field(6, value)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
