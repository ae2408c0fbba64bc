"""The compile cache: found again by other processes, bounded, whole after a kill, damage named and mended."""

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neuronx
from distributed import executor
from neuronx import cache, driver, executables
from neuronx.cli import main as cli
from neuronx.container import FORMAT_VERSION, write_sections

ROOT = Path(__file__).parent.parent


def mlp(w, x):
    return jnp.tanh(x @ w) @ w.T


def compiled(fn=mlp, **options):
    w, x = jax.ShapeDtypeStruct((16, 64), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.float32)
    return neuronx.compile(fn, **{"tp_degree": 4, **options}).lower(w, x).compile()


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """An empty cache that keeps whatever is compiled."""
    monkeypatch.setenv("NEURONX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_LEAST_S", 0.0)
    return tmp_path / "cache"


@pytest.fixture
def runs(monkeypatch):
    """Counts how often the passes run."""
    count = []

    def counted(*args, **kwargs):
        count.append(1)
        return original(*args, **kwargs)

    original = driver.run_pipeline
    monkeypatch.setattr(driver, "run_pipeline", counted)
    return count


def files(directory):
    return sorted(directory.glob(f"*{cache.SUFFIX}"))


@pytest.mark.parametrize("objective", ["memory", "time"])
def test_folded_layers_are_found_again_and_explained(directory, runs, objective):
    def layers(weights, x):
        for up, down in weights:
            x = x + jnp.tanh(x @ up) @ down
        return x

    shapes = [[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 256), (256, 64))]] * 8
    lower = neuronx.compile(layers, tp_degree=2, objective=objective).lower
    first = lower(shapes, jax.ShapeDtypeStruct((8, 64), jnp.float32)).compile()
    passed = len(runs)
    second = lower(shapes, jax.ShapeDtypeStruct((8, 64), jnp.float32)).compile()
    assert len(runs) == passed and second.program == first.program
    assert second.explain() == first.explain() and second.as_text("local") == first.as_text("local")
    assert len(runs) == passed + 2


def test_a_second_compilation_runs_no_pass_and_is_the_same(directory, runs, rng):
    first, second = compiled(), compiled()
    assert len(runs) == 1 and len(files(directory)) == 1
    for level in driver.LEVELS:
        assert first.as_text(level) == second.as_text(level)
    assert first.cost_analysis() == second.cost_analysis()
    assert first.memory_analysis() == second.memory_analysis()
    w = rng.standard_normal((16, 64)).astype(np.float32)
    x = rng.standard_normal((8, 16)).astype(np.float32)
    assert np.array_equal(first(w, x), second(w, x))


def test_whatever_changes_the_program_is_another_entry(directory, runs):
    def other(w, x):
        return jnp.tanh(x @ w) @ w.T + 1

    compiled()
    compiled(tp_degree=2)
    compiled(instance="inf2.24xlarge")
    compiled(auto_cast="all")
    compiled(era="ideal")
    compiled(other)
    assert len(runs) == len(files(directory)) == 6


def lines(exe):
    return {kernel["location"] for kernel in exe.profile().to_json()["kernels"]}


def test_lines_are_those_of_the_program_that_asked(directory, runs):
    """Another caller of the same model finds its entry, a model that has moved in its file does not."""
    first = compiled()
    second = compiled()
    assert len(runs) == 1 and lines(first) == lines(second)
    for number in (1, 5):
        moved = {}
        exec(compile("\n" * (number - 1) + "def fn(w, x): return (x @ w) @ w.T", "moved.py", "exec"), moved)
        assert lines(compiled(moved["fn"])) == {f"moved.py:{number}"}
    assert len(runs) == 3


def test_a_notebook_cell_is_found_again_by_its_text(directory, runs):
    """IPython's file of a cell names the process or counts its runs, and ends with a digest of its text."""
    for name in (
        "/tmp/ipykernel_12/345.py",
        "/tmp/ipykernel_67/345.py",
        "<ipython-input-1-abc>",
        "<ipython-input-9-abc>",
        "/tmp/ipykernel_12/346.py",
    ):
        cell = {}
        exec(compile("def fn(w, x): return (x @ w) @ w.T", name, "exec"), cell)
        compiled(cell["fn"])
    assert len(runs) == len(files(directory)) == 3


def test_another_compiler_or_hardware_table_finds_nothing(directory, runs, monkeypatch):
    compiled()
    monkeypatch.setattr(cache, "_compiler", lambda: "another digest")
    compiled()
    assert len(runs) == 2


def _flip(content):
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "checksum"),
        (lambda content: content[: len(content) // 2], "ends after"),
        (lambda content: b"something else", "not a saved program"),
        (lambda content: content[:8] + struct.pack("<I", FORMAT_VERSION + 1) + content[12:], "version"),
        (lambda content: b"", "not a saved program"),
    ],
    ids=["corrupt", "truncated", "foreign", "newer", "empty"],
)
def test_a_damaged_entry_is_reported_and_compiled_again(damage, message, directory, runs):
    text = compiled().as_text()
    [path] = files(directory)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    with pytest.warns(UserWarning, match=message):
        assert compiled().as_text() == text
    assert len(runs) == 2 and path.read_bytes() == good
    compiled()
    assert len(runs) == 2


def test_what_was_not_used_for_longest_goes(directory, monkeypatch):
    compiled(tp_degree=2)
    [read_again] = files(directory)
    compiled(tp_degree=8)
    [forgotten] = set(files(directory)) - {read_again}
    os.utime(read_again, (1, 1))
    os.utime(forgotten, (2, 2))
    compiled(tp_degree=2)
    sizes = [path.stat().st_size for path in files(directory)]
    monkeypatch.setattr(cache, "LIMIT_BYTES", sum(sizes) + min(sizes) // 2)
    compiled(tp_degree=4)
    assert len(files(directory)) == 2 and read_again.exists() and not forgotten.exists()


def test_leftovers_of_killed_writers_go(directory):
    directory.mkdir()
    old, new = (directory / f".a{cache.SUFFIX}.{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1, 1))
    compiled()
    assert not old.exists() and new.exists()


def test_any_name_of_a_function_is_a_name_of_a_file(directory, runs):
    def odd(w, x):
        return x @ w

    odd.__name__ = "../a b/" + "c" * 300
    compiled(odd)
    compiled(odd)
    assert len(runs) == 1 and len(files(directory)) == 1


def test_checks_and_dumps_run_the_passes(directory, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("NEURONX_DUMP", str(tmp_path / "dump"))
    compiled()
    compiled()
    assert len(runs) == 2 and not files(directory)


def test_short_compilations_are_not_kept(directory, monkeypatch):
    monkeypatch.setattr(cache, "_LEAST_S", 1e9)
    compiled()
    assert not files(directory)


def test_a_directory_that_cannot_be_written_is_reported(directory):
    directory.parent.joinpath("cache").write_text("a file")
    with pytest.warns(UserWarning, match="cannot be"):
        compiled()


def test_the_verb_lists_and_clears(directory, capsys):
    compiled()
    compiled(tp_degree=2)
    for arguments, expected in ((), "holds 2"), (("--clear",), "removed 2"), ((), "holds 0"):
        args = cli.parse_arguments(["neuronx", "cache", *arguments])
        assert cli.main(args) == 0
        printed = capsys.readouterr().out
        assert expected in printed and ("MB  mlp" in printed) == (expected == "holds 2")


def test_the_verb_says_that_the_cache_is_off(monkeypatch, capsys):
    monkeypatch.setenv("NEURONX_CACHE_DIR", "")
    assert cli.main(cli.parse_arguments(["neuronx", "cache"])) == 0
    assert "off" in capsys.readouterr().out


NEXT = """module { func.func @main(%i: tensor<i32>) -> tensor<i32> {
  %one = stablehlo.constant dense<1> : tensor<i32>
  %b = stablehlo.add %i, %one : tensor<i32>
  return %b : tensor<i32> } }"""


@pytest.fixture
def segment(directory, monkeypatch):
    """Runs a segment in an executor that has compiled nothing yet; its files, and what it read of them."""
    monkeypatch.setattr(executor, "_KEPT_FROM_S", 0.0)
    found = []

    class Watched(executables.Executables):
        def read(self, text):
            found.append(super().read(text))
            return found[-1]

    def run(text=NEXT):
        fresh = executor.Executor(kept=Watched())
        [result] = fresh.load(text)([fresh.to_device(np.int32(41))])
        assert int(fresh.to_host(result)) == (42 if text == NEXT else 43)
        return found[-1]

    return run


def test_an_executable_is_found_again(directory, segment):
    assert segment() is None and len(files(directory)) == 1
    content = [path.read_bytes() for path in files(directory)]
    assert segment() is not None and [path.read_bytes() for path in files(directory)] == content
    assert segment(NEXT.replace("dense<1>", "dense<2>")) is None and len(files(directory)) == 2


def test_an_executable_is_for_one_cpu_and_the_flags_of_xla(directory, segment, monkeypatch):
    segment()
    with monkeypatch.context() as patched:
        patched.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_fast_math=false")
        assert segment() is None
    monkeypatch.setattr(executables, "_cpu", lambda: "another")
    assert segment() is None and len(files(directory)) == 3
    monkeypatch.setattr(executables, "_cpu", lambda: None)
    assert segment() is None and len(files(directory)) == 3


def test_an_executable_that_xla_refuses_is_reported_and_compiled_again(directory, segment):
    segment()
    [path] = files(directory)
    write_sections(path, {"executable": b"no executable"})
    with pytest.warns(UserWarning, match="refuses a kept executable"):
        segment()
    assert len(segment()) > 100


DECODE = """
import hashlib
import jax.numpy as jnp, numpy as np
import neuronx
from distributed import executor
from neuronx import cache
cache._LEAST_S = executor._KEPT_FROM_S = 0.0
w = jnp.asarray(np.random.default_rng(0).standard_normal((256, 512)), jnp.bfloat16)
fn = neuronx.compile(lambda w, x: jnp.tanh(x @ w) @ w.T, tp_degree=2)
print(hashlib.sha256(np.asarray(fn(w, w[:1, :256])).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_runs_kept_executables_with_host_kernels_to_the_same_bits(directory):
    asked = [sys.executable, "-W", "error", "-c", DECODE]
    found = []
    for _ in range(2):
        digest = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found.append((digest, {path.name for path in files(directory)}))
    assert found[0] == found[1] and any("segment" in name for name in found[0][1])


HAMMER = """
import sys, time
import jax, jax.numpy as jnp
import neuronx
from neuronx import cache
cache._LEAST_S = 0.0
cache.LIMIT_BYTES = int(sys.argv[1])
x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
fns = [lambda x, n=n: jnp.tanh(x) * n for n in range(5)]
texts = [neuronx.compile(fn, tp_degree=2).lower(x).compile().as_text() for fn in fns]
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    for fn, text in zip(fns, texts):
        assert neuronx.compile(fn, tp_degree=2).lower(x).compile().as_text() == text
"""


def hammer(limit, seconds):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", HAMMER, str(limit), str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_share_one_cache_that_is_too_small(directory):
    """Each evicts what the other reads and writes; every program is right and nothing is warned of."""
    compiled()
    limit = 2 * files(directory)[0].stat().st_size
    for process in [hammer(limit, 3) for _ in range(2)]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert sum(path.stat().st_size for path in files(directory)) <= 2 * limit
    for path in files(directory):
        cache.read_sections(path)


def test_a_kill_leaves_only_whole_entries(directory, rng):
    for _ in range(2):
        process = hammer(1, 60)  # nothing fits, so that every compilation writes
        process.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.2)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in files(directory):
            cache.read_sections(path)
