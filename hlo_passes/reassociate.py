"""Sums of all-reduces become all-reduces of sums: one collective where there were several."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hlo_passes.collective_ops import (
    Partial,
    all_reduce,
    blocks,
    lines,
    partial,
    size_bytes,
    sole_user,
    take_partial,
)
from hlo_passes.ir import ir, main
from hlo_passes.notes import add_notes
from hlo_passes.ops import kind, maker, operations
from hlo_passes.spec import NoOptions as Options

__all__ = ["Options", "run"]


# The reducer with which an op may trade places.
_REDUCER = {name: name for name in ("add", "multiply", "maximum", "minimum", "and", "or", "xor")}
_REDUCER["subtract"] = "add"


def run(module: ir.Module, options: Options) -> None:
    """``add(all_reduce(a), all_reduce(b))`` becomes ``all_reduce(add(a, b))``, also deep inside a sum.

    Reductions may be seen through reshapes, transposes, exact conversions and, in sums, negation and
    scaling by one number. They must have the same groups and reducer and no other use. Sums are taken
    in another order, all else is exact. What moves never grows.
    """
    notes: list[str] = []
    with module.context, ir.Location.unknown():
        for block in blocks(main(module).entry_block):
            roots = [op for op in operations(block) if kind(op) in _REDUCER and _is_root(op)]
            for op in roots:
                notes += _join_terms(_Tree(op))
    add_notes(module, notes)


def _is_root(op: ir.Operation) -> bool:
    """Whether no op of the same sum takes the result."""
    user = sole_user(op.results[0])
    return user is None or user.block != op.block or _REDUCER.get(kind(user)) != _REDUCER[kind(op)]


@dataclass
class _Tree:
    """A sum (or product, ...) of ``terms`` with their signs; ``inner`` are its ops, the root first."""

    root: ir.Operation
    terms: list[tuple[ir.Value, int]] = field(default_factory=list)
    inner: list[ir.Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reducer = _REDUCER[kind(self.root)]
        self._add(self.root, 1)

    def _add(self, op: ir.Operation, sign: int) -> None:
        self.inner.append(op)
        signs = (sign, -sign if kind(op) == "subtract" else sign)
        for value, own in zip(op.operands, signs, strict=True):
            made = maker(value)
            inside = made is not None and made.block == op.block and sole_user(value) is not None
            if inside and _REDUCER.get(kind(made)) == self.reducer:
                self._add(made, own)
            else:
                self.terms.append((value, own))


def _join_terms(tree: _Tree) -> list[str]:
    """Joins the reductions among the terms, group by group; says what was done."""
    if str(tree.root.results[0].type.element_type) == "i1":
        return []
    found: dict[tuple, list[tuple[Partial, int]]] = {}
    rest = []
    for value, sign in tree.terms:
        term = partial(value)
        if term is not None and term.reducer == tree.reducer:
            found.setdefault(term.groups, []).append((term, sign))
        else:
            rest.append((value, sign))
    said, joined = [], []
    for terms in found.values():
        reduced = [term.reduce for term, _ in terms]
        moved = size_bytes([value for op in reduced for value in op.operands])
        if len(terms) < 2 or size_bytes(tree.root.results) > moved:
            rest += [(term.value, sign) for term, sign in terms]
            continue
        said.append(
            f"reassociate: {len(terms)} all-reduces ({moved} B) that are added up became one "
            f"({size_bytes(tree.root.results)} B): {lines(reduced)}"
        )
        joined.append(_joined(tree, terms))
    if joined:
        total = _fold(tree, [*((value, 1) for value in joined), *rest])
        tree.root.results[0].replace_all_uses_with(total)
        for op in tree.inner:
            op.erase()
    return said


def _joined(tree: _Tree, terms: Sequence[tuple[Partial, int]]) -> ir.Value:
    """The all-reduce of the sum of the parts, in front of the root."""
    first = terms[0][0].reduce
    groups = first.attributes["replica_groups"]
    location = ir.Location.fused([term.reduce.location for term, _ in terms])
    parts = [(take_partial(term), sign) for term, sign in terms]
    return all_reduce(_fold(tree, parts), tree.reducer, groups, location, ir.InsertionPoint(tree.root))


def _fold(tree: _Tree, terms: Sequence[tuple[ir.Value, int]]) -> ir.Value:
    """The terms combined from left to right, in front of the root, beginning with a positive one."""
    ordered = sorted(terms, key=lambda term: -term[1])
    total, sign = ordered[0]
    with ir.InsertionPoint(tree.root), tree.root.location:
        if sign < 0:
            total = ir.Operation.create("stablehlo.negate", results=[total.type], operands=[total]).results[0]
        for value, sign in ordered[1:]:
            name = tree.reducer if sign > 0 else "subtract"
            made = ir.Operation.create(f"stablehlo.{name}", results=[total.type], operands=[total, value])
            total = made.results[0]
    return total
