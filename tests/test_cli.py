"""The command line: verbs, exit statuses, and that one bad file never costs the others their results."""

import io
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from hlo_passes.ir import parse
from neuronx.cli import main as cli

GOOD = """func.func @main() -> tensor<2xf32> {
  %0 = stablehlo.constant dense<[1.0, 2.0]> : tensor<2xf32>
  %1 = stablehlo.add %0, %0 : tensor<2xf32>
  %2 = stablehlo.constant dense<[2.0, 4.0]> : tensor<2xf32>
  stablehlo.custom_call @check.expect_eq(%1, %2) {has_side_effect = true}
    : (tensor<2xf32>, tensor<2xf32>) -> ()
  return %1 : tensor<2xf32>
}"""
FAILS = GOOD.replace("[2.0, 4.0]", "[2.0, 5.0]")
MALFORMED = "func.func @main() { this is not MLIR }"
CALLBACK = """func.func @main() -> tensor<2xf32> {
  %0 = stablehlo.constant dense<1.0> : tensor<2xf32>
  %1 = stablehlo.custom_call @xla_ffi_python_cpu_callback(%0) : (tensor<2xf32>) -> tensor<2xf32>
  return %1 : tensor<2xf32>
}"""
# XLA:CPU has no such target: the error comes from below the compiler.
UNKNOWN_TARGET = CALLBACK.replace("xla_ffi_python_cpu_callback", "nobody_registered_this")


def _call(*arguments: str) -> int:
    return cli.main(cli.parse_arguments(["neuronx", *arguments]))


def _write(directory: Path, **texts: str) -> list[str]:
    for name, text in texts.items():
        (directory / f"{name}.mlir").write_text(text)
    return [str(directory / f"{name}.mlir") for name in texts]


def test_warnings_are_told_without_our_code(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(cli.app, "run", lambda *_, **__: None)
    cli.run()
    assert warnings.formatwarning("odd degree", UserWarning, "api.py", 3) == "neuronx: odd degree\n"
    assert warnings.filters[-1][:3] == ("once", None, UserWarning)


def test_check_judges_every_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = _write(tmp_path, good=GOOD, fails=FAILS, malformed=MALFORMED, callback=CALLBACK,
                   unknown=UNKNOWN_TARGET, last=GOOD)  # fmt: skip
    missing = str(tmp_path / "missing.mlir")
    assert _call("run", "--check", *files, missing) == 2
    *failing, count = capfd.readouterr().out.strip().splitlines()
    assert count == "passed 2 of 7"
    assert [line.split(":")[0] for line in failing] == [files[1], files[2], files[3], files[4], missing]
    for line, reason in zip(
        failing, ["expected 5.0", "malformed", "callback", "", "cannot be read"], strict=True
    ):
        assert reason in line


@pytest.mark.parametrize(("texts", "status"), [((GOOD,), 0), ((GOOD, FAILS), 1), ((FAILS, MALFORMED), 2)])
def test_exit_status(tmp_path: Path, texts: tuple[str, ...], status: int) -> None:
    files = _write(tmp_path, **{f"f{i}": text for i, text in enumerate(texts)})
    assert _call("run", "--check", *files) == status


def test_a_file_without_checks_is_not_passed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = _write(tmp_path, empty="func.func @main() { return }")
    assert _call("run", "--check", *files) == 2
    assert "no check" in capfd.readouterr().out


def test_a_crash_costs_one_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuronx.cli import run

    monkeypatch.setattr(run, "_run_file", _crashes_on_bad)
    files = _write(tmp_path, a=GOOD, bad=GOOD, c=GOOD)
    assert _call("run", "--check", *files) == 2
    out = capfd.readouterr().out
    assert "ended abnormally" in out
    assert "passed 2 of 3" in out


def _crashes_on_bad(name: str, settings: object) -> object:
    from neuronx.cli import run

    if name.endswith("bad.mlir"):
        os.abort()
    return run._Outcome(status=0, text="")


@pytest.mark.parametrize("degree", [1, 4])
def test_run_prints_results(tmp_path: Path, capfd: pytest.CaptureFixture[str], degree: int) -> None:
    text = """func.func @main(%a: tensor<8x8xf32>, %b: tensor<8x8xf32>) -> tensor<8x8xf32> {
      %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0]
        : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
      return %0 : tensor<8x8xf32> }"""
    (file,) = _write(tmp_path, dot=text)
    assert _call("run", "--tp-degree", str(degree), "--seed", "5", file) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == [file, "result 0: float32[8, 8]"]
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal((8, 8)).astype(np.float32) for _ in range(2))
    got = np.fromstring(" ".join(lines[2:]).replace("[", "").replace("]", ""), sep=" ").reshape(8, 8)
    np.testing.assert_allclose(got, a @ b, rtol=1e-4, atol=1e-5)


def test_random_shardings_enter_the_program(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURONX_DUMP", str(tmp_path / "dump"))
    files = _write(tmp_path, good=GOOD, fails=FAILS)
    for seed in range(2):
        arguments = ("run", "--check", "--tp-degree", "4", "--shard", f"random:{seed}", *files)
        assert _call(*arguments) == 1
        assert capfd.readouterr().out.splitlines()[-1] == "passed 1 of 2"
    inputs = [path.read_text() for path in sorted(tmp_path.rglob("00_input.mlir"))]
    assert len(inputs) == 4
    assert all(text.count("sdy.sharding_constraint") == 2 for text in inputs)
    assert any('{"x"' in text or '{"y"' in text for text in inputs)


def test_random_shardings_keep_results(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = """func.func @main(%a: tensor<7x6xf32>, %b: tensor<6x5xf32>) -> tensor<7x5xf32> {
      %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0]
        : (tensor<7x6xf32>, tensor<6x5xf32>) -> tensor<7x5xf32>
      return %0 : tensor<7x5xf32> }"""
    (file,) = _write(tmp_path, dot=text)
    rng = np.random.default_rng(9)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((7, 6), (6, 5)))
    for degree in (3, 8):
        shard = ("--tp-degree", str(degree), "--shard", f"random:{degree}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # three is not a degree AWS documents
            assert _call("run", *shard, "--seed", "9", file) == 0
        lines = capfd.readouterr().out.splitlines()[2:]
        got = np.fromstring(" ".join(lines).replace("[", "").replace("]", ""), sep=" ").reshape(7, 5)
        np.testing.assert_allclose(got, a @ b, rtol=1e-4, atol=1e-5)


def test_opt_reads_files_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "func.func @f(%a: tensor<4xf32>) -> tensor<4xf32> { return %a : tensor<4xf32> }"
    (file,) = _write(tmp_path, f=text)
    assert _call("opt", "-p", "canonicalize", file) == 0
    from_file = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert _call("opt", "-p", "canonicalize", "-") == 0
    assert capsys.readouterr().out == from_file
    assert parse(from_file).operation.verify()


def test_opt_prints_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> { return %a : tensor<4xf32> }"
    (file,) = _write(tmp_path, f=text)
    assert _call("opt", "-p", "canonicalize,shard{tp=2},fuse,plan_memory,schedule", file) == 0
    assert "on 2 cores" in capsys.readouterr().out


def test_opt_explains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """func.func @main(%x: tensor<4x64xf32>, %w: tensor<64x128xf32>) -> tensor<4x128xf32> {
      %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
        : (tensor<4x64xf32>, tensor<64x128xf32>) -> tensor<4x128xf32>
      return %0 : tensor<4x128xf32>
    }"""
    (file,) = _write(tmp_path, f=text)
    assert _call("opt", "--explain", "-p", "canonicalize,shard{tp=2},fuse,plan_memory,schedule", file) == 0
    out = capsys.readouterr().out
    assert "prices of plans" in out and "collectives" in out and "program @" not in out
    clocked = {name: float(ms) for ms, name in re.findall(r"([\d.]+) ms  ([a-z_ ]+)", out)}
    assert clocked["whole"] <= clocked["weights"] == clocked["the plan that was kept"]
    assert _call("opt", "--explain", "-p", "canonicalize", file) == 2
    assert "let schedule be the last pass" in capsys.readouterr().err


def test_opt_writes_dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONX_DUMP", str(tmp_path / "dump"))
    monkeypatch.setenv("NEURONX_DEBUG", "1")
    (file,) = _write(tmp_path, f="func.func @main() { return }")
    assert _call("opt", "-p", "canonicalize", file) == 0
    assert (tmp_path / "dump" / "module" / "01_canonicalize.mlir").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("opt", "-p", "canonicalise", "x.mlir"), "did you mean 'canonicalize'"),
        (("opt", "-p", "canonicalize", "no_such_file.mlir"), "cannot be read"),
        (("opt", "-p", "canonicalize", sys.executable), "cannot be read: 'utf-8'"),
        (("run", "--tp-degree", "99", "x.mlir"), "99"),
        (("run", "--shard", "random", "x.mlir"), "expected random:SEED"),
        (("run", "--shard", "tp:3", "x.mlir"), "for example --shard random:7"),
    ],
)
def test_user_errors_have_status_two(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(*arguments) == 2
    assert message in capsys.readouterr().err


def test_the_script_itself(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "neuronx.cli.main"]
    (file,) = _write(tmp_path, f=MALFORMED)
    done = subprocess.run(
        [*command, "opt", "-p", "canonicalize", file], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "malformed" in done.stderr
    helped = subprocess.run([*command, "--help"], cwd=root, capture_output=True, text=True)
    assert all(verb.NAME in helped.stdout + helped.stderr for verb in cli.VERBS)


def test_an_interrupted_verb_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("neuronx.cli.hw.main", lambda args: signal.raise_signal(signal.SIGINT))
    # Where the tests run in the background of a shell, it lets them ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert _call("hw") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_no_crash() -> None:
    command = [sys.executable, "-m", "neuronx.cli.main", "hw"]
    running = subprocess.Popen(
        command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    running.stdout.close()
    said = running.stderr.read()
    running.stderr.close()
    assert (running.wait(), said) == (141, "")
