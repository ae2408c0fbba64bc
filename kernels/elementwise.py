"""Elementwise chains on the vector, scalar and gpsimd engines: when they fuse and what they cost."""

from collections.abc import Sequence

from kernels.dtypes import dtype
from kernels.engines import OpCost, gpsimd_s, lane_elements, scalar_s, vector_s
from kernels.hardware import Core
from kernels.ops import OPS, kinds_priced_as, rule
from kernels.work import OpWork

__all__ = ["CONTROL", "EPILOGUE", "FREE", "MOVES", "engine_of", "legal", "price"]

# Control flow, whose bodies are counted op by op.
CONTROL = frozenset({"after_all", "case", "create_token", "if", "return", "while"})
# Casts and access patterns: they ride along with the op that reads or writes.
FREE = kinds_priced_as("free") - CONTROL
_RANDOM = frozenset({"rng", "rng_bit_generator"})
_ELEMENTWISE = kinds_priced_as("elementwise") - _RANDOM - {"map"}
# What may follow or precede another kernel's main op.
EPILOGUE = _ELEMENTWISE | FREE
# Slices, pads and the like: the addresses of a kernel's own loads and stores.
MOVES = kinds_priced_as("move")
_WORK = _ELEMENTWISE | {"convert", "reduce_precision"}

# tensor_tensor in bf16 keeps up with both operands in SBUF only for these.
_FAST_BF16 = frozenset({"add", "multiply", "subtract"})
# Exact 32-bit integer arithmetic exists on gpsimd alone (the other engines go through f32).
_EXACT_INTEGER = frozenset({"add", "multiply", "subtract"})


def legal(kinds: Sequence[str]) -> bool:
    """At least one elementwise op or cast; besides those only access patterns and moves."""
    if not any(kind in _WORK for kind in kinds):
        return False
    return all(kind in EPILOGUE or kind in MOVES for kind in kinds)


def price(op: OpWork, places: tuple[str, ...], core: Core) -> OpCost:
    """``passes`` instructions over the result; the larger of operand and result where they differ."""
    found = OPS[op.kind]
    if op.activation:
        return _price_activation(op, core)
    size = max((tensor.size for tensor in op.results), default=0)
    elements = max((lane_elements(tensor) for tensor in (*op.results, *op.operands)), default=0)
    engine = engine_of(op)
    if engine == "vector":
        seconds = vector_s(elements, core, cycles=_cycles(op, places, core), passes=found.passes)
    elif engine == "scalar":
        seconds = scalar_s(elements, core, passes=found.passes)
    else:
        seconds = gpsimd_s(elements, core, passes=found.passes)
    return OpCost(
        engine_s={engine: seconds},
        flops=found.flops * size,
        transcendentals=found.transcendentals * size,
        chain=found.passes,
    )


def _price_activation(op: OpWork, core: Core) -> OpCost:
    """One pass of the scalar engine for all its ops; their flops stay those of the ops."""
    found, result = OPS[op.kind], op.results[0]
    flops, transcendentals = found.flops * result.size, found.transcendentals * result.size
    if op.activation == "inside":
        return OpCost(flops=flops, transcendentals=transcendentals)
    seconds = scalar_s(lane_elements(result), core)
    return OpCost(engine_s={"scalar": seconds}, flops=flops, transcendentals=transcendentals, chain=1)


def engine_of(op: OpWork) -> str:
    """The engine of the op's kind, but gpsimd for exact integer arithmetic, scalar for activations."""
    if op.activation:
        return "scalar"
    result = op.results[0].dtype
    if op.kind in _EXACT_INTEGER and dtype(result).is_integer and dtype(result).bits >= 32:
        return "gpsimd"
    return rule(op.kind).engine


def _cycles(op: OpWork, places: tuple[str, ...], core: Core) -> float:
    """Cycles an element: two operands in SBUF share one port and take two, but for bf16 sums and products."""
    full_size = [place for place in places if place != "broadcast"]
    if len(full_size) < 2 or "psum" in full_size:
        return 1.0
    types = {tensor.dtype for tensor in (*op.operands, *op.results)}
    if op.kind in _FAST_BF16 and types == {"bf16"}:
        return 1.0
    return core.vector.pair_cycles
