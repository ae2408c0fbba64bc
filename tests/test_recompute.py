"""Values that every core can make of what it has are computed again rather than moved; products never are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ring_oracle import collectives, run_sharded, shard_function

MESH = AbstractMesh((4,), ("tp",))


def _counts(function, x, spec):
    """The collectives of a function of one argument that lies so; its values must be those of one device."""
    argument = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(MESH, spec))
    module = shard_function(function, [argument], MESH.size)
    (got,) = run_sharded(module, [x], MESH.size)
    np.testing.assert_allclose(got, jax.jit(function)(x), rtol=1e-5, atol=1e-5)
    return collectives(module)


def _place(x, *spec):
    return lax.with_sharding_constraint(x, NamedSharding(MESH, P(*spec)))


def _wave(x):
    """By rows, of a whole argument and of numbers."""
    rows = lax.broadcasted_iota(jnp.float32, x.shape, 0)
    return _place(jnp.sin(x) * rows + jnp.pad(x[1:], ((0, 1), (0, 0))), "tp")


@pytest.mark.parametrize(
    "read",
    [
        lambda y: _place(y, None, "tp"),
        lambda y: _place(y),
        lambda y: y[2:] - y[:-2].sum(0),
        lambda y: jnp.roll(y, 5, 0),
        lambda y: jnp.sort(y, 0),
        lambda y: lax.fori_loop(0, 3, lambda i, z: z + _place(y, None, "tp") * i, _place(y, None, "tp")),
    ],
    ids=["columns", "whole", "rows", "roll", "sort", "loop"],
)
def test_cheap_ops_on_a_whole_argument_are_done_again(read, rng):
    """Whoever reads the rows otherwise makes them of the argument; a sum of them is still all-reduced."""
    x = rng.standard_normal((12, 8)).astype(np.float32)
    counts = _counts(lambda x: read(_wave(x)), x, P())
    assert counts.keys() <= {"all_reduce"}


@pytest.mark.parametrize(
    ("make", "spec"),
    [(lambda x: x @ x.T, P()), (lambda x: jnp.cumsum(x, 1), P()), (jnp.sin, P("tp"))],
    ids=["product", "window", "sharded argument"],
)
def test_what_is_not_cheap_or_not_there_is_moved(make, spec, rng):
    x = rng.standard_normal((8, 8)).astype(np.float32)
    function = lambda x: _place(jnp.tanh(_place(make(x), "tp")), None, "tp")  # noqa: E731
    assert _counts(function, x, spec) == {"all_to_all": 1}


@pytest.mark.parametrize(("size", "kinds"), [(64, {}), (4096, {"all_to_all": 1})])
def test_a_large_value_is_moved_where_that_is_sooner_done(size, kinds):
    """An all-to-all moves a quarter to each core; all of it, six times over, takes longer."""

    def function(x):
        for _ in range(6):
            x = jnp.tanh(x)
        return _place(_place(x, "tp"), None, "tp")

    x = jax.ShapeDtypeStruct((size, size), jnp.float32, sharding=NamedSharding(MESH, P()))
    assert collectives(shard_function(function, [x], 4)) == kinds
