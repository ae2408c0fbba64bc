"""What ran and why: the record of each execution, and metrics in the shape of torch_xla's report."""

import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["HISTORY", "METRICS", "Execution", "Explanation", "Metrics", "explain"]

# Executions and samples that are kept; counts and sums go on beyond.
_KEPT = 10_000
_PERCENTILES = (1, 5, 10, 20, 50, 80, 90, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """One graph that ran.

    ``cause`` is what asked for it (mark_step, print, float, ...) and ``line`` the user's ``file:line``;
    ``graph`` is the hash of its structure and ``is_new`` whether it had to be compiled, which took
    ``compile_s`` seconds; ``run_s`` are seconds on this host, not predicted ones. ``difference`` says, for
    a new graph, what distinguishes it from the nearest one compiled before.
    """

    cause: str
    line: str
    graph: str
    is_new: bool
    num_ops: int
    num_inputs: int
    num_outputs: int
    input_bytes: int
    output_bytes: int
    compile_s: float
    run_s: float
    difference: str

    def __str__(self) -> str:
        compiled = f"new, compiled in {self.compile_s:.3f} s" if self.is_new else "cached"
        text = (
            f"{self.cause} at {self.line or '(unknown line)'}\n"
            f"  {self.graph}  {compiled}, ran in {self.run_s * 1e3:.1f} ms\n"
            f"  {self.num_ops} ops, {self.num_inputs} inputs ({self.input_bytes} bytes), "
            f"{self.num_outputs} outputs ({self.output_bytes} bytes)"
        )
        return f"{text}\n  {self.difference}" if self.difference else text


HISTORY: deque[Execution] = deque(maxlen=_KEPT)


class Explanation(tuple[Execution, ...]):
    """The executions so far, oldest first; prints as text."""

    __slots__ = ()

    def __str__(self) -> str:
        head = f"{len(self)} executions, {sum(one.is_new for one in self)} of newly compiled graphs"
        return "\n".join([head, *(f"{n}: {one}" for n, one in enumerate(self))])


def explain() -> Explanation:
    """Why each graph ran, where, and for a new one what changed: of this process, oldest first."""
    return Explanation(HISTORY)


class Metrics:
    """Samples (seconds, sizes) and counters of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[str, deque[float]] = {}
        self._totals: dict[str, list[float]] = {}
        self._counters: Counter[str] = Counter()

    def record(self, execution: Execution, primitives: Sequence[str]) -> None:
        """Adds what one execution says."""
        with self._lock:
            if execution.is_new:
                self._sample("CompileTime", execution.compile_s)
            self._sample("ExecuteTime", execution.run_s)
            self._sample("GraphSize", execution.num_ops)
            self._sample("InputBytes", execution.input_bytes)
            self._sample("OutputBytes", execution.output_bytes)
            self._counters["UncachedCompile" if execution.is_new else "CachedCompile"] += 1
            self._counters.update(f"jax::{name}" for name in primitives)
            self._counters[f"cause::{execution.cause}"] += 1

    def count(self, name: str) -> None:
        with self._lock:
            self._counters[name] += 1

    def clear(self) -> None:
        with self._lock:
            self._samples.clear()
            self._totals.clear()
            self._counters.clear()

    def as_dict(self) -> dict[str, Any]:
        """``{"metrics": {name: {count, total, percentiles}}, "counters": {name: count}}``; seconds, bytes."""
        with self._lock:
            metrics = {
                name: {"count": int(count), "total": total, "percentiles": _percentiles(self._samples[name])}
                for name, (count, total) in self._totals.items()
            }
            return {"metrics": metrics, "counters": dict(self._counters)}

    def report(self) -> str:
        """The same as text in the form of torch_xla's ``metrics_report``."""
        found, lines = self.as_dict(), []
        for name, metric in found["metrics"].items():
            show = _duration if name.endswith("Time") else "{:.2f}".format
            shown = "; ".join(f"{p}%={show(value)}" for p, value in metric["percentiles"].items())
            lines += [
                f"Metric: {name}",
                f"  TotalSamples: {metric['count']}",
                f"  Accumulator: {show(metric['total'])}",
                f"  Percentiles: {shown}",
            ]
        for name, value in sorted(found["counters"].items()):
            lines += [f"Counter: {name}", f"  Value: {value}"]
        return "\n".join(lines)

    def _sample(self, name: str, value: float) -> None:
        self._samples.setdefault(name, deque(maxlen=_KEPT)).append(value)
        total = self._totals.setdefault(name, [0, 0.0])
        total[0] += 1
        total[1] += value


METRICS = Metrics()


def _percentiles(samples: Sequence[float]) -> dict[int, float]:
    ordered = sorted(samples)
    return {p: ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in _PERCENTILES}


def _duration(seconds: float) -> str:
    """``01m09s969ms486.408us``: parts from the first that is not zero."""
    micros = seconds * 1e6
    parts = []
    for size, unit in ((60_000_000, "m"), (1_000_000, "s"), (1_000, "ms")):
        whole, micros = divmod(micros, size)
        if whole or parts:
            parts.append(f"{int(whole):0{3 if unit == 'ms' else 2}d}{unit}")
    return "".join(parts) + f"{micros:07.3f}us"
