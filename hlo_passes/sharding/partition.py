"""Rewrites a global program as the program of one core: one algorithm over factors for every op."""

from collections.abc import Callable, Mapping, Sequence

from hlo_passes.ir import func, ir
from hlo_passes.local import donations
from hlo_passes.ops import inner_ops, operations
from hlo_passes.sharding.choice import Choice, Targets, choose
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.forms import Env, Forms
from hlo_passes.sharding.local_sizes import LOCAL_SIZES
from hlo_passes.sharding.notes import gather_note, reshard_note, whole_note
from hlo_passes.sharding.padding import finite_argument, padding_fill
from hlo_passes.sharding.reductions import all_reducer, combine_parts
from hlo_passes.sharding.rules import OpRule
from hlo_passes.sharding.spec import Sharding, layout_attributes, local_type, mesh_attribute, shape_of
from hlo_passes.signature import write_signature

__all__ = ["Handlers", "Partitioner", "by_factors"]

_KEPT_ARGUMENT_ATTRIBUTES = ("tf.aliasing_output", "jax.buffer_donor")


class Partitioner:
    """Builds the per-core ``main`` beside the global one; ``env`` maps global values to local ones.

    ``handlers`` take the ops whose factor rule does not say all. ``notes`` collects what was given up.
    ``manual_depth`` counts the ``shard_map`` bodies around the op at hand.
    """

    def __init__(
        self, module: ir.Module, function: func.FuncOp, targets: Targets, handlers: "Handlers"
    ) -> None:
        self.module, self.function, self.targets = module, function, targets
        self.env: Env = {}
        self.notes: list[str] = []
        self.manual_depth = 0
        self._donated = frozenset(argument for _, argument in donations(function))
        self._finite_padding: set[int] = set()
        self._reader: ir.Operation | None = None
        self._reader_is_noted = False
        self._handlers = handlers
        self.done: set[ir.Operation] = set()

    def run(self) -> None:
        """Replaces the global function by the local one and describes the layouts in attributes."""
        old = self.function.regions[0].blocks[0]
        shardings = [self.wanted(value) for value in old.arguments]
        local = self._new_function(old, shardings)
        entry = local.regions[0].blocks[0]
        for value, argument, sharding in zip(old.arguments, entry.arguments, shardings, strict=True):
            self.env[value] = (argument, sharding)
        self.emit = Emitter(self.targets.mesh, entry)
        self.emit.point = ir.InsertionPoint(entry)
        self.forms = Forms(self.env, self.emit)
        returned = self.operations(old)
        self._finish(local, old, self._results(shardings, returned))

    def wanted(self, value: ir.Value) -> Sharding:
        """What is wanted of ``value``; whole where nobody says anything."""
        return self.targets.wanted(value) or Sharding.whole(shape_of(value))

    def operations(self, block: ir.Block) -> list[ir.Value]:
        """Partitions the ops of ``block`` at the emitter's point; returns what its terminator hands out."""
        *ops, end = operations(block)
        for op in ops:
            if op not in self.done:
                self._reader, self._reader_is_noted, self.emit.location = op, False, op.location
                self._handlers.get(op.name, Partitioner.generic)(self, op)
        self._reader, self._reader_is_noted, self.emit.location = None, False, end.location
        return list(end.operands)

    def use(self, value: ir.Value, sharding: Sharding) -> ir.Value:
        """The local form of a global value under ``sharding``."""
        return self.use_all([value], [sharding])[0]

    def use_all(self, values: Sequence[ir.Value], shardings: Sequence[Sharding]) -> list[ir.Value]:
        """The local forms of what one op reads; a gathered one is noted, once for each op."""
        forms, moved = self.forms.take(values, shardings)
        for value, mover in moved:
            if mover.gathered_elements and not self._reader_is_noted:
                self.notes.append(
                    reshard_note(self._reader, value, mover.gathered_elements, mover.old, mover.new)
                )
        return forms

    def whole(self, value: ir.Value) -> ir.Value:
        return self.use(value, Sharding.whole(shape_of(value)))

    def generic(self, op: ir.Operation) -> None:
        """Any op: by its rule, or whole on every core where it has none."""
        rule = self.targets.rules.get(op)
        if rule is None:
            self._note_whole(op, "no dim of it corresponds between operands and results")
            whole = [Sharding.whole(shape_of(v)) for v in op.operands]
            results = [Sharding.whole(shape_of(v)) for v in op.results]
            self.emit_op(op, self.use_all(op.operands, whole), results)
            return
        choice = self.choose(op, rule)
        if op.name == "stablehlo.reduce" and all_reducer(op) is None:
            choice.drop(rule.reductions)
        self.by_rule(op, rule, choice)

    def by_rule(self, op: ir.Operation, rule: OpRule, choice: Choice) -> None:
        """The op as ``choice`` says, which may be whole on every core."""
        if not choice.axes:
            pairs = zip(op.operands, rule.operands, strict=True)
            lying = [zip(self.env[value][1].axes, dims, strict=True) for value, dims in pairs]
            cut = {factors[0] for dims in lying for axes, factors in dims if axes and factors}
            self._note_whole(op, rule.why_blocked if cut & rule.blocked else "in parts it would move more")
        self.emit_with(op, rule, choice)

    def choose(self, op: ir.Operation, rule: OpRule, *, may_move: bool = True) -> Choice:
        """Axes per factor of ``op``, see ``choice.choose``."""
        return choose(self.targets, lambda value: self.env[value][1], op, rule, may_move=may_move)

    def emit_with(
        self, op: ir.Operation, rule: OpRule, choice: Choice, *,
        operand: Callable[[int, ir.Value, Sharding], ir.Value] | None = None,
        result: Callable[[Sharding], Sharding] = lambda sharding: sharding,
        localize: Callable[[ir.Operation], None] = lambda op: None, summed: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """Reshards the operands as ``choice`` says, emits the local op and finishes its reductions.

        Handlers may bring an operand about in their own way, shard a result further than the choice
        does, and mend the attributes of the local op; results are summed over axes ``summed`` as well.
        """
        pairs = zip(op.operands, rule.operands, strict=True)
        lying = [choice.sharding(shape_of(value), dims, rule) for value, dims in pairs]
        if operand is None:
            operands = self.use_all(op.operands, lying)
        else:
            operands = [operand(n, v, s) for n, (v, s) in enumerate(zip(op.operands, lying, strict=True))]
        self._mask(op, rule, choice, operands)
        shardings = [
            result(choice.sharding(shape_of(v), d, rule))
            for v, d in zip(op.results, rule.results, strict=True)
        ]
        new = self.emit_op(op, operands, shardings)
        localize(new)
        reduced = tuple(a for f in sorted(rule.reductions & choice.axes.keys()) for a in choice.axes[f])
        reduced += summed
        if reduced:
            narrowed = combine_parts(self.emit, self.env, op, new, reduced)
            self.done |= {narrowed} if narrowed else set()

    def _mask(self, op: ir.Operation, rule: OpRule, choice: Choice, operands: list[ir.Value]) -> None:
        """Fills the padding of reduced dims with what the reduction ignores.

        A weight keeps the padding it was placed with: all that is asked of it is to be finite, because
        the other operand of the product has zeros there.
        """
        if rule.reductions.isdisjoint(choice.axes):
            return
        kept, argument = finite_argument(op, operands, self._donated)
        for number, (value, dims) in enumerate(zip(op.operands, rule.operands, strict=True)):
            sharding, shape = choice.sharding(shape_of(value), dims, rule), shape_of(value)
            for dim, (axes, factors) in enumerate(zip(sharding.axes, dims, strict=True)):
                even = sharding.local[dim] * self.targets.mesh.size(axes) == shape[dim]
                if even or not axes or factors[0] not in rule.reductions:
                    continue
                if number == kept:
                    self._finite_padding.add(argument)
                    continue
                fill = padding_fill(op, number)
                local = operands[number]
                scalar = self.emit.zero(local.type.element_type) if fill is None else self.whole(fill)
                operands[number] = self.emit.fill_padding(local, dim, axes, shape[dim], scalar)

    def emit_op(
        self, op: ir.Operation, operands: Sequence[ir.Value], shardings: Sequence[Sharding]
    ) -> ir.Operation:
        """Copies ``op`` with local operands and result types and records its results."""
        new = self.emit.copy(op, operands)
        for old, result, sharding in zip(op.results, new.results, shardings, strict=True):
            result.set_type(local_type(old, sharding))
            self.env[old] = (result, sharding)
        if len(new.regions):
            self._remap_captures(new)
        if op.name in LOCAL_SIZES:
            LOCAL_SIZES[op.name](op, new)
        return new

    def _remap_captures(self, op: ir.Operation) -> None:
        """Values from outside that a region reads become their whole local forms."""
        for inner in inner_ops(op):
            for number, value in enumerate(inner.operands):
                if value in self.env:
                    inner.operands[number] = self.whole(value)

    def note_gather(self, op: ir.Operation, moved_bytes: int, why: str, fix: str) -> None:
        """Says that every core receives ``moved_bytes`` because an op reads more than its shard."""
        self.notes.append(gather_note(op, moved_bytes, why, fix))

    def _note_whole(self, op: ir.Operation, why: str) -> None:
        """Says that an op with a sharded operand is computed whole on every core."""
        sharded = [(v, self.env[v][1]) for v in op.operands if not self.env[v][1].is_whole]
        if sharded:
            size = self.targets.mesh.size
            values = [(v, s, size(tuple(a for axes in s.axes for a in axes))) for v, s in sharded]
            self.notes.append(whole_note(op, values, why))
            self._reader_is_noted = True

    def _new_function(self, old: ir.Block, shardings: Sequence[Sharding]) -> func.FuncOp:
        types = [local_type(v, s) for v, s in zip(old.arguments, shardings, strict=True)]
        with ir.InsertionPoint(self.function), self.function.location:
            local = func.FuncOp("main.local", ir.FunctionType.get(types, []))
        local.regions[0].blocks.append(*types, arg_locs=[v.location for v in old.arguments])
        return local

    def _results(
        self, arguments: Sequence[Sharding], values: Sequence[ir.Value]
    ) -> list[tuple[ir.Value, ir.Value, Sharding]]:
        """(global value, local value, sharding) per result: as demanded, as its alias, or as it is."""
        demanded = list(self.targets.demanded)
        if "arg_attrs" in self.function.attributes:
            for sharding, attributes in zip(arguments, self.function.arg_attrs, strict=True):
                if "tf.aliasing_output" in attributes:
                    demanded[ir.IntegerAttr(attributes["tf.aliasing_output"]).value] = sharding
        results = []
        for value, sharding in zip(values, demanded, strict=True):
            sharding = sharding or self.env[value][1]
            results.append((value, self.use(value, sharding), sharding))
        return results

    def _finish(
        self, local: func.FuncOp, old: ir.Block, results: Sequence[tuple[ir.Value, ir.Value, Sharding]]
    ) -> None:
        with ir.InsertionPoint(local.entry_block), self.emit.location:
            func.ReturnOp([value for _, value, _ in results])
        arguments = [self._argument_attributes(n, v) for n, v in enumerate(old.arguments)]
        layouts = [layout_attributes(v.type, s) for v, _, s in results]
        write_signature(local, {"arg_attrs": arguments, "res_attrs": layouts})
        name = self.function.attributes["sym_name"]
        self.function.operation.erase()
        local.attributes["sym_name"] = name
        self.module.operation.attributes["neuron.mesh"] = mesh_attribute(self.targets.mesh)

    def _argument_attributes(self, number: int, value: ir.Value) -> dict[str, ir.Attribute]:
        attributes = layout_attributes(value.type, self.env[value][1])
        if "arg_attrs" in self.function.attributes:
            given = self.function.arg_attrs[number]
            attributes |= {name: given[name] for name in _KEPT_ARGUMENT_ATTRIBUTES if name in given}
        if number in self._finite_padding:
            attributes["neuron.finite_padding"] = ir.UnitAttr.get()
        return attributes


def by_factors(handle: Callable[[Partitioner, ir.Operation, OpRule], None]) -> "Handler":
    """A handler of ops with a rule and without empty tensors; the others are ``generic``."""

    def handler(part: Partitioner, op: ir.Operation) -> None:
        rule = part.targets.rules[op]
        if rule is None or any(0 in shape_of(value) for value in (*op.operands, *op.results)):
            part.generic(op)
        else:
            handle(part, op, rule)

    return handler


Handler = Callable[[Partitioner, ir.Operation], None]
Handlers = Mapping[str, Handler]
