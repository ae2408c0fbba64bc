"""The compile cache: what compilations left, in files that every process of the user finds again."""

import contextlib
import functools
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax

from hlo_passes.ir import ir, module_bytes, run_mlir_passes, source_line, walk
from neuronx.container import SavedFileError, read_sections, write_sections
from neuronx.driver import (
    Artifacts,
    CompileOptions,
    compile_module,
    copy_module,
    without_collector,
)
from neuronx.environment import environment
from neuronx.frontend import Exported
from neuronx.records import encode
from neuronx.saving import artifact_sections, artifacts_from

__all__ = ["LIMIT_BYTES", "SUFFIX", "Cache", "Entry", "compile_cached", "open_cache"]

T = TypeVar("T")

LIMIT_BYTES = 1 << 30

SUFFIX = ".neuronx-cache"

# What compiles faster than this is not worth a file.
_LEAST_S = 0.1

# A temporary file this old was left by a process that was killed while it wrote.
_ABANDONED_S = 3600.0

_NAME_LENGTH = 80

# Of a notebook cell's file: the process (/tmp/ipykernel_12/34.py), or the run (<ipython-input-1-ab>).
_CELL = re.compile(r"^(?:.*/ipykernel_\d+/(?=\d+\.py:)|<ipython-input-\d+-)")

_PACKAGES = ("kernels", "distributed", "hlo_passes", "neuronx")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the cache: the program's name, its size, and when it was last written or read."""

    path: Path
    size_bytes: int
    used: float

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(SUFFIX).rpartition("-")[0]


class Cache:
    """A directory of entries, bounded in size; any number of processes may use it at once.

    An entry appears whole or not at all and never changes, so a reader needs no lock. Where space is
    short the entries that were not used for longest go.
    """

    def __init__(self, directory: Path, *, limit_bytes: int) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes

    def path(self, name: str, key: str) -> Path:
        """Where the program called ``name`` is kept under ``key``; the name is for people to read."""
        readable = re.sub(r"[^A-Za-z0-9_]", "_", name)[:_NAME_LENGTH]
        return self.directory / f"{readable}-{key}{SUFFIX}"

    def read(self, path: Path, decode: Callable[[Mapping[str, memoryview]], T]) -> T | None:
        """What ``decode`` makes of an entry's sections; None where there is none.

        An entry that is damaged is reported and dropped.
        """
        try:
            found = decode(read_sections(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except SavedFileError as error:
            warnings.warn(f"the compile cache drops an entry and compiles again: {error}", stacklevel=2)
            path.unlink(missing_ok=True)
            return None
        # Gone meanwhile, or not ours to touch: what was read is good.
        with contextlib.suppress(OSError):
            os.utime(path)
        return found

    def write(self, path: Path, sections: Mapping[str, bytes]) -> None:
        """Adds an entry, then makes room; a directory that cannot be written is reported."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_sections(path, sections)
        except OSError as error:
            warnings.warn(f"the compile cache cannot be written: {error}", stacklevel=2)
            return
        self._make_room()

    def entries(self) -> list[Entry]:
        """All entries, the last used first."""
        found = [
            Entry(path=path, size_bytes=stat.st_size, used=stat.st_mtime)
            for path, stat in self._files(f"*{SUFFIX}")
        ]
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self) -> list[Entry]:
        """Removes all entries and says which they were."""
        removed = self.entries()
        for entry in removed:
            entry.path.unlink(missing_ok=True)
        return removed

    def _make_room(self) -> None:
        total = 0
        for entry in self.entries():
            total += entry.size_bytes
            if total > self.limit_bytes:
                entry.path.unlink(missing_ok=True)
        for path, stat in self._files(f".*{SUFFIX}.*.tmp"):
            if time.time() - stat.st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)

    def _files(self, pattern: str) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.directory.glob(pattern):
            try:
                yield path, path.stat()
            except FileNotFoundError:  # another process removed it
                continue


def open_cache() -> Cache | None:
    """The user's cache; None where the environment asks for none."""
    directory = environment().cache
    return None if directory is None else Cache(directory, limit_bytes=LIMIT_BYTES)


def compile_cached(exported: Exported, options: CompileOptions) -> Artifacts:
    """Compiles an exported function, or finds what an earlier compilation of the same one left.

    The key is the StableHLO with the user's line of each op (not who called it), the options, the
    versions of JAX and of this compiler and its hardware tables. Checks and dumps after passes
    (``NEURONX_DEBUG``, ``NEURONX_DUMP``) need the passes to run, and the cache is left alone.
    """
    cache, asked = open_cache(), environment()
    if cache is None or asked.debug or asked.dump:
        return _compile(exported, options)
    path = cache.path(exported.name, _key(exported, options))
    with without_collector():
        found = cache.read(path, artifacts_from)
    if found is not None:
        return found
    start = time.perf_counter()
    artifacts = _compile(exported, options)
    if time.perf_counter() - start >= _LEAST_S:
        cache.write(path, artifact_sections(artifacts))
    return artifacts


def _compile(exported: Exported, options: CompileOptions) -> Artifacts:
    return compile_module(exported.module, options, weights=exported.weights)


def _key(exported: Exported, options: CompileOptions) -> str:
    digest = hashlib.sha256(_without_callers(exported.module))
    rest = [encode(options), sorted(exported.weights), jax.__version__, _compiler()]
    digest.update(json.dumps(rest).encode())
    return digest.hexdigest()[:32]


def _without_callers(module: ir.Module) -> bytes:
    """The module as far as programs and profiles tell: of each op's location the user's line alone.

    The file that IPython makes up for a cell counts by the digest of the cell's text that it ends with.
    """
    bare, ops = copy_module(module), []
    run_mlir_passes(bare, "strip-debuginfo")
    walk(module.operation, ops.append)
    lines = (_CELL.sub("", source_line(op)) for op in ops)
    return module_bytes(bare) + "\n".join(lines).encode()


@functools.cache
def _compiler() -> str:
    """A digest of this compiler itself: its code and its hardware tables."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()
