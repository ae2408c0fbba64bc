"""What neuronx-cc would refuse: each rule on a program that breaks it, and the rewrite it proposes."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

import neuronx
from hlo_passes import neuron_rules
from hlo_passes.ir import parse
from neuronx.analysis import analyze_module
from neuronx.cli.main import main, parse_arguments
from neuronx.driver import CompileOptions
from neuronx.ring_rules import num_instructions

ISSUES = "JAX NeuronX known issues"


def here(marker):
    """``file:line`` of the line of this file that ends with ``# marker``."""
    with open(__file__) as source:
        (number,) = [n for n, line in enumerate(source, 1) if line.rstrip().endswith(f"# {marker}")]
    return f"{__file__}:{number}"


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def ints(rng, *shape):
    return rng.integers(1, 9, shape).astype(np.int32)


def triangle(rng):
    return np.tril(floats(rng, 6, 6)) + 4 * np.eye(6, dtype=np.float32), floats(rng, 6)


def substitute(a, b):
    a, b = jnp.asarray(a), jnp.asarray(b)
    step = lambda i, x: x.at[i].set((b[i] - a[i] @ x) / a[i, i])  # noqa: E731
    return lax.fori_loop(0, 6, step, jnp.zeros_like(b))


def real_dft(x):
    n = x.shape[-1]
    angles = -2 * np.pi * np.outer(np.arange(n), np.arange(n)) / n
    return x @ np.cos(angles).astype(np.float32), x @ np.sin(angles).astype(np.float32)


def parts_of_fft(x):
    spectrum = jnp.fft.fft(x)
    return spectrum.real, spectrum.imag


def words(rng, *shape):
    return ints(rng, *shape).astype(np.uint32)


def drop_bits(impl):
    return lambda x: jax.random.bits(jax.random.key(0, impl=impl), (4,)) * 0 + x


def top_two(x):
    return lax.top_k(x, 2)


def argmax(x):
    return jnp.min(jnp.where(x == jnp.max(x), jnp.arange(x.size), x.size))


def halve_until_small(x):
    return lax.while_loop(lambda x: x.max() > 1e-1, lambda x: x / 2, x)


def halve_masked(x):
    return lax.fori_loop(0, 20, lambda _, x: jnp.where(x.max() > 1e-1, x / 2, x), x)


def windows(x, **dilation):
    return lax.reduce_window(x, 0.0, lax.add, (2,), (1,), "VALID", **dilation)


def convolve(x, k, **options):
    return lax.conv_general_dilated(
        x[None, None], k[None, None], padding=[(1, 1), (1, 1)], **{"window_strides": (1, 1), **options}
    )


def spread(x):
    return lax.pad(x, np.float32(0), [(0, 0, 1)] * 2)


def in_f32(function):
    def wrapped(*arrays):
        results = function(*(array.astype(jnp.float32) for array in arrays))
        return jax.tree.map(lambda r: r.astype(jnp.int32), results)

    return wrapped


def scatter_add(x):
    return jnp.zeros(9, x.dtype).at[jnp.array([1, 2, 1])].add(x)


# code, what breaks the rule, what the fix says to write instead, arguments, lines of results that must agree
REWRITES = {
    "triangular": (
        "NCC_EVRF001",
        lambda a, b: jax.scipy.linalg.solve_triangular(a, b, lower=True),
        substitute,
        triangle,
    ),
    "fft": ("NCC_EVRF001", parts_of_fft, real_dft, lambda r: [floats(r, 3, 8)]),
    "complex": ("NCC_EVRF004", parts_of_fft, real_dft, lambda r: [floats(r, 3, 8)]),
    "cond": (
        ISSUES,
        lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jnp.where(x[0] > 0, jnp.sin(x), jnp.cos(x)),
        lambda r: [floats(r, 4)],
    ),
    "while": (ISSUES, halve_until_small, halve_masked, lambda r: [floats(r, 4)]),
    "reduce_precision": (
        ISSUES,
        lambda x: lax.reduce_precision(x, 8, 7),
        lambda x: x.astype(jnp.bfloat16).astype(x.dtype),
        lambda r: [floats(r, 4)],
    ),
    "argmax": (ISSUES, jnp.argmax, argmax, lambda r: [floats(r, 9)]),
    "threefry": (ISSUES, drop_bits("threefry2x32"), drop_bits("rbg"), lambda r: [words(r, 4)]),
    "uint64": ("NCC_ESFH002", drop_bits("threefry2x32"), drop_bits("rbg"), lambda r: [words(r, 4)]),
    "base dilation": (
        "NCC_EVRF017",
        lambda x: windows(x, base_dilation=(2,)),
        lambda x: windows(lax.pad(x, np.float32(0), [(0, 0, 1)])),
        lambda r: [floats(r, 8)],
    ),
    "window dilation": (
        "NCC_EVRF018",
        lambda x: windows(x, window_dilation=(3,)),
        lambda x: x[:-3] + x[3:],
        lambda r: [floats(r, 8)],
    ),
    "dilated twice": (
        "NCC_EVRF010",
        lambda x, k: convolve(x, k, lhs_dilation=(2, 2), rhs_dilation=(2, 2)),
        lambda x, k: convolve(spread(x), k, rhs_dilation=(2, 2)),
        lambda r: [floats(r, 5, 5), floats(r, 2, 2)],
    ),
    "strided and dilated": (
        "NCC_EVRF011",
        lambda x, k: convolve(x, k, lhs_dilation=(2, 2), window_strides=(2, 2)),
        lambda x, k: convolve(spread(x), k, window_strides=(2, 2)),
        lambda r: [floats(r, 5, 5), floats(r, 2, 2)],
    ),
    "integer product": (
        "NCC_EVRF035",
        jnp.matmul,
        in_f32(jnp.matmul),
        lambda r: [ints(r, 3, 4), ints(r, 4, 2)],
    ),
    "integer scatter": ("NCC_EVRF016", scatter_add, in_f32(scatter_add), lambda r: [ints(r, 3)]),
    "integer top_k": ("NCC_EVRF013", top_two, in_f32(top_two), lambda r: [ints(r, 8)]),
    "narrow shift": (
        "NCC_EVRF022",
        lambda x: lax.shift_right_arithmetic(x, jnp.int8(2)),
        lambda x: lax.shift_right_arithmetic(x.astype(jnp.int32), jnp.int32(2)).astype(jnp.int8),
        lambda r: [-ints(r, 5).astype(np.int8)],
    ),
}


@pytest.mark.parametrize("name", REWRITES)
def test_each_rule_and_the_rewrite_it_proposes(name, rng):
    code, wrong, right, make = REWRITES[name]
    arrays = make(rng)
    found = neuronx.analyze(wrong, *arrays)
    named = [finding for finding, _ in found.findings if finding.code == code]
    assert named and all(finding.fix for finding in named)
    assert __file__ in {finding.location.rpartition(":")[0] for finding in named}
    assert code not in {finding.code for finding, _ in neuronx.analyze(right, *arrays).findings}
    for one, other in zip(jax.tree.leaves(wrong(*arrays)), jax.tree.leaves(right(*arrays)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


# code, type of the result %r, what makes it of the argument %a: tensor<4x4xf32>
MODULES = [
    ("NCC_EVRF001", "4x4xf32", "%r = stablehlo.cholesky %a : tensor<4x4xf32>"),
    (
        "NCC_EHCA005",
        "4x4xf32",
        "%r = stablehlo.custom_call @theirs(%a) : (tensor<4x4xf32>) -> tensor<4x4xf32>",
    ),
    ("NCC_EVRF051", "4x4xf8E4M3FN", "%r = stablehlo.convert %a : (tensor<4x4xf32>) -> tensor<4x4xf8E4M3FN>"),
    (
        "NCC_EVRF005",
        "4x4xf8E4M3FNUZ",
        "%r = stablehlo.convert %a : (tensor<4x4xf32>) -> tensor<4x4xf8E4M3FNUZ>",
    ),
    ("data types", "4x4xi64", "%r = stablehlo.convert %a : (tensor<4x4xf32>) -> tensor<4x4xi64>"),
    ("NCC_ESPP004", "4x4xf64", "%r = stablehlo.convert %a : (tensor<4x4xf32>) -> tensor<4x4xf64>"),
    (
        "NCC_EVRF062",
        "4x4xi32",
        """%i = stablehlo.convert %a : (tensor<4x4xf32>) -> tensor<4x4xi32>
        %r = stablehlo.power %i, %i : tensor<4x4xi32>""",
    ),
    (
        ISSUES,
        "4x4xf32",
        """%r = "stablehlo.sort"(%a) ({
        ^bb0(%x: tensor<f32>, %y: tensor<f32>):
          %p = stablehlo.compare EQ, %x, %y : (tensor<f32>, tensor<f32>) -> tensor<i1>
          stablehlo.return %p : tensor<i1>
        }) {dimension = 0 : i64} : (tensor<4x4xf32>) -> tensor<4x4xf32>""",
    ),
    (
        "NCC_EVRF006",
        "4x4xui32",
        """%s = stablehlo.constant dense<1> : tensor<2xui64>
        %t, %r = stablehlo.rng_bit_generator %s, algorithm = THREE_FRY
            : (tensor<2xui64>) -> (tensor<2xui64>, tensor<4x4xui32>)""",
    ),
    (
        "NCC_EVRF019",
        "3x3xf32",
        """%c = stablehlo.constant dense<0.0> : tensor<f32>
        %both:2 = "stablehlo.reduce_window"(%a, %a, %c, %c) <{window_dimensions = array<i64: 2, 2>}> ({
        ^bb0(%x: tensor<f32>, %y: tensor<f32>, %z: tensor<f32>, %w: tensor<f32>):
          %s = stablehlo.add %x, %z : tensor<f32>
          %t = stablehlo.add %y, %w : tensor<f32>
          stablehlo.return %s, %t : tensor<f32>, tensor<f32>
        }) : (tensor<4x4xf32>, tensor<4x4xf32>, tensor<f32>, tensor<f32>)
            -> (tensor<3x3xf32>, tensor<3x3xf32>)
        %r = stablehlo.add %both#0, %both#1 : tensor<3x3xf32>""",
    ),
]


@pytest.mark.parametrize(("code", "kind", "body"), MODULES, ids=[f"{row[0]} {row[1]}" for row in MODULES])
def test_rules_on_modules(code, kind, body):
    result = f"tensor<{kind}>"
    text = f"func.func @main(%a: tensor<4x4xf32>) -> {result} {{ {body}\n return %r : {result} }}"
    found = analyze_module(parse(text), CompileOptions())
    assert code in {finding.code for finding, _ in found.findings}, str(found)


def test_every_rule_is_tested():
    tested = {code for code, *_ in [*REWRITES.values(), *MODULES]} | {"list of supported operators"}
    assert {rule.code for rule in neuron_rules.RULES} <= tested


def test_what_is_fine(rng):
    def block(x, w):
        return jax.nn.softmax(jax.nn.gelu(x @ w) + lax.scan(lambda c, y: (c + y, c), x[0], x)[1])

    found = neuronx.analyze(block, floats(rng, 4, 8), floats(rng, 8, 8), tp_degree=4)
    assert not found.findings and found.instructions > 0
    assert str(found).endswith("0 of 0 findings reject the program")


def test_the_line_the_count_and_the_text(rng):
    def fn(x):
        for _ in range(3):
            x = lax.cond(x[0] > 0, jnp.sin, jnp.cos, x)  # branch
        return jnp.cbrt(x)

    found = neuronx.analyze(fn, floats(rng, 4))
    (branch, count), (root, _) = found.findings
    assert (branch.location, count, root.severity) == (here("branch"), 3, "undocumented")
    assert found.rejected == (branch,)
    assert f"rejected [{ISSUES}] stablehlo.case at {here('branch')} (3 times): a branch" in str(found)
    assert "  instead: compute both sides" in str(found)


def test_what_this_compiler_refuses_as_well(rng):
    def fn(x):
        jax.debug.print("{}", x)  # callback
        return jax.pure_callback(np.sin, x, x)

    found = neuronx.analyze(fn, floats(rng, 4))
    assert Counter(one.code for one in found.rejected) == {"this compiler refuses it too": 2}
    assert here("callback") in {one.location for one in found.rejected} and found.instructions is None


def test_dynamic_shapes():
    text = """func.func @main(%a: tensor<?x4xf32>) -> tensor<?x4xf32> {
        %0 = stablehlo.sine %a : tensor<?x4xf32>
        return %0 : tensor<?x4xf32>
    }"""
    found = analyze_module(parse(text), CompileOptions())
    assert {one.code for one in found.rejected} == {"NCC_EMOD025"}


def test_memory(rng):
    big = jax.ShapeDtypeStruct((1 << 17, 1 << 16), np.float32)
    found = neuronx.analyze(lambda x: x + 1, big)
    assert [one.code for one in found.rejected] == ["NCC_EOOM002"]


@pytest.mark.parametrize(
    ("instance", "degree", "severity"),
    [
        ("inf2.48xlarge", 3, "rejected"), ("inf2.48xlarge", 6, "degraded"), ("inf2.48xlarge", 8, None),
        ("trn1.32xlarge", 4, "rejected"), ("trn1.32xlarge", 32, None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:tp_degree")
def test_degrees(instance, degree, severity):
    found = neuronx.analyze(lambda x: x + 1, np.ones(96, np.float32), tp_degree=degree, instance=instance)
    assert [one.severity for one, _ in found.findings] == ([severity] if severity else [])


def total(sizes, axis, dtype):
    """The findings of a sum over one axis of a mesh of two."""
    mesh = AbstractMesh(sizes, ("outer", "inner"))
    spec = P("outer", "inner")

    def fn(x):
        body = lambda x: lax.psum(x, axis)  # noqa: E731
        return jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=False)(x)

    x = jax.ShapeDtypeStruct((8, 8), dtype, sharding=NamedSharding(mesh, spec))
    return [finding for finding, _ in neuronx.analyze(fn, x).findings]


def test_collectives():
    (lossy,) = total((4, 2), "inner", np.int32)
    assert (lossy.code, lossy.op) == ("NCC_EVRF061", "all_reduce")
    assert not total((4, 2), "inner", np.float32)
    (apart,) = total((2, 4), "outer", np.float32)
    assert apart.code == ISSUES and "chips without a link between them: [0, 4]" in apart.what


def test_instructions():
    """Counted by hand: tiles of 128 x 512, products of 128 x 128 x 512, times the rounds of loops."""

    def fn(x, w):
        return lax.fori_loop(0, 10, lambda _, x: jnp.sin(x @ w), x)

    shapes = jax.ShapeDtypeStruct((256, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
    program = neuronx.compile(fn).lower(*shapes).compile().program
    product, sine = 2 * 2 * 8, 4
    # The product is converted to bf16; the loop compares once and adds twice.
    assert num_instructions(program) == 10 * (product + 4 + sine + 3)
    found = neuronx.analyze(lambda x, w: lax.fori_loop(0, 200_000, lambda _, x: jnp.sin(x @ w), x), *shapes)
    assert [one.code for one in found.rejected] == ["NCC_EBVF030"]


# The verb.


def run(*argv):
    return main(parse_arguments(["neuronx", "analyze", *argv]))


def test_the_verb(tmp_path, capsys, monkeypatch):
    (tmp_path / "good.mlir").write_text(
        "func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> { return %a : tensor<4xf32> }"
    )
    (tmp_path / "their_model.py").write_text(
        "import jax.numpy as jnp\ndef forward(x, n):\n    return jnp.fft.fft(x)[: n.shape[0]]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run("good.mlir") == 0
    assert run("jax.numpy:linalg.norm", "f32[8]") == 0
    assert run("their_model:forward", "f32[8]", "i32[2]") == 1
    printed = capsys.readouterr().out
    assert "NCC_EVRF001" in printed and "their_model.py:3" in printed
    assert (
        run("their_model:nothing") == 2 and run("missing.mlir") == 2 and run("their_model:forward", "8") == 2
    )
    (tmp_path / "bad.mlir").write_text("func.func @main(")
    assert run("bad.mlir") == 2
    errors = capsys.readouterr().err
    for message in ("cannot be imported", "cannot be read", "is no type", "is malformed"):
        assert message in errors
