"""Eager debug mode: right programs pass, and the first op that is wrong, narrow or not finite is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from wrong_passes import make_wrong

import neuronx
from hlo_passes import canonicalize, fuse
from hlo_passes.ir import stablehlo
from neuronx import NumericsError
from neuronx.driver import AUTO_CAST_TYPES


@pytest.fixture(autouse=True)
def fresh():
    neuronx.lazy.clear_graphs()
    yield
    neuronx.lazy.clear_graphs()


def here(marker):
    """``file:line`` of the line of this file that ends with ``# marker``."""
    with open(__file__) as source:
        (number,) = [n for n, line in enumerate(source, 1) if line.rstrip().endswith(f"# {marker}")]
    return f"{__file__}:{number}"


def block(params, x):
    centred = x - x.mean(-1, keepdims=True)
    normed = centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    hidden = jax.nn.gelu(normed @ params["up"])
    return jax.nn.softmax(x + hidden @ params["down"])


def arguments(rng):
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {"up": draw(16, 32) / 4, "down": draw(32, 16) / 6}, draw(4, 16)


def test_a_right_program_passes_and_gives_what_it_gives(rng):
    params, x = arguments(rng)
    with neuronx.debug(tp_degree=2) as session:
        y = block(params, x)
        mean = (y - y.mean(-1, keepdims=True)).mean()  # cancels to nothing, which is no error
    assert session.first is None and len(session.ops) > 20
    np.testing.assert_allclose(y, jax.jit(block)(params, x), rtol=1e-5, atol=1e-6)
    assert abs(float(mean)) < 1e-6
    assert all(one.error < 1e-5 for one in session.ops if not one.why_not)
    assert "none beyond the bound" in session.summary()


def test_derivatives_and_control_flow(rng):
    x = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)

    def loss(x):
        carry, _ = lax.scan(lambda c, row: (jnp.tanh(c + row), c.sum()), x[0], x)
        return lax.cond(carry[0] > 0.5, lambda c: 2 * c, lambda c: c, carry).var()

    with neuronx.debug() as session:
        value, gradient = jax.value_and_grad(jax.jit(loss))(x)
        doubled = lax.while_loop(lambda c: c < 100, lambda c: 2 * c, value)
    assert 100 <= float(doubled) < 200
    wanted, wanted_gradient = jax.jit(jax.value_and_grad(loss))(x)
    assert session.first is None
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-3, atol=1e-6)
    assert sum(op.op == "tanh" for op in session.ops) == 3, "the scan runs as Python"


def test_ops_that_hold_functions_are_compared(rng):
    x = jnp.asarray(rng.standard_normal((4, 4)), jnp.float32)

    def halve(row):  # vmapped, it is one op with functions inside
        return lax.while_loop(lambda c: jnp.abs(c).max() > 0.1, lambda c: c / 2, row)

    with neuronx.debug() as session:
        jax.vmap(halve)(x)
        x.at[jnp.array([1, 1])].add(0.5)
        jax.grad(lambda x: jax.checkpoint(lambda x: jnp.tanh(x @ x))(x).sum())(x)
    found = {op.op: op for op in session.ops}
    for name in ("while", "scatter-add", "remat2"):
        assert not found[name].why_not and found[name].error < 1e-6


def test_random_numbers_are_those_of_jax():
    with neuronx.debug() as session:
        drawn = jax.random.uniform(jax.random.key(3), (2,))
    assert session.first is None
    np.testing.assert_array_equal(drawn, jax.random.uniform(jax.random.key(3), (2,)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_narrow_and_complex_types_pass(dtype, rng):
    x = jnp.asarray(rng.standard_normal((8, 32)), dtype)
    with neuronx.debug() as session:
        y = (jnp.tanh(x @ x.T) * 2 + x[:, :8]).sum(0)
    assert session.first is None and y.dtype == dtype
    assert max(one.error for one in session.ops if not one.why_not) < 0.1


def test_the_first_nan_is_named(rng):
    x = rng.uniform(1, 2, (4, 3)).astype(np.float32)
    x[2, 1] = -1
    with pytest.raises(NumericsError) as error, neuronx.debug():
        y = jnp.exp(x)
        y = jnp.log(x) + y  # the NaN
        jnp.sqrt(y)
    assert (error.value.op, error.value.location) == ("log", here("the NaN"))
    assert "1 elements of its results are NaN or infinite" in str(error.value)
    assert "operand 0: float32[4, 3], -1 to" in str(error.value)
    assert error.value.checked.results == ("float32[4, 3]" + error.value.checked.results[0][13:],)
    assert "1 not finite" in error.value.checked.results[0]


def test_infinities_the_user_wrote_are_no_error(rng):
    x = rng.standard_normal((4, 4)).astype(np.float32)
    with neuronx.debug() as session:
        masked = jnp.where(jnp.tri(4, dtype=bool), x, -jnp.inf)
        y = jax.nn.softmax(masked)
    assert session.first is None
    np.testing.assert_allclose(np.asarray(y).sum(-1), 1, rtol=1e-6)


def test_an_overflow_of_a_narrow_type_is_named():
    x = jnp.full((4, 4), 200, jnp.float16)
    with pytest.raises(NumericsError, match=r"^dot_general: 16 elements .* NaN or infinite"), neuronx.debug():
        x @ x


def test_cancellation_is_named_with_both_errors(rng):
    x = jnp.asarray(rng.uniform(0, 1e-3, 64), jnp.float32)
    with pytest.raises(NumericsError) as error, neuronx.debug():
        y = x + 1000
        y - 1000  # cancels
    assert (error.value.op, error.value.location) == ("sub", here("cancels"))
    assert error.value.checked.own_error == 0 and error.value.checked.error > 1e-3


@pytest.mark.parametrize("wrong", [canonicalize, fuse], ids=["pass", "decomposition"])
def test_an_op_compiled_wrongly_is_named(wrong, rng, monkeypatch):
    make_wrong(monkeypatch, wrong, "stablehlo.tanh", stablehlo.SineOp)
    x = jnp.asarray(rng.standard_normal((8, 8)), jnp.float32)
    with pytest.raises(NumericsError) as error, neuronx.debug(2):
        y = jnp.exp(x @ x / 8)
        z = jnp.tanh(y)  # wrong
        z + y
    assert (error.value.op, error.value.location) == ("tanh", here("wrong"))
    assert error.value.checked.own_error > 0.1


def test_go_on_and_choose_bound_and_reference(rng):
    x = jnp.asarray(rng.standard_normal((8, 8)), jnp.float32)
    with neuronx.debug(stop=False, bound=1e-3) as session:
        y = (x.astype(jnp.bfloat16) * 3).astype(jnp.float32) + 1
        jnp.log(y * 0)
    assert session.first.op == "convert_element_type" and "allowed is 0.001" in session.first.beyond
    assert sum(bool(one.beyond) for one in session.ops) >= 3
    with neuronx.debug(reference="float32", bound=0.0) as session:
        jnp.abs(x) * 2
    assert session.first is None


@pytest.mark.parametrize("type_", AUTO_CAST_TYPES)
def test_a_cast_the_options_ask_for_is_within_its_own_type(type_, rng):
    x = jnp.asarray(rng.standard_normal((8, 8)), jnp.float32)
    with neuronx.debug(auto_cast="all", auto_cast_type=type_) as session:
        x @ x
    (dot,) = [one for one in session.ops if one.op == "dot_general"]
    assert session.first is None and 1e-5 < dot.own_error < 0.2


def test_after_an_error_everything_works(rng):
    x = rng.standard_normal(3).astype(np.float32)
    for _ in range(2):
        with pytest.raises(NumericsError), neuronx.debug():
            jnp.log(jnp.abs(x) * 0)
    assert not jax.config.jax_disable_jit
    np.testing.assert_array_equal(jax.jit(jnp.abs)(x), np.abs(x))
    with neuronx.lazy():
        y = jnp.abs(x)
        assert y.is_pending


def test_options_are_checked_at_once():
    with pytest.raises(neuronx.CompileError, match="expected one of float64, float32"):
        neuronx.debug(reference="float16")
    with pytest.raises(neuronx.CompileError, match="more than the 2 cores"):
        neuronx.debug(4, instance="inf2.xlarge")


def test_the_environment_asks_for_it(monkeypatch, rng):
    monkeypatch.setenv("NEURONX_EAGER_DEBUG", "1")
    params, x = arguments(rng)
    compiled = neuronx.compile(block, tp_degree=2, host_kernels=False, objective="time")
    y = compiled(params, x)
    assert isinstance(y, jax.Array) and not isinstance(y, neuronx.lazy.LazyArray)
    np.testing.assert_allclose(y, jax.jit(block)(params, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(NumericsError, match=r"^log"):
        neuronx.compile(lambda x: jnp.log(x) + 1)(-np.ones(3, np.float32))
    with pytest.raises(NumericsError, match=r"^log"), neuronx.lazy():
        jnp.log(-jnp.ones(3))
    assert "dot_general" in compiled.lower(params, x).as_text()
    with neuronx.lazy(max_graphs=1, strict=True):
        assert float(jnp.sin(jnp.ones(3)).sum()) == pytest.approx(3 * np.sin(1))
    padded = neuronx.compile(jnp.sin, buckets={"n": (4,)}, in_shapes=("n",))
    np.testing.assert_allclose(padded(x[0, :3]), np.sin(x[0, :3]), rtol=1e-5)


def test_a_switch_that_is_no_number(monkeypatch):
    monkeypatch.setenv("NEURONX_EAGER_DEBUG", "yes")
    with pytest.raises(neuronx.CompileError, match="NEURONX_EAGER_DEBUG is 'yes'"):
        neuronx.lazy()
