"""Activations found inside kernels: the scalar engine's tables, told by what the ops compute."""

import jax
import jax.numpy as jnp
import pytest

import neuronx
from kernels.hardware import load_core

_X = jax.ShapeDtypeStruct((128, 4096), jnp.float32)


def _busy(function, dtype=jnp.float32, **options) -> dict[str, float]:
    x = jax.ShapeDtypeStruct(_X.shape, dtype)
    return neuronx.compile(function, **options).lower(x).compile().cost_analysis()["busy_s"]


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.gelu,
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
        jax.nn.silu,
        lambda x: x / (1 + jnp.exp(-x)),
        jax.lax.erf,
        lambda x: x * jax.nn.sigmoid(1.702 * x),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_known_functions_are_one_pass_of_the_scalar_engine(function, dtype) -> None:
    busy = _busy(function, dtype)
    assert "vector" not in busy
    core = load_core()
    assert busy["scalar"] == pytest.approx(_X.shape[1] / core.scalar.clock_hz)


@pytest.mark.parametrize(
    "function",
    [lambda x: jnp.exp(x) * x, lambda x: jnp.tanh(x) * 1.1 + x, lambda x: x * x + 1, lambda x: 2 / (3 + x)],
)
def test_other_functions_are_not(function) -> None:
    assert _busy(function)["vector"] > 0


def test_what_others_read_is_still_computed() -> None:
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        inner = 1 + jax.lax.erf(x * 0.5**0.5)
        return 0.5 * x * inner, inner

    assert _busy(both)["vector"] > 0


def test_flops_stay_those_of_the_ops() -> None:
    costs = neuronx.compile(jax.nn.gelu).lower(_X).compile().cost_analysis()
    expected = jax.jit(jax.nn.gelu).lower(_X).cost_analysis()
    assert costs["flops"] == pytest.approx(expected["flops"], rel=0.3)


def _row_cycles(busy: dict[str, float], engine: str) -> float:
    """Passes over all elements."""
    clock = getattr(load_core(), engine).clock_hz
    return busy.get(engine, 0.0) * clock / _X.shape[1]


def test_a_softmax_takes_its_bias_and_its_sum_along() -> None:
    """Maximum and division are the vector engine's; subtraction, exponential and sum one activation.

    A second pass of the scalar engine copies the result, turned by the tensor engine, out of PSUM.
    """
    busy = _busy(jax.nn.softmax)
    assert _row_cycles(busy, "scalar") == pytest.approx(2, rel=0.05)
    assert _row_cycles(busy, "vector") == pytest.approx(2, rel=0.05)
    assert busy["pe"] == pytest.approx(_X.shape[1] / load_core().pe.clock_hz, rel=0.05)


@pytest.mark.parametrize("type_", ["bf16", "tf32"])
def test_casts_of_every_op_do_not_hide_them(type_) -> None:
    cast = {"auto_cast": "all", "auto_cast_type": type_}
    busy = _busy(lambda x: jax.nn.gelu(x, approximate=False), **cast)
    assert _row_cycles(busy, "vector") == 0
    assert _row_cycles(busy, "scalar") == pytest.approx(1, rel=0.05)
    busy = _busy(lambda x: jnp.sum(x * x, axis=-1), **cast)
    assert _row_cycles(busy, "vector") < 0.05


@pytest.mark.parametrize("axis", [-1, (0, 1)])
def test_a_sum_of_squares_is_one_activation(axis) -> None:
    """Over rows as well, the sums of rows are few to add."""
    busy = _busy(lambda x: jnp.sum(x * x, axis=axis))
    assert _row_cycles(busy, "scalar") == pytest.approx(1, rel=0.05)
    assert _row_cycles(busy, "vector") < 0.05


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.max(jnp.exp(x), axis=-1),
        lambda x: jnp.sum(jnp.exp(x), axis=0),
        lambda x: jnp.exp(x - jnp.max(x, axis=0)),
    ],
)
def test_other_sums_and_biases_are_not_taken_along(function) -> None:
    assert _row_cycles(_busy(function), "vector") >= 0.95
