"""The text of a launch: a self-contained StableHLO module, equal for equal launches."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hlo_passes.ir import func, ir
from hlo_passes.ops import KERNEL_PREFIX, is_composite, kind
from hlo_passes.work import WorkTable

__all__ = ["Sketch", "write_segment"]


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A launch to be written: ``ops`` in order, what they take and what is wanted of them.

    ``inlined`` are constants and ``replica_id`` by result, made inside. ``donated`` are (input, output)
    numbers that share memory.
    """

    ops: Sequence[ir.Operation]
    inputs: Sequence[ir.Value]
    outputs: Sequence[ir.Value]
    inlined: Mapping[ir.Value, ir.Operation]
    donated: tuple[tuple[int, int], ...]
    takes_rank: bool


def write_segment(sketch: Sketch, table: WorkTable) -> tuple[str, str]:
    """The text of the launch that ``sketch`` describes, and its key: a digest of the text."""
    rank_type = ir.RankedTensorType.get([], ir.IntegerType.get_unsigned(32))
    types = [rank_type] * sketch.takes_rank + [value.type for value in sketch.inputs]
    module = ir.Module.create(ir.Location.unknown())
    with ir.InsertionPoint(module.body):
        main = func.FuncOp("main", (types, [value.type for value in sketch.outputs]))
    block = main.add_entry_block()
    arguments = list(block.arguments)
    known = dict(zip(sketch.inputs, arguments[sketch.takes_rank :], strict=True))
    names: dict[str, str] = {}
    with ir.InsertionPoint(block):
        for op in sketch.ops:
            _copy(op, known, sketch, arguments, names)
        func.ReturnOp([known[value] for value in sketch.outputs])
    _mark_donated(main, sketch)
    for old, new in names.items():
        copy = table.functions[old].clone(ip=ir.InsertionPoint(module.body))
        copy.operation.attributes["sym_name"] = ir.StringAttr.get(new)
    text = module.operation.get_asm(enable_debug_info=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16], text


def _copy(
    op: ir.Operation,
    known: dict[ir.Value, ir.Value],
    sketch: Sketch,
    arguments: list[ir.Value],
    names: dict[str, str],
) -> None:
    """Adds a copy of ``op`` at the insertion point; ``known`` maps values to what stands for them."""
    if kind(op) == "replica_id":
        known[op.results[0]] = arguments[0]
        return
    for value in op.operands:
        if value not in known:
            _copy(sketch.inlined[value], known, sketch, arguments, names)
    copy = op.clone().operation
    for number, value in enumerate(op.operands):
        copy.operands[number] = known[value]
    if "neuron.hbm_offset" in copy.attributes:
        del copy.attributes["neuron.hbm_offset"]
    if is_composite(op):
        name = _canonical(op.attributes["decomposition"].value, names)
        copy.attributes["decomposition"] = ir.FlatSymbolRefAttr.get(name)
    known.update(zip(op.results, copy.results, strict=True))


def _canonical(name: str, names: dict[str, str]) -> str:
    """``neuron.<kernel>.<i>``, counted per kernel in order of first use within the segment."""
    if name not in names:
        kernel = name.removeprefix(KERNEL_PREFIX).rpartition(".")[0]
        same = sum(other.startswith(f"{KERNEL_PREFIX}{kernel}.") for other in names.values())
        names[name] = f"{KERNEL_PREFIX}{kernel}.{same}"
    return names[name]


def _mark_donated(main: func.FuncOp, sketch: Sketch) -> None:
    if not sketch.donated:
        return
    integer = ir.IntegerType.get_signless(32)
    outputs = {number + sketch.takes_rank: result for number, result in sketch.donated}
    main.attributes["arg_attrs"] = ir.ArrayAttr.get(
        [
            ir.DictAttr.get({"tf.aliasing_output": ir.IntegerAttr.get(integer, outputs[number])})
            if number in outputs
            else ir.DictAttr.get({})
            for number in range(len(main.arguments))
        ]
    )
