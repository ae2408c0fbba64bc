"""``neuronx.compile``: a JAX function as a function of the ring, used like ``jax.jit``."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.tree_util import tree_flatten, tree_unflatten

from kernels.eras import DEFAULT_ERA
from kernels.errors import CompileError
from neuronx.arrays import Deferred
from neuronx.driver import AUTO_CAST_TYPES, AUTO_CASTS, DEFAULT_INSTANCE, CompileOptions
from neuronx.frontend import Staged, dynamic_arguments, export, stage, wrap
from neuronx.stages import Compiled, Lowered

__all__ = ["Function", "compile"]


def compile(
    fn: Callable[..., Any],
    *,
    tp_degree: int | None = None,
    instance: str = DEFAULT_INSTANCE,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Sequence[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    in_shardings: Any = None,
    out_shardings: Any = None,
    auto_cast: str = AUTO_CASTS[0],
    auto_cast_type: str = AUTO_CAST_TYPES[0],
    era: str = DEFAULT_ERA,
) -> "Function":
    """Compiles ``fn`` for a ring of simulated NeuronCores; returns a function that is called like ``fn``.

    Nothing is traced before the first call, which compiles for the shapes and types it gets; later calls
    with the same ones reuse the program.

    Args:
      fn: what ``jax.jit`` accepts.
      tp_degree: number of cores; left out, the size of the user's own mesh, or 1 without one.
      instance: inf2.xlarge, inf2.8xlarge, inf2.24xlarge or inf2.48xlarge.
      static_argnums, static_argnames, donate_argnums: as for ``jax.jit``.
      in_shardings, out_shardings: as for ``jax.jit`` (a tree prefix of NamedSharding, or None to let the
        compiler choose). Unlike there, dims need not divide evenly (such a dim may be cut over part of the
        axis, or stay whole), and a bare PartitionSpec may be used: its one axis is ``"tp"``, all cores.
      auto_cast: which f32 ops run in ``auto_cast_type``: none (default), matmult or all, as neuronx-cc.
      auto_cast_type: bf16 (default), fp16, tf32 or fp8_e4m3.
      era: whose constants predictions use: "sdk-2.18" (default), what AWS's software achieved, or "ideal",
        what the documented rates of the hardware allow.

    Raises:
      CompileError: an option that does not exist, or more cores than the instance has.
    """
    # Built once for its checks; with the degree left out the least one stands for it.
    options = CompileOptions(
        tp_degree=1 if tp_degree is None else tp_degree,
        instance=instance,
        auto_cast=auto_cast,
        auto_cast_type=auto_cast_type,
        era=era,
    )
    if tp_degree is not None:
        options.warn_if_unusual()
    jitted = wrap(
        fn, static_argnums=static_argnums, static_argnames=static_argnames, donate_argnums=donate_argnums
    )
    return Function(fn, jitted, tp_degree, options, in_shardings, out_shardings)


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

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Traces and lowers for these arguments: arrays, or ``jax.ShapeDtypeStruct``s that take no memory.

        Raises:
          CompileError: a sharding over an unknown axis, or a mesh of another size than ``tp_degree``.
        """
        return self._lower(self._stage(*_computed((args, kwargs))))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs ``fn`` on the ring, compiled at the first call with such arguments.

        Results are jax.Arrays, except that a donated RingArray comes back as one.
        """
        args, kwargs = _computed((args, kwargs))
        staged = self._stage(args, kwargs)
        found = self._compiled.get(staged.key)
        if found is None:
            found = self._compiled[staged.key] = (staged, self._lower(staged).compile())
        compiled = found[1]
        leaves, _ = tree_flatten(dynamic_arguments(self._jitted, args, kwargs))
        return tree_unflatten(compiled.out_tree, compiled.call_flat(leaves))

    def _axes(self) -> tuple[tuple[str, int], ...]:
        return (("tp", self._options.tp_degree),)

    def _stage(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
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
        options = CompileOptions(
            tp_degree=size,
            instance=self._options.instance,
            auto_cast=self._options.auto_cast,
            auto_cast_type=self._options.auto_cast_type,
            era=self._options.era,
        )
        options.warn_if_unusual()
        return options


def _computed(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.array("neuronx.compile") if isinstance(leaf, Deferred) else leaf, tree
    )
