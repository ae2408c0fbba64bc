"""Bad input at the face of the compiler: each is an error that says what to do."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

import neuronx
from neuronx.cli.main import main, parse_arguments

X = np.ones((4, 8), np.float32)


def message(error) -> str:
    text = str(error.value)
    assert "fix:" in text, f"says nothing about what to do: {text}"
    return text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tp_degree": 25}, "tp_degree 25 is more than the 24 cores of inf2.48xlarge"),
        ({"tp_degree": 4, "instance": "inf2.xlarge"}, "more than the 2 cores of inf2.xlarge"),
        ({"tp_degree": 0}, "expected an integer from 1 to 24"),
        ({"tp_degree": 2.0}, "expected an integer"),
        ({"instance": "inf2.big"}, "unknown instance 'inf2.big'"),
        ({"auto_cast": "some"}, "unknown auto_cast: 'some'; there is none, matmult, all"),
        ({"auto_cast_type": "int8"}, "unknown auto_cast_type: 'int8'"),
    ],
)
def test_options_that_do_not_exist(options, said):
    with pytest.raises(neuronx.CompileError) as error:
        neuronx.compile(lambda x: x, **options)
    assert said in message(error)


def test_a_model_that_does_not_fit():
    weights = {"w": jax.ShapeDtypeStruct((100_000, 100_000), jnp.float32)}
    x = jax.ShapeDtypeStruct((1, 100_000), jnp.float32)
    lowered = neuronx.compile(lambda p, v: v @ p["w"], tp_degree=2).lower(weights, x)
    with pytest.raises(neuronx.OutOfDeviceMemoryError) as error:
        lowered.compile()
    text = message(error)
    for row in ("weights", "inputs", "temporaries", "collective buffers", "micro-code", "capacity"):
        assert row in text
    assert "tp_degree=4" in text


def test_a_type_the_device_does_not_have():
    x = np.ones(4, ml_dtypes.float8_e4m3fnuz)
    with pytest.raises(neuronx.CompileError) as error:
        neuronx.compile(lambda v: v.astype(jnp.float32))(x)
    assert "f8E4M3FNUZ" in message(error)


def test_wrong_shapes_types_and_trees():
    exe = neuronx.compile(lambda p, x: x @ p["w"]).lower({"w": np.ones((8, 3), np.float32)}, X).compile()
    w = np.ones((8, 3), np.float32)
    for args, said in [
        (({"w": w[:, :2]}, X), "args[0]['w'] is float32[8, 2], expected float32[8, 3]"),
        (({"w": w}, X.astype(np.int32)), "args[1] is int32[4, 8], expected float32[4, 8]"),
        (({"v": w}, X), "argument tree"),
        (({"w": w},), "argument tree"),
    ]:
        with pytest.raises(neuronx.CompileError) as error:
            exe(*args)
        assert said in message(error)


def test_an_unknown_level():
    exe = neuronx.compile(lambda x: x + 1).lower(X).compile()
    with pytest.raises(neuronx.CompileError) as error:
        exe.as_text(level="locl")
    assert "there is global, local, fused, planned, program" in message(error)
    assert "did you mean 'local'" in message(error)


def shell(*arguments) -> int:
    return main(parse_arguments(["neuronx", *arguments]))


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("canonicalise", "did you mean 'canonicalize'"),
        ("canonicalize,shard{cores=4}", "unknown option of shard: 'cores'"),
        ("shard{tp=four}", "expected int"),
        ("autocast{type=bf17}", "did you mean 'bf16'"),
        ("canonicalize shard", "cannot read the pass list"),
    ],
)
def test_unknown_passes_and_options(tmp_path, capsys, passes, said):
    path = tmp_path / "x.mlir"
    path.write_text("func.func @main(%x: tensor<f32>) -> tensor<f32> { return %x : tensor<f32> }")
    assert shell("opt", "-p", passes, str(path)) == 2
    assert said in capsys.readouterr().err


def test_malformed_stablehlo(tmp_path, capsys):
    path = tmp_path / "bad.mlir"
    path.write_text("module { func.func @main( }")
    assert shell("opt", "-p", "canonicalize", str(path)) == 2
    assert "bad.mlir is malformed" in capsys.readouterr().err


def test_an_unknown_model(capsys):
    assert shell("generate", "--model", "opt-9b") == 2
    assert "unknown model 'opt-9b'" in capsys.readouterr().err


def callback(x):
    return jax.pure_callback(lambda v: np.asarray(v) * 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def printing(x):
    jax.debug.print("{}", x)
    return x


@pytest.mark.parametrize("fn", [callback, printing])
def test_host_callbacks(fn):
    with pytest.raises(neuronx.CompileError) as error:
        neuronx.compile(fn)(X)
    assert "callback" in message(error) and "test_errors.py" in message(error)


def test_a_custom_call_that_the_host_does_not_know():
    def call(x):
        return jax.ffi.ffi_call("nobody", jax.ShapeDtypeStruct(x.shape, x.dtype))(x) + 1

    with pytest.raises(neuronx.CompileError) as error:
        neuronx.compile(call, tp_degree=2)(X)
    assert "nobody" in message(error) and "test_errors.py" in message(error)


def test_a_sharding_over_an_unknown_axis():
    with pytest.raises(neuronx.CompileError) as error:
        neuronx.compile(lambda x: x, tp_degree=2, in_shardings=PartitionSpec("rows"))(X)
    assert "axis 'rows'" in message(error) and "['tp']" in message(error)


def test_a_mesh_of_another_size_than_the_degree():
    sharding = NamedSharding(AbstractMesh((4,), ("x",)), PartitionSpec("x"))
    with pytest.raises(neuronx.CompileError) as error:
        neuronx.compile(lambda x: x, tp_degree=2, in_shardings=sharding)(X)
    assert "mesh of 4 cores" in message(error) and "tp_degree=4" in message(error)


def test_a_mesh_larger_than_the_instance():
    sharding = NamedSharding(AbstractMesh((4,), ("x",)), PartitionSpec("x"))
    with pytest.raises(neuronx.CompileError) as error:
        neuronx.compile(lambda x: x, instance="inf2.xlarge", in_shardings=sharding)(X)
    assert "more than the 2 cores" in message(error)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_a_jax_transformation_around_a_compiled_function(transform):
    with pytest.raises(neuronx.CompileError) as error:
        transform(neuronx.compile(lambda x: x.sum()))(X)
    assert "under a JAX transformation" in message(error)


def test_a_debug_level_that_is_no_number(monkeypatch):
    monkeypatch.setenv("NEURONX_DEBUG", "yes")
    with pytest.raises(neuronx.CompileError) as error:
        neuronx.compile(lambda x: x + 1)(X)
    assert "NEURONX_DEBUG" in message(error)
