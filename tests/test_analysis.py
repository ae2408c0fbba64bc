"""What is read off a timeline: identities between runs, engines, layers and the whole."""

import itertools

import pytest
from ring_programs import Builder, elementwise_work, matmul_work

from distributed.analysis import (
    critical_path,
    exposed_collective_s,
    kernel_rows,
    mbu,
    mfu,
    path_s,
)
from distributed.layers import layer_rows
from distributed.stalls import stalls
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


def test_everything_is_on_the_critical_path_of_a_chain(timeline):
    assert len(critical_path(timeline)) == 3 * LAYERS
    assert path_s(timeline)["latency"] > 0


def test_collectives_are_exposed_here(timeline):
    assert exposed_collective_s(timeline) == pytest.approx(timeline.busy_s["collective"])


def test_engines_say_what_they_wait_for(timeline):
    idle = stalls(timeline)
    # Additions stand behind all-reduces, these behind products, whose weights were read meanwhile.
    assert next(iter(idle["vector"])) == "collective" and next(iter(idle["collective"])) == "kernel"
    assert idle["pe"]["collective"] > 0 and idle["dma"].keys() <= {"kernel", "collective", "done"}


def _stream(weights, shape):
    """Products of one row, each with ``weights`` of its own; nothing else."""
    b = Builder(1)
    at = b.global_buffer((1, shape[0]), "bf16")
    steps, inputs = [], [at]
    for _ in range(weights):
        w, made = b.global_buffer(shape, "bf16"), b.buffer((1, shape[1]), "bf16")
        inputs.append(w)
        steps.append(b.launch("mm", [at, w], [made], work=matmul_work(1, *shape, "bf16")))
        at = made
    return time_program(b.program(inputs, steps, [at]), "inf2.xlarge")


def test_products_of_one_row_wait_for_their_weights():
    timeline = _stream(8, (4096, 4096))
    assert next(iter(stalls(timeline)["pe"])) == "memory"
    assert next(iter(path_s(timeline))) == "hbm"


def test_reading_ahead_waits_for_room():
    """What SBUF holds is read at once; of more, each part waits until another has been used."""
    held, streamed = _stream(2, (512, 512)), _stream(12, (2048, 2048))
    assert "sbuf" not in stalls(held)["dma"] and stalls(streamed)["dma"]["sbuf"] > 0


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
    assert len(rows) == LAYERS and {row.group for row in rows} == {0}
    middle = rows[1:-1]
    assert max(row.seconds for row in middle) == pytest.approx(min(row.seconds for row in middle))
    assert [row.flops for row in rows] == pytest.approx([timeline.flops / LAYERS] * LAYERS)
    assert sum(row.collective_s for row in rows) == pytest.approx(timeline.busy_s["collective"])
    # From the start of one to that of the next, the last to the end.
    for row, after in itertools.pairwise(rows):
        assert row.start_s + row.seconds == pytest.approx(after.start_s)
    assert rows[-1].start_s + rows[-1].seconds == pytest.approx(timeline.total_s)


def test_layers_of_two_kinds_are_two_groups():
    """As in a training step: a forward and a backward pass, and a loss between them that is in neither."""
    b = Builder(1)
    x = b.global_buffer((256, 256))

    def step(name, kind):
        work = matmul_work(256, 256, 256) if kind == "product" else elementwise_work((256, 256))
        return b.launch(name, [x, x], [b.buffer((256, 256))], work=work)

    forward = [("norm", "pair"), ("up", "product"), ("down", "product")]
    backward = [("g_down", "product"), ("g_up", "product"), ("g_norm", "pair"), ("update", "pair")]
    kinds = [*forward * 5, ("loss", "pair"), *backward * 5]
    timeline = time_program(b.program([x], [step(*kind) for kind in kinds], [x]), "inf2.xlarge")
    rows = layer_rows(timeline)
    assert [row.group for row in rows] == [0] * 5 + [1] * 5
    assert [row.number for row in rows] == [*range(5), *range(5)]
    products = 2 * 2 * 256**3
    assert all(row.flops > products for row in rows)
    [loss] = [run for run in timeline.runs if run.location.startswith("loss")]
    assert sum(row.flops for row in rows) + loss.flops == pytest.approx(timeline.flops)
    assert rows[4].start_s + rows[4].seconds == pytest.approx(loss.start_s)


@pytest.mark.parametrize(("last", "layers"), ((1, 4), (3, 3)))
def test_the_last_layer_may_end_differently(last, layers):
    """Of four layers of five kernels, the last with so many of its own."""
    b = Builder(1)
    x = b.global_buffer((128, 128))
    names = [*"abcde" * 3, *"abcde"[: 5 - last], *"vwxyz"[:last]]
    steps = [
        b.launch(name, [x, x], [b.buffer((128, 128))], work=elementwise_work((128, 128))) for name in names
    ]
    rows = layer_rows(time_program(b.program([x], steps, [x]), "inf2.xlarge"))
    assert len(rows) == layers


def test_nothing_repeats_in_one_kernel():
    b = Builder(1)
    x, y = b.global_buffer((64, 64)), b.global_buffer((64, 64))
    steps = [b.launch("one", [x], [y], work=elementwise_work((64, 64), operands=1))]
    alone = time_program(b.program([x], steps, [y]), "inf2.xlarge")
    assert layer_rows(alone) == [] and len(critical_path(alone)) == 1
