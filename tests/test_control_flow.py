"""Branches and loops through the whole compiler, nested and with collectives inside, against jax.jit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import neuronx
from distributed.program import Branch, Collective, Loop
from kernels.eras import DEFAULT_ERA, core_of

CORE = core_of(DEFAULT_ERA)
MEGATRON = {"up": P(None, "tp"), "down": P("tp", None)}


def mlp(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


def cond(params, x, n):
    return lax.cond(n > 2, mlp, lambda params, x: x - 1, params, x)


def switch(params, x, n):
    choices = [mlp, lambda params, x: x + 1, lambda params, x: mlp(params, mlp(params, x))]
    return lax.switch(n, choices, params, x)


def dynamic_while(params, x, n):
    return lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, mlp(params, c[1])), (0, x))[1]


def while_on_data(params, x, n):
    return lax.while_loop(lambda x: jnp.abs(x).max() > 0.1, lambda x: mlp(params, x) / 2, x)


def dynamic_fori(params, x, n):
    return lax.fori_loop(0, n, lambda i, x: mlp(params, x) + i, x)


def scan(params, x, n):
    def step(carry, row):
        carry = mlp(params, carry) + row
        return carry, carry.sum()

    return lax.scan(step, x, jnp.stack([x, 2 * x, x + 1]))


def reversed_scan(params, x, n):
    return lax.scan(lambda c, row: (c * row, c + mlp(params, c)), x, jnp.stack([x, x + 1]), reverse=True)


def nested(params, x, n):
    def round_(i, x):
        x = lax.cond((i + n) % 2 == 0, lambda x: mlp(params, x), lambda x: x / 2, x)
        return lax.while_loop(lambda c: c[0] < i, lambda c: (c[0] + 1, c[1] + mlp(params, c[1])), (0, x))[1]

    return lax.fori_loop(0, 3, round_, x)


def scan_of_switch(params, x, n):
    def step(carry, kind):
        return lax.switch(kind, [lambda c: mlp(params, c), jnp.sin, lambda c: -c], carry), kind

    return lax.scan(step, x, (jnp.arange(4) + n) % 3)


def unrelated(params, x, n):
    """A loop without a collective beside products with some."""
    small = lax.while_loop(lambda c: c[1] < n, lambda c: (c[0] * 0.5, c[1] + 1), (x.sum(), 0))[0]
    return mlp(params, x) + small


PROGRAMS = [
    cond, switch, dynamic_while, while_on_data, dynamic_fori, scan, reversed_scan, nested, scan_of_switch,
    unrelated,
]  # fmt: skip


@pytest.fixture
def arguments(rng):
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {"up": draw(8, 16) / 4, "down": draw(16, 8) / 4}, draw(4, 8)


def assert_agrees(got, wanted):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tp_degree", [1, 4])
@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda fn: fn.__name__)
def test_results_for_every_course(fn, tp_degree, arguments):
    params, x = arguments
    compiled = neuronx.compile(fn, tp_degree=tp_degree, in_shardings=(MEGATRON, None, None))
    for n in (0, 1, 2, 5):
        assert_agrees(compiled(params, x, n), jax.jit(fn)(params, x, n))


def steps(block):
    for step in block.steps:
        yield step
        inner = {Loop: lambda s: (s.condition, s.body), Branch: lambda s: s.blocks}.get(type(step))
        for one in inner(step) if inner else ():
            yield from steps(one)


@pytest.mark.parametrize(
    ("fn", "kind", "trips"),
    [(cond, Branch, None), (switch, Branch, None), (dynamic_while, Loop, None), (scan, Loop, 3)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_collectives_inside_are_driven_by_the_control_cpu(fn, kind, trips, arguments):
    """Its decisions are on the timeline: one for a branch, one a round and one at the end of a loop."""
    params, x = arguments
    exe = neuronx.compile(fn, tp_degree=4, in_shardings=(MEGATRON, None, None)).lower(params, x, 3).compile()
    (driven,) = [step for step in exe.program.main.steps if isinstance(step, kind)]
    blocks = driven.blocks if kind is Branch else (driven.body,)
    assert any(isinstance(step, Collective) for block in blocks for step in steps(block))
    decisions = 1 if kind is Branch else (1 if trips is None else trips) + 1
    if kind is Loop:
        assert driven.trip_count == trips
    timeline = exe.profile().timeline
    found = [event for event in timeline.events if event.engine == "control"]
    assert sum(event.iterations for event in found) == decisions
    assert timeline.busy_s["control"] == pytest.approx(decisions * CORE.dma.latency_s)
    said = " ".join(exe.cost_analysis()["assumptions"])
    assert ("trip count" in said) == (kind is Loop and trips is None) and ("slowest" in said) == (
        kind is Branch
    )


def test_without_collectives_it_stays_in_one_launch(arguments):
    """On one core, and where all cores hold all: nothing for the control CPU to decide."""
    params, x = arguments
    for tp_degree, shardings in ((1, None), (4, (P(), P(), P()))):
        exe = (
            neuronx.compile(nested, tp_degree=tp_degree, in_shardings=shardings).lower(params, x, 3).compile()
        )
        assert not any(isinstance(step, Loop | Branch) for step in exe.program.main.steps)
        assert not exe.profile().timeline.busy_s.get("control")


def test_collectives_of_the_users_own_in_loops_and_branches(rng):
    mesh = AbstractMesh((4,), ("tp",))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("tp"), P()), out_specs=P("tp"), check_vma=False)
    def ring(x, n):
        def turn(_, x):
            x = lax.ppermute(x, "tp", [(i, (i + 1) % 4) for i in range(4)])
            return lax.cond(n > 2, lambda x: x + lax.psum(x, "tp"), lambda x: x - 1, x)

        return lax.fori_loop(0, n, turn, x)

    def whole(x, n):
        for _ in range(n):
            x = np.roll(x.reshape(4, -1), 1, 0)
            x = x + x.sum(0) if n > 2 else x - 1
        return x.reshape(-1)

    x = rng.integers(-4, 5, 12).astype(np.float32)
    compiled = neuronx.compile(ring)
    for n in (0, 2, 3, 4):
        np.testing.assert_array_equal(compiled(x, n), whole(x, n))


def test_derivatives_of_loops_and_branches(arguments):
    params, x = arguments

    def loss(params, x, n):
        y = scan(params, x, n)[0]
        return (cond(params, y, n) ** 2).mean() + (switch(params, y, n % 3) ** 2).mean()

    step = jax.value_and_grad(loss)
    compiled = neuronx.compile(step, tp_degree=4, in_shardings=(MEGATRON, None, None))
    for n in (1, 5):
        assert_agrees(compiled(params, x, n), jax.jit(step)(params, x, n))
