"""Machines to compare with: GPU and CPU instances as plain rooflines of their documented peaks."""

import functools
from dataclasses import dataclass

from kernels.errors import CompileError
from kernels.hardware import read_tables, record

__all__ = ["COMPARATORS", "Comparator", "load_comparator"]

_FILE = "comparators.toml"
COMPARATORS: tuple[str, ...] = tuple(read_tables(_FILE))


@dataclass(frozen=True, kw_only=True)
class Comparator:
    """One instance. Memory, bandwidth and peaks are of one of its ``devices``."""

    name: str
    device: str
    devices: int
    memory_bytes: int
    bandwidth_bytes_per_s: float
    half_peak_flop_per_s: float
    f32_peak_flop_per_s: float
    i8_peak_flop_per_s: float
    price_usd_per_hour: float

    def fits(self, size_bytes: float) -> bool:
        """Whether all devices together hold that much, nothing taken off for their own software."""
        return size_bytes <= self.devices * self.memory_bytes

    def peak_flop_per_s(self, dtype: str = "bf16") -> float:
        """Of one device for "f32", "i8", or any half type."""
        peaks = {"f32": self.f32_peak_flop_per_s, "i8": self.i8_peak_flop_per_s}
        return peaks.get(dtype, self.half_peak_flop_per_s)

    def roofline_s(self, flops: float, size_bytes: float, dtype: str = "bf16") -> float:
        """The longer of arithmetic at the type's peak and traffic at full bandwidth, over all devices."""
        return (
            max(flops / self.peak_flop_per_s(dtype), size_bytes / self.bandwidth_bytes_per_s) / self.devices
        )


@functools.cache
def load_comparator(name: str) -> Comparator:
    """The comparator of that name, e.g. ``g5.48xlarge``; raises CompileError for an unknown one."""
    if name not in COMPARATORS:
        raise CompileError(f"unknown machine {name!r}", op="hw", fix=f"use one of {', '.join(COMPARATORS)}")
    return record(Comparator, name, read_tables(_FILE)[name], name=name)
