"""Element types: MLIR spelling, width, NumPy type and what a NeuronCore-v2 does with each, in one table."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import ml_dtypes
import numpy as np

from kernels.errors import CompileError

__all__ = ["DTYPES", "DType", "Support", "dtype"]

Support = Literal["native", "emulated", "rejected"]


@dataclass(frozen=True, kw_only=True)
class DType:
    """One element type.

    Attributes:
      name: MLIR's spelling, e.g. ``bf16``.
      bits: width of one element in device memory; ``i1`` takes a whole byte.
      numpy: the NumPy type that holds its values on the host.
      support: ``native`` where NeuronCore-v2 has it; ``emulated`` where only the simulator computes it
        (neuronx-cc refuses or narrows it); ``rejected`` where this compiler refuses it too.
      note: why, with the compiler's error code where there is one.
    """

    name: str
    bits: int
    numpy: np.dtype
    support: Support
    note: str = ""

    @property
    def is_complex(self) -> bool:
        return self.numpy.kind == "c"

    @property
    def is_integer(self) -> bool:
        """Integers of any width; ``i1`` is not one."""
        return self.name.lstrip("u").startswith("i") and self.name != "i1"


# Sources: about-neuron/arch/neuron-features/data-types.rst, nki/api/nki.language (dtype table),
# compiler/error-codes/{EVRF004,EVRF005,EVRF051,ESFH002,ESPP004}.rst.
_NARROWED = "neuronx-cc silently treats 64-bit integers as 32-bit ones; the simulator keeps 64 bits"
_NO_CODEGEN = "not among the types AWS lists for v2; presumably NCC_ESPP004 (no code for a type)"
_COMPLEX = "NCC_EVRF004: neuronx-cc refuses complex numbers"
_FNUZ = "NCC_EVRF005: FNUZ variants of 8-bit floats do not exist on Neuron"
_MX = "not among the types AWS lists for v2"

# name, bits, NumPy type, support, note
_ROWS: tuple[tuple[str, int, type, Support, str], ...] = (
    ("f32", 32, np.float32, "native", "tensor engine at a quarter of the rate"),
    ("tf32", 32, np.float32, "native", "8-bit exponent, 10-bit mantissa, stored as f32"),
    ("bf16", 16, ml_dtypes.bfloat16, "native", "tensor engine at full rate"),
    ("f16", 16, np.float16, "native", "tensor engine at full rate"),
    ("f8E4M3", 8, ml_dtypes.float8_e4m3, "native", "cFP8, IEEE-like, range +-240"),
    ("f8E5M2", 8, ml_dtypes.float8_e5m2, "native", "cFP8"),
    ("f8E3M4", 8, ml_dtypes.float8_e3m4, "native", "cFP8; neuronx-cc's JAX front end does not offer it"),
    ("i1", 8, np.bool_, "native", "one byte an element"),
    ("i8", 8, np.int8, "native", "storage; arithmetic in f32"),
    ("i16", 16, np.int16, "native", "arithmetic in f32"),
    ("i32", 32, np.int32, "native", "exact add and multiply only on gpsimd; neuronx-cc computes dots in f32"),
    ("ui8", 8, np.uint8, "native", "arithmetic in f32"),
    ("ui16", 16, np.uint16, "native", "taken to be as i16: AWS's v2 pages list no ui16 explicitly"),
    ("ui32", 32, np.uint32, "native", "exact add and multiply only on gpsimd"),
    ("f64", 64, np.float64, "emulated", _NO_CODEGEN),
    ("i64", 64, np.int64, "emulated", _NARROWED),
    ("ui64", 64, np.uint64, "emulated", f"NCC_ESFH002 for constants; {_NARROWED}"),
    ("complex<f32>", 64, np.complex64, "emulated", _COMPLEX),
    ("complex<f64>", 128, np.complex128, "emulated", _COMPLEX),
    (
        "f8E4M3FN",
        8,
        ml_dtypes.float8_e4m3fn,
        "emulated",
        "NCC_EVRF051: f8E4M3FN is refused on v2, use f8E4M3",
    ),
    ("i2", 2, ml_dtypes.int2, "emulated", _NO_CODEGEN),
    ("i4", 4, ml_dtypes.int4, "emulated", _NO_CODEGEN),
    ("ui2", 2, ml_dtypes.uint2, "emulated", _NO_CODEGEN),
    ("ui4", 4, ml_dtypes.uint4, "emulated", _NO_CODEGEN),
    ("f8E4M3FNUZ", 8, ml_dtypes.float8_e4m3fnuz, "rejected", _FNUZ),
    ("f8E5M2FNUZ", 8, ml_dtypes.float8_e5m2fnuz, "rejected", _FNUZ),
    ("f8E4M3B11FNUZ", 8, ml_dtypes.float8_e4m3b11fnuz, "rejected", _FNUZ),
    ("f8E8M0FNU", 8, ml_dtypes.float8_e8m0fnu, "rejected", _MX),
    ("f6E2M3FN", 6, ml_dtypes.float6_e2m3fn, "rejected", _MX),
    ("f6E3M2FN", 6, ml_dtypes.float6_e3m2fn, "rejected", _MX),
    ("f4E2M1FN", 4, ml_dtypes.float4_e2m1fn, "rejected", _MX),
)

DTYPES: dict[str, DType] = {
    name: DType(name=name, bits=bits, numpy=np.dtype(kind), support=support, note=note)
    for name, bits, kind, support, note in _ROWS
}


def dtype(name: str) -> DType:
    """The element type of that MLIR spelling.

    Raises:
      CompileError: no such type is known. Rejected types are known: the caller decides, by ``support``.
    """
    found = DTYPES.get(name)
    if found is not None:
        return found
    near = get_close_matches(name, DTYPES, n=1)
    hint = f"did you mean {near[0]}? known: " if near else "use one of "
    raise CompileError(f"unknown element type {name!r}", op="element type", fix=hint + ", ".join(DTYPES))
