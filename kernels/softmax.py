"""Softmax: maximum, subtract, exponential, sum, divide in one kernel that keeps its rows in SBUF."""

from collections.abc import Sequence

from kernels.elementwise import EPILOGUE

__all__ = ["legal"]

# In this order, with anything elementwise between (masks, scales, casts).
_STEPS = ("reduce", "subtract", "exponential", "reduce", "divide")


def legal(kinds: Sequence[str]) -> bool:
    """The five steps in order, exactly two reductions, one exponential, the rest elementwise."""
    if not all(kind in EPILOGUE or kind == "reduce" for kind in kinds):
        return False
    return list(kinds).count("reduce") == 2 and list(kinds).count("exponential") == 1 and _has_steps(kinds)


def _has_steps(kinds: Sequence[str]) -> bool:
    left = iter(kinds)
    return all(step in left for step in _STEPS)
