"""Rows that move between cores: how many permutes, how many bytes, and the values against XLA:CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated import annotate, check_counts
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ring_oracle import lower, run_sharded

from benchmarks.traffic import traffic_of
from hlo_passes import shard

CORES = (2, 3, 4, 8)


def normal(*shape):
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


def received_bytes(function, arguments, specs, mesh):
    module = lower(function, arguments)
    annotate(module, specs, mesh)
    cores = int(np.prod(list(mesh.values())))
    shard.run(module, shard.Options(tp=cores))
    return traffic_of(module, cores, 1).bytes


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("shift", [1, -2, 3])
def test_a_roll_is_one_permute_of_what_moves(cores, shift):
    function = lambda x: jnp.roll(x, shift, 1)  # noqa: E731
    arguments, specs = (normal(2, 48),), (P(None, "tp"),)
    counts, _ = check_counts(function, arguments, specs, cores)
    assert counts == {"collective_permute": 1}
    assert received_bytes(function, arguments, specs, {"tp": cores}) == 2 * abs(shift) * 4


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("rows", [(24, 24), (48, 24), (24, 7), (5, 9, 11)])
def test_values_are_joined_without_being_gathered(cores, rows):
    function = lambda *xs: jnp.concatenate([jnp.sin(x) for x in xs], 0)  # noqa: E731
    arguments, specs = [normal(n, 3) for n in rows], [P("tp")] * len(rows)
    counts, _ = check_counts(function, arguments, specs, cores)
    assert set(counts) <= {"collective_permute", "all_gather"}
    if len(set(rows)) == 1:
        assert counts == {"collective_permute": min(2, cores - 1)}


def test_a_roll_of_a_value_that_is_sliced_for_others_too():
    def function(x):
        x = jnp.sin(x)
        last = x[:, 45:]
        return jnp.concatenate([last, x[:, :45]], 1), last * 2

    check_counts(function, (normal(2, 48),), (P(None, "tp"),), 4)


@pytest.mark.parametrize("cores", CORES)
def test_a_running_sum_gathers_one_row_a_core(cores):
    function = lambda x: jnp.cumsum(jnp.cos(x), 0)  # noqa: E731
    arguments, specs = (normal(48, 3),), (P("tp"),)
    counts, _ = check_counts(function, arguments, specs, cores)
    assert counts == {"all_gather": 1}
    assert received_bytes(function, arguments, specs, {"tp": cores}) == (cores - 1) * 3 * 4


def constrained(function, arguments, begin, end, **axes):
    """Bytes, collectives and notes of a function of one argument, constrained to these at its two ends."""
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    place = lambda x, spec: lax.with_sharding_constraint(x, NamedSharding(mesh, spec))  # noqa: E731
    module = lower(lambda x: place(function(jnp.sin(place(x, begin))), end), arguments)
    shard.run(module, shard.Options(tp=mesh.size))
    (ours,) = run_sharded(module, arguments, mesh.size)
    theirs = np.asarray(function(jnp.sin(arguments[0])))
    np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=3e-5)
    traffic = traffic_of(module, mesh.size, 1)
    return traffic.bytes, traffic.collectives, str(module)


def test_finer_shards_are_joined_before_edges_are_fetched():
    """The result lies over one axis, the operand over two: six rows are gathered, then two edges fetched."""
    windows = lambda x: lax.reduce_window(x, 0.0, lax.add, (3, 1), (1, 1), ((1, 1), (0, 0)))  # noqa: E731
    received, counts, _ = constrained(windows, (normal(48, 5),), P(("y", "x")), P("y"), x=2, y=4)
    assert counts == {"all_gather": 1, "collective_permute": 2}
    assert received == (6 + 2) * 5 * 4


@pytest.mark.parametrize("cores", [4, 8])
def test_few_rows_on_many_cores_are_summed_instead_of_gathered(cores):
    """Blocks that hold nothing are not sent: three rows over eight cores."""
    products = lambda x: x @ jnp.eye(6)  # noqa: E731
    _, counts, notes = constrained(products, (normal(3, 6),), P("tp"), P(), tp=cores)
    assert counts == ({"all_reduce": 1} if cores == 8 else {"all_gather": 1})
    assert "gathers" in notes


def test_what_grows_is_gathered_before_it_grows():
    pad = lambda x: lax.pad(x, 0.0, ((0, 0, 0), (2, 9, 1)))  # noqa: E731
    received, counts, _ = constrained(pad, (normal(8, 6),), P("tp"), P(), tp=4)
    assert counts == {"all_gather": 1}
    assert received == 6 * 6 * 4


def test_few_rows_of_a_whole_value_need_nothing():
    mesh = jax.sharding.AbstractMesh((4,), ("tp",))
    place = lambda x, spec: lax.with_sharding_constraint(x, NamedSharding(mesh, spec))  # noqa: E731
    x = normal(16, 6)
    module = lower(lambda x: place(place(x, P())[3:5] * 2, P("tp")), (x,))
    shard.run(module, shard.Options(tp=4))
    np.testing.assert_array_equal(run_sharded(module, [x], 4)[0], x[3:5] * 2)
    assert traffic_of(module, 4, 1).count == 0
