"""Named arrays as bytes in the layout of the safetensors format, which other tools read."""

import json
import struct
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from kernels.errors import CompileError

__all__ = ["pack_tensors", "unpack_tensors"]

# The format's names of types.
_TYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}
_NAMES = {name: code for code, name in _TYPES.items()}


def pack_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Eight bytes of header length, a JSON header, the arrays' bytes one after the other.

    Raises:
      CompileError: a type the format has no name for.
    """
    header, parts, at = {}, [], 0
    for name, tensor in tensors.items():
        if tensor.dtype.name not in _NAMES:
            raise CompileError(
                f"{name} is {tensor.dtype.name}, and the safetensors format has no such type",
                op="save",
                fix=f"convert it to one of {', '.join(_NAMES)}",
            )
        part = np.ascontiguousarray(tensor).tobytes()
        header[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(part)],
        }
        parts.append(part)
        at += len(part)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def unpack_tensors(content: bytes | memoryview) -> dict[str, np.ndarray]:
    """The arrays of ``pack_tensors``, read-only views of ``content``."""
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(bytes(content[8 : 8 + size]))
    header.pop("__metadata__", None)
    data = content[8 + size :]
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        flat = np.frombuffer(data[start:end], np.uint8)
        found[name] = flat.view(jnp.dtype(_TYPES[entry["dtype"]])).reshape(entry["shape"])
        found[name].flags.writeable = False
    return found
