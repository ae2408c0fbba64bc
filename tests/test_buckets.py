"""Dynamic shapes: right results at every size, one program a bucket, and padding that leaks is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import neuronx
from neuronx.buckets import PaddingLeakError
from neuronx.frontend import DataDependentError

BUCKETS = {"b": (1, 4), "s": (8, 16)}


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def pooled(params, x, *, s):
    """Attends and averages over the dim s: masked where it mixes."""
    keys = x @ params["k"]
    valid = jnp.arange(x.shape[1]) < s
    scores = jnp.where(valid, jnp.einsum("bik,bjk->bij", keys, keys), -jnp.inf)
    mixed = jax.nn.softmax(scores) @ x
    return jnp.where(valid[:, None], mixed, 0).sum(1) / s, {"mixed": mixed}


def reference(params, x):
    keys = x @ params["k"]
    mixed = jax.nn.softmax(jnp.einsum("bik,bjk->bij", keys, keys)) @ x
    return mixed.mean(1), {"mixed": mixed}


@pytest.mark.parametrize("tp_degree", [1, 2])
def test_every_size_is_right_and_buckets_are_compiled_once(tp_degree, rng):
    fast = neuronx.compile(pooled, tp_degree=tp_degree, buckets=BUCKETS, in_shapes=(None, "b, s, 6"))
    params = {"k": floats(rng, 6, 4)}
    for b, s in [(1, 8), (1, 5), (3, 8), (4, 16), (2, 9), (1, 1), (2, 16), (3, 7)]:
        x = floats(rng, b, s, 6)
        got, wanted = fast(params, x), reference(params, x)
        assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, wanted)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    rows = fast.report().rows
    assert [dict(row.sizes) for row in rows] == [
        {"b": 1, "s": 8}, {"b": 4, "s": 8}, {"b": 4, "s": 16},
    ]  # fmt: skip
    assert [row.calls for row in rows] == [3, 2, 3]


def test_the_report_counts_the_padding(rng):
    fast = neuronx.compile(lambda x, w: x @ w, buckets={"n": (8,)}, in_shapes=("n, 3", None))
    w = floats(rng, 3, 2)
    for n in (8, 6, 1):
        x = floats(rng, n, 3)
        np.testing.assert_allclose(fast(x, w), x @ w, rtol=1e-5, atol=1e-6)
    (row,) = fast.report().rows
    assert (row.calls, row.elements, row.wasted) == (3, 3 * (24 + 6), 6 + 21)
    assert row.waste == fast.report().waste == 27 / 90
    assert str(fast.report()).splitlines()[-1] == "1 programs, 3 calls, 30.0% of the elements were padding"


def test_exact_compiles_each_size_and_pads_nothing(rng):
    fast = neuronx.compile(
        lambda x: jnp.sort(x, 0).sum(), buckets={"n": (8,)}, in_shapes=("n, 3",), padding="exact"
    )
    for n in (8, 5, 5):
        x = floats(rng, n, 3)
        np.testing.assert_allclose(fast(x), x.sum(), rtol=1e-4, atol=1e-5)
    assert [dict(row.sizes) for row in fast.report().rows] == [{"n": 8}, {"n": 5}]
    assert fast.report().waste == 0
    with pytest.raises(neuronx.CompileError, match="the dim n has size 9, and the largest bucket is 8"):
        fast(floats(rng, 9, 3))


LEAKS = {
    "mean": lambda x: x.mean(),
    "sum that zeros do not change": lambda x: x.sum(),
    "maximum": lambda x: jnp.abs(x).max(),
    "softmax": lambda x: jax.nn.softmax(x, 0),
    "reversal": lambda x: x[::-1],
    "concatenation": lambda x: jnp.concatenate([x, x]),
    "last row": lambda x: x[-1],
    "flattening": lambda x: x.T.reshape(-1),
    "convolution": lambda x: jnp.convolve(x[:, 0], jnp.ones(3), mode="same"),
    "integers": lambda x: (10 * x).astype(jnp.int32).sum(),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_found(name, rng):
    fast = neuronx.compile(LEAKS[name], buckets={"n": (8,)}, in_shapes=("n, 3",))
    fast(floats(rng, 8, 3))  # no padding
    with pytest.raises(PaddingLeakError, match=r"result 0 depends on the padding of n(.|\n)*padding=.exact"):
        fast(5 * floats(rng, 5, 3))


def test_each_padded_dim_is_checked(rng):
    """That the padding of one dim is safe says nothing of another's."""
    fast = neuronx.compile(lambda x: x.sum(1), buckets={"a": (8,), "b": (4,)}, in_shapes=("a, b",))
    for _ in range(2):
        x = floats(rng, 5, 4)
        np.testing.assert_allclose(fast(x), x.sum(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(PaddingLeakError, match="depends on the padding of a, b"):
        fast(floats(rng, 8, 3))


SAFE = {
    "rows": lambda x: jnp.tanh(x @ x.T[:, :0]).sum(1) + x[:, 0],
    "running sum": lambda x: jnp.cumsum(x, 0),
    "scan over rows": lambda x: lax.scan(lambda c, row: (c, row * 2), 0.0, x)[1],
    "vmapped": lambda x: jax.vmap(lambda row: jnp.sort(row)[0])(x),
    "first row": lambda x: x[0],
}


@pytest.mark.parametrize("name", SAFE)
def test_what_does_not_mix_needs_no_mask(name, rng):
    fast = neuronx.compile(SAFE[name], tp_degree=2, buckets={"n": (8,)}, in_shapes=("n, 3",))
    for n in (8, 5, 1):
        x = jnp.asarray(floats(rng, n, 3))
        np.testing.assert_allclose(fast(x), SAFE[name](x), rtol=1e-5, atol=1e-6)


def test_types_tokens_keys_and_captured_arrays(rng):
    table = jnp.asarray(floats(rng, 50, 4), jnp.bfloat16)

    def embed(tokens, key, mask, *, s):
        noise = jax.random.normal(key, (4,), jnp.bfloat16)
        rows = jnp.where(mask[..., None], table[tokens] + noise, 0)
        return rows.astype(jnp.float32).sum(1) + s, jax.random.split(key)

    fast = neuronx.compile(embed, buckets=BUCKETS, in_shapes=("b, s", None, "b, s"))
    for b, s in ((2, 5), (4, 16)):
        tokens = rng.integers(0, 50, (b, s)).astype(np.int32)
        mask, key = rng.integers(0, 2, (b, s)).astype(bool), jax.random.key(5)
        got, wanted = fast(tokens, key, mask), embed(tokens, key, mask, s=np.int32(s))
        np.testing.assert_allclose(got[0], wanted[0], rtol=1e-2, atol=1e-2)
        np.testing.assert_array_equal(jax.random.key_data(got[1]), jax.random.key_data(wanted[1]))


def test_lower_without_arrays():
    fast = neuronx.compile(pooled, buckets=BUCKETS, in_shapes=(None, "b, s, 6"))
    shapes = {"k": jax.ShapeDtypeStruct((6, 4), np.float32)}, jax.ShapeDtypeStruct((3, 9, 6), np.float32)
    exe = fast.lower(*shapes).compile()
    assert exe.cost_analysis()["latency_s"] > 0
    assert exe.input_layouts[0][1].global_shape == (4, 16, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"in_shapes": ("b, 3",), "buckets": {"c": (1,)}},
            r"buckets name the dims \['c'\], in_shapes \['b'\]",
        ),
        ({"in_shapes": ("2*b, 3",), "buckets": {"b": (1,)}}, r"the dim '2\*b' of in_shapes is an expression"),
        ({"in_shapes": ("b, 3",), "buckets": {"b": (0,)}}, "expected sizes of 1 or more"),
        (
            {"in_shapes": ("b, 3",), "buckets": {"b": 8}},
            "fix: give them as a tuple",
        ),
        ({"in_shapes": ("b, 3",), "buckets": {"b": (1,)}, "padding": "zero"}, "expected masked or exact"),
        ({"buckets": {"b": (1,)}}, "buckets without in_shapes"),
        ({"in_shapes": ("b",), "buckets": {"b": (1,)}, "donate_argnums": 0}, "nothing can be donated"),
    ],
)
def test_options(options, message):
    with pytest.raises(neuronx.CompileError, match=message):
        neuronx.compile(lambda x: x, **options)


def test_arguments_that_do_not_fit(rng):
    fast = neuronx.compile(lambda x, y: x + y, buckets={"b": (4,)}, in_shapes=({"x": "b, 3"}, "_, b"))
    with pytest.raises(neuronx.CompileError, match=r"has size 2 in one argument and 3 in another"):
        fast({"x": floats(rng, 2, 3)}, floats(rng, 5, 3))
    for shape in ((2, 4), (2, 3, 1), ()):
        with pytest.raises(neuronx.CompileError, match=r"does not fit in_shapes 'b, 3'"):
            fast({"x": floats(rng, *shape)}, floats(rng, 2))


# What no bucket can help.

DATA_DEPENDENT = {
    "nonzero": lambda x: jnp.nonzero(x)[0],
    "unique": lambda x: jnp.unique(x),
    "mask": lambda x: x[x > 0],
    "if": lambda x: x if x[0] > 0 else -x,
    "range": lambda x: jnp.arange(x[0]),
    "slice": lambda x: x[: x.argmax()],
    "reshape": lambda x: x.reshape(x.argmax(), -1),
    "numpy": lambda x: np.sin(x),
}


@pytest.mark.parametrize("name", DATA_DEPENDENT)
def test_shapes_that_depend_on_data_say_what_to_write(name):
    with pytest.raises(DataDependentError) as error:
        neuronx.compile(DATA_DEPENDENT[name])(np.ones(4, np.float32))
    message = str(error.value)
    assert "jnp.nonzero(x, size=n" in message and "jnp.where(mask, x, 0)" in message
    assert error.value.location.rpartition(":")[0] == __file__
    assert isinstance(error.value.__cause__, Exception)
