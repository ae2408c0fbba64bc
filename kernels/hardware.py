"""The hardware tables: reads kernels/hw/*.toml into frozen records and refuses what is unknown or unsourced.

Every number stands once, in a table file: ``key = {value, kind, source}``, the unit is the end of the key.
"""

import functools
import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any, TypeVar, get_origin, get_type_hints

from kernels.errors import CompileError

__all__ = [
    "ALL_INSTANCES",
    "FAMILIES",
    "INSTANCES",
    "KINDS",
    "SCOPES",
    "TABLES",
    "AccessSpec",
    "AlgorithmSpec",
    "Core",
    "Dma",
    "Gpsimd",
    "Hbm",
    "InstanceSpec",
    "Issue",
    "LinkSpec",
    "Pe",
    "Psum",
    "Sbuf",
    "Scalar",
    "Vector",
    "load_accesses",
    "load_algorithms",
    "load_core",
    "load_instance",
    "load_links",
    "read_tables",
    "record",
    "rows",
]

KINDS = ("documented", "measured", "fitted", "assumed")
SCOPES = ("chip", "instance")
_UNITS = {
    "_bytes_per_s": "B/s",
    "_flop_per_s": "FLOP/s",
    "_usd_per_hour": "$/h",
    "_bytes": "B",
    "_cycles": "cycles",
    "_hz": "Hz",
    "_s": "s",
}
_LINKS, _COLLECTIVES = "links.toml", "collectives.toml"
# The core of each family of instances; its instances stand in a file of the family's name.
FAMILIES = {"inf2": "neuroncore-v2", "trn1": "neuroncore-v2", "inf1": "neuroncore-v1"}
_DEFAULT_FAMILY = "inf2"
_OPTIONAL = frozenset({"gpsimd"})
_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class Pe:
    """The tensor engine: a systolic array of ``rows`` contracted by ``columns`` stationary elements."""

    clock_hz: float
    rows: int
    columns: int
    moving_elements: int
    min_interval_cycles: int
    f32_passes: int
    full_rate_dtypes: tuple[str, ...]
    emulated_full_rate_dtypes: tuple[str, ...]
    complex_products: int
    peak_flop_per_s: float
    f32_peak_flop_per_s: float
    sustained_fraction: float


@dataclass(frozen=True, kw_only=True)
class Vector:
    """The vector engine; ``*_cycles`` but the interval are per element of a partition."""

    clock_hz: float
    lanes: int
    min_interval_cycles: int
    pair_cycles: float
    bf16_reduce_cycles: float


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """The scalar (activation) engine: one cycle an element."""

    clock_hz: float
    lanes: int
    min_interval_cycles: int


@dataclass(frozen=True, kw_only=True)
class Gpsimd:
    """The general-purpose engine: ``fixed_cycles`` an instruction, then one cycle an element."""

    clock_hz: float
    lanes: int
    fixed_cycles: int


@dataclass(frozen=True, kw_only=True)
class Issue:
    """What instructions and kernels wait for besides their engine.

    ``overlap_fraction`` is 1 where the engines of a kernel work side by side, 0 where one after the other.
    """

    dependent_op_s: float
    kernel_start_s: float
    overlap_fraction: float


@dataclass(frozen=True, kw_only=True)
class Sbuf:
    """On-chip memory all engines read; the compiler keeps a part of each partition for itself.

    ``stream_fraction`` of the rest holds what streams in ahead of its use, the remainder what stays. Of what
    is not kept, reading ahead may fill ``prefetch_fraction``, if that is more. A kernel's weights come,
    and leave as it works through them, in ``prefetch_parts``. With ``row_tiles`` kernels that work row by row
    take turns at blocks of rows, rather than one after the other at the whole.
    """

    partitions: int
    partition_bytes: int
    usable_partition_bytes: int
    stream_fraction: float
    prefetch_fraction: float
    prefetch_parts: int
    row_tiles: bool

    @property
    def usable_bytes(self) -> int:
        return self.partitions * self.usable_partition_bytes

    @property
    def stream_bytes(self) -> int:
        return int(self.usable_bytes * self.stream_fraction)


@dataclass(frozen=True, kw_only=True)
class Psum:
    """Where products accumulate in f32; one product writes at most one bank."""

    partition_bytes: int
    banks: int
    bank_partition_bytes: int


@dataclass(frozen=True, kw_only=True)
class Hbm:
    """One core's share of the chip's memory; micro-code and the runtime take their part of the capacity."""

    capacity_bytes: int
    bandwidth_bytes_per_s: float
    microcode_bytes: int
    runtime_reserve_bytes: int


@dataclass(frozen=True, kw_only=True)
class Dma:
    """The DMA engines; ``curve_*`` is the rate by bytes a partition, relative to the achievable one."""

    engines: int
    queues_per_engine: int
    partitions_per_engine: int
    engine_peak_bytes_per_s: float
    engine_bytes_per_s: float
    latency_s: float
    packet_bytes: int
    curve_partition_bytes: tuple[int, ...]
    curve_fraction: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Core:
    """One NeuronCore. ``gpsimd`` is None on v1, which has none: the vector engine does its work."""

    pe: Pe
    vector: Vector
    scalar: Scalar
    gpsimd: Gpsimd | None
    issue: Issue
    sbuf: Sbuf
    psum: Psum
    hbm: Hbm
    dma: Dma


@dataclass(frozen=True, kw_only=True)
class InstanceSpec:
    """One instance size. ``topology`` of its chips: pair (one chip), chain, ring or torus (a square)."""

    name: str
    chips: int
    cores: int
    vcpus: int
    host_memory_bytes: int
    hbm_bytes: int
    bf16_peak_flop_per_s: float
    f32_peak_flop_per_s: float
    topology: str
    chip_neuronlink_bytes_per_s: float
    price_usd_per_hour: float

    @property
    def family(self) -> str:
        """inf2, trn1 or inf1: what its cores and links are."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """Links between cores and what a step of a collective costs; bandwidths are per direction.

    ``engine_bytes_per_s`` is that of one DMA engine, which moves a packet from chip to chip.
    ``documented_degrees`` are the numbers of cores that guides name for a program, ``degree_multiple`` what
    the runtime was seen to load besides.
    """

    chip_link_bytes_per_s: float
    links_per_chip: int
    cores_per_chip: int
    cc_cores_per_chip: int
    pair_bytes_per_s: float
    hop_latency_s: float
    launch_s: float
    packet_bytes: int
    documented_degrees: tuple[int, ...]
    degree_multiple: int
    host_bytes_per_s: float
    engine_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class AccessSpec:
    """Accesses to a core's HBM for each byte it sends, by kind of collective."""

    all_reduce: float
    reduce_scatter: float
    all_gather: float
    all_to_all: float
    collective_permute: float
    collective_broadcast: float


@dataclass(frozen=True, kw_only=True)
class AlgorithmSpec:
    """Where each algorithm of a collective is available: any of ``SCOPES``.

    "chip" is for groups that lie inside one chip, "instance" for those that span several.
    """

    ring: tuple[str, ...]
    pair_exchange: tuple[str, ...]
    bidirectional_ring: tuple[str, ...]
    mesh: tuple[str, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            for scope in getattr(self, field.name):
                if scope not in SCOPES:
                    raise ValueError(
                        f"hardware table [algorithms] {field.name}: scope {scope!r} is none of {SCOPES}"
                    )


@functools.cache
def read_tables(name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The tables of one file in kernels/hw, as they stand there."""
    return tomllib.loads(files("kernels").joinpath("hw", name).read_text(encoding="utf-8"))


def record(cls: type[_Record], table: str, entries: dict[str, Any], **given: Any) -> _Record:
    """Builds ``cls`` from the entries of one table; every field not ``given`` must be there, and no other.

    Raises:
      ValueError: a key is unknown, missing, unsourced or of the wrong type; the message names it.
    """
    types = {f.name: get_type_hints(cls)[f.name] for f in fields(cls) if f.name not in given}
    for key in entries.keys() ^ types.keys():
        problem = "unknown" if key in entries else "missing"
        raise ValueError(f"hardware table [{table}]: {problem} key {key!r}")
    values = {key: _value(table, key, entry, types[key]) for key, entry in entries.items()}
    return cls(**values, **given)


def _value(table: str, key: str, entry: Any, expected: type) -> Any:
    where = f"hardware table [{table}] {key}"
    if not isinstance(entry, dict) or entry.keys() != {"value", "kind", "source"}:
        raise ValueError(f"{where}: expected {{value, kind, source}}, got {entry!r}")
    if entry["kind"] not in KINDS:
        raise ValueError(f"{where}: kind {entry['kind']!r} is none of {', '.join(KINDS)}")
    if not isinstance(entry["source"], str) or not entry["source"].strip():
        raise ValueError(f"{where}: no source")
    value = entry["value"]
    if get_origin(expected) is tuple and isinstance(value, list):
        return tuple(value)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise ValueError(f"{where}: expected {getattr(expected, '__name__', expected)}, got {value!r}")
    return value


@functools.cache
def load_core(family: str = _DEFAULT_FAMILY) -> Core:
    """The core of a family of instances, "inf2", "trn1" or "inf1"."""
    file = _FILES[FAMILIES[family]]
    tables = read_tables(file)
    types = get_type_hints(Core) | {"gpsimd": Gpsimd}
    for name in (tables.keys() ^ types.keys()) - _OPTIONAL:
        raise ValueError(f"{file}: {'unknown' if name in tables else 'missing'} table [{name}]")
    found = {name: record(types[name], name, entries) for name, entries in tables.items()}
    return Core(**(dict.fromkeys(_OPTIONAL) | found))


@functools.cache
def load_links(family: str = _DEFAULT_FAMILY) -> LinkSpec:
    """The links of a family of instances: those of Inf2, changed where its own table says so."""
    tables = read_tables(_LINKS)
    engine_bytes_per_s = load_core(family).dma.engine_bytes_per_s
    entries = tables["links"] | tables.get(family, {})
    return record(LinkSpec, "links", entries, engine_bytes_per_s=engine_bytes_per_s)


@functools.cache
def load_algorithms() -> AlgorithmSpec:
    """Which algorithms of collectives an Inf2 instance has, and where."""
    return record(AlgorithmSpec, "algorithms", read_tables(_LINKS)["algorithms"])


# Inf2 is what the compiler is for; the other instances can be named wherever one of these can.
INSTANCES: tuple[str, ...] = tuple(read_tables(f"{_DEFAULT_FAMILY}.toml"))
ALL_INSTANCES: tuple[str, ...] = tuple(name for family in FAMILIES for name in read_tables(f"{family}.toml"))
_FILES = {
    "neuroncore-v2": "neuroncore_v2.toml",
    "neuroncore-v1": "neuroncore_v1.toml",
    "links": _LINKS,
    "collectives": _COLLECTIVES,
    "era sdk-2.18": "fitted.toml",
    "era ideal": "ideal.toml",
    "comparators": "comparators.toml",
}
TABLES: tuple[str, ...] = (*_FILES, *ALL_INSTANCES)


@functools.cache
def load_accesses() -> AccessSpec:
    """HBM accesses of each kind of collective."""
    return record(AccessSpec, "accesses", read_tables(_COLLECTIVES)["accesses"])


@functools.cache
def load_instance(name: str) -> InstanceSpec:
    """The instance of that name, e.g. ``inf2.48xlarge``.

    Raises:
      CompileError: no such instance is known.
    """
    if name not in ALL_INSTANCES:
        raise CompileError(
            f"unknown instance {name!r}", op="instance", fix=f"use one of {', '.join(ALL_INSTANCES)}"
        )
    return record(InstanceSpec, name, read_tables(f"{name.partition('.')[0]}.toml")[name], name=name)


def rows(name: str) -> list[tuple[str, str, Any, str, str, str]]:
    """Every number of one table for printing: (table, key, value, unit, source, kind).

    Args:
      name: one of ``TABLES``: a core, ``links``, an era, ... or an instance.

    Raises:
      CompileError: no such table is known.
    """
    if name not in TABLES:
        raise CompileError(f"unknown hardware {name!r}", op="hw", fix=f"use one of {', '.join(TABLES)}")
    tables = read_tables(_FILES[name]) if name in _FILES else None
    chosen = tables or {name: read_tables(f"{name.partition('.')[0]}.toml")[name]}
    return [
        (table, key, entry["value"], _unit(key), entry["source"], entry["kind"])
        for table, entries in chosen.items()
        for key, entry in entries.items()
    ]


def _unit(key: str) -> str:
    # "_bytes_per_s" before "_s": the table lists longer endings first.
    return next((unit for ending, unit in _UNITS.items() if key.endswith(ending)), "")
