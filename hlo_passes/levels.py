"""What is legal at each level of the IR, as a table, and the checker that runs between passes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from hlo_passes.ir import functions, ir, main, source_line
from hlo_passes.ops import COLLECTIVES, CONTROL, holds_collective, inner_ops, kind
from hlo_passes.reject import DYNAMIC_OPS, HOST_OPS, argument_attributes

__all__ = ["LEVELS", "Level", "LevelError", "check_level", "violations"]


class LevelError(AssertionError):
    """A pass left something its level does not allow: a bug of the pass, not of the program."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """The rules of one level.

    ``op_dialects`` are all that may occur; ``no_ops`` may not, whatever their dialect, nor attributes of
    ``no_attribute_prefixes``. ``rules`` look at the whole module and yield one sentence for each breach.
    """

    name: str
    no_ops: tuple[str, ...]
    rules: tuple[Callable[[ir.Module], Iterator[str]], ...]
    op_dialects: tuple[str, ...] = ("func", "stablehlo")
    no_attribute_prefixes: tuple[str, ...] = ("sdy.",)


def violations(module: ir.Module, level: str) -> list[str]:
    """What ``module`` has that ``level`` does not allow, one sentence each; empty if it is legal."""
    row = LEVELS[level]
    found = list(_attribute_violations(module.operation, module.operation.attributes, row))
    found += [complaint for op in inner_ops(module.operation) for complaint in _op_violations(op, row)]
    return found + [complaint for rule in row.rules for complaint in rule(module)]


def check_level(module: ir.Module, level: str, after: str) -> None:
    """Raises LevelError where ``module`` is not at ``level`` after the pass ``after``."""
    found = violations(module, level)
    if found:
        raise LevelError(f"after {after} the module is not at level {level}:\n  " + "\n  ".join(found[:10]))


def _op_violations(op: ir.Operation, level: Level) -> Iterator[str]:
    dialect, _, mnemonic = op.name.partition(".")
    where = f"{op.name} ({source_line(op) or op.location})"
    if dialect not in level.op_dialects:
        yield f"{where}: no op of dialect {dialect}"
    if mnemonic in level.no_ops:
        yield f"{where}: not allowed"
    for attributes in [op.attributes, *argument_attributes(op)]:
        yield from _attribute_violations(op, attributes, level)


def _attribute_violations(op: ir.Operation, attributes: Iterable, level: Level) -> Iterator[str]:
    for name in attributes:
        name = name if isinstance(name, str) else name.name
        if name.startswith(level.no_attribute_prefixes):
            yield f"{op.name} ({source_line(op)}): attribute {name} not allowed"


def _has_one_main(module: ir.Module) -> Iterator[str]:
    names = list(functions(module))
    if names != ["main"]:
        yield f"exactly one function @main, got {names}"


def _cross_replica_collectives(module: ir.Module) -> Iterator[str]:
    for op in inner_ops(module.operation):
        if kind(op) in COLLECTIVES:
            for name in ("channel_handle", "use_global_device_ids"):
                if name in op.attributes:
                    yield f"{op.name} ({source_line(op)}): {name}, but collectives are cross-replica"


def _says_its_layout(module: ir.Module) -> Iterator[str]:
    for name in ("neuron.mesh", "mhlo.num_replicas"):
        if name not in module.operation.attributes:
            yield f"module attribute {name} is missing"
    function = main(module)
    counts = {"arg_attrs": len(function.type.inputs), "res_attrs": len(function.type.results)}
    for key, count in counts.items():
        rows = list(function.attributes[key]) if key in function.attributes else []
        missing = [i for i in range(count) if i >= len(rows) or "neuron.global_type" not in rows[i]]
        if missing:
            yield f"{key} of @main without neuron.global_type: {missing}"


def _is_fused(module: ir.Module) -> Iterator[str]:
    yield from _unfused(main(module).operation)


def _unfused(op: ir.Operation) -> Iterator[str]:
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _unfused_op(inner.operation)


def _unfused_op(op: ir.Operation) -> Iterator[str]:
    name = op.name.removeprefix("stablehlo.")
    if name in CONTROL and holds_collective(op):
        yield from _unfused(op)
    elif name == "composite":
        if not op.attributes["name"].value.startswith("neuron."):
            yield f"composite {op.attributes['name'].value} is not a kernel"
    elif name not in (*COLLECTIVES, "replica_id", "constant", "return", "func.return") and not _is_scalar(op):
        yield f"{op.name} ({source_line(op)}): outside any kernel"


def _is_scalar(op: ir.Operation) -> bool:
    return all(not ir.RankedTensorType(value.type).shape for value in [*op.operands, *op.results])


def _has_places(module: ir.Module) -> Iterator[str]:
    if "neuron.hbm_bytes" not in module.operation.attributes:
        yield "module attribute neuron.hbm_bytes is missing"
    for block in main(module).regions[0].blocks:
        for inner in block.operations:
            op = inner.operation
            if len(op.results) and "neuron.hbm_offset" not in op.attributes:
                yield f"{op.name} ({source_line(op)}): no neuron.hbm_offset"


_NEVER = (*HOST_OPS, *DYNAMIC_OPS, "tuple", "get_tuple_element", "call")
_LOCAL_RULES = (_cross_replica_collectives, _says_its_layout)

_ROWS = (
    Level(
        name="global", op_dialects=("func", "stablehlo", "sdy"), no_ops=(*_NEVER, "composite"),
        no_attribute_prefixes=("neuron.",), rules=(_has_one_main,),
    ),
    Level(
        name="local", no_ops=(*_NEVER, "composite", "partition_id"), rules=(_has_one_main, *_LOCAL_RULES)
    ),
    Level(name="fused", no_ops=(*_NEVER, "partition_id"), rules=(*_LOCAL_RULES, _is_fused)),
    Level(name="planned", no_ops=(*_NEVER, "partition_id"), rules=(*_LOCAL_RULES, _is_fused, _has_places)),
)  # fmt: skip
LEVELS = {level.name: level for level in _ROWS}
