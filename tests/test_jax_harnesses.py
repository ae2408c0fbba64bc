"""A sample of JAX's own test harnesses on a ring of 4 under random shardings, against XLA:CPU."""

from collections import Counter

import pytest
from harness_ring import TOLERANCES, run_sample, sample

pytestmark = pytest.mark.slow

_SEED, _COUNT = 0, 500

# Why a harness may count for nothing, by the beginning of the reason; more than so many are a fault of ours.
_SKIPS = {"JAX does not implement it on CPU": 20, "JAX itself": 10, "on one core as well": 5}


def test_a_sample_of_harnesses_on_a_ring_of_four(spare_cores: int) -> None:
    outcomes = list(run_sample(_SEED, _COUNT, workers=spare_cores))
    failed = [f"{outcome.name}: {outcome.reason}" for outcome in outcomes if outcome.status == "failed"]
    skips = Counter(outcome.reason.split(":")[0] for outcome in outcomes if outcome.status == "skipped")
    listed = [f"{outcome.name}: {outcome.reason}" for outcome in outcomes if outcome.status == "skipped"]
    print("\n".join([f"skipped {len(listed)} of {len(outcomes)}", *sorted(listed)]))
    assert len(outcomes) == _COUNT
    assert not failed, "\n".join(failed)
    assert set(skips) <= set(_SKIPS), listed
    assert all(count <= _SKIPS[reason] for reason, count in skips.items()), (skips, listed)


def test_samples_are_a_function_of_their_seed() -> None:
    assert sample(_SEED, _COUNT) == sample(_SEED, _COUNT) != sample(_SEED + 1, _COUNT)
    assert len(set(sample(_SEED, _COUNT))) == _COUNT


def test_tolerances_are_for_inexact_types_only() -> None:
    assert all(name.startswith(("float", "bfloat", "complex")) for name in TOLERANCES)
