"""Factor rules: how the dims of an op's operands and results correspond (Shardy's table as records)."""

import functools
from dataclasses import dataclass

from hlo_passes.ir import ir, run_mlir_passes, sdy
from hlo_passes.sharding.indexing import index_numbers
from hlo_passes.sharding.reductions import simple_reducer
from hlo_passes.sharding.windows import WINDOWS, convolution_roles

__all__ = ["RULE", "OpRule", "attach_rules", "headed_dim", "rule_of"]

RULE = "sdy.sharding_rule"
"""The attribute that holds Shardy's rule."""

# Ops whose reduction factors the partitioner can finish with a collective; elsewhere they stay whole.
_REDUCES = {"stablehlo.dot_general", "stablehlo.convolution", "stablehlo.reduce", "stablehlo.gather"}

# Ops that are computed whole on every core whatever their rule says, and why.
_WHOLE = {
    "stablehlo.custom_call": "what it computes is opaque",
    "stablehlo.rng": "every core must draw the same numbers",
    "stablehlo.rng_bit_generator": "every core must draw the same numbers",
    "stablehlo.batch_norm_training": "its statistics need the whole batch",
    "stablehlo.batch_norm_grad": "its statistics need the whole batch",
    "stablehlo.get_dimension_size": "it asks for the global size",
    "stablehlo.set_dimension_size": "it sets the global size",
}


_CROSSING = "its elements cross shards"


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """One op over its factors.

    ``sizes[f]`` is the size of factor f; ``operands[i][d]`` and ``results[i][d]`` are the factors dim d
    is made of, major first, without factors of size 1. ``blocked`` factors must be whole on every core;
    ``reductions`` leave partial results when they are sharded. ``why_blocked`` says so to the user.
    """

    sizes: tuple[int, ...]
    operands: tuple[tuple[tuple[int, ...], ...], ...]
    results: tuple[tuple[tuple[int, ...], ...], ...]
    blocked: frozenset[int]
    reductions: frozenset[int]
    why_blocked: str

    @property
    def tensors(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        return self.operands + self.results


def attach_rules(module: ir.Module) -> None:
    """Puts Shardy's rule on every op that has one."""
    run_mlir_passes(module, "func.func(sdy-populate-op-sharding-rules)")


def rule_of(op: ir.Operation) -> OpRule | None:
    """The rule of ``op``, or None where its operands and results have no correspondence at all."""
    if RULE not in op.attributes:
        return None
    rule = _read_rule(op.attributes[RULE])
    blocked, why = _op_blocked(op, rule)
    if not blocked:
        return rule
    return OpRule(
        sizes=rule.sizes, operands=rule.operands, results=rule.results,
        blocked=rule.blocked | blocked, reductions=rule.reductions - blocked, why_blocked=why,
    )  # fmt: skip


@functools.lru_cache(maxsize=65536)
def _read_rule(attribute: ir.Attribute) -> OpRule:
    attr = sdy.OpShardingRuleAttr(attribute)
    sizes = tuple(attr.factor_sizes)
    operands = _mappings(attr.operand_mappings, sizes)
    results = _mappings(attr.result_mappings, sizes)
    needs = set(attr.need_replication_factors) | set(attr.permutation_factors)
    reductions = frozenset(attr.reduction_factors)
    # Only the major factor of a dim can be sharded: a minor one would leave a strided block.
    minor = {f for t in operands + results for dim in t for f in dim[1:]}
    blocked = frozenset(needs | minor)
    return OpRule(
        sizes=sizes, operands=operands, results=results, blocked=blocked,
        reductions=reductions - blocked, why_blocked=_CROSSING,
    )  # fmt: skip


def headed_dim(dims: tuple[tuple[int, ...], ...], factor: int) -> int | None:
    """The dim of a tensor that ``factor`` heads; ``dims`` as in ``OpRule.operands``."""
    return next((d for d, factors in enumerate(dims) if factors[:1] == (factor,)), None)


def _mappings(mappings: list, sizes: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    def dim(attr: ir.Attribute) -> tuple[int, ...]:
        return tuple(f for f in sdy.DimMappingAttr(attr).factor_indices if sizes[f] != 1)

    return tuple(tuple(dim(d) for d in sdy.TensorMappingAttr(m).dim_mappings) for m in mappings)


def _op_blocked(op: ir.Operation, rule: OpRule) -> tuple[frozenset[int], str]:
    """Factors this op must keep whole beyond what the rule says, and why."""
    if op.name in _WHOLE:
        return frozenset(range(len(rule.sizes))), _WHOLE[op.name]
    if op.name in _BLOCKED:
        find, why = _BLOCKED[op.name]
        return find(op, rule), why
    if op.name not in _REDUCES and rule.reductions:
        return rule.reductions | _one_sided(op, rule), "its partial results cannot be added"
    return _one_sided(op, rule), rule.why_blocked


def _one_sided(op: ir.Operation, rule: OpRule) -> frozenset[int]:
    """Factors of operands alone or of results alone: what correspondence there is, is not by blocks."""
    read = {f for tensor in rule.operands for f in _factors(tensor)}
    written = {f for tensor in rule.results for f in _factors(tensor)}
    made = set() if op.name == "stablehlo.broadcast_in_dim" else written - read
    return frozenset((read - written - rule.reductions) | made)


def _pad_blocked(op: ir.Operation, rule: OpRule) -> frozenset[int]:
    """Dims whose rows move: the rule calls a dim that is cut as much as it is padded one and the same."""
    moved = [w.operand_dim for w in WINDOWS[op.name].windows(op) if not w.is_plain]
    return _one_sided(op, rule) | {f for dim in moved for f in rule.operands[0][dim]}


def _factors(tensor: tuple[tuple[int, ...], ...]) -> set[int]:
    return {f for dim in tensor for f in dim}


def _scatter_blocked(op: ir.Operation, rule: OpRule) -> frozenset[int]:
    """What a scatter cannot shard: dims of which windows take a part, and updates it cannot combine.

    An indexed dim can be where each update writes one row of it, see the scatter handler.
    """
    numbers, count = index_numbers(op), len(op.results)
    target, update = op.operands[0].type.shape, op.operands[count + 1].type.shape
    shown = [d for d in range(len(target)) if d not in (*numbers.removed, *numbers.batching)]
    partial = [
        d
        for d, w in zip(shown, numbers.window, strict=True)
        if target[d] != update[w] or d in numbers.indexed
    ]
    partial += [d for d in numbers.removed if d not in numbers.indexed]
    blocked = {f for d in partial for f in rule.operands[0][d]}
    batch = _factors(rule.operands[count]) - {f for d in numbers.batching for f in rule.operands[0][d]}
    element = op.operands[count].type.element_type
    if count > 1 or simple_reducer(op.regions[0]) is None or not numbers.indexed or element.is_unsigned:
        return frozenset(blocked | batch | rule.reductions)
    return frozenset(blocked | (batch - rule.reductions))


def _gather_blocked(op: ir.Operation, rule: OpRule) -> frozenset[int]:
    """An indexed dim may be sharded where slices take one row of it, see the gather handler."""
    taken = list(ir.DenseI64ArrayAttr(op.attributes["slice_sizes"]))
    whole = list(ir.RankedTensorType(op.operands[0].type).shape)
    rows = {f for d, dim in enumerate(rule.operands[0]) for f in dim[:1] if taken[d] == 1}
    blocked = {f for d, dim in enumerate(rule.operands[0]) for f in dim if 1 < taken[d] < whole[d]}
    return frozenset(blocked | (rule.reductions - rows))


def _conv_blocked(op: ir.Operation, rule: OpRule) -> frozenset[int]:
    """Batch, features and whole groups may be sharded; spatial dims are left to the windows' handler."""
    roles = convolution_roles(op)
    blocked = {
        factor
        for row, tensor in zip(roles, rule.tensors, strict=True)
        for role, dim in zip(row, tensor, strict=True)
        if role.isdigit()
        for factor in dim
    }
    groups = [ir.IntegerAttr(op.attributes[k]).value for k in ("feature_group_count", "batch_group_count")]
    if groups != [1, 1]:
        made = rule.operands[1][roles[1].index("o")]
        split = rule.operands[0][roles[0].index("f" if groups[0] > 1 else "b")]
        is_group = made[:1] == split[:1] and made and rule.sizes[made[0]] == max(groups)
        blocked |= set() if is_group else {*made, *split}
    return frozenset(blocked)


# Ops of which attributes say what must be whole, and why.
_BLOCKED = {
    "stablehlo.scatter": (_scatter_blocked, "updates may fall on any shard"),
    "stablehlo.gather": (_gather_blocked, "indices may point to any shard"),
    "stablehlo.convolution": (_conv_blocked, "its windows or channel groups would be cut"),
    "stablehlo.pad": (_pad_blocked, _CROSSING),
}
