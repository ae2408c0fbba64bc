"""Lazy arrays whose shapes vary: what runs, why and how often, after pytorch/xla's dynamic-shape tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neuronx
from neuronx.lazy import GraphBudgetError


@pytest.fixture(autouse=True)
def fresh():
    neuronx.lazy.reset()
    neuronx.lazy.clear_graphs()


def runs():
    return [(one.cause, one.is_new) for one in neuronx.lazy.explain()]


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def test_a_size_that_depends_on_data_runs_once_where_it_is_asked_for(rng):
    """nonzero: its operand runs, its result has a known shape, what follows is recorded again."""
    x = np.array([[1, 0, 2], [0, 0, 3]], np.float32)
    with neuronx.lazy():
        doubled = jnp.asarray(x) * 2
        rows, columns = jnp.nonzero(doubled)
        assert len(runs()) >= 1 and runs()[0][0] != "mark_step"
        assert rows.shape == columns.shape == (3,)
        picked = doubled[rows, columns] + 1
        assert picked.is_pending and picked.shape == (3,)
        np.testing.assert_array_equal(picked, [3, 5, 7])


def test_masked_select(rng):
    x = floats(rng, 4, 4)
    with neuronx.lazy():
        y = jnp.asarray(x)
        chosen = y[y > 0]
        assert chosen.shape == (int((x > 0).sum()),)
        np.testing.assert_array_equal(chosen, x[x > 0])


def test_equal_counts_share_graphs_and_others_do_not():
    def step(values):
        x = jnp.asarray(np.array(values, np.float32))
        return float(jnp.sin(x[x > 0]).sum())

    with neuronx.lazy():
        step([1, 0, 2, 0])
        first = sum(new for _, new in runs())
        step([0, 3, 0, 4])  # two again
        assert sum(new for _, new in runs()) == first
        step([1, 2, 3, 0])  # three
        assert sum(new for _, new in runs()) > first


def test_arithmetic_on_shapes_is_plain_python(rng):
    """Sizes are known at once: no graph runs for them, whatever was recorded before."""
    with neuronx.lazy():
        x = jnp.asarray(floats(rng, 3, 5)) * 2
        y = jnp.concatenate([x, x])
        size = y.shape[0] * y.shape[1] // 2
        z = y.reshape(size, -1)
        assert z.shape == (15, 2) and not runs()
        assert jnp.zeros(z.shape[0] + len(y)).shape == (21,) and not runs()


def mlp(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def test_a_model_whose_batches_vary_compiles_once_a_size(rng):
    """Forward and backward of five batches of two sizes: five executions, two graphs."""
    params = {"up": floats(rng, 4, 8), "down": floats(rng, 8, 2)}
    gradient = jax.grad(lambda params, x: mlp(params, x).sum())
    batches = [floats(rng, size, 4) for size in (4, 6, 4, 6, 4)]
    wanted, got = [jax.jit(gradient)(params, x) for x in batches], []
    with neuronx.lazy(tp_degree=2):
        for x in batches:
            got.append(gradient(params, x))
            neuronx.mark_step()
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert runs() == [("mark_step", new) for new in (True, True, False, False, False)]
    difference = list(neuronx.lazy.explain())[1].difference
    assert "float32[6, 4], was float32[4, 4]" in difference


def test_padding_to_buckets_keeps_the_count(rng):
    with neuronx.lazy(max_graphs=2):
        for size in (3, 8, 5, 13, 16, 1, 9):
            bucket = 8 if size <= 8 else 16
            x = np.zeros((bucket, 4), np.float32)
            x[:size] = floats(rng, size, 4)
            total = float((jnp.asarray(x) ** 2).sum())
            np.testing.assert_allclose(total, (x**2).sum(), rtol=1e-5)
    assert sum(new for _, new in runs()) == 2 and len(runs()) == 7


# The detector of dynamic shapes: a budget of graphs.


def test_one_graph_is_within_a_budget_of_one(rng):
    with neuronx.lazy(max_graphs=1) as session:
        for _ in range(3):
            float((jnp.asarray(floats(rng, 3)) * 2).sum())
    assert session.num_graphs == 1 and runs() == [("float", True), ("float", False), ("float", False)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: (x[:2] * 2).sum(), "slice"),
        (lambda x: (x * 2).max(), "reduce_max instead of reduce_sum"),
        (lambda x: (x * 2).sum() + 1, "more ops"),
    ],
    ids=["shape", "op", "length"],
)
def test_another_graph_exceeds_it_and_is_told_apart(change, said, rng):
    x = floats(rng, 3)
    with neuronx.lazy(max_graphs=1):
        float((jnp.asarray(x) * 2).sum())
        with pytest.raises(GraphBudgetError, match="this would be graph 2, and max_graphs is 1") as error:
            float(change(jnp.asarray(x)))
        message = str(error.value)
        del error  # its traceback holds what could not run
        total = float((jnp.asarray(x) * 2).sum())
    assert said in message and total == pytest.approx(2 * x.sum(), rel=1e-5)


def test_graphs_that_take_turns_are_each_counted_once(rng):
    with neuronx.lazy(max_graphs=2) as session:
        for turn in range(6):
            x = jnp.asarray(floats(rng, 3 + turn % 2))
            float((x * 2).sum())
    assert session.num_graphs == 2


def test_budgets_are_of_a_context_and_graphs_of_the_process(rng):
    for expected in (1, 0):
        with neuronx.lazy(max_graphs=1) as session:
            float((jnp.asarray(floats(rng, 3)) * 2).sum())
        assert session.num_graphs == expected
    with neuronx.lazy(max_graphs=1):
        float((jnp.asarray(floats(rng, 3)) * 2).sum())  # cached: nothing of the budget
        float((jnp.asarray(floats(rng, 4)) * 2).sum())
        with pytest.raises(GraphBudgetError):
            float((jnp.asarray(floats(rng, 5)) * 2).sum())


# Eager mode: each op is an execution of its own.


def test_eager_debug_runs_each_op_by_itself(rng):
    with neuronx.debug() as session:
        x = jnp.asarray(floats(rng, 3, 3))
        y = jnp.tanh(x @ x) * 2
        neuronx.mark_step()  # nothing is pending
        float(y[0, 0])
    found = list(neuronx.lazy.explain())
    assert {one.cause for one in found} == {"debug"} and all(one.num_ops == 1 for one in found)
    assert len(found) == len(session.ops)
    assert [op.op for op in session.ops if op.op in ("dot_general", "tanh", "mul")] == [
        "dot_general", "tanh", "mul",
    ]  # fmt: skip
