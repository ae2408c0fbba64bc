"""What stays in SBUF between kernels: a cache of values, managed by the compiler, which knows their uses."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from distributed.liveness import nested_blocks, operands_of
from distributed.program import Block, Branch, Kernel, Launch, Loop
from kernels.work import KernelWork, Tensor

__all__ = ["Sbuf", "Uses"]

_NEVER = float("inf")
_PRODUCTS = frozenset({"matmul", "convolution"})
# Kernels whose every row depends on no other.
_BY_ROWS = frozenset({"elementwise", "softmax"})


@dataclass(frozen=True)
class Uses:
    """When the kernels of a block read each buffer, counted in kernels, and which buffers must reach HBM.

    ``stored`` are those that something other than a kernel of the same straight run reads: a collective,
    a loop or branch or a kernel behind it, and the block's results. Scalars of the control CPU are too.
    ``tiles`` are those of which only some rows exist at a time: an attention's scores and weights, say.
    """

    reads: dict[int, list[int]] = field(default_factory=dict)
    stored: set[int] = field(default_factory=set)
    tiles: set[int] = field(default_factory=set)

    @staticmethod
    def of(block: Block, *, row_tiles: bool) -> "Uses":
        """Reads off the uses of a block; without ``row_tiles`` every value is made whole."""
        reads: defaultdict[int, list[int]] = defaultdict(list)
        stored = set(block.results)
        made: dict[int, int] = {}
        kernels: list[Kernel] = []
        run = 0
        for step in block.steps:
            if isinstance(step, Launch):
                for kernel in step.kernels:
                    for number in kernel.operands:
                        reads[number].append(len(kernels))
                        if made.get(number, run) != run:
                            stored.add(number)
                    made.update(dict.fromkeys(kernel.results, run))
                    kernels.append(kernel)
                continue
            stored.update(operands_of(step))
            if isinstance(step, Loop | Branch):
                run += 1
                for nested in nested_blocks(step):
                    stored |= _read_in(nested)
        return Uses(dict(reads), stored, _tiles(kernels, reads, stored) if row_tiles else set())

    def next(self, number: int, position: int) -> float:
        """The first kernel after ``position`` that reads the buffer; infinity where none does."""
        found = self.reads.get(number, [])
        at = bisect_right(found, position)
        return found[at] if at < len(found) else _NEVER


def _tiles(kernels: Sequence[Kernel], reads: Mapping[int, list[int]], stored: set[int]) -> set[int]:
    """Values that one other kernel alone reads, row by row as they are made.

    A product and the softmax or elementwise kernel behind it take turns at blocks of rows, and so do a
    softmax and the product that contracts its rows: the scores and weights of an attention are never whole,
    however long the sequence. The kernels' times still add up.
    """
    found: set[int] = set()
    for maker in kernels:
        for number, tensor in zip(maker.results, maker.work.writes, strict=False):
            positions = reads.get(number, ())
            if len(positions) == 1 and number not in stored:
                taker = kernels[positions[0]].work
                is_made_so = maker.work.name in _PRODUCTS and taker.name in _BY_ROWS
                if is_made_so or (maker.work.name == "softmax" and _contracts(taker, tensor)):
                    found.add(number)
    return found


def _contracts(work: KernelWork, rows: Tensor) -> bool:
    """Whether a kernel is a product that contracts ``rows`` along the last dim, or one of its size."""
    products = [op.matmul for op in work.ops if op.matmul]
    return work.name == "matmul" and any(
        rows.shape[-1] == k and rows.size in (b * m * k, b * k * n) for b, m, k, n in products
    )


def _read_in(block: Block) -> set[int]:
    found = set(block.results)
    for step in block.steps:
        found.update(operands_of(step))
        for nested in nested_blocks(step):
            found |= _read_in(nested)
    return found


@dataclass
class _Held:
    size_bytes: int
    next_use: float
    is_stored: bool


class Sbuf:
    """The part of SBUF in which values stay. What is needed last leaves first, as an optimal cache does."""

    def __init__(self, room_bytes: float) -> None:
        self._room = room_bytes
        self._held: dict[int, _Held] = {}
        self._used = 0

    def __contains__(self, number: int) -> bool:
        return number in self._held

    def keep(self, number: int, size_bytes: int, next_use: float, *, is_stored: bool) -> int:
        """Makes room for a value if those it drives out are needed later than it; returns bytes spilled.

        A value that is nowhere in HBM yet (not ``is_stored``) is written there when it is driven out, or at
        once where there is no room for it.
        """
        if next_use == _NEVER:
            return 0
        spilled = 0
        victims: list[int] = []
        free = self._room - self._used
        if size_bytes > free:
            for other in sorted(self._held, key=lambda n: (-self._held[n].next_use, n)):
                if size_bytes <= free or self._held[other].next_use <= next_use:
                    break
                victims.append(other)
                free += self._held[other].size_bytes
        if size_bytes > free:
            return 0 if is_stored else size_bytes
        for other in victims:
            spilled += 0 if self._held[other].is_stored else self._held[other].size_bytes
            self._drop(other)
        self._held[number] = _Held(size_bytes, next_use, is_stored)
        self._used += size_bytes
        return spilled

    def advance(self, operands: Iterable[int], position: int, uses: Uses) -> None:
        """After a kernel: notes when its operands are needed next, and lets go of those that are not."""
        for number in set(operands):
            held = self._held.get(number)
            if held is not None:
                held.next_use = uses.next(number, position)
                if held.next_use == _NEVER:
                    self._drop(number)

    def _drop(self, number: int) -> None:
        self._used -= self._held.pop(number).size_bytes

    @property
    def used_bytes(self) -> int:
        return self._used
