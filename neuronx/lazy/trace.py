"""Recording: a JAX trace that notes each primitive as a node; the one lazy module with JAX's internals."""

import contextlib
import itertools
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax._src import config, core, dtypes, source_info_util
from jax._src.interpreters import partial_eval
from jax._src.numpy import indexing
from jax._src.pjit import jit_p
from jax._src.sharding_impls import UnspecifiedValue

from kernels.errors import CompileError
from neuronx.arrays import RingArray
from neuronx.lazy.callers import from_user
from neuronx.lazy.constants import captured, captured_params

__all__ = [
    "Handle",
    "LazyTrace",
    "Node",
    "Owner",
    "Value",
    "caller_line",
    "eagerly",
    "line_of",
    "recording",
    "replay",
    "wants_value",
]

# What runs on the host by its nature: its operands are computed and it is called at once.
_HOST_CALLS = frozenset({"debug_callback", "debug_print", "io_callback", "pure_callback"})

# What has no meaning as a value computed later.
_REFUSED = frozenset({"new_ref", "ref_set", "ref_get", "ref_swap", "get", "swap", "addupdate", "freeze"})

_serials = itertools.count()

# Numbers whose identity is remembered. Beyond it a derivative's use of one may be taken for JAX's own.
_MAX_NUMBERS = 8192

# Frames of ours are not the user's: ops and errors must name the line that called JAX. (Models are programs.)
for _path in (*Path(__file__).parents[1].glob("*.py"), Path(__file__).parent):
    source_info_util.register_exclusion(str(_path))


class Node:
    """One recorded primitive. ``inputs`` are Values and JAX Literals, ``avals`` the types of its results."""

    __slots__ = ("avals", "context", "inputs", "params", "primitive", "serial", "source")

    def __init__(self, primitive: Any, inputs: list[Any], params: Any, avals: Any, source: Any) -> None:
        self.serial = next(_serials)
        self.primitive, self.inputs, self.params = primitive, inputs, params
        self.avals, self.source = avals, source
        self.context = core.current_jaxpr_eqn_context()

    @property
    def line(self) -> str:
        """``file:line`` of the user's code that made it, or ""."""
        return line_of(self.source.traceback)


class Value:
    """A value of the program: result ``index`` of ``node``, or (``node`` None) known as ``result``.

    ``is_internal``: a number that JAX's own code brought, not the user: a constant until it changes.
    """

    __slots__ = ("__weakref__", "aval", "host", "index", "is_internal", "node", "result")

    def __init__(
        self, aval: Any, node: Node | None, index: int, result: Any, *, is_internal: bool = False
    ) -> None:
        self.aval, self.node, self.index, self.result = aval, node, index, result
        self.is_internal = is_internal
        self.host = None  # a computed result brought to the host

    @property
    def key(self) -> int:
        """Equal for one array used twice. Not for numbers: equal ones may be one Python object by chance."""
        return id(self.result if isinstance(self.result, core.Array | RingArray) else self)


class Handle(core.Tracer):
    """What the user holds for a Value; JAX treats it as an array of known type."""

    __slots__ = ("value",)

    def __init__(self, trace: "LazyTrace", value: Value) -> None:
        core.Tracer.__init__(self, trace, value.aval)
        self.value = value

    def __init_subclass__(cls) -> None:
        # JAX calls this with each argument while its current trace is still the caller's: a handle used where
        # nothing is recorded (another thread, after the context) becomes the array it stands for.
        dtypes.register_canonicalize_value_handler(cls, cls.full_lower)

    def array(self, cause: str = "read") -> Any:
        """The computed array; runs what it needs. ``cause`` is what explain() says of it."""
        raise NotImplementedError

    def full_lower(self) -> Any:
        """JAX calls this where it is about to compute for real: outside of the recording."""
        return self.array("op outside the context") if core.trace_ctx.trace is core.eval_trace else self


class Owner(Protocol):
    """Who holds the handles of a trace and computes them."""

    def hold(self, value: Value) -> Handle: ...

    def compute(self, handle: Handle, cause: str) -> None: ...

    def recorded(self, node: Node, handles: Sequence[Handle]) -> None: ...


class LazyTrace(core.Trace):
    """Set as JAX's current trace, it receives every primitive of any JAX code that runs under it."""

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.owner = owner
        self._numbers: dict[int, tuple[Any, Value]] = {}
        self._arrays: weakref.WeakValueDictionary[Any, Value] = weakref.WeakValueDictionary()
        self._owners: dict[Any, weakref.ref[np.ndarray]] = {}

    def stage_value(self, val: Any) -> Any:
        return val if isinstance(val, Handle) and val._trace is self else self.owner.hold(self._value(val))

    def process_primitive(self, primitive: Any, args: Sequence[Any], params: Mapping[str, Any], /) -> Any:
        if primitive.name in _HOST_CALLS:
            return self._call_host(primitive, args, params)
        inputs = [self._value(arg) for arg in args]
        if primitive is jit_p and _is_plainly_inline(params):
            return self._splice(params["jaxpr"], inputs)
        avals, effects = _abstract_eval(primitive, inputs, params)
        source = source_info_util.current()
        if effects or primitive.name in _REFUSED:
            raise _not_recordable(primitive, effects, source)
        several = primitive.multiple_results
        node = Node(primitive, inputs, captured_params(params), avals if several else (avals,), source)
        handles = [self.owner.hold(Value(aval, node, i, None)) for i, aval in enumerate(node.avals)]
        self.owner.recorded(node, handles)
        return handles if several else handles[0]

    def process_call(self, primitive: Any, f: Any, tracers: Sequence[Any], params: Any, /) -> Any:
        with core.set_current_trace(self):
            return f.call_wrapped(*tracers)

    # Derivatives are taken by traces above this one: what arrives here only wants the value.
    def process_custom_jvp_call(self, primitive: Any, fun: Any, jvp: Any, tracers: Any, /, **_: Any) -> Any:
        return self.process_call(primitive, fun, tracers, None)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, tracers: Any, /, **_: Any
    ) -> Any:
        return self.process_call(primitive, fun, tracers, None)

    def process_shard_map(self, primitive: Any, fun: Any, args: Sequence[Any], /, **params: Any) -> Any:
        """Recorded as a jitted function: its body is one program on many devices, also op by op."""
        trees: list[Any] = []

        def whole(*operands: Any) -> tuple[Any, ...]:
            trees.append(primitive.bind(*operands, subfuns=(fun,), **params))
            return trees[0].vals

        with core.set_current_trace(self), config.disable_jit(False):
            results = jax.jit(whole)(*args)
        return trees[0].update(results)

    def _value(self, x: Any) -> Value:
        if isinstance(x, Handle):
            if x._trace is self:
                return x.value
            x = x.array("use in another context")
        elif isinstance(x, core.Tracer):
            raise core.escaped_tracer_error(x)
        elif isinstance(x, core.Ref):
            raise _not_recordable("a mutable array (Ref)", (), source_info_util.current())
        elif isinstance(x, np.ndarray) and x.ndim:
            return self._array(x)
        elif not isinstance(x, core.Array):
            return self._number(x)
        return Value(core.typeof(x), None, 0, x)

    def _array(self, x: np.ndarray) -> Value:
        """A copy of the array; the same value where it was copied before and holds what it held then."""
        # JAX makes a view at each use: what stays is the user's own array, as long as it lives.
        key = (id(x.base), x.__array_interface__["data"][0], x.shape, x.strides, x.dtype)
        found = self._arrays.get(key)
        if found is not None and found.result.tobytes() == x.tobytes():
            return found
        value = Value(core.typeof(x), None, 0, captured(x))
        if isinstance(x.base, np.ndarray):
            self._owners[key] = weakref.ref(x.base, lambda _: self._forget(key))
            self._arrays[key] = value
        return value

    def _forget(self, key: Any) -> None:
        self._owners.pop(key, None)
        self._arrays.pop(key, None)

    def _number(self, x: Any) -> Value:
        """The value of a scalar: the same again where a derivative uses what the function was given."""
        found = self._numbers.get(id(x))
        if found is not None:
            return found[1]
        number = captured(x) if isinstance(x, np.ndarray) else x
        value = Value(core.typeof(x), None, 0, number, is_internal=not from_user(x))
        # Objects of these types are made for one use; True and False are always the same two.
        if isinstance(x, float | int | complex) and not isinstance(x, bool):
            if len(self._numbers) >= _MAX_NUMBERS:
                self._numbers.clear()
            self._numbers[id(x)] = (x, value)
        return value

    def _splice(self, closed: Any, inputs: list[Value]) -> list[Handle]:
        """Records the body of a jitted function that JAX inlines, as jit itself would; its literals stay."""
        closed = captured_params({"jaxpr": closed})["jaxpr"]
        jaxpr, source = closed.jaxpr, source_info_util.current()
        env = dict(zip(jaxpr.invars, inputs, strict=True))
        env.update(zip(jaxpr.constvars, map(self._value, closed.consts), strict=True))
        for eqn in jaxpr.eqns:
            if eqn.effects:
                raise _not_recordable(eqn.primitive, eqn.effects, source)
            names = source.name_stack + eqn.source_info.name_stack
            operands = [atom if isinstance(atom, core.Literal) else env[atom] for atom in eqn.invars]
            avals = [var.aval for var in eqn.outvars]
            node = Node(eqn.primitive, operands, eqn.params, avals, source.replace(name_stack=names))
            node.context = eqn.ctx
            for index, var in enumerate(eqn.outvars):
                env[var] = Value(var.aval, node, index, None)
        return [
            self.owner.hold(self._value(var.val) if isinstance(var, core.Literal) else env[var])
            for var in jaxpr.outvars
        ]

    def _call_host(self, primitive: Any, args: Sequence[Any], params: Mapping[str, Any]) -> Any:
        known = [arg.array(primitive.name) if isinstance(arg, Handle) else arg for arg in args]
        with eagerly():
            results = primitive.bind(*known, **params)
        if not primitive.multiple_results:
            return self.stage_value(results)
        return [self.stage_value(result) for result in results]


@contextlib.contextmanager
def recording(trace: LazyTrace) -> Iterator[None]:
    """Makes ``trace`` JAX's current trace on this thread.

    Raises:
      CompileError: inside a JAX transformation (jit, grad, vmap, ...).
    """
    current = core.trace_ctx.trace
    if current is not core.eval_trace and not isinstance(current, LazyTrace):
        raise CompileError(
            "a lazy context was entered under a JAX transformation (jit, grad, vmap, ...)",
            op="neuronx.lazy",
            location=caller_line(),
            fix="enter it outside and call the transformed function inside",
        )
    with core.set_current_trace(trace):
        yield


def eagerly() -> contextlib.AbstractContextManager[None]:
    """Computes for real inside: what runs a recorded program must not be recorded itself."""
    return core.set_current_trace(core.eval_trace)


def caller_line() -> str:
    """``file:line`` of the user's code that is running now, or ""."""
    return line_of(source_info_util.current().traceback)


def replay(
    nodes: Sequence[Node], leaves: Sequence[Value], outputs: Sequence[tuple[Node, int]], args: Sequence[Any]
) -> list[Any]:
    """Binds the nodes again: traced by jit, that is the recorded program.

    ``args`` stand for ``leaves``; other known values are constants.
    """
    env: dict[tuple[int, int], Any] = {}
    known = {leaf.key: arg for leaf, arg in zip(leaves, args, strict=True)}

    def read(atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            return atom.val
        if atom.node is None:
            return known.get(atom.key, atom.result)
        return env[atom.node.serial, atom.index]

    for node in nodes:
        source = node.source
        operands = [read(atom) for atom in node.inputs]
        params = node.primitive.get_bind_params(node.params)
        names = source_info_util.current_name_stack() + source.name_stack
        with (
            source_info_util.user_context(source.traceback, name_stack=names),
            node.context.manager,
        ):
            results = node.primitive.bind(*operands, **params)
        for index, result in enumerate(results if node.primitive.multiple_results else [results]):
            env[node.serial, index] = result
    return [env[node.serial, index] for node, index in outputs]


# Functions that ask whether a value is known because they cannot go on without it: x[mask], x[i:j]. Others
# ask to do better with it (a power by a small integer); what they record must not depend on the value.
_NEED_VALUES = frozenset(
    {
        indexing.NDIndexer.expand_bool_indices.__code__,
        indexing._is_slice_element_none_or_constant_or_symbolic.__code__,
    }
)


def wants_value() -> bool:
    """Whether the JAX function that asks Handle.to_concrete_value cannot go on without the value."""
    frame = sys._getframe(2)
    if frame.f_code is core.concrete_or_error.__code__:
        return True
    # to_concrete_value <- is_concrete <- who asks
    asks = frame.f_back.f_back if frame.f_back is not None else None
    return asks is not None and asks.f_code in _NEED_VALUES


def _abstract_eval(primitive: Any, inputs: Sequence[Value], params: Mapping[str, Any]) -> tuple[Any, Any]:
    avals = [value.aval for value in inputs]
    return partial_eval._cached_abstract_eval(primitive, *avals, **params)


def _is_plainly_inline(params: Mapping[str, Any]) -> bool:
    return params["inline"] and all(
        all(isinstance(entry, UnspecifiedValue) or entry is None for entry in params[name])
        for name in ("in_shardings", "out_shardings", "in_layouts", "out_layouts")
    )


def _not_recordable(what: Any, effects: Any, source: Any) -> CompileError:
    said = f" with the side effects {', '.join(map(str, effects))}" if effects else ""
    return CompileError(
        f"cannot be recorded{said}: its effect would happen later, or not at all",
        op=str(what),
        location=line_of(source.traceback),
        fix="take host callbacks and mutable arrays out of jitted functions, scans and conditions, "
        "or run it outside of the lazy context",
    )


def line_of(traceback: Any) -> str:
    """``file:line`` of the user's innermost frame, or ""."""
    frame = source_info_util.user_frame(traceback)
    return f"{frame.file_name}:{frame.start_line}" if frame is not None else ""
