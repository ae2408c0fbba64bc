"""What a collective costs: its ring folded over the real links, step by step."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from distributed.program import Collective
from distributed.topology import Link, Topology
from kernels.hardware import LinkSpec

__all__ = ["CollectiveCost", "collective_cost"]

Edge = tuple[int, int]
"""A transfer from core to core."""


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
    """Time of one collective inside a running program; no launch is in it.

    The ring visits the ranks of a group in the order of their cores. Where neighbours of the ring are
    not neighbours on the machine (the wrap-around of an open chain, groups with a stride) the transfer
    takes every link on its way. All groups run at once and share links. In a step each core sends and
    receives at ``pair_bytes_per_s`` at most, which is what two cores were measured to reach.

    Args:
      collective: kind and groups; buffer numbers are not looked at.
      size_bytes: the operands of one rank together.
      topology: where the ranks are.
      links: bandwidths and latency of a hop.

    Raises:
      ValueError: a kind that does not exist, or a rank beyond the topology's cores.
    """
    if collective.kind not in _RULES:
        raise ValueError(f"unknown collective {collective.kind!r}; known: {', '.join(_RULES)}")
    return _cost(collective.kind, collective.groups, size_bytes, topology, links)


@functools.lru_cache(maxsize=1024)
def _cost(
    kind: str, groups: tuple[tuple[int, ...], ...], size_bytes: int, topology: Topology, links: LinkSpec
) -> CollectiveCost:
    algorithm, rule = _RULES[kind]
    # Only a permute's pairs and a broadcast's root depend on the order in a group.
    ordered = groups if kind.startswith("collective_") else [sorted(group) for group in groups]
    return _add_up(algorithm, rule(ordered, size_bytes, links), topology, links)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """Transfers that run at the same time (bytes by edge), ``repeats`` times one after the other.

    ``rings`` are closed cycles of edges in which a rank waits for the one before it only.
    """

    transfers: Mapping[Edge, float]
    repeats: int = 1
    rings: tuple[tuple[Edge, ...], ...] = ()

    def hops(self, topology: Topology) -> float:
        """Hops one after the other in one repeat.

        In a ring a chunk takes all edges but one to come around, so a long edge (the way back along an
        open chain) is waited for once a round and not in every step. Elsewhere the longest path counts.
        """
        if not self.rings:
            return max((topology.hops(*edge) for edge in self.transfers), default=0)
        lengths = [[topology.hops(*edge) for edge in ring] for ring in self.rings]
        return max((sum(hops) - min(hops)) / (len(hops) - 1) for hops in lengths)


def _add_up(algorithm: str, steps: Sequence[_Step], topology: Topology, links: LinkSpec) -> CollectiveCost:
    seconds, carried = 0.0, 0.0
    busy: defaultdict[Link, float] = defaultdict(float)
    for step in steps:
        load: defaultdict[Link, float] = defaultdict(float)
        sent: defaultdict[int, float] = defaultdict(float)
        received: defaultdict[int, float] = defaultdict(float)
        for (source, target), size in step.transfers.items():
            path = topology.path(source, target)
            sent[source] += size if path else 0.0
            received[target] += size if path else 0.0
            for link in path:
                load[link] += size
        link_s = {link: size / link.bandwidth_bytes_per_s(links) for link, size in load.items()}
        core_s = max((*sent.values(), *received.values()), default=0.0) / links.pair_bytes_per_s
        seconds += step.repeats * (
            step.hops(topology) * links.hop_latency_s + max(core_s, *link_s.values(), 0.0)
        )
        carried += step.repeats * sum(load.values())
        for link, busy_s in link_s.items():
            busy[link] += step.repeats * busy_s
    return CollectiveCost(
        seconds=seconds,
        steps=sum(step.repeats for step in steps if step.transfers),
        link_bytes=carried,
        algorithm=algorithm,
        busy_s=dict(busy),
    )


def _around(groups: Sequence[Sequence[int]], chunk: Callable[[int], float], passes: int) -> list[_Step]:
    """Every rank hands a chunk to the next, ``passes`` times around; ``chunk`` is bytes by group size."""
    steps, done = [], 1
    for length in sorted({len(group) for group in groups} - {1}):
        running = [group for group in groups if len(group) >= length]
        rings = tuple(tuple(_edges(group, 1)) for group in running)
        transfers = {edge: chunk(len(ring)) for ring in rings for edge in ring}
        steps.append(_Step(transfers=transfers, repeats=passes * (length - done), rings=rings))
        done = length
    return steps


def _edges(group: Sequence[int], distance: int) -> list[Edge]:
    return [(rank, group[(i + distance) % len(group)]) for i, rank in enumerate(group)]


def _all_reduce(groups: Sequence[Sequence[int]], size: int, links: LinkSpec) -> list[_Step]:
    return _around(groups, lambda ranks: size / ranks, 2)


def _all_gather(groups: Sequence[Sequence[int]], size: int, links: LinkSpec) -> list[_Step]:
    return _around(groups, lambda ranks: size, 1)


def _reduce_scatter(groups: Sequence[Sequence[int]], size: int, links: LinkSpec) -> list[_Step]:
    return _around(groups, lambda ranks: size / ranks, 1)


def _all_to_all(groups: Sequence[Sequence[int]], size: int, links: LinkSpec) -> list[_Step]:
    longest = max((len(group) for group in groups), default=1)
    return [
        _Step(
            transfers={
                edge: size / len(group)
                for group in groups
                if distance < len(group)
                for edge in _edges(group, distance)
            }
        )
        for distance in range(1, longest)
    ]


def _collective_permute(groups: Sequence[Sequence[int]], size: int, links: LinkSpec) -> list[_Step]:
    return [_Step(transfers={(source, target): size for source, target in groups if source != target})]


def _collective_broadcast(groups: Sequence[Sequence[int]], size: int, links: LinkSpec) -> list[_Step]:
    """The root's data runs down the ring in packets: the first fills the pipe, the rest stream."""
    chains = [_from_root(group) for group in groups if len(group) > 1]
    packet = min(size, links.packet_bytes)
    longest = max((len(chain) for chain in chains), default=0)
    fill = [
        _Step(transfers={chain[hop]: packet for chain in chains if hop < len(chain) - 1})
        for hop in range(longest - 1)
    ]
    stream = {edge: size - packet for chain in chains for edge in chain[:-1]}
    return [*fill, _Step(transfers=stream | {chain[-1]: size for chain in chains})]


def _from_root(group: Sequence[int]) -> list[Edge]:
    """The edges from the root (the first of the group) around the ring to its last rank."""
    ring = sorted(group)
    start = ring.index(group[0])
    return list(itertools.pairwise(ring[start:] + ring[:start]))


_RULES: Mapping[str, tuple[str, Callable[[Sequence[Sequence[int]], int, LinkSpec], list[_Step]]]] = {
    "all_reduce": ("ring: reduce-scatter, all-gather", _all_reduce),
    "all_gather": ("ring", _all_gather),
    "reduce_scatter": ("ring", _reduce_scatter),
    "all_to_all": ("ring: one distance a step", _all_to_all),
    "collective_permute": ("direct", _collective_permute),
    "collective_broadcast": ("ring: packets in a pipeline", _collective_broadcast),
}
