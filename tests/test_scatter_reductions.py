"""All-reduce and slice become reduce-scatter, needless collectives go; against XLA:CPU before and after."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ring_oracle import collectives, run_sharded, shard_function

from hlo_passes import scatter_reductions
from hlo_passes.ir import ir, main, parse
from hlo_passes.notes import notes
from hlo_passes.ops import kind
from hlo_passes.rank_values import value_per_rank

HEAD = """module attributes {{mhlo.num_replicas = {ranks} : i32, mhlo.num_partitions = 1 : i32,
    neuron.mesh = {{axes = [["tp", {ranks} : i64]], device_ids = array<i64>}}}} {{
  func.func @main(%x: tensor<8x12xf32> {{neuron.global_type = tensor<{rows}x12xf32>,
                                        neuron.dim_axes = [["tp"], []]}},
                  %u: tensor<8x12xf32> {{neuron.global_type = tensor<8x12xf32>}}) -> ({types}) {{
    %zero = stablehlo.constant dense<0> : tensor<i32>
    %id = stablehlo.replica_id : tensor<ui32>
    %rank = stablehlo.convert %id : (tensor<ui32>) -> tensor<i32>
"""
ALL = "dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>"


def _module(body: str, result: str, type_: str, ranks: int = 4) -> str:
    head = HEAD.format(ranks=ranks, rows=8 * ranks, types=f"{type_} {{neuron.global_type = {type_}}}")
    return f"{head}{body}\n    return {result} : {type_}\n  }}\n}}"


def _all_reduce(result: str, operand: str, type_: str, groups: str = ALL, op: str = "add") -> str:
    return f"""    {result} = "stablehlo.all_reduce"({operand}) <{{replica_groups = {groups}}}> ({{
      ^bb0(%l: tensor<f32>, %r: tensor<f32>):
        %t = stablehlo.{op} %l, %r : tensor<f32>
        stablehlo.return %t : tensor<f32>
    }}) : ({type_}) -> {type_}
"""


def _gather(result: str, operand: str, types: str, dim: int = 0, groups: str = ALL) -> str:
    return (
        f'    {result} = "stablehlo.all_gather"({operand}) <{{all_gather_dim = {dim} : i64, '
        f"replica_groups = {groups}}}> : {types}\n"
    )


def _slice(result: str, operand: str, start: str, *, table: str | None = None, size: int = 2) -> str:
    """Rows of an 8x12 value from ``size`` times the rank, or times the table's entry of the rank."""
    lines = f"    %size = stablehlo.constant dense<{size}> : tensor<i32>\n"
    at = "%rank"
    if table:
        lines += (
            f"    %table = stablehlo.constant dense<{table}> : tensor<4xi32>\n"
            "    %row = stablehlo.dynamic_slice %table, %rank, sizes = [1]"
            " : (tensor<4xi32>, tensor<i32>) -> tensor<1xi32>\n"
            "    %at = stablehlo.reshape %row : (tensor<1xi32>) -> tensor<i32>\n"
        )
        at = "%at"
    return lines + (
        f"    {start} = stablehlo.multiply {at}, %size : tensor<i32>\n"
        f"    {result} = stablehlo.dynamic_slice {operand}, {start}, %zero, sizes = [{size}, 12]"
        f" : (tensor<8x12xf32>, tensor<i32>, tensor<i32>) -> tensor<{size}x12xf32>"
    )


def _check(text: str, wanted: dict[str, int], rng: np.random.Generator, tolerance: float = 1e-5):
    module = parse(text)
    scatter_reductions.run(module, scatter_reductions.Options())
    assert module.operation.verify()
    assert collectives(module) == wanted
    once = str(module)
    scatter_reductions.run(module, scatter_reductions.Options())
    assert str(module) == once
    ranks = module.operation.attributes["mhlo.num_replicas"].value
    shared = rng.standard_normal((8, 12)).astype(np.float32)
    inputs = [[rng.standard_normal((8, 12)).astype(np.float32), shared] for _ in range(ranks)]
    before, now = oracles.run_local_on_xla(text, inputs), oracles.run_local_on_xla(once, inputs)
    for left, right in zip(before, now, strict=True):
        for x, y in zip(left, right, strict=True):
            np.testing.assert_allclose(y, x, rtol=0, atol=tolerance)
    return module


WHOLE, PART = "tensor<8x12xf32>", "tensor<2x12xf32>"


@pytest.mark.parametrize("table", (None, "[2, 0, 3, 1]"))
def test_a_reduction_sliced_by_rank_is_scattered(table, rng):
    body = _all_reduce("%s", "%x", WHOLE) + _slice("%y", "%s", "%at0", table=table)
    module = _check(_module(body, "%y", PART), {"reduce_scatter": 1}, rng)
    (note,) = notes(module)
    assert note.startswith("scatter_reductions: all_reduce (384 B) of which each core takes its block")


def test_padding_and_relayouts_move_in_front(rng):
    """7 rows padded to 8 behind the all-reduce, as an uneven dim is: the zeros are added up instead."""
    body = (
        "    %f = stablehlo.constant dense<0.0> : tensor<f32>\n"
        "    %x7 = stablehlo.slice %x [0:7, 0:12] : (tensor<8x12xf32>) -> tensor<7x12xf32>\n"
        + _all_reduce("%s", "%x7", "tensor<7x12xf32>")
        + "    %p = stablehlo.pad %s, %f, low = [0, 0], high = [1, 0], interior = [0, 0]"
        " : (tensor<7x12xf32>, tensor<f32>) -> tensor<8x12xf32>\n"
    )
    _check(_module(body + _slice("%y", "%p", "%at0"), "%y", PART), {"reduce_scatter": 1}, rng)


@pytest.mark.parametrize(
    ("body", "result", "type_"),
    [
        # Every core takes the same block.
        (_all_reduce("%s", "%x", WHOLE) + _slice("%y", "%s", "%a", table="[1, 1, 1, 1]"), "%y", PART),
        # The blocks do not cover the dim.
        (_all_reduce("%s", "%x", WHOLE) + _slice("%y", "%s", "%a", size=1), "%y", "tensor<1x12xf32>"),
        # The groups are not the cores that cut.
        (
            _all_reduce("%s", "%x", WHOLE, "dense<[[0, 1], [2, 3]]> : tensor<2x2xi64>")
            + _slice("%y", "%s", "%a"),
            "%y",
            PART,
        ),
    ],
)
def test_other_slices_stay(body, result, type_, rng):
    assert notes(_check(_module(body, result, type_), {"all_reduce": 1}, rng)) == ()


def test_a_sum_used_whole_as_well_stays(rng):
    body = _all_reduce("%s", "%x", WHOLE) + _slice("%y", "%s", "%a")
    body += f"\n    %z = stablehlo.concatenate %y, %s, dim = 0 : ({PART}, {WHOLE}) -> tensor<10x12xf32>"
    _check(_module(body, "%z", "tensor<10x12xf32>"), {"all_reduce": 1}, rng)


@pytest.mark.parametrize("dim", (0, 1))
def test_a_gather_of_what_all_have_is_a_broadcast(dim, rng):
    gathered = "tensor<32x12xf32>" if dim == 0 else "tensor<8x48xf32>"
    body = "    %v = stablehlo.tanh %u : tensor<8x12xf32>\n" + _gather(
        "%y", "%v", f"({WHOLE}) -> {gathered}", dim
    )
    module = _check(_module(body, "%y", gathered), {}, rng, 0)
    assert notes(module)[0].startswith("scatter_reductions: all_gather done locally, 384 B")


def test_a_gather_of_different_values_stays(rng):
    body = _gather("%y", "%x", f"({WHOLE}) -> tensor<32x12xf32>")
    _check(_module(body, "%y", "tensor<32x12xf32>"), {"all_gather": 1}, rng, 0)


@pytest.mark.parametrize(("source", "left"), (("%u", {}), ("%x", {"all_gather": 1})))
def test_a_gather_of_the_blocks_of_one_value_is_the_value(source, left, rng):
    body = _slice("%b", source, "%a") + "\n" + _gather("%y", "%b", f"({PART}) -> {WHOLE}")
    _check(_module(body, "%y", WHOLE), left, rng, 0)


def test_a_gather_in_another_order_stays(rng):
    body = _slice("%b", "%u", "%a", table="[1, 0, 2, 3]") + "\n" + _gather("%y", "%b", f"({PART}) -> {WHOLE}")
    _check(_module(body, "%y", WHOLE), {"all_gather": 1}, rng, 0)


def test_groups_of_one_and_maxima_of_one_value_go(rng):
    alone = "dense<[[0], [1], [2], [3]]> : tensor<4x1xi64>"
    body = (
        _all_reduce("%a", "%x", WHOLE, alone)
        + _gather("%b", "%a", f"({WHOLE}) -> {WHOLE}", groups=alone)
        + _all_reduce("%m", "%u", WHOLE, op="maximum")
        + f"    %y = stablehlo.add %b, %m : {WHOLE}"
    )
    _check(_module(body, "%y", WHOLE), {}, rng, 0)
    body = _all_reduce("%y", "%u", WHOLE)
    _check(_module(body, "%y", WHOLE), {"all_reduce": 1}, rng)


def test_equal_collectives_merge(rng):
    body = (
        _all_reduce("%a", "%x", WHOLE)
        + _all_reduce("%b", "%x", WHOLE)
        + _all_reduce("%c", "%x", WHOLE, op="maximum")
        + _gather("%g", "%x", f"({WHOLE}) -> tensor<32x12xf32>")
        + _gather("%h", "%x", f"({WHOLE}) -> tensor<32x12xf32>")
        + f"    %d = stablehlo.subtract %a, %b : {WHOLE}\n    %e = stablehlo.add %d, %c : {WHOLE}\n"
        "    %i = stablehlo.add %g, %h : tensor<32x12xf32>\n"
        "    %y = stablehlo.concatenate %e, %i, dim = 0 : (tensor<8x12xf32>, tensor<32x12xf32>)"
        " -> tensor<40x12xf32>"
    )
    text = _module(body, "%y", "tensor<40x12xf32>")
    module = _check(text, {"all_reduce": 2, "all_gather": 1}, rng)
    assert len(notes(module)) == 2


@pytest.mark.parametrize("tp", (2, 4))
def test_a_hand_written_sum_and_slice_scatters(tp):
    """A shard_map body that sums with psum and keeps its own rows, as the frontend and shard lower it."""
    mesh = AbstractMesh((tp,), ("tp",))
    rng = np.random.default_rng()
    arguments = [rng.standard_normal(shape).astype(np.float32) for shape in ((8, 16), (16, 32), (32, 16))]
    specs = (P(), P(None, "tp"), P("tp", None))

    def body(x, w, v):
        y = jax.lax.psum(jnp.tanh(x @ w) @ v, "tp")
        rows = y.shape[0] // tp
        return jax.lax.dynamic_slice_in_dim(y, jax.lax.axis_index("tp") * rows, rows)

    block = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=P("tp", None), check_vma=False)
    shaped = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, s))
        for a, s in zip(arguments, specs, strict=True)
    ]
    module = shard_function(block, shaped, tp)
    assert collectives(module) == {"all_reduce": 1}
    scatter_reductions.run(module, scatter_reductions.Options())
    assert collectives(module) == {"reduce_scatter": 1}
    (got,) = run_sharded(module, arguments, tp)
    x, w, v = (a.astype(np.float64) for a in arguments)
    np.testing.assert_allclose(got, np.tanh(x @ w) @ v, rtol=1e-4, atol=1e-4)


SCALARS = ("add", "subtract", "multiply", "minimum", "maximum", "divide", "remainder")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SCALARS), *[st.integers(0, 50)] * 3), min_size=1, max_size=8))
def test_rank_values_are_what_the_cores_compute(choices):
    names, body = ["%rank", "%zero"], ""
    for number, (op, left, right, constant) in enumerate(choices):
        body += f"    %c{number} = stablehlo.constant dense<{constant + 1}> : tensor<i32>\n"
        names.append(f"%c{number}")
        second = f"%c{number}" if op in ("divide", "remainder") else names[right % len(names)]
        body += f"    %v{number} = stablehlo.{op} {names[left % len(names)]}, {second} : tensor<i32>\n"
        names.append(f"%v{number}")
    text = _module(body, names[-1], "tensor<i32>")
    module = parse(text)
    returned = list(main(module).entry_block.operations)[-1].operands[0]
    got = value_per_rank(returned, 4)
    zeros = [np.zeros((8, 12), np.float32)] * 2
    wanted = [rank[0] for rank in oracles.run_local_on_xla(text, [zeros] * 4)]
    if got is not None and max(abs(int(x)) for x in got) < 2**31:
        np.testing.assert_array_equal(got, wanted)
    else:
        assert kind(returned.owner) in SCALARS and isinstance(returned, ir.OpResult)
