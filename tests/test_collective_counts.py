"""Exactly the collectives an expert would count, on programs annotated by hand, and on plans of our own."""

import jax
import jax.numpy as jnp
import pytest
from ring_oracle import collectives, shard_function

from benchmarks.annotated_programs import PROGRAMS
from hlo_passes import scatter_reductions
from hlo_passes.ir import main
from hlo_passes.local import argument_layouts

# Per step where there is a loop.
EXPECTED = {
    # one after the attention, one after the feed-forward part
    "transformer block, Megatron": {"all_reduce": 2},
    "transformer block, data parallel": {},
    "transformer block, data x tensor": {"all_reduce": 2},
    # The weights are smaller than the activations: those after the attention are gathered, not summed.
    "transformer block, sequence parallel": {"all_gather": 3, "all_to_all": 3, "all_reduce": 1},
    "vocabulary-sharded embedding": {"all_reduce": 1},
    "embedding sharded by width": {},
    # the maximum, the sum of exponentials, the label's own logit
    "vocabulary-sharded logits and loss": {"all_reduce": 3},
    # column-sharded, then row-sharded, on a mesh of 2 x 2: only the second sums, over two of the four
    "two products on a grid": {"all_reduce": 1},
    "product summed over both axes": {"all_reduce": 1},
    # two convolutions exchange an edge each way
    "convolutions, rows": {"collective_permute": 4},
    "convolutions, batch": {},
    # the hidden state, of which each gate needs all
    "LSTM scan, hidden sharded": {"all_gather": 1},
    "LSTM scan, batch sharded": {},
    # the gate's softmax (maximum and sum), then the sum over experts
    "mixture of experts": {"all_reduce": 3},
    "decode, cache by heads": {},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_annotated_by_hand(name):
    [program] = [program for program in PROGRAMS if program.name == name]
    module = shard_function(program.function, program.arguments(), program.cores)
    assert collectives(module) == EXPECTED[name]


def test_a_wide_sequence_parallel_block_moves_what_megatron_does():
    """A gather before each group of column-sharded products, a reduce-scatter after each row-sharded one."""
    [program] = [program for program in PROGRAMS if program.name == "transformer block, sequence parallel"]
    width, inside, heads, head = 2048, 8192, 16, 128
    into, back = (width, heads, head), (heads, head, width)
    shapes = (
        (8, 64, width), (width,), into, into, into, back, (width,), (width, inside), (inside, width)
    )  # fmt: skip
    arguments = [
        jax.ShapeDtypeStruct(shape, old.dtype, sharding=old.sharding)
        for shape, old in zip(shapes, program.arguments(), strict=True)
    ]
    module = shard_function(program.function, arguments, program.cores)
    scatter_reductions.run(module, scatter_reductions.Options())
    assert collectives(module) == {"all_gather": 2, "reduce_scatter": 2}


def _experts(x, gate, up, down):
    weights = jax.nn.softmax(x @ gate)
    hidden = jax.nn.gelu(jnp.einsum("td,edf->etf", x, up))
    return jnp.einsum("etd,te->td", jnp.einsum("etf,efd->etd", hidden, down), weights)


def test_the_plan_of_a_mixture_of_experts_cuts_the_experts():
    """Two collectives: the gate's column of each expert, and the experts' results."""
    shapes = (16, 1024), (1024, 8), (8, 1024, 4096), (8, 4096, 1024)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    module = shard_function(_experts, arguments, 8)
    layouts = argument_layouts(module, main(module))
    assert [layout.dim_axes[0] for layout in layouts[2:]] == [("tp",), ("tp",)]
    assert layouts[0].is_replicated
    assert sum(collectives(module).values()) == 2
