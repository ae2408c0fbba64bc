"""List scheduling: an order of tasks in which the links work while the cores compute."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Task", "list_schedule", "makespan_s"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kernel (``resource`` "core") or collective ("link"), and the numbers of the tasks it waits for.

    Each resource takes its tasks one after the other, in the order in which they are listed.
    """

    resource: str
    seconds: float
    after: frozenset[int]


def makespan_s(tasks: Sequence[Task], order: Sequence[int]) -> float:
    """When the last task ends if they are started in ``order``; each must stand behind those it waits for."""
    free: dict[str, float] = {}
    ends: dict[int, float] = {}
    for number in order:
        task = tasks[number]
        start = max([free.get(task.resource, 0.0), *(ends[other] for other in task.after)])
        ends[number] = free[task.resource] = start + task.seconds
    return max(ends.values(), default=0.0)


def list_schedule(tasks: Sequence[Task]) -> list[int]:
    """An order by earliest start; of those that can start alike, what most collectives wait for.

    Further ties go by the order given, so a chain stays as it is and the result is the same every time.
    Tasks wait for earlier ones of ``tasks`` only.
    """
    behind = _link_seconds_behind(tasks)
    readers: list[list[int]] = [[] for _ in tasks]
    missing = [len(task.after) for task in tasks]
    for number, task in enumerate(tasks):
        for other in task.after:
            readers[other].append(number)
    there = [0.0] * len(tasks)
    queues = {task.resource: _Queue() for task in tasks}
    for number, task in enumerate(tasks):
        if not missing[number]:
            queues[task.resource].add(0.0, -behind[number], number)
    order: list[int] = []
    while len(order) < len(tasks):
        start, _, chosen = min(map(_Queue.first, queues.values()))
        end = start + tasks[chosen].seconds
        queues[tasks[chosen].resource].take(end)
        order.append(chosen)
        for reader in readers[chosen]:
            there[reader] = max(there[reader], end)
            missing[reader] -= 1
            if not missing[reader]:
                queues[tasks[reader].resource].add(there[reader], -behind[reader], reader)
    return order


class _Queue:
    """The tasks that one resource could take, by when they can start and how urgent they are."""

    def __init__(self) -> None:
        self._free_s = 0.0
        # What it must wait for, and what waits for it.
        self._later: list[tuple[float, float, int]] = []
        self._now: list[tuple[float, int]] = []

    def add(self, there_s: float, urgency: float, number: int) -> None:
        """A task that can start from ``there_s`` on; the least ``urgency`` comes first."""
        heapq.heappush(self._later, (there_s, urgency, number))

    def first(self) -> tuple[float, float, int]:
        """The next task: its start, its urgency and its number; of none the start is infinite."""
        while self._later and self._later[0][0] <= self._free_s:
            _, urgency, number = heapq.heappop(self._later)
            heapq.heappush(self._now, (urgency, number))
        if self._now:
            return (self._free_s, *self._now[0])
        return self._later[0] if self._later else (math.inf, 0.0, 0)

    def take(self, end_s: float) -> None:
        """Takes the first; it ends at ``end_s``."""
        heapq.heappop(self._now or self._later)
        self._free_s = end_s


def _link_seconds_behind(tasks: Sequence[Task]) -> list[float]:
    """For each task the most seconds of collectives on a way from it to the end, its own among them."""
    behind = [0.0] * len(tasks)
    for number in reversed(range(len(tasks))):
        task = tasks[number]
        behind[number] += task.seconds if task.resource == "link" else 0.0
        for other in task.after:
            behind[other] = max(behind[other], behind[number])
    return behind
