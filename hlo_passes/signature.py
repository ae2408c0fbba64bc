"""The type and the argument and result attributes of ``main``, read and written together."""

from collections.abc import Mapping, Sequence

from hlo_passes.ir import func, ir
from hlo_passes.ops import terminator

__all__ = ["ALIAS", "Attributes", "read_attributes", "write_signature"]

ALIAS = "tf.aliasing_output"
"""The attribute of a donated argument: the result that takes its memory."""

Attributes = Mapping[str, Sequence[Mapping[str, ir.Attribute]]]
"""``arg_attrs`` and ``res_attrs``, one dictionary an argument and result; equal ones may be one object."""


def read_attributes(function: func.FuncOp) -> Attributes:
    """Empty dictionaries where there are none."""
    counts = {"arg_attrs": len(function.type.inputs), "res_attrs": len(function.type.results)}
    known: dict[ir.Attribute, Mapping[str, ir.Attribute]] = {}

    def read(entry: ir.DictAttr) -> Mapping[str, ir.Attribute]:
        if entry not in known:
            known[entry] = {item.name: item.attr for item in entry}
        return known[entry]

    return {
        key: [read(entry) for entry in function.attributes[key]]
        if key in function.attributes
        else [{}] * count
        for key, count in counts.items()
    }


def write_signature(function: func.FuncOp, attributes: Attributes) -> None:
    """Gives ``function`` the type that its block has, with ``attributes``; a context must be active."""
    block = function.entry_block
    types = [[value.type for value in values] for values in (block.arguments, terminator(block).operands)]
    function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(*types))
    for key, rows in attributes.items():
        function.attributes[key] = ir.ArrayAttr.get([ir.DictAttr.get(row) for row in rows])
