"""Shards a JAX function and runs the program of each core on XLA:CPU, with poison in all padding."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from oracles import run_local_on_xla

from distributed.layout import Layout
from distributed.placement import poison
from hlo_passes import canonicalize, shard
from hlo_passes.ir import ir, main, parse
from hlo_passes.local import argument_layouts, finite_padding, result_layouts
from kernels.dtypes import dtype as find_dtype

__all__ = ["assemble", "collectives", "cut", "lower", "run_sharded", "shard_function"]

_KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "collective_permute")


def lower(function: Callable, arguments: Sequence[Any], **jit_options: Any) -> ir.Module:
    """The canonical GLOBAL module of a JAX function."""
    traced = jax.jit(function, keep_unused=True, **jit_options).trace(*arguments)
    lowered = traced.lower(lowering_platforms=("cpu",)).compiler_ir("stablehlo")
    module = parse(lowered.operation.get_asm(enable_debug_info=True))
    canonicalize.run(module, canonicalize.Options())
    return module


def shard_function(function: Callable, arguments: Sequence[Any], tp: int, **jit_options: Any) -> ir.Module:
    """The LOCAL module of a JAX function on ``tp`` cores."""
    module = lower(function, arguments, **jit_options)
    shard.run(module, shard.Options(tp=tp))
    assert module.operation.verify()
    return module


def run_sharded(module: ir.Module, arguments: Any, tp: int) -> list[np.ndarray]:
    """Runs a LOCAL module on ``tp`` replicas of XLA:CPU; global arguments in, global results out."""
    function = main(module)
    layouts = argument_layouts(module, function)
    leaves = [
        np.asarray(leaf).astype(find_dtype(layout.dtype).numpy)
        for leaf, layout in zip(jax.tree.leaves(arguments), layouts, strict=True)
    ]
    finite = finite_padding(function)
    inputs = [
        [
            cut(leaf, lay, rank, finite=n in finite)
            for n, (leaf, lay) in enumerate(zip(leaves, layouts, strict=True))
        ]
        for rank in range(tp)
    ]
    by_rank = run_local_on_xla(str(module), inputs)
    outputs = result_layouts(module, function)
    return [
        assemble(list(shards), lay) for shards, lay in zip(zip(*by_rank, strict=True), outputs, strict=True)
    ]


def cut(array: np.ndarray, layout: Layout, rank: int, *, finite: bool = False) -> np.ndarray:
    """The block of ``rank``; its padding (NaN where it need not be ``finite``) shows when it is read."""
    block = np.full(layout.local_shape, poison(array.dtype, finite=finite), array.dtype)
    part = array[layout.block(rank)]
    block[tuple(slice(0, size) for size in part.shape)] = part
    return block


def assemble(shards: Sequence[np.ndarray], layout: Layout) -> np.ndarray:
    """The global array; where several ranks hold a block they must agree to the bit."""
    whole = np.zeros(layout.global_shape, shards[0].dtype)
    seen: dict[tuple, np.ndarray] = {}
    for rank, shard_ in enumerate(shards):
        block = layout.block(rank)
        part = shard_[tuple(slice(0, piece.stop - piece.start) for piece in block)]
        key = tuple((piece.start, piece.stop) for piece in block)
        if key in seen:
            np.testing.assert_array_equal(part, seen[key], err_msg=f"rank {rank} disagrees on {key}")
        seen[key] = whole[block] = part
    return whole


def collectives(module: ir.Module) -> dict[str, int]:
    """How many collectives of each kind there are, without kinds that do not occur."""
    counts = Counter(re.findall(r'"stablehlo\.(\w+)"\(', str(module)))
    return {kind: counts[kind] for kind in _KINDS if counts[kind]}
