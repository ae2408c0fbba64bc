"""Collectives leave loops: exact counts inside and outside, values against XLA:CPU before and after."""

import jax
import jax.numpy as jnp
import local_programs
import numpy as np
import oracles
import pytest
from jax import lax
from local_programs import all_reduce

from hlo_passes import hoist
from hlo_passes.ir import main, parse
from hlo_passes.notes import notes
from hlo_passes.ops import COLLECTIVES, kind

ARGUMENTS = [((4, 8), "f4", None), ((8, 8), "f4", 0), ((3, 8, 8), "f4", 1), ((), "i4", None)]


def _text(function) -> str:
    return local_programs.local_module(function, ARGUMENTS, tp=4)


def _places(module) -> tuple[int, int]:
    """How many collectives stand in main itself, and how many inside its loops."""
    outside = sum(kind(op) in COLLECTIVES for op in main(module).entry_block.operations)
    every = sum(str(module).count(f"stablehlo.{name}") for name in COLLECTIVES)
    return outside, every - outside


def _check(function, before: tuple[int, int], after: tuple[int, int], rng, tolerance: float = 1e-5):
    text = _text(function)
    module = parse(text)
    assert _places(module) == before
    hoist.run(module, hoist.Options())
    assert module.operation.verify()
    assert _places(module) == after
    once = str(module)
    hoist.run(module, hoist.Options())
    assert str(module) == once
    inputs = local_programs.per_rank(text, int(rng.integers(1 << 30)))
    for left, right in zip(
        oracles.run_local_on_xla(text, inputs), oracles.run_local_on_xla(once, inputs), strict=True
    ):
        for x, y in zip(left, right, strict=True):
            np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * max(1.0, np.abs(x).max(initial=0)))
    return module


def _invariant(x, w, stack, n):
    """The product of two values that never change is reduced in every iteration."""
    return lax.fori_loop(0, 5, lambda i, y: jnp.tanh(y + all_reduce(jnp.sin(x @ w) * 0.5)), x)


def test_what_never_changes_runs_once(rng):
    module = _check(_invariant, (0, 1), (1, 0), rng, 0)
    (note,) = notes(module)
    assert note.startswith("hoist: all_reduce (128 B) runs once in front of a loop of 5 iterations")


def test_out_of_two_loops(rng):
    def nested(x, w, stack, n):
        def inner(y):
            return lax.fori_loop(0, 2, lambda i, z: z + jnp.tanh(all_reduce(x @ w)), y)

        return lax.fori_loop(0, 3, lambda i, y: jnp.sin(inner(y)), x)

    _check(nested, (0, 1), (1, 0), rng)


def test_what_changes_stays(rng):
    def changing(x, w, stack, n):
        return lax.fori_loop(0, 5, lambda i, y: jnp.tanh(all_reduce(y @ w)), x)

    assert notes(_check(changing, (0, 1), (0, 1), rng)) == ()


def _accumulated(x, w, stack, n):
    """Gradient accumulation over a scan: parts of each step are reduced and added up."""

    def body(carry, part):
        total, y = carry
        return (total + all_reduce(x @ part), jnp.sin(y)), jnp.sum(y)

    (total, y), sums = lax.scan(body, (x, x), stack)
    return total + y, sums


def _subtracted(x, w, stack, n):
    def body(total, part):
        return total - 0.5 * all_reduce((x @ part).T).T, None

    return lax.scan(body, x, stack)[0]


@pytest.mark.parametrize("function", (_accumulated, _subtracted))
def test_a_carried_sum_is_reduced_behind_the_loop(function, rng):
    module = _check(function, (0, 1), (1, 0), rng)
    (note,) = notes(module)
    assert "a sum carried through a loop of 3 iterations runs once behind it (128 B)" in note


def test_an_unknown_count_none_included(rng):
    """The loop runs 0 to 3 times, as the input says."""

    def counted(x, w, stack, n):
        return lax.while_loop(
            lambda carry: carry[0] < n, lambda c: (c[0] + 1, c[1] + all_reduce(x @ stack[c[0]])), (0, x)
        )[1]

    for _ in range(3):
        module = _check(counted, (0, 1), (1, 0), rng)
    assert "an unknown number of iterations" in notes(module)[0]


def test_integers_are_exact(rng):
    def integers(x, w, stack, n):
        def body(i, total):
            return total + all_reduce((x @ stack[i] * 100).astype(jnp.int32))

        return lax.fori_loop(0, 3, body, jnp.full((4, 8), 7, jnp.int32))

    _check(integers, (0, 1), (1, 0), rng, 0)


def _read_inside(x, w, stack, n):
    def body(total, part):
        total = total + all_reduce(x @ part)
        return total, jnp.sum(total)

    return lax.scan(body, x, stack)


def _read_by_the_condition(x, w, stack, n):
    return lax.while_loop(lambda t: jnp.sum(t) < 0, lambda t: t + all_reduce(jnp.abs(t) @ jnp.abs(w)), x)


def _not_only_added(x, w, stack, n):
    return lax.scan(lambda total, part: (2.0 * total + all_reduce(x @ part), None), x, stack)[0]


def _squared(x, w, stack, n):
    return lax.scan(lambda total, part: (total + all_reduce(x @ part) ** 2, None), x, stack)[0]


@pytest.mark.parametrize("function", (_read_inside, _read_by_the_condition, _not_only_added, _squared))
def test_sums_that_are_needed_on_the_way_stay(function, rng):
    assert notes(_check(function, (0, 1), (0, 1), rng)) == ()


def test_a_sum_that_would_move_more_stays(rng):
    """The loop adds a narrow sum to a wide accumulator once: bf16 on the wire, f32 in the carry."""

    def widened(times):
        def run(x, w, stack, n):
            def body(i, total):
                return total + all_reduce((x @ stack[i]).astype(jnp.bfloat16)).astype(jnp.float32)

            return lax.fori_loop(0, times, body, x)

        return run

    _check(widened(1), (0, 1), (0, 1), rng, 1e-1)
    _check(widened(3), (0, 1), (1, 0), rng, 1e-1)


def test_a_loop_that_never_runs_is_left_alone():
    def never(x, w, stack, n):
        return lax.fori_loop(0, 77, lambda i, y: y + all_reduce(x @ w), x)

    module = parse(_text(never).replace("dense<77>", "dense<0>"))
    hoist.run(module, hoist.Options())
    assert _places(module) == (0, 1)
    assert notes(module) == ()


def test_the_gradient_of_a_loop_over_shared_weights(rng):
    """A recurrent cell over data shards: its weight gradient is summed over cores in every step."""

    def run(x, w, stack, n):
        def step(total, part):
            gradient = jax.grad(lambda weights: jnp.sum(jnp.tanh(part @ weights)))(w)
            return total + all_reduce(gradient), None

        return lax.scan(step, jnp.zeros_like(w), stack)[0]

    _check(run, (0, 1), (1, 0), rng)
