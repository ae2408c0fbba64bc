"""``neuronx.compile``: a JAX function as a function of the ring, used like ``jax.jit``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kernels.eras import DEFAULT_ERA
from kernels.errors import CompileError
from neuronx.buckets import PADDINGS, BucketedFunction
from neuronx.driver import AUTO_CAST_TYPES, AUTO_CASTS, DEFAULT_INSTANCE, OBJECTIVES, CompileOptions
from neuronx.environment import environment
from neuronx.frontend import wrap
from neuronx.function import Function
from neuronx.lazy.debugging import DebugFunction

__all__ = ["compile"]


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
    objective: str = OBJECTIVES[0],
    host_kernels: bool = True,
    buckets: Mapping[str, Sequence[int]] | None = None,
    in_shapes: Any = None,
    padding: str = PADDINGS[0],
) -> Function | BucketedFunction:
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
      objective: what the plan is for where you give no sharding: "memory" (default) cuts every weight that
        can be, "time" takes the plan of the least predicted step time, which may leave weights whole.
      host_kernels: execute products with the host's JIT'd kernels (default); False leaves all to XLA:CPU.
      buckets: for each symbolic dim of ``in_shapes`` the sizes to compile for, e.g. ``{"b": (1, 8)}``; the
        result is a ``BucketedFunction`` then, whose docstring says what makes padding safe.
      in_shapes: with buckets, a tree prefix of the positional arguments: a shape as
        ``jax.export.symbolic_shape`` reads it, e.g. ``"b, 64"``, or None for what has no symbolic dim.
      padding: "masked" (default) pads to the bucket; "exact" compiles each size up to the largest by itself.

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
        objective=objective,
        host_kernels=host_kernels,
    )
    if tp_degree is not None:
        options.warn_if_unusual()
    jitted = wrap(
        fn, static_argnums=static_argnums, static_argnames=static_argnames, donate_argnums=donate_argnums
    )
    kind = DebugFunction if environment().eager_debug else Function
    function = kind(fn, jitted, tp_degree, options, in_shardings, out_shardings)
    if buckets is None:
        return function
    if donate_argnums is not None:
        raise CompileError(
            "buckets pad a copy, so that nothing can be donated", op="buckets", fix="leave it out"
        )
    return BucketedFunction(fn, function, buckets, in_shapes, padding)
