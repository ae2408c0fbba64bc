"""Programs: expected text, the same results on the ring as on XLA:CPU, equal layers in equal segments."""

import local_programs
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.executor import Executor
from distributed.program import Collective, Launch, Loop, Program
from distributed.program_text import program_text
from distributed.runtime import Runtime
from hlo_passes import combine_collectives, fuse, plan_memory, schedule
from hlo_passes.ir import ir, parse
from kernels.errors import CompileError
from kernels.hardware import SCOPES, AlgorithmSpec

PROGRAMS = {
    "mlp": local_programs.mlp_block,
    "prefill": lambda: local_programs.opt_prefill(layers=2),
    "decode": lambda: local_programs.opt_decode(layers=2),
    "loops": local_programs.loops,
}


def _program(text: str) -> tuple[ir.Module, Program]:
    module = parse(text)
    combine_collectives.run(module, combine_collectives.Options())
    fuse.run(module, fuse.Options())
    plan_memory.run(module, plan_memory.Options())
    return module, schedule.run(module, schedule.Options())


def _check(text: str, seed: int, tolerance: float = 1e-5) -> None:
    """The program on the simulated ring against the LOCAL module on XLA:CPU's replicas."""
    _, program = _program(text)
    inputs = local_programs.per_rank(text, seed)
    expected = oracles.run_local_on_xla(text, inputs)
    ring = Runtime(program, Executor())
    placed = [
        ring.place(number, local_programs.assemble(layout, [rank[number] for rank in inputs]))
        for number, layout in enumerate(program.input_layouts)
    ]
    for number, (layout, value) in enumerate(zip(program.output_layouts, ring.run(placed), strict=True)):
        whole = local_programs.assemble(layout, [rank[number] for rank in expected])
        # Sums are taken in another order: errors are relative to the largest value, not to each.
        scale = max(1.0, float(np.max(np.abs(whole))))
        np.testing.assert_allclose(ring.gather(number, value), whole, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_on_the_ring(name, rng):
    _check(PROGRAMS[name](), int(rng.integers(1 << 30)))


@pytest.mark.parametrize("tp", [1, 2])
def test_results_on_fewer_ranks(tp, rng):
    _check(local_programs.opt_decode(layers=1, tp=tp), int(rng.integers(1 << 30)))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1 << 16)] * 3), min_size=3, max_size=25), st.integers(0, 1 << 30))
def test_random_programs_on_the_ring(choices, seed):
    _check(local_programs.random_program(choices), seed, tolerance=1e-4)


def _without_places(program: Program) -> str:
    return "\n".join(line.partition(" at /")[0] for line in program_text(program).splitlines()) + "\n"


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden(name, golden):
    _, program = _program(PROGRAMS[name]())
    golden(f"schedule_{name}.txt", _without_places(program))


def test_equal_layers_share_segments():
    few = _program(local_programs.opt_decode(layers=3))[1]
    many = _program(local_programs.opt_decode(layers=9))[1]
    assert set(few.segments) == set(many.segments)
    assert len(many.main.steps) > len(few.main.steps)


def test_segments_stand_alone_and_are_canonical():
    _, program = _program(local_programs.opt_decode(layers=2))
    for text in program.segments.values():
        assert parse(text).operation.verify()
        assert "loc(" not in text
        assert "neuron.hbm_offset" not in text
        assert "replica_id" not in text


def test_uniform_comes_before_varying_and_both_are_right(rng):
    _, program = _program(local_programs.opt_decode(layers=2))
    varying = {buffer.id: buffer.varying for buffer in program.buffers}
    for step in program.main.steps:
        if isinstance(step, Launch) and not step.varying:
            assert not any(varying[number] for number in step.operands)


def test_caches_are_donated_and_aliased():
    _, program = _program(local_programs.opt_decode(layers=2))
    assert program.aliases == ((1, 2), (2, 3), (3, 4), (4, 5))
    donated = {
        step.operands[operand]
        for step in program.main.steps
        if isinstance(step, Launch)
        for operand, _ in step.donated
    }
    assert donated == set(program.main.arguments[2:6])
    assert sum(text.count("tf.aliasing_output") for text in program.segments.values()) > 0


def test_the_algorithm_is_part_of_the_program(monkeypatch, rng):
    """By default the ring; where the table lists another, what the model says, in text and in numbers."""
    text = local_programs.mlp_block()
    _, program = _program(text)
    assert {step.algorithm for step in program.main.steps if isinstance(step, Collective)} == {"ring"}
    everywhere = dict.fromkeys(("ring", "pair_exchange", "bidirectional_ring", "mesh"), SCOPES)
    monkeypatch.setattr(schedule, "load_algorithms", lambda: AlgorithmSpec(**everywhere))
    _, program = _program(text)
    assert {step.algorithm for step in program.main.steps if isinstance(step, Collective)} == {"mesh"}
    assert "reducer add by mesh" in program_text(program)
    _check(text, int(rng.integers(1 << 30)))


def test_a_scan_is_a_loop_with_its_trip_count():
    _, program = _program(local_programs.loops())
    assert [step.trip_count for step in program.main.steps if isinstance(step, Loop)] == [3]


RANKED = """module @ranked attributes {mhlo.num_replicas = 2 : i32, mhlo.num_partitions = 1 : i32,
    neuron.mesh = {axes = [["tp", 2 : i64]], device_ids = array<i64>}} {
  func.func @main(%x: tensor<4xf32> {neuron.global_type = tensor<4xf32>})
      -> (tensor<4xf32> {neuron.global_type = tensor<8xf32>, neuron.dim_axes = [["tp"]]}) {
    %r = stablehlo.replica_id : tensor<ui32>
    %f = stablehlo.convert %r : (tensor<ui32>) -> tensor<f32>
    %b = stablehlo.broadcast_in_dim %f, dims = [] : (tensor<f32>) -> tensor<4xf32>
    %y = stablehlo.multiply %x, %b : tensor<4xf32>
    return %y : tensor<4xf32>
  }
}"""


TWO_AXES = """module attributes {mhlo.num_replicas = 4 : i32, mhlo.num_partitions = 1 : i32,
    neuron.mesh = {axes = [["dp", 2 : i64], ["tp", 2 : i64]], device_ids = array<i64>}} {
  func.func @main(%x: tensor<4xf32> {neuron.global_type = tensor<8xf32>, neuron.dim_axes = [["tp"]]})
      -> (tensor<4xf32> {neuron.global_type = tensor<4xf32>}) {
    %y = "stablehlo.all_reduce"(%x) <{replica_groups = dense<[[0, 1], [2, 3]]> : tensor<2x2xi64>}> ({
      ^bb0(%a: tensor<f32>, %b: tensor<f32>):
        %t = stablehlo.add %a, %b : tensor<f32>
        stablehlo.return %t : tensor<f32>
    }) : (tensor<4xf32>) -> tensor<4xf32>
    %z = stablehlo.tanh %y : tensor<4xf32>
    return %z : tensor<4xf32>
  }
}"""


def test_groups_along_one_of_two_axes(rng):
    _, program = _program(TWO_AXES)
    whole = rng.standard_normal(8).astype(np.float32)
    expected = oracles.run_local_on_xla(TWO_AXES, [[whole[:4]], [whole[4:]]] * 2)
    ring = Runtime(program, Executor())
    (value,) = ring.run([ring.place(0, whole)])
    np.testing.assert_allclose(ring.gather(0, value), expected[0][0], rtol=1e-6)


def test_the_rank_is_an_argument(rng):
    _check(RANKED, int(rng.integers(1 << 30)))
    _, program = _program(RANKED)
    (launch,) = program.main.steps
    assert launch.takes_rank and launch.varying


def _diverging(predicate: str) -> str:
    return f"""module attributes {{mhlo.num_replicas = 2 : i32, mhlo.num_partitions = 1 : i32,
        neuron.mesh = {{axes = [["tp", 2 : i64]], device_ids = array<i64>}}}} {{
      func.func @main(%x: tensor<f32> {{neuron.global_type = tensor<f32>}},
                      %p: tensor<i1> {{neuron.global_type = tensor<i1>}})
          -> (tensor<f32> {{neuron.global_type = tensor<f32>}}) {{
        %r = stablehlo.replica_id : tensor<ui32>
        %one = stablehlo.constant dense<1> : tensor<ui32>
        %q = stablehlo.compare EQ, %r, %one : (tensor<ui32>, tensor<ui32>) -> tensor<i1>
        %y = "stablehlo.if"({predicate}) ({{
          %s = "stablehlo.all_reduce"(%x) <{{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}}> ({{
            ^bb0(%a: tensor<f32>, %b: tensor<f32>):
              %t = stablehlo.add %a, %b : tensor<f32>
              stablehlo.return %t : tensor<f32>
          }}) : (tensor<f32>) -> tensor<f32>
          stablehlo.return %s : tensor<f32>
        }}, {{
          stablehlo.return %x : tensor<f32>
        }}) : (tensor<i1>) -> tensor<f32>
        return %y : tensor<f32>
      }}
    }}"""


def test_a_branch_that_may_differ_between_cores_is_refused():
    with pytest.raises(CompileError, match=r"may differ between cores"):
        _program(_diverging("%q"))


def test_a_branch_that_all_take_runs(rng):
    _check(_diverging("%p"), int(rng.integers(1 << 30)))
