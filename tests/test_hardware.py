"""The hardware tables: loader refusals, documented identities between numbers, and the ``hw`` verb."""

import argparse
import dataclasses
import re
from typing import get_origin

import pytest

from kernels import hardware
from kernels.comparators import COMPARATORS, load_comparator
from kernels.errors import CompileError
from kernels.hardware import (
    ALL_INSTANCES,
    INSTANCES,
    TABLES,
    LinkSpec,
    load_core,
    load_instance,
    load_links,
    rows,
)
from neuronx.cli import hw

_GIB = 2**30


def test_core_numbers_agree_with_each_other() -> None:
    core = load_core()
    peak = 2 * core.pe.rows * core.pe.columns * core.pe.clock_hz
    assert peak == pytest.approx(core.pe.peak_flop_per_s, rel=0.01)
    assert core.pe.f32_peak_flop_per_s * core.pe.f32_passes == core.pe.peak_flop_per_s
    assert core.sbuf.partitions * core.sbuf.partition_bytes == 24 * 2**20
    assert core.sbuf.usable_bytes < 24 * 2**20
    assert core.psum.banks * core.psum.bank_partition_bytes == core.psum.partition_bytes
    # A bank takes one f32 result of the longest product.
    assert core.psum.bank_partition_bytes == 4 * core.pe.moving_elements
    assert core.dma.engines * core.dma.partitions_per_engine == core.sbuf.partitions
    assert core.dma.engines * core.dma.engine_peak_bytes_per_s == pytest.approx(435e9, rel=0.001)
    assert core.dma.engines * core.dma.engine_bytes_per_s == 272e9 < core.hbm.bandwidth_bytes_per_s
    assert len(core.dma.curve_partition_bytes) == len(core.dma.curve_fraction)


@pytest.mark.parametrize("name", ALL_INSTANCES)
def test_instance_is_made_of_its_chips(name: str) -> None:
    instance = load_instance(name)
    core, links = load_core(instance.family), load_links(instance.family)
    assert instance.name == name
    assert instance.cores == instance.chips * links.cores_per_chip
    assert instance.hbm_bytes == instance.cores * core.hbm.capacity_bytes
    # 190 TFLOPS a chip, 92 a core: AWS rounds both.
    assert instance.bf16_peak_flop_per_s == pytest.approx(instance.cores * core.pe.peak_flop_per_s, rel=0.04)
    links_per_chip = links.links_per_chip if instance.chips > 1 else 0
    assert instance.chip_neuronlink_bytes_per_s == links_per_chip * links.chip_link_bytes_per_s


def test_instances_are_the_four_of_aws() -> None:
    found = {name: load_instance(name) for name in INSTANCES}
    assert {
        name: (i.chips, i.vcpus, i.host_memory_bytes // _GIB, i.topology) for name, i in found.items()
    } == {
        "inf2.xlarge": (1, 4, 16, "pair"),
        "inf2.8xlarge": (1, 32, 128, "pair"),
        "inf2.24xlarge": (6, 96, 384, "chain"),
        "inf2.48xlarge": (12, 192, 768, "ring"),
    }


def test_the_first_generation_has_no_gpsimd_and_casts_f32() -> None:
    core = load_core("inf1")
    assert core.gpsimd is None
    assert core.pe.f32_peak_flop_per_s == core.pe.peak_flop_per_s
    assert 4 * core.hbm.bandwidth_bytes_per_s == 50 * _GIB
    assert {load_instance(name).topology for name in ALL_INSTANCES} == {"pair", "chain", "ring", "torus"}


def test_machines_to_compare_with_are_rooflines() -> None:
    gpus = load_comparator("g5.48xlarge")
    assert gpus.fits(192e9) and not gpus.fits(193e9)
    assert gpus.roofline_s(8 * 70e12, 0) == pytest.approx(1.0)
    assert gpus.roofline_s(0, 8 * 600e9) == pytest.approx(1.0)
    for name in COMPARATORS:
        found = load_comparator(name)
        assert found.roofline_s(1e12, 1e9, "i8") <= found.roofline_s(1e12, 1e9, "f32")
    with pytest.raises(CompileError, match="g4dn"):
        load_comparator("p9.xlarge")


def test_unknown_instance_lists_the_known_ones() -> None:
    with pytest.raises(CompileError, match=r"inf2\.2xlarge.*\n.*inf2\.xlarge.*inf2\.48xlarge"):
        load_instance("inf2.2xlarge")
    with pytest.raises(CompileError, match="neuroncore-v2"):
        rows("inf3.xlarge")


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_core().pe.clock_hz = 1.0


def _entries() -> dict[str, dict]:
    entry = {"kind": "documented", "source": "somewhere"}
    return {
        field.name: {"value": [1] if get_origin(field.type) is tuple else 1, **entry}
        for field in dataclasses.fields(LinkSpec)
    }


def test_loader_takes_a_complete_table() -> None:
    assert hardware.record(LinkSpec, "links", _entries()).hop_latency_s == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(warp_hz=e["packet_bytes"]), "unknown key 'warp_hz'"),
        (lambda e: e.pop("hop_latency_s"), "missing key 'hop_latency_s'"),
        (lambda e: e["packet_bytes"].update(source=" "), "packet_bytes: no source"),
        (lambda e: e["packet_bytes"].pop("source"), "packet_bytes: expected {value, kind, source}"),
        (lambda e: e["packet_bytes"].update(kind="guessed"), "'guessed' is none of documented"),
        (lambda e: e["packet_bytes"].update(value="many"), "packet_bytes: expected int, got 'many'"),
        (lambda e: e["packet_bytes"].update(value=1.5), "packet_bytes: expected int, got 1.5"),
        (lambda e: e["documented_degrees"].update(value=8), "documented_degrees: expected tuple, got 8"),
        (lambda e: e.update(packet_bytes=4096), "packet_bytes: expected {value, kind, source}"),
    ],
)
def test_loader_refuses(change, message: str) -> None:
    entries = _entries()
    change(entries)
    with pytest.raises(ValueError, match=re.escape(message)):
        hardware.record(LinkSpec, "links", entries)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_sourced_and_has_the_unit_of_its_key(name: str) -> None:
    found = rows(name)
    assert found
    for _, key, value, unit, source, kind in found:
        assert source and kind in hardware.KINDS
        if unit:
            ending = unit.replace("/s", "_per_s").replace("$/h", "usd_per_hour").replace("B", "bytes").lower()
            assert key.endswith(f"_{ending}")
        else:
            # Without a unit: a count, a fraction, a name or a list of those; accesses for each byte.
            is_plain = isinstance(value, (int, str, list)) or key.endswith("_fraction")
            assert is_plain or name == "collectives"


def test_hw_prints_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    hw.add_arguments(parser)
    assert hw.main(parser.parse_args(["inf2.24xlarge"])) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = {(line.split()[0], line.split()[1]) for line in lines if line}
    for name in ("neuroncore-v2", "links", "inf2.24xlarge"):
        assert {(table, key) for table, key, *_ in rows(name) if table not in ("trn1", "inf1")} <= printed
    assert ("inf2.48xlarge", "chips") not in printed
    clock = next(line for line in lines if line.startswith("pe ") and "clock_hz" in line)
    assert re.search(r"2\.8e\+09\s+Hz\s+documented\s+nki/", clock)


@pytest.mark.parametrize("name", ("trn1.32xlarge", "g5.48xlarge"))
def test_hw_prints_one_machine_and_not_its_sisters(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    hw.add_arguments(parser)
    assert hw.main(parser.parse_args([name])) == 0
    numbers = capsys.readouterr().out.partition("\n\n")[0]
    tables = {line.split()[0] for line in numbers.splitlines()[1:]}
    assert name in tables and not tables & {"inf1", "inf2.48xlarge", "g4dn.xlarge"}
    assert ("trn1" in tables) == name.startswith("trn1")
    price = rf"^{re.escape(name)} +price_usd_per_hour +[\d.]+ +\$/h +"
    assert re.search(price, numbers, re.MULTILINE)


def test_hw_prints_all_instances_without_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    hw.add_arguments(parser)
    hw.main(parser.parse_args([]))
    printed = capsys.readouterr().out
    assert all(name in printed for name in INSTANCES)


def test_hw_refuses_an_unknown_instance(capsys) -> None:
    parser = argparse.ArgumentParser()
    hw.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["inf2.96xlarge"])
    assert re.search(r"inf2\.96xlarge.*inf2\.48xlarge.*g5\.48xlarge", capsys.readouterr().err)
