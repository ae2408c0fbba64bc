"""Runs segments on XLA:CPU: the one home of XLA's client, its compiler and its buffers."""

import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import jax
import numpy as np
from jax._src import core
from jax._src.interpreters import pxla
from jax.dlpack import is_supported_dtype
from jax.sharding import SingleDeviceSharding
from jaxlib import _jax, lapack, xla_client

from distributed.joint import Joint
from kernels.errors import CompileError
from kernels.host.handlers import handler

__all__ = ["OPTIONS", "Direct", "Executable", "Executor", "HostText", "Kept"]

OPTIONS = (
    # Round where the device rounds: XLA:CPU would otherwise keep bf16 chains in f32 between ops.
    ("xla_allow_excess_precision", "False"),
    # LLVM -O1: about a fifth less to compile than the default, same bits and speed on the segments of OPT.
    # (-O0 changes bits; turning the fusion emitters off compiles faster still, but runs up to twice as long.)
    ("xla_backend_optimization_level", "1"),
)


_BFLOAT16 = np.dtype(jax.numpy.bfloat16)

# XLA lets go of the interpreter while it compiles or computes, and a segment seldom keeps all cores busy.
_THREADS = os.cpu_count() or 1

# What compiles faster is not worth a file.
_KEPT_FROM_S = 0.05


class Executable:
    """One compiled segment."""

    def __init__(self, executable: _jax.LoadedExecutable) -> None:
        self.loaded = executable
        self._handlers: list[Any] | None = None

    def __call__(self, arguments: Sequence[jax.Array]) -> list[jax.Array]:
        """Runs it to its end. An argument marked ``tf.aliasing_output`` in the text is consumed."""
        outputs = self.loaded.execute_sharded(list(arguments))
        if self._handlers is not None:
            return outputs.consume_with_handlers(self._handlers)
        arrays = [shards[0] for shards in outputs.disassemble_into_single_device_arrays()]
        # What XLA is told of the results' types makes the next call half as long.
        self._handlers = [
            _jax.array_result_handler(core.ShapedArray(x.shape, x.dtype), x.sharding, True, True)
            for x in arrays
        ]
        return arrays


class _Words:
    """A buffer of 16-bit elements, as NumPy may look at it."""

    def __init__(self, array: jax.Array) -> None:
        self._array = array
        self.__array_interface__ = {
            "data": (array.unsafe_buffer_pointer(), True),
            "shape": array.shape,
            "typestr": "<u2",
            "version": 3,
        }


class HostText(Protocol):
    """A segment's text for this host: it calls the kernels named in ``targets``."""

    text: str
    targets: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Direct:
    """A text that XLA takes as it is, and the kernels that it calls."""

    text: str
    targets: frozenset[str] = frozenset()


class Kept(Protocol):
    """Executables that outlive the process, by the text that XLA compiled."""

    def read(self, text: str) -> bytes | None: ...

    def write(self, text: str, executable: bytes) -> None: ...


class Executor:
    """Compiles each segment text once and moves arrays between NumPy and XLA:CPU.

    All state is in the object: two executors share nothing, and dropping one frees its executables. (XLA
    knows a kernel by name in the whole process, so that its registration alone outlives the object.)

    Args:
      lower: puts kernels of the host into a text before XLA compiles it, and makes it that of all cores if
        it is told how; without it XLA computes all.
      kept: where executables are looked up that other processes compiled, and left for them.
    """

    def __init__(
        self, lower: Callable[[str, Joint | None], HostText] | None = None, *, kept: Kept | None = None
    ) -> None:
        self._lower, self._kept = lower, kept
        self._device = _device()
        self._sharding = SingleDeviceSharding(self._device)
        # Each takes memory mappings, of which a process has 65,530: it goes with the last program to run it.
        self._executables: WeakValueDictionary[tuple[str, Joint | None], Executable] = WeakValueDictionary()
        self._elsewhere: WeakValueDictionary[tuple[str, _jax.Device], Executable] = WeakValueDictionary()
        self._calls: dict[str, Executable] = {}
        self._helpers = ThreadPoolExecutor(max(1, _THREADS - 1))
        lapack._lapack.initialize()  # JAX does so when it lowers linear algebra; without it XLA calls null

    def calls_kernels(self, text: str) -> bool:
        """Whether kernels of the host do a part of this text, and so can do it for all cores in one call."""
        return self._lower is not None and bool(self._lower(text, None).targets)

    def load(self, text: str, joint: Joint | None = None) -> Executable:
        """The executable of a StableHLO module's ``@main``, compiled where nobody holds that of this text.

        Composites run through their decomposition, parts of which kernels of the host may do. With ``joint``
        it is that of all cores, for a text that ``calls_kernels``.

        Raises CompileError where XLA:CPU refuses the text.
        """
        found = self._executables.get((text, joint))
        if found is None:
            host = Direct(text=text) if self._lower is None else self._lower(text, joint)
            found = self._executables[text, joint] = Executable(self._compile(host, self._device))
        return found

    def load_host(self, host: HostText) -> Executable:
        """The executable of a text for this host, which is compiled on the first call with it."""
        found = self._calls.get(host.text)
        if found is None:
            found = self._calls[host.text] = Executable(self._compile(host, self._device))
        return found

    def load_on(self, text: str, device: _jax.Device) -> Executable:
        """The executable of a StableHLO module's ``@main`` on a device of JAX's own.

        Raises CompileError where XLA:CPU refuses the text.
        """
        found = self._elsewhere.get((text, device))
        if found is None:
            host = Direct(text=text) if self._lower is None else self._lower(text, None)
            found = self._elsewhere[text, device] = Executable(self._compile(host, device))
        return found

    def load_all(self, wanted: Iterable[tuple[str, Joint | None]]) -> list[Executable]:
        """The executables of several modules; as many are compiled at once as the host has cores."""
        wanted = list(wanted)
        each = dict.fromkeys(wanted)
        with ThreadPoolExecutor(_THREADS) as pool:
            loaded = dict(zip(each, pool.map(lambda one: self.load(*one), each), strict=True))
        return [loaded[one] for one in wanted]

    def run_side_by_side(
        self, executable: Executable, rows: Sequence[Sequence[jax.Array]]
    ) -> list[list[jax.Array]]:
        """Calls it with each row of arguments, several at a time: whichever thread is free takes the next.

        Worth its while where a call computes for longer than a thread takes to wake up, some 50 us.
        """
        waiting = list(enumerate(rows))
        results: list[list[jax.Array]] = [[] for _ in waiting]

        def work() -> None:
            while True:
                try:
                    number, arguments = waiting.pop()
                except IndexError:
                    return
                results[number] = executable(arguments)

        helpers = [self._helpers.submit(work) for _ in range(min(_THREADS, len(waiting)) - 1)]
        try:
            work()
        finally:
            for helper in helpers:
                helper.result()
        return results

    @property
    def num_compiled(self) -> int:
        return len(self._executables)

    def to_device(self, array: np.ndarray) -> jax.Array:
        """The array as a device buffer. Memory on a 64-byte boundary is shared: it must not change after."""
        aval = _aval(array.shape, array.dtype)
        # jax.device_put would narrow 64-bit types to 32 and takes six times as long.
        return _jax.batched_device_put(aval, self._sharding, [array], [self._device], True, enable_x64=True)

    def to_host(self, array: jax.Array) -> np.ndarray:
        """A read-only NumPy view of the buffer; waits until it is computed."""
        if array.dtype != _BFLOAT16:
            return np.asarray(array)
        # NumPy has no code for the type, and JAX's own way around that takes four times as long.
        array.block_until_ready()
        return np.asarray(_Words(array)).view(_BFLOAT16)

    def contents(self, array: jax.Array) -> np.ndarray:
        """The same for an array of the user's: the view holds the memory, but not the ``jax.Array``.

        So whoever waits for the array's end sees it come.
        """
        return array._value

    def hand_out(self, array: jax.Array, *, weak_type: bool) -> jax.Array:
        """The buffer as a result of ``jax.jit``: on JAX's own default device, not committed to it.

        Memory is shared where that is the host, and freed with the result: it must not change after.
        """
        device = pxla.get_default_device()
        aval, sharding, finish = _result(array.shape, array.dtype, weak_type, device)
        if finish is None:
            host = self.to_host(array)
            return _jax.batched_device_put(aval, sharding, [host], [device], False, enable_x64=True)
        capsule = _jax.buffer_to_dlpack_managed_tensor(array, stream=None)
        return finish(_jax.dlpack_managed_tensor_to_buffer(capsule, device, None))

    def copy(self, array: jax.Array) -> jax.Array:
        """The same value in memory of its own."""
        aval = _aval(array.shape, array.dtype)
        host = np.asarray(array)
        return _jax.batched_device_put(
            aval, self._sharding, [host], [self._device], True, force_copy=True, enable_x64=True
        )

    def _compile(self, host: HostText, device: _jax.Device) -> _jax.LoadedExecutable:
        for target in sorted(host.targets):
            _register(target)
        text = host.text
        options = xla_client.CompileOptions()
        options.env_option_overrides = list(OPTIONS)
        options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id]], np.int32))
        client, devices = device.client, xla_client.DeviceList((device,))
        found = self._kept and self._kept.read(text)
        if found:
            try:
                return client.deserialize_executable(found, devices, options)
            except jax.errors.JaxRuntimeError as error:
                warnings.warn(f"XLA refuses a kept executable and compiles again: {error}", stacklevel=2)
        start = time.perf_counter()
        try:
            executable = client.compile_and_load(text, devices, options)
        except jax.errors.JaxRuntimeError as error:
            first_line = str(error).splitlines()[0]
            raise CompileError(
                f"the host compiler refuses a segment: {first_line}",
                op="segment",
                fix="write it in JAX's own ops, or register code for it with jax.ffi.register_ffi_target",
            ) from error
        if self._kept and time.perf_counter() - start >= _KEPT_FROM_S:
            self._kept.write(text, executable.serialize())
        return executable


@functools.cache
def _device() -> _jax.Device:
    """The host, in a client of its own that computes in the thread that calls.

    JAX's client hands each launch to another thread, which costs more than most launches take. One for the
    whole process, because values pass from one executor to another.
    """
    [device] = xla_client.make_cpu_client(asynchronous=False, num_devices=1).local_devices()
    return device


# Made for every collective of a step otherwise.
_aval = functools.lru_cache(maxsize=1024)(core.ShapedArray)


@functools.lru_cache(maxsize=1024)
def _result(
    shape: tuple[int, ...], dtype: np.dtype, weak_type: bool, device: _jax.Device
) -> tuple[core.ShapedArray, SingleDeviceSharding, Callable[[jax.Array], jax.Array] | None]:
    """What a result on ``device`` is, and what makes one of a buffer there, if ours can be that buffer."""
    aval, sharding = core.ShapedArray(shape, dtype, weak_type), SingleDeviceSharding(device)
    is_shared = device.platform == "cpu" and is_supported_dtype(dtype)
    return aval, sharding, _jax.array_result_handler(aval, sharding, False, True) if is_shared else None


_REGISTERING = threading.Lock()


def _register(target: str) -> None:
    # Segments compile side by side, and XLA takes a name once.
    with _REGISTERING:
        _register_once(target)


@functools.cache
def _register_once(target: str) -> None:
    xla_client.register_custom_call_target(target, handler(target), platform="cpu", api_version=1)
