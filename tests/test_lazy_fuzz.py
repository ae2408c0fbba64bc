"""Random eager programs: recorded and run on the ring they give what plain JAX gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import neuronx

# Each takes the generator and float arrays of two dims, and returns one. None amplifies a rounding.
OPS = [
    lambda rng, a, b: jnp.tanh(a) + rng.uniform(-1, 1),
    lambda rng, a, b: jnp.sin(a) * float(rng.uniform(-2, 2)),
    lambda rng, a, b: a - np.float32(rng.uniform()),
    lambda rng, a, b: lax.clamp(-1.0, a, 1.0),
    lambda rng, a, b: jnp.tanh(a @ b.T) @ jnp.ones((b.shape[0], 3)) / b.shape[0],
    lambda rng, a, b: jnp.concatenate([a, a[::-1]], axis=0)[: a.shape[0]],
    lambda rng, a, b: jnp.where(jnp.arange(a.shape[0])[:, None] % 2 == 0, a, -a),
    lambda rng, a, b: a.T.reshape(a.shape),
    lambda rng, a, b: jnp.roll(a, int(rng.integers(3)), axis=int(rng.integers(2))),
    lambda rng, a, b: jax.nn.softmax(a, axis=int(rng.integers(2))),
    lambda rng, a, b: a.at[int(rng.integers(a.shape[0]))].set(float(rng.uniform())),
    lambda rng, a, b: a + rng.standard_normal(a.shape).astype(np.float32),
    lambda rng, a, b: a * jnp.mean(a) / (1 + jnp.max(jnp.abs(a)) ** 2),
    lambda rng, a, b: jax.grad(lambda x: jnp.sum(jax.nn.gelu(x) * float(rng.uniform())))(a),
    lambda rng, a, b: jax.vmap(lambda row: row / (1 + jnp.dot(row, row)))(a),
    lambda rng, a, b: lax.scan(lambda c, row: (jnp.tanh(c + row), c), a[0], a)[1],
    lambda rng, a, b: lax.fori_loop(0, int(rng.integers(1, 4)), lambda i, x: jnp.cos(x), a),
    lambda rng, a, b: lax.cond(rng.uniform() < 0.5, jnp.sin, jnp.cos, a),
    lambda rng, a, b: jax.jit(lambda x: x * 0.5 + a)(jnp.tanh(a)),
    lambda rng, a, b: jnp.cumsum(a, axis=0) / a.shape[0],
    lambda rng, a, b: a + jax.random.uniform(jax.random.key(int(rng.integers(100))), a.shape),
    lambda rng, a, b: jnp.sort(a, axis=0),
    lambda rng, a, b: jnp.take(a, jnp.asarray(rng.integers(0, a.shape[0], a.shape[0])), axis=0),
    lambda rng, a, b: (a.astype(jnp.bfloat16) * 2).astype(jnp.float32) * 0,
]


def program(seed, *, looks):
    """Runs a random program; ``looks(rng, arrays)`` is called between its ops and may read some."""
    rng, looking = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    arrays = [jnp.asarray(rng.standard_normal((4, 3)).astype(np.float32)) for _ in range(3)]
    for _ in range(int(rng.integers(4, 14))):
        op = OPS[rng.integers(len(OPS))]
        one, other = (arrays[rng.integers(len(arrays))] for _ in range(2))
        made = op(rng, one, other)
        if rng.uniform() < 0.5:
            arrays.append(made)
        else:
            arrays[rng.integers(len(arrays))] = made
        looks(looking, arrays)
    return arrays


def look(rng, arrays):
    what = rng.uniform()
    if what < 0.15:
        neuronx.mark_step()
    elif what < 0.3:
        np.asarray(arrays[rng.integers(len(arrays))])


def check(seed):
    expected = program(seed, looks=lambda rng, arrays: None)
    with neuronx.lazy(tp_degree=[1, 2, 4][seed % 3]):
        got = program(seed, looks=look)
    for one, wanted in zip(got, expected, strict=True):
        assert (one.shape, one.dtype) == (wanted.shape, wanted.dtype), f"seed {seed}"
        np.testing.assert_allclose(one, wanted, rtol=2e-4, atol=2e-5, err_msg=f"seed {seed}")


@pytest.mark.parametrize("case", range(12))
def test_random_programs(case, rng):
    check(int(rng.integers(10**9)))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(5))
def test_hundreds_of_random_programs(chunk, rng):
    for _ in range(50):
        check(int(rng.integers(10**9)))
    neuronx.lazy.clear_graphs()
