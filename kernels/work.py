"""What one kernel has to do, in shapes and types only: the input of every cost rule."""

import functools
import math
from dataclasses import dataclass, field

from kernels.dtypes import dtype as find_dtype

__all__ = ["KernelWork", "OpWork", "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor on one core. ``dtype`` is MLIR's spelling: f32, bf16, i32, ui8, i1, f8E4M3, ..."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def size_bytes(self) -> int:
        return math.ceil(self.size * find_dtype(self.dtype).bits / 8)


@dataclass(frozen=True, kw_only=True)
class OpWork:
    """One op inside a kernel.

    ``kind`` is the StableHLO mnemonic without its dialect ("dot_general", "add", "reduce", ...).
    ``matmul`` is (batch, m, k, n) where the op is a product on the tensor engine (a convolution
    counts as its implicit product), else None. ``repeats`` is how often it runs (loop bodies).
    ``taps`` are the sizes of a convolution's window, the last dim last, whose product is part of k.
    ``window`` is how many elements one result combines (reduce_window, select_and_scatter), else 1;
    ``features`` the size of the largest dim that a reduce_window does not slide over, else 0.
    ``activation``: "result" for the op whose result one activation of the scalar engine makes out of its
    tables (GELU, SiLU, ...), "inside" for the ops which that activation replaces (a bias before it and a sum
    over its results too), else empty.
    """

    kind: str
    operands: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    matmul: tuple[int, int, int, int] | None = None
    repeats: int = 1
    taps: tuple[int, ...] = ()
    window: int = 1
    features: int = 0
    activation: str = ""


@dataclass(frozen=True, kw_only=True)
class KernelWork:
    """One kernel: the ops it fuses, what it reads from HBM and what it writes there.

    ``uncounted_loops`` is how many loops inside run an unknown number of times; their bodies count once.
    ``lines`` are the source lines of the ops of a kernel that is a loop or branch, else empty; equal work may
    stand on other lines as well.
    """

    name: str
    ops: tuple[OpWork, ...]
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    uncounted_loops: int = 0
    lines: tuple[str, ...] = field(default=(), compare=False)
