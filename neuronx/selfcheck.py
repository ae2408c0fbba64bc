"""StableHLO's self-checking programs: the checks taken out of a module, and the judging of their operands."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from hlo_passes.ir import context, func, functions, ir, main, parse, source_line, stablehlo, walk
from hlo_passes.ops import terminator
from kernels.errors import CompileError

__all__ = ["Check", "judge", "programs", "take_checks"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One expectation: results ``actual`` and ``expected`` of ``@main`` agree by the rule ``kind``.

    ``limits`` are the tolerances the op carries; those it does not carry have the rule's defaults.
    """

    kind: str
    actual: int
    expected: int
    location: str = ""
    limits: dict[str, float] = field(default_factory=dict)


# A check against a constant, in the two forms it is written. The first has no parser outside StableHLO's own
# tools, so both become a constant and the generic form of the check between two values.
_CONST_FORMS = (
    re.compile(
        r"check\.(?P<kind>\w+)_const\s+(?P<value>%[\w#]+),(?P<limits>)\s*"
        r"(?P<constant>dense\s*<[^:]*>\s*:\s*(?P<type>tensor<[^\n]*>))"
    ),
    re.compile(
        r'"check\.(?P<kind>\w+)_const"\((?P<value>%[\w#]+)\)\s*<?\{(?:(?P<limits>[^\n]*?),\s*)?'
        r"value = (?P<constant>dense<[^:]*>\s*:\s*(?P<type>tensor<[^\n]*>))\}>?\s*:\s*\([^\n]*"
    ),
)
_SEPARATOR = re.compile(r"^\s*// -----.*$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*//.*$", re.MULTILINE)


def programs(text: str) -> Iterator[ir.Module]:
    """The programs of a file, each a module of its own whose entry function takes no check apart yet.

    A file holds modules separated by ``// -----``. A module without ``@main`` holds one program for each
    function that takes no arguments.

    Raises:
      CompileError: a part of the file is malformed.
    """
    for part in _SEPARATOR.split(text):
        if not _COMMENT.sub("", part).strip():
            continue
        generic = _with_constants(part)
        module = _parse(generic)
        functions = [op for op in module.body.operations if isinstance(op, func.FuncOp)]
        names = [f.name.value for f in functions]
        if not functions:
            raise CompileError("the module holds no function", fix="give it a function @main")
        if "main" in names or len(names) == 1:
            yield module
            continue
        for name in [f.name.value for f in functions if not f.type.inputs]:
            yield _with_entry(generic, name)


def _with_constants(text: str) -> str:
    numbers = itertools.count()

    def replace(match: re.Match[str]) -> str:
        name, type_ = f"%check_{next(numbers)}", match["type"]
        return (
            f"{name} = stablehlo.constant {match['constant']} "
            f'"check.{match["kind"]}"({match["value"]}, {name}) {{{match["limits"] or ""}}} '
            f": ({type_}, {type_}) -> ()"
        )

    for form in _CONST_FORMS:
        text = form.sub(replace, text)
    return text


def _parse(text: str) -> ir.Module:
    unregistered = context().allow_unregistered_dialects
    context().allow_unregistered_dialects = True
    try:
        return parse(text)
    except ir.MLIRError as error:
        raise CompileError(f"malformed StableHLO: {error}", fix="mend the line named above") from error
    finally:
        context().allow_unregistered_dialects = unregistered


def _with_entry(text: str, name: str) -> ir.Module:
    module = _parse(text)
    with module.context:
        functions(module)[name].attributes["sym_name"] = ir.StringAttr.get("main")
    for function in functions(module).values():
        if function.name.value != "main" and not function.type.inputs:
            function.operation.erase()
    return module


def take_checks(module: ir.Module) -> list[Check]:
    """Erases the checks of the entry function, in place, and returns their operands as further results."""
    entry = main(module)
    block = entry.regions[0].blocks[0]
    found: list[ir.Operation] = []
    walk(entry.operation, lambda op: found.append(op) if _kind(op) else None)
    first, returned, checks = len(entry.type.results), [], []
    with module.context, ir.Location.unknown():
        for op in found:
            if op.block != block:
                raise CompileError("a check inside a region", op=op.name, fix="check what the region returns")
            at, location = first + len(returned), source_line(op)
            returned += list(op.operands)
            checks.append(
                Check(kind=_kind(op), actual=at, expected=at + 1, location=location, limits=_limits(op))
            )
            _assume_true(op)
        _return_also(entry, returned)
    walk(module.operation, _reject_interpreter_ops)
    return checks


def _reject_interpreter_ops(op: ir.Operation) -> None:
    if op.name.partition(".")[0] == "interpreter":
        raise CompileError(
            "an op of StableHLO's interpreter, which drives several programs from the outside",
            op=op.name,
            location=source_line(op),
            fix="give one program; --tp-degree runs it on several cores",
        )


def _assume_true(op: ir.Operation) -> None:
    """Erases a check; what it said of its operands is judged after the run."""
    for result in op.results:
        with ir.InsertionPoint(op):
            true = ir.DenseElementsAttr.get_splat(result.type, ir.BoolAttr.get(True))
            result.replace_all_uses_with(stablehlo.ConstantOp(true).result)
    op.erase()


def _kind(op: ir.Operation) -> str:
    """``expect_eq`` for ``check.expect_eq`` and for a custom call of that name; "" for anything else."""
    name = op.attributes["call_target_name"].value if op.name == "stablehlo.custom_call" else op.name
    return name.removeprefix("check.") if name.startswith("check.") else ""


def _limits(op: ir.Operation) -> dict[str, float]:
    numbers = (ir.FloatAttr, ir.IntegerAttr)
    return {
        name: op.attributes[name].value for name in op.attributes if isinstance(op.attributes[name], numbers)
    }


def _return_also(function: func.FuncOp, values: list[ir.Value]) -> None:
    old = terminator(function.entry_block)
    results = [*old.operands, *values]
    with ir.InsertionPoint(old), old.location:
        func.ReturnOp(results)
    old.erase()
    type_ = ir.FunctionType.get(function.type.inputs, [value.type for value in results])
    function.attributes["function_type"] = ir.TypeAttr.get(type_)
    if "res_attrs" in function.attributes:
        padding = [ir.DictAttr.get({})] * len(values)
        function.attributes["res_attrs"] = ir.ArrayAttr.get([*function.attributes["res_attrs"], *padding])


def judge(check: Check, outputs: list[np.ndarray]) -> str | None:
    """None where the check holds, else one line: which rule, how many elements differ, the first of them."""
    rule = _RULES.get(check.kind)
    if rule is None:
        return f"check.{check.kind}: no such check; there is {', '.join(_RULES)}"
    actual, expected = (np.atleast_1d(outputs[index]) for index in (check.actual, check.expected))
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return f"{check.kind}: got {actual.dtype}{actual.shape}, expected {expected.dtype}{expected.shape}"
    good = rule(_parts(actual), _parts(expected), **check.limits)
    good = good.all(axis=-1) if good.ndim > actual.ndim else good
    if good.all():
        return None
    bad = np.argwhere(~good)
    at = tuple(bad[0])
    where = f" at {check.location}" if check.location else ""
    return (
        f"{check.kind}{where}: {len(bad)} of {good.size} elements differ; first at {list(map(int, at))}: "
        f"got {actual[at]}, expected {expected[at]}"
    )


def _parts(array: np.ndarray) -> np.ndarray:
    """Complex numbers as pairs of floats along a new last dim."""
    if array.dtype.kind != "c":
        return array
    return np.stack([array.real, array.imag], axis=-1)


def _is_exact(array: np.ndarray) -> bool:
    return array.dtype.kind in "biu" or array.dtype.name.startswith(("int", "uint"))


def _equal(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Equal; NaN equals NaN, for a program that expects one has no other way to say so."""
    return (actual == expected) | ((actual != actual) & (expected != expected))


def _almost_equal(actual: np.ndarray, expected: np.ndarray, tolerance: float = 0.001) -> np.ndarray:
    """Equal, or both NaN, or finite, of one sign and no further apart than ``tolerance``."""
    if _is_exact(actual):
        return actual == expected
    x, y = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y) & (np.signbit(x) == np.signbit(y))
    with np.errstate(invalid="ignore"):
        near = np.abs(x - y) <= tolerance
    return (x == y) | (np.isnan(x) & np.isnan(y)) | (finite & near)


def _close(
    actual: np.ndarray, expected: np.ndarray, min_ulp_difference: int = 0, max_ulp_difference: int = 3
) -> np.ndarray:
    """Distance in representable values of the type between the two limits; NaN is close to NaN."""
    if _is_exact(actual):
        return actual == expected
    bits = np.dtype(f"u{actual.dtype.itemsize}")
    x, y = (np.abs(array).view(bits).astype(np.uint64) for array in (actual, expected))
    same_sign = np.signbit(actual) == np.signbit(expected)
    ulps = np.where(same_sign, np.maximum(x, y) - np.minimum(x, y), x + y)
    finite = np.isfinite(actual) & np.isfinite(expected)
    identical = (x == y) & same_sign | np.isnan(actual) & np.isnan(expected)
    inside = (ulps >= np.uint64(min_ulp_difference)) & (ulps <= np.uint64(max_ulp_difference))
    return np.where(finite, inside, identical & (min_ulp_difference == 0))


def _equal_result(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return _almost_equal(actual, expected, tolerance=0.0001)


# The rules and their defaults are those of StableHLO's check dialect and of its interpreter's custom calls.
_RULES: dict[str, Callable[..., np.ndarray]] = {
    "eq": _equal_result,
    "expect_eq": _equal,
    "expect_almost_eq": _almost_equal,
    "expect_close": _close,
}
