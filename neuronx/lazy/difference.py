"""Why a graph was compiled again: what distinguishes it from the nearest one that was."""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from neuronx.lazy.graph import Graph, InnerFunction, Row, Structure
from neuronx.lazy.trace import Value

__all__ = ["changed_number", "difference"]


def difference(graph: Graph, new: Structure, known: Sequence[Structure]) -> str:
    """One sentence: the first op, type, parameter or constant that differs; "" where nothing is known yet."""
    if not known:
        return ""
    nearest = max(known, key=lambda old: _likeness(new, old))
    return f"differs from lazy_{nearest.digest}: {_first_difference(graph, new, nearest)}"


def changed_number(graph: Graph, position: int) -> str:
    """What to say where a number of JAX's own differs from the one compiled in."""
    leaf = graph.leaves[position]
    reader = next(node for node in graph.nodes if leaf.key in map(_key, node.inputs))
    return (
        f"the constant that {reader.primitive} reads at {reader.line} is now {leaf.result}; "
        "from now on it is an input"
    )


def _likeness(new: Structure, old: Structure) -> tuple[int, int]:
    """Rows that agree at both ends, then how near the sizes are."""
    names, others = [_brief(row) for row in new.rows], [_brief(row) for row in old.rows]
    front = _common(names, others)
    back = _common(names[front:][::-1], others[front:][::-1])
    return front + back, -abs(len(names) - len(others))


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _brief(row: Row) -> tuple[Any, ...]:
    return (row.primitive, row.types)


def _first_difference(graph: Graph, new: Structure, old: Structure) -> str:
    for number, (leaf, before) in enumerate(zip(new.leaves, old.leaves, strict=False)):
        if leaf != before:
            key = graph.leaves[number].key
            reader = next(node for node in graph.nodes if key in map(_key, node.inputs))
            return (
                f"input {number} is {_leaf(leaf)}, was {_leaf(before)}; "
                f"first read by {reader.primitive} at {reader.line}"
            )
    for node, row, before in zip(graph.nodes, new.rows, old.rows, strict=False):
        if row != before:
            return f"{_change(row, before)} at {node.line}"
    shorter, longer = sorted((len(new.rows), len(old.rows)))
    if len(new.rows) > len(old.rows):
        node = graph.nodes[shorter]
        return f"{longer - shorter} more ops, the first {node.primitive} at {node.line}"
    if len(new.rows) < len(old.rows):
        return f"{longer - shorter} ops fewer, the first {old.rows[shorter].primitive}"
    return f"{len(new.outputs)} results are wanted or still held, there were {len(old.outputs)}"


def _key(atom: Any) -> int | None:
    return atom.key if isinstance(atom, Value) else None


def _leaf(leaf: tuple[Any, ...]) -> str:
    dtype, shape, weak, sharding, _ = leaf
    text = f"{dtype}{list(shape)}" + (" (weak)" if weak else "")
    return f"{text} as {sharding.spec}" if sharding is not None else text


def _change(row: Row, before: Row) -> str:
    if row.primitive != before.primitive:
        return f"op {row.primitive} instead of {before.primitive}"
    if row.types != before.types:
        return f"{row.primitive} gives {', '.join(row.types)}, gave {', '.join(before.types)}"
    was = dict(before.params)
    for name, value in row.params:
        before_value = was.get(name)
        if value == before_value:
            continue
        if isinstance(value, InnerFunction) and isinstance(before_value, InnerFunction):
            return f"inside {row.primitive}: {_inner_change(value, before_value)}"
        return f"{row.primitive}: {name} is {_short(value)}, was {_short(before_value)}"
    return f"{row.primitive} reads other operands"


def _inner_change(new: InnerFunction, old: InnerFunction) -> str:
    for row, before in zip(new.rows, old.rows, strict=False):
        if row != before:
            return _change(row, before)
    if len(new.rows) != len(old.rows):
        return f"{len(new.rows)} ops, there were {len(old.rows)}"
    return "other arguments, constants or results"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
