"""Programs that run where JAX runs its own, on the user's arrays as they lie, as jax.jit calls them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import core, tree_util
from jax._src.array import ArrayImpl
from jax._src.interpreters import pxla
from jax.sharding import SingleDeviceSharding
from jaxlib import _jax

from distributed.executor import Executable

__all__ = ["Jitted", "call_through", "device_of"]

_ON_NO_DEVICE = (np.ndarray, np.generic, bool, int, float, complex)


class Jitted:
    """A program as one executable on a device of JAX's own client.

    It goes on computing when a call has returned, as those of JAX do.

    Args:
      executable: of the ``constants``, then the inputs.
      device: where it runs, and its results lie.
      inputs, outputs: the types of the user's arrays, those of the outputs weak or not.
    """

    def __init__(
        self,
        executable: Executable,
        device: _jax.Device,
        *,
        constants: Sequence[Any],
        inputs: Sequence[jax.ShapeDtypeStruct],
        outputs: Sequence[jax.ShapeDtypeStruct],
    ) -> None:
        self._executable, self._device = executable, device
        self._sharding = SingleDeviceSharding(device)
        self._dtypes = [kind.dtype for kind in inputs]
        self._outputs = [core.ShapedArray(kind.shape, kind.dtype, kind.weak_type) for kind in outputs]
        self._handlers = {
            is_committed: [
                _jax.array_result_handler(aval, self._sharding, is_committed, True) for aval in self._outputs
            ]
            for is_committed in (False, True)
        }
        self._constants = [self._here(value, value.dtype) for value in constants]

    def __call__(self, leaves: Sequence[Any]) -> list[jax.Array]:
        """The results for leaves whose ``device_of`` is this device; donated ones are deleted."""
        given = map(self._here, leaves, self._dtypes)
        outputs = self._executable.loaded.execute_sharded([*self._constants, *given])
        return outputs.consume_with_handlers(self._handlers[_any_committed(leaves)])

    def fast_path(self, leaves: Sequence[Any], out_tree: Any) -> pxla.MeshExecutableFastpathData:
        """What JAX must know to make calls with such leaves itself."""
        count = len(self._constants) + len(leaves)
        return pxla.MeshExecutableFastpathData(
            xla_executable=self._executable.loaded,
            out_pytree_def=out_tree,
            in_shardings=[self._sharding] * count,
            out_shardings=[self._sharding] * len(self._outputs),
            out_avals=self._outputs,
            out_committed=[_any_committed(leaves)] * len(self._outputs),
            kept_var_bitvec=[True] * count,
            in_device_local_layouts=[None] * count,
            const_args=self._constants,
        )

    def _here(self, value: Any, dtype: np.dtype) -> jax.Array:
        """An array that lies here, or a copy of another: its owner may change it while this computes."""
        if type(value) is ArrayImpl and value.sharding == self._sharding:
            return value
        host = np.asarray(value, dtype)
        aval = core.ShapedArray(host.shape, dtype)
        return _jax.batched_device_put(
            aval, self._sharding, [host], [self._device], False, force_copy=True, enable_x64=True
        )


def device_of(leaves: Sequence[Any]) -> _jax.Device | None:
    """Where results go by default, if that is the host and ``leaves`` lie there or nowhere yet."""
    device = pxla.get_default_device()
    sharding = SingleDeviceSharding(device)
    is_possible = device.platform == "cpu" and all(
        not leaf.is_deleted() and leaf.sharding == sharding
        if type(leaf) is ArrayImpl
        else isinstance(leaf, _ON_NO_DEVICE)
        for leaf in leaves
    )
    return device if is_possible else None


def _any_committed(leaves: Sequence[Any]) -> bool:
    """Then so are the results."""
    return any(type(leaf) is ArrayImpl and leaf.committed for leaf in leaves)


def call_through(
    fn: Callable[..., Any],
    miss: Callable[..., tuple[Any, pxla.MeshExecutableFastpathData | None, bool]],
    jitted: Any,
) -> Callable[..., Any]:
    """A function that JAX calls as those of ``jax.jit``: found by the types of its arguments, without Python.

    Args:
      fn: what it computes; for ``jax.debug_nans``, which looks for the op.
      miss: makes calls of types not met before, and all calls where the second that it gives is None: the
        result, how JAX makes such calls itself, and False.
      jitted: of ``jax.jit``: which arguments are static.
    """
    info = jitted._jit_info

    def without_jit(*args: Any, **kwargs: Any) -> Any:
        return miss(*args, **kwargs)[0]

    call = _jax.pjit(
        getattr(fn, "__name__", "function"),
        without_jit,
        miss,
        info.static_argnums,
        info.static_argnames,
        pxla.JitGlobalCppCacheKeys(),
        tree_util.dispatch_registry,
        pxla.cc_shard_arg,
    )
    call._fun = fn
    return call
