"""Attention of many rows in one call: against float64, special values, and what is not taken for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_host_kernels import randoms, run

import neuronx
from hlo_passes.host_lowering import lower_text
from kernels.dtypes import dtype
from kernels.host.targets import ATTENTION, attention_reference
from neuronx.models import opt

BF16 = dtype("bf16").numpy
LEAST = float(np.finfo(np.float32).min)

# (batch, rows, keys, width of rows and keys, of values): odd sizes leave blocks and batches off any boundary.
SIZES = [
    (1, 33, 2002, 34, 66),
    (3, 129, 258, 64, 64),
    (2, 61, 1026, 130, 258),
    (40, 9, 200, 8, 17),
]


def attend(q, k, v, mask, fill=LEAST, axis=-1, chosen=lambda scores: scores):
    scores = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=jnp.float32)
    scores = chosen(jnp.where(mask, scores, np.float32(fill)))
    return jnp.einsum(
        "bqk,bke->bqe",
        jax.nn.softmax(scores, axis=axis).astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
    )


def text_of(function, *arrays: np.ndarray) -> str:
    return jax.jit(function).lower(*arrays).as_text()


def operands(rng, batch: int, m: int, n: int, depth: int, width: int) -> list[np.ndarray]:
    return [randoms(rng, shape, BF16) for shape in ((batch, m, depth), (batch, n, depth), (batch, n, width))]


def masks(rng, m: int, n: int) -> list[np.ndarray]:
    """Each row to its own end, some of them to nothing; holes in the same row for all; all."""
    ends = rng.integers(0, n, (m, 1))
    ends[: m // 3] = 0
    return [np.arange(n) < ends, rng.random((1, n)) < 0.5, np.ones((1, n), bool)]


@pytest.mark.parametrize("size", SIZES)
def test_attention_is_that_of_float64(size, rng):
    _, m, n, *_ = size
    arrays = operands(rng, *size)
    for mask in masks(rng, m, n):
        text = text_of(attend, *arrays, mask)
        assert lower_text(text).targets == {ATTENTION}
        got = run(text, *arrays, mask)
        q, k, v = arrays
        magnitude = attention_reference(q, k, np.abs(v.astype(np.float32)), mask, LEAST)
        # Each weight is rounded to bf16; what f32 does to scores and sums is far below that.
        error = np.abs(got - attention_reference(*arrays, mask, LEAST))
        assert np.all(error <= 1.1 * 2.0**-8 * magnitude)


@pytest.mark.parametrize("fill", [0.0, 50.0, -np.inf])
def test_a_fill_near_the_scores_weighs_as_much_as_they(fill, rng):
    arrays = operands(rng, 2, 40, 1000, 8, 64)
    mask = np.arange(1000) < rng.integers(1, 300, (40, 1))
    got = run(text_of(functools.partial(attend, fill=fill), *arrays, mask), *arrays, mask)
    expected = attention_reference(*arrays, mask, fill)
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=2.0**-8 * np.abs(arrays[2].astype(np.float32)).max()
    )


def test_what_is_looked_at_keeps_infinity_and_nan_and_the_rest_is_not_read(rng):
    q, k, v = operands(rng, 2, 40, 1000, 8, 64)
    mask = np.broadcast_to(np.arange(1000) < 300, (40, 1000)).copy()
    mask[:20, 200:] = False
    k[0, 250, 3], k[1, 5, 0], v[0, 7, 5], v[1, 9, 6] = np.nan, np.inf, np.nan, np.inf
    text = text_of(attend, q, k, v, mask)
    expected = run(text, q, k, v, mask, lower=None)
    k[:, 300:], v[:, 300:] = np.nan, np.inf
    got = run(text, q, k, v, mask)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert 0 < np.isnan(got).sum() < got.size
    np.testing.assert_allclose(got, expected, rtol=2.0**-6, atol=2.0**-6)


def test_a_row_that_sees_nothing_but_infinity_below_is_no_number(rng):
    arrays, mask = operands(rng, 1, 40, 2000, 8, 64), np.ones((40, 2000), bool)
    mask[3] = False
    got = run(text_of(functools.partial(attend, fill=-np.inf), *arrays, mask), *arrays, mask)
    assert np.isnan(got[0, 3]).all() and np.isfinite(np.delete(got, 3, axis=1)).all()


OTHERS = {
    "a softmax over the rows": functools.partial(attend, axis=1),
    "scores that are changed again": functools.partial(attend, chosen=lambda scores: scores * 2),
    "a mask of each batch": lambda q, k, v, mask: attend(q, k, v, jnp.stack([mask, ~mask])),
    "few rows": lambda q, k, v, mask: attend(q[:, :8], k, v, mask[:8]),
    "few scores": lambda q, k, v, mask: attend(q[:, :16], k, v, mask[:16]),
    "f32": lambda q, k, v, mask: attend(*(x.astype(jnp.float32) for x in (q, k, v)), mask),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_such_attention_is_left_apart(case, rng):
    arrays, mask = operands(rng, 2, 300, 300, 8, 64), np.tri(300, dtype=bool)
    assert ATTENTION in lower_text(text_of(attend, *arrays, mask)).targets
    assert ATTENTION not in lower_text(text_of(OTHERS[case], *arrays, mask)).targets


def test_prompts_are_read_by_it(rng):
    cfg = opt.OPTConfig(name="small", hidden=128, heads=2, layers=2, ffn=128, vocab=500, embed=128)
    params, tokens = opt.parameters(cfg, jnp.bfloat16, 0), rng.integers(0, 500, (1, 200), np.int32)
    results = []
    for host_kernels in (True, False):
        prefill = neuronx.compile(functools.partial(opt.prefill, cfg, 200), host_kernels=host_kernels)
        compiled = prefill.lower(params, tokens).compile()
        assert (ATTENTION in compiled.explain_host()) == host_kernels
        results.append(np.asarray(jax.tree.leaves(compiled(params, tokens))[1], np.float32))
    np.testing.assert_allclose(*results, rtol=0, atol=0.02 * np.abs(results[1]).max())
