"""``neuronx hw [INSTANCE]``: every hardware number with its unit, kind and source, and the element types.

A count, a fraction and a name have "-" for a unit.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from kernels.comparators import COMPARATORS
from kernels.dtypes import DTYPES
from kernels.hardware import ALL_INSTANCES, FAMILIES, TABLES, load_instance, rows

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "hw"
HELP = "print every hardware number with unit, kind (documented, measured, fitted, assumed) and source"

# What every instance has besides its core and its own table.
_SHARED = ("links", "collectives", "era sdk-2.18", "era ideal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = (*ALL_INSTANCES, *COMPARATORS)
    parser.add_argument(
        "instance",
        nargs="?",
        choices=known,
        metavar="INSTANCE",
        help=f"{', '.join(known)}; all if left out",
    )


def main(args: argparse.Namespace) -> int:
    """Prints one aligned row a number, then one an element type; 0 on success."""
    tables, hidden = TABLES, set()
    if args.instance in COMPARATORS:
        tables, hidden = ("comparators",), {*COMPARATORS} - {args.instance}
    elif args.instance:
        spec = load_instance(args.instance)
        tables, hidden = (FAMILIES[spec.family], *_SHARED, spec.name), {*FAMILIES} - {spec.family}
    numbers = [
        (table, key, _text(value), unit or "-", kind, source)
        for name in tables
        for table, key, value, unit, source, kind in rows(name)
        if table not in hidden
    ]
    _print_table(("table", "key", "value", "unit", "kind", "source"), numbers)
    if args.instance in COMPARATORS:
        return 0
    print()
    types = [(found.name, str(found.bits), found.support, found.note) for found in DTYPES.values()]
    _print_table(("element type", "bits", "support", "note"), types)
    return 0


def _print_table(headings: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    for line in (headings, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
