"""Random inputs for the entry function of a module."""

import numpy as np

from hlo_passes.ir import ir, main
from kernels.dtypes import dtype

__all__ = ["random_inputs"]


def random_inputs(module: ir.Module, seed: int) -> list[np.ndarray]:
    """One array for each argument of the entry function: normal floats, integers 0 to 4, fair booleans.

    Raises:
      CompileError: an element type that is not in the table of types.
    """
    rng = np.random.default_rng(seed)
    types = [ir.RankedTensorType(argument.type) for argument in main(module).arguments]
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
