"""Control flow around collectives: all cores must be told, not merely happen to know, which way it goes."""

from distributed.mesh import Mesh
from hlo_passes.ir import ir, main, walk
from hlo_passes.local import num_ranks
from hlo_passes.ops import CONTROL, holds_collective, kind, terminator
from hlo_passes.sharding.emit import Emitter
from hlo_passes.varying import analyze

__all__ = ["AGREE", "agree"]

# On a loop or branch of the program that all cores share: its predicate is one value of that program.
# A loop inside shard_map is the user's own for each core, and its predicate may really differ.
AGREE = "neuron.agree"


def agree(module: ir.Module) -> None:
    """All-reduces predicates and indices that cores computed apart where collectives depend on them.

    On a mesh of two axes a predicate reduced over one of them is made in several groups of cores: equal
    values, but nothing tells the ring so. The reducer returns what all bring. Drops the mark ``AGREE``.
    """
    marked: list[ir.Operation] = []
    walk(module.operation, lambda op: marked.append(op) if AGREE in op.attributes else None)
    for op in marked:
        del op.attributes[AGREE]
        if kind(op) not in CONTROL or not holds_collective(op):
            continue
        user, number = _reader(op)
        if analyze(module).is_varying(user.operands[number]):
            user.operands[number] = _told(module, user, user.operands[number])


def _reader(op: ir.Operation) -> tuple[ir.Operation, int]:
    """The op that decides, and which of its operands it decides by."""
    if kind(op) != "while":
        return op, 0
    return terminator(op.regions[0].blocks[0]), 0


def _told(module: ir.Module, user: ir.Operation, value: ir.Value) -> ir.Value:
    emit = Emitter(Mesh(axes=(("all", num_ranks(module)),)), main(module).entry_block)
    emit.location, emit.point = user.location, ir.InsertionPoint(user)
    is_predicate = value.type.element_type.width == 1
    return emit.all_reduce(value, ("all",), "or" if is_predicate else "maximum")
