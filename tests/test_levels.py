"""The table of levels: what is legal passes, each breach is named."""

import pytest

from hlo_passes.ir import parse
from hlo_passes.levels import LEVELS, LevelError, check_level, violations

GLOBAL = """
sdy.mesh @mesh = <["x"=2]>
func.func public @main(%a: tensor<4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}]>}) -> tensor<4xf32> {
  %0 = stablehlo.add %a, %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}
"""

LOCAL = """
module @m attributes {mhlo.num_replicas = 2 : i32, mhlo.num_partitions = 1 : i32,
                      neuron.mesh = {axes = [["tp", 2]], device_ids = array<i64>}} {
  func.func public @main(%a: tensor<4xf32> {neuron.global_type = tensor<4xf32>})
      -> (tensor<4xf32> {neuron.global_type = tensor<4xf32>}) {
    %0 = "stablehlo.all_reduce"(%a) <{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}> ({
    ^bb0(%x: tensor<f32>, %y: tensor<f32>):
      %1 = stablehlo.add %x, %y : tensor<f32>
      stablehlo.return %1 : tensor<f32>
    }) : (tensor<4xf32>) -> tensor<4xf32>
    BODY
    return %0 : tensor<4xf32>
  }
  FUNCTIONS
}
"""

KERNEL = """func.func private @neuron.elementwise.0(%a: tensor<4xf32>) -> tensor<4xf32> {
    %0 = stablehlo.negate %a : tensor<4xf32>
    return %0 : tensor<4xf32>
  }"""
CALL = (
    '%2 = stablehlo.composite "neuron.elementwise" %0 {decomposition = @neuron.elementwise.0} '
    ": (tensor<4xf32>) -> tensor<4xf32>"
)


def _local(body: str = "", functions: str = "") -> str:
    return LOCAL.replace("BODY", body).replace("FUNCTIONS", functions)


@pytest.mark.parametrize(
    ("level", "text"),
    [
        ("global", GLOBAL),
        ("local", _local("%2 = stablehlo.negate %0 : tensor<4xf32>")),
        ("fused", _local(CALL, KERNEL)),
        ("fused", _local("%2 = stablehlo.constant dense<1.0> : tensor<4xf32>")),
        (
            "fused",
            _local("%2 = stablehlo.replica_id : tensor<ui32>\n%3 = stablehlo.add %2, %2 : tensor<ui32>"),
        ),
    ],
)
def test_legal(level: str, text: str) -> None:
    assert violations(parse(text), level) == []


@pytest.mark.parametrize(
    ("level", "text", "complaint"),
    [
        ("global", GLOBAL + "func.func private @f() { return }", "exactly one function"),
        ("global", GLOBAL.replace("stablehlo.add %a, %a : ", "chlo.sinh %a : ").replace(
            "tensor<4xf32>\n  return", "tensor<4xf32> -> tensor<4xf32>\n  return"), "dialect chlo"),
        ("global", _local(), "neuron.mesh"),
        ("global", _local(CALL, KERNEL), "composite"),
        ("local", GLOBAL, "sdy"),
        ("local", GLOBAL, "neuron.global_type"),
        ("local", _local("%2 = stablehlo.partition_id : tensor<ui32>"), "partition_id"),
        ("local", _local().replace(": tensor<1x2xi64>}>",
            ": tensor<1x2xi64>, channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>}>"),
            "channel_handle"),
        ("local", _local().replace(" {neuron.global_type = tensor<4xf32>})\n", ")\n"), "arg_attrs"),
        ("fused", _local("%2 = stablehlo.negate %0 : tensor<4xf32>"), "outside any kernel"),
        ("fused", _local(CALL.replace("neuron.elem", "my.elem", 1), KERNEL), "not a kernel"),
        ("planned", _local(CALL, KERNEL), "neuron.hbm_offset"),
        ("planned", _local(), "neuron.hbm_bytes"),
    ],
)  # fmt: skip
def test_breach_is_named(level: str, text: str, complaint: str) -> None:
    found = violations(parse(text), level)
    assert any(complaint in one for one in found), found


def test_an_op_in_control_flow_around_a_collective_needs_a_kernel() -> None:
    body = """
    %c = stablehlo.constant dense<0> : tensor<i32>
    %2 = "stablehlo.case"(%c) ({
      %3 = stablehlo.negate %0 : tensor<4xf32>
      COLLECTIVE
      stablehlo.return %3 : tensor<4xf32>
    }) : (tensor<i32>) -> tensor<4xf32>"""
    collective = """%4 = "stablehlo.collective_permute"(%0) {
        source_target_pairs = dense<[[0, 1]]> : tensor<1x2xi64>
      } : (tensor<4xf32>) -> tensor<4xf32>"""
    with_collective = violations(parse(_local(body.replace("COLLECTIVE", collective))), "fused")
    without = violations(parse(_local(body.replace("COLLECTIVE", ""))), "fused")
    assert any("negate" in one for one in with_collective)
    assert any("case" in one for one in without), "control flow without a collective belongs into a kernel"


def test_check_raises_and_names_the_pass() -> None:
    with pytest.raises(LevelError, match="after shard the module is not at level local"):
        check_level(parse(GLOBAL), "local", "shard")
    check_level(parse(GLOBAL), "global", "canonicalize")


def test_every_level_of_a_pass_is_in_the_table() -> None:
    from hlo_passes.pipeline import PASSES

    assert {row.leaves for row in PASSES} <= set(LEVELS)
