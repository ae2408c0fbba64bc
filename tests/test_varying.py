"""What the varying analysis says, against what really differs when the module runs on XLA:CPU."""

import local_programs
import numpy as np
import oracles
import pytest

from hlo_passes import fuse
from hlo_passes.ir import main, parse
from hlo_passes.varying import analyze

HEAD = """module attributes {mhlo.num_replicas = 4 : i32, mhlo.num_partitions = 1 : i32,
    neuron.mesh = {axes = [["dp", 2 : i64], ["tp", 2 : i64]], device_ids = array<i64>}} {
  func.func @main(%x: tensor<4xf32> {neuron.global_type = tensor<4xf32>},
                  %w: tensor<4xf32> {neuron.global_type = tensor<8xf32>, neuron.dim_axes = [["tp"]]})
      -> (%RESULTS%) {
"""
SUM = """({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = stablehlo.add %a, %b : tensor<f32>
    stablehlo.return %s : tensor<f32>
})"""


def _classes(body: str, *returned: str) -> list[tuple[int, ...]]:
    types = ", ".join(["tensor<4xf32>"] * len(returned))
    text = HEAD.replace("%RESULTS%", types) + body
    text += f"    return {', '.join(returned)} : {types}\n  }}\n}}"
    module = parse(text)
    block = main(module).entry_block
    found = analyze(module).classes
    return [found[value] for value in block.operations[len(block.operations) - 1].operands]


def _all_reduce(result: str, operand: str, groups: str) -> str:
    return (
        f'{result} = "stablehlo.all_reduce"({operand}) <{{replica_groups = dense<{groups}> : '
        f"tensor<{groups.count('[') - 1}x{len(groups.split(']')[0].split(','))}xi64>}}> {SUM} "
        ": (tensor<4xf32>) -> tensor<4xf32>\n"
    )


def test_arguments_differ_only_along_their_axes():
    assert _classes("%y = stablehlo.add %x, %w : tensor<4xf32>\n", "%x", "%w", "%y") == [
        (0, 0, 0, 0), (0, 1, 0, 1), (0, 1, 0, 1),
    ]  # fmt: skip


def test_all_reduce_over_all_ranks_is_uniform():
    assert _classes(_all_reduce("%y", "%w", "[[0, 1, 2, 3]]"), "%y") == [(0, 0, 0, 0)]


def test_all_reduce_over_some_ranks_agrees_within_its_groups():
    assert _classes(_all_reduce("%y", "%w", "[[0, 1], [2, 3]]"), "%y") == [(0, 0, 1, 1)]
    assert _classes(_all_reduce("%y", "%w", "[[0, 2], [1, 3]]"), "%y") == [(0, 1, 0, 1)]


def test_permute_of_a_uniform_value_leaves_zeros_where_nothing_arrives():
    body = (
        '%y = "stablehlo.collective_permute"(%x) <{source_target_pairs = dense<[[0, 1], [1, 2]]> : '
        "tensor<2x2xi64>}> : (tensor<4xf32>) -> tensor<4xf32>\n"
    )
    assert _classes(body, "%y") == [(0, 1, 1, 0)]


@pytest.mark.parametrize("make", [local_programs.mlp_block, local_programs.loops])
@pytest.mark.parametrize("fused", [False, True])
def test_what_is_called_uniform_is_equal_on_all_ranks(make, fused, rng):
    text = make()
    module = parse(text)
    if fused:
        fuse.run(module, fuse.Options())
    block = main(module).entry_block
    returned = block.operations[len(block.operations) - 1].operands
    found = analyze(module)
    ranks = oracles.run_local_on_xla(str(module), local_programs.per_rank(text, int(rng.integers(1 << 30))))
    uniform = [not found.is_varying(value) for value in returned]
    assert any(uniform)
    for number, equal in enumerate(uniform):
        if equal:
            assert all(np.array_equal(rank[number], ranks[0][number]) for rank in ranks)


def test_a_loop_carries_what_varies_to_a_fixpoint():
    """The second carried value takes the first one's, which varies, only after an iteration."""
    body = """
    %n = stablehlo.constant dense<2> : tensor<i32>
    %one = stablehlo.constant dense<1> : tensor<i32>
    %zero = stablehlo.constant dense<0> : tensor<i32>
    %r:4 = stablehlo.while(%i = %zero, %a = %w, %b = %x, %c = %x)
      : tensor<i32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
    cond {
      %p = stablehlo.compare LT, %i, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %p : tensor<i1>
    } do {
      %j = stablehlo.add %i, %one : tensor<i32>
      %d = stablehlo.negate %c : tensor<4xf32>
      stablehlo.return %j, %a, %a, %d : tensor<i32>, tensor<4xf32>, tensor<4xf32>, tensor<4xf32>
    }
    """
    assert _classes(body, "%r#2", "%r#3") == [(0, 1, 0, 1), (0, 0, 0, 0)]


def test_a_mesh_is_demanded_where_there_are_ranks():
    text = """module attributes {mhlo.num_replicas = 2 : i32} {
      func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> { return %x : tensor<2xf32> }
    }"""
    with pytest.raises(ValueError, match=r"neuron.mesh"):
        analyze(parse(text))
