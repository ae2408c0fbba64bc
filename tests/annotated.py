"""Programs whose arguments are sharded as a test says, evenly or not, through shard and XLA:CPU."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from ring_oracle import collectives, lower, run_sharded

from hlo_passes import shard
from hlo_passes.ir import ir, main

__all__ = ["annotate", "check_counts"]

Mesh = dict[str, int]


def annotate(module: ir.Module, specs: Sequence[PartitionSpec], mesh: Mesh) -> None:
    """Constrains the arguments of ``main``, each to its spec; JAX itself refuses uneven ones."""
    axes = ", ".join(f'"{name}"={size}' for name, size in mesh.items())
    with module.context, ir.Location.unknown():
        with ir.InsertionPoint.at_block_begin(module.body):
            ir.Operation.create(
                "sdy.mesh",
                attributes={
                    "sym_name": ir.StringAttr.get("mesh"),
                    "mesh": ir.Attribute.parse(f"#sdy.mesh<[{axes}]>"),
                },
            )
        block = main(module).regions[0].blocks[0]
        for value, spec in zip(block.arguments, specs, strict=True):
            dims = [_names(spec[d]) if d < len(spec) else "{}" for d in range(value.type.rank)]
            text = f"#sdy.sharding<@mesh, [{', '.join(dims)}]>"
            new = ir.Operation.create(
                "sdy.sharding_constraint", results=[value.type], operands=[value],
                attributes={"sharding": ir.Attribute.parse(text)}, ip=ir.InsertionPoint.at_block_begin(block),
            )  # fmt: skip
            value.replace_all_uses_except(new.results[0], new)


def _names(axes: str | tuple[str, ...] | None) -> str:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return "{" + ", ".join(f'"{name}"' for name in names) + "}"


def check_counts(
    function: Callable, arguments: Sequence[Any], specs: Sequence[PartitionSpec], mesh: Mesh | int,
    rtol: float = 3e-5,
) -> tuple[dict[str, int], list[str]]:  # fmt: skip
    """Compares the sharded function with the unsharded; returns its collectives and its notes.

    A number for ``mesh`` is that many cores along one axis "tp".
    """
    mesh = {"tp": mesh} if isinstance(mesh, int) else mesh
    cores = int(np.prod(list(mesh.values())))
    module = lower(function, arguments)
    annotate(module, specs, mesh)
    shard.run(module, shard.Options(tp=cores))
    assert module.operation.verify()
    got = run_sharded(module, arguments, cores)
    for ours, theirs in zip(got, jax.tree.leaves(jax.jit(function)(*arguments)), strict=True):
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(
            ours, theirs, rtol=rtol, atol=rtol * float(np.abs(theirs).max(initial=1e-3))
        )
    attributes = module.operation.attributes
    notes = [n.value for n in attributes["neuron.notes"]] if "neuron.notes" in attributes else []
    return collectives(module), notes
