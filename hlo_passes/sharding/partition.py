"""Rewrites a global program as the program of one core: one algorithm over factors for every op."""

import contextlib
import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distributed.mesh import Mesh
from hlo_passes.ir import func, ir
from hlo_passes.local import donations
from hlo_passes.sharding.emit import Emitter
from hlo_passes.sharding.local_sizes import LOCAL_SIZES
from hlo_passes.sharding.notes import element_bytes, gather_note, reshard_note, whole_note
from hlo_passes.sharding.padding import finite_argument, padding_fill
from hlo_passes.sharding.reductions import all_reducer, combine_parts
from hlo_passes.sharding.reshard import reshard
from hlo_passes.sharding.rules import RULE, OpRule
from hlo_passes.sharding.spec import Sharding, layout_attributes, mesh_attribute
from hlo_passes.sharding.traffic import received_elements, summed_elements

__all__ = ["Choice", "Handlers", "Partitioner", "Targets", "local_bytes", "local_type", "shape_of"]

_KEPT_ARGUMENT_ATTRIBUTES = ("tf.aliasing_output", "jax.buffer_donor")
# Ops along a dim they need whole, of which a batch may be as long as there are cores.
_MOVED = ("stablehlo.sort", "stablehlo.fft", "stablehlo.cholesky", "stablehlo.triangular_solve")
_DROPPED = ("sdy.sharding", RULE, "channel_handle", "use_global_device_ids")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the plan or the user wants.

    ``wanted`` gives the sharding of a value, None for no opinion; ``demanded`` those of main's results,
    None where any will do; ``chosen`` the factors of an op, where a plan settles them; ``axes_of`` reads
    the axes per dim of an ``sdy.sharding`` attribute.
    """

    mesh: Mesh
    rules: dict[ir.Operation, OpRule | None]
    wanted: Callable[[ir.Value], Sharding | None]
    demanded: tuple[Sharding | None, ...]
    axes_of: Callable[[ir.Attribute], tuple[tuple[str, ...], ...]]
    chosen: Callable[[ir.Operation], "Choice"] | None = None


@dataclass(kw_only=True)
class Choice:
    """The axes and the rows per core chosen for each factor of an op."""

    axes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    local: dict[int, int] = field(default_factory=dict)

    def sharding(self, shape: Sequence[int], dims: tuple[tuple[int, ...], ...], rule: OpRule) -> Sharding:
        """The sharding a tensor with these dims must have under this choice."""
        axes, local = [], []
        for size, factors in zip(shape, dims, strict=True):
            sharded = bool(factors) and factors[0] in self.axes
            axes.append(self.axes[factors[0]] if sharded else ())
            local.append(self.local[factors[0]] * _minor(factors, rule) if sharded else size)
        return Sharding(axes=tuple(axes), local=tuple(local))


class Partitioner:
    """Builds the per-core ``main`` beside the global one; ``env`` maps global values to local ones.

    ``handlers`` take the ops whose factor rule does not say all. ``notes`` collects what was given up.
    ``manual_depth`` counts the ``shard_map`` bodies around the op at hand.
    """

    def __init__(
        self, module: ir.Module, function: func.FuncOp, targets: Targets, handlers: "Handlers"
    ) -> None:
        self.module, self.function, self.targets = module, function, targets
        self.env: dict[ir.Value, tuple[ir.Value, Sharding]] = {}
        self.notes: list[str] = []
        self.manual_depth = 0
        self._donated = frozenset(argument for _, argument in donations(function))
        self._finite_padding: set[int] = set()
        self._reader: ir.Operation | None = None
        self._reader_is_noted = False
        self._handlers = handlers
        self._forms: ChainMap[tuple[ir.Value, tuple[int, ...]], dict[Sharding, ir.Value]] = ChainMap()
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
        returned = self.operations(old)
        self._finish(local, old, self._results(shardings, returned))

    def wanted(self, value: ir.Value) -> Sharding:
        """What is wanted of ``value``; whole where nobody says anything."""
        return self.targets.wanted(value) or Sharding.whole(shape_of(value))

    def operations(self, block: ir.Block) -> list[ir.Value]:
        """Partitions the ops of ``block`` at the emitter's point; returns what its terminator hands out."""
        operations = [view.operation for view in block.operations]
        for op in operations[:-1]:
            if op not in self.done:
                self._reader, self._reader_is_noted, self.emit.location = op, False, op.location
                self._handlers.get(op.name, Partitioner.generic)(self, op)
        self._reader, self._reader_is_noted, self.emit.location = None, False, operations[-1].location
        return list(operations[-1].operands)

    @contextlib.contextmanager
    def inside(self, block: ir.Block) -> Iterator[None]:
        """Emits into ``block``; what is moved there is not known outside."""
        outer, self.emit.point = self.emit.point, ir.InsertionPoint(block)
        self._forms = self._forms.new_child()
        yield
        self.emit.point, self._forms = outer, self._forms.parents

    def use(self, value: ir.Value, sharding: Sharding) -> ir.Value:
        """The local form of a global value under ``sharding``, made of the nearest form there is."""
        (local, have), shape = self.env[value], shape_of(value)
        if have == sharding:
            return local
        forms = self._forms.get((local, shape), {have: local})
        if sharding not in forms:
            have = min(forms, key=lambda form: self._distance(form, sharding))
            before = self.emit.gathered_elements
            forms = forms | {sharding: reshard(self.emit, forms[have], shape, have, sharding)}
            self._forms |= {(form, shape): forms for form in forms.values()}
            gathered = self.emit.gathered_elements - before
            if gathered and not self._reader_is_noted:
                self.notes.append(reshard_note(self._reader, value, gathered, have, sharding))
        return forms[sharding]

    def _distance(self, have: Sharding, want: Sharding) -> tuple[float, bool]:
        """How far a form is from another; to cut a whole one needs no look at how blocks lie."""
        return received_elements(self.targets.mesh, have, want), not have.is_whole

    def whole(self, value: ir.Value) -> ir.Value:
        return self.use(value, Sharding.whole(shape_of(value)))

    def generic(self, op: ir.Operation) -> None:
        """Any op: by its rule, or whole on every core where it has none."""
        rule = self.targets.rules.get(op)
        if rule is None:
            self._note_whole(op, "no dim of it corresponds between operands and results")
            self.emit_op(
                op, [self.whole(v) for v in op.operands], [Sharding.whole(shape_of(v)) for v in op.results]
            )
            return
        choice = self.choose(op, rule)
        if op.name == "stablehlo.reduce" and all_reducer(op) is None:
            self.drop(choice, rule.reductions)
        self.by_rule(op, rule, choice)

    def by_rule(self, op: ir.Operation, rule: OpRule, choice: Choice) -> None:
        """The op as ``choice`` says, which may be whole on every core."""
        if not choice.axes:
            self._note_whole(op, rule.why_blocked)
        self.emit_with(op, rule, choice)

    def choose(self, op: ir.Operation, rule: OpRule, *, may_move: bool = True) -> Choice:
        """Axes per factor: what is wanted of the results first, then as the largest operands lie.

        Where it ``may_move`` them, axes of a dim that some ops need whole go to one they do not.
        """
        if self.targets.chosen is not None:
            return self.targets.chosen(op)
        results = [(self.wanted(v), dims) for v, dims in zip(op.results, rule.results, strict=True)]
        operands = sorted(
            zip(op.operands, rule.operands, strict=True), key=lambda pair: -math.prod(shape_of(pair[0]))
        )
        lying = [(self.env[value][1], dims) for value, dims in operands]
        choice = self._offered(rule, [*results, *lying])
        if op.name == "stablehlo.dot_general":
            other = self._offered(rule, [*lying, *results])
            if self._shards(other) >= self._shards(choice):
                choice = min((choice, other), key=lambda one: self._price(op, rule, one))
        if may_move and op.name in _MOVED:
            self._offer_elsewhere(op, rule, choice)
        return choice

    def _offered(
        self, rule: OpRule, sources: Sequence[tuple[Sharding, tuple[tuple[int, ...], ...]]]
    ) -> Choice:
        choice = Choice()
        for sharding, dims in sources:
            for axes, local, factors in zip(sharding.axes, sharding.local, dims, strict=True):
                if axes and factors:
                    self._offer(choice, rule, factors, axes, local)
        return choice

    def _shards(self, choice: Choice) -> int:
        return math.prod(self.targets.mesh.size(axes) for axes in choice.axes.values())

    def _price(self, op: ir.Operation, rule: OpRule, choice: Choice) -> float:
        """Elements a core receives: operands moved, partial results summed, the result moved."""
        mesh, price = self.targets.mesh, 0.0
        for value, dims in zip(op.operands, rule.operands, strict=True):
            have, want = self.env[value][1], choice.sharding(shape_of(value), dims, rule)
            price += received_elements(mesh, have, want)
        made = choice.sharding(shape_of(op.results[0]), rule.results[0], rule)
        for factor in rule.reductions & choice.axes.keys():
            price += summed_elements(mesh, choice.axes[factor], made.local)
        wanted = self.targets.wanted(op.results[0])
        return price + (received_elements(mesh, made, wanted) if wanted else 0)

    def _offer_elsewhere(self, op: ir.Operation, rule: OpRule, choice: Choice) -> None:
        """Moves axes of a dim the op needs whole to one it does not: an all-to-all, not an all-gather."""
        value, dims = op.operands[0], rule.operands[0]
        made = {factors[0] for factors in rule.results[0] if factors}
        for axes, factors in zip(self.env[value][1].axes, dims, strict=True):
            shards = self.targets.mesh.size(axes)
            if not axes or not factors or factors[0] not in rule.blocked:
                continue
            others = [f for f in dims if f and f[0] in made and len(f) == 1 and rule.sizes[f[0]] >= shards]
            for other in sorted(others, key=lambda f: -rule.sizes[f[0]]):
                self._offer(choice, rule, other, axes, math.ceil(rule.sizes[other[0]] / shards))

    def _offer(
        self, choice: Choice, rule: OpRule, factors: tuple[int, ...], axes: tuple[str, ...], local: int
    ) -> None:
        """Takes ``axes`` for the major factor of a dim if the factor and the axes are still free."""
        taken = {axis for other in choice.axes.values() for axis in other}
        rows, rest = divmod(local, _minor(factors, rule))
        if factors[0] in rule.blocked or factors[0] in choice.axes or taken & set(axes) or rest:
            return
        choice.axes[factors[0]], choice.local[factors[0]] = axes, rows

    def drop(self, choice: Choice, factors: Iterable[int]) -> None:
        """Gives up sharding these factors."""
        for factor in set(factors) & choice.axes.keys():
            del choice.axes[factor], choice.local[factor]

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
        operands = []
        for number, (value, dims) in enumerate(zip(op.operands, rule.operands, strict=True)):
            sharding = choice.sharding(shape_of(value), dims, rule)
            operands.append(operand(number, value, sharding) if operand else self.use(value, sharding))
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
        new = op.clone(ip=self.emit.point).operation
        for name in _DROPPED:
            if name in new.attributes:
                del new.attributes[name]
        for number, value in enumerate(operands):
            new.operands[number] = value
        for old, result, sharding in zip(op.results, new.results, shardings, strict=True):
            if isinstance(old.type, ir.RankedTensorType):
                result.set_type(
                    ir.RankedTensorType.get(sharding.local, old.type.element_type, old.type.encoding)
                )
            self.env[old] = (result, sharding)
        if len(new.regions):
            self._remap_captures(new)
        if op.name in LOCAL_SIZES:
            LOCAL_SIZES[op.name](op, new)
        return new

    def _remap_captures(self, op: ir.Operation) -> None:
        """Values from outside that a region reads become their whole local forms."""
        for region in op.regions:
            for block in region.blocks:
                for view in block.operations:
                    for number, value in enumerate(view.operation.operands):
                        if value in self.env:
                            view.operation.operands[number] = self.whole(value)
                    self._remap_captures(view.operation)

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
        entry = local.regions[0].blocks[0]
        with ir.InsertionPoint(entry), self.emit.location:
            func.ReturnOp([value for _, value, _ in results])
        inputs = [v.type for v in entry.arguments]
        outputs = [value.type for _, value, _ in results]
        local.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(inputs, outputs))
        local.attributes["arg_attrs"] = ir.ArrayAttr.get(
            [self._argument_attributes(n, v) for n, v in enumerate(old.arguments)]
        )
        local.attributes["res_attrs"] = ir.ArrayAttr.get(
            [ir.DictAttr.get(layout_attributes(v.type, s)) for v, _, s in results]
        )
        name = self.function.attributes["sym_name"]
        self.function.operation.erase()
        local.attributes["sym_name"] = name
        self.module.operation.attributes["neuron.mesh"] = mesh_attribute(self.targets.mesh)

    def _argument_attributes(self, number: int, value: ir.Value) -> ir.DictAttr:
        attributes = layout_attributes(value.type, self.env[value][1])
        if "arg_attrs" in self.function.attributes:
            given = self.function.arg_attrs[number]
            attributes |= {name: given[name] for name in _KEPT_ARGUMENT_ATTRIBUTES if name in given}
        if number in self._finite_padding:
            attributes["neuron.finite_padding"] = ir.UnitAttr.get()
        return ir.DictAttr.get(attributes)


Handlers = Mapping[str, Callable[[Partitioner, ir.Operation], None]]


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The shape of a tensor; () for tokens and the like."""
    return tuple(value.type.shape) if isinstance(value.type, ir.RankedTensorType) else ()


def local_bytes(value: ir.Value) -> int:
    """The size of a local tensor."""
    return element_bytes(value.type, math.prod(value.type.shape))


def local_type(value: ir.Value, sharding: Sharding) -> ir.Type:
    if not isinstance(value.type, ir.RankedTensorType):
        return value.type
    return ir.RankedTensorType.get(sharding.local, value.type.element_type, value.type.encoding)


def _minor(factors: tuple[int, ...], rule: OpRule) -> int:
    return math.prod(rule.sizes[f] for f in factors[1:])
