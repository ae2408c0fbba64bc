"""Steps of random programs: each draws its parameters, applies one JAX operation and bounds the result.

A step takes the generator and a value and returns ``(array, bound)``. Programs of kind ``exact`` hold small
integers, as int32 or float32, so that no order of summation rounds and answers must agree to the bit;
``bound`` is the largest magnitude, which the generator keeps below what float32 holds exactly. Programs of
kind ``smooth`` hold ordinary floats and only continuous functions of them; ``bound`` means nothing there.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["MAX_ELEMENTS", "STEPS", "Result"]

Result = tuple[jax.Array, int]

# No array of a program is larger, but products of a few of its dims may be.
MAX_ELEMENTS = 6000
_SMOOTH = (
    jnp.tanh,
    jnp.sin,
    jax.nn.sigmoid,
    lambda x: jnp.exp(-x * x),
    jax.nn.gelu,
    lambda x: x * 0.5 + 0.25,
)


def _unary(g: Any, v: Any) -> Result:
    if g.smooth:
        return g.draw.choice(_SMOOTH)(v.array), v.bound
    kind = g.draw.randrange(5)
    x = v.array
    if kind == 0:
        return -x, v.bound
    if kind == 1:
        return jnp.abs(x), v.bound
    if kind == 2:
        return jnp.where(x > 1, x, 2 - x), v.bound + 2
    if kind == 3:
        return x.astype(jnp.int32 if x.dtype == jnp.float32 else jnp.float32), v.bound
    return jnp.clip(x, -3, 2), 3


def _binary(g: Any, v: Any) -> Result:
    shape = [1 if g.draw.random() < 0.25 else size for size in v.array.shape]
    same = [other for other in g.values if other.array.shape == v.array.shape and other is not v]
    other = g.draw.choice(same) if same and g.draw.random() < 0.5 else g.fresh(shape)
    y = other.array.astype(v.array.dtype)
    kind = g.draw.randrange(5)
    if kind == 0:
        return v.array * y, v.bound * other.bound
    if kind == 1:
        return jnp.maximum(v.array, y), max(v.bound, other.bound)
    if kind == 2 and not g.smooth:
        return jnp.where(v.array < y, v.array, y + 1), max(v.bound, other.bound + 1)
    if kind == 3:
        return y - v.array, v.bound + other.bound
    return v.array + y, v.bound + other.bound


def _dot(g: Any, v: Any) -> Result:
    rank = v.array.ndim
    dims = g.draw.sample(range(rank), rank)
    contracting = dims[: g.draw.randint(1, min(2, rank))]
    batch = dims[len(contracting) :][: g.draw.choice([0, 0, 1, 2])]
    sizes = v.array.shape
    free = math.prod(s for d, s in enumerate(sizes) if d not in contracting)
    own: list[int] = []
    for _ in range(g.draw.randint(0, 2)):
        own.append(g.size(math.prod(own) * max(free, math.prod(sizes[d] for d in batch + contracting))))
    weight = g.fresh([sizes[d] for d in batch + contracting] + own)
    right = list(range(len(batch + contracting)))
    numbers = ((contracting, right[len(batch) :]), (batch, right[: len(batch)]))
    y = lax.dot_general(v.array, weight.array.astype(v.array.dtype), numbers)
    count = math.prod(sizes[d] for d in contracting)
    return (y / math.sqrt(max(count, 1)) if g.smooth else y), v.bound * weight.bound * count


def _reduce(g: Any, v: Any) -> Result:
    rank = v.array.ndim
    dims = tuple(sorted(g.draw.sample(range(rank), g.draw.randint(1, min(2, rank)))))
    keep = g.draw.random() < 0.4
    count = math.prod(v.array.shape[d] for d in dims)
    kind = g.draw.randrange(6)
    if kind < 2:
        return jnp.sum(v.array, dims, keepdims=keep), v.bound * count
    if kind == 2:
        return jnp.min(v.array, dims, keepdims=keep), v.bound
    if kind == 3 and not g.smooth:
        return jnp.prod(jnp.sign(v.array), dims, keepdims=keep), 1
    if kind == 4 and not g.smooth:
        return jnp.argmax(v.array, dims[0], keepdims=keep).astype(jnp.int32), count
    if kind == 5 and g.smooth:
        return jax.nn.softmax(v.array, dims), v.bound
    return jnp.max(v.array, dims, keepdims=keep), v.bound


def _reshape(g: Any, v: Any) -> Result:
    shape = list(v.array.shape)
    for _ in range(g.draw.randint(1, 3)):
        if len(shape) > 1 and g.draw.random() < 0.5:
            at = g.draw.randrange(len(shape) - 1)
            shape[at : at + 2] = [shape[at] * shape[at + 1]]
        else:
            at = g.draw.randrange(len(shape))
            factor = g.draw.choice([f for f in range(1, shape[at] + 1) if shape[at] % f == 0])
            shape[at : at + 1] = [factor, shape[at] // factor]
    return v.array.reshape(shape), v.bound


def _transpose(g: Any, v: Any) -> Result:
    return v.array.transpose(g.draw.sample(range(v.array.ndim), v.array.ndim)), v.bound


def _broadcast(g: Any, v: Any) -> Result:
    at, size = g.draw.randint(0, v.array.ndim), g.size()
    if v.array.size * size > MAX_ELEMENTS:
        return v.array, v.bound
    dims = [d for d in range(v.array.ndim + 1) if d != at]
    return lax.broadcast_in_dim(v.array, (*v.array.shape[:at], size, *v.array.shape[at:]), dims), v.bound


def _concatenate(g: Any, v: Any) -> Result:
    dim, shape = g.draw.randrange(v.array.ndim), list(v.array.shape)
    shape[dim] = g.size(v.array.size // shape[dim])
    other = g.fresh(shape)
    parts = [v.array, other.array.astype(v.array.dtype), v.array][: g.draw.choice([2, 2, 3])]
    g.draw.shuffle(parts)
    return jnp.concatenate(parts, dim), max(v.bound, other.bound)


def _slice(g: Any, v: Any) -> Result:
    start = [g.draw.randrange(size) if g.draw.random() < 0.6 else 0 for size in v.array.shape]
    limit = [g.draw.randint(a + 1, size) for a, size in zip(start, v.array.shape, strict=True)]
    return lax.slice(v.array, start, limit, [g.draw.choice([1, 1, 2, 3]) for _ in start]), v.bound


def _pad(g: Any, v: Any) -> Result:
    config = []
    for size in v.array.shape:
        least = -1 if size > 2 else 0
        drawn = (g.draw.randint(least, 3), g.draw.randint(least, 2), g.draw.choice([0, 0, 1]))
        config.append(drawn if g.draw.random() < 0.6 else (0, 0, 0))
    return lax.pad(v.array, jnp.asarray(2, v.array.dtype), config), max(v.bound, 2)


def _reverse(g: Any, v: Any) -> Result:
    return lax.rev(v.array, g.draw.sample(range(v.array.ndim), g.draw.randint(1, v.array.ndim))), v.bound


def _roll(g: Any, v: Any) -> Result:
    dim = g.draw.randrange(v.array.ndim)
    return jnp.roll(v.array, g.draw.randint(1, v.array.shape[dim]), dim), v.bound


def _take(g: Any, v: Any) -> Result:
    dim, mode = g.draw.randrange(v.array.ndim), g.draw.choice(["clip", "fill", "wrap"])
    size = v.array.shape[dim]
    indices = g.indices([g.size() for _ in range(g.draw.randint(0, 2))], -2, size + 2)
    if v.array.size // size * indices.size > MAX_ELEMENTS:
        indices = indices.reshape(-1)[:1]
    return jnp.take(v.array, indices, dim, mode=mode, fill_value=1), max(v.bound, 1)


def _take_along(g: Any, v: Any) -> Result:
    dim, shape = g.draw.randrange(v.array.ndim), list(v.array.shape)
    high, shape[dim] = shape[dim], g.draw.randint(1, shape[dim])
    return jnp.take_along_axis(v.array, g.indices(shape, 0, high), dim), v.bound


def _gather_points(g: Any, v: Any) -> Result:
    if v.array.ndim < 2:
        return _take(g, v)
    count = g.size(math.prod(v.array.shape[2:]))
    rows, columns = (g.indices([count], 0, size) for size in v.array.shape[:2])
    return v.array[rows, columns], v.bound


def _scatter(g: Any, v: Any) -> Result:
    dim = g.draw.randrange(v.array.ndim)
    size = v.array.shape[dim]
    count = g.size(v.array.size // size)
    x = jnp.moveaxis(v.array, dim, 0)
    kind = g.draw.choice(["add", "max", "min", "set"])
    if kind == "set":
        count = min(count, size)
        indices = (g.indices([1], 0, size) + jnp.arange(count)) % size
    else:
        indices = g.indices([count], -1, size + 1)
    updates = g.fresh([count, *x.shape[1:]])
    at = x.at[indices]
    y = getattr(at, kind)(updates.array.astype(x.dtype), mode="drop")
    return jnp.moveaxis(y, 0, dim), v.bound + updates.bound * count


def _scatter_points(g: Any, v: Any) -> Result:
    if v.array.ndim < 2:
        return _scatter(g, v)
    count = g.size(math.prod(v.array.shape[2:]))
    rows, columns = (g.indices([count], 0, size) for size in v.array.shape[:2])
    updates = g.fresh([count, *v.array.shape[2:]])
    y = v.array.at[rows, columns].add(updates.array.astype(v.array.dtype))
    return y, v.bound + updates.bound * count


def _starts(g: Any, shape: Any) -> list[jax.Array]:
    return [g.indices([], -1, size) if g.draw.random() < 0.6 else jnp.int32(0) for size in shape]


def _dynamic_slice(g: Any, v: Any) -> Result:
    sizes = [g.draw.randint(1, size) if g.draw.random() < 0.6 else size for size in v.array.shape]
    return lax.dynamic_slice(v.array, _starts(g, v.array.shape), sizes), v.bound


def _dynamic_update_slice(g: Any, v: Any) -> Result:
    sizes = [g.draw.choice([1, size, g.draw.randint(1, size)]) for size in v.array.shape]
    update = g.fresh(sizes)
    y = lax.dynamic_update_slice(v.array, update.array.astype(v.array.dtype), _starts(g, v.array.shape))
    return y, max(v.bound, update.bound)


def _sort(g: Any, v: Any) -> Result:
    dim = g.draw.randrange(v.array.ndim)
    if g.smooth or g.draw.random() < 0.5:
        return jnp.sort(v.array, dim), v.bound
    return jnp.argsort(v.array, dim, stable=True).astype(jnp.int32), v.array.shape[dim]


def _top_k(g: Any, v: Any) -> Result:
    values, places = lax.top_k(v.array, g.draw.randint(1, v.array.shape[-1]))
    if g.smooth or g.draw.random() < 0.5:
        return values, v.bound
    return places, v.array.shape[-1]


def _cumulative(g: Any, v: Any) -> Result:
    dim = g.draw.randrange(v.array.ndim)
    if g.draw.random() < 0.5:
        return lax.cummax(v.array, dim, reverse=g.draw.random() < 0.5), v.bound
    return lax.cumsum(v.array, dim, reverse=g.draw.random() < 0.5), v.bound * v.array.shape[dim]


def _as_images(g: Any, v: Any, spatial: int) -> jax.Array:
    """The value as [batch, spatial dims ..., features]."""
    x = v.array if v.array.dtype == jnp.float32 else v.array.astype(jnp.float32)
    while x.ndim < spatial + 2:
        x = x[None] if g.draw.random() < 0.5 else x[..., None]
    return x.reshape(-1, *x.shape[x.ndim - spatial - 1 :])


def _convolution(g: Any, v: Any) -> Result:
    spatial = g.draw.choice([1, 1, 2])
    x = _as_images(g, v, spatial)
    features, window = x.shape[-1], [g.draw.randint(1, 3) for _ in range(spatial)]
    groups = g.draw.choice([f for f in (1, 2, features) if features % f == 0])
    out = groups * g.draw.randint(1, 4)
    kernel = g.fresh([*window, features // groups, out])
    dilation = [g.draw.choice([1, 1, 2]) for _ in window]
    padding = [
        (g.draw.randint(0, 2) + (w - 1) * d, g.draw.randint(0, 2))
        for w, d in zip(window, dilation, strict=True)
    ]
    numbers = ("NWC", "WIO", "NWC") if spatial == 1 else ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, kernel.array.astype(x.dtype), [g.draw.choice([1, 1, 2]) for _ in window], padding,
        rhs_dilation=dilation, lhs_dilation=[g.draw.choice([1, 1, 1, 2]) for _ in window],
        dimension_numbers=numbers, feature_group_count=groups,
    )  # fmt: skip
    count = math.prod(window) * features // groups
    return (y / math.sqrt(count) if g.smooth else y), v.bound * kernel.bound * count


def _window(g: Any, v: Any) -> Result:
    sizes = [g.draw.randint(1, min(3, size)) for size in v.array.shape]
    strides = [g.draw.choice([1, 1, 2]) for _ in sizes]
    padding = [(g.draw.randint(0, w - 1), g.draw.randint(0, w - 1)) for w in sizes]
    if g.draw.random() < 0.5:
        least = -np.inf if v.array.dtype == jnp.float32 else np.iinfo(np.int32).min
        y = lax.reduce_window(v.array, jnp.asarray(least, v.array.dtype), lax.max, sizes, strides, padding)
        return y, v.bound
    y = lax.reduce_window(v.array, jnp.asarray(0, v.array.dtype), lax.add, sizes, strides, padding)
    return y, v.bound * math.prod(sizes)


def _pool_gradient(g: Any, v: Any) -> Result:
    x = v.array.astype(jnp.float32)
    if g.smooth:
        return _window(g, v)
    sizes = [g.draw.randint(1, min(2, size)) for size in x.shape]

    def pool(y: jax.Array) -> jax.Array:
        return lax.reduce_window(y, -jnp.inf, lax.max, sizes, sizes, "VALID")

    y, back = jax.vjp(pool, x)
    cotangent = g.fresh(y.shape)
    return back(cotangent.array.astype(jnp.float32))[0], cotangent.bound


def _mask(g: Any, v: Any) -> Result:
    dim = g.draw.randrange(v.array.ndim)
    rows = lax.broadcasted_iota(jnp.int32, v.array.shape, dim)
    return jnp.where(rows % 3 == g.draw.randrange(3), v.array, rows.astype(v.array.dtype)), max(v.bound, 24)


def _body(g: Any, bound: int) -> Callable[[jax.Array], jax.Array]:
    """A function that keeps its argument's shape and type, for control flow: one or two steps inside."""
    seed, count, known = g.draw.getrandbits(32), g.draw.randint(1, 2), []

    def run(x: jax.Array) -> jax.Array:
        inner = g.inside(seed, known)
        value = inner.add(x, bound)
        for _ in range(count):
            before = value
            value = inner.step(before, _INSIDE)
            if value.array.shape != x.shape:
                total = jnp.max(value.array).astype(before.array.dtype)
                value = inner.add(before.array + total, before.bound + value.bound)
        return g.settle(value.array.astype(x.dtype))

    return run


def _scan(g: Any, v: Any) -> Result:
    run, rows = _body(g, g.settled), g.fresh([g.draw.randint(1, 5)])

    def step(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = g.settle(run(carry) + x.astype(carry.dtype))
        return new, new.sum(0)

    carry, stacked = lax.scan(step, g.settle(v.array), rows.array)
    if g.draw.random() < 0.5:
        return carry, g.settled
    return stacked, g.settled * v.array.shape[0]


def _while(g: Any, v: Any) -> Result:
    run, turns = _body(g, g.settled), g.indices([], 0, 4)
    start = (jnp.int32(0), g.settle(v.array))
    return lax.while_loop(lambda s: s[0] < turns, lambda s: (s[0] + 1, run(s[1])), start)[1], g.settled


def _cond(g: Any, v: Any) -> Result:
    branches = [_body(g, v.bound) for _ in range(g.draw.randint(2, 3))]
    return lax.switch(g.indices([], 0, len(branches)), branches, v.array), g.settled


# What bodies of control flow are made of: everything but control flow itself.
_INSIDE: dict[str, Callable[[Any, Any], Result]] = {
    "unary": _unary,
    "binary": _binary,
    "dot": _dot,
    "reduce": _reduce,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast": _broadcast,
    "concatenate": _concatenate,
    "slice": _slice,
    "pad": _pad,
    "reverse": _reverse,
    "roll": _roll,
    "take": _take,
    "take_along": _take_along,
    "gather_points": _gather_points,
    "scatter": _scatter,
    "scatter_points": _scatter_points,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "sort": _sort,
    "top_k": _top_k,
    "cumulative": _cumulative,
    "convolution": _convolution,
    "window": _window,
    "pool_gradient": _pool_gradient,
    "mask": _mask,
}
STEPS: dict[str, Callable[[Any, Any], Result]] = {**_INSIDE, "scan": _scan, "while": _while, "cond": _cond}
