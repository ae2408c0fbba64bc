"""Records as JSON: frozen dataclasses of a known table, tuples, mappings and plain values, there and back."""

import dataclasses
from collections.abc import Mapping
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


def encode(value: Any) -> Any:
    """What ``json.dumps`` takes: a record is ``{"": its kind, field: ...}``, a tuple a list."""
    if dataclasses.is_dataclass(value):
        name = type(value).__name__
        assert _KINDS.get(name) is type(value), f"{name} is not in the table of records"
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"": name, **fields}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        assert all(isinstance(key, str) and key for key in value), "keys are names"
        return {key: encode(item) for key, item in value.items()}
    assert value is None or isinstance(value, bool | int | float | str), f"{type(value)} in a record"
    return value


def decode(value: Any) -> Any:
    """The inverse of ``encode``; every list is a tuple."""
    if isinstance(value, list):
        return tuple(map(decode, value))
    if isinstance(value, dict):
        fields = {key: decode(item) for key, item in value.items() if key}
        return _KINDS[value[""]](**fields) if "" in value else fields
    return value
