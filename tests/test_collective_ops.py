"""Reductions seen through other ops: every op and type that may stand between, and those that may not."""

import numpy as np
import pytest

from hlo_passes.collective_ops import erase_dead, partial, reducer, zeros
from hlo_passes.ir import context, ir, main, parse
from hlo_passes.ops import operations

TYPES = ("f32", "bf16", "f16", "f8E4M3FN", "i32", "ui8", "complex<f32>")


def _module(body: str, result: str, type_: str, dtype: str, arguments: str = "") -> ir.Module:
    return parse(f"""func.func @main(%x: tensor<2x3x{dtype}>{arguments}) -> {type_} {{
      %s = "stablehlo.all_reduce"(%x) <{{replica_groups = dense<[[0, 1]]> : tensor<1x2xi64>}}> ({{
        ^bb0(%a: tensor<{dtype}>, %b: tensor<{dtype}>):
          %t = stablehlo.add %a, %b : tensor<{dtype}>
          stablehlo.return %t : tensor<{dtype}>
      }}) : (tensor<2x3x{dtype}>) -> tensor<2x3x{dtype}>
      {body}
      return {result} : {type_}
    }}""")


def _found(module: ir.Module):
    with module.context:
        return partial(list(main(module).entry_block.operations)[-1].operands[0])


def _zero(dtype: str) -> str:
    if dtype.startswith("complex"):
        return "(0.0,0.0)"
    return "0" if dtype[0] in "iu" else "0.0"


@pytest.mark.parametrize("dtype", TYPES)
def test_zero_padding_of_every_type_is_seen_through(dtype):
    wide = f"tensor<2x4x{dtype}>"
    for fill, fits in ((_zero(dtype), True), (_zero(dtype).replace("0", "1", 1), False)):
        body = (
            f"%c = stablehlo.constant dense<{fill}> : tensor<{dtype}>\n"
            f"%p = stablehlo.pad %s, %c, low = [0, 0], high = [0, 1], interior = [0, 0]"
            f" : (tensor<2x3x{dtype}>, tensor<{dtype}>) -> {wide}"
        )
        assert (_found(_module(body, "%p", wide, dtype)) is not None) == fits


@pytest.mark.parametrize("dtype", TYPES)
def test_zeros_are_zero(dtype):
    with context(), ir.Location.unknown():
        attribute = zeros(ir.Type.parse(f"tensor<2x{dtype}>"))
    assert str(attribute.type) == f"tensor<2x{dtype}>"
    if dtype in ("f32", "i32"):
        np.testing.assert_array_equal(np.array(attribute), np.zeros(2))


CONVERSIONS = {
    ("bf16", "f32"): True, ("f16", "f32"): True, ("f32", "f64"): True,
    ("f32", "bf16"): False, ("bf16", "f16"): False, ("i32", "i64"): False, ("f32", "i32"): False,
}  # fmt: skip


@pytest.mark.parametrize(("types", "fits"), CONVERSIONS.items())
def test_only_exact_conversions_are_seen_through(types, fits):
    old, new = types
    body = f"%p = stablehlo.convert %s : (tensor<2x3x{old}>) -> tensor<2x3x{new}>"
    assert (_found(_module(body, "%p", f"tensor<2x3x{new}>", old)) is not None) == fits


SCALES = {
    "%c = stablehlo.constant dense<2.5> : tensor<2x3xf32>": True,
    "%c = stablehlo.constant dense<[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]> : tensor<2x3xf32>": False,
    "%c = stablehlo.broadcast_in_dim %k, dims = [] : (tensor<f32>) -> tensor<2x3xf32>": True,
    "%c = stablehlo.broadcast_in_dim %v, dims = [1] : (tensor<3xf32>) -> tensor<2x3xf32>": False,
    "%r = stablehlo.replica_id : tensor<ui32>\n%f = stablehlo.convert %r : (tensor<ui32>) -> tensor<f32>\n"
    "%c = stablehlo.broadcast_in_dim %f, dims = [] : (tensor<f32>) -> tensor<2x3xf32>": False,
}


@pytest.mark.parametrize("order", ("%s, %c", "%c, %s"))
@pytest.mark.parametrize(("made", "fits"), SCALES.items())
def test_scaling_by_one_number_of_all_cores_is_seen_through(made, fits, order):
    body = f"{made}\n%p = stablehlo.multiply {order} : tensor<2x3xf32>"
    module = _module(body, "%p", "tensor<2x3xf32>", "f32", ", %k: tensor<f32>, %v: tensor<3xf32>")
    assert (_found(module) is not None) == fits
    if "%s, %c" in order:
        module = parse(str(module).replace("stablehlo.multiply", "stablehlo.divide"))
        assert (_found(module) is not None) == fits


def test_a_number_divided_by_a_sum_is_no_sum():
    body = (
        "%c = stablehlo.constant dense<2.5> : tensor<2x3xf32>\n%p = stablehlo.divide %c, %s : tensor<2x3xf32>"
    )
    assert _found(_module(body, "%p", "tensor<2x3xf32>", "f32")) is None


def test_dead_collectives_and_their_operands_go():
    module = _module("%n = stablehlo.negate %x : tensor<2x3xf32>", "%n", "tensor<2x3xf32>", "f32")
    erase_dead(main(module).entry_block)
    assert "all_reduce" not in str(module) and "negate" in str(module)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("%t = stablehlo.add %a, %b : tensor<f32>", "add"),
        ("%t = stablehlo.add %a, %a : tensor<f32>", None),
        ("%u = stablehlo.add %a, %b : tensor<f32>\n%t = stablehlo.negate %u : tensor<f32>", None),
    ],
)
def test_a_reducer_is_one_op_of_both_values(body, name):
    text = _module("", "%s", "tensor<2x3xf32>", "f32").operation.get_asm()
    head, _, rest = text.partition("stablehlo.add")
    arguments = head.rpartition("^bb0(")[2]
    left, right = (part.partition(":")[0].strip() for part in arguments.split(",")[:2])
    before, after = head.rpartition("\n")[0], rest.partition("\n")[2].partition("\n")[2]
    inner = body.replace("%a", left).replace("%b", right)
    module = parse(f"{before}\n{inner}\nstablehlo.return %t : tensor<f32>\n{after}")
    op = operations(main(module).entry_block)[0]
    assert reducer(op.regions[0]) == name
