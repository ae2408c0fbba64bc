"""The memory of a core: what fills it, and what to do where it does not fit."""

import pytest
from ring_programs import Builder

from distributed.device_memory import check_fits, device_memory, hbm_table, smallest
from kernels.errors import CompileError, OutOfDeviceMemoryError
from kernels.hardware import ALL_INSTANCES, load_core

HBM = load_core().hbm
# As published: neuron-runtime/explore/device-memory.rst.
RUNTIME_HEADS = (
    "|          |  Model   |  Model   |          |  Shared  |          |          |DMA Rings |DMA Rings | DMA Rings |DMA Rings |           |          | Profiler |",  # noqa: E501
    "|  TOTAL   |   Code   |Constants | Tensors  |Scratchpad|Scratchpad| Runtime  |    IO    |  Spill   |Collectives| Runtime  |Collectives|  XT CC   | Buffers  |",  # noqa: E501
)


def test_every_category_is_counted_once():
    b = Builder(4)
    w = b.global_buffer((1024, 4096), "bf16", dim_axes=((), ("tp",)))
    x = b.global_buffer((16, 1024), "bf16")
    partial = b.buffer((16, 1024), varying=True)
    total, out = b.buffer((16, 1024)), b.buffer((16, 1024), "bf16")
    scalar = b.buffer((), "i32", host=True)
    steps = [
        b.launch("mm", [x, w], [partial], varying=True),
        b.collective("all_reduce", partial, total, reducer="add"),
        b.launch("cast", [total], [out, scalar]),
    ]
    used = device_memory(b.program([w, x], steps, [out]), weights={0})
    assert used.weights_bytes == 1024 * 1024 * 2
    assert used.inputs_bytes == used.outputs_bytes == 16 * 1024 * 2
    assert used.temporaries_bytes == 2 * 16 * 1024 * 4
    assert used.collective_buffers_bytes == 2 * 16 * 1024 * 4 // 4
    assert used.microcode_bytes == 96 * 2**20
    assert used.capacity_bytes == 16 * 2**30
    table = hbm_table(used.uses, used.capacity_bytes, 2).splitlines()
    sizes, gib, chip_gib = zip(*(line.replace(",", "").split()[-3:] for line in table[1:]), strict=True)
    assert sum(map(int, sizes[:-2])) == int(sizes[-2]) == used.total_bytes and sizes[-1] == str(16 * 2**30)
    assert all(
        float(two) == pytest.approx(2 * float(one), abs=2e-3) for one, two in zip(gib, chip_gib, strict=True)
    )


def test_memory_that_is_used_again_counts_once():
    b = Builder(1)
    x = b.global_buffer((256, 256))
    first, second, out = (b.buffer((256, 256)) for _ in range(3))
    b.place_at(out, b.buffers[first].offset_bytes)
    steps = [b.launch("s", [a], [r]) for a, r in ((x, first), (first, second), (second, out))]
    used = device_memory(b.program([x], steps, [out]))
    assert used.total_bytes - used.microcode_bytes - used.runtime_bytes == 3 * 256 * 256 * 4


def test_donated_and_passed_through_outputs_need_no_memory():
    b = Builder(1)
    cache, x = b.global_buffer((512, 512)), b.global_buffer((512,))
    updated = b.buffer((512, 512))
    b.place_at(updated, b.buffers[cache].offset_bytes)
    steps = [b.launch("s", [cache, x], [updated], donated=((0, 0),))]
    used = device_memory(b.program([cache, x], steps, [updated, x], aliases=((0, 0),)))
    assert (used.outputs_bytes, used.temporaries_bytes) == (0, 0)
    assert (used.donated_bytes, used.inputs_bytes) == (512 * 512 * 4, 512 * 4)


def sharded(num_cores, whole_gib, replicated_gib=0):
    """A program whose weights hold ``whole_gib`` over all cores and ``replicated_gib`` on each."""
    b = Builder(num_cores)
    inputs = [b.global_buffer((num_cores, 2**29 * whole_gib // num_cores), "bf16", dim_axes=(("tp",), ()))]
    if replicated_gib:
        inputs.append(b.global_buffer((2**29 * replicated_gib,), "bf16"))
    return b.program(inputs, [], [])


def test_what_fits_is_returned():
    used = check_fits(sharded(4, 32), "inf2.48xlarge")
    assert used.total_bytes == 8 * 2**30 + HBM.microcode_bytes + HBM.runtime_reserve_bytes


@pytest.mark.parametrize(
    ("cores", "gib", "instance", "advice"),
    (
        (4, 96, "inf2.48xlarge", "tp_degree=8 should fit"),
        (2, 96, "inf2.xlarge", "tp_degree=8 on inf2.24xlarge should fit"),
        (12, 240, "inf2.24xlarge", "tp_degree=24 on inf2.48xlarge should fit"),
        (24, 480, "inf2.48xlarge", "no Inf2 instance should hold it"),
    ),
)
def test_what_does_not_fit_shows_the_table_and_a_way_out(cores, gib, instance, advice):
    program = sharded(cores, gib)
    with pytest.raises(OutOfDeviceMemoryError) as caught:
        check_fits(program, instance, weights={0})
    message = str(caught.value)
    for word in ("weights", "inputs", "temporaries", "collective buffers", "micro-code", "total", "capacity"):
        assert word in message
    assert advice in message


def cells(line):
    return [cell.strip() for cell in line.split("|")]


def test_the_runtimes_table():
    """Columns and sizes as in neuron-runtime/explore/device-memory.rst; the chip is the sum of its cores."""
    with pytest.raises(OutOfDeviceMemoryError) as caught:
        check_fits(sharded(4, 96), "inf2.48xlarge", weights={0})
    lines = [line.strip() for line in str(caught.value).splitlines() if "|" in line]
    assert cells(lines[0]) == cells(RUNTIME_HEADS[0]) and cells(lines[1]) == cells(RUNTIME_HEADS[1])
    names = [" ".join(filter(None, pair)) for pair in zip(cells(lines[0]), cells(lines[1]), strict=True)]
    rows = [cells(line) for line in lines[2:]]
    table = {label: dict(zip(names[1:], sizes, strict=True)) for label, *sizes in rows}
    assert list(table) == ["ND 0 Overall", r"\_NC 0", r"\_NC 1"]
    core = table[r"\_NC 0"]
    assert table[r"\_NC 1"] == core
    assert core["Tensors"] == "24.000GB" and table["ND 0 Overall"]["Tensors"] == "48.000GB"
    assert core["Model Code"] == "96.000MB" and core["Runtime"] == "64.000MB"
    assert core["Scratchpad"] == core["Profiler Buffers"] == "0.000B"
    untold = {name for name, cell in core.items() if cell == "n/a"}
    assert untold == {"Model Constants", "XT CC", *(name for name in names if "DMA" in name)}


def test_advice_keeps_what_is_replicated():
    with pytest.raises(OutOfDeviceMemoryError, match="no Inf2 instance"):
        check_fits(sharded(4, 8, replicated_gib=17), "inf2.48xlarge")


def test_advice_on_one_core():
    """Nothing is cut there, which does not say that nothing can be."""
    b = Builder(1)
    program = b.program([b.global_buffer((2**29 * 40,), "bf16")], [], [])
    with pytest.raises(OutOfDeviceMemoryError, match=r"tp_degree=4 on inf2\.24xlarge should fit"):
        check_fits(program, "inf2.xlarge")


def test_advice_is_true():
    """The degree it names does fit once the program is built for it."""
    with pytest.raises(OutOfDeviceMemoryError, match="tp_degree=8 should"):
        check_fits(sharded(4, 72), "inf2.48xlarge")
    check_fits(sharded(8, 72), "inf2.48xlarge")


def test_advice_stays_in_the_family():
    with pytest.raises(OutOfDeviceMemoryError, match=r"tp_degree=8 on trn1\.32xlarge should"):
        check_fits(sharded(2, 96), "trn1.2xlarge")
    with pytest.raises(OutOfDeviceMemoryError, match="no Inf1 instance"):
        check_fits(sharded(1, 16), "inf1.24xlarge")


@pytest.mark.parametrize(
    ("cores", "gib", "replicated", "least"),
    ((24, 24, 0, ("inf2.xlarge", 2)), (8, 8, 0, ("inf2.xlarge", 1)), (8, 100, 2, ("inf2.24xlarge", 8))),
)
def test_the_least_that_holds_a_program(cores, gib, replicated, least):
    used = check_fits(sharded(cores, gib, replicated), "inf2.48xlarge")
    assert smallest(used, cores, ALL_INSTANCES, "inf2") == least
    check_fits(sharded(least[1], gib, replicated), least[0])
    fewer = {2: 1, 8: 4}.get(least[1])
    if fewer:
        with pytest.raises(OutOfDeviceMemoryError):
            check_fits(sharded(fewer, gib, replicated), "inf2.48xlarge")


def test_unknown_instance_is_named():
    with pytest.raises(CompileError, match="unknown instance"):
        check_fits(sharded(2, 1), "inf2.huge")
