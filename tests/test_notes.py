"""Notes: in order, equal ones counted, nothing said twice."""

from hlo_passes.ir import parse
from hlo_passes.notes import add_notes, notes


def test_notes_are_kept_in_order_and_counted():
    module = parse("module {}")
    assert notes(module) == ()
    add_notes(module, [])
    assert "neuron.notes" not in module.operation.attributes
    add_notes(module, ["b", "a", "b"])
    add_notes(module, ["c", "a"])
    assert notes(module) == ("b (2 times)", "a", "c")
    assert notes(parse(str(module))) == notes(module)
