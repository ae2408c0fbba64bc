"""Fusion: expected text, equal results, and what every kernel promises."""

import re
from collections import Counter

import local_programs
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hlo_passes import fuse
from hlo_passes.clusters import Clusters
from hlo_passes.ir import func, ir, main, parse
from hlo_passes.levels import check_level
from hlo_passes.ops import is_composite, kind
from hlo_passes.varying import analyze

PROGRAMS = {
    "mlp": local_programs.mlp_block,
    "prefill": lambda: local_programs.opt_prefill(layers=1),
    "decode": lambda: local_programs.opt_decode(layers=1),
    "loops": local_programs.loops,
}


def _fused(text: str, **options) -> ir.Module:
    module = parse(text)
    fuse.run(module, fuse.Options(**options))
    assert module.operation.verify()
    return module


def _kernels(module: ir.Module) -> Counter[str]:
    return Counter(re.findall(r'composite "neuron\.(\w+)"', str(module)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden(name, golden):
    golden(f"fuse_{name}.mlir", str(_fused(PROGRAMS[name]())))


@pytest.mark.parametrize("name", PROGRAMS)
def test_results_stay(name, rng):
    text = PROGRAMS[name]()
    inputs = local_programs.per_rank(text, int(rng.integers(1 << 30)))
    before = oracles.run_local_on_xla(text, inputs)
    after = oracles.run_local_on_xla(str(_fused(text)), inputs)
    for left, right in zip(before, after, strict=True):
        for one, other in zip(left, right, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_idempotent_and_at_its_level(name):
    module = _fused(PROGRAMS[name]())
    once = str(module)
    check_level(module, "fused", "fuse")
    fuse.run(module, fuse.Options())
    assert str(module) == once


def test_a_transformer_layer_is_few_kernels():
    found = _kernels(_fused(local_programs.opt_prefill(layers=1)))
    assert found == {"matmul": 8, "normalization": 2, "softmax": 1, "elementwise": 2}


def test_equal_layers_share_their_functions():
    def functions(layers: int) -> int:
        module = _fused(local_programs.opt_decode(layers=layers))
        return sum(isinstance(op, func.FuncOp) for op in module.body.operations)

    assert functions(6) == functions(3)


def test_a_kernel_keeps_the_users_lines():
    module = _fused(local_programs.mlp_block())
    text = module.operation.get_asm(enable_debug_info=True, use_local_scope=True)
    composites = [line for line in text.splitlines() if "stablehlo.composite" in line]
    assert composites
    assert all("local_programs.py" in line for line in composites)


def test_without_epilogues_every_op_is_a_kernel():
    text = local_programs.mlp_block()
    assert _kernels(_fused(text, epilogues=False)) == {"matmul": 2, "elementwise": 4}


def test_a_kernel_is_all_uniform_or_all_varying():
    """The residual branch is equal on all ranks and must not be computed with what differs."""
    module = _fused(local_programs.opt_decode(layers=2))
    before = analyze(module)
    for op in main(module).entry_block.operations:
        if is_composite(op):
            assert len({before.is_varying(value) for value in op.operation.results}) == 1


def test_an_intermediate_read_outside_is_an_extra_result():
    text = """func.func @main(%x: tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>) {
      %a = stablehlo.tanh %x : tensor<4x4xf32>
      %b = stablehlo.add %a, %x : tensor<4x4xf32>
      return %a, %b : tensor<4x4xf32>, tensor<4x4xf32>
    }"""
    module = _fused(text)
    assert _kernels(module) == {"elementwise": 1}
    inputs = oracles.random_inputs(text, 0)
    for left, right in zip(
        oracles.run_on_xla(text, inputs), oracles.run_on_interpreter(str(module), inputs), strict=True
    ):
        np.testing.assert_allclose(right, left, rtol=1e-6)


def test_what_is_widened_is_stored_narrow_and_widened_where_it_is_read():
    shape, wide = "tensor<64x64xbf16>", "tensor<64x64xf32>"
    text = f"""
    func.func @main(%x: {shape}, %w: {shape}, %v: {wide}) -> ({shape}, {wide}) {{
      %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : ({shape}, {shape}) -> {shape}
      %1 = stablehlo.convert %0 : ({shape}) -> {wide}
      %2 = stablehlo.dot_general %1, %v, contracting_dims = [1] x [0] : ({wide}, {wide}) -> {wide}
      return %0, %2 : {shape}, {wide}
    }}"""
    module = _fused(text)
    made = [str(value.type) for op in main(module).entry_block.operations for value in op.operation.results]
    assert made == [shape, wide]


def test_a_path_out_and_back_in_is_not_fused():
    """tanh -> product -> add, and tanh -> add: the two elementwise ops cannot be one kernel."""
    text = """func.func @main(%x: tensor<4x4xf32>, %w: tensor<4x4xf32>) -> tensor<4x4xf32> {
      %a = stablehlo.tanh %x : tensor<4x4xf32>
      %p = stablehlo.dot_general %a, %w, contracting_dims = [1] x [0]
        : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
      %b = stablehlo.add %a, %p : tensor<4x4xf32>
      return %b : tensor<4x4xf32>
    }"""
    assert _kernels(_fused(text)) == {"elementwise": 1, "matmul": 1}


def test_a_fixed_branch_becomes_a_numbered_one_only_around_collectives():
    module = _fused(local_programs.loops())
    outside = [kind(op) for op in main(module).entry_block.operations if not is_composite(op)]
    assert "if" not in outside
    assert outside.count("while") == 1
    assert _kernels(module)["control"] == 1


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 24).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda e: e[0] < e[1])),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30),
        )
    )
)
def test_clusters_stay_acyclic(case):
    count, edges, merges = case
    clusters = Clusters([{a for a, b in edges if b == node} for node in range(count)])
    for left, right in merges:
        producer, consumer = sorted((clusters.of[left], clusters.of[right]), key=clusters.position)
        if producer != consumer:
            clusters.merge(producer, consumer)
    order = {cluster: place for place, cluster in enumerate(clusters.order)}
    assert sorted(node for members in clusters.members.values() for node in members) == list(range(count))
    assert set(order) == set(clusters.of)
    for earlier, later in edges:
        first, second = clusters.of[earlier], clusters.of[later]
        assert first == second or order[first] < order[second]


CHOICES = st.lists(st.tuples(*[st.integers(0, 1 << 16)] * 3), min_size=3, max_size=25)


@settings(max_examples=15, deadline=None)
@given(CHOICES, st.integers(0, 1 << 30))
def test_random_programs_keep_their_results(choices, seed):
    text = local_programs.random_program(choices)
    module = _fused(text)
    check_level(module, "fused", "fuse")
    inputs = local_programs.per_rank(text, seed)
    before = oracles.run_local_on_xla(text, inputs)
    after = oracles.run_local_on_xla(str(module), inputs)
    for left, right in zip(before, after, strict=True):
        for one, other in zip(left, right, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
