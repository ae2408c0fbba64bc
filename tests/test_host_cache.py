"""Products that leave the empty part of a cache unread: against float64, and where all must be read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_host_kernels import randoms, run

import neuronx
from hlo_passes.host_lowering import lower_text
from kernels.dtypes import dtype
from kernels.host.targets import FEW_ROWS, filled_reference, filled_target
from neuronx.models import llama, opt

# (batch, rows, width of a head, positions of the cache, of which so many are filled).
SIZES = [
    (1, 1, 128, 129, 1),
    (3, 1, 64, 4097, 127),
    (2, 3, 17, 1023, 1023),
    (5, FEW_ROWS, 127, 257, 129),
    (1, 1, 129, 4097, 0),
    (4, 2, 33, 1000, 3),
]
TYPES = ["bf16", pytest.param("f16", marks=pytest.mark.slow), pytest.param("f32", marks=pytest.mark.slow)]


def scores_under_mask(batch: int, m: int, width: int, positions: int, cache: str) -> str:
    x, w = f"tensor<{batch}x{m}x{width}xf32>", f"tensor<{batch}x{positions}x{width}x{cache}>"
    y = f"{batch}x{m}x{positions}"
    return f"""
    func.func @main(%x: {x}, %w: {w}, %visible: tensor<{positions}xi1>) -> tensor<{y}xf32> {{
      %y = stablehlo.dot_general %x, %w, batching_dims = [0] x [0], contracting_dims = [2] x [2]
        : ({x}, {w}) -> tensor<{y}xf32>
      %row = stablehlo.broadcast_in_dim %visible, dims = [1]
        : (tensor<{positions}xi1>) -> tensor<1x{positions}xi1>
      %mask = stablehlo.broadcast_in_dim %row, dims = [1, 2] : (tensor<1x{positions}xi1>) -> tensor<{y}xi1>
      %least = stablehlo.constant dense<-1.0> : tensor<{y}xf32>
      %z = stablehlo.select %mask, %y, %least : tensor<{y}xi1>, tensor<{y}xf32>
      return %z : tensor<{y}xf32>
    }}"""


def sums_after_softmax(batch: int, m: int, width: int, positions: int, cache: str, kernel="softmax") -> str:
    """The softmax is one by name only, so that a test can choose the weights."""
    x, w = f"tensor<{batch}x{m}x{positions}xf32>", f"tensor<{batch}x{positions}x{width}x{cache}>"
    y = f"tensor<{batch}x{m}x{width}xf32>"
    return f"""
    func.func @main(%x: {x}, %w: {w}) -> {y} {{
      %p = stablehlo.composite "neuron.{kernel}" %x {{decomposition = @neuron.same.0}} : ({x}) -> {x}
      %y = stablehlo.composite "neuron.matmul" %p, %w {{decomposition = @neuron.matmul.0}} : ({x}, {w}) -> {y}
      return %y : {y}
    }}
    func.func private @neuron.same.0(%x: {x}) -> {x} {{
      return %x : {x}
    }}
    func.func private @neuron.matmul.0(%x: {x}, %w: {w}) -> {y} {{
      %y = stablehlo.dot_general %x, %w, batching_dims = [0] x [0], contracting_dims = [2] x [1]
        : ({x}, {w}) -> {y}
      return %y : {y}
    }}"""


def spoil(w: np.ndarray, filled: int) -> None:
    """What an empty part of a cache may hold."""
    w[:, filled:] = np.nan
    w[:, filled::2] = np.inf


@pytest.mark.parametrize("cache", TYPES)
def test_scores_of_the_filled_part_are_those_of_float64(cache, rng):
    for batch, m, width, positions, filled in SIZES:
        text = scores_under_mask(batch, m, width, positions, cache)
        assert lower_text(text).targets == {filled_target(cache, by_rows=True)}
        x = randoms(rng, (batch, m, width), np.dtype(np.float32))
        w = randoms(rng, (batch, positions, width), dtype(cache).numpy)
        spoil(w, filled)
        visible = np.arange(positions) < filled
        visible[: filled // 2 : 3] = False
        got = run(text, x, w, visible)
        expected = np.where(visible, filled_reference(x, w, visible), -1)
        magnitude = filled_reference(np.abs(x), np.abs(w.astype(np.float32)), visible)
        assert np.all(np.abs(got - expected) <= width * 2.0**-24 * magnitude), (batch, m, width)


def test_rows_of_bf16_that_meet_a_cache_are_not_paired(rng):
    batch, m, width, positions = 2, 5, 64, 100
    text = scores_under_mask(batch, m, width, positions, "bf16").replace("x64xf32", "x64xbf16")
    assert lower_text(text).targets == {filled_target("bf16", by_rows=True)}
    x, w = (randoms(rng, (batch, size, width), dtype("bf16").numpy) for size in (m, positions))
    visible = np.arange(positions) < 30
    spoil(w, 30)
    got = run(text, x, w, visible)
    np.testing.assert_allclose(got[..., :30], filled_reference(x, w, visible)[..., :30], rtol=0, atol=1e-3)


@pytest.mark.parametrize("cache", TYPES)
def test_sums_of_the_filled_part_are_those_of_float64(cache, rng):
    """What lies behind the last weight is not looked at, not even NaN, which times zero would be NaN."""
    for batch, m, width, positions, filled in SIZES:
        text = sums_after_softmax(batch, m, width, positions, cache)
        assert lower_text(text).targets == {filled_target(cache, by_rows=False)}
        x = np.abs(randoms(rng, (batch, m, positions), np.dtype(np.float32)))
        x[:, 1:, filled // 2 :] = 0
        x[..., filled:] = 0
        w = randoms(rng, (batch, positions, width), dtype(cache).numpy)
        spoil(w, filled)
        got = run(text, x, w)
        magnitude = filled_reference(x, np.abs(w.astype(np.float32)), None)
        assert np.all(np.abs(got - filled_reference(x, w, None)) <= positions * 2.0**-24 * magnitude)


def test_what_is_read_keeps_infinity_and_nan(rng):
    batch, m, width, positions, filled = 2, 1, 64, 512, 100
    visible = np.arange(positions) < filled
    w = np.ones((batch, positions, width), dtype("bf16").numpy)
    w[1, 7, 5], w[0, 9, 3] = np.nan, np.inf
    x = np.ones((batch, m, width), np.float32)
    scores = run(scores_under_mask(batch, m, width, positions, "bf16"), x, w, visible)
    assert np.isnan(scores[1, 0, 7]) and scores[0, 0, 9] == np.inf
    assert np.count_nonzero(~np.isfinite(scores)) == 2
    weights = np.where(visible, np.float32(0.01), 0)[None, None].repeat(batch, 0).astype(np.float32)
    weights[0, 0, 9] = 0  # before the last weight nothing is skipped: zero times infinity is no number
    sums = run(sums_after_softmax(batch, m, width, positions, "bf16"), weights, w)
    assert np.isnan(sums[1, 0, 5]) and np.isnan(sums[0, 0, 3]) and np.count_nonzero(np.isnan(sums)) == 2
    weights[:] = np.nan
    assert np.isnan(run(sums_after_softmax(batch, m, width, positions, "bf16"), weights, w)).all()


SCORES, SUMS = scores_under_mask(4, 1, 64, 128, "bf16"), sums_after_softmax(4, 1, 64, 128, "bf16")
ROWS, COLUMNS = "neuronx_matmul_bf16_rows", "neuronx_matmul_bf16_columns"

ANOTHER_CALL = """%q = stablehlo.composite "neuron.matmul" %x, %w {decomposition = @neuron.matmul.0}
        : (tensor<4x1x128xf32>, tensor<4x128x64xbf16>) -> tensor<4x1x64xf32>
      %y = stablehlo.composite"""
READ_AS_WELL = """%s = stablehlo.add %y, %z : tensor<4x1x128xf32>
      return %s"""
CASES = {
    "weights of no softmax": (sums_after_softmax(4, 1, 64, 128, "bf16", kernel="elementwise"), COLUMNS),
    "one call of two without": (SUMS.replace("%y = stablehlo.composite", ANOTHER_CALL), COLUMNS),
    "scores read as well": (SCORES.replace("return %z", READ_AS_WELL), ROWS),
    "taken where the mask is false": (SCORES.replace("%mask, %y, %least", "%mask, %least, %y"), ROWS),
    "a mask for each row": (
        SCORES.replace("%visible: ", "%mask: tensor<4x1x128xi1>, %visible: ").replace(
            "%mask = ", "%other = "
        ),
        ROWS,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_where_all_may_be_needed_all_is_read(case):
    text, target = CASES[case]
    assert lower_text(text).targets == {target}


def test_a_mask_made_after_the_product_is_not_waited_for():
    made = "%made = stablehlo.not %visible : tensor<128xi1>\n      %row ="
    text = SCORES.replace("%row =", made).replace("broadcast_in_dim %visible", "broadcast_in_dim %made")
    assert lower_text(text).targets == {ROWS}


@pytest.mark.parametrize("model", [opt, llama])
def test_decoders_read_the_filled_part(model):
    """Heads of their own for each query (OPT), and shared ones (Llama)."""
    sizes = {"name": "small", "hidden": 256, "heads": 4, "layers": 2, "ffn": 512, "vocab": 500}
    own = {"kv_heads": 2} if model is llama else {"embed": 256}
    cfg = (llama.LlamaConfig if model is llama else opt.OPTConfig)(**sizes, **own)
    shapes = (model.parameter_shapes(cfg, jnp.bfloat16), model.cache_shapes(cfg, 1, 256, jnp.bfloat16))
    scalars = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    said = (
        neuronx.compile(functools.partial(model.decode, cfg))
        .lower(*shapes, *scalars)
        .compile()
        .explain_host()
    )
    assert all(filled_target("bf16", by_rows=by_rows) in said for by_rows in (False, True))
