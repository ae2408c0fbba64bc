"""Products and collectives in steps: values, exact counts, and the predicted gain against the clock."""

import jax.numpy as jnp
import local_programs
import numpy as np
import oracles
import pytest
from local_programs import all_reduce
from ring_oracle import collectives

from distributed.timeline import time_program
from hlo_passes import fuse, overlap, plan_memory, schedule
from hlo_passes.ir import parse
from hlo_passes.notes import notes

ALWAYS = overlap.Options(least_gain=-1e9)


def _check(text: str, wanted: dict[str, int], rng, tolerance: float = 1e-4):
    module = parse(text)
    overlap.run(module, ALWAYS)
    assert module.operation.verify()
    assert collectives(module) == wanted
    once = str(module)
    overlap.run(module, ALWAYS)
    assert str(module) == once
    inputs = local_programs.per_rank(text, int(rng.integers(1 << 30)))
    for left, right in zip(
        oracles.run_local_on_xla(text, inputs), oracles.run_local_on_xla(once, inputs), strict=True
    ):
        for x, y in zip(left, right, strict=True):
            x, y = (np.asarray(v, np.float32) for v in (x, y))
            np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * max(1.0, np.abs(x).max()))
    return module


# (left, right, einsum): only one dim of each result divides by the ring's size.
REDUCED = {
    "rows": ((8, 6), (6, 5), "mk,kn->mn"),
    "columns": ((3, 6), (6, 8), "mk,kn->mn"),
    "batch": ((8, 3, 6), (8, 6, 5), "bmk,bkn->bmn"),
    "two free dims": ((3, 8, 6), (6, 5), "abk,kn->abn"),
    "transposed": ((6, 5), (8, 6), "km,nk->nm"),
}


@pytest.mark.parametrize("tp", (2, 4))
@pytest.mark.parametrize("name", REDUCED)
def test_a_reduced_product_becomes_a_ring(name, tp, rng):
    left, right, spec = REDUCED[name]

    def run(x, w):
        return jnp.tanh(all_reduce(jnp.einsum(spec, x, w)))

    text = local_programs.local_module(run, [(left, "f4", 0), (right, "f4", 0)], tp=tp)
    module = _check(text, {"all_gather": 1, "collective_permute": tp - 1}, rng)
    (note,) = notes(module)
    assert note.startswith("overlap: all_reduce (") and f"in {tp} steps" in note and " us less: " in note


def test_a_sum_in_a_narrower_type_stays_in_it(rng):
    def run(x, w):
        product = jnp.matmul(x, w, preferred_element_type=jnp.float32)
        return all_reduce(product.astype(jnp.bfloat16))

    text = local_programs.local_module(run, [((8, 6), "bfloat16", 1), ((6, 5), "bfloat16", 0)], tp=4)
    module = _check(text, {"all_gather": 1, "collective_permute": 3}, rng, 5e-2)
    assert "collective_permute" in str(module)
    assert "tensor<2x5xbf16>) -> tensor<2x5xbf16>" in str(module)


HEAD = """module attributes {{mhlo.num_replicas = {ranks} : i32, mhlo.num_partitions = 1 : i32,
    neuron.mesh = {{axes = [["tp", {ranks} : i64]], device_ids = array<i64>}}}} {{
  func.func @main(%x: tensor<{x}xf32> {{neuron.global_type = tensor<{x}xf32>}},
                  %w: tensor<{w}xf32> {{neuron.global_type = tensor<{w}xf32>}}) -> ({types}) {{
    %v = stablehlo.negate %w : tensor<{w}xf32>
    %id = stablehlo.replica_id : tensor<ui32>
    %rank = stablehlo.convert %id : (tensor<ui32>) -> tensor<f32>
    %own = stablehlo.broadcast_in_dim %rank, dims = [] : (tensor<f32>) -> tensor<{x}xf32>
    %mine = stablehlo.add %x, %own : tensor<{x}xf32>
"""


def _gather_module(groups, x, w, whole, dim, dots) -> str:
    """An all-gather of what differs between cores, then the products in ``dots``: (attributes, type)."""
    ranks = sum(len(group) for group in groups)

    def dims(shape):
        return "x".join(map(str, shape))

    types = ", ".join(f"{t} {{neuron.global_type = {t}}}" for _, t in dots)
    body = HEAD.format(ranks=ranks, x=dims(x), w=dims(w), types=types)
    rows, size = len(groups), len(groups[0])
    body += (
        f'    %g = "stablehlo.all_gather"(%mine) <{{all_gather_dim = {dim} : i64, replica_groups = '
        f"dense<{[list(g) for g in groups]}> : tensor<{rows}x{size}xi64>}}> : "
        f"(tensor<{dims(x)}xf32>) -> tensor<{dims(whole)}xf32>\n"
    )
    for number, (attributes, type_) in enumerate(dots):
        right = "%w" if number == 0 else "%v"
        body += (
            f"    %y{number} = stablehlo.dot_general %g, {right}, {attributes} : "
            f"(tensor<{dims(whole)}xf32>, tensor<{dims(w)}xf32>) -> {type_}\n"
        )
    results = ", ".join(f"%y{n}" for n in range(len(dots)))
    return f"{body}    return {results} : {', '.join(t for _, t in dots)}\n  }}\n}}"


PLAIN = "contracting_dims = [1] x [0]"
GATHERED = {
    "free": (((0, 1, 2, 3),), (2, 6), (6, 5), (8, 6), 0, [(PLAIN, "tensor<8x5xf32>")]),
    "contracted": (((0, 1, 2, 3),), (3, 2), (8, 5), (3, 8), 1, [(PLAIN, "tensor<3x5xf32>")]),
    "batch": (
        ((0, 1, 2, 3),), (2, 3, 6), (8, 6, 5), (8, 3, 6), 0,
        [("batching_dims = [0] x [0], contracting_dims = [2] x [1]", "tensor<8x3x5xf32>")],
    ),
    "three products": (((0, 1, 2, 3),), (2, 6), (6, 5), (8, 6), 0, [(PLAIN, "tensor<8x5xf32>")] * 3),
    "two groups": (((0, 1), (2, 3)), (2, 6), (6, 5), (4, 6), 0, [(PLAIN, "tensor<4x5xf32>")]),
    "other order": (((3, 2, 1, 0),), (2, 6), (6, 5), (8, 6), 0, [(PLAIN, "tensor<8x5xf32>")]),
}  # fmt: skip


@pytest.mark.parametrize("name", GATHERED)
def test_a_gathered_operand_becomes_a_ring(name, rng):
    groups, x, w, whole, dim, dots = GATHERED[name]
    text = _gather_module(groups, x, w, whole, dim, dots)
    module = _check(text, {"collective_permute": len(groups[0]) - 1}, rng)
    assert f"all_gather ({4 * int(np.prod(x))} B) and {len(dots)} dot_general" in notes(module)[0]


def test_a_scattered_product_becomes_a_ring(rng):
    text = _gather_module(((0, 1, 2, 3),), (2, 6), (6, 8), (8, 6), 0, [(PLAIN, "tensor<8x8xf32>")])
    scatter = """    %z = "stablehlo.reduce_scatter"(%y0) <{scatter_dimension = 1 : i64,
        replica_groups = dense<[[0, 1, 2, 3]]> : tensor<1x4xi64>}> ({
      ^bb0(%l: tensor<f32>, %r: tensor<f32>):
        %t = stablehlo.add %l, %r : tensor<f32>
        stablehlo.return %t : tensor<f32>
    }) : (tensor<8x8xf32>) -> tensor<8x2xf32>
    return %z : tensor<8x2xf32>"""
    text = text.replace("    return %y0 : tensor<8x8xf32>", scatter)
    text = text.replace(
        "-> (tensor<8x8xf32> {neuron.global_type = tensor<8x8xf32>})",
        "-> (tensor<8x2xf32> {neuron.global_type = tensor<8x2xf32>})",
    )
    # Both patterns meet in one product: the first in program order, the gather, takes it.
    _check(text, {"collective_permute": 3, "reduce_scatter": 1}, rng)


@pytest.mark.parametrize("tp", (6, 8))
def test_a_ring_whose_ends_are_not_neighbours_is_left(tp):
    """The hardware permutes between directly linked devices only: 6 or 8 cores are no closed ring."""
    text = local_programs.local_module(
        lambda x, w: all_reduce(x @ w), [((24, 6), "f4", 1), ((6, 24), "f4", 0)], tp=tp
    )
    module = parse(text)
    overlap.run(module, ALWAYS)
    assert collectives(module) == {"all_reduce": 1}


def _used_twice(x, w):
    product = x @ w
    return all_reduce(product), product


def _uneven(x, w):
    return all_reduce(x[:3] @ w[:, :5])


def _no_product(x, w):
    return all_reduce(jnp.tanh(x))


@pytest.mark.parametrize("function", (_used_twice, _uneven, _no_product))
def test_what_does_not_fit_is_left(function):
    text = local_programs.local_module(function, [((8, 6), "f4", 1), ((6, 8), "f4", 0)], tp=4)
    module = parse(text)
    overlap.run(module, ALWAYS)
    assert collectives(module) == {"all_reduce": 1}


def _program(text: str, options: overlap.Options | None):
    module = parse(text)
    if options is not None:
        overlap.run(module, options)
    said = notes(module)
    for code in (fuse, plan_memory):
        code.run(module, code.Options())
    return schedule.run(module, schedule.Options()), said


def _mlp(tp: int, rows: int, deep: int = 36864, wide: int = 9216) -> str:
    """The row-parallel product of OPT-66B's MLP over ``rows`` tokens."""
    arguments = [((rows, deep // tp), "bfloat16", 1), ((deep // tp, wide), "bfloat16", 0)]
    return local_programs.local_module(lambda x, w: all_reduce(x @ w), arguments, tp=tp)


@pytest.mark.parametrize(("tp", "rows"), ((24, 2048), (24, 4096), (4, 8192)))
def test_the_clock_sees_at_least_half_of_what_is_promised(tp, rows):
    """The promise is for the pair alone; the clock also reads ahead, before and after."""
    text = _mlp(tp, rows, 9216 if tp == 4 else 36864)
    plain, _ = _program(text, None)
    stepped, said = _program(text, overlap.Options())
    if not said:
        pytest.skip("the model says it does not pay")
    promised_s = float(said[0].partition(" us less")[0].rpartition(" ")[2]) * 1e-6
    saved_s = time_program(plain, "inf2.48xlarge").total_s - time_program(stepped, "inf2.48xlarge").total_s
    assert saved_s > 0.5 * promised_s > 0


@pytest.mark.parametrize("rows", (1, 16, 64))
def test_decoding_is_left_alone(rows):
    """Few rows: the product reads weights, the ring waits for hops, and N launches cost more than both."""
    module = parse(_mlp(24, rows))
    overlap.run(module, overlap.Options())
    assert collectives(module) == {"all_reduce": 1}
    assert notes(module) == ()


def test_a_smaller_instance_has_no_ring_of_all_its_chips():
    module = parse(_mlp(12, 4096))
    overlap.run(module, overlap.Options(instance="inf2.24xlarge", least_gain=-1e9))
    assert collectives(module) == {"all_reduce": 1}
