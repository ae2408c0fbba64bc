"""From Python functions to StableHLO: trees, types, constants that stay buffers, donation, shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from hlo_passes.ir import main, walk
from kernels.errors import CompileError
from neuronx import frontend

RNG = np.random.default_rng(11)
WEIGHT = jnp.asarray(RNG.standard_normal((64, 64), dtype=np.float32))
TABLE = RNG.standard_normal((64, 64)).astype(np.float32)
X = RNG.standard_normal((8, 64)).astype(np.float32)


def exported(
    fn, *args, in_shardings=None, out_shardings=None, axes=(), donate_argnums=None, static_argnums=None, **kw
):
    jitted = frontend.wrap(
        fn, static_argnums=static_argnums, static_argnames=None, donate_argnums=donate_argnums
    )
    staged = frontend.stage(jitted, args, kw, in_shardings, axes)
    return frontend.export(staged, out_shardings=out_shardings, axes=axes)


def nested_jit(x):
    return jax.jit(lambda y: jax.jit(lambda z: z @ WEIGHT)(y))(x) + jnp.sin(WEIGHT)[:8]


def in_scan(x):
    return jax.lax.scan(lambda c, _: (jnp.tanh(c @ WEIGHT + TABLE[0]), c @ TABLE), x, None, length=3)


def in_while(x):
    return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1] @ WEIGHT)), (0, x))


def in_cond(x):
    return jax.lax.cond(x[0, 0] > 0, lambda y: y @ WEIGHT, lambda y: y @ TABLE, x)


def in_vmap_and_grad(x):
    return jax.vmap(jax.grad(lambda row: jnp.sum(jnp.tanh(row @ WEIGHT))))(x)


def in_checkpoint(x):
    return jax.grad(jax.checkpoint(lambda y: jnp.sum(jnp.tanh(y @ TABLE) @ WEIGHT)))(x)


def from_numpy_constant(x):
    return x + np.arange(512, dtype=np.float32).reshape(8, 64)


@pytest.mark.parametrize(
    "fn", [nested_jit, in_scan, in_while, in_cond, in_vmap_and_grad, in_checkpoint, from_numpy_constant]
)
def test_captured_arrays_are_arguments_at_any_depth(fn):
    result = exported(fn, X)
    text = str(result.module)
    assert 'dense<"0x' not in text and len(text) < 20_000
    assert len(main(result.module).arguments) == 1 + len(result.constants)
    assert all(constant.nbytes >= 1024 for constant in result.constants)
    got = oracles.run_on_xla(text, [X, *map(np.asarray, result.constants)])
    want = jax.tree.leaves(jax.jit(fn)(X))
    assert len(got) == len(want) and result.out_tree == jax.tree.structure(jax.jit(fn)(X))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_one_array_used_often_is_one_argument():
    result = exported(lambda x: x @ WEIGHT + jax.jit(lambda y: y @ WEIGHT)(x) + (x @ TABLE) * (x @ TABLE), X)
    assert len(result.constants) == 2
    assert any(constant is WEIGHT for constant in result.constants)


def test_a_numpy_constant_keeps_its_value_at_tracing():
    table = np.ones((64, 64), np.float32)
    result = exported(lambda x: x @ table, X)
    table[:] = 7
    np.testing.assert_array_equal(result.constants[0], np.ones((64, 64), np.float32))


def test_small_constants_stay_in_the_text():
    small = np.arange(8, dtype=np.float32)
    result = exported(lambda x: x * small, np.ones(8, np.float32))
    assert not result.constants and "stablehlo.constant dense<[" in str(result.module)


def test_argument_order_is_the_trees_with_unused_ones_kept():
    args = ({"b": np.ones(3, np.float32), "a": np.ones((2, 2), np.int8)}, np.float32(1))
    result = exported(lambda tree, unused, *, scale: tree["b"] * scale, *args, scale=2.0)
    assert result.names == ("args[0]['a']", "args[0]['b']", "args[1]", "kwargs['scale']")
    assert [str(a.type) for a in main(result.module).arguments] == [
        "tensor<2x2xi8>", "tensor<3xf32>", "tensor<f32>", "tensor<f32>",
    ]  # fmt: skip
    assert [i.shape for i in result.inputs] == [(2, 2), (3,), (), ()]


def test_static_arguments_are_not_inputs():
    result = exported(lambda n, x: x * n, 3, X, static_argnums=0)
    assert result.names == ("args[0]",)
    np.testing.assert_allclose(oracles.run_on_xla(str(result.module), [X])[0], X * 3)


def test_shapes_need_no_arrays():
    big = jax.ShapeDtypeStruct((200_000, 100_000), jnp.bfloat16)
    result = exported(lambda w: w.sum(axis=0), big)
    assert result.outputs[0].shape == (100_000,) and result.outputs[0].dtype == jnp.bfloat16


def test_donation_names_the_result_it_becomes():
    result = exported(lambda x, y: (y, x + 1), X, np.ones(3, np.int32), donate_argnums=0)
    assert result.donated == {0: 1}
    attributes = main(result.module).arg_attrs
    assert attributes[0]["tf.aliasing_output"].value == 1 and "tf.aliasing_output" not in attributes[1]


MESH = AbstractMesh((8,), ("tp",))


def test_donation_is_resolved_under_a_mesh_too():
    def fn(x, y):
        spread = jax.shard_map(
            lambda v: v * 2, mesh=MESH, in_specs=PartitionSpec("tp"), out_specs=PartitionSpec("tp")
        )
        return spread(y), x + 1

    result = exported(fn, X, np.ones(16, np.float32), donate_argnums=0)
    assert "jax.buffer_donor" not in str(result.module)
    assert main(result.module).arg_attrs[0]["tf.aliasing_output"].value == 1


def test_typed_keys_pass_as_their_words():
    key = jax.random.key(3)
    result = exported(lambda k: jax.random.split(k, 3), key)
    assert jax.dtypes.issubdtype(result.inputs[0].dtype, jax.dtypes.prng_key)
    got = oracles.run_on_xla(str(result.module), [np.asarray(frontend.physical(key))])[0]
    np.testing.assert_array_equal(got, jax.random.key_data(jax.random.split(key, 3)))


def test_equal_types_share_a_key_and_others_do_not():
    jitted = frontend.wrap(lambda x: x * 2, static_argnums=None, static_argnames=None, donate_argnums=None)
    keys = [
        frontend.stage(jitted, (value,), {}, None, ()).key
        for value in (X, X + 1, jax.ShapeDtypeStruct(X.shape, X.dtype), X[:2])
    ]
    assert keys[0] == keys[1] == keys[2] != keys[3]


def arg_shardings(result):
    found = []
    for entry in main(result.module).arg_attrs:
        found.append(str(entry["sdy.sharding"]) if "sdy.sharding" in entry else "")
    return found


def test_shardings_of_arguments_reach_the_module_even_uneven():
    spec = NamedSharding(MESH, PartitionSpec(None, "tp"))
    arg = jax.ShapeDtypeStruct((3, 12), jnp.float32, sharding=spec)
    result = exported(lambda x: x * 2, arg, out_shardings=NamedSharding(MESH, PartitionSpec(None, "tp")))
    assert arg_shardings(result) == ['#sdy.sharding<@mesh, [{}, {"tp"}]>']
    assert "sdy.sharding" in str(main(result.module).result_attrs[0])
    assert result.mesh == (("tp", 8),)


def test_in_shardings_are_a_prefix_of_the_arguments():
    def fn(tree, y):
        return tree["a"] @ tree["b"] + y

    args = ({"a": X, "b": np.asarray(WEIGHT)}, np.ones(64, np.float32))
    specs = ({"a": None, "b": PartitionSpec(None, "tp")}, PartitionSpec(PartitionSpec.UNCONSTRAINED))
    result = exported(fn, *args, in_shardings=specs, axes=(("tp", 4),))
    assert arg_shardings(result) == ["", '#sdy.sharding<@mesh, [{}, {"tp"}]>', "#sdy.sharding<@mesh, [{?}]>"]


def test_constraints_and_arguments_share_one_mesh():
    def fn(x):
        return jax.lax.with_sharding_constraint(x @ WEIGHT, NamedSharding(MESH, PartitionSpec(None, "tp")))

    arg = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(MESH, PartitionSpec("tp")))
    assert str(exported(fn, arg).module).count("sdy.mesh @") == 1


def test_an_unknown_axis_is_an_error():
    with pytest.raises(CompileError, match=r"axis 'nope'.*expected one of \['tp'\]"):
        exported(lambda x: x, X, in_shardings=PartitionSpec("nope"), axes=(("tp", 4),))


def test_too_many_entries_are_an_error():
    with pytest.raises(CompileError, match="2 entries for an array of 1 dims"):
        exported(lambda x: x, np.ones(8), in_shardings=PartitionSpec(None, "tp"), axes=(("tp", 4),))


def test_a_tree_that_is_no_prefix_is_an_error():
    whole = PartitionSpec()
    with pytest.raises(
        CompileError, match=r"in_shardings is .*, expected a prefix of the tree \({'a': '\*'},\)"
    ):
        exported(lambda x: x["a"], {"a": X}, in_shardings=(whole, whole))
    with pytest.raises(CompileError, match=r"out_shardings is .*, expected .* the tree \*"):
        exported(lambda x: x, X, out_shardings=(whole, whole))


def test_meshes_of_different_sizes_are_an_error():
    def fn(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(MESH, PartitionSpec("tp")))

    other = NamedSharding(AbstractMesh((4,), ("tp",)), PartitionSpec("tp"))
    with pytest.raises(CompileError, match="different sizes"):
        exported(fn, jax.ShapeDtypeStruct((8,), jnp.float32), out_shardings=other)


def test_ordered_effects_are_an_error():
    def fn(x):
        jax.debug.print("{}", x, ordered=True)
        return x

    with pytest.raises(CompileError, match="ordered side effects"):
        exported(fn, X)


def test_ops_carry_the_users_line():
    result = exported(lambda x: x @ WEIGHT, X)
    locations = []
    walk(main(result.module), lambda op: locations.append(str(op.location)))
    assert any("test_frontend.py" in location for location in locations)


def test_nothing_of_the_scoped_settings_remains():
    exported(nested_jit, X)
    assert not jax.config.jax_use_simplified_jaxpr_constants
