"""The equal layers of a program, found in its timeline."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from distributed.events import Run, Timeline

__all__ = ["LayerRow", "distances", "layer_rows"]

# Layers have at least so many runs, and a group of them so large a share of all; how many distances between
# equal runs are tried.
_LEAST_RUNS, _LEAST_SHARE, _DISTANCES = 3, 0.1, 12


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One of several stretches of a program that do the same work, from its first run to the next one's.

    ``group`` numbers the kinds of stretches, ``number`` those of a group. ``collective_s`` are the seconds of
    its collectives.
    """

    group: int
    number: int
    start_s: float
    seconds: float
    collective_s: float
    flops: float
    bytes: float


def layer_rows(timeline: Timeline) -> list[LayerRow]:
    """Stretches of the program that do the same work several times in a row: unrolled equal layers.

    The last of a row may end differently, in up to a quarter of its runs.

    A program may have several such groups, for example a forward and a backward pass. Empty where nothing
    repeats. What stands before, between and behind the groups is in none of them.
    """
    runs = sorted(timeline.runs, key=lambda run: run.number)
    numbers: dict[tuple, int] = {}
    works = [numbers.setdefault((run.kind, run.name, run.location, run.flops), len(numbers)) for run in runs]
    rows: list[LayerRow] = []
    for group, (start, period, count) in enumerate(_repeats(works)):
        bounds = [start + period * number for number in range(count + 1)]
        times = [runs[at].start_s if at < len(runs) else timeline.total_s for at in bounds]
        for number, (first, end) in enumerate(itertools.pairwise(bounds)):
            rows.append(_layer(group, number, times[number + 1] - times[number], runs[first:end]))
    return rows


def _repeats(works: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, period, count) of what repeats, in order: the longest first, then what is left beside it."""
    found, parts = [], [(0, len(works))]
    while parts:
        first, end = parts.pop()
        part = works[first:end]
        start, period, count = max(
            (_longest(part, period) for period in distances(part)),
            key=lambda repeat: (repeat[1] * repeat[2], repeat[2]),
            default=(0, 0, 0),
        )
        if period < _LEAST_RUNS or period * count < _LEAST_SHARE * len(works):
            continue
        start += first
        found.append((start, period, count))
        parts += [(first, start), (start + period * count, end)]
    return sorted(found)


def distances(works: Sequence[int]) -> list[int]:
    """How far equal ones of a row lie apart: the most frequent distances to the one before."""
    last: dict[int, int] = {}
    counted: Counter[int] = Counter()
    for at, work in enumerate(works):
        if work in last:
            counted[at - last[work]] += 1
        last[work] = at
    return [distance for distance, _ in counted.most_common(_DISTANCES)]


def _longest(works: Sequence[int], period: int) -> tuple[int, int, int]:
    """Where, and how often, ``period`` runs repeat most often one after the other."""
    best, start = (0, period, 0), 0
    for at in range(period, len(works) + 1):
        if at == len(works) or works[at] != works[at - period]:
            # The last layer of many ends in something else, such as the norm of the whole model.
            count = min(at - start + period // 4, len(works) - start) // period
            if count > max(best[2], 1):
                best = (start, period, count)
            start = at - period + 1
    return best


def _layer(group: int, number: int, seconds: float, runs: Sequence[Run]) -> LayerRow:
    return LayerRow(
        group=group,
        number=number,
        start_s=runs[0].start_s,
        seconds=seconds,
        collective_s=sum(run.end_s - run.start_s for run in runs if run.kind == "collective"),
        flops=sum(run.flops for run in runs),
        bytes=sum(run.bytes for run in runs if run.kind == "kernel"),
    )
