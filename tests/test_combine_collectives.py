"""Small independent collectives become one; meaning and order stay."""

import re

import jax.numpy as jnp
import local_programs
import numpy as np
import oracles
import pytest
from local_programs import all_reduce
from random_programs import generate
from ring_oracle import shard_function

from benchmarks.annotated_programs import PROGRAMS
from distributed.timeline import time_program
from hlo_passes import (
    combine_collectives,
    fuse,
    hoist,
    order,
    overlap,
    plan_memory,
    reassociate,
    scatter_reductions,
    schedule,
)
from hlo_passes.ir import parse
from hlo_passes.notes import notes


def _three(x, w, v):
    first = all_reduce(x @ w)
    waits = jnp.tanh(first)
    second, third = all_reduce(x @ v), all_reduce(jnp.sum(x @ w, 0))
    return waits + second, third, all_reduce(waits * 2)


def _text(function=_three) -> str:
    arguments = [((4, 8), "f4", None), ((8, 8), "f4", 0), ((8, 8), "f4", 0)]
    return local_programs.local_module(function, arguments, tp=4)


def _run(text: str, **options) -> str:
    module = parse(text)
    combine_collectives.run(module, combine_collectives.Options(**options))
    assert module.operation.verify()
    return str(module)


def test_golden(golden):
    golden(
        "combine_collectives.mlir",
        re.sub(r"/[^ ]*/local_programs.py:\d+", "local_programs.py", _run(_text())),
    )


def test_independent_ones_join_and_a_dependent_one_does_not(rng):
    text = _text()
    after = _run(text)
    assert text.count("stablehlo.all_reduce") == 4
    assert after.count("stablehlo.all_reduce") == 2
    inputs = local_programs.per_rank(text, int(rng.integers(1 << 30)))
    for before, now in zip(
        oracles.run_local_on_xla(text, inputs), oracles.run_local_on_xla(after, inputs), strict=True
    ):
        for left, right in zip(before, now, strict=True):
            np.testing.assert_array_equal(left, right)


def test_idempotent():
    once = _run(_text())
    assert _run(once) == once


@pytest.mark.parametrize(("threshold", "left"), [(0, 4), (4 * 8 * 4, 4), (4 * 8 * 4 + 8 * 4, 3), (1024, 2)])
def test_the_threshold_bounds_what_joins(threshold, left):
    assert _run(_text(), threshold_bytes=threshold).count("stablehlo.all_reduce") == left


def test_another_type_does_not_join():
    def mixed(x, w, v):
        return all_reduce(x @ w), all_reduce((x @ v).astype(jnp.bfloat16))

    assert _run(_text(mixed)).count("stablehlo.all_reduce") == 2


def test_inside_a_loop():
    text = local_programs.loops()
    assert _run(text).count("stablehlo.all_reduce") == text.count("stablehlo.all_reduce")


GATHERS = """module attributes {mhlo.num_replicas = 4 : i32, mhlo.num_partitions = 1 : i32,
    neuron.mesh = {axes = [["tp", 4 : i64]], device_ids = array<i64>}} {
  func.func @main(%x: tensor<2x3xf32> {neuron.global_type = tensor<8x3xf32>, neuron.dim_axes = [["tp"], []]},
                  %y: tensor<1x5xi32> {neuron.global_type = tensor<4x5xi32>, neuron.dim_axes = [["tp"], []]})
      -> (tensor<8x3xf32> {neuron.global_type = tensor<8x3xf32>},
          tensor<4x5xi32> {neuron.global_type = tensor<4x5xi32>},
          tensor<2x12xf32> {neuron.global_type = tensor<2x12xf32>}) {
    %a = "stablehlo.all_gather"(%x) <{all_gather_dim = 0 : i64,
      replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> : (tensor<2x3xf32>) -> tensor<8x3xf32>
    %s = stablehlo.tanh %a : tensor<8x3xf32>
    %b = "stablehlo.all_gather"(%y) <{all_gather_dim = 0 : i64,
      replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> : (tensor<1x5xi32>) -> tensor<4x5xi32>
    %c = "stablehlo.all_gather"(%x) <{all_gather_dim = 1 : i64,
      replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> : (tensor<2x3xf32>) -> tensor<2x12xf32>
    return %s, %b, %c : tensor<8x3xf32>, tensor<4x5xi32>, tensor<2x12xf32>
  }
}"""


def test_gathers_along_one_dim_join_whatever_their_types(rng):
    after = _run(GATHERS)
    assert after.count("stablehlo.all_gather") == 2
    assert "2 all_gather became one (176 B)" in notes(parse(after))[0]
    assert _run(after) == after
    inputs = local_programs.per_rank(GATHERS, int(rng.integers(1 << 30)))
    for before, now in zip(
        oracles.run_local_on_xla(GATHERS, inputs), oracles.run_local_on_xla(after, inputs), strict=True
    ):
        for left, right in zip(before, now, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.slow
def test_on_the_clock_joining_saves_time():
    """Of random and of hand-annotated programs none gets noticeably slower, and all together gain."""
    sources = [(one.function, one.arguments(), one.cores) for one in PROGRAMS]
    made = [generate(seed, annotated=True) for seed in range(100)]
    sources += [(one.function, one.specs(), one.cores) for one in made]
    pairs = [pair for source in sources for pair in _seconds_apart_and_joined(*source)]
    assert len(pairs) > 8
    assert all(joined <= 1.01 * apart for apart, joined in pairs)
    assert sum(joined for _, joined in pairs) < sum(apart for apart, _ in pairs)


def _seconds_apart_and_joined(function, arguments, cores):
    """A pair of times where something is joined, else nothing."""
    module = shard_function(function, arguments, cores)
    for code in (reassociate, scatter_reductions, hoist, overlap):
        code.run(module, code.Options())
    apart, joined = parse(str(module)), module
    combine_collectives.run(joined, combine_collectives.Options())
    if not any("became one" in note for note in notes(joined)):
        return
    programs = []
    for one in (apart, joined):
        for code in (fuse, order, plan_memory):
            code.run(one, code.Options())
        programs.append(schedule.run(one, schedule.Options()))
    yield tuple(time_program(program, "inf2.48xlarge").total_s for program in programs)
