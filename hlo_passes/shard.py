"""Pass ``shard``: GLOBAL to LOCAL. Takes the user's shardings, or plans them, and partitions the program."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from distributed.mesh import Mesh
from hlo_passes.collective_ops import erase_dead, size_bytes
from hlo_passes.ir import func, ir, main, run_mlir_passes, sdy, walk
from hlo_passes.notes import add_notes
from hlo_passes.ops import terminator
from hlo_passes.sharding.agree import agree
from hlo_passes.sharding.choice import Choice, Targets
from hlo_passes.sharding.classes import DimClasses
from hlo_passes.sharding.free_axes import has_manual_part, plan_free_axis
from hlo_passes.sharding.handlers import HANDLERS
from hlo_passes.sharding.orders import place_in_orders, read_orders
from hlo_passes.sharding.partition import Partitioner
from hlo_passes.sharding.plan import NO_PLAN, PLANS, Plan, Planner, check_plan, make_plan
from hlo_passes.sharding.pose import find_weights
from hlo_passes.sharding.prices import Prices
from hlo_passes.sharding.propagation import propagate, with_whole_axes
from hlo_passes.sharding.rules import RULE, attach_rules
from hlo_passes.sharding.shardy_ops import constrain_collectives
from hlo_passes.sharding.spec import (
    CONSTRAINTS,
    MeshReader,
    Sharding,
    annotations,
    blocks,
    result_annotations,
    shape_of,
)
from kernels.errors import CompileError
from kernels.hardware import load_instance

__all__ = ["PLAN", "PLANS", "Options", "is_annotated", "plan_of", "planner", "run"]

AXIS = "tp"
PLAN = "neuron.plan"
"""Module attribute: the plan written out, its prices, and whether "weights_still" may prove to be faster."""
_GLOBAL_ATTRIBUTES = ("sdy.sharding", RULE, "channel_handle", "use_global_device_ids")


@dataclass(frozen=True, kw_only=True)
class Options:
    """``tp``: cores to shard over. ``instance``: whose rates the plan weighs; its cores bound ``tp``.

    ``plan``: one of ``PLANS``, or a plan written out as in ``PLAN``; it means nothing where the user gave
    shardings.
    """

    tp: int = 1
    instance: str = "inf2.48xlarge"
    plan: str = PLANS[0]


def run(module: ir.Module, options: Options) -> None:
    """Rewrites ``main`` in place as the program of one of ``options.tp`` cores.

    Notes on what stays whole are left in the module attribute ``neuron.notes``, the plan in ``PLAN``.

    Raises:
      CompileError: no such plan, more cores than the instance has, or a mesh of the user's of another size.
    """
    check_plan(options.plan)
    cores = load_instance(options.instance).cores
    if not 1 <= options.tp <= cores:
        raise CompileError(
            f"tp={options.tp} cores asked for, {options.instance} has {cores}",
            op="shard", fix=f"choose 1 to {cores}, or a larger instance",
        )  # fmt: skip
    with module.context, ir.Location.unknown():
        annotated = is_annotated(module)
        asked = frozenset(result_annotations(main(module)))
        given = frozenset(v.arg_number for v in annotations(main(module)) if isinstance(v, ir.BlockArgument))
        orders = read_orders(module)
        free = plan_free_axis(module, options.instance, options.plan) if annotated else NO_PLAN
        if annotated:
            constrain_collectives(module)
            propagate(module)
            _undo_propagation_ops(module)
        attach_rules(module)
        function = main(module)
        if annotated:
            targets, plan = _user_targets(module, function, options, asked, given), free
        else:
            targets, plan = _plan(function, options)
        unreached = _unreached(function, targets, given) if annotated and not plan.notes else []
        part = Partitioner(module, function, targets, HANDLERS)
        part.run()
        place_in_orders(module, targets.mesh, orders)
        erase_dead(main(module).entry_block)
        _clean(module, plan, options.tp)
        add_notes(module, [*plan.notes, *unreached, *part.notes])
        agree(module)
    run_mlir_passes(module, "cse,canonicalize,cse")


def planner(module: ir.Module, options: Options) -> Planner:
    """The plans there are for a module as the pass finds it, which is left with rules on its ops.

    Raises:
      UnsteadyError: a folded module whose layers did not stay equal.
    """
    with module.context, ir.Location.unknown():
        attach_rules(module)
        function = main(module)
        prices = Prices(options.instance, options.tp)
        return Planner(function, DimClasses(function.operation), options.tp, prices)


def plan_of(module: ir.Module) -> tuple[str, bool]:
    """The plan that the pass left, written out ("": nothing was planned), and whether it is contested."""
    attributes = module.operation.attributes
    if PLAN not in attributes:
        return "", False
    return attributes[PLAN]["cut"].value, attributes[PLAN]["contested"].value


def is_annotated(module: ir.Module) -> bool:
    """Whether the user gave shardings, which then are not planned."""
    return any(isinstance(op, sdy.MeshOp) for op in module.body.operations)


def _undo_propagation_ops(module: ir.Module) -> None:
    """Constants, which the propagation keeps apart as ops of its own, become StableHLO's again.

    Constraints on scalars say nothing; ``shard_map`` leaves them inside reducers, where no axis is known.
    """

    def undo(op: ir.Operation) -> None:
        if op.name == "sdy.constant":
            op.results[0].replace_all_uses_with(_stablehlo_constant(op).results[0])
            op.erase()
        elif op.name in CONSTRAINTS and not shape_of(op.results[0]):
            op.results[0].replace_all_uses_with(op.operands[0])
            op.erase()

    walk(module.operation, undo)


def _stablehlo_constant(op: ir.Operation) -> ir.Operation:
    point = ir.InsertionPoint(op)
    if isinstance(op.results[0].type.element_type, ir.ComplexType):
        # The bindings cannot hand out complex data, except as text; its sharding is left to its users.
        if "sdy.sharding" in op.attributes:
            del op.attributes["sdy.sharding"]
        text = op.get_asm(print_generic_op_form=True).partition(" = ")[2]
        new = ir.Operation.parse(text.replace("sdy.constant", "stablehlo.constant", 1))
        point.insert(new)
        return new.operation
    attributes = {name: op.attributes[name] for name in op.attributes}
    return ir.Operation.create(
        "stablehlo.constant", results=[op.results[0].type], attributes=attributes, loc=op.location, ip=point
    )


def _plan(function: func.FuncOp, options: Options) -> tuple[Targets, Plan]:
    """Shards whole classes of dims over one axis, as the plan says."""
    classes = DimClasses(function.operation)
    plan = make_plan(function, classes, options.plan, options.tp, Prices(options.instance, options.tp))

    def wanted(value: ir.Value) -> Sharding:
        shape = shape_of(value)
        names = classes.classes_of(value)
        sharded = [name in plan.sharded for name in names]
        local = [
            blocks(size, classes.tiles(name), options.tp) if cut else size
            for size, name, cut in zip(shape, names, sharded, strict=True)
        ]
        return Sharding(axes=tuple((AXIS,) if cut else () for cut in sharded), local=tuple(local))

    def chosen(op: ir.Operation) -> Choice:
        choice, rule = Choice(), classes.rules[op]
        for factor, name in classes.factor_classes(op):
            if name in plan.sharded and factor not in rule.blocked:
                choice.axes[factor] = (AXIS,)
                choice.local[factor] = blocks(rule.sizes[factor], classes.tiles(name), options.tp)
        return choice

    mesh = Mesh(axes=((AXIS, options.tp),))
    return _targets(function, mesh, classes, wanted, {}, lambda attr: (), chosen), plan


def _user_targets(
    module: ir.Module,
    function: func.FuncOp,
    options: Options,
    asked: frozenset[int],
    given: frozenset[int],
) -> Targets:
    """The user's shardings and what Shardy's propagation made of them.

    Results lie as they are made, except those of ``asked``: the propagation leaves a result whole where
    its size does not divide, which nobody wanted.
    """
    reader, classes = MeshReader(module), DimClasses(function.operation)
    attributes = with_whole_axes(function, given, classes, reader.sizes())
    for attr in attributes.values():
        reader.note_cuts(attr)
    mesh = _checked_mesh(module, reader, options)

    def place(value: ir.Value, axes: tuple[tuple[str, ...], ...]) -> Sharding:
        shape, local = shape_of(value), []
        # One row cannot be cut: all cores hold it, rather than one alone and then move it.
        axes = tuple(() if size == 1 else names for size, names in zip(shape, axes, strict=True))
        for dim, (size, names) in enumerate(zip(shape, axes, strict=True)):
            shards = mesh.size(names)
            tiles = classes.tiles(classes.class_of(value, dim)) if size % shards else 0
            local.append(blocks(size, tiles, shards) if tiles >= shards else math.ceil(size / shards))
        return Sharding(axes=axes, local=tuple(local))

    def wanted(value: ir.Value) -> Sharding | None:
        return place(value, reader.axes(attributes[value])) if value in attributes else None

    returned = terminator(function.entry_block).operands
    demanded = {
        number: place(returned[number], reader.axes(given))
        for number, given in result_annotations(function).items()
        if number in asked
    }
    return _targets(function, mesh, classes, wanted, demanded, reader.axes, None)


def _unreached(function: func.FuncOp, targets: Targets, given: frozenset[int]) -> list[str]:
    """One line per weight that is whole because neither the user nor the propagation cut it."""
    return [
        f"weight argument {weight.arg_number} {weight.type} is whole on every core ({size_bytes([weight])} B "
        "each): no sharding of yours reaches it; annotate it, or leave an axis of the mesh unnamed to have "
        "it planned"
        for weight in find_weights(function.arguments, targets.rules)
        if weight.arg_number not in given
        and (targets.wanted(weight) or Sharding.whole(shape_of(weight))).is_whole
    ]


def _targets(
    function: func.FuncOp,
    mesh: Mesh,
    classes: DimClasses,
    wanted: Callable[[ir.Value], Sharding | None],
    demanded: dict[int, Sharding],
    axes_of: Callable[[ir.Attribute], tuple[tuple[str, ...], ...]],
    chosen: Callable[[ir.Operation], Choice] | None,
) -> Targets:
    count = len(function.type.results)
    return Targets(
        mesh=mesh, rules=classes.rules, wanted=wanted, axes_of=axes_of, chosen=chosen,
        demanded=tuple(demanded.get(number) for number in range(count)),
    )  # fmt: skip


def _checked_mesh(module: ir.Module, reader: MeshReader, options: Options) -> Mesh:
    meshes = reader.meshes()
    if not meshes:
        return Mesh(axes=((AXIS, options.tp),))
    # Inside shard_map each core computes for the place that its own mesh gives it.
    kinds = {str(attr if has_manual_part(module) else attr.axes) for attr in meshes}
    mesh = reader.mesh()
    if len(kinds) > 1 or mesh.num_ranks != options.tp:
        sizes = " and ".join(sorted(map(str, meshes)))
        raise CompileError(
            f"shardings over {sizes}, expected one mesh of {options.tp} cores",
            op="shard", fix=f"use one mesh throughout and tp_degree={mesh.num_ranks}",
        )  # fmt: skip
    return mesh


def _clean(module: ir.Module, plan: Plan, ranks: int) -> None:
    """Drops what only the GLOBAL level knows and states what the LOCAL level must."""
    for op in list(module.body.operations):
        if isinstance(op, sdy.MeshOp):
            op.operation.erase()

    def strip(op: ir.Operation) -> None:
        for name in _GLOBAL_ATTRIBUTES:
            if name in op.attributes:
                del op.attributes[name]

    walk(module.operation, strip)
    attributes = module.operation.attributes
    attributes["mhlo.num_replicas"] = ir.Attribute.parse(f"{ranks} : i32")
    attributes["mhlo.num_partitions"] = ir.Attribute.parse("1 : i32")
    if plan.prices_s:
        prices = {name: ir.FloatAttr.get_f64(seconds) for name, seconds in plan.prices_s.items()}
        told = {"cut": ir.StringAttr.get(plan.text), "contested": ir.BoolAttr.get(plan.contested)}
        attributes[PLAN] = ir.DictAttr.get(prices | told)
