"""One file of named sections with a checksum: what a saved program is written in, whole or not at all."""

import hashlib
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kernels.errors import CompileError

__all__ = [
    "FORMAT_VERSION",
    "CorruptFileError",
    "ForeignFileError",
    "NewerFileError",
    "SavedFileError",
    "TruncatedFileError",
    "read_sections",
    "write_sections",
]

FORMAT_VERSION = 6

# Magic, format version, length and SHA-256 of all that follows.
_MAGIC = b"\x93NEURONX"
_HEADER = struct.Struct("<8sIQ32s")
_ALIGNMENT = 64


class SavedFileError(CompileError):
    """A saved program that cannot be read; its subclasses say why."""


class ForeignFileError(SavedFileError):
    """The file is something else."""


class TruncatedFileError(SavedFileError):
    """The file ends too early."""


class CorruptFileError(SavedFileError):
    """The file is not what was written: its checksum differs."""


class NewerFileError(SavedFileError):
    """The file was written by a later version."""


def write_sections(path: str | os.PathLike[str], sections: Mapping[str, bytes]) -> None:
    """Writes ``sections`` in order to ``path``. A reader sees the old file or the new one, never a part."""
    path = Path(path)
    index, at = {}, 0
    for name, content in sections.items():
        index[name] = [at, len(content)]
        at += len(content) + -len(content) % _ALIGNMENT
    head = json.dumps(index).encode()
    # The first section starts aligned, so that tensors can be used where they are mapped.
    head += b" " * (-(_HEADER.size + 8 + len(head)) % _ALIGNMENT)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        error.filename = str(path)  # what the user knows of
        raise
    try:
        with os.fdopen(descriptor, "wb") as file:
            digest, length = hashlib.sha256(), 0
            file.write(bytes(_HEADER.size))
            padded = ((content, b"\0" * (-len(content) % _ALIGNMENT)) for content in sections.values())
            for part in (struct.pack("<Q", len(head)), head, *(p for pair in padded for p in pair)):
                file.write(part)
                digest.update(part)
                length += len(part)
            file.seek(0)
            file.write(_HEADER.pack(_MAGIC, FORMAT_VERSION, length, digest.digest()))
            file.flush()
            os.fsync(file.fileno())
        # mkstemp keeps others out; a saved file is as open as the process makes its files.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def read_sections(path: str | os.PathLike[str]) -> dict[str, memoryview]:
    """The sections of a file, mapped read-only.

    Raises:
      FileNotFoundError: there is none.
      ForeignFileError, TruncatedFileError, NewerFileError, CorruptFileError: as they say.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEADER.size)
        length, wanted = _check_header(path, head, size)
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    payload = content[_HEADER.size : _HEADER.size + length]
    if hashlib.sha256(payload).digest() != wanted:
        raise CorruptFileError(
            f"{path} is damaged: the checksum of its content differs",
            op="load",
            fix="copy it again, or save the program again",
        )
    (index_size,) = struct.unpack_from("<Q", payload)
    start = 8 + index_size
    index = json.loads(bytes(payload[8:start]))
    return {name: payload[start + at : start + at + size] for name, (at, size) in index.items()}


def _check_header(path: Path, head: bytes, size: int) -> tuple[int, bytes]:
    if head[: len(_MAGIC)] != _MAGIC[: len(head)] or not head:
        raise ForeignFileError(
            f"{path} is not a saved program", op="load", fix="give a file that exe.save(...) wrote"
        )
    if len(head) < _HEADER.size:
        raise _truncated(path, size, _HEADER.size)
    _, version, length, digest = _HEADER.unpack(head)
    if version > FORMAT_VERSION:
        raise NewerFileError(
            f"{path} has format version {version}, this package reads {FORMAT_VERSION}",
            op="load",
            fix="upgrade the package, or save the program with this version",
        )
    if size < _HEADER.size + length:
        raise _truncated(path, size, _HEADER.size + length)
    if version < FORMAT_VERSION or size > _HEADER.size + length:
        raise CorruptFileError(
            f"{path} is damaged, or older than this package, which reads format version {FORMAT_VERSION}: "
            f"it is {size} bytes long, format version {version}",
            op="load",
            fix="copy it again, or save the program again",
        )
    return length, digest


def _truncated(path: Path, size: int, wanted: int) -> TruncatedFileError:
    return TruncatedFileError(
        f"{path} ends after {size} bytes of {wanted}",
        op="load",
        fix="copy it again, or save the program again",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
