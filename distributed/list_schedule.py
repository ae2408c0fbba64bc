"""List scheduling: an order of tasks in which the links work while the cores compute."""

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
    free: dict[str, float] = {}
    ready = [number for number, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:

        def urgency(number: int) -> tuple[float, float, int]:
            start = max(there[number], free.get(tasks[number].resource, 0.0))
            return start, -behind[number], number

        chosen = min(ready, key=urgency)
        end = urgency(chosen)[0] + tasks[chosen].seconds
        free[tasks[chosen].resource] = end
        ready.remove(chosen)
        order.append(chosen)
        for reader in readers[chosen]:
            there[reader] = max(there[reader], end)
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    return order


def _link_seconds_behind(tasks: Sequence[Task]) -> list[float]:
    """For each task the most seconds of collectives on a way from it to the end, its own among them."""
    behind = [0.0] * len(tasks)
    for number in reversed(range(len(tasks))):
        task = tasks[number]
        behind[number] += task.seconds if task.resource == "link" else 0.0
        for other in task.after:
            behind[other] = max(behind[other], behind[number])
    return behind
