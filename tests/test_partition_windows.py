"""Windows over sharded dims: neighbours exchange what their windows share, nothing is gathered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annotated import check_counts
from jax import lax
from jax.sharding import PartitionSpec as P

CORES = (2, 3, 4, 8)
IMAGE = ("NHWC", "HWIO", "NHWC")


def normal(*shape):
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


def conv(x, kernel, strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=IMAGE, **options)


def max_pool(x, window=2, stride=2, padding="VALID"):
    shape, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, shape, strides, padding)


def keep(x):
    """A result that stays as it lies, so that what is counted is the op's own traffic."""
    return x.sum((0, 2, 3))


@pytest.mark.parametrize("cores", CORES)
def test_a_spatially_sharded_convolution_exchanges_edges_only(cores):
    counts, notes = check_counts(conv, (normal(2, 24, 5, 3), normal(3, 3, 3, 4)), (P(None, "tp"), P()), cores)
    # Two cores swap their edges in one permute.
    assert counts == {"collective_permute": 1 if cores == 2 else 2}
    assert notes == []


@pytest.mark.parametrize("cores", CORES)
def test_pooling_aligned_with_the_blocks_is_local(cores):
    counts, _ = check_counts(max_pool, (normal(2, 16 * 3, 6, 3),), (P(None, "tp"),), cores)
    assert counts == {}


CONVOLUTIONS = {
    "strides": {"strides": (2, 1), "padding": "VALID"},
    "transposed": {"padding": ((1, 2), (1, 1)), "lhs_dilation": (2, 1)},
    "dilated": {"rhs_dilation": (2, 1)},
    "uneven padding": {"padding": ((0, 3), (2, 0)), "strides": (3, 1)},
    "all": {"padding": ((4, 1), (1, 1)), "strides": (2, 1), "lhs_dilation": (3, 1), "rhs_dilation": (2, 2)},
}


@pytest.mark.parametrize("rows", [24, 29])
@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_any_window(name, cores, rows):
    function = lambda x, k: keep(conv(x, k, **CONVOLUTIONS[name]))  # noqa: E731
    check_counts(function, (normal(1, rows, 5, 2), normal(3, 3, 2, 3)), (P(None, "tp"), P()), cores)


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, "SAME"), (2, 3, "VALID"), (5, 1, "SAME")])
@pytest.mark.parametrize("cores", CORES)
def test_pooling_over_edges(window, stride, padding, cores):
    function = lambda x: max_pool(x, window, stride, padding)  # noqa: E731
    check_counts(function, (normal(1, 27, 7, 2),), (P(None, "tp"),), cores)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("rows", [24, 23])
def test_shifts_and_flips(cores, rows):
    def function(x):
        x = jnp.sin(x)
        wide = jnp.pad(x, ((2, 1), (0, 0)), constant_values=7.0)
        holes = lax.pad(x, np.float32(5), ((3, -1, 2), (0, 0, 0)))
        return x[1:], x[:-2], x[::-1], x[3:19:3], x[-1], wide, holes

    _, notes = check_counts(function, (normal(rows, 3),), (P("tp"),), cores)
    assert not any("computed whole" in note for note in notes)


def test_a_shift_by_one_row_is_one_permute():
    function = lambda x: jnp.pad(x[1:], ((0, 1), (0, 0)))  # noqa: E731
    counts, _ = check_counts(function, (normal(32, 3),), (P("tp"),), 4)
    assert counts.get("all_gather", 0) == 0


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("rows", [(16, 8), (25, 7), (3, 30)])
def test_concatenate_along_the_sharded_dim(cores, rows):
    first, second = rows
    function = lambda x, y, z: jnp.concatenate([jnp.sin(x), y, z[:1]])  # noqa: E731
    arguments = (normal(first, 3), normal(second, 3), normal(4, 3))
    check_counts(function, arguments, (P("tp"), P("tp"), P()), cores)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("rows", [16, 21])
def test_cumulative_ops_gather_one_row_a_core(cores, rows):
    def scan(operator, init, reverse):
        padding = ((0, rows - 1) if reverse else (rows - 1, 0), (0, 0))
        return lambda x: lax.reduce_window(jnp.cos(x), init, operator, (rows, 1), (1, 1), padding)

    for operator, init, reverse in ((lax.add, 0.0, False), (lax.max, -np.inf, True), (lax.mul, 1.0, True)):
        _, notes = check_counts(
            scan(operator, np.float32(init), reverse), (normal(rows, 3),), (P("tp"),), cores
        )
        assert not any("reduce_window" in note for note in notes)


def test_a_window_as_long_as_the_dim_is_said_to_gather():
    function = lambda x: lax.reduce_window(x, 0.0, lax.add, (31, 1), (1, 1), ((15, 15), (0, 0)))  # noqa: E731
    _, notes = check_counts(function, (normal(16, 3),), (P("tp"),), 8)
    assert any("reach beyond the neighbours' blocks" in note for note in notes)


def test_two_dims_of_an_image_over_two_axes():
    counts, _ = check_counts(
        conv, (normal(2, 8, 12, 3), normal(3, 3, 3, 4)), (P(None, "x", "y"), P()), {"x": 2, "y": 2}
    )
    assert counts == {"collective_permute": 2}


def test_sum_of_squares_of_a_sharded_image_and_its_gradient():
    function = jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), (0, 1))
    check_counts(function, (normal(2, 12, 5, 3), normal(3, 3, 3, 4)), (P(None, "tp"), P()), 4, rtol=1e-4)


def pool_gradient(window, stride, padding):
    return jax.grad(lambda x: (max_pool(x, window, stride, padding) ** 2).sum())


@pytest.mark.parametrize("cores", CORES)
def test_gradient_of_aligned_pooling_is_local(cores):
    counts, _ = check_counts(pool_gradient(2, 2, "VALID"), (normal(1, 48, 6, 2),), (P(None, "tp"),), cores)
    assert counts == {}


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, "SAME"), (2, 3, "VALID"), (5, 2, "VALID")])
@pytest.mark.parametrize("cores", [2, 3, 8])
def test_gradient_of_pooling_over_edges(window, stride, padding, cores):
    function = pool_gradient(window, stride, padding)
    _, notes = check_counts(function, (normal(1, 25, 7, 2),), (P(None, "tp"),), cores)
    assert not any("select_and_scatter" in note for note in notes)


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("rows", [24, 25])
def test_gradient_of_a_kernel_is_one_all_reduce(cores, rows):
    loss = lambda x, k: (conv(x, k, (2, 1)) ** 2).sum()  # noqa: E731
    function = lambda x, k: jax.grad(loss, 1)(jnp.sin(x), k)  # noqa: E731
    arguments = (normal(2, rows, 9, 4), normal(3, 3, 4, 5))
    counts, _ = check_counts(function, arguments, (P(None, "tp"), P()), cores, rtol=1e-4)
    assert counts["all_reduce"] == 1
    assert "all_gather" not in counts


@pytest.mark.parametrize("cores", CORES)
def test_channels_in_groups_stay_on_their_cores(cores):
    function = lambda x, k: conv(x, k, feature_group_count=24)  # noqa: E731
    specs = (P(None, None, None, "tp"), P(None, None, None, "tp"))
    counts, _ = check_counts(function, (normal(2, 5, 5, 48), normal(3, 3, 2, 24)), specs, cores)
    assert counts == {}


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("groups", [{"feature_group_count": 5}, {"batch_group_count": 5}])
def test_uneven_groups(cores, groups):
    function = lambda x, k: conv(jnp.sin(x), jnp.sin(k), **groups)  # noqa: E731
    is_feature = "feature_group_count" in groups
    shapes = ((2, 3, 3, 10), (3, 3, 2, 15)) if is_feature else ((10, 3, 3, 4), (3, 3, 4, 15))
    specs = (P(None, None, None, "tp") if is_feature else P("tp"), P(None, None, None, "tp"))
    check_counts(function, [normal(*shape) for shape in shapes], specs, cores)


@pytest.mark.parametrize("cores", CORES)
def test_a_batch_takes_the_axes_of_a_dim_that_must_be_whole(cores):
    for function in (lambda x: jnp.sort(jnp.sin(x), -1), lambda x: jnp.abs(jnp.fft.rfft(jnp.sin(x)))):
        counts, _ = check_counts(function, (normal(16, 24),), (P(None, "tp"),), cores)
        assert counts["all_to_all"] >= 1
        assert "all_gather" not in counts
