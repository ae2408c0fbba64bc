"""What is read off a timeline: identities between runs, engines, layers and the whole."""

import itertools

import pytest
from ring_programs import Builder, elementwise_work, matmul_work

from distributed.analysis import (
    critical_path,
    exposed_collective_s,
    kernel_rows,
    layer_rows,
    mbu,
    mfu,
    stalls,
)
from distributed.timeline import time_program

RING = "inf2.48xlarge"
LAYERS = 6


@pytest.fixture(scope="module")
def timeline():
    """Layers of a product, an all-reduce and an elementwise kernel."""
    b = Builder(24)
    x = b.global_buffer((64, 1024), "bf16")
    steps, inputs, at = [], [x], x
    for _ in range(LAYERS):
        w = b.global_buffer((1024, 1024), "bf16")
        made, summed, after = (b.buffer((64, 1024), "bf16") for _ in range(3))
        inputs.append(w)
        steps += [
            b.launch("mm", [at, w], [made], work=matmul_work(64, 1024, 1024, "bf16")),
            b.collective("all_reduce", made, summed, reducer="add"),
            b.launch("add", [summed, at], [after], work=elementwise_work((64, 1024), "bf16")),
        ]
        at = after
    return time_program(b.program(inputs, steps, [at]), RING)


def test_the_critical_path_is_a_chain_that_ends_last(timeline):
    path = critical_path(timeline)
    assert path[-1].end_s == timeline.total_s
    for before, after in itertools.pairwise(path):
        assert after.after == before.number and before.end_s <= after.start_s + 1e-15
    # Everything here depends on what is before it.
    assert len(path) == 3 * LAYERS
    assert sum(run.end_s - run.start_s for run in path) <= timeline.total_s


def test_collectives_are_exposed_here(timeline):
    assert exposed_collective_s(timeline) == pytest.approx(timeline.busy_s["collective"])


def test_busy_and_stalled_make_the_total(timeline):
    for engine, reasons in stalls(timeline).items():
        assert all(seconds >= 0 for seconds in reasons.values())
        assert timeline.busy_s[engine] + sum(reasons.values()) == pytest.approx(timeline.total_s)
    assert stalls(timeline)["vector"]["collective"] > 0


def test_kernel_rows_hold_every_run(timeline):
    rows = kernel_rows(timeline)
    assert sum(row.count for row in rows) == len(timeline.runs) == 3 * LAYERS
    assert sum(row.flops for row in rows) == timeline.flops
    kernels = [row for row in rows if row.kind == "kernel"]
    assert sum(row.bytes for row in kernels) == pytest.approx(timeline.bytes_accessed)
    assert {row.bound for row in rows} <= {"pe", "vector", "scalar", "gpsimd", "hbm", "link", "latency"}


def test_shares_of_the_peaks(timeline):
    assert mfu(timeline) == pytest.approx(timeline.flops / timeline.total_s / timeline.peak_flop_per_s)
    assert 0 < mfu(timeline) < 1 and 0 < mbu(timeline) < 1


def test_equal_layers_are_found_and_add_up(timeline):
    rows = layer_rows(timeline)
    assert len(rows) == LAYERS
    middle = rows[1:-1]
    assert max(row.seconds for row in middle) == pytest.approx(min(row.seconds for row in middle))
    assert rows[1].flops == pytest.approx(timeline.flops / LAYERS)
    assert 0 < rows[1].collective_s < rows[1].seconds


def test_nothing_repeats_in_one_kernel():
    b = Builder(1)
    x, y = b.global_buffer((64, 64)), b.global_buffer((64, 64))
    steps = [b.launch("one", [x], [y], work=elementwise_work((64, 64), operands=1))]
    alone = time_program(b.program([x], steps, [y]), "inf2.xlarge")
    assert layer_rows(alone) == [] and len(critical_path(alone)) == 1
