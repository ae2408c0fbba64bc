"""Ops that move windows over a sharded dim: slice, pad, reverse, reduce_window, convolution."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from distributed.mesh import Mesh
from hlo_passes.collective_ops import size_bytes
from hlo_passes.ir import ir
from hlo_passes.sharding.choice import Choice
from hlo_passes.sharding.cumulative import is_cumulative, scan_blocks
from hlo_passes.sharding.exchange import fetch, moved_rows
from hlo_passes.sharding.partition import Handlers, Partitioner, by_factors
from hlo_passes.sharding.rows import Need, fill_outside, own_rows, owned_rows, result_need
from hlo_passes.sharding.rules import OpRule
from hlo_passes.sharding.spec import Sharding, shape_of
from hlo_passes.sharding.windows import WINDOWS, Window, convolution_dims

__all__ = ["HANDLERS", "rows_of"]


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """A window along a sharded dim. ``axes`` are those of the result, which holds ``local`` rows a core.

    ``summed`` are the axes of an operand of which so few rows are read that all cores get all of them.
    Without any axes it is of a dim that is whole, of which rows are dropped before others are moved.
    ``kernel_dim`` is the dim of a convolution's kernel that is sharded; the results are then partial.
    """

    window: Window
    axes: tuple[str, ...]
    local: int
    need: Need
    summed: tuple[str, ...] = ()
    kernel_dim: int | None = None


def _windowed(part: Partitioner, op: ir.Operation, rule: OpRule) -> None:
    """Each core fetches the rows that its block of the result reads, and does the op on them."""
    row = WINDOWS[op.name]
    choice = part.choose(op, rule)
    cuts = _cuts(part, op, choice)
    if not cuts:
        part.by_rule(op, rule, choice)
        return
    if len(cuts) == 1 and is_cumulative(part, op, cuts[0].window):
        scan_blocks(part, op, choice, cuts[0].window, cuts[0].axes)
        return
    count, first_fill = row.data(op), row.fill(op)
    parts = {c.kernel_dim: c for c in cuts if c.kernel_dim is not None}

    def operand(number: int, value: ir.Value, sharding: Sharding) -> ir.Value:
        if number >= count and parts:
            return _kernel(part, value, sharding, parts)
        if number >= count:
            return part.use(value, sharding)
        fill = None if first_fill is None else part.whole(op.operands[first_fill + number])
        return _operand(part, op, value, sharding, cuts, fill)

    def result(sharding: Sharding) -> Sharding:
        made = [c for c in cuts if c.kernel_dim is None]
        return sharding.with_dims({c.window.result_dim: (c.axes, c.local) for c in made})

    def localize(new: ir.Operation) -> None:
        for cut in cuts:
            row.localize(new, cut.window, cut.need.count)

    summed = tuple(axis for c in parts.values() for axis in c.axes)
    part.emit_with(op, rule, choice, operand=operand, result=result, localize=localize, summed=summed)
    held = tuple(axis for cut in cuts for axis in cut.summed)
    if held:
        local, sharding = part.env[op.results[0]]
        part.env[op.results[0]] = (part.emit.sum_parts(local, held), sharding)


def _cuts(part: Partitioner, op: ir.Operation, choice: Choice) -> list[_Cut]:
    """The windows along dims that are sharded, or shall be; the axes go where less is moved for it."""
    source, target = op.operands[0], op.results[0]
    wanted, have = part.wanted(target), part.env[source][1]
    used = choice.used
    cuts = _contracted(part, op, used) if op.name == "stablehlo.convolution" else []
    used = used | {axis for cut in cuts for axis in cut.axes}
    taken = [cut.window for cut in cuts]
    windows = [w for w in WINDOWS[op.name].windows(op) if w not in taken and _moves(op, w)]
    offers = [
        [(window, wanted.axes[window.result_dim]) for window in windows],
        [(window, have.axes[window.operand_dim]) for window in windows],
    ]
    if math.prod(shape_of(target)) < math.prod(shape_of(source)):
        offers.reverse()
    found = {}
    for window, axes in itertools.chain(*offers):
        if axes and window not in found and not used & set(axes):
            used |= set(axes)
            found[window] = axes
    cuts += [_cut(part, op, window, axes) for window, axes in found.items()]
    if cuts and op.name == "stablehlo.slice":
        return [_dropped(op, window) for window in windows if window not in found] + cuts
    return cuts


def _moves(op: ir.Operation, window: Window) -> bool:
    """Whether rows of the result are not just the same rows of the operand."""
    sizes = shape_of(op.operands[0])[window.operand_dim], shape_of(op.results[0])[window.result_dim]
    return not window.is_plain or sizes[0] != sizes[1]


def _cut(part: Partitioner, op: ir.Operation, window: Window, axes: tuple[str, ...]) -> _Cut:
    """The window along a dim over ``axes``."""
    wanted, shards = part.wanted(op.results[0]), part.targets.mesh.size(axes)
    held = part.env[op.operands[0]][1].axes[window.operand_dim]
    size, rows = shape_of(op.operands[0])[window.operand_dim], shape_of(op.results[0])[window.result_dim]
    extent = (rows - 1) * window.stride + 1
    if op.name == "stablehlo.slice" and held and rows < shards and 2 * extent <= size:
        is_there = not part.forms.lying(op.operands[0]).axes[window.operand_dim]
        return _dropped(op, window) if is_there else replace(_dropped(op, window), summed=axes)
    is_wanted = axes == wanted.axes[window.result_dim]
    local = wanted.local[window.result_dim] if is_wanted else math.ceil(rows / shards)
    return _Cut(window=window, axes=axes, local=local, need=_need(window, rows, local, shards))


def _dropped(op: ir.Operation, window: Window) -> _Cut:
    """All rows that a slice reads of a dim."""
    rows = shape_of(op.results[0])[window.result_dim]
    extent = (rows - 1) * window.stride + 1
    need = Need(starts=(window.start,), counts=(extent,), count=extent)
    return _Cut(window=window, axes=(), local=rows, need=need)


def _contracted(part: Partitioner, op: ir.Operation, used: set[str]) -> list[_Cut]:
    """Spatial dims of a kernel as large as an image (for its gradient): each core takes part of the sum."""
    kernel, result = op.operands[1], op.results[0]
    have = part.env[kernel][1]
    reversal = str(op.attributes["window_reversal"]) if "window_reversal" in op.attributes else ""
    reduced = 2 * math.prod(shape_of(result))
    cuts = []
    for number, window in enumerate(WINDOWS[op.name].windows(op)):
        dim = convolution_dims(op)[1][number]
        axes, local, size = have.axes[dim], have.local[dim], shape_of(kernel)[dim]
        shards = part.targets.mesh.size(axes)
        gathered = math.prod(shape_of(kernel)) // shards * (shards - 1)
        if not axes or used & set(axes) or "true" in reversal or reduced > gathered or size < 2:
            continue
        gap, rows = (window.extent - 1) // (size - 1), shape_of(result)[window.result_dim]
        valid = [min(max(size - i * local, 0), local) for i in range(shards)]
        reach = [(rows - 1) * window.stride + (n - 1) * gap + 1 if n else 0 for n in (*valid, local)]
        starts = tuple(window.start + i * local * gap for i in range(shards))
        need = Need(starts=starts, counts=tuple(reach[:-1]), count=reach[-1])
        cuts.append(_Cut(window=window, axes=axes, local=rows, need=need, kernel_dim=dim))
        used = used | set(axes)
    return cuts


def _kernel(part: Partitioner, value: ir.Value, sharding: Sharding, parts: Mapping[int, _Cut]) -> ir.Value:
    """Each core's block of a kernel, with zeros where it is padding."""
    have, emit = part.env[value][1], part.emit
    local = part.use(value, sharding.with_dims({d: (c.axes, have.local[d]) for d, c in parts.items()}))
    for dim, cut in parts.items():
        if have.local[dim] * part.targets.mesh.size(cut.axes) != shape_of(value)[dim]:
            zero = emit.zero(value.type.element_type)
            local = emit.fill_padding(local, dim, cut.axes, shape_of(value)[dim], zero)
    return local


def _need(window: Window, rows: int, local: int, shards: int) -> Need:
    if not window.is_reversed:
        return result_need(
            rows, local, shards, start=window.start, stride=window.stride, extent=window.extent
        )
    counts = tuple(local if i * local < rows else 0 for i in range(shards))
    return Need(starts=tuple(rows - (i + 1) * local for i in range(shards)), counts=counts, count=local)


def _operand(
    part: Partitioner, op: ir.Operation, value: ir.Value, sharding: Sharding, cuts: list[_Cut],
    fill: ir.Value | None,
) -> ir.Value:  # fmt: skip
    """The rows of ``value`` that the cuts need; its other dims lie as in ``sharding``."""
    have, size = part.forms.lying(value), shape_of(value)
    # A cut dim that is sharded otherwise is first resharded as the result is, so that only edges are fetched.
    kept = {c.window.operand_dim: c.summed or c.axes for c in cuts}
    kept = {
        d: (axes, _rows(part.targets.mesh, have, d, axes, size[d]))
        for d, axes in kept.items() if axes and have.axes[d]
    }  # fmt: skip
    local = part.use(value, sharding.with_dims(kept))
    fill = part.emit.zero(value.type.element_type) if fill is None else fill
    for cut in cuts:
        dim = cut.window.operand_dim
        if cut.summed:
            start = part.emit.scalar(cut.window.start)
            local = owned_rows(part.emit, local, dim, cut.summed, start, cut.need.count)
            continue
        local = _dilated(part, op, local, cut, size[dim], fill, dim in kept)
    return local


def _rows(mesh: Mesh, have: Sharding, dim: int, axes: tuple[str, ...], size: int) -> int:
    """Rows per core of a dim of ``size`` over ``axes``: as they lie, where other axes are gathered."""
    old = have.axes[dim]
    if old[: len(axes)] == axes:
        return have.local[dim] * mesh.size(old[len(axes) :])
    return math.ceil(size / mesh.size(axes))


def _dilated(
    part: Partitioner, op: ir.Operation, local: ir.Value, cut: _Cut, size: int, fill: ir.Value, sharded: bool
) -> ir.Value:
    """Rows of the dilated operand: those of the operand itself, with filling between."""
    emit, dim, gap, need = part.emit, cut.window.operand_dim, cut.window.dilation, cut.need
    if gap == 1:
        local = rows_of(part, op, local, dim, cut.axes, size, need, sharded)
        return fill_outside(emit, local, dim, cut.axes, size, need, fill)
    first = tuple(start // gap for start in need.starts)
    last = tuple((s + c - 1) // gap for s, c in zip(need.starts, need.counts, strict=True))
    plain = Need(
        starts=first, count=(need.count + gap - 2) // gap + 1,
        counts=tuple(b - a + 1 if c else 0 for a, b, c in zip(first, last, need.counts, strict=True)),
    )  # fmt: skip
    local = rows_of(part, op, local, dim, cut.axes, size, plain, sharded)
    local = fill_outside(emit, local, dim, cut.axes, size, plain, fill)
    local = emit.pad(local, dim, 0, 2 * gap, gap - 1, fill)
    return own_rows(emit, local, dim, cut.axes, need, [a * gap for a in first])


def rows_of(
    part: Partitioner, op: ir.Operation, local: ir.Value, dim: int, axes: tuple[str, ...], size: int,
    need: Need, sharded: bool,
) -> ir.Value:  # fmt: skip
    """The rows each core needs of a dim that is sharded over ``axes`` or whole; says so if it gathers."""
    if not sharded:
        return own_rows(part.emit, local, dim, axes, need, [0] * len(need.starts))
    permuted, gathered = moved_rows(need, local.type.shape[dim], range(size))
    if permuted > gathered:
        moved = size_bytes([local]) * (len(need.starts) - 1)
        part.note_gather(
            op, moved, f"its windows along dim {dim} reach beyond the neighbours' blocks",
            f"shard another dim than {dim}, or over fewer cores",
        )  # fmt: skip
    return fetch(part.emit, local, dim, axes, size, need)


HANDLERS: Handlers = dict.fromkeys(WINDOWS, by_factors(_windowed))
