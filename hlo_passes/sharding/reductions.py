"""Partial results of reductions over sharded factors: what fills padding, how parts are combined."""

from hlo_passes.collective_ops import reducer
from hlo_passes.ir import ir
from hlo_passes.ops import maker
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.forms import Env

__all__ = ["all_reducer", "combine_parts", "extremes", "simple_reducer", "splat"]

_ADD = "add"
# Reducers a collective knows, with the test that a scalar constant is their identity.
_IDENTITIES = {
    _ADD: lambda x: x == 0,
    "multiply": lambda x: x == 1,
    "maximum": lambda x: x == float("-inf"),
    "minimum": lambda x: x == float("inf"),
}
_GENERAL = "general"
# Infinities as MLIR prints them: the bits of bf16, f16, f32 and f64.
_INFINITIES = dict.fromkeys(
    ("0x7F80", "0x7C00", "0x7F800000", "0x7FF0000000000000"), float("inf")
) | dict.fromkeys(("0xFF80", "0xFC00", "0xFF800000", "0xFFF0000000000000"), float("-inf"))
# Reducers of two scalars that are one op, which a collective may have or not.
_SIMPLE = {*_IDENTITIES, "and", "or", "xor"}


def simple_reducer(region: ir.Region) -> str | None:
    """The name of the op if ``region`` does nothing but one commutative op on its two arguments."""
    name = reducer(region)
    return name if name in _SIMPLE else None


def all_reducer(op: ir.Operation) -> str | None:
    """How the partial results of a ``stablehlo.reduce`` are combined.

    The name of its reducer where a collective has it; "general" where the parts are gathered and reduced
    once more (argmax and other reducers of several values), which takes the initial values for neutral,
    as StableHLO lets every implementation do; None where they certainly are not.
    """
    name = simple_reducer(op.regions[0])
    if len(op.results) != 1 or name not in _IDENTITIES:
        return _GENERAL
    init = op.operands[1]
    number = splat(init)
    if number is None:
        return None
    return name if _IDENTITIES[name](number) else _extreme(name, number, init.type.element_type)


def _extreme(name: str, number: complex, element: ir.Type) -> str | None:
    """Integers have no infinity: their largest and smallest values are neutral for min and max."""
    if not isinstance(element, ir.IntegerType):
        return None
    low, high = extremes(element)
    return name if number == {"maximum": low, "minimum": high}.get(name) else None


def extremes(element: ir.IntegerType) -> tuple[int, int]:
    """The smallest and the largest number of an integer type."""
    bits = element.width
    if element.is_unsigned or bits == 1:
        return 0, (1 << bits) - 1
    return -1 << (bits - 1), (1 << (bits - 1)) - 1


def splat(value: ir.Value) -> complex | None:
    """The value of a scalar constant, which may be broadcast to a scalar; None for anything else."""
    op = maker(value)
    if op is not None and op.name == "stablehlo.broadcast_in_dim":
        return None if len(value.type.shape) else splat(op.operands[0])
    if op is None or op.name != "stablehlo.constant":
        return None
    # The bindings do not hand out complex data, and an op's own text takes its whole module's numbering.
    is_complex = isinstance(value.type.element_type, ir.ComplexType)
    text = str(op) if is_complex else str(op.attributes["value"])
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
    name = all_reducer(op) if op.name == "stablehlo.reduce" else _ADD
    if name == _GENERAL:
        _reduce_gathered(emit, env, op, new, axes)
        return None
    local, sharding = env[op.results[0]]
    narrow = _narrowing(op)
    if narrow is not None:
        # The sum travels in the type it is kept in: half the bytes, and what the device does.
        local = emit.convert(local, narrow.results[0].type.element_type)
    result = (narrow or op).results[0]
    env[result] = (emit.all_reduce(local, axes, name), sharding)
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
    rows = [emit.reshape(part, [1, *part.type.shape]) for part in new.results]
    again = emit.copy(new, emit.all_gather(rows, 0, axes))
    again.attributes["dimensions"] = ir.DenseI64ArrayAttr.get([0])
    for old, result in zip(op.results, again.results, strict=True):
        env[old] = (result, env[old][1])
