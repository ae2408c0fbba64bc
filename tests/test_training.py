"""Training steps: gradients and optax updates on Inf2 and Trn1, over data and tensor axes, donated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import neuronx
from distributed.program import Collective

OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "adamw": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 100), weight_decay=1e-2),
    ),
}
SHARDED = {"embed": P("tensor", None), "up": P(None, "tensor"), "down": P("tensor", None), "head": P()}


def loss(params, tokens, targets):
    x = params["embed"][tokens]
    x = x + jax.nn.gelu(x @ params["up"]) @ params["down"]
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    logits = x @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def step_with(optimizer):
    def step(params, state, tokens, targets):
        value, gradient = jax.value_and_grad(loss)(params, tokens, targets)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return step


def start(rng, optimizer):
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) / 4, jnp.float32)  # noqa: E731
    params = {"embed": draw(32, 16), "up": draw(16, 64), "down": draw(64, 16), "head": draw(16, 32)}
    return params, optimizer.init(params)


def batches(rng, count, size=8):
    return [tuple(rng.integers(0, 32, (2, size, 4)).astype(np.int32)) for _ in range(count)]


def trained(step, params, state, data):
    losses = []
    for tokens, targets in data:
        params, state, value = step(params, state, tokens, targets)
        losses.append(float(value))
    return losses, params, state


def assert_agrees(got, wanted):
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-4)
    for one, other in zip(jax.tree.leaves(got[1:]), jax.tree.leaves(wanted[1:]), strict=True):
        np.testing.assert_allclose(np.asarray(one), other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "instance"), [("sgd", "inf2.48xlarge"), ("adam", "trn1.32xlarge"), ("adamw", "inf2.48xlarge")]
)
def test_steps_planned_by_the_compiler(name, instance, rng):
    """Three steps, compiled once, against jax.jit."""
    step, (params, state) = step_with(OPTIMIZERS[name]), start(rng, OPTIMIZERS[name])
    data = batches(rng, 3)
    wanted = trained(jax.jit(step), params, state, data)
    compiled = neuronx.compile(step, tp_degree=2, instance=instance)
    assert_agrees(trained(compiled, params, state, data), wanted)
    assert wanted[0][-1] != wanted[0][0]


def placed(mesh, tree):
    """Shardings by the names of parameters, also where an optimiser keeps arrays of their shapes."""

    def choose(path, leaf):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        spec = SHARDED[names[-1]] if names and leaf.ndim else P()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(choose, tree)


@pytest.mark.parametrize(
    ("data_size", "tensor_size", "instance"),
    [(2, 4, "inf2.48xlarge"), (4, 2, "trn1.32xlarge"), (8, 1, "inf2.48xlarge")],
)
def test_data_and_tensor_axes_with_donation(data_size, tensor_size, instance, rng):
    mesh = AbstractMesh((data_size, tensor_size), ("data", "tensor"))
    optimizer = OPTIMIZERS["adam"]
    step, (params, state) = step_with(optimizer), start(rng, optimizer)
    data, rows = batches(rng, 3), NamedSharding(mesh, P("data"))
    wanted = trained(jax.jit(step), params, state, data)
    shardings = (placed(mesh, params), placed(mesh, state), rows, rows)
    compiled = neuronx.compile(
        step, in_shardings=shardings, out_shardings=(*shardings[:2], None), donate_argnums=(0, 1),
        instance=instance,
    )  # fmt: skip
    exe = compiled.lower(params, state, *data[0]).compile()
    on_ring = exe.device_put(params, state, *data[0])[:2]
    losses, new_params, new_state = trained(exe, *on_ring, data)
    assert_agrees((losses, new_params, new_state), wanted)
    # Weights and moments stay where they are from step to step, cut over the ring.
    assert all(isinstance(leaf, neuronx.RingArray) for leaf in jax.tree.leaves((new_params, new_state)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(on_ring))
    if tensor_size > 1:
        assert new_params["up"].layout.local_shape == (16, 64 // tensor_size)
    groups = {len(s.groups[0]) for s in exe.program.main.steps if isinstance(s, Collective)}
    assert data_size in groups, "gradients are summed over the data axis"
    assert exe.cost_analysis()["latency_s"] > 0


def test_a_step_in_bf16_with_f32_weights(rng):
    optimizer = OPTIMIZERS["sgd"]

    def mixed(params, tokens, targets):
        return loss(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), tokens, targets).astype(
            jnp.float32
        )

    def step(params, state, tokens, targets):
        value, gradient = jax.value_and_grad(mixed)(params, tokens, targets)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state = start(rng, optimizer)
    data = batches(rng, 4)
    wanted = trained(jax.jit(step), params, state, data)
    got = trained(neuronx.compile(step, tp_degree=4), params, state, data)
    np.testing.assert_allclose(got[0], wanted[0], rtol=2e-2)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(got[1]))


def test_steps_of_rematerialised_scanned_layers(rng):
    """Layers as one scan, checkpointed, as large models are trained."""

    def deep(params, x, y):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w["up"]) @ w["down"] + x, None))
        return ((jax.lax.scan(layer, x, params)[0] - y) ** 2).mean()

    def step(params, x, y):
        value, gradient = jax.value_and_grad(deep)(params, x, y)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

    draw = lambda *shape: (rng.standard_normal(shape) / 4).astype(np.float32)  # noqa: E731
    params, x, y = {"up": draw(3, 8, 16), "down": draw(3, 16, 8)}, draw(4, 8), draw(4, 8)
    specs = {"up": P(None, None, "tp"), "down": P(None, "tp", None)}
    compiled = neuronx.compile(step, tp_degree=4, in_shardings=(specs, None, None), donate_argnums=0)
    got, wanted = params, params
    for _ in range(3):
        got, value = compiled(got, x, y)
        wanted, wanted_value = jax.jit(step)(wanted, x, y)
    np.testing.assert_allclose(value, wanted_value, rtol=1e-4)
    for name in params:
        np.testing.assert_allclose(np.asarray(got[name]), wanted[name], rtol=1e-3, atol=1e-5)
