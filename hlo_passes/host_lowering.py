"""Puts JIT'd kernels of the host in the place of products and updates in a segment that is about to run.

No pass of the pipeline: programs hold plain StableHLO, and only what this machine is about to run is lowered.
"""

import math
from dataclasses import dataclass, replace

from distributed.joint import Joint
from hlo_passes.host_attention import fuse_attention
from hlo_passes.host_cache import mask_of_columns, softmax_results
from hlo_passes.host_calls import kernel_call, target_of
from hlo_passes.host_groups import flatten, group_calls
from hlo_passes.host_joint import join_cores
from hlo_passes.ir import ir, parse, stablehlo, walk
from hlo_passes.ops import inner_ops, kind, tensor
from kernels.host.targets import (
    ATTENTION,
    FEW_ROWS,
    WEIGHTS,
    Cost,
    filled_target,
    in_pairs,
    matmul_cost,
    matmul_target,
    reads_filled,
    update_cost,
    update_target,
    why_not_matmul,
    why_not_update,
)

__all__ = ["Decision", "Lowered", "lower_text"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What became of one op: the ``target`` that computes it and its ``cost``, or the ``reason`` for XLA."""

    op: str
    target: str = ""
    cost: Cost | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A segment's text with custom calls in it, the ``targets`` they need, and what was decided."""

    text: str
    targets: frozenset[str]
    decisions: tuple[Decision, ...]


def lower_text(text: str, joint: Joint | None = None) -> Lowered:
    """Replaces each op that a kernel takes by a call of the kernel; the rest stays as it is.

    Calls that do not wait for each other are one; with ``joint`` those of all cores.
    """
    if not any(f"stablehlo.{name}" in text for name in ("dot_general", "dynamic_update_slice")):
        return Lowered(text=text, targets=frozenset(), decisions=())
    module = parse(text)
    weights = softmax_results(module)
    decisions: list[Decision] = []

    def visit(op: ir.Operation) -> None:
        if kind(op) == "dot_general":
            decisions.append(_lower_product(op, weights))
        elif kind(op) == "dynamic_update_slice":
            decisions.append(_lower_update(op))

    with module.context, ir.Location.unknown():
        walk(module.operation, visit)
        targets = frozenset(decision.target for decision in decisions if decision.target)
        if targets:
            flatten(module)
            # Launches that are one for all cores are too small to gain by it.
            fused = [] if joint is not None else fuse_attention(module)
            decisions += [Decision(op=name, target=ATTENTION, cost=cost) for name, cost in fused]
            if fused:
                called = (target_of(op, targets | {ATTENTION}) for op in inner_ops(module.operation))
                targets = frozenset(filter(None, called))
            group_calls(module, targets)
        if joint is not None:
            targets |= join_cores(module, joint, targets)
    lowered = module.operation.get_asm(enable_debug_info=False) if targets else text
    return Lowered(text=lowered, targets=targets, decisions=tuple(decisions))


@dataclass(frozen=True, kw_only=True)
class _Operand:
    """One side of a product: its value, and its dims of each role in the order of the product."""

    value: ir.Value
    batch: list[int]
    free: list[int]
    contracting: list[int]

    def sizes(self, dims: list[int]) -> list[int]:
        shape = tensor(self.value.type).shape
        return [shape[dim] for dim in dims]

    def size(self, dims: list[int]) -> int:
        return math.prod(self.sizes(dims))


def _lower_product(op: ir.Operation, softmax: frozenset[ir.Value]) -> Decision:
    left, right = _operands(op)
    # The operand that streams from memory should be the weights, whatever side it stands on.
    swapped = right.size(right.free) <= FEW_ROWS < left.size(left.free)
    x, w = (right, left) if swapped else (left, right)
    w = _stored(w)
    name = f"{_name(left.value)} x {_name(right.value)} -> {_name(op.results[0])}"
    batch, m, n, k = x.size(x.batch), x.size(x.free), w.size(w.free), x.size(x.contracting)
    types = (tensor(x.value.type).dtype, tensor(w.value.type).dtype, tensor(op.results[0].type).dtype)
    reason = why_not_matmul(types, batch=batch, m=m, k=k, n=n, algorithm="algorithm" in op.attributes)
    if reason:
        return Decision(op=name, reason=reason)
    by_rows = w.free != [] and w.contracting != [] and max(w.free) < min(w.contracting)
    # The left operand follows the order in which the weights hold what is summed over.
    order = sorted(range(len(w.contracting)), key=lambda i: w.contracting[i])
    summed_x, summed_w = ([side.contracting[i] for i in order] for side in (x, w))
    with ir.InsertionPoint(op), op.location:
        cached = not swapped and reads_filled(types[1], m=m)
        filled = _filled(op, x, n, softmax, by_rows) if cached else None
        pairs = filled is None and in_pairs(*types[:2], m=m, k=k)
        rows = _arranged(
            _converted(x.value, "bf16" if pairs else "f32"), [x.batch, x.free, summed_x], [batch, m, k]
        )
        sides = [w.free, summed_w] if by_rows else [summed_w, w.free]
        sizes = [batch, n, k] if by_rows else [batch, k, n]
        weights = _arranged(w.value, [w.batch, *sides], sizes)
        if filled is None:
            target = matmul_target(types[1], by_rows=by_rows, pairs=pairs)
        else:
            target = filled_target(types[1], by_rows=by_rows)
        [result] = kernel_call(target, [rows, weights, *(filled or ())], [_type([batch, m, n], "f32")])
        result = _in_the_order_of(op, result, x, w, swapped)
        op.results[0].replace_all_uses_with(result)
    op.erase()
    return Decision(
        op=name, target=target, cost=matmul_cost(types[1], pairs=pairs, batch=batch, m=m, k=k, n=n)
    )


def _filled(
    op: ir.Operation, x: _Operand, n: int, softmax: frozenset[ir.Value], by_rows: bool
) -> list[ir.Value] | None:
    """What the kernel that leaves a part of w unread takes besides x and w; None where it must read all."""
    if not by_rows:
        return [] if x.value in softmax and len(x.contracting) == 1 else None
    mask = mask_of_columns(op.results[0])
    if mask is None or tensor(mask.type).size != n or not _is_known_at(op, mask):
        return None
    return [stablehlo.reshape(_type([n], "i1"), mask)]


def _is_known_at(op: ir.Operation, value: ir.Value) -> bool:
    owner = value.owner
    if isinstance(owner, ir.Block):
        return True
    return owner.operation.block == op.block and owner.operation.is_before_in_block(op)


def _operands(op: ir.Operation) -> tuple[_Operand, _Operand]:
    dims = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    sides = (
        (op.operands[0], dims.lhs_batching_dimensions, dims.lhs_contracting_dimensions),
        (op.operands[1], dims.rhs_batching_dimensions, dims.rhs_contracting_dimensions),
    )
    left, right = (
        _Operand(
            value=value,
            batch=list(batch),
            contracting=list(contracting),
            free=[dim for dim in range(len(tensor(value.type).shape)) if dim not in {*batch, *contracting}],
        )
        for value, batch, contracting in sides
    )
    return left, right


def _stored(w: _Operand) -> _Operand:
    """The weights before transposes and conversions that lose nothing: the kernel reads them as they lie."""
    owner = w.value.owner
    if isinstance(owner, ir.Block):
        return w
    source = owner.operands[0] if len(owner.operands) else w.value
    if kind(owner) == "transpose":
        order = list(ir.DenseI64ArrayAttr(owner.attributes["permutation"]))
        moved = {name: [order[dim] for dim in getattr(w, name)] for name in ("batch", "free", "contracting")}
        return _stored(_Operand(value=source, **moved))
    if kind(owner) == "convert" and tensor(w.value.type).dtype in WEIGHTS.get(tensor(source.type).dtype, ()):
        return _stored(replace(w, value=source))
    return w


def _converted(value: ir.Value, dtype: str) -> ir.Value:
    found = tensor(value.type)
    if found.dtype == dtype:
        return value
    return stablehlo.convert(_type(found.shape, dtype), value)


def _arranged(value: ir.Value, groups: list[list[int]], sizes: list[int]) -> ir.Value:
    """The value with its dims in the order of ``groups``, each group as one dim."""
    order = [dim for group in groups for dim in group]
    if order != sorted(order):
        value = stablehlo.transpose(value, ir.DenseI64ArrayAttr.get(order))
    return stablehlo.reshape(_type(sizes, tensor(value.type).dtype), value)


def _in_the_order_of(op: ir.Operation, value: ir.Value, x: _Operand, w: _Operand, swapped: bool) -> ir.Value:
    """The kernel's [batch, m, n] in the shape, order and type of the product's result."""
    shape = [*x.sizes(x.batch), *x.sizes(x.free), *w.sizes(w.free)]
    value = stablehlo.reshape(_type(shape, "f32"), value)
    if swapped:
        batch, rows, columns = len(x.batch), len(x.free), len(w.free)
        order = [*range(batch), *range(batch + rows, batch + rows + columns), *range(batch, batch + rows)]
        value = stablehlo.transpose(value, ir.DenseI64ArrayAttr.get(order))
    return _converted(value, tensor(op.results[0].type).dtype)


def _lower_update(op: ir.Operation) -> Decision:
    array, update, *starts = op.operands
    found = tensor(array.type)
    name = f"{_name(update)} into {_name(array)}"
    reason = why_not_update(found.dtype, found.shape)
    if reason:
        return Decision(op=name, reason=reason)
    target = update_target(found.dtype)
    with ir.InsertionPoint(op), op.location:
        words = [
            stablehlo.reshape(_type([1], "i64"), stablehlo.convert(_type([], "i64"), start))
            for start in starts
        ]
        places = stablehlo.concatenate(words, 0)
        [result] = kernel_call(target, [array, update, places], [array.type], shared=[0])
        op.results[0].replace_all_uses_with(result)
    op.erase()
    return Decision(op=name, target=target, cost=update_cost(found.dtype, tensor(update.type).shape))


def _type(shape: list[int] | tuple[int, ...], dtype: str) -> ir.Type:
    return ir.Type.parse(f"tensor<{''.join(f'{size}x' for size in shape)}{dtype}>")


def _name(value: ir.Value) -> str:
    found = tensor(value.type)
    return f"{found.dtype}{list(found.shape)}"
