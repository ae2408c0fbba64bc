"""The environment variables: the only place that reads them, each once in one table."""

import os
from dataclasses import dataclass
from pathlib import Path

from kernels.errors import CompileError

__all__ = ["VARIABLES", "Environment", "environment"]

VARIABLES = {
    "NEURONX_DEBUG": "1: check after every pass that the module is legal, poison padding (default 0)",
    "NEURONX_EAGER_DEBUG": "1: run op by op, each op checked, as in neuronx.debug (default 0)",
    "NEURONX_CACHE_DIR": "where compilations are kept (default ~/.cache/neuronx); empty: nowhere",
    "NEURONX_DUMP": "a directory: write the module after every pass, runnable, and the program as text",
}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the environment asks for. ``xla_flags`` are XLA's own: what it compiles depends on them."""

    debug: int
    eager_debug: bool
    dump: Path | None
    cache: Path | None
    xla_flags: str


def environment() -> Environment:
    """Reads the variables now; raises CompileError where a switch is no integer."""
    dump, cache = os.environ.get("NEURONX_DUMP"), os.environ.get("NEURONX_CACHE_DIR", "~/.cache/neuronx")
    return Environment(
        debug=_switch("NEURONX_DEBUG"),
        eager_debug=_switch("NEURONX_EAGER_DEBUG") > 0,
        dump=Path(dump) if dump else None,
        cache=Path(cache).expanduser() if cache else None,
        xla_flags=os.environ.get("XLA_FLAGS", ""),
    )


def _switch(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdigit():
        raise CompileError(f"{name} is {text!r}, expected 0 or 1", op="environment", fix="unset it")
    return int(text)
