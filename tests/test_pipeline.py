"""The pipeline: its order, its textual form, what it checks and writes."""

import dataclasses
import types
from pathlib import Path

import numpy as np
import oracles
import pytest

from distributed.program import Program
from hlo_passes import autocast, pipeline, shard
from hlo_passes.ir import func, ir, main, parse
from hlo_passes.levels import LevelError
from hlo_passes.pipeline import PASSES, Debug, Pass, Stage, default_pipeline, parse_pipeline, run_pipeline
from kernels.errors import CompileError

TEXT = """
module @mlp {
  func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x16xf32>, %v: tensor<16x8xf32>) -> tensor<4x8xf32> {
    %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
      : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %1 = func.call @act(%0) : (tensor<4x16xf32>) -> tensor<4x16xf32>
    %2 = stablehlo.dot_general %1, %v, contracting_dims = [1] x [0]
      : (tensor<4x16xf32>, tensor<16x8xf32>) -> tensor<4x8xf32>
    return %2 : tensor<4x8xf32>
  }
  func.func private @act(%x: tensor<4x16xf32>) -> tensor<4x16xf32> {
    %0 = stablehlo.tanh %x : tensor<4x16xf32>
    return %0 : tensor<4x16xf32>
  }
}
"""


def test_the_order() -> None:
    names = [row.name for row in PASSES]
    wanted = (
        "canonicalize", "autocast", "shard", "reassociate", "scatter_reductions", "hoist",
        "overlap", "combine_collectives", "fuse", "order", "plan_memory", "schedule",
    )  # fmt: skip
    assert tuple(names) == wanted


def test_every_pass_has_a_module_of_its_name_and_a_frozen_record() -> None:
    for row in PASSES:
        assert row.code.__name__ == f"hlo_passes.{row.name}"
        options = row.code.Options()
        assert all(field.kw_only for field in dataclasses.fields(options))
        for field in dataclasses.fields(options):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(options, field.name, None)


def test_reads_the_textual_form() -> None:
    stages = parse_pipeline(" canonicalize, autocast{mode=matmult, type=fp16} ,shard{tp=4}")
    assert [stage.name for stage in stages] == ["canonicalize", "autocast", "shard"]
    assert stages[1].options == autocast.Options(mode="matmult", type="fp16")
    assert stages[2].options.tp == 4


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("canonicalise", "there is canonicalize, autocast", "'canonicalize'"),
        ("shard{ttp=4}", "there is tp", "'tp'"),
        ("shard{tp=four}", "expected int, got 'four'", ""),
        ("autocast{mode=matmul}", "there is none, matmult, all", "'matmult'"),
        ("autocast{mode}", "not option=value", ""),
        ("canonicalize{x=1}", "there is none", ""),
        ("canonicalize shard", "cannot read the pass list at", ""),
        ("shard{tp=4", "cannot read the pass list at", ""),
        ("", "cannot read the pass list at", ""),
    ],
)
def test_refuses_what_does_not_exist(text: str, message: str, fix: str) -> None:
    with pytest.raises(CompileError, match=message) as caught:
        parse_pipeline(text)
    assert fix in caught.value.fix


def test_default_takes_options_by_pass() -> None:
    stages = default_pipeline(shard=shard.Options(tp=2))
    assert [stage.name for stage in stages] == [row.name for row in PASSES]
    assert next(stage for stage in stages if stage.name == "shard").options.tp == 2
    with pytest.raises(CompileError, match="unknown pass: 'shart'"):
        default_pipeline(shart=shard.Options())


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_each_level_means_the_same(tp: int) -> None:
    inputs = oracles.random_inputs(TEXT, seed=int(np.random.default_rng().integers(1 << 30)))
    (wanted,) = oracles.run_on_xla(TEXT, inputs)
    seen: dict[str, str] = {}

    def keep(stage: Stage, module: ir.Module) -> None:
        seen[stage.name] = str(module)

    module = parse(TEXT)
    program = run_pipeline(
        module, default_pipeline(shard=shard.Options(tp=tp)), debug=Debug(check_levels=True), after=keep
    )
    assert isinstance(program, Program)
    assert list(seen) == [row.name for row in PASSES]
    for name in ("canonicalize", "autocast"):
        np.testing.assert_allclose(oracles.run_on_xla(seen[name], inputs)[0], wanted, rtol=1e-5, atol=1e-5)
    placed = [
        [array[layout.block(rank)] for array, layout in zip(inputs, program.input_layouts, strict=True)]
        for rank in range(tp)
    ]
    local = [[_pad(x, i) for x, i in zip(rank, program.input_layouts, strict=True)] for rank in placed]
    for name in [row.name for row in PASSES if row.leaves in ("local", "fused")] + ["plan_memory"]:
        ranks = oracles.run_local_on_xla(seen[name], local)
        got = np.zeros_like(wanted)
        for rank, outputs in enumerate(ranks):
            block = program.output_layouts[0].block(rank)
            got[block] = outputs[0][tuple(slice(0, s.stop - s.start) for s in block)]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def _pad(array: np.ndarray, layout) -> np.ndarray:
    widths = [(0, local - have) for local, have in zip(layout.local_shape, array.shape, strict=True)]
    return np.pad(array, widths)


def test_dumps_numbered_files_that_run(tmp_path: Path) -> None:
    stages = parse_pipeline("canonicalize,autocast,shard{tp=2},fuse,plan_memory,schedule")
    for _ in range(2):
        run_pipeline(parse(TEXT), stages, debug=Debug(dump_dir=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlp", "mlp.1"]
    names = sorted(path.name for path in (tmp_path / "mlp").iterdir())
    assert names[0] == "00_input.mlir"
    assert names[1] == "01_canonicalize.mlir"
    assert names[-1] == "06_schedule.txt"
    inputs = oracles.random_inputs(TEXT, seed=1)
    text = (tmp_path / "mlp" / "01_canonicalize.mlir").read_text()
    np.testing.assert_allclose(
        oracles.run_on_xla(text, inputs)[0], oracles.run_on_xla(TEXT, inputs)[0], rtol=1e-6, atol=1e-6
    )
    for name in names[:-1]:
        assert parse((tmp_path / "mlp" / name).read_text()).operation.verify()


def _fake(name: str, run) -> Pass:
    return Pass(name=name, code=types.SimpleNamespace(run=run, Options=object), leaves="global")


def test_a_pass_that_breaks_the_module_or_its_level_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(module: ir.Module, options: object) -> None:
        with module.context:
            main(module).attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([], []))

    def adds_a_function(module: ir.Module, options: object) -> None:
        with module.context, ir.Location.unknown(), ir.InsertionPoint(module.body):
            func.FuncOp("other", ([], []), visibility="private")

    monkeypatch.setattr(pipeline, "PASSES", (_fake("breaks", breaks), _fake("adds", adds_a_function)))
    text = "func.func @main(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }"
    with pytest.raises(AssertionError, match="pass breaks left an invalid module"):
        run_pipeline(parse(text), [Stage(name="breaks", options=None)])
    run_pipeline(parse(text), [Stage(name="adds", options=None)])
    with pytest.raises(LevelError, match="after adds"):
        run_pipeline(parse(text), [Stage(name="adds", options=None)], debug=Debug(check_levels=True))


@pytest.mark.parametrize(("passes", "message"), [
    ("schedule", "no places in memory"),
    ("plan_memory{alignment_bytes=0}", "alignment_bytes=0, expected 1 or more"),
    ("canonicalize,shard{tp=4},overlap{instance=inf2.xlarge}", "core 3 does not exist"),
    ("canonicalize,shard{tp=4},fuse,order{instance=inf2.xlarge}", "core 2 does not exist"),
    ("canonicalize,shard{tp=4},fuse,plan_memory,schedule{instance=inf2.xlarge}", "core 2 does not exist"),
])  # fmt: skip
def test_refuses_what_does_not_fit_the_module(passes: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        run_pipeline(parse(TEXT), parse_pipeline(passes))


def test_nothing_follows_schedule() -> None:
    stages = parse_pipeline("canonicalize,shard,fuse,plan_memory,schedule,canonicalize")
    with pytest.raises(CompileError, match="cannot follow schedule"):
        run_pipeline(parse(TEXT), stages)
