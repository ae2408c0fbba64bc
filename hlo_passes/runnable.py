"""A module of any level as text that XLA takes: without what only this compiler reads."""

from hlo_passes.ir import ir, parse, walk

__all__ = ["runnable_text"]

_ANNOTATIONS = ("neuron.", "sdy.")
_CONSTRAINTS = ("sdy.sharding_constraint", "sdy.reshard", "sdy.sharding_group")


def runnable_text(module: ir.Module) -> str | None:
    """The module without attributes and ops of ours and of Shardy, donation dropped.

    None where it holds ``sdy.manual_computation``, whose meaning is one program on many devices.
    """
    copy = parse(str(module))
    manual = False

    def strip(op: ir.Operation) -> None:
        nonlocal manual
        manual = manual or op.name == "sdy.manual_computation"
        if op.name in _CONSTRAINTS or op.name == "sdy.mesh":
            for result in op.results:
                result.replace_all_uses_with(op.operands[0])
            op.erase()
        else:
            _strip_attributes(op)

    with copy.context, ir.Location.unknown():
        walk(copy.operation, strip)
        _strip_attributes(copy.operation)
    return None if manual else str(copy)


def _strip_attributes(op: ir.Operation) -> None:
    for name in [name for name in op.attributes if name.startswith(_ANNOTATIONS)]:
        del op.attributes[name]
    for key in ("arg_attrs", "res_attrs"):
        if op.name == "func.func" and key in op.attributes:
            del op.attributes[key]
