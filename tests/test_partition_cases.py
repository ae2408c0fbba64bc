"""Small programs that random ones were reduced to: each once went wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzz_sharding import through_runtime
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ring_oracle import lower, run_sharded

from hlo_passes import shard


def _check(function, arguments, cores, *, runtime=False):
    """On ``cores`` cores, with NaN in all padding, the bits of one device."""
    alone = jax.jit(lambda *xs: function(lambda value, *_: value, *xs))
    want = [np.asarray(x) for x in alone(*arguments)]
    grid = (2, cores // 2) if cores > 2 else (1, cores)
    mesh = AbstractMesh(grid, ("x", "y"))

    def constrained(x, *spec):
        return lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    module = lower(lambda *xs: function(constrained, *xs), arguments)
    if runtime:
        got = through_runtime(module, arguments, cores)
    else:
        shard.run(module, shard.Options(tp=cores))
        got = run_sharded(module, arguments, cores)
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _rows(*shape):
    return np.random.default_rng().integers(-9, 10, shape).astype(np.float32)


@pytest.mark.parametrize("cores", [2, 4, 6])
@pytest.mark.parametrize("config", [(-1, 1, 0), (2, -2, 0), (0, -6, 1), (1, -1, 0)])
def test_a_pad_that_keeps_the_size_moves_rows(cores, config):
    x = _rows(7, 3)
    _check(lambda at, x: (at(lax.pad(at(x, "y"), 2.0, [config, (0, 0, 0)]), "y"),), (x,), cores)


@pytest.mark.parametrize("start", [0, 1, 5, -2])
def test_a_slice_of_a_slice_whose_start_is_outside(start):
    def function(at, x, i):
        return (at(lax.dynamic_slice(at(x, None, "y"), (i, 0), (4, 3)), "y", None),)

    _check(function, (_rows(6, 3), np.int32(start)), 4)


@pytest.mark.parametrize("window", [(3, 3), (3, 1)])
def test_a_window_over_all_rows_that_moves_along_another_dim_too(window):
    def function(at, x):
        padding = ((2, 0), (1, 0) if window[1] == 3 else (0, 0))
        return (at(lax.reduce_window(at(x, "y"), -np.inf, lax.max, window, (1, 1), padding), "y"),)

    _check(function, (_rows(3, 17),), 4)


def test_a_part_without_rows():
    def function(at, x):
        y = at(x, "y")
        return (at(jnp.concatenate([y[:6], y[:0], y[6:]], 0), "y"),)

    _check(function, (_rows(8, 2),), 4)


@pytest.mark.parametrize("runtime", [False, True])
def test_a_loop_that_runs_until_all_rows_of_one_axis_agree(runtime):
    """The predicate is reduced over one axis of two, in groups of cores, with collectives in the loop."""

    def function(at, x):
        def step(state):
            return at(state - jnp.where(state > 0, 1, 0), "x")

        return (lax.while_loop(lambda s: jnp.any(s > 0), step, at(x, "x")),)

    _check(function, (_rows(8, 3),), 8, runtime=runtime)


def test_an_axis_cut_two_ways():
    """Six rows are two times three and three times two: the propagation cuts the axis of six both ways."""

    def function(at, x):
        y = at(x, "y").reshape(2, 3, 4)
        return (y.transpose(1, 0, 2).reshape(6, 4), y.sum(0))

    _check(function, (_rows(6, 4),), 12)
