"""select_and_scatter (the gradient of max pooling) along sharded dims: cores redo the windows they share."""

from dataclasses import dataclass

from hlo_passes.ir import ir
from hlo_passes.ops import direction, kind, operations
from hlo_passes.sharding.choice import Choice
from hlo_passes.sharding.handlers_window import rows_of
from hlo_passes.sharding.partition import Handlers, Partitioner, by_factors
from hlo_passes.sharding.reductions import extremes, simple_reducer, splat
from hlo_passes.sharding.rows import Need, fill_outside, own_rows, result_need
from hlo_passes.sharding.rules import OpRule
from hlo_passes.sharding.spec import shape_of
from hlo_passes.sharding.windows import Window, clear_padding, reduce_window_windows

__all__ = ["HANDLERS"]

# What no window selects, by the direction of the comparison that selects: below or above everything.
_WORST = {"GE": -1, "GT": -1, "LE": 1, "LT": 1}


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """A sharded dim: core i redoes windows ``windows`` (of the source), which read rows ``rows``."""

    dim: int
    axes: tuple[str, ...]
    local: int
    windows: Need
    rows: Need


def _select_and_scatter(part: Partitioner, op: ir.Operation, rule: OpRule) -> None:
    """Cores fetch all windows that touch their rows, add up what falls on them and drop the rest."""
    worst = _worst_value(part, op)
    usable = worst is not None and simple_reducer(op.regions[1]) == "add"
    if not usable or splat(op.operands[2]) != 0:
        part.generic(op)
        return
    choice = part.choose(op, rule)
    pools = _pools(part, op, choice)
    if not pools:
        part.by_rule(op, rule, choice)
        return
    emit, (data, source, init) = part.emit, op.operands
    zero, kept = emit.zero(source.type.element_type), {p.dim: p for p in pools}
    locals_ = []
    for value, dims, fill, which in (
        (data, rule.operands[0], worst, "rows"), (source, rule.operands[1], zero, "windows"),
    ):  # fmt: skip
        lying = part.env[value][1]
        held = {d: (p.axes, lying.local[d]) for d, p in kept.items() if lying.axes[d] == p.axes}
        sharding = choice.sharding(shape_of(value), dims, rule).with_dims(held)
        local = part.use(value, sharding)
        for pool in pools:
            need, size = getattr(pool, which), shape_of(value)[pool.dim]
            local = rows_of(part, op, local, pool.dim, pool.axes, size, need, pool.dim in held)
            local = fill_outside(emit, local, pool.dim, pool.axes, size, need, fill)
        locals_.append(local)
    result = choice.sharding(shape_of(data), rule.results[0], rule)
    result = result.with_dims({p.dim: (p.axes, p.local) for p in pools})
    wide = result.with_dims({p.dim: ((), p.rows.count) for p in pools})
    new = part.emit_op(op, [*locals_, part.whole(init)], [wide])
    for pool in pools:
        clear_padding(new, pool.dim, len(shape_of(data)))
    value = new.results[0]
    for pool in pools:
        own = result_need(shape_of(data)[pool.dim], pool.local, len(pool.rows.starts))
        value = own_rows(emit, value, pool.dim, pool.axes, own, pool.rows.starts)
    part.env[op.results[0]] = (value, result)


def _pools(part: Partitioner, op: ir.Operation, choice: Choice) -> list[_Pool]:
    data, source = op.operands[:2]
    wanted, have = part.wanted(op.results[0]), part.env[data][1]
    used = choice.used
    pools = []
    for window in reduce_window_windows(op):
        dim = window.operand_dim
        axes = next((a for a in (have.axes[dim], wanted.axes[dim]) if a and not used & set(a)), None)
        if axes is None or (window.is_plain and shape_of(data)[dim] == shape_of(source)[dim]):
            continue
        local = have.local[dim] if axes == have.axes[dim] else wanted.local[dim]
        used = used | set(axes)
        pools.append(_pool(window, axes, local, shape_of(data)[dim], part.targets.mesh.size(axes)))
    return pools


def _pool(window: Window, axes: tuple[str, ...], local: int, size: int, shards: int) -> _Pool:
    """Windows o with a row ``window.start + o * stride + 0..extent-1`` in the core's block."""
    begins = [i * local for i in range(shards)]
    ends = [min(begin + local, size) for begin in begins]
    first = [-(-(b - window.start - window.extent + 1) // window.stride) for b in begins]
    last = [(e - 1 - window.start) // window.stride for e in ends]
    valid = [max(z - a + 1, 0) if b < e else 0 for a, z, b, e in zip(first, last, begins, ends, strict=True)]
    count = max(*valid, 1)
    rows = [(n - 1) * window.stride + window.extent if n else 0 for n in (*valid, count)]
    return _Pool(
        dim=window.operand_dim, axes=axes, local=local,
        windows=Need(starts=tuple(first), counts=tuple(valid), count=count),
        rows=Need(
            starts=tuple(window.start + a * window.stride for a in first), counts=tuple(rows[:-1]),
            count=rows[-1],
        ),
    )  # fmt: skip


def _worst_value(part: Partitioner, op: ir.Operation) -> ir.Value | None:
    """A scalar that the op's comparison never selects; None where it does not compare its two arguments."""
    block = op.regions[0].blocks[0]
    body = operations(block)
    first = body[0]
    if len(body) != 2 or kind(first) != "compare" or list(first.operands) != list(block.arguments):
        return None
    element = op.operands[0].type.element_type
    if direction(first) not in _WORST or isinstance(element, ir.ComplexType):
        return None
    emit, sign = part.emit, _WORST[direction(first)]
    if isinstance(element, ir.FloatType):
        bits = "0xFF800000" if sign < 0 else "0x7F800000"
        return emit.convert(emit.constant(ir.Attribute.parse(f"dense<{bits}> : tensor<f32>")), element)
    low, high = extremes(element)
    return emit.constant(ir.Attribute.parse(f"dense<{low if sign < 0 else high}> : tensor<{element}>"))


HANDLERS: Handlers = {"stablehlo.select_and_scatter": by_factors(_select_and_scatter)}
