"""The inliner: every ``func.call`` reachable from the entry function becomes the callee's ops."""

from collections.abc import Iterator

from hlo_passes.ir import func, functions, ir, sdy, source_line, walk
from hlo_passes.ops import inner_ops, operations, terminator
from kernels.errors import CompileError

__all__ = ["inline_calls"]

_SHARDING = "sdy.sharding"


def inline_calls(module: ir.Module, entry: func.FuncOp) -> None:
    """Inlines all calls into ``entry``, in place, and drops every other function.

    Calls inside regions are inlined too. An op that came from a callee keeps its location as the callee
    part of a call-site location, so that an error names the innermost line and the profile the way there.
    Shardings on a callee's arguments and results become sharding constraints.

    Raises:
      CompileError: a call is recursive, or its callee has no body or does not exist.
    """
    found = functions(module)
    with module.context:
        for function in _callees_first(entry, found):
            for call in list(_calls(function)):
                _inline(call, found[call.callee.value])
    for name, function in found.items():
        if name != entry.name.value:
            function.operation.erase()


def _calls(function: func.FuncOp) -> Iterator[func.CallOp]:
    return (op.opview for op in inner_ops(function.operation) if op.name == "func.call")


def _callees_first(entry: func.FuncOp, known: dict[str, func.FuncOp]) -> list[func.FuncOp]:
    """Functions reachable from ``entry``, each after all it calls."""
    order: dict[str, func.FuncOp] = {}
    open_calls: list[str] = []

    def visit(function: func.FuncOp) -> None:
        open_calls.append(function.name.value)
        for call in _calls(function):
            name = call.callee.value
            _check_call(call, known, open_calls)
            if name not in order:
                visit(known[name])
        order[open_calls.pop()] = function

    visit(entry)
    return list(order.values())


def _check_call(call: func.CallOp, known: dict[str, func.FuncOp], open_calls: list[str]) -> None:
    name, location = call.callee.value, source_line(call)
    if name not in known or known[name].is_external:
        raise CompileError(
            f"function @{name} has no body", op="func.call", location=location, fix="define it in the module"
        )
    if name in open_calls:
        raise CompileError(
            f"function @{name} calls itself: {' -> '.join([*open_calls, name])}",
            op="func.call",
            location=location,
            fix="write the recursion as lax.while_loop or lax.scan",
        )


def _inline(call: func.CallOp, callee: func.FuncOp) -> None:
    site = call.operation
    copy = callee.operation.clone(ip=False).opview
    block = copy.regions[0].blocks[0]
    _apply_shardings(copy)
    for argument, operand in zip(block.arguments, list(site.operands), strict=True):
        argument.replace_all_uses_with(operand)
    *ops, end = operations(block)
    for op in ops:
        op.move_before(site)
        _mark_call_site(op, site.location)
    for result, returned in zip(site.results, list(end.operands), strict=True):
        result.replace_all_uses_with(returned)
    site.erase()


def _mark_call_site(op: ir.Operation, site: ir.Location) -> None:
    def mark(one: ir.Operation) -> None:
        one.location = ir.Location.callsite(one.location, [site])

    walk(op, mark)
    mark(op)


def _apply_shardings(function: func.FuncOp) -> None:
    """Turns ``sdy.sharding`` of arguments and results into constraints inside the function."""
    block = function.regions[0].blocks[0]
    end = terminator(block)
    for argument, sharding in _shardings(function, "arg_attrs", list(block.arguments)):
        with ir.InsertionPoint.at_block_begin(block), function.location:
            constraint = sdy.ShardingConstraintOp(argument, sharding)
        argument.replace_all_uses_except(constraint.result, constraint.operation)
    for index, sharding in _shardings(function, "res_attrs", range(len(end.operands))):
        with ir.InsertionPoint(end), end.location:
            end.operands[index] = sdy.ShardingConstraintOp(end.operands[index], sharding).result


def _shardings(function: func.FuncOp, key: str, items: list | range) -> Iterator[tuple]:
    if key not in function.attributes:
        return
    for item, attributes in zip(items, function.attributes[key], strict=True):
        if _SHARDING in attributes:
            yield item, attributes[_SHARDING]
