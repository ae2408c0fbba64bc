"""The integer program of a plan: which classes to shard so that the most seconds are saved."""

import math
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field, replace

import numpy as np

from hlo_passes.sharding.classes import Class

__all__ = ["Joined", "Problem"]


@dataclass(kw_only=True)
class Problem:
    """What sharding each class is worth, and what stands against it.

    Attributes:
      whole_s: seconds the ops take with nothing sharded.
      gain_s: seconds saved by sharding a class, collectives deducted.
      bonus_s: what sharding it is worth besides.
      meets: the classes that cannot be sharded with it, itself among them where it meets itself.
      cuts: (class before, class after) a view -> seconds to gather what is sharded before and not after.
      stored: those of them that lead from an argument to its only reader.
      whole: classes that cannot be sharded.
      freed_bytes: HBM a core is spared, of which ``must_free_bytes`` are needed.
    """

    whole_s: float = 0.0
    gain_s: dict[Class, float] = field(default_factory=lambda: defaultdict(float))
    bonus_s: dict[Class, float] = field(default_factory=lambda: defaultdict(float))
    meets: dict[Class, set[Class]] = field(default_factory=lambda: defaultdict(set))
    cuts: dict[tuple[Class, Class], float] = field(default_factory=lambda: defaultdict(float))
    stored: set[tuple[Class, Class]] = field(default_factory=set)
    whole: frozenset[Class] = frozenset()
    freed_bytes: dict[Class, int] = field(default_factory=lambda: defaultdict(int))
    must_free_bytes: int = 0

    def for_time(self) -> "Problem":
        """The same where nothing counts but seconds."""
        return replace(self, bonus_s=defaultdict(float))

    def cuttable(self) -> list[Class]:
        """The classes that can be sharded, in the order of the program."""
        return [name for name in self.names() if name not in self.whole and name not in self.meets[name]]

    def names(self) -> list[Class]:
        """All classes, in the order of the program."""
        cut = (name for pair in self.cuts for name in pair)
        return list(dict.fromkeys([*self.gain_s, *self.bonus_s, *cut]))

    def step_s(self, chosen: Set[Class]) -> float:
        """Seconds of all ops and collectives under a plan, one after the other."""
        moved = [price for (a, b), price in self.cuts.items() if a in chosen and b not in chosen]
        # A set has no order of its own: fsum's result does not depend on one.
        gained = (self.gain_s.get(name, 0.0) for name in chosen)
        return self.whole_s - math.fsum(gained) + math.fsum(moved)

    def value_s(self, chosen: Set[Class]) -> float:
        """What a plan is worth in all: what it saves, and its bonus."""
        return self.whole_s - self.step_s(chosen) + math.fsum(self.bonus_s.get(name, 0.0) for name in chosen)

    def joined(self, pairs: Iterable[tuple[Class, Class]]) -> "Joined":
        """The same with the classes of each pair sharded alike."""
        return Joined(self, pairs)

    def solve(self) -> frozenset[Class]:
        """The classes of largest total worth of which no two meet (exact, by HiGHS).

        Where no plan frees enough HBM the best is returned without regard to it: the check of what fits
        says so, with a table.
        """
        names = self.cuttable()
        if not names:
            return frozenset()
        found = self._solve(names)
        return replace(self, must_free_bytes=0).solve() if found is None else found

    def _solve(self, names: list[Class]) -> frozenset[Class] | None:
        from scipy.optimize import Bounds, LinearConstraint, milp

        number = {name: i for i, name in enumerate(names)}
        cuts = [(pair, price) for pair, price in self.cuts.items() if pair[0] in number]
        rows = list(self._rows(number, cuts))
        worth = [self.gain_s[name] + self.bonus_s[name] for name in names] + [-price for _, price in cuts]
        found = milp(
            -np.array(worth) / (max(map(abs, worth)) or 1.0),
            integrality=(np.arange(len(worth)) < len(names)).astype(int),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(_matrix(rows, len(worth)), ub=[limit for _, limit in rows])]
            if rows
            else [],
            options={"mip_rel_gap": 1e-9},
        )
        if not found.success:
            return None
        return frozenset(name for name, x in zip(names, found.x, strict=False) if x > 0.5)

    def _rows(
        self, number: dict[Class, int], cuts: list[tuple[tuple[Class, Class], float]]
    ) -> Iterable[tuple[dict[int, float], float]]:
        """The constraints: coefficients by variable, and what their sum must not exceed."""
        pairs = {(number[a], number[b]) for a in number for b in self.meets[a] if b in number}
        for a, b in sorted(pair for pair in pairs if pair[0] < pair[1]):
            yield {a: 1.0, b: 1.0}, 1.0
        for at, ((before, after), _) in enumerate(cuts, start=len(number)):
            # sharded(before) - sharded(after) <= gathered
            yield {number[before]: 1.0, at: -1.0} | ({number[after]: -1.0} if after in number else {}), 0.0
        if self.must_free_bytes > 0:
            # In shares of what is needed, so that all rows are of like size.
            yield {i: -self.freed_bytes[name] / self.must_free_bytes for name, i in number.items()}, -1.0


class Joined:
    """A problem in which the classes of each pair are one."""

    def __init__(self, problem: Problem, pairs: Iterable[tuple[Class, Class]]) -> None:
        homes = _homes(pairs)
        self._members: dict[Class, list[Class]] = defaultdict(list)
        joined = Problem(whole_s=problem.whole_s, must_free_bytes=problem.must_free_bytes)
        for name in problem.names():
            home = homes.get(name, name)
            self._members[home].append(name)
            joined.gain_s[home] += problem.gain_s[name]
            joined.bonus_s[home] += problem.bonus_s[name]
            joined.freed_bytes[home] += problem.freed_bytes[name]
            joined.meets[home] |= {homes.get(other, other) for other in problem.meets[name]}
        for (before, after), price in problem.cuts.items():
            pair = homes.get(before, before), homes.get(after, after)
            if pair[0] != pair[1]:
                joined.cuts[pair] += price
        joined.whole = frozenset(homes.get(name, name) for name in problem.whole)
        self._problem = joined

    def solve(self) -> frozenset[Class]:
        """The best plan, in the classes of the original problem."""
        return frozenset(name for home in self._problem.solve() for name in self._members[home])

    def units(self) -> list[frozenset[Class]]:
        """What is sharded alike and can be, in the classes of the original problem."""
        return [frozenset(self._members[home]) for home in self._problem.cuttable()]


def _homes(pairs: Iterable[tuple[Class, Class]]) -> dict[Class, Class]:
    """One class for all that pairs join, directly or by others; what is in no pair is left out."""
    homes: dict[Class, Class] = {}

    def find(name: Class) -> Class:
        while (up := homes.setdefault(name, name)) != name:
            homes[name] = name = homes[up]
        return name

    for before, after in pairs:
        homes[find(after)] = find(before)
    return {name: find(name) for name in homes}


def _matrix(rows: list[tuple[dict[int, float], float]], width: int) -> object:
    from scipy.sparse import coo_array

    entries = [(at, column, value) for at, (row, _) in enumerate(rows) for column, value in row.items()]
    at, columns, values = zip(*entries, strict=True)
    return coo_array((values, (at, columns)), shape=(len(rows), width)).tocsr()
