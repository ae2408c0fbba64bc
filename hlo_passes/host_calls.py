"""Calls of the host's kernels as ops: made, recognised, and put together as one call of several."""

from collections.abc import Sequence
from dataclasses import dataclass

from hlo_passes.ir import ir, stablehlo
from hlo_passes.ops import kind, tensor
from kernels.host.targets import Cost

__all__ = ["Decision", "call_together", "is_in_place", "kernel_call", "target_of"]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What became of one op: the ``target`` that computes it and its ``cost``, or the ``reason`` for XLA."""

    op: str
    target: str = ""
    cost: Cost | None = None
    reason: str = ""


def kernel_call(
    target: str, operands: Sequence[ir.Value], results: Sequence[ir.Type], *, shared: Sequence[int] = ()
) -> list[ir.Value]:
    """Calls a kernel of the host on operands that lie in memory as their dims are written.

    Args:
      operands: of one or more calls in one, one call's after the other's.
      shared: of each result, where it is written in place, the operand that it shares its memory with.
    """
    aliases = [_alias(number, operand, len(results)) for number, operand in enumerate(shared)]
    # Without layouts XLA may hand over operands in any order of their dims.
    call = stablehlo.CustomCallOp(
        results,
        operands,
        target,
        api_version=ir.IntegerAttr.get(ir.IntegerType.get_signless(32), 4),
        backend_config=ir.DictAttr.get({}),
        operand_layouts=ir.ArrayAttr.get([_in_order(value.type) for value in operands]),
        result_layouts=ir.ArrayAttr.get([_in_order(result) for result in results]),
        output_operand_aliases=ir.ArrayAttr.get(aliases),
    )
    return list(call.results)


def target_of(op: ir.Operation, targets: frozenset[str]) -> str:
    """Which of the kernels ``targets`` an op calls, or ""."""
    found = op.attributes["call_target_name"].value if kind(op) == "custom_call" else ""
    return found if found in targets else ""


def call_together(call: ir.Operation, rows: Sequence[Sequence[ir.Value]]) -> list[ir.Value]:
    """The results of calls like ``call`` with each of several rows of operands, as one call."""
    in_place = range(len(rows) if is_in_place(call) else 0)
    return kernel_call(
        call.attributes["call_target_name"].value,
        [value for row in rows for value in row],
        [call.results[0].type] * len(rows),
        shared=[number * len(rows[0]) for number in in_place],
    )


def is_in_place(call: ir.Operation) -> bool:
    """Whether each result shares its memory with the first operand of its call."""
    return len(call.attributes["output_operand_aliases"]) > 0


def _in_order(value_type: ir.Type) -> ir.Attribute:
    """The layout with the last dim along memory."""
    rank = len(tensor(value_type).shape)
    return ir.Attribute.parse(f"dense<{list(reversed(range(rank)))}> : tensor<{rank}xindex>")


def _alias(result: int, operand: int, results: int) -> ir.Attribute:
    place = [result] if results > 1 else []
    return ir.Attribute.parse(
        f"#stablehlo.output_operand_alias<output_tuple_indices = {place}, operand_index = {operand}, "
        "operand_tuple_indices = []>"
    )
