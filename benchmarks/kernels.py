"""The product kernels by themselves, for each stored type: ours and jax.jit, in turn."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import neuronx
from benchmarks.timing import Row, arguments, in_turn, report, streaming_bytes_per_s
from kernels.dtypes import dtype
from kernels.host.targets import WEIGHTS, matmul_cost

__all__ = ["main"]

_ACTIVATIONS = {"f32": "f32", "f16": "f16"}
_CACHED_BYTES = 1 << 28
"""Weights are taken in turn from so much memory, so that none is left in a cache from the run before."""


def _row(weights: str, m: int, k: int, n: int, repeats: int) -> Row:
    stored = dtype(weights).numpy
    computed = dtype(_ACTIVATIONS.get(weights, "bf16")).numpy
    rng = np.random.default_rng(0)
    count = max(1, _CACHED_BYTES // (k * n * stored.itemsize))
    # The values do not matter, but no subnormals or NaN.
    one = rng.integers(1, 8, (k, n)).astype(np.float32).astype(stored)
    arrays = [jnp.array(one) for _ in range(count)]
    x = jnp.asarray(rng.standard_normal((m, k), dtype=np.float32).astype(computed))

    def products(x: jax.Array, arrays: list[Any]) -> list[jax.Array]:
        return [jnp.matmul(x, w.astype(x.dtype), preferred_element_type=jnp.float32) for w in arrays]

    ours = neuronx.compile(products).lower(x, arrays).compile()
    placed, jitted = ours.device_put(x, arrays), jax.jit(products)
    steps = {"ours": lambda: ours(*placed), "jax.jit": lambda: jitted(x, arrays)}
    name = f"{weights} [{m}, {k}] x [{k}, {n}], {count} times"
    cost = matmul_cost(weights, batch=1, m=m, k=k, n=n)
    taken = in_turn(steps, repeats)
    return Row(name=name, taken=taken, bytes_read=count * cost.moved_bytes, flops=count * cost.flops)


def main(argv: list[str]) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--types", default=",".join(WEIGHTS), help="stored types of the weights")
    parser.add_argument("--rows", default="1,8", help="rows of the other operand")
    parser.add_argument("--shape", default="2048,8192", help="of the weights")
    asked = parser.parse_args(argv)
    k, n = map(int, asked.shape.split(","))
    rows = [
        _row(weights, int(m), k, n, asked.repeats)
        for weights in asked.types.split(",")
        for m in asked.rows.split(",")
    ]
    report(rows, stream=streaming_bytes_per_s(asked.repeats), as_json=asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
