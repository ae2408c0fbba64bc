"""Attention in one call: against float64, special values, what is left unread, and what is no such thing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_host_joint import computed
from test_host_kernels import randoms, run

import neuronx
from distributed.joint import Joint
from hlo_passes.host_lowering import lower_text
from kernels.dtypes import dtype
from kernels.host.softmax import round_to
from kernels.host.targets import ROUNDED, attention_reference, attention_target
from neuronx.models import llama, opt
from neuronx.models.layers import zeros

LEAST = float(np.finfo(np.float32).min)
ROUNDING = {"f32": 0.0, "bf16": 2.0**-8, "f16": 2.0**-11}
PAIRS = attention_target("bf16", pairs=True)

# (batches, rows, keys, width of rows and keys, of values): odd sizes leave what follows off any boundary.
FEW = [(1, 1, 1, 129, 64, 64), (2, 3, 1, 4097, 128, 17), (1, 2, 5, 333, 33, 129), (2, 2, 8, 127, 64, 64)]
MANY = [(1, 1, 33, 2002, 34, 66), (1, 3, 129, 258, 64, 64), (2, 20, 9, 200, 8, 17)]


def attend(q, k, v, mask, bias=None, fill=LEAST, scale=1.0, axis=-1):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32) * np.float32(scale)
    scores = scores if bias is None else scores + bias
    weights = jax.nn.softmax(jnp.where(mask, scores, np.float32(fill)), axis=axis)
    return jnp.einsum("bhqk,bhke->bhqe", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def attend_narrowly(q, k, v, mask, bias=0.0, scale=0.7, softmax=None):
    """In the type of its arguments throughout, or but for a softmax in a wider one."""
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * np.asarray(scale, q.dtype)
    scores = jnp.where(mask, scores + jnp.asarray(bias, q.dtype), jnp.finfo(q.dtype).min)
    weights = jax.nn.softmax(scores.astype(softmax or q.dtype)).astype(q.dtype)
    return jnp.einsum("bhqk,bhke->bhqe", weights, v, preferred_element_type=jnp.float32)


def expected_narrowly(q, k, v, mask, bias, scale=0.7, softmax=None):
    """In float64, rounded where the program rounds."""
    element = q.dtype

    def rounded(array, to):
        with np.errstate(over="ignore"):
            return np.asarray(array).astype(np.float32).astype(to).astype(np.float64)

    steps = softmax or element
    products = rounded(q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2), element)
    scores = rounded(rounded(products * np.float64(element.type(scale)), element) + bias, element)
    scores = np.where(mask, scores, float(jnp.finfo(element).min))
    powers = rounded(np.exp(rounded(scores - scores.max(axis=-1, keepdims=True), steps)), steps)
    weights = rounded(powers / rounded(powers.sum(axis=-1, keepdims=True), steps), element)
    return weights @ v.astype(np.float64), weights @ np.abs(v.astype(np.float64))


def expected(q, k, v, mask, bias=0.0, fill=LEAST, scale=1.0):
    return attention_reference(q.astype(np.float64) * np.float32(scale), k, v, mask, fill, bias)


def text_of(function, *arrays: np.ndarray) -> str:
    return jax.jit(function).lower(*arrays).as_text()


def operands(rng, size, name="bf16") -> list[np.ndarray]:
    outer, inner, m, n, depth, width = size
    shapes = ((outer, inner, m, depth), (outer, inner, n, depth), (outer, inner, n, width))
    return [randoms(rng, shape, dtype(name).numpy) for shape in shapes]


def masks(rng, size) -> list[np.ndarray]:
    """Each row to its own end, some to nothing; holes of each batch; none; one of each row of all batches."""
    outer, inner, m, n, *_ = size
    ends = rng.integers(0, n, (m, 1))
    ends[: m // 3] = 0
    return [
        np.arange(n) < ends,
        rng.random((outer, 1, 1, n)) < 0.5,
        np.ones((1, n), bool),
        rng.random((outer, inner, m, n)) < 0.3,
    ]


def assert_attends(got, arrays, mask, name, **others):
    want = expected(*arrays, mask, **others)
    q, k, v = arrays
    magnitude = expected(q, k, np.abs(v.astype(np.float32)), mask, **others)
    # Each weight is rounded as the program says; what f32 does to scores and sums is far below bf16.
    tolerance = 1.1 * ROUNDING[name] + 2.0**-15
    assert np.all(np.abs(got - want) <= tolerance * magnitude)


CASES = [
    ("f32", FEW),
    ("f32", MANY),
    ("bf16", FEW),
    ("bf16", MANY),
    pytest.param("f16", FEW, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_attention_is_that_of_float64(name, sizes, rng):
    for size in sizes:
        arrays = operands(rng, size, name)
        for mask in masks(rng, size):
            text = text_of(attend, *arrays, mask)
            assert lower_text(text).targets == {
                attention_target(name, pairs=sizes is MANY and name == "bf16")
            }
            assert_attends(run(text, *arrays, mask), arrays, mask, name)


@pytest.mark.parametrize("name", ["bf16", "f32"])
def test_a_bias_of_heads_rows_or_all_is_added_to_scaled_products(name, rng):
    for size in (FEW[2], MANY[1]):
        outer, inner, m, n, *_ = size
        arrays, mask = operands(rng, size, name), masks(rng, size)[0]
        for shape in ((inner, 1, n), (1, inner, m, n), (outer, 1, 1, n), (m, 1)):
            bias = rng.standard_normal(shape).astype(np.float32)
            function = functools.partial(attend, scale=0.3)
            text = text_of(function, *arrays, mask, bias)
            assert len(lower_text(text).targets) == 1
            assert_attends(run(text, *arrays, mask, bias), arrays, mask, name, bias=bias, scale=0.3)


@pytest.mark.parametrize("softmax", [None, np.float32])
@pytest.mark.parametrize("size", [(2, 5, 7, 333, 64, 17), (1, 3, 90, 258, 64, 64)])
@pytest.mark.parametrize("name", ["bf16", pytest.param("f16", marks=pytest.mark.slow)])
def test_scores_are_rounded_where_the_program_rounds_them(name, size, softmax, rng):
    outer, inner, m, n, *_ = size
    m = min(m, 8) if name == "f16" else m
    size, element = (outer, inner, m, *size[3:]), dtype(name).numpy
    # Sums of products of few bits are exact in any order, so that all round the same.
    arrays = [
        np.round(array.astype(np.float32) * 8).clip(-16, 16) / 8 for array in operands(rng, size, "f32")
    ]
    arrays = [array.astype(element) for array in arrays]
    bias = rng.standard_normal((inner, 1, n)).astype(element)
    function = functools.partial(attend_narrowly, softmax=softmax)
    for mask in masks(rng, size):
        text = text_of(function, *arrays, mask, bias)
        [target] = lower_text(text).targets
        assert target == attention_target(name, pairs=m > 8)
        got = run(text, *arrays, mask, bias)
        want, magnitude = expected_narrowly(*arrays, mask, bias.astype(np.float64), softmax=softmax)
        error = (np.abs(got - want) / magnitude.max(axis=-1, keepdims=True)).max(axis=-1)
        # Few exponentials, sums and weights lie so near the middle that f32 rounds them the other way.
        assert np.median(error) <= 2.0**-17
        for other in (want, run(text, *arrays, mask, bias, lower=None)):
            assert np.all(np.abs(got - other) <= 4 * ROUNDING[name] * magnitude)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_rounding_is_that_of_numpy(name, rng):
    bits = rng.integers(0, 2**32, 100_000, np.uint32)
    near = rng.standard_normal(100_000, np.float32) * np.exp2(
        rng.integers(-30, 18, 100_000), dtype=np.float32
    )
    half = np.uint32(1 << {"bf16": 15, "f16": 12}[name])
    halves = near.view(np.uint32) // (2 * half) * (2 * half) + half
    special = np.array([np.inf, -np.inf, np.nan, 65519.99, 65520.0, 0.0, 3.4e38], np.float32)
    values = np.concatenate([part.view(np.float32) for part in (bits, near, halves, special)])
    with np.errstate(all="ignore"):
        want = values.astype(dtype(name).numpy).astype(np.float32)
    round_to(values, ROUNDED[name])
    np.testing.assert_array_equal(values, want)


def grouped(q, k, v, mask):
    """Caches [batch, keys, heads, width], each head of which several of queries share."""
    outer, m, heads, depth = q.shape
    q = q.reshape(outer, m, k.shape[2], 2, depth)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k).astype(jnp.float32) / jnp.sqrt(depth)
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30)).astype(q.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(outer, m, heads, depth)


def of_jax(q, k, v, mask):
    return jax.nn.dot_product_attention(q, k, v, mask=mask[None, None])


def of_equinox(q, k, v, mask):
    """As its ``dot_product_attention``: of one head, mapped over heads and batches."""

    def one(q, k, v):
        scores = jnp.einsum("sd,Sd->sS", q / jnp.sqrt(q.shape[-1]).astype(q.dtype), k)
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        return jnp.einsum("sS,Sd->sd", jax.nn.softmax(scores.astype(np.float32)).astype(q.dtype), v)

    return jax.vmap(jax.vmap(one, in_axes=1, out_axes=1))(q, k, v)


def of_the_hidden(q, k, v, mask, *, is_added=False):
    """With a mask that says what is not looked at."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k).astype(jnp.float32) / np.float32(np.sqrt(q.shape[-1]))
    other = jnp.where(~mask, np.float32(LEAST), np.float32(0) if is_added else scores)
    weights = jax.nn.softmax(scores + other if is_added else other)
    return jnp.einsum("bhts,bshd->bthd", weights.astype(q.dtype), v)


WAYS = (grouped, of_jax, of_equinox, of_the_hidden, functools.partial(of_the_hidden, is_added=True))


@pytest.mark.parametrize("function", WAYS)
@pytest.mark.parametrize("name", ["bf16", "f32"])
def test_usual_ways_to_write_it_are_taken(name, function, rng):
    for m in (1, 40):
        heads = 4 if function is grouped else 2
        shapes = (2, m, heads, 128), (2, 500, 2, 128), (2, 500, 2, 128)
        arrays = [randoms(rng, shape, dtype(name).numpy) for shape in shapes]
        mask = np.arange(500) < rng.integers(1, 500, (m, 1))
        text = text_of(function, *arrays, mask)
        assert lower_text(text).targets == {attention_target(name, pairs=m > 8 and name == "bf16")}
        got, want = (run(text, *arrays, mask, **way).astype(np.float32) for way in ({}, {"lower": None}))
        np.testing.assert_allclose(got, want, rtol=0, atol=8 * ROUNDING[name] + 1e-5)


@pytest.mark.parametrize("name", ["bf16", "f32"])
@pytest.mark.parametrize("rows", [1, 40])
def test_a_bias_that_hides_is_a_mask(rows, name, rng):
    """As in Flax: what it hides is not read, and rows that see nothing weigh all alike."""
    q, k, v = operands(rng, (2, 2, rows, 500, 64, 64), name)
    lowest = jnp.finfo(q.dtype).min

    def function(q, k, v, seen):
        bias = jnp.where(seen, 0.0, lowest).astype(q.dtype)
        scores = jnp.einsum("bhqd,bhkd->bhqk", q / jnp.sqrt(64).astype(q.dtype), k) + bias
        return jnp.einsum("bhqk,bhke->bhqe", jax.nn.softmax(scores), v)

    ends = rng.integers(1, 300, (2, 1, rows, 1))
    for seen in (np.arange(500) < ends, np.arange(500) < ends * (np.arange(2)[:, None, None, None] > 0)):
        text = text_of(function, q, k, v, seen)
        got, want = (run(text, q, k, v, seen, **way).astype(np.float32) for way in ({}, {"lower": None}))
        np.testing.assert_allclose(got, want, rtol=0, atol=16 * ROUNDING[name] + 1e-5)
        if seen.any(axis=-1).all():
            k[..., 300:, :], v[..., 300:, :] = np.nan, np.nan
            np.testing.assert_array_equal(run(text, q, k, v, seen).astype(np.float32), got)
            k[..., 300:, :], v[..., 300:, :] = 1, 1


@pytest.mark.parametrize("size", [(1, 2, 1, 1000, 8, 64), (1, 2, 40, 1000, 8, 64)])
@pytest.mark.parametrize("fill", [0.0, 50.0, -np.inf])
def test_a_fill_near_the_scores_weighs_as_much_as_they(fill, size, rng):
    arrays = operands(rng, size)
    mask = np.arange(1000) < rng.integers(1, 300, (size[2], 1))
    got = run(text_of(functools.partial(attend, fill=fill), *arrays, mask), *arrays, mask)
    assert_attends(got, arrays, mask, "bf16", fill=fill)


@pytest.mark.parametrize(("function", "name"), [(attend, "bf16"), (attend, "f32"), (attend_narrowly, "bf16")])
@pytest.mark.parametrize("rows", [1, 40])
def test_what_is_looked_at_keeps_infinity_and_nan_and_the_rest_is_not_read(rows, function, name, rng):
    q, k, v = operands(rng, (1, 2, rows, 1000, 8, 64), name)
    mask = np.broadcast_to(np.arange(1000) < 300, (rows, 1000)).copy()
    mask[: rows // 2, 200:] = False
    k[0, 0, 250, 3], k[0, 1, 5, 0], v[0, 0, 7, 5], v[0, 1, 9, 6] = np.nan, np.inf, np.nan, np.inf
    text = text_of(function, q, k, v, mask)
    plain = run(text, q, k, v, mask, lower=None)
    k[..., 300:, :], v[..., 300:, :] = np.nan, np.inf
    got = run(text, q, k, v, mask)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(plain))
    assert np.isnan(got).any()
    np.testing.assert_allclose(got, plain, rtol=2.0**-6, atol=2.0**-6)


@pytest.mark.parametrize("rows", [5, 40])
def test_a_row_that_sees_nothing_but_infinity_below_is_no_number(rows, rng):
    arrays, mask = operands(rng, (1, 1, rows, 2000, 8, 64)), np.ones((rows, 2000), bool)
    mask[3] = False
    got = run(text_of(functools.partial(attend, fill=-np.inf), *arrays, mask), *arrays, mask)
    assert np.isnan(got[0, 0, 3]).all() and np.isfinite(np.delete(got, 3, axis=2)).all()


def test_an_empty_cache_weighs_all_alike(rng):
    arrays, mask = operands(rng, (1, 2, 1, 130, 64, 64), "f32"), np.zeros((1, 130), bool)
    got = run(text_of(attend, *arrays, mask), *arrays, mask)
    np.testing.assert_allclose(got, arrays[2].mean(axis=2, keepdims=True), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attend", [attend, attend_narrowly])
@pytest.mark.parametrize("rows", [1, 64])
def test_one_call_for_all_cores_has_the_bits_of_each(rows, attend, rng):
    """Keys lie apart; rows and a mask are those of all cores side by side, a bias is common."""
    cores, size = 3, (1, 4, rows, 256, 64, 64)
    ranks = [np.array(rank, np.uint32) for rank in range(cores)]
    each = [operands(rng, size) for _ in range(cores)]
    bias = rng.standard_normal((4, 1, 256)).astype(np.float32)

    def function(rank, q, k, v, bias):
        return attend(q * (1 + rank.astype(q.dtype)), k, v, jnp.arange(256) < 100 + rank, bias)

    text = text_of(function, ranks[0], *each[0], bias)
    columns = [array for column in zip(*each, strict=True) for array in column]
    together = computed(text, [*ranks, *columns, bias], Joint(cores=cores, shared=frozenset({4})))
    for got, rank, arrays in zip(together, ranks, each, strict=True):
        [alone] = computed(text, [rank, *arrays, bias])
        np.testing.assert_array_equal(got, alone)


def weights_as_well(q, k, v, mask):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask, scores, np.float32(LEAST)))
    return weights, jnp.einsum("bhqk,bhke->bhqe", weights, v.astype(jnp.float32))


def rounded_to_two(q, k, v, mask):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k).astype(jnp.float16).astype(jnp.bfloat16)
    return jnp.einsum("bhqk,bhke->bhqe", jax.nn.softmax(scores.astype(jnp.float32)).astype(v.dtype), v)


def doubled(q, k, v, mask):
    scores = jnp.tanh(jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32))
    return jnp.einsum("bhqk,bhke->bhqe", jax.nn.softmax(scores).astype(v.dtype), v)


# What is computed, of how many rows and keys, and why it is left to XLA ("" where it looks like none at all).
NOT_TAKEN = {
    "a softmax over the rows": (functools.partial(attend, axis=2), 300, 300, ""),
    "scores that are changed in another way": (doubled, 300, 300, "more than a product"),
    "scores that are rounded to two types": (rounded_to_two, 300, 300, "more than a product"),
    "weights that are looked at as well": (weights_as_well, 300, 300, "used elsewhere"),
    "an odd number of keys": (attend, 300, 301, "do not go in pairs"),
    "few scores": (attend, 16, 16, "fewer than 65536"),
    "very few": (attend, 1, 16, "fewer than 4096"),
}


@pytest.mark.parametrize("case", NOT_TAKEN)
def test_what_is_no_such_attention_is_left_apart_and_says_why(case, rng):
    function, m, n, reason = NOT_TAKEN[case]
    arrays = operands(rng, (1, 2, m, n, 8, 64))
    lowered = lower_text(text_of(function, *arrays, np.ones((m, n), bool)))
    assert not any("attention" in target for target in lowered.targets)
    said = [one.reason for one in lowered.decisions if one.op.startswith("attention")]
    assert len(said) == bool(reason) and all(reason in one for one in said)


@pytest.mark.parametrize("model", [opt, llama])
@pytest.mark.parametrize("cores", [1, 2])
def test_decoders_make_one_call_of_it(model, cores):
    """Heads of their own for each query (OPT), and shared ones (Llama)."""
    sizes = {"name": "small", "hidden": 256, "heads": 4, "layers": 2, "ffn": 512, "vocab": 500}
    own = {"kv_heads": 2} if model is llama else {"embed": 256}
    cfg = (llama.LlamaConfig if model is llama else opt.OPTConfig)(**sizes, **own)
    shapes = (model.parameter_shapes(cfg, jnp.bfloat16), model.cache_shapes(cfg, 1, 256, jnp.bfloat16))
    scalars = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    decode = neuronx.compile(functools.partial(model.decode, cfg), tp_degree=cores)
    said = decode.lower(*shapes, *scalars).compile().explain_host()
    assert "attention with scores" in said and attention_target("bf16", pairs=False) in said
    # The products that it took the place of are not there any more.
    assert "] x bf16[1, " not in said


def test_prompts_are_read_by_it(rng):
    cfg = opt.OPTConfig(name="small", hidden=128, heads=2, layers=2, ffn=128, vocab=500, embed=128)
    params, tokens = opt.parameters(cfg, jnp.bfloat16, 0), rng.integers(0, 500, (1, 200), np.int32)
    cache = zeros(opt.cache_shapes(cfg, 1, 200, jnp.bfloat16))
    results = []
    for host_kernels in (True, False):
        prefill = neuronx.compile(functools.partial(opt.prefill, cfg), host_kernels=host_kernels)
        compiled = prefill.lower(params, cache, tokens).compile()
        assert (PAIRS in compiled.explain_host()) == host_kernels
        results.append(np.asarray(jax.tree.leaves(compiled(params, cache, tokens))[1], np.float32))
    np.testing.assert_allclose(*results, rtol=0, atol=0.02 * np.abs(results[1]).max())
