"""Looks for the plan that a clock finds fastest: among all where there are few, else near the best known."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from hlo_passes.sharding.classes import Class
from hlo_passes.sharding.problem import Problem

__all__ = ["Cut", "Space", "search"]

Cut = frozenset[Class]
"""A plan: the classes of dims that it cuts."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The plans of a problem: sets of classes of which no two meet.

    ``units`` are what a step of the search cuts or leaves whole at once.
    """

    problem: Problem
    units: tuple[Cut, ...]

    @classmethod
    def of(cls, problem: Problem) -> "Space":
        """Units are the dims that no op need move, those that only arguments may move, and single classes."""
        joined = (problem.joined(pairs) for pairs in (problem.cuts, problem.stored, ()))
        return cls(problem=problem, units=tuple(dict.fromkeys(u for j in joined for u in j.units())))

    def every(self) -> Iterator[Cut]:
        """All plans."""

        def rest(names: list[Class]) -> Iterator[Cut]:
            if not names:
                yield frozenset()
                return
            first, *others = names
            yield from rest(others)
            free = [name for name in others if name not in self.problem.meets[first]]
            yield from (cut | {first} for cut in rest(free))

        return rest(self.problem.cuttable())

    def near(self, cut: Cut) -> list[Cut]:
        """The plans that differ in one unit, those of the least seconds added up first.

        A unit is cut in place of all that meets it, or as far as nothing does; or left whole.
        """
        found = [
            plan
            for unit in self.units
            for plan in (self._beside(unit, cut), self._beside(cut, unit), cut - unit)
        ]
        return sorted(dict.fromkeys(found), key=self.problem.step_s)

    def _beside(self, first: Cut, second: Cut) -> Cut:
        """All of ``first``, and of ``second`` what does not meet it."""
        return first | {name for name in second if first.isdisjoint(self.problem.meets[name])}


def search(
    space: Space, starts: Iterable[Cut], clock: Callable[[Cut], float], limit: int
) -> tuple[dict[Cut, float], bool]:
    """Clocks the ``starts``, then all plans there are, or else those near the fastest until none is faster.

    Args:
      space: of all plans.
      starts: of which the first of the fastest is kept if nothing beats it.
      clock: seconds of a step, infinite where a plan cannot be had.
      limit: how many plans are clocked at most, beyond the starts.

    Returns:
      The seconds of each plan that was clocked, and whether those are all plans there are.
    """
    tried = {cut: clock(cut) for cut in starts}
    every = list(itertools.islice(space.every(), limit + 1))
    if len(every) <= limit:
        return tried | {cut: clock(cut) for cut in every if cut not in tried}, True
    limit += len(tried)
    best, near = None, iter(())
    while len(tried) < limit:
        fastest = min(tried, key=tried.get)
        if fastest != best:
            best, near = fastest, iter(space.near(fastest))
        cut = next((cut for cut in near if cut not in tried), None)
        if cut is None:
            break
        tried[cut] = clock(cut)
    return tried, False
