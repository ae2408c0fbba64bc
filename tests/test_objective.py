"""What a plan is for: every weight cut, or the least predicted time; the latter against brute force."""

import dataclasses
import functools
import io
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brute_force import least_s, predicted_s, random_graph

import neuronx
from hlo_passes.ir import module_bytes
from hlo_passes.pipeline import run_pipeline
from hlo_passes.shard import PLANS, plan_of
from kernels.errors import CompileError
from neuronx.driver import copy_module, pipeline_for
from neuronx.fastest import clock_named
from neuronx.models import llama
from neuronx.models.layers import tensor_parallel


def _mlp(x, up, down):
    return jnp.tanh(x @ up) @ down


def _compiled(batch, width, hidden, **options):
    shapes = (batch, width), (width, hidden), (hidden, width)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return neuronx.compile(_mlp, tp_degree=4, **options).lower(*arguments).compile()


def _graphs(seed, count):
    draw = random.Random(seed)
    for _ in range(count):
        graph, tp = random_graph(draw), draw.choice([2, 4, 8])
        if len(graph.shapes) < 5:  # each further argument triples the ways
            yield graph, tp


def _check(seed, count):
    """None is slower than the best of all ways to cut the arguments, by more than rounding."""
    for graph, tp in _graphs(seed, count):
        least = least_s(graph, tp)
        assert predicted_s(graph, tp, objective="time") <= least * (1 + 1e-9), (graph, tp)


def test_small_graphs_against_brute_force():
    _check(seed=0, count=5)


@pytest.mark.slow
def test_many_small_graphs_against_brute_force():
    _check(seed=1, count=50)


def test_time_leaves_small_weights_whole_and_memory_cuts_them():
    """On a megabyte of weights the all-reduce costs more than reading a quarter saves."""
    by_memory, by_time = (_compiled(4, 256, 512, objective=objective) for objective in ("memory", "time"))
    assert (
        by_memory.memory_analysis().argument_size_in_bytes < by_time.memory_analysis().argument_size_in_bytes
    )
    text = by_time.explain()
    assert by_time.profile().timeline.total_s < by_memory.profile().timeline.total_s
    for plan in PLANS:
        assert f"ms  {plan}: " in text
    assert "the fastest of" in text


@pytest.mark.parametrize("cores", [8, 24])
def test_a_prompt_is_read_no_slower_than_on_the_classic_plan(cores):
    """Adding up seconds makes moving the residual stream look cheaper than it is; the clock decides."""
    cfg = dataclasses.replace(llama.config("llama-2-13b"), layers=2)
    cfg = llama.padded(cfg, cores)
    params = llama.parameter_shapes(cfg, jnp.bfloat16)
    cache = llama.cache_shapes(cfg, 8, 256, jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((8, 128), jnp.int32)
    prefill = functools.partial(llama.prefill, cfg)

    def compiled(**options):
        return neuronx.compile(prefill, tp_degree=cores, **options).lower(params, cache, tokens).compile()

    ours, classic = compiled(), compiled(in_shardings=(tensor_parallel(params), None, None))
    assert ours.profile().timeline.total_s <= classic.profile().timeline.total_s
    assert ours.memory_analysis().argument_size_in_bytes <= classic.memory_analysis().argument_size_in_bytes
    text = ours.explain()
    assert "ms  weights: " in text and "ms  weights_still: " in text


def test_large_weights_are_cut_either_way():
    by_memory, by_time = (_compiled(64, 2048, 8192, objective=objective) for objective in ("memory", "time"))
    held = [one.memory_analysis().argument_size_in_bytes for one in (by_memory, by_time)]
    assert held[0] == held[1] < 2 * 2048 * 8192 * 4 / 3
    assert by_time.profile().timeline.total_s <= by_memory.profile().timeline.total_s


def test_results_do_not_depend_on_the_objective():
    rng = np.random.default_rng()
    x, up, down = (rng.standard_normal(shape, np.float32) for shape in ((3, 24), (24, 52), (52, 24)))
    want = _mlp(x, up, down)
    for objective in ("memory", "time"):
        got = neuronx.compile(_mlp, tp_degree=8, objective=objective)(x, up, down)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_unknown_objective_is_refused():
    with pytest.raises(CompileError, match="did you mean 'time'"):
        neuronx.compile(_mlp, objective="tme")


def test_what_has_no_price_compiles_and_is_saved(tmp_path):
    """Two plans cut the same arguments here, and no clock can tell which is faster."""

    def parts(a, b):
        gram = jnp.einsum("bij,bkj->bik", a, a) + 3 * jnp.eye(8)
        repeated = jax.lax.fori_loop(0, 3, lambda _, x: x * 1.1, a)
        return a @ b, repeated, jax.vmap(lambda x, row: x[row])(a, jnp.arange(5)), jnp.linalg.inv(gram)

    rng = np.random.default_rng()
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((5, 8, 4), (5, 4, 6)))
    want = jax.jit(parts)(a, b)
    exe = neuronx.compile(parts, tp_degree=2).lower(a, b).compile()
    exe.save(tmp_path / "parts")
    for run in (exe, neuronx.load(tmp_path / "parts")):
        for ours, theirs in zip(run(a, b), want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_known_of_a_plan_is_not_clocked_again():
    """A plan of other classes than the function's is not known, whatever its numbers."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 256), (256, 512), (512, 256))]
    lowered = neuronx.compile(_mlp, tp_degree=4).lower(*shapes)
    source, stages = module_bytes(lowered.exported.module), pipeline_for(lowered.options)
    kept = _cut_of(lowered)
    clocked = clock_named(source, stages, lowered.options.era)
    told = clock_named(
        source, stages, lowered.options.era, {kept: 1.0, kept.replace("classes", "layers"): 2.0}
    )
    assert told.named_s["weights"] == 1.0 != clocked.named_s["weights"]
    assert told.named_s["whole"] == clocked.named_s["whole"]


def _cut_of(lowered):
    module = copy_module(lowered.exported.module)
    run_pipeline(module, pipeline_for(lowered.options)[:3])
    return plan_of(module)[0]


def test_a_terminal_sees_that_plans_are_timed(monkeypatch):
    written = io.StringIO()
    written.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setattr("neuronx.progress._QUIET_S", 0.001)
    _compiled(4, 256, 512, objective="time")
    assert "neuronx: timing plans" in written.getvalue()
