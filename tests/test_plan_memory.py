"""Memory plans, judged by a checker of its own: it plays the program and watches every byte range."""

import jax.numpy as jnp
import local_programs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from hlo_passes import fuse, plan_memory
from hlo_passes.ir import ir, main, parse
from hlo_passes.ops import captures, is_composite, kind, tensor


def _captured() -> str:
    """A temporary that a loop's body reads first in every iteration, before it makes its own."""

    def run(x, w):
        outside = jnp.tanh(x @ w)

        def body(_, x):
            x = local_programs.all_reduce((x + outside) @ w)
            return local_programs.all_reduce(jnp.sin(x) @ w) @ w

        return local_programs.all_reduce(lax.fori_loop(0, 3, body, x))

    return local_programs.local_module(run, [((8, 8), "f4", None), ((8, 8), "f4", 0)], tp=2)


def _crossed() -> str:
    """A loop that updates one of two carried values and hands them on crossed."""

    def run(x, y):
        def body(i, carry):
            x, y = carry
            new = local_programs.all_reduce(y[:1])
            return y, lax.dynamic_update_slice(x, new, (i, 0))

        return lax.fori_loop(0, 3, body, (x, y))

    return local_programs.local_module(run, [((8, 8), "f4", None)] * 2, tp=2, donate=[0, 1])


PROGRAMS = {
    "captured": _captured,
    "crossed": _crossed,
    "mlp": local_programs.mlp_block,
    "prefill": lambda: local_programs.opt_prefill(layers=3),
    "decode": lambda: local_programs.opt_decode(layers=3),
    "loops": local_programs.loops,
}


def _planned(text: str) -> ir.Module:
    module = parse(text)
    fuse.run(module, fuse.Options())
    plan_memory.run(module, plan_memory.Options())
    assert module.operation.verify()
    return module


class Memory:
    """HBM of one core as a list of what value lies where; a read demands that the value is there."""

    def __init__(self, module: ir.Module) -> None:
        self.size = module.operation.attributes["neuron.hbm_bytes"].value
        self.held: dict[ir.Value, tuple[int, int]] = {}
        self.offsets: dict[ir.Value, int] = {}
        function = main(module)
        self.donated = set()
        offsets = function.attributes["neuron.hbm_offset"]
        self.offsets.update(zip(function.arguments, offsets, strict=True))
        for number, own in enumerate(function.attributes["arg_attrs"]):
            if "tf.aliasing_output" in own:
                self.donated.add(number)
        self.write(list(function.arguments))
        self.play(function.entry_block)
        returned = function.entry_block.operations[len(function.entry_block.operations) - 1].operation
        kept = [a for number, a in enumerate(function.arguments) if number not in self.donated]
        self.read([*returned.operands, *kept], "the end")

    def range_of(self, value: ir.Value) -> tuple[int, int] | None:
        if value not in self.offsets:
            op = value.owner.operation
            self.offsets.update(zip(op.results, op.attributes["neuron.hbm_offset"], strict=True))
        start = self.offsets[value]
        assert start == -1 or (start >= 0 and start % 64 == 0)
        return None if start == -1 else (start, start + tensor(value.type).size_bytes)

    def read(self, values: list[ir.Value], reader: str) -> None:
        for value in values:
            place = self.range_of(value)
            assert place is None or self.held.get(value) == place, f"{reader} reads {value}, overwritten"

    def write(self, values: list[ir.Value]) -> None:
        places = {value: place for value in values if (place := self.range_of(value)) is not None}
        for value, (start, stop) in places.items():
            assert stop <= self.size
            for other, (first, last) in list(self.held.items()):
                if start < last and first < stop:
                    del self.held[other]
            self.held[value] = (start, stop)
        assert all(self.held.get(value) == place for value, place in places.items()), "results overlap"

    def play(self, block: ir.Block) -> None:
        for view in block.operations:
            op = view.operation
            self.read(
                [*op.operands, *captures(op)] if kind(op) != "while" else list(op.operands), str(op.name)
            )
            if kind(op) == "while":
                self.loop(op)
            elif kind(op) in ("case", "if"):
                before = dict(self.held)
                for region in op.regions:
                    self.held = dict(before)
                    self.play(region.blocks[0])
                self.write(list(op.results))
            else:
                self.no_overlap_inside(op)
                self.write(list(op.results))

    def loop(self, op: ir.Operation) -> None:
        """Two iterations: what the first leaves must suit the second."""
        condition, body = (region.blocks[0] for region in op.regions)
        for carried in (condition.arguments, body.arguments):
            for argument, result in zip(carried, op.results, strict=True):
                self.range_of(result)
                self.offsets[argument] = self.offsets[result]
        returned = body.operations[len(body.operations) - 1].operation.operands
        for _ in range(2):
            self.write(list(condition.arguments))
            self.play(condition)
            self.write(list(body.arguments))
            self.play(body)
            self.read(list(returned), "the next iteration")
        self.write(list(op.results))

    def no_overlap_inside(self, op: ir.Operation) -> None:
        """An op may write over what it reads only if the place is the same and it updates it in place."""
        for result in op.results:
            own = self.range_of(result)
            for operand in op.operands:
                read = self.range_of(operand)
                if own and read and own[0] < read[1] and read[0] < own[1]:
                    assert own == read and is_composite(op), f"{op.name} overwrites what it reads"


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_alive_is_overwritten(name):
    Memory(_planned(PROGRAMS[name]()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1 << 16)] * 3), min_size=3, max_size=40))
def test_nothing_alive_is_overwritten_in_random_programs(choices):
    Memory(_planned(local_programs.random_program(choices)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_idempotent(name):
    module = _planned(PROGRAMS[name]())
    once = str(module)
    plan_memory.run(module, plan_memory.Options())
    assert str(module) == once


def test_golden(golden):
    golden("plan_memory_decode.mlir", str(_planned(local_programs.opt_decode(layers=1))))


def test_a_donated_cache_is_updated_where_it_lies():
    module = _planned(local_programs.opt_decode(layers=2))
    function = main(module)
    returned = function.entry_block.operations[len(function.entry_block.operations) - 1].operation.operands
    memory = Memory(module)
    caches = [memory.range_of(function.arguments[number]) for number in range(2, 6)]
    assert [memory.range_of(value) for value in list(returned)[1:]] == caches


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        (lambda w, g: w - 0.1 * g, True),
        (lambda w, g: jnp.where(w > 0, w, 0) * g, True),
        (lambda w, g: w - 0.1 * g * w[::-1], False),
        (lambda w, g: w / w.sum() + g, False),
        (lambda w, g: g - w[0], False),
    ],
)
def test_a_donated_weight_is_overwritten_where_each_element_is_read_for_itself_alone(change, shares):
    def step(w, x):
        return change(w, jnp.tanh(x.T @ x))

    arguments = [((64, 64), "f4", None), ((8, 64), "f4", None)]
    module = _planned(local_programs.local_module(step, arguments, tp=2, donate=[0]))
    memory, function = Memory(module), main(module)
    returned = function.entry_block.operations[len(function.entry_block.operations) - 1].operation.operands
    assert (memory.range_of(returned[0]) == memory.range_of(function.arguments[0])) == shares


def test_depth_does_not_cost_memory_beyond_the_weights():
    def temporaries(layers: int) -> int:
        module = _planned(local_programs.opt_prefill(layers=layers))
        sizes = [-(-tensor(a.type).size_bytes // 64) * 64 for a in main(module).arguments]
        return module.operation.attributes["neuron.hbm_bytes"].value - sum(sizes)

    assert temporaries(8) == temporaries(3)


def test_stacked_weights_of_a_scan_are_not_copied():
    module = _planned(local_programs.loops())
    (loop,) = [op for op in main(module).entry_block.operations if kind(op) == "while"]
    assert tensor(main(module).arguments[1].type) not in [tensor(value.type) for value in loop.operands]


def test_a_carried_value_is_not_overwritten_by_what_goes_elsewhere():
    module = _planned(_crossed())
    (loop,) = [op for op in main(module).entry_block.operations if kind(op) == "while"]
    places = set(loop.attributes["neuron.hbm_offset"])
    updates = [op for op in loop.regions[1].blocks[0].operations if "data_movement" in str(op)]
    assert updates
    assert all(places.isdisjoint(op.attributes["neuron.hbm_offset"]) for op in updates)


def test_alignment():
    module = parse(local_programs.mlp_block())
    fuse.run(module, fuse.Options())
    plan_memory.run(module, plan_memory.Options(alignment_bytes=4096))
    for op in main(module).entry_block.operations:
        if is_composite(op):
            assert all(offset % 4096 == 0 for offset in op.attributes["neuron.hbm_offset"])
