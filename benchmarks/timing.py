"""Timing alternatives in turn in one process: medians, ratios, and what the machine's memory gives."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Row", "Taken", "arguments", "in_turn", "report", "streaming_bytes_per_s"]

_STREAM_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Seconds of one alternative. Where other work shares the machine, the best says more of it."""

    median_s: float
    best_s: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of several alternatives, ours first.

    ``bytes_read`` and ``flops`` are of one run of ours, 0 where they say nothing.
    """

    name: str
    taken: Mapping[str, Taken]
    bytes_read: float = 0
    flops: float = 0


def in_turn(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Taken]:
    """The seconds of each step, all in turn, after one round that compiles.

    A step ends when what it returns is computed. At each turn it runs once before it is timed: threads of the
    one before may still be giving back its memory, and the processor's caches hold what that one read.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            jax.block_until_ready(step())
            start = time.perf_counter()
            jax.block_until_ready(step())
            taken[name].append(time.perf_counter() - start)
    return {
        name: Taken(median_s=statistics.median(seconds[1:]), best_s=min(seconds[1:]))
        for name, seconds in taken.items()
    }


def streaming_bytes_per_s(repeats: int) -> float:
    """What reading a large f32 array gives, with all cores: XLA's sum of it, the best of all runs."""
    array = jnp.ones(_STREAM_BYTES // 4, jnp.float32)
    total = jax.jit(lambda x: x.reshape(2, -1, 1024).sum(axis=1))
    return _STREAM_BYTES / in_turn({"sum": lambda: total(array)}, repeats)["sum"].best_s


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options all these benchmarks share."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--repeats", type=int, default=11, help="measurements of each, the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def report(rows: Sequence[Row], *, stream: float, as_json: bool) -> None:
    """Prints a line for each alternative: median and best, how many times ours that is, and ours' rates.

    Args:
      stream: bytes per second from ``streaming_bytes_per_s``.
    """
    if as_json:
        print(json.dumps({"streaming_bytes_per_s": stream, "rows": [asdict(row) for row in rows]}))
        return
    print(f"memory streams {stream / 1e9:.1f} GB/s (XLA's sum of an f32 array)")
    for row in rows:
        ours = next(iter(row.taken.values()))
        rates = ""
        if row.bytes_read:
            rates += f", at best {row.bytes_read / ours.best_s / 1e9:.1f} GB/s"
            rates += f" ({row.bytes_read / ours.best_s / stream:.0%})"
        if row.flops:
            rates += f", {row.flops / ours.best_s / 1e9:.0f} GFLOP/s"
        print(row.name + rates)
        for name, taken in row.taken.items():
            print(
                f"  {name:<14} median {taken.median_s * 1e3:9.3f} ms {taken.median_s / ours.median_s:5.1f} x"
                f"   best {taken.best_s * 1e3:9.3f} ms {taken.best_s / ours.best_s:5.1f} x"
            )
