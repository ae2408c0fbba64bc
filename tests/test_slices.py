"""Slices of what was broadcast: smaller broadcasts with the same values, others stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neuronx
from hlo_passes.ir import parse
from hlo_passes.slices import slice_before_broadcast


@pytest.mark.parametrize(
    ("source", "dims", "whole", "starts", "limits", "stays"),
    [
        ((), (), (12, 16), (7, 0), (8, 16), False),
        ((3, 1), (0, 2), (3, 4, 5), (0, 1, 2), (3, 3, 3), False),
        ((3, 1), (0, 2), (3, 4, 5), (1, 0, 0), (3, 4, 5), True),
        ((5,), (2,), (3, 4, 5), (2, 1, 0), (3, 4, 5), False),
        ((5,), (2,), (3, 4, 5), (0, 0, 0), (3, 4, 4), True),
    ],
)
@pytest.mark.parametrize("converted", [False, True])
def test_what_the_slice_takes_is_the_same(source, dims, whole, starts, limits, stays, converted, rng):
    def fn(x):
        wide = jax.lax.broadcast_in_dim(x, whole, dims)
        return jax.lax.slice(wide.astype(jnp.int32) if converted else wide, starts, limits)

    x = rng.uniform(-9, 9, source).astype(np.float32)
    lowered = neuronx.compile(fn).lower(x)
    module = parse(lowered.as_text())
    slice_before_broadcast(module)
    assert ("stablehlo.slice" in str(module)) == stays
    np.testing.assert_array_equal(lowered.compile()(x), fn(x))


def test_sizes_that_are_only_bounded_stay():
    bounded = "x?xf32, #stablehlo.bounds<?, 5>>"
    module = parse(f"""func.func @main(%x: tensor<f32>) -> tensor<1{bounded} {{
      %a = stablehlo.broadcast_in_dim %x, dims = [] : (tensor<f32>) -> tensor<3{bounded}
      %b = "stablehlo.slice"(%a) {{start_indices = array<i64: 0, 0>, limit_indices = array<i64: 1, 2>,
        strides = array<i64: 1, 1>}} : (tensor<3{bounded}) -> tensor<1{bounded}
      return %b : tensor<1{bounded} }}""")
    slice_before_broadcast(module)
    assert "stablehlo.slice" in str(module)
