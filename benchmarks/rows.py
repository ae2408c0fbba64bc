"""The published rows: what each measured, and the programs that stand for it."""

import csv
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jax.numpy as jnp

from distributed.host_link import request_s
from distributed.program import Program
from distributed.timeline import time_program
from kernels.eras import Era, links_of
from kernels.hardware import load_instance
from neuronx.models import bert
from neuronx.models.catalog import (
    DECODERS,
    MODELS,
    compile_prompt,
    compile_step,
    host_bytes,
    weight_bytes,
    workload,
)
from neuronx.models.sizes import find

__all__ = [
    "Measured",
    "calibration_rows",
    "catalog_name",
    "decode_program",
    "measured",
    "predict_s",
    "prefill_program",
    "whole_program",
]

_TOKEN_BYTES, _LOGIT_BYTES, _PIXEL_BYTES = 4, 4, 4
_IMAGE = (224, 224, 3)
_TYPE = jnp.float16


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One published time and what is run for it.

    Attributes:
      model: as AWS names it; ``what``: the figure, e.g. "tpot" (time per output token).
      seconds: published. ``sdk``: the release it was measured with.
      is_fitted: whether constants are fitted to it.
      build: makes the program; it takes seconds and is cached.
      bytes_in, bytes_out: between host and device for each run.
      is_pipelined: requests overlap, so that launch and transfers hide behind the device.
      flops, bytes: of the plain model, for the baselines: whole model, one run; ``cores`` that share them.
    """

    model: str
    what: str
    batch: int
    seconds: float
    sdk: str
    instance: str
    is_fitted: bool
    build: Callable[[], Program]
    cores: int
    flops: float
    bytes: float
    bytes_in: int = 0
    bytes_out: int = 0
    is_pipelined: bool = False

    @property
    def name(self) -> str:
        return f"{self.model} {self.what} b{self.batch}"


def predict_s(row: Measured, era: str | Era) -> float:
    """The row's time by the simulator."""
    device_s = time_program(row.build(), row.instance, era=era).total_s
    if row.is_pipelined:
        return device_s
    return request_s(device_s, links_of(era), bytes_in=row.bytes_in, bytes_out=row.bytes_out)


def calibration_rows() -> list[Measured]:
    """The rows of data/published_calibration.csv, in its order; a Llama row gives two times."""
    text = files("benchmarks").joinpath("data", "published_calibration.csv").read_text(encoding="utf-8")
    return [one for row in csv.DictReader(text.splitlines()) for one in measured(row)]


def measured(row: Mapping[str, str]) -> list[Measured]:
    """What one row with the columns of data/published_calibration.csv states.

    Of a decoder the time of a token and, where there is one, that to the first token; nothing of a row that
    states a throughput only.

    Raises:
      CompileError: a model that is not in the catalog.
    """
    name = catalog_name(row["model"])
    if not (row["tpot_p50_ms"] or row["p50_ms"]):
        return []
    return (_decoder if MODELS[name] in DECODERS else _whole)(name, row)


def catalog_name(published: str) -> str:
    """The catalog's name of a model that AWS names ``published``: any case, with its owner, a variant's name
    behind it ("Meta-Llama-3-8B-Instruct").

    Raises:
      CompileError: none is meant.
    """
    name = published.lower().rpartition("/")[2].removeprefix("meta-")
    meant = [known for known in MODELS if f"{name}-".startswith(f"{known}-")]
    return max(meant, key=len) if meant else find(MODELS, name)


def _whole(name: str, row: Mapping[str, str]) -> list[Measured]:
    """An encoder or classifier: one core takes a batch."""
    module, batch, instance = MODELS[name], int(row["batch"]), row["instance"].lower()
    cfg = module.config(name)
    length = int(row["seq_len"] or 0)
    # Two workers on each core where the concurrency is 4: a core's time for a batch is half of the p50.
    workers = max(1, round(float(row["little_concurrency"] or 1) / load_instance(instance).cores))
    if module is bert:
        bytes_in = 3 * batch * length * _TOKEN_BYTES
        bytes_out = batch * cfg.hidden * (length + cfg.has_pooler) * 4
    else:
        bytes_in, bytes_out = batch * math.prod(_IMAGE) * _PIXEL_BYTES, batch * cfg.classes * _LOGIT_BYTES
    return [
        Measured(
            model=row["model"],
            what="latency" if workers == 1 else "interval",
            batch=batch,
            seconds=float(row["p50_ms"]) / 1e3 / workers,
            sdk=row["neuron_version"],
            instance=instance,
            is_fitted=_is_of_the_era(row),
            build=functools.partial(whole_program, name, batch, length, instance),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            is_pipelined=workers > 1,
            cores=1,
            **_whole_work(name, batch, length),
        )
    ]


def _is_of_the_era(row: Mapping[str, str]) -> bool:
    """Whether the row was measured with a release that the constants are to stand for: 2.17 or newer."""
    return tuple(map(int, row["neuron_version"].split("."))) >= (2, 17)


# Multiply-adds an image: torchvision's table of weights.
_MULTIPLY_ADDS = {
    "resnet18": 1.81e9,
    "resnet34": 3.66e9,
    "resnet50": 4.09e9,
    "resnet101": 7.80e9,
    "resnet152": 11.51e9,
}


def _whole_work(name: str, batch: int, length: int) -> dict[str, float]:
    if name in _MULTIPLY_ADDS:
        return {"flops": 2 * _MULTIPLY_ADDS[name] * batch, "bytes": weight_bytes(name, jnp.bfloat16)}
    cfg = MODELS[name].config(name)
    tokens = length or cfg.patches + 1
    matrices = cfg.layers * (4 * cfg.hidden**2 + 2 * cfg.hidden * cfg.ffn)
    attention = 4 * cfg.layers * batch * tokens**2 * cfg.hidden
    return {"flops": 2.0 * matrices * batch * tokens + attention, "bytes": 2.0 * matrices}


def _decoder(name: str, row: Mapping[str, str]) -> list[Measured]:
    cfg, batch, tp = MODELS[name].config(name), int(row["batch"]), int(row["tp"])
    length, instance = int(row["seq_len"]), row["instance"].lower()
    exchanged = functools.partial(host_bytes, name, batch=batch, dtype=_TYPE, cores=tp)
    common: dict[str, Any] = {
        "model": row["model"],
        "batch": batch,
        "sdk": row["neuron_version"],
        "instance": instance,
        "cores": tp,
    }
    bytes_in, bytes_out = exchanged(tokens=batch)
    token = Measured(
        what="tpot",
        seconds=float(row["tpot_p50_ms"] or row["p50_ms"]) / 1e3,
        is_fitted=_is_of_the_era(row),
        build=functools.partial(decode_program, name, batch, length, tp, instance),
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        **common,
        **_decoder_work(cfg, batch, 1, length),
    )
    if not row["ttft_p50_ms"]:
        return [token]
    prompt = int(row["in_len"])
    bytes_in, bytes_out = exchanged(tokens=batch * prompt)
    first = Measured(
        what="ttft",
        seconds=float(row["ttft_p50_ms"]) / 1e3,
        # The host's own work (lookup, scheduling in Python) is in the published figure and unknown.
        is_fitted=False,
        build=functools.partial(prefill_program, name, batch, prompt, length, tp, instance),
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        **common,
        **_decoder_work(cfg, batch, prompt, prompt),
    )
    return [token, first]


def _decoder_work(cfg: Any, batch: int, tokens: int, cache: int) -> dict[str, float]:
    """Flops and bytes of reading ``tokens`` tokens a sequence with ``cache`` positions to attend to."""
    kv_width = getattr(cfg, "kv_heads", cfg.heads) * cfg.head_dim
    products = 3 if hasattr(cfg, "kv_heads") else 2
    layer = 2 * cfg.hidden**2 + 2 * cfg.hidden * kv_width + products * cfg.hidden * cfg.ffn
    weights = cfg.layers * layer + cfg.hidden * cfg.vocab
    attention = 4.0 * cfg.layers * batch * tokens * cache * cfg.hidden
    return {
        "flops": 2.0 * cfg.layers * layer * batch * tokens + attention,
        "bytes": 2.0 * weights + 4.0 * cfg.layers * batch * cache * kv_width,
    }


@functools.cache
def whole_program(name: str, batch: int, length: int, instance: str) -> Program:
    """An encoder or classifier in f32 whose products run in bf16, its matrices cast when it was compiled."""
    found = workload(
        name,
        batch=batch,
        dtype=jnp.float32,
        prompt_len=length,
        new_tokens=0,
        instance=instance,
        auto_cast="matmult",
    )
    return found.first.program


@functools.cache
def decode_program(name: str, batch: int, length: int, tp: int, instance: str) -> Program:
    """One token a sequence in f16, with a cache of ``length`` positions."""
    options = {"tp_degree": tp, "instance": instance}
    return compile_step(name, batch=batch, length=length, dtype=_TYPE, **options).program


@functools.cache
def prefill_program(name: str, batch: int, prompt: int, length: int, tp: int, instance: str) -> Program:
    """The prompt in f16, into a cache of ``length`` positions."""
    found = compile_prompt(
        name,
        batch=batch,
        prompt_len=prompt,
        length=length,
        dtype=_TYPE,
        tp_degree=tp,
        instance=instance,
    )
    return found.program
