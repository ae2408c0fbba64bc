"""Eras: the fitted constants are the calibration's output, and their tables are complete and sourced."""

import subprocess
import sys
from pathlib import Path

import pytest

from kernels.eras import DEFAULT_ERA, ERAS, core_of, links_of, load_era
from kernels.errors import CompileError
from kernels.hardware import load_core, load_links, read_tables

_ROOT = Path(__file__).parent.parent


def test_the_ideal_era_is_the_datasheet() -> None:
    core = core_of("ideal")
    assert core.pe.sustained_fraction == core.issue.overlap_fraction == 1.0
    assert core.dma.engine_bytes_per_s == core.dma.engine_peak_bytes_per_s
    assert links_of("ideal").hop_latency_s < load_links().hop_latency_s


def test_no_era_beats_the_datasheet() -> None:
    ideal, fitted = load_era("ideal"), load_era(DEFAULT_ERA)
    assert fitted.sustained_fraction <= ideal.sustained_fraction
    assert fitted.engine_bytes_per_s <= ideal.engine_bytes_per_s
    assert 0 < fitted.overlap_fraction <= ideal.overlap_fraction
    assert fitted.kernel_start_s >= ideal.kernel_start_s
    assert fitted.hop_latency_s >= ideal.hop_latency_s


def test_few_constants_are_fitted_and_each_says_how() -> None:
    fitted = read_tables("fitted.toml")[DEFAULT_ERA]
    assert len(fitted) <= 5
    for entry in fitted.values():
        assert (entry["kind"], entry["source"]) == ("fitted", "python -m benchmarks.calibrate")


def test_what_an_era_does_not_say_is_the_core_tables() -> None:
    assert load_era(DEFAULT_ERA).sustained_fraction == load_core().pe.sustained_fraction
    assert core_of(DEFAULT_ERA).hbm == load_core().hbm


def test_unknown_eras_are_refused() -> None:
    with pytest.raises(CompileError, match=ERAS[0]):
        load_era("sdk-1.0")


@pytest.mark.slow
def test_shipped_constants_are_the_calibrations_output() -> None:
    command = [sys.executable, "-m", "benchmarks.calibrate", "--check"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
