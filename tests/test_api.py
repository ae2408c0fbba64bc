"""``neuronx.compile`` as a user meets it: like jax.jit, with real numbers from the ring."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

import neuronx

DEGREES = (1, 2, 3, 4)


def rng():
    return np.random.default_rng()


def compiled(fn, tp, **options):
    with warnings.catch_warnings():
        # 3 cores are worth testing, though the real runtime may refuse them.
        warnings.filterwarnings("ignore", "tp_degree 3 runs here", UserWarning)
        return neuronx.compile(fn, tp_degree=tp, **options)


def check(fn, *args, tp, rtol=1e-5, atol=1e-5, **options):
    got, want = compiled(fn, tp, **options)(*args), jax.jit(fn)(*args)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def mlp(params, x):
    hidden = jax.nn.gelu(x @ params["up"] + params["bias"])
    return hidden @ params["down"]


def mlp_arguments():
    r = rng()
    params = {
        "up": r.standard_normal((32, 96)).astype(np.float32) / 6,
        "bias": r.standard_normal(96).astype(np.float32),
        "down": r.standard_normal((96, 32)).astype(np.float32) / 10,
    }
    return params, r.standard_normal((5, 32)).astype(np.float32)


@pytest.mark.parametrize("tp", DEGREES)
def test_a_sharded_mlp_agrees_with_jit(tp):
    check(mlp, *mlp_arguments(), tp=tp)


@pytest.mark.parametrize("tp", DEGREES)
def test_pytrees_in_and_out(tp):
    def fn(tree, *, scale):
        return {"sum": tree["a"] + tree["b"][0], "rest": (tree["b"][1] * scale, None)}

    r = rng()
    tree = {"a": r.standard_normal((4, 6)), "b": [r.standard_normal((4, 6)), np.arange(5)]}
    tree = jax.tree.map(jnp.asarray, tree)
    got, want = compiled(fn, tp)(tree, scale=3), jax.jit(fn)(tree, scale=3)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_allclose, got, want)


@pytest.mark.parametrize("tp", (1, 2))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "int32", "uint8", "bool"])
def test_types_pass_through(tp, dtype):
    x = jnp.asarray(rng().integers(0, 2, (4, 8)), dtype)
    check(lambda v: (v, v[::2], jnp.where(v > 0, v, v)), x, tp=tp)


@pytest.mark.parametrize("tp", DEGREES)
def test_loops_and_branches(tp):
    def fn(x, w, n):
        def step(carry, _):
            return jnp.tanh(carry @ w), carry.sum()

        x, sums = jax.lax.scan(step, x, None, length=4)
        x = jax.lax.fori_loop(0, n, lambda i, v: v + i, x)
        return jax.lax.cond(n > 2, lambda v: v * 2, lambda v: v - 1, x), sums

    r = rng()
    x, w = r.standard_normal((3, 12)), r.standard_normal((12, 12))
    check(fn, x.astype(np.float32), w.astype(np.float32), np.int32(3), tp=tp)


@pytest.mark.parametrize("tp", (1, 4))
def test_closures_keep_their_weights(tp):
    weight = jnp.asarray(rng().standard_normal((64, 64)), jnp.float32)
    check(lambda x: jax.jit(lambda y: y @ weight)(x) + weight[0], np.ones((3, 64), np.float32), tp=tp)


def test_typed_keys_go_in_and_out():
    def fn(key):
        return jax.random.split(key), jax.random.normal(key, (8,))

    key = jax.random.key(7)
    (keys, values), (want_keys, want) = compiled(fn, 2)(key), jax.jit(fn)(key)
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(want_keys))
    np.testing.assert_allclose(values, want, rtol=1e-6)


def test_static_arguments():
    def fn(n, x, *, mode="add"):
        return x + n if mode == "add" else x * n

    fast = compiled(fn, 2, static_argnums=0, static_argnames="mode")
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(fast(3, x), x + 3)
    np.testing.assert_array_equal(fast(4, x, mode="multiply"), x * 4)


def test_a_method_takes_its_object():
    class Scaled:
        factor = 3.0

        @functools.partial(neuronx.compile, static_argnums=0)
        def apply(self, x):
            return self.factor * x

    assert Scaled().apply(np.float32(2)) == 6


def test_compiles_once_per_types():
    traced = []

    def fn(x):
        traced.append(x.shape)
        return x * 2

    fast = compiled(fn, 2)
    for value in (np.ones(4, np.float32), np.zeros(4, np.float32), np.ones(6, np.float32), jnp.ones(4)):
        np.testing.assert_array_equal(fast(value), value * 2)
    assert traced == [(4,), (6,)]


def test_changed_numpy_arrays_are_seen():
    fast, x = compiled(lambda v: v * 2, 2), np.ones(8, np.float32)
    fast(x)
    x[:] = 5
    np.testing.assert_array_equal(fast(x), np.full(8, 10))


@pytest.mark.parametrize("tp", (1, 2, 3))
def test_donated_ring_arrays_stay_on_the_ring(tp):
    def fn(w, cache, i):
        return (w * i).sum(), jax.lax.dynamic_update_slice(cache, (w * i)[None], (i, 0))

    w, cache = jnp.arange(6.0), jnp.zeros((4, 6))
    exe = compiled(fn, tp, donate_argnums=1).lower(w, cache, jnp.int32(0)).compile()
    _, first, _ = exe.device_put(w, cache, jnp.int32(0))
    assert isinstance(first, neuronx.RingArray)
    ring = first
    for i in range(4):
        total, ring = exe(w, ring, jnp.int32(i))
        assert isinstance(ring, neuronx.RingArray) and isinstance(total, jax.Array)
    np.testing.assert_array_equal(np.asarray(ring), np.outer(np.arange(4), np.arange(6)))
    np.testing.assert_array_equal(jnp.asarray(ring), np.outer(np.arange(4), np.arange(6)))
    with pytest.raises(RuntimeError, match=r"deleted.*donated"):
        exe(w, first, jnp.int32(0))
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(first)


def test_donated_jax_arrays_are_deleted():
    x = jnp.ones((4, 4))
    fast = compiled(lambda v: v + 1, 2, donate_argnums=0)
    np.testing.assert_array_equal(fast(x), np.full((4, 4), 2))
    assert x.is_deleted()
    with pytest.raises(RuntimeError, match="deleted"):
        fast(x)


def test_the_users_mesh_sets_the_degree():
    mesh = AbstractMesh((2, 2), ("data", "model"))

    def fn(x, w):
        y = jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, PartitionSpec("data", "model")))
        return jax.nn.softmax(y)

    r = rng()
    x, w = r.standard_normal((4, 8)).astype(np.float32), r.standard_normal((8, 8)).astype(np.float32)
    shardings = (
        NamedSharding(mesh, PartitionSpec("data")),
        NamedSharding(mesh, PartitionSpec(None, "model")),
    )
    fast = neuronx.compile(fn, in_shardings=shardings)
    np.testing.assert_allclose(fast(x, w), jax.nn.softmax(x @ w), rtol=1e-5)
    layouts, _ = fast.lower(x, w).compile().input_layouts
    assert [layout.dim_axes for layout in layouts] == [(("data",), ()), ((), ("model",))]


def test_shard_map_runs():
    mesh = AbstractMesh((4,), ("x",))

    def fn(v):
        def inner(block):
            return jax.lax.psum(block * (jax.lax.axis_index("x") + 1), "x")

        return jax.shard_map(inner, mesh=mesh, in_specs=PartitionSpec("x"), out_specs=PartitionSpec())(v)

    x = rng().standard_normal((8, 3)).astype(np.float32)
    want = sum(x[2 * i : 2 * i + 2] * (i + 1) for i in range(4))
    np.testing.assert_allclose(neuronx.compile(fn)(x), want, rtol=1e-5, atol=1e-6)


def test_a_bare_partition_spec_names_the_ring():
    fast = neuronx.compile(lambda x: x * 2, tp_degree=4, in_shardings=PartitionSpec("tp"))
    x = rng().standard_normal(12).astype(np.float32)
    np.testing.assert_array_equal(fast(x), x * 2)
    (layout,), _ = fast.lower(x).compile().input_layouts
    assert layout.dim_axes == (("tp",),) and layout.local_shape == (3,)


@pytest.mark.parametrize("size", [3, 9, 10, 11])
def test_shardings_that_do_not_divide_run(size):
    x = rng().standard_normal((size, 5)).astype(np.float32)
    fast = neuronx.compile(lambda v: (v * 2, v.sum(0)), tp_degree=4, in_shardings=PartitionSpec("tp"))
    got = fast(x)
    np.testing.assert_array_equal(got[0], x * 2)
    np.testing.assert_allclose(got[1], x.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "read",
    [
        lambda x, i: x[i],
        lambda x, i: jax.lax.dynamic_slice_in_dim(x, i[0], 1),
        lambda x, i: jax.lax.dynamic_slice_in_dim(x, i[0], 3),
        lambda x, i: x[1:2],
        lambda x, i: x,
    ],
)
@pytest.mark.parametrize("rows", [3, 9])
def test_what_is_read_of_other_cores_keeps_its_bits(read, rows):
    """Sums of one value and what the others have in its place; XLA:CPU's own all-reduce begins with 0."""
    cut, whole = PartitionSpec("tp"), PartitionSpec()
    fast = neuronx.compile(read, tp_degree=8, in_shardings=(cut, whole), out_shardings=whole)
    assert np.signbit(fast(np.full((rows, 2), -0.0, np.float32), np.array([1, 2], np.int32))).all()


def test_auto_cast_changes_matmuls_only():
    r = rng()
    x, w = r.standard_normal((4, 64)).astype(np.float32), r.standard_normal((64, 32)).astype(np.float32)
    got = neuronx.compile(lambda a, b: a @ b, auto_cast="matmult")(x, w)
    want = (x.astype(jnp.bfloat16).astype(np.float32)) @ (w.astype(jnp.bfloat16).astype(np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert np.abs(got - x @ w).max() > 1e-4


def test_an_undocumented_degree_warns():
    with pytest.warns(UserWarning, match="tp_degree 5 runs here, but the Neuron runtime may refuse it"):
        neuronx.compile(lambda x: x, tp_degree=5)
    with pytest.warns(UserWarning, match="the documented degrees are 1, 2, 8, 16, 32"):
        neuronx.compile(lambda x: x, tp_degree=4, instance="trn1.32xlarge")


def test_weights_are_cut_once(monkeypatch):
    from distributed.runtime import Runtime

    cut = []
    place = Runtime.place
    monkeypatch.setattr(Runtime, "place", lambda self, i, a: cut.append(i) or place(self, i, a))
    w, x = jnp.asarray(rng().standard_normal((16, 16)), jnp.float32), np.ones((2, 16), np.float32)
    fast = compiled(lambda a, b: a @ b, 4)
    for _ in range(3):
        fast(x, w)
    assert cut.count(1) == 1 and cut.count(0) == 3
