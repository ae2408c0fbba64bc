"""The table of element types against MLIR's parser, JAX's type mapping and ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest
from jax._src.interpreters import mlir as jax_mlir

from hlo_passes.ir import context, ir
from kernels.dtypes import DTYPES, dtype
from kernels.errors import CompileError
from kernels.work import Tensor


@pytest.mark.parametrize("name", DTYPES)
def test_mlir_knows_the_spelling(name: str) -> None:
    with context():
        assert str(ir.Type.parse(name)) == name


# tf32 is an arithmetic mode stored as f32; JAX has no type of that name.
@pytest.mark.parametrize("name", [name for name in DTYPES if name != "tf32"])
def test_numpy_type_is_the_one_jax_maps_to_it(name: str) -> None:
    with context():
        assert str(jax_mlir.dtype_to_ir_type(dtype(name).numpy)) == name


@pytest.mark.parametrize("name", DTYPES)
def test_width_is_that_of_the_type(name: str) -> None:
    found = dtype(name)
    if name == "i1":
        assert found.bits == 8
    elif found.numpy.kind == "c":
        assert found.bits == 8 * found.numpy.itemsize
    elif found.is_integer:
        assert found.bits == ml_dtypes.iinfo(found.numpy).bits
    else:
        assert found.bits == (32 if name == "tf32" else ml_dtypes.finfo(found.numpy).bits)


def test_neuron_fp8_is_the_ieee_like_one() -> None:
    assert float(ml_dtypes.finfo(dtype("f8E4M3").numpy).max) == 240.0
    assert dtype("f8E4M3").support == "native"
    assert dtype("f8E4M3FN").support == "emulated"
    assert "NCC_EVRF051" in dtype("f8E4M3FN").note


@pytest.mark.parametrize("name", ["f8E4M3FNUZ", "f8E5M2FNUZ", "f8E4M3B11FNUZ"])
def test_fnuz_types_are_rejected_with_their_code(name: str) -> None:
    assert dtype(name).support == "rejected"
    assert "NCC_EVRF005" in dtype(name).note


def test_everything_not_native_says_why() -> None:
    assert all(found.note for found in DTYPES.values() if found.support != "native")


def test_unknown_type_names_the_nearest() -> None:
    with pytest.raises(CompileError, match=r"unknown element type 'bf61'[\s\S]*did you mean bf16"):
        dtype("bf61")


def test_sub_byte_tensors_are_packed_and_booleans_are_bytes() -> None:
    assert Tensor(shape=(3, 5), dtype="i4").size_bytes == 8
    assert Tensor(shape=(3, 5), dtype="i1").size_bytes == 15
    assert Tensor(shape=(), dtype="complex<f64>").size_bytes == np.dtype(np.complex128).itemsize
