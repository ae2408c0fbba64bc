"""What a call is recognised by: all of its arguments, and of the thread's settings, that a trace may see."""

from collections.abc import Hashable
from typing import Any

import numpy as np
from jax._src import config as jax_config
from jax._src.array import ArrayImpl
from jax._src.random.prng import PRNGKeyArray
from jax.sharding import SingleDeviceSharding
from jax.tree_util import tree_flatten

from neuronx.arrays import Deferred, RingArray

__all__ = ["dynamic_arguments", "signature", "static_arguments"]

_ARRAYS = frozenset({ArrayImpl, PRNGKeyArray})
_NUMBERS = frozenset({bool, int, float, complex})


def static_arguments(jitted: Any, num_args: int) -> tuple[set[int], set[str]]:
    """Positions and names of the static arguments of a call with ``num_args`` positional ones."""
    info = jitted._jit_info
    positions = {i if i >= 0 else i + num_args for i in info.static_argnums}
    return positions, set(info.static_argnames)


def dynamic_arguments(
    jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``args`` and ``kwargs`` without the static ones: what a compiled program is called with."""
    positions, names = static_arguments(jitted, len(args))
    return (
        tuple(arg for i, arg in enumerate(args) if i not in positions),
        {name: value for name, value in kwargs.items() if name not in names},
    )


def signature(
    jitted: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], tuple[Hashable, ...] | None]:
    """The dynamic leaves of a call, computed where they were deferred, and a key of what JAX would trace.

    Calls of one key have one trace; that equal traces have one key is not promised (static arguments are
    told apart by type too). None where only tracing can tell, or must refuse: tracers, foreign types,
    static arguments without a hash.
    """
    statics: tuple[Hashable, ...] = ()
    if jitted._jit_info.static_argnums or jitted._jit_info.static_argnames:
        positions, names = static_arguments(jitted, len(args))
        statics = tuple(
            (place, type(value), value)
            for place, value in (*enumerate(args), *sorted(kwargs.items()))
            if place in positions or place in names
        )
        args, kwargs = dynamic_arguments(jitted, args, kwargs)
    is_known = _has_hash(statics)
    leaves, tree = tree_flatten((args, kwargs))
    key: list[Hashable] = [tree, statics, jax_config.trace_context()]
    for place, leaf in enumerate(leaves):
        if type(leaf) not in _ARRAYS and isinstance(leaf, Deferred):
            leaf = leaves[place] = leaf.array("neuronx.compile")
        if type(leaf) in _ARRAYS:
            # JAX makes each type once, so that it is found by its identity.
            key.append(leaf.aval)
            if type(sharding := leaf.sharding) is not SingleDeviceSharding:
                key.append(sharding)
        else:
            key.append(kind := _kind(leaf))
            is_known &= kind is not None
    return leaves, tuple(key) if is_known else None


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _kind(leaf: Any) -> Hashable | None:
    """The same of what is no array of JAX's own."""
    if type(leaf) in _NUMBERS:
        return type(leaf)
    if isinstance(leaf, RingArray | np.ndarray | np.generic):
        return type(leaf), leaf.dtype, leaf.shape
    return None
