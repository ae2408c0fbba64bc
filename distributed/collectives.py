"""Collectives on host arrays: data moves between ranks, sums are taken in the order of the algorithm."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from distributed.host_memory import aligned_copy, aligned_empty
from distributed.program import Collective

__all__ = ["COLLECTIVES", "ORDERS", "REDUCERS", "even_chunks", "in_groups", "run"]

Ranks = Sequence[np.ndarray]
"""One array per rank. Ranks that hold the same value may hold the same object; inputs are never written."""

REDUCERS: Mapping[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}

# The collective cores add in FP32 and round once on every write; wider types are computed in themselves.
_COMPUTED_IN_F32 = frozenset(
    np.dtype(t)
    for t in (
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e3m4,
        ml_dtypes.float8_e4m3,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e5m2,
    )
)

# One chunk of a hop at a time in FP32: large enough for NumPy's loops, small enough for the host's caches.
_BLOCK_ELEMENTS = 1 << 16

# So few in all ranks together that a call of NumPy for each chunk would cost more than to copy them.
_SMALL_ELEMENTS = 1 << 18


def run(collective: Collective, operands: Sequence[Ranks]) -> list[list[np.ndarray]]:
    """Runs ``collective`` on the operands of all ranks.

    Args:
      collective: kind, groups, reducer, algorithm and dims; its buffer numbers are not looked at.
      operands: for each operand one array per rank (rank = index), all of one shape and dtype.

    Returns:
      The same structure: for each operand one result per rank. Ranks whose results are equal by
      definition (all_reduce, all_gather, broadcast) share one array. No operand is written.

    Raises:
      ValueError: a kind, reducer, algorithm or dim that does not exist, a rank outside the groups of a
        collective that needs every rank, or operands of unlike shapes.
    """
    if collective.kind not in COLLECTIVES:
        raise ValueError(f"unknown collective {collective.kind!r}; known: {', '.join(COLLECTIVES)}")
    results = []
    for ranks in operands:
        kinds = {(x.shape, x.dtype) for x in ranks}
        if len(kinds) != 1:
            raise ValueError(f"{collective.kind}: operands differ between ranks: {sorted(map(str, kinds))}")
        with np.errstate(all="ignore"):
            results.append(COLLECTIVES[collective.kind](collective, ranks))
    return results


def _all_reduce(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    reduce = _sum_up(collective)

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        ring = sorted(group)
        result = aligned_empty(ranks[0].shape, ranks[0].dtype)
        owned = enumerate(even_chunks(result.size, len(ring)))
        reduce([ranks[rank].reshape(-1) for rank in ring], list(owned), result.reshape(-1))
        return [result] * len(group)

    return in_groups(collective, len(ranks), one_group)


def _reduce_scatter(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    reduce, dim = _sum_up(collective), _dim(collective.dim, ranks[0])

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        ring = sorted(group)
        # Piece after piece, so that each lies in one stretch as the chunks of an all-reduce do.
        pieces = [np.stack(_split(ranks[rank], len(group), dim, collective)) for rank in ring]
        result = aligned_empty(pieces[0].shape, ranks[0].dtype)
        owners = [ring.index(rank) for rank in group]
        owned = zip(owners, even_chunks(result.size, len(group)), strict=True)
        reduce([piece.reshape(-1) for piece in pieces], list(owned), result.reshape(-1))
        return [aligned_copy(result[index]) for index in range(len(group))]

    return in_groups(collective, len(ranks), one_group)


def _all_gather(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    dim = _dim(collective.dim, ranks[0])

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        return [_concatenate([ranks[rank] for rank in group], dim)] * len(group)

    return in_groups(collective, len(ranks), one_group)


def _all_to_all(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    concat_dim, split_dim = _dim(collective.dim, ranks[0]), _dim(collective.split_dim, ranks[0])

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        pieces = [_split(ranks[rank], len(group), split_dim, collective) for rank in group]
        return [_concatenate([p[index] for p in pieces], concat_dim) for index in range(len(group))]

    return in_groups(collective, len(ranks), one_group)


def _collective_permute(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    sources: dict[int, int] = {}
    for source, target in collective.groups:
        if target in sources:
            raise ValueError(f"collective_permute: rank {target} is the target of two pairs")
        sources[target] = source
    return _moved(sources, ranks)


def _collective_broadcast(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    return _moved({rank: group[0] for group in collective.groups for rank in group}, ranks)


COLLECTIVES: Mapping[str, Callable[[Collective, Ranks], list[np.ndarray]]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "collective_permute": _collective_permute,
    "collective_broadcast": _collective_broadcast,
}


def in_groups(
    collective: Collective, count: int, one_group: Callable[[Sequence[int]], list[np.ndarray]]
) -> list[np.ndarray]:
    """Results of ``one_group`` for each group, put in the order of the ``count`` ranks.

    Raises ValueError where a rank is not in just one group.
    """
    results: dict[int, np.ndarray] = {}
    for group in collective.groups:
        for rank, result in zip(group, one_group(group), strict=True):
            if rank in results:
                raise ValueError(f"{collective.kind}: rank {rank} is in two replica groups")
            results[rank] = result
    missing = sorted(set(range(count)) ^ set(results))
    if missing:
        raise ValueError(f"{collective.kind}: ranks {missing} do not match the {count} ranks of the ring")
    return [results[rank] for rank in range(count)]


def _moved(sources: Mapping[int, int], ranks: Ranks) -> list[np.ndarray]:
    """Each target takes its source's array; a rank that is no target receives zeros."""
    outside = sorted(rank for pair in sources.items() for rank in pair if not 0 <= rank < len(ranks))
    if outside:
        raise ValueError(f"ranks {outside} are outside the {len(ranks)} ranks of the ring")
    zeros = None
    if len(sources) < len(ranks):
        zeros = aligned_empty(ranks[0].shape, ranks[0].dtype)
        zeros[...] = np.zeros((), zeros.dtype)
    return [ranks[sources[rank]] if rank in sources else zeros for rank in range(len(ranks))]


Chunks = Sequence[tuple[int, slice]]
"""Who owns which stretch of the flat operands of a ring."""


def _sum_up(collective: Collective) -> Callable[[Sequence[np.ndarray], Chunks, np.ndarray], None]:
    """``reduce(parts, chunks, out)``: flat operands of a ring's ranks, summed up as the collective does."""
    if collective.reducer not in REDUCERS:
        known = ", ".join(REDUCERS)
        raise ValueError(f"{collective.kind}: unknown reducer {collective.reducer!r}; known: {known}")
    if collective.algorithm not in ORDERS:
        known = ", ".join(ORDERS)
        raise ValueError(f"{collective.kind}: unknown algorithm {collective.algorithm!r}; known: {known}")
    order, reducer = ORDERS[collective.algorithm], REDUCERS[collective.reducer]

    def reduce(parts: Sequence[np.ndarray], chunks: Chunks, out: np.ndarray) -> None:
        if out.size * len(parts) <= _SMALL_ELEMENTS:
            out[:] = order(reducer, parts, chunks)
            return
        for owner, chunk in chunks:
            for start in range(chunk.start, chunk.stop, _BLOCK_ELEMENTS):
                at = slice(start, min(start + _BLOCK_ELEMENTS, chunk.stop))
                whole = [(owner, slice(0, at.stop - at.start))]
                out[at] = order(reducer, [part[at] for part in parts], whole)

    return reduce


def _as_they_pass(parts: Sequence[np.ndarray], chunks: Chunks) -> Sequence[np.ndarray]:
    """Row i holds, chunk by chunk, the part of the rank i + 1 after the owner: one row is one hop of all."""
    if len(chunks) == 1:
        first = chunks[0][0] + 1
        return [*parts[first:], *parts[:first]]
    stretches = tuple((owner, chunk.start, chunk.stop) for owner, chunk in chunks)
    return np.concatenate(parts).take(_passing(stretches, len(parts)))


@functools.lru_cache(maxsize=64)
def _passing(stretches: tuple[tuple[int, int, int], ...], count: int) -> np.ndarray:
    """Where ``_as_they_pass`` finds its elements among the parts of ``count`` ranks, one behind the other."""
    owners = np.concatenate([np.full(stop - start, owner, np.intp) for owner, start, stop in stretches])
    hops = np.arange(count)[:, np.newaxis]
    return (owners + 1 + hops) % count * owners.size + np.arange(owners.size)


def _chain(reducer: np.ufunc, rows: Sequence[np.ndarray]) -> np.ndarray:
    """``reducer(arrived, own)`` from row to row, rounded to their type at every stop."""
    dtype = rows[0].dtype
    if dtype not in _COMPUTED_IN_F32:
        return _fold(reducer, rows)

    total, *rest = np.asarray(rows, np.float32)
    for own in rest:
        total = reducer(total, own).astype(dtype).astype(np.float32)
    return total.astype(dtype)


def _around(reducer: np.ufunc, parts: Sequence[np.ndarray], chunks: Chunks) -> np.ndarray:
    """From the rank after the owner around to the owner."""
    return _chain(reducer, _as_they_pass(parts, chunks))


def _both_ways(reducer: np.ufunc, parts: Sequence[np.ndarray], chunks: Chunks) -> np.ndarray:
    """From the far side to the owner along both halves; the owner adds the half before it, then the other."""
    rows, after = _as_they_pass(parts, chunks), (len(parts) - 1) // 2
    total = _chain(reducer, rows[after:])
    return _chain(reducer, [_chain(reducer, rows[:after][::-1]), total]) if after else total


def _all_at_once(reducer: np.ufunc, parts: Sequence[np.ndarray], chunks: Chunks) -> np.ndarray:
    """Everything arrives and is added in the order of the ranks; only the end is rounded."""
    if parts[0].dtype not in _COMPUTED_IN_F32:
        return _fold(reducer, parts)
    return _fold(reducer, [part.astype(np.float32) for part in parts]).astype(parts[0].dtype)


def _fold(reducer: np.ufunc, rows: Sequence[np.ndarray]) -> np.ndarray:
    if len(rows) == 1:
        return rows[0]
    total = reducer(rows[0], rows[1])
    for row in rows[2:]:
        reducer(total, row, out=total)
    return total


ORDERS: Mapping[str, Callable[[np.ufunc, Sequence[np.ndarray], Chunks], np.ndarray]] = {
    "ring": _around,
    "pair_exchange": _all_at_once,
    "bidirectional_ring": _both_ways,
    "mesh": _all_at_once,
}


def even_chunks(size: int, count: int) -> list[slice]:
    """``size`` elements in ``count`` contiguous chunks whose sizes differ by at most one."""
    bounds = [size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def _split(x: np.ndarray, count: int, dim: int, collective: Collective) -> list[np.ndarray]:
    if x.shape[dim] % count:
        raise ValueError(f"{collective.kind}: dim {dim} of {x.shape} does not divide by {count} ranks")
    return np.split(x, count, axis=dim)


def _dim(dim: int | None, x: np.ndarray) -> int:
    if dim is None or not 0 <= dim < x.ndim:
        raise ValueError(f"dim {dim} does not exist in shape {x.shape}")
    return dim


def _concatenate(parts: Sequence[np.ndarray], dim: int) -> np.ndarray:
    shape = list(parts[0].shape)
    shape[dim] *= len(parts)
    return np.concatenate(parts, axis=dim, out=aligned_empty(tuple(shape), parts[0].dtype))
