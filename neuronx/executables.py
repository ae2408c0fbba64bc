"""XLA's executables of segments in the compile cache, so that another process need not compile them."""

import functools
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path

import jax

from distributed.executor import OPTIONS
from neuronx.cache import Cache, open_cache
from neuronx.container import FORMAT_VERSION
from neuronx.environment import environment

__all__ = ["Executables"]

# Lines of /proc/cpuinfo that say for which CPU XLA compiles, on x86 and on ARM.
_CPU_LINES = ("model name", "flags", "Features", "CPU implementer", "CPU part")


class Executables:
    """Where an executor keeps what it compiled; nowhere if the cache is off, or the CPU has no name.

    A file is found under the segment's text as XLA gets it, XLA's options and flags, the versions of
    JAX and of the file, and the CPU, for a home directory may be shared by several.
    """

    def __init__(self) -> None:
        # Segments compile side by side; the umask that files are made with is the process's own.
        self._writing = threading.Lock()

    def read(self, text: str) -> bytes | None:
        """The executable of a segment; None where there is none."""
        found = _place(text)
        return found and found[0].read(found[1], _content)

    def write(self, text: str, executable: bytes) -> None:
        found = _place(text)
        if found:
            with self._writing:
                found[0].write(found[1], {"executable": executable})


def _content(sections: Mapping[str, memoryview]) -> bytes:
    return bytes(sections["executable"])


def _place(text: str) -> tuple[Cache, Path] | None:
    cache, cpu = open_cache(), _cpu()
    if cache is None or cpu is None:
        return None
    versions = [FORMAT_VERSION, jax.__version__, jax.lib.__version__]
    made_of = [text, OPTIONS, environment().xla_flags, versions, cpu]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    return cache, cache.path("segment", key)


@functools.cache
def _cpu() -> str | None:
    """What Linux says of the CPU; other systems say nothing that would tell it from others."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return "\n".join(sorted({line for line in lines if line.startswith(_CPU_LINES)})) or None
