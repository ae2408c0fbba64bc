"""Published times of single kernels on NeuronCore-v2 beside the clock's, each with its tolerance.

None of them is fitted. AWS's own tests state ceilings that tuned kernels stay below; ours are JAX functions
through the whole compiler, so a ceiling binds the ideal era only where the compiler can know the same trick.
"""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import neuronx
from distributed.timeline import time_program
from kernels.eras import ERAS, links_of


def _seconds(function, shapes, dtype, era) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return neuronx.compile(function, era=era).lower(*arguments).compile().profile().timeline.total_s


def _product(a, b):
    return a @ b


def _rms_norm_then_product(x, w):
    wide = x.astype(jnp.float32)
    normal = wide * lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)
    return normal.astype(x.dtype) @ w


def _attention(q, k, v):
    return jax.nn.softmax((q @ k.T).astype(jnp.float32), -1).astype(v.dtype) @ v


def _resize_nearest(images):
    return images[:, jnp.arange(59) * 30 // 59][:, :, jnp.arange(38) * 20 // 38]


def _state_space(delta, u, a, b, c):
    decay = jnp.exp(delta[:, None, :] * a[:, :, None])
    moved = (delta * u)[:, None, :] * b[None]
    _, states = lax.associative_scan(lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (decay, moved), axis=2)
    return (states * c[None]).sum(1)


def _rows(tokens: int, width_in: int, width_out: int):
    return (tokens, width_in), (width_in, width_out)


# (function, shapes, type, published us): ceilings of AWS's NKI samples (test/integration).
_CEILINGS = [
    (_rms_norm_then_product, _rows(128, 512, 512), "float16", 25),
    (_rms_norm_then_product, _rows(512, 1024, 384), "bfloat16", 40),
    (_rms_norm_then_product, _rows(128, 1024, 512), "bfloat16", 28),
    (_rms_norm_then_product, _rows(1024, 8192, 512), "bfloat16", 301),
    (_resize_nearest, ((10, 30, 20, 1280),), "float32", 1722),
]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("function", "shapes", "dtype", "ceiling_us"), _CEILINGS)
def test_kernels_stay_below_their_ceilings(function, shapes, dtype, ceiling_us, era) -> None:
    assert _seconds(function, shapes, dtype, era) < ceiling_us * 1e-6


@pytest.mark.parametrize(
    ("length", "width", "dtype", "ceiling_us"),
    [(4096, 128, "float32", 675), (4096, 128, "bfloat16", 536), (5120, 128, "bfloat16", 586),
     (4096, 64, "float16", 600)],
)  # fmt: skip
def test_attention_is_near_its_ceiling(length, width, dtype, ceiling_us) -> None:
    # Their kernel works on several tiles at once and divides the result; ours does one step after the other.
    seconds = _seconds(_attention, [(length, width)] * 3, dtype, "ideal")
    assert 0.5 * ceiling_us < seconds * 1e6 < 1.1 * ceiling_us


def test_attention_of_sdk_2_18_stays_below_the_plain_kernels_ceiling() -> None:
    # 600 to 675 us for f32 whose products run in bf16; what is read and written is q, k, v and the result.
    arguments = [jax.ShapeDtypeStruct((4096, 128), jnp.float32)] * 3
    compiled = neuronx.compile(_attention, auto_cast="matmult").lower(*arguments).compile()
    assert compiled.profile().timeline.total_s < 675e-6


@pytest.mark.parametrize(
    ("function", "instance", "is_whole"),
    [
        (_attention, "inf2.xlarge", False),
        (_attention, "inf1.xlarge", True),
        (lambda q, k, v: (_attention(q, k, v), q @ k.T), "inf2.xlarge", True),
    ],
)
def test_scores_leave_the_chip_where_something_needs_them_whole(function, instance, is_whole) -> None:
    length, width = 8192, 128
    arguments = [jax.ShapeDtypeStruct((length, width), jnp.bfloat16)] * 3
    program = neuronx.compile(function).lower(*arguments).compile().program
    timeline = time_program(program, instance)
    moved = timeline.bytes_accessed - 4 * 2 * length * width
    assert (moved >= 2 * length * length) if is_whole else (moved == timeline.spill_bytes == 0)


def test_a_large_product_takes_what_the_best_tiling_takes() -> None:
    # nki/tutorials/matrix_multiplication.rst: 6.97 ms; the plain tilings take 22 to 52 ms.
    shapes = _rows(4096, 8192, 8192)
    assert _seconds(_product, shapes, "bfloat16", "sdk-2.18") == pytest.approx(6.97e-3, rel=0.05)
    assert 0.8 * 6.97e-3 < _seconds(_product, shapes, "bfloat16", "ideal") < 6.97e-3


def test_a_state_space_scan() -> None:
    # nki/tutorials/fused_mamba.rst, v1: 172.93 us, the vector engine busy throughout. It has one instruction
    # for a scan; ours is logarithmically many products and sums.
    shapes = [(256, 512), (256, 512), (256, 16), (16, 512), (16, 512)]
    assert 172e-6 < _seconds(_state_space, shapes, "float32", "ideal") < 2 * 172.93e-6


@pytest.mark.parametrize(
    ("width_in", "width_out", "published_us"),
    [(2048, 16384, 1.2375), (8192, 2048, 0.714), (2048, 2048, 0.185)],
)
def test_a_token_more_in_llama_1b(width_in, width_out, published_us) -> None:
    # LLMServingSim's profile of an inf2 core, 4096 to 8192 tokens, op by op from PyTorch: slower than in a
    # graph, and no less than half as fast.
    few, many = (
        _seconds(_product, _rows(n, width_in, width_out), "bfloat16", "sdk-2.18") for n in (4096, 8192)
    )
    assert 0.5 < (many - few) / 4096 * 1e6 / published_us < 1


def test_launches_are_within_what_was_measured() -> None:
    # nccom-test.rst: 52 us of a launch; LLMServingSim: 200 to 420 us of one from PyTorch.
    assert 52e-6 <= links_of("sdk-2.18").launch_s <= 200e-6
    assert links_of("ideal").launch_s == pytest.approx(52e-6)
