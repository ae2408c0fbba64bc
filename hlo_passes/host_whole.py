"""A program that is one launch on one core, as the one function that its user calls."""

from distributed.program import Launch, Program
from hlo_passes.host_products import typed
from hlo_passes.ir import func, ir, main, parse

__all__ = ["whole_text"]

_SEGMENT = "segment"


def whole_text(program: Program, num_constants: int) -> str | None:
    """StableHLO whose ``@main`` takes the program's last ``num_constants`` inputs, then all others.

    It gives the program's outputs. A donated input shares its memory with the output that it becomes. None
    where the program is for several cores, or more than one launch.
    """
    if program.num_cores > 1 or len(program.main.steps) != 1:
        return None
    [launch] = program.main.steps
    if not isinstance(launch, Launch) or launch.takes_rank:
        return None
    types = {buffer.id: buffer.tensor for buffer in program.buffers}
    inputs, outputs = program.main.arguments, program.main.results
    first = len(inputs) - num_constants
    order = (*inputs[first:], *inputs[:first])
    becomes = {inputs[number]: output for output, number in program.aliases}
    module = parse(program.segments[launch.segment])
    with module.context, ir.Location.unknown():
        one = main(module)
        one.attributes["sym_name"] = ir.StringAttr.get(_SEGMENT)
        one.attributes["sym_visibility"] = ir.StringAttr.get("private")
        one.arg_attrs = ir.ArrayAttr.get([ir.DictAttr.get({}) for _ in launch.operands])

        def mlir_types(numbers: tuple[int, ...]) -> list[ir.Type]:
            return [typed(types[number].shape, types[number].dtype) for number in numbers]

        with ir.InsertionPoint(module.body):
            whole = func.FuncOp("main", (mlir_types(order), mlir_types(outputs)))
        whole.arg_attrs = ir.ArrayAttr.get([_aliasing(becomes.get(number)) for number in order])
        values = dict(zip(order, whole.add_entry_block().arguments, strict=True))
        with ir.InsertionPoint(whole.regions[0].blocks[0]):
            given = [values[number] for number in launch.operands]
            made = func.CallOp(one.type.results, _SEGMENT, given)
            values |= zip(launch.results, made.results, strict=True)
            func.ReturnOp([values[number] for number in outputs])
    return module.operation.get_asm(enable_debug_info=False)


def _aliasing(output: int | None) -> ir.DictAttr:
    if output is None:
        return ir.DictAttr.get({})
    number = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), output)
    return ir.DictAttr.get({"tf.aliasing_output": number})
