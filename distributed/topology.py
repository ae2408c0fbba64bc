"""The physical ring of an instance: cores in chips, chips in a line or a circle, links between them."""

import functools
import itertools
from dataclasses import dataclass

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

    Rank r of a program is core r: programs use contiguous cores from 0 on.
    """

    instance: str
    cores: int
    cores_per_chip: int
    is_closed: bool

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
        last = self.chips if self.is_closed else self.chips - 1
        joined = [(chip, (chip + 1) % self.chips) for chip in range(last)]
        return tuple(pairs) + tuple(
            Link(kind="neuronlink", source=a, target=b) for pair in joined for a, b in (pair, pair[::-1])
        )

    def chip_of(self, core: int) -> int:
        if not 0 <= core < self.cores:
            raise ValueError(f"core {core} does not exist: {self.instance} has cores 0 to {self.cores - 1}")
        return core // self.cores_per_chip

    def path(self, source: int, target: int) -> tuple[Link, ...]:
        """The links from core to core, the short way around; empty for a core and itself."""
        return _path(self, source, target)

    def hops(self, source: int, target: int) -> int:
        return len(self.path(source, target))


def topology(instance: str | InstanceSpec) -> Topology:
    """The topology of an instance by name or record; CompileError for an unknown name."""
    spec = load_instance(instance) if isinstance(instance, str) else instance
    closed = {"pair": False, "chain": False, "ring": True}[spec.topology]
    return Topology(
        instance=spec.name, cores=spec.cores, cores_per_chip=load_links().cores_per_chip, is_closed=closed
    )


@functools.lru_cache(maxsize=4096)
def _path(ring: Topology, source: int, target: int) -> tuple[Link, ...]:
    chip, goal = ring.chip_of(source), ring.chip_of(target)
    if source == target:
        return ()
    if chip == goal:
        return (Link(kind="pair", source=source, target=target),)
    ahead = (goal - chip) % ring.chips
    if ring.is_closed:
        step, distance = (1, ahead) if 2 * ahead <= ring.chips else (-1, ring.chips - ahead)
    else:
        step, distance = (1, goal - chip) if goal > chip else (-1, chip - goal)
    stops = [(chip + step * i) % ring.chips for i in range(distance + 1)]
    return tuple(Link(kind="neuronlink", source=a, target=b) for a, b in itertools.pairwise(stops))
