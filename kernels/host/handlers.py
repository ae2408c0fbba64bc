"""Handlers of the host kernels, compiled when they are asked for: Numba is imported here, and only then."""

import atexit
import ctypes
import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from kernels.host.row_program import is_row_target
from kernels.host.targets import attention_targets, product_targets, sum_targets, update_targets

__all__ = ["handler"]


@functools.cache
def handler(target: str) -> Any:
    """The capsule to register with XLA for ``target``, made once; what it points to lives on.

    Compiles on the first use on this machine (seconds), then loads from Numba's cache on disk; where no
    directory for that can be written, each process compiles for itself.
    """
    make_capsule = ctypes.pythonapi.PyCapsule_New
    make_capsule.restype, make_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p] * 3
    try:
        address = _compile(target)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        _cache_for_this_process()
        address = _compile(target)
    return make_capsule(address, None, None)


def _cache_for_this_process() -> None:
    from numba import config

    config.CACHE_DIR = tempfile.mkdtemp(prefix="neuronx-")
    atexit.register(shutil.rmtree, config.CACHE_DIR, ignore_errors=True)


def _compile(target: str) -> int:
    if target in update_targets():
        from kernels.host.update import compile_update

        return compile_update(update_targets()[target], _stamp())
    if target in sum_targets():
        from kernels.host.sums import compile_sum

        return compile_sum(sum_targets()[target], _stamp())
    if target in attention_targets():
        from kernels.host.attention import compile_attention

        return compile_attention(**attention_targets()[target], stamp=_stamp())
    if is_row_target(target):
        from kernels.host.rows import compile_rows

        return compile_rows(target, _stamp())
    from kernels.host.products import compile_product

    return compile_product(**product_targets()[target], stamp=_stamp())


def _stamp() -> str:
    """Changes with the kernels' sources: Numba's cache looks only at the file that asks for it."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
