"""The device program: launches, collectives, loops and branches over numbered buffers, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass

from distributed.layout import Layout
from kernels.work import KernelWork, Tensor

__all__ = ["Block", "Branch", "Buffer", "Collective", "Kernel", "Launch", "Loop", "Program", "Step"]


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A value on every core. ``varying`` False: equal on all cores, so the simulator holds it once.

    ``offset_bytes`` is its place in the HBM of each core; None for scalars of the control CPU.
    """

    id: int
    tensor: Tensor
    varying: bool
    offset_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One fused kernel inside a launch: what the clock and the profile see."""

    work: KernelWork
    operands: tuple[int, ...]
    results: tuple[int, ...]
    location: str


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Run the StableHLO of ``Program.segments[segment]`` on every core (once, if not ``varying``).

    With ``takes_rank`` the segment's first argument is the rank, a ui32 scalar, before ``operands``.
    ``donated`` are (operand index, result index) pairs that share memory: the operand dies here.
    """

    segment: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    varying: bool
    takes_rank: bool
    kernels: tuple[Kernel, ...]
    donated: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective. ``kind``: all_reduce, all_gather, reduce_scatter, all_to_all,
    collective_permute or collective_broadcast. ``groups`` are ranks in order (for a permute: pairs of
    source and target). ``reducer``: add, multiply, maximum, minimum, and, or, xor, where one is needed.
    ``algorithm`` says who sends what when, which also is the order of summation: ring, bidirectional_ring,
    mesh or pair_exchange, as far as the kind has it; a permute ignores it, for its pairs say all.
    ``dim`` is the gathered, scattered or (all_to_all) concatenated dim, ``split_dim`` all_to_all's other.
    Operands and results correspond one to one: a combined collective has several.
    """

    kind: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    reducer: str | None = None
    dim: int | None = None
    split_dim: int | None = None
    algorithm: str = "ring"
    location: str = ""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A list of steps with its own arguments; buffers of the enclosing block may be read."""

    arguments: tuple[int, ...]
    steps: tuple["Step", ...]
    results: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """While ``condition`` (its single result, a uniform i1) holds, run ``body``; driven by the control CPU.

    ``trip_count`` is None where it is not known before the program runs.
    """

    operands: tuple[int, ...]
    condition: Block
    body: Block
    results: tuple[int, ...]
    trip_count: int | None
    location: str = ""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Run the block number ``index`` (a uniform i32; out of range takes the last)."""

    index: int
    blocks: tuple[Block, ...]
    results: tuple[int, ...]
    location: str = ""


Step = Launch | Collective | Loop | Branch


@dataclass(frozen=True, kw_only=True)
class Program:
    """What the ring executes and the clock times.

    ``layouts`` say how global inputs are cut and outputs put together, in the order of ``main``'s
    arguments and results. ``aliases`` are (output index, input index) pairs in the same memory.
    ``finite_padding`` are inputs whose padding must hold finite numbers: products multiply it by zero.
    """

    name: str
    num_cores: int
    buffers: tuple[Buffer, ...]
    main: Block
    segments: Mapping[str, str]
    input_layouts: tuple[Layout, ...]
    output_layouts: tuple[Layout, ...]
    aliases: tuple[tuple[int, int], ...] = ()
    finite_padding: tuple[int, ...] = ()
