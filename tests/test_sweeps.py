"""Predictions over batch, length and degree: no cliffs, and never below what the datasheet allows."""

import itertools

import jax.numpy as jnp
import pytest

from benchmarks.rows import decode_program, whole
from distributed.timeline import time_program
from kernels.eras import ERAS
from kernels.hardware import load_core
from neuronx.models import bert, llama
from neuronx.models.catalog import workload

pytestmark = pytest.mark.slow

_CORE = load_core()
_RING = "inf2.48xlarge"


def _step_s(era, batch, length, tp):
    """A token of Llama-2-7B, after the check that its weights and cache can be read that fast."""
    cfg = llama.config("llama-2-7b")
    seconds = time_program(decode_program(cfg.name, batch, length, tp, _RING), _RING, era=era).total_s
    weights = cfg.layers * (4 * cfg.hidden**2 + 3 * cfg.hidden * cfg.ffn) + cfg.hidden * cfg.vocab
    cache = 2 * cfg.layers * batch * length * cfg.hidden
    assert seconds >= 2 * (weights + cache) / tp / _CORE.hbm.bandwidth_bytes_per_s
    return seconds


@pytest.mark.parametrize("era", ERAS)
def test_batches_of_an_encoder(era) -> None:
    cfg, length = bert.config("bert-base-uncased"), 128
    batches = (1, 4, 16, 64)
    times = [
        time_program(
            whole(cfg.name, batch, length, "inf2.xlarge").first.program, "inf2.xlarge", era=era
        ).total_s
        for batch in batches
    ]
    matrices = cfg.layers * (4 * cfg.hidden**2 + 2 * cfg.hidden * cfg.ffn)
    for batch, seconds in zip(batches, times, strict=True):
        assert seconds >= 2 * matrices * batch * length / _CORE.pe.peak_flop_per_s
    for (few, fast_s), (many, slow_s) in itertools.pairwise(zip(batches, times, strict=True)):
        # More takes longer, but hardly longer each: what no longer fits SBUF costs 6 % at most.
        assert fast_s < slow_s <= 1.07 * many / few * fast_s


@pytest.mark.parametrize("name", ["bert-base-uncased", "vit-base-patch16-224", "resnet50"])
def test_types_of_a_model_that_is_one_program(name) -> None:
    def seconds(dtype, **options):
        found = workload(name, batch=8, dtype=dtype, prompt_len=128, new_tokens=0, **options)
        return found.first.profile().timeline.total_s

    whole_s = seconds(jnp.float32)
    by_type = {
        (mode, kind): seconds(jnp.float32, auto_cast=mode, auto_cast_type=kind)
        for mode in ("matmult", "all")
        for kind in ("tf32", "fp16", "bf16", "fp8_e4m3")
    }
    # Full rate instead of a quarter of it, and of half the bytes.
    assert max(by_type.values()) < 0.8 * whole_s
    for mode in ("matmult", "all"):
        assert by_type[mode, "bf16"] <= by_type[mode, "fp16"]
        # Half the bytes again; sums of two operands in SBUF are fast in bf16 alone.
        assert by_type[mode, "fp8_e4m3"] < 1.04 * by_type[mode, "bf16"]
    # Twice the bytes; but for products alone nothing is cast to it, worth as much where loads are hidden.
    assert by_type["all", "fp16"] < by_type["all", "tf32"]
    assert by_type["matmult", "fp16"] < 1.03 * by_type["matmult", "tf32"]
    # All in bf16 has less to move than products alone; a model in bf16 has f32 norms and softmaxes.
    assert max(by_type["all", "bf16"], seconds(jnp.bfloat16)) < by_type["matmult", "bf16"]


@pytest.mark.parametrize("era", ERAS)
def test_degrees_batches_and_lengths_of_a_decoder(era) -> None:
    by_degree = [_step_s(era, 1, 2048, tp) for tp in (2, 4, 8)]
    for fewer, more in itertools.pairwise(by_degree):
        # Twice the cores read twice as fast; collectives keep it from taking half the time.
        assert fewer / 2 < more < fewer
    by_batch = [by_degree[-1], *(_step_s(era, batch, 2048, 8) for batch in (4, 16))]
    for one_s, four_s in itertools.pairwise(by_batch):
        assert one_s < four_s < 4 * one_s
    by_length = [_step_s(era, 1, 512, 8), by_degree[-1], _step_s(era, 1, 4096, 8)]
    first, second = (after - before for before, after in itertools.pairwise(by_length))
    # The cache's part grows with its length: 1536 positions more, then 2048.
    assert 0 < first < second and second / first == pytest.approx(2048 / 1536, rel=0.05)
