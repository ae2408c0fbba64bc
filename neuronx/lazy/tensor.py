"""The lazy array: an array whose type is known now and whose elements are computed when somebody looks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from neuronx.arrays import Deferred, RingArray
from neuronx.lazy.trace import Handle, eagerly, wants_value

__all__ = ["LazyArray"]


class LazyArray(Handle, Deferred):
    """A jax.Array to JAX and to the user. Looking at its elements runs what they need on the ring.

    Shape and dtype are known at once. ``np.asarray``, ``float``, ``bool``, ``print``, ``.item()`` and
    control flow on it compute it, together with those of its ancestors that the user still holds.
    """

    __slots__ = ()

    def array(self, cause: str = "read") -> jax.Array:
        """The computed array."""
        value = self.value
        if value.node is not None:
            self._trace.owner.compute(self, cause)
        if value.host is None:
            with eagerly():
                value.host = _on_host(value)
        return value.host

    @property
    def is_pending(self) -> bool:
        """Whether it is recorded but not computed."""
        return self.value.node is not None

    def to_concrete_value(self) -> Any:
        return self.array("a value JAX needs now") if wants_value() else None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array("np.asarray"), dtype=dtype, copy=copy)

    def __bool__(self) -> bool:
        return bool(self.array("bool"))

    def __int__(self) -> int:
        return int(self.array("int"))

    def __float__(self) -> float:
        return float(self.array("float"))

    def __complex__(self) -> complex:
        return complex(self.array("complex"))

    def __index__(self) -> int:
        return self.array("index").__index__()

    def __hex__(self) -> str:
        return hex(self.array("hex"))

    def __oct__(self) -> str:
        return oct(self.array("oct"))

    def __repr__(self) -> str:
        return repr(self.array("print"))

    def __str__(self) -> str:
        return str(self.array("print"))

    def __format__(self, spec: str) -> str:
        return format(self.array("print"), spec)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array("dlpack").__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array("dlpack").__dlpack_device__()

    def __reduce__(self) -> Any:
        return self.array("pickle").__reduce__()

    def __copy__(self) -> "LazyArray":
        return self

    def __deepcopy__(self, memo: Any) -> "LazyArray":
        return self

    def item(self, *args: int) -> Any:
        return self.array("item").item(*args)

    def tolist(self) -> Any:
        return self.array("tolist").tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.array("tobytes").tobytes(order)

    def block_until_ready(self) -> "LazyArray":
        self.array("block_until_ready")
        return self

    def copy_to_host_async(self) -> None:
        """Nothing to start ahead of time: it is computed when it is looked at."""

    def is_deleted(self) -> bool:
        return False

    def addressable_data(self, index: int) -> jax.Array:
        return self.array("addressable_data").addressable_data(index)

    def devices(self) -> Any:
        return self.array("devices").devices()

    def on_device_size_in_bytes(self) -> int:
        return self.array("on_device_size_in_bytes").on_device_size_in_bytes()

    def unsafe_buffer_pointer(self) -> int:
        return self.array("unsafe_buffer_pointer").unsafe_buffer_pointer()

    @property
    def sharding(self) -> Any:
        return self.array("sharding").sharding

    @property
    def device(self) -> Any:
        return self.array("device").device

    @property
    def committed(self) -> bool:
        return False

    @property
    def is_fully_addressable(self) -> bool:
        return True

    @property
    def is_fully_replicated(self) -> bool:
        return True

    @property
    def addressable_shards(self) -> Any:
        return self.array("addressable_shards").addressable_shards

    @property
    def global_shards(self) -> Any:
        return self.array("global_shards").global_shards

    @property
    def traceback(self) -> Any:
        return None


def _on_host(value: Any) -> jax.Array:
    result = value.result
    if isinstance(result, jax.Array):
        return result
    if isinstance(result, RingArray):
        return jnp.asarray(np.asarray(result))
    array = np.asarray(result, value.aval.dtype)
    return jnp.asarray(result) if value.aval.weak_type else jnp.array(array)
