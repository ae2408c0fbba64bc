"""The logical mesh of cores: named axes over ranks, row-major."""

import itertools
import math
from dataclasses import dataclass

__all__ = ["Mesh"]


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Named axes over ``num_ranks`` cores; rank = row-major index of the coordinates.

    ``device_ids`` permutes that order where the user's mesh does (position -> rank); empty is the identity.
    """

    axes: tuple[tuple[str, int], ...]
    device_ids: tuple[int, ...] = ()

    @property
    def num_ranks(self) -> int:
        return math.prod(size for _, size in self.axes)

    def size(self, names: tuple[str, ...]) -> int:
        sizes = dict(self.axes)
        return math.prod(sizes[name] for name in names)

    def coordinates(self, rank: int) -> dict[str, int]:
        position = self.device_ids.index(rank) if self.device_ids else rank
        result = {}
        for name, size in reversed(self.axes):
            position, result[name] = divmod(position, size)
        return result

    def index(self, rank: int, names: tuple[str, ...]) -> int:
        """Row-major index of ``rank`` along ``names``, in the order given: which shard it holds."""
        at, sizes, index = self.coordinates(rank), dict(self.axes), 0
        for name in names:
            index = index * sizes[name] + at[name]
        return index

    def groups(self, names: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Ranks that differ only along ``names``; inside a group in the order of ``index``."""
        sizes = dict(self.axes)
        rest = [range(1) if name in names else range(size) for name, size in self.axes]
        result = []
        for base in itertools.product(*rest):
            at = dict(zip((name for name, _ in self.axes), base, strict=True))
            steps = itertools.product(*(range(sizes[name]) for name in names))
            result.append(tuple(self._rank(at | dict(zip(names, step, strict=True))) for step in steps))
        return tuple(result)

    def _rank(self, at: dict[str, int]) -> int:
        position = 0
        for name, size in self.axes:
            position = position * size + at[name]
        return self.device_ids[position] if self.device_ids else position
