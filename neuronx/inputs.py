"""Random inputs for the entry function of a module."""

import numpy as np

from hlo_passes.ir import ir, main
from kernels.dtypes import dtype
from kernels.errors import CompileError

__all__ = ["random_inputs"]


def random_inputs(module: ir.Module, seed: int) -> list[np.ndarray]:
    """One array for each argument of the entry function: normal floats, integers 0 to 4, fair booleans.

    Raises:
      CompileError: an element type that is not in the table of types, or a shape that is not static.
    """
    rng = np.random.default_rng(seed)
    types = [ir.RankedTensorType(argument.type) for argument in main(module).arguments]
    for number, type_ in enumerate(types):
        if not type_.has_static_shape:
            raise CompileError(
                f"argument {number} has the shape {type_}, which is not static (NCC_EMOD025)",
                op="@main",
                fix="give a size for every unknown dim: neuronx run --size 4",
            )
    return [_random(rng, tuple(type_.shape), str(type_.element_type)) for type_ in types]


def _random(rng: np.random.Generator, shape: tuple[int, ...], element: str) -> np.ndarray:
    found = dtype(element)
    if element == "i1":
        return rng.integers(0, 2, shape).astype(bool)
    if found.is_integer:
        return rng.integers(0, 2 if found.bits == 2 else 5, shape).astype(found.numpy)
    values = rng.standard_normal(shape)
    if found.is_complex:
        values = values + 1j * rng.standard_normal(shape)
    return np.asarray(values).astype(found.numpy)
