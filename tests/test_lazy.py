"""Lazy arrays: eager code is recorded, runs when looked at, equals the compiled function, compiles once."""

import copy
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import neuronx
from neuronx.lazy import LazyArray, StrictError


@pytest.fixture(autouse=True)
def fresh():
    neuronx.lazy.reset()
    neuronx.lazy.clear_graphs()


def causes():
    return [one.cause for one in neuronx.lazy.explain()]


def num_compiled():
    return sum(one.is_new for one in neuronx.lazy.explain())


def test_types_are_known_and_nothing_runs():
    with neuronx.lazy():
        x = jnp.ones((4, 3)) @ jnp.ones((3, 5))
        assert isinstance(x, jax.Array) and isinstance(x, LazyArray)
        assert (x.shape, x.dtype, x.ndim, x.size) == ((4, 5), np.float32, 2, 20)
        assert x.is_pending and len(neuronx.lazy.explain()) == 0
        neuronx.mark_step()
        assert not x.is_pending and causes() == ["mark_step"]
    np.testing.assert_array_equal(x, np.full((4, 5), 3, np.float32))


def test_a_shape_error_is_raised_at_the_line():
    with neuronx.lazy():
        x = jnp.ones((4, 3))
        with pytest.raises(TypeError, match=r"dot_general requires contracting dimensions"):
            x @ x
        assert float(x.sum()) == 12


READS = {
    "np.asarray": np.asarray,
    "float": float,
    "int": int,
    "bool": bool,
    "complex": complex,
    "print": repr,
    "item": lambda x: x.item(),
    "tolist": lambda x: x.tolist(),
    "block_until_ready": jax.block_until_ready,
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("cause", READS)
def test_each_way_to_look_is_named(cause):
    with neuronx.lazy():
        x = jnp.float32(2) + 1
        READS[cause](x)
        assert causes() == [cause]
        READS[cause](x)
        assert len(causes()) == 1, "computed once"
    assert neuronx.lazy.explain()[0].line.startswith(__file__)


def test_index_and_format_and_str():
    with neuronx.lazy():
        n = jnp.int32(1) + 1
        assert [10, 20, 30][n] == 30 and f"{jnp.float32(1) / 4:.3f}" == "0.250" and str(n) == "2"
        assert len(range(n)) == 2
    assert causes() == ["index", "print"]


def test_control_flow_on_a_value_runs_it():
    with neuronx.lazy():
        x = jnp.arange(6.0)
        y = x * 2 if (x.sum() > 3) else x
        while y.max() < 100:
            y = y * y
        assert float(y[2]) == 16.0
    assert causes()[:2] == ["bool", "bool"]


def test_looking_runs_only_what_is_needed():
    with neuronx.lazy():
        x, unrelated = jnp.arange(4.0), jnp.ones(3) * 2
        half = x / 2
        float(half.sum())
        assert unrelated.is_pending and not half.is_pending, "held ancestors are kept, others wait"
    assert [one.num_outputs for one in neuronx.lazy.explain()] == [3, 1]


def test_what_nobody_holds_does_not_run():
    with neuronx.lazy():
        jnp.ones(3) + 1
    assert len(neuronx.lazy.explain()) == 0


def mlp_loss(params, x, y):
    h = jax.nn.gelu(x @ params["w0"] + params["b0"])
    return jnp.mean((h @ params["w1"] - y) ** 2)


def mlp_params(rng):
    shapes = {"w0": (8, 32), "b0": (32,), "w1": (32, 4)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def sgd(params, x, y, rate):
    loss, grads = jax.value_and_grad(mlp_loss)(params, x, y)
    return loss, jax.tree.map(lambda p, g: p - rate * g, params, grads)


@pytest.mark.parametrize("tp_degree", [1, 4])
def test_a_training_loop_compiles_at_most_two_graphs_and_equals_compile(rng, tp_degree):
    params = start = {name: jnp.asarray(value) for name, value in mlp_params(rng).items()}
    data = [rng.standard_normal((2, 16, 8)).astype(np.float32) for _ in range(5)]
    losses, rates = [], [0.1 / (1 + i) for i in range(5)]
    with neuronx.lazy(tp_degree=tp_degree):
        for (x, y), rate in zip(data, rates, strict=True):
            loss, params = sgd(params, x, y[:, :4], rate)
            neuronx.mark_step()
            losses.append(loss)
    assert num_compiled() <= 2 and len(causes()) == 5
    step, expected = neuronx.compile(sgd, tp_degree=tp_degree), start
    for (x, y), rate, loss in zip(data, rates, losses, strict=True):
        wanted, expected = step(expected, x, y[:, :4], rate)
        assert np.asarray(loss).tobytes() == np.asarray(wanted).tobytes()
    for name in expected:
        assert np.asarray(params[name]).tobytes() == np.asarray(expected[name]).tobytes()


def test_results_stay_on_the_ring():
    from neuronx.arrays import RingArray

    with neuronx.lazy(tp_degree=2):
        x = jnp.ones((4, 4)) * 2
        neuronx.mark_step()
        assert isinstance(x.value.result, RingArray)


def test_a_numpy_array_used_twice_is_one_input(rng):
    a = rng.standard_normal(4).astype(np.float32)
    with neuronx.lazy():
        y = (jnp.sin(a) + jnp.cos(a)).sum()
        a[0] += 1
        changed = y + jnp.tan(a).sum()
        neuronx.mark_step()
        assert neuronx.lazy.explain()[0].num_inputs == 2
    before = a.copy()
    before[0] -= 1
    expected = (np.sin(before) + np.cos(before)).sum() + np.tan(a).sum()
    np.testing.assert_allclose(changed, expected, rtol=1e-5)


def test_new_values_do_not_compile_again(rng):
    with neuronx.lazy():
        for step in range(4):
            key = jax.random.fold_in(jax.random.key(step), 7 * step)
            x = jax.random.normal(key, (4,)) * (step + 0.5) + rng.standard_normal(4).astype(np.float32)
            x = x.at[step].set(step) + np.float32(step)
            neuronx.mark_step()
            del x, key
    assert num_compiled() == 1 and len(causes()) == 4


def test_numbers_of_jax_itself_are_constants_until_they_change():
    from jax.example_libraries import optimizers

    init, update, params = optimizers.sgd(lambda step: 0.5 / (1 + step))
    with neuronx.lazy():
        state = init(jnp.ones(3))
        neuronx.mark_step()
        for step in range(5):
            state = update(step, params(state), state)
            neuronx.mark_step()
        x = params(state)
    expected = np.ones(3, np.float32)
    for step in range(5):
        expected = expected - np.float32(0.5 / (1 + step)) * expected
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    new = [one for one in neuronx.lazy.explain() if one.is_new]
    assert len(new) == 3 and "from now on it is an input" in new[-1].difference


def test_constants_of_activations_stay_constants():
    with neuronx.lazy():
        jnp.sum(jax.grad(lambda x: jnp.sum(jax.nn.gelu(x) ** 2))(jnp.asarray(np.ones(8, np.float32)))).item()
    assert neuronx.lazy.explain()[0].num_inputs == 1


def test_random_numbers_are_those_of_jax():
    def draw(seed):
        key, other = jax.random.split(jax.random.key(seed))
        bits = jax.random.randint(other, (5,), 0, 100)
        return jax.random.uniform(key, (3, 4)), jax.random.permutation(other, 6), bits, key

    with neuronx.lazy(tp_degree=2):
        got = draw(3)
    for one, wanted in zip(got[:3], draw(3)[:3], strict=True):
        np.testing.assert_array_equal(one, wanted)
    assert jnp.array_equal(jax.random.key_data(got[3].array()), jax.random.key_data(draw(3)[3]))


def test_writing_to_a_captured_numpy_array_changes_nothing(rng):
    a, b = rng.standard_normal((2, 64, 64)).astype(np.float32)
    fresh_a, fresh_b = a.copy(), b.copy()
    inner = jax.jit(lambda x: x + b)
    with neuronx.lazy():
        x = jnp.asarray(a)
        y, z = inner(jnp.float32(1)), a + jnp.float32(2)
        w = lax.scan(lambda c, _: (c + b, None), jnp.zeros_like(b), None, length=2)[0]
        a[:], b[:] = 0, 0
        for got, wanted in ((x, fresh_a), (y, fresh_b + 1), (z, fresh_a + 2), (w, fresh_b + fresh_b)):
            np.testing.assert_array_equal(got, wanted)


def test_large_constants_stay_buffers(rng):
    big = jnp.asarray(rng.standard_normal((256, 256)).astype(np.float32))
    inner = jax.jit(lambda x: x @ big)
    with neuronx.lazy():
        for _ in range(3):
            y = inner(jnp.ones((1, 256)))
            neuronx.mark_step()
    assert num_compiled() == 1
    (entry,) = neuronx.lazy.session.CACHE.entries.values()
    assert len(entry.compiled.as_text("global")) < 5000
    np.testing.assert_allclose(y, np.ones((1, 256)) @ np.asarray(big), rtol=1e-4, atol=1e-4)


def test_transformations_inside(rng):
    x = rng.standard_normal((6, 4)).astype(np.float32)

    def work(x):
        def body(carry, row):
            return jnp.tanh(carry + row), carry.sum()

        last, sums = lax.scan(body, jnp.zeros(4), x)
        branch = lax.cond(sums[-1] > 0, jnp.sin, jnp.cos, last)
        chosen = lax.switch(jnp.int32(1), [jnp.sin, jnp.cos, jnp.tan], branch)
        doubled = lax.while_loop(lambda c: c.sum() < 50, lambda c: c * 2 + 1, jnp.abs(x))
        counted = lax.fori_loop(0, 5, lambda i, c: c * 1.5 + i, chosen)
        rows = jax.vmap(lambda r: jnp.dot(r, r))(x)
        slope = jax.grad(lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x).sum())(x)
        return last, sums, branch, chosen, doubled, counted, jnp.linalg.norm(rows), slope

    with neuronx.lazy(tp_degree=2):
        got = work(x)
        assert all(one.is_pending for one in got)
    for one, wanted in zip(got, work(x), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=2e-6, atol=2e-6)


DERIVATIVES = {
    "grad": lambda x: jax.grad(lambda r: jnp.sum(jax.nn.gelu(r) ** 2))(x),
    "vmap grad": lambda x: jax.vmap(jax.grad(lambda r: jnp.sum(jax.nn.softmax(r) ** 2)))(x),
    "jacfwd": lambda x: jax.jacfwd(lambda r: jnp.sin(r).sum())(x[0]),
    "hessian": lambda x: jax.hessian(lambda r: jnp.sum(r**3))(x[0, :2]),
    "jvp": lambda x: jax.jvp(jnp.tanh, (x,), (x,))[1],
    "vjp": lambda x: jax.vjp(jnp.tanh, x)[1](x)[0],
    "checkpoint": lambda x: jax.grad(jax.checkpoint(lambda r: jnp.sin(jnp.sin(r)).sum()))(x),
    "jit grad": lambda x: jax.jit(jax.grad(lambda r: jnp.sum(jax.nn.relu(r))))(x),
    "grad jit": lambda x: jax.grad(jax.jit(lambda r: jnp.sum(jax.nn.silu(r))))(x),
    "custom_vjp": lambda x: jax.grad(lambda r: clipped(r).sum())(x),
    "linear_transpose": lambda x: jax.linear_transpose(lambda r: r * 2, x)(x)[0],
}


@jax.custom_vjp
def clipped(x):
    return x * 2


clipped.defvjp(lambda x: (x * 2, None), lambda _, g: (jnp.clip(g, -0.5, 0.5),))


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_are_recorded_and_right(name, rng):
    x = rng.standard_normal((6, 4)).astype(np.float32)
    with neuronx.lazy():
        y = DERIVATIVES[name](jnp.asarray(x))
        assert causes() == []
    np.testing.assert_allclose(y, DERIVATIVES[name](x), rtol=2e-6, atol=2e-6)


def test_functions_made_anew_each_step_share_a_graph():
    with neuronx.lazy():
        x = jnp.ones(3)
        neuronx.mark_step()
        for _ in range(3):
            x = lax.scan(lambda c, _: (c + 1, None), x, None, length=3)[0]
            x = jax.jit(lambda y: jnp.sin(y) * 2)(x)
            x = x + jax.grad(lambda y: lax.cond(True, jnp.sin, jnp.cos, y).sum())(x)
            neuronx.mark_step()
    assert num_compiled() == 2


def test_a_jitted_function_reads_the_lazy_array_it_closes_over():
    with neuronx.lazy():
        for number in (1.0, 2.0):
            w = jnp.float32(number) * 3
            assert float(jax.jit(lambda x, w=w: x + w)(1.0)) == number * 3 + 1


def test_indexing_by_values():
    with neuronx.lazy():
        x = jnp.arange(10.0)
        n = jnp.int32(2) + 1
        np.testing.assert_array_equal(x[x > 6], [7, 8, 9])
        np.testing.assert_array_equal(x[n : n + 2], [3, 4])
        assert float(x[n]) == 3 and jnp.arange(n).shape == (3,)
        assert jnp.nonzero(x > 7)[0].tolist() == [8, 9]
        first, *_ = x
        assert float(first) == 0 and [float(v) for v in x[:2]] == [0, 1]


def test_powers_do_not_depend_on_whether_the_exponent_is_known():
    with neuronx.lazy():
        n = jnp.int32(3)
        neuronx.mark_step()
        y = jnp.float32(2) ** n
        assert y.is_pending and float(y) == 8 and causes()[-1] == "float"


def test_numpy_operators_and_copies():
    with neuronx.lazy():
        x = np.ones(3, np.float32) + jnp.ones(3) * 2
        assert isinstance(x, LazyArray)
        np.testing.assert_array_equal(np.add(x, 1), [4, 4, 4])
        np.testing.assert_array_equal(copy.deepcopy(x), x)
        np.testing.assert_array_equal(jax.device_get(x), x)
        np.testing.assert_array_equal(jnp.stack([x, jax.device_put(x)]), [[3] * 3] * 2)
        assert np.asarray(x, np.float64).dtype == np.float64


def test_types_of_numbers_are_those_of_jax():
    def work():
        return [
            jnp.int8(1) + 1,
            jnp.bfloat16(1) * 2.5,
            jnp.asarray(2) / 3,
            jnp.bool_(True) & True,
            jnp.asarray(1) + 1j,
        ]

    with neuronx.lazy():
        got = work()
    for one, wanted in zip(got, work(), strict=True):
        assert (one.dtype, one.weak_type) == (wanted.dtype, wanted.weak_type)
        np.testing.assert_array_equal(one, wanted)


# What happens outside, on other threads, and after errors.


def test_arrays_go_on_after_the_context():
    with neuronx.lazy():
        x = jnp.arange(4.0) + 1
    assert causes() == ["end of the context"]
    assert isinstance(x + 1, jax.Array) and not isinstance(x + 1, LazyArray)
    assert float(jax.jit(jnp.sum)(x)) == 10 and float(jax.grad(lambda y: (y * x).sum())(x)[0]) == 1
    assert float(neuronx.compile(jnp.sum)(x)) == 10 and causes() == ["end of the context"]


def test_an_exception_leaves_nothing_broken():
    with pytest.raises(ZeroDivisionError), neuronx.lazy():
        x = jnp.ones(3) * 2
        raise ZeroDivisionError
    assert not isinstance(jnp.ones(3), LazyArray) and causes() == []
    np.testing.assert_array_equal(x + 1, [3, 3, 3])
    assert causes() == ["op outside the context"]
    with neuronx.lazy():
        assert float(x.sum() + jnp.float32(1)) == 7


def test_an_exception_inside_a_transformation_leaves_the_recording_whole():
    with neuronx.lazy():
        x = jnp.ones(3)
        with pytest.raises(ZeroDivisionError):
            jax.grad(lambda y: 1 / 0)(x)
        with pytest.raises(ZeroDivisionError):
            jax.jit(lambda y: 1 / 0)(x)
        assert float((x + 1).sum()) == 6


def test_what_cannot_be_compiled_fails_by_itself():
    with neuronx.lazy():
        good = jnp.ones(3) + 1
        bad = jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), np.float32), good)
        np.testing.assert_allclose(bad, np.sin([2, 2, 2]), rtol=1e-6)
        worse = jax.jit(lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((3,), np.float32), x))(good)
        with pytest.raises(neuronx.CompileError, match="callback"):
            np.asarray(worse)
        assert float(good.sum()) == 6
        del worse


def test_printing_from_the_program_happens_at_once(capsys):
    with neuronx.lazy():
        x = jnp.float32(1) + 1
        jax.debug.print("x is {}", x)
        jax.effects_barrier()
        assert "x is 2.0" in capsys.readouterr().out
        with pytest.raises(neuronx.CompileError, match="cannot be recorded"):
            jax.jit(lambda y: [jax.debug.print("{}", y), y][1])(x)


def test_another_thread_computes_at_once():
    found = {}
    with neuronx.lazy():
        x = jnp.ones(3) + 1

        def elsewhere():
            found["mine"] = jnp.ones(2)
            found["sum"] = x.sum()

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert not isinstance(found["mine"], LazyArray) and not isinstance(found["sum"], LazyArray)
        assert float(found["sum"]) == 6 and not x.is_pending


def test_threads_with_contexts_of_their_own():
    results, wrong = {}, []

    def work(number):
        try:
            with neuronx.lazy(tp_degree=1 + number % 2):
                x = jnp.full((4, 4), number, jnp.float32)
                for _ in range(3):
                    x = x @ x / 4 + number
                    neuronx.mark_step()
                results[number] = np.asarray(x)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(results) == 4
    for number, got in results.items():
        x = np.full((4, 4), number, np.float32)
        for _ in range(3):
            x = x @ x / 4 + number
        np.testing.assert_allclose(got, x, rtol=1e-6)


def test_a_context_belongs_to_one_thread():
    session, wrong = neuronx.lazy(), []

    def enter():
        try:
            session.__enter__()
        except neuronx.CompileError as error:
            wrong.append(error)

    with session:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert "another thread" in str(wrong[0])


def test_nested_contexts():
    with neuronx.lazy(tp_degree=2) as outer:
        x = jnp.ones((4, 4)) * 3
        with neuronx.lazy(tp_degree=4):
            y = x + 1
            assert causes() == ["use in another context"] and y.is_pending
            with outer:
                z = x * 2
        assert not y.is_pending, "the inner context ran when it ended"
        w = y + z
    np.testing.assert_array_equal(w, np.full((4, 4), 10))


def test_not_under_a_transformation():
    def inside(x):
        with neuronx.lazy():
            return x + 1

    with pytest.raises(neuronx.CompileError, match="under a JAX transformation"):
        jax.jit(inside)(1.0)


def test_mark_step_needs_a_context():
    with pytest.raises(neuronx.CompileError, match="outside of a lazy context"):
        neuronx.mark_step()


def test_shard_map_inside(rng):
    """Called directly, under jit and differentiated; one graph for all steps."""
    mesh = jax.sharding.AbstractMesh((4,), ("tp",))
    split, whole = jax.sharding.PartitionSpec("tp"), jax.sharding.PartitionSpec()

    def total(x):
        body = lambda x: jax.lax.psum(jnp.sin(x), "tp")  # noqa: E731
        return jax.shard_map(body, mesh=mesh, in_specs=split, out_specs=whole, check_vma=False)(x)

    arrays = [rng.standard_normal(8).astype(np.float32) for _ in range(3)]
    neuronx.lazy.reset()
    for fn in (total, jax.jit(total)):
        with neuronx.lazy():
            for x in arrays:
                got = fn(x) + 1
                assert got.shape == (2,) and got.is_pending
                np.testing.assert_allclose(got, np.sin(x).reshape(4, 2).sum(0) + 1, rtol=1e-5, atol=1e-6)
    assert sum(run.is_new for run in neuronx.lazy.explain()) <= 2
    with neuronx.lazy():
        gradient = jax.grad(lambda x: (total(x) * jnp.arange(2.0)).sum())(arrays[0])
        np.testing.assert_allclose(gradient, np.cos(arrays[0]) * ([0, 1] * 4), rtol=1e-5, atol=1e-6)
    with neuronx.debug() as session:
        total(arrays[0]) * 2
    assert [op.op for op in session.ops if op.op in ("jit", "mul")] == ["jit", "mul"]


def test_compiled_functions_inside():
    with neuronx.lazy():
        x = jnp.ones(3) + 1
        y = neuronx.compile(lambda v: v * 2)(x)
        assert float((y + x).sum()) == 18
    assert causes()[0] == "neuronx.compile"


def test_a_strict_context_forbids_looking():
    with neuronx.lazy(strict=True):
        x = jnp.float32(1) + 1
        with pytest.raises(
            StrictError, match=r"float needs the elements of float32.*\n.*test_lazy.py:\d+"
        ) as error:
            float(x)
        assert isinstance(error.value, neuronx.CompileError)
        neuronx.mark_step()
        assert float(x) == 2


def test_a_strict_region():
    with neuronx.lazy():
        x = jnp.float32(1) + 1
        with neuronx.lazy.strict():
            y = x + 1
            with pytest.raises(StrictError):
                bool(y)
        assert bool(y)


def test_big_values_are_freed():
    import gc
    import weakref

    with neuronx.lazy():
        big = jnp.asarray(np.ones((64, 64), np.float32))
        ref = weakref.ref(big.array())
        y = big + 1
        neuronx.mark_step()
        del big
        gc.collect()
        assert ref() is None
        assert float(y[0, 0]) == 2


def test_options_are_checked_at_once():
    with pytest.raises(neuronx.CompileError, match="99"):
        neuronx.lazy(tp_degree=99)
    with pytest.raises(neuronx.CompileError, match="max_graphs"):
        neuronx.lazy(max_graphs=0)
