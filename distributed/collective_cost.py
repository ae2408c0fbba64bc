"""What a collective costs, its steps folded over the real links, and the cheapest algorithm for it."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distributed.collective_steps import ALGORITHMS, Step, is_legal, steps
from distributed.program import Collective
from distributed.topology import Link, Topology
from kernels.hardware import AlgorithmSpec, LinkSpec

__all__ = ["CollectiveCost", "cheapest", "collective_cost"]

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class CollectiveCost:
    """``link_bytes`` is what all links together carry; ``busy_s`` how long each of them carries it."""

    seconds: float
    steps: int
    link_bytes: float
    algorithm: str
    busy_s: Mapping[Link, float]


def collective_cost(
    collective: Collective, size_bytes: int, topology: Topology, links: LinkSpec
) -> CollectiveCost:
    """Time of one collective inside a running program, by its ``algorithm``; no launch is in it.

    A ring visits the ranks of a group in the order of their cores. Where neighbours of the ring are
    not neighbours on the machine (the wrap-around of an open chain, groups with a stride) the transfer
    takes every link on its way. All groups run at once and share links. In a step each core sends and
    receives at ``pair_bytes_per_s`` at most, which is what two cores were measured to reach: an algorithm
    saves steps, never bytes below what must enter and leave a core. From chip to chip a transfer is cut into
    packets, and each packet is moved by one DMA engine: the first takes that engine's rate, the others
    follow at that of the pair.

    Args:
      collective: kind, groups and algorithm; buffer numbers are not looked at.
      size_bytes: the operands of one rank together.
      topology: where the ranks are.
      links: bandwidths and latency of a hop.

    Raises:
      ValueError: a kind that does not exist, an algorithm it does not have, or a rank beyond the
        topology's cores.
    """
    return _cost(collective.kind, collective.algorithm, collective.groups, size_bytes, topology, links)


def cheapest(
    kind: str, groups: Groups, size_bytes: int, topology: Topology, links: LinkSpec,
    available: AlgorithmSpec,
) -> CollectiveCost:  # fmt: skip
    """By the cheapest algorithm that the kind has, the groups allow and ``available`` lists for them.

    Equal prices go to the first in the order of ``ALGORITHMS``; a permute, which has no choice, is a ring.

    Raises:
      ValueError: ``available`` leaves nothing for such groups.
    """
    if kind == "collective_permute":
        return _cost(kind, "ring", groups, size_bytes, topology, links)
    whole = all(len({topology.chip_of(rank) for rank in group}) == 1 for group in groups)
    scope = "chip" if whole else "instance"
    names = [
        name
        for name in ALGORITHMS[kind]
        if scope in getattr(available, name) and is_legal(name, groups, topology)
    ]
    if not names:
        raise ValueError(f"no algorithm of {kind} is available for groups {groups}")
    costs = (_cost(kind, name, groups, size_bytes, topology, links) for name in names)
    return min(costs, key=lambda found: found.seconds)


@functools.lru_cache(maxsize=1024)
def _cost(
    kind: str, algorithm: str, groups: Groups, size_bytes: int, topology: Topology, links: LinkSpec
) -> CollectiveCost:
    played = steps(kind, algorithm, groups, size_bytes, links.packet_bytes)
    return _add_up(algorithm, played, topology, links)


def _add_up(algorithm: str, played: Sequence[Step], topology: Topology, links: LinkSpec) -> CollectiveCost:
    seconds, carried = 0.0, 0.0
    busy: defaultdict[Link, float] = defaultdict(float)
    for step in played:
        load: defaultdict[Link, float] = defaultdict(float)
        sent: defaultdict[int, float] = defaultdict(float)
        received: defaultdict[int, float] = defaultdict(float)
        crossing = 0.0
        for (source, target), size in step.transfers.items():
            path = topology.path(source, target)
            sent[source] += size if path else 0.0
            received[target] += size if path else 0.0
            if topology.chip_of(source) != topology.chip_of(target):
                crossing = max(crossing, size)
            for link in path:
                load[link] += size
        link_s = {link: size / link.bandwidth_bytes_per_s(links) for link, size in load.items()}
        core_s = max((*sent.values(), *received.values()), default=0.0) / links.pair_bytes_per_s
        packet = min(crossing, links.packet_bytes)
        chips_s = packet / links.engine_bytes_per_s + (crossing - packet) / links.pair_bytes_per_s
        seconds += step.repeats * (
            step.hops(topology) * links.hop_latency_s + max(core_s, chips_s, *link_s.values(), 0.0)
        )
        carried += step.repeats * sum(load.values())
        for link, busy_s in link_s.items():
            busy[link] += step.repeats * busy_s
    return CollectiveCost(
        seconds=seconds,
        steps=sum(step.repeats for step in played if step.transfers),
        link_bytes=carried,
        algorithm=algorithm,
        busy_s=dict(busy),
    )
