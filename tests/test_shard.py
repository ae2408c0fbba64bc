"""Pass shard against unsharded jax.jit: the plan, the user's own shardings, control flow, uneven shards."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ring_oracle import collectives, lower, run_sharded, shard_function

import neuronx
from hlo_passes import shard
from hlo_passes.ir import main
from hlo_passes.local import argument_layouts, finite_padding
from hlo_passes.notes import notes
from kernels.errors import CompileError


def normal(*shape):
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


def check(function, arguments, tp, *, specs=None, mesh=None, rtol=3e-5):
    """Shards, runs with poisoned padding, compares with jax.jit; returns the LOCAL module."""
    traced = arguments if specs is None else with_shardings(arguments, specs, mesh)
    module = shard_function(function, traced, tp)
    got = run_sharded(module, arguments, tp)
    want = jax.tree.leaves(jax.jit(function)(*arguments) if specs is None else unsharded(function, arguments))
    for ours, theirs in zip(got, want, strict=True):
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(
            ours, theirs, rtol=rtol, atol=rtol * float(np.abs(theirs).max(initial=1e-3))
        )
    return module


def with_shardings(arguments, specs, mesh):
    def shaped(leaf, spec):
        leaf = np.asarray(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(shaped, arguments, specs)


def unsharded(function, arguments):
    """The function on one device, where constraints over an abstract mesh of size one are dropped."""
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return [evaluate(jaxpr, jax.tree.leaves(arguments))]


def evaluate(jaxpr, leaves):
    values = dict(zip(jaxpr.jaxpr.invars, leaves, strict=True))
    read = lambda atom: atom.val if hasattr(atom, "val") else values[atom]  # noqa: E731
    for eqn in jaxpr.jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        if eqn.primitive.name == "sharding_constraint":
            results = inputs
        else:
            results = eqn.primitive.bind(*inputs, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.jaxpr.outvars]


def layer_norm(x, gain, bias):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * gain + bias


def attention(x, p, heads):
    batch, length, _ = x.shape
    split = lambda y: y.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)  # noqa: E731
    q, k, v = (split(x @ p[n] + p[n + "_bias"]) for n in ("q", "k", "v"))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    mixed = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(batch, length, -1)
    return x + mixed @ p["o"]


def block(x, p, heads):
    x = attention(layer_norm(x, p["gain1"], p["bias1"]), p, heads)
    hidden = jax.nn.gelu(layer_norm(x, p["gain2"], p["bias2"]) @ p["up"] + p["up_bias"])
    return x + hidden @ p["down"]


def block_parameters(width, heads, head, inner):
    inside = heads * head
    matrices = {n: normal(width, inside) * 0.2 for n in ("q", "k", "v")}
    matrices |= {"o": normal(inside, width) * 0.2, "up": normal(width, inner), "down": normal(inner, width)}
    vectors = {n: normal(width) for n in ("gain1", "bias1", "gain2", "bias2")}
    return (
        matrices
        | vectors
        | {f"{n}_bias": normal(inside) for n in ("q", "k", "v")}
        | {"up_bias": normal(inner)}
    )


@pytest.mark.parametrize(("tp", "heads"), [(1, 4), (2, 4), (3, 4), (4, 4), (3, 7), (8, 4)])
def test_transformer_block_ends_with_two_all_reduces(tp, heads):
    parameters = block_parameters(24, heads, 8, 52)
    module = check(lambda x, p: block(x, p, heads), (normal(2, 5, 24), parameters), tp)
    assert collectives(module) == ({"all_reduce": 2} if tp > 1 else {})


def test_weights_are_column_then_row_sharded():
    def mlp(x, up, bias, down):
        return jax.nn.relu(x @ up + bias) @ down

    module = check(mlp, (normal(3, 8), normal(8, 32), normal(32), normal(32, 8)), 4)
    axes = [layout.dim_axes for layout in argument_layouts(module, main(module))]
    assert axes == [((), ()), ((), ("tp",)), (("tp",),), (("tp",), ())]


def test_uneven_heads_are_cut_in_whole_heads():
    module = check(lambda x, p: block(x, p, 7), (normal(1, 3, 24), block_parameters(24, 7, 8, 52)), 3)
    shapes = {lay.global_shape: lay.local_shape for lay in argument_layouts(module, main(module))}
    assert shapes[(24, 56)] == (24, 24)  # three heads of eight on each of three cores, nine for seven
    assert shapes[(24, 52)] == (24, 18)


def test_chain_of_products_alternates():
    def chain(x, *weights):
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x

    module = check(chain, (normal(3, 16), *(normal(16, 16) for _ in range(6))), 4)
    assert collectives(module) == {"all_reduce": 3}


@pytest.mark.parametrize("tp", [2, 3, 4])
def test_vocabulary_parallel_embedding_and_logits(tp):
    def language_model(ids, table, up, down):
        x = table[ids]
        logits = (x + jnp.tanh(x @ up) @ down) @ table.T
        return jnp.argmax(logits, -1), jax.nn.log_softmax(logits).max(-1)

    ids = np.random.default_rng().integers(-25000, 25000, (2, 40))  # out of range ones are clamped
    module = check(
        language_model, (ids, normal(20011, 128), normal(128, 256) / 16, normal(256, 128) / 16), tp
    )
    table = argument_layouts(module, main(module))[1]
    assert table.dim_axes[0] == ("tp",)


@pytest.mark.parametrize("tp", [2, 3])
def test_key_value_cache_is_sharded_by_heads_and_never_gathered(tp):
    def step(x, cache, position, wk, wq):
        new = (x @ wk).reshape(1, 1, 4, 8).transpose(0, 2, 1, 3)
        cache = jax.lax.dynamic_update_slice(cache, new, (0, 0, position, 0))
        query = (x @ wq).reshape(1, 1, 4, 8).transpose(0, 2, 1, 3)
        return jax.nn.softmax(query @ cache.transpose(0, 1, 3, 2)), cache

    arguments = (normal(1, 1, 32), normal(1, 4, 9, 8), np.int32(3), normal(32, 32), normal(32, 32))
    module = check(step, arguments, tp)
    assert collectives(module) == {}
    assert argument_layouts(module, main(module))[1].dim_axes == ((), ("tp",), (), ())


def convolutions(x, k1, k2, gain, weight):
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.nn.relu(jax.lax.conv_general_dilated(x, k1, (1, 1), "SAME", dimension_numbers=dims) * gain)
    y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    y = jax.lax.conv_general_dilated(y, k2, (2, 2), "SAME", dimension_numbers=dims)
    return y.mean((1, 2)) @ weight


def recurrence(x, wx, wh, wo):
    def step(h, xt):
        h = jnp.tanh(xt @ wx + h @ wh)
        return h, h @ wo

    return jax.lax.scan(step, jnp.zeros((x.shape[1], wh.shape[0])), x)


def grouped_convolution(x, kernel, weight):
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=4)
    return y @ weight


def scatter_and_slices(x, ids, weight):
    y = x @ weight
    y = y.at[ids].add(1.0).at[:, 2].set(0.5)
    return jnp.concatenate([y[1:, ::2], y[:-1, 1::2]], 0), jnp.flip(y, 1), jnp.pad(y, ((1, 0), (2, 1)))


PROGRAMS = {
    "convolutions": (
        convolutions,
        lambda: (normal(2, 8, 8, 3), normal(3, 3, 3, 8), normal(3, 3, 8, 12), normal(8), normal(12, 10)),
    ),
    "grouped convolution": (
        grouped_convolution,
        lambda: (normal(2, 4, 4, 8), normal(3, 3, 2, 12), normal(12, 6)),
    ),
    "scan": (recurrence, lambda: (normal(5, 2, 6), normal(6, 8), normal(8, 8) * 0.1, normal(8, 10))),
    "gradient": (
        jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w[0]) @ w[1])),
        lambda: ([normal(8, 15), normal(15, 8)], normal(4, 8)),
    ),
    "cond": (
        lambda x, w: jax.lax.cond(x.sum() > 0, lambda y: y @ w, lambda y: 2 * y @ w, x),
        lambda: (normal(4, 8), normal(8, 9)),
    ),
    "switch": (
        lambda i, x, w: jax.lax.switch(i, [lambda y: y @ w, lambda y: y @ w.T, jnp.sin], x),
        lambda: (np.int32(1), normal(8, 8), normal(8, 8)),
    ),
    "while": (
        lambda x, w: jax.lax.while_loop(
            lambda s: jnp.abs(s).sum() > 1e-2, lambda s: jnp.tanh(s @ w) * 0.5, x
        ),
        lambda: (normal(4, 8), normal(8, 8) * 0.2),
    ),
    "sort": (
        lambda x, w: (jnp.sort(x @ w, -1), jnp.cumsum(x @ w, 1), jax.lax.top_k(x @ w, 3)),
        lambda: (normal(4, 8), normal(8, 13)),
    ),
    "fused qkv": (
        lambda x, w, o: (lambda q, k, v: (jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v) @ o)(
            *jnp.split(x @ w, 3, -1)
        ),
        lambda: (normal(2, 5, 16), normal(16, 48), normal(16, 16)),
    ),
    "scatter": (scatter_and_slices, lambda: (normal(6, 8), np.array([1, 4, 1]), normal(8, 10))),
    "argmin and products": (
        lambda x, w: (
            jnp.argmin(x @ w, 1),
            jnp.prod(x @ w, 1),
            jnp.any(x @ w > 3, 1),
            jnp.max(x @ w, (0, 1)),
        ),
        lambda: (normal(4, 8), normal(8, 13)),
    ),
    "linear algebra": (
        lambda x, w: (jnp.linalg.cholesky(x @ w @ (x @ w).T + 40 * jnp.eye(4)), jnp.fft.rfft(x @ w)),
        lambda: (normal(4, 8), normal(8, 12)),
    ),
    "random": (
        lambda k, w: jax.random.normal(jax.random.key(0), (4, 8)) @ w + k,
        lambda: (normal(9), normal(8, 9)),
    ),
    "integers": (
        lambda x, w: (x @ w).max(1),
        lambda: (np.arange(12, dtype=np.int32).reshape(3, 4), np.eye(4, 7, dtype=np.int32) - 5),
    ),
    "no weight": (lambda x: jnp.sin(x) + 1, lambda: (normal(3, 4),)),
    "size zero": (lambda x, w: x @ w, lambda: (normal(0, 4), normal(4, 8))),
}


@pytest.mark.parametrize("tp", [2, 3])
@pytest.mark.parametrize("name", PROGRAMS)
def test_any_function_keeps_its_values(name, tp):
    function, arguments = PROGRAMS[name]
    check(function, arguments(), tp)


MESH = AbstractMesh((2, 2), ("data", "tp"))


def constrain(x, *spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(MESH, P(*spec)))


def test_two_products_on_a_mesh_of_two_axes():
    def program(x, a, b):
        return constrain(constrain(x @ a, "data", "tp") @ b, "data", None)

    specs = (P("data", None), P(None, "tp"), P("tp", None))
    module = check(program, (normal(8, 6), normal(6, 8), normal(8, 4)), 4, specs=specs, mesh=MESH)
    assert collectives(module) == {"all_reduce": 1}
    assert [layout.dim_axes for layout in argument_layouts(module, main(module))] == [
        (("data",), ()), ((), ("tp",)), (("tp",), ()),
    ]  # fmt: skip


@pytest.mark.parametrize("specs", [
    (P("data", "tp"), P("tp", None), P("tp", "data")),
    (P(("data", "tp"), None), P(None, None), P(None, ("tp", "data"))),
    (P(None, "tp"), P("data", "tp"), P()),
])  # fmt: skip
def test_any_sharding_of_the_arguments(specs):
    arguments = (normal(8, 8), normal(8, 8), normal(8, 4))
    check(lambda x, a, b: jnp.tanh(x @ a) @ b, arguments, 4, specs=specs, mesh=MESH)


def test_scan_over_sharded_state():
    def program(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), c.sum(-1)), x, None, length=3)

    check(program, (normal(8, 6), normal(6, 6)), 4, specs=(P("data", None), P(None, "tp")), mesh=MESH)


@pytest.mark.parametrize("names", [{"data", "tp"}, {"tp"}])
def test_shard_map(names):
    def product(a, b):
        return jax.lax.psum(a @ b, "tp")

    spec_in = (P("data" if "data" in names else None, "tp"), P("tp", None))
    out = P("data" if "data" in names else None, None)

    def program(x, w):
        return jnp.sin(
            jax.shard_map(product, mesh=MESH, in_specs=spec_in, out_specs=out, axis_names=names)(x, w)
        )

    x, w = normal(8, 6), normal(6, 4)
    module = shard_function(program, with_shardings((x, w), (P("data", None), P()), MESH), 4)
    np.testing.assert_allclose(run_sharded(module, (x, w), 4)[0], np.sin(x @ w), rtol=1e-4, atol=1e-5)
    assert collectives(module)["all_reduce"] == 1


def test_collectives_inside_shard_map_match_jax_on_four_devices():
    mesh = AbstractMesh((4,), ("tp",))

    def body(a):
        total = jax.lax.psum(a, "tp") + jax.lax.axis_index("tp")
        gathered = jax.lax.all_gather(a, "tp", axis=1, tiled=True)
        shifted = jax.lax.ppermute(a, "tp", [(i, (i + 1) % 4) for i in range(4)])
        exchanged = jax.lax.all_to_all(a, "tp", 1, 0, tiled=True)
        scattered = jax.lax.psum_scatter(gathered, "tp", scatter_dimension=1, tiled=True)
        return total, gathered, shifted, exchanged, scattered

    def program(x):
        return jax.shard_map(body, mesh=mesh, in_specs=P("tp", None), out_specs=P("tp", None))(x)

    x = normal(8, 4)
    module = shard_function(program, (jax.ShapeDtypeStruct(x.shape, x.dtype),), 4)
    total, gathered, shifted, exchanged, scattered = run_sharded(module, (x,), 4)
    parts = x.reshape(4, 2, 4)
    np.testing.assert_allclose(total.reshape(4, 2, 4), parts.sum(0) + np.arange(4)[:, None, None], rtol=1e-5)
    whole = np.concatenate(list(parts), 1)
    np.testing.assert_array_equal(gathered.reshape(4, 2, 16), np.broadcast_to(whole, (4, 2, 16)))
    np.testing.assert_array_equal(shifted, np.roll(x, 2, 0))
    np.testing.assert_array_equal(exchanged.reshape(4, 8), x.T.reshape(4, 8))
    np.testing.assert_allclose(scattered.reshape(4, 2, 4), 4 * parts, rtol=1e-6)


def test_bf16_products_are_summed_in_bf16():
    def program(x, w):
        return jnp.dot(x, w, preferred_element_type=jnp.float32).astype(jnp.bfloat16)

    spec = jax.ShapeDtypeStruct
    mesh = AbstractMesh((4,), ("tp",))
    x = spec((4, 8), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, "tp")))
    module = shard_function(program, (x, spec((8, 4), jnp.bfloat16)), 4)
    assert "tensor<4x4xbf16>) -> tensor<4x4xbf16>" in str(module).split("all_reduce")[1]


def test_a_weight_that_cannot_be_sharded_is_said():
    module = shard_function(lambda x, w: x @ w, (normal(3, 1), normal(1, 1)), 2)
    notes = [note.value for note in module.operation.attributes["neuron.notes"]]
    assert any("weight argument 1 tensor<1x1xf32> is replicated on 2 cores" in note for note in notes)


def test_shard_is_deterministic():
    arguments = (normal(2, 5, 24), block_parameters(24, 4, 8, 52))
    texts = {str(shard_function(lambda x, p: block(x, p, 4), arguments, 4)) for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.parametrize(("tp", "message"), [(25, "inf2.48xlarge has 24"), (0, "tp=0")])
def test_more_cores_than_the_instance_has(tp, message):
    with pytest.raises(CompileError, match=message):
        shard_function(lambda x: x, (normal(2),), tp)


def test_a_mesh_of_another_size_is_refused():
    module = lower(lambda x: x, with_shardings((normal(8),), (P("tp"),), MESH))
    with pytest.raises(CompileError, match="expected one mesh of 8 cores"):
        shard.run(module, shard.Options(tp=8))


def test_the_padding_of_a_placed_weight_is_not_masked():
    """Only the activation's is: the weight's is finite, which the program asks of the runtime."""
    arguments = (normal(3, 24), normal(24, 7), normal(7, 24))
    module = check(lambda x, up, down: jnp.tanh(x @ up) @ down, arguments, 4)
    assert re.findall(r"stablehlo\.select .*, tensor<(\w+)xf32>", str(module)) == ["3x2"]
    assert finite_padding(main(module)) == (2,)


def test_a_donated_weight_may_leave_nan_in_its_padding():
    """0 / 0 there: the step masks what it is given back, and the runtime clears it for the next program."""
    x, up, down = normal(3, 24), normal(24, 7), 1 + np.abs(normal(7, 24))
    mlp = lambda x, up, down: jnp.tanh(x @ up) @ down  # noqa: E731
    step = lambda x, up, down: (mlp(x, up, down), 2 * down / down)  # noqa: E731
    assert finite_padding(main(shard_function(step, (x, up, down), 4, donate_argnums=2))) == ()
    first = neuronx.compile(step, tp_degree=4, donate_argnums=2).lower(x, up, down).compile()
    second = neuronx.compile(mlp, tp_degree=4).lower(x, up, down).compile()
    placed = first.device_put(x, up, down)
    _, twos = first(*placed)
    assert any(np.isnan(np.asarray(block)).any() for block in twos.placed.arrays)
    np.testing.assert_allclose(second(x, up, twos), mlp(x, up, np.full_like(down, 2)), rtol=1e-5, atol=1e-5)
    got, _ = first(x, up, twos)
    np.testing.assert_allclose(got, mlp(x, up, np.full_like(down, 2)), rtol=1e-5, atol=1e-5)


def _layouts(function, arguments, specs, mesh):
    given = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=None if spec is None else NamedSharding(mesh, spec))
        for x, spec in zip(arguments, specs, strict=True)
    ]
    module = shard_function(function, given, mesh.size)
    [got] = run_sharded(module, arguments, mesh.size)
    np.testing.assert_allclose(got, function(*arguments), rtol=1e-4, atol=1e-4)
    return module, [layout.dim_axes for layout in argument_layouts(module, main(module))]


def test_an_axis_that_no_sharding_names_is_planned():
    """The user cuts the batch over "data"; weights go over "tp", column- then row-wise."""
    arguments = (normal(8, 64), normal(64, 128), normal(128, 64))
    mlp = lambda x, up, down: jnp.tanh(x @ up) @ down  # noqa: E731
    mesh = AbstractMesh((2, 4), ("data", "tp"))
    module, axes = _layouts(mlp, arguments, (P("data"), None, None), mesh)
    assert axes == [(("data",), ()), ((), ("tp",)), (("tp",), ())]
    assert collectives(module) == {"all_reduce": 1}


def test_what_the_user_keeps_whole_is_not_planned():
    arguments = (normal(8, 64), normal(64, 128), normal(128, 64))
    mlp = lambda x, up, down: jnp.tanh(x @ up) @ down  # noqa: E731
    mesh = AbstractMesh((2, 4), ("data", "tp"))
    _, axes = _layouts(mlp, arguments, (P("data"), P(), P()), mesh)
    assert axes == [(("data",), ()), ((), ()), ((), ())]


def test_a_weight_that_no_sharding_reaches_is_told():
    arguments = (normal(8, 64), normal(64, 128), normal(128, 64))
    mlp = lambda x, up, down: jnp.tanh(x @ up) @ down  # noqa: E731
    module, _ = _layouts(mlp, arguments, (P("data"), None, P()), AbstractMesh((4,), ("data",)))
    [note] = notes(module)
    assert note.startswith("weight argument 1 tensor<64x128xf32> is whole on every core (32768 B each)")


def test_a_planned_axis_does_not_cut_what_it_does_not_divide():
    """6 columns over 4 cores: the propagation that follows would cut the axis into two."""
    arguments = (normal(8, 64), normal(64, 6), normal(6, 64))
    mlp = lambda x, up, down: jnp.tanh(x @ up) @ down  # noqa: E731
    _, axes = _layouts(mlp, arguments, (P("data"), None, None), AbstractMesh((2, 4), ("data", "tp")))
    assert axes[1][1] == axes[2][0] == ()
