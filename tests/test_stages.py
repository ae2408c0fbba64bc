"""Lowered and Compiled: every level readable, costs and memory that add up, no arrays needed."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import neuronx
from neuronx.driver import LEVELS

ROWS, WIDTH, INNER = 8, 64, 256
TP = 4


def block(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"] + x


SHAPES = (
    {
        "up": jax.ShapeDtypeStruct((WIDTH, INNER), jnp.float32),
        "down": jax.ShapeDtypeStruct((INNER, WIDTH), jnp.float32),
    },
    jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32),
)


def arguments():
    r = np.random.default_rng()
    return jax.tree.map(lambda s: r.standard_normal(s.shape).astype(s.dtype) / 8, SHAPES)


@pytest.fixture(scope="module")
def lowered():
    return neuronx.compile(block, tp_degree=TP).lower(*SHAPES)


@pytest.fixture(scope="module")
def exe(lowered):
    return lowered.compile()


def test_lowered_text_runs_on_xla(lowered):
    params, x = arguments()
    got = oracles.run_on_xla(lowered.as_text(), [params["down"], params["up"], x])[0]
    np.testing.assert_allclose(got, block(params, x), rtol=1e-5, atol=1e-5)
    assert "test_stages.py" in lowered.as_text(debug_info=True)
    assert "test_stages.py" not in lowered.as_text()


def test_compiling_leaves_the_lowering_as_it_was(lowered):
    before = lowered.as_text()
    lowered.compile()
    assert lowered.as_text() == before


def test_a_program_made_from_shapes_runs_with_arrays(exe):
    args = arguments()
    np.testing.assert_allclose(exe(*args), jax.jit(block)(*args), rtol=1e-5, atol=1e-5)


def test_trees_and_layouts(lowered, exe):
    assert exe.in_tree == lowered.in_tree == jax.tree.structure((SHAPES, {}))
    assert exe.out_tree == lowered.out_tree == jax.tree.structure(0)
    (params, x), kwargs = exe.input_layouts
    assert kwargs == {} and x.is_replicated
    # Column- then row-wise: the block ends with one all-reduce.
    assert params["up"].dim_axes == ((), ("tp",)) and params["up"].local_shape == (WIDTH, INNER // TP)
    assert params["down"].dim_axes == (("tp",), ())
    assert exe.output_layouts.global_shape == (ROWS, WIDTH)


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_has_a_text(exe, level):
    assert exe.as_text(level=level)


def test_the_global_level_runs_on_xla(exe):
    params, x = arguments()
    got = oracles.run_on_xla(exe.as_text("global"), [params["down"], params["up"], x])[0]
    np.testing.assert_allclose(got, block(params, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", ["local", "fused", "planned"])
def test_the_local_levels_run_on_xla_replicas(exe, level):
    params, x = arguments()
    (layouts, whole), _ = exe.input_layouts
    ranks = [
        [params["down"][layouts["down"].block(r)], params["up"][layouts["up"].block(r)], x[whole.block(r)]]
        for r in range(TP)
    ]
    for (got,) in oracles.run_local_on_xla(exe.as_text(level), ranks):
        np.testing.assert_allclose(got, block(params, x), rtol=1e-5, atol=1e-5)


def test_the_block_has_one_all_reduce(exe):
    assert exe.as_text("local").count("stablehlo.all_reduce") == 1
    assert exe.as_text("program").count("all_reduce(") == 1


def test_costs_count_the_work_of_one_core(exe):
    cost = exe.cost_analysis()
    matmuls = 2 * 2 * ROWS * WIDTH * INNER / TP
    assert matmuls <= cost["flops"] <= 1.1 * matmuls
    weights = 2 * WIDTH * INNER * 4 / TP
    assert cost["bytes accessed"] >= weights + ROWS * WIDTH * 4
    assert cost["collective_bytes"] == ROWS * WIDTH * 4
    assert 0 < max(cost["busy_s"].values()) <= cost["latency_s"] < 1e-3
    assert {"pe", "dma", "collective"} <= set(cost["busy_s"])


def test_memory_adds_up(exe):
    memory = exe.memory_analysis()
    theirs = jax.jit(block).lower(*SHAPES).compile().memory_analysis()
    fields = [n for n in dir(theirs) if n.endswith("_in_bytes")]
    assert fields and all(isinstance(getattr(memory, name), int) for name in fields)
    assert memory.argument_size_in_bytes == (2 * WIDTH * INNER // TP + ROWS * WIDTH) * 4
    assert memory.output_size_in_bytes == ROWS * WIDTH * 4
    assert memory.hbm_bytes_by_use["weights"] == 2 * WIDTH * INNER // TP * 4
    assert memory.hbm_bytes_by_use["inputs"] == ROWS * WIDTH * 4
    assert sum(memory.hbm_bytes_by_use.values()) == memory.peak_hbm_bytes < memory.hbm_capacity_bytes


def test_captured_weights_are_weights():
    weight = jnp.ones((WIDTH, INNER), jnp.float32)
    memory = neuronx.compile(lambda x: x @ weight).lower(SHAPES[1]).compile().memory_analysis()
    assert memory.hbm_bytes_by_use["weights"] == WIDTH * INNER * 4


def test_donated_arguments_are_aliased():
    cache = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
    exe = neuronx.compile(lambda c, x: c.at[0].set(x), donate_argnums=0)
    memory = exe.lower(cache, jax.ShapeDtypeStruct((WIDTH,), jnp.float32)).compile().memory_analysis()
    assert memory.alias_size_in_bytes == memory.output_size_in_bytes == ROWS * WIDTH * 4
    assert memory.hbm_bytes_by_use["caches, donated"] == ROWS * WIDTH * 4
    assert memory.argument_size_in_bytes == (ROWS + 1) * WIDTH * 4


def test_memory_is_told_in_words(exe):
    lines = str(exe.memory_analysis()).splitlines()
    assert lines[0].split() == ["bytes", "a", "core", "GiB", "GiB", "a", "chip", "(2)"]
    assert lines[-1] == "fits; the least that should hold it: tp_degree=1 on inf2.xlarge (an estimate)"


def test_weights_larger_than_the_host_need_no_memory():
    huge = {"w": jax.ShapeDtypeStruct((120_000, 120_000), jnp.bfloat16)}
    x = jax.ShapeDtypeStruct((1, 120_000), jnp.bfloat16)
    exe = neuronx.compile(lambda p, v: v @ p["w"], tp_degree=24).lower(huge, x).compile()
    assert exe.memory_analysis().hbm_bytes_by_use["weights"] == 120_000 * 5_000 * 2
    # Reading the weights once from HBM is the least it can take.
    assert exe.profile().timeline.total_s > 120_000 * 5_000 * 2 / 410e9
