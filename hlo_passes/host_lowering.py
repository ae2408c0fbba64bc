"""Puts JIT'd kernels of the host in the place of ops and composites in a segment that is about to run.

No pass of the pipeline: programs hold plain StableHLO, and only what this machine is about to run is lowered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from distributed.joint import Joint
from hlo_passes.host_attention import fuse_attention
from hlo_passes.host_calls import Decision, kernel_call
from hlo_passes.host_groups import flatten, group_calls
from hlo_passes.host_joint import join_cores
from hlo_passes.host_products import (
    arranged,
    converted,
    has_own_algorithm,
    in_the_order_of,
    sides,
    stored,
    typed,
)
from hlo_passes.host_rows import lower_rows
from hlo_passes.ir import ir, parse, stablehlo, walk
from hlo_passes.ops import kind, tensor
from kernels.host.targets import (
    FEW_ROWS,
    in_pairs,
    matmul_cost,
    matmul_target,
    update_cost,
    update_target,
    why_not_matmul,
    why_not_update,
)

__all__ = ["Lowered", "lower_text"]


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
    if not any(name in text for name in _LOWERED):
        return Lowered(text=text, targets=frozenset(), decisions=())
    module = parse(text)
    decisions: list[Decision] = []

    def visit(op: ir.Operation) -> None:
        if kind(op) == "dot_general":
            decisions.append(_lower_product(op))
        elif kind(op) == "dynamic_update_slice":
            decisions.append(_lower_update(op))

    with module.context, ir.Location.unknown():
        of_rows = lower_rows(module)
        flatten(module)
        decisions += fuse_attention(module)
        walk(module.operation, visit)
        targets = _targets(decisions)
        group_calls(module, targets)
        if joint is not None:
            targets |= join_cores(module, joint, targets)
    decisions += of_rows
    targets |= _targets(of_rows)
    lowered = module.operation.get_asm(enable_debug_info=False) if targets else text
    return Lowered(text=lowered, targets=targets, decisions=tuple(decisions))


_LOWERED = ("stablehlo.dot_general", "stablehlo.dynamic_update_slice", "stablehlo.reduce(")


def _targets(decisions: Sequence[Decision]) -> frozenset[str]:
    return frozenset(decision.target for decision in decisions if decision.target)


def _lower_product(op: ir.Operation) -> Decision:
    left, right = sides(op)
    # The operand that streams from memory should be the weights, whatever side it stands on.
    swapped = right.size(right.free) <= FEW_ROWS < left.size(left.free)
    x, w = (right, left) if swapped else (left, right)
    w = stored(w)
    name = f"{_name(left.value)} x {_name(right.value)} -> {_name(op.results[0])}"
    batch, m, n, k = x.size(x.batch), x.size(x.free), w.size(w.free), x.size(x.contracting)
    types = (tensor(x.value.type).dtype, tensor(w.value.type).dtype, tensor(op.results[0].type).dtype)
    reason = why_not_matmul(types, batch=batch, m=m, k=k, n=n, algorithm=has_own_algorithm(op))
    if reason:
        return Decision(op=name, reason=reason)
    by_rows = w.free != [] and w.contracting != [] and max(w.free) < min(w.contracting)
    # The left operand follows the order in which the weights hold what is summed over.
    order = sorted(range(len(w.contracting)), key=lambda i: w.contracting[i])
    summed_x, summed_w = ([side.contracting[i] for i in order] for side in (x, w))
    with ir.InsertionPoint(op), op.location:
        pairs = in_pairs(*types[:2], m=m, k=k)
        rows = arranged(
            converted(x.value, "bf16" if pairs else "f32"), [x.batch, x.free, summed_x], [batch, m, k]
        )
        groups = [w.free, summed_w] if by_rows else [summed_w, w.free]
        sizes = [batch, n, k] if by_rows else [batch, k, n]
        weights = arranged(w.value, [w.batch, *groups], sizes)
        target = matmul_target(types[1], by_rows=by_rows, pairs=pairs)
        [result] = kernel_call(target, [rows, weights], [typed([batch, m, n], "f32")])
        result = in_the_order_of(op, result, x, w, swapped=swapped)
        op.results[0].replace_all_uses_with(result)
    op.erase()
    return Decision(
        op=name, target=target, cost=matmul_cost(types[1], pairs=pairs, batch=batch, m=m, k=k, n=n)
    )


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
            stablehlo.reshape(typed([1], "i64"), stablehlo.convert(typed([], "i64"), start))
            for start in starts
        ]
        places = stablehlo.concatenate(words, 0)
        [result] = kernel_call(target, [array, update, places], [array.type], shared=[0])
        op.results[0].replace_all_uses_with(result)
    op.erase()
    return Decision(op=name, target=target, cost=update_cost(found.dtype, tensor(update.type).shape))


def _name(value: ir.Value) -> str:
    found = tensor(value.type)
    return f"{found.dtype}{list(found.shape)}"
