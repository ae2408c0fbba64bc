"""``neuronx.load``: a saved program, ready to be called, timed and read in a new process."""

import dataclasses
import os

from kernels.errors import CompileError
from kernels.hardware import load_instance
from neuronx.driver import CompileOptions, compile_module
from neuronx.saving import read_program
from neuronx.stages import Compiled

__all__ = ["load"]


def load(path: str | os.PathLike[str], *, instance: str | None = None, recompile: bool = False) -> Compiled:
    """Reads what ``exe.save(path)`` wrote. No pass runs, unless ``recompile`` asks for it.

    Weights that were saved along are ``exe.weights``, a tuple of the first positional arguments.

    Args:
      path: of the file.
      instance: where it shall run; left out, where it was compiled for.
      recompile: compile the saved StableHLO again, for ``instance`` and with this version of the passes.

    Raises:
      SavedFileError: the file is foreign, truncated, corrupt or of a newer version (each its subclass).
      CompileError: ``instance`` is another one than the program was compiled for, without ``recompile``.
    """
    exported, artifacts, weights = read_program(path)
    options = artifacts.options
    wanted = options.instance if instance is None else instance
    if recompile:
        options = dataclasses.replace(options, instance=wanted)
        artifacts = compile_module(exported.module, options, weights=exported.weights)
        return Compiled(exported, artifacts, weights)
    if wanted != options.instance:
        raise CompileError(
            f"{os.fspath(path)} was compiled for {options.tp_degree} of the "
            f"{load_instance(options.instance).cores} cores of {options.instance}, and {wanted} has "
            f"{load_instance(wanted).cores}: plan, memory and times may not hold there",
            op="load",
            fix=_other_instance(options, wanted),
        )
    return Compiled(exported, artifacts, weights)


def _other_instance(options: CompileOptions, wanted: str) -> str:
    if options.tp_degree > load_instance(wanted).cores:
        return (
            f"compile the function for {wanted} with a smaller tp_degree, or load it for {options.instance}"
        )
    return f"neuronx.load(path, instance={wanted!r}, recompile=True) compiles the saved StableHLO for it"
