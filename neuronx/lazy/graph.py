"""The recorded program as a graph: what a computation needs, and the key by which equal programs are one."""

import hashlib
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from neuronx.frontend import MAX_EMBEDDED_BYTES
from neuronx.lazy.trace import Node, Value

__all__ = ["Graph", "InnerFunction", "Row", "Structure", "collect", "internal_numbers", "structure"]

# Functions that a derivative rule keeps in its jaxpr; what is computed does not depend on them.
_WITHOUT_MEANING = frozenset({"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees", "debug_info"})


@dataclass(frozen=True, kw_only=True)
class Graph:
    """``nodes`` in the order they were recorded, ``leaves`` what they read, ``outputs`` what is wanted."""

    nodes: tuple[Node, ...]
    leaves: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class Row:
    """One recorded primitive without its values: equal rows compute the same."""

    primitive: Any
    params: tuple[tuple[str, Any], ...]
    context: Any
    inputs: tuple[Any, ...]
    types: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """A graph without its values. ``leaves`` are types; an input of a row is a leaf or an earlier result."""

    leaves: tuple[Any, ...]
    rows: tuple[Row, ...]
    outputs: tuple[tuple[int, int], ...]

    @property
    def digest(self) -> str:
        """Twelve hex digits; the same in every process where no parameter prints an address."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def collect(wanted: Sequence[Value], held: Sequence[Value]) -> Graph:
    """What computes ``wanted``. On the way it keeps what would else be computed again.

    That are values the user holds (``held``), and those that pending values outside of it read.
    """
    found = _ancestors(wanted)
    outside = [node for serial, node in _ancestors(held).items() if serial not in found]
    read = [atom for node in outside for atom in node.inputs if isinstance(atom, Value)]
    outputs = {
        (value.node.serial, value.index): value
        for value in (*wanted, *held, *read)
        if value.node is not None and value.node.serial in found
    }
    nodes = tuple(found[serial] for serial in sorted(found))
    leaves: dict[int, Value] = {}
    for node in nodes:
        for atom in node.inputs:
            if isinstance(atom, Value) and atom.node is None:
                leaves.setdefault(atom.key, atom)
    return Graph(
        nodes=nodes, leaves=tuple(leaves.values()), outputs=tuple(outputs[key] for key in sorted(outputs))
    )


def _ancestors(values: Sequence[Value]) -> dict[int, Node]:
    """The nodes that compute ``values``, by serial number."""
    found: dict[int, Node] = {}
    stack = [value.node for value in values if value.node is not None]
    while stack:
        node = stack.pop()
        if node.serial in found:
            continue
        found[node.serial] = node
        for atom in node.inputs:
            if isinstance(atom, Value) and atom.node is not None and atom.node.serial not in found:
                stack.append(atom.node)
    return found


def structure(graph: Graph) -> Structure:
    """The key of ``graph``: equal keys are the same program of the same types, whatever the values."""
    numbers = {leaf.key: number for number, leaf in enumerate(graph.leaves)}
    positions = {node.serial: position for position, node in enumerate(graph.nodes)}
    rows = []
    for node in graph.nodes:
        inputs: list[Any] = []
        for atom in node.inputs:
            if isinstance(atom, Literal):
                inputs.append(_literal(atom))
            elif atom.node is None:
                inputs.append(numbers[atom.key])
            else:
                inputs.append((positions[atom.node.serial], atom.index))
        types = tuple(_type(aval) for aval in node.avals)
        rows.append(Row(node.primitive, _params(node.params), node.context, tuple(inputs), types))
    outputs = tuple((positions[value.node.serial], value.index) for value in graph.outputs)
    return Structure(tuple(map(_leaf, graph.leaves)), tuple(rows), outputs)


def internal_numbers(graph: Graph) -> dict[int, bytes]:
    """The numbers that JAX's own code brought, by the position of their leaf."""
    return {
        position: np.asarray(leaf.result, leaf.aval.dtype).tobytes()
        for position, leaf in enumerate(graph.leaves)
        if leaf.is_internal
    }


def _leaf(leaf: Value) -> tuple[Any, ...]:
    aval = leaf.aval
    sharding = getattr(leaf.result, "sharding", None)
    named = sharding if isinstance(sharding, jax.sharding.NamedSharding) else None
    return (str(aval.dtype), aval.shape, aval.weak_type, named, leaf.is_internal)


def _params(params: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((name, _token(value)) for name, value in params.items() if name not in _WITHOUT_MEANING)


def _token(value: Any) -> Any:
    """Something hashable that is equal where the parameter means the same."""
    if isinstance(value, ClosedJaxpr | Jaxpr):
        return _function(value)
    if isinstance(value, tuple | list):
        return (type(value).__name__, *map(_token, value))
    if isinstance(value, dict):
        return ("dict", *((name, _token(value[name])) for name in value))
    if isinstance(value, np.ndarray | jax.Array):
        return _constant(value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


class _Same:
    """Equal to itself only; holds the object, so that its identity is not given to another."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        aval = getattr(self.value, "dtype", None)
        return f"constant {aval}{list(self.value.shape)}" if aval is not None else type(self.value).__name__


@dataclass(frozen=True)
class InnerFunction:
    """A function inside a primitive: equal where its ops are; large constants by object.

    ``rows`` are its ops, ``ends`` the types of its arguments and what it returns.
    """

    digest: str
    rows: tuple[Row, ...]
    ends: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"function {self.digest}"


_functions: weakref.WeakKeyDictionary[Any, InnerFunction] = weakref.WeakKeyDictionary()


def _function(value: Any) -> InnerFunction:
    if value not in _functions:
        jaxpr = value.jaxpr if isinstance(value, ClosedJaxpr) else value
        rows, ends = _ops(jaxpr)
        if isinstance(value, ClosedJaxpr):
            ends = (*ends, *map(_constant, value.consts))
        digest = hashlib.sha256(repr((rows, ends)).encode()).hexdigest()[:12]
        _functions[value] = InnerFunction(digest, rows, ends)
    return _functions[value]


def _ops(jaxpr: Jaxpr) -> tuple[tuple[Row, ...], tuple[Any, ...]]:
    numbers: dict[Any, int] = {}

    def read(atom: Any) -> Any:
        return _literal(atom) if isinstance(atom, Literal) else numbers[atom]

    def define(variables: Sequence[Any]) -> tuple[str, ...]:
        for variable in variables:
            numbers[variable] = len(numbers)
        return tuple(_type(variable.aval) for variable in variables)

    arguments = define([*jaxpr.constvars, *jaxpr.invars])
    rows = []
    for eqn in jaxpr.eqns:
        inputs = tuple(map(read, eqn.invars))
        rows.append(Row(eqn.primitive, _params(eqn.params), eqn.ctx, inputs, define(eqn.outvars)))
    return tuple(rows), (arguments, tuple(map(read, jaxpr.outvars)))


def _type(aval: Any) -> str:
    return aval.str_short() + (" weak" if getattr(aval, "weak_type", False) else "")


def _literal(atom: Any) -> Any:
    return ("literal", _type(atom.aval), _constant(atom.val))


def _constant(value: Any) -> Any:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _Same(value)
    if getattr(value, "nbytes", 0) > MAX_EMBEDDED_BYTES:
        return _Same(value)
    array = np.asarray(value)
    return ("constant", str(array.dtype), array.shape, array.tobytes())
