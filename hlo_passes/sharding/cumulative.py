"""Cumulative sums and the like along a sharded dim: each core its block, then what came before it."""

from hlo_passes.ir import ir
from hlo_passes.sharding.choice import Choice
from hlo_passes.sharding.partition import Partitioner
from hlo_passes.sharding.reductions import all_reducer, simple_reducer
from hlo_passes.sharding.spec import shape_of
from hlo_passes.sharding.windows import WINDOWS, Window

__all__ = ["is_cumulative", "scan_blocks"]


def is_cumulative(part: Partitioner, op: ir.Operation, window: Window) -> bool:
    """Whether a reduce_window of one operand reads all rows up to its own (or all from its own on).

    It must do nothing along the other dims, and its initial value must be neutral, for each core begins
    with it.
    """
    if op.name != "stablehlo.reduce_window" or len(op.results) != 1 or simple_reducer(op.regions[0]) is None:
        return False
    others = [w for w in WINDOWS[op.name].windows(op) if w.operand_dim != window.operand_dim]
    if all_reducer(op) is None or not all(other.is_plain for other in others) or _skips_rows(op):
        return False
    size = shape_of(op.operands[0])[window.operand_dim]
    same = shape_of(op.results[0]) == shape_of(op.operands[0]) and size == window.extent
    covers = size > 1 and window.stride == window.dilation == 1 and window.start in (0, 1 - size)
    return same and covers and bool(part.env[op.operands[0]][1].axes[window.operand_dim])


def _skips_rows(op: ir.Operation) -> bool:
    if "window_dilations" not in op.attributes:
        return False
    return any(number != 1 for number in ir.DenseI64ArrayAttr(op.attributes["window_dilations"]))


def scan_blocks(
    part: Partitioner, op: ir.Operation, choice: Choice, window: Window, axes: tuple[str, ...]
) -> None:
    """Scans each block, gathers the blocks' totals and combines each with those before it."""
    rule, emit, dim = part.targets.rules[op], part.emit, window.operand_dim
    value, init = op.operands[0], part.whole(op.operands[1])
    size, shards, forward = shape_of(value)[dim], part.targets.mesh.size(axes), window.start < 0
    have = part.env[value][1]
    rows = have.local[dim] if have.axes[dim] == axes else -(-size // shards)
    sharding = choice.sharding(shape_of(value), rule.operands[0], rule).with_dims({dim: (axes, rows)})
    local = emit.fill_padding(part.use(value, sharding), dim, axes, size, init)
    new = part.emit_op(op, [local, init], [sharding])
    _set_window(new, dim, rows, forward)
    scanned = new.results[0]
    last = rows - 1 if forward else 0
    [totals] = emit.all_gather([emit.cut(scanned, dim, last, last + 1)], dim, axes)
    before = _reduced_before(part, op, totals, init, dim, axes, forward)
    kept = [d for d in range(len(sharding.local)) if d != dim]
    before = emit.spread(before, sharding.local, kept)
    reducer = simple_reducer(op.regions[0])
    pair = (before, scanned) if forward else (scanned, before)
    part.env[op.results[0]] = (emit.binary(reducer, *pair), sharding)


def _set_window(op: ir.Operation, dim: int, rows: int, forward: bool) -> None:
    sizes = list(ir.DenseI64ArrayAttr(op.attributes["window_dimensions"]))
    padding = ir.DenseIntElementsAttr(op.attributes["padding"])
    flat = [padding[0]] * (2 * len(sizes)) if padding.is_splat else list(padding)
    pairs = [flat[i : i + 2] for i in range(0, len(flat), 2)]
    sizes[dim], pairs[dim] = rows, [rows - 1, 0] if forward else [0, rows - 1]
    op.attributes["window_dimensions"] = ir.DenseI64ArrayAttr.get(sizes)
    text = ", ".join(f"[{low}, {high}]" for low, high in pairs)
    op.attributes["padding"] = ir.Attribute.parse(f"dense<[{text}]> : tensor<{len(sizes)}x2xi64>")


def _reduced_before(
    part: Partitioner, op: ir.Operation, totals: ir.Value, init: ir.Value, dim: int, axes: tuple[str, ...],
    forward: bool,
) -> ir.Value:  # fmt: skip
    """The totals of the cores before (after) this one, reduced; ``init`` on the first (last)."""
    emit, shape = part.emit, list(totals.type.shape)
    rows = emit.rows(shape[dim])
    mine = emit.broadcast(emit.index(axes), [shape[dim]])
    mask = emit.spread(emit.compare(rows, mine, "LT" if forward else "GT"), shape, [dim])
    totals = emit.select(mask, totals, emit.broadcast(init, shape))
    left = [n for d, n in enumerate(shape) if d != dim]
    reducer = simple_reducer(op.regions[0])
    return emit.reduce(totals, init, dim, left, reducer)
