"""Layout and mesh against NumPy, liveness, and the program's text."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ring_programs import Builder, elementwise_work

from distributed.layout import Layout
from distributed.liveness import deaths
from distributed.mesh import Mesh
from distributed.placement import cut, join, poison
from distributed.program_text import program_text
from kernels.dtypes import dtype as find_dtype


@st.composite
def layouts(draw):
    """A random mesh of one to three axes and a tensor with each dim cut over some of them."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    names = [f"a{index}" for index in range(len(sizes))]
    ranks = int(np.prod(sizes))
    device_ids = tuple(draw(st.permutations(range(ranks)))) if draw(st.booleans()) else ()
    mesh = Mesh(axes=tuple(zip(names, sizes, strict=True)), device_ids=device_ids)
    free = draw(st.permutations(names))
    dim_axes, shape, local = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(0, len(free)))
        axes, free = tuple(free[:count]), free[count:]
        size = draw(st.integers(1, 9))
        dim_axes.append(axes)
        shape.append(size)
        local.append(-(-size // mesh.size(axes)))
    return Layout(
        global_shape=tuple(shape), local_shape=tuple(local), dtype="f32", mesh=mesh, dim_axes=tuple(dim_axes)
    )


@given(layouts(), st.sampled_from((None, np.float32(np.nan))))
def test_cut_then_join_is_the_array(layout, padding):
    array = np.random.default_rng().normal(size=layout.global_shape).astype(np.float32)
    blocks = cut(layout, array, varying=True, copy=True, padding=padding)
    assert {block.shape for block in blocks} == {layout.local_shape}
    np.testing.assert_array_equal(join(layout, blocks), array)


@given(layouts())
def test_blocks_are_numpys_own(layout):
    """Each rank's block is what np.pad and np.split along every dim give for its coordinates."""
    array = np.arange(np.prod(layout.global_shape), dtype=np.float32).reshape(layout.global_shape) + 1
    blocks = cut(layout, array, varying=True, copy=True)
    for rank in range(layout.mesh.num_ranks):
        expected = array
        for dim, axes in enumerate(layout.dim_axes):
            shards = layout.mesh.size(axes)
            padding = [(0, 0)] * array.ndim
            padding[dim] = (0, shards * layout.local_shape[dim] - layout.global_shape[dim])
            pieces = np.split(np.pad(expected, padding), shards, axis=dim)
            expected = pieces[layout.mesh.index(rank, axes)]
        np.testing.assert_array_equal(blocks[rank], expected)


@given(layouts(), st.data())
def test_mesh_groups_differ_along_their_axes_only(layout, data):
    mesh = layout.mesh
    names = [name for name, _ in mesh.axes]
    chosen = tuple(data.draw(st.permutations(names)))[: data.draw(st.integers(0, len(names)))]
    groups = mesh.groups(chosen)
    assert sorted(itertools.chain(*groups)) == list(range(mesh.num_ranks))
    for group in groups:
        assert [mesh.index(rank, chosen) for rank in group] == list(range(len(group)))
        rest = {tuple(v for k, v in mesh.coordinates(rank).items() if k not in chosen) for rank in group}
        assert len(rest) == 1


def test_values_die_at_their_last_use():
    b = Builder(2)
    x, y, z, unused, out, flag = (b.global_buffer((4,)), *(b.buffer((4,)) for _ in range(5)))
    inner, last, result = b.buffer((4,)), b.buffer((4,)), b.buffer((4,))
    condition = b.block([b.buffer((4,))], [], [flag])
    body = b.block([inner], [b.launch("s", [inner, z], [last])], [last])
    steps = [
        b.launch("s", [x], [y, unused]),
        b.launch("s", [y], [z, flag]),
        b.loop([y, z], condition, body, [out]),
        b.launch("s", [out], [result]),
    ]
    program = b.program([x], steps, [result])
    main = deaths(program)[id(program.main)]
    assert main.moved == ((), (), (y,), ())
    # z and the flag are read inside the loop, on every iteration.
    assert [set(dead) for dead in main.after] == [{x, unused}, set(), {z, flag}, {out}]
    assert deaths(program)[id(body)].after == ((inner,),)


def test_text_shows_every_step(golden):
    b = Builder(4)
    x = b.global_buffer((16, 64), "bf16")
    w = b.global_buffer((64, 10), "bf16", dim_axes=((), ("tp",)))
    index = b.global_buffer((), "i32")
    part, whole, picked = b.buffer((16, 3), "bf16", varying=True), b.buffer((16, 12), "bf16"), b.buffer((4,))
    tested, holds, carried, done = (
        b.buffer((4,)),
        b.buffer((), "i1", host=True),
        b.buffer((4,)),
        b.buffer((4,)),
    )
    small, other, out = b.buffer((4,)), b.buffer((4,)), b.buffer((4,))
    work = elementwise_work((16, 3))
    steps = [
        b.launch("segment_a", [x, w], [part], varying=True, takes_rank=True, work=work),
        b.collective("all_gather", part, whole, dim=1),
        b.branch(
            index,
            [
                b.block([], [b.launch("segment_b", [whole], [small])], [small]),
                b.block([], [b.collective("all_reduce", part, other, reducer="add")], [other]),
            ],
            [picked],
        ),
        b.loop(
            [picked],
            b.block([tested], [b.launch("segment_c", [tested], [holds])], [holds]),
            b.block([carried], [b.launch("segment_d", [carried], [done], donated=((0, 0),))], [done]),
            [out],
            12,
        ),
    ]
    program = b.program([x, w, index], steps, [out, x], aliases=((1, 0),))
    assert program_text(program) == program_text(program)
    golden("program_text.txt", program_text(program))


def test_text_of_an_empty_program():
    assert program_text(Builder(1).program([], [], [])).startswith("program @hand on 1 cores\nmain() {")


@pytest.mark.parametrize("dtype", ("i32", "ui8", "i1", "bf16", "f8E4M3", "i4", "complex<f32>"))
def test_poison_is_nan_or_the_largest(dtype):
    layout = Layout(
        global_shape=(3,), local_shape=(2,), dtype=dtype, mesh=Mesh(axes=(("tp", 2),)), dim_axes=(("tp",),)
    )
    kind = find_dtype(dtype).numpy
    padding = cut(layout, np.ones(3, kind), varying=True, copy=True, padding=poison(kind))[1][1]
    if dtype in ("bf16", "f8E4M3", "complex<f32>"):
        assert np.isnan(padding.astype(np.complex64))
    else:
        assert int(padding) == {"i32": 2**31 - 1, "ui8": 255, "i1": 1, "i4": 7}[dtype]
