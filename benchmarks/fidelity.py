"""``python -m benchmarks.fidelity``: writes docs/fidelity.md, predicted against published.

``--check`` writes nothing and fails where the page differs.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.baselines import datasheet_s, fit_two_constants
from benchmarks.calibrate import PRIORS, errors, leave_one_model_out, statistics
from benchmarks.rows import Measured, calibration_rows, decode_program, predict_s, tail_factors, whole
from distributed.analysis import exposed_collective_s, mbu
from distributed.host_link import request_s
from distributed.timeline import Timeline, time_program
from kernels.comparators import load_comparator
from kernels.eras import DEFAULT_ERA, links_of, load_era
from kernels.hardware import load_core, load_instance
from neuronx.models import bert, opt
from neuronx.models.catalog import host_bytes, weight_bytes
from neuronx.models.generation import DTYPES

__all__ = ["main", "page"]

_PAGE = Path(__file__).parent.parent / "docs" / "fidelity.md"
_GPU = "g5.48xlarge"
_CORES, _LENGTH, _LARGE = 24, 2048, "inf2.48xlarge"
_BATCHES = (1, 2, 4, 8, 16, 32)
_BUSY_CORES = (1, 2, 4)
# The figures of AWS's launch talk: model, sequence length, batch, instance, published milliseconds.
_LAUNCH_ENCODERS = (
    ("bert-large-uncased", 128, 1, "inf2.xlarge", 3.1),
    ("bert-large-uncased", 128, 10, "inf2.xlarge", 23.6),
    ("electra-large-discriminator", 256, 1, "inf2.xlarge", 8.31),
    ("electra-large-discriminator", 256, 10, "inf2.xlarge", 72.9),
    ("bert-large-uncased", 128, 1, "inf1.xlarge", 28.2),
    ("bert-large-uncased", 128, 10, "inf1.xlarge", 121.1),
    ("electra-large-discriminator", 256, 1, "inf1.xlarge", 35.7),
    ("electra-large-discriminator", 256, 10, "inf1.xlarge", 343.7),
)
# Model, published tokens a second on Inf2, and on eight A10G (None: out of memory).
_LAUNCH_DECODERS = (("opt-30b", 573.0, 181.0), ("opt-66b", 248.0, None))


def page() -> str:
    """The text of docs/fidelity.md."""
    parts = (_intro(), _calibration(), _constants(), _encoders(), _decoders(), _unknown())
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _intro() -> list[str]:
    return [
        "# Predicted against published",
        "",
        "Written by `python -m benchmarks.fidelity`. Times are for one core or one group of cores, launch "
        f'from the host and transfers included, era "{DEFAULT_ERA}" unless it says otherwise. Errors are '
        "signed; positive is slower than published.",
    ]


def _calibration() -> list[str]:
    rows = calibration_rows()
    fitted = [row for row in rows if row.is_fitted]
    left_out = dict(zip((row.name for row in fitted), leave_one_model_out(fitted), strict=True))
    simple = fit_two_constants(fitted)
    factors = tail_factors()
    lines = [
        "## Calibration rows",
        "",
        "`fitted`: with the shipped constants. `left out`: with constants fitted to the other models only. "
        "Times in milliseconds, throughputs a second (there a positive error is too fast).",
        "",
        *_table(
            ("row", "SDK", "published", "fitted", "error", "left out", "error"),
            [
                (
                    row.name,
                    row.sdk,
                    row.figure(row.seconds),
                    *_figure(row, predict_s(row, DEFAULT_ERA)),
                    *(_figure(row, left_out[row.name]) if row.name in left_out else ("", "")),
                )
                for row in rows
            ],
        ),
        "",
        "Rows without a figure left out are not fitted. An encoder's throughput says again what its latency "
        "says, with the batches that were in flight. A decoder's is that of a request: the prompt, then "
        "every token with the smallest of the programs for 128, 256, 512, ... positions that holds the "
        "cache; the time of a token is that of the one in the middle. The OPT rows come from an older "
        "release, 2.14, which shows no such programs, and are predicted with the constants of the newer one. "
        + _not_in_steps(rows),
        "",
        f"The simulated device takes as long every time. A p99 is the median time by {median(factors):.3f}, "
        f"the median of that ratio over the {len(factors)} rows of 2.17 and later, where it is "
        f"{factors[0]:.3f} to {factors[-1]:.3f}.",
        "",
        "Decoders ran under transformers-neuronx, whose host looks tokens up and chooses the next ones: a "
        "copy of the tokens' vectors for each core is charged, one after the other over the documented "
        "16 GB/s, and f32 logits on the way back. Its source writes the copies with one call, of whose "
        "workings only the name is public, parallel_write; every chip has a PCIe address of its own. Were "
        f"they sent to all chips at once, the times to first token would be {_with_all_links(rows)}. One "
        "after the other is the most that it can take, and was put in with these rows in view: for a long "
        "prompt it may be as many times too much as there are chips. The rows also hold work of the host in "
        "Python that is not published and not predicted.",
        "",
    ]
    sets: tuple[tuple[str, Iterable[float]], ...] = (
        ("fitted", [predict_s(row, DEFAULT_ERA) for row in fitted]),
        ("model left out", left_out.values()),
        ("two-constant roofline, fitted", [simple(row) for row in fitted]),
        ("datasheet roofline", [datasheet_s(row) for row in fitted]),
    )
    lines += [f"- {name}: {statistics(errors(fitted, list(found)))}" for name, found in sets]
    return [
        *lines,
        "",
        "The rows left out still understate the error for a model never seen: which effects are modelled at "
        "all was decided with every one of these rows in view, and three models are few.",
    ]


def _not_in_steps(rows: Sequence[Measured]) -> str:
    """What is missing in the prediction of the largest batch of OPT, and what is known of it."""
    row = {row.what: row for row in rows if row.sdk == "2.14.0" and row.batch == 256}
    token, whole = row["tpot"], row["throughput"]
    missing_s = token.seconds - predict_s(token, DEFAULT_ERA)
    links = links_of(DEFAULT_ERA, load_instance(token.instance).family)
    logits_s = token.runs[0].exchanged()[1] / links.host_bytes_per_s
    written_s = whole.seconds * whole.batch / whole.amount
    return (
        f"At batch {token.batch} their throughput leaves {_ms(written_s)} ms for each token written, beyond "
        f"the published p99 of {_ms(row['p99'].seconds)} ms: part of the request passed outside these steps. "
        f"No documented cause is known of the {_ms(missing_s)} ms that the prediction of a step lacks; it "
        f"holds {_ms(logits_s)} ms for the f32 logits on their way to the host."
    )


def _with_all_links(rows: Sequence[Measured]) -> str:
    """The times to first token with the prompt's copies sent over the links of all chips at once."""
    found = []
    for row in rows:
        if row.what == "ttft":
            instance = load_instance(row.instance)
            chips = row.cores * instance.chips // instance.cores
            [prompt] = row.runs
            sent_s = prompt.exchanged()[0] / links_of(DEFAULT_ERA, instance.family).host_bytes_per_s
            seconds = predict_s(row, DEFAULT_ERA) - sent_s * (1 - 1 / chips)
            found.append(f"{_ms(seconds)} ms ({row.error(seconds):+.1%})")
    return " and ".join(found)


def _constants() -> list[str]:
    era, ideal = load_era(DEFAULT_ERA), load_era("ideal")
    rows = [
        (name, f"{getattr(era, name):.3g}", f"{PRIORS[name][0]:.3g}", f"{getattr(ideal, name):.3g}")
        for name in PRIORS
    ]
    return [
        "## Constants",
        "",
        "The five fitted ones, each drawn to a documented value (the overlap, of which none is published, to "
        "a half; the launch to the middle of 52 us, of nccom-test, and the 200 us that the fastest call from "
        "PyTorch took: chosen with the row of ResNet-50 at batch 1 in view). No row and no model has a "
        "constant of its own.",
        "",
        *_table(("constant", DEFAULT_ERA, "documented", "ideal"), rows),
    ]


def _encoders() -> list[str]:
    rows = []
    for model, length, batch, instance, published in _LAUNCH_ENCODERS:
        name = f"{model} s{length} b{batch}"
        cells = [
            " ".join((ms, f"({error})"))
            for busy in _BUSY_CORES
            if busy <= load_instance(instance).cores
            for ms, error in [_against(_encoder_s(model, length, batch, instance, busy), published / 1e3)]
        ]
        rows.append((name, instance, f"{published:g}", *cells, *[""] * (len(_BUSY_CORES) - len(cells))))
    head = ("model", "instance", "published ms", *(f"ms, {busy} busy" for busy in _BUSY_CORES))
    return [
        "## Launch figures: encoders",
        "",
        "From an older release than the calibration rows; no constant is fitted to them. It is not known how "
        "many cores of the chip had requests at the same time and shared its memory: the columns are one, "
        "two and all four (an Inf2 chip has two).",
        "",
        *_table(head, rows),
        "",
        *_longer(),
    ]


def _longer() -> list[str]:
    """What the published figures say of twice the length, beside what is predicted."""
    times = {(model, batch, instance): ms / 1e3 for model, _, batch, instance, ms in _LAUNCH_ENCODERS}
    lengths = {model: length for model, length, *_ in _LAUNCH_ENCODERS}
    short, long = lengths
    cfg = bert.config(long)
    lines = [
        f"{long} has the layers of {short}; its {lengths[long]} tokens instead of {lengths[short]} are "
        f"{_flops(cfg, lengths[long]) / _flops(cfg, lengths[short]):.2f} times the flops. What a layer takes "
        "beyond the prediction, as passes of its f32 attention scores through HBM at the fitted rate:",
        "",
    ]
    rows = []
    for batch in (1, 10):
        for model in (short, long):
            beyond_s = times[model, batch, "inf2.xlarge"] - _encoder_s(
                model, lengths[model], batch, "inf2.xlarge", 1
            )
            scores_bytes = 4 * batch * cfg.heads * lengths[model] ** 2
            rate = load_core().dma.engines * load_era(DEFAULT_ERA).engine_bytes_per_s
            passes = beyond_s / cfg.layers * rate / scores_bytes
            rows.append((f"{model} b{batch}", f"{beyond_s / cfg.layers * 1e6:.0f}", f"{passes:.1f}"))
    lines += _table(("inf2.xlarge", "us a layer beyond the prediction", "passes"), rows)
    return [
        *lines,
        "",
        "A release that did softmax, mask and scale op by op through HBM takes that order of passes; the "
        "releases of the calibration rows do not show them. That is a guess: nothing published tells.",
    ]


def _flops(cfg: bert.BertConfig, length: int) -> float:
    matrices = 4 * cfg.hidden**2 + 2 * cfg.hidden * cfg.ffn
    return 2.0 * length * (matrices + 2 * length * cfg.hidden)


@functools.cache
def _encoder_s(model: str, length: int, batch: int, instance: str, busy: int) -> float:
    family = load_instance(instance).family
    found = whole(model, batch, length, instance)
    device_s = time_program(found.first.program, instance, sharers=busy).total_s
    links = links_of(DEFAULT_ERA, family)
    return request_s(device_s, links, bytes_in=found.bytes_in, bytes_out=found.bytes_out)


def _decoders() -> list[str]:
    lines = [
        "## Launch figures: decoders",
        "",
        f"OPT in f16 on {_LARGE}, {_CORES} cores, {_LENGTH} positions. Neither batch nor length of the "
        "published figures is known: the table gives tokens a second of a decode step by batch, and the "
        "smallest batch that reaches the published figure.",
        "",
    ]
    lines += _table(
        ("model", "published", *(f"batch {batch}" for batch in _BATCHES), "batch that meets it"),
        [_decoder_row(model, published) for model, published, _ in _LAUNCH_DECODERS],
    )
    lines += [
        "",
        f"Against {_GPU} (8 A10G, 192 GB), its roofline, at batch 16, and the first batch whose weights and "
        "cache it cannot hold, nothing taken off for its software:",
        "",
    ]
    lines += _table(
        ("model", "bytes needed", "fits", "does not fit from", "roofline tokens/s", "published on GPU"),
        [_gpu_row(model, published) for model, _, published in _LAUNCH_DECODERS],
    )
    lines += ["", 'Decode at batch 1 in era "ideal" against the roofline of HBM:', ""]
    lines += _table(
        ("model", "ideal ms", "roofline ms", "share of the roofline", "MBU", "in collectives"),
        [_ideal_row(model) for model, *_ in _LAUNCH_DECODERS],
    )
    return [
        *lines,
        "",
        "The roofline reads the model's own weights and cache once. MBU counts what is read: the 56 heads of "
        f"OPT-30B do not divide over {_CORES} cores and are padded to 72. Weights are read ahead while "
        "collectives fly, as far as SBUF holds them; the share in collectives is of the critical path.",
    ]


@functools.cache
def _step(model: str, batch: int, era: str) -> Timeline:
    return time_program(decode_program(model, batch, _LENGTH, _CORES, _LARGE), _LARGE, era=era)


def _step_s(model: str, batch: int, era: str) -> float:
    given, made = host_bytes(model, tokens=batch, batch=batch, dtype=DTYPES["f16"], cores=_CORES)
    return request_s(_step(model, batch, era).total_s, links_of(era), bytes_in=given, bytes_out=made)


def _decoder_row(model: str, published: float) -> tuple[str, ...]:
    speeds = [batch / _step_s(model, batch, DEFAULT_ERA) for batch in _BATCHES]
    return (model, f"{published:g}", *(f"{speed:.0f}" for speed in speeds), _meeting(model, published))


def _meeting(model: str, published: float) -> str:
    """The smallest batch whose predicted tokens a second reach the published ones."""
    above = next((n for n in _BATCHES if n / _step_s(model, n, DEFAULT_ERA) >= published), None)
    if above is None:
        return "none of these"
    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        if middle / _step_s(model, middle, DEFAULT_ERA) >= published:
            above = middle
        else:
            below = middle
    return str(above)


def _traffic_bytes(model: str, batch: int) -> int:
    cfg = opt.config(model)
    return weight_bytes(model, DTYPES["f16"]) + 4 * cfg.layers * batch * _LENGTH * cfg.hidden


def _gpu_row(model: str, published: float | None) -> tuple[str, ...]:
    gpu, needed = load_comparator(_GPU), _traffic_bytes(model, 16)
    fits = gpu.fits(needed)
    first = next(batch for batch in itertools.count(1) if not gpu.fits(_traffic_bytes(model, batch)))
    # Two flops for each parameter, of two bytes, and token.
    speed = 16 / gpu.roofline_s(16 * weight_bytes(model, DTYPES["f16"]), needed)
    return (
        model,
        f"{needed / 1e9:.0f} GB",
        "yes" if fits else "no",
        f"batch {first}",
        f"{speed:.0f}" if fits else "-",
        f"{published or 'out of memory'}",
    )


def _ideal_row(model: str) -> tuple[str, ...]:
    roofline_s = _traffic_bytes(model, 1) / _CORES / load_core().hbm.bandwidth_bytes_per_s
    timeline = _step(model, 1, "ideal")
    ideal_s = timeline.total_s
    shares = (roofline_s / ideal_s, mbu(timeline), exposed_collective_s(timeline) / ideal_s)
    return (model, _ms(ideal_s), _ms(roofline_s), *(f"{share:.0%}" for share in shares))


def _unknown() -> list[str]:
    return [
        "## What is not known",
        "",
        "- Encoders: how weights were stored, which ops the release of the launch fused, and how many cores "
        "of a chip were busy. The Inf1 figures lie between one busy core and four; with two all four are met "
        "within 17 %, which is seen, not known.",
        "- Inf1: clock, array shape and SBUF size of NeuronCore-v1 are assumed; its compiler kept weights on "
        "chip and could spread a model over the four cores of a chip, which is not modelled.",
        "- Decoders: batch and sequence length, the release, and what the host did between steps. OPT-30B "
        "and OPT-66B need not have been run with the same batch; the table names one for each.",
        "- Which algorithm the runtime of 2023 used for small all-reduces: a ring is charged.",
        "- Time to first token: how copies for several cores share the way from the host, what else the "
        "host does, and how the runtime read a batch of prompts.",
        "- Images of Stable Diffusion, of which no calibration row is: 50 steps where a row states none, two "
        "cores at once with and without the sentence; the scheduler on the host and the sentence's encoder "
        "are not charged.",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


def _figure(row: Measured, seconds: float) -> tuple[str, str]:
    return row.figure(seconds), f"{row.error(seconds):+.1%}"


def _against(seconds: float, published_s: float) -> tuple[str, str]:
    return _ms(seconds), f"{seconds / published_s - 1:+.1%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the page differs")
    asked = parser.parse_args(arguments)
    text = page()
    if asked.check:
        same = _PAGE.read_text(encoding="utf-8") == text
        print(f"{_PAGE.name}: {'as generated' if same else 'differs from what is generated'}")
        return 0 if same else 1
    _PAGE.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
