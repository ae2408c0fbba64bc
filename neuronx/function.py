"""A JAX function as a function of the ring: traced, compiled and run for the types it is called with."""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.tree_util import tree_flatten, tree_unflatten

from distributed.jitted import call_through
from kernels.errors import CompileError
from neuronx.arrays import Deferred
from neuronx.driver import CompileOptions, without_collector
from neuronx.frontend import Staged, export, stage, wrap
from neuronx.signature import dynamic_arguments, signature
from neuronx.stages import Compiled, Lowered

__all__ = ["Function"]


class Function:
    """What ``neuronx.compile`` returns: callable, with ``lower`` for a look at the stages."""

    def __init__(
        self,
        fn: Callable[..., Any],
        jitted: Any,
        tp_degree: int | None,
        options: CompileOptions,
        in_shardings: Any,
        out_shardings: Any,
    ) -> None:
        functools.update_wrapper(self, fn)
        self._jitted = jitted
        self._tp_degree = tp_degree
        self._options = options
        self._in_shardings, self._out_shardings = in_shardings, out_shardings
        # The trace is kept beside the program because its identity is part of the key.
        self._compiled: dict[tuple[Any, ...], tuple[Staged, Compiled]] = {}
        self._called: dict[Hashable, Compiled] = {}
        self._call = call_through(fn, self._miss, jitted)

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Traces and lowers for these arguments: arrays, or ``jax.ShapeDtypeStruct``s that take no memory.

        Raises:
          CompileError: a sharding over an unknown axis, or a mesh of another size than ``tp_degree``.
        """
        with without_collector():
            return self._lower(self.trace(*_computed((args, kwargs))))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs ``fn`` on the ring, compiled at the first call with such arguments.

        Results are jax.Arrays, except that a donated RingArray comes back as one.
        """
        return self._call(*args, **kwargs)

    def _miss(self, *args: Any, **kwargs: Any) -> tuple[Any, Any | None, bool]:
        """A call that JAX does not make itself, and how it can from now on."""
        leaves, key = signature(self._jitted, args, kwargs)
        compiled = self._called.get(key)
        if compiled is None:
            compiled = self._compile(*_computed((args, kwargs)))
            if key is not None:
                self._called[key] = compiled
        results = tree_unflatten(compiled.out_tree, compiled.call_flat(leaves))
        return results, compiled.fast_path(leaves), False

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """A method of its class, as a function is one: ``instance`` becomes the first argument."""
        return self if instance is None else types.MethodType(self, instance)

    def _compile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compiled:
        staged = self.trace(args, kwargs)
        found = self._compiled.get(staged.key)
        if found is None:
            found = self._compiled[staged.key] = (staged, self._lower(staged).compile())
        return found[1]

    def dynamic(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``args`` and ``kwargs`` without the static ones."""
        return dynamic_arguments(self._jitted, args, kwargs)

    def output_types(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The tree of results as ``jax.ShapeDtypeStruct``s; nothing is compiled."""
        return self._jitted.eval_shape(*args, **kwargs)

    def with_body(self, fn: Callable[..., Any]) -> "Function":
        """Another function of the dynamic arguments, with the same options and shardings of arguments."""
        jitted = wrap(fn, static_argnums=None, static_argnames=None, donate_argnums=None)
        return Function(fn, jitted, self._tp_degree, self._options, self._in_shardings, None)

    def _axes(self) -> tuple[tuple[str, int], ...]:
        return (("tp", self._options.tp_degree),)

    def trace(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
        """Traces for these arguments, static ones included."""
        for leaf in tree_flatten((args, kwargs))[0]:
            if isinstance(leaf, jax.core.Tracer):
                raise CompileError(
                    "a compiled function was called under a JAX transformation (jit, grad, vmap, ...)",
                    op=getattr(self, "__name__", "function"),
                    fix="transform the plain function first and compile the result",
                )
        return stage(self._jitted, args, kwargs, self._in_shardings, self._axes())

    def _lower(self, staged: Staged) -> Lowered:
        exported = export(staged, out_shardings=self._out_shardings, axes=self._axes())
        return Lowered(exported, self._options_for(exported.mesh))

    def _options_for(self, mesh: tuple[tuple[str, int], ...]) -> CompileOptions:
        size = math.prod(count for _, count in mesh)
        if size == 1 or size == self._tp_degree:
            return self._options
        if self._tp_degree is not None:
            raise CompileError(
                f"the function's shardings lie on a mesh of {size} cores ({dict(mesh)}), "
                f"but tp_degree is {self._tp_degree}",
                op="sharding",
                fix=f"give tp_degree={size}, leave tp_degree out, or use a mesh of {self._tp_degree}",
            )
        options = dataclasses.replace(self._options, tp_degree=size)
        options.warn_if_unusual()
        return options


def _computed(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.array("neuronx.compile") if isinstance(leaf, Deferred) else leaf, tree
    )
