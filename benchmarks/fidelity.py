"""``python -m benchmarks.fidelity``: writes docs/fidelity.md, predicted against published.

``--check`` writes nothing and fails where the page differs.
"""

import argparse
import functools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.baselines import datasheet_s, fit_two_constants
from benchmarks.calibrate import PRIORS, errors, leave_one_model_out, statistics
from benchmarks.rows import calibration_rows, decode_program, encoder_program, predict_s
from distributed.host_link import request_s
from distributed.timeline import time_program
from kernels.comparators import load_comparator
from kernels.eras import DEFAULT_ERA, links_of, load_era
from kernels.hardware import load_core, load_instance
from neuronx.models import opt
from neuronx.models.catalog import weight_bytes
from neuronx.models.generation import DTYPES

__all__ = ["main", "page"]

_PAGE = Path(__file__).parent.parent / "docs" / "fidelity.md"
_GPU = "g5.48xlarge"
_CORES, _LENGTH, _LARGE = 24, 2048, "inf2.48xlarge"
_BATCHES = (1, 2, 4, 8, 16)
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
    lines = [
        "## Calibration rows",
        "",
        "`fitted`: with the shipped constants. `left out`: with constants fitted to the other models only.",
        "",
        *_table(
            ("row", "SDK", "published ms", "fitted ms", "error", "left out ms", "error"),
            [
                (
                    row.name,
                    row.sdk,
                    _ms(row.seconds),
                    *_against(predict_s(row, DEFAULT_ERA), row.seconds),
                    *(_against(left_out[row.name], row.seconds) if row.name in left_out else ("", "")),
                )
                for row in rows
            ],
        ),
        "",
        "Rows without a figure left out are not fitted. Time to first token holds work of the host "
        "(embedding, scheduling and sampling in Python) that is not published and not predicted. The OPT "
        "rows come from an older release, 2.14, and are predicted with the constants of the newer one.",
        "",
    ]
    sets: tuple[tuple[str, Iterable[float]], ...] = (
        ("fitted", [predict_s(row, DEFAULT_ERA) for row in fitted]),
        ("model left out", left_out.values()),
        ("two-constant roofline, fitted", [simple(row) for row in fitted]),
        ("datasheet roofline", [datasheet_s(row) for row in fitted]),
    )
    return lines + [f"- {name}: {statistics(errors(fitted, list(found)))}" for name, found in sets]


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
        "a half). No row and no model has a constant of its own.",
        "",
        *_table(("constant", DEFAULT_ERA, "documented", "ideal"), rows),
    ]


def _encoders() -> list[str]:
    rows = []
    for model, length, batch, instance, published in _LAUNCH_ENCODERS:
        predicted = _encoder_s(model, length, batch, instance)
        name = f"{model} s{length} b{batch}"
        rows.append((name, instance, f"{published:g}", *_against(predicted, published / 1e3)))
    return [
        "## Launch figures: encoders",
        "",
        "From an older release than the calibration rows; no constant is fitted to them. One request in "
        "flight: one core with the chip's memory to itself.",
        "",
        *_table(("model", "instance", "published ms", "predicted ms", "error"), rows),
    ]


def _encoder_s(model: str, length: int, batch: int, instance: str) -> float:
    family = load_instance(instance).family
    program = encoder_program(model, batch, length, instance)
    timeline = time_program(program, instance, sharers=1)
    return request_s(timeline.total_s, links_of(DEFAULT_ERA, family), bytes_in=12 * batch * length)


def _decoders() -> list[str]:
    lines = [
        "## Launch figures: decoders",
        "",
        f"OPT in f16 on {_LARGE}, {_CORES} cores, {_LENGTH} positions. Neither batch nor length of the "
        "published figures is known: the table gives tokens a second of a decode step by batch.",
        "",
    ]
    lines += _table(
        ("model", "published", *(f"batch {batch}" for batch in _BATCHES), "batch that meets it"),
        [_decoder_row(model, published) for model, published, _ in _LAUNCH_DECODERS],
    )
    lines += ["", f"Against {_GPU} (8 A10G, 192 GB), its roofline, at batch 16:", ""]
    lines += _table(
        ("model", "bytes needed", "fits", "roofline tokens/s", "published on GPU"),
        [_gpu_row(model, published) for model, _, published in _LAUNCH_DECODERS],
    )
    lines += ["", 'Decode at batch 1 in era "ideal" against the roofline of HBM:', ""]
    return lines + _table(
        ("model", "ideal ms", "roofline ms", "share of the roofline"),
        [_ideal_row(model) for model, *_ in _LAUNCH_DECODERS],
    )


@functools.cache
def _step_s(model: str, batch: int, era: str) -> float:
    program = decode_program(model, batch, _LENGTH, _CORES, _LARGE)
    device_s = time_program(program, _LARGE, era=era).total_s
    logits = 4 * batch * opt.config(model).vocab
    return device_s if era == "ideal" else request_s(device_s, links_of(era), bytes_out=logits)


def _decoder_row(model: str, published: float) -> tuple[str, ...]:
    speeds = [batch / _step_s(model, batch, DEFAULT_ERA) for batch in _BATCHES]
    met = next((batch for batch, speed in zip(_BATCHES, speeds, strict=True) if speed >= published), None)
    return (model, f"{published:g}", *(f"{speed:.0f}" for speed in speeds), str(met or "none of these"))


def _traffic_bytes(model: str, batch: int) -> int:
    cfg = opt.config(model)
    return weight_bytes(model, DTYPES["f16"]) + 4 * cfg.layers * batch * _LENGTH * cfg.hidden


def _gpu_row(model: str, published: float | None) -> tuple[str, ...]:
    gpu, needed = load_comparator(_GPU), _traffic_bytes(model, 16)
    fits = gpu.fits(needed)
    speed = 16 / gpu.roofline_s(2 * weight_bytes(model, DTYPES["f16"]) / 2 * 16, needed)
    shown = f"{speed:.0f}" if fits else "-"
    return (
        model,
        f"{needed / 1e9:.0f} GB",
        "yes" if fits else "no",
        shown,
        f"{published or 'out of memory'}",
    )


def _ideal_row(model: str) -> tuple[str, ...]:
    roofline_s = _traffic_bytes(model, 1) / _CORES / load_core().hbm.bandwidth_bytes_per_s
    ideal_s = _step_s(model, 1, "ideal")
    return (model, _ms(ideal_s), _ms(roofline_s), f"{roofline_s / ideal_s:.0%}")


def _unknown() -> list[str]:
    return [
        "## What is not known",
        "",
        "- Encoders: how weights were stored and which ops the release of the launch fused.",
        "- Inf1: clock, array shape and SBUF size of NeuronCore-v1 are assumed; its compiler kept weights on "
        "chip and could spread a model over the four cores of a chip, which is not modelled.",
        "- Decoders: batch and sequence length, and what the host did between steps.",
        "- Which algorithm the runtime of 2023 used for small all-reduces: a ring is charged.",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"


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
