"""Programs of unknown sizes, StableHLO's own among them, run for a size that is given."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax import export

from distributed.executor import Executor
from distributed.runtime import Runtime
from hlo_passes import canonicalize
from hlo_passes.fix_sizes import fix_sizes
from hlo_passes.ir import ir, main, parse
from kernels.errors import CompileError
from neuronx.cli.main import main as run_cli
from neuronx.cli.main import parse_arguments
from neuronx.driver import CompileOptions, compile_module
from neuronx.inputs import random_inputs


def run(module, inputs, tp_degree=2):
    program = compile_module(module, CompileOptions(tp_degree=tp_degree)).program
    runtime = Runtime(program, Executor())
    outputs = runtime.run([runtime.place(n, x) for n, x in enumerate(inputs)])
    return [runtime.gather(n, x) for n, x in enumerate(outputs)]


@pytest.mark.parametrize("size", [1, 5])
def test_a_function_exported_for_all_sizes(size, rng):
    def fn(x, y):
        return jax.nn.softmax(x @ y.T) @ y, jnp.arange(x.shape[0]) * x.shape[0], x.reshape(-1, 2).sum(0)

    n, m = export.symbolic_shape("n, m")
    shapes = jax.ShapeDtypeStruct((n, 4), np.float32), jax.ShapeDtypeStruct((m, 4), np.float32)
    exported = export.export(jax.jit(fn))(*shapes)
    module = parse(exported.mlir_module())
    fix_sizes(module, size)
    x, y = rng.standard_normal((2, size, 4)).astype(np.float32)
    for got, wanted in zip(run(module, [x, y]), jax.jit(fn)(x, y), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


SIZE = 3


def check(path, rng):
    """Whether the program runs at the size; it then agrees with XLA:CPU on the module of that size."""
    module, other = (parse(path.read_text()) for _ in range(2))
    for one in (module, other):
        fix_sizes(one, SIZE)
    seed = int(rng.integers(1 << 30))
    try:
        canonicalize.run(other, canonicalize.Options())
    except CompileError as error:
        assert "limit index 6 is larger than dimension size 3" in str(error), path.name
        return False
    inputs = random_inputs(other, seed)
    for got, wanted in zip(run(module, inputs), oracles.run_on_xla(str(other), inputs), strict=True):
        kind = np.result_type(np.float64, wanted.dtype) if wanted.dtype.kind == "c" else np.float64
        np.testing.assert_allclose(got.astype(kind), wanted.astype(kind), 1e-2, 1e-2, err_msg=path.name)
    return True


def test_some_of_stablehlos_own(conformance, rng):
    paths = sorted((conformance / "stablehlo" / "testdata" / "dynamic").glob("*.mlir"))
    assert sum(check(paths[n], rng) for n in rng.choice(len(paths), 12, replace=False)) >= 11


@pytest.mark.slow
def test_all_of_stablehlos_own(conformance, rng):
    paths = sorted((conformance / "stablehlo" / "testdata" / "dynamic").glob("*.mlir"))
    ran = sum(check(path, rng) for path in paths)
    print(f"{ran} of {len(paths)} run at size {SIZE}")
    assert ran == 247  # one slices as far as 6


def test_modules_of_known_sizes_stay_as_they_are():
    text = "func.func @main(%a: tensor<2xf32>, %b: tensor<i32>) -> tensor<i32> { return %b : tensor<i32> }"
    module = parse(text)
    fix_sizes(module, 7)
    assert str(module) == str(parse(text))


def test_the_option(tmp_path, capsys):
    path = tmp_path / "any.mlir"
    path.write_text(
        "func.func @main(%n: tensor<i64>, %a: tensor<?x2xf32>) -> tensor<?x2xf32> {\n"
        "  %0 = stablehlo.tanh %a : tensor<?x2xf32>\n  return %0 : tensor<?x2xf32>\n}"
    )

    def verb(*argv):
        return run_cli(parse_arguments(["neuronx", "run", *argv, str(path)]))

    assert verb("--size", "3") == 0
    assert "result 0: float32[3, 2]" in capsys.readouterr().out
    assert verb() == 2
    assert re.search(r"argument 1 has the shape tensor<\?x2xf32>(.|\n)*--size", capsys.readouterr().err)
    module = parse(path.read_text())
    fix_sizes(module, 4)
    assert [str(argument.type) for argument in main(module).arguments] == ["tensor<i64>", "tensor<4x2xf32>"]
    assert isinstance(module, ir.Module)
