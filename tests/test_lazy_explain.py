"""Why graphs ran and recompiled: pytorch/xla's debug scenarios for this API, same causes and counts."""

import re

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


def here(marker):
    """``file:line`` of the line of this file that ends with ``# marker``."""
    with open(__file__) as source:
        (number,) = [n for n, line in enumerate(source, 1) if line.rstrip().endswith(f"# {marker}")]
    return f"{__file__}:{number}"


def test_user_mark_step():
    with neuronx.lazy():
        t1 = jnp.ones((4, 4)) * 2
        neuronx.mark_step()  # user mark
    (one,) = neuronx.lazy.explain()
    assert (one.cause, one.line, one.is_new) == ("mark_step", here("user mark"), True)
    assert re.fullmatch(r"lazy_[0-9a-f]{12}", one.graph)
    assert (one.num_outputs, one.output_bytes) == (1, 64) and one.run_s > 0 and one.compile_s > 0
    del t1


def test_mark_step_with_nothing_pending_runs_nothing():
    with neuronx.lazy():
        neuronx.mark_step()
        neuronx.mark_step()
    assert len(neuronx.lazy.explain()) == 0
    assert neuronx.lazy.metrics()["counters"] == {"MarkStep": 2}


def test_loader_loop():
    """One execution a batch, one compilation: the batch's values are inputs."""
    with neuronx.lazy():
        for number in range(8):
            batch = np.full((4, 4), number, np.float32)
            total = (jnp.asarray(batch) * 2).sum()
            neuronx.mark_step()
    assert [one.cause for one in neuronx.lazy.explain()] == ["mark_step"] * 8
    assert [one.is_new for one in neuronx.lazy.explain()] == [True] + [False] * 7
    assert float(total) == 7 * 2 * 16


def test_the_user_looks_at_a_tensor():
    with neuronx.lazy():
        t1 = jnp.ones((4, 4)) + 1
        print(t1)  # looks
        t2 = t1 * 3
        assert t2[0, 0] == 6  # compares
    assert [(one.cause, one.line) for one in neuronx.lazy.explain()] == [
        ("print", here("looks")),
        ("bool", here("compares")),
        # t2 itself is computed with the comparison: nothing is left for the end
    ]


def test_looking_and_marking_in_one_step():
    with neuronx.lazy():
        w = jnp.ones((4, 4))
        neuronx.mark_step()
        neuronx.lazy.reset()
        for _ in range(4):
            loss = (w @ w).sum()
            w = w - 0.01 * w
            float(loss)
            neuronx.mark_step()
    causes = [one.cause for one in neuronx.lazy.explain()]
    assert causes == ["float", "mark_step"] * 4
    assert sum(one.is_new for one in neuronx.lazy.explain()) <= 4


def test_the_cause_of_a_callback():
    with neuronx.lazy():
        jax.debug.print("{}", jnp.ones(3) * 2)
        jax.effects_barrier()
    assert [one.cause for one in neuronx.lazy.explain()] in (["debug_print"], ["debug_callback"])


def test_a_changed_shape_is_named():
    with neuronx.lazy():
        for rows in (4, 6):
            x = jnp.asarray(np.ones((rows, 3), np.float32))
            y = jnp.sin(x).sum()  # reader
            neuronx.mark_step()
    one = neuronx.lazy.explain()[1]
    assert one.is_new and "input 0 is float32[6, 3], was float32[4, 3]" in one.difference
    assert here("reader") in one.difference
    del y


def test_a_changed_op_is_named():
    with neuronx.lazy():
        for op in (jnp.sin, jnp.cos):
            y = op(jnp.ones(3) * 2) + 1  # op
            neuronx.mark_step()
    text = neuronx.lazy.explain()[1].difference
    assert "op cos instead of sin" in text and here("op") in text
    del y


def test_a_changed_parameter_is_named():
    with neuronx.lazy():
        for dim in (0, 1):
            y = jnp.cumsum(jnp.ones((3, 3)), axis=dim) + 1
            neuronx.mark_step()
    text = neuronx.lazy.explain()[1].difference
    assert "cumsum: axis is 1, was 0" in text
    del y


def test_more_and_fewer_ops_are_named():
    with neuronx.lazy():
        for count in (2, 3, 1):
            y = jnp.asarray(np.ones(3, np.float32))
            for _ in range(count):
                y = jnp.sin(y)
            neuronx.mark_step()
    _, more, fewer = neuronx.lazy.explain()
    assert "1 more ops, the first sin" in more.difference
    assert "1 ops fewer" in fewer.difference


def test_another_number_of_held_results_is_named():
    with neuronx.lazy():
        kept = []
        for keep in (False, True):
            x = jnp.asarray(np.ones(3, np.float32)) * 2
            y = x + 1
            if keep:
                kept.append(x)
            del x
            neuronx.mark_step()
    assert "2 results are wanted or still held, there were 1" in neuronx.lazy.explain()[1].difference
    del y


def test_the_nearest_graph_is_compared():
    with neuronx.lazy():
        for make in (lambda x: jnp.sin(jnp.cos(x)), lambda x: x @ x.T, lambda x: jnp.sin(jnp.tan(x))):
            y = make(jnp.asarray(np.ones((2, 2), np.float32)))
            neuronx.mark_step()
    first, _, last = neuronx.lazy.explain()
    assert first.graph in last.difference and "op tan instead of cos" in last.difference
    del y


def test_the_report_of_a_graph_that_keeps_recompiling_can_be_an_error():
    with neuronx.lazy(max_graphs=2) as session:
        for rows in (2, 3):
            (jnp.asarray(np.ones(rows, np.float32)) * 2).sum().item()
        assert session.num_graphs == 2
        with pytest.raises(GraphBudgetError, match=r"graph 3, and max_graphs is 2; .*float32\[4\]"):
            (jnp.asarray(np.ones(4, np.float32)) * 2).sum().item()
        again = (jnp.asarray(np.ones(3, np.float32)) * 2).sum().item()
        assert again == 6


def test_metrics():
    with neuronx.lazy():
        for _ in range(3):
            x = jnp.asarray(np.ones((4, 4), np.float32))
            y = x @ x
            neuronx.mark_step()
    found = neuronx.lazy.metrics()
    assert found["metrics"]["CompileTime"]["count"] == 1
    assert found["metrics"]["ExecuteTime"]["count"] == 3
    assert found["metrics"]["InputBytes"]["total"] == 3 * 64
    assert found["counters"]["UncachedCompile"] == 1 and found["counters"]["CachedCompile"] == 2
    assert found["counters"]["jax::dot_general"] == 3 and found["counters"]["cause::mark_step"] == 3
    assert found["metrics"]["ExecuteTime"]["total"] == pytest.approx(
        sum(one.run_s for one in neuronx.lazy.explain())
    )
    report = neuronx.lazy.metrics_report()
    assert re.search(
        r"Metric: CompileTime\n  TotalSamples: 1\n  Accumulator: [\dmsu.]+\n  Percentiles: 1%=.*; 99%=",
        report,
    )
    assert "Counter: jax::dot_general\n  Value: 3" in report
    del y


def test_durations_read_as_torch_xla_writes_them():
    from neuronx.lazy.report import _duration

    assert _duration(9.969486408) == "09s969ms486.408us"
    assert _duration(0.186062970) == "186ms062.970us"
    assert _duration(61.5) == "01m01s500ms000.000us"


def test_explain_prints():
    with neuronx.lazy():
        for rows in (2, 3):
            float((jnp.asarray(np.ones(rows, np.float32)) * 2).sum())
    text = str(neuronx.lazy.explain())
    assert text.startswith("2 executions, 2 of newly compiled graphs\n0: float at ")
    assert "differs from lazy_" in text


def test_a_cached_graph_serves_the_next_context():
    for _ in range(2):
        with neuronx.lazy(tp_degree=2):
            x = jnp.ones((4, 4)) * 2
    with neuronx.lazy(tp_degree=4):
        x = jnp.ones((4, 4)) * 2
    assert [one.is_new for one in neuronx.lazy.explain()] == [True, False, True]
    del x
