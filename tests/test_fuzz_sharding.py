"""Random programs under random shardings: a few new ones in each run, a thousand in the slow suite."""

import pytest
from fuzz_sharding import RUNTIME_SHARE, command, run_many, run_one
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from random_programs import CORES, MAX_STEPS, generate

# A thousand programs, in parts that several processes of pytest can share.
_PARTS, _PART = 4, 250


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, MAX_STEPS))
def test_a_few_random_programs(seed: int, steps: int) -> None:
    """What hypothesis prints of a failure has the fewest steps; the command runs it again."""
    outcome = run_one(seed, steps)
    note(command(outcome))
    assert not outcome.failure, f"{command(outcome)}: {outcome.failure}"


def test_programs_are_a_function_of_seed_and_steps() -> None:
    for seed in range(5):
        first, again = generate(seed), generate(seed)
        assert (first.inputs, first.shardings, first.cores) == (again.inputs, again.shardings, again.cores)
        shorter = generate(seed, max(first.steps - 1, 0))
        assert first.inputs[: len(shorter.inputs)] == shorter.inputs


def test_programs_cover_every_number_of_cores_and_both_kinds() -> None:
    programs = [generate(seed, 0) for seed in range(200)]
    assert {program.cores for program in programs} == set(CORES)
    assert {program.exact for program in programs} == {True, False}
    assert {len(program.mesh.axis_names) if program.mesh else 0 for program in programs} == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(_PARTS))
def test_a_thousand_random_programs(part: int, spare_cores: int) -> None:
    """At least one in five through the whole pipeline and our runtime, the others on replicas of XLA:CPU."""
    seeds = range(part * _PART, (part + 1) * _PART)
    outcomes = list(run_many(seeds, workers=spare_cores))
    failed = [f"{command(outcome)}  # {outcome.failure}" for outcome in outcomes if outcome.failure]
    assert not failed, "\n".join(failed)
    assert {outcome.seed for outcome in outcomes} == set(seeds)
    assert sum(outcome.runtime for outcome in outcomes) >= _PART // RUNTIME_SHARE
    assert {outcome.cores for outcome in outcomes} == set(CORES)
