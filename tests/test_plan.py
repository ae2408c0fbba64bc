"""The plan verb: what fits, prices that follow from times, best choices, three formats."""

import csv
import io
import json

import pytest

from kernels.errors import CompileError
from kernels.hardware import load_instance
from neuronx.cli import main as cli
from neuronx.comparing import model_work
from neuronx.models.catalog import compile_prompt, prompt_bucket, weight_bytes
from neuronx.models.generation import DTYPES
from neuronx.models.names import MODELS
from neuronx.planning import Request, best, deployments


def _rows(model="opt-125m", **changes):
    options = {"instances": ["inf2.xlarge"], "degrees": [1, 2], "batches": [1, 4], "dtypes": ["bf16"]}
    return list(deployments(Request(model=model, prompt_len=16, new_tokens=8), **options | changes))


@pytest.fixture(scope="module")
def rows():
    return _rows()


def test_every_combination_has_a_row(rows):
    assert [(row.tp, row.batch, row.replicas) for row in rows] == [(1, 1, 2), (1, 4, 2), (2, 1, 1), (2, 4, 1)]
    assert all(row.fits and row.hbm_bytes <= row.hbm_capacity_bytes for row in rows)


def test_prices_follow_from_times(rows):
    price = load_instance("inf2.xlarge").price_usd_per_hour
    for row in rows:
        whole_s = row.ttft_s + 7 * row.tpot_s
        assert row.per_s == pytest.approx(row.replicas * row.batch * 8 / whole_s)
        assert row.usd_per_million == pytest.approx(price / 3600 / row.per_s * 1e6)
        assert 0 < row.mfu < 1 and 0 < row.mbu < 1


def test_best_are_the_cheapest_and_the_fastest(rows):
    marks = best(rows)
    assert marks["cheapest"].usd_per_million == min(row.usd_per_million for row in rows)
    assert marks["fastest"].tpot_s == min(row.tpot_s for row in rows)
    assert best(rows, latency_limit_s=1e-9) == {}


def test_matrices_in_8_bits_take_less_memory_and_time(rows):
    wide = rows[0]
    for row in _rows(degrees=[1], batches=[1], dtypes=["int8", "fp8_e4m3"]):
        # 85 million of its 125 million parameters are in the layers.
        assert wide.hbm_bytes - row.hbm_bytes == pytest.approx(85e6, rel=0.02)
        assert row.tpot_s < 0.9 * wide.tpot_s
    for model, instance in (("bert-base-uncased", "inf2.xlarge"), ("opt-125m", "g5.48xlarge")):
        with pytest.raises(CompileError, match=r"8 bits are not known of (bert|g5)"):
            _rows(model, instances=[instance], dtypes=["int8"])


def test_what_cannot_fit_says_so_at_once():
    assert weight_bytes("opt-66b", DTYPES["bf16"]) > 2 * 16 * 2**30
    found = _rows("opt-66b")
    assert [row.fits for row in found] == [False] * 4
    assert all(row.usd_per_million is None for row in found)


def test_encoders_and_classifiers_have_one_program():
    [encoder] = _rows("bert-base-uncased", degrees=[1], batches=[1])
    [classifier] = _rows("resnet50", degrees=[1], batches=[1])
    assert encoder.tpot_s is None and encoder.per_s == pytest.approx(2 / encoder.ttft_s)
    assert classifier.tpot_s is None and classifier.fits


@pytest.mark.slow
def test_the_ideal_era_is_not_slower(rows):
    for slow, fast in zip(rows, _rows(era="ideal"), strict=True):
        assert fast.tpot_s < slow.tpot_s


def _call(*arguments):
    asked = "plan --model opt-125m --instance inf2.xlarge --tp 1 --batch 1 2 --prompt-len 16 --new-tokens 8"
    return cli.main(cli.parse_arguments(["neuronx", *asked.split(), *arguments]))


@pytest.fixture
def planned(rows, monkeypatch):
    """What the command has to say of rows that were planned before."""
    monkeypatch.setattr("neuronx.cli.plan.deployments", lambda request, **options: iter(rows))


def test_machines_to_compare_with_stand_at_their_roofline():
    machines = {"instances": ["g4dn.xlarge", "g5.48xlarge"], "batches": [1], "dtypes": ["f16", "f32"]}
    small = _rows("opt-6.7b", **machines)
    assert [(row.instance, row.fits) for row in small] == [
        ("g4dn.xlarge", True),
        ("g4dn.xlarge", False),
        ("g5.48xlarge", True),
        ("g5.48xlarge", True),
    ]
    t4, _, half, single = small
    # A token reads 6.7 billion parameters: 13.3 GB at 320 and at 8 x 600 GB/s.
    for row, seconds in ((t4, 13.3e9 / 320e9), (half, 13.3e9 / 4800e9), (single, 26.6e9 / 4800e9)):
        assert row.tpot_s == pytest.approx(seconds, rel=0.02) and row.mbu == pytest.approx(1)
        assert row.is_roofline and 0 < row.mfu < 1 and row.hbm_bytes < row.hbm_capacity_bytes
    assert best(small) == {}
    [classifier] = _rows("resnet50", **machines | {"instances": ["p3.2xlarge"], "dtypes": ["f16"]})
    # 4.09 billion multiply-adds at 125 TFLOPS, those with the padding of images left out.
    assert classifier.tpot_s is None and classifier.ttft_s == pytest.approx(8.18e9 / 125e12, rel=0.05)


def test_tables_that_are_looked_up_are_held_and_not_read():
    [work] = model_work("bert-base-uncased", batch=1, dtype=DTYPES["f16"], prompt_len=128, new_tokens=0)
    # 23.8 million of its 109.5 million parameters are tables.
    assert work.held_bytes == pytest.approx(2 * 109.5e6, rel=0.01)
    assert work.read_bytes == pytest.approx(2 * 85.6e6, rel=0.01)


def test_prompts_are_padded_to_powers_of_two():
    assert [prompt_bucket("opt-125m", size, 384) for size in (1, 64, 65, 200, 300)] == [64, 64, 128, 256, 384]
    assert prompt_bucket("whisper-base", 4, 384) == 4
    alone = {"instances": ["inf2.xlarge"], "degrees": [1], "batches": [1], "dtypes": ["bf16"]}
    requests = (Request(model="opt-125m", prompt_len=size, new_tokens=256 - size) for size in (100, 128))
    [padded], [whole] = (list(deployments(request, **alone)) for request in requests)
    assert padded.ttft_s == whole.ttft_s


def test_a_prompt_writes_the_rows_of_its_tokens_and_leaves_the_rest_of_the_cache():
    shape = {"batch": 2, "prompt_len": 64, "dtype": DTYPES["bf16"], "instance": "inf2.xlarge"}
    near, far = (compile_prompt("opt-125m", length=length, **shape) for length in (128, 2048))
    costs = [one.cost_analysis() for one in (near, far)]
    for what in ("bytes accessed", "latency_s"):
        assert costs[1][what] == pytest.approx(costs[0][what], rel=0.01)
    # Keys and values of two sequences, 12 layers and 12 heads of 64 numbers.
    added = (2048 - 128) * 2 * 2 * 12 * 12 * 64 * 2
    peaks = [one.memory_analysis().peak_hbm_bytes for one in (near, far)]
    assert peaks[1] - peaks[0] == pytest.approx(added, rel=0.01)


def test_a_step_that_writes_does_not_read_what_reads_the_source():
    """Of whisper-base 12 layers' worth of weights: its encoder, and in a decoder's layer keys and values of
    what was heard, which are kept."""
    shape = {"batch": 1, "dtype": DTYPES["f16"], "prompt_len": 4, "new_tokens": 60}
    step, prompt = model_work("whisper-base", **shape)
    wide, layers = 512, 6
    encoder = layers * 12 * wide**2 + 1500 * wide + 3 * 80 * wide + 3 * wide**2
    unread = 2 * (encoder + layers * 2 * wide**2)
    assert step.held_bytes - step.read_bytes == pytest.approx(unread, rel=0.01)
    assert prompt.read_bytes == prompt.held_bytes


def test_three_formats_hold_the_same(planned, rows, capsys):
    assert _call() == 0
    text, _, notes = capsys.readouterr().out.partition("\n\n")
    table = text.splitlines()
    for name, row in best(rows).items():
        assert f"{name}: {row.instance}, tp {row.tp}, batch {row.batch}, bf16: " in notes
    assert "inf2.xlarge 0.758 (documented: general/benchmarks/inf2/" in notes
    assert _call("--format", "csv") == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert _call("--format", "json") == 0
    data = json.loads(capsys.readouterr().out)
    assert len(table) - 1 == len(found) == len(data) == len(rows)
    for line, cells, values, row in zip(table[1:], found, data, rows, strict=True):
        assert float(cells["tpot_s"]) == values["tpot_s"] == row.tpot_s
        assert f" {row.tpot_s * 1e3:.3f} " in line
        assert ("cheapest" in line) == (row is best(rows)["cheapest"])


def test_a_limit_that_nothing_keeps_to_is_said(planned, capsys):
    assert _call("--latency-limit-ms", "1000") == 0 and not capsys.readouterr().err
    assert _call("--latency-limit-ms", "0.001", "--format", "json") == 1
    out, err = capsys.readouterr()
    soonest = min(row["tpot_s"] for row in json.loads(out))
    assert f"no token comes within 0.001 ms; the soonest within {soonest * 1e3:.3f} ms" in err


def test_what_cannot_be_had_is_said(capsys):
    assert _call("--model", "opt-66b") == 1
    assert "nothing fits" in capsys.readouterr().err
    assert _call("--tp", "12") == 1
    assert "no instance has that many cores" in capsys.readouterr().err


def test_bad_requests_are_refused():
    with pytest.raises(CompileError, match=r"llama-3-8b.* or one of the others") as caught:
        _rows("llama-3-9b")
    assert str(caught.value).count(", ") == 10
    with pytest.raises(CompileError, match="positions"):
        list(
            deployments(
                Request(model="opt-125m", prompt_len=2048, new_tokens=8),
                instances=["inf2.xlarge"],
                batches=[1],
                dtypes=["bf16"],
            )
        )


@pytest.mark.parametrize("option", ["--batch", "--tp", "--prompt-len", "--new-tokens"])
def test_numbers_are_at_least_one(option, capsys):
    assert _call(option, "0") == 2
    assert " is 0\n  fix: give at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-5", "nan", "soon"])
def test_limits_are_above_zero(limit, capsys):
    with pytest.raises(SystemExit):
        _call("--latency-limit-ms", limit)
    assert f"{limit} is no number above 0" in capsys.readouterr().err


def test_the_help_breaks_no_name(capsys):
    with pytest.raises(SystemExit):
        _call("--help")
    words = capsys.readouterr().out.replace(",", " ").split()
    assert set(MODELS) <= set(words)


def test_any_function_can_be_planned(tmp_path, monkeypatch, capsys):
    (tmp_path / "users_model.py").write_text(
        "import jax.numpy as jnp\n\n\ndef network(weights, x):\n    return jnp.tanh(x @ weights)\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = "plan --model users_model:network --instance inf2.xlarge --tp 1 --batch 1 64 --format json"
    types = ("--arguments", "bf16[512,256]", "bf16[batch,512]")
    assert cli.main(cli.parse_arguments(["neuronx", *asked.split(), *types])) == 0
    small, large = json.loads(capsys.readouterr().out)
    assert small["tpot_s"] is None and large["per_s"] > small["per_s"]
    table = ["neuronx", *asked.replace("json", "table").split(), *types]
    assert cli.main(cli.parse_arguments(table)) == 0
    cheap = capsys.readouterr().out.splitlines()[2].split()[-2]
    assert float(cheap) == pytest.approx(large["usd_per_million"], rel=0.01)
    # Weights stay; 64 rows of 512 + 256 bf16 numbers pass over 16 GB/s PCIe instead of one.
    assert large["ttft_s"] - small["ttft_s"] >= 63 * 2 * (512 + 256) / 16e9
    wrong = ["neuronx", *asked.split(), "--arguments", "bf16[512,rows]"]
    assert cli.main(cli.parse_arguments(wrong)) == 2
    assert "'bf16[512,rows]' is no type" in capsys.readouterr().err
    assert cli.main(cli.parse_arguments(["neuronx", *asked.replace(":network", ":net").split()])) == 2
    assert "users_model:net cannot be imported" in capsys.readouterr().err
    few = ["neuronx", *asked.split(), "--arguments", "bf16[512,256]", "bf16[batch,7]"]
    assert cli.main(cli.parse_arguments(few)) == 2
    said = capsys.readouterr().err
    assert "users_model:network does not take (bf16[512,256], bf16[batch,7])" in said
    assert "users_model.py:5" in said
    none = ["neuronx", *asked.split()]
    assert cli.main(cli.parse_arguments(none)) == 2
    said = capsys.readouterr().err
    assert "missing 2 required positional arguments" in said and "\n  at " not in said
    assert _call("--arguments", "f32[8]") == 2
    assert "opt-125m is known by name, with arguments of its own" in capsys.readouterr().err


def test_matrices_of_a_cast_model_are_stored_narrow():
    options = {"degrees": [1], "batches": [1], "dtypes": ["f32"]}
    [plain], [cast] = (_rows("resnet50", **options, auto_cast=mode) for mode in ("none", "matmult"))
    # 25.6 million parameters, two bytes less each.
    assert plain.hbm_bytes - cast.hbm_bytes > 2 * 25e6 and cast.ttft_s < plain.ttft_s


@pytest.mark.parametrize("model", ["gpt2", "vit-base-patch16-224", "electra-large-discriminator"])
def test_other_families_are_known_by_name(model):
    [row] = _rows(model, degrees=[1], batches=[1])
    assert row.fits and (row.tpot_s is None) == (model != "gpt2")


def test_the_smallest_is_on_the_least_that_holds_it(rows):
    assert best(rows)["smallest"] == rows[0]
