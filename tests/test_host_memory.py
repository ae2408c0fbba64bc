"""What a program holds in the host's memory: shards are views, all cores together hold the weights once."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import neuronx

ROOT = Path(__file__).parent.parent


def product(w, x):
    return x @ w


def compiled(w, x, rows):
    specs = (PartitionSpec("tp") if rows else PartitionSpec(None, "tp"), None)
    return neuronx.compile(product, tp_degree=4, in_shardings=specs).lower(w, x).compile()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_of_rows_are_views_and_blocks_of_columns_are_not(dtype, rng):
    w = jnp.asarray(rng.standard_normal((64, 48)), dtype)
    x = jnp.asarray(rng.standard_normal((2, 64)), dtype)
    start = w.unsafe_buffer_pointer()
    for rows in (True, False):
        (placed, _) = compiled(w, x, rows).device_put(w, x)
        blocks = placed.placed.arrays
        offsets = [block.unsafe_buffer_pointer() - start for block in blocks]
        assert (offsets == [i * w.nbytes // 4 for i in range(4)]) == rows
        assert np.array_equal(np.asarray(placed), np.asarray(w))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [True, False])
def test_an_array_the_user_drops_is_freed(dtype, rows, rng):
    w = jnp.asarray(rng.standard_normal((64, 48)), dtype)
    x = jnp.ones((2, 64), dtype)
    exe = compiled(w, x, rows)
    exe(w, x)
    seen = weakref.ref(w)
    del w
    gc.collect()
    assert seen() is None


def test_what_a_numpy_array_becomes_later_does_not_show(rng):
    w, x = rng.standard_normal((64, 48)).astype(np.float32), np.ones((2, 64), np.float32)
    exe = compiled(w, x, True)
    before = product(w, x)
    placed = exe.device_put(w, x)
    w[:] = 0
    np.testing.assert_allclose(exe(*placed), before, rtol=1e-5, atol=1e-5)


DECODE = """
import dataclasses, functools, hashlib, re, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
import neuronx
from neuronx.models import opt
cores = int(sys.argv[1])
cfg = dataclasses.replace(opt.config("opt-125m"), layers=2, hidden=1536, ffn=6144, embed=1536, heads=24)
params = opt.parameters(cfg, jnp.float32, 0)
weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
cache = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), opt.cache_shapes(cfg, 1, 32, jnp.float32))
# What making random weights took for a moment is nobody's business: Linux forgets the peak so far.
Path("/proc/self/clear_refs").write_text("5")
fn = neuronx.compile(functools.partial(opt.decode, cfg), donate_argnums=1, tp_degree=cores)
token = jnp.zeros(1, jnp.int32)
exe = fn.lower(params, cache, token, jnp.int32(0)).compile()
params, cache, token, _ = exe.device_put(params, cache, token, jnp.int32(0))
digest = hashlib.sha256()
for position in range(3):
    token, logits, cache = exe(params, cache, token, jnp.int32(position))
    digest.update(np.asarray(logits).tobytes())
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(peak, weight_bytes, digest.hexdigest())
"""


def decode(cores, cache):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DECODE, str(cores)],
        env=os.environ | {"NEURONX_CACHE_DIR": str(cache)},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, weights, digest = done.stdout.split()
    return int(peak), int(weights), digest


@pytest.mark.slow
def test_more_cores_take_no_more_memory_and_every_run_gives_the_same_bits(tmp_path):
    # The second run of each is measured: it finds what the first compiled, programs and host kernels, so
    # what XLA and Numba take to compile is not in its peak.
    first = {cores: decode(cores, tmp_path) for cores in (1, 8, 24)}
    found = {cores: decode(cores, tmp_path) for cores in (1, 8, 24)}
    for cores, (peak, weights, digest) in found.items():
        # Blocks of columns are copies beside the user's own arrays; more than these would be memory that
        # grows with the cores.
        assert peak < found[1][0] + weights
        assert digest == first[cores][2]
    assert found[24][0] < found[8][0] + found[8][1] // 8
