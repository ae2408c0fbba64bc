"""A BERT-like training step with Megatron's shardings: post-LN encoder layers, forward, backward, update."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ring_oracle import shard_function

from hlo_passes.ir import ir

__all__ = ["megatron_step"]

_COLUMN, _CUT, _ROW = P(None, "tp"), P("tp"), P("tp", None)
_SPECS = {
    "wq": _COLUMN, "wk": _COLUMN, "wv": _COLUMN, "bq": _CUT, "bk": _CUT, "bv": _CUT, "wo": _ROW,
    "w1": _COLUMN, "b1": _CUT, "w2": _ROW,
}  # fmt: skip


def megatron_step(
    *, layers: int, tp: int, hidden: int = 32, heads: int = 4, batch: int = 2, length: int = 8
) -> tuple[ir.Module, Callable, tuple]:
    """The LOCAL module of one step of gradient descent, the step itself, and its (global) arguments."""
    step = _step(heads)
    arguments = _arguments(layers, hidden, batch, length)
    mesh = AbstractMesh((tp,), ("tp",))

    def shaped(name: str, array: np.ndarray) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, _SPECS.get(name, P()))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    parameters, x, y = arguments
    traced = ([{k: shaped(k, v) for k, v in p.items()} for p in parameters], shaped("x", x), shaped("y", y))
    return shard_function(step, traced, tp), step, arguments


def _step(heads: int) -> Callable:
    def loss(parameters, x, y):
        for p in parameters:
            x = _layer(x, p, heads)
        return jnp.mean((x - y) ** 2)

    def step(parameters, x, y):
        value, gradient = jax.value_and_grad(loss)(parameters, x, y)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradient)

    return step


def _layer(x, p, heads):
    batch, length, hidden = x.shape

    def split(w, b):
        return (x @ w + b).reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)

    q, k, v = (split(p[f"w{n}"], p[f"b{n}"]) for n in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k) * (hidden // heads) ** -0.5, -1)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, v).transpose(0, 2, 1, 3).reshape(x.shape)
    x = _normalised(x + mixed @ p["wo"] + p["bo"], p["g1"], p["c1"])
    return _normalised(x + jax.nn.gelu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"], p["g2"], p["c2"])


def _normalised(x, scale, bias):
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5) * scale + bias


def _arguments(layers: int, hidden: int, batch: int, length: int) -> tuple:
    rng = np.random.default_rng()
    shapes = {
        **{f"w{n}": (hidden, hidden) for n in "qkvo"}, **{f"b{n}": (hidden,) for n in "qkvo"},
        "w1": (hidden, 4 * hidden), "b1": (4 * hidden,), "w2": (4 * hidden, hidden), "b2": (hidden,),
        "g1": (hidden,), "c1": (hidden,), "g2": (hidden,), "c2": (hidden,),
    }  # fmt: skip

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    parameters = [{name: draw(shape) for name, shape in shapes.items()} for _ in range(layers)]
    return parameters, draw((batch, length, hidden)), draw((batch, length, hidden))
