"""All passes over collectives together, as the pipeline has them: what transformer blocks end up with."""

import jax
import local_programs
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ring_oracle import collectives, run_sharded
from training import megatron_step

from hlo_passes import overlap
from hlo_passes.ir import ir, parse
from hlo_passes.notes import notes
from hlo_passes.pipeline import PASSES

NAMES = ("reassociate", "scatter_reductions", "hoist", "overlap", "combine_collectives")
ALWAYS = {"overlap": overlap.Options(least_gain=-1e9)}


def _run(module: ir.Module, **options) -> None:
    """The passes in the order of the pipeline."""
    for row in PASSES:
        if row.name in NAMES:
            row.code.run(module, options.get(row.name, row.code.Options()))
            assert module.operation.verify()


def test_they_stand_between_shard_and_fuse():
    names = [row.name for row in PASSES]
    assert tuple(names[names.index("shard") + 1 : names.index("fuse")]) == NAMES


@pytest.mark.parametrize("layers", (1, 2, pytest.param(3, marks=pytest.mark.slow)))
def test_a_training_step_reduces_four_times_a_layer_but_once(layers):
    module, step, arguments = megatron_step(layers=layers, tp=4)
    _run(module)
    assert collectives(module) == {"all_reduce": 4 * layers - 1}
    want = jax.tree.leaves(jax.jit(step)(*arguments))
    for ours, theirs in zip(run_sharded(module, arguments, 4), want, strict=True):
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("make", (local_programs.opt_prefill, local_programs.opt_decode))
def test_an_opt_layer_reduces_twice(make):
    module = parse(make(layers=3))
    _run(module)
    assert collectives(module) == {"all_reduce": 6}
    assert notes(module) == ()


def test_a_long_prompt_overlaps_the_second_product_of_the_mlp():
    """OPT-66B's widths, 2,048 tokens, 24 cores: the wide product hides half of its all-reduce."""
    text = local_programs.opt_prefill(layers=2, hidden=9216, heads=72, length=2048, tp=24, dtype="bfloat16")
    module = parse(text)
    _run(module)
    assert collectives(module) == {"all_reduce": 2, "all_gather": 2, "collective_permute": 2 * 23}
    (note,) = notes(module)
    assert note.startswith("overlap: all_reduce (37748736 B) and 1 dot_general in 24 steps")
    assert note.endswith("(2 times)")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1 << 16)] * 3), min_size=3, max_size=25), st.integers(0, 1 << 30))
def test_random_programs_keep_their_meaning(choices, seed):
    text = local_programs.random_program(choices)
    module = parse(text)
    _run(module, **ALWAYS)
    inputs = local_programs.per_rank(text, seed)
    before, now = oracles.run_local_on_xla(text, inputs), oracles.run_local_on_xla(str(module), inputs)
    for left, right in zip(before, now, strict=True):
        for x, y in zip(left, right, strict=True):
            np.testing.assert_allclose(y, x, rtol=0, atol=1e-4 * max(1.0, np.abs(x).max()))
