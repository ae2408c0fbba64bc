"""Which buffers of a block die at which of its steps."""

import itertools
from collections.abc import Set
from dataclasses import dataclass

from distributed.program import Block, Branch, Loop, Program, Step

__all__ = ["Deaths", "deaths", "nested_blocks", "operands_of"]


@dataclass(frozen=True, kw_only=True)
class Deaths:
    """Per step of one block: buffers defined in this block that nobody reads afterwards.

    ``moved``: operands of a loop that only its blocks' arguments carry on, so they die as the loop
    starts. ``after``: all others. ``last``: what is left at the end, results and arguments nobody reads.
    """

    moved: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    last: frozenset[int]


def deaths(program: Program, *, immortal: Set[int] = frozenset()) -> dict[int, Deaths]:
    """Deaths of every block in the program, by ``id`` of the block; those of ``immortal`` left out."""
    result: dict[int, Deaths] = {}
    _visit(program.main, result, immortal)
    return result


def operands_of(step: Step) -> tuple[int, ...]:
    """Buffers a step reads itself, those its nested blocks capture left out."""
    return (step.index,) if isinstance(step, Branch) else step.operands


def nested_blocks(step: Step) -> tuple[Block, ...]:
    if isinstance(step, Loop):
        return (step.condition, step.body)
    return step.blocks if isinstance(step, Branch) else ()


def _visit(block: Block, result: dict[int, Deaths], immortal: Set[int]) -> set[int]:
    """Fills ``result`` for this block and those inside; returns the buffers captured from outside."""
    defined, read = set(block.arguments), set(block.results)
    uses: list[set[int]] = []
    captures: list[set[int]] = []
    for step in block.steps:
        captured: set[int] = set()
        for nested in nested_blocks(step):
            captured |= _visit(nested, result, immortal)
        captures.append(captured)
        uses.append(captured | set(operands_of(step)))
        read |= uses[-1]
        defined |= set(step.results)

    alive = set(block.results)
    moved: list[tuple[int, ...]] = []
    after: list[tuple[int, ...]] = []
    for step, used, captured in zip(reversed(block.steps), reversed(uses), reversed(captures), strict=True):
        dying = (used & defined) - alive - immortal
        early = dying - captured if isinstance(step, Loop) else set()
        unused = set(step.results) - alive
        moved.append(tuple(sorted(early)))
        after.append(tuple(sorted((dying - early) | unused)))
        alive |= used
    last = defined - immortal - {*itertools.chain(*moved, *after)}
    result[id(block)] = Deaths(
        moved=tuple(reversed(moved)), after=tuple(reversed(after)), last=frozenset(last)
    )
    return read - defined
