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
        new = _closed(value) if isinstance(value, ClosedJaxpr) else _jaxpr(value)
        # An entry must not keep its own key alive.
        _captured[value] = None if new is value else new
    found = _captured[value]
    return value if found is None else found


def _closed(closed: ClosedJaxpr) -> ClosedJaxpr:
    inner = _capture(closed.jaxpr)
    consts = [captured(c) if isinstance(c, np.ndarray) else c for c in closed.consts]
    same = inner is closed.jaxpr and all(new is old for new, old in zip(consts, closed.consts, strict=True))
    return closed if same else ClosedJaxpr(inner, consts)


def _jaxpr(jaxpr: Jaxpr) -> Jaxpr:
    eqns = []
    for eqn in jaxpr.eqns:
        invars = [_atom(atom) for atom in eqn.invars]
        params = captured_params(eqn.params)
        same = params is eqn.params and all(n is o for n, o in zip(invars, eqn.invars, strict=True))
        eqns.append(eqn if same else eqn.replace(invars=invars, params=params))
    if all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True)):
        return jaxpr
    return jaxpr.replace(eqns=eqns)


def _atom(atom: Any) -> Any:
    if isinstance(atom, Literal) and isinstance(atom.val, np.ndarray) and atom.val.ndim:
        return Literal(captured(atom.val), atom.aval)
    return atom
