"""Two simple predictors to compare with: the datasheet's roofline, and one with two fitted constants."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import least_squares

from benchmarks.rows import Measured
from kernels.hardware import load_core, load_instance

__all__ = ["datasheet_s", "fit_two_constants"]


def datasheet_s(row: Measured) -> float:
    """The longer of flops at the documented peak and bytes at the documented bandwidth."""
    return _roofline_s(row, 1.0, 1.0)


def fit_two_constants(rows: Sequence[Measured]) -> Callable[[Measured], float]:
    """A roofline with a sustained fraction of the flops and one of the bandwidth, fitted to ``rows``."""

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.array([np.log(_roofline_s(row, *np.exp(logs)) / row.seconds) for row in rows])

    # The fit has kinks where a row changes sides: the best of several starts.
    starts = [np.log([flops, memory]) for flops in (0.1, 0.3, 0.7) for memory in (0.1, 0.3, 0.7)]
    found = min((least_squares(residuals, start) for start in starts), key=lambda one: one.cost)
    return lambda row: _roofline_s(row, *np.exp(found.x))


def _roofline_s(row: Measured, flops_fraction: float, memory_fraction: float) -> float:
    core = load_core(load_instance(row.instance).family)
    total_s = 0.0
    for run in row.runs:
        work = run.work()
        compute_s = work.flops / row.cores / (core.pe.peak_flop_per_s * flops_fraction)
        memory_s = work.read_bytes / row.cores / (core.hbm.bandwidth_bytes_per_s * memory_fraction)
        total_s += run.times * max(compute_s, memory_s)
    return row.queue * total_s
