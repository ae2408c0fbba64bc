"""What recording costs: time per JAX op under neuronx.lazy beside jax.make_jaxpr."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import neuronx

__all__ = ["PROGRAMS", "main", "measure"]


def lax_chain(x: jax.Array) -> jax.Array:
    """300 lax ops without numbers."""
    for _ in range(100):
        x = lax.add(lax.mul(lax.sin(x), x), x)
    return x


def numpy_chain(x: jax.Array) -> jax.Array:
    """300 jnp ops, a third with a Python number."""
    for _ in range(100):
        x = jnp.sin(x) * 1.5 + x
    return x


def gradient(x: jax.Array) -> jax.Array:
    """The gradient of 60 jnp ops."""

    def loss(y: jax.Array) -> jax.Array:
        for _ in range(20):
            y = jax.nn.gelu(y @ x) + y
        return jnp.sum(y**2)

    return jax.grad(loss)(x)


PROGRAMS: tuple[Callable[[jax.Array], jax.Array], ...] = (lax_chain, numpy_chain, gradient)


def measure(program: Callable[[jax.Array], jax.Array], repeats: int) -> tuple[int, float, float]:
    """Number of ops, and median seconds to trace with make_jaxpr and to record; taken in turns."""
    x = jnp.asarray(np.full((4, 4), 0.1, np.float32))
    num_ops, traced, recorded = 0, [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jaxpr = jax.make_jaxpr(lambda y: program(y))(x)
        traced.append(time.perf_counter() - start)
        num_ops = len(jaxpr.eqns)
        with neuronx.lazy():
            start = time.perf_counter()
            y = program(x)
            recorded.append(time.perf_counter() - start)
            del y  # nobody holds it: nothing is compiled
    # The first of each fills JAX's caches.
    return num_ops, statistics.median(traced[1:]), statistics.median(recorded[1:])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each, the median counts")
    asked = parser.parse_args(arguments)
    print(f"{'program':<12} {'ops':>5} {'make_jaxpr us/op':>17} {'lazy us/op':>11} {'ratio':>6}")
    for program in PROGRAMS:
        num_ops, traced, recorded = measure(program, asked.repeats)
        times = f"{traced / num_ops * 1e6:>17.1f} {recorded / num_ops * 1e6:>11.1f}"
        print(f"{program.__name__:<12} {num_ops:>5} {times} {recorded / traced:>6.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
