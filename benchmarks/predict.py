"""``python -m benchmarks.predict FILE.csv``: predicts published rows that no constant was fitted to.

The file has the columns of benchmarks/data/published_calibration.csv: any model of the catalog, batch, length
and degree. Every time and throughput that a row states is predicted; benchmarks/rows.py says what each means.
A column "steps" may say how many a model that makes images takes.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.baselines import datasheet_s
from benchmarks.calibrate import errors, statistics
from benchmarks.rows import Measured, measured, predict_s
from kernels.eras import DEFAULT_ERA, ERAS
from kernels.errors import CompileError, OutOfDeviceMemoryError

__all__ = ["main"]

_LINE = "{:<44} {:<13} {:>3} {:>6} {:<8} {:>12} {:>12} {:>8} {:>12}"
_HEAD = ("figure", "instance", "tp", "length", "SDK", "published", "predicted", "error", "datasheet")
_FIGURES = ("latency", "tpot", "p99", "ttft", "throughput")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "file", type=Path, help="CSV with the columns of benchmarks/data/published_calibration.csv"
    )
    parser.add_argument("--era", choices=ERAS, default=DEFAULT_ERA, help="whose constants predict")
    asked = parser.parse_args(arguments)
    try:
        records = list(csv.DictReader(asked.file.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeError, csv.Error) as error:
        parser.error(f"{asked.file}: {error}")
    print(_LINE.format(*_HEAD))
    done: list[tuple[Measured, float]] = []
    figures = read = 0
    for number, record in enumerate(records, 1):
        rows = _stated(number, record)
        read, figures = read + bool(rows), figures + len(rows)
        done += [(row, found) for row in rows if (found := _predicted(row, asked.era)) is not None]
    for what in _FIGURES:
        _print_statistics(what, [(row, found) for row, found in done if row.what == what])
    _print_statistics("all", done)
    print(
        f"{len(done)} of {figures} figures, {read} of {len(records)} rows; times in ms, throughputs a second"
    )
    return 0


def _stated(number: int, record: dict[str | None, Any]) -> list[Measured]:
    """The figures of one record; says so where it has none or cannot be read."""
    named = {str(key).strip().lower(): text for key, text in record.items()}
    label = f"row {number} ({named.get('model')})"
    try:
        rows = measured(record)
    except CompileError as error:
        print(f"{label}: {error.message}")
        return []
    if not rows:
        print(f"{label}: neither a time nor a throughput")
    return rows


def _predicted(row: Measured, era: str) -> float | None:
    """The seconds of one figure, printed; None where it cannot be."""
    label = (row.name, row.instance, row.cores, row.length or "", row.sdk)
    try:
        found = predict_s(row, era)
    except OutOfDeviceMemoryError:
        print(_LINE.format(*label, row.figure(row.seconds), "does not fit", "", ""))
        return None
    except CompileError as error:
        print(_LINE.format(*label, row.figure(row.seconds), error.message, "", ""))
        return None
    figures = (row.figure(seconds) for seconds in (row.seconds, found, datasheet_s(row)))
    published, predicted, datasheet = figures
    print(_LINE.format(*label, published, predicted, f"{row.error(found):+.1%}", datasheet), flush=True)
    return found


def _print_statistics(what: str, done: Sequence[tuple[Measured, float]]) -> None:
    if not done:
        return
    rows, predicted = zip(*done, strict=True)
    datasheet = statistics(errors(rows, [datasheet_s(row) for row in rows]))
    print(f"{what}: {statistics(errors(rows, predicted))}; datasheet roofline: {datasheet}")


if __name__ == "__main__":
    sys.exit(main())
