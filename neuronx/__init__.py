"""Compile JAX functions for a simulated ring of AWS Inferentia2 NeuronCores; run, time and price them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.errors import CompileError, OutOfDeviceMemoryError
    from neuronx import lazy
    from neuronx.analysis import Analysis, analyze
    from neuronx.api import compile
    from neuronx.arrays import RingArray
    from neuronx.bisection import Bisection, bisect
    from neuronx.buckets import BucketedFunction, PaddingLeakError
    from neuronx.container import SavedFileError
    from neuronx.frontend import DataDependentError
    from neuronx.function import Function
    from neuronx.lazy.debugging import NumericsError, debug
    from neuronx.lazy.session import mark_step
    from neuronx.loading import load
    from neuronx.memory import MemoryStats
    from neuronx.profile import Profile
    from neuronx.stages import Compiled, Lowered

__all__ = [
    "Analysis",
    "Bisection",
    "BucketedFunction",
    "CompileError",
    "Compiled",
    "DataDependentError",
    "Function",
    "Lowered",
    "MemoryStats",
    "NumericsError",
    "OutOfDeviceMemoryError",
    "PaddingLeakError",
    "Profile",
    "RingArray",
    "SavedFileError",
    "analyze",
    "bisect",
    "compile",
    "debug",
    "lazy",
    "load",
    "mark_step",
]

# Loaded at first use: verbs that need no compiler (``neuronx hw``) start without importing JAX.
_HOMES = {
    "Analysis": "neuronx.analysis",
    "Bisection": "neuronx.bisection",
    "BucketedFunction": "neuronx.buckets",
    "CompileError": "kernels.errors",
    "Compiled": "neuronx.stages",
    "DataDependentError": "neuronx.frontend",
    "Function": "neuronx.function",
    "Lowered": "neuronx.stages",
    "MemoryStats": "neuronx.memory",
    "NumericsError": "neuronx.lazy.debugging",
    "OutOfDeviceMemoryError": "kernels.errors",
    "PaddingLeakError": "neuronx.buckets",
    "Profile": "neuronx.profile",
    "RingArray": "neuronx.arrays",
    "SavedFileError": "neuronx.container",
    "analyze": "neuronx.analysis",
    "bisect": "neuronx.bisection",
    "compile": "neuronx.api",
    "debug": "neuronx.lazy.debugging",
    "load": "neuronx.loading",
    "mark_step": "neuronx.lazy.session",
}

# Modules that are used as they are; ``neuronx.lazy`` can be called as well.
_MODULES = ("lazy",)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"neuronx.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'neuronx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
