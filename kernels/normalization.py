"""Layer, RMS and batch normalisation: statistics, reciprocal root and scaling in one kernel."""

from collections.abc import Sequence

from kernels.elementwise import EPILOGUE

__all__ = ["legal"]

_BATCH_NORMS = frozenset({"batch_norm_grad", "batch_norm_inference", "batch_norm_training"})
_ROOTS = frozenset({"rsqrt", "sqrt", "power"})


def legal(kinds: Sequence[str]) -> bool:
    """At least one reduction, then exactly one root, then a multiply or divide; or one batch_norm op."""
    if not all(kind in EPILOGUE or kind == "reduce" for kind in kinds):
        return False
    if any(kind in _BATCH_NORMS for kind in kinds):
        return True
    roots = [index for index, kind in enumerate(kinds) if kind in _ROOTS]
    if len(roots) != 1:
        return False
    before, after = kinds[: roots[0]], kinds[roots[0] + 1 :]
    scales = any(kind in ("multiply", "divide") for kind in after)
    return "reduce" in before and "reduce" not in after and scales
