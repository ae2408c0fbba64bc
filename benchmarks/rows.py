"""The published rows: what each measured, and the programs that stand for it."""

import csv
import functools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jax.numpy as jnp

from benchmarks.published import Published, read
from distributed.host_link import request_s
from distributed.program import Program
from distributed.timeline import time_program
from kernels.eras import Era, links_of
from kernels.errors import CompileError
from kernels.hardware import load_instance
from neuronx.comparing import Work, model_work
from neuronx.models.catalog import (
    Workload,
    compile_prompt,
    compile_step,
    host_bytes,
    power_of_two,
    prompt_bucket,
    workload,
)
from neuronx.models.names import MODELS

__all__ = [
    "Measured",
    "Run",
    "calibration_rows",
    "decode_program",
    "measured",
    "predict_s",
    "tail_factors",
    "whole",
]

_MATMULT = (("auto_cast", "matmult"), ("auto_cast_type", "bf16"))
# transformers-neuronx has a program for each power of two from this on: src/transformers_neuronx/bucket.py.
_TOKEN_BUCKET = 128


@dataclass(frozen=True, kw_only=True)
class Run:
    """A program that a figure takes ``times`` times.

    ``exchanged``: bytes to and from the host each time; ``work``: of the plain model, for the baselines.
    """

    program: Callable[[], Program]
    exchanged: Callable[[], tuple[int, int]]
    work: Callable[[], Work]
    times: int = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One published figure and what is run for it.

    Attributes:
      model: as AWS names it.
      what: "latency" (of a batch), "tpot" (time per output token), "p99" (of either), "ttft" (time to first
        token) or "throughput".
      seconds: published; of a throughput what ``amount`` results take by it.
      amount: tokens or inferences that one repetition of ``runs`` makes where a throughput is published;
        None where a time is.
      length: positions of the cache or tokens of the sequence, 0 where the model has none.
      sdk: the release it was measured with. ``is_fitted``: whether constants are fitted to it.
      queue: batches on their way to each copy of the model: above one, launch and transfers hide behind the
        device, and each waits for the others.
      cores: that share one copy.
      factor: what the median time is multiplied by.
    """

    model: str
    what: str
    batch: int
    length: int
    seconds: float
    amount: int | None = None
    sdk: str
    instance: str
    is_fitted: bool = False
    runs: tuple[Run, ...]
    queue: float = 1.0
    cores: int
    factor: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.model} {self.what} b{self.batch}"

    def figure(self, seconds: float) -> str:
        """``seconds`` as the row states its figure: milliseconds, or results a second."""
        return f"{seconds * 1e3:.3f}" if self.amount is None else f"{self.amount / seconds:.1f}/s"

    def error(self, seconds: float) -> float:
        """Relative error of the figure that these predicted seconds give; above zero a throughput is high."""
        return (seconds / self.seconds if self.amount is None else self.seconds / seconds) - 1


def predict_s(row: Measured, era: str | Era) -> float:
    """The row's time by the simulator."""
    links = links_of(era, load_instance(row.instance).family)
    total_s = 0.0
    for run in row.runs:
        device_s = time_program(run.program(), row.instance, era=era).total_s
        bytes_in, bytes_out = run.exchanged()
        alone_s = request_s(device_s, links, bytes_in=bytes_in, bytes_out=bytes_out)
        total_s += run.times * max(alone_s, row.queue * device_s)
    return row.factor * total_s


def calibration_rows() -> list[Measured]:
    """The figures of data/published_calibration.csv, in its order."""
    return [one for record in _calibration() for one in measured(record)]


@functools.cache
def tail_factors() -> tuple[float, ...]:
    """p99 over the median time in each calibration row of the era, the least first.

    The simulated device takes as long every time; what varies is the host's.
    """
    rows = [row for row in map(read, _calibration()) if row.p99_s and row.p50_s and _is_of_the_era(row.sdk)]
    return tuple(sorted(row.p99_s / row.p50_s for row in rows))


def _calibration() -> csv.DictReader:
    text = files("benchmarks").joinpath("data", "published_calibration.csv").read_text(encoding="utf-8")
    return csv.DictReader(text.splitlines())


def measured(record: Mapping[str | None, Any]) -> list[Measured]:
    """What one record with the columns of data/published_calibration.csv states: each time and throughput.

    Raises:
      CompileError: a model or instance that is not known, a field that cannot be read, or one that is needed.
    """
    row = read(record)
    return list((_decoder if row.is_decoder else _whole)(row))


def _is_of_the_era(sdk: str) -> bool:
    """Whether a release is one that the constants are to stand for: 2.17 or newer."""
    return tuple(int(part) for part in sdk.split(".") if part.isdigit()) >= (2, 17)


def _common(row: Published, length: int) -> dict[str, Any]:
    return {
        "model": row.published,
        "batch": row.batch,
        "length": length,
        "sdk": row.sdk,
        "instance": row.instance,
        "cores": row.tp,
    }


def _whole(row: Published) -> Iterator[Measured]:
    """An encoder or classifier: copies of it on the instance's cores, each takes batch after batch.

    Where the row does not say how many batches were on their way, a throughput is that of one on each copy,
    and a latency that of one alone. An image takes its steps one after the other; its sentence, and
    what it is painted into, are read once, which is not charged.
    """
    if row.weights:
        raise CompileError(
            f"weights in {row.weights}, which decoders alone have", op="row", fix="leave it out"
        )
    cfg = MODELS[row.name].config(row.name)
    positions = getattr(cfg, "positions", 0)
    if not row.seq_len and not hasattr(cfg, "image"):
        raise CompileError(
            f"no seq_len: tokens or samples that {row.published} reads", op="row", fix="give it"
        )
    length = min(row.seq_len or positions, positions) if hasattr(cfg, "image") else row.seq_len
    runs = (_run(row, row.name, length, row.steps or 1),)
    copies = load_instance(row.instance).cores // row.tp
    if row.steps:
        # An image is made twice, with its sentence and without: by two cores at once.
        runs, copies = (*runs, _run(row, row.decoder, length, 1)), max(1, copies // 2)
    in_flight = row.in_flight or copies
    common = _common(row, length) | {"runs": runs, "queue": max(1.0, in_flight / copies)}
    if row.p50_s:
        yield Measured(what="latency", seconds=row.p50_s, is_fitted=_is_of_the_era(row.sdk), **common)
    if row.p99_s:
        yield _p99(row, common)
    if row.per_s:
        amount = in_flight * row.batch
        yield Measured(what="throughput", seconds=amount / row.per_s, amount=amount, **common)


def _run(row: Published, name: str, length: int | None, times: int) -> Run:
    """``times`` runs of a model that is one program."""
    found = functools.partial(
        whole,
        name,
        row.batch,
        length,
        row.instance,
        tp=row.tp,
        dtype=row.dtype,
        options=tuple(row.options.items()),
    )
    return Run(
        program=lambda: found().first.program,
        exchanged=lambda: (found().bytes_in, found().bytes_out),
        work=lambda: _work(name, row.batch, length, 0)[0],
        times=times,
    )


def _decoder(row: Published) -> Iterator[Measured]:
    """A decoder on ``tp`` cores: ``in_len`` tokens read, ``out_len`` written by each sequence of the batch.

    Rows that tell prompt and tokens apart are of releases with a program for each power of two of the cache:
    a token is read with the smallest that holds it, p50 is that of the token in the middle, and throughput
    that of the whole request. The older rows show none of that (their mean token is slower than their p50).
    """
    length = row.seq_len or (row.in_len or 0) + (row.out_len or 0)
    positions = getattr(MODELS[row.name].config(row.name), "positions", length)
    if not 0 < length <= positions:
        said = f"seq_len is {length}" if length else "neither seq_len nor in_len and out_len"
        raise CompileError(f"{said}, and {row.name} has {positions} positions", op="row", fix="give seq_len")
    has_buckets = bool(row.ttft_s or row.tpot_s)
    common, written = _common(row, length), row.out_len or 1

    def cache(tokens: int) -> int:
        return power_of_two(tokens, _TOKEN_BUCKET, length) if has_buckets else length

    start = row.in_len or length - written
    middle = (_step(row, cache(start + written // 2)),)
    if row.tpot_s or row.p50_s:
        is_fitted, seconds = _is_of_the_era(row.sdk), row.tpot_s or row.p50_s
        yield Measured(what="tpot", seconds=seconds, is_fitted=is_fitted, runs=middle, **common)
    if row.p99_s:
        yield _p99(row, common | {"runs": middle})
    prompt = ()
    if row.in_len:
        size = prompt_bucket(row.name, row.in_len, length) if has_buckets else row.in_len
        prompt = (_prompt(row, size, length),)
    if row.ttft_s:
        if not prompt:
            raise CompileError("a time to first token, but no in_len", op="row", fix="give in_len")
        # The host's own work (lookup, scheduling in Python) is in the published figure and unknown.
        yield Measured(what="ttft", seconds=row.ttft_s, runs=prompt, **common)
    if row.per_s:
        # The prompt's program writes the first token.
        caches = Counter(cache(start + number) for number in range(len(prompt), written))
        steps = (_step(row, size, times) for size, times in caches.items())
        amount = row.batch * written
        seconds = amount / row.per_s
        yield Measured(what="throughput", seconds=seconds, amount=amount, runs=(*prompt, *steps), **common)


def _p99(row: Published, common: Mapping[str, Any]) -> Measured:
    return Measured(what="p99", seconds=row.p99_s, factor=statistics.median(tail_factors()), **common)


def _step(row: Published, length: int, times: int = 1) -> Run:
    return Run(
        program=functools.partial(
            decode_program,
            row.name,
            row.batch,
            length,
            row.tp,
            row.instance,
            dtype=row.dtype,
            weights=row.weights,
            options=tuple(row.options.items()),
        ),
        exchanged=_exchanged(row, row.batch),
        work=lambda: _work(row.name, row.batch, length - 1, 1)[0],
        times=times,
    )


def _prompt(row: Published, tokens: int, length: int) -> Run:
    return Run(
        program=functools.partial(
            prefill_program,
            row.name,
            row.batch,
            tokens,
            length,
            row.tp,
            row.instance,
            dtype=row.dtype,
            weights=row.weights,
            options=tuple(row.options.items()),
        ),
        exchanged=_exchanged(row, row.batch * tokens, is_prompt=True),
        work=lambda: _work(row.name, row.batch, tokens, length - tokens)[1],
    )


def _exchanged(row: Published, tokens: int, **kind: bool) -> Callable[[], tuple[int, int]]:
    shape = {"tokens": tokens, "batch": row.batch, "dtype": row.dtype, "cores": row.tp}
    return functools.partial(host_bytes, row.name, **shape, **kind)


@functools.cache
def _work(name: str, batch: int, prompt_len: int, new_tokens: int) -> tuple[Work, ...]:
    return model_work(name, batch=batch, dtype=jnp.bfloat16, prompt_len=prompt_len, new_tokens=new_tokens)


@functools.cache
def whole(
    name: str,
    batch: int,
    length: int,
    instance: str,
    *,
    tp: int = 1,
    dtype: Any = jnp.float32,
    options: tuple[tuple[str, str], ...] = _MATMULT,
) -> Workload:
    """An encoder or classifier; as AWS ran them in f32 whose products run in bf16, its matrices cast when it
    was compiled."""
    shape = {"batch": batch, "dtype": dtype, "prompt_len": length, "new_tokens": 0}
    return workload(name, **shape, instance=instance, tp_degree=tp, **dict(options))


@functools.cache
def decode_program(
    name: str,
    batch: int,
    length: int,
    tp: int,
    instance: str,
    *,
    dtype: Any = jnp.float16,
    weights: str | None = None,
    options: tuple[tuple[str, str], ...] = (),
) -> Program:
    """One token a sequence, with a cache of ``length`` positions."""
    shape = {"batch": batch, "length": length, "dtype": dtype, "weights": weights}
    return compile_step(name, **shape, tp_degree=tp, instance=instance, **dict(options)).program


@functools.cache
def prefill_program(
    name: str,
    batch: int,
    prompt: int,
    length: int,
    tp: int,
    instance: str,
    *,
    dtype: Any,
    weights: str | None,
    options: tuple[tuple[str, str], ...],
) -> Program:
    """The prompt, into a cache of ``length`` positions."""
    shape = {"batch": batch, "prompt_len": prompt, "length": length, "dtype": dtype, "weights": weights}
    return compile_prompt(name, **shape, tp_degree=tp, instance=instance, **dict(options)).program
