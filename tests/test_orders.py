"""Arguments and results over one mesh in several orders of its devices: values, places and permutes."""

import numpy as np
import pytest
from ring_oracle import collectives, run_sharded

from hlo_passes import canonicalize, shard
from hlo_passes.ir import main, parse
from hlo_passes.local import argument_layouts, result_layouts
from kernels.errors import CompileError

PLAIN = 'sdy.mesh @plain = <["x"=2, "y"=2]>'
TURNED = 'sdy.mesh @turned = <["x"=2, "y"=2], device_ids=[3, 1, 0, 2]>'


def sharding(mesh, dims):
    return f"sdy.sharding = #sdy.sharding<@{mesh}, [{dims}]>"


def sharded(arguments, results, body, donated="", meshes=f"{PLAIN} {TURNED}"):
    text = (
        f"module {{ {meshes} func.func @main(%a: tensor<6x8xf32> {{{arguments[0]}{donated}}}, "
        f"%b: tensor<8x4xf32> {{{arguments[1]}}}) -> (tensor<6x4xf32> {{{results[0]}}}, "
        f"tensor<6x8xf32> {{{results[1]}}}) {{ {body} }} }}"
    )
    module = parse(text)
    canonicalize.run(module, canonicalize.Options())
    shard.run(module, shard.Options(tp=4))
    assert module.operation.verify()
    return module


BODY = """
    %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0]
        : (tensor<6x8xf32>, tensor<8x4xf32>) -> tensor<6x4xf32>
    %1 = stablehlo.add %a, %a : tensor<6x8xf32>
    return %0, %1 : tensor<6x4xf32>, tensor<6x8xf32>
"""


def values():
    rng = np.random.default_rng()
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 8), (8, 4))]


@pytest.mark.parametrize("meshes", ["ppt", "ptp", "tpp", "ttt", "ptt", "tpt"])
def test_values_in_any_order(meshes):
    first, second, third = ({"p": "plain", "t": "turned"}[letter] for letter in meshes)
    arguments = sharding(first, '{"x"}, {"y"}'), sharding(second, '{"y"}, {}')
    module = sharded(arguments, (sharding(third, '{"x"}, {}'), sharding(first, '{"x"}, {"y"}')), BODY)
    a, b = values()
    product, double = run_sharded(module, [a, b], 4)
    np.testing.assert_allclose(product, a @ b, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(double, a + a)


def test_blocks_lie_where_the_mesh_says():
    arguments = sharding("turned", '{"x"}, {"y"}'), sharding("plain", '{"y"}, {}')
    module = sharded(arguments, (sharding("plain", '{"x"}, {}'), sharding("turned", '{"x"}, {"y"}')), BODY)
    function = main(module)
    turned, plain = argument_layouts(module, function)
    assert [turned.block(rank) for rank in (3, 1, 0, 2)] == [
        (slice(i, i + 3), slice(j, j + 4)) for i in (0, 3) for j in (0, 4)
    ]
    assert [plain.block(rank)[0].start for rank in range(4)] == [0, 4, 0, 4]
    assert result_layouts(module, function)[1] == turned


def test_what_stays_in_one_order_is_not_moved():
    arguments = sharding("turned", '{"x"}, {"y"}'), sharding("turned", '{"y"}, {}')
    results = sharding("turned", '{"x"}, {}'), sharding("turned", '{"x"}, {"y"}')
    module = sharded(arguments, results, BODY, meshes=TURNED)
    assert collectives(module) == {"all_reduce": 1}


def test_a_donated_argument_and_its_result_share_an_order():
    arguments = sharding("turned", '{"x"}, {"y"}'), sharding("plain", '{"y"}, {}')
    results = sharding("plain", '{"x"}, {}'), sharding("plain", '{"x"}, {"y"}')
    module = sharded(arguments, results, BODY, donated=", tf.aliasing_output = 1 : i32")
    function = main(module)
    assert argument_layouts(module, function)[0] == result_layouts(module, function)[1]


def test_meshes_of_other_axes_are_refused():
    text = """module { sdy.mesh @m = <["x"=4]> sdy.mesh @n = <["y"=4]>
      func.func @main(%a: tensor<8xf32> {sdy.sharding = #sdy.sharding<@m, [{"x"}]>})
          -> (tensor<8xf32> {sdy.sharding = #sdy.sharding<@n, [{"y"}]>}) { return %a : tensor<8xf32> } }"""
    with pytest.raises(CompileError, match="expected one mesh of 4 cores"):
        shard.run(parse(text), shard.Options(tp=4))
