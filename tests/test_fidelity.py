"""Predictions against published figures: the reach on rows left out, and the page as generated."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import predict
from benchmarks.baselines import datasheet_s, fit_two_constants
from benchmarks.calibrate import errors
from benchmarks.rows import calibration_rows, catalog_name, predict_s
from distributed.timeline import time_program
from kernels.eras import DEFAULT_ERA, ERAS, load_era

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def fitted():
    return [row for row in calibration_rows() if row.is_fitted and row.cores == 1]


def test_rows_are_read_as_published() -> None:
    rows = {row.name: row for row in calibration_rows()}
    assert len(rows) == 11
    # Four requests in flight on two cores: a core's interval is half of the latency.
    assert rows["resnet50 interval b8"].seconds == pytest.approx(7.283e-3 / 2)
    assert rows["Llama-2-13b tpot b8"].seconds == pytest.approx(14.89663e-3)
    assert not any(row.is_fitted for row in rows.values() if row.model == "opt-13b" or row.what == "ttft")


def test_single_core_rows_are_met_and_beat_both_baselines(fitted) -> None:
    found = np.abs(errors(fitted, [predict_s(row, DEFAULT_ERA) for row in fitted]))
    simple = fit_two_constants(fitted)
    assert np.median(found) <= 0.08 and found.max() <= 0.2
    for baseline in (simple, datasheet_s):
        assert np.median(found) < np.median(np.abs(errors(fitted, [baseline(row) for row in fitted])))


def test_no_prediction_beats_the_datasheet(fitted) -> None:
    for row in fitted:
        for era in (DEFAULT_ERA, "ideal"):
            assert predict_s(row, era) >= datasheet_s(row)


def test_no_faster_part_makes_a_model_slower(fitted) -> None:
    for row, name in itertools.product(fitted, ERAS):
        era, program = load_era(name), row.build()
        base = time_program(program, row.instance, era=era).total_s
        for change in (
            {"engine_bytes_per_s": 2 * era.engine_bytes_per_s},
            {"overlap_fraction": 1.0},
            {"sustained_fraction": 1.0},
            {"kernel_start_s": era.kernel_start_s / 2},
        ):
            faster_s = time_program(program, row.instance, era=replace(era, **change)).total_s
            assert faster_s <= base * (1 + 1e-9), (row.name, name, change)
        assert time_program(program, row.instance, era=era, sharers=1).total_s <= base * (1 + 1e-9)


@pytest.mark.slow
def test_no_faster_part_makes_a_step_of_24_cores_slower() -> None:
    [row] = [one for one in calibration_rows() if one.name == "Llama-2-13b tpot b8"]
    program = row.build()
    for name in ERAS:
        era = load_era(name)
        base = time_program(program, row.instance, era=era).total_s
        for constant in ("hop_latency_s", "kernel_start_s"):
            faster = replace(era, **{constant: getattr(era, constant) / 2})
            assert time_program(program, row.instance, era=faster).total_s <= base * (1 + 1e-9)
        faster = replace(era, engine_bytes_per_s=2 * era.engine_bytes_per_s)
        assert time_program(program, row.instance, era=faster).total_s < base


@pytest.mark.parametrize(
    ("published", "name"),
    [
        ("Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b"),
        ("gpt2-xl", "gpt2-xl"),
        ("bert-large-cased-whole-word-masking", "bert-large-cased"),
    ],
)
def test_models_are_found_by_the_names_they_are_published_under(published, name) -> None:
    assert catalog_name(published) == name


def test_rows_of_a_file_are_predicted_and_what_is_unknown_is_named(tmp_path, capsys) -> None:
    shipped = (_ROOT / "benchmarks" / "data" / "published_calibration.csv").read_text().splitlines()
    [row] = [line for line in shipped if line.startswith("resnet50,") and ",,1," in line]
    given = tmp_path / "rows.csv"
    others = (row.replace("resnet50", "albert-base-v2"), row.replace("0.83,", ","))
    given.write_text("\n".join([shipped[0], row, *others]))
    assert predict.main([str(given)]) == 0
    out = capsys.readouterr().out
    [known] = [one for one in calibration_rows() if one.name == "resnet50 latency b1"]
    assert f"{predict_s(known, DEFAULT_ERA) * 1e3:.3f}" in out
    assert "albert-base-v2: not in the catalog" in out and "1 of 1 times, 2 of 3 rows" in out


@pytest.mark.slow
def test_the_page_is_as_generated() -> None:
    command = [sys.executable, "-m", "benchmarks.fidelity", "--check"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
