"""Oracles that are not ours: XLA:CPU for one device or N ranks, and the StableHLO interpreter."""

import atexit
import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax._src.interpreters import mlir as jax_mlir
from jaxlib import lapack, xla_client

from hlo_passes.ir import context, ir, parse, stablehlo, walk
from neuronx import inputs

__all__ = [
    "OracleRefusal",
    "random_inputs",
    "run_local_on_xla",
    "run_on_interpreter",
    "run_on_xla",
    "strip_attributes",
]

_MAX_RANKS = 24
_WHOLE = jax.sharding.PartitionSpec()
_OPTIONS = [("xla_allow_excess_precision", "False")]


# XLA:CPU gives the operands of an all-to-all inside a branch different layouts and then refuses them.
_LAYOUT_BUG = "HLO all-to-all has operands with different shapes"


class OracleRefusal(RuntimeError):
    """The oracle fails on a valid module, by a fault known to be its own."""


def strip_attributes(module_text: str, prefix: str = "neuron.") -> str:
    """The module without any attribute whose name starts with ``prefix``."""
    module = parse(module_text)

    def strip(op: ir.Operation) -> None:
        for name in [name for name in op.attributes if name.startswith(prefix)]:
            del op.attributes[name]
        for key in ("arg_attrs", "res_attrs"):
            if op.name == "func.func" and key in op.attributes:
                op.attributes[key] = ir.ArrayAttr.get([_without(one, prefix) for one in op.attributes[key]])

    with module.context, ir.Location.unknown():
        walk(module.operation, strip)
        strip(module.operation)
    return str(module)


def _without(attributes: ir.DictAttr, prefix: str) -> ir.DictAttr:
    kept = {one.name: one.attr for one in attributes if not one.name.startswith(prefix)}
    return ir.DictAttr.get(kept)


def run_on_xla(module_text: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs ``@main`` on one XLA:CPU device, in this process; rounds wherever the program says so."""
    return [ranks[0] for ranks in zip(*_execute(module_text, [list(inputs)]), strict=True)]


def run_on_interpreter(module_text: str, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs ``@main`` on the StableHLO reference interpreter (slow: small shapes only)."""
    module = parse(module_text)
    with context(), ir.Location.unknown():
        arguments = [_dense(np.asarray(x)) for x in inputs]
        return [np.array(x) for x in stablehlo.eval_module(module, arguments)]


def _dense(array: np.ndarray) -> ir.DenseElementsAttr:
    element = jax_mlir.dtype_to_ir_type(array.dtype)
    return ir.DenseElementsAttr.get(np.ascontiguousarray(array), type=element, shape=array.shape)


def run_local_on_xla(
    module_text: str, per_rank_inputs: Sequence[Sequence[np.ndarray]]
) -> list[list[np.ndarray]]:
    """Runs a LOCAL module on XLA:CPU, one replica per rank, in a process of its own.

    Args:
      module_text: StableHLO with collectives in cross-replica mode; ``neuron.*`` attributes are dropped.
      per_rank_inputs: for each rank the inputs of ``@main``; the number of ranks is its length.

    Returns:
      For each rank the results of ``@main``.
    """
    request = (strip_attributes(module_text), [[np.asarray(x) for x in rank] for rank in per_rank_inputs])
    assert 1 <= len(request[1]) <= _MAX_RANKS, f"1 to {_MAX_RANKS} ranks, got {len(request[1])}"
    ok, answer = _Worker.shared().ask(request)
    if not ok:
        kind = OracleRefusal if _LAYOUT_BUG in str(answer) else RuntimeError
        raise kind(f"XLA:CPU refused the LOCAL module: {answer}")
    return answer


def random_inputs(module_text: str, seed: int) -> list[np.ndarray]:
    """Fresh inputs for ``@main``: normal floats, small integers, fair booleans."""
    return inputs.random_inputs(parse(module_text), seed)


class _Worker:
    """A process with 24 forced host devices that compiles and runs what it is sent."""

    def __init__(self) -> None:
        flags = f"--xla_force_host_platform_device_count={_MAX_RANKS}"
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        )

    @classmethod
    def shared(cls) -> "_Worker":
        if _start_worker().process.poll() is not None:
            _start_worker().close()
            _start_worker.cache_clear()
        return _start_worker()

    def ask(self, request: object) -> tuple[bool, object]:
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError):
            return False, f"its process ended with status {self.process.wait()}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@functools.cache
def _start_worker() -> _Worker:
    worker = _Worker()
    atexit.register(worker.close)
    return worker


def _execute(module_text: str, per_rank_inputs: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    lapack._lapack.initialize()  # what JAX does when it lowers linear algebra; without it XLA calls null
    devices = jax.devices("cpu")[: len(per_rank_inputs)]
    options = xla_client.CompileOptions()
    options.num_replicas = len(devices)
    options.env_option_overrides = _OPTIONS
    everywhere = jax.sharding.NamedSharding(
        jax.make_mesh((len(devices),), ("rank",), devices=devices), _WHOLE
    )
    columns = []
    with jax.enable_x64(True):
        for column in zip(*per_rank_inputs, strict=True):
            shards = [jax.device_put(x, device) for x, device in zip(column, devices, strict=True)]
            columns.append(jax.make_array_from_single_device_arrays(shards[0].shape, everywhere, shards))
    executable = devices[0].client.compile_and_load(
        module_text.encode(), xla_client.DeviceList(tuple(devices)), options
    )
    results = executable.execute_sharded(columns).disassemble_into_single_device_arrays()
    by_rank = zip(*([np.asarray(shard) for shard in result] for result in results), strict=True)
    return [list(rank) for rank in by_rank] or [[] for _ in devices]


def _serve() -> None:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            module_text, per_rank_inputs = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = True, _execute(module_text, per_rank_inputs)
        except Exception as error:
            answer = False, f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
