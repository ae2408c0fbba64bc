"""Handlers of the host kernels, compiled when they are asked for: Numba is imported here, and only then."""

import ctypes
import functools
import hashlib
from pathlib import Path
from typing import Any

from kernels.host.targets import product_targets, sum_targets, update_targets

__all__ = ["handler"]


@functools.cache
def handler(target: str) -> Any:
    """The capsule to register with XLA for ``target``, made once; what it points to lives on.

    Compiles on the first use on this machine (seconds), then loads from Numba's cache on disk.
    """
    make_capsule = ctypes.pythonapi.PyCapsule_New
    make_capsule.restype, make_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    return make_capsule(_compile(target), None, None)


def _compile(target: str) -> int:
    if target in update_targets():
        from kernels.host.update import compile_update

        return compile_update(update_targets()[target], _stamp())
    if target in sum_targets():
        from kernels.host.sums import compile_sum

        return compile_sum(sum_targets()[target], _stamp())
    from kernels.host.products import compile_product

    return compile_product(**product_targets()[target], stamp=_stamp())


def _stamp() -> str:
    """Changes with the kernels' sources: Numba's cache looks only at the file that asks for it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
