"""Shardy's propagation of the user's shardings, and what it leaves of those that do not divide a size."""

import math
from collections.abc import Mapping, Sequence

from hlo_passes.ir import func, ir, main, run_mlir_passes, sdy
from hlo_passes.sharding.classes import Class, DimClasses
from hlo_passes.sharding.spec import CONSTRAINTS, annotations, shape_of
from hlo_passes.signature import read_attributes, write_signature

__all__ = ["propagate", "with_whole_axes"]

_SHARDING = "sdy.sharding"

Axes = tuple[sdy.AxisRefAttr, ...]


def propagate(module: ir.Module) -> None:
    """Puts an ``sdy.sharding`` on all values that the user's shardings reach.

    Shardy leaves arguments and results with as much of their sharding as divides them evenly; what the user
    asked of them stands.
    """
    asked = {
        name: [row.get(_SHARDING) for row in rows] for name, rows in read_attributes(main(module)).items()
    }
    # Shardy gives each reader of a constant its own: those that came out alike are one again.
    run_mlir_passes(module, "sdy-propagation-pipeline,cse")
    left = read_attributes(main(module))
    write_signature(main(module), {
        name: [
            row | {_SHARDING: _restored(sharding, row[_SHARDING])} if sharding else row
            for row, sharding in zip(left[name], shardings, strict=True)
        ]
        for name, shardings in asked.items()
    })  # fmt: skip


def _restored(asked: ir.Attribute, left: ir.Attribute) -> ir.Attribute:
    """``left`` with the axes ``asked`` for where it has others; where it has more, they were left open."""
    pairs = zip(_axes(asked), _axes(left), strict=True)
    return _with_axes(left, [now if now[: len(first)] == first else first for first, now in pairs])


def with_whole_axes(
    function: func.FuncOp, given: frozenset[int], classes: DimClasses, sizes: Mapping[str, int]
) -> dict[ir.Value, ir.Attribute]:
    """All shardings, with the user's axes where the propagation took less of them, for it divides a size.

    Of 24 cores over 56 heads it takes 8 along, of 8 over 25 none. A dim whose tiles are those of one that
    the user cut over all, in an argument of ``given`` or a constraint, is cut so too: nothing moves between
    the two. ``sizes`` are those of the mesh's axes.
    """
    shardings = annotations(function)
    own = {value: attribute for value, attribute in shardings.items() if _is_users(value, given)}
    in_arguments = _asked({v: a for v, a in own.items() if isinstance(v, ir.BlockArgument)}, classes)
    asked = _asked(own, classes) | in_arguments
    wide = dict(shardings)
    for value in {**shardings, **dict.fromkeys(function.arguments)}.keys() - own.keys():
        axes = _axes(shardings[value]) if value in shardings else [()] * len(shape_of(value))
        for dim, size in enumerate(shape_of(value)):
            name = classes.tile_class(value, dim)
            users = asked.get(name, ())
            shards = math.prod(sizes[axis.name] for axis in users)
            elsewhere = {axis.name for number, names in enumerate(axes) if number != dim for axis in names}
            is_less = _is_part(axes[dim], users) or (not axes[dim] and name in in_arguments)
            if is_less and size > shards and size % shards and elsewhere.isdisjoint(a.name for a in users):
                axes[dim] = users
                wide[value] = _with_axes(next(iter(own.values())), axes)
    return wide


def _is_users(value: ir.Value, given: frozenset[int]) -> bool:
    """Main's arguments are the only ones of a block with shardings."""
    if isinstance(value, ir.BlockArgument):
        return value.arg_number in given
    return value.owner.name in CONSTRAINTS


def _asked(shardings: Mapping[ir.Value, ir.Attribute], classes: DimClasses) -> dict[Class, Axes]:
    """The axes over which these shardings cut dims, by the tiles of the dim."""
    found: dict[Class, Axes] = {}
    for value, attribute in shardings.items():
        for dim, axes in enumerate(_axes(attribute)):
            if axes:
                found.setdefault(classes.tile_class(value, dim), axes)
    return found


def _axes(attribute: ir.Attribute) -> list[Axes]:
    dims = [sdy.DimensionShardingAttr(dim) for dim in sdy.TensorShardingAttr(attribute).dimension_shardings]
    return [tuple(sdy.AxisRefAttr(axis) for axis in dim.axes) for dim in dims]


def _is_part(axes: Axes, users: Axes) -> bool:
    """Whether ``axes`` are the first of ``users``, of the last one a part."""
    if not axes or len(axes) > len(users) or axes[:-1] != users[: len(axes) - 1]:
        return False
    last, whole = axes[-1], users[len(axes) - 1]
    return last.name == whole.name and last.sub_axis_info is not None and whole.sub_axis_info is None


def _with_axes(attribute: ir.Attribute, axes: Sequence[Axes]) -> ir.Attribute:
    """A sharding over these axes of the same mesh."""
    dims = [sdy.DimensionShardingAttr.get(list(names), True) for names in axes]
    return sdy.TensorShardingAttr.get(sdy.TensorShardingAttr(attribute).mesh_or_ref, dims)
