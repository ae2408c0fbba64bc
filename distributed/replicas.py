"""Many devices of XLA:CPU in this process: a second opinion on modules with collectives."""

from collections.abc import Sequence

import jax
import numpy as np
from jax._src import core
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxlib import _jax, lapack, xla_client

from distributed.executor import OPTIONS

__all__ = ["Replicas"]


class Replicas:
    """XLA:CPU with one device for each core: runs modules with collectives as they are.

    Nothing of ours is in its way: what a program's numbers are compared with. Not what runs programs: every
    core holds a copy of all it reads, and XLA's own threads meet in every collective.
    """

    def __init__(self, count: int) -> None:
        self._client = xla_client.make_cpu_client(num_devices=count)
        self._devices = self._client.devices()
        mesh = Mesh(np.array(self._devices, object), ("replica",))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        lapack._lapack.initialize()

    def run(self, text: str, inputs: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
        """Runs ``@main`` of a StableHLO module with cross-replica collectives.

        Args:
          text: the module.
          inputs: for each argument its array on each replica.

        Returns:
          For each result its array on each replica.

        Raises:
          jax.errors.JaxRuntimeError: XLA refuses the module.
        """
        options = xla_client.CompileOptions()
        options.num_replicas = len(self._devices)
        options.env_option_overrides = list(OPTIONS)
        executable = self._client.compile_and_load(text, xla_client.DeviceList(tuple(self._devices)), options)
        results = executable.execute_sharded([self._put(shards) for shards in inputs])
        return [
            [np.asarray(shard) for shard in shards]
            for shards in results.disassemble_into_single_device_arrays()
        ]

    def _put(self, shards: Sequence[np.ndarray]) -> jax.Array:
        aval = core.ShapedArray(shards[0].shape, shards[0].dtype)
        arrays = [
            _jax.batched_device_put(
                aval, SingleDeviceSharding(device), [shard], [device], True, enable_x64=True
            )
            for device, shard in zip(self._devices, shards, strict=True)
        ]
        return jax.make_array_from_single_device_arrays(aval.shape, self._everywhere, arrays)
