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


def _rows(names: str, **values: str | int) -> dict[str, OpRule]:
    return {name: OpRule(**values) for name in names.split()}


# Instructions a kind takes beyond one are our own lowering (no published count): expm1 = exp and subtract,
# log1p = add and log, power = log, multiply, exp, popcnt = a shift-and-add tree over 32 bits, and so on.
OPS: dict[str, OpRule] = {
    **_rows("dot dot_general einsum convolution dynamic_conv", engine="pe", price="matmul"),
    **_rows("transpose", engine="pe", price="transpose"),
    **_rows(
        "abs add and compare divide maximum minimum multiply negate not or select "
        "shift_left shift_right_arithmetic shift_right_logical subtract xor map",
        engine="vector",
        price="elementwise",
        flops=1,
    ),
    **_rows(
        "ceil clamp floor is_finite remainder round_nearest_afz round_nearest_even",
        engine="vector",
        price="elementwise",
        passes=2,
        flops=1,
    ),
    **_rows("uniform_dequantize", engine="vector", price="elementwise", passes=2, flops=2),
    **_rows("uniform_quantize", engine="vector", price="elementwise", passes=3, flops=3),
    **_rows("batch_norm_inference", engine="vector", price="elementwise", passes=2, flops=4),
    **_rows("batch_norm_training", engine="vector", price="elementwise", passes=3, flops=8),
    **_rows("batch_norm_grad", engine="vector", price="elementwise", passes=8, flops=14),
    **_rows("sign", engine="scalar", price="elementwise", flops=1),
    **_rows(
        "cosine exponential log logistic rsqrt sine sqrt tanh",
        engine="scalar",
        price="elementwise",
        transcendentals=1,
    ),
    **_rows(
        "exponential_minus_one log_plus_one",
        engine="scalar",
        price="elementwise",
        passes=2,
        transcendentals=1,
    ),
    **_rows("cbrt power tan", engine="scalar", price="elementwise", passes=3, transcendentals=1),
    **_rows("atan2", engine="scalar", price="elementwise", passes=4, transcendentals=1),
    **_rows("count_leading_zeros popcnt", engine="gpsimd", price="elementwise", passes=12, flops=1),
    **_rows("rng rng_bit_generator", engine="gpsimd", price="elementwise", passes=20),
    **_rows("iota dynamic_iota", engine="gpsimd", price="elementwise"),
    **_rows("gather dynamic_gather torch_index_select", engine="gpsimd", price="index"),
    **_rows("scatter", engine="gpsimd", price="index", flops=1),
    **_rows("reduce", engine="vector", price="reduce"),
    **_rows("reduce_window select_and_scatter", engine="vector", price="window"),
    **_rows("sort", engine="vector", price="sort"),
    **_rows("fft", engine="vector", price="fft"),
    **_rows("cholesky triangular_solve", engine="vector", price="linalg"),
    **_rows(
        "complex concatenate dynamic_pad dynamic_slice dynamic_update_slice pad real_dynamic_slice reverse",
        engine="dma",
        price="move",
    ),
    **_rows(
        "bitcast_convert broadcast broadcast_in_dim constant dynamic_broadcast_in_dim dynamic_reshape "
        "get_dimension_size imag real reshape set_dimension_size slice",
        engine="free",
        price="free",
    ),
    **_rows("convert reduce_precision", engine="free", price="free", flops=1),
    **_rows(
        "after_all case create_token get_tuple_element if optimization_barrier partition_id replica_id "
        "return tuple while",
        engine="free",
        price="free",
    ),
    **_rows("unary_einsum", engine="vector", price="reduce"),
}

COLLECTIVES = frozenset(
    {
        "all_gather",
        "all_reduce",
        "all_to_all",
        "collective_broadcast",
        "collective_permute",
        "cross-replica-sum",
        "reduce_scatter",
    }
)
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
