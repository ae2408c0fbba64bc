"""Collectives on host arrays: data moves between ranks, sums are taken in the order of the algorithm."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from distributed.host_memory import aligned_empty
from distributed.program import Collective

__all__ = ["COLLECTIVES", "ORDERS", "REDUCERS", "run"]

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
_CHUNK_ELEMENTS = 1 << 16


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
    reduce = _order(collective, ranks[0].dtype)

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        ring = sorted(group)
        flat = [ranks[rank].reshape(-1) for rank in ring]
        result = aligned_empty(ranks[0].shape, ranks[0].dtype)
        target = result.reshape(-1)
        for position, chunk in enumerate(_chunks(target.size, len(ring))):
            reduce([x[chunk] for x in flat], position, target[chunk])
        return [result] * len(group)

    return _in_groups(collective, ranks, one_group)


def _reduce_scatter(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    reduce, dim = _order(collective, ranks[0].dtype), _dim(collective.dim, ranks[0])

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        ring = sorted(group)
        pieces = {rank: _split(ranks[rank], len(group), dim, collective) for rank in ring}
        results = []
        for index, rank in enumerate(group):
            result = aligned_empty(pieces[rank][index].shape, ranks[0].dtype)
            reduce([pieces[peer][index] for peer in ring], ring.index(rank), result)
            results.append(result)
        return results

    return _in_groups(collective, ranks, one_group)


def _all_gather(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    dim = _dim(collective.dim, ranks[0])

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        return [_concatenate([ranks[rank] for rank in group], dim)] * len(group)

    return _in_groups(collective, ranks, one_group)


def _all_to_all(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    concat_dim, split_dim = _dim(collective.dim, ranks[0]), _dim(collective.split_dim, ranks[0])

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        pieces = [_split(ranks[rank], len(group), split_dim, collective) for rank in group]
        return [_concatenate([p[index] for p in pieces], concat_dim) for index in range(len(group))]

    return _in_groups(collective, ranks, one_group)


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


def _in_groups(
    collective: Collective, ranks: Ranks, one_group: Callable[[Sequence[int]], list[np.ndarray]]
) -> list[np.ndarray]:
    """Results of ``one_group`` for each group, put in the order of ranks; every rank must be in one group."""
    results: dict[int, np.ndarray] = {}
    for group in collective.groups:
        for rank, result in zip(group, one_group(group), strict=True):
            if rank in results:
                raise ValueError(f"{collective.kind}: rank {rank} is in two replica groups")
            results[rank] = result
    missing = sorted(set(range(len(ranks))) ^ set(results))
    if missing:
        raise ValueError(
            f"{collective.kind}: ranks {missing} do not match the {len(ranks)} ranks of the ring"
        )
    return [results[rank] for rank in range(len(ranks))]


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


Reduce = Callable[[Sequence[np.ndarray], int, np.ndarray], None]
"""``reduce(parts, owner, out)``: one chunk of every rank, in ring order, into the chunk of rank ``owner``."""


def _order(collective: Collective, dtype: np.dtype) -> Reduce:
    """How the collective sums up a chunk: its reducer, its algorithm, and where ``dtype`` rounds."""
    if collective.reducer not in REDUCERS:
        known = ", ".join(REDUCERS)
        raise ValueError(f"{collective.kind}: unknown reducer {collective.reducer!r}; known: {known}")
    if collective.algorithm not in ORDERS:
        known = ", ".join(ORDERS)
        raise ValueError(f"{collective.kind}: unknown algorithm {collective.algorithm!r}; known: {known}")
    order, reducer = ORDERS[collective.algorithm], REDUCERS[collective.reducer]

    def reduce(parts: Sequence[np.ndarray], owner: int, out: np.ndarray) -> None:
        if len(parts) == 1:
            out[...] = parts[0]
            return
        rows = max(1, _CHUNK_ELEMENTS * (len(out) if out.ndim else 1) // max(out.size, 1))
        for start in range(0, len(out) if out.ndim else 1, rows):
            piece = slice(start, start + rows) if out.ndim else ...
            order(reducer, [part[piece] for part in parts], owner, out[piece])

    return reduce


def _hop(reducer: np.ufunc, arrived: np.ndarray, own: np.ndarray, out: np.ndarray) -> None:
    """What a rank does with an arriving chunk: ``out = reducer(arrived, own)``, rounded to its type."""
    if own.dtype in _COMPUTED_IN_F32:
        out[...] = reducer(arrived.astype(np.float32), own.astype(np.float32)).astype(own.dtype)
    else:
        reducer(arrived, own, out=out)


def _chain(reducer: np.ufunc, parts: Sequence[np.ndarray], out: np.ndarray) -> None:
    """A chunk on its way from the first part's rank to the last one's, written at every stop."""
    if len(parts) == 1:
        out[...] = parts[0]
        return
    _hop(reducer, parts[0], parts[1], out)
    for part in parts[2:]:
        _hop(reducer, out, part, out)


def _around(reducer: np.ufunc, parts: Sequence[np.ndarray], owner: int, out: np.ndarray) -> None:
    """From the rank after the owner around to the owner."""
    _chain(reducer, [parts[(owner + hop) % len(parts)] for hop in range(1, len(parts) + 1)], out)


def _both_ways(reducer: np.ufunc, parts: Sequence[np.ndarray], owner: int, out: np.ndarray) -> None:
    """From the far side to the owner along both halves; the owner adds the half before it, then the other."""
    count = len(parts)
    before = [parts[(owner - hop) % count] for hop in range(math.ceil((count - 1) / 2), -1, -1)]
    after = [parts[(owner + hop) % count] for hop in range((count - 1) // 2, 0, -1)]
    _chain(reducer, before, out)
    if after:
        arrived = np.empty_like(out)
        _chain(reducer, after, arrived)
        _hop(reducer, arrived, out, out)


def _all_at_once(reducer: np.ufunc, parts: Sequence[np.ndarray], owner: int, out: np.ndarray) -> None:
    """Everything arrives and is added in the order of the ranks; only the end is rounded."""
    if out.dtype in _COMPUTED_IN_F32:
        total = functools.reduce(reducer, [part.astype(np.float32) for part in parts])
        out[...] = total.astype(out.dtype)
    else:
        _chain(reducer, parts, out)


ORDERS: Mapping[str, Callable[[np.ufunc, Sequence[np.ndarray], int, np.ndarray], None]] = {
    "ring": _around,
    "pair_exchange": _all_at_once,
    "bidirectional_ring": _both_ways,
    "mesh": _all_at_once,
}


def _chunks(size: int, count: int) -> list[slice]:
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
