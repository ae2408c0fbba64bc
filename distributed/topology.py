"""The physical ring of an instance: cores in chips, chips in a line or a circle, links between them."""

import functools
import itertools
import math
from dataclasses import dataclass

from kernels.errors import CompileError
from kernels.hardware import InstanceSpec, LinkSpec, load_instance, load_links

__all__ = ["Link", "Topology", "topology"]


@dataclass(frozen=True, kw_only=True, order=True)
class Link:
    """One direction of a connection: ``pair`` joins the cores of a chip, ``neuronlink`` joins chips.

    ``source`` and ``target`` number cores for a pair, chips for a NeuronLink.
    """

    kind: str
    source: int
    target: int

    @property
    def name(self) -> str:
        what = "core" if self.kind == "pair" else "chip"
        return f"{what} {self.source} -> {what} {self.target}"

    def bandwidth_bytes_per_s(self, links: LinkSpec) -> float:
        return {"pair": links.pair_bytes_per_s, "neuronlink": links.chip_link_bytes_per_s}[self.kind]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Cores 0..cores-1, ``cores_per_chip`` to a chip; chips in a line, its ends joined if ``is_closed``.

    With several ``rows`` the chips are a torus, numbered row by row: every row and column is a ring.

    Rank r of a program is core r: programs use contiguous cores from 0 on.
    """

    instance: str
    cores: int
    cores_per_chip: int
    is_closed: bool
    rows: int = 1

    @property
    def chips(self) -> int:
        return self.cores // self.cores_per_chip

    @property
    def links(self) -> tuple[Link, ...]:
        """Every link of the instance, both directions, pairs first."""
        pairs = [
            Link(kind="pair", source=a, target=b)
            for a in range(self.cores)
            for b in range(self.cores)
            if a != b and self.chip_of(a) == self.chip_of(b)
        ]
        joined = self._row_links() + (self._column_links() if self.rows > 1 else [])
        return tuple(pairs) + tuple(
            Link(kind="neuronlink", source=a, target=b) for pair in joined for a, b in (pair, pair[::-1])
        )

    def _row_links(self) -> list[tuple[int, int]]:
        width = self.chips // self.rows
        last = width if self.is_closed else width - 1
        starts = [row * width for row in range(self.rows)]
        return [(start + at, start + (at + 1) % width) for start in starts for at in range(last)]

    def _column_links(self) -> list[tuple[int, int]]:
        width = self.chips // self.rows
        return [(chip, (chip + width) % self.chips) for chip in range(self.chips)]

    def chip_of(self, core: int) -> int:
        if not 0 <= core < self.cores:
            raise CompileError(
                f"core {core} does not exist: {self.instance} has cores 0 to {self.cores - 1}",
                fix="use a larger instance or fewer cores",
            )
        return core // self.cores_per_chip

    def path(self, source: int, target: int) -> tuple[Link, ...]:
        """The links from core to core, the short way around; empty for a core and itself."""
        return _path(self, source, target)

    def hops(self, source: int, target: int) -> int:
        return len(self.path(source, target))


def topology(instance: str | InstanceSpec) -> Topology:
    """The topology of an instance by name or record; CompileError for an unknown name."""
    spec = load_instance(instance) if isinstance(instance, str) else instance
    closed = {"pair": False, "chain": False, "ring": True, "torus": True}[spec.topology]
    return Topology(
        instance=spec.name,
        cores=spec.cores,
        cores_per_chip=load_links(spec.family).cores_per_chip,
        is_closed=closed,
        rows=math.isqrt(spec.chips) if spec.topology == "torus" else 1,
    )


@functools.lru_cache(maxsize=4096)
def _path(ring: Topology, source: int, target: int) -> tuple[Link, ...]:
    chip, goal = ring.chip_of(source), ring.chip_of(target)
    if source == target:
        return ()
    if chip == goal:
        return (Link(kind="pair", source=source, target=target),)
    width = ring.chips // ring.rows
    row, column = divmod(chip, width)
    goal_row, goal_column = divmod(goal, width)
    # Along the row first, then along the column.
    stops = [row * width + at for at in _stops(column, goal_column, width, ring.is_closed)]
    stops += [at * width + goal_column for at in _stops(row, goal_row, ring.rows, ring.is_closed)[1:]]
    return tuple(Link(kind="neuronlink", source=a, target=b) for a, b in itertools.pairwise(stops))


def _stops(start: int, goal: int, count: int, is_closed: bool) -> list[int]:
    """The places passed on a line, or the short way around a ring, both ends included."""
    ahead = (goal - start) % count
    if is_closed:
        step, distance = (1, ahead) if 2 * ahead <= count else (-1, count - ahead)
    else:
        step, distance = (1, goal - start) if goal > start else (-1, start - goal)
    return [(start + step * i) % count for i in range(distance + 1)]
