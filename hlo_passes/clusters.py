"""Groups of graph nodes that grow by merging, kept acyclic and in an order that respects every edge."""

from collections.abc import Sequence

__all__ = ["Clusters"]

# Merging two clusters this far apart in the order is not tried: it bounds the cost of a merge, and a value
# kept on chip over so many kernels would not fit there.
_MAX_DISTANCE = 1024


class Clusters:
    """A partition of nodes 0..n-1 of a directed acyclic graph, given in topological order.

    The quotient graph stays acyclic (so every cluster is convex: no path leaves it and comes back), and
    ``order`` lists the clusters topologically, as near to the given order as the merges allow.
    """

    def __init__(self, predecessors: Sequence[set[int]]) -> None:
        count = len(predecessors)
        self.of = list(range(count))
        self.members = {node: [node] for node in range(count)}
        self._slots: list[int | None] = list(range(count))
        self._position = list(range(count))
        self._before = [set(nodes) for nodes in predecessors]
        self._after: list[set[int]] = [set() for _ in range(count)]
        for node, nodes in enumerate(predecessors):
            for earlier in nodes:
                self._after[earlier].add(node)

    @property
    def order(self) -> list[int]:
        return [cluster for cluster in self._slots if cluster is not None]

    def position(self, cluster: int) -> int:
        return self._position[cluster]

    def readers(self, cluster: int) -> set[int]:
        """The clusters that read what ``cluster`` makes."""
        return self._after[cluster]

    def merge(self, producer: int, consumer: int) -> bool:
        """Makes one cluster, named ``consumer``, of two; False, with nothing changed, if that is a cycle."""
        first, last = self._position[producer], self._position[consumer]
        if last - first > _MAX_DISTANCE:
            return False
        reached, independent, dependent = {producer}, [], []
        for between in self._slots[first + 1 : last]:
            if between is None:
                continue
            if self._before[between].isdisjoint(reached):
                independent.append(between)
            else:
                reached.add(between)
                dependent.append(between)
        if not (self._before[consumer] - {producer}).isdisjoint(reached):
            return False
        self._contract(producer, consumer)
        merged = [*independent, consumer, *dependent]
        self._slots[first : last + 1] = [*merged, *[None] * (last + 1 - first - len(merged))]
        for position, cluster in enumerate(merged, first):
            self._position[cluster] = position
        return True

    def _contract(self, producer: int, consumer: int) -> None:
        for node in self.members[producer]:
            self.of[node] = consumer
        self.members[consumer] = sorted(self.members.pop(producer) + self.members[consumer])
        for other in self._before[producer]:
            self._after[other].discard(producer)
            self._after[other].add(consumer)
        for other in self._after[producer] - {consumer}:
            self._before[other].discard(producer)
            self._before[other].add(consumer)
        self._before[consumer] = (self._before[consumer] | self._before[producer]) - {producer}
        self._after[consumer] = (self._after[consumer] | self._after[producer]) - {consumer}
