"""Which ops of a segment go to the host's kernels, and that the segment means the same after as before."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import neuronx
from distributed.executor import Executor
from hlo_passes.host_lowering import lower_text
from kernels.dtypes import dtype
from kernels.host.targets import update_reference
from neuronx.models import opt


def both(function, *arrays):
    """The results of a function with host kernels and by XLA alone, and what was decided."""
    text = jax.jit(function).lower(*arrays).as_text()
    results = []
    for lower in (lower_text, None):
        executor = Executor(lower)
        outputs = executor.load(text)([executor.to_device(np.asarray(array)) for array in arrays])
        results.append([np.array(executor.to_host(output)) for output in outputs])
    return *results, lower_text(text).decisions


def normal(rng, shape, element):
    return jnp.asarray(rng.standard_normal(shape, dtype=np.float32)).astype(element)


# Operands of every order of dims: batch dims not first, several contracted dims, weights on the left.
EINSUMS = [
    ("bqhd,bkhd->bhqk", (2, 9, 3, 16), (2, 33, 3, 16)),
    ("bhqk,bkhd->bqhd", (2, 3, 9, 33), (2, 33, 3, 16)),
    ("nk,kb->nb", (300, 65), (65, 2)),
    ("nk,k->n", (300, 65), (65,)),
    ("abk,klc->ablc", (3, 5, 40), (40, 7, 9)),
    ("xab,bay->xy", (5, 12, 20), (20, 12, 30)),
    ("ab,cd->abcd", (11, 12), (13, 14)),
]


@pytest.mark.parametrize("element", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("spec", "left", "right"), EINSUMS)
def test_products_of_any_order_of_dims(spec, left, right, element, rng):
    x, w = normal(rng, left, element), normal(rng, right, element)
    function = functools.partial(jnp.einsum, spec, preferred_element_type=jnp.float32)
    [ours], _, decisions = both(function, x, w)
    if element == jnp.bfloat16:
        assert all(decision.target for decision in decisions)
    wide = [np.asarray(one).astype(np.float64) for one in (x, w)]
    bound = np.einsum(spec, *map(np.abs, wide)) * 300 * 2.0**-24
    assert np.all(np.abs(ours - np.einsum(spec, *wide)) <= bound)


def test_stored_integers_are_read_as_they_are(rng):
    """The conversion to the type of the product is part of the kernel; the scales stay where they were."""
    w = jnp.asarray(rng.integers(-127, 128, (129, 200), np.int8))
    scale, x = normal(rng, (200,), jnp.float32), normal(rng, (3, 129), jnp.bfloat16)

    def function(x, w, scale):
        return jnp.matmul(x, w.astype(jnp.bfloat16), preferred_element_type=jnp.float32) * scale

    [ours], [theirs], [decision] = both(function, x, w, scale)
    assert decision.target == "neuronx_matmul_i8_columns"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "order", "stored"), [("mk,kn->mn", (1, 0), (130, 129)), ("mk,knp->mnp", (2, 0, 1), (65, 3, 129))]
)
@pytest.mark.parametrize("weights", ["bf16", "i8"])
def test_transposed_weights_are_read_where_they_lie(weights, spec, order, stored, rng):
    w = jnp.asarray(rng.integers(-9, 10, stored), dtype(weights).numpy)
    x = normal(rng, (2, 129), jnp.bfloat16)

    def function(x, w):
        wide = w.astype(jnp.bfloat16).transpose(order)
        return jnp.einsum(spec, x, wide, preferred_element_type=jnp.float32)

    [ours], [theirs], [decision] = both(function, x, w)
    assert decision.target == f"neuronx_matmul_{weights}_rows"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_a_conversion_that_rounds_is_not_left_out(rng):
    x, w = normal(rng, (2, 128), jnp.bfloat16), normal(rng, (128, 130), jnp.float32)

    def function(x, w):
        return jnp.matmul(x, w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)

    [ours], [theirs], [decision] = both(function, x, w)
    assert decision.target == "neuronx_matmul_bf16_pairs_columns"
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "shapes", "reason"),
    [
        (lambda x, w: x @ w, [((2, 3), jnp.bfloat16), ((3, 4), jnp.bfloat16)], "fewer than"),
        (lambda x, w: x @ w, [((64, 64), np.float32), ((64, 64), np.float32)], "64 rows of f32"),
        (lambda x, w: x @ w, [((64, 64), np.int32), ((64, 64), np.int32)], "kernel's types"),
        (
            lambda x, w: jnp.matmul(x, w, precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32),
            [((64, 64), np.float32), ((64, 64), np.float32)],
            "algorithm",
        ),
    ],
)
def test_what_stays_with_xla_says_why(function, shapes, reason):
    text = jax.jit(function).lower(*[jax.ShapeDtypeStruct(*shape) for shape in shapes]).as_text()
    lowered = lower_text(text)
    [decision] = lowered.decisions
    assert not decision.target and reason in decision.reason
    assert lowered.text == text


UPDATES = [
    ((1, 4, 33, 16), (1, 4, 1, 16), (0, 0, 7, 0)),
    ((5, 7), (5, 3), (0, 99)),  # moved back until it fits
    ((5, 7), (2, 7), (-3, 2)),
    ((129,), (17,), (112,)),
    ((2, 3, 4), (2, 3, 4), (1, 1, 1)),
]


@pytest.mark.parametrize("element", ["bf16", "f8E4M3FN", "f32"])
@pytest.mark.parametrize(("shape", "part", "starts"), UPDATES)
def test_updates_are_those_of_xla(shape, part, starts, element, rng):
    array, update = (normal(rng, one, dtype(element).numpy) for one in (shape, part))
    places = [jnp.int32(start) for start in starts]

    def function(array, update, *places):
        return jax.lax.dynamic_update_slice(array, update, places)

    [ours], [theirs], [decision] = both(function, array, update, *places)
    assert decision.target.startswith("neuronx_update")
    np.testing.assert_array_equal(ours.view(np.uint8), theirs.view(np.uint8))
    # JAX counts negative starts from the end before it makes the op.
    counted = [start + size * (start < 0) for start, size in zip(starts, shape, strict=True)]
    reference = update_reference(np.asarray(array), np.asarray(update), counted)
    np.testing.assert_array_equal(reference.view(np.uint8), theirs.view(np.uint8))


def test_a_donated_cache_is_updated_where_it_lies(rng):
    text = """
    func.func @main(%c: tensor<8x64x32xbf16> {tf.aliasing_output = 0 : i32}, %u: tensor<8x1x32xbf16>,
                    %i: tensor<i32>) -> tensor<8x64x32xbf16> {
      %z = stablehlo.constant dense<0> : tensor<i32>
      %y = stablehlo.dynamic_update_slice %c, %u, %z, %i, %z
        : (tensor<8x64x32xbf16>, tensor<8x1x32xbf16>, tensor<i32>, tensor<i32>, tensor<i32>)
        -> tensor<8x64x32xbf16>
      return %y : tensor<8x64x32xbf16>
    }"""
    executor = Executor(lower_text)
    host = np.asarray(normal(rng, (8, 64, 32), jnp.bfloat16))
    cache = executor.copy(executor.to_device(host))
    update = executor.to_device(np.asarray(normal(rng, (8, 1, 32), jnp.bfloat16)))
    before = cache.unsafe_buffer_pointer()
    [after] = executor.load(text)([cache, update, executor.to_device(np.int32(5).reshape(()))])
    assert after.unsafe_buffer_pointer() == before
    expected = host.copy()
    expected[:, 5] = np.asarray(update)[:, 0]
    np.testing.assert_array_equal(np.asarray(after), expected)


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_a_decoder_means_the_same_with_and_without_kernels(tp_degree, rng):
    cfg = opt.OPTConfig(name="small", hidden=128, heads=4, layers=2, ffn=512, embed=128, vocab=500)
    params = opt.parameters(cfg, jnp.bfloat16, 0)
    shapes = opt.cache_shapes(cfg, 2, 40, jnp.bfloat16)
    cache = [{name: normal(rng, one.shape, one.dtype) for name, one in entry.items()} for entry in shapes]
    token, position = jnp.asarray([3, 7], jnp.int32), jnp.int32(20)
    ours, theirs = (
        neuronx.compile(functools.partial(opt.decode, cfg), tp_degree=tp_degree, host_kernels=kernels)(
            params, cache, token, position
        )
        for kernels in (True, False)
    )
    # Both round where the device rounds, so that a sum in another order may move a value by one bf16 step.
    np.testing.assert_allclose(ours[1], theirs[1], rtol=0.02, atol=0.02)
    updated = [np.asarray(entry["k"], np.float32) for entry in ours[2]]
    expected = [np.asarray(entry["k"], np.float32) for entry in theirs[2]]
    np.testing.assert_allclose(updated, expected, rtol=0.02, atol=0.02)


def test_a_program_says_what_its_host_kernels_are():
    def function(x, w, small):
        return x @ w, small @ small

    shapes = [jax.ShapeDtypeStruct(one, jnp.bfloat16) for one in ((3, 200), (200, 300), (4, 4))]
    said = neuronx.compile(function).lower(*shapes).compile().explain_host()
    assert "1 x bf16[3, 200] x bf16[200, 300] -> f32[3, 300]: neuronx_matmul_bf16_pairs_columns, " in said
    # 3 x 200 and 200 x 300 bf16 and 3 x 300 f32; two flops for each of 3 x 200 x 300 terms.
    assert "_columns, 0.125 MB and 0.36 MFLOP each" in said
    assert "bf16[4, 4] x bf16[4, 4] -> f32[4, 4]: XLA, for 64 multiplications are fewer than" in said
    off = neuronx.compile(function, host_kernels=False).lower(*shapes).compile().explain_host()
    assert "host_kernels=False" in off
