"""Collectives on host arrays: data moves around the ring, with the ring's own order of summation."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from distributed.host_memory import aligned_empty
from distributed.program import Collective

__all__ = ["COLLECTIVES", "REDUCERS", "run"]

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
      collective: kind, groups, reducer and dims; its buffer numbers are not looked at.
      operands: for each operand one array per rank (rank = index), all of one shape and dtype.

    Returns:
      The same structure: for each operand one result per rank. Ranks whose results are equal by
      definition (all_reduce, all_gather, broadcast) share one array. No operand is written.

    Raises:
      ValueError: a kind, reducer or dim that does not exist, a rank outside the groups of a collective
        that needs every rank, or operands of unlike shapes.
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
    reduce = _hop(collective, ranks[0].dtype)

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        ring = sorted(group)
        flat = [ranks[rank].reshape(-1) for rank in ring]
        result = aligned_empty(ranks[0].shape, ranks[0].dtype)
        target = result.reshape(-1)
        for position, chunk in enumerate(_chunks(target.size, len(ring))):
            _reduce_chunk(reduce, [x[chunk] for x in flat], position, target[chunk])
        return [result] * len(group)

    return _in_groups(collective, ranks, one_group)


def _reduce_scatter(collective: Collective, ranks: Ranks) -> list[np.ndarray]:
    reduce, dim = _hop(collective, ranks[0].dtype), _dim(collective.dim, ranks[0])

    def one_group(group: Sequence[int]) -> list[np.ndarray]:
        ring = sorted(group)
        pieces = {rank: _split(ranks[rank], len(group), dim, collective) for rank in ring}
        results = []
        for index, rank in enumerate(group):
            result = aligned_empty(pieces[rank][index].shape, ranks[0].dtype)
            _reduce_chunk(reduce, [pieces[peer][index] for peer in ring], ring.index(rank), result)
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


def _hop(collective: Collective, dtype: np.dtype) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """What a rank does with an arriving chunk: ``out = reducer(arrived, own)``, rounded to ``dtype``."""
    if collective.reducer not in REDUCERS:
        known = ", ".join(REDUCERS)
        raise ValueError(f"{collective.kind}: unknown reducer {collective.reducer!r}; known: {known}")
    reducer = REDUCERS[collective.reducer]
    if dtype not in _COMPUTED_IN_F32:
        return lambda arrived, own, out: reducer(arrived, own, out=out)

    def rounded(arrived: np.ndarray, own: np.ndarray, out: np.ndarray) -> None:
        out[...] = reducer(arrived.astype(np.float32), own.astype(np.float32)).astype(dtype)

    return rounded


def _reduce_chunk(
    reduce: Callable[..., None], parts: Sequence[np.ndarray], end: int, out: np.ndarray
) -> None:
    """Reduces one chunk into ``out`` as the ring does, from the rank after ``end`` around to ``end``."""
    order = [parts[(end + 1 + hop) % len(parts)] for hop in range(len(parts))]
    if len(order) == 1:
        out[...] = order[0]
        return
    rows = max(1, _CHUNK_ELEMENTS * (len(out) if out.ndim else 1) // max(out.size, 1))
    for start in range(0, len(out) if out.ndim else 1, rows):
        piece = slice(start, start + rows) if out.ndim else ...
        reduce(order[0][piece], order[1][piece], out[piece])
        for part in order[2:]:
            reduce(out[piece], part[piece], out[piece])


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
