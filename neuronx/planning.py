"""Deployments of a model compared: instance, cores, batch and type, with times, memory and price."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed.analysis import mbu, mfu
from distributed.host_link import request_s
from kernels.comparators import COMPARATORS, Comparator, load_comparator
from kernels.eras import DEFAULT_ERA, links_of
from kernels.errors import CompileError, OutOfDeviceMemoryError
from kernels.hardware import load_core, load_instance, load_links
from neuronx.comparing import Work, function_work, model_work
from neuronx.models.catalog import Workload, function_workload, weight_bytes, workload
from neuronx.models.generation import DTYPES
from neuronx.models.names import DECODERS, MODELS, resolve
from neuronx.models.quantised import WEIGHTS
from neuronx.named import argument_type, find_function, traced
from neuronx.progress import Progress

__all__ = ["AS_WRITTEN", "PRECISIONS", "Deployment", "Request", "best", "deployments"]

_SECONDS_PER_HOUR = 3600
_ELEMENTS = DTYPES | WEIGHTS
AS_WRITTEN = "as written"
"""The type of a user's function: its own."""
PRECISIONS = (*DTYPES, *WEIGHTS)
"""Types of a model of the catalog: of all of it, or of a decoder's matrices, all else being bf16."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of a model: ``prompt_len`` tokens to read, ``new_tokens`` to write a sequence.

    ``model`` is a name of the catalog, or ``module:function`` of the user's with the types of its
    ``arguments``, as in ``f32[batch,128]``; the lengths mean nothing then, and its own types are used.
    A decoder's prompt is padded as ``neuronx.models.catalog.prompt_bucket`` says.
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
      is_roofline: a machine of ``kernels.comparators``: one copy on all its devices (``tp``) at its
        roofline, nothing taken off for software, launches or links between devices; in its memory lie
        the arguments alone, and a function of the user's runs at the peak of half types.
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
    is_roofline: bool = False

    @property
    def latency_s(self) -> float:
        """For a token, or for the result of a model that writes none; of a deployment that fits."""
        return self.ttft_s if self.tpot_s is None else self.tpot_s


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

    Machines to compare with may stand among the ``instances``; they have no degrees. ``options`` are others
    of ``neuronx.compile``: an era, an auto_cast.

    Raises:
      CompileError: an unknown model, instance or era, more positions than the model has, a number below one,
        arguments for a model of the catalog, 8 bits for what has none.
    """
    asked = {"prompt length": [request.prompt_len], "new tokens": [request.new_tokens], "batch": batches}
    for what, numbers in (asked | {"tp": degrees or [1]}).items():
        if min(numbers) < 1:
            raise CompileError(f"{what} is {min(numbers)}", op="plan", fix="give at least 1")
    if not request.is_function:
        _check_known(request, instances, dtypes)
    types = (AS_WRITTEN,) if request.is_function else dtypes
    rows = [
        (instance, *rest)
        for instance in instances
        for rest in itertools.product(_degrees(instance, degrees), batches, types)
    ]
    steps = [f"{instance} tp {tp} batch {batch} {dtype}" for instance, tp, batch, dtype in rows]
    with Progress("planning", steps) as shown:
        for instance, tp, batch, dtype in rows:
            if instance in COMPARATORS:
                yield _compared(request, load_comparator(instance), batch, dtype)
            else:
                yield _deployment(request, instance, tp, batch, dtype, options)
            shown.advance()


def _check_known(request: Request, instances: Sequence[str], dtypes: Sequence[str]) -> None:
    if request.arguments:
        raise CompileError(
            f"{request.model} is known by name, with arguments of its own",
            op="plan",
            fix="leave --arguments out, or give module:function",
        )
    compared = [name for name in instances if name in COMPARATORS]
    has_none = compared[0] if compared else request.model
    if WEIGHTS.keys() & set(dtypes) and (compared or MODELS[resolve(request.model)] not in DECODERS):
        raise CompileError(
            f"matrices in 8 bits are not known of {has_none}",
            op="plan",
            fix=f"plan it in {', '.join(DTYPES)}; 8 bits are for models that write tokens, on Neuron devices",
        )


def _degrees(instance: str, degrees: Sequence[int] | None) -> list[int]:
    if instance in COMPARATORS:
        return [load_comparator(instance).devices]
    spec = load_instance(instance)
    return [tp for tp in degrees or load_links(spec.family).documented_degrees if tp <= spec.cores]


def _deployment(
    request: Request, instance: str, tp: int, batch: int, dtype: str, options: Mapping[str, Any]
) -> Deployment:
    spec = load_instance(instance)
    common: dict[str, Any] = {"instance": instance, "tp": tp, "batch": batch, "dtype": dtype}
    common["replicas"] = spec.cores // tp
    # A lower bound that needs no compilation.
    capacity = load_core(spec.family).hbm.capacity_bytes
    if not request.is_function and weight_bytes(request.model, _ELEMENTS[dtype]) > tp * capacity:
        return Deployment(**common, fits=False)
    try:
        found = _workload(request, batch, dtype, tp_degree=tp, instance=instance, **options)
    except OutOfDeviceMemoryError:
        return Deployment(**common, fits=False)
    era = options.get("era", DEFAULT_ERA)
    return Deployment(**common, fits=True, **_figures(found, instance, batch, common["replicas"], era))


def _compared(request: Request, machine: Comparator, batch: int, dtype: str) -> Deployment:
    works, tokens = _works(request, batch, dtype)
    common: dict[str, Any] = {"instance": machine.name, "tp": machine.devices, "batch": batch, "dtype": dtype}
    common |= {"replicas": 1, "is_roofline": True}
    held = max(work.held_bytes for work in works)
    if not machine.fits(held):
        return Deployment(**common, fits=False)
    times = [machine.roofline_s(work.flops, work.read_bytes, dtype) for work in works]
    step_s = times[0] if len(times) > 1 else None
    device_s = times[0] * machine.devices
    return Deployment(
        **common,
        fits=True,
        **_rates(times[-1], step_s, tokens, batch, machine.price_usd_per_hour),
        hbm_bytes=round(held / machine.devices),
        hbm_capacity_bytes=machine.memory_bytes,
        mfu=works[0].flops / machine.peak_flop_per_s(dtype) / device_s,
        mbu=works[0].read_bytes / machine.bandwidth_bytes_per_s / device_s,
    )


def _works(request: Request, batch: int, dtype: str) -> tuple[tuple[Work, ...], int]:
    """What the request's programs ask of any machine, of a decoder the step first; tokens it is paid for."""
    if request.is_function:
        arguments = [argument_type(text, batch=batch) for text in request.arguments]
        function = find_function(request.model)
        with traced(request.model, request.arguments):
            return (function_work(function, arguments),), 1
    works = model_work(
        request.model,
        batch=batch,
        dtype=DTYPES[dtype],
        prompt_len=request.prompt_len,
        new_tokens=request.new_tokens,
    )
    return works, request.new_tokens if len(works) > 1 else 1


def _rates(
    first_s: float, step_s: float | None, tokens: int, sequences: int, price_usd_per_hour: float
) -> dict[str, Any]:
    """Latencies, and what they make of ``sequences`` at once, each of so many tokens."""
    per_s = sequences * tokens / (first_s + (tokens - 1) * (step_s or 0.0))
    usd = price_usd_per_hour / _SECONDS_PER_HOUR / per_s * 1e6
    return {"ttft_s": first_s, "tpot_s": step_s, "per_s": per_s, "usd_per_million": usd}


def _workload(request: Request, batch: int, dtype: str, **options: Any) -> Workload:
    if request.is_function:
        function = find_function(request.model)
        with traced(request.model, request.arguments):
            return function_workload(function, request.arguments, batch, **options)
    if dtype in WEIGHTS:
        options |= {"weights": dtype}
    return workload(
        request.model,
        batch=batch,
        dtype=DTYPES.get(dtype, DTYPES["bf16"]),
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
    if found.step is not None:
        step_s = request_s(
            timelines[0].total_s, links, bytes_in=found.step_bytes_in, bytes_out=found.bytes_out
        )
    return {
        **_rates(first_s, step_s, found.tokens, replicas * batch, spec.price_usd_per_hour),
        "hbm_bytes": memory.peak_hbm_bytes,
        "hbm_capacity_bytes": memory.hbm_capacity_bytes,
        "mfu": mfu(timelines[0]),
        "mbu": mbu(timelines[0]),
    }


def best(rows: Sequence[Deployment], *, latency_limit_s: float | None = None) -> dict[str, Deployment]:
    """The cheapest, the fastest and the smallest of those that fit; with a limit, of those whose tokens come
    that soon. The smallest is on the cheapest instance, then on the fewest cores, with the least batch.
    Rooflines are not chosen."""
    able = [row for row in rows if row.fits and not row.is_roofline]
    able = [row for row in able if latency_limit_s is None or row.latency_s <= latency_limit_s]
    if not able:
        return {}
    return {
        "cheapest": min(able, key=lambda row: (row.usd_per_million, row.latency_s)),
        "fastest": min(able, key=lambda row: (row.latency_s, row.usd_per_million)),
        "smallest": min(able, key=_size),
    }


def _size(row: Deployment) -> tuple[float, int, int]:
    return load_instance(row.instance).price_usd_per_hour, row.tp, row.batch
