"""The environment variables: the only place that reads them, each once in one table."""

import os
from dataclasses import dataclass
from pathlib import Path

from kernels.errors import CompileError

__all__ = ["VARIABLES", "Environment", "environment"]

VARIABLES = {
    "NEURONX_DEBUG": "1: check after every pass that the module is legal, poison padding (default 0)",
    "NEURONX_DUMP": "a directory: write the module after every pass, runnable, and the program as text",
}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the environment asks for."""

    debug: int
    dump: Path | None


def environment() -> Environment:
    """Reads the variables now; raises CompileError where NEURONX_DEBUG is no integer."""
    debug, dump = os.environ.get("NEURONX_DEBUG", "0"), os.environ.get("NEURONX_DUMP")
    if not debug.isdigit():
        raise CompileError(f"NEURONX_DEBUG is {debug!r}, expected 0 or 1", op="environment", fix="unset it")
    return Environment(debug=int(debug), dump=Path(dump) if dump else None)
