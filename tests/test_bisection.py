"""The search for the pass and the op at fault: passes, kernels and collectives made wrong on purpose."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from wrong_passes import make_wrong

import neuronx
from distributed import walk
from hlo_passes import canonicalize, fuse, hoist, shard
from hlo_passes.ir import stablehlo
from hlo_passes.pipeline import PASSES
from neuronx import bisection
from neuronx.prefixes import inlined, prefix

NAMES = ["StableHLO", *(row.name for row in PASSES), "host kernels"]
MEGATRON = ({"up": P(None, "tp"), "down": P("tp", None)}, P())


def here(marker):
    """``file:line`` of the line of this file that ends with ``# marker``."""
    with open(__file__) as source:
        (number,) = [n for n, line in enumerate(source, 1) if line.rstrip().endswith(f"# {marker}")]
    return f"{__file__}:{number}"


def mlp(params, x):
    hidden = jnp.tanh(x @ params["up"])  # hidden
    y = hidden @ params["down"]  # down
    return y + x, {"hidden": jnp.abs(hidden).sum()}  # a sum of either sign may be far below its terms


@pytest.fixture
def arguments(rng):
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {"up": draw(16, 32) / 4, "down": draw(32, 16) / 4}, draw(4, 16)


def test_a_right_compiler_has_no_culprit(arguments):
    found = neuronx.bisect(mlp, *arguments, tp_degree=4)
    assert [step.name for step in found.steps] == NAMES and not found.culprit
    assert all(step.change < 1e-5 for step in found.steps)
    assert any(step.change > 0 for step in found.steps)  # sums in another order
    assert "no pass changes" in str(found)


@pytest.mark.parametrize(("wrong", "tp_degree"), [(canonicalize, 4), (hoist, 4), (fuse, 4), (fuse, 1)])
def test_a_wrong_pass_and_the_op(wrong, tp_degree, arguments, monkeypatch):
    make_wrong(monkeypatch, wrong, "stablehlo.tanh", stablehlo.SineOp)
    found = neuronx.bisect(mlp, *arguments, tp_degree=tp_degree)
    name = wrong.__name__.removeprefix("hlo_passes.")
    assert (found.culprit, found.op, found.line) == (name, "tanh", here("hidden"))
    assert [step.name for step in found.steps if step.is_beyond] == [name]
    assert f"{name} is the first to change" in str(found) and "that of tanh at" in str(found)
    if wrong is fuse:
        assert any(kernel.startswith("neuron.") for kernel in found.made)


def test_the_cast(arguments):
    found = neuronx.bisect(mlp, *arguments, tp_degree=2, auto_cast="matmult", bound=1e-4)
    assert (found.culprit, found.op, found.line) == ("autocast", "dot_general", here("hidden"))
    assert any("convert f32 to bf16" in cast for cast in found.made)


def test_the_collective(arguments, monkeypatch):
    make_wrong(monkeypatch, shard, "stablehlo.add", stablehlo.MaxOp, inside="stablehlo.all_reduce")
    found = neuronx.bisect(mlp, *arguments, tp_degree=4, in_shardings=MEGATRON)
    assert (found.culprit, found.op, found.line) == ("shard", "dot_general", here("down"))
    assert "all_reduce" in found.made


def test_the_plan_is_the_one_that_was_kept(arguments, monkeypatch):
    right, plans = shard.run, []

    def run(module, options):
        plans.append(options.plan)
        right(module, options)

    monkeypatch.setattr(shard, "run", run)
    assert not neuronx.bisect(mlp, *arguments, tp_degree=4, objective="time").culprit
    *tried, kept, bisected = plans
    assert len(set(tried)) == len(tried) >= 4 and kept in tried and bisected == kept


def test_the_runtime(arguments, monkeypatch):
    right = walk.add_up

    def wrong(*given):
        # Ranks that share an array go on sharing it.
        doubled = {}
        return [doubled.setdefault(id(x), 2 * x) for x in right(*given)]

    monkeypatch.setattr(walk, "add_up", wrong)
    found = neuronx.bisect(mlp, *arguments, tp_degree=4, in_shardings=MEGATRON)
    assert (found.culprit, found.op, found.line) == ("schedule", "dot_general", here("down"))


def test_the_kernels_of_the_host(arguments, monkeypatch):
    right = bisection.lower_text

    def wrong(text, joint=None):
        lowered = right(text, joint)
        return dataclasses.replace(lowered, text=lowered.text.replace("stablehlo.tanh", "stablehlo.sine"))

    monkeypatch.setattr(bisection, "lower_text", wrong)
    found = neuronx.bisect(mlp, *arguments, tp_degree=2)
    assert (found.culprit, found.op, found.line) == ("host kernels", "tanh", here("hidden"))
    assert not neuronx.bisect(mlp, *arguments, tp_degree=2, host_kernels=False).culprit


def test_bits(arguments):
    """A bound of zero finds where sums are first taken in another order."""
    found = neuronx.bisect(lambda p, x: (x @ p["up"]) @ p["down"], *arguments, tp_degree=4, bound=0)
    assert found.culprit == "shard" and found.op == "dot_general"


def test_new_infinities_count(monkeypatch, rng):
    make_wrong(monkeypatch, hoist, "stablehlo.exponential", stablehlo.LogOp)
    found = neuronx.bisect(lambda x: jnp.exp(-jnp.abs(x)) + 1, rng.standard_normal(8).astype(np.float32))
    assert (found.culprit, found.op) == ("hoist", "exp") and found.steps[
        NAMES.index("hoist")
    ].change == np.inf


def test_shard_map_runs_after_shard(arguments, monkeypatch):
    params, x = arguments
    mesh = AbstractMesh((4,), ("tp",))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(None, "tp"), P("tp", None), P()), out_specs=P(), check_vma=False
    )
    def megatron(up, down, x):
        return lax.psum(jnp.tanh(x @ up) @ down, "tp")

    def fn(params, x):
        return megatron(params["up"], params["down"], x) + 1

    found = neuronx.bisect(fn, params, x)
    after = NAMES.index("shard")
    assert [step.change is None for step in found.steps] == [n <= after for n in range(len(NAMES))]
    assert not found.culprit
    assert "shard_map is one program" in str(found) and "the first that runs" in str(found)
    make_wrong(monkeypatch, hoist, "stablehlo.tanh", stablehlo.SineOp)
    found = neuronx.bisect(fn, params, x)
    assert (found.culprit, found.op) == ("hoist", "shard_map")


def test_a_compiled_function_keys_donation_and_captured_arrays(rng):
    big = jnp.asarray(rng.standard_normal((16, 16)), jnp.float32)

    def step(cache, key, count):
        return cache @ big + jax.random.uniform(key), count + 1

    compiled = neuronx.compile(step, tp_degree=2, donate_argnums=0)
    cache = jnp.asarray(rng.standard_normal((4, 16)), jnp.float32)
    assert not neuronx.bisect(compiled, cache, jax.random.key(7), 3).culprit
    assert not cache.is_deleted()


def test_a_loop_is_one_op(rng, monkeypatch):
    def fn(x):
        return lax.fori_loop(0, 3, lambda _, c: jnp.sin(c) / 2, x + 1) * 2  # loop

    make_wrong(monkeypatch, hoist, "stablehlo.sine", stablehlo.CosineOp)
    found = neuronx.bisect(fn, rng.standard_normal((4, 16)).astype(np.float32))
    assert (found.culprit, found.op, found.line) == ("hoist", "scan", here("loop"))


def test_options_of_a_compiled_function_are_its_own(arguments):
    with pytest.raises(neuronx.CompileError, match="options beside a compiled function"):
        neuronx.bisect(neuronx.compile(mlp), *arguments, tp_degree=2)


def test_prefixes_are_the_function(arguments):
    """Every prefix, then the rest, is the function: each prefix gives what plain evaluation has there."""
    leaves, _ = jax.tree.flatten(arguments)
    closed = inlined(jax.make_jaxpr(jax.checkpoint(jax.jit(mlp)))(*arguments))
    assert not {"jit", "custom_jvp_call", "remat2"} & {eqn.primitive.name for eqn in closed.jaxpr.eqns}
    whole = prefix(closed, len(closed.jaxpr.eqns))(*leaves)
    for got, wanted in zip(whole, jax.tree.leaves(mlp(*arguments)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    first = prefix(closed, 2)(*leaves)
    np.testing.assert_allclose(first[0], np.tanh(arguments[1] @ arguments[0]["up"]), rtol=1e-4, atol=1e-5)
