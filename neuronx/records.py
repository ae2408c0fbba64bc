"""Records as JSON: frozen dataclasses of a known table, tuples, mappings and plain values, there and back."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from distributed import device_memory, layout, mesh, program
from kernels import work
from neuronx import driver, fastest

__all__ = ["decode", "encode"]

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        device_memory.DeviceMemory,
        driver.CompileOptions,
        fastest.Tried,
        layout.Layout,
        mesh.Mesh,
        program.Block,
        program.Branch,
        program.Buffer,
        program.Collective,
        program.Kernel,
        program.Launch,
        program.Loop,
        program.Program,
        work.KernelWork,
        work.OpWork,
        work.Tensor,
    )
}


_NESTED = frozenset({dict, list})


def encode(value: Any) -> dict[str, Any]:
    """What ``json.dumps`` takes: every record once, however often it is used, and the value made of them.

    A record is ``{"": its kind, field: ...}`` in the list "records", after those that it holds; where it is
    used there is ``{"": its number}``. A tuple is a list.
    """
    records: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}

    def write(part: Any) -> Any:
        if dataclasses.is_dataclass(part):
            if id(part) not in numbers:
                records.append(_fields(part, write))
                numbers[id(part)] = len(records) - 1
            return {"": numbers[id(part)]}
        if isinstance(part, tuple | list):
            return [write(item) for item in part]
        if isinstance(part, Mapping):
            assert all(isinstance(key, str) and key for key in part), "keys are names"
            return {key: write(item) for key, item in part.items()}
        assert part is None or isinstance(part, bool | int | float | str), f"{type(part)} in a record"
        return part

    written = write(value)
    return {"records": records, "value": written}


def _fields(record: Any, write: Callable[[Any], Any]) -> dict[str, Any]:
    name = type(record).__name__
    assert _KINDS.get(name) is type(record), f"{name} is not in the table of records"
    return {"": name} | {f.name: write(getattr(record, f.name)) for f in dataclasses.fields(record)}


def decode(encoded: Mapping[str, Any]) -> Any:
    """The inverse of ``encode``; every list is a tuple."""
    records: list[Any] = []

    def read(part: Any) -> Any:
        if isinstance(part, list):
            return tuple(part if _NESTED.isdisjoint(map(type, part)) else map(read, part))
        if isinstance(part, dict):
            return records[part[""]] if "" in part else {key: read(item) for key, item in part.items()}
        return part

    for record in encoded["records"]:
        fields = {key: read(item) for key, item in record.items() if key}
        records.append(_KINDS[record[""]](**fields))
    return read(encoded["value"])
