"""The algorithms of collectives as steps: which core sends how much to which, and what runs at once."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from distributed.topology import Topology

__all__ = ["ALGORITHMS", "Edge", "Step", "is_legal", "steps"]

Edge = tuple[int, int]
"""A transfer from core to core."""

Groups = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Transfers that run at the same time (bytes by edge), ``repeats`` times one after the other.

    ``rings`` are closed cycles of edges in which a rank waits for the one before it only, each with the
    number of edges a chunk takes on its way.
    """

    transfers: Mapping[Edge, float]
    repeats: int = 1
    rings: tuple[tuple[tuple[Edge, ...], int], ...] = ()

    def hops(self, topology: Topology) -> float:
        """Hops one after the other in one repeat.

        In a ring a chunk takes so many edges and no more, so a long edge (the way back along an open chain)
        is waited for once a round and not in every step. Elsewhere the longest path counts.
        """
        if not self.rings:
            return max((topology.hops(*edge) for edge in self.transfers), default=0)
        return max(
            _longest_way([topology.hops(*e) for e in ring], taken) / taken for ring, taken in self.rings
        )


def _longest_way(hops: Sequence[int], taken: int) -> int:
    """The largest sum of ``taken`` edges in a row around the ring."""
    around = [*hops, *hops]
    return max(sum(around[start : start + taken]) for start in range(len(hops)))


def steps(
    kind: str, algorithm: str, groups: tuple[tuple[int, ...], ...], size_bytes: int, packet_bytes: int
) -> list[Step]:
    """The steps of a collective.

    Args:
      kind: of ``distributed.program.Collective``.
      algorithm: one of ``ALGORITHMS[kind]``; a permute has none and ignores it.
      groups: ranks, or a permute's pairs.
      size_bytes: the operands of one rank together.
      packet_bytes: what a pipelined broadcast cuts its data into.

    Raises:
      ValueError: a kind that does not exist, or an algorithm that this kind does not have.
    """
    if kind not in ALGORITHMS:
        raise ValueError(f"unknown collective {kind!r}; known: {', '.join(ALGORITHMS)}")
    if kind == "collective_permute":
        return [
            Step(transfers={(source, target): size_bytes for source, target in groups if source != target})
        ]
    if algorithm not in ALGORITHMS[kind]:
        known = ", ".join(ALGORITHMS[kind])
        raise ValueError(f"{kind} has no algorithm {algorithm!r}; it has {known}")
    if kind == "collective_broadcast":
        return _BROADCASTS[algorithm](groups, size_bytes, packet_bytes)
    # Only a permute's pairs and a broadcast's root depend on the order in a group.
    return ALGORITHMS[kind][algorithm]([sorted(group) for group in groups], size_bytes)


def is_legal(algorithm: str, groups: Groups, topology: Topology) -> bool:
    """Whether the algorithm works for these groups; what has ``ALGORITHMS`` for the kind is not asked."""
    return _LEGAL[algorithm](groups, topology)


def _is_pairs(groups: Groups, topology: Topology) -> bool:
    """Groups of one or two, each inside a chip."""
    return all(len(group) <= 2 and len({topology.chip_of(rank) for rank in group}) == 1 for group in groups)


def _turns(groups: Groups, topology: Topology) -> bool:
    """Below three ranks both ways around are the same way."""
    return any(len(group) > 2 for group in groups)


_LEGAL: Mapping[str, Callable[[Groups, Topology], bool]] = {
    "ring": lambda groups, topology: True,
    "pair_exchange": _is_pairs,
    "bidirectional_ring": _turns,
    "mesh": lambda groups, topology: True,
}


def _around(groups: Groups, chunk: Callable[[int], float], passes: int, *, both_ways: bool) -> list[Step]:
    """Every rank hands chunks to its neighbours until each has been everywhere, ``passes`` times.

    ``chunk`` is bytes by group size. One way round a chunk takes all edges but one; both ways it (or what
    is summed up on the way to its owner) takes half of them in each direction.
    """
    lanes = []
    for group in groups:
        others = len(group) - 1
        ahead, back = (math.ceil(others / 2), others // 2) if both_ways else (others, 0)
        lanes += [(group, 1, ahead), (group, -1, back)]
    found, done = [], 0
    for end in sorted({taken for _, _, taken in lanes} - {0}):
        transfers: defaultdict[Edge, float] = defaultdict(float)
        rings = []
        for group, direction, taken in lanes:
            if taken >= end:
                edges = tuple(_edges(group, direction))
                rings.append((edges, taken))
                for edge in edges:
                    transfers[edge] += chunk(len(group))
        found.append(Step(transfers=transfers, repeats=passes * (end - done), rings=tuple(rings)))
        done = end
    return found


def _edges(group: Sequence[int], distance: int) -> list[Edge]:
    return [(rank, group[(i + distance) % len(group)]) for i, rank in enumerate(group)]


def _at_once(groups: Groups, chunk: Callable[[int], float]) -> list[Step]:
    """Every rank sends ``chunk`` bytes (by group size) to every other in one step."""
    pairs = {pair: chunk(len(group)) for group in groups for pair in itertools.permutations(group, 2)}
    return [Step(transfers=pairs)]


def _by_distance(groups: Groups, size: int) -> list[Step]:
    """All-to-all on a ring: one distance a step."""
    longest = max((len(group) for group in groups), default=1)
    return [
        Step(
            transfers={
                edge: size / len(group)
                for group in groups
                if distance < len(group)
                for edge in _edges(group, distance)
            }
        )
        for distance in range(1, longest)
    ]


def _pipeline(groups: Groups, size: int, packet_bytes: int) -> list[Step]:
    """The root's data runs down the ring in packets: the first fills the pipe, the rest stream."""
    chains = [_from_root(group) for group in groups if len(group) > 1]
    packet = min(size, packet_bytes)
    longest = max((len(chain) for chain in chains), default=0)
    fill = [
        Step(transfers={chain[hop]: packet for chain in chains if hop < len(chain) - 1})
        for hop in range(longest - 1)
    ]
    stream = {edge: size - packet for chain in chains for edge in chain[:-1]}
    return [*fill, Step(transfers=stream | {chain[-1]: size for chain in chains})]


def _from_root(group: Sequence[int]) -> list[Edge]:
    """The edges from the root (the first of the group) around the ring to its last rank."""
    ring = sorted(group)
    start = ring.index(group[0])
    return list(itertools.pairwise(ring[start:] + ring[:start]))


def _fan_out(groups: Groups, size: int, packet_bytes: int) -> list[Step]:
    """The root sends to every other rank in one step."""
    return [Step(transfers={(group[0], rank): size for group in groups for rank in group[1:]})]


_BROADCASTS: Mapping[str, Callable[[Groups, int, int], list[Step]]] = {"ring": _pipeline, "mesh": _fan_out}

# By kind and algorithm; sizes are those of one rank's operands. Equal prices are settled by this order.
ALGORITHMS: Mapping[str, Mapping[str, Callable]] = {
    "all_reduce": {
        # Reduce-scatter, then all-gather: twice around with 1/N of the data a step.
        "ring": lambda groups, size: _around(groups, lambda n: size / n, 2, both_ways=False),
        "pair_exchange": lambda groups, size: _at_once(groups, lambda n: size),
        "bidirectional_ring": lambda groups, size: _around(groups, lambda n: size / n, 2, both_ways=True),
        "mesh": lambda groups, size: _at_once(groups, lambda n: size),
    },
    "all_gather": {
        "ring": lambda groups, size: _around(groups, lambda n: size, 1, both_ways=False),
        "pair_exchange": lambda groups, size: _at_once(groups, lambda n: size),
        "bidirectional_ring": lambda groups, size: _around(groups, lambda n: size, 1, both_ways=True),
        "mesh": lambda groups, size: _at_once(groups, lambda n: size),
    },
    "reduce_scatter": {
        "ring": lambda groups, size: _around(groups, lambda n: size / n, 1, both_ways=False),
        "pair_exchange": lambda groups, size: _at_once(groups, lambda n: size / n),
        "bidirectional_ring": lambda groups, size: _around(groups, lambda n: size / n, 1, both_ways=True),
        "mesh": lambda groups, size: _at_once(groups, lambda n: size / n),
    },
    "all_to_all": {
        "ring": _by_distance,
        "pair_exchange": lambda groups, size: _at_once(groups, lambda n: size / n),
        "mesh": lambda groups, size: _at_once(groups, lambda n: size / n),
    },
    "collective_broadcast": _BROADCASTS,
    "collective_permute": {},
}
