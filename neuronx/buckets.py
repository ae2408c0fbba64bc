"""Dynamic shapes: a function compiled once a bucket of sizes, its arguments padded and its results cut."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.tree_util import tree_flatten, tree_map, tree_unflatten

from kernels.errors import CompileError
from neuronx.arrays import Deferred
from neuronx.frontend import physical
from neuronx.function import Function
from neuronx.stages import Lowered

__all__ = ["PADDINGS", "BucketUse", "BucketedFunction", "PaddingLeakError", "PaddingReport"]

PADDINGS = ("masked", "exact")


class PaddingLeakError(CompileError):
    """A result depends on what stands in the padding."""


@dataclass(frozen=True, kw_only=True)
class BucketUse:
    """What one compiled program did. ``elements`` are those of padded arguments, ``wasted`` the padding's."""

    sizes: tuple[tuple[str, int], ...]
    calls: int
    elements: int
    wasted: int

    @property
    def waste(self) -> float:
        """The part of all elements that was padding."""
        return self.wasted / self.elements if self.elements else 0.0

    def __str__(self) -> str:
        named = ", ".join(f"{name}={size}" for name, size in self.sizes)
        return f"{named:<32} {self.calls:>8} calls  {self.waste:7.1%} padding"


@dataclass(frozen=True, kw_only=True)
class PaddingReport:
    """One row a compiled program, and all together."""

    rows: tuple[BucketUse, ...]

    @property
    def waste(self) -> float:
        """The part of all elements that was padding."""
        elements = sum(row.elements for row in self.rows)
        return sum(row.wasted for row in self.rows) / elements if elements else 0.0

    def __str__(self) -> str:
        calls = sum(row.calls for row in self.rows)
        total = f"{len(self.rows)} programs, {calls} calls, {self.waste:.1%} of the elements were padding"
        return "\n".join([*map(str, self.rows), total])


class BucketedFunction:
    """What ``neuronx.compile(fn, buckets=...)`` returns: takes arrays of any size up to the largest bucket.

    The rule that makes padding safe: arguments are padded with zeros behind their last element, results are
    cut to the shapes ``fn`` has for the true sizes, and what is left must not depend on the padding. A
    function that mixes elements of a padded dim (a sum, a softmax, attention) therefore masks it: by a
    boolean argument of its own, whose padding is False, or by the true size, given as an int32 to a
    keyword-only parameter of the dim's name, ``def fn(x, *, s)``. At the first call of each program
    that pads these dims the rule is checked on the call's own data: it runs again with other values in the
    padding of all but booleans, and all results must be the same bits. ``padding="exact"`` needs no rule.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        function: Function,
        buckets: Mapping[str, Sequence[int]],
        in_shapes: Any,
        padding: str,
    ) -> None:
        self._function, self._in_shapes, self._padding = function, in_shapes, padding
        self._buckets = _checked(buckets, in_shapes, padding)
        parameters = inspect.signature(fn).parameters.values()
        self._wants = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in self._buckets]
        self._uses: dict[tuple[tuple[str, int], ...], BucketUse] = {}
        self._verified: set[tuple[tuple[tuple[str, int], ...], frozenset[str]]] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program of the smallest bucket that holds the arguments; compiled at its first call.

        Raises:
          CompileError: a size beyond the largest bucket, or two sizes for one dim.
          PaddingLeakError: a result depends on the padding.
        """
        args = tree_map(
            lambda leaf: leaf.array("neuronx.compile") if isinstance(leaf, Deferred) else leaf, args
        )
        dims = self._dims(args)
        sizes = self._sizes(args, dims)
        bucket = self._bucket(sizes)
        named = {name: np.int32(sizes[name]) for name in self._wants}
        padded = self._pad(args, dims, bucket)
        results = self._function(*padded, **kwargs, **named)
        exact = self._function.output_types(args, {**kwargs, **named})
        cut = tree_map(_cut, exact, results)
        key = tuple(bucket.items())
        dims_padded = frozenset(name for name, size in sizes.items() if size != bucket[name])
        if dims_padded and (key, dims_padded) not in self._verified:
            self._verify(args, dims, bucket, {**kwargs, **named}, exact, cut)
            self._verified.add((key, dims_padded))
        self._count(key, args, padded)
        return cut

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """The program of the bucket that holds these arguments: arrays, or ``jax.ShapeDtypeStruct``s."""
        dims = self._dims(args)
        bucket = self._bucket(self._sizes(args, dims))
        leaves, tree = tree_flatten(args)
        shaped = [
            jax.ShapeDtypeStruct(_padded_shape(leaf, spec, bucket), leaf.dtype) if spec else leaf
            for leaf, spec in zip(leaves, dims, strict=True)
        ]
        named = {name: np.int32(bucket[name]) for name in self._wants}
        return self._function.lower(*tree_unflatten(tree, shaped), **kwargs, **named)

    def report(self) -> PaddingReport:
        """What each program was called with so far, and how much of it was padding."""
        return PaddingReport(rows=tuple(self._uses.values()))

    def _dims(self, args: tuple[Any, ...]) -> list[tuple[Any, ...] | None]:
        """For each leaf its symbolic shape, or None."""
        found: list[tuple[Any, ...] | None] = []

        def visit(spec: str | None, subtree: Any) -> None:
            for leaf in tree_flatten(subtree)[0]:
                found.append(None if spec is None else _shape(spec, leaf))

        tree_map(visit, self._in_shapes, args, is_leaf=lambda entry: entry is None)
        return found

    def _sizes(self, args: tuple[Any, ...], dims: Sequence[tuple[Any, ...] | None]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for leaf, spec in zip(tree_flatten(args)[0], dims, strict=True):
            for dim, size in zip(spec or (), np.shape(leaf), strict=False):
                if export.is_symbolic_dim(dim) and sizes.setdefault(str(dim), size) != size:
                    raise CompileError(
                        f"the dim {dim} has size {sizes[str(dim)]} in one argument and {size} in another",
                        op="buckets",
                        fix="pass arguments whose shapes agree, or give the dims different names",
                    )
        return {name: sizes[name] for name in self._buckets}

    def _bucket(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The smallest sizes that hold these."""
        found = {}
        for name, size in sizes.items():
            fitting = [one for one in self._buckets[name] if one >= size]
            if not fitting:
                raise CompileError(
                    f"the dim {name} has size {size}, and the largest bucket is {self._buckets[name][-1]}",
                    op="buckets",
                    fix=f"add a bucket, {{{name!r}: {(*self._buckets[name], size)}}}, or split the call",
                )
            found[name] = fitting[0] if self._padding == "masked" else size
        return found

    def _pad(
        self, args: tuple[Any, ...], dims: Sequence[tuple[Any, ...] | None], bucket: Mapping[str, int],
        fill: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] | None = None,
    ) -> tuple[Any, ...]:  # fmt: skip
        leaves, tree = tree_flatten(args)
        padded = []
        for leaf, spec in zip(leaves, dims, strict=True):
            shape = _padded_shape(leaf, spec, bucket)
            if shape != np.shape(leaf):
                array = np.asarray(leaf)
                whole = np.zeros(shape, array.dtype) if fill is None else fill(array, shape)
                whole[tuple(map(slice, array.shape))] = array
                leaf = whole
            padded.append(leaf)
        return tree_unflatten(tree, padded)

    def _verify(
        self, args: tuple[Any, ...], dims: Sequence[tuple[Any, ...] | None], bucket: Mapping[str, int],
        kwargs: dict[str, Any], exact: Any, wanted: Any,
    ) -> None:  # fmt: skip
        other = self._function(*self._pad(args, dims, bucket, _other_values), **kwargs)
        pairs = zip(
            *(tree_flatten(tree)[0] for tree in (exact, wanted, tree_map(_cut, exact, other))), strict=True
        )
        for number, (type_, one, two) in enumerate(pairs):
            if one.shape != type_.shape or _bits(one) != _bits(two):
                named = ", ".join(["*", *bucket])
                raise PaddingLeakError(
                    f"result {number} depends on the padding of {', '.join(bucket)}",
                    op="buckets",
                    fix=f"take the true size ({named}) and mask: jnp.where(jnp.arange(n) < size, x, 0); or "
                    'compile each size by itself: padding="exact"',
                )

    def _count(self, key: tuple[tuple[str, int], ...], args: Any, padded: Any) -> None:
        true, whole = (sum(np.size(leaf) for leaf in tree_flatten(tree)[0]) for tree in (args, padded))
        old = self._uses.get(key, BucketUse(sizes=key, calls=0, elements=0, wasted=0))
        self._uses[key] = BucketUse(
            sizes=key,
            calls=old.calls + 1,
            elements=old.elements + whole,
            wasted=old.wasted + whole - true,
        )


def _bits(array: Any) -> bytes:
    return np.asarray(physical(array)).tobytes()


def _checked(
    buckets: Mapping[str, Sequence[int]], in_shapes: Any, padding: str
) -> dict[str, tuple[int, ...]]:
    if padding not in PADDINGS:
        raise CompileError(f"padding is {padding!r}, expected masked or exact", op="buckets")
    if in_shapes is None:
        raise CompileError("buckets without in_shapes", op="buckets", fix='e.g. in_shapes=("b, 64",)')
    specs = [spec for spec in tree_flatten(in_shapes)[0] if spec is not None]
    named = {str(dim) for spec in specs for dim in _symbols(spec)}
    if set(buckets) != named:
        raise CompileError(
            f"buckets name the dims {sorted(buckets)}, in_shapes {sorted(named)}",
            op="buckets",
            fix='name each dim in both: buckets={"b": (1, 8)}, in_shapes=("b, 64",)',
        )
    for name, sizes in buckets.items():
        several = isinstance(sizes, Sequence) and len(sizes)
        if not several or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise CompileError(
                f"the buckets of {name} are {sizes!r}, expected sizes of 1 or more",
                op="buckets",
                fix=f"give them as a tuple, also where it is one: {{{name!r}: (8,)}}",
            )
    return {name: tuple(sorted(set(sizes))) for name, sizes in buckets.items()}


def _symbols(spec: str) -> list[Any]:
    """The symbolic dims of a shape, as ``jax.export.symbolic_shape`` reads it; names only."""
    dims = [part.strip() for part in spec.strip("() ").split(",")]
    found = [dim for dim in dims if dim and not dim.isdigit() and dim not in ("...", "_")]
    for dim in found:
        if not dim.isidentifier():
            raise CompileError(
                f"the dim {dim!r} of in_shapes is an expression, expected a name, a number, _ or ...",
                op="buckets",
                fix="name the dim itself and let the function compute with its shape",
            )
    return found


def _shape(spec: str, leaf: Any) -> tuple[Any, ...]:
    like = np.shape(leaf)
    try:
        dims = export.symbolic_shape(spec, like=like)
    except (ValueError, IndexError) as error:  # IndexError: fewer dims than the spec
        raise _misfit(spec, like, f": {error}") from error
    if len(dims) != len(like) or any(isinstance(d, int) and d != n for d, n in zip(dims, like, strict=True)):
        raise _misfit(spec, like, "")
    return dims


def _misfit(spec: str, shape: tuple[int, ...], why: str) -> CompileError:
    return CompileError(
        f"the shape {list(shape)} of an argument does not fit in_shapes {spec!r}{why}",
        op="buckets",
        fix="write one entry a dim: a name, a number, _ for any size as it is, or ... for several",
    )


def _padded_shape(leaf: Any, spec: tuple[Any, ...] | None, bucket: Mapping[str, int]) -> tuple[int, ...]:
    if spec is None:
        return np.shape(leaf)
    return tuple(bucket[str(dim)] if export.is_symbolic_dim(dim) else dim for dim in spec)


def _other_values(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of that shape with values that occur in ``array``, floats eight times as large."""
    if array.dtype == bool:
        return np.zeros(shape, bool)
    if not array.size:
        return np.ones(shape, array.dtype)
    drawn = np.random.default_rng(0).choice(array.ravel(), shape)
    return (drawn * 8).astype(array.dtype) if jnp.issubdtype(array.dtype, jnp.floating) else drawn


def _cut(exact: jax.ShapeDtypeStruct, whole: Any) -> Any:
    return whole if whole.shape == exact.shape else whole[tuple(map(slice, exact.shape))]
