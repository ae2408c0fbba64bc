"""Deployments of a model compared: instance, cores, batch and type, with times, memory and price."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed.analysis import mbu, mfu
from distributed.host_link import request_s
from kernels.eras import DEFAULT_ERA, links_of
from kernels.errors import OutOfDeviceMemoryError
from kernels.hardware import load_core, load_instance, load_links
from neuronx.models.catalog import Workload, function_workload, weight_bytes, workload
from neuronx.models.generation import DTYPES
from neuronx.named import find_function

__all__ = ["AS_WRITTEN", "Deployment", "Request", "best", "deployments"]

_SECONDS_PER_HOUR = 3600
AS_WRITTEN = "as written"
"""The type of a user's function: its own."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a model: ``prompt_len`` tokens to read, ``new_tokens`` to write a sequence.

    ``model`` is a name of the catalog, or ``module:function`` of the user's with the types of its
    ``arguments``, as in ``f32[batch,128]``; the lengths mean nothing then, and its own types are used.
    """

    model: str
    prompt_len: int
    new_tokens: int
    arguments: tuple[str, ...] = ()

    @property
    def is_function(self) -> bool:
        return ":" in self.model


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """One way to serve a model, predicted; all but the first five are None where it does not fit.

    Attributes:
      replicas: copies that the instance's cores hold side by side, each on ``tp`` cores.
      ttft_s: seconds to the first token (of a model that writes none: to the result), the launch and what
        passes between host and device included.
      tpot_s: seconds for each further token, likewise; None for a model that writes none.
      per_s: tokens (results) a second of the whole instance, all replicas busy.
      hbm_bytes: at the peak, on each core; ``hbm_capacity_bytes`` is what there is.
      mfu, mbu: of decoding, or of the only program.
      usd_per_million: dollars for a million tokens (results) on demand.
    """

    instance: str
    tp: int
    batch: int
    dtype: str
    replicas: int
    fits: bool
    ttft_s: float | None = None
    tpot_s: float | None = None
    per_s: float | None = None
    hbm_bytes: int | None = None
    hbm_capacity_bytes: int | None = None
    mfu: float | None = None
    mbu: float | None = None
    usd_per_million: float | None = None


def deployments(
    request: Request,
    *,
    instances: Sequence[str],
    degrees: Sequence[int] | None = None,
    batches: Sequence[int],
    dtypes: Sequence[str],
    **options: Any,
) -> Iterator[Deployment]:
    """Every combination, in order; ``degrees`` left out are the documented ones the instance has cores for.

    ``options`` are others of ``neuronx.compile``: an era, an auto_cast.

    Raises:
      CompileError: an unknown model, instance or era, or more positions than the model has.
    """
    for instance in instances:
        spec = load_instance(instance)
        documented = load_links(spec.family).documented_degrees
        tried = [tp for tp in degrees or documented if tp <= spec.cores]
        for tp in tried:
            for batch in batches:
                for dtype in (AS_WRITTEN,) if request.is_function else dtypes:
                    yield _deployment(request, instance, tp, batch, dtype, options)


def _deployment(
    request: Request, instance: str, tp: int, batch: int, dtype: str, options: Mapping[str, Any]
) -> Deployment:
    spec = load_instance(instance)
    common: dict[str, Any] = {"instance": instance, "tp": tp, "batch": batch, "dtype": dtype}
    common["replicas"] = spec.cores // tp
    # A lower bound that needs no compilation.
    capacity = load_core(spec.family).hbm.capacity_bytes
    if not request.is_function and weight_bytes(request.model, DTYPES[dtype]) > tp * capacity:
        return Deployment(**common, fits=False)
    try:
        found = _workload(request, batch, dtype, tp_degree=tp, instance=instance, **options)
    except OutOfDeviceMemoryError:
        return Deployment(**common, fits=False)
    era = options.get("era", DEFAULT_ERA)
    return Deployment(**common, fits=True, **_figures(found, instance, batch, common["replicas"], era))


def _workload(request: Request, batch: int, dtype: str, **options: Any) -> Workload:
    if request.is_function:
        return function_workload(find_function(request.model), request.arguments, batch, **options)
    return workload(
        request.model,
        batch=batch,
        dtype=DTYPES[dtype],
        prompt_len=request.prompt_len,
        new_tokens=request.new_tokens,
        **options,
    )


def _figures(found: Workload, instance: str, batch: int, replicas: int, era: str) -> dict[str, Any]:
    spec = load_instance(instance)
    links = links_of(era, spec.family)
    programs = [found.first] if found.step is None else [found.step, found.first]
    timelines = [program.profile().timeline for program in programs]
    memory = max((program.memory_analysis() for program in programs), key=lambda used: used.peak_hbm_bytes)
    first_s = request_s(timelines[-1].total_s, links, bytes_in=found.bytes_in, bytes_out=found.bytes_out)
    step_s = None
    whole_s = first_s
    if found.step is not None:
        step_s = request_s(
            timelines[0].total_s, links, bytes_in=found.step_bytes_in, bytes_out=found.bytes_out
        )
        whole_s += (found.tokens - 1) * step_s
    per_s = replicas * batch * found.tokens / whole_s
    return {
        "ttft_s": first_s,
        "tpot_s": step_s,
        "per_s": per_s,
        "hbm_bytes": memory.peak_hbm_bytes,
        "hbm_capacity_bytes": memory.hbm_capacity_bytes,
        "mfu": mfu(timelines[0]),
        "mbu": mbu(timelines[0]),
        "usd_per_million": spec.price_usd_per_hour / _SECONDS_PER_HOUR / per_s * 1e6,
    }


def best(rows: Sequence[Deployment], *, latency_limit_s: float | None = None) -> dict[str, Deployment]:
    """The cheapest, the fastest and the smallest of those that fit; with a limit, of those whose tokens come
    that soon. The smallest is on the cheapest instance, then on the fewest cores, with the least batch."""
    able = [
        row for row in rows if row.fits and (latency_limit_s is None or _latency_s(row) <= latency_limit_s)
    ]
    if not able:
        return {}
    return {
        "cheapest": min(able, key=lambda row: (row.usd_per_million, _latency_s(row))),
        "fastest": min(able, key=lambda row: (_latency_s(row), row.usd_per_million)),
        "smallest": min(able, key=_size),
    }


def _size(row: Deployment) -> tuple[float, int, int]:
    return load_instance(row.instance).price_usd_per_hour, row.tp, row.batch


def _latency_s(row: Deployment) -> float:
    return row.ttft_s if row.tpot_s is None else row.tpot_s
