"""The runtime on hand-written programs, against NumPy and XLA:CPU with one replica per rank."""

import jax
import ml_dtypes
import numpy as np
import oracles
import pytest
from ring_programs import Builder

from distributed import collectives
from distributed.executor import Executor
from distributed.layout import Layout
from distributed.mesh import Mesh
from distributed.placement import cut
from distributed.runtime import Runtime
from distributed.walk import RankMissingError
from kernels.errors import CompileError


@pytest.fixture(scope="module")
def executor():
    return Executor()


def run(program, executor, *arrays, poison=False):
    runtime = Runtime(program, executor, poison=poison)
    outputs = runtime.run([runtime.place(index, array) for index, array in enumerate(arrays)])
    return [runtime.gather(index, value) for index, value in enumerate(outputs)]


def mlp(ranks, rows, hidden, ffn):
    """x @ w1 (cut by columns), relu, @ w2 (cut by rows), all-reduce, + x; text as program and as LOCAL."""
    part = -(-ffn // ranks)
    x, w1 = f"tensor<{rows}x{hidden}xf32>", f"tensor<{hidden}x{part}xf32>"
    h, w2 = f"tensor<{rows}x{part}xf32>", f"tensor<{part}x{hidden}xf32>"
    body = f"""
      %h = stablehlo.dot_general %x, %w1, contracting_dims = [1] x [0] : ({x}, {w1}) -> {h}
      %zero = stablehlo.constant dense<0.0> : {h}
      %r = stablehlo.maximum %h, %zero : {h}
      %y = stablehlo.dot_general %r, %w2, contracting_dims = [1] x [0] : ({h}, {w2}) -> {x}"""
    builder = Builder(ranks)
    block = (
        f"module {{ func.func @main(%x: {x}, %w1: {w1}, %w2: {w2}) -> {x} {{ {body}\n return %y : {x} }} }}"
    )
    add = f"""module {{ func.func @main(%a: {x}, %b: {x}) -> {x} {{
      %c = stablehlo.add %a, %b : {x}
      return %c : {x} }} }}"""
    groups = "[[" + ", ".join(map(str, range(ranks))) + "]]"
    local = f"""
    module attributes {{mhlo.num_replicas = {ranks} : i32, mhlo.num_partitions = 1 : i32}} {{
      func.func @main(%x: {x}, %w1: {w1}, %w2: {w2}) -> {x} {{ {body}
        %s = "stablehlo.all_reduce"(%y) ({{
          ^bb0(%a: tensor<f32>, %b: tensor<f32>):
            %c = stablehlo.add %a, %b : tensor<f32>
            stablehlo.return %c : tensor<f32>
        }}) {{replica_groups = dense<{groups}> : tensor<1x{ranks}xi64>}} : ({x}) -> {x}
        %o = stablehlo.add %s, %x : {x}
        return %o : {x}
      }}
    }}"""
    b = builder
    inputs = [
        b.global_buffer((rows, hidden)),
        b.global_buffer((hidden, ffn), dim_axes=((), ("tp",))),
        b.global_buffer((ffn, hidden), dim_axes=(("tp",), ())),
    ]
    partial, total, out = (
        b.buffer((rows, hidden), varying=True),
        b.buffer((rows, hidden)),
        b.buffer((rows, hidden)),
    )
    steps = [
        b.launch(b.segment("block", block), inputs, [partial], varying=True),
        b.collective("all_reduce", partial, total, reducer="add"),
        b.launch(b.segment("add", add), [total, inputs[0]], [out]),
    ]
    return b.program(inputs, steps, [out]), local


@pytest.mark.parametrize(("ranks", "ffn"), ((1, 8), (2, 12), (3, 10), (4, 16)))
def test_tensor_parallel_mlp(ranks, ffn, executor, rng):
    """Uneven shards (10 over 3) included; against XLA:CPU's own collectives and NumPy in float64."""
    program, local = mlp(ranks, 5, 6, ffn)
    x, w1, w2 = (rng.normal(size=s).astype(np.float32) for s in ((5, 6), (6, ffn), (ffn, 6)))
    [result] = run(program, executor, x, w1, w2)
    exact = np.maximum(x.astype(np.float64) @ w1, 0) @ w2 + x
    np.testing.assert_allclose(result, exact, rtol=1e-4, atol=1e-5)
    runtime = Runtime(program, executor)
    placed = [runtime.place(index, array).arrays for index, array in enumerate((x, w1, w2))]
    per_rank = [[np.asarray(a[r if len(a) > 1 else 0]) for a in placed] for r in range(ranks)]
    for [theirs] in oracles.run_local_on_xla(local, per_rank):
        np.testing.assert_allclose(result, theirs, rtol=1e-5, atol=1e-5)


DOUBLE = """module { func.func @main(%a: tensor<4xf32> {tf.aliasing_output = 0 : i32}) -> tensor<4xf32> {
  %b = stablehlo.add %a, %a : tensor<4xf32>
  return %b : tensor<4xf32> } }"""
RANK_PLUS = """module { func.func @main(%r: tensor<ui32>, %a: tensor<4xi32>) -> tensor<4xi32> {
  %i = stablehlo.convert %r : (tensor<ui32>) -> tensor<i32>
  %v = stablehlo.broadcast_in_dim %i, dims = [] : (tensor<i32>) -> tensor<4xi32>
  %b = stablehlo.add %a, %v : tensor<4xi32>
  return %b : tensor<4xi32> } }"""
LESS = """module { func.func @main(%i: tensor<i32>, %n: tensor<i32>) -> tensor<i1> {
  %b = stablehlo.compare LT, %i, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
  return %b : tensor<i1> } }"""
NEXT = """module { func.func @main(%i: tensor<i32>) -> tensor<i32> {
  %one = stablehlo.constant dense<1> : tensor<i32>
  %b = stablehlo.add %i, %one : tensor<i32>
  return %b : tensor<i32> } }"""


def test_rank_reaches_each_core_and_collectives_move_it(executor):
    b = Builder(6)
    start = b.global_buffer((4,), "i32")
    mine = b.buffer((4,), "i32", varying=True)
    moved = b.buffer((4,), "i32", varying=True)
    summed = b.buffer((4,), "i32")
    ring = tuple((r, (r + 1) % 6) for r in range(5))
    steps = [
        b.launch(b.segment("rank", RANK_PLUS), [start], [mine], varying=True, takes_rank=True),
        b.collective("collective_permute", mine, moved, groups=ring),
        b.collective("all_reduce", moved, summed, reducer="maximum"),
    ]
    [result] = run(b.program([start], steps, [summed]), executor, np.arange(4, dtype=np.int32))
    np.testing.assert_array_equal(result, np.arange(4) + 4)


def test_large_launches_run_side_by_side_and_each_result_stays_with_its_core(executor, rng, monkeypatch):
    words, ranks = 1 << 18, 6
    b = Builder(ranks)
    x = b.global_buffer((words,), "i32")
    mine = b.global_buffer((words * ranks,), "i32", dim_axes=(("tp",),))
    text = RANK_PLUS.replace("4xi32", f"{words}xi32")
    program = b.program(
        [x], [b.launch(b.segment("rank", text), [x], [mine], varying=True, takes_rank=True)], [mine]
    )
    array = rng.integers(-99, 99, words).astype(np.int32)
    calls = []
    watched = executor.run_side_by_side
    monkeypatch.setattr(executor, "run_side_by_side", lambda *given: calls.append(given) or watched(*given))
    for _ in range(5):
        [result] = run(program, executor, array)
        np.testing.assert_array_equal(result.reshape(ranks, words), array + np.arange(ranks)[:, np.newaxis])
    assert len(calls) == 5


def test_cores_that_make_little_run_one_after_the_other(executor, rng, monkeypatch):
    """Of a mebibyte each they make one number, and they update a mebibyte where it lies."""
    rows, ranks = 1 << 18, 3
    b = Builder(ranks)
    x = b.global_buffer((rows * ranks,), dim_axes=(("tp",),))
    doubled = b.global_buffer((rows * ranks,), dim_axes=(("tp",),))
    most = b.global_buffer((ranks,), dim_axes=(("tp",),))
    text = f"""module {{ func.func @main(%x: tensor<{rows}xf32> {{tf.aliasing_output = 0 : i32}})
        -> (tensor<{rows}xf32>, tensor<1xf32>) {{
      %twice = stablehlo.add %x, %x : tensor<{rows}xf32>
      %least = stablehlo.constant dense<0xFF800000> : tensor<f32>
      %most = stablehlo.reduce(%x init: %least) applies stablehlo.maximum across dimensions = [0]
        : (tensor<{rows}xf32>, tensor<f32>) -> tensor<f32>
      %one = stablehlo.reshape %most : (tensor<f32>) -> tensor<1xf32>
      return %twice, %one : tensor<{rows}xf32>, tensor<1xf32> }} }}"""
    step = b.launch(b.segment("most", text), [x], [doubled, most], varying=True, donated=((0, 0),))
    program = b.program([x], [step], [doubled, most], aliases=((0, 0),))
    monkeypatch.setattr(executor, "run_side_by_side", None)
    array = rng.normal(size=rows * ranks).astype(np.float32)
    twice, found = run(program, executor, array)
    np.testing.assert_array_equal(twice, 2 * array)
    np.testing.assert_array_equal(found, array.reshape(ranks, rows).max(1))


def test_an_error_in_any_thread_reaches_the_caller(executor):
    one, two = executor.to_device(np.int32(1)), executor.to_device(np.ones(2, np.int32))
    for wrong in range(4):
        rows = [[two if number == wrong else one] for number in range(4)]
        with pytest.raises(jax.errors.JaxRuntimeError, match="size"):
            executor.run_side_by_side(executor.load(NEXT), rows)


def loop_program(num_cores, donated_input):
    """x doubled n times in place by a loop, all-reduced in its body by maximum (so it stays itself)."""
    b = Builder(num_cores)
    x, n = b.global_buffer((4,)), b.global_buffer((), "i32")
    zero = b.global_buffer((), "i32")
    carried, i = b.buffer((4,)), b.buffer((), "i32", host=True)
    tested, counted, holds = b.buffer((4,)), b.buffer((), "i32", host=True), b.buffer((), "i1", host=True)
    doubled, agreed = b.buffer((4,)), b.buffer((4,))
    following, out, last = b.buffer((), "i32", host=True), b.buffer((4,)), b.buffer((), "i32", host=True)
    condition = b.block(
        [tested, counted], [b.launch(b.segment("less", LESS), [counted, n], [holds])], [holds]
    )
    body = b.block(
        [carried, i],
        [
            b.launch(b.segment("double", DOUBLE), [carried], [doubled], donated=((0, 0),)),
            b.collective("all_reduce", doubled, agreed, reducer="maximum"),
            b.launch(b.segment("next", NEXT), [i], [following]),
        ],
        [agreed, following],
    )
    loop = b.loop([x, zero], condition, body, [out, last])
    aliases = ((0, 0),) if donated_input else ()
    return b.program([x, n, zero], [loop], [out, last], aliases=aliases)


@pytest.mark.parametrize("trips", (0, 1, 5))
def test_loop_runs_while_its_condition_holds(trips, executor, rng):
    x = rng.normal(size=4).astype(np.float32)
    result, count = run(loop_program(3, False), executor, x, np.int32(trips), np.int32(0))
    np.testing.assert_array_equal(result, x * np.float32(2**trips))
    assert count == trips


def test_an_input_that_is_not_donated_survives_updates_in_place(executor, rng):
    program, x = loop_program(2, False), rng.normal(size=4).astype(np.float32)
    runtime = Runtime(program, executor)
    placed = [runtime.place(i, a) for i, a in enumerate((x, np.int32(2), np.int32(0)))]
    for _ in range(2):
        [doubled, _] = runtime.run(placed)
        np.testing.assert_array_equal(runtime.gather(0, doubled), 4 * x)


def test_a_donated_input_is_consumed_and_says_so(executor, rng):
    program, x = loop_program(2, True), rng.normal(size=4).astype(np.float32)
    runtime = Runtime(program, executor)
    placed = [runtime.place(i, a) for i, a in enumerate((x, np.int32(1), np.int32(0)))]
    [first, _] = runtime.run(placed)
    with pytest.raises(RuntimeError, match="donated"):
        runtime.run(placed)
    [second, _] = runtime.run([first, *placed[1:]])
    np.testing.assert_array_equal(runtime.gather(0, second), 4 * x)


def in_place_program(num_cores):
    b = Builder(num_cores)
    x, out = (
        b.global_buffer((4 * num_cores,), dim_axes=(("tp",),)),
        b.global_buffer((4 * num_cores,), dim_axes=(("tp",),)),
    )
    step = b.launch(b.segment("double", DOUBLE), [x], [out], varying=True, donated=((0, 0),))
    return b.program([x], [step], [out], aliases=((0, 0),))


def test_donated_memory_is_updated_in_place(executor, rng):
    x = rng.normal(size=12).astype(np.float32)
    runtime = Runtime(in_place_program(3), executor)
    [value] = runtime.run([runtime.place(0, x)])
    memory = [array.unsafe_buffer_pointer() for array in value.arrays]
    for _ in range(3):
        [value] = runtime.run([value])
        assert [array.unsafe_buffer_pointer() for array in value.arrays] == memory
    np.testing.assert_array_equal(runtime.gather(0, value), 16 * x)


def test_donation_never_touches_the_callers_arrays(executor, rng):
    x = rng.normal(size=4).astype(np.float32)
    mine, runtime = jax.numpy.asarray(x), Runtime(in_place_program(1), executor)
    runtime.run([runtime.place(0, mine)])
    runtime.run([runtime.place(0, x)])
    np.testing.assert_array_equal(np.asarray(mine), x)


def test_one_array_behind_several_ranks_is_not_overwritten_twice(executor):
    """An all-gather gives one array to all ranks of a group; each rank then updates its own in place."""
    b = Builder(4)
    x, gathered = b.global_buffer((8,), dim_axes=(("tp",),)), b.buffer((4,), varying=True)
    doubled, total = b.buffer((4,), varying=True), b.buffer((4,))
    steps = [
        b.collective("all_gather", x, gathered, groups=((0, 1), (2, 3)), dim=0),
        b.launch(b.segment("double", DOUBLE), [gathered], [doubled], varying=True, donated=((0, 0),)),
        b.collective("all_reduce", doubled, total, reducer="add"),
    ]
    values = np.arange(8, dtype=np.float32)
    [result] = run(b.program([x], steps, [total]), executor, values)
    np.testing.assert_array_equal(result, 4 * (values[:4] + values[4:]))


@pytest.mark.parametrize("index", (-1, 0, 1, 2, 7))
def test_branch_takes_its_block_and_the_last_out_of_range(index, executor):
    b = Builder(2)
    x, chosen, out = b.global_buffer((4,)), b.global_buffer((), "i32"), b.buffer((4,))
    blocks = []
    for reducer in ("minimum", "add", "multiply"):
        result = b.buffer((4,))
        blocks.append(b.block([], [b.collective("all_reduce", x, result, reducer=reducer)], [result]))
    program = b.program([x, chosen], [b.branch(chosen, blocks, [out])], [out])
    values = np.array([1, 2, 3, 4], np.float32)
    [result] = run(program, executor, values, np.int32(index))
    expected = [values, 2 * values, values * values][index if 0 <= index < 3 else 2]
    np.testing.assert_array_equal(result, expected)


def test_values_of_all_cores_are_held_once(executor):
    b = Builder(24)
    x, y = b.global_buffer((4,)), b.buffer((4,))
    step = b.launch(b.segment("double", DOUBLE.replace(" {tf.aliasing_output = 0 : i32}", "")), [x], [y])
    runtime = Runtime(b.program([x], [step], [y]), executor)
    [value] = runtime.run([runtime.place(0, np.ones(4, np.float32))])
    assert len(value.arrays) == 1


def test_partly_replicated_input_shares_its_blocks():
    """Cut over one of two mesh axes: ranks along the other hold the same array, not a copy."""
    mesh = Mesh(axes=(("dp", 2), ("tp", 3)))
    layout = Layout(global_shape=(9,), local_shape=(3,), dtype="f32", mesh=mesh, dim_axes=(("tp",),))
    blocks = cut(layout, np.arange(9, dtype=np.float32), varying=True, copy=True)
    assert [blocks[r] is blocks[r + 3] for r in range(3)] == [True] * 3
    np.testing.assert_array_equal(blocks[4], [3, 4, 5])


def test_poisoned_padding_shows_and_gather_cuts_it_off(executor, rng):
    """10 rows over 4 cores: 3, 3, 3, 1; doubling keeps padding in its place."""
    b = Builder(4)
    x = b.global_buffer((10,), dim_axes=(("tp",),))
    y = b.global_buffer((10,), dim_axes=(("tp",),))
    text = DOUBLE.replace("4xf32", "3xf32").replace(" {tf.aliasing_output = 0 : i32}", "")
    program = b.program([x], [b.launch(b.segment("double", text), [x], [y], varying=True)], [y])
    values = rng.normal(size=10).astype(np.float32)
    runtime = Runtime(program, executor, poison=True)
    placed = runtime.place(0, values)
    assert np.isnan(np.asarray(placed.arrays[3])).tolist() == [False, True, True]
    assert np.asarray(Runtime(program, executor).place(0, values).arrays[3])[1:].tolist() == [0, 0]
    [result] = runtime.run([placed])
    np.testing.assert_array_equal(runtime.gather(0, result), 2 * values)


def test_an_output_that_is_an_input_has_memory_of_its_own(executor):
    b = Builder(1)
    x = b.global_buffer((4,))
    runtime = Runtime(b.program([x], [], [x, x]), executor)
    placed = runtime.place(0, np.ones(4, np.float32))
    first, second = runtime.run([placed])
    pointers = {value.arrays[0].unsafe_buffer_pointer() for value in (placed, first, second)}
    assert len(pointers) == 3


def test_a_rank_that_does_not_arrive_is_named_with_its_line(executor):
    b = Builder(3)
    x, y = b.global_buffer((4,)), b.buffer((4,))
    program = b.program([x], [b.collective("all_reduce", x, y, reducer="add", groups=((0, 2),))], [y])
    with pytest.raises(RankMissingError, match=r"all_reduce at all_reduce\.py:7 waits for rank 1 of 3"):
        run(program, executor, np.ones(4, np.float32))
    missing = b.buffer((4,))
    program = b.program([x], [b.collective("all_reduce", missing, y, reducer="add")], [y])
    with pytest.raises(RankMissingError, match="waits for rank 0, 1, 2 of 3: operand %2"):
        run(program, executor, np.ones(4, np.float32))


def test_wrong_inputs_are_refused(executor):
    program = loop_program(2, False)
    runtime = Runtime(program, executor)
    with pytest.raises(ValueError, match=r"shape \(4,\) and type float32, got shape \(5,\)"):
        runtime.place(0, np.ones(5, np.float32))
    with pytest.raises(ValueError, match=r"got shape .* float64"):
        runtime.place(0, np.ones(4, np.float64))
    with pytest.raises(ValueError, match="takes 3 inputs, got 0"):
        runtime.run([])
    n = runtime.place(1, np.int32(1))
    with pytest.raises(ValueError, match="input 0 of hand is placed as"):
        runtime.run([n, n, n])


def test_executor_compiles_a_text_once_and_keeps_64_bit_types():
    executor = Executor()
    first = executor.load(NEXT)
    assert executor.load(str(NEXT)) is first
    assert executor.num_compiled == 1
    for value in (np.int64(2**40), np.float64(1) / 3):
        array = np.full(5, value)
        np.testing.assert_array_equal(executor.to_host(executor.to_device(array)), array)
        assert executor.copy(executor.to_device(array)).dtype == array.dtype


def test_an_executable_lives_as_long_as_it_is_held():
    executor = Executor()
    held, _ = executor.load(NEXT), executor.load(DOUBLE)
    del _
    assert executor.num_compiled == 1 and executor.load(NEXT) is held


def test_executor_compiles_several_texts_at_once(executor):
    fresh = Executor()
    first, _, last = fresh.load_all([(NEXT, None), (DOUBLE, None), (NEXT, None)])
    assert first is last is fresh.load(NEXT) and fresh.num_compiled == 2
    with pytest.raises(CompileError, match="nobody"):
        fresh.load_all([(LESS, None), (NEXT.replace("stablehlo.add", "nobody.add"), None)])


def test_executor_names_what_the_host_cannot_compile(executor):
    text = """module { func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {
      %b = stablehlo.custom_call @nobody(%a) : (tensor<4xf32>) -> tensor<4xf32>
      return %b : tensor<4xf32> } }"""
    with pytest.raises(CompileError, match="nobody"):
        executor.load(text)


def test_executor_rounds_where_the_program_rounds(executor, rng):
    """A bf16 chain: every op's result is rounded, so 1 + 2^-9 - 1 is 0."""
    text = """module { func.func @main(%a: tensor<8xbf16>, %b: tensor<8xbf16>) -> tensor<8xbf16> {
      %c = stablehlo.add %a, %b : tensor<8xbf16>
      %d = stablehlo.subtract %c, %a : tensor<8xbf16>
      return %d : tensor<8xbf16> } }"""
    a, b = (rng.normal(size=8).astype(jax.numpy.bfloat16) for _ in range(2))
    [result] = executor.load(text)([executor.to_device(a), executor.to_device(b)])
    expected = ((a + b).astype(np.float32) - a.astype(np.float32)).astype(jax.numpy.bfloat16)
    np.testing.assert_array_equal(executor.to_host(result), expected)


@pytest.mark.parametrize("algorithm", collectives.ORDERS)
def test_sums_follow_the_algorithm_of_the_program(algorithm, executor, rng):
    """bf16 rounds where the algorithm writes, so the bits tell in what order the ranks were added."""
    b = Builder(5)
    x = b.global_buffer((5, 64), "bf16", dim_axes=(("tp",), ()))
    total = b.global_buffer((1, 64), "bf16")
    step = b.collective("all_reduce", x, total, reducer="add", algorithm=algorithm)
    array = rng.standard_normal((5, 64)).astype(ml_dtypes.bfloat16)
    (got,) = run(b.program([x], [step], [total]), executor, array)
    [wanted] = collectives.run(step, [np.split(array, 5)])
    np.testing.assert_array_equal(got, wanted[0])


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 5)])
def test_a_view_of_the_device_is_exact_read_only_and_outlives_its_array(shape, executor, rng):
    for dtype in (np.float32, ml_dtypes.bfloat16, np.int8, np.bool_):
        wanted = rng.standard_normal(shape).astype(dtype)
        array = executor.copy(executor.to_device(wanted))
        seen = executor.to_host(array)
        del array
        taken = [executor.copy(executor.to_device(np.ones(shape, dtype))) for _ in range(8)]
        assert seen.dtype == dtype and seen.shape == shape and not seen.flags.writeable
        assert seen.tobytes() == wanted.tobytes() and len(taken) == 8


def random_program(rng, ranks):
    """Updates in place between permutes and broadcasts that hand arrays on; with its results in NumPy.

    An update kills its operand, other steps leave theirs to be read again.
    """
    b, cut_rows = Builder(ranks), (("tp",),)
    inputs = [b.global_buffer((4 * ranks,), dim_axes=cut_rows) for _ in range(3)]
    arrays = [rng.integers(1, 9, 4 * ranks).astype(np.float32) for _ in inputs]
    alive = {number: array.reshape(ranks, 4) for number, array in zip(inputs, arrays, strict=True)}
    b.segment("double", DOUBLE)
    steps = []
    for _ in range(12):
        kind = rng.choice(["double", "double", "collective_permute", "collective_broadcast", "all_reduce"])
        operand, made = int(rng.choice(list(alive))), b.global_buffer((4 * ranks,), dim_axes=cut_rows)
        value = alive[operand]
        if kind == "double":
            if len(alive) > 1:
                del alive[operand]
                alive[made] = value * 2
                steps.append(b.launch("double", [operand], [made], varying=True, donated=((0, 0),)))
            continue
        groups, more = (tuple(map(int, rng.permutation(ranks))),), {}
        if kind == "collective_permute":
            pairs = list(zip(rng.permutation(ranks), rng.permutation(ranks), strict=True))
            groups = tuple((int(a), int(b)) for a, b in pairs[: rng.integers(1, ranks + 1)])
            alive[made] = np.zeros_like(value)
            for source, target in groups:
                alive[made][target] = value[source]
        elif kind == "collective_broadcast":
            alive[made] = np.stack([value[groups[0][0]]] * ranks)
        else:
            alive[made], more = np.stack([value.max(axis=0)] * ranks), {"reducer": "maximum"}
        steps.append(b.collective(str(kind), operand, made, groups=groups, **more))
    aliases = ((0, int(rng.integers(3))),) if rng.integers(2) else ()
    outputs = [int(number) for number in rng.choice(list(alive), min(4, len(alive)), replace=False)]
    return b.program(inputs, steps, outputs, aliases=aliases), arrays, [alive[n] for n in outputs]


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_arrays_that_are_handed_on_are_not_overwritten(ranks, executor, rng):
    for _ in range(40):
        program, arrays, wanted = random_program(rng, ranks)
        runtime = Runtime(program, executor)
        mine = [jax.numpy.asarray(array) for array in arrays]
        kept = [index for index in range(3) if index not in {source for _, source in program.aliases}]
        placed = [runtime.place(index, array) for index, array in enumerate(mine)]
        for _ in range(2):
            outputs = runtime.run(placed)
            for output, rows in zip(outputs, wanted, strict=True):
                blocks = output.arrays * ranks if len(output.arrays) == 1 else output.arrays
                np.testing.assert_array_equal(np.stack(blocks), rows)
            for index, array in enumerate(mine):
                np.testing.assert_array_equal(array, arrays[index])
            placed = [placed[i] if i in kept else runtime.place(i, mine[i]) for i in range(3)]
        distinct = {id(x) for output in outputs for x in output.arrays}
        assert len(distinct) == sum(len({id(x) for x in output.arrays}) for output in outputs)
