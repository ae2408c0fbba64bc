"""What users name in text: functions as ``module:function``, types as ``f32[8,128]``, files of StableHLO."""

import importlib
import operator
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from hlo_passes.ir import ir, parse
from kernels.dtypes import dtype as find_dtype
from kernels.errors import CompileError
from neuronx.frontend import user_line

__all__ = ["argument_type", "find_function", "read_module", "traced"]

_TYPE = re.compile(r"(\w+)\[([\w,\s]*)\]")


def find_function(target: str) -> Callable[..., Any]:
    """The function called ``module:function``, which may be ``module:object.function``.

    The module is importable from the current directory as by ``python -m``.

    Raises:
      CompileError: there is no such module or name in it.
    """
    module, _, name = target.partition(":")
    sys.path.insert(0, "")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise CompileError(
            f"{target} cannot be imported: {error}", fix="give module:function, importable from here"
        ) from error
    finally:
        sys.path.remove("")


def read_module(name: str) -> ir.Module:
    """The StableHLO of a file, or of standard input where it is called ``-``.

    Raises:
      CompileError: it cannot be read, or is malformed.
    """
    try:
        return parse(sys.stdin.read() if name == "-" else Path(name).read_text())
    except ir.MLIRError as error:
        raise CompileError(f"{name} is malformed: {error}", fix="mend the line named above") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CompileError(f"{name} cannot be read: {error}", fix="give a readable text file") from error


def argument_type(text: str, **sizes: int) -> jax.ShapeDtypeStruct:
    """The type written as ``f32[8,128]``; ``sizes`` are what names in the shape stand for.

    Raises:
      CompileError: it is no type, or holds a name that ``sizes`` has not.
    """
    match = _TYPE.fullmatch(text)
    dims = [part.strip() for part in match[2].split(",") if part.strip()] if match else []
    if match is None or not all(dim.isdecimal() or dim in sizes for dim in dims):
        names = "".join(f", {name}" for name in sizes)
        raise CompileError(
            f"{text!r} is no type", fix=f"write the element type and the shape (numbers{names}): f32[8,128]"
        )
    shape = tuple(int(dim) if dim.isdecimal() else sizes[dim] for dim in dims)
    return jax.ShapeDtypeStruct(shape, find_dtype(match[1]).numpy)


@contextmanager
def traced(target: str, types: Sequence[str]) -> Iterator[None]:
    """Within it, the function ``target`` is traced for arguments of these types.

    Raises:
      CompileError: it does not take them.
    """
    try:
        yield
    except CompileError:
        raise
    except (TypeError, ValueError) as error:
        # Where it was not even entered, the innermost line is that of the call in here.
        line = user_line(error)
        raise CompileError(
            f"{target} does not take ({', '.join(types)}): {error}",
            location="" if line.startswith(str(Path(__file__).parent)) else line,
            fix="give the type of each of its arguments, as f32[8,128]",
        ) from error
