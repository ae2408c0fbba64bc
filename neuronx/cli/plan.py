"""``neuronx plan``: where and how to serve a model: fits, latencies, throughput and price in one table."""

import argparse
import csv
import dataclasses
import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from kernels import hardware
from kernels.comparators import COMPARATORS
from kernels.eras import DEFAULT_ERA, ERAS
from neuronx.driver import AUTO_CASTS
from neuronx.models.names import MODELS
from neuronx.planning import PRECISIONS, Deployment, Request, best, deployments

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "plan"
HELP = "compare instances, cores, batches and types for a model: what fits, how fast, at what price"

_GIB = 2**30
_ROOFLINE = "(roofline)"
_WIDTH = 100
_LIMITS = "Windows of attention (Mistral 7B v0.1, StarCoder2, Phi-3) and LongRoPE are not modelled."
_WORDS = frozenset({"instance", "type", "fits", "best"})
# Two instances of one chip differ in the host only: the cheaper one stands for both.
_DEFAULT_INSTANCES = tuple(name for name in hardware.INSTANCES if name != "inf2.8xlarge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of the verb."""
    # argparse would break names at their dashes.
    names = textwrap.fill(", ".join(MODELS), _WIDTH, break_on_hyphens=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"models:\n{names}\n\n{_LIMITS}"
    parser.add_argument(
        "--model", required=True, help="one of those below, or module:function of yours, importable from here"
    )
    parser.add_argument(
        "--arguments",
        nargs="*",
        default=[],
        metavar="TYPE",
        help="of each argument of your function, as f32[batch,128]: batch stands for each of --batch",
    )
    parser.add_argument(
        "--instance",
        nargs="+",
        choices=(*hardware.ALL_INSTANCES, *COMPARATORS),
        metavar="INSTANCE",
        default=list(_DEFAULT_INSTANCES),
        help=f"instance sizes, or machines to compare with at their roofline: {', '.join(COMPARATORS)}",
    )
    parser.add_argument("--tp", nargs="+", type=int, help="cores of one copy (default: all documented)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="sequences at once")
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=PRECISIONS,
        default=["bf16"],
        help="of all, or in 8 bits of a decoder's matrices, the rest in bf16; a function has its own",
    )
    parser.add_argument(
        "--auto-cast",
        choices=AUTO_CASTS,
        default=AUTO_CASTS[0],
        help="which f32 ops run in bf16; encoders and classifiers then store their matrices in it",
    )
    parser.add_argument("--prompt-len", type=int, default=128, help="tokens read (default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens written (default %(default)s)")
    parser.add_argument("--latency-limit-ms", type=_above_zero, help="longest time for a token of the best")
    parser.add_argument("--era", choices=ERAS, default=DEFAULT_ERA, help="whose constants predict")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def main(args: argparse.Namespace) -> int:
    """Prints a row for each combination; 1 if none fits or none is as fast as asked, else 0.

    Raises:
      CompileError: an unknown model, instance or era, or more positions than the model has.
    """
    request = Request(
        model=args.model,
        prompt_len=args.prompt_len,
        new_tokens=args.new_tokens,
        arguments=tuple(args.arguments),
    )
    rows = list(
        deployments(
            request,
            instances=args.instance,
            degrees=args.tp,
            batches=args.batch,
            dtypes=args.dtype,
            era=args.era,
            auto_cast=args.auto_cast,
        )
    )
    limit_s = None if args.latency_limit_ms is None else args.latency_limit_ms / 1e3
    marks = best(rows, latency_limit_s=limit_s)
    _PRINT[args.format](rows, [" ".join(name for name, row in marks.items() if row is one) for one in rows])
    if args.format == "table":
        print("", *_notes(rows, marks, args.era), sep="\n")
    if missing := _missing(rows, marks, args.latency_limit_ms):
        print(f"neuronx plan: {missing}", file=sys.stderr)
        return 1
    return 0


def _missing(rows: Sequence[Deployment], marks: Mapping[str, Deployment], limit_ms: float | None) -> str:
    """Why nothing could be marked, and what to ask for instead; nothing where a choice was made."""
    if not rows:
        return "no instance has that many cores: ask for a smaller --tp or a larger --instance"
    able = [row for row in rows if row.fits]
    if not able:
        return "nothing fits: ask for a larger --instance, a smaller --batch or --dtype, or shorter lengths"
    fastest = best(able).get("fastest")
    if marks or fastest is None:
        return ""
    what = _what(fastest)
    return (
        f"no {what} comes within {limit_ms:g} ms; the soonest within {fastest.latency_s * 1e3:.3f} ms, "
        f"on {fastest.instance} with tp {fastest.tp} and batch {fastest.batch}"
    )


def _what(row: Deployment) -> str:
    return "result" if row.tpot_s is None else "token"


def _notes(rows: Sequence[Deployment], marks: Mapping[str, Deployment], era: str) -> Iterator[str]:
    """What was chosen and why, what the columns hold, and where the prices are from."""
    for name, row in marks.items():
        reasons = {
            "cheapest": f"${_number(row.usd_per_million, 3)} for a million {_what(row)}s",
            "fastest": f"{_number(row.latency_s * 1e3, 3)} ms for a {_what(row)}",
            "smallest": "of the cheapest instance the fewest cores and the least batch that will do",
        }
        yield f"{name}: {row.instance}, tp {row.tp}, batch {row.batch}, {row.dtype}: {reasons[name]}"
    yield f"times: era {era}, launches and transfers included; per s and $: all copies of the instance busy"
    if any(row.is_roofline for row in rows):
        yield f"{_ROOFLINE}: datasheet peaks, nothing taken off for software, launches or links"
    prices: defaultdict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(row.instance for row in rows):
        table = "comparators" if name in COMPARATORS else name
        for place, key, value, _, source, kind in hardware.rows(table):
            if (place, key) == (name, "price_usd_per_hour"):
                prices[f"{kind}: {source}"].append(f"{name} {value}")
    for source, found in prices.items():
        yield f"on demand, $ an hour, as their source has them: {', '.join(found)} ({source})"


def _print_table(rows: Sequence[Deployment], marks: Sequence[str]) -> None:
    head = (
        "instance", "tp", "batch", "type", "copies", "fits", "TTFT ms", "TPOT ms", "per s", "HBM GiB",
        "MFU", "MBU", "$/million", "best",
    )  # fmt: skip
    lines = [head, *(_cells(row, mark) for row, mark in zip(rows, marks, strict=True))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.ljust(width) if name in _WORDS else cell.rjust(width)
            for name, cell, width in zip(head, line, widths, strict=True)
        )
        print("  ".join(cells).rstrip())


def _cells(row: Deployment, mark: str) -> tuple[str, ...]:
    mark = _ROOFLINE if row.is_roofline else mark
    start = (row.instance, str(row.tp), str(row.batch), row.dtype, str(row.replicas))
    if not row.fits:
        return (*start, "no", *["-"] * 7, mark)
    return (
        *start,
        "yes",
        _number(row.ttft_s * 1e3, 2),
        "-" if row.tpot_s is None else _number(row.tpot_s * 1e3, 3),
        f"{row.per_s:.1f}",
        f"{row.hbm_bytes / _GIB:.2f}",
        f"{row.mfu:.1%}",
        f"{row.mbu:.1%}",
        _number(row.usd_per_million, 3),
        mark,
    )


def _number(value: float, decimals: int) -> str:
    """With so many decimals; small ones with three digits, so that none is shown as nothing."""
    return f"{value:.{decimals}f}" if value >= 0.1 else f"{value:.3g}"


def _print_csv(rows: Sequence[Deployment], marks: Sequence[str]) -> None:
    names = [field.name for field in dataclasses.fields(Deployment)]
    writer = csv.writer(sys.stdout)
    writer.writerow([*names, "best"])
    for row, mark in zip(rows, marks, strict=True):
        writer.writerow([*(getattr(row, name) for name in names), mark])


def _print_json(rows: Sequence[Deployment], marks: Sequence[str]) -> None:
    found = [dataclasses.asdict(row) | {"best": mark} for row, mark in zip(rows, marks, strict=True)]
    print(json.dumps(found, indent=1))


_PRINT = {"table": _print_table, "csv": _print_csv, "json": _print_json}
