"""Random JAX programs under random shardings, each a function of one seed and a number of steps.

The first ``k`` steps of a program are those of every longer program of its seed, and shardings are drawn
apart from the steps, so that a failing program is made smaller by giving fewer steps.
"""

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

try:
    from random_ops import MAX_ELEMENTS, STEPS
except ImportError:  # as a part of the repository: python -m benchmarks.partitioners
    from tests.random_ops import MAX_ELEMENTS, STEPS

__all__ = ["CORES", "MAX_STEPS", "Input", "Program", "generate"]

CORES = (2, 3, 4, 6, 8, 12, 24)
MAX_STEPS = 12

_SIZES = (1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 12, 16, 24)
_MAX_RANK = 5
# 64 * 64 * 4000 terms stay below 2**24, to which float32 holds every integer.
_MAX_BOUND = 64
_FRESH_BOUND = 3


@dataclass(frozen=True, kw_only=True)
class Input:
    """One argument: its shape and type; integers are drawn from ``low`` to before ``high``."""

    shape: tuple[int, ...]
    dtype: str
    low: int
    high: int
    smooth: bool

    def values(self, rng: np.random.Generator) -> np.ndarray:
        if self.smooth:
            return rng.standard_normal(self.shape).astype(self.dtype)
        return rng.integers(self.low, self.high, self.shape).astype(self.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """An array and the largest magnitude its elements may have."""

    array: jax.Array
    bound: int


@dataclass(frozen=True, kw_only=True)
class Program:
    """``function`` is the sharded program, ``unsharded`` the same without any sharding.

    ``mesh`` is None for the programs whose sharding is left to the compiler's plan; ``shardings`` has one
    entry per input, None where the program does not say. ``exact``: answers must agree to the bit.
    """

    seed: int
    steps: int
    cores: int
    exact: bool
    mesh: AbstractMesh | None
    inputs: tuple[Input, ...]
    shardings: tuple[NamedSharding | None, ...]
    function: Callable[..., Any]
    unsharded: Callable[..., Any]

    def arguments(self) -> list[np.ndarray]:
        rng = np.random.default_rng(self.seed)
        return [one.values(rng) for one in self.inputs]

    def specs(self) -> list[jax.ShapeDtypeStruct]:
        """What the sharded program is traced with; JAX takes uneven shardings only as constraints inside."""
        return [
            jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding if _is_even(one, sharding) else None)
            for one, sharding in zip(self.inputs, self.shardings, strict=True)
        ]


def generate(seed: int, steps: int | None = None, *, annotated: bool = False) -> Program:
    """The program of ``seed``; as long as the seed says, or of ``steps`` steps.

    ``annotated`` gives the programs that would leave their sharding to the compiler one as well.
    """
    draw = random.Random(f"program {seed}")
    smooth, cores = draw.random() < 0.3, draw.choice(CORES)
    length = draw.randint(1, MAX_STEPS)
    steps = length if steps is None else steps
    planned = draw.random() < 0.15 and not annotated
    mesh = None if planned else _mesh(draw, cores)

    recorded: list[Input] = []
    build = functools.partial(_build, seed, steps, smooth)
    jax.eval_shape(lambda: build(_Context(seed=seed, inputs=recorded, arrays=None, mesh=None)))
    inputs = tuple(recorded)
    shardings = tuple(
        NamedSharding(mesh, _spec(draw, mesh, len(one.shape))) if mesh and draw.random() < 0.6 else None
        for one in inputs
    )

    def run(arrays: Sequence[jax.Array], mesh: AbstractMesh | None) -> tuple[jax.Array, ...]:
        return build(_Context(seed=seed, inputs=list(inputs), arrays=list(arrays), mesh=mesh))

    def function(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        entering = [
            lax.with_sharding_constraint(x, s) if s is not None and not _is_even(one, s) else x
            for x, s, one in zip(arrays, shardings, inputs, strict=True)
        ]
        return run(entering, mesh)

    return Program(
        seed=seed, steps=steps, cores=cores, exact=not smooth, mesh=mesh, inputs=inputs, shardings=shardings,
        function=function, unsharded=lambda *arrays: run(arrays, None),
    )  # fmt: skip


def _mesh(draw: random.Random, cores: int) -> AbstractMesh:
    first = draw.choice([size for size in range(2, cores + 1) if cores % size == 0])
    return (
        AbstractMesh((first, cores // first), ("x", "y")) if first < cores else AbstractMesh((cores,), ("x",))
    )


def _spec(draw: random.Random, mesh: AbstractMesh, rank: int) -> PartitionSpec:
    """Each axis on a random dim or on none."""
    dims: list[list[str]] = [[] for _ in range(rank)]
    for axis in draw.sample(mesh.axis_names, len(mesh.axis_names)):
        dim = draw.randrange(-1, rank)
        if dim >= 0:
            dims[dim].append(axis)
    return PartitionSpec(*(tuple(axes) or None for axes in dims))


def _is_even(one: Input, sharding: NamedSharding | None) -> bool:
    if sharding is None:
        return False
    sizes = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_sizes, strict=True))
    pairs = zip(one.shape, sharding.spec, strict=True)
    return all(size % math.prod(sizes[a] for a in axes or ()) == 0 for size, axes in pairs)


def _build(seed: int, steps: int, smooth: bool, context: "_Context") -> tuple[jax.Array, ...]:
    g = _Generator(random.Random(f"steps {seed}"), context, smooth=smooth, name=f"main {seed}")
    shape: list[int] = []
    for _ in range(g.draw.randint(1, 4)):
        shape.append(g.size(math.prod(shape)))
    first = g.fresh(shape)
    g.add(first.array, first.bound)
    for _ in range(steps):
        usable = [v for v in g.values if 1 <= v.array.ndim <= _MAX_RANK]
        recent = usable[-1:] if usable and g.draw.random() < 0.75 else usable
        value = g.draw.choice(recent) if recent else g.fresh([g.size(), g.size()])
        g.step(value, STEPS)
    others = random.Random(f"results {seed} {steps}").sample(g.values, min(2, len(g.values)))
    return tuple(v.array for v in dict.fromkeys([g.values[-1], *others]))


@dataclass(kw_only=True)
class _Context:
    """The arguments: recorded while ``arrays`` is None, read from it afterwards; ``used`` counts them."""

    seed: int
    inputs: list[Input]
    arrays: list[jax.Array] | None
    mesh: AbstractMesh | None
    used: int = field(default=0)

    def take(self, wanted: Input) -> int:
        self.used += 1
        if self.arrays is None:
            self.inputs.append(wanted)
        assert self.inputs[self.used - 1] == wanted, "the steps of a program depend on its seed alone"
        return self.used - 1

    def array(self, index: int) -> jax.Array:
        if self.arrays is None:
            return jnp.zeros(self.inputs[index].shape, self.inputs[index].dtype)
        return self.arrays[index]


class _Generator:
    """Draws steps. The body of a loop has one of its own, begun anew each time JAX traces the body."""

    settled = 15

    def __init__(
        self,
        draw: random.Random,
        context: _Context,
        *,
        smooth: bool,
        name: str,
        known: list[int] | None = None,
    ) -> None:
        self.draw, self.context, self.smooth, self.name = draw, context, smooth, name
        self.values: list[Value] = []
        self._specs = random.Random(f"specs {name}")
        self._known, self._used = known, 0

    def inside(self, seed: int, known: list[int]) -> "_Generator":
        """For a body; ``known`` keeps which arguments it reads, from one tracing of it to the next."""
        return _Generator(
            random.Random(seed), self.context, smooth=self.smooth, name=f"body {seed}", known=known
        )

    def size(self, others: int = 1) -> int:
        """The size of a dim of an array that holds ``others`` elements for each of its rows."""
        return self.draw.choice([size for size in _SIZES if size * others <= MAX_ELEMENTS] or [1])

    def fresh(self, shape: Sequence[int]) -> Value:
        """A new argument."""
        shape = tuple(shape)
        dtype = "float32" if self.smooth or self.draw.random() < 0.6 else "int32"
        one = Input(shape=shape, dtype=dtype, low=-_FRESH_BOUND, high=_FRESH_BOUND + 1, smooth=self.smooth)
        return Value(array=self._take(one), bound=_FRESH_BOUND)

    def indices(self, shape: Sequence[int], low: int, high: int) -> jax.Array:
        """A new argument of integers from ``low`` to before ``high``."""
        return self._take(Input(shape=tuple(shape), dtype="int32", low=low, high=high, smooth=False))

    def _take(self, one: Input) -> jax.Array:
        if self._known is None:
            return self.context.array(self.context.take(one))
        if self._used == len(self._known):
            self._known.append(self.context.take(one))
        self._used += 1
        return self.context.array(self._known[self._used - 1])

    def settle(self, array: jax.Array) -> jax.Array:
        return jnp.tanh(array) if self.smooth else lax.rem(array, jnp.asarray(self.settled + 1, array.dtype))

    def add(self, array: jax.Array, bound: int) -> Value:
        """Keeps a value small enough, in magnitude and in size, perhaps constrains it, and remembers it."""
        if not self.smooth and bound > _MAX_BOUND:
            array, bound = self.settle(array), self.settled
        while array.size > MAX_ELEMENTS:
            array = array[array.shape[0] // 2] if array.ndim > 1 else array[:MAX_ELEMENTS]
        value = Value(array=self._constrain(array), bound=bound)
        self.values.append(value)
        return value

    def step(self, value: Value, table: dict[str, Callable[[Any, Any], tuple[jax.Array, int]]]) -> Value:
        if not value.array.ndim:
            value = Value(array=value.array.reshape(1), bound=value.bound)
        return self.add(*table[self.draw.choice(list(table))](self, value))

    def _constrain(self, array: jax.Array) -> jax.Array:
        mesh, asked = self.context.mesh, self._specs.random() < 0.2
        if mesh is None or not asked or not array.ndim:
            return array
        return lax.with_sharding_constraint(array, NamedSharding(mesh, _spec(self._specs, mesh, array.ndim)))
