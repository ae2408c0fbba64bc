"""From a Python function to StableHLO: the only module that touches JAX's tracing and lowering internals."""

import contextlib
import functools
import io
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax._src import config as jax_config
from jax._src import source_info_util
from jax._src.interpreters import mlir as jax_mlir
from jax.tree_util import PyTreeDef, keystr, tree_flatten, tree_flatten_with_path

from hlo_passes.ir import func, ir, main, parse
from kernels.errors import CompileError
from neuronx.arrays import RingArray
from neuronx.shardings import (
    Sharding,
    annotate,
    check_meshes,
    drop_single_device_meshes,
    mesh_axes,
    user_sharding,
)
from neuronx.signature import dynamic_arguments, static_arguments

__all__ = [
    "MAX_EMBEDDED_BYTES",
    "DataDependentError",
    "Exported",
    "Staged",
    "export",
    "is_key",
    "logical",
    "physical",
    "stage",
    "user_line",
    "wrap",
]

MAX_EMBEDDED_BYTES = 1024
"""Array constants above this size become arguments of ``@main`` instead of text."""


class DataDependentError(CompileError):
    """A shape, an index or Python's control flow depends on a value that only running the program gives."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A function traced for one set of argument types; ``key`` is equal where the program is the same."""

    traced: Any
    in_tree: PyTreeDef
    shardings: tuple[Sharding | None, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        return (id(self.traced.jaxpr), self.in_tree, self.shardings)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A StableHLO module with what is needed to call it.

    ``@main`` takes the leaves of ``in_tree`` (the tree of ``(args, kwargs)`` without static ones) in
    order, then ``constants``: arrays the function closed over. ``inputs`` and ``outputs`` are the types
    as the user sees them (a typed PRNG key stays one; ``@main`` takes its words). ``names`` are the
    arguments' paths for messages. ``weights`` are the positions of what a program keeps from call to
    call: the constants, and undonated arguments that lie in a container. ``donated`` says which output
    each donated argument becomes (those that fit none are not in it). ``mesh`` are the axes of the
    user's own mesh, () without one.
    """

    name: str
    module: ir.Module
    constants: tuple[Any, ...]
    in_tree: PyTreeDef
    out_tree: PyTreeDef
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    outputs: tuple[jax.ShapeDtypeStruct, ...]
    names: tuple[str, ...]
    weights: tuple[int, ...]
    donated: Mapping[int, int]
    mesh: tuple[tuple[str, int], ...]


def wrap(
    fn: Callable[..., Any],
    *,
    static_argnums: int | Sequence[int] | None,
    static_argnames: str | Sequence[str] | None,
    donate_argnums: int | Sequence[int] | None,
) -> Any:
    """``jax.jit`` of ``fn`` with every argument kept, so that ``@main`` takes the whole tree."""
    return jax.jit(
        fn,
        static_argnums=static_argnums,
        static_argnames=static_argnames,
        donate_argnums=donate_argnums,
        keep_unused=True,
    )


def stage(
    jitted: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    in_shardings: Any,
    axes: tuple[tuple[str, int], ...],
) -> Staged:
    """Traces for these arguments; a second call with the same types costs microseconds.

    Args:
      jitted: a result of ``wrap``.
      args, kwargs: arrays, scalars or ``jax.ShapeDtypeStruct``s, static ones included.
      in_shardings: a tree prefix of the positional arguments: NamedSharding, PartitionSpec or None.
      axes: the mesh a bare PartitionSpec refers to.
    """
    positions, names = static_arguments(jitted, len(args))
    dynamic_args, dynamic_kwargs = dynamic_arguments(jitted, args, kwargs)
    leaves, in_tree = tree_flatten((dynamic_args, dynamic_kwargs))
    leaves = [_type(leaf) if isinstance(leaf, RingArray) else leaf for leaf in leaves]
    prefix = tuple(in_shardings) if isinstance(in_shardings, list) else in_shardings
    asked = _broadcast("in_shardings", prefix, dynamic_args) + [None] * len(tree_flatten(dynamic_kwargs)[0])
    found = tuple(
        user_sharding(own if own is not None else getattr(leaf, "sharding", None), np.ndim(leaf), axes)
        for leaf, own in zip(leaves, asked, strict=True)
    )
    plain_args, plain_kwargs = in_tree.unflatten(
        [_type(leaf) if sharding else leaf for leaf, sharding in zip(leaves, found, strict=True)]
    )
    plain = iter(plain_args)
    merged_args = [arg if i in positions else next(plain) for i, arg in enumerate(args)]
    merged_kwargs = {name: kwargs[name] if name in names else plain_kwargs[name] for name in kwargs}
    with _constants_as_arguments(), _explaining_unknown_values():
        traced = jitted.trace(*merged_args, **merged_kwargs)
    return Staged(traced=traced, in_tree=in_tree, shardings=found)


def export(staged: Staged, *, out_shardings: Any, axes: tuple[tuple[str, int], ...]) -> Exported:
    """Lowers to StableHLO in the compiler's own MLIR context, source locations kept.

    Raises:
      CompileError: the function's shardings lie on meshes of different sizes.
    """
    traced = staged.traced
    with _constants_as_arguments():
        lowered = traced.lower(
            lowering_platforms=("cpu",),
            _private_parameters=jax_mlir.LoweringParameters(hoist_constants_as_args=True),
        )
    _reject_ordered_effects(lowered)
    bytecode = io.BytesIO()
    lowered.compiler_ir("stablehlo").operation.write_bytecode(bytecode)
    module = parse(bytecode.getvalue())
    constants = _constants_last(module, lowered._lowering.const_args)
    outputs, out_tree = tree_flatten(traced.out_info)
    asked = _broadcast("out_shardings", out_shardings, traced.out_info)
    results = [
        user_sharding(sharding, len(output.shape), axes)
        for sharding, output in zip(asked, outputs, strict=True)
    ]
    drop_single_device_meshes(module)
    annotate(module, staged.shardings, results)
    _name_donated_results(module)
    check_meshes(module)
    infos, _ = tree_flatten_with_path(traced.args_info)
    return Exported(
        name=traced.fun_name,
        module=module,
        constants=constants,
        in_tree=staged.in_tree,
        out_tree=out_tree,
        inputs=tuple(_shape(info.shape, info.dtype) for _, info in infos),
        outputs=tuple(
            _shape(aval.shape, aval.dtype, weak_type=aval.weak_type) for aval in traced.jaxpr.out_avals
        ),
        names=tuple(_readable(path) for path, _ in infos),
        weights=_weights(infos, len(constants)),
        donated=_donated(module),
        mesh=mesh_axes(module),
    )


@functools.lru_cache(maxsize=256)
def is_key(dtype: Any) -> bool:
    """Whether it is the type of typed PRNG keys."""
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def physical(value: Any) -> Any:
    """The array ``@main`` takes for ``value``: a typed PRNG key gives its words, all else is unchanged."""
    return jax.random.key_data(value) if is_key(getattr(value, "dtype", None)) else value


def logical(array: jax.Array, dtype: Any) -> Any:
    """The inverse of ``physical``: what the user gets for an output of the program."""
    if is_key(dtype):
        return jax.random.wrap_key_data(array, impl=dtype._impl.name)
    if dtype == jax.dtypes.float0:
        return np.zeros(array.shape, dtype)
    return array


@contextlib.contextmanager
def _constants_as_arguments() -> Iterator[None]:
    """JAX keeps closed-over arrays as arguments of every function at every depth, on this thread only."""
    with (
        jax_config.use_simplified_jaxpr_constants(True),
        jax_config.embedded_constants_max_bytes(MAX_EMBEDDED_BYTES),
    ):
        yield


# What JAX raises where a shape or Python's control flow depends on a value of the running program, and what
# it says where it has no type of error for that.
_UNKNOWN_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)
_UNKNOWN_SIZE = re.compile("entries must be static integers|sequences of concrete values")


@contextlib.contextmanager
def _explaining_unknown_values() -> Iterator[None]:
    try:
        yield
    except (*_UNKNOWN_VALUES, IndexError, TypeError) as error:
        if not isinstance(error, _UNKNOWN_VALUES) and not _UNKNOWN_SIZE.search(str(error)):
            raise
        raise DataDependentError(
            f"a shape, an index or Python's control flow depends on a value: {str(error).splitlines()[0]}",
            op=type(error).__name__,
            location=user_line(error),
            fix="give the size: jnp.nonzero(x, size=n, fill_value=0), jnp.unique(x, size=n); in place of "
            "x[mask] write jnp.where(mask, x, 0); of `if` lax.cond or jnp.where; of a slice with a traced "
            "bound lax.dynamic_slice; or make the argument static (static_argnums)",
        ) from error


def user_line(error: BaseException) -> str:
    """``file:line`` of the innermost frame of the user's among those that raised ``error``, or ""."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if source_info_util.is_user_filename(f.filename)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _type(leaf: Any) -> jax.ShapeDtypeStruct:
    leaf = leaf if hasattr(leaf, "shape") else jax.typeof(leaf)  # a Python number
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))


_shape = functools.lru_cache(maxsize=1024)(jax.ShapeDtypeStruct)
"""JAX takes its time to make one, and a model has few different among hundreds."""


def _broadcast(option: str, prefix: Any, tree: Any) -> list[Any]:
    """One entry of ``prefix`` for each leaf of ``tree``; None stands for a whole subtree too."""
    result: list[Any] = []

    def visit(entry: Any, subtree: Any) -> None:
        result.extend([entry] * len(tree_flatten(subtree)[0]))

    try:
        jax.tree.map(visit, prefix, tree, is_leaf=_is_sharding_leaf)
    except ValueError as error:
        leaves = jax.tree.map(lambda _: "*", tree)
        raise CompileError(
            f"{option} is {prefix}, expected a prefix of the tree {leaves}",
            op="sharding",
            fix="give a sharding or None for each *, or one for a whole subtree",
        ) from error
    return result


def _is_sharding_leaf(entry: Any) -> bool:
    return entry is None or isinstance(entry, jax.sharding.PartitionSpec | jax.sharding.Sharding)


def _constants_last(module: ir.Module, values: Sequence[Any]) -> tuple[Any, ...]:
    """Moves JAX's leading constant arguments behind the others, each array once; returns the arrays."""
    function = main(module)
    block = function.regions[0].blocks[0]
    attributes = list(function.arg_attrs)[len(values) :] if values else None
    kept: dict[tuple[Any, ...], tuple[Any, ir.Value]] = {}
    with module.context, ir.Location.unknown():
        for old, value in zip(list(block.arguments)[: len(values)], values, strict=True):
            key = _identity(value)
            if key not in kept:
                array = value if isinstance(value, jax.Array) else np.array(value)
                kept[key] = (array, block.add_argument(old.type, ir.Location.name("constant")))
            old.replace_all_uses_with(kept[key][1])
        for _ in values:
            block.erase_argument(0)
        if attributes is not None:
            _set_signature(function, attributes + [ir.DictAttr.get({})] * len(kept))
    return tuple(array for array, _ in kept.values())


def _set_signature(function: func.FuncOp, attributes: list[ir.DictAttr]) -> None:
    types = [argument.type for argument in function.regions[0].blocks[0].arguments]
    signature = ir.FunctionType.get(types, list(function.type.results))
    function.attributes["function_type"] = ir.TypeAttr.get(signature)
    function.attributes["arg_attrs"] = ir.ArrayAttr.get(attributes)


def _name_donated_results(module: ir.Module) -> None:
    """Turns each ``jax.buffer_donor`` into ``tf.aliasing_output``: the first free result of its type.

    JAX leaves that choice to the partitioner when the function holds shardings; here it is made once.
    """
    function = main(module)
    if not any("jax.buffer_donor" in entry for entry in function.attributes.get("arg_attrs", ())):
        return
    attributes = [{one.name: one.attr for one in entry} for entry in function.arg_attrs]
    taken = {entry["tf.aliasing_output"].value for entry in attributes if "tf.aliasing_output" in entry}
    results = list(function.type.results)
    with module.context:
        for entry, kind in zip(attributes, function.type.inputs, strict=True):
            if entry.pop("jax.buffer_donor", None) is None:
                continue
            free = (i for i, result in enumerate(results) if result == kind and i not in taken)
            index = next(free, None)
            if index is not None:
                taken.add(index)
                entry["tf.aliasing_output"] = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), index)
        function.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(e) for e in attributes])


def _donated(module: ir.Module) -> dict[int, int]:
    function = main(module)
    if "arg_attrs" not in function.attributes:
        return {}
    entries = enumerate(function.arg_attrs)
    return {i: one["tf.aliasing_output"].value for i, one in entries if "tf.aliasing_output" in one}


def _reject_ordered_effects(lowered: Any) -> None:
    effects = lowered._lowering.compile_args["ordered_effects"]
    if effects:
        raise CompileError(
            f"the function has ordered side effects on the host: {', '.join(map(str, effects))}",
            op="host callback",
            fix="remove ordered callbacks (io_callback, debug.print) or call them outside it",
        )


def _identity(value: Any) -> tuple[Any, ...]:
    """Equal for the same array object: JAX wraps a NumPy array anew at each use, its memory stays."""
    if isinstance(value, jax.Array):
        return ("array", id(value))
    memory = np.asarray(value).__array_interface__
    return ("memory", memory["data"][0], memory["shape"], memory["strides"], memory["typestr"])


def _weights(infos: Sequence[tuple[tuple[Any, ...], Any]], num_constants: int) -> tuple[int, ...]:
    # A path of two entries is an argument given directly: args[0] or kwargs['x'].
    kept = [index for index, (path, info) in enumerate(infos) if len(path) > 2 and not info.donated]
    return (*kept, *range(len(infos), len(infos) + num_constants))


def _readable(path: tuple[Any, ...]) -> str:
    """``args[0]['w']`` or ``kwargs['x']`` of a leaf of ``(args, kwargs)``."""
    return ("args" if path[0].idx == 0 else "kwargs") + keystr(path[1:])
