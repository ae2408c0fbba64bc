"""``python -m benchmarks.calibrate``: fits the constants of era sdk-2.18 to the published calibration rows.

Writes kernels/hw/fitted.toml and prints every row's prediction, fitted and with its model left out, beside
two baselines. ``--check`` writes nothing and fails where the file differs.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from benchmarks.baselines import datasheet_s, fit_two_constants
from benchmarks.rows import Measured, calibration_rows, predict_s
from kernels.eras import DEFAULT_ERA, Era, load_era

__all__ = ["PRIORS", "errors", "fit", "leave_one_model_out", "main", "statistics", "to_toml"]

# Constant: documented or measured value, its spread as a factor, lower and upper bound. Where rows say little
# about a constant (hops, once the only model on several cores is left out) it stays near its value.
PRIORS: Mapping[str, tuple[float, float, float, float]] = {
    # nki-dma-bandwidth-guide.rst: 17 GB/s achieved on Trn1, 27.2 theoretical.
    "engine_bytes_per_s": (17e9, 1.15, 5e9, 27.2e9),
    # Nothing is published: from one after the other to side by side.
    "overlap_fraction": (0.5, 3.0, 0.02, 1.0),
    # nki_perf_guide.rst: ~1300 ns observed where DMA is in the chain.
    "kernel_start_s": (1.3e-6, 2.0, 1e-7, 2e-5),
    # intranode-collective-comm.rst: 1-2 us; the middle of the logarithms.
    "hop_latency_s": (1.414e-6, 1.414, 5e-7, 4e-6),
    # nccom-test.rst @v2.12.2 holds 52 us beyond its hops, the fastest call from PyTorch takes 200 us
    # (LLMServingSim's profile of an inf2 core); the middle of the logarithms.
    "launch_s": (102e-6, 2.0, 1e-5, 1e-3),
}
# A row off by this factor counts as much as a constant off by its spread.
_ROW_SPREAD = 1.1
# The times have kinks where another engine bounds: from long steps, which see past them, to short ones.
_STEPS = (0.3, 0.1, 0.03)
_DIGITS = 3


def fit(rows: Sequence[Measured]) -> Era:
    """The constants that meet the rows best, each drawn to its documented value (least squares of logs)."""
    table = np.array(list(PRIORS.values()))
    centres, spreads = np.log(table[:, 0]), np.log(table[:, 1])
    # In spreads from the documented value, counted from 1 so that steps relative to them are alike.
    lower, upper = ((np.log(table[:, side]) - centres) / spreads + 1 for side in (2, 3))

    def values(at: np.ndarray) -> np.ndarray:
        return np.exp(centres + spreads * (at - 1))

    def residuals(at: np.ndarray) -> np.ndarray:
        era = _era(values(at))
        off = [math.log(predict_s(row, era) / row.seconds) / math.log(_ROW_SPREAD) for row in rows]
        return np.concatenate([off, at - 1])

    at = np.ones(len(table))
    for step in _STEPS:
        found = least_squares(residuals, at, bounds=(lower, upper), diff_step=step, xtol=1e-4, ftol=1e-5)
        # A start must lie inside the bounds.
        at = np.clip(found.x, lower + 1e-3, upper - 1e-3)
    return _era(float(f"{value:.{_DIGITS}g}") for value in values(at))


def _era(values: Iterable[float]) -> Era:
    return replace(load_era(DEFAULT_ERA), **dict(zip(PRIORS, map(float, values), strict=True)))


def errors(rows: Sequence[Measured], predicted: Sequence[float]) -> list[float]:
    """Signed relative errors."""
    return [row.error(got) for row, got in zip(rows, predicted, strict=True)]


def statistics(found: Sequence[float]) -> str:
    """Median, 90th percentile, maximum and number of absolute errors."""
    sizes = np.abs(found)
    return (
        f"median {np.median(sizes):.1%}, P90 {np.percentile(sizes, 90):.1%}, "
        f"max {sizes.max():.1%}, n {len(sizes)}"
    )


def leave_one_model_out(rows: Sequence[Measured]) -> list[float]:
    """Each row's time with constants fitted to the other models' rows."""
    eras = {
        model: fit([row for row in rows if row.model != model])
        for model in dict.fromkeys(row.model for row in rows)
    }
    return [predict_s(row, eras[row.model]) for row in rows]


def to_toml(era: Era) -> str:
    """The text of kernels/hw/fitted.toml."""
    lines = [
        "# What AWS's compiler and runtime achieved. Written by `python -m benchmarks.calibrate`.",
        "",
        f'["{DEFAULT_ERA}"]',
    ]
    for name in PRIORS:
        value = getattr(era, name)
        lines.append(
            f'{name} = {{ value = {value!r}, kind = "fitted", source = "python -m benchmarks.calibrate" }}'
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the file differs")
    parser.add_argument("--quick", action="store_true", help="do not leave models out")
    asked = parser.parse_args(arguments)
    rows = calibration_rows()
    fitted = [row for row in rows if row.is_fitted]
    era = fit(fitted)
    text, path = to_toml(era), Path(str(files("kernels"))) / "hw" / "fitted.toml"
    if asked.check:
        same = path.read_text(encoding="utf-8") == text
        print(f"{path.name}: {'as fitted' if same else 'differs from the fit'}")
        return 0 if same else 1
    path.write_text(text, encoding="utf-8")
    print(text)
    _print_rows(rows, era, [] if asked.quick else leave_one_model_out(fitted))
    return 0


def _print_rows(rows: Sequence[Measured], era: Era, left_out: Sequence[float]) -> None:
    predicted = [predict_s(row, era) for row in rows]
    fitted = [row for row in rows if row.is_fitted]
    out = dict(zip((row.name for row in fitted), left_out, strict=False))
    simple = fit_two_constants(fitted)
    print(f"{'row':<34} {'SDK':<8} {'published':>10} {'fitted':>20} {'model left out':>20}")
    for row, got in zip(rows, predicted, strict=True):
        other = _beside(row, out[row.name]) if row.name in out else ""
        print(
            f"{row.name:<34} {row.sdk:<8} {row.figure(row.seconds):>10} {_beside(row, got):>20} {other:>20}"
        )
    pairs = [(row, got) for row, got in zip(rows, predicted, strict=True) if row.is_fitted]
    print("fitted:                ", statistics([row.error(got) for row, got in pairs]))
    if left_out:
        print("model left out:        ", statistics(errors(fitted, left_out)))
    print("two-constant roofline: ", statistics(errors(fitted, [simple(row) for row in fitted])))
    print("datasheet roofline:    ", statistics(errors(fitted, [datasheet_s(row) for row in fitted])))


def _beside(row: Measured, seconds: float) -> str:
    return f"{row.figure(seconds)} ({row.error(seconds):+.1%})"


if __name__ == "__main__":
    sys.exit(main())
