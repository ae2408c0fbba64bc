"""What a kernel's work says: products, traffic and loop counts, against XLA's cost analysis."""

import jax
import jax.numpy as jnp
import local_programs
import numpy as np
import pytest
from jax import lax

from hlo_passes import fuse
from hlo_passes.ir import ir, main, parse
from hlo_passes.ops import is_composite, kind
from hlo_passes.trip_count import trip_count
from hlo_passes.work import WorkTable
from kernels.cost import cost
from kernels.hardware import load_core
from kernels.work import KernelWork, Tensor


def _works(text: str, *, in_place: bool = False) -> list[KernelWork]:
    module = parse(text)
    fuse.run(module, fuse.Options())
    table = WorkTable(module)
    found = []
    for view in main(module).entry_block.operations:
        if is_composite(view):
            pairs = [(u.operand, u.result) for u in table.updates(view.operation)] if in_place else []
            found.append(table.work(view.operation, frozenset(pairs)))
    return found


def _local(function, *shapes, **options) -> str:
    return local_programs.local_module(function, [(shape, "f4", None) for shape in shapes], tp=1, **options)


def _flops(function, *shapes) -> float:
    avals = [jax.ShapeDtypeStruct(shape, "f4") for shape in shapes]
    return jax.jit(function).lower(*avals).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w: x @ w, ((5, 7), (7, 11))),
        (lambda x, w: jnp.einsum("bij,bkj->bik", x, w), ((3, 5, 7), (3, 11, 7))),
        (lambda x, w: lax.conv(x, w, (1, 1), "VALID"), ((2, 3, 9, 9), (8, 3, 3, 3))),
        (
            lambda x, w: lax.conv_general_dilated(x, w, (2, 2), "VALID", feature_group_count=4),
            ((2, 8, 9, 9), (12, 2, 3, 3)),
        ),
    ],
)
def test_products_have_the_flops_xla_counts(function, shapes):
    (work,) = [work for work in _works(_local(function, *shapes)) if any(op.matmul for op in work.ops)]
    (product,) = [op.matmul for op in work.ops if op.matmul]
    assert 2 * np.prod(product) == _flops(function, *shapes)


def test_a_window_slides_beside_features():
    def pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")

    (op,) = [op for work in _works(_local(pool, (2, 16, 16, 64))) for op in work.ops if op.window > 1]
    assert (op.window, op.features) == (9, 64)


def test_dot_general_is_batch_m_k_n():
    (work,) = _works(_local(lambda x, w: jnp.einsum("bij,bkj->bik", x, w), (3, 5, 7), (3, 11, 7)))
    assert [op.matmul for op in work.ops if op.matmul] == [(3, 5, 7, 11)]
    assert work.name == "matmul"


def test_operands_rounded_to_tf32_are_at_full_rate_and_the_rounding_is_free():
    def products(x, a, b):
        x, a, b = (lax.reduce_precision(value, 8, 10) for value in (x, a, b))
        return x @ a, x @ b

    rounded = _works(_local(products, (128, 256), (256, 512), (256, 512)))
    assert [op.operands[0].dtype for work in rounded for op in work.ops if op.matmul] == ["tf32", "tf32"]
    plain = _works(_local(lambda x, w: x @ w, (128, 256), (256, 512)))
    for work in rounded:
        found, slow = cost(work, load_core()).engine_s, cost(plain[0], load_core()).engine_s
        assert found["vector"] == slow["vector"]
        assert found["pe"] < slow["pe"]


def test_other_roundings_do_not_make_a_product_faster():
    (work,) = _works(_local(lambda x, w: lax.reduce_precision(x, 5, 10) @ w, (5, 7), (7, 11)))
    assert [op.operands[0].dtype for op in work.ops if op.matmul] == ["f32"]


def test_a_dynamic_slice_reads_what_it_takes():
    (work,) = _works(_local(lambda x: jnp.tanh(lax.dynamic_slice(x, (3, 0), (2, 8))), (100, 8)))
    assert work.reads == (Tensor(shape=(2, 8), dtype="f32"),)
    assert cost(work, load_core()).bytes_read == 64


def test_a_gather_reads_what_it_takes():
    def pick(table, ids):
        dims = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
        return lax.gather(table, ids.astype("i4"), dims, (1, 8))

    works = _works(_local(pick, (100, 8), (4, 1)))
    gather = next(work for work in works if work.name == "gather_scatter")
    assert Tensor(shape=(4, 8), dtype="f32") in gather.reads
    assert Tensor(shape=(100, 8), dtype="f32") not in gather.reads


def test_an_update_writes_all_unless_it_is_in_place():
    text = _local(lambda cache, new: lax.dynamic_update_slice(cache, new, (3, 0)), (100, 8), (1, 8))
    whole, part = Tensor(shape=(100, 8), dtype="f32"), Tensor(shape=(1, 8), dtype="f32")
    (copied,), (updated,) = _works(text), _works(text, in_place=True)
    assert (copied.reads, copied.writes) == ((whole, part), (whole,))
    assert (updated.reads, updated.writes) == ((part,), (part,))


def test_an_update_whose_old_value_is_read_too_is_not_in_place():
    def both(cache, new):
        return lax.dynamic_update_slice(cache, new + jnp.sum(cache), (3, 0))

    module = parse(_local(both, (100, 8), (1, 8)))
    fuse.run(module, fuse.Options(epilogues=True))
    table = WorkTable(module)
    for view in main(module).entry_block.operations:
        if is_composite(view) and "dynamic_update_slice" in str(table.function(view.operation)):
            reads_sum = "stablehlo.reduce" in str(table.function(view.operation))
            assert bool(table.updates(view.operation)) != reads_sum


def test_a_loop_counts_its_body_as_often_as_it_runs():
    (work,) = [
        w for w in _works(_local(lambda x: lax.fori_loop(0, 7, lambda i, x: x @ x, x), (8, 8))) if w.ops
    ]
    (product,) = [op for op in work.ops if op.matmul]
    assert (product.repeats, product.matmul) == (7, (1, 8, 8, 8))


def _loop(start: int, bound: int, step: int, compare: str) -> ir.Operation:
    text = f"""func.func @main() -> tensor<i32> {{
      %i = stablehlo.constant dense<{start}> : tensor<i32>
      %n = stablehlo.constant dense<{bound}> : tensor<i32>
      %s = stablehlo.constant dense<{step}> : tensor<i32>
      %r = stablehlo.while(%k = %i) : tensor<i32>
      cond {{
        %p = stablehlo.compare {compare}, %k, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
        stablehlo.return %p : tensor<i1>
      }} do {{
        %j = stablehlo.add %k, %s : tensor<i32>
        stablehlo.return %j : tensor<i32>
      }}
      return %r : tensor<i32>
    }}"""
    module = parse(text)
    return module, next(op.operation for op in main(module).entry_block.operations if kind(op) == "while")


@pytest.mark.parametrize("compare", ["LT", "LE", "GT", "GE", "NE"])
@pytest.mark.parametrize("bound", [-4, 0, 1, 9, 10])
@pytest.mark.parametrize(("start", "step"), [(0, 1), (0, 3), (9, -1), (10, -3), (2, 2)])
def test_trip_count_is_how_often_it_runs(start, bound, step, compare):
    holds = {"LT": int.__lt__, "LE": int.__le__, "GT": int.__gt__, "GE": int.__ge__, "NE": int.__ne__}[
        compare
    ]
    value, times = start, 0
    while holds(value, bound) and times < 1000:
        value, times = value + step, times + 1
    _, loop = _loop(start, bound, step, compare)
    assert trip_count(loop) == (times if times < 1000 else None)


def test_a_condition_on_data_has_no_trip_count():
    text = _local(lambda x: lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x * 2, x), (4,))
    module = parse(text)
    loop = next(op.operation for op in main(module).entry_block.operations if kind(op) == "while")
    assert trip_count(loop) is None
    (work,) = [work for work in _works(text) if work.name == "control"]
    assert work.uncounted_loops == 1
