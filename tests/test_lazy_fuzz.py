"""Random eager programs: recorded and run on the ring they give what plain JAX gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import neuronx

# Each takes two generators and two float arrays of two dims, and returns one: ``rng`` draws what is part of
# the graph (dims, shifts, lengths), ``values`` what is not. None amplifies a rounding.
OPS = [
    lambda rng, values, a, b: jnp.tanh(a) + values.uniform(-1, 1),
    lambda rng, values, a, b: jnp.sin(a) * float(values.uniform(-2, 2)),
    lambda rng, values, a, b: a - np.float32(values.uniform()),
    lambda rng, values, a, b: lax.clamp(-1.0, a, 1.0),
    lambda rng, values, a, b: jnp.tanh(a @ b.T) @ jnp.ones((b.shape[0], 3)) / b.shape[0],
    lambda rng, values, a, b: jnp.concatenate([a, a[::-1]], axis=0)[: a.shape[0]],
    lambda rng, values, a, b: jnp.where(jnp.arange(a.shape[0])[:, None] % 2 == 0, a, -a),
    lambda rng, values, a, b: a.T.reshape(a.shape),
    lambda rng, values, a, b: jnp.roll(a, int(rng.integers(3)), axis=int(rng.integers(2))),
    lambda rng, values, a, b: jax.nn.softmax(a, axis=int(rng.integers(2))),
    lambda rng, values, a, b: a.at[int(values.integers(a.shape[0]))].set(float(values.uniform())),
    lambda rng, values, a, b: a + values.standard_normal(a.shape).astype(np.float32),
    lambda rng, values, a, b: a * jnp.mean(a) / (1 + jnp.max(jnp.abs(a)) ** 2),
    lambda rng, values, a, b: jax.grad(lambda x: jnp.sum(jax.nn.gelu(x) * float(values.uniform())))(a),
    lambda rng, values, a, b: jax.vmap(lambda row: row / (1 + jnp.dot(row, row)))(a),
    lambda rng, values, a, b: lax.scan(lambda c, row: (jnp.tanh(c + row), c), a[0], a)[1],
    lambda rng, values, a, b: lax.fori_loop(0, int(rng.integers(1, 4)), lambda i, x: jnp.cos(x), a),
    lambda rng, values, a, b: lax.cond(values.uniform() < 0.5, jnp.sin, jnp.cos, a),
    lambda rng, values, a, b: jax.jit(lambda x: x * 0.5 + a)(jnp.tanh(a)),
    lambda rng, values, a, b: jnp.cumsum(a, axis=0) / a.shape[0],
    lambda rng, values, a, b: a + jax.random.uniform(jax.random.key(int(values.integers(100))), a.shape),
    lambda rng, values, a, b: jnp.sort(a, axis=0),
    lambda rng, values, a, b: jnp.take(a, jnp.asarray(values.integers(0, a.shape[0], a.shape[0])), axis=0),
    lambda rng, values, a, b: (a.astype(jnp.bfloat16) * 2).astype(jnp.float32) * 0,
]


def program(seed, value_seed, *, looks):
    """Runs a random program; ``looks(rng, arrays)`` is called between its ops and may read some."""
    rng, looking = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    values = np.random.default_rng(value_seed)
    arrays = [jnp.asarray(values.standard_normal((4, 3)).astype(np.float32)) for _ in range(3)]
    for _ in range(int(rng.integers(4, 14))):
        op = OPS[rng.integers(len(OPS))]
        one, other = (arrays[rng.integers(len(arrays))] for _ in range(2))
        made = op(rng, values, one, other)
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


def check(seed, draws):
    """The same program with ``draws`` sets of values: right each time, and compiled for the first.

    (Again only where a number of JAX's own code changes for the first time.)
    """
    for draw in range(draws):
        expected = program(seed, seed + draw, looks=lambda rng, arrays: None)
        neuronx.lazy.reset()
        with neuronx.lazy(tp_degree=[1, 2, 4][seed % 3]):
            got = program(seed, seed + draw, looks=look)
        for one, wanted in zip(got, expected, strict=True):
            assert (one.shape, one.dtype) == (wanted.shape, wanted.dtype), f"seed {seed}"
            np.testing.assert_allclose(one, wanted, rtol=2e-4, atol=2e-5, err_msg=f"seed {seed}")
        for run in neuronx.lazy.explain():
            assert not draw or not run.is_new or "from now on it is an input" in run.difference, (
                f"seed {seed}"
            )


@pytest.mark.parametrize("case", range(8))
def test_random_programs(case, rng):
    check(int(rng.integers(10**9)), draws=3)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(5))
def test_many_random_programs(chunk, rng):
    """100 graphs with five sets of values each."""
    for _ in range(20):
        check(int(rng.integers(10**9)), draws=5)
    neuronx.lazy.clear_graphs()
