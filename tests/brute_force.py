"""Random small graphs, and the least predicted time over all ways to cut their arguments."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

import neuronx

__all__ = ["Graph", "least_s", "predicted_s", "random_graph"]

Step = tuple[str, int | None]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """At most eight ops on float32 arguments of ``shapes``; the first is the activation."""

    shapes: tuple[tuple[int, ...], ...]
    steps: tuple[Step, ...]

    def __call__(self, *arguments: jax.Array) -> jax.Array:
        x, seen = arguments[0], [arguments[0]]
        for kind, number in self.steps:
            weight = arguments[number] if number is not None else None
            before = next(value for value in [*seen, x] if value.shape == x.shape)
            x = _OPS[kind](x, weight, before)
            seen.append(x)
        return x

    def zeros(self) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in self.shapes]


_OPS: dict[str, Callable[[jax.Array, Any, jax.Array], jax.Array]] = {
    "dot": lambda x, w, before: x @ w,
    "bias": lambda x, w, before: x + w,
    "tanh": lambda x, w, before: jnp.tanh(x),
    "residual": lambda x, w, before: x + before,
    "scores": lambda x, w, before: x @ x.T,
    "softmax": lambda x, w, before: jax.nn.softmax(x),
}


def random_graph(draw: random.Random) -> Graph:
    """Two to five steps, mostly products; sizes for which either choice may win."""
    sizes = [draw.choice([256, 512, 1024, 2048]) for _ in range(3)]
    shapes: list[tuple[int, ...]] = [(draw.choice([1, 8, 64, 512]), sizes[0])]
    width, steps = sizes[0], []
    for _ in range(draw.randint(2, 5)):
        kind = draw.choice(["dot", "dot", "dot", *_OPS])
        number = len(shapes) if kind in ("dot", "bias") else None
        if kind == "dot":
            shapes.append((width, draw.choice(sizes)))
        elif kind == "bias":
            shapes.append((width,))
        width = {"dot": shapes[-1][-1], "scores": shapes[0][0]}.get(kind, width)
        steps.append((kind, number))
    return Graph(shapes=tuple(shapes), steps=tuple(steps))


def predicted_s(graph: Graph, tp: int, **options: Any) -> float:
    """Seconds of one run on ``tp`` cores as ``neuronx.compile`` with these options predicts."""
    compiled = neuronx.compile(graph, tp_degree=tp, **options).lower(*graph.zeros()).compile()
    return compiled.profile().timeline.total_s


def least_s(graph: Graph, tp: int) -> float:
    """The least over all arguments' dims of which at most one each is cut."""
    each = [[None, *range(len(shape))] for shape in graph.shapes]
    cuts = [tuple(map(_spec, choice)) for choice in itertools.product(*each)]
    return min(predicted_s(graph, tp, in_shardings=specs) for specs in cuts)


def _spec(dim: int | None) -> PartitionSpec:
    return PartitionSpec() if dim is None else PartitionSpec(*[None] * dim, "tp")
