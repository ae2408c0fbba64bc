"""One plan gives the same bits: in every run, and on one thread of the host as on several."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

DIGEST = """
import os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import dataclasses, functools, hashlib
import jax, jax.numpy as jnp, numpy as np
import neuronx
from neuronx.models import opt
from neuronx.models.layers import zeros
dtype, cores, digest = jnp.dtype(sys.argv[2]), int(sys.argv[3]), hashlib.sha256()
cfg = dataclasses.replace(opt.config("opt-125m"), layers=2, vocab=1000)
params = opt.parameters(cfg, dtype, 0)
tokens = jnp.arange(20, dtype=jnp.int32).reshape(1, 20)
read = neuronx.compile(functools.partial(opt.prefill, cfg), tp_degree=cores)
step = neuronx.compile(functools.partial(opt.decode, cfg), donate_argnums=1, tp_degree=cores)
for _ in range(2):
    token, logits, cache = read(params, zeros(opt.cache_shapes(cfg, 1, 32, dtype)), tokens)
    found = [logits]
    for position in range(20, 23):
        token, logits, cache = step(params, cache, token, jnp.int32(position))
        found.append(logits)
    digest.update(b"".join(np.asarray(x).tobytes() for x in found))
    print(digest.hexdigest())
    digest = hashlib.sha256()
"""


def digests(threads, dtype, cores):
    asked = [sys.executable, "-W", "error", "-c", DIGEST, str(threads), dtype, str(cores)]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the host has one core")
@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompt_and_decoding(dtype, cores):
    """Layers of OPT-125M: large enough for launches side by side and products in tiles."""
    found = [digests(threads, dtype, cores) for threads in (1, 2)]
    assert len(found[0]) == 2 and len({digest for run in found for digest in run}) == 1
