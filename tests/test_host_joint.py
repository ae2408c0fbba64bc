"""Calls of host kernels put together, of one core and of all: the same bits as one by one."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from test_host_kernels import force, randoms

import neuronx
from distributed import walk
from distributed.executor import Executor
from distributed.joint import Joint, JointLaunch, joined
from distributed.program import Collective, Launch
from hlo_passes.host_lowering import lower_text
from kernels.dtypes import dtype
from neuronx.models import opt

SHAPES = {
    "one row, columns": ("mk,kn->mn", (1, 300), (300, 342)),
    "one row, one stretch": ("mk,kn->mn", (1, 31), (31, 700)),
    "few rows, columns": ("bmk,bkn->bmn", (2, 3, 129), (2, 129, 127)),
    "one row, rows": ("mk,nk->mn", (1, 300), (342, 300)),
    "many rows": ("mk,kn->mn", (17, 130), (130, 65)),
}


def arrays_on(executor, arrays):
    return [executor.to_device(np.asarray(array)) for array in arrays]


def computed(text, arrays, joint=None):
    executor = Executor(force)
    outputs = executor.load(text, joint)(arrays_on(executor, arrays))
    return [np.array(executor.to_host(output)) for output in outputs]


@pytest.mark.parametrize("case", SHAPES)
def test_products_in_one_call_have_the_bits_of_each(case, rng):
    """Also where one product is the same as the one before, which is then computed once."""
    spec, left, right = SHAPES[case]
    element = dtype("bf16").numpy
    product = functools.partial(jnp.einsum, spec, preferred_element_type=jnp.float32)
    x, other = (randoms(rng, left, element) for _ in range(2))
    ws = [randoms(rng, right, element) for _ in range(3)]

    def function(x, other, ws):
        return [product(x, ws[0]), product(x, ws[0]), product(x, ws[1]), product(other, ws[2])]

    text = jax.jit(function).lower(x, other, ws).as_text()
    assert lower_text(text).text.count("custom_call") == 1
    single = jax.jit(product).lower(x, ws[0]).as_text()
    pairs = [(x, ws[0]), (x, ws[0]), (x, ws[1]), (other, ws[2])]
    for got, pair in zip(computed(text, [x, other, *ws]), pairs, strict=True):
        np.testing.assert_array_equal(got, computed(single, pair)[0])


def test_what_waits_for_another_call_is_a_call_of_its_own(rng):
    w = randoms(rng, (128, 128), dtype("bf16").numpy)

    def function(x, w):
        y = x @ w
        return y, y @ w, jnp.where(x[0, 0] > 0, x @ w, y)

    text = jax.jit(function).lower(np.ones((1, 128), w.dtype), w).as_text()
    assert lower_text(text).text.count("custom_call") == 2


SEGMENT = """
func.func @main(%rank: tensor<ui32>, %x: tensor<1x256xbf16>, %w: tensor<256x64xbf16>,
                %c: tensor<4x64xbf16> {tf.aliasing_output = 1 : i32}, %i: tensor<i32>)
    -> (tensor<1x64xbf16>, tensor<4x64xbf16>, tensor<1x64xbf16>) {
  %y = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
    : (tensor<1x256xbf16>, tensor<256x64xbf16>) -> tensor<1x64xbf16>
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %d = stablehlo.dynamic_update_slice %c, %y, %i, %zero
    : (tensor<4x64xbf16>, tensor<1x64xbf16>, tensor<i32>, tensor<i32>) -> tensor<4x64xbf16>
  %r = stablehlo.convert %rank : (tensor<ui32>) -> tensor<bf16>
  %s = stablehlo.broadcast_in_dim %r, dims = [] : (tensor<bf16>) -> tensor<1x64xbf16>
  %z = stablehlo.multiply %y, %s : tensor<1x64xbf16>
  return %y, %d, %z : tensor<1x64xbf16>, tensor<4x64xbf16>, tensor<1x64xbf16>
}"""


@pytest.mark.parametrize("algorithm", ["ring", "mesh"])
def test_a_segment_of_all_cores_is_that_of_each(algorithm, rng):
    """Shared operands, updates in place, ranks, a gather and a sum, in the order of the interface."""
    cores, element = 3, dtype("bf16").numpy
    x, i = randoms(rng, (1, 256), element), np.array(2, np.int32)
    ranks = [np.array(rank, np.uint32) for rank in range(cores)]
    ws, caches = ([randoms(rng, shape, element) for _ in range(cores)] for shape in ((256, 64), (4, 64)))
    joint = Joint(cores=cores, shared=frozenset({1, 4}), sums=((2, algorithm),), gathers=((0, 1),))
    gathered, *found, total = computed(SEGMENT, [*ranks, x, *ws, *caches, i], joint)
    alone = [computed(SEGMENT, [*one, i]) for one in zip(ranks, [x] * cores, ws, caches, strict=True)]
    np.testing.assert_array_equal(gathered, np.concatenate([one[0] for one in alone], axis=1))
    for got, expected in zip(found, [one[1] for one in alone], strict=True):
        np.testing.assert_array_equal(got, expected)
    exact = np.sum([one[2].astype(np.float64) for one in alone], axis=0)
    np.testing.assert_allclose(total.astype(np.float64), exact, rtol=0.02, atol=0.02 * np.abs(exact).max())


BITS = """
func.func @main(%rank: tensor<ui32>, %x: tensor<1x256xbf16>, %w: tensor<256x64xbf16>)
    -> (tensor<1x64xbf16>, tensor<2xui16>, tensor<ui32>) {
  %y = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
    : (tensor<1x256xbf16>, tensor<256x64xbf16>) -> tensor<1x64xbf16>
  %halves = stablehlo.bitcast_convert %rank : (tensor<ui32>) -> tensor<2xui16>
  %turned = stablehlo.reverse %halves, dims = [0] : tensor<2xui16>
  %word = stablehlo.bitcast_convert %turned : (tensor<2xui16>) -> tensor<ui32>
  return %y, %turned, %word : tensor<1x64xbf16>, tensor<2xui16>, tensor<ui32>
}"""


def test_scalars_of_all_cores_become_arrays_and_back(rng):
    cores, element = 3, dtype("bf16").numpy
    x, ranks = randoms(rng, (1, 256), element), rng.integers(1 << 32, size=cores, dtype=np.uint32)
    ws = [randoms(rng, (256, 64), element) for _ in range(cores)]
    found = computed(BITS, [*ranks, x, *ws], Joint(cores=cores, shared=frozenset({1})))
    turned = np.stack([ranks >> 16, ranks & 0xFFFF], axis=1)
    np.testing.assert_array_equal(found[cores : 2 * cores], turned)
    np.testing.assert_array_equal(found[2 * cores :], turned[:, 0] + (turned[:, 1] << 16))


def test_a_sum_of_what_was_updated_in_place(rng):
    cores, element = 3, dtype("bf16").numpy
    ranks = [np.array(rank, np.uint32) for rank in range(cores)]
    x, i = randoms(rng, (1, 256), element), np.array(2, np.int32)
    ws, caches = ([randoms(rng, shape, element) for _ in range(cores)] for shape in ((256, 64), (4, 64)))
    joint = Joint(cores=cores, shared=frozenset({1, 4}), sums=((1, "mesh"),))
    found = computed(SEGMENT, [*ranks, x, *ws, *caches, i], joint)
    alone = [computed(SEGMENT, [*one, i])[1] for one in zip(ranks, [x] * cores, ws, caches, strict=True)]
    exact = np.sum([one.astype(np.float32) for one in alone], axis=0).astype(element)
    np.testing.assert_array_equal(found[cores], exact)


def every_op(scalar, x, y, w, common):
    """Each op that is done on the values of all cores at once, and some that are not."""
    small = x[0, 0] > 0
    return (
        x @ w,
        jnp.where(small, x, y) + common,
        jnp.clip(y, scalar, scalar + 1).T,
        jnp.exp(x)[1:4:2, ::3] * x[::-1][:2, ::3],
        [jnp.max(y, axis=0), jnp.argmax(x, axis=1), jnp.broadcast_to(jnp.sum(x, axis=1)[:, None], (4, 5))],
        jax.lax.bitcast_convert_type(scalar, jnp.uint16),
        x.reshape(2, -1) @ y.reshape(-1, 2),
        [
            jnp.sort(x, axis=1),
            jnp.concatenate([x, y * scalar]),
            jax.lax.dynamic_slice(y, (common, 0), (2, 2)),
        ],
        jax.lax.fori_loop(0, 3, lambda _, value: value * scalar + y, x),
    )


@pytest.mark.parametrize("name", ["bf16", "f32"])
def test_every_op_for_all_cores_has_the_bits_of_each(name, rng):
    cores, element = 3, dtype(name).numpy
    shapes = [(), (4, 128), (4, 128), (128, 64)]
    rows = [[np.asarray(randoms(rng, shape, element)) for shape in shapes] for _ in range(cores)]
    common = np.array(1, np.int32)
    text = jax.jit(every_op).lower(*rows[0], common).as_text()
    alone = [computed(text, [*row, common]) for row in rows]
    columns = [array for column in zip(*rows, strict=True) for array in column]
    found = computed(text, [*columns, common], Joint(cores=cores, shared=frozenset({4})))
    for got, expected in zip(
        found, [array for place in zip(*alone, strict=True) for array in place], strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_the_text_of_many_cores_has_no_more_loops(rng):
    def function(x, bias, w):
        return jax.nn.softmax(x @ w + bias)

    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in [(1, 256), (64,), (256, 64)]]
    text = jax.jit(function).lower(*shapes).as_text()
    counts = [
        len(re.findall(r"stablehlo\.(?!reshape|bitcast_convert|slice)", lower_text(text, joint).text))
        for joint in (Joint(cores=cores, shared=frozenset()) for cores in (2, 24))
    ]
    assert counts[0] == counts[1]


def test_a_cache_is_updated_in_place_on_all_cores(rng):
    cores, element, executor = 3, dtype("bf16").numpy, Executor(lower_text)
    shapes = [()] * cores + [(1, 256)] + [(256, 64)] * cores + [(4, 64)] * cores + [()]
    types = [np.dtype(np.uint32)] * cores + [element] * (2 * cores + 1) + [np.dtype(np.int32)]
    arrays = [executor.copy(executor.to_device(np.ones(*one))) for one in zip(shapes, types, strict=True)]
    places = [array.unsafe_buffer_pointer() for array in arrays[-1 - cores : -1]]
    outputs = executor.load(SEGMENT, Joint(cores=cores, shared=frozenset({1, 4})))(arrays)
    assert [array.unsafe_buffer_pointer() for array in outputs[cores : 2 * cores]] == places


def decode(cfg, dtype_, tp_degree, rng, **options):
    params = opt.parameters(cfg, dtype_, 0)
    shapes = opt.cache_shapes(cfg, 1, 40, dtype_)
    cache = jax.tree.map(
        lambda one: jnp.asarray(rng.standard_normal(one.shape, np.float32), one.dtype), shapes
    )
    fn = neuronx.compile(functools.partial(opt.decode, cfg), tp_degree=tp_degree, **options)
    arguments = (params, cache, jnp.asarray([3], jnp.int32), jnp.int32(20))
    return fn.lower(*arguments).compile(), arguments


@pytest.mark.slow
@pytest.mark.parametrize("dtype_", [jnp.bfloat16, jnp.float32])
def test_a_decoder_has_the_bits_of_core_by_core(dtype_, rng, monkeypatch):
    """Six heads on four cores: the last computes on padding."""
    cfg = opt.OPTConfig(name="small", hidden=192, heads=6, layers=2, ffn=512, embed=192, vocab=500)
    exe, arguments = decode(cfg, dtype_, 4, rng)
    ran = []
    monkeypatch.setattr(walk, "joined", lambda *given: ran.append(joined(*given)) or ran[0])
    found = jax.tree.leaves(exe(*arguments))
    assert sum(isinstance(step, JointLaunch) for step in ran[0].main.steps) == 5
    monkeypatch.setattr(walk, "joined", lambda program, is_joint: program)
    alone, _ = decode(cfg, dtype_, 4, rng)
    for got, expected in zip(found, jax.tree.leaves(alone(*arguments)), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.asarray(expected))


def test_collectives_of_a_decoder_are_part_of_its_launches(rng):
    cfg = opt.OPTConfig(name="small", hidden=256, heads=4, layers=2, ffn=512, embed=256, vocab=500)
    program = decode(cfg, jnp.bfloat16, 4, rng)[0].program
    every = joined(program, lambda launch: True)
    sums = sum(len(step.joint.sums) for step in every.main.steps if isinstance(step, JointLaunch))
    assert sums == 5  # of the embedding, and two of each layer
    assert not any(isinstance(step, Collective) for step in every.main.steps)
    assert not any(isinstance(step, Launch) and step.varying for step in every.main.steps)


def test_sums_over_one_axis_of_two_inside_a_loop(rng):
    """They stay collectives of their own; the launches around them are joint."""
    mesh = AbstractMesh((2, 2), ("x", "y"))
    rows, columns = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("x", "y"), ("y", "x")))
    ws = [(rng.standard_normal((128, 128)) / 16).astype(np.float32) for _ in range(2)]
    x = rng.standard_normal((1, 128)).astype(np.float32)

    def function(x, up, down):
        def body(carry):
            count, y = carry
            return count + 1, jnp.tanh(jnp.tanh(y @ up) @ down)

        return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, x))[1]

    run = neuronx.compile(function, in_shardings=(None, rows, columns))
    expected = x.astype(np.float64)
    for _ in range(3):
        expected = np.tanh(np.tanh(expected @ ws[0]) @ ws[1])
    np.testing.assert_allclose(np.asarray(run(x, *ws)), expected, rtol=1e-4, atol=1e-5)
