"""What one published row says, with the columns of data/published_calibration.csv, checked and with units."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp

from kernels.errors import CompileError
from kernels.hardware import load_instance
from neuronx.models import pixart, text_perceiver, unet, whisper
from neuronx.models.names import DECODERS, MODELS, resolve

__all__ = ["Published", "read"]

_NOTHING = frozenset({"", "-", "n/a", "na", "nan", "none", "null"})
_DTYPES = {"fp32": jnp.float32, "fp16": jnp.float16, "bf16": jnp.bfloat16}
_CASTS = re.compile(r"(matmult|all|none)(?:[-_ ]?(bf16|fp16|tf32|fp8_e4m3))?")
_WEIGHTS = {"int8": "int8", "s8": "int8", "fp8": "fp8_e4m3", "f8e4m3": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3"}

_PIXART_ALPHA = tuple(f"pixart-xl-2-{size}-transformer" for size in ("1024-ms", "512x512", "256x256"))
_PIXART_SIGMA = tuple(f"pixart-sigma-xl-2-{size}-transformer" for size in ("1024-ms", "512-ms", "256x256"))
# Pipelines that make images, without dashes and dots, and what takes their noise away: the first where a row
# states no size of the image, else that of the size.
_IMAGE_MAKERS: Mapping[str, tuple[str, ...]] = {
    "stablediffusion14": ("stable-diffusion-v1-5-unet",),
    "stablediffusionv14": ("stable-diffusion-v1-5-unet",),
    "stablediffusion15": ("stable-diffusion-v1-5-unet",),
    "stablediffusionv15": ("stable-diffusion-v1-5-unet",),
    "stablediffusion21": ("stable-diffusion-2-1-unet", "stable-diffusion-2-1-base-unet"),
    "stablediffusion21base": ("stable-diffusion-2-1-base-unet",),
    "stablediffusion2inpainting": ("stable-diffusion-2-inpainting-unet",),
    "stablediffusioninpainting": ("stable-diffusion-inpainting-unet",),
    "sdturbo": ("sd-turbo-unet",),
    "sdxlturbo": ("sdxl-turbo-unet",),
    "stablediffusionxl": ("stable-diffusion-xl-base-1.0-unet",),
    "stablediffusionxlbase": ("stable-diffusion-xl-base-1.0-unet",),
    "stablediffusionxlbase10": ("stable-diffusion-xl-base-1.0-unet",),
    "sdxl": ("stable-diffusion-xl-base-1.0-unet",),
    "pixart": _PIXART_ALPHA,
    "pixartalpha": _PIXART_ALPHA,
    "pixartxl2": _PIXART_ALPHA,
    "pixartsigma": _PIXART_SIGMA,
    "pixartsigmaxl2": _PIXART_SIGMA,
}
_SIZED = re.compile(r"(.*?)(?:(\d{3,4})(?:x\2|ms|px)?)?")
# How often that runs where a row does not say: the default of diffusers' pipeline, or the model card's.
_STEPS: Mapping[ModuleType, int] = {unet: 50, pixart: 20}
_FEW_STEPS: Mapping[str, int] = {"sd-turbo-unet": 1, "sdxl-turbo-unet": 1}
# Where a row does not say: models that are run at the one length that they have, and the tokens that a text
# starts with (start, language, task and that there are no times).
_ONE_LENGTH = frozenset({text_perceiver, whisper})
_STARTS: Mapping[ModuleType, int] = {whisper: 4}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row; None where it does not say.

    Attributes:
      published, name: the model as the row and as the catalog name it; of a pipeline that makes images its
        U-Net.
      steps: how often that runs for an image, then ``decoder`` once; None for other models.
      tp: cores that share the model, of a decoder all of the instance's where the row does not say.
      seq_len: positions of a decoder's cache, tokens of an encoder's sequence.
      options: what it was compiled with, as ``neuronx.compile`` takes it.
      weights: the 8-bit type that matrices are stored in.
      per_s: results a second: tokens of a decoder, else inferences.
      in_flight: batches that were on their way at once.
    """

    published: str
    name: str
    steps: int | None
    instance: str
    tp: int
    batch: int
    seq_len: int | None
    in_len: int | None
    out_len: int | None
    dtype: Any
    options: Mapping[str, str]
    weights: str | None
    per_s: float | None
    p50_s: float | None
    p99_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    in_flight: int | None
    sdk: str

    @property
    def decoder(self) -> str:
        return self.name.rpartition("-")[0] + "-vae"

    @property
    def is_decoder(self) -> bool:
        return MODELS[self.name] in DECODERS


def read(record: Mapping[str | None, Any]) -> Published:
    """Reads one record of a CSV file; columns may be missing.

    Raises:
      CompileError: a model or instance that is not known, more cores than there are, or a field that cannot
        be read.
    """
    row = {str(key).strip().lower(): str(value or "").strip() for key, value in record.items()}
    images, instance = _images(row), row.get("instance", "").lower()
    name = images or resolve(row.get("model", ""))
    is_decoder, cores = MODELS[name] in DECODERS, load_instance(instance).cores
    tp = _count(row, "tp") or (cores if is_decoder else 1)
    if tp > cores:
        raise CompileError(f"tp is {tp}, and {instance} has {cores} cores", op="row", fix="give what it has")
    module = MODELS[name]
    out_len, one_length = _count(row, "out_len"), None
    if module in _ONE_LENGTH and not out_len:
        one_length = module.config(name).positions
    batch, per_s, p50_s = _count(row, "batch") or 1, _number(row, "throughput"), _seconds(row, "p50_ms")
    if per_s and "/min" in row.get("thr_unit", "").lower():
        per_s /= 60
    in_flight = _number(row, "little_concurrency")
    if in_flight is None and per_s and p50_s:
        in_flight = per_s * p50_s / batch
    return Published(
        published=row["model"],
        name=name,
        steps=(_count(row, "steps") or _FEW_STEPS.get(name, _STEPS[MODELS[name]])) if images else None,
        instance=instance,
        tp=tp,
        batch=batch,
        seq_len=_count(row, "seq_len") or one_length,
        in_len=_count(row, "in_len") or _STARTS.get(module),
        out_len=out_len,
        dtype=_DTYPES[_one_of(row, "model_dtype", _DTYPES, "fp16" if is_decoder else "fp32")],
        options=_casts(row, is_decoder),
        weights=_weights(row),
        per_s=per_s,
        p50_s=p50_s,
        p99_s=_seconds(row, "p99_ms"),
        ttft_s=_seconds(row, "ttft_p50_ms"),
        tpot_s=_seconds(row, "tpot_p50_ms"),
        in_flight=None if in_flight is None else max(1, round(in_flight)),
        sdk=row.get("neuron_version", ""),
    )


def _images(row: Mapping[str, str]) -> str | None:
    """What takes the noise away in the pipeline that the row's model is, if it is one."""
    model = row.get("model", "").lower().rpartition("/")[2]
    stem, side = _SIZED.fullmatch(re.sub(r"[-_ .()]+", "", model)).groups()
    known = _IMAGE_MAKERS.get(stem, ())
    return next((name for name in known if side in (None, str(MODELS[name].config(name).image))), None)


def _number(row: Mapping[str, str], column: str) -> float | None:
    text = row.get(column, "").lower().replace(",", "")
    if text in _NOTHING:
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise CompileError(
            f"{column} is {row[column]!r}", op="row", fix="give a number above zero, or nothing"
        )
    return number


def _count(row: Mapping[str, str], column: str) -> int | None:
    number = _number(row, column)
    if number is not None and number != int(number):
        raise CompileError(f"{column} is {row[column]!r}", op="row", fix="give a whole number, or nothing")
    return None if number is None else int(number)


def _seconds(row: Mapping[str, str], column: str) -> float | None:
    milliseconds = _number(row, column)
    return None if milliseconds is None else milliseconds / 1e3


def _one_of(row: Mapping[str, str], column: str, known: Mapping[str, Any], default: str) -> str:
    text = row.get(column, "").lower()
    if text in _NOTHING:
        return default
    if text not in known:
        raise CompileError(f"{column} is {row[column]!r}", op="row", fix=f"use one of {', '.join(known)}")
    return text


def _weights(row: Mapping[str, str]) -> str | None:
    """The 8-bit type of ``weight_dtype``; None where weights have the model's own, or a wider one."""
    return _WEIGHTS.get(_one_of(row, "weight_dtype", _WEIGHTS | _DTYPES, "fp32"))


def _casts(row: Mapping[str, str], is_decoder: bool) -> dict[str, str]:
    """As transformers-neuronx compiles decoders, and neuronx-cc until 2.26 the others, unless a row says.

    Decoders of 16 bits have nothing to cast.
    """
    text = row.get("autocast", "").lower()
    if is_decoder and row.get("model_dtype", "").lower() != "fp32":
        return {}
    default = "none" if is_decoder else "matmult"
    found = _CASTS.fullmatch(default if text in _NOTHING - {"none"} else text)
    if found is None:
        raise CompileError(
            f"autocast is {row['autocast']!r}", op="row", fix="write it as Matmult-BF16 or None"
        )
    mode, kind = found.groups()
    return {"auto_cast": mode, "auto_cast_type": kind or "bf16"}
