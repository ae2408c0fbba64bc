"""Pass autocast: the device's arithmetic against float64 rounded where the device rounds."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import oracles
import pytest

from hlo_passes import autocast, canonicalize
from hlo_passes.ir import main, parse

MODES = ("none", "matmult", "all")
TYPES = ("bf16", "fp16", "tf32", "fp8_e4m3")
NUMPY = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp8_e4m3": ml_dtypes.float8_e4m3}


def _cast(text: str, mode: str = "none", type_: str = "bf16") -> str:
    module = parse(text)
    canonicalize.run(module, canonicalize.Options())
    before = str(main(module).type)
    autocast.run(module, autocast.Options(mode=mode, type=type_))
    assert module.operation.verify()
    assert str(main(module).type) == before
    return str(module)


def _rng() -> np.random.Generator:
    return np.random.default_rng()


def _tf32(x: np.ndarray) -> np.ndarray:
    """f32 rounded to 10 mantissa bits, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits += 0xFFF + ((bits >> 13) & 1)
    return (bits & ~np.uint64(0x1FFF)).astype(np.uint32).view(np.float32)


def _narrow(x: np.ndarray, type_: str) -> np.ndarray:
    return _tf32(x) if type_ == "tf32" else x.astype(NUMPY[type_]).astype(np.float32)


def _dot(element: str, result: str, m: int = 8, k: int = 256, n: int = 16) -> str:
    lhs, rhs, out = f"tensor<{m}x{k}x{element}>", f"tensor<{k}x{n}x{element}>", f"tensor<{m}x{n}x{result}>"
    return f"""
    func.func @main(%a: {lhs}, %b: {rhs}) -> {out} {{
      %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] : ({lhs}, {rhs}) -> {out}
      return %0 : {out}
    }}"""


@pytest.mark.parametrize(
    ("element", "epsilon", "tiny"),
    [("bf16", 2.0**-8, 0.0), ("f16", 2.0**-11, 2.0**-25), ("f8E4M3", 2.0**-4, 2.0**-10)],
)
def test_low_precision_products_round_once(element: str, epsilon: float, tiny: float) -> None:
    text = _dot(element, element)
    a, b = (0.25 * x.astype(np.float32) for x in oracles.random_inputs(text, int(_rng().integers(1 << 30))))
    narrow = oracles.random_inputs(text, 0)[0].dtype
    a, b = a.astype(narrow), b.astype(narrow)
    (got,) = oracles.run_on_xla(_cast(text), [a, b])
    exact = a.astype(np.float64) @ b.astype(np.float64)
    # One rounding to the type (half a step, of the subnormals too), and the few of a sum in f32.
    error = np.abs(got.astype(np.float64) - exact)
    assert (error <= np.maximum(np.abs(exact) * epsilon * 1.001, tiny) + 256 * 2.0**-24).all()


def test_f32_stays_as_it_is_under_none() -> None:
    text = _dot("f32", "f32")
    module = parse(text)
    canonicalize.run(module, canonicalize.Options())
    assert _cast(text) == str(module)


@pytest.mark.parametrize("element", ["i8", "i32", "f64", "complex<f32>"])
@pytest.mark.parametrize("mode", MODES)
def test_other_products_stay_as_they_are(element: str, mode: str) -> None:
    text = _dot(element, element)
    assert _cast(text, mode) == _cast(text, "none")


@pytest.mark.parametrize("type_", TYPES)
def test_matmult_rounds_the_operands_only(type_: str) -> None:
    text = _dot("f32", "f32")
    a, b = oracles.random_inputs(text, int(_rng().integers(1 << 30)))
    (got,) = oracles.run_on_xla(_cast(text, "matmult", type_), [a, b])
    exact = _narrow(a, type_).astype(np.float64) @ _narrow(b, type_).astype(np.float64)
    bound = 256 * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b))
    assert (np.abs(got - exact) <= bound).all()
    assert np.abs(got - a.astype(np.float64) @ b).max() > bound.max(), "the operands were not rounded"


@pytest.mark.parametrize("mode", ["matmult", "all"])
def test_matmult_leaves_other_ops(mode: str) -> None:
    text = """func.func @main(%a: tensor<64xf32>) -> tensor<64xf32> {
      %0 = stablehlo.multiply %a, %a : tensor<64xf32>
      return %0 : tensor<64xf32> }"""
    after = _cast(text, mode)
    assert ("bf16" in after) == (mode == "all")


@pytest.mark.parametrize("type_", TYPES)
def test_all_rounds_each_op(type_: str) -> None:
    text = """func.func @main(%a: tensor<64xf32>, %b: tensor<64xf32>) -> tensor<64xf32> {
      %0 = stablehlo.multiply %a, %b : tensor<64xf32>
      %1 = stablehlo.add %0, %a : tensor<64xf32>
      return %1 : tensor<64xf32> }"""
    a, b = oracles.random_inputs(text, int(_rng().integers(1 << 30)))
    (got,) = oracles.run_on_xla(_cast(text, "all", type_), [a, b])
    x, y = _narrow(a, type_), _narrow(b, type_)
    if type_ == "tf32":
        np.testing.assert_array_equal(got, _tf32(x * y) + x)
    else:
        np.testing.assert_array_equal(got, _narrow(_narrow(x * y, type_) + x, type_))


def test_all_keeps_moved_values_narrow() -> None:
    text = """func.func @main(%a: tensor<8x16xf32>) -> tensor<16x8xf32> {
      %0 = stablehlo.negate %a : tensor<8x16xf32>
      %1 = stablehlo.transpose %0, dims = [1, 0] : (tensor<8x16xf32>) -> tensor<16x8xf32>
      %2 = stablehlo.tanh %1 : tensor<16x8xf32>
      return %2 : tensor<16x8xf32> }"""
    assert _cast(text, "all").count("stablehlo.convert") == 2


def test_all_takes_back_a_cast_of_the_program() -> None:
    text = """func.func @main(%a: tensor<64xf32>, %b: tensor<64xbf16>) -> tensor<64xbf16> {
      %0 = stablehlo.negate %a : tensor<64xf32>
      %1 = stablehlo.convert %0 : (tensor<64xf32>) -> tensor<64xbf16>
      %2 = stablehlo.add %1, %b : tensor<64xbf16>
      return %2 : tensor<64xbf16> }"""
    # What is left is the cast of the argument.
    assert _cast(text, "all").count("stablehlo.convert") == 1


@pytest.mark.parametrize("reducer", ["add", "multiply"])
@pytest.mark.parametrize("element", ["bf16", "f16"])
def test_low_precision_sums_accumulate_in_f32(reducer: str, element: str) -> None:
    start = {"add": "0.0", "multiply": "1.0"}[reducer]
    text = f"""
    func.func @main(%a: tensor<4x512x{element}>) -> tensor<4x{element}> {{
      %c = stablehlo.constant dense<{start}> : tensor<{element}>
      %0 = stablehlo.reduce(%a init: %c) applies stablehlo.{reducer} across dimensions = [1]
        : (tensor<4x512x{element}>, tensor<{element}>) -> tensor<4x{element}>
      return %0 : tensor<4x{element}> }}"""
    (a,) = oracles.random_inputs(text, 0)
    near_one = {
        "add": _rng().standard_normal(a.shape),
        "multiply": 1 + 0.02 * _rng().standard_normal(a.shape),
    }
    a = near_one[reducer].astype(a.dtype)
    (got,) = oracles.run_on_xla(_cast(text), [a])
    wide = a.astype(np.float64)
    exact = wide.sum(1) if reducer == "add" else wide.prod(1)
    slack = 2.0**-24 * 512 * (np.abs(wide).sum(1) if reducer == "add" else np.abs(exact))
    below, above = ((exact - slack).astype(a.dtype), (exact + slack).astype(a.dtype))
    assert ((below <= got) & (got <= above)).all()


def test_windowed_sums_accumulate_in_f32() -> None:
    text = (
        jax.jit(lambda x: jnp.cumsum(x, dtype=jnp.bfloat16))
        .lower(np.zeros(300, ml_dtypes.bfloat16))
        .as_text()
    )
    assert "reduce_window" in text
    x = _rng().standard_normal(300).astype(ml_dtypes.bfloat16)
    (got,) = oracles.run_on_xla(_cast(text), [x])
    exact = np.cumsum(x.astype(np.float64))
    assert (np.abs(got.astype(np.float64) - exact) <= np.abs(exact) * 2.0**-8 * 1.001 + 1e-3).all()


def test_a_body_of_several_ops_and_operands() -> None:
    text = """
    func.func @main(%a: tensor<64xbf16>, %b: tensor<64xf32>) -> (tensor<bf16>, tensor<f32>) {
      %c = stablehlo.constant dense<0.0> : tensor<bf16>
      %d = stablehlo.constant dense<0.0> : tensor<f32>
      %0:2 = stablehlo.reduce(%a init: %c), (%b init: %d) across dimensions = [0]
        : (tensor<64xbf16>, tensor<64xf32>, tensor<bf16>, tensor<f32>) -> (tensor<bf16>, tensor<f32>)
       reducer(%x: tensor<bf16>, %y: tensor<bf16>) (%z: tensor<f32>, %w: tensor<f32>) {
        %1 = stablehlo.add %x, %y : tensor<bf16>
        %2 = stablehlo.maximum %z, %w : tensor<f32>
        stablehlo.return %1, %2 : tensor<bf16>, tensor<f32>
      }
      return %0#0, %0#1 : tensor<bf16>, tensor<f32> }"""
    a = _rng().standard_normal(64).astype(ml_dtypes.bfloat16)
    b = _rng().standard_normal(64).astype(np.float32)
    total, largest = oracles.run_on_xla(_cast(text), [a, b])
    np.testing.assert_allclose(float(total), a.astype(np.float64).sum(), rtol=2.0**-8, atol=1e-4)
    assert largest == b.max()


def test_comparing_bodies_keep_their_type() -> None:
    text = jax.jit(jnp.argmax).lower(np.zeros(9, ml_dtypes.bfloat16)).as_text()
    module = parse(text)
    canonicalize.run(module, canonicalize.Options())
    assert _cast(text) == str(module)


def test_convolutions_accumulate_in_f32() -> None:
    text = (
        jax.jit(
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
        .lower(np.zeros((1, 6, 6, 32), ml_dtypes.bfloat16), np.zeros((3, 3, 32, 4), ml_dtypes.bfloat16))
        .as_text()
    )
    x, w = (a.astype(np.float32) for a in oracles.random_inputs(text, int(_rng().integers(1 << 30))))
    (got,) = oracles.run_on_xla(_cast(text), [x.astype(ml_dtypes.bfloat16), w.astype(ml_dtypes.bfloat16)])
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(
        padded[:, i : i + 6, j : j + 6] @ w[i, j].astype(np.float64) for i in range(3) for j in range(3)
    )
    assert (np.abs(got.astype(np.float64) - exact) <= np.abs(exact) * 2.0**-8 * 1.001 + 1e-3).all()


NETWORK = jax.jit(
    lambda x, w: jax.lax.fori_loop(
        0, 2, lambda i, y: jax.nn.softmax(jnp.tanh(y @ w) + y.mean(-1, keepdims=True), axis=-1), x
    )
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("type_", TYPES)
def test_is_idempotent(mode: str, type_: str) -> None:
    text = NETWORK.lower(np.zeros((4, 8), np.float32), np.zeros((8, 8), np.float32)).as_text()
    module = parse(_cast(text, mode, type_))
    once = str(module)
    autocast.run(module, autocast.Options(mode=mode, type=type_))
    assert str(module) == once


def test_reaches_into_loops() -> None:
    text = NETWORK.lower(np.zeros((4, 8), np.float32), np.zeros((8, 8), np.float32)).as_text()
    inputs = oracles.random_inputs(text, int(_rng().integers(1 << 30)))
    after = _cast(text, "matmult")
    assert "(tensor<4x8xbf16>, tensor<8x8xbf16>) -> tensor<4x8xf32>" in after
    (before,), (got,) = oracles.run_on_xla(text, inputs), oracles.run_on_xla(after, inputs)
    np.testing.assert_allclose(got, before, atol=0.05)


def test_shardings_stay_with_both_halves() -> None:
    after = _cast("""
    sdy.mesh @mesh = <["x"=2]>
    func.func @main(%a: tensor<8x8xbf16>) -> tensor<8x8xbf16> {
      %0 = stablehlo.dot_general %a, %a, contracting_dims = [1] x [0]
        {sdy.sharding = #sdy.sharding_per_value<[<@mesh, [{"x"}, {}]>]>}
        : (tensor<8x8xbf16>, tensor<8x8xbf16>) -> tensor<8x8xbf16>
      return %0 : tensor<8x8xbf16> }""")
    assert after.count("sdy.sharding =") == 2


@pytest.mark.parametrize("mode", MODES)
def test_text(mode: str, golden) -> None:
    text = """
    func.func @main(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>, %v: tensor<8x8xbf16>)
        -> (tensor<4xf32>, tensor<8x8xbf16>) {
      %zero = stablehlo.constant dense<0.0> : tensor<f32>
      %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
        : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
      %1 = stablehlo.tanh %0 : tensor<4x8xf32>
      %2 = stablehlo.reduce(%1 init: %zero) applies stablehlo.add across dimensions = [1]
        : (tensor<4x8xf32>, tensor<f32>) -> tensor<4xf32>
      %3 = stablehlo.dot_general %v, %v, contracting_dims = [1] x [0]
        : (tensor<8x8xbf16>, tensor<8x8xbf16>) -> tensor<8x8xbf16>
      return %2, %3 : tensor<4xf32>, tensor<8x8xbf16> }"""
    golden(f"autocast_{mode}.mlir", _cast(text, mode))


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("approximate", [True, False])
def test_an_activation_is_rounded_on_its_way_in_and_out_and_not_inside(type_: str, approximate: bool) -> None:
    def gelu(x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=approximate)

    # Further down 1 + tanh and 1 + erf cancel.
    x = _rng().uniform(-2, 5, (64, 32)).astype(np.float32)
    (got,) = oracles.run_on_xla(_cast(jax.jit(gelu).lower(x).as_text(), "all", type_), [x])
    once = gelu(_narrow(x, type_))
    # tf32 is rounded by who reads it. What lies between two numbers of the type may go to either.
    want = np.asarray(once) if type_ == "tf32" else _narrow(np.asarray(once), type_)
    epsilon = 1e-5 if type_ == "tf32" else float(ml_dtypes.finfo(NUMPY[type_]).eps)
    np.testing.assert_allclose(got, want, rtol=epsilon, atol=1e-6)
    assert type_ == "tf32" or (got == want).mean() > 0.99
