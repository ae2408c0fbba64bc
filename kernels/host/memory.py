"""What C gives and Numba lacks: words of memory, atomics, malloc, calls of function pointers.

Addresses are integers.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "add_atomically",
    "allocate",
    "call_pointer",
    "clear",
    "copy",
    "function_address",
    "give_way",
    "pointer",
    "read_atomically",
    "release",
    "store_word",
    "word",
]

_WORD = ir.IntType(64)
_WORD_BYTES = ir.Constant(_WORD, 8)
_POINTER = ir.IntType(8).as_pointer()


def _at(b: ir.IRBuilder, address: ir.Value, index: ir.Value) -> ir.Value:
    return b.inttoptr(b.add(address, b.mul(index, _WORD_BYTES)), _WORD.as_pointer())


def _call(b: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> ir.Value:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


@intrinsic
def word(typing, address, index):
    """The 64-bit word number ``index`` behind ``address``."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        address, index = arguments
        return b.load(_at(b, address, index))

    return types.intp(types.intp, types.intp), generate


@intrinsic
def store_word(typing, address, index, value):
    """Sets the 64-bit word number ``index`` behind ``address``."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        address, index, value = arguments
        b.store(value, _at(b, address, index))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def add_atomically(typing, address, index, value):
    """Adds to a 64-bit word that other threads change too; returns what it was."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        address, index, value = arguments
        return b.atomic_rmw("add", _at(b, address, index), value, "seq_cst")

    return types.intp(types.intp, types.intp, types.intp), generate


@intrinsic
def read_atomically(typing, address, index):
    """A 64-bit word that other threads change."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        address, index = arguments
        return b.load_atomic(_at(b, address, index), "seq_cst", 8)

    return types.intp(types.intp, types.intp), generate


@intrinsic
def allocate(typing, size_bytes):
    """C's malloc; the address."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        return b.ptrtoint(_call(b, "malloc", _POINTER, arguments), _WORD)

    return types.intp(types.intp), generate


@intrinsic
def release(typing, address):
    """C's free."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        _call(b, "free", ir.VoidType(), [b.inttoptr(arguments[0], _POINTER)])
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def clear(typing, address, size_bytes):
    """C's memset to zero."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        address, size_bytes = arguments
        zero = ir.Constant(ir.IntType(32), 0)
        _call(b, "memset", _POINTER, [b.inttoptr(address, _POINTER), zero, size_bytes])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def copy(typing, target, source, size_bytes):
    """C's memcpy."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        target, source, size_bytes = arguments
        pointers = [b.inttoptr(address, _POINTER) for address in (target, source)]
        _call(b, "memcpy", _POINTER, [*pointers, size_bytes])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def pointer(typing, address):
    """What ``numba.carray`` makes an array of."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        return b.inttoptr(arguments[0], _POINTER)

    return types.voidptr(types.intp), generate


@intrinsic
def give_way(typing):
    """Lets another thread run on this core."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        _call(b, "sched_yield", ir.IntType(32), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def call_pointer(typing, function, argument):
    """Calls the C function at an address with one pointer; returns its pointer."""

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        function, argument = arguments
        kind = ir.FunctionType(_WORD, [_WORD])
        return b.call(b.inttoptr(function, kind.as_pointer()), [argument])

    return types.intp(types.intp, types.intp), generate


@intrinsic(prefer_literal=True)
def function_address(typing, name):
    """The address of the C function ``name``, resolved when the code that asks is loaded."""
    if not isinstance(name, types.StringLiteral):
        return None
    symbol = name.literal_value

    def generate(context: Any, b: ir.IRBuilder, signature: Any, arguments: Sequence[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(ir.VoidType(), [_WORD])
        return b.ptrtoint(cgutils.get_or_insert_function(b.module, kind, symbol), _WORD)

    return types.intp(name), generate
