"""exe.explain(): the plan by argument, prices, collectives by source line, notes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neuronx
from hlo_passes.shard import PLANS
from kernels.errors import CompileError


def mlp(x, up, down):
    return jnp.tanh(x @ up) @ down


def compiled(function, *shapes, tp_degree):
    arguments = [np.zeros(shape, np.float32) for shape in shapes]
    return neuronx.compile(function, tp_degree=tp_degree).lower(*arguments).compile()


def _clocked(text):
    """Milliseconds by the name of the plan."""
    return {name: float(number) for number, name in re.findall(r"([\d.]+) ms  ([^:\n]+)(?::.*)?\n", text)}


def test_says_how_arguments_lie_and_what_the_plan_costs():
    text = compiled(mlp, (4, 1024), (1024, 4096), (4096, 1024), tp_degree=4).explain()
    assert "1 x f32[4, 1024]: whole" in text
    assert "1 x f32[1024, 4096 over tp]: [1024, 1024] a core" in text
    assert "1 x f32[4096 over tp, 1024]: [1024, 1024] a core" in text
    priced, clocked = text.partition("plans by the clock")[::2]
    step_ms, replicated_ms = map(float, re.findall(r"([\d.]+) ms  ", priced))
    assert 0 < step_ms < replicated_ms
    ms = _clocked(clocked)
    assert ms.keys() == {*PLANS, "the plan that was kept"}
    assert ms["the plan that was kept"] == ms["weights"] == ms["still"] < ms["whole"]


def test_says_when_another_plan_is_faster():
    """Weights of a quarter of a megabyte: an all-reduce takes longer than reading all of them."""
    text = compiled(mlp, (4, 256), (256, 256), (256, 256), tp_degree=4).explain()
    ms = _clocked(text)
    assert ms["whole"] < ms["the plan that was kept"] and 'objective="time" would keep a faster one' in text


def test_names_each_collective_with_bytes_seconds_and_line():
    text = compiled(mlp, (4, 1024), (1024, 4096), (4096, 1024), tp_degree=4).explain()
    count, size_bytes, each_us, line = re.search(
        r"(\d+) x all_reduce +(\d+) B +([\d.]+) us each  (\S+)", text
    ).groups()
    assert (int(count), int(size_bytes)) == (1, 4 * 1024 * 4)
    assert float(each_us) > 0 and "test_explain.py" in line


def test_stacked_weights_of_a_scan_are_cut_and_each_of_its_collectives_counted():
    def layers(weights, x):
        return jax.lax.scan(lambda x, w: (x + mlp(x, *w), None), x, weights)[0]

    weights = [np.zeros((6, *shape), np.float32) for shape in ((32, 64), (64, 32))]
    executable = neuronx.compile(layers, tp_degree=8).lower(weights, np.zeros((4, 32), np.float32)).compile()
    text = executable.explain()
    assert "f32[6, 32, 64 over tp]" in text and "f32[6, 64 over tp, 32]" in text
    found = re.search(r"(\d+) x all_reduce.* ([\d.]+) us each.*\n +([\d.]+) ms in all", text)
    count, each_us, all_ms = map(float, found.groups())
    assert count == 6 and all_ms * 1e3 == pytest.approx(6 * each_us, abs=1)


def test_says_what_was_given_up():
    text = compiled(lambda x, w: jnp.sort(x @ w, 1), (3, 8), (8, 13), tp_degree=2).explain()
    assert "nothing was given up" not in text and "stablehlo.sort" in text


def test_one_core_has_nothing_to_say():
    text = compiled(mlp, (4, 8), (8, 16), (16, 8), tp_degree=1).explain()
    assert "nothing was planned" in text and "none" in text and "nothing was given up" in text


def test_says_what_padding_costs():
    """7 columns over 4 cores are 2 a core, so each weight takes 2/7 where 1/4 would do: 24 floats more."""
    text = compiled(mlp, (4, 96), (96, 7), (7, 96), tp_degree=4).explain()
    assert "96 B a core  f32[96, 7 over tp]: [96, 2] a core" in text
    assert "96 B a core  f32[7 over tp, 96]: [2, 96] a core" in text
    assert "192 B a core in all" in text
    assert (
        "padding of uneven arguments\n  none"
        in compiled(mlp, (4, 8), (8, 16), (16, 8), tp_degree=4).explain()
    )


def test_says_in_what_order_things_start():
    def beside(x, up, down, z):
        return jnp.sin(jnp.tanh(z) @ z), jnp.tanh(x @ up) @ down

    text = compiled(beside, (256, 1024), (1024, 4096), (4096, 1024), (1024, 1024), tp_degree=4).explain()
    moved = re.search(r"(\d+) kernels and collectives moved forward, ([\d.]+) us less of ([\d.]+)", text)
    assert 0 < float(moved[2]) < float(moved[3])
    text = compiled(mlp, (4, 1024), (1024, 4096), (4096, 1024), tp_degree=4).explain()
    assert "program order: no other saves" in text


def test_what_has_no_time_names_its_line():
    executable = compiled(lambda a, b, w: jnp.linalg.solve(a, b) @ w, (8, 8), (8, 8), (8, 13), tp_degree=2)
    text = executable.explain()
    untimed, _, rest = text.partition("\narguments\n")
    assert untimed.startswith("the clock cannot time this program\n")
    assert "custom_call" in untimed and "test_explain.py" in untimed
    assert "1 x f32[8, 13 over tp]: [8, 7] a core" in rest and "B a core in all" in rest
    assert "none was clocked" in rest and "not timed" in rest
    with pytest.raises(CompileError, match="unknown custom calls") as raised:
        executable.cost_analysis()
    assert raised.value.op == "custom_call" and raised.value.location
