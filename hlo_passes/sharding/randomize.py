"""Random shardings on the values that enter a program: what a test of the partitioner starts from."""

import random

from hlo_passes.ir import func, ir, main
from hlo_passes.ops import operations

__all__ = ["randomize"]

_MESH = "random"


def randomize(module: ir.Module, tp: int, seed: int) -> None:
    """Constrains what enters ``main`` to random shardings over ``tp`` cores, in place.

    What enters are its arguments and what it calls for (self-checking programs call ``@inputs``), or
    its constants where there is neither. The mesh has one axis or two.
    """
    entry = main(module)
    draw = random.Random(f"{seed} {tp} {len(str(entry.type))}")
    first = draw.choice([size for size in range(1, tp + 1) if tp % size == 0])
    axes = {name: size for name, size in (("x", first), ("y", tp // first)) if size > 1}
    with module.context, ir.Location.unknown():
        text = ", ".join(f'"{name}"={size}' for name, size in axes.items())
        with ir.InsertionPoint.at_block_begin(module.body):
            ir.Operation.create(
                "sdy.mesh",
                attributes={
                    "sym_name": ir.StringAttr.get(_MESH),
                    "mesh": ir.Attribute.parse(f"#sdy.mesh<[{text}]>"),
                },
            )
        for value, point in _entering(entry):
            _constrain(value, point, _draw_sharding(value, list(axes), draw))


def _entering(entry: func.FuncOp) -> list[tuple[ir.Value, ir.InsertionPoint]]:
    block = entry.regions[0].blocks[0]
    ops = operations(block)
    calls = [op for op in ops if op.name == "func.call"]
    sources = calls or [op for op in ops if op.name == "stablehlo.constant"]
    values = [(v, ir.InsertionPoint.at_block_begin(block)) for v in block.arguments]
    if not values or calls:
        values += [(v, _after(op)) for op in sources for v in op.results]
    return [(v, p) for v, p in values if isinstance(v.type, ir.RankedTensorType) and v.type.rank]


def _after(op: ir.Operation) -> ir.InsertionPoint:
    return ir.InsertionPoint.after(op)


def _draw_sharding(value: ir.Value, axes: list[str], draw: random.Random) -> str:
    """Each axis on a random dim or on none; several on one dim in random order."""
    dims: list[list[str]] = [[] for _ in value.type.shape]
    for name in draw.sample(axes, len(axes)):
        dim = draw.randrange(-1, len(dims))
        if dim >= 0:
            dims[dim].append(f'"{name}"')
    text = ", ".join("{" + ", ".join(names) + "}" for names in dims)
    return f"#sdy.sharding<@{_MESH}, [{text}]>"


def _constrain(value: ir.Value, point: ir.InsertionPoint, sharding: str) -> None:
    new = ir.Operation.create(
        "sdy.sharding_constraint",
        results=[value.type],
        operands=[value],
        attributes={"sharding": ir.Attribute.parse(sharding)},
        ip=point,
    )
    value.replace_all_uses_except(new.results[0], new)
