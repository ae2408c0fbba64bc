"""What AWS's compiler, neuronx-cc, rejects or degrades in StableHLO: one table, and the walk that applies it.

Sources: compiler/error-codes/*.rst (the NCC_ codes) and frameworks/jax/setup/jax-neuronx-known-issues.rst
("JAX NeuronX" below) of the AWS Neuron documentation, as of SDK 2.26 to 2.32. They give no complete list of
operators, so that no finding means "nothing known", not "it compiles".
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from hlo_passes.ir import ir, source_line, walk
from hlo_passes.ops import direction, kind, maker, terminator
from hlo_passes.trip_count import trip_count
from kernels.dtypes import dtype as find_dtype

__all__ = ["RULES", "Finding", "Rule", "Severity", "findings"]

Severity = Literal["rejected", "degraded", "undocumented"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing neuronx-cc would do. ``code`` is its error code, or the page that says so."""

    severity: Severity
    code: str
    op: str
    location: str
    what: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Ops of the ``kinds`` for which ``applies`` says yes."""

    code: str
    kinds: tuple[str, ...]
    what: str
    fix: str
    severity: Severity = "rejected"
    applies: Callable[[ir.Operation], bool] = lambda op: True


def findings(module: ir.Module) -> Iterator[Finding]:
    """What the table says of each op and type of a flat module (``canonicalize.flatten``)."""
    ops: list[ir.Operation] = []
    walk(module.operation, ops.append)
    for op in ops:
        for rule in _BY_KIND.get(kind(op), ()):
            if rule.applies(op):
                yield _finding(op, rule.severity, rule.code, rule.what, rule.fix)
        yield from _types(op)


def _finding(op: ir.Operation, severity: Severity, code: str, what: str, fix: str) -> Finding:
    return Finding(severity=severity, code=code, op=op.name, location=source_line(op), what=what, fix=fix)


def _element(value: ir.Value) -> str:
    return str(ir.ShapedType(value.type).element_type)


def _on_integers(op: ir.Operation) -> bool:
    found = find_dtype(_element(op.operands[0]))
    return found.is_integer or found.name == "i1"


def _adds_integers(op: ir.Operation) -> bool:
    combines = len(list(op.regions[0].blocks[0].operations)) > 1  # else it only puts the update there
    return combines and _on_integers(op)


def _is_unsigned_64(op: ir.Operation) -> bool:
    return _element(op.results[0]) == "ui64"


def _not_32_bits(op: ir.Operation) -> bool:
    return find_dtype(_element(op.results[0])).bits != 32


def _chosen_at_run_time(op: ir.Operation) -> bool:
    chooser = maker(op.operands[0])
    return chooser is None or kind(chooser) != "constant"


def _unknown_trip_count(op: ir.Operation) -> bool:
    return trip_count(op) is None


def _several_results(op: ir.Operation) -> bool:
    return len(op.results) > 1


def _beyond_one(*names: str) -> Callable[[ir.Operation], bool]:
    """Whether each of these attributes is there, with a factor above one."""
    return lambda op: all(
        name in op.attributes and any(factor > 1 for factor in ir.DenseI64ArrayAttr(op.attributes[name]))
        for name in names
    )


def _own_algorithm(op: ir.Operation) -> bool:
    return "DEFAULT" not in str(op.attributes["rng_algorithm"])


def _mixes_rotated(op: ir.Operation) -> bool:
    """x ^ (y << n | y >> m): what Threefry does in each of its rounds."""
    for joined in map(maker, op.operands):
        if joined is not None and kind(joined) == "or":
            shifts = {made and kind(made) for made in map(maker, joined.operands)}
            if shifts == {"shift_left", "shift_right_logical"}:
                return True
    return False


def _compares_otherwise(op: ir.Operation) -> bool:
    last = maker(terminator(op.regions[0].blocks[0]).operands[0])
    return last is None or kind(last) != "compare" or direction(last) not in ("LT", "LE", "GT", "GE")


def _targets(pattern: str) -> Callable[[ir.Operation], bool]:
    expression = re.compile(pattern)
    return lambda op: expression.fullmatch(op.attributes["call_target_name"].value) is not None


# Custom calls it knows, or that JAX makes only where it lowers for a CPU.
_KNOWN_CALLS = (
    r"AwsNeuron\w+|NeuronBoundaryMarker.*|Resize(Nearest|Bilinear)(Grad)?"
    r"|lapack_\w+|xla_.*callback|Sharding|SPMD\w+"
)
_JAX_ISSUES = "JAX NeuronX known issues"
_LINEAR_ALGEBRA = (
    "factorise on the host and pass the factors; a triangular system of fixed size: substitute row by row in "
    "a lax.fori_loop with a constant count"
)
_WITHOUT_INTEGERS = "compute in f32, which is exact up to 2**24: convert before it and back after it"

RULES: tuple[Rule, ...] = (
    Rule(
        code="NCC_EVRF001", kinds=("triangular_solve", "cholesky"),
        what="an unsupported operator", fix=_LINEAR_ALGEBRA,
    ),
    Rule(
        code="NCC_EVRF001", kinds=("custom_call",), applies=_targets(r"lapack_\w+"),
        what="linear algebra, which has no operator on the device", fix=_LINEAR_ALGEBRA,
    ),
    Rule(
        code="NCC_EVRF001", kinds=("fft",),
        what="an unsupported operator",
        fix="multiply with the matrices of cosines and sines: two real products",
    ),
    Rule(
        code="NCC_EHCA005", kinds=("custom_call",), applies=lambda op: not _targets(_KNOWN_CALLS)(op),
        what="a custom call it does not know", fix="write it in JAX's own ops",
    ),
    Rule(
        code=_JAX_ISSUES, kinds=("case", "if"), applies=_chosen_at_run_time,
        what="a branch chosen at run time (lax.cond, lax.switch)",
        fix="compute both sides and choose: jnp.where(predicate, a, b)",
    ),
    Rule(
        code=_JAX_ISSUES, kinds=("while",), applies=_unknown_trip_count,
        what="a loop whose number of rounds is known only at run time",
        fix="lax.fori_loop with a constant count, which keeps the old value where it should have stopped: "
        "jnp.where(go_on, new, old)",
    ),
    Rule(
        code=_JAX_ISSUES, kinds=("reduce_precision",),
        what="an unsupported operator",
        fix="convert to the narrow type and back, e.g. x.astype(jnp.bfloat16).astype(x.dtype)",
    ),
    Rule(
        code=_JAX_ISSUES, kinds=("reduce",), applies=_several_results,
        what="a reduction of several arrays at once (jnp.argmax, jnp.argmin)",
        fix="two reductions, e.g. for argmax: jnp.min(jnp.where(x == jnp.max(x), jnp.arange(n), n))",
    ),
    Rule(
        code="NCC_EVRF019", kinds=("reduce_window",), applies=_several_results,
        what="a windowed reduction of several arrays at once", fix="one windowed reduction for each array",
    ),
    Rule(
        code="NCC_EVRF017", kinds=("reduce_window",), applies=_beyond_one("base_dilations"),
        what="a windowed reduction of a dilated base", fix="lax.pad with interior padding before it",
    ),
    Rule(
        code="NCC_EVRF018", kinds=("reduce_window",), applies=_beyond_one("window_dilations"),
        what="a windowed reduction with a dilated window",
        fix="combine shifted slices: x[:-d] + x[d:] for a window of two",
    ),
    Rule(
        code="NCC_EVRF010", kinds=("convolution",), applies=_beyond_one("lhs_dilation", "rhs_dilation"),
        what="a convolution that dilates both its input and its kernel",
        fix="dilate the input with lax.pad (interior padding), the kernel with rhs_dilation",
    ),
    Rule(
        code="NCC_EVRF011", kinds=("convolution",), applies=_beyond_one("window_strides", "lhs_dilation"),
        what="a convolution with strides and a dilated input",
        fix="dilate the input with lax.pad (interior padding) before it",
    ),
    Rule(
        code="NCC_EVRF035", kinds=("dot_general", "dot"), applies=_on_integers,
        what="a product of integers", fix=_WITHOUT_INTEGERS,
    ),
    Rule(
        code="NCC_EVRF016", kinds=("scatter",), applies=_adds_integers,
        what="a scatter that combines integers or booleans", fix=_WITHOUT_INTEGERS,
    ),
    Rule(
        code="NCC_EVRF013", kinds=("top_k",), applies=_on_integers,
        what="TopK of integers", fix=_WITHOUT_INTEGERS,
    ),
    Rule(
        severity="degraded", code="NCC_EVRF062", kinds=("power",), applies=_on_integers,
        what="a power of integers, computed in f32 with loss",
        fix="multiply, or compute in f32 as far as 2**24",
    ),
    Rule(
        code="NCC_EVRF006", kinds=("rng_bit_generator",), applies=_own_algorithm,
        what="a random algorithm other than the default", fix='jax.random.key(seed, impl="rbg")',
    ),
    Rule(
        severity="degraded", code=_JAX_ISSUES, kinds=("xor",), applies=_mixes_rotated,
        what="Threefry random numbers, whose support is incomplete",
        fix='jax.random.key(seed, impl="rbg"), or jax_default_prng_impl=rbg',
    ),
    Rule(
        code="NCC_EVRF022", kinds=("shift_right_arithmetic",), applies=_not_32_bits,
        what="an arithmetic shift of integers that have not 32 bits",
        fix="convert to int32 before it and back after it",
    ),
    Rule(
        code=_JAX_ISSUES, kinds=("sort",), applies=_compares_otherwise,
        what="a sort whose comparator does not end in LT, LE, GT or GE",
        fix="sort by one key: lax.sort(operands, num_keys=1)",
    ),
    Rule(
        code="NCC_ESFH002", kinds=("constant",), applies=_is_unsigned_64,
        what="a constant of type uint64",
        fix="use uint32; Threefry keys make such constants, keys of impl rbg do not",
    ),
    # In no list of supported operators; most can be composed of others, so that many do compile.
    Rule(
        severity="undocumented", code="list of supported operators",
        kinds=(
            "cbrt", "collective_broadcast", "count_leading_zeros", "exponential_minus_one", "is_finite",
            "log_plus_one", "logistic", "optimization_barrier", "popcnt", "remainder",
            "round_nearest_afz", "round_nearest_even", "shift_left", "tan", "uniform_dequantize",
            "uniform_quantize",
        ),
        what="an operator in no list of supported ones", fix="try it early on the real compiler",
    ),
)  # fmt: skip

_BY_KIND = {name: tuple(r for r in RULES if name in r.kinds) for rule in RULES for name in rule.kinds}

# What to write in place of a type that only the simulator computes; why is in the table of types.
_NARROWED = ("i64", "ui64")
_TYPE_FIXES = {
    "f64": "use float32: leave jax_enable_x64 off",
    "i64": "use int32: leave jax_enable_x64 off, or check that no value needs more",
    "ui64": "use uint32: leave jax_enable_x64 off, or check that no value needs more",
    "complex<f32>": "keep real and imaginary part as two arrays",
    "complex<f64>": "keep real and imaginary part as two arrays",
    "f8E4M3FN": "use float8_e4m3",
}
_ELSE = "use int8, the narrowest integer it has"
_CODE = re.compile(r"NCC_\w+")


def _types(op: ir.Operation) -> Iterator[Finding]:
    """One finding for each element type of the op's results that only the simulator has."""
    shaped = [result.type for result in op.results if isinstance(result.type, ir.ShapedType)]
    for name in dict.fromkeys(str(ir.ShapedType(type_).element_type) for type_ in shaped):
        found = find_dtype(name) if "quant" not in name else None
        if found is not None and found.support == "emulated":
            code = _CODE.search(found.note)
            yield _finding(
                op,
                "degraded" if name in _NARROWED else "rejected",
                code[0] if code and name not in _NARROWED else "data types",
                f"a value of type {name}: {found.note}",
                _TYPE_FIXES.get(name, _ELSE),
            )
