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

    committed = False
    is_fully_addressable = is_fully_replicated = True
    traceback = None

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

    def __copy__(self) -> "LazyArray":
        return self

    def __deepcopy__(self, memo: Any) -> "LazyArray":
        return self

    def block_until_ready(self) -> "LazyArray":
        self.array("block_until_ready")
        return self

    def copy_to_host_async(self) -> None:
        """Nothing to start ahead of time: it is computed when it is looked at."""

    def is_deleted(self) -> bool:
        return False


def _method(name: str, cause: str) -> Any:
    def method(self: LazyArray, *args: Any, **options: Any) -> Any:
        return getattr(self.array(cause), name)(*args, **options)

    return method


# What needs the elements, by method: the cause that explain() gives. The others are causes as they are.
_LOOKS = {
    "__bool__": "bool",
    "__complex__": "complex",
    "__dlpack__": "dlpack",
    "__dlpack_device__": "dlpack",
    "__float__": "float",
    "__format__": "print",
    "__hex__": "hex",
    "__index__": "index",
    "__int__": "int",
    "__oct__": "oct",
    "__reduce__": "pickle",
    "__repr__": "print",
    "__str__": "print",
}
_METHODS = (
    "addressable_data", "devices", "item", "on_device_size_in_bytes", "tobytes", "tolist",
    "unsafe_buffer_pointer",
)  # fmt: skip
for _name, _cause in (_LOOKS | {name: name for name in _METHODS}).items():
    setattr(LazyArray, _name, _method(_name, _cause))
for _name in ("addressable_shards", "device", "global_shards", "sharding"):
    setattr(LazyArray, _name, property(lambda self, name=_name: getattr(self.array(name), name)))


def _on_host(value: Any) -> jax.Array:
    result = value.result
    if isinstance(result, jax.Array):
        return result
    if isinstance(result, RingArray):
        return jnp.asarray(np.asarray(result))
    array = np.asarray(result, value.aval.dtype)
    return jnp.asarray(result) if value.aval.weak_type else jnp.array(array)
