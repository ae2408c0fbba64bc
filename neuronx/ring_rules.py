"""What the Neuron runtime refuses of a ring, and the compiler of a whole program: degrees, groups, size."""

import itertools
import math
from collections.abc import Iterator

from distributed.program import Block, Branch, Collective, Launch, Loop, Program
from distributed.topology import Topology, topology
from hlo_passes.neuron_rules import Finding
from kernels.dtypes import dtype as find_dtype
from kernels.hardware import load_instance, load_links
from kernels.work import OpWork
from neuronx.driver import CompileOptions

__all__ = ["MAX_INSTRUCTIONS", "degree_findings", "num_instructions", "program_findings"]

MAX_INSTRUCTIONS = 5_000_000
"""The threshold neuronx-cc names when it refuses a program (aws-neuron-sdk on GitHub, issue 819)."""

# One instruction works on at most 128 partitions of 512 elements; a product contracts 128 of them.
_PARTITIONS, _FREE = 128, 512

# Ops that move nothing and compute nothing by themselves.
_FREE_KINDS = frozenset(
    {"bitcast_convert", "broadcast_in_dim", "case", "constant", "if", "iota", "reshape", "while"}
)

# Reductions of integers over the ring are computed in f32 with loss.
_LOSSY = {"all_reduce": "NCC_EVRF061", "reduce_scatter": "NCC_EVRF063"}


def degree_findings(options: CompileOptions) -> Iterator[Finding]:
    """What is wrong with the number of cores."""
    degree, links = options.tp_degree, load_links(load_instance(options.instance).family)
    if degree in links.documented_degrees:
        return
    loads = degree % links.degree_multiple == 0
    yield Finding(
        severity="degraded" if loads else "rejected",
        code="tp_degree" if loads else "NRT:nrt_load_collectives Unsupported topology",
        op="tp_degree",
        location="",
        what=f"{degree} cores on {options.instance}, which no guide of AWS's names",
        fix=f"use {', '.join(map(str, links.documented_degrees))}",
    )


def program_findings(program: Program, options: CompileOptions) -> Iterator[Finding]:
    """What is wrong with the collectives and the size of a program."""
    ring, types = topology(options.instance), {b.id: b.tensor.dtype for b in program.buffers}
    for step in _collectives(program.main):
        yield from _collective_findings(step, ring, types[step.operands[0]])
    count = num_instructions(program)
    if count > MAX_INSTRUCTIONS:
        yield Finding(
            severity="rejected",
            code="NCC_EBVF030",
            op="program",
            location="",
            what=f"about {count:,} instructions a core with loops unrolled, {MAX_INSTRUCTIONS:,} are allowed",
            fix="use a larger tp_degree, or a smaller batch, or compile the layers as several programs",
        )


def num_instructions(program: Program) -> int:
    """An estimate of the instructions of one core with loops unrolled: a tile of 128 x 512 for each.

    Loops and branches of unknown course count once, all of their blocks. It leaves out what neuronx-cc adds
    for the movement of tiles, so that a program below the threshold may still exceed it.
    """
    return _in_block(program.main)


def _in_block(block: Block) -> int:
    total = 0
    for step in block.steps:
        if isinstance(step, Launch):
            total += sum(_of_op(op) for kernel in step.kernels for op in kernel.work.ops)
        elif isinstance(step, Loop):
            total += (step.trip_count or 1) * (_in_block(step.condition) + _in_block(step.body))
        elif isinstance(step, Branch):
            total += sum(map(_in_block, step.blocks))
        else:
            total += 1
    return total


def _of_op(op: OpWork) -> int:
    if op.matmul is not None:
        batch, m, k, n = op.matmul
        small, large = sorted((m, n))
        tiles = math.ceil(small / _PARTITIONS) * math.ceil(large / _FREE) * math.ceil(k / _PARTITIONS)
        return op.repeats * batch * tiles
    if op.kind in _FREE_KINDS:
        return 0
    elements = max(tensor.size for tensor in (*op.operands, *op.results))
    return op.repeats * math.ceil(elements / (_PARTITIONS * _FREE))


def _collectives(block: Block) -> Iterator[Collective]:
    for step in block.steps:
        if isinstance(step, Collective):
            yield step
        elif isinstance(step, Loop):
            yield from itertools.chain(_collectives(step.condition), _collectives(step.body))
        elif isinstance(step, Branch):
            yield from itertools.chain.from_iterable(map(_collectives, step.blocks))


def _collective_findings(step: Collective, ring: Topology, type_: str) -> Iterator[Finding]:
    if step.kind in _LOSSY and step.reducer == "add" and find_dtype(type_).is_integer:
        yield Finding(
            severity="degraded",
            code=_LOSSY[step.kind],
            op=step.kind,
            location=step.location,
            what="a sum of integers over cores, computed in f32 with loss",
            fix="compute in f32 as far as 2**24, or keep the summed dim whole on each core",
        )
    apart = step.kind != "collective_permute" and any(_is_apart(group, ring) for group in step.groups)
    if apart:
        yield Finding(
            severity="degraded",
            code="JAX NeuronX known issues",
            op=step.kind,
            location=step.location,
            what=f"groups of cores on chips without a link between them: {list(step.groups[0])}; may crash",
            fix="let each group be neighbours: put its mesh axis last, where ranks are consecutive",
        )


def _is_apart(group: tuple[int, ...], ring: Topology) -> bool:
    return any(ring.hops(a, b) > 1 for a, b in itertools.pairwise(sorted(group)))
