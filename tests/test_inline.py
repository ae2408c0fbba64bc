"""The inliner: meaning, locations, shardings, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from hlo_passes.inline import inline_calls
from hlo_passes.ir import func, main, parse, walk
from kernels.errors import CompileError

NESTED = """
func.func @main(%a: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = func.call @twice(%a) : (tensor<4xf32>) -> tensor<4xf32>
  %1:2 = func.call @pair(%0, %a) : (tensor<4xf32>, tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>)
  return %1#0, %1#1 : tensor<4xf32>, tensor<4xf32>
}
func.func private @twice(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.add %a, %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func private @pair(%a: tensor<4xf32>, %b: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {
  %0 = func.call @twice(%b) : (tensor<4xf32>) -> tensor<4xf32>
  return %b, %0 : tensor<4xf32>, tensor<4xf32>
}
func.func private @never(%a: tensor<4xf32>) -> tensor<4xf32> {
  return %a : tensor<4xf32>
}
"""

IN_A_LOOP = """
func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {
  %c0 = stablehlo.constant dense<0> : tensor<i32>
  %c3 = stablehlo.constant dense<3> : tensor<i32>
  %c1 = stablehlo.constant dense<1> : tensor<i32>
  %0:2 = stablehlo.while(%i = %c0, %x = %a) : tensor<i32>, tensor<4xf32>
   cond {
    %p = func.call @below(%i, %c3) : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %p : tensor<i1>
  } do {
    %n = stablehlo.add %i, %c1 : tensor<i32>
    %y = func.call @step(%x, %a) : (tensor<4xf32>, tensor<4xf32>) -> tensor<4xf32>
    stablehlo.return %n, %y : tensor<i32>, tensor<4xf32>
  }
  return %0#1 : tensor<4xf32>
}
func.func private @below(%a: tensor<i32>, %b: tensor<i32>) -> tensor<i1> {
  %0 = stablehlo.compare LT, %a, %b : (tensor<i32>, tensor<i32>) -> tensor<i1>
  return %0 : tensor<i1>
}
func.func private @step(%a: tensor<4xf32>, %b: tensor<4xf32>) -> tensor<4xf32> {
  %c2 = stablehlo.constant dense<2> : tensor<i32>
  %0 = "stablehlo.case"(%c2) ({
    stablehlo.return %b : tensor<4xf32>
  }, {
    %1 = stablehlo.multiply %a, %b : tensor<4xf32>
    stablehlo.return %1 : tensor<4xf32>
  }) : (tensor<i32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
"""


def _inlined(text: str) -> str:
    module = parse(text)
    inline_calls(module, main(module))
    assert module.operation.verify()
    return str(module)


@pytest.mark.parametrize("text", [NESTED, IN_A_LOOP])
def test_means_the_same(text: str) -> None:
    inputs = oracles.random_inputs(text, seed=np.random.SeedSequence().entropy % 2**32)
    after = _inlined(text)
    assert "call @" not in after
    assert after.count("func.func") == 1
    for old, new in zip(oracles.run_on_xla(text, inputs), oracles.run_on_xla(after, inputs), strict=True):
        np.testing.assert_array_equal(old, new)


def test_results_may_be_arguments(golden) -> None:
    golden("inline_nested.mlir", _inlined(NESTED))


def test_nested_jits_with_regions() -> None:
    inner = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y) * i + x, x))
    outer = jax.jit(lambda x: inner(x) + inner(x * 2))
    text = jax.jit(lambda x: (outer(x), inner(x))).lower(np.zeros(5, np.float32)).as_text()
    inputs = oracles.random_inputs(text, seed=3)
    for old, new in zip(
        oracles.run_on_xla(text, inputs), oracles.run_on_xla(_inlined(text), inputs), strict=True
    ):
        np.testing.assert_allclose(old, new, rtol=1e-6)


def test_locations_name_callee_and_call_site() -> None:
    module = parse("""
    func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {
      %0 = func.call @f(%a) : (tensor<4xf32>) -> tensor<4xf32> loc("outer.py":7:1)
      return %0 : tensor<4xf32>
    }
    func.func private @f(%a: tensor<4xf32>) -> tensor<4xf32> {
      %0 = stablehlo.add %a, %a : tensor<4xf32> loc("inner.py":3:1)
      return %0 : tensor<4xf32>
    }""")
    inline_calls(module, main(module))
    found = []
    walk(module.operation, lambda op: found.append(str(op.location)) if op.name == "stablehlo.add" else None)
    assert found == ['loc(callsite("inner.py":3:1 at "outer.py":7:1))']


def test_shardings_of_a_callee_become_constraints() -> None:
    after = _inlined("""
    sdy.mesh @mesh = <["x"=2]>
    func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {
      %0 = func.call @f(%a) : (tensor<4xf32>) -> tensor<4xf32>
      return %0 : tensor<4xf32>
    }
    func.func private @f(%a: tensor<4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}]>})
        -> (tensor<4xf32> {sdy.sharding = #sdy.sharding<@mesh, [{}]>}) {
      %0 = stablehlo.negate %a : tensor<4xf32>
      return %0 : tensor<4xf32>
    }""")
    before, negate, behind = (after.index(part) for part in ('[{"x"}]', "stablehlo.negate", "[{}]"))
    assert before < negate < behind
    assert after.count("sdy.sharding_constraint") == 2


def test_the_callee_is_inlined_once_per_call() -> None:
    calls = 50
    body = "\n".join(f"%{i + 1} = func.call @f(%{i}) : (tensor<f32>) -> tensor<f32>" for i in range(calls))
    after = _inlined(f"""
    func.func @main() -> tensor<f32> {{
      %0 = stablehlo.constant dense<1.0> : tensor<f32>
      {body}
      return %{calls} : tensor<f32>
    }}
    func.func private @f(%a: tensor<f32>) -> tensor<f32> {{
      %0 = stablehlo.add %a, %a : tensor<f32>
      return %0 : tensor<f32>
    }}""")
    assert after.count("stablehlo.add") == calls


@pytest.mark.parametrize(
    ("callee", "message"),
    [
        ("func.func private @f(tensor<f32>) -> tensor<f32>", "no body"),
        (
            "func.func private @f(%a: tensor<f32>) -> tensor<f32> {\n"
            "%0 = func.call @g(%a) : (tensor<f32>) -> tensor<f32>\nreturn %0 : tensor<f32> }\n"
            "func.func private @g(%a: tensor<f32>) -> tensor<f32> {\n"
            "%0 = func.call @f(%a) : (tensor<f32>) -> tensor<f32>\nreturn %0 : tensor<f32> }",
            "f -> g -> f",
        ),
    ],
)
def test_refuses(callee: str, message: str) -> None:
    module = parse(f"""
    func.func @main(%a: tensor<f32>) -> tensor<f32> {{
      %0 = func.call @f(%a) : (tensor<f32>) -> tensor<f32> loc("user.py":12:1)
      return %0 : tensor<f32>
    }}
    {callee}""")
    with pytest.raises(CompileError, match=message) as caught:
        inline_calls(module, main(module))
    assert caught.value.fix
    assert any(isinstance(op, func.FuncOp) for op in module.body.operations)
