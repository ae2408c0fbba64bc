"""Moves a region of ops into a function of its own and puts a ``neuron.<kernel>`` composite in its place."""

from hlo_passes.graph import Graph, Node
from hlo_passes.ir import func, functions, ir, stablehlo
from hlo_passes.ops import KERNEL_PREFIX, nested_operands

__all__ = ["Outliner"]


class Outliner:
    """Outlines regions of one module; regions of equal text share one decomposition function."""

    def __init__(self, module: ir.Module) -> None:
        self._module = module
        self._named: dict[tuple[str, str], str] = {}
        self._taken = set(functions(module))
        self._next: dict[str, int] = {}
        self._spare: list[func.FuncOp] = []

    def finish(self) -> None:
        """Erases the functions that turned out equal to earlier ones; values of the old ops die here."""
        for function in self._spare:
            function.operation.erase()

    def outline(self, graph: Graph, numbers: list[int], kernel: str, before: ir.Operation) -> ir.Operation:
        """Replaces the nodes ``numbers`` (ascending) by one composite placed in front of ``before``."""
        nodes = [graph.nodes[number] for number in numbers]
        made = {result for node in nodes for result in node.op.results}
        reads = dict.fromkeys(value for node in nodes for value in node.reads if value not in made)
        inputs = [graph.now.get(value, value) for value in reads]
        members = set(numbers)
        outputs = [
            result
            for node in nodes
            for result in node.op.results
            if not graph.readers.get(result, set()) <= members
        ]
        location = _location(nodes)
        function = self._empty_function(inputs, outputs, location)
        with ir.InsertionPoint(before), location:
            name = KERNEL_PREFIX + kernel
            types = [value.type for value in outputs]
            composite = stablehlo.CompositeOp(types, inputs, name, decomposition=name).operation
        _move(graph, nodes, inputs, outputs, function)
        for old, new in zip(outputs, composite.results, strict=True):
            _replace_outside(old, new, function.operation)
            graph.now[old] = new
        composite.attributes["decomposition"] = ir.FlatSymbolRefAttr.get(self._share(function, kernel))
        return composite

    def _empty_function(self, inputs: list, outputs: list, location: ir.Location) -> func.FuncOp:
        signature = ir.FunctionType.get([value.type for value in inputs], [value.type for value in outputs])
        with ir.InsertionPoint(self._module.body), location:
            function = func.FuncOp("kernel", signature, visibility="private")
        function.add_entry_block(arg_locs=[location] * len(inputs))
        return function

    def _share(self, function: func.FuncOp, kernel: str) -> str:
        """Names ``function``, or lays it aside where an equal one is there already; returns the name."""
        key = (kernel, function.operation.get_asm(enable_debug_info=False, use_local_scope=True))
        if key in self._named:
            self._spare.append(function)
            return self._named[key]
        number = self._next.get(kernel, 0)
        while (name := f"{KERNEL_PREFIX}{kernel}.{number}") in self._taken:
            number += 1
        self._next[kernel] = number + 1
        self._taken.add(name)
        function.attributes["sym_name"] = ir.StringAttr.get(name)
        self._named[key] = name
        return name


def _location(nodes: list[Node]) -> ir.Location:
    """The last op's location first (the one the user would name the region by), then the others'."""
    unknown = ir.Location.unknown(nodes[0].op.context)
    different = {where.attr: where for where in (node.op.location for node in reversed(nodes))}
    known = [where for where in different.values() if where != unknown]
    if not known:
        return unknown
    return known[0] if len(known) == 1 else ir.Location.fused(known, context=nodes[0].op.context)


def _move(graph: Graph, nodes: list[Node], inputs: list, outputs: list, function: func.FuncOp) -> None:
    body = function.entry_block
    end = func.ReturnOp(outputs, ip=ir.InsertionPoint(body), loc=function.location).operation
    inner = dict(zip(inputs, body.arguments, strict=True))
    for node in nodes:
        for op, number, value in list(nested_operands(node.op)):
            if value in inner or value in graph.free:
                op.operands[number] = _inside(graph, value, inner, end)
        node.op.move_before(end)


def _inside(graph: Graph, value: ir.Value, inner: dict[ir.Value, ir.Value], end: ir.Operation) -> ir.Value:
    """What stands for ``value`` inside the function; free ops are made again there."""
    if value not in inner and value in graph.free:
        operands = [_inside(graph, operand, inner, end) for operand in graph.free[value].operands]
        copy = graph.free[value].clone(ip=ir.InsertionPoint(end)).operation
        for number, operand in enumerate(operands):
            copy.operands[number] = operand
        inner[value] = copy.results[0]
    return inner.get(value, value)


def _replace_outside(old: ir.Value, new: ir.Value, function: ir.Operation) -> None:
    for use in list(old.uses):
        owner = use.owner.operation
        if _enclosing_function(owner) != function:
            owner.operands[use.operand_number] = new


def _enclosing_function(op: ir.Operation) -> ir.Operation:
    while op.name != "func.func":
        op = op.parent.operation
    return op
