"""Every StableHLO op in one table: which engine runs it, how its cost is reckoned, its flops per element."""

from dataclasses import dataclass
from difflib import get_close_matches

from kernels.errors import CompileError

__all__ = ["COLLECTIVES", "COMPUTE", "ENGINES", "OPS", "OUTSIDE", "OpRule", "kinds_priced_as", "rule"]

COMPUTE: tuple[str, ...] = ("pe", "vector", "scalar", "gpsimd")
ENGINES: tuple[str, ...] = (*COMPUTE, "dma")


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """How one op kind is priced.

    Attributes:
      engine: "pe", "vector", "scalar", "gpsimd", "dma", or "free" where it is an access pattern, a cast
        on the way of another op, or control whose body is counted op by op.
      price: which rule reckons its time: "matmul", "elementwise", "reduce", "window", "transpose",
        "move", "index", "sort", "fft", "linalg" or "free".
      passes: instructions over all elements that one op takes.
      flops: per result element, as XLA's cost analysis counts; "matmul", "reduce", "window", "sort",
        "fft" and "linalg" reckon theirs from shapes.
      transcendentals: per result element, counted apart from flops as XLA does.
    """

    engine: str
    price: str
    passes: int = 1
    flops: int = 0
    transcendentals: int = 0


def _rows(engine: str, price: str, names: str, **values: int) -> dict[str, OpRule]:
    return {name: OpRule(engine=engine, price=price, **values) for name in names.split()}


# Instructions a kind takes beyond one are our own lowering (no published count): expm1 = exp and subtract,
# log1p = add and log, power = log, multiply, exp, popcnt = a shift-and-add tree over 32 bits, and so on.
OPS: dict[str, OpRule] = {
    **_rows("pe", "matmul", "dot dot_general einsum convolution dynamic_conv"),
    **_rows("pe", "transpose", "transpose"),
    **_rows("vector", "elementwise",
            "abs add and compare divide maximum minimum multiply negate not or select shift_left "
            "shift_right_arithmetic shift_right_logical subtract xor map", flops=1),
    **_rows("vector", "elementwise",
            "ceil clamp floor is_finite remainder round_nearest_afz round_nearest_even", passes=2, flops=1),
    **_rows("vector", "elementwise", "uniform_dequantize", passes=2, flops=2),
    **_rows("vector", "elementwise", "uniform_quantize", passes=3, flops=3),
    **_rows("vector", "elementwise", "batch_norm_inference", passes=2, flops=4),
    **_rows("vector", "elementwise", "batch_norm_training", passes=3, flops=8),
    **_rows("vector", "elementwise", "batch_norm_grad", passes=8, flops=14),
    **_rows("scalar", "elementwise", "sign", flops=1),
    **_rows("scalar", "elementwise",
            "cosine exponential log logistic rsqrt sine sqrt tanh", transcendentals=1),
    **_rows("scalar", "elementwise", "exponential_minus_one log_plus_one", passes=2, transcendentals=1),
    **_rows("scalar", "elementwise", "cbrt power tan", passes=3, transcendentals=1),
    **_rows("scalar", "elementwise", "atan2", passes=4, transcendentals=1),
    **_rows("gpsimd", "elementwise", "count_leading_zeros popcnt", passes=12, flops=1),
    **_rows("gpsimd", "elementwise", "rng rng_bit_generator", passes=20),
    **_rows("gpsimd", "elementwise", "iota dynamic_iota"),
    **_rows("gpsimd", "index", "gather dynamic_gather torch_index_select"),
    **_rows("gpsimd", "index", "scatter", flops=1),
    **_rows("vector", "reduce", "reduce"),
    **_rows("vector", "window", "reduce_window select_and_scatter"),
    **_rows("vector", "sort", "sort"),
    **_rows("vector", "fft", "fft"),
    **_rows("vector", "linalg", "cholesky triangular_solve"),
    **_rows("dma", "move",
            "complex concatenate dynamic_pad dynamic_slice dynamic_update_slice pad real_dynamic_slice "
            "reverse"),
    **_rows("free", "free",
            "bitcast_convert broadcast broadcast_in_dim constant dynamic_broadcast_in_dim dynamic_reshape "
            "get_dimension_size imag real reshape set_dimension_size slice"),
    **_rows("free", "free", "convert reduce_precision", flops=1),
    **_rows("free", "free",
            "after_all case create_token get_tuple_element if optimization_barrier partition_id replica_id "
            "return tuple while"),
    **_rows("vector", "reduce", "unary_einsum"),
}  # fmt: skip

COLLECTIVES = frozenset({
    "all_gather", "all_reduce", "all_to_all", "collective_broadcast", "collective_permute",
    "cross-replica-sum", "reduce_scatter",
})  # fmt: skip
# What no cost of a kernel can be given for, and why.
OUTSIDE: dict[str, str] = {
    **dict.fromkeys(COLLECTIVES, "a collective is priced by the links it uses, not inside a kernel"),
    **dict.fromkeys(("infeed", "outfeed", "send", "recv"), "exchange with the host has no place in a kernel"),
    **dict.fromkeys(("async_start", "async_done"), "what runs asynchronously is priced where it is started"),
    "composite": "a composite is priced by the ops of its decomposition",
    "custom_call": "neuronx-cc refuses unknown custom calls (NCC_EHCA005), so nothing says what one costs",
}


def rule(kind: str) -> OpRule:
    """The rule of a StableHLO mnemonic without its dialect, e.g. ``dot_general``.

    Raises:
      CompileError: the kind is unknown, or is nothing one core computes.
    """
    found = OPS.get(kind)
    if found is not None:
        return found
    if kind in OUTSIDE:
        raise CompileError(
            OUTSIDE[kind],
            op=kind,
            fix="its results can be computed; to have its time too, write it with ordinary StableHLO ops",
        )
    near = get_close_matches(kind, OPS, n=1)
    fix = f"did you mean {near[0]}?" if near else "give the mnemonic of a StableHLO op"
    raise CompileError("no cost rule for this op", op=kind, fix=fix)


def kinds_priced_as(*prices: str) -> frozenset[str]:
    """All op kinds with one of those price rules."""
    return frozenset(kind for kind, found in OPS.items() if found.price in prices)
