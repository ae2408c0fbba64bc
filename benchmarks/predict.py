"""``python -m benchmarks.predict FILE.csv``: predicts published rows that no constant was fitted to.

The file has the columns of benchmarks/data/published_calibration.csv: any model of the catalog, batch, length
and degree.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.baselines import datasheet_s
from benchmarks.calibrate import errors, statistics
from benchmarks.rows import Measured, measured, predict_s
from kernels.eras import DEFAULT_ERA, ERAS
from kernels.errors import CompileError, OutOfDeviceMemoryError

__all__ = ["main"]

_LINE = "{:<44} {:>8} {:>13} {:>13} {:>8} {:>14}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="CSV of published rows")
    parser.add_argument("--era", choices=ERAS, default=DEFAULT_ERA, help="whose constants predict")
    asked = parser.parse_args(arguments)
    records = list(csv.DictReader(asked.file.read_text(encoding="utf-8").splitlines()))
    rows, unknown = _read(records)
    print(_LINE.format("row", "SDK", "published ms", "predicted ms", "error", "datasheet ms"))
    done: list[tuple[Measured, float]] = []
    for row in rows:
        try:
            found = predict_s(row, asked.era)
        except OutOfDeviceMemoryError:
            print(_LINE.format(row.name, row.sdk, f"{row.seconds * 1e3:.3f}", "does not fit", "", ""))
            continue
        done.append((row, found))
        times = (f"{seconds * 1e3:.3f}" for seconds in (row.seconds, found, datasheet_s(row)))
        published, predicted, datasheet = times
        error = f"{found / row.seconds - 1:+.1%}"
        print(_LINE.format(row.name, row.sdk, published, predicted, error, datasheet))
    for name in unknown:
        print(f"{name}: not in the catalog")
    if done:
        known, predicted = zip(*done, strict=True)
        print(f"predicted: {statistics(errors(known, predicted))}")
        print(f"datasheet roofline: {statistics(errors(known, [datasheet_s(row) for row in known]))}")
    print(f"{len(done)} of {len(rows)} times, {len(records) - len(unknown)} of {len(records)} rows")
    return 0


def _read(records: Sequence[dict[str, str]]) -> tuple[list[Measured], list[str]]:
    """The times that the rows state, and the models that the catalog does not have."""
    rows: list[Measured] = []
    unknown = []
    for record in records:
        try:
            rows += measured(record)
        except CompileError:
            unknown.append(record["model"])
    return rows, unknown


if __name__ == "__main__":
    sys.exit(main())
