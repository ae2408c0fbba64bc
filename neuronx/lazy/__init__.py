"""``neuronx.lazy``: eager JAX code, recorded and compiled behind the scenes; called, it makes the context."""

import sys
from types import ModuleType
from typing import Any

from neuronx.environment import environment
from neuronx.lazy.debugging import DebugSession
from neuronx.lazy.report import HISTORY, METRICS, Execution, Explanation, explain
from neuronx.lazy.session import CACHE, GraphBudgetError, Session, StrictError, mark_step, strict
from neuronx.lazy.tensor import LazyArray

__all__ = [
    "Execution",
    "Explanation",
    "GraphBudgetError",
    "LazyArray",
    "Session",
    "StrictError",
    "clear_graphs",
    "explain",
    "mark_step",
    "metrics",
    "metrics_report",
    "reset",
    "strict",
]


def metrics() -> dict[str, Any]:
    """``{"metrics": {name: {count, total, percentiles}}, "counters": {name: count}}``; seconds and bytes."""
    return METRICS.as_dict()


def metrics_report() -> str:
    """The metrics as text, in the form of torch_xla's report."""
    return METRICS.report()


def reset() -> None:
    """Forgets what explain() and metrics() say; compiled graphs stay."""
    HISTORY.clear()
    METRICS.clear()


def clear_graphs() -> None:
    """Forgets the compiled graphs of the process."""
    CACHE.clear()


class _Lazy(ModuleType):
    """The module, callable: ``neuronx.lazy(...)`` is a context and ``neuronx.lazy.explain()`` its story."""

    def __call__(self, *args: Any, **options: Any) -> Session:
        return (DebugSession if environment().eager_debug else Session)(*args, **options)


sys.modules[__name__].__class__ = _Lazy
