"""Ordinary programs on one core: ours and jax.jit in turn, small ones for what a call costs by itself."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import neuronx
from benchmarks.timing import Row, arguments, in_turn, report, streaming_bytes_per_s

__all__ = ["main", "programs"]

_RNG = np.random.default_rng(0)


def _array(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(_RNG.standard_normal(shape) * 0.05, dtype)


def _mlp(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
    return jax.nn.gelu(x @ up) @ down


def _gradient(up: jax.Array, down: jax.Array, x: jax.Array) -> Any:
    return jax.grad(lambda up, down: (_mlp(x, up, down) ** 2).sum(), (0, 1))(up, down)


def _normalised(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def _scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype) * scale


def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k) / 8, -1)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, v)


def _convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)


def _recurrent(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x, None, length=100)[0]


def _loop(x: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, 1000, lambda _, v: v * 0.99 + 0.1, x)


def _first_of_each(params: Any, x: jax.Array) -> jax.Array:
    return x + sum(leaf.ravel()[0] for leaf in jax.tree.leaves(params))


def _chain(x: jax.Array) -> jax.Array:
    return jnp.tanh(x) * jnp.exp(-x * x) + jnp.sin(x)


def _looked_up(table: jax.Array, rows: jax.Array) -> jax.Array:
    return table[rows]


def _factor(x: jax.Array) -> jax.Array:
    return jnp.linalg.cholesky(x @ x.T + jnp.eye(len(x)))


def programs() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Name, function and arguments of each."""
    yield "add 1 to 8 numbers", lambda x: x + 1, (_array(8),)
    yield "loop of 1,000 rounds, 16 numbers", _loop, (_array(16),)
    yield "400 arguments of 8 numbers", _first_of_each, ([_array(8) for _ in range(400)], _array(8))
    yield "100 results of 8 numbers", lambda x: [x + i for i in range(100)], (_array(8),)
    yield "MLP 1 x 256 x 512", _mlp, (_array(1, 256), _array(256, 512), _array(512, 256))
    yield "MLP 64 x 1024 x 4096", _mlp, (_array(64, 1024), _array(1024, 4096), _array(4096, 1024))
    weights = _array(512, 2048), _array(2048, 512)
    yield "gradient of an MLP 256 x 512 x 2048", _gradient, (*weights, _array(256, 512))
    for count in (1024, 4096):
        norm = _array(count, 1024), _array(1024), _array(1024)
        narrow = tuple(x.astype(jnp.bfloat16) for x in norm)
        yield f"softmax {count} x 1024", lambda x: jax.nn.softmax(x, -1), norm[:1]
        yield f"layer norm {count} x 1024", _normalised, norm
        yield f"layer norm {count} x 1024, bf16", _normalised, narrow
        yield f"RMS norm {count} x 1024, bf16", _scaled, narrow[:2]
    yield "tanh(x) exp(-x^2) + sin(x), 16 MiB", _chain, (_array(2048, 2048),)
    yield "sum over rows, 32 MiB", lambda x: x.sum(0), (_array(4096, 2048),)
    rows = jnp.asarray(_RNG.integers(0, 50_000, 4096))
    yield "4,096 rows of a table of 50,000 x 768", _looked_up, (_array(50_000, 768), rows)
    yield "attention 12 x 512 x 64", _attention, tuple(_array(1, 12, 512, 64) for _ in range(3))
    yield "convolution 3 x 3, 4 x 56 x 56 x 64", _convolved, (_array(4, 56, 56, 64), _array(3, 3, 64, 64))
    yield "FFT 256 x 1024", lambda x: jnp.fft.fft(x).real, (_array(256, 1024),)
    yield "Cholesky 256", _factor, (_array(256, 256),)
    yield "scan of 100 steps, 8 x 256", _recurrent, (_array(8, 256), _array(256, 256))


def _steps(function: Callable[..., Any], given: tuple[Any, ...]) -> dict[str, Callable[[], Any]]:
    ours, jitted = neuronx.compile(function), jax.jit(function)
    return {"ours": lambda: ours(*given), "jax.jit": lambda: jitted(*given)}


def main(argv: list[str]) -> int:
    parser = arguments(__doc__)
    parser.set_defaults(repeats=31)
    parser.add_argument("--only", default="", help="programs whose names hold this")
    asked = parser.parse_args(argv)
    rows = [
        Row(name=name, taken=in_turn(_steps(function, given), asked.repeats))
        for name, function, given in programs()
        if asked.only in name
    ]
    report(rows, stream=streaming_bytes_per_s(asked.repeats), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
