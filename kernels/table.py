"""All kernels in one literal table: when each may fuse a run of ops, and what it costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels import (
    data_movement,
    elementwise,
    gather_scatter,
    matmul,
    normalization,
    reduction,
    single,
    softmax,
)
from kernels.cost import KernelCost, cost
from kernels.hardware import Core
from kernels.work import KernelWork

__all__ = ["KERNELS", "Kernel", "classify"]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kind of fused kernel.

    ``legal`` tells from StableHLO mnemonics in topological order whether it may fuse them; ``cost`` prices
    one run on one core.
    """

    name: str
    legal: Callable[[Sequence[str]], bool]
    cost: Callable[[KernelWork, Core], KernelCost]
    doc: str


# Most specific first: the first that is legal for a run of ops names its kernel.
KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel(
            name="matmul",
            legal=matmul.legal,
            cost=cost,
            doc="one product with casts before and bias, activation, residual after it",
        ),
        Kernel(
            name="convolution",
            legal=matmul.legal_convolution,
            cost=cost,
            doc="one convolution, as its implicit product, with the same epilogues",
        ),
        Kernel(
            name="softmax",
            legal=softmax.legal,
            cost=cost,
            doc="maximum, exponential, sum and division of rows held in SBUF",
        ),
        Kernel(
            name="normalization",
            legal=normalization.legal,
            cost=cost,
            doc="layer, RMS or batch normalisation",
        ),
        Kernel(name="gather_scatter", legal=gather_scatter.legal, cost=cost, doc="one indexed read or write"),
        Kernel(
            name="reduce",
            legal=reduction.legal,
            cost=cost,
            doc="reductions and windows with their elementwise producers and consumers",
        ),
        Kernel(
            name="elementwise",
            legal=elementwise.legal,
            cost=cost,
            doc="a chain of elementwise ops that touches HBM only at its ends",
        ),
        Kernel(
            name="data_movement",
            legal=data_movement.legal,
            cost=cost,
            doc="moves, slices, pads and transposes without arithmetic",
        ),
        Kernel(
            name="control",
            legal=single.legal_control,
            cost=cost,
            doc="one while, case, sort, FFT, factorisation or generator",
        ),
        Kernel(name="single", legal=single.legal, cost=cost, doc="any one op that no other kernel takes"),
    )
}


def classify(kinds: Sequence[str]) -> str | None:
    """The first kernel that may fuse these ops, or None."""
    return next((kernel.name for kernel in KERNELS.values() if kernel.legal(kinds)), None)
