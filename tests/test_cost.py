"""The cost model of one core: identities, XLA's own count of flops, and published kernel-level figures."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from hlo_passes.ir import stablehlo
from kernels.cost import PRICES, KernelCost, cost
from kernels.engines import dma_s, pe_peak_flop_per_s, product, stall_s
from kernels.errors import CompileError
from kernels.hardware import Core, load_core
from kernels.matmul import reload_bytes
from kernels.ops import ENGINES, OPS, OUTSIDE, rule
from kernels.table import classify
from kernels.work import KernelWork, OpWork, Tensor

_CORE = load_core()
_SIZES = st.integers(1, 3000)
_MATMUL_TYPES = st.sampled_from(
    ["bf16", "f16", "f32", "tf32", "f8E4M3", "f8E4M3FN", "i8", "i32", "f64", "complex<f32>"]
)


def _tensor(*shape: int, dtype: str = "f32") -> Tensor:
    return Tensor(shape=shape, dtype=dtype)


def _matmul(m: int, k: int, n: int, dtype: str = "bf16", batch: int = 1, repeats: int = 1) -> KernelWork:
    lhs, rhs = _tensor(batch, m, k, dtype=dtype), _tensor(batch, k, n, dtype=dtype)
    out = _tensor(batch, m, n, dtype=dtype)
    op = OpWork(
        kind="dot_general", operands=(lhs, rhs), results=(out,), matmul=(batch, m, k, n), repeats=repeats
    )
    return KernelWork(name="matmul", ops=(op,), reads=(lhs, rhs), writes=(out,))


def _chain(kinds: list[str], shape: tuple[int, ...], dtype: str = "f32", repeats: int = 1) -> KernelWork:
    x = Tensor(shape=shape, dtype=dtype)
    ops = tuple(OpWork(kind=kind, operands=(x, x), results=(x,), repeats=repeats) for kind in kinds)
    return KernelWork(name="elementwise", ops=ops, reads=(x,), writes=(x,))


def _above_roofline(found: KernelCost, core: Core = _CORE) -> bool:
    traffic = found.bytes_read + found.bytes_written + found.reload_bytes
    return found.latency_s >= max(
        found.flops / core.pe.peak_flop_per_s,
        traffic / core.hbm.bandwidth_bytes_per_s,
        *found.engine_s.values(),
    )


# -- identities ---------------------------------------------------------------------------------------


@given(b=st.integers(1, 64), m=_SIZES, k=_SIZES, n=_SIZES, dtype=_MATMUL_TYPES, repeats=st.integers(1, 9))
def test_a_product_is_2mkn_flops_and_never_beats_the_peak(b, m, k, n, dtype, repeats) -> None:
    found = cost(_matmul(m, k, n, dtype, b, repeats), _CORE)
    assert found.flops == 2 * b * m * k * n * repeats
    assert found.latency_s >= found.flops / pe_peak_flop_per_s(dtype, _CORE)
    assert found.engine_s["pe"] >= found.flops / pe_peak_flop_per_s(dtype, _CORE)
    assert _above_roofline(found)


@given(m=_SIZES, k=_SIZES, n=_SIZES, dtype=_MATMUL_TYPES, grow=st.integers(0, 2), by=st.integers(1, 600))
def test_a_larger_product_never_takes_less(m, k, n, dtype, grow, by) -> None:
    small, large = [m, k, n], [m, k, n]
    large[grow] += by
    assert cost(_matmul(*small, dtype), _CORE).latency_s <= cost(_matmul(*large, dtype), _CORE).latency_s
    assert reload_bytes(*small, dtype, dtype, _CORE) <= reload_bytes(*large, dtype, dtype, _CORE)


@given(m=_SIZES, k=_SIZES, n=_SIZES)
def test_a_product_costs_the_same_either_way_round(m, k, n) -> None:
    assert product(m, k, n, _CORE).cycles == product(n, k, m, _CORE).cycles


_ELEMENTWISE = sorted(kind for kind, found in OPS.items() if found.price == "elementwise")


@given(
    kinds=st.lists(st.sampled_from(_ELEMENTWISE), min_size=1, max_size=6),
    size=st.integers(1, 10**7),
    by=st.integers(1, 10**6),
    dtype=st.sampled_from(["f32", "bf16", "i32", "i1", "complex<f32>"]),
)
def test_a_longer_chain_or_tensor_never_takes_less(kinds, size, by, dtype) -> None:
    found = cost(_chain(kinds, (size,), dtype), _CORE)
    assert _above_roofline(found)
    assert found.latency_s <= cost(_chain(kinds, (size + by,), dtype), _CORE).latency_s
    assert found.latency_s <= cost(_chain([*kinds, "add"], (size,), dtype), _CORE).latency_s


@given(
    work=st.one_of(
        st.builds(_matmul, _SIZES, _SIZES, _SIZES, _MATMUL_TYPES),
        st.builds(lambda n: _chain(["add", "tanh"], (n,)), st.integers(1, 10**8)),
    )
)
def test_twice_the_memory_bandwidth_is_never_slower(work) -> None:
    hbm = dataclasses.replace(_CORE.hbm, bandwidth_bytes_per_s=2 * _CORE.hbm.bandwidth_bytes_per_s)
    dma = dataclasses.replace(_CORE.dma, engine_bytes_per_s=2 * _CORE.dma.engine_bytes_per_s)
    doubled = cost(work, dataclasses.replace(_CORE, hbm=hbm))
    assert doubled.latency_s <= cost(work, _CORE).latency_s
    assert cost(work, dataclasses.replace(_CORE, hbm=hbm, dma=dma)).latency_s <= doubled.latency_s


def test_slow_memory_holds_a_kernel_to_its_bandwidth() -> None:
    hbm = dataclasses.replace(_CORE.hbm, bandwidth_bytes_per_s=1e9)
    found = cost(_matmul(1, 4096, 4096), dataclasses.replace(_CORE, hbm=hbm))
    assert found.latency_s == pytest.approx((2 * 4096 + 2 * 4096**2 + 2 * 4096) / 1e9, rel=1e-3)


@given(elements=st.integers(1, 10**6), more=st.integers(0, 10**6), item=st.sampled_from([1, 2, 4]))
def test_more_bytes_never_load_faster(elements, more, item) -> None:
    assert dma_s(elements * item, elements, _CORE) <= dma_s((elements + more) * item, elements + more, _CORE)


def test_a_fused_chain_touches_hbm_once() -> None:
    size = 1 << 22
    alone = cost(_chain(["add"], (size,)), _CORE)
    fused = cost(_chain(["add"] * 3, (size,)), _CORE)
    assert fused.bytes_read + fused.bytes_written == alone.bytes_read + alone.bytes_written == 8 * size
    assert fused.engine_s["dma"] == alone.engine_s["dma"]
    assert fused.latency_s < 3 * alone.latency_s


def test_repeats_multiply_the_work_of_an_op() -> None:
    once, thrice = cost(_chain(["add"], (4096,)), _CORE), cost(_chain(["add"], (4096,), repeats=3), _CORE)
    assert thrice.flops == 3 * once.flops
    assert thrice.engine_s["vector"] == pytest.approx(3 * once.engine_s["vector"])


def test_an_epilogue_takes_the_product_out_of_psum() -> None:
    work = _matmul(128, 1024, 512, "f32")
    out = work.writes[0]
    vector = _tensor(512)
    bias = (
        OpWork(kind="broadcast_in_dim", operands=(vector,), results=(out,)),
        OpWork(kind="add", operands=(out, out), results=(out,)),
    )
    fused = cost(dataclasses.replace(work, ops=(*work.ops, *bias), reads=(*work.reads, vector)), _CORE)
    # One vector pass over 512 elements a partition evacuates and adds; nothing else copies.
    assert fused.engine_s["vector"] == pytest.approx(512 / _CORE.vector.clock_hz)
    assert fused.engine_s["scalar"] == 0
    alone = cost(work, _CORE)
    assert alone.engine_s["vector"] + alone.engine_s["scalar"] > 0


def test_integers_are_added_on_gpsimd_and_casts_are_free() -> None:
    assert cost(_chain(["add"], (4096,), "i32"), _CORE).engine_s["gpsimd"] > 0
    assert cost(_chain(["add"], (4096,), "f32"), _CORE).engine_s["gpsimd"] == 0
    cast = cost(_chain(["convert"], (4096,)), _CORE)
    assert {name for name, seconds in cast.engine_s.items() if seconds} == {"dma"}
    assert cast.flops == 4096


def _vector_s(work: KernelWork) -> float:
    return cost(work, _CORE).engine_s["vector"]


def test_two_operands_in_sbuf_take_two_cycles_but_for_bf16_sums() -> None:
    elements, clock = 1 << 20, _CORE.vector.clock_hz
    assert _vector_s(_chain(["add"], (elements,), "f32")) == pytest.approx(2 * elements / 128 / clock)
    assert _vector_s(_chain(["divide"], (elements,), "bf16")) == pytest.approx(2 * elements / 128 / clock)
    assert _vector_s(_chain(["add"], (elements,), "bf16")) == pytest.approx(elements / 128 / clock)


def test_reductions_in_bf16_take_half_a_cycle() -> None:
    def reduce(dtype: str) -> KernelWork:
        x, row = _tensor(1 << 20, dtype=dtype), _tensor(dtype=dtype)
        op = OpWork(kind="reduce", operands=(x, row), results=(row,))
        return KernelWork(name="reduce", ops=(op,), reads=(x,), writes=(row,))

    assert _vector_s(reduce("f32")) == pytest.approx((1 << 20) / 128 / _CORE.vector.clock_hz)
    assert _vector_s(reduce("bf16")) == pytest.approx(_vector_s(reduce("f32")) / 2)


def test_a_move_rides_on_the_kernels_own_load_and_store() -> None:
    x, half, sums = _tensor(1 << 16), _tensor(1 << 15), _tensor(1 << 16)
    load = OpWork(kind="dynamic_slice", operands=(x,), results=(half,))
    inside = (OpWork(kind="tanh", operands=(half,), results=(half,)),
              OpWork(kind="concatenate", operands=(half, half), results=(sums,)),
              OpWork(kind="tanh", operands=(sums,), results=(x,)))  # fmt: skip
    loaded = cost(KernelWork(name="slice", ops=(load,), reads=(x,), writes=(half,)), _CORE)
    assert loaded.engine_s["dma"] == dma_s(x.size_bytes, x.size, _CORE) + dma_s(
        half.size_bytes, half.size, _CORE
    )
    part = cost(KernelWork(name="slice", ops=(load,), reads=(half,), writes=(half,)), _CORE)
    assert part.engine_s["dma"] == 2 * dma_s(half.size_bytes, half.size, _CORE)
    update = OpWork(kind="dynamic_update_slice", operands=(x, half), results=(x,))
    put = cost(KernelWork(name="update", ops=(update,), reads=(half,), writes=(half,)), _CORE)
    assert put.engine_s["dma"] == part.engine_s["dma"]
    moved = cost(KernelWork(name="chain", ops=inside, reads=(half,), writes=()), _CORE)
    assert moved.engine_s["dma"] == dma_s(half.size_bytes, half.size, _CORE) + dma_s(
        sums.size_bytes, sums.size, _CORE
    )


# -- against XLA's cost analysis -----------------------------------------------------------------------

_UNARY = {
    "abs": jnp.abs,
    "cbrt": lax.cbrt,
    "ceil": jnp.ceil,
    "cosine": jnp.cos,
    "exponential": jnp.exp,
    "exponential_minus_one": lax.expm1,
    "floor": jnp.floor,
    "is_finite": jnp.isfinite,
    "log": jnp.log,
    "log_plus_one": lax.log1p,
    "negate": lax.neg,
    "round_nearest_even": lambda x: lax.round(x, lax.RoundingMethod(1)),
    "rsqrt": lax.rsqrt,
    "sign": lax.sign,
    "sine": jnp.sin,
    "sqrt": jnp.sqrt,
    "tan": lax.tan,
    "tanh": jnp.tanh,
    "convert": lambda x: x.astype(jnp.bfloat16),
    "reverse": lambda x: x[::-1],
    "reduce_precision": lambda x: lax.reduce_precision(x, 8, 7),
    "transpose": lambda x: x.T,
}
_BINARY = {
    "add": lax.add,
    "atan2": lax.atan2,
    "compare": lax.gt,
    "divide": lax.div,
    "maximum": lax.max,
    "minimum": lax.min,
    "multiply": lax.mul,
    "power": lax.pow,
    "remainder": lax.rem,
    "subtract": lax.sub,
}


def _xla_counts(function, *arguments: jax.ShapeDtypeStruct) -> tuple[float, float]:
    found = jax.jit(function).lower(*arguments).cost_analysis()
    return found.get("flops", 0), found.get("transcendentals", 0)


@pytest.mark.parametrize("kind", [*_UNARY, *_BINARY])
def test_elementwise_flops_are_those_of_xla(kind: str) -> None:
    function, arity = (_UNARY[kind], 1) if kind in _UNARY else (_BINARY[kind], 2)
    argument = jax.ShapeDtypeStruct((33, 129), jnp.float32)
    x = _tensor(33, 129)
    op = OpWork(kind=kind, operands=(x,) * arity, results=(x,))
    found = cost(KernelWork(name=kind, ops=(op,), reads=(x,) * arity, writes=(x,)), _CORE)
    assert (found.flops, found.transcendentals) == _xla_counts(function, *(argument,) * arity)


def test_flops_with_shapes_are_those_of_xla() -> None:
    x, row = _tensor(32, 64), _tensor(32)
    argument = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    reduce = OpWork(kind="reduce", operands=(x, _tensor()), results=(row,))
    pool = OpWork(kind="reduce_window", operands=(x, _tensor()), results=(_tensor(16, 32),), window=9)
    cases = {
        reduce: lambda x: lax.reduce(x, 0.0, lax.add, (1,)),
        pool: lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (3, 3), (2, 2), "SAME"),
        OpWork(kind="sort", operands=(x,), results=(x,)): lambda x: lax.sort(x),
        _matmul(32, 64, 32, "f32").ops[0]: lambda x: x @ x.T,
    }
    for op, function in cases.items():
        found = cost(KernelWork(name=op.kind, ops=(op,), reads=op.operands, writes=op.results), _CORE)
        assert (found.flops, found.transcendentals) == _xla_counts(function, argument), op.kind


def test_groups_of_a_convolution_share_a_product() -> None:
    pixels, features, taps = 56 * 56, 128, (3, 3)
    x = Tensor(shape=(1, 56, 56, features), dtype="bf16")
    times = {}
    for groups in (1, 2, 32, 128):
        each = features // groups
        w = Tensor(shape=(*taps, each, features), dtype="bf16")
        matmul = (groups, pixels, 9 * each, each)
        op = OpWork(kind="convolution", operands=(x, w), results=(x,), matmul=matmul, taps=taps)
        price = cost(KernelWork(name="convolution", ops=(op,), reads=(x, w), writes=(x,)), _CORE)
        assert price.flops == 2 * pixels * 9 * each * features
        times[groups] = price.engine_s["pe"]
    # All features fill the rows and the columns once, however few of the products between them count.
    assert set(times.values()) == {9 * pixels / (_CORE.pe.clock_hz * _CORE.pe.sustained_fraction)}


def test_a_convolution_of_few_features_leaves_lanes_idle() -> None:
    # Features lie on partitions: 64 of them take twice the cycles of 128 for as many elements.
    def vector_s(features: int, pixels: int) -> float:
        x, w, y = _tensor(pixels, 128), _tensor(1, 1, 128, features), _tensor(pixels, features)
        product = OpWork(
            kind="convolution", operands=(x, w), results=(y,), matmul=(1, pixels, 128, features), taps=(1, 1)
        )
        relu = OpWork(kind="add", operands=(y, y), results=(y,))
        work = KernelWork(name="convolution", ops=(product, relu), reads=(x, w), writes=(y,))
        return cost(work, _CORE).engine_s["vector"]

    assert vector_s(64, 4096) == pytest.approx(2 * vector_s(128, 2048))
    assert vector_s(256, 2048) == pytest.approx(2 * vector_s(128, 2048))
    assert vector_s(0, 2048) < vector_s(128, 2048)


@pytest.mark.parametrize(
    ("name", "sums", "turned"),
    [("normalization", (4, 64), True), ("normalization", (4,), False), ("elementwise", (4, 64), False)],
)
def test_results_of_kernels_by_rows_are_turned(name: str, sums: tuple[int, ...], turned: bool) -> None:
    x = _tensor(4, 64, 1024)
    work = KernelWork(
        name=name,
        ops=(OpWork(kind="reduce", operands=(x, _tensor()), results=(_tensor(*sums),)),),
        reads=(x,),
        writes=(x,),
    )
    # 16 tiles of 128 x 128, 128 cycles each.
    assert cost(work, _CORE).engine_s["pe"] == pytest.approx(turned * 16 * 128 / _CORE.pe.clock_hz)


@pytest.mark.parametrize(("features", "share"), [(64, 0.5), (128, 1.0), (256, 1.0)])
def test_a_pool_reads_each_window_once(features: int, share: float) -> None:
    # nki/guides/tutorials/average_pool2d.rst: one reduction over an access pattern of windows, an element a
    # cycle. The features lie on partitions.
    x, y = _tensor(1, 56, 56, features), _tensor(1, 28, 28, features)
    pool = OpWork(kind="reduce_window", operands=(x, _tensor()), results=(y,), window=4, features=features)
    busy_s = cost(KernelWork(name="single", ops=(pool,), reads=(x,), writes=(y,)), _CORE).engine_s["vector"]
    assert busy_s == pytest.approx(x.size / 128 / share / _CORE.vector.clock_hz)


# -- published figures -----------------------------------------------------------------------------------


def test_best_published_tiling_of_a_large_product() -> None:
    # nki/tutorials/matrix_multiplication.rst: 6.97 ms at 85.24 % HFU. The sustained fraction of the model is
    # that HFU, so what is tested is that tiling, reloads and evacuation hide behind the tensor engine.
    found = cost(_matmul(4096, 8192, 8192), _CORE)
    assert found.bound == "pe"
    assert found.latency_s == pytest.approx(6.97e-3, rel=0.03)
    assert found.flops / found.latency_s / _CORE.pe.peak_flop_per_s == pytest.approx(0.8524, rel=0.03)
    assert found.reload_bytes > 0


def test_published_attention_kernel() -> None:
    # NKI samples, one head of [4096, 128] in bf16: tuned kernels run below 350-380 us, the plain one below
    # 480-536 us (both ceilings of AWS's own tests, not
    # measurements). No constant is fitted to them, but the list of ops is ours and the bounds are wide.
    q, scores, rows = _tensor(4096, 128, dtype="bf16"), _tensor(4096, 4096), _tensor(4096)
    weights, initial = _tensor(4096, 4096, dtype="bf16"), _tensor()

    def op(kind, operands, result, **more) -> OpWork:
        return OpWork(kind=kind, operands=operands, results=(result,), **more)

    ops = (
        op("dot_general", (q, q), scores, matmul=(1, 4096, 128, 4096)),
        op("reduce", (scores, initial), rows),
        op("broadcast_in_dim", (rows,), scores),
        op("subtract", (scores, scores), scores),
        op("exponential", (scores,), scores),
        op("reduce", (scores, initial), rows),
        op("convert", (scores,), weights),
        op("dot_general", (weights, q), q, matmul=(1, 4096, 4096, 128)),
        op("broadcast_in_dim", (rows,), q),
        op("divide", (q, q), q),
    )
    found = cost(KernelWork(name="attention", ops=ops, reads=(q, q, q), writes=(q,)), _CORE)
    assert 240e-6 < found.latency_s < 480e-6


@pytest.mark.parametrize(
    ("partition_bytes", "percent"),
    [(32, 1.4), (64, 2.6), (128, 5.3), (256, 10.3), (512, 20.6), (1024, 42.2), (2048, 81.3), (4096, 96.6),
     (8192, 98.3), (16384, 99), (32768, 100), (1 << 20, 100)],
)  # fmt: skip
def test_dma_efficiency_by_size(partition_bytes: int, percent: float) -> None:
    # nki-dma-intro-1.jpg, digitised; 3 % is what the removed digitising noise amounts to.
    size = 128 * partition_bytes
    assert 100 * size / 272e9 / dma_s(size, size, _CORE) == pytest.approx(percent, rel=0.03)


def test_a_chain_of_dependent_scalar_instructions() -> None:
    # nki_perf_guide.rst: 189 ns for each dependent 1-element ScalarE instruction.
    longer, shorter = (cost(_chain(["exponential"], (1,), repeats=n), _CORE).latency_s for n in (2000, 1000))
    assert (longer - shorter) / 1000 == pytest.approx(189e-9)
    assert stall_s(_CORE) > 0


def test_f32_products_run_at_a_quarter() -> None:
    fast, slow = (cost(_matmul(2048, 2048, 2048, dtype), _CORE).engine_s["pe"] for dtype in ("bf16", "f32"))
    assert slow == pytest.approx(4 * fast)
    assert cost(_matmul(2048, 2048, 2048, "tf32"), _CORE).engine_s["pe"] == fast


def test_a_vector_times_matrix_waits_for_memory() -> None:
    found = cost(_matmul(1, 5120, 5120), _CORE)
    assert found.bound == "dma"
    assert found.latency_s == pytest.approx(2 * 5120**2 / 272e9, rel=0.05)


@settings(max_examples=30)
@given(m=_SIZES, k=_SIZES, n=_SIZES)
def test_tile_cycles_are_the_documented_sum(m, k, n) -> None:
    def tiles(size: int, largest: int) -> list[int]:
        count = math.ceil(size / largest)
        return [size // count + (index < size % count) for index in range(count)]

    def documented(stationary: int, moving: int) -> int:
        full, rest = divmod(stationary, 128)
        held = [128] * full + [rest] * bool(rest)
        return sum(
            max(min(64, s), v) for _ in range(math.ceil(k / 128)) for s in held for v in tiles(moving, 512)
        )

    assert product(m, k, n, _CORE).cycles == min(documented(m, n), documented(n, m))


# -- the tables ------------------------------------------------------------------------------------------


def test_the_op_table_covers_stablehlo() -> None:
    classes = [value for value in vars(stablehlo).values() if isinstance(value, type)]
    names = {value.OPERATION_NAME.partition(".")[2] for value in classes if hasattr(value, "OPERATION_NAME")}
    assert len(names) > 100
    assert names == OPS.keys() | OUTSIDE.keys()


def test_every_rule_names_an_engine_and_a_price() -> None:
    assert all(found.engine in (*ENGINES, "free") and found.price in PRICES for found in OPS.values())


@pytest.mark.parametrize("kind", ["frobnicate", "dot_generel", "all_reduce", "custom_call", "infeed"])
def test_what_has_no_cost_is_an_error(kind: str) -> None:
    with pytest.raises(CompileError, match=kind):
        rule(kind)
    with pytest.raises(CompileError, match=kind):
        cost(_chain([kind], (8,)), _CORE)


def test_a_product_without_its_sizes_is_an_error() -> None:
    x = _tensor(4, 4)
    op = OpWork(kind="dot_general", operands=(x, x), results=(x,))
    with pytest.raises(CompileError, match=r"OpWork\.matmul"):
        cost(KernelWork(name="matmul", ops=(op,), reads=(x, x), writes=(x,)), _CORE)


@pytest.mark.parametrize(
    ("kinds", "kernel"),
    [
        ("convert convert dot_general broadcast_in_dim add maximum", "matmul"),
        ("transpose dot_general reshape", "matmul"),
        ("dot_general dot_general", None),
        ("convolution broadcast_in_dim add maximum", "convolution"),
        ("reduce broadcast_in_dim subtract exponential reduce broadcast_in_dim divide", "softmax"),
        ("multiply reduce maximum subtract exponential reduce divide convert", "softmax"),
        ("reduce exponential subtract reduce divide", "reduce"),
        ("reduce divide subtract multiply reduce divide add rsqrt multiply multiply add", "normalization"),
        ("multiply reduce divide add sqrt divide multiply", "normalization"),
        ("batch_norm_inference", "normalization"),
        ("rsqrt multiply reduce", "reduce"),
        ("reduce_window", "reduce"),
        ("add tanh convert", "elementwise"),
        ("slice slice negate concatenate multiply add", "elementwise"),
        ("transpose reshape slice", "data_movement"),
        ("dynamic_update_slice", "data_movement"),
        ("compare select add gather", "gather_scatter"),
        ("while", "control"),
        ("sort", "control"),
        ("sort sort", None),
        ("custom_call", "single"),
        ("all_reduce", None),
        ("frobnicate", None),
        ("", None),
    ],
)
def test_classification(kinds: str, kernel: str | None) -> None:
    assert classify(kinds.split()) == kernel


def test_any_one_op_has_a_kernel_and_a_cost() -> None:
    for kind in OPS:
        assert classify([kind]) is not None
        x = _tensor(8, 8)
        sizes = (1, 8, 8, 8) if rule(kind).price == "matmul" else None
        op = OpWork(kind=kind, operands=(x, x, x), results=(x,), matmul=sizes)
        found = cost(KernelWork(name=kind, ops=(op,), reads=(x,), writes=(x,)), _CORE)
        assert _above_roofline(found), kind
