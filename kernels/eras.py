"""Eras: what the same silicon yields with AWS's software of a time, or by its documented rates alone."""

import functools
from dataclasses import dataclass, replace

from kernels.errors import CompileError
from kernels.hardware import Core, LinkSpec, load_core, load_links, read_tables, record

__all__ = ["DEFAULT_ERA", "ERAS", "Era", "core_of", "links_of", "load_era"]

_FILES = {"sdk-2.18": "fitted.toml", "ideal": "ideal.toml"}
ERAS: tuple[str, ...] = tuple(_FILES)
DEFAULT_ERA = "sdk-2.18"


@dataclass(frozen=True, kw_only=True)
class Era:
    """The constants in which eras differ.

    Attributes:
      sustained_fraction: of the tensor engine's clock at which products run.
      prefetch_fraction: of the SBUF nothing is kept in, how much reading ahead may fill.
      prefetch_parts: in how many parts a kernel's weights come and go. This and the two before are the core
        table's where the era's own table does not say.
      engine_bytes_per_s: of one DMA engine.
      overlap_fraction: how far the engines of one kernel work side by side; at 0 one after the other.
      kernel_start_s: from the end of a kernel to the start of one that needs its result.
      hop_latency_s: of one hop of a collective.
      launch_s: from the host's call to the program's start on the device, and back.
    """

    sustained_fraction: float
    prefetch_fraction: float
    prefetch_parts: int
    engine_bytes_per_s: float
    overlap_fraction: float
    kernel_start_s: float
    hop_latency_s: float
    launch_s: float


@functools.cache
def load_era(name: str) -> Era:
    """The era called ``name``; raises CompileError for an unknown one."""
    if name not in _FILES:
        raise CompileError(f"unknown era {name!r}", op="era", fix=f"use one of {', '.join(ERAS)}")
    entries = read_tables(_FILES[name])[name]
    core = load_core()
    given = {
        "sustained_fraction": core.pe.sustained_fraction,
        "prefetch_fraction": core.sbuf.prefetch_fraction,
        "prefetch_parts": core.sbuf.prefetch_parts,
    }
    left = {key: value for key, value in given.items() if key not in entries}
    return record(Era, name, entries, **left)


def core_of(era: str | Era, family: str = "inf2") -> Core:
    """A core of a family of instances as the era's software drives it."""
    return _core(load_era(era) if isinstance(era, str) else era, family)


@functools.lru_cache(maxsize=64)
def _core(era: Era, family: str) -> Core:
    core = load_core(family)
    issue = replace(core.issue, overlap_fraction=era.overlap_fraction, kernel_start_s=era.kernel_start_s)
    return replace(
        core,
        pe=replace(core.pe, sustained_fraction=era.sustained_fraction),
        dma=replace(core.dma, engine_bytes_per_s=era.engine_bytes_per_s),
        issue=issue,
        sbuf=replace(core.sbuf, prefetch_fraction=era.prefetch_fraction, prefetch_parts=era.prefetch_parts),
    )


def links_of(era: str | Era, family: str = "inf2") -> LinkSpec:
    """The links as the era's software drives them."""
    found = load_era(era) if isinstance(era, str) else era
    return replace(
        load_links(family),
        hop_latency_s=found.hop_latency_s,
        launch_s=found.launch_s,
        engine_bytes_per_s=found.engine_bytes_per_s,
    )
