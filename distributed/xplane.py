"""A timeline as XLA's XSpace, the file that TensorBoard's profile plugin and ``jax.profiler`` read.

The few protobuf messages are written by hand. Source of their field numbers: xplane.proto of OpenXLA.
"""

from collections.abc import Iterable

from distributed.events import Event, Timeline

__all__ = ["to_xspace"]

_PS_PER_S = 1e12
_VARINT, _BYTES = 0, 2
# The prefix of planes that the viewer shows as they are.
_PLANE = "/device:CUSTOM:"
_STATS = {1: "location", 2: "bytes", 3: "flops"}


def to_xspace(timeline: Timeline) -> bytes:
    """A serialised XSpace: one plane for the core shown and one for the links, a line for each engine."""
    planes = []
    for number, (name, is_link) in enumerate((("core 0", False), ("links", True)), 1):
        events = [event for event in timeline.events if (event.core is None) == is_link]
        if events:
            planes.append(_field(1, _plane(number, _PLANE + name, events)))
    return b"".join([*planes, _field(4, timeline.name.encode())])


def _plane(number: int, name: str, events: list[Event]) -> bytes:
    names = {text: index for index, text in enumerate(dict.fromkeys(e.name for e in events), 1)}
    lines: dict[str, list[Event]] = {}
    for event in events:
        lines.setdefault(event.engine, []).append(event)
    parts = [_field(1, number), _field(2, name.encode())]
    parts += [_field(3, _line(index, engine, lines[engine], names)) for index, engine in enumerate(lines, 1)]
    parts += [_field(4, _entry(index, text)) for text, index in names.items()]
    parts += [_field(5, _entry(index, text)) for index, text in _STATS.items()]
    return b"".join(parts)


def _line(number: int, name: str, events: Iterable[Event], names: dict[str, int]) -> bytes:
    parts = [_field(1, number), _field(2, name.encode())]
    return b"".join([*parts, *(_field(4, _event(event, names[event.name])) for event in events)])


def _event(event: Event, name: int) -> bytes:
    start, end = (round(seconds * _PS_PER_S) for seconds in (event.start_s, event.end_s))
    parts = [_field(1, name), _field(2, start), _field(3, end - start)]
    if event.location:
        parts.append(_field(4, _field(1, 1) + _field(5, event.location.encode())))
    for stat, value in ((2, event.bytes), (3, event.flops)):
        if value:
            parts.append(_field(4, _field(1, stat) + _field(3, round(value))))
    return b"".join(parts)


def _entry(number: int, name: str) -> bytes:
    """An entry of the map from numbers to names (of events, and of what is said of them)."""
    return _field(1, number) + _field(2, _field(1, number) + _field(2, name.encode()))


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
