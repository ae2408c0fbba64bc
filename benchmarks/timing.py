"""Timing alternatives in turn in one process: medians, ratios, and what the machine's memory gives."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Row", "arguments", "in_turn", "report", "streaming_bytes_per_s"]

_STREAM_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of several alternatives, ours first.

    ``seconds`` are medians. ``bytes_read`` and ``flops`` are of one run, 0 where they say nothing.
    """

    name: str
    seconds: Mapping[str, float]
    bytes_read: float = 0
    flops: float = 0


def in_turn(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each step, all in turn, after one round that compiles.

    A step ends when what it returns is computed.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step())
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def streaming_bytes_per_s(repeats: int) -> float:
    """What reading a large f32 array gives, with both cores: XLA's sum of it, the median."""
    array = jnp.ones(_STREAM_BYTES // 4, jnp.float32)
    total = jax.jit(lambda x: x.reshape(2, -1, 1024).sum(axis=1))
    return _STREAM_BYTES / in_turn({"sum": lambda: total(array)}, repeats)["sum"]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options all these benchmarks share."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--repeats", type=int, default=11, help="measurements of each, the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def report(rows: Sequence[Row], *, stream: float, as_json: bool) -> None:
    """Prints each row: our time, each alternative's over ours, and our rates.

    Args:
      stream: bytes per second from ``streaming_bytes_per_s``.
    """
    if as_json:
        found = [vars(row) | {"seconds": dict(row.seconds)} for row in rows]
        print(json.dumps({"streaming_bytes_per_s": stream, "rows": found}))
        return
    print(f"memory streams {stream / 1e9:.1f} GB/s (XLA's sum of an f32 array)")
    for row in rows:
        (_, ours_s), *others = row.seconds.items()
        line = f"{row.name:<44} {ours_s * 1e3:9.3f} ms"
        if row.bytes_read:
            line += f" {row.bytes_read / ours_s / 1e9:6.1f} GB/s ({row.bytes_read / ours_s / stream:4.0%})"
        if row.flops:
            line += f" {row.flops / ours_s / 1e9:6.0f} GFLOP/s"
        print(line + "".join(f"  {name} {seconds / ours_s:5.1f} x" for name, seconds in others))
