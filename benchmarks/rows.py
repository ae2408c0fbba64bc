"""The published rows: what each measured, and the programs that stand for it."""

import csv
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

import neuronx
from distributed.host_link import request_s
from distributed.program import Program
from distributed.timeline import time_program
from kernels.eras import Era, links_of
from neuronx.models import bert, llama, opt, resnet
from neuronx.models.layers import tensor_parallel

__all__ = [
    "Measured",
    "calibration_rows",
    "decode_program",
    "encoder_program",
    "image_program",
    "predict_s",
    "prefill_program",
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
    found: list[Measured] = []
    for row in csv.DictReader(text.splitlines()):
        found += _READERS[row["model"]](row)
    return found


def _encoder(row: Mapping[str, str]) -> list[Measured]:
    cfg, batch, length = bert.config(row["model"]), int(row["batch"]), int(row["seq_len"])
    return [
        Measured(
            model=row["model"],
            what="latency",
            batch=batch,
            seconds=float(row["p50_ms"]) / 1e3,
            sdk=row["neuron_version"],
            instance=row["instance"].lower(),
            is_fitted=True,
            build=functools.partial(encoder_program, cfg.name, batch, length, row["instance"].lower()),
            bytes_in=3 * batch * length * _TOKEN_BYTES,
            bytes_out=batch * cfg.hidden * (length + 1) * 4,
            cores=1,
            **_encoder_work(cfg, batch, length),
        )
    ]


def _encoder_work(cfg: bert.BertConfig, batch: int, length: int) -> dict[str, float]:
    matrices = cfg.layers * (4 * cfg.hidden**2 + 2 * cfg.hidden * cfg.ffn)
    attention = 4 * cfg.layers * batch * length**2 * cfg.hidden
    return {"flops": 2.0 * matrices * batch * length + attention, "bytes": 2.0 * matrices}


def _image(row: Mapping[str, str]) -> list[Measured]:
    batch = int(row["batch"])
    # Two workers on each core where the concurrency is 4: a core's time for a batch is half of the p50.
    workers = max(1, round(float(row["little_concurrency"]) / 2))
    pixels = _IMAGE[0] * _IMAGE[1] * _IMAGE[2]
    return [
        Measured(
            model=row["model"],
            what="latency" if workers == 1 else "interval",
            batch=batch,
            seconds=float(row["p50_ms"]) / 1e3 / workers,
            sdk=row["neuron_version"],
            instance=row["instance"].lower(),
            is_fitted=True,
            build=functools.partial(image_program, row["model"], batch, row["instance"].lower()),
            bytes_in=batch * pixels * _PIXEL_BYTES,
            bytes_out=batch * 1000 * _LOGIT_BYTES,
            is_pipelined=workers > 1,
            cores=1,
            # 4.09 billion multiply-adds an image, 25.6 million parameters.
            flops=8.2e9 * batch,
            bytes=2 * 25.6e6,
        )
    ]


def _decoder(row: Mapping[str, str]) -> list[Measured]:
    is_llama = row["model"].startswith("Llama")
    code = llama if is_llama else opt
    cfg, batch, tp = code.config(row["model"].lower()), int(row["batch"]), int(row["tp"])
    length, instance = int(row["seq_len"]), row["instance"].lower()
    common: dict[str, Any] = {
        "model": row["model"],
        "batch": batch,
        "sdk": row["neuron_version"],
        "instance": instance,
        "cores": tp,
        "bytes_out": batch * cfg.vocab * _LOGIT_BYTES,
    }
    token = Measured(
        what="tpot",
        seconds=float(row["tpot_p50_ms"] or row["p50_ms"]) / 1e3,
        is_fitted=is_llama,
        build=functools.partial(decode_program, cfg.name, batch, length, tp, instance),
        bytes_in=batch * _TOKEN_BYTES,
        **common,
        **_decoder_work(cfg, batch, 1, length),
    )
    if not row["ttft_p50_ms"]:
        return [token]
    prompt = int(row["in_len"])
    first = Measured(
        what="ttft",
        seconds=float(row["ttft_p50_ms"]) / 1e3,
        # The host's part (embedding, scheduling in Python) is in the published figure and unknown.
        is_fitted=False,
        build=functools.partial(prefill_program, cfg.name, batch, prompt, length, tp, instance),
        bytes_in=batch * prompt * _TOKEN_BYTES,
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


_READERS: Mapping[str, Callable[[Mapping[str, str]], list[Measured]]] = {
    "Llama-2-13b": _decoder,
    "opt-13b": _decoder,
    "bert-base-uncased": _encoder,
    "resnet50": _image,
}


@functools.cache
def encoder_program(name: str, batch: int, length: int, instance: str) -> Program:
    """BERT in f32 whose products run in bf16, its matrices cast when it was compiled."""
    cfg = bert.config(name)
    params = bert.parameter_shapes(cfg, jnp.float32, jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    function = neuronx.compile(functools.partial(bert.encode, cfg), instance=instance, auto_cast="matmult")
    return function.lower(params, tokens, tokens, tokens).compile().program


@functools.cache
def image_program(name: str, batch: int, instance: str) -> Program:
    """ResNet in f32 whose convolutions run in bf16, its kernels cast when it was compiled."""
    cfg = resnet.config(name)
    params = resnet.parameter_shapes(cfg, jnp.float32, jnp.bfloat16)
    images = jax.ShapeDtypeStruct((batch, *_IMAGE), jnp.float32)
    function = neuronx.compile(
        functools.partial(resnet.classify, cfg), instance=instance, auto_cast="matmult"
    )
    return function.lower(params, images).compile().program


def _family(name: str) -> Any:
    return opt if name.startswith("opt") else llama


def _padded(code: Any, name: str, tp: int) -> Any:
    """The size with all that is cut padded to divide over the cores, as transformers-neuronx pads."""
    cfg = code.config(name)
    cfg = replace(cfg, vocab=cfg.vocab + -cfg.vocab % tp, ffn=cfg.ffn + -cfg.ffn % tp)
    extra = -cfg.heads % tp
    return replace(cfg, extra_heads=extra) if extra else cfg


@functools.cache
def decode_program(name: str, batch: int, length: int, tp: int, instance: str) -> Program:
    """One token a sequence in f16, with a cache of ``length`` positions."""
    code = _family(name)
    cfg = _padded(code, name, tp)
    params = code.parameter_shapes(cfg, _TYPE)
    specs = tensor_parallel(params)
    cache = code.cache_shapes(cfg, batch, length, _TYPE)
    token, position = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    shards = (specs, PartitionSpec(None, "tp"), PartitionSpec(), PartitionSpec())
    function = neuronx.compile(
        functools.partial(code.decode, cfg),
        donate_argnums=1,
        tp_degree=tp,
        instance=instance,
        in_shardings=shards,
    )
    return function.lower(params, cache, token, position).compile().program


@functools.cache
def prefill_program(name: str, batch: int, prompt: int, length: int, tp: int, instance: str) -> Program:
    """The prompt in f16, into a cache of ``length`` positions."""
    code = _family(name)
    cfg = _padded(code, name, tp)
    params = code.parameter_shapes(cfg, _TYPE)
    specs = tensor_parallel(params)
    tokens = jax.ShapeDtypeStruct((batch, prompt), jnp.int32)
    function = neuronx.compile(
        functools.partial(code.prefill, cfg, length),
        tp_degree=tp,
        instance=instance,
        in_shardings=(specs, PartitionSpec()),
        out_shardings=(PartitionSpec(), PartitionSpec(), PartitionSpec(None, "tp")),
    )
    return function.lower(params, tokens).compile().program
