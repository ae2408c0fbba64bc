"""Programs annotated by hand, as an expert would: what partitioners are compared on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

__all__ = ["PROGRAMS", "Annotated"]

P = PartitionSpec
_CHIP = AbstractMesh((4,), ("tp",))
_RING = AbstractMesh((8,), ("tp",))
_GRID = AbstractMesh((2, 4), ("data", "tp"))
_SQUARE = AbstractMesh((2, 2), ("data", "tp"))


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """A function with the shape, type and sharding of its arguments; its loops run ``turns`` times."""

    name: str
    mesh: AbstractMesh
    function: Callable[..., Any]
    shapes: tuple[tuple[tuple[int, ...], PartitionSpec, Any], ...]
    turns: int = 1

    @property
    def cores(self) -> int:
        return self.mesh.size

    def arguments(self) -> list[jax.ShapeDtypeStruct]:
        return [
            jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))
            for shape, spec, dtype in self.shapes
        ]


def _program(
    name: str, mesh: AbstractMesh, function: Callable[..., Any], *shapes: tuple, turns: int = 1
) -> Annotated:
    full = tuple((shape, spec, *(rest or (jnp.float32,))) for shape, spec, *rest in shapes)
    return Annotated(name=name, mesh=mesh, function=function, shapes=full, turns=turns)


def _norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * gain


def _block(x, gain1, q, k, v, o, gain2, up, down):
    y = _norm(x, gain1)
    heads = [jnp.einsum("bsd,dhe->bhse", y, w) for w in (q, k, v)]
    scores = jax.nn.softmax(jnp.einsum("bhse,bhte->bhst", *heads[:2]) / 8.0)
    x = x + jnp.einsum("bhst,bhte,hed->bsd", scores, heads[2], o)
    return x + jax.nn.gelu(_norm(x, gain2) @ up) @ down


def _block_shapes(batch: PartitionSpec, tp: str | None) -> tuple:
    """Width 256, 8 heads of 32, 1024 inside; 8 sequences of 64."""
    into, back = P(None, tp, None), P(tp, None, None)
    return (
        ((8, 64, 256), batch), ((256,), P()), *(((256, 8, 32), into) for _ in range(3)),
        ((8, 32, 256), back), ((256,), P()), ((256, 1024), P(None, tp)), ((1024, 256), P(tp, None)),
    )  # fmt: skip


def _training_step(*arguments):
    def loss(weights, x):
        return (_block(x, *weights) ** 2).mean()

    x, *weights = arguments
    return jax.grad(loss)(weights, x)


def _sequence_parallel(x, *weights):
    """Megatron with the activations between blocks sharded by sequence."""
    y = _block(x, *weights)
    return lax.with_sharding_constraint(y, NamedSharding(_RING, P(None, "tp", None)))


def _logits(x, table, labels):
    logits = jax.nn.log_softmax(x @ table.T)
    return -jnp.take_along_axis(logits, labels[:, None], 1).mean()


def _convolutions(x, first, second):
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.nn.relu(lax.conv_general_dilated(x, first, (1, 1), "SAME", dimension_numbers=numbers))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return lax.conv_general_dilated(x, second, (1, 1), "SAME", dimension_numbers=numbers)


def _lstm(x, wx, wh):
    def step(state, row):
        h, c = state
        i, f, g, o = jnp.split(jnp.einsum("bd,dgh->gbh", row, wx) + jnp.einsum("bd,dgh->gbh", h, wh), 4)
        c = (jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g))[0]
        h = (jax.nn.sigmoid(o[0]) * jnp.tanh(c)).astype(x.dtype)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], wh.shape[0]))
    return lax.scan(step, (zeros, zeros), x)


def _experts(x, gate, up, down):
    weights = jax.nn.softmax(x @ gate)
    hidden = jax.nn.relu(jnp.einsum("td,edf->etf", x, up))
    return jnp.einsum("etf,efd,te->td", hidden, down, weights)


def _decode(cache, new, query, position):
    cache = lax.dynamic_update_slice(cache, new, (0, 0, position, 0))
    return jax.nn.softmax(jnp.einsum("bhe,bhse->bhs", query, cache)), cache


def _constrained(mesh: AbstractMesh, *spec: Any) -> Callable[[jax.Array], jax.Array]:
    return lambda x: lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))


_I32 = jnp.int32
_TOKENS = ((512,), P(), _I32)
_IMAGES = (8, 32, 32, 16)
_KERNELS = ((3, 3, 16, 32), (3, 3, 32, 32))
_LSTM = ((16, 8, 128), (128, 4, 128), (128, 4, 128))
_CACHE = ((4, 8, 64, 32), (4, 8, 1, 32), (4, 8, 32))

PROGRAMS = (
    _program("transformer block, Megatron", _RING, _block, *_block_shapes(P(), "tp")),
    _program("transformer block, data parallel", _RING, _block, *_block_shapes(P("tp"), None)),
    _program("transformer block, data x tensor", _GRID, _block, *_block_shapes(P("data"), "tp")),
    _program("transformer block, sequence parallel", _RING, _sequence_parallel,
             *_block_shapes(P(None, "tp"), "tp")),
    _program("training step, Megatron", _RING, _training_step, *_block_shapes(P(), "tp")),
    _program("training step, data parallel", _RING, _training_step, *_block_shapes(P("tp"), None)),
    _program("training step, data x tensor", _GRID, _training_step, *_block_shapes(P("data"), "tp")),
    _program("vocabulary-sharded embedding", _RING, lambda ids, table: table[ids],
             _TOKENS, ((4096, 128), P("tp", None))),
    _program("embedding sharded by width", _RING, lambda ids, table: table[ids],
             _TOKENS, ((4096, 128), P(None, "tp"))),
    _program("gradient of an embedding", _RING,
             lambda ids, table: jax.grad(lambda t: (t[ids] ** 2).sum())(table),
             _TOKENS, ((4096, 128), P("tp", None))),
    _program("vocabulary-sharded logits and loss", _RING, _logits,
             ((512, 128), P()), ((4096, 128), P("tp", None)), _TOKENS),
    _program("two products on a grid", _SQUARE, lambda x, a, b: x @ a @ b,
             ((64, 64), P("data", None)), ((64, 64), P(None, "tp")), ((64, 64), P("tp", None))),
    _program("product summed over both axes", _SQUARE, lambda x, a: x @ a,
             ((64, 64), P(None, ("data", "tp"))), ((64, 64), P(("data", "tp"), None))),
    _program("transposed layout", _CHIP, lambda x: _constrained(_CHIP, None, "tp")(jnp.sin(x)),
             ((64, 64), P("tp", None))),
    _program("reshape across heads", _CHIP,
             lambda x: _constrained(_CHIP, None, None, "tp")(x.reshape(64, 8, 8)), ((64, 64), P(None, "tp"))),
    _program("convolutions, batch", _CHIP, _convolutions,
             (_IMAGES, P("tp")), (_KERNELS[0], P()), (_KERNELS[1], P())),
    _program("convolutions, features", _CHIP, _convolutions,
             (_IMAGES, P()), (_KERNELS[0], P(None, None, None, "tp")),
             (_KERNELS[1], P(None, None, "tp", None))),
    _program("convolutions, rows", _CHIP, _convolutions,
             (_IMAGES, P(None, "tp")), (_KERNELS[0], P()), (_KERNELS[1], P())),
    _program("LSTM scan, hidden sharded", _CHIP, _lstm,
             (_LSTM[0], P()), (_LSTM[1], P(None, None, "tp")), (_LSTM[2], P(None, None, "tp")), turns=16),
    _program("LSTM scan, batch sharded", _CHIP, _lstm,
             (_LSTM[0], P(None, "tp")), (_LSTM[1], P()), (_LSTM[2], P()), turns=16),
    _program("mixture of experts", _RING, _experts,
             ((256, 64), P()), ((64, 8), P()), ((8, 64, 128), P("tp")), ((8, 128, 64), P("tp"))),
    _program("decode, cache by heads", _RING, _decode,
             *((shape, P(None, "tp")) for shape in _CACHE), ((), P(), _I32)),
    _program("decode, cache by sequence", _RING, _decode,
             (_CACHE[0], P(None, None, "tp")), (_CACHE[1], P()), (_CACHE[2], P()), ((), P(), _I32)),
    _program("softmax over a sharded dim", _CHIP, lambda x: jax.nn.softmax(x), ((64, 256), P(None, "tp"))),
    _program("argmax over a sharded dim", _CHIP, lambda x: jnp.argmax(x, 1), ((64, 256), P(None, "tp"))),
    _program("top 8 of a sharded dim", _CHIP, lambda x: lax.top_k(x, 8), ((64, 256), P(None, "tp"))),
    _program("sort of a sharded dim", _CHIP, lambda x: jnp.sort(x, 1), ((64, 256), P(None, "tp"))),
    _program("cumulative sum", _CHIP, lambda x: jnp.cumsum(x, 1), ((64, 256), P(None, "tp"))),
    _program("shift by one", _CHIP, lambda x: x[:, 1:] - x[:, :-1], ((64, 256), P(None, "tp"))),
    _program("roll", _CHIP, lambda x: jnp.roll(x, 3, 1), ((64, 256), P(None, "tp"))),
    _program("reverse", _CHIP, lambda x: x[:, ::-1], ((64, 256), P(None, "tp"))),
    _program("concatenate", _CHIP, lambda x, y: jnp.concatenate([x, y], 1),
             ((64, 256), P(None, "tp")), ((64, 256), P(None, "tp"))),
    _program("scatter-add of a sharded batch", _CHIP,
             lambda ids, rows: jnp.zeros((1024, 64)).at[ids].add(rows),
             ((512,), P("tp"), _I32), ((512, 64), P("tp", None))),
)  # fmt: skip
