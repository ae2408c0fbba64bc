"""A compiled program as one file: portable StableHLO, plan, program, constants and chosen weights."""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.tree_util import PyTreeDef, default_registry, tree_flatten, tree_structure

from hlo_passes.ir import context, ir, stablehlo
from kernels.errors import CompileError
from neuronx.container import read_sections, write_sections
from neuronx.driver import Artifacts, WholeLevels, copy_module, with_levels
from neuronx.frontend import Exported, logical, physical
from neuronx.records import decode, encode
from neuronx.tensors import pack_tensors, unpack_tensors

__all__ = ["Saved", "artifact_sections", "artifacts_from", "read_program", "save_program"]

Saved = tuple[Exported, Artifacts, tuple[Any, ...]]
"""What a file holds: the exported function, what its compilation left, the weights saved along."""

# The fields of ``Artifacts`` but for the levels, which are bytecode.
_RECORDS = ("program", "memory", "options", "plan", "cut", "tried")


def save_program(
    path: str | os.PathLike[str], exported: Exported, artifacts: Artifacts, weights: Sequence[Any]
) -> None:
    """Writes the program to ``path``, whole or not at all.

    Args:
      path: of the file.
      exported, artifacts: of the compilation.
      weights: the first positional arguments, to be saved along.

    Raises:
      CompileError: weights that are not the first arguments, an argument tree with containers of the
        user's own, an array type that the safetensors format does not have.
    """
    leaves = _weight_leaves(exported, weights)
    manifest = {
        "jax": jax.__version__,
        "exported": _describe(exported),
        "num_weights": len(weights),
    }
    write_sections(
        path,
        {
            "manifest": zlib.compress(json.dumps(manifest).encode()),
            "stablehlo": _portable(exported.module),
            **artifact_sections(artifacts),
            "constants": pack_tensors({f"constant{i}": _host(v) for i, v in enumerate(exported.constants)}),
            "weights": pack_tensors({exported.names[i]: _host(leaf) for i, leaf in enumerate(leaves)}),
        },
    )


def read_program(path: str | os.PathLike[str]) -> Saved:
    """Reads what ``save_program`` wrote; no pass runs.

    Raises:
      SavedFileError: a file that is foreign, truncated, corrupt or of a newer version.
    """
    sections = read_sections(path)
    manifest = json.loads(zlib.decompress(sections["manifest"]))
    constants = unpack_tensors(sections["constants"])
    module = stablehlo.deserialize_portable_artifact(context(), bytes(sections["stablehlo"]))
    exported = _restore(manifest["exported"], module, tuple(constants.values()))
    return (
        exported,
        artifacts_from(sections),
        _weights(exported, unpack_tensors(sections["weights"]), manifest["num_weights"]),
    )


def artifact_sections(artifacts: Artifacts) -> dict[str, bytes]:
    """What a compilation left, as sections of a file. Levels that are not made yet are made by the reader."""
    records = encode({name: getattr(artifacts, name) for name in _RECORDS})
    if isinstance(artifacts.levels, WholeLevels):
        # To make the levels of a folded compilation takes longer than the compilation did. They are made of
        # the very module that was compiled: its portable form leaves out what an op has by default.
        levels = {"source": artifacts.levels.source}
    else:
        levels = {f"level/{name}": code for name, code in artifacts.levels.items()}
    written = {"artifacts": json.dumps(records).encode(), **levels}
    return {name: zlib.compress(content, 1) for name, content in written.items()}


def artifacts_from(sections: Mapping[str, bytes | memoryview]) -> Artifacts:
    """The inverse of ``artifact_sections``."""
    found = Artifacts(
        **decode(json.loads(zlib.decompress(sections["artifacts"]))),
        levels={
            name.removeprefix("level/"): zlib.decompress(content)
            for name, content in sections.items()
            if name.startswith("level/")
        },
    )
    return with_levels(found, zlib.decompress(sections["source"])) if "source" in sections else found


def _portable(module: ir.Module) -> bytes:
    """The module in StableHLO's versioned form, with Shardy's and CHLO's parts as they are."""
    # A copy: what is serialized is rewritten in place.
    return stablehlo.serialize_portable_artifact(copy_module(module), stablehlo.get_current_version(), True)


def _describe(exported: Exported) -> dict[str, Any]:
    return {
        "name": exported.name,
        "in_tree": _tree_text(exported.in_tree, "arguments"),
        "out_tree": _tree_text(exported.out_tree, "results"),
        "inputs": [_type_text(one) for one in exported.inputs],
        "outputs": [_type_text(one) for one in exported.outputs],
        "names": list(exported.names),
        "weights": list(exported.weights),
        "donated": [list(pair) for pair in exported.donated.items()],
        "mesh": [list(axis) for axis in exported.mesh],
    }


def _restore(record: dict[str, Any], module: ir.Module, constants: tuple[Any, ...]) -> Exported:
    return Exported(
        name=record["name"],
        module=module,
        constants=constants,
        in_tree=_tree(record["in_tree"]),
        out_tree=_tree(record["out_tree"]),
        inputs=tuple(map(_type, record["inputs"])),
        outputs=tuple(map(_type, record["outputs"])),
        names=tuple(record["names"]),
        weights=tuple(record["weights"]),
        donated={source: output for source, output in record["donated"]},
        mesh=tuple((name, size) for name, size in record["mesh"]),
    )


def _tree_text(tree: PyTreeDef, what: str) -> str:
    try:
        return tree.serialize_using_proto().hex()
    except ValueError as error:
        raise CompileError(
            f"the {what} hold containers of a kind that cannot be saved: {tree}",
            op="save",
            fix="compile a function of tuples, lists and dicts, which makes the containers inside",
        ) from error


def _tree(text: str) -> PyTreeDef:
    return PyTreeDef.deserialize_using_proto(default_registry, bytes.fromhex(text))


def _type_text(one: jax.ShapeDtypeStruct) -> list[Any]:
    is_key = jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key)
    impl = one.dtype._impl.name if is_key else ""
    return [list(one.shape), "" if is_key else np.dtype(one.dtype).name, impl, one.weak_type]


def _type(record: list[Any]) -> jax.ShapeDtypeStruct:
    shape, name, impl, weak_type = record
    if impl:
        dtype = jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype
    else:
        dtype = jax.dtypes.float0 if name == "void" else np.dtype(jax.numpy.dtype(name))
    return jax.ShapeDtypeStruct(tuple(shape), dtype, weak_type=weak_type)


def _weight_leaves(exported: Exported, weights: Sequence[Any]) -> list[Any]:
    """The leaves of ``weights``, after a look whether they are the first positional arguments."""
    children = exported.in_tree.children()[0].children()
    found = [tree_structure(one) for one in weights]
    if found != children[: len(weights)]:
        raise CompileError(
            f"the weights to save are {found}, but the first arguments are {children[: len(weights)]}",
            op="save",
            fix="give a tuple of the first positional arguments, as a call takes them",
        )
    leaves = tree_flatten(tuple(weights))[0]
    for name, leaf, expected in zip(exported.names, leaves, exported.inputs, strict=False):
        if (leaf.shape, leaf.dtype) != (expected.shape, expected.dtype):
            raise CompileError(
                f"{name} is {leaf.dtype}{list(leaf.shape)}, expected {expected.dtype}{list(expected.shape)}",
                op="save",
                fix="save what the program was compiled for",
            )
    return leaves


def _weights(exported: Exported, tensors: dict[str, np.ndarray], count: int) -> tuple[Any, ...]:
    leaves = [
        logical(jax.numpy.asarray(tensor), expected.dtype)
        for tensor, expected in zip(tensors.values(), exported.inputs, strict=False)
    ]
    children, found, at = exported.in_tree.children()[0].children(), [], 0
    for child in children[:count]:
        found.append(child.unflatten(leaves[at : at + child.num_leaves]))
        at += child.num_leaves
    return tuple(found)


def _host(value: Any) -> np.ndarray:
    return np.asarray(physical(value))
