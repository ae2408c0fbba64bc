"""The list scheduler: legal orders, never slower by the clock, the same numbers, and where it wins."""

import re

import jax.numpy as jnp
import local_programs
import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from local_programs import all_reduce

import neuronx
from distributed.list_schedule import Task, list_schedule, makespan_s
from distributed.timeline import time_program
from hlo_passes import fuse, order, plan_memory, schedule
from hlo_passes.ir import parse
from hlo_passes.levels import check_level
from hlo_passes.notes import notes


@st.composite
def tasks(draw):
    found = []
    for number in range(draw(st.integers(0, 12))):
        after = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        resource = draw(st.sampled_from(("core", "link")))
        found.append(Task(resource=resource, seconds=draw(st.floats(0, 10)), after=frozenset(after)))
    return found


@given(tasks())
def test_an_order_is_legal_and_within_the_bounds(drawn):
    found = list_schedule(drawn)
    places = {number: place for place, number in enumerate(found)}
    assert sorted(found) == list(range(len(drawn)))
    assert all(places[other] < places[number] for number in found for other in drawn[number].after)
    ends = []
    for task in drawn:
        ends.append(task.seconds + max((ends[other] for other in task.after), default=0.0))
    of_each = [sum(t.seconds for t in drawn if t.resource == name) for name in ("core", "link")]
    assert makespan_s(drawn, found) >= max(0.0, *ends, *of_each) - 1e-9
    assert makespan_s(drawn, found) <= sum(of_each) + 1e-9
    assert list_schedule(drawn) == found


@given(tasks())
def test_next_is_what_starts_first_then_what_most_collectives_wait_for(drawn):
    def link_s(number):
        behind = max((link_s(n) for n, task in enumerate(drawn) if number in task.after), default=0.0)
        return behind + (drawn[number].seconds if drawn[number].resource == "link" else 0.0)

    def rank(number):
        task = drawn[number]
        return max([free[task.resource], *(ends[n] for n in task.after)]), -link_s(number), number

    free, ends = {"core": 0.0, "link": 0.0}, {}
    for number in list_schedule(drawn):
        ready = [n for n, task in enumerate(drawn) if n not in ends and task.after <= ends.keys()]
        assert number == min(ready, key=rank)
        ends[number] = free[drawn[number].resource] = rank(number)[0] + drawn[number].seconds


@given(st.lists(st.sampled_from(("core", "link")), max_size=10))
def test_a_chain_keeps_its_order(resources):
    chain = [
        Task(resource=name, seconds=1.0, after=frozenset({number - 1} if number else ()))
        for number, name in enumerate(resources)
    ]
    assert list_schedule(chain) == list(range(len(chain)))


def test_a_collective_starts_before_work_that_can_wait():
    # Two kernels in front of the one that feeds the collective: they run while it flies.
    given_order = [
        Task(resource="core", seconds=3, after=frozenset()),
        Task(resource="core", seconds=3, after=frozenset({0})),
        Task(resource="core", seconds=1, after=frozenset()),
        Task(resource="link", seconds=6, after=frozenset({2})),
        Task(resource="core", seconds=1, after=frozenset({3})),
    ]
    assert list_schedule(given_order) == [2, 3, 0, 1, 4]
    assert makespan_s(given_order, range(5)) == 14
    assert makespan_s(given_order, [2, 3, 0, 1, 4]) == 8


def _towers(x, y, w, v):
    first = jnp.tanh(all_reduce(x @ w))
    second = jnp.tanh(all_reduce(y @ v))
    return first @ first, second @ second


def _text(size: int) -> str:
    block, rows = (size, size // 4), (size // 4, size)
    arguments = [(block, "f4", 1), (block, "f4", 1), (rows, "f4", 0), (rows, "f4", 0)]
    return local_programs.local_module(_towers, arguments, tp=4)


def _fused(text: str, *, ordered: bool, **options):
    module = parse(text)
    fuse.run(module, fuse.Options())
    if ordered:
        order.run(module, order.Options(**options))
        check_level(module, "fused", "order")
    return module


def _seconds(module) -> float:
    plan_memory.run(module, plan_memory.Options())
    return time_program(schedule.run(module, schedule.Options()), "inf2.48xlarge").total_s


def test_two_towers_overlap_and_say_so():
    """The second product runs while the first sum travels."""
    text = _text(1024)
    plain, ordered = _fused(text, ordered=False), _fused(text, ordered=True)
    (said,) = notes(ordered)
    saved_s = float(said.partition(" us less")[0].rpartition(" ")[2]) * 1e-6
    before_s, after_s = _seconds(plain), _seconds(ordered)
    assert before_s - after_s == pytest.approx(saved_s, abs=1e-7)
    assert after_s < 0.9 * before_s


def _last_first(tasks):
    """A legal order that gains nothing: of two towers the second, whole, then the first."""
    order, left = [], list(range(len(tasks)))
    while left:
        able = [number for number in left if tasks[number].after <= set(order)]
        order.append(max(able))
        left.remove(order[-1])
    return order


def test_an_order_that_the_clock_finds_no_faster_is_told_and_not_taken(monkeypatch):
    text = _text(1024)
    plain = _fused(text, ordered=False)
    monkeypatch.setattr(order, "list_schedule", _last_first)
    module = _fused(text, ordered=True, least_gain=-1.0)
    (said,) = notes(module)
    kept_us, listed_us = (float(number) for number in re.findall(r"([\d.]+) us", said))
    assert said.startswith("order: program order") and listed_us >= kept_us
    assert kept_us == pytest.approx(_seconds(plain) * 1e6, abs=0.1)
    assert _seconds(module) == _seconds(plain)


def test_results_stay(rng):
    text = _text(32)
    inputs = local_programs.per_rank(text, int(rng.integers(1 << 30)))
    ordered = str(_fused(text, ordered=True, least_gain=-1.0))
    before, after = oracles.run_local_on_xla(text, inputs), oracles.run_local_on_xla(ordered, inputs)
    for left, right in zip(before, after, strict=True):
        for one, other in zip(left, right, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("program", (local_programs.mlp_block, lambda: local_programs.opt_decode(layers=2)))
def test_chains_are_left_alone(program):
    text = program()
    assert str(_fused(text, ordered=True)) == str(_fused(text, ordered=False))


_CHOICE = st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))


@settings(deadline=None, max_examples=6)
@given(st.lists(_CHOICE, min_size=4, max_size=12))
def test_never_slower_and_the_same_numbers(choices):
    """Random programs with donation and updates, ordered wherever the clock allows it at all."""
    text = local_programs.random_program(choices)
    ordered = _fused(text, ordered=True, least_gain=-1.0)
    inputs = local_programs.per_rank(text, len(choices))
    before, after = oracles.run_local_on_xla(text, inputs), oracles.run_local_on_xla(str(ordered), inputs)
    for left, right in zip(before, after, strict=True):
        for one, other in zip(left, right, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    assert _seconds(ordered) <= _seconds(_fused(text, ordered=False))


def test_what_has_no_price_stays_in_order():
    """A custom call beside a collective: nobody knows which order is better, and it runs all the same."""
    x = np.random.default_rng().standard_normal((4, 64), np.float32)
    w = np.random.default_rng().standard_normal((64, 4), np.float32)
    mesh = AbstractMesh((2,), ("tp",))
    cut = NamedSharding(mesh, P(None, "tp")), NamedSharding(mesh, P("tp"))
    singular = neuronx.compile(lambda x, w: jnp.linalg.svd(x @ w, compute_uv=False), in_shardings=cut)
    np.testing.assert_allclose(singular(x, w), np.linalg.svd(x @ w, compute_uv=False), rtol=1e-4)
