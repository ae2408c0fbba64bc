"""Indexed reads and writes of sharded tensors: rows are read and written where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated import check_counts
from jax import lax
from jax.sharding import PartitionSpec as P

CORES = (2, 3, 4, 8)


def normal(*shape):
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


def integers(high, *shape):
    return np.random.default_rng().integers(-2, high + 2, shape).astype(np.int32)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("position", [0, 13, 23, 99, -5])
def test_a_cache_sharded_along_its_sequence_is_never_gathered(cores, position):
    def step(cache, new, position):
        cache = lax.dynamic_update_slice(cache * 2, new, (0, position, 0))
        return cache, jnp.einsum("bsd,bd->bs", cache, new[:, 0])

    arguments = (normal(2, 24, 4), normal(2, 1, 4), np.int32(position))
    counts, _ = check_counts(step, arguments, (P(None, "tp"), P(), P()), cores)
    assert counts == {}


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("rows", [2, 5, 20])
def test_updates_of_many_rows(cores, rows):
    function = lambda c, u, i: lax.dynamic_update_slice(jnp.sin(c), u, (i, i))  # noqa: E731
    for start in (0, 4, 9, 40):
        arguments = (normal(25, 6), normal(rows, 2), np.int32(start))
        check_counts(function, arguments, (P("tp"), P(), P()), cores)


def test_an_update_along_two_sharded_dims():
    function = lambda c, u, i: lax.dynamic_update_slice(jnp.sin(c), u, (i, i + 1))  # noqa: E731
    for start in range(0, 8, 3):
        arguments = (normal(9, 12), normal(3, 5), np.int32(start))
        check_counts(function, arguments, (P("x", "y"), P(), P()), {"x": 2, "y": 3})


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_rows_from_a_place_known_at_run_time_are_one_all_reduce(cores, rows):
    function = lambda x, i: lax.dynamic_slice(x, (i, 1), (rows, 3))  # noqa: E731
    for start in (0, 7, 22, -3):
        counts, _ = check_counts(function, (normal(25, 6), np.int32(start)), (P("tp"), P()), cores)
        assert counts == {"all_reduce": 1}


@pytest.mark.parametrize("cores", CORES)
def test_vocabulary_parallel_lookup_is_one_all_reduce(cores):
    function = lambda table, ids: table[ids]  # noqa: E731
    counts, _ = check_counts(function, (normal(65, 4), integers(65, 3, 5)), (P("tp"), P()), cores)
    assert counts == {"all_reduce": 1}


@pytest.mark.parametrize("cores", CORES)
def test_a_table_smaller_than_what_is_looked_up_in_it_is_gathered(cores):
    function = lambda table, ids: jnp.sin(table)[ids]  # noqa: E731
    counts, notes = check_counts(function, (normal(24, 4), integers(24, 300)), (P("tp"), P()), cores)
    assert counts == {"all_gather": 1}
    assert any("gather" in note for note in notes)


@pytest.mark.parametrize("cores", CORES)
def test_a_lookup_is_made_where_its_table_lies_though_its_indices_are_sharded(cores):
    function = lambda table, ids: table[ids]  # noqa: E731
    arguments = (normal(24 * 50, 4), integers(24 * 50, 24))
    counts, _ = check_counts(function, arguments, (P("tp"), P("tp")), cores)
    assert "all_reduce" in counts


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64])
def test_indices_of_any_type(dtype):
    ids = np.random.default_rng().integers(0, 120, 9).astype(dtype)
    check_counts(lambda table, ids: table[ids], (normal(121, 2), ids), (P("tp"), P()), 4)
    check_counts(lambda t, ids: jnp.cos(t).at[ids].add(1.0), (normal(121, 2), ids), (P("tp"), P()), 4)


def test_lookup_in_a_table_sharded_along_two_looked_up_dims():
    function = lambda table, i, j: table[i, j]  # noqa: E731
    arguments = (normal(7, 9, 4), integers(7, 6), integers(9, 6))
    counts, _ = check_counts(function, arguments, (P("x", "y"), P(), P()), {"x": 2, "y": 3})
    assert counts == {"all_reduce": 1}


def test_lookup_of_sharded_indices_needs_nothing():
    function = lambda table, ids: jnp.tanh(table[ids]).sum(-1)  # noqa: E731
    counts, _ = check_counts(function, (normal(9, 4), integers(9, 16)), (P(), P("tp")), 4)
    assert counts == {}


def test_lookup_along_a_batch():
    function = jax.vmap(lambda row, i: row[i])
    check_counts(function, (normal(8, 9), integers(9, 8)), (P("tp"), P("tp")), 4)
    check_counts(function, (normal(8, 9), integers(9, 8)), (P(None, "tp"), P()), 3)


REDUCERS = ("add", "multiply", "min", "max")


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("reducer", REDUCERS)
def test_scatter_of_sharded_updates_is_one_all_reduce(cores, reducer):
    function = lambda t, i, u: getattr(t.at[i], reducer)(u)  # noqa: E731
    arguments = (normal(9, 4), integers(9, 96), 1 + 0.1 * normal(96, 4))
    counts, _ = check_counts(function, arguments, (P(), P("tp"), P("tp")), cores)
    assert counts == {"all_reduce": 1}


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("reducer", ["set", *REDUCERS])
def test_scatter_into_a_sharded_dim_needs_nothing(cores, reducer):
    function = lambda t, i, u: getattr(jnp.exp(t).at[i], reducer)(u)[:, :1] * 2  # noqa: E731
    ids = np.random.default_rng().permutation(24)[:7].astype(np.int32)
    counts, _ = check_counts(function, (normal(24, 4), ids, normal(7, 4)), (P("tp"), P(), P()), cores)
    assert counts.get("all_reduce", 0) == 0


def test_small_updates_are_gathered_rather_than_a_large_result_reduced():
    function = lambda t, i, u: t.at[i].add(jnp.sin(u))  # noqa: E731
    arguments = (normal(500, 4), integers(500, 8), normal(8, 4))
    counts, notes = check_counts(function, arguments, (P(), P("tp"), P("tp")), 4)
    assert counts == {"all_gather": 1}  # of indices and updates
    assert any("scatter" in note and "in parts it would move more" in note for note in notes)


def test_argmax_gathers_each_cores_candidate_and_its_place_at_once():
    """Equal values on two cores and a NaN: the first place of the largest wins, as on one device."""
    x = normal(5, 23)
    x[0, [3, 20]], x[1, [9, 22]], x[2] = 9, np.nan, 0
    counts, _ = check_counts(lambda x: jnp.argmax(x, 1), (x,), (P(None, "tp"),), 4)
    assert counts == {"all_gather": 1}


@pytest.mark.parametrize("cores", CORES)
def test_top_k_gathers_candidates_only(cores):
    k, size = 3, 51
    function = lambda x: lax.top_k(jnp.sin(x), k)  # noqa: E731
    counts, notes = check_counts(function, (normal(4, size),), (P(None, "tp"),), cores)
    assert counts == {"all_gather": 1}  # of values, indices and which of them are padding
    assert not any("sort" in note for note in notes)


def test_the_joined_first_rows_of_a_sort():
    def function(x):
        best = lax.top_k(x, 2)[0]
        return jnp.concatenate([best, x, best], 1)

    check_counts(function, (normal(4, 12),), (P(None, "tp"),), 3)


def test_top_k_keeps_the_order_of_equal_values():
    values = np.random.default_rng().integers(0, 3, (4, 40)).astype(np.float32)
    check_counts(lambda x: lax.top_k(x, 6), (values,), (P(None, "tp"),), 4)


@pytest.mark.parametrize("cores", CORES)
def test_a_whole_sort_along_a_sharded_dim_is_said_to_gather(cores):
    _, notes = check_counts(lambda x: jnp.sort(x, -1), (normal(13),), (P("tp"),), cores)
    assert any("is sorted, not its first few rows" in note for note in notes)
