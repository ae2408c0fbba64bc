"""Collectives against NumPy: every kind and type, 1 to 24 ranks, groups, uneven chunks."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.collectives import COLLECTIVES, ORDERS, REDUCERS, run
from distributed.executor import Executor
from distributed.program import Collective
from distributed.sum_orders import is_added_up
from distributed.sums import add_up

FLOATS = (
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e3m4,
)
INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
COMPLEX = (np.complex64, np.complex128)
DTYPES = (*FLOATS, *INTEGERS, *COMPLEX, np.bool_, ml_dtypes.int4, ml_dtypes.uint4)
BITWISE = ("and", "or", "xor")


def collective(kind, groups, **more):
    return Collective(kind=kind, operands=(0,), results=(1,), groups=tuple(map(tuple, groups)), **more)


def draw(rng, shape, dtype):
    """Values with a sign and, for floats, a fraction; small enough not to overflow 24 fp8 terms."""
    if dtype is np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    if dtype in (ml_dtypes.int4, ml_dtypes.uint4):
        return rng.integers(0, 8, shape).astype(dtype)
    if dtype in COMPLEX:
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    return (rng.normal(size=shape) / 4).astype(dtype)


def halves(ranks, rng):
    """The ranks in shuffled order, cut into two groups of unlike size (one group for a single rank)."""
    order = rng.permutation(ranks).tolist()
    cut = max(1, ranks // 3)
    return [group for group in (order[:cut], order[cut:]) if group]


def reference(reducer, arrays):
    """NumPy's reduction in float64 (complex128, or the integers' own modular arithmetic)."""
    ufunc, kind = REDUCERS[reducer], np.asarray(arrays[0]).dtype.kind
    if kind in "iub":
        return ufunc.reduce(np.stack(arrays), axis=0, dtype=arrays[0].dtype)
    return ufunc.reduce([x.astype(np.complex128 if kind == "c" else np.float64) for x in arrays], axis=0)


def reducers_of(dtype):
    if dtype in INTEGERS or dtype is np.bool_:
        return tuple(REDUCERS)
    return tuple(name for name in REDUCERS if name not in BITWISE)


def tolerance(dtype, ranks):
    """Each of the ring's hops rounds once: ``ranks`` times half a unit in the last place, doubled."""
    return ranks * float(ml_dtypes.finfo(dtype).eps)


@pytest.mark.parametrize("ranks", range(1, 25))
def test_all_reduce_is_the_sum_on_every_rank(ranks, rng):
    arrays = [draw(rng, (3, 7), np.float32) for _ in range(ranks)]
    [results] = run(collective("all_reduce", [range(ranks)], reducer="add"), [arrays])
    for result in results:
        assert result.tobytes() == results[0].tobytes()
    scale = sum(np.abs(x) for x in arrays)
    error = np.abs(results[0] - reference("add", arrays))
    assert (error <= tolerance(np.float32, ranks) * scale).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_all_reduce_of_every_type_and_reducer(dtype, rng):
    ranks = 5
    arrays = [draw(rng, (11,), dtype) for _ in range(ranks)]
    for reducer in reducers_of(dtype):
        [results] = run(collective("all_reduce", [range(ranks)], reducer=reducer), [arrays])
        assert all(x.tobytes() == results[0].tobytes() and x.dtype == arrays[0].dtype for x in results)
        if dtype in INTEGERS or dtype is np.bool_:
            np.testing.assert_array_equal(results[0], reference(reducer, arrays))
        elif dtype in (ml_dtypes.int4, ml_dtypes.uint4):
            whole = REDUCERS[reducer].reduce([x.astype(np.int64) for x in arrays], axis=0)
            np.testing.assert_array_equal(results[0].astype(np.int64) % 16, whole % 16)
        elif reducer in ("maximum", "minimum"):
            np.testing.assert_array_equal(
                results[0].astype(reference(reducer, arrays).dtype), reference(reducer, arrays)
            )
        else:
            exact = reference(reducer, arrays)
            scale = reference(reducer, [np.abs(x) for x in arrays]) if dtype not in COMPLEX else 10.0
            smallest = ranks * float(ml_dtypes.finfo(dtype).smallest_subnormal) if dtype not in COMPLEX else 0
            error = np.abs(results[0].astype(exact.dtype) - exact)
            assert (error <= tolerance(dtype, ranks) * scale + smallest).all()


@pytest.mark.parametrize("ranks", (2, 3, 7, 24))
def test_low_precision_sums_round_on_every_hop(ranks, rng):
    """bf16: chunk c starts after its last rank and is rounded at each stop; replayed hop by hop."""
    arrays = [draw(rng, (ranks,), ml_dtypes.bfloat16) for _ in range(ranks)]
    [results] = run(collective("all_reduce", [range(ranks)], reducer="add"), [arrays])
    for chunk in range(ranks):
        total = arrays[(chunk + 1) % ranks][chunk]
        for hop in range(2, ranks + 1):
            total = ml_dtypes.bfloat16(np.float32(total) + np.float32(arrays[(chunk + hop) % ranks][chunk]))
        assert results[0][chunk] == total


@pytest.mark.parametrize("dtype", (np.float32, ml_dtypes.bfloat16, np.int32), ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("ranks", (1, 2, 3, 4, 7, 24))
@pytest.mark.parametrize("algorithm", ORDERS)
def test_every_algorithm_sums_up(algorithm, ranks, dtype, rng):
    arrays = [draw(rng, (ranks, 5), dtype) for _ in range(ranks)]
    everyone = [range(ranks)]
    [results] = run(collective("all_reduce", everyone, reducer="add", algorithm=algorithm), [arrays])
    [pieces] = run(
        collective("reduce_scatter", everyone, reducer="add", algorithm=algorithm, dim=0), [arrays]
    )
    assert len({x.tobytes() for x in results}) == 1
    if dtype is np.int32:
        np.testing.assert_array_equal(results[0], reference("add", arrays))
    else:
        scale = sum(np.abs(x.astype(np.float64)) for x in arrays)
        error = np.abs(results[0].astype(np.float64) - reference("add", arrays))
        assert (error <= tolerance(dtype, ranks) * scale).all()
    # The pieces are the same sums: every algorithm combines a chunk alike in both.
    np.testing.assert_array_equal(np.concatenate(pieces), results[0])


@pytest.mark.parametrize("ranks", (3, 4, 9))
def test_both_ways_meet_at_the_owner(ranks, rng):
    """bf16 replayed: half the ranks are added up on the way there, the others on the way back."""
    arrays = [draw(rng, (ranks,), ml_dtypes.bfloat16) for _ in range(ranks)]
    plan = collective("all_reduce", [range(ranks)], reducer="add", algorithm="bidirectional_ring")
    [results] = run(plan, [arrays])

    def along(chunk, positions):
        total = np.float32(arrays[positions[0]][chunk])
        for rank in positions[1:]:
            total = np.float32(ml_dtypes.bfloat16(total + np.float32(arrays[rank][chunk])))
        return total

    for chunk in range(ranks):
        half = ranks // 2
        before = along(chunk, [(chunk - hop) % ranks for hop in range(half, -1, -1)])
        after = along(chunk, [(chunk + hop) % ranks for hop in range(ranks - 1 - half, 0, -1)])
        assert results[0][chunk] == ml_dtypes.bfloat16(before + after)


def test_a_mesh_rounds_once(rng):
    arrays = [draw(rng, (64,), ml_dtypes.bfloat16) for _ in range(24)]
    plan = collective("all_reduce", [range(24)], reducer="add", algorithm="mesh")
    [results] = run(plan, [arrays])
    total = np.zeros(64, np.float32)
    for x in arrays:
        total = total + x.astype(np.float32)
    np.testing.assert_array_equal(results[0], total.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", (np.float32, ml_dtypes.bfloat16), ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("algorithm", ORDERS)
def test_the_kernel_adds_to_the_same_bits(algorithm, dtype, rng):
    """Against NumPy's chain of sums, which the tests above hold to float64."""
    executor = Executor()
    for ranks, size in itertools.product((1, 2, 3, 8, 24), (0, 1, 17, 4097, 9000)):
        step = collective("all_reduce", halves(ranks, rng), reducer="add", algorithm=algorithm)
        arrays = [draw(rng, (size,), dtype) for _ in range(ranks)]
        for array in arrays:
            array[rng.integers(0, 60, size) == 0] = rng.choice([np.inf, -np.inf, np.nan, 3e38, 1e-39, -0.0])
        assert is_added_up(step, np.dtype(dtype))
        got = add_up(executor, step, [executor.to_device(array) for array in arrays])
        [wanted] = run(step, [arrays])
        for mine, theirs in zip(map(executor.to_host, got), wanted, strict=True):
            is_nan = np.isnan(theirs)
            assert np.array_equal(np.isnan(mine), is_nan)
            assert mine[~is_nan].tobytes() == theirs[~is_nan].tobytes()
        assert len({id(array) for array in got}) == len(step.groups)


def test_only_sums_that_the_kernel_knows_are_given_to_it():
    executor, array = Executor(), np.zeros(3, np.float32)
    assert not is_added_up(collective("all_reduce", [[0, 1]], reducer="add"), np.dtype(np.float64))
    assert not is_added_up(collective("all_reduce", [[0, 1]], reducer="maximum"), np.dtype(np.float32))
    for groups, message in (([[0, 1], [1]], "rank 1 is in two"), ([[0]], "do not match the 2 ranks")):
        with pytest.raises(ValueError, match=message):
            add_up(executor, collective("all_reduce", groups, reducer="add"), [executor.to_device(array)] * 2)


@pytest.mark.parametrize("ranks", range(1, 25))
def test_all_kinds_in_shuffled_groups(ranks, rng):
    groups = halves(ranks, rng)
    arrays = [draw(rng, (4, 5), np.float32) for _ in range(ranks)]
    [summed] = run(collective("all_reduce", groups, reducer="add"), [arrays])
    [gathered] = run(collective("all_gather", groups, dim=1), [arrays])
    [sent] = run(collective("collective_broadcast", groups), [arrays])
    for group in groups:
        for rank in group:
            np.testing.assert_allclose(summed[rank], sum(arrays[r] for r in group), rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(gathered[rank], np.concatenate([arrays[r] for r in group], 1))
            np.testing.assert_array_equal(sent[rank], arrays[group[0]])


@pytest.mark.parametrize("ranks", range(1, 25))
def test_scattering_kinds_in_shuffled_groups(ranks, rng):
    if ranks % 2 == 0:
        order = rng.permutation(ranks).tolist()
        groups = [order[: ranks // 2], order[ranks // 2 :]]
    else:
        groups = [rng.permutation(ranks).tolist()]
    size = len(groups[0])
    arrays = [draw(rng, (3, 2 * size), np.float32) for _ in range(ranks)]
    [scattered] = run(collective("reduce_scatter", groups, reducer="add", dim=1), [arrays])
    [swapped] = run(collective("all_to_all", groups, dim=0, split_dim=1), [arrays])
    for group in groups:
        total = sum(arrays[r].astype(np.float64) for r in group)
        for index, rank in enumerate(group):
            piece = slice(2 * index, 2 * index + 2)
            np.testing.assert_allclose(scattered[rank], total[:, piece], rtol=1e-5, atol=1e-5)
            expected = np.concatenate([arrays[r][:, piece] for r in group], 0)
            np.testing.assert_array_equal(swapped[rank], expected)


@pytest.mark.parametrize("ranks", range(1, 25))
def test_permute_sends_along_its_pairs_and_leaves_zeros(ranks, rng):
    pairs = [(r, (r + 1) % ranks) for r in range(ranks - 1 if ranks > 1 else 1)]
    arrays = [draw(rng, (6,), np.float32) for _ in range(ranks)]
    [moved] = run(collective("collective_permute", pairs), [arrays])
    for rank in range(ranks):
        source = next((s for s, t in pairs if t == rank), None)
        np.testing.assert_array_equal(moved[rank], np.zeros(6) if source is None else arrays[source])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_moving_kinds_keep_every_bit(dtype, rng):
    arrays = [draw(rng, (4, 4), dtype) for _ in range(4)]
    for kind, more in (
        ("all_gather", {"dim": 0}),
        ("all_to_all", {"dim": 0, "split_dim": 0}),
        ("collective_permute", {}),
        ("collective_broadcast", {}),
    ):
        groups = [(r, (r + 1) % 4) for r in range(4)] if kind == "collective_permute" else [range(4)]
        [results] = run(collective(kind, groups, **more), [arrays])
        assert {row.tobytes() for x in results for row in x} <= {row.tobytes() for x in arrays for row in x}
        assert {x.dtype for x in results} == {np.dtype(dtype)}


@settings(deadline=None)
@given(
    ranks=st.integers(1, 24),
    shape=st.lists(st.integers(0, 5), max_size=3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_inputs_stay_and_scatter_then_gather_is_all_reduce(ranks, shape, dtype, seed):
    """reduce_scatter then all_gather moves the same chunks in the same order, so it agrees to the bit."""
    rng = np.random.default_rng(seed)
    arrays = [draw(rng, (ranks, *shape), dtype) for _ in range(ranks)]
    before = [x.tobytes() for x in arrays]
    everyone = [range(ranks)]
    [reduced] = run(collective("all_reduce", everyone, reducer="add"), [arrays])
    [pieces] = run(collective("reduce_scatter", everyone, reducer="add", dim=0), [arrays])
    [joined] = run(collective("all_gather", everyone, dim=0), [pieces])
    assert joined[0].tobytes() == reduced[0].tobytes()
    assert [x.tobytes() for x in arrays] == before


def test_one_object_on_all_ranks_counts_once_per_rank(rng):
    array = draw(rng, (9,), np.int32)
    kept = array.copy()
    [results] = run(collective("all_reduce", [range(6)], reducer="add"), [[array] * 6])
    np.testing.assert_array_equal(results[3], array * np.int32(6))
    np.testing.assert_array_equal(array, kept)


def test_several_operands_and_scalars(rng):
    first = [np.array(float(r), np.float32) for r in range(3)]
    second = [draw(rng, (4,), np.float32) for _ in range(3)]
    sums, more = run(collective("all_reduce", [range(3)], reducer="add"), [first, second])
    assert sums[2] == 3.0 and sums[2].shape == ()
    assert len(more) == 3


def test_nan_and_overflow_pass_silently():
    arrays = [np.array([np.nan, 60000.0, 1.0], np.float16), np.array([1.0, 60000.0, np.inf], np.float16)]
    [added] = run(collective("all_reduce", [range(2)], reducer="add"), [arrays])
    [largest] = run(collective("all_reduce", [range(2)], reducer="maximum"), [arrays])
    np.testing.assert_array_equal(added[0], np.array([np.nan, np.inf, np.inf], np.float16))
    np.testing.assert_array_equal(largest[1], np.array([np.nan, 60000.0, np.inf], np.float16))


@pytest.mark.parametrize(
    ("bad", "message"),
    (
        (collective("all_reduse", [range(2)]), "unknown collective"),
        (collective("all_reduce", [range(2)], reducer="average"), "unknown reducer"),
        (collective("all_reduce", [range(2)], reducer="add", algorithm="star"), "unknown algorithm"),
        (collective("all_reduce", [[0]], reducer="add"), r"ranks \[1\]"),
        (collective("all_gather", [[0, 1], [1]], dim=0), "two replica groups"),
        (collective("all_gather", [range(2)], dim=5), "dim 5"),
        (collective("reduce_scatter", [range(2)], reducer="add", dim=0), "does not divide"),
        (collective("collective_permute", [(0, 1), (1, 1)]), "two pairs"),
        (collective("collective_permute", [(0, 2)]), "outside"),
    ),
)
def test_what_is_wrong_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        run(bad, [[np.zeros(3, np.float32)] * 2])


def test_unlike_operands_are_refused():
    with pytest.raises(ValueError, match="differ between ranks"):
        run(collective("all_reduce", [range(2)], reducer="add"), [[np.zeros(2), np.zeros(3)]])


def test_the_table_names_the_program_kinds():
    moving = {"all_gather", "all_to_all", "collective_permute", "collective_broadcast"}
    assert set(COLLECTIVES) == moving | {"all_reduce", "reduce_scatter"}
