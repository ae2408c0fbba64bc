"""Captured values: NumPy constants of a jaxpr are copied when it is recorded, so later writes do not show."""

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

__all__ = ["captured", "captured_params"]

# A jitted function's jaxpr is recorded at every call; what was captured at the first one stays.
_captured: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def captured(value: np.ndarray) -> np.ndarray:
    """A copy of the array, of the same class (JAX's own carries the type it has in the program)."""
    return np.copy(value, order="C", subok=True)


def captured_params(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """``params`` with the NumPy constants of every jaxpr in them copied; the same object where none is."""
    changed = {}
    for name, value in params.items():
        if isinstance(value, ClosedJaxpr | Jaxpr | tuple):
            new = _capture(value)
            if new is not value:
                changed[name] = new
    return {**params, **changed} if changed else params


def _capture(value: Any) -> Any:
    if isinstance(value, tuple):
        # Named tuples (dimension numbers) hold no jaxprs.
        if type(value) is not tuple:
            return value
        items = tuple(_capture(item) for item in value)
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if not isinstance(value, ClosedJaxpr | Jaxpr):
        return value
    if value not in _captured:
        new = _closed(value) if isinstance(value, ClosedJaxpr) else _jaxpr(value, {})
        # An entry must not keep its own key alive.
        _captured[value] = None if new is value else new
    found = _captured[value]
    return value if found is None else found


def _closed(closed: ClosedJaxpr) -> ClosedJaxpr:
    if not closed.consts:
        inner = _capture(closed.jaxpr)
        return closed if inner is closed.jaxpr else ClosedJaxpr(inner, ())
    # As literals they can become arguments of the compiled program, however deep they lie.
    known = {
        var: Literal(_copied(value), var.aval)
        for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True)
    }
    return ClosedJaxpr(_jaxpr(closed.jaxpr, known).replace(constvars=[]), ())


def _jaxpr(jaxpr: Jaxpr, known: Mapping[Any, Literal]) -> Jaxpr:
    """``jaxpr`` with ``known`` for its variables; the same object where nothing changes."""
    eqns = []
    for eqn in jaxpr.eqns:
        invars = [_atom(atom, known) for atom in eqn.invars]
        params = captured_params(eqn.params)
        same = params is eqn.params and all(n is o for n, o in zip(invars, eqn.invars, strict=True))
        eqns.append(eqn if same else eqn.replace(invars=invars, params=params))
    outvars = [_atom(atom, known) for atom in jaxpr.outvars]
    old = [*jaxpr.eqns, *jaxpr.outvars]
    if all(new is before for new, before in zip([*eqns, *outvars], old, strict=True)):
        return jaxpr
    return jaxpr.replace(eqns=eqns, outvars=outvars)


def _atom(atom: Any, known: Mapping[Any, Literal]) -> Any:
    if isinstance(atom, Literal):
        copied = _copied(atom.val)
        return atom if copied is atom.val else Literal(copied, atom.aval)
    return known.get(atom, atom)


def _copied(value: Any) -> Any:
    return captured(value) if isinstance(value, np.ndarray) and value.ndim else value
