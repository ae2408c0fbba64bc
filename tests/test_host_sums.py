"""The host's sum kernel by itself: any plan, to the bit what its reference gives."""

import itertools

import numpy as np
import pytest

from distributed.executor import Direct, Executor
from kernels.dtypes import dtype
from kernels.host.targets import ADDED, sum_cost, sum_plan, sum_reference, sum_target


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize(("count", "size"), [(2, 1), (3, 1025), (5, 4097)])
@pytest.mark.parametrize("name", sorted(ADDED))
def test_any_plan_is_followed_to_the_bit(name, count, size, rounds, rng):
    ends = sorted({0, size // 3, size})
    stretches = [(*pair, rng.permutation(count).tolist()) for pair in itertools.pairwise(ends)]
    plan = sum_plan(stretches, first_way=count // 2, rounds=rounds)
    arrays = [rng.standard_normal(size, np.float32).astype(dtype(name).numpy) for _ in range(count)]
    array, table = f"tensor<{size}x{name}>", f"tensor<{len(plan)}xi64>"
    taken = [f"%{number}" for number in range(count)]
    text = f"""module {{ func.func @main({", ".join(f"{value}: {array}" for value in taken)}) -> {array} {{
      %plan = stablehlo.constant dense<{plan}> : {table}
      %sum = stablehlo.custom_call @{sum_target(name)}(%plan, {", ".join(taken)}) {{api_version = 4 : i32}}
        : ({", ".join([table, *[array] * count])}) -> {array}
      return %sum : {array} }} }}"""
    executor = Executor()
    add = executor.load_host(Direct(text=text, targets=frozenset({sum_target(name)})))
    [got] = add([executor.to_device(one) for one in arrays])
    expected = sum_reference(plan, arrays)
    assert executor.to_host(got).tobytes() == expected.tobytes()
    exact = sum(one.astype(np.float64) for one in arrays)
    rounding = 2.0 ** (-8 if name == "bf16" else -24)
    magnitude = sum(np.abs(one.astype(np.float64)) for one in arrays)
    assert np.all(np.abs(expected.astype(np.float64) - exact) <= 2 * count * rounding * magnitude)


def test_a_sum_reads_each_array_and_writes_one():
    assert sum_cost("bf16", count=3, size=10).moved_bytes == 80
    assert sum_cost("f32", count=3, size=10).flops == 20
