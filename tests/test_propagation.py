"""The user's uneven shardings: kept as they are given, and followed by all that corresponds to them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import neuronx
from neuronx.models import opt
from neuronx.models.layers import tensor_parallel

WIDTH, HEAD = 16, 5


def _attend(x, into, back, cache):
    """Heads of a product, added to a cache by heads, and a product back."""
    heads = (x @ into).reshape(len(x), -1, HEAD) + cache
    return jnp.tanh(heads).reshape(len(x), -1) @ back, heads


@pytest.mark.parametrize(("heads", "cores"), [(5, 2), (9, 8), (56, 24)])
@pytest.mark.parametrize("cache", [P(None, "tp"), None], ids=["cache", "no cache"])
def test_heads_that_do_not_divide_stay_where_the_weights_put_them(heads, cores, cache, rng):
    """One all-reduce, whether or not the user says how the cache lies."""
    shapes = (3, WIDTH), (WIDTH, heads * HEAD), (heads * HEAD, WIDTH), (3, heads, HEAD)
    arguments = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    asked = (None, P(None, "tp"), P("tp"), cache)
    compiled = neuronx.compile(_attend, tp_degree=cores, in_shardings=asked).lower(*arguments).compile()
    rows = -(-heads // cores)
    local = [layout.local_shape for layout in compiled.input_layouts[0]]
    assert local == [(3, WIDTH), (WIDTH, rows * HEAD), (rows * HEAD, WIDTH), (3, rows, HEAD)]
    text = compiled.as_text(level="local")
    assert text.count('"stablehlo.all_reduce"') == 1
    assert not any(
        f'"stablehlo.{kind}"' in text for kind in ("all_gather", "collective_permute", "all_to_all")
    )
    for got, want in zip(compiled(*arguments), _attend(*map(jnp.asarray, arguments)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_dim_left_open_takes_what_the_propagation_brings(rng):
    """The user cuts rows unevenly and leaves the columns to the propagation."""
    x, y = (rng.standard_normal((7, 8)).astype(np.float32) for _ in range(2))
    mesh = AbstractMesh((2, 2), ("data", "tp"))
    asked = tuple(NamedSharding(mesh, spec) for spec in (P("data", P.UNCONSTRAINED), P(None, "tp")))
    compiled = neuronx.compile(jnp.add, tp_degree=4, in_shardings=asked).lower(x, y).compile()
    assert compiled.input_layouts[0][0].local_shape == (4, 4)
    np.testing.assert_array_equal(compiled(x, y), x + y)


@pytest.mark.slow
def test_opt_30b_on_24_cores_is_as_fast_by_hand_as_planned():
    """56 heads over 24 cores: the classic plan, given with the cache and without."""
    cfg = dataclasses.replace(opt.config("opt-30b"), layers=2)
    weights = opt.parameter_shapes(cfg, jnp.bfloat16)
    numbers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1,), ())]
    arguments = (weights, opt.cache_shapes(cfg, 1, 2048, jnp.bfloat16), *numbers)
    step = functools.partial(opt.decode, cfg)

    def seconds(asked):
        function = neuronx.compile(step, tp_degree=24, donate_argnums=1, in_shardings=asked)
        return function.lower(*arguments).compile().profile().timeline.total_s

    by_hand = tensor_parallel(weights)
    planned, given = seconds(None), seconds((by_hand, None, None, None))
    # The planner may find a cut that takes a little less.
    assert planned <= given < 1.01 * planned
    assert seconds((by_hand, P(None, "tp"), None, None)) == given
