"""Sources of values and ops that hand values through: constants, iota, constraints, barriers, ranks."""

from hlo_passes.ir import ir
from hlo_passes.sharding.partition import Handlers, Partitioner
from hlo_passes.sharding.spec import Sharding, local_type, shape_of

__all__ = ["HANDLERS"]


def _constant(part: Partitioner, op: ir.Operation) -> None:
    """A splat is made as small as it is wanted; other data is whole and cut where it is used."""
    value, sharding = op.results[0], part.wanted(op.results[0])
    whole = Sharding.whole(shape_of(value))
    # The bindings cannot hand out complex data; copied with its op it stays whole.
    attr = None if isinstance(value.type.element_type, ir.ComplexType) else op.attributes["value"]
    if sharding == whole or not (isinstance(attr, ir.DenseElementsAttr) and attr.is_splat):
        part.emit_op(op, [], [whole])
        return
    attr = ir.DenseElementsAttr.get_splat(local_type(value, sharding), attr.get_splat_value())
    part.env[value] = (part.emit.constant(attr), sharding)


def _iota(part: Partitioner, op: ir.Operation) -> None:
    value, emit = op.results[0], part.emit
    sharding = part.wanted(value)
    new = part.emit_op(op, [], [sharding]).results[0]
    dim = ir.IntegerAttr(op.attributes["iota_dimension"]).value
    if sharding.axes[dim]:
        start = emit.offset(sharding.axes[dim], sharding.local[dim])
        start = emit.convert(start, value.type.element_type)
        new = emit.binary("add", new, emit.broadcast(start, sharding.local))
    part.env[value] = (new, sharding)


def _barrier(part: Partitioner, op: ir.Operation) -> None:
    """Values go through unchanged, each as it lies."""
    pairs = [part.env[value] for value in op.operands]
    part.emit_op(op, [local for local, _ in pairs], [sharding for _, sharding in pairs])


def _constraint(part: Partitioner, op: ir.Operation) -> None:
    """The user's own sharding of a value: always followed."""
    sharding = part.wanted(op.results[0])
    part.env[op.results[0]] = (part.use(op.operands[0], sharding), sharding)


def _forward(part: Partitioner, op: ir.Operation) -> None:
    part.env[op.results[0]] = part.env[op.operands[0]]


def _nothing(part: Partitioner, op: ir.Operation) -> None:
    """Advice to the propagation that is over by now."""


def _rank(part: Partitioner, op: ir.Operation) -> None:
    """The core's number inside ``shard_map``; a program for all cores has only one partition."""
    if part.manual_depth:
        local = part.emit.op("stablehlo.replica_id", [], [op.results[0].type]).results[0]
    else:
        local = part.emit.zero(op.results[0].type.element_type)
    part.env[op.results[0]] = (local, Sharding.whole(()))


HANDLERS: Handlers = {
    "stablehlo.constant": _constant,
    "stablehlo.iota": _iota,
    "stablehlo.optimization_barrier": _barrier,
    "stablehlo.partition_id": _rank,
    "stablehlo.replica_id": _rank,
    "sdy.sharding_constraint": _constraint,
    "sdy.reshard": _constraint,
    "sdy.propagation_barrier": _forward,
    "sdy.sharding_group": _nothing,
}
