"""Sums of all-reduces become one all-reduce; meaning stays, and where it may not be done it is not."""

import jax
import jax.numpy as jnp
import local_programs
import numpy as np
import oracles
import pytest
from local_programs import all_reduce
from ring_oracle import collectives, run_sharded
from training import megatron_step

from hlo_passes import reassociate
from hlo_passes.ir import parse
from hlo_passes.notes import notes

ARGUMENTS = [((4, 8), "f4", None), ((8, 8), "f4", 0), ((8, 8), "f4", 0), ((), "f4", None)]


def _text(function, dtype="f4") -> str:
    arguments = [(shape, dtype, dim) for shape, _, dim in ARGUMENTS]
    return local_programs.local_module(function, arguments, tp=4)


def _run(text: str):
    module = parse(text)
    reassociate.run(module, reassociate.Options())
    assert module.operation.verify()
    return module


def _check(text: str, rng, wanted: int, tolerance=1e-5):
    module = _run(text)
    after = str(module)
    assert after.count("stablehlo.all_reduce") == wanted
    assert str(_run(after)) == after
    inputs = local_programs.per_rank(text, int(rng.integers(1 << 30)))
    before, now = oracles.run_local_on_xla(text, inputs), oracles.run_local_on_xla(after, inputs)
    for left, right in zip(before, now, strict=True):
        for x, y in zip(left, right, strict=True):
            x, y = (np.asarray(v, np.float32) for v in (x, y))
            np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * max(1.0, np.abs(x).max()))
    return module


def _pair(x, w, v, s):
    return all_reduce(x @ w) + all_reduce(x @ v)


def _difference(x, w, v, s):
    return x - all_reduce(x @ w) - (3.0 - all_reduce(x @ v))


def _residual(x, w, v, s):
    return (x + all_reduce(x @ w) + 1.0) + (all_reduce(x @ v) + x[0])


def _seen_through(x, w, v, s):
    left = jnp.transpose(all_reduce((x @ w).reshape(32)).reshape(4, 8)) * s
    return left - (-all_reduce(x @ v).T) / 3.0


def _three(x, w, v, s):
    return all_reduce(x @ w) + all_reduce(x @ v) + all_reduce(jnp.sin(x) @ v)


@pytest.mark.parametrize("function", (_pair, _difference, _residual, _seen_through, _three))
def test_sums_join(function, rng):
    module = _check(_text(function), rng, 1)
    (note,) = notes(module)
    assert note.startswith("reassociate: ") and "became one" in note and "local_programs.py:" in note


def test_a_sum_of_widened_parts_is_taken_wide(rng):
    def widened(x, w, v, s):
        return all_reduce(x @ w).astype(jnp.float32) + all_reduce(x @ v).astype(jnp.float32)

    module = _check(_text(widened, "bfloat16"), rng, 1, tolerance=5e-2)
    assert "tensor<f32>" in str(module).partition("stablehlo.all_reduce")[2].partition("return")[0]


def _used_twice(x, w, v, s):
    left = all_reduce(x @ w)
    return left + all_reduce(x @ v), left


def _through_tanh(x, w, v, s):
    return jnp.tanh(all_reduce(x @ w)) + all_reduce(x @ v)


def _narrowed(x, w, v, s):
    return all_reduce(x @ w).astype(jnp.bfloat16) + all_reduce(x @ v).astype(jnp.bfloat16)


def _products(x, w, v, s):
    return all_reduce(x @ w) * all_reduce(x @ v)


def _scaled_by_a_tensor(x, w, v, s):
    return all_reduce(x @ w) * x + all_reduce(x @ v)


def _broadcast(x, w, v, s):
    return all_reduce(jnp.sum(x @ w, 0))[None] + all_reduce(x @ v)


@pytest.mark.parametrize(
    "function", (_used_twice, _through_tanh, _narrowed, _products, _scaled_by_a_tensor, _broadcast)
)
def test_what_may_not_join_stays(function, rng):
    assert notes(_check(_text(function), rng, 2)) == ()


def test_other_groups_do_not_join():
    text = _text(_pair)
    first, second, rest = text.split("dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>", 2)
    mixed = f"{first}dense<[[0, 1], [2, 3]]> : tensor<2x2xi64>{second}dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>"
    assert str(_run(mixed + rest)).count("stablehlo.all_reduce") == 2


def test_maxima_of_maxima(rng):
    def highest(x, w, v, s):
        return jnp.maximum(all_reduce(x @ w), all_reduce(x @ v))

    assert str(_run(_text(highest))).count("stablehlo.all_reduce") == 2
    text = _text(highest).replace("%sum = stablehlo.add", "%sum = stablehlo.maximum")
    swapped = text.replace("stablehlo.add %arg", "stablehlo.maximum %arg")
    assert swapped.count("stablehlo.maximum") >= 3
    _check(swapped, rng, 1, tolerance=0)


def test_inside_a_loop(rng):
    def run(x, w, v, s):
        return jax.lax.fori_loop(0, 3, lambda i, x: jnp.tanh(all_reduce(x @ w) + all_reduce(x @ v)), x)

    _check(_text(run), rng, 1)


@pytest.mark.parametrize("layers", (1, 2))
def test_a_megatron_training_step(layers):
    """Forward 2 a layer; backward 2 a layer, the first layer's input takes no gradient: 4 x layers - 1."""
    module, step, arguments = megatron_step(layers=layers, tp=4)
    assert collectives(module) == {"all_reduce": 4 * layers + 2 * (layers - 1) - 1}
    reassociate.run(module, reassociate.Options())
    assert collectives(module) == {"all_reduce": 4 * layers - 1}
    want = jax.tree.leaves(jax.jit(step)(*arguments))
    for ours, theirs in zip(run_sharded(module, arguments, 4), want, strict=True):
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-4, atol=1e-5)
