"""What may be fused with what, as tables: the class of every op, the rules that join classes, the names."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from hlo_passes.ir import ir
from hlo_passes.ops import COLLECTIVES, CONTROL, holds_collective, is_composite, is_scalar, kind, tensor
from kernels.ops import kinds_priced_as
from kernels.table import KERNELS

__all__ = ["NEARBY", "RULES", "Join", "Region", "Rule", "group_of", "is_free", "kernel_name", "region_of"]

# Priced as they are, but a kernel of their own, or one that moves data.
_APART = frozenset({
    "batch_norm_grad", "batch_norm_inference", "batch_norm_training", "dynamic_iota", "iota", "map", "rng",
    "rng_bit_generator", "uniform_dequantize", "uniform_quantize",
})  # fmt: skip
# The engines see each element apart in these as well.
_VIEWED = frozenset({"bitcast_convert", "complex", "convert", "imag", "real", "reduce_precision"})
ELEMENTWISE = (kinds_priced_as("elementwise") - _APART) | _VIEWED

# Made again inside every kernel that reads them, rather than stored in HBM: what they read is no more than
# what they make.
_FREE = frozenset(
    {"broadcast_in_dim", "constant", "dynamic_slice", "iota", "reduce_precision", "reshape", "slice"}
)


def is_free(op: ir.Operation) -> bool:
    """Whether a kernel that reads the op's result makes it again; so is what widens a float."""
    name = kind(op)
    if name != "convert":
        return name in _FREE
    before, after = (value.type.element_type for value in (op.operands[0], op.results[0]))
    are_floats = isinstance(before, ir.FloatType) and isinstance(after, ir.FloatType)
    return are_floats and before.width < after.width


_MOVES = (
    "transpose", "concatenate", "pad", "reverse", "dynamic_slice", "dynamic_update_slice", "broadcast_in_dim",
    "constant", "iota",
)  # fmt: skip
_GROUPS = {
    "dot_general": "matmul",
    "convolution": "convolution",
    "reduce": "reduce",
    "gather": "gather_scatter",
    "scatter": "gather_scatter",
    **dict.fromkeys(ELEMENTWISE, "elementwise"),
    **dict.fromkeys(_MOVES, "data_movement"),
    "reshape": "view",
    "slice": "view",
}

# A value read by more kernels than this (an attention mask, say) is stored by a kernel of its own, so that
# equal layers stay equal: it does not join the first of its readers.
_MAX_READERS = 8
# Readers within so many ops are the value's own neighbourhood (a polynomial reads its argument two
# dozen times), not other layers.
NEARBY = 80


@dataclass(kw_only=True)
class Region:
    """Ops on their way to one kernel.

    ``size`` is the number of elements the kernel runs over; for a reduction that of its input, and
    ``rows`` that of its result, ``signature`` the reduced shape and dims.
    """

    group: str
    kinds: tuple[str, ...]
    varying: bool
    size: int
    rows: int | None = None
    signature: tuple | None = None
    integer: bool = False


@dataclass(frozen=True, kw_only=True)
class Join:
    """A producer about to join the region of its consumer; ``sole``: nobody else reads the producer.

    ``reader_kinds`` are the ops that read the producer, ``readers`` how many they are.
    """

    producer: Region
    consumer: Region
    reader_kinds: frozenset[str]
    sole: bool
    readers: int


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Producer and consumer become one region of class ``becomes``, if ``when`` says so."""

    becomes: str
    when: Callable[[Join], bool]


_PRODUCTS = frozenset({"dot_general", "convolution"})


def _few(join: Join) -> bool:
    return join.readers <= _MAX_READERS


def _same_size(join: Join) -> bool:
    return join.producer.size == join.consumer.size and _few(join)


def _operand_made_for_it(join: Join) -> bool:
    return join.sole and join.producer.size <= join.consumer.size


def _same_size_or_operand(join: Join) -> bool:
    return _same_size(join) or _operand_made_for_it(join)


def _cheap_prologue(join: Join) -> bool:
    """Type changes on the way in; or, for an epilogue op, its other operand."""
    if join.reader_kinds & _PRODUCTS:
        return join.sole and set(join.producer.kinds) <= {"convert"}
    return _operand_made_for_it(join)


def _after_reduction(join: Join) -> bool:
    return join.consumer.size in (join.producer.size, join.producer.rows)


def _same_reduction(join: Join) -> bool:
    return join.producer.signature == join.consumer.signature


def _index_arithmetic(join: Join) -> bool:
    return join.sole and join.producer.integer


def _sole(join: Join) -> bool:
    return join.sole


def _always(join: Join) -> bool:
    return True


RULES: dict[tuple[str, str], Rule] = {
    ("matmul", "elementwise"): Rule(becomes="matmul", when=_same_size),
    ("convolution", "elementwise"): Rule(becomes="convolution", when=_same_size),
    ("elementwise", "matmul"): Rule(becomes="matmul", when=_cheap_prologue),
    ("elementwise", "convolution"): Rule(becomes="convolution", when=_cheap_prologue),
    ("elementwise", "elementwise"): Rule(becomes="elementwise", when=_same_size_or_operand),
    ("elementwise", "reduce"): Rule(becomes="reduce", when=_same_size_or_operand),
    ("reduce", "elementwise"): Rule(becomes="reduce", when=_after_reduction),
    ("reduce", "reduce"): Rule(becomes="reduce", when=_same_reduction),
    ("data_movement", "data_movement"): Rule(becomes="data_movement", when=_sole),
    ("elementwise", "gather_scatter"): Rule(becomes="gather_scatter", when=_index_arithmetic),
    ("data_movement", "gather_scatter"): Rule(becomes="gather_scatter", when=_index_arithmetic),
    # Legal only where the moves are ones the kernel's own loads and stores can do (see its ``legal``).
    ("matmul", "data_movement"): Rule(becomes="matmul", when=_same_size),
    ("data_movement", "matmul"): Rule(becomes="matmul", when=_sole),
    ("data_movement", "elementwise"): Rule(becomes="elementwise", when=_operand_made_for_it),
    ("elementwise", "data_movement"): Rule(becomes="elementwise", when=_operand_made_for_it),
    # A view moves nothing: whoever makes its operand hands out the new shape.
    **{
        (group, "view"): Rule(becomes=group, when=_always)
        for group in ("matmul", "convolution", "reduce", "elementwise", "data_movement", "gather_scatter")
    },
}


def group_of(op: ir.Operation) -> str | None:
    """The class of ``op``; None where it stays as it is: collectives, control flow around them, scalars."""
    name = kind(op)
    if name in COLLECTIVES or name == "replica_id" or is_composite(op) or not len(op.results):
        return None
    if name in CONTROL:
        return None if holds_collective(op) else "single"
    if name in ELEMENTWISE and _is_index_arithmetic(op):
        return None
    return _GROUPS.get(name, "single")


def _is_index_arithmetic(op: ir.Operation) -> bool:
    """Scalar integer and boolean work (counters, predicates, start indices) is the control CPU's."""
    values = [*op.results, *op.operands]
    return all(is_scalar(value) for value in values) and tensor(op.results[0].type).dtype[0] in "iu"


def region_of(op: ir.Operation, group: str, varying: bool) -> Region:
    """The region that holds ``op`` alone."""
    result = tensor(op.results[0].type)
    region = Region(
        group=group, kinds=(kind(op),), varying=varying, size=result.size, integer=result.dtype[0] in "iu"
    )
    if group == "reduce":
        source = tensor(op.operands[0].type)
        region.size, region.rows = math.prod(source.shape), result.size
        region.signature = (source.shape, tuple(op.attributes["dimensions"]))
    return region


# The kernels a region of this class may become, the most particular first.
_CANDIDATES = {
    "reduce": ("softmax", "normalization", "reduce"),
    "view": ("data_movement",),
    "single": ("control", "single"),
}


@functools.lru_cache(maxsize=4096)
def kernel_name(group: str, kinds: tuple[str, ...]) -> str | None:
    """The first kernel of the class that is legal for these op kinds (in topological order), if any."""
    names = _CANDIDATES.get(group, (group,))
    return next((name for name in names if name in KERNELS and KERNELS[name](kinds)), None)
