"""The host's product kernels against float64: every stored type and layout, awkward sizes, special values."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distributed.executor import Executor
from distributed.joint import Joint
from hlo_passes.host_lowering import lower_text
from kernels.dtypes import dtype
from kernels.host.targets import WEIGHTS, matmul_reference, matmul_target

ROOT = Path(__file__).parent.parent
COLUMNS, ROWS = "[2] x [1]", "[2] x [2]"
LAYOUTS = {COLUMNS: False, ROWS: True}

# (batch, m, k, n): odd sizes leave every row and batch after the first off any boundary.
SIZES = [
    (1, 1, 17, 4097),
    (1, 1, 4097, 17),
    (1, 1, 37, 8209),
    (2, 1, 300, 128),
    (1, 2, 129, 127),
    (1, 3, 127, 129),
    (1, 7, 513, 63),
    (1, 8, 257, 129),
    (1, 17, 129, 127),
    (1, 33, 300, 257),
    (1, 129, 17, 127),
    (3, 1, 127, 129),
    (3, 5, 127, 129),
    (2, 129, 65, 33),
]


# The same of products of bf16 with bf16, whose terms go in pairs.
PAIRED_SIZES = [
    (1, 2, 130, 4097),
    (1, 3, 4098, 17),
    (3, 5, 18, 129),
    (2, 7, 514, 63),
    (1, 8, 258, 1025),
    (1, 9, 4098, 17),
    (1, 17, 2, 4097),
    (1, 129, 258, 127),
    (3, 127, 18, 129),
    (2, 513, 130, 33),
]


def product(batch: int, m: int, k: int, n: int, weights: str, contracting: str, rows: str = "f32") -> str:
    x, y = f"tensor<{batch}x{m}x{k}x{rows}>", f"tensor<{batch}x{m}x{n}xf32>"
    w = (
        f"tensor<{batch}x{k}x{n}x{weights}>"
        if contracting == COLUMNS
        else f"tensor<{batch}x{n}x{k}x{weights}>"
    )
    return f"""
    func.func @main(%x: {x}, %w: {w}) -> {y} {{
      %y = stablehlo.dot_general %x, %w, batching_dims = [0] x [0], contracting_dims = {contracting}
        : ({x}, {w}) -> {y}
      return %y : {y}
    }}"""


def run(text: str, *arrays: np.ndarray, lower=lower_text) -> np.ndarray:
    executor = Executor(lower)
    [result] = executor.load(text)([executor.to_device(array) for array in arrays])
    return np.array(executor.to_host(result))


def randoms(rng: np.random.Generator, shape: tuple[int, ...], element: np.dtype) -> np.ndarray:
    if element.kind in "iu":
        limits = np.iinfo(element)
        return rng.integers(limits.min, limits.max, shape, element, endpoint=True)
    return rng.standard_normal(shape, dtype=np.float32).astype(element)


def exact(x: np.ndarray, w: np.ndarray, contracting: str) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64, and that of the absolute values: what its rounding errors are relative to."""
    by_rows = LAYOUTS[contracting]
    magnitudes = np.abs(w.astype(np.float32))
    return matmul_reference(x, w, by_rows=by_rows), matmul_reference(np.abs(x), magnitudes, by_rows=by_rows)


def _name(one: object) -> str:
    return one if isinstance(one, str) else one.values[0]


# Each type is compiled for itself where Numba's cache does not hold it: the rest is left to the slow suite.
TYPES = [
    name if name in {"bf16", "i8", "f8E4M3FN"} else pytest.param(name, marks=pytest.mark.slow)
    for name in WEIGHTS
]


@pytest.mark.parametrize("contracting", LAYOUTS)
@pytest.mark.parametrize("weights", TYPES)
def test_products_are_those_of_float64(weights, contracting, rng):
    for batch, m, k, n in SIZES:
        text = product(batch, m, k, n, weights, contracting)
        assert force(text).targets == {matmul_target(weights, by_rows=LAYOUTS[contracting])}
        x = randoms(rng, (batch, m, k), np.dtype(np.float32))
        shape = (batch, k, n) if contracting == COLUMNS else (batch, n, k)
        w = randoms(rng, shape, dtype(weights).numpy)
        got = run(text, x, w, lower=force)
        expected, magnitude = exact(x, w, contracting)
        # One rounding a term at most: k * 2**-24 of the sum of magnitudes bounds any order of summation.
        assert np.all(np.abs(got - expected) <= k * 2.0**-24 * magnitude), (batch, m, k, n)


def bf16_operands(rng, batch: int, m: int, k: int, n: int, contracting: str) -> tuple[np.ndarray, np.ndarray]:
    element = dtype("bf16").numpy
    shape = (batch, k, n) if contracting == COLUMNS else (batch, n, k)
    return randoms(rng, (batch, m, k), element), randoms(rng, shape, element)


@pytest.mark.parametrize("contracting", LAYOUTS)
def test_paired_products_are_those_of_float64(contracting, rng):
    for batch, m, k, n in PAIRED_SIZES:
        text = product(batch, m, k, n, "bf16", contracting, "bf16")
        assert force(text).targets == {
            matmul_target("bf16", by_rows=contracting == ROWS, pairs=True),
        }
        x, w = bf16_operands(rng, batch, m, k, n, contracting)
        got = run(text, x, w, lower=force)
        expected, magnitude = exact(x, w, contracting)
        assert np.all(np.abs(got - expected) <= k * 2.0**-24 * magnitude), (batch, m, k, n)


@pytest.mark.parametrize("m", [8, 20])
@pytest.mark.parametrize("contracting", LAYOUTS)
def test_paired_products_keep_infinity_and_nan_where_they_are(contracting, m, rng):
    x, w = bf16_operands(rng, 1, m, 258, 129, contracting)
    x = np.abs(x) + x.dtype.type(1)
    columns = w[0] if contracting == COLUMNS else w[0].T
    columns[5, 3], columns[257, 128], columns[100, 64] = np.nan, np.inf, -np.inf
    x[0, 7, 44] = np.nan
    got = run(product(1, m, 258, 129, "bf16", contracting, "bf16"), x, w)[0]
    assert np.isnan(got[7]).all() and np.isnan(got[:, 3]).all()
    others = np.delete(got, 7, axis=0)
    assert (others[:, 128] == np.inf).all() and (others[:, 64] == -np.inf).all()
    assert np.isfinite(np.delete(others, [3, 64, 128], axis=1)).all()


@pytest.mark.parametrize(("m", "k"), [(9, 129), (5, 129), (1, 128)])
def test_odd_terms_and_those_of_one_row_are_not_paired(m, k):
    text = product(1, m, k, 64, "bf16", COLUMNS, "bf16")
    assert force(text).targets == {matmul_target("bf16", by_rows=False)}


_IN_STEPS = """
import sys
sys.path.insert(0, "tests")
import numpy as np
from test_host_kernels import all_ways
np.save(sys.argv[2], all_ways(*(one.view("bfloat16") for one in np.load(sys.argv[1]).values())))
"""


def all_ways(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Many rows and few, weights in both layouts: results one above the other."""
    k, n = w.shape[1:]
    stored = {COLUMNS: w, ROWS: np.ascontiguousarray(w.transpose(0, 2, 1))}
    results = [
        run(product(1, m, k, n, "bf16", contracting, "bf16"), x[:, :m], stored[contracting])
        for m in (40, 8, 7)
        for contracting in LAYOUTS
    ]
    return np.concatenate(results, axis=1)


@pytest.mark.slow
def test_the_instruction_for_pairs_has_the_bits_of_two_steps(tmp_path, rng):
    """Denormals and exponents far apart included: so results do not depend on the processor."""
    x, w = (
        np.ldexp(rng.standard_normal(shape), rng.integers(-70, 20, shape)).astype(dtype("bf16").numpy)
        for shape in ((1, 40, 300), (1, 300, 70))
    )
    w[..., ::3] *= w.dtype.type(2.0**-60)
    # Of the other process alone: what this one compiles from here on is for its processor.
    generic = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "generic"}
    np.savez(tmp_path / "operands.npz", x=x.view(np.uint16), w=w.view(np.uint16))
    files = [str(tmp_path / "operands.npz"), str(tmp_path / "steps.npy")]
    subprocess.run([sys.executable, "-c", _IN_STEPS, *files], cwd=ROOT, env=generic, check=True)
    np.testing.assert_array_equal(all_ways(x, w), np.load(files[1]))


@pytest.mark.parametrize("contracting", LAYOUTS)
@pytest.mark.parametrize("weights", [one for one in TYPES if dtype(_name(one)).bits == 8])
@pytest.mark.parametrize("m", [1, 16])
def test_every_eight_bit_value_is_widened_exactly(weights, contracting, m):
    """All 256 patterns, subnormals, infinities and NaN among them, picked out one by one by an identity."""
    w = np.arange(256, dtype=np.uint8).view(dtype(weights).numpy)
    column = w.reshape((1, 1, 256) if contracting == COLUMNS else (1, 256, 1))
    x = np.ones((1, m, 1), np.float32)
    got = run(product(1, m, 1, 256, weights, contracting), x, column, lower=force)
    np.testing.assert_array_equal(got, np.broadcast_to(w.astype(np.float32), (1, m, 256)))


def force(text: str, joint: Joint | None = None):
    """``lower_text`` that leaves no product to XLA, however small."""
    import hlo_passes.host_lowering as lowering

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "why_not_matmul", lambda *types, **sizes: "")
        return lower_text(text, joint)


@pytest.mark.parametrize("offset", [1, 4, 62])
def test_weights_from_any_address_are_placed_on_a_boundary(offset, rng):
    """XLA's own code assumes it of a buffer; the kernel meets odd addresses in rows after the first."""
    k, n = 127, 129
    memory = np.zeros(2 * k * n + offset, np.uint8)
    w = np.ndarray((1, k, n), dtype("bf16").numpy, memory, offset)
    w[:] = randoms(rng, (1, k, n), w.dtype)
    assert Executor().to_device(w).unsafe_buffer_pointer() % 64 == 0
    x = randoms(rng, (1, 3, k), np.dtype(np.float32))
    expected, magnitude = exact(x, w, COLUMNS)
    got = run(product(1, 3, k, n, "bf16", COLUMNS), x, w)
    assert np.all(np.abs(got - expected) <= k * 2.0**-24 * magnitude)


@pytest.mark.parametrize("contracting", LAYOUTS)
@pytest.mark.parametrize("weights", ["bf16", pytest.param("f16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("m", [1, 5, 20])
def test_infinity_and_nan_reach_only_what_reads_them(weights, contracting, m, rng):
    k, n = 257, 129
    w = randoms(rng, (1, k, n), dtype(weights).numpy)
    w[0, 5, 3], w[0, 256, 128], w[0, 100, 64] = np.nan, np.inf, -np.inf
    if contracting == ROWS:
        w = np.ascontiguousarray(w.transpose(0, 2, 1))
    x = np.abs(randoms(rng, (1, m, k), np.dtype(np.float32))) + 1
    got = run(product(1, m, k, n, weights, contracting), x, w, lower=force)
    expected, _ = exact(x, w, contracting)
    assert np.isnan(got[..., 3]).all() and (got[..., 128] == np.inf).all() and (got[..., 64] == -np.inf).all()
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))


def test_infinite_rows_and_empty_contraction_columns(rng):
    """0 * inf is NaN, as IEEE has it: nothing is skipped for a zero."""
    x = np.zeros((1, 1, 300), np.float32)
    w = randoms(rng, (1, 300, 100), dtype("bf16").numpy)
    w[0, 7, 9] = np.inf
    got = run(product(1, 1, 300, 100, "bf16", COLUMNS), x, w)
    assert np.isnan(got[0, 0, 9]) and np.count_nonzero(np.isnan(got)) == 1


_DIGEST = """
import os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:int(sys.argv[1])]))
sys.path.insert(0, "tests")
import hashlib
import numpy as np
from test_host_kernels import COLUMNS, ROWS, dtype, product, randoms, run
digest = hashlib.sha256()
for m in (1, 6, 40):
    for contracting in (COLUMNS, ROWS):
        rng = np.random.default_rng(m)
        x = randoms(rng, (1, m, 700), np.dtype(np.float32))
        w = randoms(rng, (1, 700, 900) if contracting == COLUMNS else (1, 900, 700), dtype("bf16").numpy)
        for rows in ("f32", "bf16"):
            stored = x.astype(dtype(rows).numpy)
            digest.update(run(product(1, m, 700, 900, "bf16", contracting, rows), stored, w).tobytes())
print(digest.hexdigest())
"""


def test_bits_are_the_same_with_one_thread_and_with_two():
    found = [
        subprocess.run(
            [sys.executable, "-c", _DIGEST, threads], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for threads in ("1", "2")
    ]
    assert found[0] == found[1]


def test_bits_are_the_same_from_run_to_run(rng):
    x = randoms(rng, (1, 40, 900), np.dtype(np.float32))
    w = randoms(rng, (1, 900, 1000), dtype("bf16").numpy)
    text = product(1, 40, 900, 1000, "bf16", COLUMNS)
    first = run(text, x, w)
    assert all(np.array_equal(run(text, x, w), first) for _ in range(10))


_WIDENED = """
import numpy as np
from numba import njit
import kernels.host.elements as elements
from kernels.dtypes import dtype
from kernels.host.vectors import stream_tile
elements._LOOKS_UP = False
for name in ("f8E4M3", "f8E4M3FN", "f8E5M2", "f8E3M4"):
    kind = elements.KINDS[name]
    @njit
    def widen(out, x, w):
        stream_tile(kind, 1, out, x, w, 0, 0, 256)
    out, x, w = np.zeros(256, np.float32), np.ones(1, np.float32), np.arange(256, dtype=np.uint8)
    widen(out.ctypes.data, x.ctypes.data, w.ctypes.data)
    np.testing.assert_array_equal(out, w.view(dtype(name).numpy).astype(np.float32))
print("all equal")
"""


@pytest.mark.slow
def test_eight_bit_floats_are_widened_exactly_where_no_table_is_looked_up():
    asked = [sys.executable, "-W", "error", "-c", _WIDENED]
    assert subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "all equal\n"


def test_kernels_compile_where_nothing_can_be_written(monkeypatch):
    """Numba looks for a directory beside the source and in the user's home; here it may use neither."""
    from numba import cfunc, config
    from numba.core import caching

    from kernels.host import handlers

    def twice(x):
        return 2 * x

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [caching.UserProvidedCacheLocator])
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setattr(handlers, "_compile", lambda target: cfunc("intp(intp)", cache=True)(twice).address)
    handlers.handler("twice")
    assert list(Path(config.CACHE_DIR).rglob("*twice*"))
