"""The host's kernel for rows: softmax, normalisations and the like, against float64 and XLA's own loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import neuronx
from distributed.executor import Direct, Executor
from hlo_passes.host_lowering import lower_text
from kernels.dtypes import dtype
from kernels.host import elements
from kernels.host.row_program import RowProgram, Step, row_cost, row_program, row_reference, row_target

LAST_BIT = {"f32": 2.0**-23, "bf16": 2.0**-8, "f16": 2.0**-10}


def softmax_program(rows: int, n: int, name: str) -> RowProgram:
    """In f32, rounded once at the end."""
    steps = [
        Step(op="full", dtype=name),
        Step(op="convert", dtype="f32", operands=(0,)),
        Step(op="highest", dtype="f32", operands=(1,)),
        Step(op="subtract", dtype="f32", operands=(1, 2)),
        Step(op="exponential", dtype="f32", operands=(3,)),
        Step(op="sum", dtype="f32", operands=(4,)),
        Step(op="divide", dtype=name, operands=(4, 5)),
    ]
    return RowProgram(rows=rows, n=n, steps=tuple(steps), results=(6,))


def rms_program(rows: int, n: int, name: str) -> RowProgram:
    """With a scale of each column and a number that is an argument as well."""
    steps = [
        Step(op="full", dtype=name),
        Step(op="column", dtype=name),
        Step(op="one", dtype=name),
        Step(op="multiply", dtype="f32", operands=(0, 0)),
        Step(op="sum", dtype="f32", operands=(3,)),
        Step(op="constant", dtype="f32", number=1 / n),
        Step(op="multiply", dtype="f32", operands=(4, 5)),
        Step(op="add", dtype="f32", operands=(6, 2)),
        Step(op="rsqrt", dtype="f32", operands=(7,)),
        Step(op="multiply", dtype="f32", operands=(0, 8)),
        Step(op="multiply", dtype=name, operands=(9, 1)),
    ]
    return RowProgram(rows=rows, n=n, steps=tuple(steps), results=(10,))


def run(program: RowProgram, *arrays: np.ndarray) -> np.ndarray:
    """The program by itself, whatever its sizes."""
    taken = [
        f"tensor<{'x'.join(map(str, array.shape))}x{program.steps[number].dtype}>"
        for number, array in zip(program.arguments, arrays, strict=True)
    ]
    made = f"tensor<{program.rows}x{program.n}x{program.steps[program.results[0]].dtype}>"
    names = [f"%{number}" for number in range(len(arrays))]
    heads = ", ".join(f"{name}: {kind}" for name, kind in zip(names, taken, strict=True))
    text = f"""module {{ func.func @main({heads}) -> {made} {{
      %result = stablehlo.custom_call @"{row_target(program)}"({", ".join(names)}) {{api_version = 4 : i32}}
        : ({", ".join(taken)}) -> {made}
      return %result : {made} }} }}"""
    executor = Executor()
    call = executor.load_host(Direct(text=text, targets=frozenset({row_target(program)})))
    [result] = call([executor.to_device(array) for array in arrays])
    return np.array(executor.to_host(result))


def normal(rng, shape, name):
    return rng.standard_normal(shape, np.float32).astype(dtype(name).numpy)


SIZES = {"f32": [1, 3, 17, 127, 129, 4097], "bf16": [3, 127, 4097], "f16": [1, 17, 129]}


@pytest.mark.parametrize(("name", "n"), [(name, n) for name, sizes in SIZES.items() for n in sizes])
def test_rows_of_any_size(name, n, rng):
    x, scale = normal(rng, (5, n), name), normal(rng, (n,), name)
    wide = x.astype(np.float64)
    powers = np.exp(wide - wide.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    program = softmax_program(5, n, name)
    np.testing.assert_allclose(row_reference(program, [x])[0], expected, rtol=1e-12)
    tolerance = LAST_BIT[name] + 2.0**-18
    # Of f16 the smallest are as far apart as they are large.
    np.testing.assert_allclose(
        run(program, x).astype(np.float64), expected, rtol=tolerance, atol=2.0**-25 if name == "f16" else 0
    )

    small = np.array([0.01], dtype(name).numpy)
    root = np.sqrt((wide**2).mean(1, keepdims=True) + small.astype(np.float64))
    expected = wide / root * scale.astype(np.float64)
    program = rms_program(5, n, name)
    np.testing.assert_allclose(row_reference(program, [x, scale, small])[0], expected, rtol=1e-12)
    np.testing.assert_allclose(
        run(program, x, scale, small).astype(np.float64), expected, tolerance, 2.0**-24
    )


def test_a_row_has_the_same_bits_whoever_computes_it(rng):
    """Tiles are rows, so that threads and what stands beside a row change nothing."""
    x = normal(rng, (200, 1000), "f32")
    whole = run(softmax_program(200, 1000, "f32"), x)
    for first in (0, 63):
        part = run(softmax_program(37, 1000, "f32"), x[first : first + 37].copy())
        assert part.tobytes() == whole[first : first + 37].tobytes()
    assert run(softmax_program(200, 1000, "f32"), x).tobytes() == whole.tobytes()


@pytest.mark.parametrize("has_instruction", [True, False])
def test_bf16_is_rounded_to_the_nearest(has_instruction, rng, monkeypatch):
    """By the processor's instruction or by the bits."""
    if not has_instruction:
        monkeypatch.setattr(elements, "_HAS_PAIRS", False)
    steps = (Step(op="full", dtype="f32"), Step(op="convert", dtype="bf16", operands=(0,)))
    program = RowProgram(rows=41 + has_instruction, n=999, steps=steps, results=(1,))
    shape = (program.rows, program.n)
    x = rng.integers(0, 1 << 32, shape, np.uint32).view(np.float32)  # every kind of float
    x = np.where(np.abs(x) < 2.0**-126, np.float32(0), x)
    x[0, :2] = 1 + 2.0**-8, 1 + 3 * 2.0**-8  # ties
    with np.errstate(invalid="ignore"):
        expected = x.astype(dtype("bf16").numpy)
    got = run(program, x)
    is_number = ~np.isnan(x)
    assert got[is_number].tobytes() == expected[is_number].tobytes()
    assert np.isnan(got[~is_number].astype(np.float32)).all()


def test_exponentials_from_nought_to_infinity(rng):
    steps = (Step(op="full", dtype="f32"), Step(op="exponential", dtype="f32", operands=(0,)))
    x = rng.uniform(-86.8, 88.72, (4, 5000)).astype(np.float32)
    x[0, :6] = 88.73, 1e30, np.inf, -87.5, -np.inf, np.nan
    got = run(RowProgram(rows=4, n=5000, steps=steps, results=(1,)), x)
    np.testing.assert_array_equal(got[0, :6], [np.inf, np.inf, np.inf, 0, 0, np.nan])
    expected = np.exp(x[1:].astype(np.float64))
    np.testing.assert_allclose(got[1:].astype(np.float64), expected, rtol=2.0**-22)


def layer_norm(x, scale, shift):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def flax_layer_norm(x, scale, shift):
    """As flax.linen.LayerNorm writes it."""
    wide = x.astype(jnp.float32)
    mean, squares = wide.mean(-1), jnp.square(wide).mean(-1)
    variance = jnp.maximum(0.0, squares - jnp.square(mean))
    factor = jax.lax.rsqrt(variance[..., None] + 1e-6) * scale.reshape(1, 1, -1)
    return ((x - mean[..., None]) * factor + shift.reshape(1, 1, -1)).astype(x.dtype)


def rms_norm(x, scale, shift):
    wide = x.astype(jnp.float32)
    return (wide / jnp.sqrt(jnp.power(wide, 2).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype) * scale


def of_a_sum(x, scale, shift):
    """A residual connection, which is given out as well."""
    total = x + x[::-1]
    return total, layer_norm(total, scale, shift)


FUNCTIONS = {
    "layer norm": layer_norm,
    "flax": flax_layer_norm,
    "RMS norm": rms_norm,
    "sum": of_a_sum,
    "softmax": lambda x, *_: jax.nn.softmax(x, -1),
    "softmax in f32": lambda x, *_: jax.nn.softmax(x.astype(jnp.float32), -1).astype(x.dtype),
    "log softmax": lambda x, *_: jax.nn.log_softmax(x, -1),
    "standardize": lambda x, *_: jax.nn.standardize(x),
}


def both(function, *arrays):
    """The results with the kernel and by XLA alone, as f32."""
    compiled = neuronx.compile(function).lower(*arrays).compile()
    assert "neuronx_rows" in compiled.explain_host()
    plain = neuronx.compile(function, host_kernels=False)
    return [
        [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(run(*arrays))] for run in (compiled, plain)
    ]


PAIRS = [("sum", "f32"), ("log softmax", "f32"), *((function, "bf16") for function in FUNCTIONS)]


@pytest.mark.parametrize(("function", "name"), PAIRS)
def test_functions_are_what_xla_makes_of_them(function, name, rng):
    x, scale, shift = (jnp.asarray(normal(rng, shape, name)) for shape in ((3, 40, 301), (301,), (301,)))
    for ours, plain in zip(*both(FUNCTIONS[function], x, scale, shift), strict=True):
        # Sums in another order may move a mean or a sum to the next bf16, and with it a row.
        tolerance = 4 * LAST_BIT[name] if name == "bf16" else 2.0**-17
        np.testing.assert_allclose(ours, plain, rtol=tolerance, atol=2 * tolerance)
        if name == "bf16":
            assert (ours == plain).mean() > 0.9


@pytest.mark.parametrize("function", ["layer norm", "flax", "softmax", "log softmax"])
def test_what_is_no_number_is_so_where_xla_has_it(function, rng):
    x = normal(rng, (40, 1, 1000), "f32")
    for row, value in enumerate([np.nan, np.inf, -np.inf]):
        x[2 * row, 0, 7 * row] = value
    x[10], x[12], x[14] = np.nan, np.inf, -np.inf
    ones = np.ones(1000, np.float32)
    [ours], [plain] = both(FUNCTIONS[function], x, ones, ones)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(plain))
    np.testing.assert_allclose(ours, plain, rtol=2.0**-17, atol=2.0**-16)


def square(x, shift):
    """As many rows as columns; the sums of rows stand beside what is not of rows."""
    return x * (x.sum(-1) + shift)[:, None]


REFUSED = {
    "fewer than": (lambda x: jax.nn.softmax(x, -1), [(20, 100)]),
    "shorter than": (lambda x: jax.nn.softmax(x, -1), [(5000, 20)]),
    "one row only": (lambda x: jax.nn.softmax(x, -1), [(1, 50000)]),
    "less than an element": (lambda x: jnp.exp(x - 1).sum(-1), [(500, 100)]),
    "reduces dims [0]": (lambda x: jax.nn.softmax(x, 0), [(500, 100)]),
    "compare is not": (lambda x: jax.nn.softmax(jnp.where(x > 0, x, -1), -1), [(500, 100)]),
    "neither all rows nor one": (lambda x, y: jax.nn.softmax(x + y, -1), [(50, 30, 100), (30, 100)]),
    "logarithm of each": (lambda x: jax.nn.softmax(jnp.log(x), -1), [(500, 100)]),
    "goes into a product": (lambda x, y: jax.nn.softmax(x, -1) @ y, [(500, 100), (100, 64)]),
    "numbers of rows and of columns": (square, [(256, 256), (256,)]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_it_says_why_xla_does_it(reason):
    function, shapes = REFUSED[reason]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    said = neuronx.compile(function).lower(*arrays).compile().explain_host()
    assert reason in said
    assert "neuronx_rows" not in said


def test_each_core_of_a_ring_has_rows_of_its_own(rng):
    """In one launch for all cores a call is there for each of them."""
    x = jnp.asarray(normal(rng, (80, 1000), "f32"))
    cut = PartitionSpec("tp")
    compiled = neuronx.compile(lambda x: jax.nn.softmax(x, -1), tp_degree=2, in_shardings=(cut,))
    compiled = compiled.lower(x).compile()
    assert "f32[40, 1000]: neuronx_rows" in compiled.explain_host()
    np.testing.assert_allclose(compiled(x), jax.nn.softmax(x, -1), rtol=2.0**-18)


def test_a_target_holds_its_program():
    program = rms_program(30, 50, "bf16")
    assert row_program(row_target(program)) == program
    assert row_cost(program).moved_bytes == 2 * (2 * 30 * 50 + 50 + 1)


def test_plain_text_has_no_composites():
    text = jax.jit(lambda x: jax.nn.softmax(x, -1)).lower(np.ones((500, 100), np.float32)).as_text()
    assert not lower_text(text).targets
