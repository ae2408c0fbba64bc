"""The comparison of partitioners: what it counts, against numbers worked out by hand, and that it runs."""

import json
from pathlib import Path

import pytest

from benchmarks import partitioners
from benchmarks.traffic import traffic_of
from hlo_passes.ir import parse

HEAD = """module attributes {mhlo.num_replicas = 4 : i32} {
  sdy.mesh @m = <["a"=2, "b"=2]>
  func.func @main(%x: tensor<4x8xf32>) -> tensor<4x8xf32> {
"""
TAIL = "    return %x : tensor<4x8xf32>\n  }\n}"
FLAT = "replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>"
NAMED = (
    'replica_groups = #stablehlo.replica_group_mesh_axes<mesh = @m, axes = [#stablehlo.axis_ref<name = "a">]>'
)
SUM = """({
  ^bb0(%a: tensor<f32>, %b: tensor<f32>):
    %s = stablehlo.add %a, %b : tensor<f32>
    stablehlo.return %s : tensor<f32>
})"""
X = "tensor<4x8xf32>"
SPLIT = "split_dimension = 0 : i64, concat_dimension = 1 : i64, split_count = 4 : i64"


COLLECTIVES = [
    ("all_gather", f"all_gather_dim = 0 : i64, {FLAT}", "", "tensor<16x8xf32>", 3 * 128),
    ("all_gather", f"all_gather_dim = 0 : i64, {NAMED}", "", "tensor<8x8xf32>", 128),
    ("all_reduce", FLAT, SUM, X, 2 * 96),
    ("reduce_scatter", f"scatter_dimension = 0 : i64, {FLAT}", SUM, "tensor<1x8xf32>", 96),
    ("all_to_all", f"{SPLIT}, {FLAT}", "", "tensor<1x32xf32>", 96),
    ("collective_permute", "source_target_pairs = dense<[[0, 1]]> : tensor<1x2xi64>", "", X, 128),
]


@pytest.mark.parametrize(("kind", "attributes", "region", "result", "received"), COLLECTIVES)
def test_bytes_of_one_collective(kind: str, attributes: str, region: str, result: str, received: int) -> None:
    text = f'    %y = "stablehlo.{kind}"(%x) <{{{attributes}}}> {region} : ({X}) -> {result}\n'
    found = traffic_of(parse(HEAD + text + TAIL), 4, 1)
    assert (found.bytes, found.collectives) == (received, {kind: 1})


def test_groups_of_one_and_idle_permutes_do_not_count() -> None:
    alone = "replica_groups = dense<[[0], [1], [2], [3]]> : tensor<4x1xi64>"
    text = f'    %y = "stablehlo.all_reduce"(%x) <{{{alone}}}> {SUM} : ({X}) -> {X}\n'
    pairs = "source_target_pairs = dense<[[0, 0], [1, 1]]> : tensor<2x2xi64>"
    text += f'    %z = "stablehlo.collective_permute"(%x) <{{{pairs}}}> : ({X}) -> {X}\n'
    assert traffic_of(parse(HEAD + text + TAIL), 4, 1).count == 0


def test_shares_count_failures_of_ours_against_ours() -> None:
    def row(ours: dict, shardy: dict, xla: dict) -> dict:
        return {"program": "p", "cores": 2, "ours": ours, "shardy": shardy, "xla": xla}

    some, less, no = {"bytes": 8, "count": 1}, {"bytes": 4, "count": 1}, {"failed": "why"}
    found = partitioners.shares(
        [row(some, some, no), row(less, some, less), row(no, some, less), row(some, no, less)]
    )
    assert found["shardy"]["programs"] == 3
    assert found["shardy"]["no_more_bytes"] == pytest.approx(2 / 3)
    assert found["xla"]["no_more_bytes"] == pytest.approx(1 / 3)
    assert found["best"]["no_more_bytes"] == pytest.approx(2 / 4)


@pytest.mark.slow
def test_ours_moves_no_more_on_nearly_all_programs(tmp_path: Path) -> None:
    assert partitioners.main(["--generated", "20", "--json", str(tmp_path / "rows.json")]) == 0
    found = json.loads((tmp_path / "rows.json").read_text())
    assert all("failed" not in row["ours"] for row in found["programs"])
    assert found["shares"]["xla"]["programs"] > 40
    assert found["shares"]["best"]["no_more_bytes"] >= 0.95
    assert found["shares"]["best"]["no_more_collectives"] >= 0.95
