"""Saved programs: the same bits in a new process, named errors for bad files, whole after a kill."""

import json
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
from kernels.work import Tensor
from neuronx import container, driver, fastest
from neuronx.records import decode, encode
from neuronx.tensors import pack_tensors, unpack_tensors

ROOT = Path(__file__).parent.parent


def mlp(params, x, *, scale):
    return jax.nn.gelu(x @ params["up"]) @ params["down"] * scale, {"sum": x.sum()}


@pytest.fixture
def compiled(rng):
    params = {
        "up": rng.standard_normal((16, 64)).astype(np.float32),
        "down": rng.standard_normal((64, 16)).astype(np.float32),
    }
    x = rng.standard_normal((8, 16)).astype(np.float32)
    exe = neuronx.compile(mlp, tp_degree=4).lower(params, x, scale=2.0).compile()
    return exe, params, x


def child(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        **options,
    )


LOAD = """
import sys, numpy as np
import neuronx
from hlo_passes import pipeline
def forbidden(*_, **__): raise SystemExit("a pass ran")
pipeline.run_pipeline = forbidden
import neuronx.driver
neuronx.driver.run_pipeline = forbidden
exe = neuronx.load(sys.argv[1])
x = np.load(sys.argv[2])
y, more = exe(*exe.weights, x, scale=2.0)
np.savez(sys.argv[3], y=y, sum=more["sum"])
assert exe.cost_analysis()["latency_s"] > 0 and exe.memory_analysis() is not None
assert "all_reduce" in exe.as_text("local") and "all_reduce" in exe.as_text()
assert exe.profile().summary()
"""


def test_the_same_bits_in_a_new_process_without_a_pass(compiled, tmp_path):
    exe, params, x = compiled
    exe.save(tmp_path / "mlp.neuronx", weights=(params,))
    np.save(tmp_path / "x.npy", x)
    done = child(LOAD, tmp_path / "mlp.neuronx", tmp_path / "x.npy", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    y, more = exe(params, x, scale=2.0)
    with np.load(tmp_path / "out.npz") as found:
        assert found["y"].tobytes() == np.asarray(y).tobytes()
        assert found["sum"].tobytes() == np.asarray(more["sum"]).tobytes()


def test_what_is_read_is_what_was_saved(compiled, tmp_path):
    exe, _, _ = compiled
    exe.save(tmp_path / "mlp.neuronx")
    again = neuronx.load(tmp_path / "mlp.neuronx")
    assert again.program == exe.program and again.weights == ()
    assert (again.in_tree, again.out_tree) == (exe.in_tree, exe.out_tree)
    assert again.cost_analysis() == exe.cost_analysis()
    assert again.memory_analysis() == exe.memory_analysis()
    for level in ("global", "local", "fused", "planned", "program"):
        assert again.as_text(level) == exe.as_text(level)


def test_a_record_used_often_is_written_once_and_read_as_one():
    tensor, again = (Tensor(shape=(2, 3), dtype="f32") for _ in range(2))
    value = {"pair": (tensor, (tensor, again)), "plain": ((), (1, (2.5, None)), "x"), "none": None}
    written = encode(value)
    assert len(written["records"]) == 2
    found = decode(json.loads(json.dumps(written)))
    assert found == value and found["pair"][0] is found["pair"][1][0]


def test_saving_compiles_nothing_and_a_loaded_program_explains_itself(compiled, tmp_path, monkeypatch):
    exe, _, _ = compiled
    with monkeypatch.context() as patched:
        for module in (driver, fastest):
            patched.setattr(module, "run_pipeline", lambda *_, **__: pytest.fail("a pass ran"))
        exe.save(tmp_path / "mlp.neuronx")
    text = neuronx.load(tmp_path / "mlp.neuronx").explain()
    assert text == exe.explain() and "none was clocked" not in text


def test_a_model_of_folded_layers_is_saved_without_a_pass_and_has_its_levels(tmp_path, monkeypatch):
    def layers(weights, ids):
        x = weights[0][ids]  # a gather has attributes whose default values the portable form leaves out
        for w in weights:
            x = x + jnp.tanh(x @ w)
        return x, 2.0

    shapes = [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 8, jax.ShapeDtypeStruct((8,), jnp.int32)
    exe = neuronx.compile(layers, tp_degree=2).lower(*shapes).compile()
    with monkeypatch.context() as patched:
        patched.setattr(driver, "run_pipeline", lambda *_, **__: pytest.fail("a pass ran"))
        exe.save(tmp_path / "layers.neuronx")
        again = neuronx.load(tmp_path / "layers.neuronx")
    assert again.as_text("local") == exe.as_text("local") and again.as_text("fused") == exe.as_text("fused")
    given = jax.tree.map(lambda one: jnp.ones(one.shape, one.dtype), shapes)
    assert jax.tree.map(jax.typeof, again(*given)) == jax.tree.map(jax.typeof, jax.jit(layers)(*given))
    again.save(tmp_path / "again.neuronx")
    assert neuronx.load(tmp_path / "again.neuronx").as_text("local") == exe.as_text("local")


def test_a_missing_directory_is_named_as_the_user_named_it(compiled, tmp_path):
    path = tmp_path / "missing" / "mlp.neuronx"
    with pytest.raises(FileNotFoundError) as raised:
        compiled[0].save(path)
    assert raised.value.filename == str(path)


def test_constants_keys_donation_and_loops(rng, tmp_path):
    big = jnp.asarray(rng.standard_normal((64, 64)).astype(np.float32))

    def step(cache, key, n):
        noise = jax.random.normal(key, cache.shape, jnp.bfloat16)
        grown = jax.lax.fori_loop(0, n, lambda _, c: c @ big.astype(c.dtype) / 8, cache)
        return grown + noise, jax.random.split(key)

    cache = jnp.asarray(rng.standard_normal((4, 64)), jnp.bfloat16)
    key = jax.random.key(3)
    exe = neuronx.compile(step, tp_degree=2, donate_argnums=0).lower(cache, key, 3).compile()
    exe.save(tmp_path / "a")
    exe.save(tmp_path / "b", weights=(np.asarray(cache), key))
    results = []
    for one in (exe, neuronx.load(tmp_path / "a"), neuronx.load(tmp_path / "b")):
        weights = one.weights or (cache + 0, key)
        grown, keys = one(*weights, 3)
        results.append((np.asarray(grown).tobytes(), np.asarray(jax.random.key_data(keys)).tobytes()))
    assert results[0] == results[1] == results[2]


def test_another_instance(compiled, tmp_path):
    exe, params, x = compiled
    exe.save(tmp_path / "m")
    with pytest.raises(
        neuronx.CompileError, match=r"for 4 of the 24 cores of inf2.48xlarge, and inf2.xlarge has 2"
    ):
        neuronx.load(tmp_path / "m", instance="inf2.xlarge")
    with pytest.raises(neuronx.CompileError, match="recompile=True"):
        neuronx.load(tmp_path / "m", instance="inf2.24xlarge")
    again = neuronx.load(tmp_path / "m", instance="inf2.24xlarge", recompile=True)
    got, wanted = again(params, x, scale=2.0)[0], exe(params, x, scale=2.0)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_weights_are_checked(compiled, tmp_path):
    exe, params, _ = compiled
    with pytest.raises(neuronx.CompileError, match="the first arguments are"):
        exe.save(tmp_path / "m", weights=(params["up"],))
    with pytest.raises(
        neuronx.CompileError, match=r"args\[0\]\['down'\] is .*\[16, 64\], expected .*\[64, 16\]"
    ):
        exe.save(tmp_path / "m", weights=({"up": params["up"], "down": params["up"]},))
    assert not list(tmp_path.iterdir())


def test_containers_of_the_users_own_are_refused(tmp_path):

    jax.tree_util.register_pytree_node(Pair, lambda p: ((p.a,), None), lambda _, c: Pair(*c))
    exe = neuronx.compile(lambda p: p.a + 1).lower(Pair(np.ones(3, np.float32))).compile()
    with pytest.raises(neuronx.CompileError, match="containers of a kind that cannot be saved"):
        exe.save(tmp_path / "m")


class Pair:
    def __init__(self, a):
        self.a = a


# Bad files.


@pytest.fixture
def file(compiled, tmp_path):
    exe, params, _ = compiled
    exe.save(tmp_path / "m.neuronx", weights=(params,))
    return tmp_path / "m.neuronx"


def test_every_truncation_is_named(file, rng):
    content = file.read_bytes()
    for size in [0, 1, 7, 8, 20, 51, 52, 53, len(content) - 1, *rng.integers(0, len(content), 10)]:
        file.write_bytes(content[:size])
        with pytest.raises(neuronx.SavedFileError) as error:
            neuronx.load(file)
        expected = container.TruncatedFileError if size else container.ForeignFileError
        assert type(error.value) is expected and str(file) in str(error.value)


def test_every_flipped_bit_is_found(file, rng):
    content = file.read_bytes()
    for at in [*range(52), *rng.integers(52, len(content), 30)]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(neuronx.SavedFileError):
            neuronx.load(file)
    file.write_bytes(content + b"x")
    with pytest.raises(container.CorruptFileError):
        neuronx.load(file)


def test_other_versions_and_foreign_files(file, tmp_path):
    content = bytearray(file.read_bytes())
    ours = container.FORMAT_VERSION
    content[8:12] = struct.pack("<I", ours + 1)
    file.write_bytes(content)
    with pytest.raises(container.NewerFileError, match=f"version {ours + 1}, this package reads {ours}"):
        neuronx.load(file)
    content[8:12] = struct.pack("<I", ours - 1)
    file.write_bytes(content)
    with pytest.raises(container.CorruptFileError, match="or older than this package"):
        neuronx.load(file)
    for foreign in (b"PK\x03\x04" * 30, b"\x80\x04pickle", b"{}", os.urandom(1000)):
        file.write_bytes(foreign)
        with pytest.raises(container.ForeignFileError, match="is not a saved program"):
            neuronx.load(file)
    with pytest.raises(FileNotFoundError):
        neuronx.load(tmp_path / "nothing")


def test_nothing_in_the_package_pickles():
    for path in (ROOT / "neuronx").rglob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text and "allow_pickle=True" not in text


# A kill.


def run_and_kill(program, path, rng):
    """Kills ``program`` some time after its first line, most likely while it writes ``path``."""
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(float(rng.uniform(0, 0.05)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


SAVE_FOREVER = """
import sys
from neuronx.container import write_sections
number = 0
while True:
    number += 1
    write_sections(sys.argv[1], {"a": bytes([number % 256]) * 3_000_000, "b": bytes([number % 256])})
    print(number, flush=True)
"""


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, rng):
    path = tmp_path / "m"
    for _ in range(6):
        run_and_kill(SAVE_FOREVER, path, rng)
        sections = container.read_sections(path)
        assert bytes(sections["a"]) == bytes(sections["b"]) * 3_000_000


SAVE_PROGRAMS = """
import sys
import numpy as np
import neuronx
weights = np.zeros((512, 1024), np.float32)
exe = neuronx.compile(lambda w, x: x @ w).lower(weights, np.zeros((2, 512), np.float32)).compile()
for number in range(10**6):
    weights[:] = number
    exe.save(sys.argv[1], weights=(weights,))
    print(number, flush=True)
"""


def test_a_kill_while_a_program_is_saved(tmp_path, rng):
    """What is there afterwards loads and runs, with the weights of one save."""
    path = tmp_path / "m.neuronx"
    for _ in range(2):
        run_and_kill(SAVE_PROGRAMS, path, rng)
        exe = neuronx.load(path)
        (weights,) = exe.weights
        assert (weights == weights[0, 0]).all()
        np.testing.assert_allclose(
            exe(weights, np.ones((2, 512), np.float32)), 512 * weights[0, 0], rtol=1e-5
        )


def test_a_failed_write_leaves_the_old_file(tmp_path):
    container.write_sections(tmp_path / "m", {"a": b"old"})
    with pytest.raises(TypeError):
        container.write_sections(tmp_path / "m", {"a": b"new", "b": None})
    assert bytes(container.read_sections(tmp_path / "m")["a"]) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# The layout of weights.


def test_tensors_are_those_of_the_safetensors_package(rng, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = {
        "a": rng.standard_normal((3, 4)).astype(np.float32),
        "b": rng.integers(0, 9, (2,)).astype(np.int32),
        "c": np.array(True),
        "d": np.zeros((0, 3), np.float16),
    }
    for name, tensor in safetensors.load(pack_tensors(tensors)).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    for name, tensor in unpack_tensors(safetensors.save(tensors)).items():
        np.testing.assert_array_equal(tensor, tensors[name])
        assert tensor.dtype == tensors[name].dtype and not tensor.flags.writeable


@pytest.mark.parametrize(
    "name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "bool", "int8", "uint32", "complex64"]
)
def test_types_come_back(name, rng):
    tensor = np.asarray(rng.integers(0, 2, (5, 2))).astype(jnp.dtype(name))
    found = unpack_tensors(pack_tensors({"x": tensor}))["x"]
    assert found.dtype == tensor.dtype and found.tobytes() == tensor.tobytes()
    header = pack_tensors({"x": tensor})
    (size,) = struct.unpack_from("<Q", header)
    assert json.loads(header[8 : 8 + size])["x"]["data_offsets"] == [0, tensor.nbytes]


def test_types_the_format_lacks_are_refused():
    with pytest.raises(neuronx.CompileError, match="x is int4"):
        pack_tensors({"x": np.zeros(2, jnp.int4)})
