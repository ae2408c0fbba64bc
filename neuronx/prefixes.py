"""The first ops of a traced function, as a function: what a search for the op at fault compiles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

__all__ = ["inlined", "prefix"]

# Primitives that only call a function, and the parameter that holds it.
_CALLS = {
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "remat2": "jaxpr",
}


def inlined(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same function without calls at its top; loops and branches stay single ops."""
    eqns: list[JaxprEqn] = []
    outvars = _inline(closed.jaxpr, {}, eqns)
    return ClosedJaxpr(closed.jaxpr.replace(eqns=eqns, outvars=outvars), closed.consts)


def prefix(closed: ClosedJaxpr, count: int) -> Callable[..., list[Any]]:
    """The first ``count`` ops as a function of the leaves: what the rest of the function reads of them."""
    jaxpr = closed.jaxpr
    before, after = jaxpr.eqns[:count], jaxpr.eqns[count:]
    made = {var for eqn in before for var in eqn.outvars}
    read = [atom for eqn in after for atom in eqn.invars] + list(jaxpr.outvars)
    live = dict.fromkeys(atom for atom in read if isinstance(atom, Var) and atom in made)
    return jaxpr_as_fun(ClosedJaxpr(_with(jaxpr, before, list(live)), closed.consts))


def _with(jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], outvars: Sequence[Var]) -> Jaxpr:
    info = jaxpr.debug_info._replace(result_paths=tuple(f"[{n}]" for n in range(len(outvars))))
    return jaxpr.replace(eqns=list(eqns), outvars=list(outvars), debug_info=info)


def _inline(jaxpr: Jaxpr, env: Mapping[Var, Any], eqns: list[JaxprEqn]) -> list[Any]:
    """Appends the ops of ``jaxpr`` with variables of their own; returns what stands for its results."""
    known = dict(env)

    def read(atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else known.get(atom, atom)

    for eqn in jaxpr.eqns:
        invars = [read(atom) for atom in eqn.invars]
        inner = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
        if inner is None or (isinstance(inner, ClosedJaxpr) and inner.consts):
            outvars = [Var(var.aval) for var in eqn.outvars]
            eqns.append(eqn.replace(invars=invars, outvars=outvars))
        else:
            body = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            outvars = _inline(body, dict(zip(body.invars, invars, strict=True)), eqns)
        known.update(zip(eqn.outvars, outvars, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
