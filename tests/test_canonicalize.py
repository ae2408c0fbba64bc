"""Pass canonicalize: meaning kept, GLOBAL level reached, idempotence, clear errors for what it refuses."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from hlo_passes import canonicalize
from hlo_passes.ir import ir, parse
from hlo_passes.levels import violations
from kernels.errors import CompileError

F32 = np.dtype(np.float32)


def _canonical(text: str | bytes) -> ir.Module:
    module = parse(text)
    canonicalize.run(module, canonicalize.Options())
    assert module.operation.verify()
    assert violations(module, "global") == []
    return module


def _random_like(shape: tuple[int, ...], dtype: np.dtype = F32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


MATRIX = _random_like((6, 10))
FUNCTIONS = {
    "softmax": (lambda x: jax.nn.softmax(x, axis=-1), MATRIX),
    "gelu_erf": (lambda x: jax.nn.gelu(x, approximate=False), MATRIX),
    "gelu_bf16": (jax.nn.gelu, _random_like((6, 10), jnp.bfloat16)),
    "top_k": (lambda x: jax.lax.top_k(x, 3), MATRIX),
    "inverse": (lambda x: (jnp.arctanh(jnp.tanh(x)), jnp.sinh(x), jax.lax.lgamma(jnp.abs(x) + 1)), MATRIX),
    "scan": (lambda x: jax.lax.scan(lambda c, r: (jnp.tanh(c + r), c.sum()), x[0], x), MATRIX),
    "cond": (lambda x: jax.lax.cond(x[0, 0] > 0, jnp.sin, lambda y: y * 2, x), MATRIX),
    "jit_in_scan": (
        lambda x: jax.lax.fori_loop(0, 4, lambda i, y: jax.jit(jnp.logaddexp)(y, y * i), x),
        MATRIX,
    ),
    "random_bits": (lambda x: jax.random.normal(jax.random.key(7), x.shape) + x, MATRIX),
    "gather_scatter": (lambda x: x.at[jnp.array([1, 3])].add(x[jnp.array([0, 2])]), MATRIX),
    "sort": (lambda x: jnp.sort(x, axis=0), MATRIX),
    "grad": (jax.grad(lambda x: (jax.nn.silu(x) @ x.T).sum()), MATRIX),
    "cumsum": (lambda x: jnp.cumsum(x, axis=1), MATRIX),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jax_functions_keep_their_meaning(name: str) -> None:
    function, shape = FUNCTIONS[name]
    text = jax.jit(function).lower(shape).as_text()
    after = str(_canonical(text))
    inputs = oracles.random_inputs(text, seed=11)
    epsilon = float(jnp.finfo(shape.dtype).eps)
    for old, new in zip(oracles.run_on_xla(text, inputs), oracles.run_on_xla(after, inputs), strict=True):
        assert old.dtype == new.dtype
        # CHLO's own expansions differ from XLA's by a few roundings.
        np.testing.assert_allclose(
            old.astype(np.float64), new.astype(np.float64), rtol=32 * epsilon, atol=32 * epsilon
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_is_idempotent(name: str) -> None:
    function, shape = FUNCTIONS[name]
    module = _canonical(jax.jit(function).lower(shape).as_text())
    once = module.operation.get_asm(enable_debug_info=True)
    canonicalize.run(module, canonicalize.Options())
    assert module.operation.get_asm(enable_debug_info=True) == once


EVERYTHING = """
module @everything {
  sdy.mesh @mesh = <["x"=2]>
  func.func public @main(
      %a: tensor<4x4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {}]>, tf.aliasing_output = 0 : i32},
      %p: tensor<4xi1>) -> (tensor<4x4xf32>, tensor<4xi1>, tensor<4xi1>) {
    %0 = stablehlo.composite "my.square" %a {decomposition = @square} : (tensor<4x4xf32>) -> tensor<4x4xf32>
    %1 = stablehlo.dot %0, %a : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
    %2 = chlo.sinh %1 : tensor<4x4xf32> -> tensor<4x4xf32>
    %unused = stablehlo.exponential %2 : tensor<4x4xf32>
    %3 = stablehlo.add %a, %a : tensor<4x4xf32>
    %4 = stablehlo.add %a, %a : tensor<4x4xf32>
    %5 = stablehlo.multiply %3, %4 : tensor<4x4xf32>
    %6 = stablehlo.add %2, %5 : tensor<4x4xf32>
    %7 = sdy.sharding_constraint %6 <@mesh, [{}, {"x"}]> : tensor<4x4xf32>
    %8 = stablehlo.add %p, %p : tensor<4xi1>
    %9 = stablehlo.multiply %p, %p : tensor<4xi1>
    return %7, %8, %9 : tensor<4x4xf32>, tensor<4xi1>, tensor<4xi1>
  }
  func.func private @square(%a: tensor<4x4xf32>) -> tensor<4x4xf32> {
    %0 = stablehlo.multiply %a, %a : tensor<4x4xf32>
    return %0 : tensor<4x4xf32>
  }
}
"""


def test_text(golden) -> None:
    golden("canonicalize.mlir", str(_canonical(EVERYTHING)))


def test_sums_of_booleans_are_or() -> None:
    text = """
    func.func @main(%p: tensor<4xi1>, %q: tensor<4xi1>) -> (tensor<4xi1>, tensor<4xi1>, tensor<i1>) {
      %0 = stablehlo.add %p, %q : tensor<4xi1>
      %1 = stablehlo.multiply %p, %q : tensor<4xi1>
      %c = stablehlo.constant dense<false> : tensor<i1>
      %2 = stablehlo.reduce(%p init: %c) applies stablehlo.add across dimensions = [0]
        : (tensor<4xi1>, tensor<i1>) -> tensor<i1>
      return %0, %1, %2 : tensor<4xi1>, tensor<4xi1>, tensor<i1> }"""
    p, q = np.array([True, True, False, False]), np.array([True, False, True, False])
    wanted = oracles.run_on_interpreter(text, [p, q])
    got = oracles.run_on_xla(str(_canonical(text)), [p, q])
    for x, y in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_only_function_becomes_main() -> None:
    after = str(
        _canonical("func.func private @f(%a: tensor<2xf32>) -> tensor<2xf32> { return %a : tensor<2xf32> }")
    )
    assert "func.func public @main(" in after


def test_a_module_without_functions_is_refused() -> None:
    with pytest.raises(CompileError, match="no function"):
        canonicalize.run(parse("module {}"), canonicalize.Options())


def test_randomness_and_effects_are_neither_merged_nor_dropped() -> None:
    after = str(
        _canonical("""
    func.func @main(%s: tensor<2xui64>) -> (tensor<4xf32>, tensor<4xf32>, tensor<2xui64>, tensor<2xui64>) {
      %lo = stablehlo.constant dense<0.0> : tensor<f32>
      %hi = stablehlo.constant dense<1.0> : tensor<f32>
      %n = stablehlo.constant dense<4> : tensor<1xi64>
      %0 = stablehlo.rng %lo, %hi, %n, distribution = UNIFORM
        : (tensor<f32>, tensor<f32>, tensor<1xi64>) -> tensor<4xf32>
      %1 = stablehlo.rng %lo, %hi, %n, distribution = UNIFORM
        : (tensor<f32>, tensor<f32>, tensor<1xi64>) -> tensor<4xf32>
      %2, %3 = stablehlo.rng_bit_generator %s, algorithm = DEFAULT
        : (tensor<2xui64>) -> (tensor<2xui64>, tensor<4xui32>)
      %4, %5 = stablehlo.rng_bit_generator %2, algorithm = DEFAULT
        : (tensor<2xui64>) -> (tensor<2xui64>, tensor<4xui32>)
      stablehlo.custom_call @effect(%s) {has_side_effect = true} : (tensor<2xui64>) -> ()
      stablehlo.custom_call @effect(%s) {has_side_effect = true} : (tensor<2xui64>) -> ()
      return %0, %1, %2, %4 : tensor<4xf32>, tensor<4xf32>, tensor<2xui64>, tensor<2xui64>
    }""")
    )
    assert after.count("stablehlo.rng %") == 2
    assert after.count("stablehlo.rng_bit_generator") == 2
    assert after.count("@effect") == 2


def test_splat_constants_stay_short() -> None:
    after = str(
        _canonical("""
    func.func @main() -> tensor<512x512xf32> {
      %c = stablehlo.constant dense<1.0> : tensor<f32>
      %0 = stablehlo.broadcast_in_dim %c, dims = [] : (tensor<f32>) -> tensor<512x512xf32>
      %1 = stablehlo.iota dim = 0 : tensor<512x512xf32>
      %2 = stablehlo.add %0, %1 : tensor<512x512xf32>
      return %2 : tensor<512x512xf32>
    }""")
    )
    assert len(after) < 1000


def test_quantized_arithmetic_becomes_plain() -> None:
    text = """
    func.func @main(%a: tensor<8xf32>, %b: tensor<8xf32>) -> tensor<8xf32> {
      %0 = stablehlo.uniform_quantize %a : (tensor<8xf32>) -> tensor<8x!quant.uniform<i8:f32, 0.05:3>>
      %1 = stablehlo.uniform_quantize %b : (tensor<8xf32>) -> tensor<8x!quant.uniform<i8:f32, 0.05:3>>
      %2 = stablehlo.add %0, %1 : tensor<8x!quant.uniform<i8:f32, 0.05:3>>
      %3 = stablehlo.uniform_dequantize %2 : (tensor<8x!quant.uniform<i8:f32, 0.05:3>>) -> tensor<8xf32>
      return %3 : tensor<8xf32>
    }"""
    a, b = (np.random.default_rng().uniform(-2, 2, 8).astype(np.float32) for _ in range(2))
    (got,) = oracles.run_on_xla(str(_canonical(text)), [a, b])
    np.testing.assert_allclose(got, a + b, atol=0.05 * 1.5)


def test_shapes_that_the_module_fixes_become_static() -> None:
    module = _canonical("""
    func.func @main(%a: tensor<4xf32>) -> tensor<12xf32> {
      %0 = stablehlo.get_dimension_size %a, dim = 0 : (tensor<4xf32>) -> tensor<i32>
      %1 = stablehlo.reshape %0 : (tensor<i32>) -> tensor<1xi32>
      %c = stablehlo.constant dense<3> : tensor<1xi32>
      %2 = stablehlo.concatenate %c, %1, dim = 0 : (tensor<1xi32>, tensor<1xi32>) -> tensor<2xi32>
      %3 = stablehlo.dynamic_broadcast_in_dim %a, %2, dims = [1]
        : (tensor<4xf32>, tensor<2xi32>) -> tensor<?x?xf32>
      %4 = stablehlo.constant dense<12> : tensor<1xi32>
      %5 = stablehlo.dynamic_reshape %3, %4 : (tensor<?x?xf32>, tensor<1xi32>) -> tensor<12xf32>
      return %5 : tensor<12xf32>
    }""")
    x = np.random.default_rng().standard_normal(4).astype(np.float32)
    np.testing.assert_array_equal(oracles.run_on_xla(str(module), [x])[0], np.tile(x, 3))


def _unary(op: str, type_: str = "tensor<4xf32>", line: str = 'loc("user.py":21:1)') -> str:
    return f"func.func @main(%a: {type_}) -> {type_} {{ %0 = {op} {line}\n return %0 : {type_} }}"


REFUSED = {
    "callback": (
        _unary("stablehlo.custom_call @xla_ffi_python_cpu_callback(%a) : (tensor<4xf32>) -> tensor<4xf32>"),
        "host callback",
    ),
    "gspmd": (
        _unary(
            'stablehlo.custom_call @Sharding(%a) {mhlo.sharding = "{devices=[2]0,1}"} '
            ": (tensor<4xf32>) -> tensor<4xf32>"
        ),
        "GSPMD",
    ),
    "to_manual": (
        _unary("stablehlo.custom_call @SPMDFullToShardShape(%a) : (tensor<4xf32>) -> tensor<4xf32>"),
        "GSPMD",
    ),
    "to_host": (
        _unary("stablehlo.custom_call @annotate_device_placement(%a) : (tensor<4xf32>) -> tensor<4xf32>"),
        "host and device memory",
    ),
    "calls_a_function": (
        _unary(
            "stablehlo.custom_call @X(%a) {called_computations = [@main]} : (tensor<4xf32>) -> tensor<4xf32>"
        ),
        "NCC_EHCA005",
    ),
    "dtype": (
        _unary("stablehlo.add %a, %a : tensor<4xf8E4M3FNUZ>", "tensor<4xf8E4M3FNUZ>"),
        "f8E4M3FNUZ",
    ),
    "dynamic": (_unary("stablehlo.add %a, %a : tensor<?xf32>", "tensor<?xf32>"), "NCC_EMOD025"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_op_line_and_fix(name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(CompileError, match=message) as caught:
        _canonical(text)
    assert caught.value.op.startswith("stablehlo.")
    assert caught.value.location == "user.py:21"
    assert caught.value.fix


def test_refuses_infeed_and_tokens() -> None:
    text = """func.func @main() -> tensor<4xf32> {
      %t = stablehlo.create_token : !stablehlo.token
      %0:2 = "stablehlo.infeed"(%t) : (!stablehlo.token) -> (tensor<4xf32>, !stablehlo.token)
      return %0#0 : tensor<4xf32> }"""
    with pytest.raises(CompileError, match="host"):
        _canonical(text)


def test_refuses_a_callback_of_jax() -> None:
    def shouts(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        return x + 1

    with pytest.raises(CompileError, match="host callback") as caught:
        _canonical(jax.jit(shouts).lower(MATRIX).as_text(debug_info=True))
    assert "test_canonicalize.py" in caught.value.location


def test_a_sharding_that_says_nothing_is_dropped() -> None:
    after = str(
        _canonical(
            _unary(
                'stablehlo.custom_call @Sharding(%a) {mhlo.sharding = "{replicated}"} '
                ": (tensor<4xf32>) -> tensor<4xf32>"
            )
        )
    )
    assert "custom_call" not in after


def _chain(count: int, op: str) -> str:
    """``count`` lines, each ``op`` of the value before it and %w; the last is %<count>."""
    names = ["%a", *(f"%{i + 1}" for i in range(count))]
    return "\n".join(f"{new} = {op.format(old)}" for old, new in itertools.pairwise(names))


def test_many_calls_of_one_function_are_inlined() -> None:
    one = "tensor<8x8xf32>"
    signature = f"(%a: {one}, %w: {one}) -> {one}"
    layer = _chain(30, f"stablehlo.add {{}}, %w : {one}")
    calls = _chain(200, f"func.call @layer({{}}, %w) : ({one}, {one}) -> {one}")
    module = parse(
        f"func.func @main{signature} {{ {calls}\n return %200 : {one} }}\n"
        f"func.func private @layer{signature} {{ {layer}\n return %30 : {one} }}"
    )
    canonicalize.run(module, canonicalize.Options())
    assert str(module).count("stablehlo.add") == 6000
    assert "call" not in str(module)
