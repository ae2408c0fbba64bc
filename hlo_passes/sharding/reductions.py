"""Partial results of reductions over sharded factors: what fills padding, how parts are combined."""

from hlo_passes.ir import ir
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.forms import Env

__all__ = ["all_reducer", "combine_parts", "simple_reducer", "splat"]

_ADD = "stablehlo.add"
# Reducers a collective knows, with the test that a scalar constant is their identity.
_IDENTITIES = {
    _ADD: lambda x: x == 0,
    "stablehlo.multiply": lambda x: x == 1,
    "stablehlo.maximum": lambda x: x == float("-inf"),
    "stablehlo.minimum": lambda x: x == float("inf"),
}
_GENERAL = "general"
# Infinities as MLIR prints them: the bits of bf16, f16, f32 and f64.
_INFINITIES = dict.fromkeys(
    ("0x7F80", "0x7C00", "0x7F800000", "0x7FF0000000000000"), float("inf")
) | dict.fromkeys(("0xFF80", "0xFC00", "0xFF800000", "0xFFF0000000000000"), float("-inf"))
# Reducers of two scalars that are one op, which a collective may have or not.
_SIMPLE = {*_IDENTITIES, "stablehlo.and", "stablehlo.or", "stablehlo.xor"}


def simple_reducer(region: ir.Region) -> str | None:
    """The name of the op if ``region`` does nothing but one commutative op on its two arguments."""
    block = region.blocks[0]
    body = [view.operation for view in block.operations]
    if len(body) != 2 or body[0].name not in _SIMPLE or len(block.arguments) != 2:
        return None
    if len(body[0].operands) != 2 or set(body[0].operands) != set(block.arguments):
        return None
    return body[0].name if list(body[1].operands) == [body[0].results[0]] else None


def all_reducer(op: ir.Operation) -> str | None:
    """How the partial results of a ``stablehlo.reduce`` are combined.

    The name of its reducer where a collective has it; "general" where the parts are gathered and reduced
    once more (argmax and other reducers of several values), which takes the initial values for neutral,
    as StableHLO lets every implementation do; None where they certainly are not.
    """
    name = simple_reducer(op.regions[0])
    if len(op.results) != 1 or name not in _IDENTITIES:
        return _GENERAL
    init = op.operands[1].owner
    number = splat(init)
    if number is None:
        return None
    return name if _IDENTITIES[name](number) else _extreme(name, number, init)


def _extreme(reducer: str, number: complex, init: ir.Operation) -> str | None:
    """Integers have no infinity: their largest and smallest values are neutral for min and max."""
    element = init.results[0].type.element_type
    if not isinstance(element, ir.IntegerType):
        return None
    unsigned, bits = element.is_unsigned, element.width
    low = 0 if unsigned or bits == 1 else -(1 << (bits - 1))
    high = (1 << (bits if unsigned or bits == 1 else bits - 1)) - 1
    neutral = {"stablehlo.maximum": low, "stablehlo.minimum": high}.get(reducer)
    return reducer if number == neutral else None


def splat(owner: ir.Operation | ir.Block) -> complex | None:
    """The value of a scalar constant, which may be broadcast to a scalar; None for anything else."""
    if not isinstance(owner, ir.Block) and owner.name == "stablehlo.broadcast_in_dim":
        source = owner.operands[0]
        return None if len(owner.results[0].type.shape) else splat(source.owner)
    if isinstance(owner, ir.Block) or owner.name != "stablehlo.constant":
        return None
    # The bindings do not hand out complex data, and an op's own text takes its whole module's numbering.
    is_complex = isinstance(owner.results[0].type.element_type, ir.ComplexType)
    text = str(owner) if is_complex else str(owner.attributes["value"])
    text = text.partition("dense<")[2].partition("> :")[0]
    if text in _INFINITIES:
        return _INFINITIES[text]
    if text in ("true", "false"):
        return float(text == "true")
    real, _, imaginary = text.strip("()").partition(",")
    try:
        return complex(float(real), float(imaginary)) if imaginary else float(real)
    except ValueError:
        return None


def combine_parts(
    emit: Emitter, env: Env, op: ir.Operation, new: ir.Operation, axes: tuple[str, ...]
) -> ir.Operation | None:
    """Combines the partial results of ``new`` over ``axes``; returns a global op done along the way."""
    reducer = all_reducer(op) if op.name == "stablehlo.reduce" else _ADD
    if reducer == _GENERAL:
        _reduce_gathered(emit, env, op, new, axes)
        return None
    local, sharding = env[op.results[0]]
    narrow = _narrowing(op)
    if narrow is not None:
        # The sum travels in the type it is kept in: half the bytes, and what the device does.
        local = emit.value(
            "stablehlo.convert", [local], local.type.shape, narrow.results[0].type.element_type
        )
    result = (narrow or op).results[0]
    env[result] = (emit.all_reduce(local, axes, reducer), sharding)
    return narrow


def _narrowing(op: ir.Operation) -> ir.Operation | None:
    """The conversion to a narrower float that is the only use of a product, if there is one."""
    uses = [use.owner.operation for use in op.results[0].uses]
    if op.name == "stablehlo.reduce" or len(uses) != 1 or uses[0].name != "stablehlo.convert":
        return None
    old, new = op.results[0].type.element_type, uses[0].results[0].type.element_type
    if not (isinstance(old, ir.FloatType) and isinstance(new, ir.FloatType)) or uses[0].block != op.block:
        return None
    return uses[0] if new.width < old.width else None


def _reduce_gathered(
    emit: Emitter, env: Env, op: ir.Operation, new: ir.Operation, axes: tuple[str, ...]
) -> None:
    """Gathers the parts, all at once, along a new leading dim and reduces that dim with the op's own body."""
    rows = [
        emit.value("stablehlo.reshape", [part], [1, *part.type.shape], part.type.element_type)
        for part in new.results
    ]
    parts = emit.all_gather(rows, 0, axes)
    again = new.clone(ip=emit.point).operation
    for number, value in enumerate(parts):
        again.operands[number] = value
    again.attributes["dimensions"] = ir.DenseI64ArrayAttr.get([0])
    for old, result in zip(op.results, again.results, strict=True):
        env[old] = (result, env[old][1])
