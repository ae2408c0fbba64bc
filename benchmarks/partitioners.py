"""Our partitioner against Shardy's and XLA's: bytes moved and collectives on the same annotated programs.

``python -m benchmarks.partitioners [--generated N] [--json FILE]`` prints a table and, at the end, on which
share of the programs ours moves no more than theirs. A program counts for a foreign partitioner only where
that one can partition it. All are compared as they leave the partitioner, before any pass that combines
collectives; all start from what Shardy's propagation makes of the same annotations.
"""

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import jax

from benchmarks.annotated_programs import PROGRAMS
from benchmarks.foreign_partitioners import PARTITIONERS
from benchmarks.traffic import Traffic, traffic_of
from hlo_passes import canonicalize, shard
from hlo_passes.ir import ir, parse

__all__ = ["compare", "main", "shares"]

# The random programs' loops run 0 to 5 times.
_GENERATED_TURNS = 3

Row = dict[str, object]
Source = tuple[str, int, int, str]  # name, cores, turns of loops, module


def _ours(text: str, cores: int) -> ir.Module:
    module = parse(text)
    shard.run(module, shard.Options(tp=cores))
    return module


_ALL: dict[str, Callable[[str, int], ir.Module]] = {"ours": _ours, **PARTITIONERS}


def _by_hand(number: int) -> Source:
    program = PROGRAMS[number]
    text = _lowered(program.function, program.arguments())
    return program.name, program.cores, program.turns, text


def _generated(seed: int) -> Source:
    from tests.random_programs import generate

    program = generate(seed, annotated=True)
    return (
        f"random program {seed}",
        program.cores,
        _GENERATED_TURNS,
        _lowered(program.function, program.specs()),
    )


def _lowered(function: Callable, arguments: Sequence[jax.ShapeDtypeStruct]) -> str:
    """Canonical StableHLO, the same for all, with the annotations and the number of partitions."""
    traced = jax.jit(function, keep_unused=True).trace(*arguments)
    module = parse(traced.lower(lowering_platforms=("cpu",)).compiler_ir("stablehlo").operation.get_asm())
    canonicalize.run(module, canonicalize.Options())
    return str(module)


def _measure(name: str, source: Source) -> Traffic | str:
    _, cores, turns, text = source
    try:
        return traffic_of(_ALL[name](text, cores), cores, turns)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


class _Isolated:
    """Calls functions in a process of its own, which they may end."""

    def __init__(self) -> None:
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"))

    def __call__(self, function: Callable, *arguments: object) -> object:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = self._start()
            return "ends the process"

    def close(self) -> None:
        self._pool.shutdown()


def compare(sources: Iterator[Source]) -> Iterator[Row]:
    """A row per program: its name, cores and, per partitioner, bytes and collectives, or why it failed."""
    isolated = _Isolated()
    try:
        for source in sources:
            row: Row = {"program": source[0], "cores": source[1]}
            for name in _ALL:
                found = isolated(_measure, name, source)
                if isinstance(found, Traffic):
                    row[name] = {"bytes": found.bytes, "count": found.count, "collectives": found.collectives}
                else:
                    row[name] = {"failed": found}
            yield row
    finally:
        isolated.close()


def shares(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Per foreign partitioner: how many programs it can do, and ours with no more bytes, no more collectives.

    A program on which ours fails and the other does not counts against ours. ``best`` is, of those that
    can do a program, the one that moves least.
    """
    return {
        name: _share([(row["ours"], _other(row, name)) for row in rows]) for name in (*PARTITIONERS, "best")
    }


def _other(row: Row, name: str) -> dict:
    if name != "best":
        return row[name]
    able = [row[other] for other in PARTITIONERS if "failed" not in row[other]]
    return min(able, key=lambda one: (one["bytes"], one["count"])) if able else {"failed": "all"}


def _share(pairs: Sequence[tuple[dict, dict]]) -> dict[str, float]:
    able = [(ours, theirs) for ours, theirs in pairs if "failed" not in theirs]
    done = [(ours, theirs) for ours, theirs in able if "failed" not in ours]
    count = max(len(able), 1)
    return {
        "programs": len(able),
        "no_more_bytes": sum(ours["bytes"] <= theirs["bytes"] for ours, theirs in done) / count,
        "no_more_collectives": sum(ours["count"] <= theirs["count"] for ours, theirs in done) / count,
        "bytes_ours": sum(ours["bytes"] for ours, _ in done),
        "bytes_theirs": sum(theirs["bytes"] for _, theirs in done),
    }


def _line(row: Row) -> str:
    cells = []
    for name in _ALL:
        found = row[name]
        cells.append("-" if "failed" in found else f"{found['bytes']:,} in {found['count']}")
    able = [row[name]["bytes"] for name in PARTITIONERS if "failed" not in row[name]]
    mine = row["ours"].get("bytes")
    mark = "" if mine is not None and (not able or mine <= min(able)) else "  more"
    return f"{row['program']:<40} {row['cores']:>5} " + " ".join(f"{cell:>22}" for cell in cells) + mark


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generated", type=int, default=100, help="random programs besides those by hand")
    parser.add_argument("--seed", type=int, default=0, help="of the first random program")
    parser.add_argument("--json", type=Path, help="write all rows and shares there")
    args = parser.parse_args(arguments)
    made = [functools.partial(_by_hand, number) for number in range(len(PROGRAMS))]
    made += [functools.partial(_generated, args.seed + number) for number in range(args.generated)]
    print(f"{'program (bytes a core receives, collectives)':<40} cores " + " ".join(f"{n:>22}" for n in _ALL))
    rows = []
    for row in compare(make() for make in made):
        rows.append(row)
        print(_line(row), flush=True)
    found = shares(rows)
    for name, share in found.items():
        print(
            f"against {name} on the {share['programs']} programs it can do: no more bytes on "
            f"{share['no_more_bytes']:.1%}, no more collectives on {share['no_more_collectives']:.1%}, "
            f"{share['bytes_ours']:,} bytes for its {share['bytes_theirs']:,}"
        )
    print(f"ours fails on {sum('failed' in row['ours'] for row in rows)} of {len(rows)}")
    if args.json:
        args.json.write_text(json.dumps({"programs": rows, "shares": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
