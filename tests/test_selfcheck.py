"""Self-checking programs: parsing of every form of check, and the judging rules."""

import ml_dtypes
import numpy as np
import oracles
import pytest

from hlo_passes import canonicalize
from hlo_passes.ir import parse
from kernels.errors import CompileError
from neuronx.selfcheck import Check, judge, programs, take_checks


def _judged(text: str) -> list[str | None]:
    verdicts = []
    for module in programs(text):
        checks = take_checks(module)
        canonicalize.run(module, canonicalize.Options())
        outputs = oracles.run_on_xla(str(module), [])
        verdicts += [judge(check, outputs) for check in checks]
    return verdicts


def _main(body: str, name: str = "main") -> str:
    value = "%0 = stablehlo.constant dense<[1.0, 2.0]> : tensor<2xf32>"
    return f"func.func @{name}() {{\n {value}\n {body}\n return }}"


FORMS = {
    "custom_call": """%1 = stablehlo.constant dense<[1.0, VALUE]> : tensor<2xf32>
      stablehlo.custom_call @check.expect_close(%0, %1) {has_side_effect = true}
        : (tensor<2xf32>, tensor<2xf32>) -> ()""",
    "with_result": """%1 = stablehlo.constant dense<[1.0, VALUE]> : tensor<2xf32>
      %2 = stablehlo.custom_call @check.eq(%0, %1) : (tensor<2xf32>, tensor<2xf32>) -> tensor<i1>""",
    "const": "check.expect_almost_eq_const %0, dense<[1.0, VALUE]> : tensor<2xf32>",
    "const_over_lines": "check.expect_eq_const %0,\n dense<\n  [1.0,\n   VALUE]> : tensor<2xf32>",
    "generic_const": '"check.expect_eq_const"(%0) <{value = dense<[1.0, VALUE]> : tensor<2xf32>}> '
    ": (tensor<2xf32>) -> ()",
    "generic": """%1 = stablehlo.constant dense<[1.0, VALUE]> : tensor<2xf32>
      "check.expect_eq"(%0, %1) : (tensor<2xf32>, tensor<2xf32>) -> ()""",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_found_and_judged(form: str) -> None:
    assert _judged(_main(FORMS[form].replace("VALUE", "2.0"))) == [None]
    (verdict,) = _judged(_main(FORMS[form].replace("VALUE", "3.0")))
    assert "1 of 2 elements differ; first at [1]: got 2.0, expected 3.0" in verdict


def test_a_check_carries_its_tolerance() -> None:
    text = _main("""%1 = stablehlo.constant dense<[1.5, 2.0]> : tensor<2xf32>
      "check.expect_almost_eq"(%0, %1) {tolerance = LIMIT : f64} : (tensor<2xf32>, tensor<2xf32>) -> ()""")
    assert _judged(text.replace("LIMIT", "0.5")) == [None]
    assert _judged(text.replace("LIMIT", "0.4")) != [None]
    const = _main(
        '"check.expect_almost_eq_const"(%0) <{tolerance = LIMIT : f64, '
        "value = dense<[1.5, 2.0]> : tensor<2xf32>}> : (tensor<2xf32>) -> ()"
    )
    assert _judged(const.replace("LIMIT", "0.5")) == [None]
    assert _judged(const.replace("LIMIT", "0.4")) != [None]


def test_complex_constants() -> None:
    text = """func.func @main() {
      %0 = stablehlo.constant dense<(1.0, 2.0)> : tensor<complex<f32>>
      check.expect_almost_eq_const %0, dense<(1.0, 2.0)> : tensor<complex<f32>>
      return }"""
    assert _judged(text) == [None]


def test_a_file_of_several_programs() -> None:
    good = "check.expect_eq_const %0, dense<[1.0, 2.0]> : tensor<2xf32>"
    bad = good.replace("2.0]", "4.0]")
    text = "\n".join(
        ["// comment", _main(good, "a"), _main(bad, "b"), "// -----", _main(good), "// -----\n// end\n"]
    )
    verdicts = _judged(text)
    assert [verdict is None for verdict in verdicts] == [True, False, True]


def test_results_are_kept_and_operands_follow() -> None:
    module = parse("""func.func @main() -> (tensor<f32> {jax.result_info = "x"}) {
      %0 = stablehlo.constant dense<1.0> : tensor<f32>
      %1 = stablehlo.custom_call @check.eq(%0, %0) : (tensor<f32>, tensor<f32>) -> tensor<i1>
      return %0 : tensor<f32> }""")
    (check,) = take_checks(module)
    assert (check.kind, check.actual, check.expected) == ("eq", 1, 2)
    assert module.operation.verify()
    assert len(oracles.run_on_xla(str(module), [])) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("func.func @main() { oops }", "malformed"),
        ("module {}", "no function"),
        ('func.func @main() { "interpreter.run_parallel"() : () -> ()\n return }', "interpreter"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        for module in programs(text):
            take_checks(module)


def _holds(kind: str, actual: np.ndarray, expected: np.ndarray, **limits: float) -> bool:
    check = Check(kind=kind, actual=0, expected=1, limits=limits)
    return judge(check, [np.asarray(actual), np.asarray(expected)]) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_close_counts_representable_values(dtype: type) -> None:
    start = np.abs(np.random.default_rng().standard_normal(16)).astype(dtype)
    bits = start.view(f"u{start.dtype.itemsize}")
    for steps in range(6):
        moved = (bits + np.array(steps, bits.dtype)).view(dtype)
        assert _holds("expect_close", start, moved) == (steps <= 3)
        assert _holds("expect_close", -moved, -start, max_ulp_difference=steps)
        if steps:
            assert not _holds("expect_close", start, moved, max_ulp_difference=steps - 1)
            assert not _holds("expect_close", start, moved, min_ulp_difference=steps + 1)
    zero = np.zeros((), dtype)
    assert _holds("expect_close", zero, -zero)
    assert not _holds("expect_close", zero, np.array(1, dtype))


def test_close_with_what_is_not_finite() -> None:
    nan, inf = np.float32("nan"), np.float32("inf")
    assert _holds("expect_close", nan, -nan)
    assert _holds("expect_close", inf, inf)
    assert not _holds("expect_close", inf, -inf)
    assert not _holds("expect_close", inf, np.finfo(np.float32).max)
    assert not _holds("expect_close", nan, np.float32(0))


def test_almost_equal() -> None:
    one = np.float32(1)
    assert _holds("expect_almost_eq", one, one + np.float32(0.0009))
    assert not _holds("expect_almost_eq", one, one + np.float32(0.0011))
    assert _holds("expect_almost_eq", one, one + 1, tolerance=1.0)
    assert not _holds("eq", one, one + np.float32(0.0002))
    assert _holds("expect_almost_eq", np.float32("nan"), np.float32("nan"))
    assert not _holds("expect_almost_eq", np.float32("inf"), one, tolerance=np.inf)
    assert not _holds("expect_almost_eq", np.float32(1e-5), np.float32(-1e-5))
    assert _holds("expect_almost_eq", np.complex64(1 + 2j), np.complex64(1 + 2.0005j))
    assert not _holds("expect_almost_eq", np.complex64(1 + 2j), np.complex64(1 + 2.1j))
    assert not _holds("expect_almost_eq", np.int32(1), np.int32(2), tolerance=5.0)


def test_equal_and_shapes() -> None:
    assert _holds("expect_eq", np.float32("nan"), np.float32("nan"))
    assert not _holds("expect_eq", np.float32(1), np.nextafter(np.float32(1), np.float32(2)))
    assert not _holds("expect_eq", np.zeros(3, np.int32), np.zeros(4, np.int32))
    assert not _holds("expect_eq", np.zeros(3, np.int32), np.zeros(3, np.int64))
    assert not _holds("no_such_check", np.zeros(3), np.zeros(3))
