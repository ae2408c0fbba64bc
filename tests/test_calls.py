"""Calls as jax.jit makes them: which trace a call gets, what its results are, that they never change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

import neuronx
from kernels.errors import CompileError
from neuronx.frontend import wrap
from neuronx.signature import signature

CORES = (1, 4)


def both(fn, **options):
    """``fn`` compiled by us and by JAX, each with a closure of its own, and how often each was traced."""
    traced = {"ours": 0, "jit": 0}

    def counting(name):
        def counted(*args, **kwargs):
            traced[name] += 1
            return fn(*args, **kwargs)

        return counted

    return neuronx.compile(counting("ours"), **options), jax.jit(counting("jit"), **options), traced


def test_what_a_function_closes_over_is_that_of_its_first_trace():
    scale = [2.0]
    ours, jit, traced = both(lambda x: x * scale[0])
    for value in (2.0, 3.0, 4.0):
        scale[0] = value
        x = jnp.arange(value + 1)  # the first two sizes differ, and so do the traces
        np.testing.assert_array_equal(ours(x), jit(x))
        np.testing.assert_array_equal(ours(jnp.ones(3)), jit(jnp.ones(3)))
    assert traced["ours"] == traced["jit"]


@pytest.mark.parametrize("tp_degree", CORES)
def test_debug_nans_and_debug_infs_forbid_results(tp_degree):
    fn = neuronx.compile(lambda x: (x / x, (x * 2).astype(int)), tp_degree=tp_degree)
    zero, one = jnp.zeros(8), jnp.ones(8, jnp.bfloat16)
    with jax.debug_nans(True), jax.debug_infs(True):
        fn(one)
        with pytest.raises(FloatingPointError, match=r"nan.*neuronx\.debug"):
            fn(zero)
        with pytest.raises(FloatingPointError, match="inf"):
            neuronx.compile(jnp.reciprocal, tp_degree=tp_degree)(zero)
    assert jnp.isnan(fn(zero)[0]).all()


def calls():
    x = np.arange(6.0, dtype=np.float32)
    yield "array", (jnp.asarray(x),), {}
    yield "NumPy", (x,), {}
    yield "weak type", (jnp.asarray(2.0),), {}
    yield "strong scalar", (jnp.float32(2.0),), {}
    yield "NumPy scalar", (np.float32(2.0),), {}
    yield "float", (2.0,), {}
    yield "int", (2,), {}
    yield "bool", (True,), {}
    yield "double", (np.arange(6.0),), {}
    yield "other type", (jnp.asarray(x, jnp.bfloat16),), {}
    yield "keyword", (), {"x": jnp.asarray(x)}
    yield "static", (jnp.asarray(x),), {"mode": "twice"}
    yield "static number", (jnp.asarray(x),), {"mode": 1}
    yield "equal static number of another type", (jnp.asarray(x),), {"mode": True}
    yield "none", (jnp.asarray(x), None), {}
    yield "tree", (jnp.asarray(x), {"b": x, "a": (1, jnp.ones(6))}), {}


def test_results_are_those_of_jit_for_all_kinds_of_arguments():
    def fn(x, extra=None, *, mode=""):
        more = sum(jax.tree.leaves(extra), 0)
        return {"sum": x + more, "text": x * len(str(mode)), "many": (x * 2.0, x > 1)}

    ours, jit, traced = both(fn, static_argnames="mode")
    for _ in range(2):
        for name, args, kwargs in calls():
            got, want = ours(*args, **kwargs), jit(*args, **kwargs)
            assert jax.tree.structure(got) == jax.tree.structure(want), name
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                assert (a.aval, a.sharding, a.committed) == (b.aval, b.sharding, b.committed), name
                np.testing.assert_array_equal(a, b, err_msg=name)
    assert traced["ours"] == traced["jit"]


def test_settings_of_the_thread_are_part_of_a_call():
    ours, jit, traced = both(lambda x: (x @ x.T, x + np.float64(1)))
    x = np.arange(12.0).reshape(3, 4)
    for _ in range(2):
        for setting in (
            jax.enable_x64(True),
            jax.enable_x64(False),
            jax.default_matmul_precision("float32"),
            jax.numpy_rank_promotion("raise"),
        ):
            with setting:
                got, want = ours(x), jit(x)
            assert [a.dtype for a in got] == [b.dtype for b in want]
            np.testing.assert_allclose(got[0], want[0])
    assert traced["ours"] == traced["jit"]


def test_shardings_of_arguments_are_part_of_a_call():
    jitted = wrap(lambda x: x, static_argnums=None, static_argnames=None, donate_argnums=None)
    plain = jnp.ones((4, 4))
    mesh = Mesh(np.array(jax.devices()[:1]), ("tp",))
    cut = jax.device_put(plain, NamedSharding(mesh, PartitionSpec("tp")))
    whole = jax.device_put(plain, NamedSharding(mesh, PartitionSpec()))
    keys = [signature(jitted, (x,), {})[1] for x in (plain, cut, whole, plain + 1, cut + 0)]
    assert None not in keys and len(set(keys)) == 3 and keys[0] == keys[3] and keys[1] == keys[4]


def test_what_only_tracing_can_tell_has_no_key():
    jitted = wrap(lambda x: x, static_argnums=None, static_argnames=None, donate_argnums=None)
    shape = jax.ShapeDtypeStruct(
        (4,), jnp.float32, sharding=NamedSharding(AbstractMesh((2,), ("tp",)), PartitionSpec())
    )
    for leaf in (shape, "text", object()):
        assert signature(jitted, (leaf,), {})[1] is None
    ours = neuronx.compile(lambda x: x + 1)
    ours(jnp.ones(3))
    with pytest.raises(CompileError, match="under a JAX transformation"):
        jax.jit(lambda x: ours(x))(jnp.ones(3))
    with pytest.raises(TypeError):
        ours("text")
    with pytest.raises(ValueError, match="hashable"):
        neuronx.compile(lambda x, n: x, static_argnums=1)(jnp.ones(3), [])


def test_an_array_that_was_deleted_is_refused():
    ours, x = neuronx.compile(lambda x: x + 1), jnp.ones(3)
    ours(x)
    x.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        ours(x)


def test_keys_stay_keys_when_they_are_put_on_the_ring():
    exe = neuronx.compile(lambda key, x: jax.random.normal(key, (4,)) + x, tp_degree=2)
    key, x = jax.random.key(3), jnp.ones(4)
    compiled = exe.lower(key, x).compile()
    put = compiled.device_put(key, x)
    np.testing.assert_array_equal(compiled(*put), exe(key, x))


def test_a_result_of_one_block_on_the_ring_is_not_copied(monkeypatch):
    """It lies where the launch wrote it, on the boundary that makes it possible to share the memory."""
    seen = []
    hand_out = neuronx.stages.Runtime.hand_out

    def noting(self, index, placed, **options):
        address = placed.arrays[0].unsafe_buffer_pointer()
        result = hand_out(self, index, placed, **options)
        seen.append((address, result.unsafe_buffer_pointer()))
        return result

    monkeypatch.setattr(neuronx.stages.Runtime, "hand_out", noting)
    for dtype in ("float32", "bfloat16", "int8"):
        exe = neuronx.compile(lambda x: (x * 2, x[0])).lower(jnp.ones((300, 7), dtype)).compile()
        exe(*exe.device_put(jnp.ones((300, 7), dtype)))
    assert len(seen) == 6 and all(block == result for block, result in seen)


@pytest.mark.parametrize("dtype", ["bool", "complex64", "uint16", "float8_e4m3fn", "int4"])
def test_results_of_types_that_are_shared_and_of_those_that_are_not(dtype):
    """JAX hands out memory of most types to others, but not of integers of four bits."""
    x = jnp.asarray(np.random.default_rng().integers(0, 2, (6, 4)), dtype)

    def fn(v):
        return v[::2], v[:0], v[1, 2]

    for got, want in zip(neuronx.compile(fn)(x), jax.jit(fn)(x), strict=True):
        assert (got.aval, got.committed) == (want.aval, want.committed)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def programs():
    """(function, number of arguments, donated ones): results that are fresh, inputs, equal, and in place."""
    yield lambda a, b: (a + b, a * b), 2, ()
    yield lambda a, b: (a, b, a), 2, ()
    yield lambda a: (a, jnp.ones((8, 8)), jnp.ones((8, 8))), 1, ()
    yield lambda a, b: a.at[2].set(b[0]), 2, (0,)
    yield lambda a, b: (a @ b, b), 2, (0, 1)
    yield lambda a: jax.lax.fori_loop(0, 3, lambda i, c: c.at[i].add(1), a), 1, ()
    yield lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: (a, b), lambda: (b, a)), 2, ()


@pytest.mark.parametrize("cores", CORES)
def test_what_the_user_holds_never_changes(cores):
    """Random calls over a growing set of arrays, results of earlier calls among them, some donated."""
    rng = np.random.default_rng()
    compiled = [
        (neuronx.compile(fn, tp_degree=cores, donate_argnums=donated), fn, count, donated)
        for fn, count, donated in programs()
    ]
    held = [
        (x, np.array(x)) for x in (jnp.asarray(rng.standard_normal((8, 8)), jnp.float32) for _ in range(3))
    ]
    for _ in range(40):
        ours, fn, count, donated = compiled[rng.integers(len(compiled))]
        chosen = list(rng.permutation(len(held))[:count])
        given = [held[n] for n in chosen]
        results = jax.tree.leaves(ours(*(array for array, _ in given)))
        wanted = jax.tree.leaves(fn(*(jnp.asarray(value) for _, value in given)))
        for got, want in zip(results, wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        held = [pair for n, pair in enumerate(held) if n not in {chosen[d] for d in donated}]
        held += [
            (got / max(1, abs(got).max()), None) if rng.random() < 0.3 else (got, None) for got in results
        ]
        held = [(x, np.array(x) if value is None else value) for x, value in held][-12:]
        for array, value in held:
            np.testing.assert_array_equal(array, value)


def test_jax_makes_calls_of_types_met_before(monkeypatch):
    met = []
    monkeypatch.setattr(neuronx.function, "signature", lambda *call: met.append(call) or signature(*call))
    rng = np.random.default_rng()
    table, here = jnp.asarray(rng.random((300, 300)), jnp.float32), jax.devices()[0]

    def fn(unused, x, scale, more):
        return {"all": (more["y"] - x @ table) * scale, "same": x, "first": more["y"][0]}

    ours, jit = neuronx.compile(fn), jax.jit(fn)
    for place in (jnp.asarray, lambda x: jax.device_put(x, here)):
        before = len(met)
        for _ in range(3):
            x, y = map(jnp.asarray, rng.random((2, 2, 300), np.float32))
            x, scale = place(x), rng.random()
            got, want = (call(jnp.ones(2), x, scale, {"y": y}) for call in (ours, jit))
            assert jax.tree.map(lambda a: (a.aval, a.sharding, a.committed), got) == jax.tree.map(
                lambda a: (a.aval, a.sharding, a.committed), want
            )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)
        assert len(met) == before + 1


def test_a_donated_array_is_written_where_it_lies():
    ours = neuronx.compile(lambda row, x: (row.sum(), x.at[1].set(row)), donate_argnums=1)
    x, row = jnp.ones((8, 4)) + 1, jnp.arange(4.0)
    for _ in range(3):
        before, address = x, x.unsafe_buffer_pointer()
        _, x = ours(row, x)
        assert before.is_deleted() and x.unsafe_buffer_pointer() == address
    np.testing.assert_array_equal(x, [row if place == 1 else np.full(4, 2.0) for place in range(8)])


def test_an_owner_may_change_what_was_passed_when_the_call_has_returned():
    ours = neuronx.compile(lambda x: jax.lax.fori_loop(0, 20, lambda _, v: jnp.sin(v), x))
    x, want = np.ones(1 << 16, np.float32), None
    for _ in range(9):
        x[:] = 1
        got = ours(x)
        x[:] = 0
        want = np.array(got) if want is None else want
        np.testing.assert_array_equal(got, want)
    assert (want > 0).all()
