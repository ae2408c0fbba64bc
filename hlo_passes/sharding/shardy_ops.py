"""Shardy's own collectives in a program for all cores: they say where a value shall lie, nothing more."""

from hlo_passes.ir import ir, walk

__all__ = ["constrain_collectives"]

_COLLECTIVES = (
    "sdy.all_gather", "sdy.all_reduce", "sdy.all_slice", "sdy.all_to_all", "sdy.collective_permute",
    "sdy.reduce_scatter",
)  # fmt: skip


def constrain_collectives(module: ir.Module) -> None:
    """Turns each of them into a constraint to its ``out_sharding``, in place."""

    def constrain(op: ir.Operation) -> None:
        if op.name not in _COLLECTIVES:
            return
        new = ir.Operation.create(
            "sdy.sharding_constraint", results=[op.results[0].type], operands=[op.operands[0]],
            attributes={"sharding": op.attributes["out_sharding"]}, loc=op.location, ip=ir.InsertionPoint(op),
        )  # fmt: skip
        op.results[0].replace_all_uses_with(new.results[0])
        op.erase()

    walk(module.operation, constrain)
