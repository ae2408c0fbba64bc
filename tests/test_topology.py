"""The physical rings: pair, open chain of 6, closed ring of 12."""

from collections import deque

import pytest

from distributed.topology import topology
from kernels.errors import CompileError
from kernels.hardware import INSTANCES


def test_one_chip_is_a_pair():
    for name in ("inf2.xlarge", "inf2.8xlarge"):
        ring = topology(name)
        assert (ring.cores, ring.chips) == (2, 1)
        assert [link.kind for link in ring.links] == ["pair", "pair"]


def test_48xlarge_is_a_closed_ring_of_12():
    ring = topology("inf2.48xlarge")
    chips = {(link.source, link.target) for link in ring.links if link.kind == "neuronlink"}
    assert chips == {(a, (a + step) % 12) for a in range(12) for step in (1, -1)}
    assert [link.name for link in ring.path(23, 0)] == ["chip 11 -> chip 0"]


def test_24xlarge_is_an_open_chain_of_6():
    ring = topology("inf2.24xlarge")
    chips = {(link.source, link.target) for link in ring.links if link.kind == "neuronlink"}
    assert chips == {(a, b) for a in range(6) for b in range(6) if abs(a - b) == 1}
    assert [link.name for link in ring.path(11, 0)] == [f"chip {a} -> chip {a - 1}" for a in range(5, 0, -1)]


@pytest.mark.parametrize("name", INSTANCES)
def test_paths_are_shortest_and_join_up(name):
    """Against a breadth-first search over the links."""
    ring = topology(name)
    neighbours = {}
    for link in ring.links:
        if link.kind == "neuronlink":
            neighbours.setdefault(link.source, []).append(link.target)
    for source in range(ring.cores):
        distance = {ring.chip_of(source): 0}
        queue = deque(distance)
        while queue:
            chip = queue.popleft()
            for other in neighbours.get(chip, []):
                if other not in distance:
                    distance[other] = distance[chip] + 1
                    queue.append(other)
        for target in range(ring.cores):
            path = ring.path(source, target)
            assert set(path) <= set(ring.links)
            if ring.chip_of(source) == ring.chip_of(target):
                assert ring.hops(source, target) == (source != target)
                continue
            assert len(path) == distance[ring.chip_of(target)]
            stops = [path[0].source, *(link.target for link in path)]
            assert stops == [ring.chip_of(source), *(link.source for link in path[1:]), ring.chip_of(target)]


def test_what_does_not_exist_is_named():
    with pytest.raises(ValueError, match="core 2 does not exist"):
        topology("inf2.xlarge").path(0, 2)
    with pytest.raises(CompileError, match=r"inf2\.48xlarge"):
        topology("inf2.medium")


def test_the_torus_wraps_both_ways():
    torus = topology("trn1.32xlarge")
    assert (torus.chips, torus.rows) == (16, 4)
    # Each chip has four neighbours: 32 connections, both directions.
    assert sum(link.kind == "neuronlink" for link in torus.links) == 64
    first = 2 * 0
    assert [torus.hops(first, 2 * chip) for chip in range(16)] == [
        0,
        1,
        2,
        1,
        1,
        2,
        3,
        2,
        2,
        3,
        4,
        3,
        1,
        2,
        3,
        2,
    ]
    every = set(torus.links)
    assert all(set(torus.path(a, b)) <= every for a in range(0, 32, 3) for b in range(32))


def test_four_cores_share_an_inferentia_chip():
    chain = topology("inf1.24xlarge")
    assert (chain.cores, chain.chips, chain.is_closed) == (64, 16, False)
    assert chain.hops(0, 3) == 1 and chain.hops(0, 63) == 15
