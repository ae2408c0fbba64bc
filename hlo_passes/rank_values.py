"""Integers that each core computes from its rank, worked out for all ranks at compile time."""

from collections.abc import Callable, Mapping

import numpy as np

from hlo_passes.ir import ir
from hlo_passes.ops import direction, kind, tensor

__all__ = ["value_per_rank"]


def value_per_rank(value: ir.Value, ranks: int) -> np.ndarray | None:
    """What ``value`` is on each of ``ranks`` cores, ``int64[ranks, *shape]``.

    None where it depends on more than the rank, or on an op that is not known here.
    """
    return _value(value, ranks, {})


def _value(value: ir.Value, ranks: int, known: dict[ir.Value, np.ndarray | None]) -> np.ndarray | None:
    if value in known:
        return known[value]
    known[value] = None
    if isinstance(value, ir.OpResult):
        op = value.owner.operation
        rule = _RULES.get(kind(op))
        if rule is not None and tensor(value.type).dtype.lstrip("u")[0] == "i":
            known[value] = rule(op, ranks, lambda number: _value(op.operands[number], ranks, known))
    return known[value]


Read = Callable[[int], np.ndarray | None]


def _constant(op: ir.Operation, ranks: int, read: Read) -> np.ndarray:
    one = np.array(ir.DenseElementsAttr(op.attributes["value"])).astype(np.int64)
    return np.broadcast_to(one, (ranks, *one.shape))


def _rank(op: ir.Operation, ranks: int, read: Read) -> np.ndarray:
    return np.arange(ranks, dtype=np.int64)


def _same(op: ir.Operation, ranks: int, read: Read) -> np.ndarray | None:
    source = read(0)
    return None if source is None else source.reshape(ranks, *tensor(op.results[0].type).shape)


def _pick(op: ir.Operation, ranks: int, read: Read) -> np.ndarray | None:
    """One block of a table, its start held inside the table."""
    table, starts = read(0), [read(number) for number in range(1, len(op.operands))]
    if table is None or any(start is None for start in starts):
        return None
    sizes = list(op.attributes["slice_sizes"])
    picked = []
    for rank in range(ranks):
        where = (
            min(max(int(start[rank]), 0), have - size)
            for start, have, size in zip(starts, table.shape[1:], sizes, strict=True)
        )
        picked.append(table[rank][tuple(slice(a, a + n) for a, n in zip(where, sizes, strict=True))])
    return np.stack(picked)


def _both(combine: Callable) -> Callable[[ir.Operation, int, Read], np.ndarray | None]:
    def rule(op: ir.Operation, ranks: int, read: Read) -> np.ndarray | None:
        left, right = read(0), read(1)
        return None if left is None or right is None else combine(left, right)

    return rule


def _divide(left: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    """Rounding is the same everywhere only for what is not negative."""
    return left // right if (left >= 0).all() and (right > 0).all() else None


def _remainder(left: np.ndarray, right: np.ndarray) -> np.ndarray | None:
    return left % right if (left >= 0).all() and (right > 0).all() else None


_COMPARE = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal, "GT": np.greater,
    "GE": np.greater_equal,
}  # fmt: skip


def _compare(op: ir.Operation, ranks: int, read: Read) -> np.ndarray | None:
    left, right = read(0), read(1)
    if left is None or right is None:
        return None
    return _COMPARE[direction(op)](left, right).astype(np.int64)


def _select(op: ir.Operation, ranks: int, read: Read) -> np.ndarray | None:
    chosen = [read(number) for number in range(3)]
    if any(part is None for part in chosen) or chosen[0].ndim not in (1, chosen[1].ndim):
        return None
    condition = chosen[0].reshape(chosen[0].shape + (1,) * (chosen[1].ndim - chosen[0].ndim))
    return np.where(condition != 0, chosen[1], chosen[2])


_RULES: Mapping[str, Callable[[ir.Operation, int, Read], np.ndarray | None]] = {
    "constant": _constant,
    "replica_id": _rank,
    "convert": _same,
    "reshape": _same,
    "dynamic_slice": _pick,
    "compare": _compare,
    "select": _select,
    "add": _both(np.add),
    "subtract": _both(np.subtract),
    "multiply": _both(np.multiply),
    "minimum": _both(np.minimum),
    "maximum": _both(np.maximum),
    "divide": _both(_divide),
    "remainder": _both(_remainder),
}
